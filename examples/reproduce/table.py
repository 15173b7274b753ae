"""Make docs/results.md out of results/*.json.

python examples/reproduce/table.py                      into docs/results.md, from the results that are committed
python examples/reproduce/table.py FOLDER PAGE          another folder of results, another page
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results.md"
TIE = 0.3

# What a loop by hand of exactly this protocol gave, where the published figure's architecture is not sure.
BY_HAND = {"r4-1": 92.6, "r4-2": 90.4}
# The published figure of a row, and what it is of.
ROWS: dict[str, tuple[str, float | None]] = {
    "r0": (
        "R0 linear VAE, −ELBO of its training digits; published: the optimum in closed form",
        None,
    ),
    "r0-conditional": ("R0 given y, likewise", None),
    "r1": ("R1 dynamic MNIST, gated 300-300, z 40, N(0, I)", 84.45),
    "r2": ("R2 the same with a VampPrior of 500", 82.29),
    "r3-iwae-1": ("R3 dynamic MNIST given y, 200-200 tanh, z 100, learned p(z\\|y), k = 1", 82.32),
    "r3-iwae-5": ("R3, k = 5", 81.41),
    "r3-iwae-50": ("R3, k = 50", 80.78),
    "r3-dreg-5": ("R3 by DReG, k = 5", None),
    "r3-dreg-50": ("R3 by DReG, k = 50", None),
    "r4-1": ("R4 static MNIST, 784-400-z40 (architecture of the published figure unconfirmed)", 89.78),
    "r4-2": ("R4 with a second hidden layer of 400", 89.78),
    "static-best": ("the best MLP with N(0, I) on static MNIST (published: the IWAE paper's VAE)", 88.7),
    "r5-iwae-1": ("R5 dynamic MNIST, 200-200 tanh, z 50, N(0, I), k = 1", 86.76),
    "r5-iwae-5": ("R5, k = 5", 85.54),
    "r5-iwae-50": ("R5, k = 50", 84.78),
    "r5-dreg-5": ("R5 by DReG, k = 5", None),
    "r5-dreg-50": ("R5 by DReG, k = 50", None),
    "r6-1-tutorial": ("R6 one quadrant seen, the tutorial's convention, −ELBO of grey pixels: not a density", 71.8),
    "r6-2-tutorial": ("R6 two quadrants seen, likewise", 51.0),
    "r6-3-tutorial": ("R6 three quadrants seen, likewise", 24.2),
    "r6-1-honest": ("R6 one quadrant seen, binarised, −log p", None),
    "r6-2-honest": ("R6 two quadrants seen, likewise", None),
    "r6-3-honest": ("R6 three quadrants seen, likewise", None),
}


def figure(result: dict[str, Any]) -> list[float]:
    """What is compared with the published figure, a seed each."""
    return [seed[result["figure"]] for seed in result["seeds"]]


def mean_and_spread(values: list[float]) -> str:
    """The mean over seeds and their standard deviation."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5:.2f}"


def verdict(values: list[float], published: float | None) -> str:
    """How far ours is from the published figure; within 0.3 is a tie."""
    if published is None:
        return ""
    difference = sum(values) / len(values) - published
    return f"{difference:+.2f}" + (", a tie" if abs(difference) <= TIE else "")


def by_hand(values: list[float], name: str) -> str:
    """How far ours is from a loop by hand, where there was one."""
    if name not in BY_HAND:
        return ""
    return f"; {sum(values) / len(values) - BY_HAND[name]:+.2f} from a loop by hand ({BY_HAND[name]})"


def line(cells: list[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Write the page."""
    folder, target = (Path(word) for word in sys.argv[1:3]) if sys.argv[1:] else (HERE / "results", PAGE)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    page = [
        "# Results",
        "",
        "Held-out −log p(x) or −log p(x|y) in nats per image, by importance sampling; lower is better. Ours is the",
        "mean over seeds ± their standard deviation. Published figures are almost all of one seed, so that a",
        "difference of up to 0.3 is called a tie. Nothing was chosen on test images, but where a convention says so.",
        "This page is made by `python examples/reproduce/table.py` from the files that the commands write.",
        "",
        line(
            [
                "what",
                "published",
                "ours",
                "difference",
                "seeds",
                "epochs",
                "samples",
                "training a seed",
                "on",
                "command",
            ]
        ),
        line(["---"] + ["---:"] * 7 + ["---"] + ["---"]),
    ]
    for name, (what, published) in ROWS.items():
        if name not in results:
            continue
        found = results[name]
        values = figure(found)
        published = found.get("published", published)
        minutes = sum(seed["seconds"] for seed in found["seeds"]) / len(values) / 60
        page.append(
            line(
                [
                    what + ("" if found["complete"] else " (partial)"),
                    "" if published is None else f"{published:.2f}",
                    mean_and_spread(values),
                    verdict(values, published) + by_hand(values, name),
                    str(len(values)),
                    "/".join(str(n) for n in dict.fromkeys(seed["epochs"] for seed in found["seeds"])),
                    str(found["samples"]),
                    f"{minutes:.0f} min",
                    "; ".join(sorted({seed["hardware"] for seed in found["seeds"]})),
                    f"`{found['command']}`",
                ]
            )
        )
    versions = sorted({seed["versions"] for found in results.values() for seed in found["seeds"]})
    page += ["", "Versions: " + "; ".join(versions) + "."]
    target.write_text("\n".join(page) + "\n")
    print(target)


if __name__ == "__main__":
    main()

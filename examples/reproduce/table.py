"""Make docs/results.md out of results/*.json.

python examples/reproduce/table.py                      into docs/results.md, from the results that are committed
python examples/reproduce/table.py FOLDER PAGE          another folder of results, another page
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results.md"
TIE = 0.3


class Row(NamedTuple):
    """What a row is, the published figure, and the protocol of both."""

    what: str
    published: float | None
    protocol: str
    # The row that it is a variant of, and how far below that the published one is.
    below: tuple[str, float] | None = None
    # A second published figure, and whose it is.
    also: tuple[str, float] | None = None


GATED = "batch 100, Adam 5e-4, β over 100 epochs, the best on validation, patience 50 after that; S = 5000"
BURDA = (
    "batch 20, 3280 epochs, 1e-3 · 10^(−i/7) in stages of 3^i, Adam ε = 1e-4, 60,000 images, the last weights; S = 5000"
)
PYTHAE = "batch 100, 500 epochs, Adam 1e-4, × 10^(−1/5) after 200 and 350, the best on validation; S = 200"
PYRO = (
    "batch 128, Adam 1e-3, patience 3 on the images that are reported; chosen by 1 draw an image, reported by 10; "
    "grey pixels, not a density"
)
HONEST = "batch 128, Adam 1e-3, patience 10 on validation images, decoder sees y, binarised; S = 5000"
PPCA = "full batch, 3000 epochs, Adam, linear; published is the optimum in closed form"

ROWS = {
    "r0": Row("R0 linear VAE, −ELBO of its training digits", None, PPCA),
    "r0-conditional": Row("R0 given y, likewise", None, PPCA),
    "r1": Row("R1 dynamic MNIST, gated 300-300, z 40, N(0, I)", 84.45, GATED),
    "r2": Row("R2 the same with a VampPrior of 500", 82.29, GATED, below=("r1", -2.16)),
    "r3-iwae-1": Row("R3 dynamic MNIST given y, 200-200 tanh, z 100, learned p(z\\|y), k = 1", 82.32, BURDA),
    "r3-iwae-5": Row("R3, k = 5", 81.41, BURDA),
    "r3-iwae-50": Row("R3, k = 50", 80.78, BURDA),
    "r3-dreg-5": Row("R3 by DReG, k = 5", None, BURDA),
    "r3-dreg-50": Row("R3 by DReG, k = 50", None, BURDA),
    "r4-1": Row(
        "R4 static MNIST, 784-400-z40 (architecture of the published figure unconfirmed)",
        89.78,
        PYTHAE,
    ),
    "r4-2": Row(
        "R4, 784-400-400-z40 (architecture of the published figure unconfirmed)",
        89.78,
        PYTHAE,
    ),
    "static-best": Row(
        "the best MLP with N(0, I) on static MNIST; published: the VAE of the IWAE paper",
        88.7,
        "`static_best.py --search` chose on validation images; S = 5000",
    ),
    "r5-iwae-1": Row("R5 dynamic MNIST, 200-200 tanh, z 50, N(0, I), k = 1", 86.76, BURDA, also=("nbip/IWAE", 86.35)),
    "r5-iwae-5": Row("R5, k = 5", 85.54, BURDA, also=("nbip/IWAE", 85.18)),
    "r5-iwae-50": Row("R5, k = 50", 84.78, BURDA, also=("nbip/IWAE", 84.59)),
    "r5-dreg-1": Row("R5 by DReG, k = 1", 86.08, BURDA, below=("r5-iwae-1", -0.27)),
    "r5-dreg-5": Row("R5 by DReG, k = 5", 84.90, BURDA, below=("r5-iwae-5", -0.28)),
    "r5-dreg-50": Row("R5 by DReG, k = 50", 84.32, BURDA, below=("r5-iwae-50", -0.27)),
}
for seen, (number, network, tutorial) in enumerate(
    [("one quadrant", 100.4, 71.8), ("two quadrants", 61.9, 51.0), ("three quadrants", 25.4, 24.2)], 1
):
    ROWS |= {
        f"r6-{seen}-network": Row(f"R6 {number} seen, Pyro's tutorial: its first network", network, PYRO),
        f"r6-{seen}-tutorial": Row(f"R6 {number} seen, Pyro's tutorial: the CVAE, −ELBO", tutorial, PYRO),
        f"r6-{seen}-honest": Row(f"R6 {number} seen, −log p of binarised pixels", None, HONEST),
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


def beside(values: list[float], row: Row, results: dict[str, Any], other: tuple[float, str] | None) -> str:
    """How far ours is from another figure, and from the row that it is a variant of."""
    mean, notes = sum(values) / len(values), ""
    if other is not None:
        notes += f"; {mean - other[0]:+.2f} from {other[1]} ({other[0]:.2f})"
    if row.below is not None and row.below[0] in results:
        first = figure(results[row.below[0]])
        notes += f"; {mean - sum(first) / len(first):+.2f} from ours of {row.below[0]} (published: {row.below[1]})"
    return notes


def by_hand(folder: Path, name: str) -> tuple[float, str] | None:
    """The mean of what ``by_hand.py`` has for a row, and of how many seeds; None before it has run to its end."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "by-hand").glob(f"{name}-*.json"))]
    values = [run["neg_log_prob"] for run in found if run["complete"]]
    if not values:
        return None
    seeds = f"{len(values)} seed" + "s" * (len(values) > 1)
    return sum(values) / len(values), f"the same in plain torch, `by_hand.py`, {seeds}"


def figures(published: float | None, row: Row) -> str:
    """The published figure, and the second one where there are two."""
    if published is None:
        return ""
    return f"{published:.2f}" + ("" if row.also is None else f" ({row.also[0]}: {row.also[1]:.2f})")


def how_long(seeds: list[dict[str, Any]]) -> str:
    """How many epochs the seeds had: once where all had as many, each of a few, the least and the most of more."""
    epochs = [seed["epochs"] for seed in seeds]
    if len(set(epochs)) == 1:
        return str(epochs[0])
    return "/".join(map(str, epochs)) if len(epochs) <= 3 else f"{min(epochs)}–{max(epochs)}"


def places(seeds: list[dict[str, Any]]) -> dict[str, str]:
    """What computed, and how long training a seed took there on average."""
    seconds: dict[str, list[float]] = {}
    for seed in seeds:
        seconds.setdefault(seed["hardware"], []).append(seed["seconds"])
    means = {place: sum(seconds[place]) / len(seconds[place]) for place in sorted(seconds)}
    return {place: f"{mean:.0f} s" if mean < 100 else f"{mean / 60:.0f} min" for place, mean in means.items()}


def more_seeds(results: dict[str, Any]) -> list[str]:
    """Why a row has more seeds than its neighbours, which is to be known of a mean that came close thereby."""
    values = figure(results["r6-3-tutorial"]) if "r6-3-tutorial" in results else []
    if len(values) <= 3:
        return []
    first = f"{mean_and_spread(values[:3])} ({verdict(values[:3], ROWS['r6-3-tutorial'].published)})"
    return [
        "",
        f"The tutorial's rows of three quadrants were given {len(values)} seeds after three had given {first} for",
        "the CVAE, because its spread is the largest of all; the other rows of R6 have three.",
    ]


def doubts(result: dict[str, Any]) -> str:
    """Of how many images the estimate is not to be trusted, where that is the figure."""
    seeds = [seed for seed in result["seeds"] if "rows" in seed]
    if result["figure"] != "neg_log_prob" or not seeds:
        return ""
    bad, rows = (sum(seed[name] for seed in seeds) for name in ("rows_not_to_be_trusted", "rows"))
    return f"{100 * bad / rows:.1f}%"


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
        "−log p(x) or −log p(x|y) of test images in nats, by S importance samples, where a row says nothing else; less",
        "is better. Ours is the mean over seeds ± their standard deviation. Published figures are almost all of one",
        "seed, so that a difference of up to 0.3 is called a tie. Nothing was chosen on test images, but where a",
        "convention says so. Under k̂ is of how many images an estimate is not to be trusted, and may be too high, by",
        "Pareto's k̂ (`pv.evaluation.log_likelihood`). Epochs are those of every seed, or the least and the most of",
        "more than three seeds. Training a seed is its epochs times their median, in R0 all of them by the clock, on a",
        "machine that had other work beside it: a mean for each kind of machine, in the order in which they are named.",
        "Partial rows have had fewer epochs than the protocol has.",
        "Where patience decides, one seed can end half a nat apart on two machines, and a tie of one seed says little.",
        "This page is made by `python examples/reproduce/table.py` from the files that the commands write.",
        "",
        line(
            [
                "what",
                "published",
                "ours",
                "difference",
                "k̂",
                "seeds",
                "epochs",
                "training a seed",
                "on",
                "protocol",
                "command",
            ]
        ),
        line(["---"] + ["---:"] * 7 + ["---"] * 3),
    ]
    for name, row in ROWS.items():
        if name not in results:
            continue
        found = results[name]
        values = figure(found)
        published = found.get("published", row.published)
        times = places(found["seeds"])
        page.append(
            line(
                [
                    row.what + ("" if found["complete"] else " (partial)"),
                    figures(published, row),
                    mean_and_spread(values),
                    verdict(values, published) + beside(values, row, results, by_hand(folder, name)),
                    doubts(found),
                    str(len(values)),
                    how_long(found["seeds"]),
                    "; ".join(times.values()),
                    "; ".join(times),
                    row.protocol,
                    f"`{found['command']}`",
                ]
            )
        )
    page += more_seeds(results)
    versions = sorted({seed["versions"] for found in results.values() for seed in found["seeds"]})
    page += ["", "Versions: " + "; ".join(versions) + "."]
    target.write_text("\n".join(page) + "\n")
    print(target)


if __name__ == "__main__":
    main()

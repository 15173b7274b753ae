"""Every example runs as it is, ends by itself, and writes the pictures it names."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

EXAMPLES = Path(__file__).parents[1] / "examples"


def start(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def run(name: str, *options: str) -> str:
    done = start(name, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(name: str, *options: str) -> str:
    done = start(name, *options)
    assert done.returncode == 1, done.stdout
    return done.stderr


def pictures(folder: Path) -> dict[str, float]:
    """How much the pixels of every picture vary: an empty one has none."""
    return {path.stem: float(imread(path)[..., :3].std()) for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in torchvision's layout with blots instead of digits; the loader wants the full number of them."""
    folder = tmp_path_factory.mktemp("data") / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, rows in [("train", 60_000), ("t10k", 10_000)]:
        labels = (np.arange(rows) % 10).astype(np.uint8)
        x = np.zeros((rows, 28, 28), np.uint8)
        for k in range(10):
            x[labels == k, 2 * k + 2 : 2 * k + 8, 8:20] = 230
        images = struct.pack(">IIII", 2051, rows, 28, 28) + x.tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, rows) + labels.tobytes())
    return folder.parents[1]


def test_svi_by_hand_lowers_the_loss_with_stock_pyro() -> None:
    losses = [float(line.split()[3]) for line in run("svi_by_hand.py", "--epochs", "3").splitlines()[:3]]
    assert losses[2] < losses[1] < losses[0]


def test_autoencoder_prints_the_identity_of_squared_error_and_likelihood(tmp_path: Path) -> None:
    out = run("autoencoder.py", "--epochs", "2", "--out", str(tmp_path))
    line = next(line for line in out.splitlines() if line.startswith("test:"))
    error, nll = float(line.split()[3]), float(line.split()[-2])
    assert nll - error == pytest.approx(32 * np.log(np.pi), abs=2e-3)
    assert all(spread > 0.05 for spread in pictures(tmp_path).values())
    assert set(pictures(tmp_path)) == {"reconstructions", "latents"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vae_mnist.py", {"manifold", "latents", "history"}), ("cvae_mnist.py", {"samples", "styles", "history"})],
)
def test_mnist_examples(name: str, expected: set[str], root: Path, tmp_path: Path) -> None:
    out = run(name, "--root", str(root), "--out", str(tmp_path), "--epochs", "1", "--rows", "500")
    assert "audit: pass" in out
    assert set(pictures(tmp_path)) == expected
    assert all(spread > 0.05 for spread in pictures(tmp_path).values())


def test_swap_priors_reports_four(tmp_path: Path) -> None:
    out = run("swap_priors.py", "--epochs", "1", "--out", str(tmp_path))
    table = out.splitlines()[out.splitlines().index(next(r for r in out.splitlines() if "−log p(x|y)" in r)) + 1 :][:4]
    assert [row.split("  ")[0] for row in table] == [
        "N(0, I), y ignored",
        "Laplace, a function",
        "Gaussian p(z|y)",
        "spline flow p(z|y)",
    ]
    assert pictures(tmp_path)["priors"] > 0.05


def test_priors_has_a_row_a_prior_and_goes_on_where_it_was(root: Path, tmp_path: Path) -> None:
    options = ["--root", str(root), "--out", str(tmp_path), "--steps", "3", "--rows", "600", "--test", "20"]
    options += ["--seeds", "2", "--samples", "10", "--priors", "Standard", "Vamp"]
    out = run("priors.py", *options)
    rows = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith(("| Standard", "| Vamp"))]
    assert [row[0] for row in rows] == ["Standard", "Vamp"]
    # A mean with its spread over seeds, and the difference from the first prior; for x, and for x given y.
    assert [len(row) for row in rows] == [4, 5]
    (x, d_x, y, d_y), (x_first, y_first) = rows[1][1:], rows[0][1:4:2]
    for mean, difference, first in ((x, d_x, x_first), (y, d_y, y_first)):
        values = [float(cell.split(" ± ")[0]) for cell in (mean, difference, first)]
        assert values[0] - values[2] == pytest.approx(values[1], abs=0.016)
    assert pictures(tmp_path)["priors"] > 0.02
    # A second call reads what the first one wrote; one of a part of it, too.
    assert run("priors.py", *options).splitlines()[-5:] == out.splitlines()[-5:]
    given_y = run("priors.py", *options, "--conditions", "y").splitlines()
    assert f"| Vamp | {y} | {d_y} |" in given_y
    assert "give another --out" in refused("priors.py", *options, "--steps", "4")


def test_semisupervised_learns_from_few_labels(root: Path, tmp_path: Path) -> None:
    options = ["--root", str(root), "--out", str(tmp_path), "--rows", "600", "--epochs", "30", "--hidden", "50"]
    out = run("semisupervised_mnist.py", *options, "--first", "150", "--repeat", "5")
    line = next(line for line in out.splitlines() if line.startswith("test accuracy"))
    # One blot a class: every label can be told.
    assert float(line.split(": ")[1].split()[0]) > 0.9
    assert pictures(tmp_path)["samples"] > 0.05


@pytest.mark.parametrize(
    ("script", "row", "options"),
    [
        ("vampprior", "r1", []),
        ("iwae", "r3-dreg-2", ["--conditional", "--k", "2", "--dreg"]),
        ("quadrants", "r6-3-honest", ["--seen", "3", "--honest"]),
        ("quadrants", "r6-1-tutorial", ["--seen", "1"]),
    ],
)
def test_rows_of_the_reproduction(script: str, row: str, options: list[str], root: Path, tmp_path: Path) -> None:
    """A seed is a run, a second call reads it, and a smoke run is never called complete."""
    places = ["--root", str(root), "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    command = [f"reproduce/{script}.py", *options, *places, "--rows", "40", "--epochs", "1", "--seeds", "3"]
    out = run(*command)
    found = json.loads((tmp_path / "results" / f"{row}.json").read_text())
    assert found["complete"] is False
    assert [seed["seed"] for seed in found["seeds"]] == [3]
    of = "neg_elbo" if row.endswith("tutorial") else "neg_log_prob"
    assert (found["figure"], found["mean"]) == (of, found["seeds"][0][of])
    assert found["seeds"][0]["density"] is (of == "neg_log_prob")
    assert found["command"] == " ".join(
        ["python", command[0].replace("re", "examples/re", 1), *options, "--rows 40 --epochs 1 --seeds 3"]
    )
    assert f"{row}: {of} {found['mean']:.2f}, 1 seeds" in out
    again = run(*command)
    assert "effective samples" not in again
    assert json.loads((tmp_path / "results" / f"{row}.json").read_text())["seeds"] == found["seeds"]
    # Nobody takes these numbers for those of another protocol.
    other = refused(*command, "--epochs", "2")
    assert "made with" in other
    assert "give another --out" in other


def test_r0_nears_the_optimum_from_below(tmp_path: Path) -> None:
    """In a quarter of the epochs: 0.2 nats below it where the protocol ends 0.01 below."""
    run("reproduce/r0.py", "--conditional", "--epochs", "800", "--seeds", "0", "--results", str(tmp_path))
    found = json.loads((tmp_path / "r0-conditional.json").read_text())
    assert 0 <= found["seeds"][0]["neg_log_prob"] - found["published"] < 0.6
    assert found["complete"] is False


def test_the_table_of_results(tmp_path: Path) -> None:
    """Means and spreads over seeds, the verdict of a tie, and a partial row that says so."""
    seed = {"neg_elbo": 99.0, "seconds": 120.0, "epochs": 5, "hardware": "h", "versions": "v"}
    row = {
        "command": "python r4.py",
        "figure": "neg_log_prob",
        "complete": False,
        "samples": 200,
        "seeds": [{"neg_log_prob": value, **seed} for value in (89.0, 90.0)],
    }
    (tmp_path / "r4-1.json").write_text(json.dumps(row))
    run("reproduce/table.py", str(tmp_path), str(tmp_path / "results.md"))
    page = (tmp_path / "results.md").read_text()
    verdict = "-0.28, a tie; -3.10 from a loop by hand (92.6)"
    assert f"(partial) | 89.78 | 89.50 ± 0.71 | {verdict} | 2 | 5 | 200 | 2 min | h | `python r4.py` |" in page
    assert "Versions: v." in page

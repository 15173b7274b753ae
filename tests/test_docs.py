"""What a page of the documentation shows is what happens: its blocks run in order, and say what should be true."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ppl_vae as pv
from ppl_vae import presets
from ppl_vae.capture import guard

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    """Every block of Python on a page, with the line it begins in."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [(text[: found.start(1)].count("\n"), found.group(1)) for found in BLOCK.finditer(text)]


@pytest.fixture
def tables():
    """The tables of names, which a reader writes to, as they were afterwards."""
    before = {kind: dict(table) for kind, table in presets.TABLES.items()}
    yield
    for kind, table in presets.TABLES.items():
        table.clear()
        table.update(before[kind])


@pytest.mark.parametrize("page", ["custom_prior.md"])
@pytest.mark.usefixtures("tables")
def test_every_block_of_a_page_runs_and_says_what_is_true(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    assert len(found) > 5
    names = {"__name__": page}
    for line, block in found:
        # Blank lines in front, so that an error names the line of the page.
        exec(compile("\n" * line + block, str(DOCS / page), "exec"), names)
    assert all("assert " in block for _, block in found[1:])


def test_the_blocks_of_the_readme_run(tmp_path, monkeypatch, capsys):
    """In order, on few rows of noise for MNIST and whatever is read, with less annealing and a hastier judge."""
    monkeypatch.chdir(tmp_path)
    np.savetxt("my.csv", np.random.default_rng(0).normal(size=(50, 4)), delimiter=",", header="a,b,c,y")
    Path("faces").mkdir()
    for name in "ab":
        Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 30, 3), dtype=np.uint8)).save(
            f"faces/{name}.png"
        )
    few = pv.data.from_tensors(torch.rand(1000, 1, 28, 28), torch.arange(1000) % 10, binarize="dynamic")
    monkeypatch.setattr(pv.data, "load", lambda *args, **options: few)
    for name, less in (("bounds", {"temperatures": 3, "chains": 2, "leapfrog": 1}), ("quality", {"steps": 20})):
        monkeypatch.setattr(pv.evaluation, name, functools.partial(getattr(pv.evaluation, name), **less))
    names = {"__name__": "README.md"}
    found = blocks("../README.md")
    assert len(found) == 6
    for line, block in found:
        exec(compile("\n" * line + block, "README.md", "exec"), names)
    assert names["images"].shape == (8, 10, 1, 28, 28)
    assert names["given_y"].sample(3, y=torch.zeros(1)).shape == (3, 3)
    with np.load("faces.npz") as file:
        assert (file["x"].shape, file["x"].dtype) == ((2, 1, 28, 28), np.uint8)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("Pareto", "lower bound", "dimensions are used", "calibration: ", "FID"))


@functools.cache
def results(name):
    """What a benchmark that is quoted has found, and what it says of itself."""
    found = json.loads((DOCS.parent / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found["results"], found["machine"]


def test_the_step_times_of_the_readme_are_those_that_were_measured():
    """Every cell of the table; of two ways to compile by hand, the faster."""
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    head, _, *rows = readme[readme.index("| ms a training step") :].split("\n\n")[0].splitlines()
    cases, contestants = (
        ["mlp 128,400", "mlp 256,400", "mlp 128,1024", "nsf 128,400", "conv 128,400"],
        {
            "stock SVI": ["stock SVI"],
            "by hand, eager": ["by hand eager"],
            "by hand, compiled": ["by hand compiled", "by hand compiled joint"],
            "NumPyro": ["NumPyro"],
            "matrix products + Adam": ["floor: GEMMs + Adam"],
            "ours, `graph`": ["ours graph"],
            "ours, `inductor`": ["ours inductor"],
        },
    )
    assert head.strip("| ").split(" | ")[1:] == list(contestants)
    assert f"{results('step_time')[1]['threads']} CPU cores" in head
    floors = []
    for case, row in zip(cases, rows, strict=True):
        table = results("step_time")[0][case]["table"]
        cells = [
            min((f"{ms:.1f}" for name in names if (ms := table[name].get("ms"))), key=float, default="–")
            for names in contestants.values()
        ]
        cells[-1] += f" (bf16 {table['ours inductor bf16']['ms']:.1f})"
        what, *told = row.strip("| ").split(" | ")
        assert told == cells, what
        if case.startswith("mlp"):
            assert what == "MLP, batch {}, hidden {}".format(*case.removeprefix("mlp ").split(","))
            floors.append(table["ours inductor"]["ms"] / table["floor: GEMMs + Adam"]["ms"])
    assert f"within {100 * (max(floors) - 1):.0f}% of them" in readme


def test_the_other_times_of_the_readme_are_those_that_were_measured():
    """Of an epoch, of likelihoods, and of a step on a GPU."""
    readme = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    table = results("epoch_time")[0]
    assert table["ours capture=auto"]["chose"] == "inductor"
    auto, bf16, example, trainer = (
        f"{table[name]['seconds']:.1f} s"
        for name in ("ours capture=auto", "ours inductor bf16", "Pyro's example", "pythae's trainer")
    )
    assert f"takes {auto} under `auto`, which compiles here, and in bf16 {bf16}; the loop of Pyro's" in readme
    assert f"example takes {example} and pythae's trainer {trainer}." in readme

    table, machine = results("likelihood")
    rate = {name: f"{row['per_second'] / 1000:.0f},000" for name, row in table.items()}
    floor = max((name for name in table if "products" in name), key=lambda name: table[name]["per_second"])
    peer = max((name for name in table if "pythae" in name), key=lambda name: table[name]["per_second"])
    assert f"decode {rate['ours graph']} z a second recorded and {rate['ours inductor']} compiled" in readme
    assert f"pythae's `get_nll` decodes {rate[peer]} and the decoder's matrix products alone" in readme
    assert f"would take {rate[floor]}. In bf16 it is {rate['ours inductor bf16']}, and log p" in readme
    error = machine["bf16 error"]
    assert f"by {error['mean']:.2f} nats on average, {error['largest']:.2f} at most" in readme
    shift = f"{error['shift']:.3f} ± {error['error of shift']:.3f}".replace("-", "−")
    assert f"the mean of {error['rows']} images by {shift}:" in readme

    cuda = results("step_time-cuda")[0]["mlp 128,400"]["table"]
    ms = {name: f"{row['ms']:.2f}" for name, row in cuda.items()}
    ours = f"{ms['ours cudagraph-inductor']} ms a step ({ms['ours cudagraph']} not compiled)"
    assert f" {ours}, where stock SVI " in readme
    assert f" {cuda['stock SVI']['ms']:.0f}, the same by hand in a CUDA graph " in readme
    hand = f"in a CUDA graph {ms['by hand CUDA graph']}, compiled {ms['by hand joint CUDA graph']}, and NumPyro"
    assert f"the same by hand {hand} {ms['NumPyro']}" in readme


def test_the_tolerances_of_a_replay_are_those_that_are_told():
    """Of the loss and of the gradient, recorded and compiled, on the page and in the equation."""
    loss, gradient, of_compiled, of_its_gradient = (
        f"{tolerance:.0e}".replace("e-0", "e-") for tolerance in (*guard._RECORDED, *guard._COMPILED)
    )
    page = " ".join((DOCS / "capture.md").read_text(encoding="utf-8").split())
    recorded = f"the loss to {loss} of the log-densities that it is a sum of, the gradient to {gradient} of its norm"
    assert recorded in page
    assert f"and then as compiled, to {of_compiled} and {of_its_gradient}:" in page
    told = " ".join(guard.__doc__.split())
    assert rf":math:`\epsilon_\ell` is {loss} and :math:`\epsilon_g` is {gradient}, for a compiled one" in told
    assert f"for a compiled one they are {of_compiled} and {of_its_gradient};" in told


def test_the_blocks_of_the_capture_page_run():
    names = {"__name__": "capture.md"}
    for line, block in blocks("capture.md"):
        exec(compile("\n" * line + block, "capture.md", "exec"), names)
    assert names["svi"].steps == 10

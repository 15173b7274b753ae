"""What a page of the documentation shows is what happens: its blocks run in order, and say what should be true."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ppl_vae as pv
from ppl_vae import presets

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


def test_the_blocks_of_the_capture_page_run():
    names = {"__name__": "capture.md"}
    for line, block in blocks("capture.md"):
        exec(compile("\n" * line + block, "capture.md", "exec"), names)
    assert names["svi"].steps == 10

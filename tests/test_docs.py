"""What a page of the documentation shows is what happens: its blocks run in order, and say what should be true."""

import re
from pathlib import Path

import pytest

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

"""A part of the composition matrix that covers every part: `make matrix` runs the whole."""

import random
import warnings

import matrix
import pytest

CELLS = list(matrix.cells())
VALID = [cell for cell in CELLS if matrix.refusal(cell) is None]
ONCE = matrix.each_once(VALID)


def test_every_part_is_in_the_matrix():
    """With a condition and without."""
    for i, kind in enumerate(matrix.TABLES):
        found = {(cell[i], cell.conditional) for cell in ONCE}
        assert found == {(name, conditional) for name in matrix.TABLES[kind] for conditional in (False, True)}


def test_all_pairs_are_covered():
    wanted = {pair for cell in VALID for pair in matrix.pairs(cell)}
    chosen = matrix.covering(VALID)
    assert {pair for cell in chosen for pair in matrix.pairs(cell)} == wanted
    # As few as a tenth more than the least there can be would do; twice as many would be a waste.
    assert len(chosen) < 2 * len(matrix.TABLES["prior"]) * len(matrix.TABLES["likelihood"])


@pytest.mark.parametrize("seed", range(4))
def test_cells_are_valid_or_refused_with_a_reason(seed):
    wrong = [why for cell in random.Random(seed).sample(CELLS, 60) if (why := matrix.one((cell, False))[1])]
    assert not wrong


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", [UserWarning, OSError, AssertionError])
def test_whatever_goes_wrong_with_a_cell_is_told_of_that_cell(kind, whole, monkeypatch):
    """A warning is an error there, and no error keeps the other cells from being heard."""

    def wrong(*args):
        if issubclass(kind, Warning):
            warnings.warn("so it is", kind, stacklevel=1)
        raise kind("so it is")

    monkeypatch.setattr(matrix, "prove", wrong)
    monkeypatch.setattr(matrix, "outcome", wrong)
    assert matrix.one((VALID[0], whole)) == (VALID[0], f"{VALID[0]}: {kind.__name__}: so it is")


@pytest.mark.parametrize("cell", ONCE, ids=lambda cell: "-".join(map(str, cell)))
def test_a_cell_keeps_the_promises(cell, tmp_path):
    _, wrong = matrix.one((cell, True))
    assert wrong is None

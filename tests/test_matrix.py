"""A part of the composition matrix that covers every part: `make matrix` runs the whole."""

import random

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


@pytest.mark.parametrize("cell", ONCE, ids=lambda cell: "-".join(map(str, cell)))
def test_a_cell_keeps_the_promises(cell, tmp_path):
    _, wrong = matrix.one((cell, True))
    assert wrong is None

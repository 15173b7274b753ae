"""The list of mutants is true of the library as it is; `make mutants` runs them."""

import ast
import re
from pathlib import Path

import mutants
import pytest

NAMES = [mutant.name for mutant in mutants.MUTANTS]


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=NAMES)
def test_a_mutant_breaks_what_is_there_and_names_a_test(mutant):
    """Its text is in the file exactly once, what it makes of it is still Python, and the test exists."""
    right = (mutants.ROOT / "ppl_vae" / mutant.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutants.broken(mutant))) != ast.dump(ast.parse(right))
    file, test = mutant.tests.split("::")
    assert re.search(rf"^def {test}\(", (Path(__file__).parent / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_there_are_enough_and_each_is_another():
    assert len(NAMES) == len(set(NAMES)) >= 20


def test_a_text_that_is_gone_is_an_error():
    with pytest.raises(LookupError, match=r"0 times in priors.py: 'no such text'"):
        mutants.broken(mutants.Mutant("gone", "priors.py", "no such text", "", ""))

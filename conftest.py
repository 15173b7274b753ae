"""What every test and doctest stands on: a fixed seed, an empty param store, and the device to run on."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest
import torch

import ppl_vae


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--device``: the suite runs on the CPU unless told otherwise."""
    parser.addoption("--device", default="cpu", help="where tests that take a device run: cpu or cuda")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device the suite was asked to run on."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def names(doctest_namespace: dict[str, object]) -> None:
    """Let examples in docstrings say ``torch``, ``dist`` and ``pv`` without importing them each time."""
    doctest_namespace.update(torch=torch, dist=pyro.distributions, pv=ppl_vae)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Seed the generators, give them back afterwards, and leave no parameter of one test to the next."""
    pyro.clear_param_store()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    pyro.clear_param_store()

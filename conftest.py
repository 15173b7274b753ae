"""What every test and doctest stands on: a seed, an empty param store, and the device to run on.

The seed is 0. Tests that involve chance are marked ``fresh``: ``pytest -m fresh`` runs those alone, with a seed drawn
for the run and shown where one fails, and ``PPL_VAE_SEED=123`` sets it.
"""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch

import ppl_vae


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--device``: the suite runs on the CPU unless told otherwise."""
    parser.addoption("--device", default="cpu", help="where tests that take a device run: cpu or cuda")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed of a fresh run; keep a GPU out of a run on the CPU, where "auto" would find it."""
    if config.getoption("--device") == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        # What torch says of the first product in a thread of its own.
        config.addinivalue_line("filterwarnings", "ignore:Attempting to run cuBLAS")
    if config.getoption("markexpr").strip() == "fresh":
        # In the environment, where the workers of pytest-xdist find it too.
        os.environ.setdefault("PPL_VAE_SEED", str(secrets.randbelow(2**31)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the CPU what takes no device."""
    if config.getoption("--device") != "cpu":
        takes: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            takes["device" in getattr(item, "fixturenames", ())].append(item)
        items[:] = takes[True]
        config.hook.pytest_deselected(items=takes[False])


def _seed(item: Any) -> int:
    return int(os.environ.get("PPL_VAE_SEED", 0)) if item.get_closest_marker("fresh") else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Say the seed of a statistical test that failed."""
    report = yield
    if report.failed and item.get_closest_marker("fresh"):
        report.sections.append(("seed", f"PPL_VAE_SEED={_seed(item)}"))
    return report


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test: 0, unless it is marked ``fresh`` and a run has chosen another."""
    return _seed(request.node)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device the suite was asked to run on."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def recording(device: torch.device) -> tuple[str, Callable[[float], Any]]:
    """What ``CapturedSVI`` records by on the device, and of a rate an Adam that a recording there can hold."""
    if device.type == "cpu":
        return "graph", lambda lr: functools.partial(torch.optim.Adam, lr=lr)
    held = {"fused": True, "capturable": True}
    return "cudagraph", lambda lr: functools.partial(torch.optim.Adam, lr=torch.tensor(lr, device=device), **held)


@pytest.fixture(autouse=True)
def names(doctest_namespace: dict[str, object]) -> None:
    """Let examples in docstrings say ``torch``, ``dist`` and ``pv`` without importing them each time."""
    doctest_namespace.update(torch=torch, dist=pyro.distributions, pv=ppl_vae)


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed the generators, give them back afterwards, and leave no parameter of one test to the next."""
    pyro.clear_param_store()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(_seed(request.node))
        yield
        if request.node.get_closest_marker("fresh") and torch.initial_seed() != _seed(request.node):
            pytest.fail("a test marked fresh has set a seed of its own, so that its noise is always the same")
    pyro.clear_param_store()

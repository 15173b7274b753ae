"""The statistical tests over and over, with a fresh seed each time: `make fresh` runs them 200 times.

Each holds α = 1e-6 for a right library, so that a failure is a mistake, in the library or in the test. What was found
is written to ``docs/fresh.md``, one row for each time this was run; ``PPL_VAE_SEED=... pytest -m fresh`` repeats a
failure.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import secrets
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOG = ROOT / "docs" / "fresh.md"
HEAD = """# Statistical tests with fresh seeds

`make fresh` runs the tests whose chance of failing is known for every seed over and over, each time with another seed,
and adds a row here. Each holds α = 1e-6, so no failure is what a right library gives.

| seeds | runs | tests a run | failures | seconds a run |
|---|---|---|---|---|
"""


class Count:
    """A plugin that counts how many tests ran, and keeps the names of those that failed."""

    def __init__(self) -> None:
        self.ran, self.failed, self.seconds = 0, list[str](), 0.0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once, by its call; one that cannot even be set up has failed."""
        self.ran += report.when == "call"
        if report.failed:
            self.failed.append(report.nodeid)


def marked() -> list[str]:
    """The files with a marked test: to collect the others would take longer than the tests."""
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(path) for path in tests if "pytest.mark.fresh" in path.read_text(encoding="utf-8")]


def once(seed: int) -> Count:
    """All marked tests with a seed."""
    os.environ["PPL_VAE_SEED"] = str(seed)
    count, said, started = Count(), io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(said):
        code = pytest.main(["-q", "--no-header", "--tb=short", "-m", "fresh", *marked()], plugins=[count])
    if code not in (0, 1):
        # Not SystemExit, which would end a process of the pool and leave the pool waiting for its answer.
        raise RuntimeError(f"pytest could not run the tests: {code!r}\n{said.getvalue()}")
    print(said.getvalue(), end="", flush=True)
    count.seconds = time.perf_counter() - started
    return count


def row(first: int, counts: list[Count]) -> str:
    """A line of the table, which names what failed."""
    failures = [f"{name} ({first + i})" for i, count in enumerate(counts) for name in count.failed]
    told = f"{len(failures)}: {', '.join(failures)}" if failures else "0"
    tests = "…".join(str(n) for n in sorted({count.ran for count in counts}))
    last = first + len(counts) - 1
    seconds = sum(count.seconds for count in counts) / len(counts)
    return f"| {first}…{last} | {len(counts)} | {tests} | {told} | {seconds:.1f} |\n"


def main(runs: int) -> int:
    """Run so many times, a process a core; return how many tests failed."""
    first, counts = secrets.randbelow(2**31), list[Count]()
    before = LOG.read_text(encoding="utf-8") if LOG.exists() else HEAD
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for i, count in enumerate(pool.imap(once, range(first, first + runs))):
            counts.append(count)
            # After every run, so that one that is interrupted has its row too.
            LOG.write_text(before + row(first, counts), encoding="utf-8")
            print(f"{i + 1} of {runs}, seed {first + i}: {count.ran} tests, {len(count.failed)} failed", flush=True)
        pool.close()
        pool.join()
    return sum(len(count.failed) for count in counts)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200) > 0)

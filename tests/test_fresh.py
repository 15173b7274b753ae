"""Tests that involve chance have a seed that a run can choose; all others have none but 0."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ppca import Ppca

ROOT = Path(__file__).parents[1]


def drawn():
    return torch.initial_seed(), Ppca().generator.initial_seed()


@pytest.mark.fresh
def test_a_statistical_test_has_the_seed_of_the_run(seed):
    """Torch's generator, and that of the data, which is another one."""
    assert seed == int(os.environ.get("PPL_VAE_SEED", 0))
    assert drawn() == (seed, -seed % 2**32)


def test_a_statistical_test_sets_no_seed_of_its_own(tmp_path):
    """One that does would have the same noise in every run, and be counted as if it had not."""
    file = tmp_path / "test_it.py"
    file.write_text("import pytest, torch\n\n@pytest.mark.fresh\ndef test_it():\n    torch.manual_seed(3)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-c", "setup.cfg", str(file)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "has set a seed of its own" in found.stdout


def test_any_other_test_has_a_seed_of_zero(seed):
    assert seed == 0
    assert drawn() == (0, 0)


def test_tests_that_cannot_be_run_end_the_whole_with_what_pytest_says(tmp_path):
    """Two processes, neither of which can import the tests; one that ended by itself would be waited for for ever."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "fresh.py", tmp_path / "tests")
    (tmp_path / "tests" / "test_it.py").write_text("import no_such_module  # pytest.mark.fresh\n")
    command = [sys.executable, "tests/fresh.py", "2"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 1
    assert "RuntimeError: pytest could not run the tests" in found.stderr
    assert "No module named 'no_such_module'" in found.stderr


@pytest.fixture
def plugin(pytestconfig):
    return pytestconfig.pluginmanager.get_plugin(str(ROOT / "conftest.py"))


def test_a_fresh_run_draws_a_seed_unless_it_has_one(plugin, monkeypatch):
    monkeypatch.setenv("PPL_VAE_SEED", "")

    def configured(expression):
        plugin.pytest_configure(SimpleNamespace(getoption={"markexpr": expression, "--device": "cpu"}.get))
        return os.environ.get("PPL_VAE_SEED")

    seeds = []
    for _ in range(2):
        monkeypatch.delenv("PPL_VAE_SEED")
        assert configured("") is None
        seeds.append(configured("fresh"))
        assert 0 <= int(seeds[-1]) < 2**31
        assert configured("fresh") == seeds[-1]
    assert seeds[0] != seeds[1]


def test_a_run_on_a_gpu_takes_what_takes_a_device_and_one_on_the_cpu_sees_no_gpu(plugin, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    plugin.pytest_configure(SimpleNamespace(getoption={"markexpr": "", "--device": "cpu"}.get))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    left: list[object] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: left.extend(items))
    with_one, without = SimpleNamespace(fixturenames=["device", "seed"]), SimpleNamespace(fixturenames=["seed"])
    for device, expected in (("cpu", [with_one, without]), ("cuda", [with_one])):
        items = [with_one, without]
        config = SimpleNamespace(getoption={"--device": device}.get, hook=hook)
        plugin.pytest_collection_modifyitems(config, items)
        assert items == expected
    assert left == [without]


@pytest.mark.fresh
def test_a_failure_says_the_seed(plugin, request, seed):
    def sections(item, failed):
        hook = plugin.pytest_runtest_makereport(item)
        next(hook)
        with pytest.raises(StopIteration) as stop:
            hook.send(SimpleNamespace(failed=failed, sections=[]))
        return stop.value.value.sections

    assert sections(request.node, failed=True) == [("seed", f"PPL_VAE_SEED={seed}")]
    assert sections(request.node, failed=False) == []
    unmarked = SimpleNamespace(get_closest_marker=lambda name: None)
    assert sections(unmarked, failed=True) == []

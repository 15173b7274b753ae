"""The command line: every command as a user starts it, every named part with an option of its own, and what is left."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pyro import poutine

import ppl_vae as pv
from ppl_vae import cli, plots, presets
from ppl_vae.cli import main, report
from ppl_vae.cli.files import read_evaluation
from ppl_vae.cli.train import _Records
from ppl_vae.errors import CheckpointError
from ppl_vae.model import density_numbers
from ppl_vae.networks import MLP, Conv

ROWS = 60
TINY = ["--epochs", "1", "--latent", "2", "--hidden", "[8]"]
PICTURES = ["history", "latents", "prior", "reconstructions", "samples", "styles"]


def arrays(labels: bool = True, rows: int = ROWS) -> dict[str, Any]:
    """Binary images of three classes, bars at three places."""
    random = np.random.RandomState(0)
    y = np.arange(rows) % 3
    x = random.rand(rows, 1, 8, 8) < np.where(np.arange(8) // 3 == y[:, None], 0.9, 0.1)[:, None, None, :]
    return {"x": x, "y": y} if labels else {"x": x}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data with and without labels, and the subprocesses' working directory."""
    path = tmp_path_factory.mktemp("cli")
    np.savez(path / "bars.npz", **arrays())
    np.savez(path / "plain.npz", **arrays(labels=False))
    np.savez(path / "grey.npz", x=0.01 + 0.98 * np.random.RandomState(0).rand(ROWS, 1, 8, 8), y=np.arange(ROWS) % 3)
    np.savez(path / "table.npz", x=np.random.RandomState(0).randn(ROWS, 5), y=np.arange(ROWS) % 3)
    return path


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def shell(
    *words: str, program: tuple[str, ...] = (sys.executable, "-m", "ppl_vae")
) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*program, *words], capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run as a user makes it, in a process of its own, with its output beside it."""
    out = folder / "a"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = shell("train", "--data", "bars.npz", "--out", "a", "--epochs", "2", *TINY[2:])
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    (folder / "a.txt").write_text(result.stdout)
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ok(*words: str) -> None:
    assert main(list(words)) == 0


def train(out: Path, *words: str, data: str = "bars.npz") -> pv.VAE:
    ok("train", "--data", data, "--out", str(out), *TINY, *words)
    return pv.load(out)


def within(some: Any, whole: Any) -> bool:
    """Whether a configuration says what another says, or less."""
    if isinstance(some, dict) and isinstance(whole, dict):
        return all(within(value, whole[key]) for key, value in some.items())
    return bool(some == whole)


def printed_config(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    ok("train", *words, "--print_config")
    return yaml.safe_load(capsys.readouterr().out)


# Every command, as a user starts it


def test_train_leaves_a_whole_run(trained: Path, folder: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    weights = {name for name in names if name.endswith(".safetensors")}
    assert len(weights) == 2
    files = {"config.yaml", "metrics.jsonl", "model.json", "training.json", "evaluation.json", "evaluation.npz"}
    assert names - weights == files | {f"{name}.png" for name in PICTURES}
    assert [row["epoch"] for row in lines(trained / "metrics.jsonl")] == [1, 2]
    printed = (folder / "a.txt").read_text()
    assert "2 epochs: prior Gaussian, likelihood Bernoulli, encoder Gaussian" in printed
    assert "−log p(x|y), 500 samples" in printed
    assert "audit: pass" in printed
    assert all(f"{name}.png" in printed for name in PICTURES)


def test_evaluate_prints_and_writes_what_the_library_says(trained: Path) -> None:
    result = shell("evaluate", "a", "--samples", "50", "--seed", "3")
    assert result.returncode == 0, result.stderr
    written = json.loads((trained / "evaluation.json").read_text())
    data = pv.data.load("bars.npz")
    vae, x, y = pv.load(trained), data.test.x, data.test.y
    exact = pv.evaluate(vae, x, y, samples=50, seed=3)
    diagnostics = pv.evaluation.diagnostics(vae, x, y, seed=3)
    assert written == json.loads(json.dumps({**exact.to_dict(), "diagnostics": diagnostics.to_dict()}))
    assert str(exact) in result.stdout
    assert str(diagnostics) in result.stdout
    assert "left out: label_use: expected two rows or more" in result.stdout
    assert "Error" not in result.stderr
    assert all(str(Path("a", f"{name}.png")) in result.stdout for name in [*PICTURES, "likelihood"])
    with np.load(trained / "evaluation.npz", allow_pickle=False) as file:
        for name, values in exact.values.items():
            np.testing.assert_array_equal(file[name], values)


def test_evaluate_says_whether_y_is_used(tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "more.npz", **arrays(rows=200))
    vae = train(tmp_path / "run", data=str(tmp_path / "more.npz"))
    capsys.readouterr()
    ok("evaluate", str(tmp_path / "run"), "--samples", "30", "--rows", "15")
    test = report.spread(pv.data.load(tmp_path / "more.npz").test, 15)
    found = pv.evaluation.label_use(vae, test.x, test.y)
    printed = capsys.readouterr().out
    assert str(found) in printed
    assert "15 rows" in printed
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["labels"] == json.loads(json.dumps(found.to_dict()))


def test_a_thorough_evaluation(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge, the guide's ranks and the bounds are those of the library, on the rows asked for."""
    quick = functools.partial(pv.evaluation.bounds, temperatures=5, chains=2, leapfrog=2)
    monkeypatch.setattr("ppl_vae.cli.report.bounds", quick)
    np.savez(tmp_path / "more.npz", **arrays(rows=200))
    vae, run = train(tmp_path / "run", data=str(tmp_path / "more.npz")), tmp_path / "run"
    capsys.readouterr()
    ok("evaluate", str(run), "--samples", "30", "--rows", "18", "--thorough", "true", "--seed", "2")
    data = pv.data.load(tmp_path / "more.npz")
    some = report.spread(data.test, 18)
    x, y = some.x, some.y
    x_new, y_new, z = pv.evaluation.simulate(vae, 18, y=y, seed=2)
    expected = {
        "quality": pv.evaluation.quality(vae, (data.train.x, data.train.y), (x, y), seed=2),
        "calibration": pv.evaluation.calibration(vae, y=y, seed=2),
        "bounds_simulated": quick(vae, x_new, y_new, z=z, seed=2),
        "bounds": quick(vae, x, y, seed=2),
    }
    printed = capsys.readouterr().out
    written = json.loads((run / "evaluation.json").read_text())
    for name, found in expected.items():
        assert str(found) in printed
        assert written[name] == json.loads(json.dumps(found.to_dict()))
    assert (run / "calibration.png").stat().st_size > 10_000
    assert str(run / "calibration.png") in printed


def test_a_thorough_evaluation_says_what_it_leaves_out(tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "plain.npz", **{k: v for k, v in arrays(rows=60).items() if not k.startswith("y")})
    train(tmp_path / "run", "--prior", "Sphere", "--encoder", "PowerSpherical", data=str(tmp_path / "plain.npz"))
    capsys.readouterr()
    ok("evaluate", str(tmp_path / "run"), "--samples", "30", "--thorough", "true")
    printed = capsys.readouterr().out
    assert not (tmp_path / "run" / "manifold.png").exists()  # A square of z, of which a circle has next to nothing.
    assert "left out: quality: expected data with labels" in printed
    assert "left out: bounds: prior: expected a density over all" in printed
    assert "calibration: " in printed


def test_compare_pairs_the_rows_of_runs(trained: Path, tmp_path: Path, capsys: Any) -> None:
    """The differences and errors are those of the values that evaluate wrote, whatever is loaded."""
    other = tmp_path / "b"
    train(other, "--prior", "Standard")
    for run in ("a", str(other)):
        ok("evaluate", run, "--samples", "50")
    capsys.readouterr()
    ok("compare", "a", str(other), "--out", str(tmp_path / "both.json"))
    printed = capsys.readouterr().out
    both = []
    for path in (trained, other):
        with np.load(path / "evaluation.npz") as file:
            both.append(file["neg_log_prob"])
    gap = both[1] - both[0]
    written = json.loads((tmp_path / "both.json").read_text())[str(other)]["neg_log_prob"]
    assert written["difference"] == pytest.approx(gap.mean())
    assert written["standard_error_of_difference"] == pytest.approx(gap.std(ddof=1) / len(gap) ** 0.5)
    assert f"{gap.mean():+.3f}" in printed
    assert "paired by row" in printed


def test_compare_says_which_runs_are_given_the_labels(trained: Path, tmp_path: Path, capsys: Any) -> None:
    other = tmp_path / "b"
    train(other, "--model", "vae")
    for run in ("a", str(other)):
        ok("evaluate", run, "--samples", "30")
    assert "what z does, by draws of its own" in capsys.readouterr().out
    ok("compare", "a", str(other))
    assert f"given y: a; not: {other}, whose log p is of x alone" in capsys.readouterr().out


@pytest.mark.parametrize(("latent", "labels"), [(2, 70), (1, 12)])
def test_more_labels_than_colours_cost_no_picture(latent: int, labels: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", x=np.random.RandomState(0).rand(2000, 1, 4, 4) < 0.5, y=np.arange(2000) % labels)
    train(tmp_path / "run", "--latent", str(latent), data=str(tmp_path / "many.npz"))
    assert {path.stem for path in (tmp_path / "run").glob("*.png")} == set(PICTURES)


def test_an_open_clamp_is_trained_and_saved(tmp_path: Path) -> None:
    vae = train(tmp_path / "run", "--encoder", "Gaussian", "--encoder.clamp", "[-.inf, 14]")
    assert vae.encoder.clamp == (-float("inf"), 14.0)


def test_compare_warns_of_a_log_p_that_is_not_to_be_trusted(trained: Path, tmp_path: Path, capsys: Any) -> None:
    """K̂ is written and read, a row each; a file of old has none, reads all the same, and is not warned of."""
    other, written = tmp_path / "b", tmp_path / "both.json"
    train(other)
    ok("evaluate", "a", "--samples", "50")
    test = pv.data.load("bars.npz").test
    exact = pv.evaluate(pv.load(trained), test.x, test.y, samples=50)
    torch.testing.assert_close(read_evaluation("a")[0].pareto_k, exact.likelihood.pareto_k, rtol=0, atol=0)
    # Of so few samples k̂ is unknown.
    for run in ("a", str(other)):
        ok("evaluate", run, "--samples", "20")
    with np.load(other / "evaluation.npz") as file:
        columns = {name: file[name] for name in file.files}

    def warned() -> list[str]:
        capsys.readouterr()
        ok("compare", "a", str(other), "--out", str(written))
        return [line.split(": ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]

    assert warned() == ["a", str(other)]
    assert json.loads(written.read_text())["a"]["rows_not_to_be_trusted"] == len(test)
    np.savez(other / "evaluation.npz", **{name: column for name, column in columns.items() if name != "_pareto_k"})
    assert warned() == ["a"]
    np.savez(other / "evaluation.npz", **columns | {"_pareto_k": columns["_pareto_k"][:2]})
    assert main(["compare", "a", str(other)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_compare_refuses_what_cannot_be_compared(trained: Path, tmp_path: Path, capsys: Any) -> None:
    """Other rows, other numbers of samples, no evaluation, a damaged one, one run: one line each, and exit code 2."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    train(plain, "--likelihood", "ContinuousBernoulli", data="grey.npz")
    train(other)
    ok("evaluate", "a", "--samples", "50")
    ok("evaluate", str(plain), "--samples", "50")
    ok("evaluate", str(other), "--samples", "40")
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    for folder in (empty, damaged):
        folder.mkdir()
    whole = (trained / "evaluation.npz").read_bytes()
    (damaged / "evaluation.npz").write_bytes(whole[: len(whole) // 2])
    capsys.readouterr()
    for runs, said in [
        (["a", str(plain)], "different rows"),
        (["a", str(other)], "samples"),
        (["a", str(empty)], "ppl-vae evaluate"),
        (["a", str(damaged)], "damaged"),
        (["a", "a"], "two or more different runs"),
        (["a"], "two or more different runs"),
    ]:
        assert main(["compare", *runs]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_compare_makes_the_folder_of_its_file(trained: Path, tmp_path: Path, capsys: Any) -> None:
    """And where that is not possible has said what it found."""
    train(other := tmp_path / "b")
    for run in ("a", str(other)):
        ok("evaluate", run, "--samples", "50")
    ok("compare", "a", str(other), "--out", str(tmp_path / "new" / "both.json"))
    assert json.loads((tmp_path / "new" / "both.json").read_text())
    capsys.readouterr()
    assert main(["compare", "a", str(other), "--out", "bars.npz/both.json"]) == 2
    assert "paired by row" in capsys.readouterr().out


def test_every_option_of_fit_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed, and then stands in config.yaml, is what was done."""
    given: dict[str, Any] = {}

    def fit(*args: Any, **kwargs: Any) -> pv.History:
        given.update(kwargs)
        return pv.fit(*args, **kwargs)

    monkeypatch.setattr(sys.modules["ppl_vae.cli.train"], "fit", fit)
    words = {
        "capture": "off",
        "precision": "bf16-mixed",
        "clip": "5.0",
        "patience": "3",
        "batch_size": "9",
        "seed": "4",
        "progress": "False",
    }
    train(tmp_path / "run", *(word for name, value in words.items() for word in (f"--{name}", value)))
    assert {name: str(given[name]) for name in words} == words
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert {name: str(config[name]) for name in words} == words


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    program = f"{sys.executable} -m ppl_vae --help"
    done = subprocess.run(["bash", "-c", f"{program} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_an_evaluation_that_is_interrupted_keeps_what_it_has(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By who types Ctrl-C at what comes after log p, or by a full disk."""
    shutil.copytree(trained, run := tmp_path / "run")

    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    def full(*args: Any) -> None:
        raise OSError("No space left on device")

    capsys.readouterr()

    class Gone(io.StringIO):
        def flush(self) -> None:
            if self.getvalue():
                raise BrokenPipeError

    runs = sys.modules["ppl_vae.cli.runs"]
    write = runs.write_evaluation
    for i, (name, fails, code) in enumerate((("more", stop, 130), ("write_evaluation", full, 2))):
        words = ["evaluate", str(run), "--samples", str(31 + i)]
        with monkeypatch.context() as patch:
            patch.setattr(runs, name, fails)
            assert main(words) == code
            assert f"−log p(x|y), {31 + i} samples" in capsys.readouterr().out
            # Whoever reads it may be gone by then, as after Ctrl-C in a pipe.
            patch.setattr(sys, "stdout", Gone())
            assert main(words) == code
        assert json.loads((run / "evaluation.json").read_text())["samples"] == 31
    # A disk that is full at the second writing keeps the first.
    written = []

    def full_then(*args: Any) -> None:
        written.append(len(args))
        full() if len(args) > 3 else write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_evaluation", full_then)
        assert main(["evaluate", str(run), "--samples", "33"]) == 2
    assert written == [3, 4]
    assert json.loads((run / "evaluation.json").read_text())["samples"] == 33


def test_a_run_is_measured_where_there_is_no_minus(trained: Path, tmp_path: Path) -> None:
    """In a locale of ASCII: config.yaml, which is in UTF-8, and the numbers, which need more than that."""
    shutil.copytree(trained, run := tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) | {"out": "läufe/a"}
    (run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "ppl_vae", "evaluate", str(run), "--samples", "31"]
    done = subprocess.run(command, env=os.environ | ascii_only, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "\\u2212log p(x|y), 31 samples" in done.stdout
    assert json.loads((run / "evaluation.json").read_text())["samples"] == 31


def test_a_failed_audit_exits_with_1(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A KL that weighs too much in the programs: the table says where, one line says that it failed."""
    monkeypatch.setattr(pv.VAE, "_kl_weight", lambda self: poutine.scale(scale=1.5))
    capsys.readouterr()
    assert main(["audit", "a", "--particles", "10"]) == 1
    printed = capsys.readouterr()
    assert "FAIL" in printed.out
    assert printed.err.startswith("ppl-vae: error: the audit failed")
    assert json.loads((trained / "audit.json").read_text())["passed"] is False


def test_sample_reconstruct_audit_and_plot(trained: Path, capsys: Any) -> None:
    for picture in trained.glob("*.png"):
        picture.unlink()
    for words, written in [
        (["sample", "a"], ["samples"]),
        (["reconstruct", "a", "--n", "3"], ["reconstructions"]),
        (["plot", "a"], PICTURES),
    ]:
        ok(*words)
        printed = capsys.readouterr()
        assert printed.err == ""
        assert [Path(line).stem for line in sorted(printed.out.split()) if line.endswith(".png")] == written
        for name in written:
            with Image.open(trained / f"{name}.png") as image:
                assert image.format == "PNG"
                assert len(image.convert("L").getcolors()) > 2
    result = shell("audit", "a", "--particles", "20")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "audit: pass"


def test_a_table_is_reconstructed_in_numbers(tmp_path: Path, capsys: Any) -> None:
    vae = train(tmp_path, "--likelihood", "Gaussian", data="table.npz")
    capsys.readouterr()
    ok("reconstruct", str(tmp_path), "--n", "4")
    assert capsys.readouterr().out.splitlines() == [
        "no picture: x of shape (5,) is no image",
        str(tmp_path / "reconstructions.npz"),
    ]
    with np.load(tmp_path / "reconstructions.npz") as file:
        x, y, x_hat = (torch.from_numpy(file[name]) for name in ("x", "y", "reconstruction"))
    assert x.shape == x_hat.shape == (4, 5)
    torch.testing.assert_close(x_hat, vae.reconstruct(x, y))


def test_version_and_help() -> None:
    script = Path(sys.executable).parent / "ppl-vae"
    result = shell("--version", program=(str(script),))
    assert (result.returncode, result.stdout) == (0, f"ppl_vae {pv.__version__}\n")
    result = shell("train", "--help", "--prior", "NSF")
    assert result.returncode == 0, result.stderr
    for option in ("--latent", "--data.binarize", "--objective", "--patience"):
        assert option in result.stdout


def test_help_without_a_process(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        ok(*words)
        assert "ppl-vae train --data digits" in capsys.readouterr().out
    for command in cli.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert "usage: ppl-vae" in capsys.readouterr().out


def test_errors_of_a_process_are_one_line(folder: Path) -> None:
    result = shell("train", "--data", "bars.npz", "--out", "never", "--likelihod", "Bernoulli")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("ppl-vae: error: ")
    assert "did you mean 'likelihood" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (folder / "never").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--data", "bars.npz"], "--out"),
        (["train", "--data", "nowhere.npz", "--out", "b"], "nowhere.npz"),
        (["train", "--data", "digit", "--out", "b"], "digits"),
        (["train", "--config", "nowhere.yaml", "--out", "b"], "nowhere.yaml"),
        (["train", "--config"], "--config: expected a YAML file of options, got none"),
        (["train", "--config", "a.yaml", "--config=b.yaml"], "--config: expected one file, got 2"),
        (["train", "--data", "bars.npz", "--model", "ae", "--prior", "Standard", "--out", "b"], "no prior"),
        (["train", "--data", "bars.npz", "--resume", "--out", "b"], "found none"),
        (["train", "--data", "bars.npz", "--latent", "two"], "latent: expected a whole number, got two"),
        (["train", "--data", "bars.npz", "--hidden", "10,20"], "expected a list such as [400,200] or a whole number"),
        (["train", "--data", "bars.npz", "--precision", "16"], "precision: expected one of 32, bf16-mixed, got 16"),
        (["train", "--data", "bars.npz", "--out", "bars.npz/b"], "--out"),
        (["sample"], "run"),
        (["sample", "nowhere"], "nowhere"),
        (["evaluate", "nowhere"], "nowhere"),
        (["plot", "bars.npz"], "bars.npz"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else w,
)
def test_errors_say_what_was_wrong(words: list[str], said: str, folder: Path, capsys: Any) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (folder / "b").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "a", "--label", "3"], "0 … 2"),
        (["sample", "a", "--label=-1"], "0 … 2"),
        (["sample", "a", "--n", "0"], "n"),
        (["sample", "a", "--lable", "1"], "did you mean 'label'"),
        (["reconstruct", "a", "--n", "0"], "at least one"),
        (["evaluate", "a", "--samples", "0"], "samples"),
        (["audit", "a", "--rows", "0"], "at least one"),
        (["train", "--data", "bars.npz", "--out", "a"], "--overwrite"),
        (["sample", "a", "--out", "samples.nonsense"], "nonsense"),
        (["sample", "a", "--out", "bars.npz/b.png"], "bars.npz"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else w,
)
def test_errors_of_commands_on_a_run(words: list[str], said: str, trained: Path, capsys: Any) -> None:
    before = sorted((p.name, p.stat().st_mtime_ns) for p in trained.iterdir())
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted((p.name, p.stat().st_mtime_ns) for p in trained.iterdir()) == before


@pytest.mark.parametrize("said", [3, {"range": 3}, {"range": [0, 1, 2]}, {"range": [0, "one"]}], ids=str)
def test_a_description_of_data_that_is_none(said: Any, trained: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(trained, run := tmp_path / "run")
    described = json.loads((run / "model.json").read_text()) | {"data": said}
    (run / "model.json").write_text(json.dumps(described))
    assert main(["sample", str(run)]) == 2
    assert "model.json: damaged: expected data to be described" in capsys.readouterr().err


# What the pictures show


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """What was handed to each function that draws."""
    calls: dict[str, tuple[Any, ...]] = {}

    def spied(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any, **kwargs: Any) -> Any:
            calls[name] = args
            return original(*args, **kwargs)

        return spy

    for name in ("samples", "reconstructions", "latents", "translations", "prior_vs_posterior", "history", "manifold"):
        monkeypatch.setattr(plots, name, spied(name, getattr(plots, name)))
    return calls


def test_pictures_show_the_right_panels(trained: Path, drawn: dict[str, Any]) -> None:
    vae, data = pv.load(trained), pv.data.load("bars.npz")
    x, y = data.test.x, data.test.y
    ok("plot", "a")
    assert set(drawn) == {"samples", "reconstructions", "latents", "translations", "prior_vs_posterior", "history"}
    assert drawn["samples"][0].shape == (10, 3, 1, 8, 8)
    assert list(drawn["samples"][1]) == [0, 1, 2]
    assert torch.equal(drawn["reconstructions"][0], x)
    torch.testing.assert_close(drawn["reconstructions"][1], vae.reconstruct(x, y))
    torch.testing.assert_close(drawn["latents"][0], vae.embed(x, y))
    classes = len(y.unique())
    assert drawn["translations"][0].shape == (classes, 1, 8, 8)
    assert drawn["translations"][1].shape == (classes, 3, 1, 8, 8)
    assert [row["epoch"] for row in drawn["history"][0]] == [1, 2]
    ok("sample", "a", "--n", "5", "--label", "2", "--out", "two.png")
    assert drawn["samples"][0].shape == (5, 1, 1, 8, 8)
    ok("sample", "a", "--n", "4")
    assert drawn["samples"][0].shape == (4, 3, 1, 8, 8)
    assert set(drawn["samples"][0].unique().tolist()) <= {0.0, 1.0}
    ok("sample", "a", "--mean", "true", "--n", "4")
    assert drawn["samples"][0].unique().numel() > 2
    ok("reconstruct", "a", "--n", "2")
    assert drawn["reconstructions"][0].shape == (2, 1, 8, 8)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What each function that draws was given beside what it draws."""
    calls: dict[str, dict[str, Any]] = {}

    def spied(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any, **kwargs: Any) -> Any:
            calls[name] = kwargs | {"args": args}
            return original(*args, **kwargs)

        return spy

    for name in ("samples", "latents", "translations", "history", "likelihood", "calibration"):
        monkeypatch.setattr(plots, name, spied(name, getattr(plots, name)))
    return calls


def test_of_many_labels_the_first_are_drawn(
    told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty of two thousand, in as many styles; and no thousand rows are encoded at once."""
    y = np.random.RandomState(0).permutation(2000)
    x = np.random.RandomState(0).rand(2000, 1, 4, 4) < 0.5
    data, vae = pv.data.from_tensors(x, y, test=(x, y)), pv.cvae((1, 4, 4), 2, 2000, hidden=(4,))
    rows = []

    def encoded(self: pv.VAE, x: Any, *args: Any) -> Any:
        rows.append(len(x))
        return original(self, x, *args)

    original = pv.VAE._encoded
    monkeypatch.setattr(pv.VAE, "_encoded", encoded)
    report.draw(vae, data, tmp_path, None)
    assert max(rows) == 256
    assert sum(rows) == 20 + 2 * 1000 + 20
    assert told["samples"]["args"][0].shape == (10, 20, 1, 4, 4)
    assert told["samples"]["args"][1] == list(range(20))
    assert told["samples"]["title"] == "draws from p(x|y), a row for each of the first 20 of 2,000 labels"
    styles, images, labels = told["translations"]["args"]
    assert (len(styles), images.shape[:2], labels.tolist()) == (20, (20, 20), list(range(20)))
    assert told["translations"]["title"] == "the style of one image in each of the first 20 of 2,000 labels"


@pytest.mark.parametrize("conditional", [False, True], ids=["x", "x given y"])
@pytest.mark.parametrize("shape", [(9,), (1, 8, 8)], ids=["table", "images"])
def test_pictures_say_what_they_are_of(
    shape: tuple[int, ...], conditional: bool, told: dict[str, Any], tmp_path: Path
) -> None:
    """A row of a table is no image, nothing is given y that has none, and three columns by three are no picture."""
    y = torch.arange(200) % 2 if conditional else None
    data = pv.data.from_tensors(torch.rand(200, *shape, generator=torch.Generator().manual_seed(0)), y)
    vae = pv.vae(shape, 2, likelihood="Gaussian", condition=pv.OneHot(2) if conditional else None, hidden=(4,))
    history = pv.History([{"epoch": 1, "neg_elbo": 1.0}])
    paths = report.draw(vae, data, tmp_path, history)
    assert {"samples", "reconstructions"} <= {p.stem for p in paths} if len(shape) == 3 else len(paths) == 3
    assert told["history"]["unit"] == ("nats per image" if len(shape) == 3 else "nats per row")
    given = "x,y" if conditional else "x"
    assert told["latents"]["title"] == f"means of q(z|{given}), test {'images' if len(shape) == 3 else 'rows'}"
    found = pv.evaluation.log_likelihood(vae, data.test.x, data.test.y, samples=30, progress=False)
    report.draw_likelihood(vae, found, tmp_path)
    of = "x|y" if conditional else "x"
    assert told["likelihood"]["title"] == f"log p({of}) of 20 rows by importance sampling"
    figure = plots.likelihood(*told["likelihood"]["args"], of=told["likelihood"]["of"])
    assert figure.axes[0].get_ylabel() == f"−log p̂({of}), nats per datum"
    report.draw_calibration(vae, pv.evaluation.calibration(vae, y=y, replicates=100), tmp_path)
    assert told["calibration"]["title"].startswith(f"ranks of z among draws from q(z|{given});")


@pytest.mark.parametrize(
    ("x_shape", "vrange", "seen"),
    [
        ((9,), (0.0, 1.0), False),
        ((49,), (0.0, 255.0), False),
        ((64,), (0.0, 16.0), True),
        ((64,), None, True),
        ((64,), (-2.3, 3.1), False),
        ((65,), (0.0, 16.0), False),
        ((784,), (0.0, 1.0), True),
        ((3, 3), (-1.0, 1.0), True),
        ((1, 8, 8), (-1.0, 1.0), True),
        ((2, 8, 8), (0.0, 1.0), False),
    ],
)
def test_what_can_be_seen(x_shape: tuple[int, ...], vrange: Any, seen: bool) -> None:
    assert report.are_images(x_shape, vrange) is seen


def test_flat_digits_are_pictures(tmp_path: Path, capsys: Any) -> None:
    """The same as (1, 8, 8), whole numbers or not."""
    digits = pv.data.load("digits")
    np.savez(tmp_path / "flat.npz", x=digits.train.x.flatten(1)[:100], y=digits.train.y[:100])
    train(tmp_path / "run", "--evaluate", "false", data=str(tmp_path / "flat.npz"))
    for words in (["plot"], ["sample", "--n", "2"], ["reconstruct", "--n", "2"]):
        ok(words[0], str(tmp_path / "run"), *words[1:])
    assert {"samples", "reconstructions", "styles"} <= {path.stem for path in (tmp_path / "run").glob("*.png")}
    assert "no picture" not in capsys.readouterr().out


def test_plot_says_which_pictures_it_leaves_to_others(trained: Path, tmp_path: Path, capsys: Any) -> None:
    """All but those of measurements, and of a grid over z, which a model of labels has not."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("*.png"))
    ok("plot", str(tmp_path / "run"))
    left = {*report.PICTURES} - {path.stem for path in (tmp_path / "run").glob("*.png")} - {"manifold"}
    assert left == {"likelihood", "calibration"}
    capsys.readouterr()
    for command in ("plot", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        help_text = " ".join(capsys.readouterr().out.split())
        assert all(f"{name}.png" in help_text for name in left)
        assert "--thorough true" in help_text


def test_samples_depend_on_the_seed_alone(trained: Path) -> None:
    pictures = []
    for seed in ("1", "1", "2"):
        ok("sample", "a", "--seed", seed, "--out", "drawn.png")
        pictures.append(Path("drawn.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_reconstructions_depend_on_the_seed_alone(tmp_path: Path, drawn: dict[str, Any]) -> None:
    """Those of a flow too, whose mean is one of draws; and the caller's generator is none of theirs."""
    train(run := tmp_path / "run", "--encoder", "Flow", "--evaluate", "false")
    found: list[torch.Tensor] = []
    for words in (["reconstruct"], ["plot"], ["reconstruct", "--seed", "1"]):
        torch.manual_seed(len(found))
        before = torch.get_rng_state()
        ok(words[0], str(run), *words[1:])
        assert torch.equal(before, torch.get_rng_state())
        found.append(drawn["reconstructions"][1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("options", [[], ["--label", "2", "--mean", "true", "--seed", "3"]], ids=["all", "one"])
def test_samples_are_written_as_numbers(options: list[str], trained: Path, tmp_path: Path) -> None:
    """What the library draws, as rows with their labels, which are data again."""
    ok("sample", "a", "--n", "4", "--out", str(tmp_path / "drawn.png"), *options)
    labels = torch.tensor([2] if options else [0, 1, 2])
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(3 if options else 0)
        x = pv.load(trained).sample(4, labels, mean=bool(options))
    with np.load(tmp_path / "drawn.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["x"], x.flatten(0, 1))
        np.testing.assert_array_equal(file["y"], labels.expand(4, -1).flatten())
    assert pv.data.load(tmp_path / "drawn.npz").x_shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("likelihood", "levels", "mean", "dtype"),
    [
        ("Bernoulli", 2, False, "uint8"),
        ("DiscretizedLogistic", 4, False, "int64"),
        ("DiscretizedLogistic", 256, False, "uint8"),
        ("Bernoulli", 2, True, "float32"),
        ("Gaussian", 2, False, "float32"),
    ],
)
def test_samples_have_the_levels_of_the_likelihood(
    likelihood: str, levels: int, mean: bool, dtype: str, tmp_path: Path
) -> None:
    """So that a model trained on them is of the same kind."""
    x = np.random.RandomState(0).randint(0, levels, (ROWS, 1, 8, 8), np.uint8 if levels == 256 else np.int64)
    np.savez(tmp_path / "levels.npz", x=x)
    train(tmp_path / "run", "--likelihood", likelihood, "--evaluate", "false", data=str(tmp_path / "levels.npz"))
    ok("sample", str(tmp_path / "run"), "--mean", str(mean), "--out", str(tmp_path / "drawn.png"))
    with np.load(tmp_path / "drawn.npz") as file:
        assert file["x"].dtype == dtype
    assert pv.data.load(tmp_path / "drawn.npz").levels == (None if dtype == "float32" else levels)


def test_samples_that_are_no_images_are_numbers_alone(tmp_path: Path, capsys: Any) -> None:
    train(tmp_path / "run", "--model", "vae", data="table.npz")
    capsys.readouterr()
    ok("sample", str(tmp_path / "run"), "--n", "4", "--out", str(tmp_path / "new" / "drawn.png"))
    assert capsys.readouterr().out.splitlines() == [
        "no picture: x of shape (5,) is no image",
        str(tmp_path / "new" / "drawn.npz"),
    ]
    with np.load(tmp_path / "new" / "drawn.npz") as file:
        assert {name: file[name].shape for name in file.files} == {"x": (4, 5)}
    assert not (tmp_path / "new" / "drawn.png").exists()


@pytest.mark.parametrize("labels", [torch.arange(1000) // 100, torch.arange(1000) % 10], ids=["sorted", "by turns"])
@pytest.mark.parametrize("n", [50, 64, 300, 999])
def test_rows_are_spread(labels: torch.Tensor, n: int) -> None:
    """As many as asked for, none twice, in order, the same every time, and of every label whatever their order."""
    split = pv.data.Split(torch.arange(1000.0)[:, None], labels)
    found = report.spread(split, n)
    assert len(found) == len(found.x.unique()) == n
    assert torch.equal(found.x, found.x.sort(0).values)
    assert torch.equal(found.x, report.spread(split, n).x)
    assert torch.equal(found.y, labels[found.x[:, 0].long()])
    assert len(found.y.unique()) == 10
    # Never further than a stretch from where so many rows would be.
    assert (found.x[:, 0] - torch.arange(n) * 1000 / n).abs().max() <= 1000 / n
    assert all(report.spread(split, more) is split for more in (1000, 1001))


def test_every_command_sees_every_label_of_a_sorted_test_set(
    tmp_path: Path, drawn: dict[str, Any], monkeypatch: Any
) -> None:
    """Where the last of three labels has the last hundred rows of 1,200."""
    y = np.repeat([0, 1, 2], [550, 550, 100])
    few = arrays()
    np.savez(tmp_path / "sorted.npz", x=few["x"], y=few["y"], x_test=np.resize(few["x"], (1200, 1, 8, 8)), y_test=y)
    seen: dict[str, Any] = {}

    def spied(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def spy(vae: pv.VAE, x: Any, y: Any, *args: Any, **options: Any) -> Any:
            seen[name] = y
            return original(vae, x, y, *args, **options)

        return spy

    def left_out(*args: Any, **options: Any) -> Any:
        raise pv.errors.LabelError("not here")

    runs = sys.modules["ppl_vae.cli.runs"]
    for module, name in ((report, "diagnostics"), (report, "label_use"), (runs, "audit"), (runs, "evaluate")):
        monkeypatch.setattr(module, name, spied(f"{module.__name__}.{name}", getattr(module, name)))
    monkeypatch.setattr(report, "audit", spied("report.audit", report.audit))
    monkeypatch.setattr(report, "bounds", spied("bounds", left_out))
    for name in ("quality", "calibration", "simulate"):
        monkeypatch.setattr(report, name, left_out)
    monkeypatch.setattr(report, "_ROWS", 60)
    run = str(tmp_path / "run")
    train(tmp_path / "run", data=str(tmp_path / "sorted.npz"))
    ok("evaluate", run, "--rows", "100", "--samples", "5", "--thorough", "true")
    ok("audit", run, "--rows", "20", "--particles", "5")
    assert [len(labels) for labels in seen.values()] == [64, 100, 60, 60, 20, 20]
    assert len(drawn["latents"][1]) == 1000
    for labels in [*seen.values(), drawn["latents"][1], torch.tensor(drawn["reconstructions"][2])]:
        assert labels.unique().tolist() == [0, 1, 2]
    ok("reconstruct", run, "--n", "30")
    assert set(drawn["reconstructions"][2]) == {0, 1, 2}
    assert len(drawn["reconstructions"][2]) == 30


def test_commands_leave_the_callers_generator_alone(trained: Path) -> None:
    before = torch.get_rng_state()
    for words in (["sample", "a"], ["evaluate", "a", "--samples", "5"], ["plot", "a"], ["audit", "a"]):
        ok(*words)
    assert torch.equal(torch.get_rng_state(), before)


# Every part with an option of its own

PARTS = [
    ("prior", "Standard", [], lambda p: p.features == 2),
    ("prior", "Gaussian", ["hidden", "[4]"], lambda p: p.network.body[0].out_features == 4),
    ("prior", "Fixed", ["distribution", "Laplace", "args", "[0.0, 2.0]"], lambda p: p.arg1 == 2),
    ("prior", "Mixture", ["components", "3", "depends", "weights"], lambda p: p.loc.shape == (3, 2)),
    ("prior", "Vamp", ["components", "4"], lambda p: p.components == 4 and p.started),
    ("prior", "Sphere", [], lambda p: p.features == 2),
    ("prior", "Chain", ["first", "Standard", "second", "Gaussian"], lambda p: p.second.features == 1),
    ("prior", "MAF", ["transforms", "1"], lambda p: len(p.transform.transforms) == 1),
    ("prior", "NSF", ["transforms", "2", "bins", "4"], lambda p: len(p.transform.transforms) == 2),
    ("prior", "NICE", ["transforms", "1"], lambda p: len(p.transform.transforms) == 1),
    ("prior", "BPF", ["transforms", "1", "degree", "5"], lambda p: p.arguments["degree"] == 5),
    ("prior", "GMM", ["components", "3"], lambda p: p.arguments["components"] == 3),
    ("prior", "CNF", ["freqs", "2"], lambda p: p.arguments["freqs"] == 2),
    ("likelihood", "Bernoulli", ["grey", "true"], lambda p: p.grey),
    ("likelihood", "Binomial", ["total_count", "3"], lambda p: p.total_count == 3),
    ("likelihood", "Gaussian", ["sigma", "pixel"], lambda p: p.log_variance.shape == (1, 8, 8)),
    ("likelihood", "Gaussian", ["sigma", "0.25"], lambda p: p.fixed == 0.25),
    ("likelihood", "Laplace", ["sigma", "output"], lambda p: p.network.out_shape == (2, 8, 8)),
    ("likelihood", "StudentT", ["df", "4"], lambda p: p.df == 4),
    ("likelihood", "ContinuousBernoulli", ["hidden", "[4]"], lambda p: p.network.body[0].out_features == 4),
    ("likelihood", "Beta", ["concentration", "pixel"], lambda p: p.log_concentration.shape == (1, 8, 8)),
    ("likelihood", "DiscretizedLogistic", ["sigma", "output"], lambda p: p.levels == 2),
    ("likelihood", "DiscretizedLogisticMixture", ["components", "2", "levels", "4"], lambda p: p.levels == 4),
    ("likelihood", "Categorical", ["levels", "3"], lambda p: p.levels == 3),
    ("likelihood", "Poisson", ["clamp", "[-3, 3]"], lambda p: p.clamp == (-3, 3)),
    ("likelihood", "NegativeBinomial", ["dispersion", "2.5"], lambda p: p.fixed == 2.5),
    ("encoder", "Gaussian", ["clamp", "[-3, 3]"], lambda p: p.clamp == (-3, 3)),
    ("encoder", "FullGaussian", ["clamp", "[-3, 3]"], lambda p: p.clamp == (-3, 3)),
    ("encoder", "LowRankGaussian", ["rank", "1"], lambda p: p.rank == 1),
    ("encoder", "Mixture", ["components", "2"], lambda p: p.components == 2),
    ("encoder", "Flow", ["flow", "NSF", "outputs", "8"], lambda p: p.outputs == 8),
    ("encoder", "PowerSpherical", ["hidden", "[4]"], lambda p: p.network.body[0].out_features == 4),
    ("encoder", "Chain", ["first", "Gaussian", "second", "{name: Gaussian, hidden: [4]}"], lambda p: p.features == 2),
    ("encoder", "Delta", ["hidden", "4"], lambda p: p.network.body[0].out_features == 4),
]


def test_no_named_part_is_left_out() -> None:
    for kind, table in [("prior", presets.PRIORS), ("likelihood", presets.LIKELIHOODS), ("encoder", presets.ENCODERS)]:
        assert {name for k, name, *_ in PARTS if k == kind} == set(table)


def words_of(kind: str, name: str, options: list[str]) -> list[str]:
    words = [f"--{kind}", name]
    for key, value in zip(options[::2], options[1::2], strict=True):
        words += [f"--{kind}.{key}", value]
    # What these cannot do without.
    beside = {
        "Delta": ["--model", "ae"],
        "Sphere": ["--encoder", "PowerSpherical"],
        "PowerSpherical": ["--prior", "Sphere"],
    }
    return words + beside.get(name, [])


@pytest.mark.parametrize(
    ("kind", "name", "options", "holds"), PARTS, ids=lambda v: str(v) if isinstance(v, str) else ""
)
def test_every_part_trains_with_an_option_of_its_own(
    kind: str, name: str, options: list[str], holds: Any, tmp_path: Path, capsys: Any
) -> None:
    data = "grey.npz" if name == "Beta" else "bars.npz"
    part = getattr(train(tmp_path / "run", *words_of(kind, name, options), data=data), kind)
    assert "audit: pass" in capsys.readouterr().out
    assert type(part) is presets.TABLES[kind][name]
    assert holds(part)
    # Its configuration, fed back, is the same again, and that of the same model.
    config = tmp_path / "run" / "config.yaml"
    first = yaml.safe_load(config.read_text())
    again = printed_config(capsys, "--config", str(config))
    assert within(first, again)
    assert first[kind]["name"] == name
    made = presets.to_dict(pv.load(tmp_path / "run"))[kind]
    assert again[kind] == (made["part"] if made["name"] == "Unconditional" else made)


@pytest.mark.parametrize(
    ("model", "data", "condition"), [("ae", "plain.npz", 0), ("vae", "bars.npz", 0), ("cvae", "bars.npz", 3)]
)
def test_the_three_models(model: str, data: str, condition: int, tmp_path: Path) -> None:
    vae = train(tmp_path, "--model", model, data=data)
    assert (vae.prior is None) == (model == "ae")
    assert getattr(vae.condition, "classes", 0) == condition
    assert (tmp_path / "samples.png").exists() == (model != "ae")
    assert (tmp_path / "manifold.png").exists() == (model != "cvae")
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert ("neg_log_prob" in evaluation) == (model != "ae")
    for command in ("sample", "reconstruct", "evaluate", "audit", "plot"):
        assert main([command, str(tmp_path)]) == (2 if (command, model) == ("sample", "ae") else 0)


def test_a_label_for_a_model_without_labels_is_refused(tmp_path: Path, capsys: Any) -> None:
    train(tmp_path, data="plain.npz")
    assert main(["sample", str(tmp_path), "--label", "1"]) == 2
    assert "no condition" in capsys.readouterr().err


def test_data_that_are_no_images_train_and_plot(tmp_path: Path) -> None:
    train(tmp_path, data="table.npz")
    assert (tmp_path / "latents.png").exists()
    ok("plot", str(tmp_path))


@pytest.mark.parametrize("rows", [3, 12])
def test_few_rows_train(rows: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", **arrays(rows=rows))
    train(tmp_path / "run", data=str(tmp_path / "few.npz"))


# Configurations


@pytest.mark.parametrize(
    "words",
    [
        ["--prior", "Gaussian", "--prior.hidden", "[4]", "--beta", "0.1", "--lr", "3e-4", "--clip", "1.5"],
        ["--prior", "Gaussian", "--prior.context", "0"],
        ["--prior", "NSF", "--prior.context", "0", "--prior.transforms", "1"],
        ["--hidden", "[8]", "--encoder", "Gaussian", "--encoder.hidden", "[400]"],
        ["--network", "Conv", "--hidden", "[8, 9]"],
        ["--likelihood", "Bernoulli", "--likelihood.network", "{name: Conv, channels: [2, 3]}"],
        ["--model", "ae", "--likelihood", "Gaussian", "--likelihood.sigma", "output"],
        ["--model", "vae", "--prior", "Fixed", "--prior.distribution", "StudentT", "--prior.args", "[5.0, 0.0, 1.0]"],
        ["--data.scale", "unit", "--likelihood", "Gaussian", "--likelihood.scale", "2", "--encoder", "Gaussian"],
        ["--objective", "analytic", "--warmup", "3", "--patience", "2", "--seed", "null"],
        ["--objective", "analytic", "--objective.fallback", "sample", "--objective.num_particles", "3"],
        ["--objective", "renyi", "--objective.alpha", "-1.5", "--objective.k", "3"],
        ["--objective", "capacity", "--objective.capacity", "4", "--objective.epochs", "20"],
    ],
    ids=" ".join,
)
def test_a_printed_configuration_fed_back_prints_the_same(words: list[str], tmp_path: Path, capsys: Any) -> None:
    first = printed_config(capsys, "--data", "bars.npz", *words)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(first))
    assert printed_config(capsys, "--config", str(file)) == first
    assert printed_config(capsys, f"--config={file}", "--latent", "5")["latent"] == 5


def test_explicit_options_win_over_shared_ones(capsys: Any) -> None:
    config = printed_config(
        capsys, "--data", "bars.npz", "--hidden", "[8]", "--encoder", "Gaussian", "--encoder.hidden", "[400]"
    )
    assert config["encoder"]["hidden"] == [400]
    assert config["likelihood"]["hidden"] == [8]


def test_shared_arguments_are_printed_filled_in(capsys: Any, folder: Path) -> None:
    config = printed_config(capsys, "--data", "bars.npz", "--latent", "5", "--out", "unused")
    assert config["prior"] == {"name": "Gaussian", "features": 5, "context": 3}
    assert config["likelihood"]["x_shape"] == [1, 8, 8]
    assert (config["encoder"]["features"], config["encoder"]["context"]) == (5, 3)
    assert config["data"]["name"] == "bars.npz"
    assert not (folder / "unused").exists()


def test_what_parts_share_is_edited_in_one_place(tmp_path: Path) -> None:
    """Of a run's config.yaml, as a sweep does; it says nothing of what is filled in, which would contradict it."""
    train(tmp_path / "a")
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert not any({"features", "hidden", "x_shape", "context"} & set(config[kind]) for kind in ("prior", "likelihood"))
    file = tmp_path / "edited.yaml"
    file.write_text(yaml.safe_dump(config | {"latent": 3, "hidden": [4], "out": str(tmp_path / "b")}))
    ok("train", "--config", str(file))
    ok(
        "train",
        "--config",
        str(tmp_path / "a" / "config.yaml"),
        "--latent=3",
        "--hidden=[4]",
        f"--out={tmp_path / 'c'}",
    )
    edited, typed = (pv.load(tmp_path / run) for run in "bc")
    assert {n: p.shape for n, p in edited.named_parameters()} == {n: p.shape for n, p in typed.named_parameters()}
    assert edited.prior.features == 3  # type: ignore[union-attr]
    # A file that says both, such as one that was printed.
    file.write_text("{data: bars.npz, latent: 3, prior: {name: Gaussian, features: 5}}")
    said = shell("train", "--config", str(file), "--out", str(tmp_path / "d"))
    assert said.returncode == 2
    assert "latent is 3 and prior.features 5, which is to be the same" in said.stderr


def test_a_run_whose_epochs_cannot_be_read_is_measured_all_the_same(tmp_path: Path, capsys: Any) -> None:
    """A picture less, and a word on it; to resume the run writes the file anew."""
    train(out := tmp_path / "run")
    (out / "history.png").unlink()
    whole = (out / "metrics.jsonl").read_text()
    for content in (
        b"3\n",
        b"",
        whole.encode()[:20],
        b'{"epoch": "x"}\n',
        b'{"a": 1}\n',
        b'{"epoch": 2, "loss": 1}\n',
        None,
    ):
        (out / "metrics.jsonl").unlink()
        if content is not None:
            (out / "metrics.jsonl").write_bytes(content)
        else:
            (out / "metrics.jsonl").mkdir()
        capsys.readouterr()
        ok("plot", str(out))
        said = capsys.readouterr()
        assert "no history.png; ppl-vae train --resume" in said.err
        assert "history.png" not in said.out
        if content is None:
            (out / "metrics.jsonl").rmdir()
            (out / "metrics.jsonl").touch()
    ok("train", "--resume", "--out", str(out), "--evaluate", "false")
    assert (out / "metrics.jsonl").read_text() == whole
    ok("plot", str(out))
    assert (out / "history.png").exists()


def test_a_run_is_not_ended_by_fewer_epochs_than_it_has(tmp_path: Path, capsys: Any) -> None:
    train(out := tmp_path / "run", "--epochs", "3")
    (out / "model.json").unlink()
    assert main(["train", "--resume", "--out", str(out), "--epochs", "2"]) == 2
    assert "--epochs 2: 3 epochs are done in " in capsys.readouterr().err
    assert not (out / "model.json").exists()
    # To end it there is to say so, and then it is what its configuration says.
    config = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(config.replace("epochs: 3", "epochs: 9"))
    ok("train", "--resume", "--out", str(out), "--epochs", "3")
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 3
    assert (out / "model.json").exists()


def test_samples_of_a_label_go_with_the_model_that_made_them(tmp_path: Path) -> None:
    train(out := tmp_path / "run")
    ok("sample", str(out), "--label", "1")
    ok("sample", str(out), "--seed", "3", "--out", str(out / "samples-seed3.png"))
    assert (out / "samples-1.npz").exists()
    train(out, "--overwrite", "--evaluate", "false")
    # Under a name that they were given they are the user's.
    assert sorted(path.name for path in out.glob("samples-*")) == ["samples-seed3.npz", "samples-seed3.png"]


def test_a_run_is_not_resumed_from_another_start(tmp_path: Path, capsys: Any) -> None:
    train(plain := tmp_path / "plain", "--evaluate", "false")
    train(started := tmp_path / "started", "--evaluate", "false", "--start_from_data")
    before = (plain / "config.yaml").read_text()
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(plain), "--start_from_data", "--epochs", "2"]) == 2
    assert "--start_from_data: expected it to be False, as when the run in" in capsys.readouterr().err
    assert (plain / "config.yaml").read_text() == before
    ok("train", "--resume", "--out", str(started), "--epochs", "2", "--evaluate", "false")
    assert yaml.safe_load((started / "config.yaml").read_text())["start_from_data"] is True
    assert main(["train", "--config", str(plain / "config.yaml"), "--resume", "--out", str(started)]) == 2
    assert "--start_from_data: expected it to be True" in capsys.readouterr().err


def test_the_objective_that_was_trained_is_audited(tmp_path: Path, capsys: Any) -> None:
    train(tmp_path / "run", "--objective", "iwae", "--objective.k", "3")
    assert "TraceMeanField_ELBO, IWAE(k=3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (
            ["--prior", "Chain", "--prior.first", "Standard", "--prior.second", "{name: MAF, transforms: 1}"],
            {"name": "Chain", "first": {"name": "Standard"}, "second": {"name": "MAF", "transforms": 1}},
        ),
        # Which a prior is never given of what the others share.
        (["--prior", "Gaussian", "--prior.hidden", "[8]"], {"name": "Gaussian", "hidden": [8]}),
    ],
)
def test_a_runs_configuration_says_what_was_chosen_and_can_be_edited(
    words: list[str], kept: dict[str, Any], tmp_path: Path
) -> None:
    train(run := tmp_path / "run", "--evaluate", "false", "--latent", "4", *words)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["prior"] == kept
    ok("train", "--resume", "--out", str(run), "--epochs", "2")
    (file := tmp_path / "edited.yaml").write_text(yaml.safe_dump(config | {"latent": 6}))
    ok("train", "--config", str(file), "--out", str(again := tmp_path / "again"))
    before, after = (yaml.safe_load((out / "config.yaml").read_text()) for out in (run, again))
    assert after["prior"] == before["prior"] == kept
    assert pv.load(again).encoder.features == 6
    hidden = [pv.presets.to_dict(pv.load(out))["prior"].get("hidden") for out in (run, again)]
    assert hidden[0] == hidden[1]


def test_the_words_win_over_the_configuration(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("{data: bars.npz, prior: {name: NSF, transforms: 2}, latent: 3, lr: 0.01}")
    config = printed_config(capsys, "--config", str(file), "--prior.transforms", "1", "--latent=4")
    assert (config["prior"]["name"], config["prior"]["transforms"]) == ("NSF", 1)
    assert (config["latent"], config["lr"]) == (4, 0.01)
    # What was filled in from --latent, --hidden and --network is filled in anew.
    file.write_text(
        yaml.safe_dump(printed_config(capsys, "--config", str(file), "--hidden", "[4]", "--network", "MLP"))
    )
    config = printed_config(capsys, "--config", str(file), "--latent=5", "--hidden=[6]", "--network=FiLM")
    assert [config[kind]["features"] for kind in ("prior", "likelihood", "encoder")] == [5, 5, 5]
    assert [(config[kind]["hidden"], config[kind]["network"]) for kind in ("likelihood", "encoder")] == [
        ([6], "FiLM"),
        ([6], "FiLM"),
    ]
    config = printed_config(capsys, "--config", str(file), "--prior=GMM", "--data=plain.npz")
    assert (config["prior"]["name"], config["data"]["name"]) == ("GMM", "plain.npz")


def test_of_an_option_that_is_repeated_the_last_counts(tmp_path: Path, capsys: Any) -> None:
    """In what is taken for its name before it is parsed, too."""
    config = printed_config(
        capsys, "--data", "nowhere.npz", "--data=bars.npz", "--objective", "iwae", "--objective", "trace",
        "--prior", "Gaussian", "--prior=NSF", "--prior.transforms", "2",
    )  # fmt: skip
    assert config["data"]["name"] == "bars.npz"
    assert (config["objective"]["name"], "k" in config["objective"]) == ("trace", False)
    assert (config["prior"]["name"], config["prior"]["transforms"]) == ("NSF", 2)
    for name, latent in (("a", "2"), ("b", "3")):
        train(tmp_path / name, "--latent", latent, "--evaluate", "false")
    ok("train", "--resume", f"--out={tmp_path / 'a'}", "--out", str(tmp_path / "b"), "--epochs", "2")
    assert [len(lines(tmp_path / name / "metrics.jsonl")) for name in "ab"] == [1, 2]


def test_networks_by_name(tmp_path: Path) -> None:
    vae = train(tmp_path, "--likelihood", "Bernoulli", "--likelihood.network", "{name: Conv, channels: [2, 3]}")
    assert isinstance(vae.likelihood.network.body, Conv)
    assert isinstance(vae.encoder.network.body, MLP)


def test_options_of_training_reach_fit(tmp_path: Path) -> None:
    words = ["--warmup", "4", "--beta", "2", "--lr", "0.01", "--batch_size", "7", "--seed", "5", "--clip", "1.0"]
    train(tmp_path, *words, "--epochs", "2", "--objective", "analytic")
    rows = lines(tmp_path / "metrics.jsonl")
    assert [(row["beta"], row["lr"]) for row in rows] == [(0.5, 0.01), (1.0, 0.01)]
    settings = json.loads((tmp_path / "training.json").read_text())["settings"]
    assert (settings["batch_size"], settings["seed"], settings["clip"]) == (7, 5, 1.0)
    assert settings["objective"] == "Analytic"


@pytest.mark.parametrize("binarize", ["threshold", "dynamic"])
def test_the_likelihood_can_start_from_the_data(binarize: str, tmp_path: Path) -> None:
    options = ["--data", "digits", "--data.binarize", binarize, *TINY, "--lr", "1e-9"]
    biases = []
    for flag in ([], ["--start_from_data"]):
        ok("train", "--out", str(tmp_path / str(len(biases))), *options, *flag)
        biases.append(pv.load(tmp_path / str(len(biases))).likelihood.network.body[-1].bias.detach())
    x = pv.data.load("digits", binarize=binarize).train.x
    mean = x.mean(0).flatten().clamp(0.001, 0.999)
    # A draw of each pixel of 1,297 rows from its probability is the mean to a few standard errors of at most 0.013.
    torch.testing.assert_close(biases[1].sigmoid(), mean, rtol=0, atol=1e-5 if binarize == "threshold" else 0.07)
    assert (biases[0].sigmoid() - mean).abs().max() > 0.3


def test_an_objective_takes_the_options_of_its_class(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    made: list[Any] = []

    @functools.wraps(pv.fit)
    def fit(*args: Any, **options: Any) -> Any:
        made.append(options["objective"])
        return pv.fit(*args, **options)

    monkeypatch.setattr(sys.modules["ppl_vae.cli.train"], "fit", fit)
    train(tmp_path / "a", "--objective", "iwae", "--objective.k", "3", "--epochs", "1")
    train(tmp_path / "b", "--objective=freebits", "--objective.nats=0.25", "--objective.group", "2", "--epochs", "1")
    assert (made[0].num_particles, made[1].nats, made[1].group) == (3, 0.25, 2)
    # Another objective in its place, and its options go with it.
    config = str(tmp_path / "a" / "config.yaml")
    assert printed_config(capsys, "--config", config)["objective"]["k"] == 3
    assert printed_config(capsys, "--config", config, "--objective", "stl")["objective"] == {"name": "stl", "k": 1}
    (tmp_path / "old.yaml").write_text("{data: bars.npz, objective: analytic}")
    assert printed_config(capsys, "--config", str(tmp_path / "old.yaml"))["objective"]["name"] == "analytic"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "iwea"], "objective name: expected one of .*, got 'iwea'; did you mean 'iwae'"),
        (["--objective", "iwae", "--objective.nats", "1"], "option: expected one of .*objective.k"),
        (["--objective", "stl", "--objective.k", "2"], r"expected k = 1.*DReG\(2\)"),
        (["--objective", "capacity", "--objective.gamma", "-1"], "gamma"),
        (["--objective.k", "2"], "option: expected one of"),
    ],
    ids=" ".join,
)
def test_objectives_that_make_no_sense(words: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    code = main(["train", *TINY, "--data", "bars.npz", "--out", str(tmp_path / "run"), *words])
    assert code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_binarised_digits(tmp_path: Path) -> None:
    config = ["--data", "digits", "--data.binarize", "dynamic", "--out", str(tmp_path), "--batch_size", "1297"]
    ok("train", *TINY, *config)
    assert json.loads((tmp_path / "model.json").read_text())["data"]["binarization"] == "dynamic"
    assert type(pv.load(tmp_path).likelihood).__name__ == "Bernoulli"


# Resuming and overwriting


def numbers(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "rate")} for row in lines(path / "metrics.jsonl")]


def test_resuming_gives_the_run_that_was_not_interrupted(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, "--epochs", "3")
    train(parts, "--epochs", "2")
    train(parts, "--epochs", "3", "--resume")
    assert [row["epoch"] for row in numbers(parts)] == [1, 2, 3]
    assert numbers(parts) == numbers(whole)
    assert all(torch.equal(a, b) for a, b in zip(pv.load(whole).parameters(), pv.load(parts).parameters(), strict=True))
    assert yaml.safe_load((parts / "config.yaml").read_text())["epochs"] == 3


def test_resuming_a_run_that_has_come_to_its_end_leaves_what_was_measured(tmp_path: Path, capsys: Any) -> None:
    train(out := tmp_path / "run")
    ok("evaluate", str(out), "--samples", "31")
    for words in (["sample"], ["sample", "--label", "1"], ["reconstruct"], ["audit", "--particles", "5"]):
        ok(words[0], str(out), *words[1:])
    (out / "metrics.jsonl").unlink()
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    capsys.readouterr()
    ok("train", "--resume", "--out", str(out))
    assert "nothing was trained, and what was measured stays: ppl-vae evaluate" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != "metrics.jsonl"} == before
    assert len(lines(out / "metrics.jsonl")) == 1
    # Wherever the data lie now.
    shutil.copy("bars.npz", moved := tmp_path / "moved.npz")
    ok("train", "--resume", "--out", str(out), "--data", str(moved))
    assert (out / "audit.json").read_bytes() == before["audit.json"]
    assert json.loads((out / "model.json").read_text())["data"]["name"] == str(moved)
    # What is not there is measured,
    (out / "evaluation.json").unlink()
    ok("train", "--resume", "--out", str(out))
    assert (out / "evaluation.json").exists()
    # and what is not of this model any more, anew.
    source, vae = pv.data.load("bars.npz"), pv.load(out)
    pv.fit(vae, source.train, valid=source.valid, epochs=2, resume=out, progress=False)
    ok("train", "--resume", "--out", str(out), "--epochs", "2")
    assert not (out / "audit.json").exists()
    assert len(list(out.glob("model-*.safetensors"))) == 1
    # One that was saved there in Python, too, which says nothing of data.
    pv.fit(vae, source.train, valid=source.valid, epochs=3, resume=out, progress=False)
    pv.save(vae, out)
    stale = (out / "evaluation.npz").read_bytes()
    ok("train", "--resume", "--out", str(out), "--epochs", "3")
    assert (out / "evaluation.npz").read_bytes() != stale
    assert "test_rows" in json.loads((out / "model.json").read_text())["data"]
    again = pv.load(out)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), vae.parameters(), strict=True))
    with np.load(out / "evaluation.npz") as file:
        exact = pv.evaluate(again, source.test.x, source.test.y).values["neg_elbo"]
        np.testing.assert_array_equal(file["neg_elbo"], exact)


def test_a_resumed_run_needs_nothing_typed_again(tmp_path: Path) -> None:
    """Its config.yaml says the rest, and what is typed wins."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = ["--prior", "NSF", "--prior.transforms", "1", "--lr", "0.01", "--batch_size", "9", "--network", "GatedMLP"]
    train(whole, *words, "--epochs", "3")
    train(parts, *words, "--epochs", "2")
    ok("train", "--resume", "--out", str(parts), "--epochs", "3")
    assert [row["epoch"] for row in numbers(parts)] == [1, 2, 3]
    assert numbers(parts) == numbers(whole)
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (whole, parts))
    assert second == first | {"out": str(parts)}
    ok("train", "--resume", f"--out={parts}", "--epochs", "4", "--lr", "0.5")
    assert [row["lr"] for row in numbers(parts)] == [0.01] * 3 + [0.5]


WHOLE = ["--data", "bars.npz", *TINY]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # Not even where config.yaml has what is typed filled into every part,
        (["--latent", "3"], "a: expected to resume the same run, got another model.prior.features: "),
        (["--hidden", "[9]"], "model.likelihood.hidden: "),
        (["--network", "GatedMLP"], "model.likelihood.network: None then, 'GatedMLP' now"),
        (["--prior", "Standard"], "model.prior.name: 'Gaussian' then, 'Standard' now"),
        (["--seed", "1"], "seed: 0 then, 1 now"),
        # nor where everything is typed again.
        ([*WHOLE, "--seed", "1"], "seed: 0 then, 1 now"),
        ([*WHOLE, "--batch_size", "7"], "batch_size: "),
        ([*WHOLE, "--latent", "3"], "model.prior.features: "),
        ([*WHOLE, "--data", "plain.npz"], "a: expected to resume the same run, got another data: "),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else w,
)
def test_resuming_another_run_is_refused_and_changes_nothing(
    words: list[str], said: str, trained: Path, capsys: Any
) -> None:
    before = {p.name: p.read_bytes() for p in trained.iterdir()}
    assert main(["train", "--out", "a", "--epochs", "4", "--resume", *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ppl-vae: error: ")
    assert said in last
    assert {p.name: p.read_bytes() for p in trained.iterdir()} == before


def test_overwriting_replaces_the_run_and_nothing_else(tmp_path: Path) -> None:
    train(tmp_path, "--epochs", "2")
    (tmp_path / "notes.txt").write_text("mine")
    train(tmp_path, "--model", "ae", "--overwrite")
    assert len(numbers(tmp_path)) == 1
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "samples.png").exists()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["model"] == "ae"
    assert pv.load(tmp_path).prior is None


def test_a_state_that_cannot_be_written_costs_no_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    train(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args: Any, **options: Any) -> None:
        raise CheckpointError("No space left on device")

    monkeypatch.setattr("ppl_vae.training.store", full)
    words = ["train", "--data", "bars.npz", "--out", str(tmp_path), *TINY, "--lr", "0.1", "--overwrite"]
    assert main(words) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_configuration_is_mended_by_another(tmp_path: Path) -> None:
    train(out := tmp_path / "run")
    (out / "config.yaml").rename(good := tmp_path / "good.yaml")
    (out / "config.yaml").touch()
    ok("train", "--resume", "--out", str(out), "--config", str(good), "--epochs", "2")
    assert len(numbers(out)) == 2
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 2


def test_a_run_that_is_interrupted_in_its_first_epoch_has_written_nothing(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """A state without its configuration would be resumed with the defaults of everything."""
    out = tmp_path / "run"

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ppl_vae.training.train_epoch", interrupt)
        words = ["train", "--data", "bars.npz", "--out", str(out), *TINY, "--checkpoint_every", "10", "--lr", "0.1"]
        assert main(words) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "ppl-vae: interrupted"
    assert "resume" not in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(out)]) == 2
    assert "expected a run in" in capsys.readouterr().err


def test_a_state_without_its_configuration_is_not_resumed(tmp_path: Path, capsys: Any) -> None:
    source = pv.data.load("bars.npz")
    vae = pv.cvae(
        source.x_shape, 2, source.classes or 0, levels=source.levels, likelihood="Binomial", range=source.range
    )
    pv.fit(vae, source.train, epochs=1, checkpoint=tmp_path, progress=False)
    assert main(["train", "--data", "bars.npz", "--resume", "--out", str(tmp_path)]) == 2
    assert "with its config.yaml, got one without: fit(resume=...) goes on" in capsys.readouterr().err


def test_to_resume_and_to_overwrite_are_two_things(tmp_path: Path, capsys: Any) -> None:
    train(tmp_path)
    assert main(["train", "--resume", "--overwrite", "--out", str(tmp_path)]) == 2
    assert "--overwrite, to replace it, got both" in capsys.readouterr().err


def test_an_interrupted_run_can_be_resumed(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    out, original = tmp_path / "run", _Records.__call__

    def interrupt(self: Any, vae: pv.VAE, history: pv.History) -> None:
        original(self, vae, history)
        if len(history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Records, "__call__", interrupt)
        assert main(["train", "--data", "bars.npz", "--out", str(out), *TINY, "--epochs", "4"]) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "ppl-vae: interrupted"
    assert f"ppl-vae train --resume --out {out} goes on" in said[-2]
    assert len(numbers(out)) == 2
    assert main(["evaluate", str(out)]) == 2
    assert f"ppl-vae train --resume --out {out} goes on" in capsys.readouterr().err
    train(out, "--resume", "--epochs", "4")
    train(whole := tmp_path / "whole", "--epochs", "4")
    assert numbers(out) == numbers(whole)


def test_a_model_can_be_trained_and_not_measured(tmp_path: Path, capsys: Any) -> None:
    vae = train(tmp_path, "--evaluate", "false", "--hidden", "7")
    assert next(m.out_features for m in vae.encoder.modules() if isinstance(m, torch.nn.Linear)) == 7
    assert not (tmp_path / "evaluation.json").exists()
    assert "parameters, trained on" in capsys.readouterr().out
    assert main(["train", "--data", "bars.npz", "--out", str(tmp_path / "b"), *TINY, "--warmup", "-3"]) == 2
    assert "--warmup: expected a number of epochs" in capsys.readouterr().err


def test_a_point_encoder_under_a_prior_is_evaluated(tmp_path: Path, capsys: Any) -> None:
    """Without what needs a density, and it says so."""
    train(tmp_path, "--model", "vae", "--encoder", "Delta")
    ok("evaluate", str(tmp_path), "--samples", "3")
    said = capsys.readouterr().out
    assert "left out: diagnostics: " in said
    assert str(tmp_path / "reconstructions.png") in said
    assert json.loads((tmp_path / "evaluation.json").read_text())


def test_many_labels_are_left_to_those_who_ask(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path)
    monkeypatch.setattr("ppl_vae.cli.report._LABELS", 2)
    ok("evaluate", str(tmp_path), "--samples", "3")
    assert "left out: use of y: 3 labels would take hours; in Python label_use(...) does" in capsys.readouterr().out


def test_a_flow_is_diagnosed_on_fewer_rows(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, "--model", "vae", "--encoder", "Flow")
    monkeypatch.setattr("ppl_vae.cli.report._PAIRS", 9 * density_numbers(pv.load(tmp_path).encoder))
    ok("evaluate", str(tmp_path), "--samples", "3")
    assert "3 rows" in capsys.readouterr().out


def test_test_rows_that_have_changed_are_no_test_rows(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """The same rows in another order: those of the test are others, and were trained on."""
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **arrays())
    train(out := tmp_path / "run", data="mine.npz")
    for command in ("evaluate", "audit", "plot"):
        ok(command, str(out), *(["--samples", "3"] if command == "evaluate" else []))
    np.savez("mine.npz", **{name: values[::-1] for name, values in arrays().items()})
    capsys.readouterr()
    for command in ("evaluate", "audit"):
        assert main([command, str(out)]) == 2
        assert "expected the test rows that its training left aside, got others" in capsys.readouterr().err


def test_the_data_of_a_run_may_lie_elsewhere(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """In a file of another name, or a folder of named data sets; other rows are refused all the same."""
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", **arrays())
    train(Path("run"), "--evaluate", "false", data="mine.npz")
    (tmp_path / "new").mkdir()
    Path("mine.npz").rename(tmp_path / "new" / "moved.npz")
    np.savez("other.npz", **arrays(rows=72))
    commands = (["evaluate", "--samples", "3"], ["reconstruct"], ["audit", "--particles", "5"], ["plot"])
    for command, *words in commands:
        assert main([command, "run", *words]) == 2
        assert "--data and --data.root say where they are now" in capsys.readouterr().err
        ok(command, "run", *words, "--data", "new/moved.npz")
        assert main([command, "run", *words, "--data=other.npz"]) == 2
        assert "expected the test rows that its training left aside, got others" in capsys.readouterr().err
    for folder in ("faces", "placed"):
        (tmp_path / folder).mkdir()
    pixels = np.random.RandomState(0).randint(0, 256, (410, 28, 20), np.uint8)
    np.savez("faces/frey_faces.npz", x=pixels)
    ok("train", "--data", "frey-faces", "--data.root", "faces", *TINY, "--out", "b", "--evaluate", "false")
    assert json.loads(Path("b/model.json").read_text())["data"]["sizes"]["train"] == 10
    Path("faces/frey_faces.npz").rename("placed/frey_faces.npz")
    assert main(["reconstruct", "b", "--n", "2"]) == 2
    ok("reconstruct", "b", "--n", "2", "--data.root", "placed")


def test_odd_files_in_a_run_are_errors_of_one_line(tmp_path: Path, capsys: Any) -> None:
    train(out := tmp_path / "run")
    ok("evaluate", str(out), "--samples", "3")
    for name, content, command in (
        ("config.yaml", b"data: \xff\xfe", ["evaluate", str(out)]),
        ("evaluation.npz", None, ["compare", str(out), str(out / ".")]),
    ):
        before = (path := out / name).read_bytes()
        if content is None:
            numbers = {"neg_elbo": np.float64(3.0), "_samples": 3, "_density": True, "_rows": "a"}
            np.savez(path, **numbers)  # type: ignore[arg-type]
            command = ["compare", str(out), str(tmp_path / "run2")]
            shutil.copytree(out, tmp_path / "run2")
        else:
            path.write_bytes(content)
        capsys.readouterr()
        assert main(command) == 2, name
        assert name in capsys.readouterr().err
        path.write_bytes(before)
    assert main(["evaluate", str(out), "--seed", "9" * 20]) == 2
    assert "64 bits" in capsys.readouterr().err

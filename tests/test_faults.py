"""Bad inputs, by their number in the list of faults: a typed error that says expected, got and the way out.

Of the library every one is a ``PplVaeError`` and a ``ValueError`` or ``TypeError``, raised before anything has changed;
of the command line one line, exit code 2 and nothing half-written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

import ppl_vae as pv
from ppl_vae.cli import main
from ppl_vae.errors import ConfigError, DataError, LabelError, NonFiniteError, PplVaeError, ShapeError

N, D = 20, 6
Cli = Callable[..., str]


def binary(rows: int = N) -> Tensor:
    return (torch.rand(rows, D) < 0.4).float()


def a_vae(**options: Any) -> pv.VAE:
    return pv.vae((D,), 2, hidden=[8], **options)


def a_cvae(**options: Any) -> pv.VAE:
    return pv.cvae((D,), 2, 3, hidden=[8], **options)


def labels(rows: int = N) -> Tensor:
    return torch.arange(rows) % 3


def run(vae: pv.VAE, train: Any, valid: Any = None, **options: Any) -> pv.History:
    return pv.fit(vae, train, valid=valid, progress=False, **({"epochs": 2, "batch_size": 8} | options))


def refused(vae: pv.VAE, train: Any, error: type[PplVaeError], *words: str, valid: Any = None, **options: Any) -> None:
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    with pytest.raises(error) as caught:
        run(vae, train, valid, **options)
    assert isinstance(caught.value, ValueError | TypeError)
    for word in words:
        assert word in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert not list(pyro.get_param_store())


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run ``train`` on arrays, expect a refusal, and return its line."""

    def call(*words: str, **arrays: Any) -> str:
        file = tmp_path / "data.npz"
        np.savez(file, **({"x": binary(60).bool().numpy(), "y": labels(60).numpy()} | arrays))
        capsys.readouterr()
        out = tmp_path / "run"
        code = main(["train", "--data", str(file), "--out", str(out), "--epochs", "1", "--hidden", "[8]", *words])
        printed = capsys.readouterr()
        assert code == 2
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert printed.err.startswith("ppl-vae: error: ")
        assert "Traceback" not in printed.err
        assert not out.exists()
        return printed.err

    return call


# Data


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("likelihood", ["Bernoulli", "Gaussian", "Binomial"])
def test_fault_01_values_that_are_not_finite_are_named_by_row_and_column(bad: float, likelihood: str) -> None:
    x = binary()
    x[13, 4] = bad
    vae = a_vae(likelihood=likelihood, levels=2)
    refused(vae, x, DataError, "row 13", "4", "mask")
    refused(vae, binary(), DataError, "row 13", valid=x)


def test_fault_01_nan_in_a_file(cli: Cli) -> None:
    x = binary(60).numpy()
    x[13, 4] = math.nan
    line = cli(x=x)
    assert "row 13" in line
    assert "(4,)" in line


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.full((9, D), 2.0), ("2 … 2", "scale='unit'", "binarize=")),
        (torch.full((9, D), -1.0), ("-1 … -1",)),
        (torch.full((9, D), 0.5), ("0.5 … 0.5", "binarize=", "continuous Bernoulli", "grey=True")),
    ],
    ids=["too large", "negative", "grey"],
)
def test_fault_02_a_bernoulli_refuses_what_is_not_binary(x: Tensor, words: tuple[str, ...]) -> None:
    refused(a_vae(), x, DataError, "{0, 1}", *words)
    if x.max() <= 1 and x.min() >= 0:
        run(a_vae(likelihood={"name": "Bernoulli", "grey": True}), x)


def test_fault_02_grey_data_on_the_command_line(cli: Cli) -> None:
    line = cli("--likelihood", "Bernoulli", x=torch.rand(60, D).numpy())
    assert "binarize" in line


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Gaussian"])
def test_fault_03_bytes_where_floats_are_expected_name_the_scaling(likelihood: str) -> None:
    x = torch.arange(N * D).reshape(N, D).to(torch.uint8)
    refused(a_vae(likelihood=likelihood), x, DataError, "scale='unit'")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.int32, torch.bool, torch.uint8])
def test_fault_04_other_dtypes_are_cast(dtype: torch.dtype) -> None:
    x = binary()
    torch.manual_seed(1)
    first = a_vae()
    torch.manual_seed(1)
    second = a_vae()
    assert run(first, x)[-1]["loss"] == run(second, x.to(dtype), x.to(dtype))[-1]["loss"]
    assert all(p.dtype == torch.float32 for p in second.parameters())


def test_fault_04_a_double_model_takes_floats() -> None:
    vae = a_vae().double()
    assert math.isfinite(run(vae, binary(), binary())[-1]["valid_neg_elbo"])
    assert vae.sample(2).dtype == torch.float64


@pytest.mark.parametrize("empty", [torch.zeros(0, D), (torch.zeros(0, D), torch.zeros(0, dtype=torch.long))])
def test_fault_05_no_rows(empty: Any) -> None:
    vae = a_cvae() if isinstance(empty, tuple) else a_vae()
    refused(vae, empty, DataError, "at least one row")
    tensors = empty if isinstance(empty, tuple) else (empty,)
    refused(vae, torch.utils.data.TensorDataset(*tensors), DataError, "at least one row")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), 8)
    refused(vae, loader, DataError, "at least one batch")


def test_fault_05_an_empty_file(cli: Cli) -> None:
    assert "empty" in cli(x=np.zeros((0, D), bool), y=np.zeros(0, int))


@pytest.mark.parametrize("rows", [1, 9])
def test_fault_06_one_row_and_a_last_batch_of_one(rows: int) -> None:
    history = run(a_cvae(), (binary(rows), labels(rows)), (binary(1), labels(1)))
    for row in history:
        assert row["loss"] == pytest.approx(row["neg_elbo"], rel=1e-5)


def test_fault_07_a_batch_larger_than_the_data_is_all_of_it() -> None:
    x, first = binary(), a_vae()
    twin = pv.presets.build(pv.presets.to_dict(first))
    twin.load_state_dict(first.state_dict())
    big = run(first, x, batch_size=1000, optim=torch.optim.SGD, lr=0.5)
    exact = run(twin, x, batch_size=N, optim=torch.optim.SGD, lr=0.5)
    assert big.column("loss") == exact.column("loss")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("likelihood", ["Bernoulli", "Gaussian", "Binomial"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_fault_08_constant_columns_train_finitely(likelihood: str, value: float) -> None:
    x = binary()
    x[:, 2] = value
    x[:, 3:] = 1 - value
    options: dict[str, Any] = {"likelihood": likelihood, "levels": 2}
    if likelihood == "Gaussian":
        options["likelihood"] = {"name": "Gaussian", "sigma": "pixel"}
    history = run(a_vae(**options), x, epochs=200, lr=0.1, batch_size=N)
    assert all(math.isfinite(loss) for loss in history.column("loss"))
    assert history[-1]["loss"] < history[0]["loss"]


def test_fault_08_a_constant_data_set_has_a_scale() -> None:
    data = pv.data.from_tensors(torch.full((30, D), 5.0))
    vae = pv.vae(data.x_shape, 2, likelihood="Gaussian", range=data.range, hidden=[8])
    assert math.isfinite(run(vae, data.train, data.valid, epochs=20, lr=0.1)[-1]["loss"])


@pytest.mark.filterwarnings("ignore:x reaches")
def test_fault_09_huge_values_meet_the_guard() -> None:
    x = binary()
    x[3, 3] = 1e30
    refused(a_vae(likelihood="Gaussian"), x, NonFiniteError, "step 1", "site", batch_size=N)
    refused(pv.ae((D,), 2, hidden=[8]), x, NonFiniteError, "step 1", "site 'x' of the model", batch_size=N)


@pytest.mark.filterwarnings("ignore:x reaches")
def test_fault_09_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.full((60, D), 1e30, np.float32)
    x[::2] *= -1
    np.savez(tmp_path / "data.npz", x=x)
    words = [
        "--likelihood.shift",
        "0.0",
        "--likelihood.scale",
        "1.0",
        "--encoder.shift",
        "0.0",
        "--encoder.scale",
        "1.0",
    ]
    words += ["--data", str(tmp_path / "data.npz"), "--likelihood", "Gaussian", "--encoder", "Gaussian"]
    assert main(["train", "--out", str(tmp_path / "run"), *words]) == 2
    err = capsys.readouterr().err
    assert "step 1" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(N, D + 1), (N,), (N, 1, D), (D,), (N, 2, 3)])
def test_fault_10_a_wrong_shape(shape: tuple[int, ...]) -> None:
    refused(a_vae(), torch.zeros(shape), ShapeError, f"(N, {D})", str(shape))


def test_fault_10_an_image_without_its_channel() -> None:
    refused(pv.vae((1, 28, 28), 2), torch.zeros(3, 28, 28), ShapeError, "(N, 1, 28, 28)", "(3, 28, 28)")


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.full((N,), 3), ("0 … 2", "3")),
        (torch.full((N,), -1), ("0 … 2", "-1")),
        (torch.full((N,), 1.0), ("integer", "y.long()")),
        (torch.full((N,), math.nan), ("integer",)),
        (torch.ones(N, dtype=torch.bool), ("integer",)),
        (torch.ones(N - 1, dtype=torch.long), ("19", "20")),
    ],
    ids=["too large", "negative", "float", "nan", "bool", "too few"],
)
def test_fault_11_labels_out_of_range_or_no_labels_at_all(y: Tensor, words: tuple[str, ...]) -> None:
    refused(a_cvae(), (binary(), y), LabelError, *words)
    refused(a_cvae(), (binary(), labels()), LabelError, *words, valid=(binary(), y))
    if len(y) == N:
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(binary(), y), 8)
        refused(a_cvae(), loader, LabelError, *words)


@pytest.mark.parametrize("y", [np.full(60, -1), np.full(60, 0.5), np.full(60, math.nan), np.array(["a"] * 60)])
def test_fault_11_labels_in_a_file(y: Any, cli: Cli) -> None:
    assert "labels" in cli(y=y) or "real numbers" in cli(y=y)


@pytest.mark.parametrize("y", [3, -1, 0.5, math.nan, torch.tensor([0, 9])])
def test_fault_11_labels_to_sample(y: Any) -> None:
    with pytest.raises(LabelError):
        a_cvae().sample(1, y=y)


def test_fault_12_y_missing_or_unwanted() -> None:
    refused(a_cvae(), binary(), LabelError, "pass y")
    refused(a_cvae(), pv.data.Split(binary()), LabelError, "pass y")
    refused(a_vae(), (binary(), labels()), LabelError, "OneHot")
    refused(a_cvae(), (binary(), labels()), LabelError, "pass y", valid=binary())


def test_fault_12_a_conditional_model_of_unlabelled_data(cli: Cli, tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", x=binary(60).bool().numpy())
    line = cli("--data", str(tmp_path / "plain.npz"), "--model", "cvae")
    assert "--model vae" in line


def test_fault_13_a_class_never_seen_is_a_warning() -> None:
    vae = a_cvae()
    run(vae, (binary(), labels() % 2))
    with pytest.warns(UserWarning, match="label 2 was never seen in training"):
        vae.sample(1, y=2)
    vae.sample(1, y=torch.tensor([0, 1]))


@pytest.mark.parametrize("extreme", [1000.0, -1000.0])
@pytest.mark.parametrize("kind", ["encoder", "prior", "likelihood"])
def test_fault_14_an_extreme_log_variance_has_a_finite_loss_and_gradient(extreme: float, kind: str) -> None:
    vae = a_vae(prior="Gaussian", likelihood={"name": "Gaussian", "sigma": "shared"})
    with torch.no_grad():
        if kind == "encoder":
            vae.encoder.network.body[-1].bias[2:] = extreme
        else:
            getattr(vae, kind).log_variance.fill_(extreme)
    loss = pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, binary())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in vae.parameters() if p.grad is not None)
    pyro.clear_param_store()
    if kind == "encoder" and extreme < 0:
        run(vae, binary())


@pytest.mark.parametrize("latent", [0, -1, 2.5, True])
def test_fault_15_latent_features(latent: Any) -> None:
    for make in (pv.vae, pv.ae, lambda shape, latent: pv.cvae(shape, latent, 3)):
        with pytest.raises(ConfigError, match="features"):
            make((D,), latent)


@pytest.mark.parametrize("lr", [0.0, -1e-3, math.nan, math.inf])
def test_fault_15_learning_rates(lr: float) -> None:
    refused(a_vae(), binary(), ConfigError, "lr", lr=lr)
    refused(a_vae(), binary(), ConfigError, "lr", lr=lambda epoch: lr)


@pytest.mark.parametrize("beta", [-1.0, math.nan, math.inf])
def test_fault_15_beta(beta: float) -> None:
    with pytest.raises(ConfigError, match="β"):
        a_vae(beta=beta)
    refused(a_vae(), binary(), ConfigError, "beta", beta=beta)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--latent", "0"], "features"),
        (["--lr", "0"], "lr"),
        (["--lr=-1"], "lr"),
        (["--lr", "nan"], "lr"),
        (["--beta=-1"], "β"),
        (["--epochs", "0"], "epochs"),
        (["--batch_size", "0"], "batch_size"),
        (["--patience", "0"], "patience"),
        (["--clip", "0"], "clip"),
        (["--device", "gpu"], "device"),
        (["--hidden", "[0]"], "hidden"),
        (["--latent", "many"], "latent"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else w,
)
def test_fault_15_on_the_command_line(words: list[str], named: str, cli: Cli) -> None:
    assert named in cli(*words)


@pytest.mark.parametrize(
    "words", [["--lr", "nan"], ["--prior", "Gausian"], ["--objective", "elbow"], ["--latent", "0"]]
)
def test_a_bad_option_does_not_cost_the_run_it_would_replace(words: list[str], tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "data.npz", x=binary(60).bool().numpy())
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.yaml").write_text("mine: 1\n")
    (run_folder / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in run_folder.iterdir()}
    for how in (["--overwrite"], ["--resume"], []):
        assert main(["train", "--data", str(tmp_path / "data.npz"), "--out", str(run_folder), *how, *words]) == 2
        assert {p.name: p.read_bytes() for p in run_folder.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["--latnet", "3"], "latent"),
        (["--prior", "Gaussian", "--prior.hiden", "[3]"], "prior.hidden"),
        (["--prior", "Gausian"], "Gaussian"),
        (["--likelihood", "Bernouli"], "Bernoulli"),
        (["--encoder", "delta"], "Delta"),
        (["--network", "Convv"], "Conv"),
        (["--objective", "analytical"], "analytic"),
        (["--model", "cave"], "cvae"),
        (["--data.binarise", "static"], "data.binarize"),
        (["--batch-size", "3"], "batch_size"),
    ],
    ids=lambda w: " ".join(w) if isinstance(w, list) else w,
)
def test_fault_16_misspelt_options_name_the_nearest(words: list[str], nearest: str, cli: Cli) -> None:
    assert f"did you mean {nearest!r}" in cli(*words)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("latnet: 3", "latent"),
        ("prior: {name: Gaussian, hiden: [3]}", "prior.hidden"),
        ("prior: Gausian", "Gaussian"),
        ("data: {name: digit}", "digits"),
        ("nonsense: {latent: 3}", None),
        ("- latent", None),
        ("latent: [", None),
        ("latent: {a: 3}", None),
        ("prior: [3]", None),
        ("3: 4", None),
    ],
)
def test_fault_16_misspelt_keys_of_a_configuration(text: str, nearest: str | None, cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    if text.startswith("data"):
        assert main(["train", "--config", str(config), "--out", str(tmp_path / "run")]) == 2
        return
    line = cli("--config", str(config))
    assert nearest is None or f"did you mean {nearest!r}" in line


def test_fault_16_in_the_library() -> None:
    for call in (
        lambda: pv.vae((D,), 2, prior="Gausian"),
        lambda: pv.vae((D,), 2, prior={"name": "Gaussian", "hiden": [3]}),
        lambda: pv.data.load("digit"),
    ):
        with pytest.raises(ConfigError, match="did you mean"):
            call()


def test_fault_17_names_step_and_site_and_leaves_the_last_good_parameters() -> None:
    # The full table of ways to fail is in test_training.py.
    with pytest.raises(NonFiniteError, match=r"step 2: .*site 'z' of the guide"):
        run(vae := a_vae(), binary(), lr=1e30)
    assert all(p.isfinite().all() for p in vae.parameters())


# Process


def test_fault_18_two_models_and_a_dirty_store_do_not_leak() -> None:
    x = binary()
    torch.manual_seed(1)
    alone = a_vae()
    expected = run(alone, x, lr=0.05)
    # The same again beside a second model, with stock SVI's parameters and strangers in the store.
    torch.manual_seed(1)
    vae = a_vae()
    other = a_vae()
    kept = {k: v.clone() for k, v in other.state_dict().items()}
    svi = pyro.infer.SVI(other.model, other.guide, pyro.optim.Adam({"lr": 0.0}), pyro.infer.Trace_ELBO())
    svi.step(x)
    for key, p in vae.named_parameters():
        pyro.param(f"{vae.name}$$${key}", torch.zeros_like(p))
    history = run(vae, x, lr=0.05)
    assert history.column("loss") == expected.column("loss")
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), alone.parameters(), strict=True))
    assert all(torch.equal(v, kept[k]) for k, v in other.state_dict().items())
    first = run(other, x, lr=0.05)
    assert first.column("loss") != history.column("loss")
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), alone.parameters(), strict=True))


def test_fault_19_training_twice_continues() -> None:
    vae, x = a_vae(), binary(100)
    first = run(vae, x, epochs=10, lr=0.02)
    assert run(vae, x, epochs=1, lr=0.02)[0]["loss"] < first[0]["loss"]

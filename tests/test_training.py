"""``fit``: each number it reports and each step it takes, against a loop written by hand; and what it leaves behind."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import json
import math
import pickle
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SubsetRandomSampler, TensorDataset

import ppl_vae as pv
from ppl_vae.batches import Batches
from ppl_vae.capture import CapturedSVI, CaptureWarning
from ppl_vae.data import Split
from ppl_vae.errors import CheckpointError, ConfigError, DataError, LabelError, NonFiniteError, PartError, ShapeError
from ppl_vae.objectives import Analytic, warmup
from ppl_vae.state import alone

N, D = 20, 6


def binary(rows: int = N) -> Tensor:
    return (torch.rand(rows, D) < 0.4).float()


def a_vae(**options: Any) -> pv.VAE:
    return pv.vae((D,), 2, hidden=[8], **options)


def a_cvae(**options: Any) -> pv.VAE:
    return pv.cvae((D,), 2, 3, hidden=[8], **options)


def run(vae: pv.VAE, train: Any, valid: Any = None, **options: Any) -> pv.History:
    return pv.fit(vae, train, valid=valid, progress=False, **({"epochs": 2, "batch_size": 8} | options))


def weights(vae: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in vae.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def numbers(history: pv.History) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "rate")} for row in history]


def terms(vae: pv.VAE, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """−log p(x|z) and log q − log p, summed over rows, with one draw of z."""
    q = vae.encode(x, y)
    z = q.rsample()
    kl = q.log_prob(z) - vae.prior_given(y).log_prob(z)
    return -vae.decode(z, y).log_prob(x).sum(), kl.sum()


def by_hand(
    vae: pv.VAE,
    x: Tensor,
    *,
    batch_size: int,
    epochs: int = 2,
    lr: float | Callable[[int], float] = 1e-3,
    optim: Any = torch.optim.Adam,
    beta: Callable[[int], float] = lambda epoch: 1.0,
    clip: float | None = None,
    seed: int = 0,
) -> list[tuple[float, float, float]]:
    """The training loop of a textbook: (loss, reconstruction, KL), means over an epoch's data."""
    optimiser = optim(vae.parameters(), lr=lr(1) if callable(lr) else lr)
    rows = []
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        for epoch in range(1, epochs + 1):
            optimiser.param_groups[0]["lr"] = lr(epoch) if callable(lr) else lr
            sums = torch.zeros(3, dtype=torch.float64)
            for index in torch.randperm(len(x)).split(batch_size):
                reconstruction, kl = terms(vae, x[index])
                loss = reconstruction + beta(epoch) * kl
                optimiser.zero_grad()
                (loss / min(batch_size, len(x))).backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(vae.parameters(), clip)
                optimiser.step()
                sums += torch.stack([loss, reconstruction, kl]).detach()
            rows.append(tuple((sums / len(x)).tolist()))
    return rows


def columns(history: pv.History) -> list[tuple[float, float, float]]:
    return [(row["loss"], row["reconstruction"], row["kl"]) for row in history]


# The numbers, against the loop by hand


@pytest.mark.parametrize("batch_size", [1, 8, 20, 64], ids=["one row", "partial last batch", "all rows", "beyond N"])
@pytest.mark.parametrize("optim", [torch.optim.SGD, torch.optim.Adam])
def test_history_and_parameters_are_those_of_a_loop_by_hand(batch_size: int, optim: Any) -> None:
    x, ours = binary(), a_vae()
    theirs = copy.deepcopy(ours)
    history = run(ours, x, batch_size=batch_size, optim=optim, lr=0.05)
    expected = by_hand(theirs, x, batch_size=batch_size, optim=optim, lr=0.05)
    for got, want in zip(columns(history), expected, strict=True):
        assert got == pytest.approx(want, rel=1e-4)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rows", [8, 3], ids=["full batch", "fewer rows than the batch"])
def test_one_sgd_step_is_the_gradient_of_the_mean(rows: int) -> None:
    x, vae = binary(rows), a_vae()
    before = [p.clone() for p in vae.parameters()]
    torch.manual_seed(5)
    x_in_order = x[torch.randperm(rows)]
    gradients = torch.autograd.grad(sum(terms(vae, x_in_order)) / rows, list(vae.parameters()))
    run(vae, x, epochs=1, optim=torch.optim.SGD, lr=1.0, seed=5)
    for p, old, g in zip(vae.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p, old - g, rtol=1e-4, atol=1e-6)


def test_loss_is_neg_elbo_at_beta_one_and_not_at_another() -> None:
    x = binary()
    for row in run(a_vae(), x):
        assert row["loss"] == pytest.approx(row["neg_elbo"], rel=1e-5)
        assert row["neg_elbo"] == pytest.approx(row["reconstruction"] + row["kl"], rel=1e-9)
    for row in run(a_vae(beta=4.0), x):
        assert row["beta"] == 4.0
        assert row["loss"] == pytest.approx(row["reconstruction"] + 4 * row["kl"], rel=1e-5)


def test_beta_zero_trains_the_reconstruction_alone_and_still_reports_the_kl() -> None:
    vae = a_vae(beta=0.0)
    row = run(vae, binary(), epochs=5, lr=0.05)[-1]
    assert row["loss"] == pytest.approx(row["reconstruction"], rel=1e-5)
    assert row["kl"] > 0.01


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, Analytic, RenyiELBO])
@pytest.mark.parametrize("vectorised", [False, True])
def test_particles_give_the_same_means(objective: Any, vectorised: bool) -> None:
    # With no learning rate to speak of, one epoch measures the model; many particles make the noise small.
    x, vae, near = binary(), a_vae(), 0.02 if vectorised else 0.06
    alpha = {"alpha": 0} if objective is RenyiELBO else {}
    made = objective(num_particles=400 if vectorised else 50, vectorize_particles=vectorised, **alpha)
    row = run(vae, x, epochs=1, lr=1e-12, objective=made)[0]
    exact = pv.evaluate(vae, x, draws=2000, samples=2000)
    assert row["reconstruction"] == pytest.approx(exact["reconstruction"], abs=near)
    assert row["kl"] == pytest.approx(exact["kl"], abs=near)
    assert row["neg_elbo"] == pytest.approx(row["reconstruction"] + row["kl"])
    target = exact["neg_log_prob"] if objective is RenyiELBO else exact["neg_elbo"]
    assert row["loss"] == pytest.approx(target, abs=near)


def test_importance_weighted_loss_is_a_mean_of_log_mean_exponentials() -> None:
    # 1/B inside the exponent would give nearly the ELBO: a wide gap here shows which it is.
    x, vae = binary(), a_vae(prior={"name": "Fixed", "distribution": "Normal", "args": [3.0, 0.5]})
    row = run(vae, x, epochs=1, lr=1e-12, objective=RenyiELBO(alpha=0, num_particles=50, vectorize_particles=True))[0]
    with torch.no_grad():
        log_w = torch.cat(list(vae.log_weights(x, samples=50 * 200))).double().reshape(200, 50, N)
    iwae = -(log_w.logsumexp(1) - math.log(50)).mean()
    assert row["loss"] == pytest.approx(iwae.item(), rel=0.1)
    assert row["neg_elbo"] > 2 * row["loss"]


def test_analytic_objective_follows_the_hand_written_loss() -> None:
    x, vae = binary(), a_vae()
    twin = copy.deepcopy(vae)
    history = run(vae, x, epochs=1, batch_size=N, lr=0.1, optim=torch.optim.SGD, objective=Analytic(), seed=3)
    torch.manual_seed(3)
    loss = -pv.objectives.analytic_elbo(twin, x[torch.randperm(N)]).mean()
    assert history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["ae", "cvae"])
def test_an_autoencoder_and_a_conditional_model_train(kind: str) -> None:
    x, y = binary(), torch.arange(N) % 3
    vae = pv.ae((D,), 2, hidden=[8]) if kind == "ae" else a_cvae()
    history = run(vae, x if kind == "ae" else (x, y), epochs=8, lr=0.02)
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(row["kl"] == 0 for row in history) == (kind == "ae")


def test_stock_svi_follows_the_same_losses() -> None:
    x, y, ours = binary(), torch.arange(N) % 3, a_cvae()
    theirs = copy.deepcopy(ours)
    losses: list[float] = []
    original = CapturedSVI.step

    def spy(self: Any, *args: Any, **kwargs: Any) -> float:
        losses.append(original(self, *args, **kwargs))
        return losses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CapturedSVI, "step", spy)
        run(ours, (x, y), epochs=3, lr=0.01)
    svi = SVI(theirs.model, theirs.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    torch.manual_seed(0)
    stock = []
    for _ in range(3):
        # total=len/B makes the scale 1/B on every batch, the last one included.
        stock += [svi.step(x[i], y[i], total=len(i) / 8) for i in torch.randperm(N).split(8)]
    assert losses == pytest.approx(stock, rel=1e-6)


def test_stock_svi_can_take_over_from_fit() -> None:
    # Pyro adds to gradients that it finds, so fit must leave none behind.
    x, vae = binary(), a_vae()
    run(vae, x)
    assert all(p.grad is None for p in vae.parameters())


# Settings


def test_schedules_of_lr_and_beta_are_followed_by_the_epoch() -> None:
    x, ours = binary(), a_vae()
    theirs = copy.deepcopy(ours)
    lr, beta = (lambda epoch: 0.05 / epoch), warmup(4, 2.0)
    history = run(ours, x, epochs=3, lr=lr, beta=beta)
    assert history.column("lr") == [0.05, 0.025, 0.05 / 3]
    assert history.column("beta") == [0.5, 1.0, 1.5]
    assert ours.beta == 1.5
    expected = by_hand(theirs, x, batch_size=8, epochs=3, lr=lr, beta=beta)
    for got, want in zip(columns(history), expected, strict=True):
        assert got == pytest.approx(want, rel=1e-4)


def test_beta_none_leaves_the_models_own() -> None:
    vae = a_vae(beta=0.25)
    assert run(vae, binary()).column("beta") == [0.25, 0.25]
    assert run(vae, binary(), beta=2).column("beta") == [2.0, 2.0]


def test_clip_bounds_the_norm_of_the_whole_gradient() -> None:
    x, vae = binary(), a_vae()
    before = [p.clone() for p in vae.parameters()]
    run(vae, x, epochs=1, batch_size=N, optim=torch.optim.SGD, lr=1.0, clip=0.01)
    moved = torch.cat([(p - b).flatten() for p, b in zip(vae.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_clip_does_as_by_hand() -> None:
    x, ours = binary(), a_vae()
    theirs = copy.deepcopy(ours)
    history = run(ours, x, lr=0.05, clip=0.1)
    expected = by_hand(theirs, x, batch_size=8, lr=0.05, clip=0.1)
    assert [c[0] for c in columns(history)] == pytest.approx([row[0] for row in expected], rel=1e-4)


@pytest.mark.parametrize("optim", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam])
def test_any_class_of_optimiser_works(optim: Any) -> None:
    x, ours = binary(), a_vae()
    theirs = copy.deepcopy(ours)
    history = run(ours, x, lr=0.01, optim=optim)
    expected = by_hand(theirs, x, batch_size=8, lr=0.01, optim=optim)
    assert columns(history)[-1] == pytest.approx(expected[-1], rel=1e-4)
    assert history.info["optim"] == optim.__name__


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"optim": pyro.optim.Adam({"lr": 1e-3})}, PartError, "torch.optim.Adam"),
        ({"optim": torch.optim.LBFGS}, ConfigError, "LBFGS"),
        ({"optim": functools.partial(torch.optim.AdamW, lr=3e-2)}, ConfigError, r"lr=0\.03: pass lr= to fit"),
        ({"objective": Trace_ELBO}, PartError, r"got Trace_ELBO itself: call it, Trace_ELBO\(\)"),
        ({"objective": pv.objectives.IWAE}, PartError, r"call it, IWAE\(\)"),
        ({"objective": 3}, PartError, "got int$"),
        ({"lr": "fast"}, ConfigError, "lr"),
        ({"lr": True}, ConfigError, "lr"),
        ({"lr": lambda epoch: -1.0}, ConfigError, "lr"),
        ({"beta": math.nan}, ConfigError, "beta"),
        ({"epochs": 0}, ConfigError, "epochs"),
        ({"batch_size": 2.5}, ConfigError, "batch_size"),
        ({"clip": 0.0}, ConfigError, "clip"),
        ({"clip": math.nan}, ConfigError, "clip"),
        ({"patience": 3}, ConfigError, "valid"),
        ({"device": "gpu"}, ConfigError, "gpu"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], error: type, words: str) -> None:
    vae = a_vae()
    before = weights(vae)
    with pytest.raises(error, match=words):
        run(vae, binary(), **options)
    assert same(before, weights(vae))
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize("epochs", [0.5, -1, True])
def test_a_warm_up_takes_whole_epochs(epochs: Any) -> None:
    with pytest.raises(ConfigError, match="epochs"):
        warmup(epochs)


def test_a_schedule_that_turns_nan_stops_training_before_it_does_harm() -> None:
    vae = a_vae()
    with pytest.raises(ConfigError, match="epoch 2"):
        run(vae, binary(), epochs=4, lr=lambda epoch: 1e-3 if epoch == 1 else math.nan)
    assert all(p.isfinite().all() for p in vae.parameters())


def test_a_model_without_anything_to_train_is_refused() -> None:
    vae = a_vae()
    vae.requires_grad_(False)
    with pytest.raises(ConfigError, match="parameters to train"):
        run(vae, binary())


def test_frozen_parameters_stay() -> None:
    vae = a_vae()
    vae.likelihood.requires_grad_(False)
    before = weights(vae)
    run(vae, binary(), lr=0.1)
    moved = {k.split(".")[0] for k, v in weights(vae).items() if not torch.equal(v, before[k])}
    assert moved == {"encoder"}


# Random numbers


def test_same_seed_same_numbers_bit_for_bit_and_another_seed_others() -> None:
    x, first = binary(), a_vae()
    models = [first, copy.deepcopy(first), copy.deepcopy(first)]
    histories = []
    for vae, seed in zip(models, (7, 7, 8), strict=True):
        torch.rand(3)  # Whatever the caller drew before makes no difference.
        histories.append(numbers(run(vae, x, seed=seed)))
    assert histories[0] == histories[1] != histories[2]
    assert same(weights(models[0]), weights(models[1]))
    assert not same(weights(models[0]), weights(models[2]))


@pytest.mark.parametrize("loader", [False, True])
def test_a_seed_leaves_the_callers_generator_untouched(loader: bool) -> None:
    x = binary()
    train = DataLoader(TensorDataset(x), 8, shuffle=True) if loader else x
    vae, before = a_vae(), torch.get_rng_state()
    run(vae, train, valid=train, callbacks=[lambda vae, history: vae.sample(2)])
    assert torch.equal(torch.get_rng_state(), before)


def test_no_seed_uses_the_callers_generator() -> None:
    x, first = binary(), a_vae()
    models = [first, *(copy.deepcopy(first) for _ in range(2))]
    histories = []
    for vae, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        histories.append(numbers(run(vae, x, seed=None)))
        assert not torch.equal(before, torch.get_rng_state())
    assert histories[0] == histories[1] != histories[2]


@pytest.mark.parametrize(
    "extra",
    [
        {"valid": True},
        {"valid": "loader"},
        {"callbacks": [lambda vae, history: bool(torch.rand(9).sum() < 0)]},
        {"progress": True},
        {"valid": True, "patience": 50},
    ],
    ids=" and ".join,
)
@pytest.mark.parametrize("seed", [0, None])
def test_onlookers_change_no_number_of_training(extra: dict[str, Any], seed: int | None, capsys: Any) -> None:
    x, alone = binary(), a_vae()
    watched = copy.deepcopy(alone)
    other = dict(extra)
    if other.get("valid") == "loader":
        other["valid"] = DataLoader(TensorDataset(binary()), 8, shuffle=True)
    elif other.get("valid"):
        other["valid"] = binary()
    histories = []
    for vae, options in [(alone, {"progress": False}), (watched, {"progress": False} | other)]:
        torch.manual_seed(11)
        histories.append(pv.fit(vae, x, epochs=2, batch_size=8, seed=seed, **options))
    trained = [[{k: row[k] for k in ("loss", "reconstruction", "kl")} for row in h] for h in histories]
    assert trained[0] == trained[1]
    if "patience" not in extra:
        assert same(weights(alone), weights(watched))


def test_validation_is_the_same_number_every_time_and_agrees_with_evaluate() -> None:
    x, vae = binary(), a_vae()
    valid = binary(300)
    history = run(vae, x, valid, lr=1e-12)
    assert history[0]["valid_neg_elbo"] == pytest.approx(history[1]["valid_neg_elbo"], rel=1e-6)
    exact = pv.evaluate(vae, valid, samples=2, draws=200)
    assert history[0]["valid_neg_elbo"] == pytest.approx(exact["neg_elbo"], rel=0.02)
    assert history[0]["valid_kl"] == pytest.approx(exact["kl"], rel=1e-4)


def test_validation_means_count_the_rows_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more rows at once than those of a batch, where memory has place for no more."""
    monkeypatch.setattr("ppl_vae.batches._TOGETHER", {"cpu": 1, "cuda": 1})
    x, vae = binary(), a_vae()
    whole, dropped = (
        run(copy.deepcopy(vae), x, valid, lr=1e-12)[0]["valid_kl"]
        for valid in (x[:16], DataLoader(TensorDataset(x), 8, drop_last=True))
    )
    assert whole == pytest.approx(dropped, rel=1e-4)
    # 8 + 8 + 3 rows: the last ones weigh no more than the others. The rate leaves the parameters as they were.
    partial = run(copy.deepcopy(vae), x, x[:19], lr=1e-12, batch_size=8)[0]["valid_kl"]
    assert partial == pytest.approx(pv.objectives.elbo_terms(vae, x[:19])[1].mean().item(), rel=1e-5)


def test_validation_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    vae = pv.vae((D,), 2, hidden=[8], likelihood="Gaussian")
    valid = binary()
    valid[3] = 1e30
    with pytest.raises(NonFiniteError, match="row that is not is 3"):
        run(vae, binary(), valid, checkpoint=tmp_path)


# Patience, callbacks, calling again


def test_patience_stops_at_the_right_epoch_and_returns_the_best_weights() -> None:
    x, vae, kept = binary(), a_vae(), []
    # From the fourth epoch on, training goes far astray.
    history = run(
        vae,
        x,
        valid=binary(),
        epochs=30,
        patience=3,
        lr=lambda epoch: 1e-3 if epoch < 4 else 5.0,
        callbacks=[lambda vae, history: kept.append(weights(vae))],
    )
    values = history.column("valid_neg_elbo")
    best = values.index(min(values))
    assert len(history) == best + 1 + 3 < 30
    assert same(weights(vae), kept[best])
    assert not same(weights(vae), kept[-1])


def test_patience_that_is_never_lost_returns_the_best_too() -> None:
    vae, kept = a_vae(), []
    history = run(
        vae,
        binary(),
        valid=binary(),
        epochs=5,
        patience=100,
        lr=lambda epoch: 1e-3 if epoch < 4 else 5.0,
        callbacks=[lambda vae, history: kept.append(weights(vae))],
    )
    values = history.column("valid_neg_elbo")
    assert same(weights(vae), kept[values.index(min(values))])


def test_callbacks_see_every_epoch_and_only_true_stops() -> None:
    seen: list[int] = []

    def callback(vae: pv.VAE, history: pv.History) -> Any:
        assert not vae.training
        seen.append(len(history))
        return len(history) == 3 or "not yet"

    last: list[int] = []
    history = run(a_vae(), binary(), epochs=9, callbacks=[callback, lambda vae, history: last.append(len(history))])
    assert seen == last == [1, 2, 3]
    assert len(history) == 3


def test_one_callback_needs_no_list() -> None:
    seen: list[int] = []
    run(a_vae(), binary(), callbacks=lambda vae, history: seen.append(len(history)))
    assert seen == [1, 2]


def test_an_interruption_leaves_the_last_weights_and_the_best_in_the_checkpoint(tmp_path: Path) -> None:
    kept: list[dict[str, Tensor]] = []

    def callback(vae: pv.VAE, history: pv.History) -> None:
        kept.append(weights(vae))
        if len(history) == 3:
            raise KeyboardInterrupt

    vae, x = a_vae(), binary()
    options: dict[str, Any] = {"lr": lambda epoch: 1e-3 if epoch < 3 else 5.0, "patience": 1, "valid": binary()}
    with pytest.raises(KeyboardInterrupt):
        run(vae, x, epochs=9, checkpoint=tmp_path, callbacks=callback, **options)
    assert same(weights(vae), kept[-1])
    assert not vae.training
    assert not list(pyro.get_param_store())
    history = run(vae, x, epochs=9, resume=tmp_path, **options)
    values = history.column("valid_neg_elbo")
    assert len(history) == 3
    assert same(weights(vae), kept[values.index(min(values))])


def test_a_callback_that_raises_leaves_the_store_clean() -> None:
    def callback(vae: pv.VAE, history: pv.History) -> None:
        raise KeyError("mine")

    vae = a_vae()
    with pytest.raises(KeyError, match="mine"):
        run(vae, binary(), callbacks=[callback])
    assert not list(pyro.get_param_store())
    assert not vae.training


def test_fit_again_continues_from_the_parameters() -> None:
    x, vae = binary(100), a_vae()
    first = run(vae, x, epochs=15, lr=0.01)
    second = run(vae, x, epochs=1, lr=0.01)
    assert len(second) == 1
    assert second[0]["neg_elbo"] < first[0]["neg_elbo"] - 0.1


def test_nothing_is_left_of_the_model_in_the_store_and_it_can_be_collected() -> None:
    vae = a_vae()
    pyro.param("a_users_own", torch.ones(2))
    run(vae, binary(), valid=binary())
    assert list(pyro.get_param_store()) == ["a_users_own"]
    gone = weakref.ref(vae)
    del vae
    gc.collect()
    assert gone() is None


def test_history_holds_what_it_says() -> None:
    history = run(a_vae(), binary(), valid=binary())
    assert history.column("epoch") == [1, 2]
    assert history.column("nothing") == [None, None]
    assert all(row["seconds"] > 0 and row["rate"] > 0 for row in history)
    info = history.info
    assert (info["rows"], info["batch_size"], info["seed"], info["objective"]) == (N, 8, 0, "Trace_ELBO")
    json.dumps([list(history), info], allow_nan=False)


def test_the_history_of_an_autoencoder_is_of_no_bound() -> None:
    x = binary()
    history = run(pv.ae(x.shape[1:], 2, hidden=(4,)), x)
    assert history[-1]["neg_elbo"] == history[-1]["reconstruction"]
    assert repr(history) == f"History of 2 epochs, the last: reconstruction {history[-1]['neg_elbo']:.3f} nats"
    assert "−ELBO" in repr(run(a_vae(), x))


# Whatever holds data


def test_every_holder_of_the_same_rows_gives_the_same_numbers() -> None:
    x, y, first = binary(), torch.arange(N) % 3, a_cvae()
    holders = [(x, y), [x, y], Split(x, y), TensorDataset(x, y), (x.numpy(), y.numpy()), (x.double(), y.int())]
    results = [numbers(run(copy.deepcopy(first), holder)) for holder in holders]
    assert all(result == results[0] for result in results)


def test_a_data_loader_sets_the_batches() -> None:
    x, y, vae = binary(), torch.arange(N) % 3, a_cvae()
    twin = copy.deepcopy(vae)
    history = run(vae, DataLoader(TensorDataset(x, y), 8), batch_size=3, lr=1e-12)
    assert history.info["batch_size"] == 8
    assert history[0]["loss"] == pytest.approx(run(twin, (x, y), lr=1e-12)[0]["loss"], rel=0.2)


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_shuffled_loader_is_deterministic_under_a_seed(drop_last: bool) -> None:
    x, first = binary(), a_vae()
    loader = DataLoader(TensorDataset(x), 8, shuffle=True, drop_last=drop_last)
    a, b = (run(copy.deepcopy(first), loader) for _ in range(2))
    assert numbers(a) == numbers(b)
    assert a[0]["loss"] == pytest.approx(a[0]["neg_elbo"], rel=1e-5)


def by_a_loader(vae: pv.VAE, loader: DataLoader[Any], lr: float) -> tuple[float, ...]:
    """An epoch of SGD by hand on what a loader gives, each batch scaled by the same number: (loss, −log p, KL)."""
    optimiser, sums, rows = torch.optim.SGD(vae.parameters(), lr=lr), torch.zeros(3, dtype=torch.float64), 0
    assert loader.batch_size is not None
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        for x, _, mask in loader:
            q = vae.encode(torch.where(mask, x, 0.0))
            z = q.rsample()
            kl = (q.log_prob(z) - vae.prior_given().log_prob(z)).sum()
            pixels = vae.decode(z).base_dist.log_prob(torch.where(mask, x, 0.5))
            reconstruction = -torch.where(mask, pixels, 0.0).sum()
            optimiser.zero_grad()
            ((reconstruction + kl) / min(loader.batch_size, len(loader.sampler))).backward()  # type: ignore[arg-type]
            optimiser.step()
            sums, rows = sums + torch.stack([reconstruction + kl, reconstruction, kl]).detach(), rows + len(x)
    return tuple((sums / rows).tolist())


@pytest.mark.parametrize("capture", ["off", "graph"])
@pytest.mark.parametrize("unseen", [slice(0, 8), slice(8, 16)], ids=["first", "later"])
def test_a_batch_of_a_loader_in_which_nothing_is_seen_has_its_kl(unseen: slice, capture: Any) -> None:
    # Beta has no zeros, which is what is not seen is stored as.
    x, mask, ours = torch.rand(N, D).clamp(0.1, 0.9), torch.rand(N, D) < 0.7, a_vae(likelihood="Beta")
    mask[unseen] = False
    x[~mask] = math.nan
    loader, theirs = DataLoader(TensorDataset(x, torch.zeros(N), mask), 8), copy.deepcopy(ours)
    history = run(ours, loader, loader, epochs=1, optim=torch.optim.SGD, lr=0.05, capture=capture)
    expected = by_a_loader(theirs, loader, 0.05)
    assert columns(history)[0] == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(history[0]["valid_neg_elbo"])
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_labels_are_checked_where_nothing_is_seen() -> None:
    x, mask, y = binary(), torch.ones(N, D, dtype=torch.bool), torch.arange(N) % 3
    mask[8:16] = False
    semi = pv.SemiSupervised(a_cvae(), pv.encoders.Classifier(3, (D,), hidden=[8]))
    missing = torch.where(torch.arange(N) % 2 == 0, y, -1)
    run(semi, DataLoader(TensorDataset(x, missing, mask), 8), epochs=1)
    for vae, wrong in ((a_cvae(), -1), (a_cvae(), 3), (semi, -2), (semi, 3)):
        y[12] = wrong
        with pytest.raises(LabelError, match="expected labels"):
            run(vae, DataLoader(TensorDataset(x, y, mask), 8))


@pytest.mark.parametrize(
    ("sampler", "rows", "batch_size"),
    [
        (lambda x: RandomSampler(x, replacement=True, num_samples=40), 40, 16),
        (lambda x: SubsetRandomSampler(range(5)), 5, 5),
    ],
    ids=["more", "fewer"],
)
def test_an_epoch_has_the_rows_that_a_sampler_draws(sampler: Any, rows: int, batch_size: int) -> None:
    x, ours = binary(10), a_vae()
    data = TensorDataset(x, torch.zeros(10), torch.ones(10, D, dtype=torch.bool))
    loader, theirs = DataLoader(data, 16, sampler=sampler(x)), copy.deepcopy(ours)
    history = run(ours, loader, epochs=1, optim=torch.optim.SGD, lr=0.05, capture="off")
    assert (history.info["rows"], history.info["batch_size"]) == (rows, batch_size)
    assert Batches(ours, loader, 3, torch.device("cpu")).steps == math.ceil(rows / batch_size)
    assert columns(history)[0] == pytest.approx(by_a_loader(theirs, loader, 0.05), rel=1e-5)
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_labels_of_a_loader_that_come_late_are_no_surprise() -> None:
    # The first batch holds class 0 alone; a warning here would be an error.
    y = torch.arange(N) * 3 // N
    vae = a_cvae()
    run(vae, DataLoader(TensorDataset(binary(), y), 4))
    assert vae.condition.seen.all()
    vae.sample(1, y=torch.arange(3))


def test_an_iterable_dataset_in_a_loader_trains() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(torch.ones(11, D))

    history = run(a_vae(), DataLoader(Stream(), 4), DataLoader(Stream(), 4))
    assert history[0]["loss"] == pytest.approx(history[0]["neg_elbo"], rel=1e-5)

    class Shares(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            worker = torch.utils.data.get_worker_info()
            return iter(torch.ones(11, D)[worker.id :: worker.num_workers])  # type: ignore[union-attr]

    assert len(run(a_vae(), DataLoader(Shares(), 4, num_workers=1))) == 2
    # How long a stream is nobody knows: it may be worth recording.
    assert history.info["capture"] == "graph"
    with pytest.raises(DataError, match="DataLoader"):
        run(a_vae(), Stream())


def test_labels_of_a_data_set_are_ignored_without_a_condition_but_explicit_ones_are_refused() -> None:
    x, y, first = binary(), torch.arange(N) % 3, a_vae()
    plain, split, table = (numbers(run(copy.deepcopy(first), d)) for d in (x, Split(x, y), TensorDataset(x, y)))
    assert plain == split == table
    run(copy.deepcopy(first), DataLoader(TensorDataset(x, y), 8))
    with pytest.raises(LabelError, match="no condition"):
        run(first, (x, y))


@pytest.mark.parametrize(
    "train",
    [
        "digits",
        {"x": torch.zeros(3, D)},
        torch.tensor(1.0),
        None,
        3,
        (torch.ones(3, D), None, None, 0),
        (),
        [[1.0]] * 9,
    ],
    ids=repr,
)
def test_what_holds_no_rows_is_refused(train: Any) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        run(a_vae(), train)
    assert isinstance(caught.value, pv.errors.PplVaeError)


def test_validation_labels_are_not_training_labels() -> None:
    vae = a_cvae()
    with pytest.warns(UserWarning, match="label 2 was never seen in training"):
        run(vae, (binary(), torch.arange(N) % 2), valid=(binary(), torch.full((N,), 2)))
    assert vae.condition.seen.tolist() == [True, True, False]


def test_later_training_may_show_new_labels() -> None:
    vae = a_cvae()
    run(vae, (binary(), torch.zeros(N, dtype=torch.long)))
    run(vae, (binary(), torch.ones(N, dtype=torch.long)))
    assert vae.condition.seen.tolist() == [True, True, False]


def test_dynamic_binarisation_draws_afresh_every_epoch() -> None:
    p = torch.full((200, D), 0.3)
    p[:, 0] = 1.0
    vae, seen = a_vae(), []
    vae.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    run(vae, Split(p, binarize="dynamic"), epochs=40, batch_size=200)
    epochs = torch.stack(seen[-40:])
    assert set(epochs.unique().tolist()) == {0.0, 1.0}
    assert (epochs[:, :, 0] == 1).all()
    # 40 × 200 × 5 draws: five standard errors.
    assert epochs[:, :, 1:].mean().item() == pytest.approx(0.3, abs=5 * (0.21 / 40_000) ** 0.5)
    assert not torch.equal(epochs[0].sum(0), epochs[1].sum(0))
    assert p.unique().numel() == 2  # The caller's probabilities are as they were.


def test_dynamic_binarisation_wants_probabilities() -> None:
    with pytest.raises(DataError, match="probabilities"):
        run(a_vae(), Split(torch.full((9, D), 1.2), binarize="dynamic"))


# Functions of the user's with parameters in Pyro's store


def learned_prior(c: Any) -> Any:
    loc = pyro.param("prior_loc", torch.zeros(2))
    scale = pyro.param("prior_scale", torch.ones(2), constraint=dist.constraints.positive)
    return dist.Normal(loc, scale).to_event(1)


def a_vae_with_learned_function() -> pv.VAE:
    torch.manual_seed(0)
    x_parts = a_vae()
    return pv.VAE(learned_prior, x_parts.likelihood, x_parts.encoder)


def test_params_of_users_functions_are_trained_and_survive() -> None:
    vae = a_vae_with_learned_function()
    run(vae, binary(), lr=0.1)
    store = pyro.get_param_store()
    assert sorted(store) == ["prior_loc", "prior_scale"]
    assert not torch.equal(store["prior_loc"], torch.zeros(2))
    assert not torch.equal(store["prior_scale"], torch.ones(2))


def test_patience_restores_params_of_users_functions_too() -> None:
    vae, kept = a_vae_with_learned_function(), []

    def keep(vae: pv.VAE, history: pv.History) -> None:
        kept.append(pyro.param("prior_scale").detach().clone())

    lr = [1e-3, 1e-3, 1.0, 1.0, 1.0]
    history = run(vae, binary(), valid=binary(), epochs=5, patience=9, lr=lambda epoch: lr[epoch - 1], callbacks=[keep])
    values = history.column("valid_neg_elbo")
    assert values.index(min(values)) < 4
    assert torch.equal(pyro.param("prior_scale"), kept[values.index(min(values))])


def test_resuming_takes_up_params_of_users_functions(tmp_path: Path) -> None:
    x = binary()
    whole = a_vae_with_learned_function()
    run(whole, x, epochs=4, lr=0.1)
    expected = pyro.param("prior_scale").detach().clone()
    pyro.clear_param_store()
    run(a_vae_with_learned_function(), x, epochs=2, lr=0.1, checkpoint=tmp_path)
    pyro.clear_param_store()
    run(again := a_vae_with_learned_function(), x, epochs=4, lr=0.1, resume=tmp_path)
    assert torch.equal(pyro.param("prior_scale"), expected)
    assert same(weights(whole), weights(again))


# Resuming

SCRIPT = """
import json, sys, torch
import ppl_vae as pv

def train(epochs, **options):
    torch.manual_seed(0)
    x, valid, y = (torch.rand(20, 6) < 0.4).float(), (torch.rand(9, 6) < 0.4).float(), torch.arange(20) % 3
    vae = pv.cvae((6,), 2, 3, hidden=[8])
    lr = lambda epoch: 1e-2 if epoch < 5 else 3.0
    options |= {"valid": (valid, y[:9]), "epochs": epochs, "batch_size": 8, "lr": lr, "progress": False}
    history = pv.fit(vae, (x, y), **options)
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "rate")} for row in history]
    return rows, {k: v.tolist() for k, v in vae.state_dict().items()}

if __name__ == "__main__":
    json.dump(train(30, resume=sys.argv[1], patience=3), sys.stdout)
"""


def test_resuming_is_bit_identical_in_this_and_in_a_fresh_process(tmp_path: Path) -> None:
    scope: dict[str, Any] = {"__name__": "script"}
    exec(SCRIPT, scope)
    train = scope["train"]
    whole = train(30, patience=3)
    assert len(whole[0]) < 30
    for stop in (1, 3, len(whole[0]) - 1):
        train(stop, patience=3, checkpoint=tmp_path / str(stop))
        if stop != 3:
            assert train(30, patience=3, resume=tmp_path / str(stop)) == whole
    # What patience has stopped stays stopped.
    assert train(30, patience=3, resume=tmp_path / "1") == whole
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "3")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == json.loads(json.dumps(whole))


@pytest.mark.parametrize("optim", [torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam, torch.optim.Adagrad])
def test_every_epoch_of_every_optimiser_resumes_bit_identically(optim: Any, tmp_path: Path) -> None:
    x, first = binary(), a_vae()
    whole = copy.deepcopy(first)
    history = run(whole, x, epochs=4, optim=optim, lr=0.01)
    for epochs in (1, 2, 3, 4):
        # One epoch a call: what is not in the state is lost three times.
        resumed = copy.deepcopy(first)
        state = {"checkpoint" if epochs == 1 else "resume": tmp_path}
        again = run(resumed, x, epochs=epochs, optim=optim, lr=0.01, **state)
    assert numbers(again) == numbers(history)
    assert same(weights(resumed), weights(whole))


def test_steps_are_counted_on_after_resuming(tmp_path: Path) -> None:
    x, first = binary(), a_vae()
    run(copy.deepcopy(first), x, epochs=2, checkpoint=tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 6
    with pytest.raises(NonFiniteError, match="step 8:"):
        run(copy.deepcopy(first), x, epochs=9, lr=1e30, resume=tmp_path)


def test_a_shuffled_loader_resumes_bit_identically(tmp_path: Path) -> None:
    loader, first = DataLoader(TensorDataset(binary()), 8, shuffle=True), a_vae()
    whole, resumed = copy.deepcopy(first), copy.deepcopy(first)
    history = run(whole, loader, epochs=3)
    run(copy.deepcopy(first), loader, epochs=1, checkpoint=tmp_path)
    torch.rand(5)
    assert numbers(run(resumed, loader, epochs=3, resume=tmp_path)) == numbers(history)
    assert same(weights(whole), weights(resumed))


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    x, vae = binary(), a_vae()
    first = copy.deepcopy(vae)
    history = run(vae, x, checkpoint=tmp_path)
    again = run(first, x, resume=tmp_path)
    assert list(again) == list(history)
    assert same(weights(first), weights(vae))


def test_a_training_is_not_written_over(tmp_path: Path) -> None:
    """The same line twice: refused, gone on with, or begun anew, as it says; what is refused leaves all as it was."""
    x, first = binary(), a_vae()
    run(copy.deepcopy(first), x, epochs=3, checkpoint=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options in ({"checkpoint": tmp_path}, {"checkpoint": tmp_path, "resume": False}):
        with pytest.raises(CheckpointError, match="resume=True to continue it or overwrite=True to replace it"):
            run(copy.deepcopy(first), x, epochs=5, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    # Nor is that of a run that goes on from elsewhere.
    run(copy.deepcopy(first), x, epochs=1, checkpoint=tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds the state of a training"):
        run(copy.deepcopy(first), x, epochs=2, resume=tmp_path / "other", checkpoint=tmp_path)
    assert len(run(copy.deepcopy(first), x, epochs=2, resume=tmp_path, checkpoint=tmp_path)) == 3
    assert len(run(copy.deepcopy(first), x, epochs=1, checkpoint=tmp_path, overwrite=True)) == 1
    assert len(json.loads((tmp_path / "training.json").read_text())["history"]) == 1


def test_one_line_begins_and_goes_on(tmp_path: Path) -> None:
    x, first = binary(), a_vae()
    whole, resumed = copy.deepcopy(first), copy.deepcopy(first)
    history = run(whole, x, epochs=4)
    options: dict[str, Any] = {"checkpoint": tmp_path / "run", "resume": True}
    run(copy.deepcopy(first), x, epochs=2, **options)
    assert numbers(run(resumed, x, epochs=4, **options)) == numbers(history)
    assert same(weights(whole), weights(resumed))
    with pytest.raises(ConfigError, match="resume=True: expected checkpoint="):
        run(whole, x, resume=True)


def test_a_state_may_be_written_less_often(tmp_path: Path) -> None:
    """After the first epoch, every third, and the last; the run that goes on from the third is the same."""
    x, first = binary(), a_vae()
    whole, resumed, folder = copy.deepcopy(first), copy.deepcopy(first), tmp_path / "run"
    history = run(whole, x, epochs=7)
    written: list[int] = []

    def look(vae: pv.VAE, history: pv.History) -> None:
        written.append(len(json.loads((folder / "training.json").read_text())["history"]))
        if len(history) == 5:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"epochs": 7, "checkpoint": folder, "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        run(copy.deepcopy(first), x, callbacks=look, **options)
    assert written == [1, 1, 3, 3, 3]
    assert numbers(run(resumed, x, resume=True, **options)) == numbers(history)
    assert same(weights(whole), weights(resumed))
    assert len(json.loads((folder / "training.json").read_text())["history"]) == 7
    # A training that is to be replaced is with the first epoch of the new one.
    with pytest.raises(KeyboardInterrupt):
        run(copy.deepcopy(first), x, callbacks=look, overwrite=True, **options)
    assert written[5] == 1
    stopped = run(copy.deepcopy(first), x, callbacks=lambda vae, h: len(h) == 4, overwrite=True, **options)
    assert len(stopped) == len(json.loads((folder / "training.json").read_text())["history"]) == 4
    with pytest.raises(ConfigError, match="checkpoint_every"):
        run(copy.deepcopy(first), x, checkpoint=tmp_path / "other", checkpoint_every=0)


@pytest.mark.parametrize("beta", [warmup(6, beta=8.0), 8.0])
def test_patience_waits_for_the_loss_that_training_ends_with(beta: Any, tmp_path: Path) -> None:
    """−log p + 8 KL, not −ELBO, which is best where β, on its way to 8, is about 1."""
    # Rows of mostly one and mostly zero: worth a nat or so at β = 1, and nothing at 8.
    x, vae = (torch.rand(200, D) < torch.tensor([0.1, 0.9]).repeat(100)[:, None]).float(), a_vae()
    options: dict[str, Any] = {"epochs": 30, "lr": 0.02, "beta": beta}
    history = run(copy.deepcopy(vae), x, x, **options)
    losses = [row["valid_reconstruction"] + 8 * row["valid_kl"] for row in history]
    kept: list[Any] = []
    callbacks = [lambda vae, history: kept.append(weights(vae))]
    best = run(vae, x, x, **options, patience=30, callbacks=callbacks, checkpoint=tmp_path)
    assert same(weights(vae), kept[losses.index(min(losses))])
    elbos = best.column("valid_neg_elbo")
    if callable(beta):
        assert losses.index(min(losses)) != elbos.index(min(elbos))
    # Another β to end with is another best model, which was not kept.
    state = json.loads((tmp_path / "training.json").read_text())
    assert state["best_epoch"] == losses.index(min(losses)) + 1
    with pytest.raises(ConfigError, match="for another β, and has not kept the best model"):
        run(a_vae(), x, x, epochs=31, lr=0.02, beta=lambda epoch: 1e-3, patience=30, resume=tmp_path)


@pytest.mark.parametrize(
    ("optim", "fused"),
    [
        (torch.optim.Adam, True),
        (functools.partial(torch.optim.Adam, foreach=True), None),
        (functools.partial(torch.optim.Adam, fused=False), False),
    ],
)
def test_how_an_optimiser_works_is_the_callers_choice(optim: Any, fused: bool | None) -> None:
    made: list[Any] = []

    def spy(params: Any, **options: Any) -> torch.optim.Optimizer:
        made.append(options.get("fused"))
        return optim(params, **options)

    asked = functools.partial(spy, **getattr(optim, "keywords", {}))
    asked.func.__signature__ = inspect.signature(torch.optim.Adam)  # type: ignore[attr-defined]
    x, first = binary(), a_vae()
    run(copy.deepcopy(first), x, optim=asked)
    assert made == [fused]
    # Another order of sums at most.
    columns_of = [columns(run(copy.deepcopy(first), x, optim=o)) for o in (optim, torch.optim.Adam)]
    torch.testing.assert_close(*map(torch.tensor, columns_of))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_precision_trains(dtype: torch.dtype, tmp_path: Path) -> None:
    x, vae = 2 + torch.randn(N, D), a_vae(likelihood="Gaussian").to(dtype)
    history = run(vae, x, x, epochs=20, lr=0.05, checkpoint=tmp_path)
    assert {p.dtype for p in vae.parameters()} == {dtype}
    assert history[-1]["valid_neg_elbo"] < history[0]["valid_neg_elbo"] - 1
    assert len(run(vae, x, x, epochs=21, lr=0.05, resume=tmp_path)) == 21


def test_rows_that_require_a_gradient_are_rows() -> None:
    x, first = binary(), a_vae()
    expected = numbers(run(copy.deepcopy(first), x))
    assert numbers(run(first, leaf := x.clone().requires_grad_())) == expected
    assert leaf.grad is None


def test_a_loader_that_can_be_read_once_says_so() -> None:
    class Once(IterableDataset[Tensor]):
        rows = iter(binary())

        def __iter__(self) -> Any:
            return self.rows

    with pytest.raises(DataError, match="read only once"):
        run(a_vae(), DataLoader(Once(), 8), epochs=1)

    class Anew(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            self.rows = iter(binary())
            return self

        def __next__(self) -> Tensor:
            return next(self.rows)

    assert len(run(a_vae(), DataLoader(Anew(), 8))) == 2
    Once.rows = iter(binary())
    with pytest.raises(DataError, match="read only once"):
        run(a_vae(), binary(), DataLoader(Once(), 8), epochs=1)


@pytest.mark.parametrize(("likelihood", "pixel"), [("Beta", 1 - 1e-9), ("Gaussian", 1e39)])
def test_rows_that_are_rounded_out_of_the_support_are_refused(likelihood: str, pixel: float) -> None:
    x = torch.full((8, D), pixel, dtype=torch.float64)
    with pytest.raises(DataError, match=r"cast to the model's torch.float32.*vae.to\(torch.float64\)"):
        run(a_vae(likelihood=likelihood), x)
    a_vae(likelihood=likelihood).double().check(x)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"batch_size": 5}, "batch_size: 8 then, 5 now"),
        ({"optim": torch.optim.SGD}, "optim: 'Adam' then, 'SGD' now"),
        ({"clip": 1.0}, "clip"),
        ({"objective": Analytic()}, "objective"),
    ],
)
def test_resuming_another_run_is_refused(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    x, vae = binary(), a_vae()
    run(vae, x, checkpoint=tmp_path)
    before, files = weights(vae), {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=named):
        run(vae, x, epochs=3, resume=tmp_path, **options)
    assert same(before, weights(vae))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_a_device_has_several_names(tmp_path: Path) -> None:
    x, vae = binary(), a_vae()
    run(vae, x, checkpoint=tmp_path, device="cpu")
    assert len(run(vae, x, epochs=3, resume=tmp_path, device="cpu:0")) == 3


def test_a_run_is_not_lost_with_the_machine_it_began_on(tmp_path: Path) -> None:
    """It goes on with the same weights, moments, shuffles and history; here with the same numbers, all of one CPU."""
    x, options = binary(), {"valid": binary(), "patience": 9, "device": "cpu"}
    vae = a_vae()
    whole = run(copy.deepcopy(vae), x, epochs=4, **options)
    run(vae, x, epochs=2, checkpoint=tmp_path, **options)
    state = json.loads((tmp_path / "training.json").read_text())
    state["settings"]["device"] = "cuda"
    (tmp_path / "training.json").write_text(json.dumps(state))
    with pytest.warns(UserWarning, match="this training was on cuda, and goes on on cpu: the same model, data"):
        history = run(vae, x, epochs=4, checkpoint=tmp_path, resume=True, **options)
    assert [row["loss"] for row in history] == [row["loss"] for row in whole]
    # From now on it is one of this machine, and what it was before is told.
    assert json.loads((tmp_path / "training.json").read_text())["settings"]["device"] == "cpu"
    history = run(vae, x, epochs=5, checkpoint=tmp_path, resume=True, **options)
    assert (len(history), history.info["moves"]) == (5, [[2, "cuda"]])
    assert "moves" not in whole.info


def test_two_trainings_do_not_write_to_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first is at it, and leaves no trace; then it may."""
    x, said = binary(), []

    def meanwhile(vae: pv.VAE, history: pv.History) -> None:
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(CheckpointError, match="another training writes to it"):
                run(a_vae(), x, checkpoint=tmp_path, **options)
            said.append(sorted(path.name for path in tmp_path.iterdir()))

    run(a_vae(), x, epochs=2, checkpoint=tmp_path, callbacks=meanwhile)
    assert said
    assert len(run(a_vae(), x, epochs=3, checkpoint=tmp_path, resume=True)) == 3
    # Where nothing was trained no folder is left.
    broken = a_vae()
    next(broken.parameters()).data.fill_(math.inf)
    with pytest.raises(ValueError, match="invalid values"):
        run(broken, x, checkpoint=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_resuming_on_other_data_or_another_model_is_refused(tmp_path: Path) -> None:
    x, y = binary(), torch.arange(N) % 3
    run(a_cvae(), (x, y), checkpoint=tmp_path)
    other = x.clone()
    other[7, 2] = 1 - other[7, 2]
    for train in [(other, y), (x, (y + 1) % 3)]:
        with pytest.raises(CheckpointError, match="data: "):
            run(a_cvae(), train, resume=tmp_path)
    with pytest.raises(CheckpointError, match="rows: 20 then, 19 now"):
        run(a_cvae(), (x[:19], y[:19]), resume=tmp_path)
    with pytest.raises(CheckpointError, match=r"model.prior.features: 2 then, 3 now"):
        run(pv.cvae((D,), 3, 3, hidden=[8]), (x, y), resume=tmp_path)


def test_settings_that_no_weight_shows_belong_to_the_run(tmp_path: Path) -> None:
    x = torch.randn(N, D)

    def a_gaussian(sigma: float, beta: float = 1.0) -> pv.VAE:
        return a_vae(likelihood={"name": "Gaussian", "sigma": sigma}, beta=beta)

    run(a_gaussian(1.0), x, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"another model.likelihood.sigma: 1.0 then, 0.5 now$"):
        run(a_gaussian(0.5), x, epochs=3, resume=tmp_path)
    with pytest.raises(CheckpointError, match=r"another beta: 1.0 then, 2.0 now$"):
        run(a_gaussian(1.0, beta=2.0), x, epochs=3, resume=tmp_path)
    # A schedule takes the place of the model's own, which is then of no account.
    assert run(a_gaussian(1.0, beta=2.0), x, epochs=3, beta=1.0, resume=tmp_path)[-1]["beta"] == 1.0


def test_a_model_without_names_is_known_by_its_shapes(tmp_path: Path) -> None:
    def a_model(width: int) -> pv.VAE:
        prior = pv.priors.Standard(2)
        encoder = pv.encoders.Gaussian(2, (D,), hidden=(width,))
        return pv.VAE(lambda c: prior(c), pv.likelihoods.Bernoulli((D,), 2), encoder)

    run(a_model(8), x := binary(), checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"expected float32 \(9, 6\), got float32 \(8, 6\)"):
        run(a_model(9), x, resume=tmp_path)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_beta_that_goes_through_zero_resumes_bit_identically(stop: int, tmp_path: Path) -> None:
    """Where β is zero the program is another, of which a run that was not interrupted has a graph already."""
    x, first = binary(), a_vae(likelihood="Gaussian")
    options: dict[str, Any] = {"beta": lambda epoch: epoch % 2, "lr": 0.01, "capture": "graph"}
    whole, resumed = copy.deepcopy(first), copy.deepcopy(first)
    history = run(whole, x, epochs=4, **options)
    run(copy.deepcopy(first), x, epochs=stop, checkpoint=tmp_path, **options)
    assert numbers(run(resumed, x, epochs=4, resume=tmp_path, **options)) == numbers(history)
    assert same(weights(whole), weights(resumed))


def test_patience_that_comes_after_the_best_is_refused(tmp_path: Path) -> None:
    x, vae = binary(), a_vae()
    run(vae, x, x, lr=0.01, patience=5, checkpoint=tmp_path)
    run(vae, x, x, epochs=9, lr=0.01, resume=tmp_path)
    before = weights(vae)
    # The best that is kept is of the second epoch, which is no longer the best.
    with pytest.raises(ConfigError, match="has not kept the best model"):
        run(vae, x, x, epochs=10, patience=1, resume=tmp_path)
    assert same(weights(vae), before)


def test_a_state_that_tells_less_is_resumed(tmp_path: Path) -> None:
    """Written when there were fewer settings to tell; or with a schedule, which β then goes on without."""
    x, vae = binary(), a_vae()
    run(vae, x, beta=warmup(2, beta=4.0), checkpoint=tmp_path)
    for again in (vae, a_vae()):
        history = run(again, x, epochs=3, resume=tmp_path, checkpoint=tmp_path / "on", overwrite=True)
        assert history.column("beta") == [2.0, 4.0, 4.0]
        assert history.info["beta"] == again.beta == 4.0
    path = tmp_path / "training.json"
    record = json.loads(path.read_text())
    del record["settings"]["model"]
    path.write_text(json.dumps(record))
    assert len(run(vae, x, epochs=4, resume=tmp_path)) == 4


def test_without_a_beta_the_best_is_chosen_by_the_one_that_goes_on(tmp_path: Path) -> None:
    x, y = binary(), binary()
    run(a_vae(), x, y, epochs=2, lr=0.03, beta=6.0, patience=30, checkpoint=tmp_path)
    history = run(a_vae(), x, y, epochs=30, lr=0.03, patience=30, resume=tmp_path)
    assert set(history.column("beta")) == {6.0}
    best = json.loads((tmp_path / "training.json").read_text())["best_epoch"]
    assert best == history.best_epoch(6.0) != history.best_epoch(1.0)


def test_whatever_a_model_is_made_of_can_be_written(tmp_path: Path) -> None:
    def a_model(least: float) -> pv.VAE:
        return a_vae(likelihood={"name": "Gaussian", "sigma": "output", "clamp": (least, 14.0)})

    x = torch.randn(1, N).T.expand(N, D)
    run(a_model(-math.inf), x, clip=torch.tensor(5.0).numpy(), checkpoint=tmp_path)
    run(a_model(-math.inf), x, epochs=3, clip=5.0, resume=tmp_path)
    with pytest.raises(
        CheckpointError, match=r"model.likelihood.clamp: \['-Infinity', 14.0\] then, \[-7.0, 14.0\] now"
    ):
        run(a_model(-7.0), x, epochs=3, clip=5.0, resume=tmp_path)


def test_a_column_of_any_strides_is_rows() -> None:
    x, y = torch.rand(1, N).T, torch.rand(1, N).T
    assert x.is_contiguous()
    assert x.stride(-1) != 1
    vae = pv.vae((1,), 2, hidden=[4], likelihood="Gaussian", condition={"name": "Continuous", "features": 1})
    run(vae, (x, y))


def test_what_was_fitted_can_be_pickled_and_fitted_again(tmp_path: Path) -> None:
    x, vae = binary(), a_vae(encoder="LowRankGaussian")
    run(vae, x)
    torch.save(vae, tmp_path / "vae.pt")
    copies = pickle.loads(pickle.dumps(vae)), torch.load(tmp_path / "vae.pt", weights_only=False), copy.deepcopy(vae)
    for other in copies:
        assert same(weights(other), weights(vae))
    expected = numbers(run(vae, x))
    for other in copies:
        assert numbers(run(other, x)) == expected
        assert same(weights(other), weights(vae))
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)


def test_a_run_goes_on_with_the_rows_it_was_validated_on(tmp_path: Path) -> None:
    """Their epochs stand in one history, and the best is chosen among them; of old none is known."""
    x, vae = torch.randn(20, D), pv.vae((D,), 2, likelihood="Gaussian", hidden=[8])
    options = {"checkpoint": tmp_path, "resume": True, "progress": False}
    pv.fit(vae, x, valid=x[:9], epochs=1, **options)
    with pytest.raises(CheckpointError, match="expected to resume the same run, got another valid: '"):
        pv.fit(vae, x, valid=x[9:], epochs=2, **options)
    assert len(pv.fit(vae, x, valid=x[:9].clone(), epochs=2, **options)) == 2
    state = json.loads((tmp_path / "training.json").read_text())
    del state["settings"]["valid"]
    (tmp_path / "training.json").write_text(json.dumps(state))
    assert len(pv.fit(vae, x, valid=x[9:], epochs=3, **options)) == 3


def test_what_a_killed_training_left_half_written_goes(tmp_path: Path) -> None:
    """With the next one in its folder, which is alone there; what others may be writing stays."""
    digest = "0123456789abcdef"
    gone = [f".training-{digest}.safetensors.123.tmp", ".training.json.123.tmp"]
    kept = [f".model-{digest}.safetensors.123.tmp", ".config.yaml.123.tmp", ".training-notes.tmp"]
    for name in gone + kept:
        (tmp_path / name).write_bytes(b"half")
    vae = pv.vae((D,), 2, likelihood="Gaussian", hidden=[8])
    pv.fit(vae, torch.randn(20, D), epochs=1, checkpoint=tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.glob(".*")) == sorted(kept)


def test_rows_that_are_scaled_or_shaped_otherwise_are_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(24.0).reshape(4, D) * 8
    x[0, 0] = 255
    vae = pv.vae((D,), 2, likelihood="Gaussian", hidden=[8])
    anything = pv.VAE(vae.prior, lambda z, c: None, vae.encoder)
    monkeypatch.setattr(anything, "check", lambda x, y=None: None)
    rows = [x, x / 255, x.reshape(2, 2 * D), x.reshape(4, 2, D // 2)]
    digests = [Batches(anything, some, 4, torch.device("cpu")).digest() for some in rows]
    assert len(set(digests)) == 4
    assert Batches(anything, x.clone(), 2, torch.device("cpu")).digest() == digests[0]


def with_pseudo_inputs(components: int) -> pv.VAE:
    base = pv.vae((4,), 2, likelihood="Gaussian", hidden=[8])
    return pv.VAE(pv.priors.Vamp(base.encoder, components), base.likelihood, base.encoder)


@pytest.mark.parametrize("shuffle", [False, True])
def test_pseudo_inputs_start_from_as_many_batches_as_they_need(shuffle: bool) -> None:
    x = torch.arange(20.0).unsqueeze(-1).expand(20, 4) / 32
    vae = with_pseudo_inputs(11)
    batches = Batches(vae, DataLoader(TensorDataset(x), 4, shuffle=shuffle), 4, torch.device("cpu"))
    batches.start()
    rows = (32 * vae.prior.pseudo_inputs[:, 0]).tolist()
    assert len(set(rows)) == 11
    assert set(rows) <= set(range(20 if shuffle else 12))
    assert sum(len(row[0]) for row in batches.in_order()) == 20
    run(with_pseudo_inputs(20), DataLoader(TensorDataset(x), 4, shuffle=shuffle))
    with pytest.raises(ConfigError, match="20 rows for 21"):
        Batches(with_pseudo_inputs(21), DataLoader(TensorDataset(x), 4), 4, torch.device("cpu")).start()


@pytest.mark.parametrize("loader", [False, True])
def test_pseudo_inputs_start_from_means_where_nothing_is_seen(loader: bool) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 9.0], [5.0, math.nan, 7.0, 9.0], [math.nan, 6.0, 8.0, 9.0]])
    mask = ~x.isnan() & torch.tensor([True, True, True, False])
    expected = torch.where(mask, x, torch.tensor([3.0, 4.0, 0.0, 32 / 7]))
    train = DataLoader(TensorDataset(x, torch.zeros(3), mask), 2) if loader else (x, None, mask)
    vae = with_pseudo_inputs(3)
    Batches(vae, train, 3, torch.device("cpu")).start()
    got = vae.prior.pseudo_inputs.detach()
    torch.testing.assert_close(got[got[:, 2].argsort()], expected)


def test_pseudo_inputs_start_from_the_first_rows_of_which_something_is_seen() -> None:
    x, mask = torch.full((12, 4), 7.0), torch.zeros(12, 4, dtype=torch.bool)
    with pytest.raises(DataError, match="at least one pixel that is seen"):
        Batches(with_pseudo_inputs(3), DataLoader(TensorDataset(x, x, mask), 4), 4, torch.device("cpu")).start()
    mask[6] = True
    vae = with_pseudo_inputs(3)
    Batches(vae, DataLoader(TensorDataset(x, x, mask), 4), 4, torch.device("cpu")).start()
    assert (vae.prior.pseudo_inputs == 7).all()


@pytest.mark.parametrize("key", ["history", "steps", "optimizer", "best_epoch", "settings", "weights"])
def test_a_state_with_a_part_missing_is_refused(key: str, tmp_path: Path) -> None:
    x, vae = binary(), a_vae()
    run(vae, x, checkpoint=tmp_path)
    path = tmp_path / "training.json"
    state = json.loads(path.read_text())
    del state[key]
    path.write_text(json.dumps(state))
    before = weights(vae)
    with pytest.raises(CheckpointError):
        run(vae, x, epochs=3, resume=tmp_path)
    assert same(before, weights(vae))


def test_a_damaged_or_missing_state_is_refused(tmp_path: Path) -> None:
    x, vae = binary(), a_vae()
    with pytest.raises(CheckpointError, match="expected a saved training"):
        run(vae, x, resume=tmp_path)
    run(vae, x, checkpoint=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        run(vae, x, epochs=3, resume=tmp_path)


# The guard


class Misbehaving(nn.Module):
    """A Gaussian likelihood that fails in the given call while it trains."""

    def __init__(self, how: str, at: int) -> None:
        super().__init__()
        self.loc, self.how, self.at, self.calls = nn.Linear(2, D), how, at, 0

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        loc, scale = self.loc(z), torch.ones(())
        # The first call prepares, the guard's own look at a failed step repeats the last.
        failing = self.training and self.calls in (self.at, self.at + 1)
        self.calls += self.training
        if failing:
            bad = torch.zeros_like(loc)
            if self.how == "nan":
                loc = loc + math.nan
            elif self.how == "one nan":
                bad[-1, -1] = math.nan
                loc = loc + bad
            elif self.how == "inf":
                loc = loc + math.inf
            elif self.how == "zero scale":
                scale = scale * 0
            else:
                # A finite value with a gradient that is not: the square root at zero.
                loc = loc + (loc * 0).abs().sqrt()
        return dist.Normal(loc, scale).to_event(1)


@pytest.mark.parametrize("how", ["nan", "one nan", "inf", "zero scale", "gradient"])
@pytest.mark.parametrize("step", [1, 3])
def test_fault_17_a_step_that_is_not_finite_changes_nothing(how: str, step: int) -> None:
    x = torch.randn(400, D)
    vae = pv.VAE(pv.priors.Standard(2), Misbehaving(how, step), pv.encoders.Gaussian(2, (D,), hidden=(8,)))
    kept: list[Any] = []
    original = CapturedSVI.step

    def moments(svi: CapturedSVI) -> dict[int, dict[str, Tensor]]:
        return copy.deepcopy(svi.optim.optimizer.state_dict()["state"])

    def spy(self: CapturedSVI, *args: Any, **kwargs: Any) -> float:
        kept.append((weights(vae), moments(self), self))
        return original(self, *args, **kwargs)

    site = "the gradient of" if how == "gradient" else "site 'x' of the model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CapturedSVI, "step", spy)
        with pytest.raises(NonFiniteError, match=f"step {step}: .*{site}"):
            run(vae, x, epochs=1, batch_size=100, lr=0.01)
    assert len(kept) == step
    weights_before, moments_before, svi = kept[-1]
    assert same(weights_before, weights(vae))
    assert moments(svi).keys() == moments_before.keys()
    assert all(same(state, moments_before[i]) for i, state in moments(svi).items())
    assert not list(pyro.get_param_store())
    assert all(p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("optim", [torch.optim.SGD, torch.optim.Adam])
def test_fault_17_an_absurd_learning_rate_is_caught_at_the_next_step(optim: Any) -> None:
    vae, x = a_vae(), binary()
    with pytest.raises(NonFiniteError, match=r"step 2: .*site 'z' of the guide"):
        run(vae, x, lr=1e30, optim=optim)


def test_an_error_of_the_users_own_is_not_taken_for_a_number() -> None:
    class Broken(nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Linear(2, D)

        def forward(self, z: Tensor, c: Any = None) -> Any:
            self.calls += 1
            if self.calls > 3:
                raise ValueError("no finance today: nan")
            return dist.Normal(self.loc(z), 1.0).to_event(1)

    vae = pv.VAE(pv.priors.Standard(2), Broken(), pv.encoders.Gaussian(2, (D,)))
    with pytest.raises(ValueError, match="no finance today") as caught:
        run(vae, torch.randn(30, D))
    assert not isinstance(caught.value, pv.errors.PplVaeError)


def test_a_value_outside_the_support_is_named_as_such() -> None:
    vae = pv.VAE(
        pv.priors.Standard(2),
        lambda z, c: dist.Poisson(z.exp().sum(-1, keepdim=True).expand(-1, D)).to_event(1),
        pv.encoders.Gaussian(2, (D,)),
    )
    with pytest.raises(ValueError, match="support"):
        run(vae, torch.full((9, D), 0.5))


class Rows(Dataset):
    """A data set of one's own, one row a call."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return torch.full((D,), float(i % 2)).numpy(), i % 3


def test_a_dataset_of_ones_own_trains_both_ways() -> None:
    for train in (Rows(), DataLoader(Rows(), 3, shuffle=True)):
        assert len(run(a_cvae(), train)) == 2
        assert len(run(a_vae(), train)) == 2


@pytest.mark.parametrize(
    ("x", "divisor"),
    [
        (torch.arange(12.0).reshape(3, 4) % 2, 1),
        (torch.arange(12.0).reshape(3, 4), 1),
        (torch.arange(256.0).reshape(64, 4) / 255, 255),
        (torch.arange(12.0).reshape(3, 4) / 16, None),
        (torch.arange(12.0).reshape(3, 4) - 1, None),
        (torch.arange(12.0).reshape(3, 4) * 100, None),
    ],
    ids=["binary", "counts", "grey levels", "other fractions", "negative", "large"],
)
def test_rows_are_bytes_where_that_changes_no_bit(x: torch.Tensor, divisor: int | None, device: torch.device) -> None:
    """What a CPU divides is the measure on any device; a GPU's own quotients differ in the last bit."""
    vae, x = pv.vae((4,), 2, likelihood="Gaussian").to(device), x.to(device)
    batches = Batches(vae, x, 2, device)
    assert batches.divisor == divisor
    assert batches.x.dtype == (torch.float32 if divisor is None else torch.uint8)
    index = torch.tensor([2, 0], device=device)
    (drawn, _), _ = batches.draw(index)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, x[index])
    assert torch.equal(torch.cat([rows for rows, _ in batches.in_order()]), x)


def test_bytes_and_floats_train_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randint(256, (40, 4), generator=torch.Generator().manual_seed(0)) / 255
    losses = []
    for compact in (True, False):
        if not compact:
            monkeypatch.setattr("ppl_vae.batches._compact", lambda x: (x, None))
        torch.manual_seed(0)
        vae = pv.vae((4,), 2, likelihood="Gaussian")
        history = pv.fit(vae, x, epochs=3, batch_size=16, capture="graph", progress=False)
        losses.append(history.column("loss"))
    assert losses[0] == losses[1]


# What trains, and to nothing


def only_warning(vae: pv.VAE, train: Any) -> str:
    with pytest.warns(UserWarning, match="x reaches") as caught:
        run(vae, train, valid=train)
    assert [warning.filename for warning in caught] == [__file__]
    return str(caught[0].message)


FAR = 50 + 25 * torch.linspace(-1.7, 3.0, N * D).reshape(N, D)
COUNTS = torch.arange(N * D).reshape(N, D)


@pytest.mark.parametrize(
    ("likelihood", "x", "reach"),
    [("Gaussian", FAR, "125"), ("NegativeBinomial", COUNTS, "119")],
    ids=["real", "counts"],
)
def test_rows_far_from_the_encoders_range_are_a_warning(likelihood: str, x: Tensor, reach: str) -> None:
    expected = f"x reaches {reach} in units of the encoder's range: build the model with range=data.range"
    vae = a_vae(likelihood=likelihood)
    assert only_warning(vae, x) == expected
    assert only_warning(vae, DataLoader(TensorDataset(x), N)) == expected
    within = pv.VAE(vae.prior, vae.likelihood, pv.Unconditional(vae.encoder))
    assert only_warning(within, x) == expected
    # None is a warning: the range that was asked for, rows that are standardised, one pixel that lies far out, or an
    # encoder of the user's own, which may standardise by itself.
    run(a_vae(likelihood=likelihood, range=(0.0, 125.0)), x)
    run(pv.VAE(vae.prior, vae.likelihood, lambda x, c: vae.encoder(x / 125, c)), x)
    run(a_vae(likelihood="Gaussian"), 3 * torch.randn(N, D).clamp(-3, 3))


@pytest.mark.parametrize("loader", [False, True])
def test_the_range_is_asked_of_what_is_seen(loader: bool) -> None:
    mask = torch.arange(N)[:, None] % 2 == torch.arange(D) % 2

    def warned(x: Tensor, low: float, high: float) -> list[str]:
        vae = a_vae(likelihood="Gaussian", range=(low, high))
        train = DataLoader(TensorDataset(x, x, mask), N) if loader else (x, None, mask)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(vae, train, epochs=1)
        return [str(warning.message) for warning in caught]

    x = torch.linspace(998, 1002, N * D).reshape(N, D)
    zero = "unseen pixels are given to the encoder as 0, 250 units from its range: standardise x"
    assert warned(x, 998, 1002) == [zero]
    assert warned(x - 1000, -2, 2) == []
    # Half of them are zeros that nobody has seen, and the others are six units away.
    (far,) = warned(torch.full((N, D), 6.0), 0, 1)
    assert far == "x reaches 6 in units of the encoder's range: build the model with range=data.range"
    (both,) = warned(x + 1000, 998, 1002)
    assert both.startswith("x reaches")
    assert both.endswith(zero)


def test_levels_that_no_row_comes_near_are_a_warning() -> None:
    x = COUNTS % 17
    message = only_warning(a_vae(likelihood="Binomial", range=(0, 16)), x)
    assert message.startswith("x reaches 16 of the likelihood's 255: build the model with levels=17")
    assert "range=data.range; x reaches 16 of" in only_warning(a_vae(likelihood="Binomial"), x)
    run(a_vae(likelihood="Binomial", levels=17, range=(0, 16)), x)
    run(a_vae(likelihood="Binomial", levels=61, range=(0, 16)), x)
    run(a_vae(), torch.zeros(N, D))


# y that stands elsewhere, or in another shape


def test_y_does_not_pass_for_validation_data() -> None:
    with pytest.raises(TypeError, match="2 positional arguments"):
        pv.fit(a_vae(), binary(), binary())  # type: ignore[misc]
    with pytest.raises(LabelError, match=r"fit\(vae, \(x, y\)\)"):
        run(a_cvae(), binary())


def test_a_whole_data_set_is_told_its_split() -> None:
    with pytest.raises(DataError, match=r"data\.train.*got Data"):
        run(a_vae(), pv.data.from_tensors(binary()))


def test_a_y_without_its_dimension_is_refused_as_it_came() -> None:
    vae = a_vae(condition={"name": "Continuous", "features": 1})
    with pytest.raises(ShapeError, match=rf"y: expected \(N, 1\), got \({N},\): pass y\[:, None\]"):
        run(vae, (binary(), torch.rand(N)))
    # One y for all rows is as it was.
    run(vae, (binary(), torch.rand(1)))


def test_what_pyro_guesses_of_plates_is_no_setting(tmp_path: Path) -> None:
    """One objective for a run and for its continuation, into which Pyro has written in between."""
    objective, x = Trace_ELBO(num_particles=2, vectorize_particles=True), torch.rand(16, 4).round()
    torch.manual_seed(0)
    vae = pv.vae((4,), 2, hidden=(4,))
    assert objective.max_plate_nesting == math.inf
    pv.fit(vae, x, epochs=1, objective=objective, checkpoint=tmp_path, progress=False)
    assert objective.max_plate_nesting < math.inf
    assert len(pv.fit(vae, x, epochs=2, objective=objective, resume=tmp_path, progress=False)) == 2


def test_a_capacity_that_rises_is_trained_and_resumed(tmp_path: Path) -> None:
    x, seen = binary(), []

    class Looked(pv.objectives.Capacity):
        def begin_epoch(self, epoch: int) -> None:
            super().begin_epoch(epoch)
            seen.append((epoch, self.constrain(torch.tensor([0.0])).item()))

    objective = Looked(8.0, gamma=1.0, epochs=4)
    run(a_vae(), x, objective=objective)
    # Once more before there is an epoch, for the steps that are met.
    assert seen == [(1, 2.0), (1, 2.0), (2, 4.0)]
    one, other = (pv.objectives.Capacity(8.0, epochs=4) for _ in range(2))
    torch.manual_seed(0)
    vae = a_vae()
    twin = copy.deepcopy(vae)
    whole = run(twin, x, epochs=4, objective=one)
    run(vae, x, objective=other, checkpoint=tmp_path)
    # The same object, and one that has begun no epoch.
    resumed = run(copy.deepcopy(vae), x, epochs=4, objective=other, resume=tmp_path)
    again = run(vae, x, epochs=4, objective=pv.objectives.Capacity(8.0, epochs=4), resume=tmp_path)
    for history in (resumed, again):
        assert history.column("neg_elbo") == whole.column("neg_elbo")


@pytest.mark.parametrize("fused", [True, False])
def test_a_run_of_other_parameters_is_not_resumed(fused: bool, tmp_path: Path) -> None:
    """Moments would go to parameters that are not theirs."""
    x, vae = binary(), a_vae()
    optim = functools.partial(torch.optim.Adam, fused=fused)
    run(vae, x, checkpoint=tmp_path, optim=optim)
    vae.likelihood.requires_grad_(False)
    before = weights(vae)
    with pytest.raises(CheckpointError, match=r"the same parameters .* then alone: likelihood\.network\.body"):
        run(vae, x, epochs=3, resume=tmp_path, optim=optim)
    assert same(weights(vae), before)
    vae.likelihood.requires_grad_(True)
    run(vae, x, epochs=3, resume=tmp_path, optim=optim)


class Adapting(torch.optim.SGD):
    """Its rate falls with a number that it keeps in its groups, as optimisers do that set their own rate."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["taken"] = group.get("taken", 0) + 1
            group["damping"] = group.get("damping", 1.0) * 0.9
            for parameter in group["params"]:
                parameter.grad.mul_(group["damping"])
        return super().step(closure)


def test_what_an_optimiser_keeps_beside_its_parameters_is_resumed(tmp_path: Path) -> None:
    x, vae = binary(), a_vae()
    other = copy.deepcopy(vae)
    whole = run(vae, x, epochs=4, optim=Adapting, lr=0.1)
    run(other, x, epochs=2, optim=Adapting, lr=0.1, checkpoint=tmp_path)
    (group,) = json.loads((tmp_path / "training.json").read_text())["groups"]
    steps = 2 * math.ceil(N / 8)
    assert group["numbers"] == {"taken": steps, "damping": pytest.approx(0.9**steps)}
    assert numbers(run(other, x, epochs=4, optim=Adapting, lr=0.1, resume=tmp_path)) == numbers(whole)
    assert same(weights(other), weights(vae))


class Unbounded(torch.optim.SGD):
    """It remembers the least of something, of which there is nothing yet."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["least"] = math.inf
        return super().step(closure)


def test_an_infinity_that_an_optimiser_keeps_is_resumed(tmp_path: Path) -> None:
    x, vae = binary(), a_vae()
    run(vae, x, optim=Unbounded, checkpoint=tmp_path)
    (group,) = json.loads((tmp_path / "training.json").read_text())["groups"]
    assert group["numbers"] == {"least": "inf"}
    seen, step = [], Unbounded.step

    def spy(self: Any, closure: Any = None) -> Any:
        seen.append(self.param_groups[0].get("least"))
        return step(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unbounded, "step", spy)
        run(vae, x, optim=Unbounded, epochs=3, resume=tmp_path)
    assert seen[0] == math.inf


@pytest.mark.parametrize("optim", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_layer_that_a_callback_exchanges_is_trained_resumed_and_the_old_one_forgotten(
    optim: Any, stop: int, tmp_path: Path
) -> None:
    def exchange(vae: pv.VAE, history: pv.History) -> None:
        if len(history) == 1:
            torch.manual_seed(1)
            vae.likelihood.network.body.register_module("0", nn.Linear(2, 8))

    x = binary()
    first, begun, second = (copy.deepcopy(vae) for vae in [a_vae()] * 3)
    options: dict[str, Any] = {"optim": optim, "callbacks": exchange}
    whole = run(first, x, x, epochs=4, patience=9, lr=0.01, **options)
    run(begun, x, x, epochs=stop, patience=9, lr=0.01, **options, checkpoint=tmp_path)
    groups = json.loads((tmp_path / "training.json").read_text())["groups"]
    if stop == 2:
        assert sorted(name for group in groups for name in group["names"]) == sorted(dict(first.named_parameters()))
    resumed = run(second, x, x, epochs=4, patience=9, lr=0.01, **options, resume=tmp_path)
    assert numbers(resumed) == numbers(whole)
    assert same(weights(second), weights(first))
    assert list(pyro.get_param_store()) == []


def test_the_beta_that_a_callback_sets_goes_on(tmp_path: Path) -> None:
    x, vae = binary(), a_vae()

    def fall(vae: pv.VAE, history: pv.History) -> None:
        vae.beta = 2.0 ** -len(history)

    options: dict[str, Any] = {"valid": x, "patience": 9, "callbacks": fall}
    whole = run(first := copy.deepcopy(vae), x, epochs=4, **options)
    assert whole.column("beta") == [1, 1 / 2, 1 / 4, 1 / 8]
    run(begun := copy.deepcopy(vae), x, checkpoint=tmp_path, **options)
    # In another process, where the model is as it was built, and in this one.
    for again in (vae, begun):
        history = run(again, x, epochs=4, resume=tmp_path, checkpoint=tmp_path / "on", overwrite=True, **options)
        assert numbers(history) == numbers(whole)
        assert history.info["beta"] == whole.info["beta"] == 1.0
        assert same(weights(again), weights(first))
        assert again.beta == 1 / 16
    vae.beta = 0.75
    with pytest.raises(CheckpointError, match=r"beta: 1\.0 then, 0\.75 now"):
        run(vae, x, epochs=4, resume=tmp_path, **options)


@pytest.mark.parametrize("frozen", [True, False], ids=["thaws", "freezes"])
def test_what_a_callback_thaws_or_freezes_at_the_end_is_not_forgotten(frozen: bool, tmp_path: Path) -> None:
    def turn(vae: pv.VAE, history: pv.History) -> None:
        if len(history) == 2:
            vae.likelihood.requires_grad_(frozen)

    x, vae = binary(), a_vae()
    vae.likelihood.requires_grad_(not frozen)
    whole = run(first := copy.deepcopy(vae), x, epochs=4, callbacks=turn)
    run(begun := copy.deepcopy(vae), x, callbacks=turn, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=r"same parameters.*likelihood.*requires_grad"):
        run(copy.deepcopy(vae), x, epochs=4, callbacks=turn, resume=tmp_path)
    # What was thawed has no moments yet, and what was frozen needs them no more.
    assert numbers(run(begun, x, epochs=4, callbacks=turn, resume=tmp_path)) == numbers(whole)
    assert same(weights(begun), weights(first))


@pytest.mark.parametrize("stop", range(1, 6))
def test_parts_that_callbacks_train_by_turns_are_resumed(stop: int, tmp_path: Path) -> None:
    def turn(vae: pv.VAE, history: pv.History) -> None:
        vae.likelihood.requires_grad_(len(history) % 2 == 0)
        vae.encoder.requires_grad_(len(history) % 2 == 1)

    x, vae = binary(), a_vae()
    first, begun, second = (copy.deepcopy(vae) for _ in range(3))
    whole = run(first, x, epochs=6, lr=0.01, callbacks=turn)
    run(begun, x, epochs=stop, callbacks=turn, lr=0.01, checkpoint=tmp_path)
    turn(second, whole[:stop])
    assert numbers(run(second, x, epochs=6, lr=0.01, callbacks=turn, resume=tmp_path)) == numbers(whole)
    assert same(weights(second), weights(first))


def test_a_callback_that_is_interrupted_leaves_nothing_in_the_state(tmp_path: Path) -> None:
    def measure(vae: pv.VAE, history: pv.History) -> None:
        if len(history) == 2:
            vae.beta = 0.25
            with torch.no_grad():
                next(vae.parameters()).zero_()
            raise KeyboardInterrupt

    x, vae = binary(), a_vae()
    whole = run(first := copy.deepcopy(vae), x, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        run(copy.deepcopy(vae), x, epochs=4, callbacks=measure, checkpoint=tmp_path)
    assert numbers(run(vae, x, epochs=4, resume=tmp_path)) == numbers(whole)
    assert same(weights(vae), weights(first))


def test_callbacks_that_were_interrupted_are_called_anew(tmp_path: Path) -> None:
    """All of them, on the model as they found it: what the first has done and the last has not is done once."""

    def decay(vae: pv.VAE, history: pv.History) -> None:
        vae.beta *= 0.5
        history[-1]["seen"] = True

    def boom(vae: pv.VAE, history: pv.History) -> None:
        if len(history) == 3:
            raise KeyboardInterrupt

    x, vae = binary(), a_vae()
    whole = run(first := copy.deepcopy(vae), x, epochs=5, callbacks=decay)
    with pytest.raises(KeyboardInterrupt):
        run(copy.deepcopy(vae), x, epochs=5, callbacks=[decay, boom], checkpoint=tmp_path)
    resumed = run(second := copy.deepcopy(vae), x, epochs=5, callbacks=decay, resume=tmp_path)
    assert numbers(resumed) == numbers(whole)
    assert resumed.column("seen") == [True] * 5
    assert same(weights(second), weights(first))
    # What they have written into the history of the last epoch is in the state, and nothing is done once more.
    again = run(third := copy.deepcopy(vae), x, epochs=5, callbacks=decay, resume=tmp_path)
    assert numbers(again) == numbers(whole)
    assert third.beta == first.beta == 1 / 32


@pytest.mark.parametrize("epochs", [3, 5])
def test_a_training_that_was_interrupted_when_it_was_to_end_ends(epochs: int, tmp_path: Path) -> None:
    def limit(vae: pv.VAE, history: pv.History) -> bool:
        return len(history) == 3

    def boom(vae: pv.VAE, history: pv.History) -> None:
        if len(history) == 3:
            raise KeyboardInterrupt

    x, vae = binary(), a_vae()
    with pytest.raises(KeyboardInterrupt):
        run(copy.deepcopy(vae), x, epochs=epochs, callbacks=[limit, boom], checkpoint=tmp_path)
    for callbacks in ([limit, lambda vae, history: None], limit):
        assert len(run(copy.deepcopy(vae), x, epochs=epochs, callbacks=callbacks, resume=tmp_path)) == 3
    state = json.loads((tmp_path / "training.json").read_text())
    assert not state["waiting"]
    assert state["settings"]["stopped"] == [True, False]


def test_only_what_ended_a_training_is_asked_again(tmp_path: Path) -> None:
    def decay(vae: pv.VAE, history: pv.History) -> None:
        vae.beta *= 0.5

    def limit(vae: pv.VAE, history: pv.History) -> bool:
        return len(history) == most

    x, vae, most = binary(), a_vae(), 9
    whole = run(copy.deepcopy(vae), x, epochs=5, callbacks=decay)
    most = 3
    options: dict[str, Any] = {"epochs": 5, "resume": True, "callbacks": [decay, limit]}
    for _ in range(3):
        assert len(run(again := copy.deepcopy(vae), x, checkpoint=tmp_path / "one", **options)) == 3
        assert again.beta == 0.125
    # Elsewhere it has ended, too.
    moved: dict[str, Any] = options | {"resume": tmp_path / "one", "checkpoint": tmp_path / "other"}
    for _ in range(2):
        assert len(run(copy.deepcopy(vae), x, **moved)) == 3
        moved["resume"] = tmp_path / "other"
    most = 9
    assert numbers(run(copy.deepcopy(vae), x, checkpoint=tmp_path / "one", **options)) == numbers(whole)


def test_a_finished_training_that_goes_on_elsewhere_is_written_there(tmp_path: Path) -> None:
    x = binary()
    one, other = tmp_path / "one", tmp_path / "other"
    run(a_vae(), x, checkpoint=one)
    run(first := a_vae(), x, epochs=3, checkpoint=other)
    history = run(second := a_vae(), x, epochs=3, resume=other, checkpoint=one, overwrite=True)
    assert len(history) == 3
    assert [path.name for path in one.iterdir() if "replaced" in path.name] == []
    run(third := a_vae(), x, epochs=3, resume=one)
    assert same(weights(first), weights(second))
    assert same(weights(first), weights(third))


def assert_resumed_bit_identically(make: Callable[..., torch.optim.Optimizer], folder: Path) -> None:
    x = binary()
    first, second = (copy.deepcopy(vae) for vae in [a_vae()] * 2)
    whole = run(first, x, epochs=4, optim=make)
    run(second, x, optim=make, checkpoint=folder)
    assert numbers(run(second, x, epochs=4, optim=make, resume=folder)) == numbers(whole)
    assert same(weights(first), weights(second))


def test_groups_of_parameters_keep_their_rates(tmp_path: Path) -> None:
    def make(params: Any, lr: float) -> torch.optim.Optimizer:
        first, *rest = params
        return torch.optim.SGD([{"params": [first], "lr": 3 * lr}, {"params": rest}], lr=lr)

    def rates(lr: Callable[[int], float]) -> list[tuple[float, ...]]:
        found: list[tuple[float, ...]] = []

        def spied(params: Any, lr: float) -> torch.optim.Optimizer:
            optimiser = make(params, lr)
            step = optimiser.step
            optimiser.step = lambda: found.append(tuple(g["lr"] for g in optimiser.param_groups)) or step()  # type: ignore
            return optimiser

        run(a_vae(), binary(), batch_size=N, optim=spied, lr=lr)
        return found

    def added(params: Any, lr: float) -> torch.optim.Optimizer:
        optimiser = make(params, lr)
        optimiser.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.0})
        return optimiser

    assert len(run(a_vae(), binary(), optim=added)) == 2
    assert rates(lambda epoch: 0.01 / epoch) == [pytest.approx((0.03, 0.01)), pytest.approx((0.015, 0.005))]
    assert_resumed_bit_identically(make, tmp_path)


def test_a_group_without_parameters_is_resumed(tmp_path: Path) -> None:
    def make(params: Any, lr: float) -> torch.optim.Optimizer:
        params = list(params)
        large, rest = ([p for p in params if (p.dim() > 9) is big] for big in (True, False))
        return torch.optim.AdamW([{"params": large}, {"params": rest, "weight_decay": 0.1}], lr=lr)

    assert_resumed_bit_identically(make, tmp_path)


def test_the_best_model_of_other_shapes_is_not_put_back_and_costs_no_history() -> None:
    def widen(vae: pv.VAE, history: pv.History) -> None:
        if len(history) == 2:
            body = vae.likelihood.network.body
            body[0], body[2] = nn.Linear(2, 12), nn.Linear(12, D)

    vae, x = a_vae(), binary()
    options: dict[str, Any] = {"lr": lambda epoch: 1e-3 if epoch < 2 else 5.0, "patience": 9, "valid": binary()}
    with pytest.warns(UserWarning, match=r"last epoch, as that of epoch 1, the best, was of other shapes.*body.0"):
        history = run(vae, x, epochs=4, callbacks=widen, **options)
    assert len(history) == 4
    assert vae.likelihood.network.body[0].out_features == 12
    assert vae.reconstruct(x).shape == x.shape


def test_a_true_of_numpys_ends_training_and_a_word_does_not() -> None:
    for ends, epochs in ((np.True_, 1), (np.False_, 3), ("yes", 3), (1, 3)):
        assert len(run(a_vae(), binary(), epochs=3, callbacks=lambda vae, history, ends=ends: ends)) == epochs


def test_a_folder_that_cannot_be_written_to_is_told_before_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    x, vae = binary(), a_vae()
    run(vae, x, checkpoint=tmp_path / "done")
    monkeypatch.setattr(Path, "touch", refuse)
    assert len(run(vae, x, resume=tmp_path / "done")) == 2
    monkeypatch.setattr("ppl_vae.training.train_epoch", lambda *args: pytest.fail("an epoch was trained"))
    with pytest.raises(CheckpointError, match="expected a folder to write to: Permission denied"):
        run(a_vae(), binary(), checkpoint=tmp_path / "run")


def test_an_objective_that_changes_every_epoch_keeps_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rising(Trace_ELBO):
        power = 0.0

        def begin_epoch(self, epoch: int) -> None:
            self.power = epoch / 40

    graphs: list[int] = []
    graph = CapturedSVI._graph

    def spied(self: CapturedSVI, call: Any) -> Any:
        found = graph(self, call)
        graphs.append(len(self._graphs))
        return found

    monkeypatch.setattr(CapturedSVI, "_graph", spied)
    monkeypatch.setattr("ppl_vae.capture.svi._WORTH_RECORDING", 1)
    history = run(a_vae(), binary(), epochs=40, batch_size=N, objective=Rising(), capture="graph")
    assert max(graphs) == 32
    assert history.info["capture"] == "graph"
    # Of epochs too short to repay a recording, none is made in the end; a rise of some is no end.
    monkeypatch.undo()
    Rising.begin_epoch = lambda self, epoch: setattr(self, "power", min(epoch, 20))  # type: ignore[method-assign]
    history = run(a_vae(), binary(), epochs=24, objective=Rising(), capture="graph")
    assert history.info["capture"] == "graph"
    Rising.begin_epoch = lambda self, epoch: setattr(self, "power", epoch)  # type: ignore[method-assign]
    with pytest.warns(CaptureWarning, match="keeps changing"):
        history = run(a_vae(), binary(), epochs=40, batch_size=N, objective=Rising(), capture="graph")
    assert history.info["capture"] == "off"


def test_a_parameter_that_a_callback_makes_anew_is_trained_and_the_old_one_forgotten(tmp_path: Path) -> None:
    def anew(vae: pv.VAE, history: pv.History) -> None:
        if len(history) == 1:
            store = pyro.get_param_store()
            del store["prior_loc"]
            pyro.param("prior_loc", torch.full((2,), 3.0))

    run(a_vae_with_learned_function(), binary(), epochs=3, checkpoint=tmp_path, callbacks=anew)
    (first, second) = json.loads((tmp_path / "training.json").read_text())["groups"]
    assert "param" not in str(first["names"])
    assert "prior_loc" not in first["names"]
    assert second["names"] == ["prior_loc"]
    assert not torch.equal(pyro.param("prior_loc"), torch.full((2,), 3.0))


def test_what_joined_in_another_order_resumes_bit_identically(tmp_path: Path) -> None:
    x = binary()
    # Which looks at the shapes of its moments; a fused one writes where they end, or beyond.
    options: dict[str, Any] = {"optim": functools.partial(torch.optim.Adam, fused=False, foreach=False)}

    def thaw(vae: pv.VAE, history: pv.History) -> None:
        if len(history) == 1:
            vae.likelihood.requires_grad_(True)

    torch.manual_seed(0)
    vae = a_vae()
    vae.likelihood.requires_grad_(False)
    whole = run(twin := copy.deepcopy(vae), x, epochs=4, callbacks=thaw, **options)
    run(vae, x, epochs=2, callbacks=thaw, **options, checkpoint=tmp_path)
    # A new process, where all are trained from the start: the likelihood's come first there, and came last here.
    resumed = run(other := a_vae(), x, epochs=4, callbacks=thaw, **options, resume=tmp_path)
    assert resumed.column("neg_elbo") == whole.column("neg_elbo")
    assert same(weights(other), weights(twin))


def test_what_joins_later_is_trained_at_the_rate_of_then() -> None:
    x, vae, seen = binary(), a_vae(), []
    vae.encoder.requires_grad_(False)
    weight = next(vae.encoder.parameters())

    def thaw(vae: pv.VAE, history: pv.History) -> None:
        seen.append(weight.detach().clone())
        if len(history) == 2:
            vae.encoder.requires_grad_(True)

    run(vae, x, epochs=3, lr=lambda epoch: 0.1 if epoch == 1 else 1e-6, callbacks=thaw)
    assert torch.equal(seen[0], seen[1])
    assert 0 < (seen[2] - seen[1]).abs().max() < 1e-5


def test_a_run_that_is_replaced_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in its first epoch, the new one is what resume=True begins; the old one is still there for whom asks."""
    x = binary()
    options: dict[str, Any] = {"epochs": 3, "checkpoint": tmp_path}
    run(a_vae(), x, lr=1e-3, **options)
    before = (tmp_path / "training.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("ppl_vae.training.train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(a_vae(), x, lr=1e-2, overwrite=True, **options)
    assert (tmp_path / "training.json").read_bytes() == before
    with pytest.raises(
        CheckpointError, match=r"being replaced .* or delete .*training\.replaced to go on with the one"
    ):
        run(a_vae(), x, epochs=4, resume=tmp_path)
    assert run(a_vae(), x, lr=1e-2, resume=True, **options).column("lr") == [0.01] * 3
    assert not (tmp_path / "training.replaced").exists()


def test_an_error_before_the_first_writing_costs_nobody_a_run(tmp_path: Path) -> None:
    x, vae = binary(), a_vae()
    run(vae, x, checkpoint=tmp_path)

    before = (tmp_path / "training.json").read_bytes()
    with pytest.raises(NonFiniteError):
        run(a_vae(), x, lr=1e30, optim=torch.optim.SGD, overwrite=True, checkpoint=tmp_path)
    assert (tmp_path / "training.json").read_bytes() == before
    assert len(run(vae, x, epochs=3, resume=tmp_path)) == 3


def test_a_training_that_another_finished_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check and the lock, where data are read and looked at."""
    x, begun = binary(), []

    @contextlib.contextmanager
    def late(folder: Any) -> Iterator[None]:
        if not begun:
            begun.append(folder)
            run(a_vae(), x, checkpoint=tmp_path)
        with alone(folder):
            yield

    monkeypatch.setattr("ppl_vae.training.alone", late)
    with pytest.raises(CheckpointError, match="holds the state of a training, which this one would replace"):
        run(a_vae(), x, epochs=1, checkpoint=tmp_path)
    assert len(json.loads((tmp_path / "training.json").read_text())["history"]) == 2


def interrupted(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_that_a_callback_ended_is_asked_whether_it_stays_ended(tmp_path: Path) -> None:
    x, vae, asked = binary(), a_vae(), []

    def enough(vae: pv.VAE, history: pv.History) -> bool:
        asked.append(len(history))
        return len(history) >= 2

    options: dict[str, Any] = {"epochs": 5, "checkpoint": tmp_path, "resume": True}
    for _ in range(3):
        assert len(run(vae, x, callbacks=enough, **options)) == 2
    assert asked == [1, 2, 2, 2]
    # Without it, or where it does not hold any longer, training goes on; and is asked of new epochs alone.
    assert len(run(vae, x, callbacks=lambda vae, history: len(history) >= 3, **options)) == 3
    assert len(run(vae, x, **options)) == 5
    asked.clear()
    assert len(run(vae, x, callbacks=enough, **options | {"epochs": 6})) == 6
    assert asked == [6]


def test_a_callback_that_is_asked_again_finds_the_model_as_after_an_epoch(tmp_path: Path) -> None:
    """In evaluation mode, at the last β: what it computes is the same, and moves no running statistics."""
    x, modes = binary(), []

    def enough(vae: pv.VAE, history: pv.History) -> bool:
        vae.reconstruct(x)
        modes.append((vae.training, vae.beta, len(history)))
        return len(history) == 2 and len(modes) < 5

    def normed() -> pv.VAE:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        return pv.VAE(
            pv.priors.Standard(2), pv.likelihoods.Bernoulli((D,), 2), pv.encoders.Gaussian(2, (D,), network=body)
        )

    options: dict[str, Any] = {"epochs": 4, "beta": warmup(4)}
    whole = run(first := normed(), x, **options)
    for stays in (True, True, True, False):
        history = run(vae := normed(), x, callbacks=enough, checkpoint=tmp_path, resume=True, **options)
        assert len(history) == (2 if stays else 4)
        assert vae.beta == history[-1]["beta"]
    assert modes[2:5] == [(False, whole[1]["beta"], 2)] * 3
    assert numbers(history) == numbers(whole)
    assert same(weights(vae), weights(first))


def test_a_function_that_makes_the_optimiser_is_the_same_in_another_process(tmp_path: Path) -> None:
    def build() -> Callable[..., torch.optim.Optimizer]:
        def make(params: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
            return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay)

        return functools.partial(make, weight_decay=0.01)

    x, vae, first = binary(), a_vae(), build()
    run(vae, x, optim=first, checkpoint=tmp_path)
    assert len(run(vae, x, epochs=3, optim=build(), resume=tmp_path)) == 3
    with pytest.raises(CheckpointError, match=r"expected to resume the same run, got another optim: .*AdamW"):
        run(vae, x, epochs=4, optim=functools.partial(torch.optim.AdamW, weight_decay=0.1), resume=tmp_path)

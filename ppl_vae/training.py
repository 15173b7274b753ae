r"""Training: ``fit``, the only training loop, on ``pyro.infer.SVI``.

.. math:: \min_{\theta, \phi}\ -\frac{1}{B} \sum_{i \in \text{batch}} \mathrm{ELBO}(x_i, y_i),
    \qquad B = \text{batch\_size}

in nats per datum. The factor 1/B is the same on the last, partial batch, so every datum weighs the same in an epoch.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from tqdm.auto import tqdm

from . import checkpoint as records
from .batches import Batches
from .errors import CheckpointError, ConfigError, PartError
from .model import VAE
from .objectives import Trace_ELBO, elbo_terms
from .parts import check_positive
from .steps import GuardedSVI, Together, cuda_devices

__all__ = ["History", "fit"]

Schedule = float | Callable[[int], float]


class History(list[dict[str, Any]]):
    """One dict an epoch: ``loss``, as minimised; ``neg_elbo`` = ``reconstruction`` + ``kl``, at β = 1; and others.

    All are exact means over the epoch's data, in nats per datum. ``info`` holds the settings of the run.

    Example:
        >>> history = History([{"epoch": 1, "neg_elbo": 30.0}, {"epoch": 2, "neg_elbo": 25.0}])
        >>> history.column("neg_elbo")
        [30.0, 25.0]
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = (), info: dict[str, Any] | None = None) -> None:
        super().__init__(rows)
        self.info = info or {}

    def column(self, name: str) -> list[Any]:
        """Return one value an epoch, None where an epoch lacks it."""
        return [row.get(name) for row in self]


def fit(
    vae: VAE,
    train: Any,
    valid: Any = None,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: Schedule = 1e-3,
    optim: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    clip: float | None = None,
    objective: ELBO | None = None,
    beta: Schedule | None = None,
    patience: int | None = None,
    device: str | torch.device = "auto",
    seed: int | None = 0,
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callable[[VAE, History], Any]] = (),
    progress: bool = True,
) -> History:
    """Train a model; return its history.

    Calling it again continues from the parameters reached, with a fresh optimiser. The model comes back in ``eval()``
    mode, on the device it was trained on, and leaves nothing in Pyro's param store.

    Arguments:
        vae: the model.
        train: x (N, *x_shape); a tuple (x, y); a :class:`~ppl_vae.data.Split` or another ``Dataset``, whose labels are
            used if the model has a condition; or a ``DataLoader``, which then sets the batches.
        valid: likewise; its −ELBO is measured after every epoch, with the same noise every time.
        epochs: how many, in all: a resumed run counts those it had.
        batch_size: rows a step.
        lr: the learning rate, or a function of the epoch (from 1).
        optim: a class of ``torch.optim``, called with all parameters and ``lr=``.
        clip: the largest norm of the whole gradient, if any.
        objective: a Pyro ELBO; ``Trace_ELBO()`` by default.
        beta: the weight of the KL, or a function of the epoch such as ``objectives.warmup(20)``; None leaves the
            model's own. The model keeps the last one.
        patience: stop after so many epochs without a better −ELBO on ``valid``, and return the best model.
        device: "auto" is CUDA where there is one, else the CPU.
        seed: of every random number in training, whatever the caller's generators, which are left as they were; None
            uses those.
        checkpoint: a folder to write the state of training to after every epoch.
        resume: such a folder to continue from, bit for bit; it is also written to unless ``checkpoint`` names another.
        callbacks: each called as ``callback(vae, history)`` after every epoch; one that returns True ends training.
        progress: show a bar.

    Raises:
        DataError, ShapeError, LabelError: before the first step, for data the model cannot take.
        ConfigError: for settings that make no sense.
        NonFiniteError: when a loss or gradient is not finite, before it reaches the parameters.
        CheckpointError: for a state that is damaged or belongs to another run.

    Example:
        >>> data = pv.data.load("digits").head(64)
        >>> vae = pv.cvae(data.x_shape, 2, 10, likelihood="Binomial", levels=16, range=data.range)
        >>> history = fit(vae, data.train, valid=data.valid, epochs=2, progress=False)
        >>> history[-1]["neg_elbo"] < history[0]["neg_elbo"]
        True
    """
    check_positive(epochs=epochs, batch_size=batch_size)
    lr_at, beta_at = _schedule("lr", lr), None if beta is None else _schedule("beta", beta)
    if not lr_at(1) > 0 or not lr_at(1) < math.inf:
        raise ConfigError(f"expected lr > 0, got {lr_at(1)}")
    if clip is not None and not clip > 0:
        raise ConfigError(f"expected clip > 0, got {clip}")
    if patience is not None:
        check_positive(patience=patience)
        if valid is None:
            raise ConfigError("patience needs validation data: pass valid=")
    if objective is not None and not isinstance(objective, ELBO):
        raise PartError(f"objective: expected a Pyro ELBO such as Trace_ELBO(), got {type(objective).__name__}")
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    vae.to(device)
    batches = Batches(vae, train, batch_size, device)
    validation = None if valid is None else Batches(vae, valid, batch_size, device)

    objective = Trace_ELBO() if objective is None else objective
    checkpoint = resume if checkpoint is None else checkpoint
    history = History(
        info={
            "rows": len(batches),
            "binarize": batches.binarize,
            "batch_size": batches.batch_size,
            "seed": seed,
            "optim": getattr(optim, "__name__", repr(optim)),
            "clip": clip,
            "objective": type(objective).__name__,
            "data": batches.digest(),
            "device": str(device),
        }
    )
    steps = GuardedSVI(vae.model, vae.guide, Together(optim, lr_at(1), clip), objective)
    best: tuple[float, dict[str, Tensor]] | None = None

    with _generators(seed, device), _quiet():
        try:
            with torch.random.fork_rng(cuda_devices(device)):
                steps.prepare(*batches.first(), total=1.0)
            if resume is not None:
                best = _restore(resume, vae, steps, history)
            bar = tqdm(total=epochs, initial=len(history), unit="epoch", disable=not progress, dynamic_ncols=True)
            with bar:
                for epoch in range(len(history) + 1, epochs + 1):
                    if beta_at is not None:
                        vae.beta = beta_at(epoch)
                    steps.optim.set_lr(lr_at(epoch))
                    row = {
                        "epoch": epoch,
                        **_epoch(vae, steps, batches),
                        "beta": vae.beta,
                        "lr": lr_at(epoch),
                    }
                    if validation is not None:
                        row |= _validate(vae, validation, seed)
                    history.append(row)
                    if patience is not None and (best is None or row["valid_neg_elbo"] < best[0]):
                        best = row["valid_neg_elbo"], {k: v.clone() for k, v in vae.state_dict().items()}
                    if checkpoint is not None:
                        _store(checkpoint, vae, steps, history, best)
                    shown = row.get("valid_neg_elbo", row["neg_elbo"])
                    bar.set_postfix_str(f"−ELBO {shown:.2f} nats, {row['rate']:,.0f} rows/s")
                    bar.update()
                    with torch.random.fork_rng(cuda_devices(device)):
                        stop = any([callback(vae, history) is True for callback in callbacks])
                    if stop or (patience is not None and epoch - _best_epoch(history) >= patience):
                        break
        finally:
            vae.unregister()
            vae.eval()
    if best is not None:
        vae.load_state_dict(best[1])
    return history


def _schedule(name: str, value: Schedule) -> Callable[[int], float]:
    if callable(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ConfigError(f"{name}: expected a number or a function of the epoch, got {value!r}")
    return lambda epoch: float(value)


def _best_epoch(history: History) -> int:
    return min(history, key=lambda row: row["valid_neg_elbo"])["epoch"]


class Terms(Messenger):
    """Adds up −log p of the site x and log q − log p of the site z, at β = 1, as they pass, over an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.reconstruction: Tensor | float = 0.0
        self.kl: Tensor | float = 0.0
        self.passes = 0
        self._of_guide = True

    @torch.no_grad()
    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] not in ("x", "z"):
            return
        # (*, N): vectorised particles stand in front of the batch, and what counts is their mean.
        log_prob = msg["fn"].log_prob(msg["value"]).sum(-1).mean()
        if msg["name"] == "x":
            self.reconstruction = self.reconstruction - log_prob
            self.passes += 1
        else:
            # The guide's z comes first, log q; then the model's, which replays it, log p.
            self.kl = self.kl + (log_prob if self._of_guide else -log_prob)
            self._of_guide = not self._of_guide


def _epoch(vae: VAE, steps: GuardedSVI, batches: Batches) -> dict[str, float]:
    """Run one epoch; return its means per datum."""
    vae.train()
    started, rows, count, loss = time.perf_counter(), 0, 0, 0.0
    with Terms() as terms:
        for x, y in batches.shuffled():
            loss += steps.step(x, y, total=len(x) / batches.batch_size)
            rows, count = rows + len(x), count + 1
    seconds = time.perf_counter() - started
    per_datum = count / max(1, terms.passes) / rows
    reconstruction, kl = float(terms.reconstruction) * per_datum, float(terms.kl) * per_datum
    row = {"loss": loss * batches.batch_size / rows, "neg_elbo": reconstruction + kl}
    return row | {"reconstruction": reconstruction, "kl": kl, "seconds": seconds, "rate": rows / seconds}


def _validate(vae: VAE, batches: Batches, seed: int | None) -> dict[str, float]:
    """Return the −ELBO per datum at β = 1, from the same random numbers every time and none of training's."""
    vae.eval()
    with torch.random.fork_rng(cuda_devices(batches.device)), torch.no_grad():
        torch.manual_seed(seed or 0)
        terms = [torch.stack([t.sum() for t in elbo_terms(vae, x, y)]) for x, y in batches.in_order()]
    reconstruction, kl = (torch.stack(terms).sum(0) / len(batches)).tolist()
    return {"valid_neg_elbo": reconstruction + kl, "valid_reconstruction": reconstruction, "valid_kl": kl}


# Random numbers and surroundings


@contextmanager
def _generators(seed: int | None, device: torch.device) -> Iterator[None]:
    """Run with generators of our own, seeded; give the caller's back."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(cuda_devices(device)):
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pyro's warning about a loss that is not finite: here that is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered (NaN|inf)", module="pyro")
        yield


# The state of a run


def _store(folder: str | Path, vae: VAE, steps: GuardedSVI, history: History, best: Any) -> None:
    """Write everything the next epoch depends on."""
    tensors = {f"model.{k}": v for k, v in vae.state_dict().items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    for device in cuda_devices(vae._beta.device):
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    if best is not None:
        tensors |= {f"best.{k}": v for k, v in best[1].items()}
    optimizer: dict[str, dict[str, Any]] = {}
    for i, state in steps.optim.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optim.{i}.{key}"] = value
            else:
                optimizer.setdefault(str(i), {})[key] = value
    info = {"history": list(history), "settings": history.info, "steps": steps.steps, "optimizer": optimizer}
    records.write(folder, "training", tensors, info | {"best": None if best is None else best[0]})


def _restore(folder: str | Path, vae: VAE, steps: GuardedSVI, history: History) -> Any:
    """Take up a stored state; return the best model so far."""
    tensors, info = records.read(folder, "training")
    old, new = info.get("settings", {}), history.info
    other = [f"{k}: {old.get(k)!r} then, {new[k]!r} now" for k in new if old.get(k) != new[k]]
    if other:
        raise CheckpointError(f"{folder}: expected to resume the same run, got another {'; '.join(other)}")
    part: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "rng": {}, "optim": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        part[kind][name] = tensor
    records.fill(vae, part["model"], str(folder))
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in info["optimizer"].items()}
    for key, tensor in part["optim"].items():
        i, _, name = key.partition(".")
        state.setdefault(int(i), {})[name] = tensor
    groups = steps.optim.optimizer.state_dict()["param_groups"]
    steps.optim.optimizer.load_state_dict({"state": state, "param_groups": groups})
    steps.steps = info["steps"]
    torch.set_rng_state(part["rng"]["cpu"])
    for device in cuda_devices(vae._beta.device):
        torch.cuda.set_rng_state(part["rng"]["cuda"], device)
    history.extend(info["history"])
    return None if info["best"] is None else (info["best"], part["best"])

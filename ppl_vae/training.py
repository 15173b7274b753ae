r"""Training: ``fit``, the only training loop, on ``pyro.infer.SVI``.

.. math:: \min_{\theta, \phi}\ -\frac{1}{B} \sum_{i \in \text{batch}} \mathrm{ELBO}(x_i, y_i),
    \qquad B = \min(\text{batch\_size}, N)

in nats per datum. The factor 1/B is the same on the last, partial batch, so every datum weighs the same in an epoch.
"""

from __future__ import annotations

import functools
import inspect
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor
from tqdm.auto import tqdm

from .batches import Batches
from .capture import Backend, CapturedSVI
from .devices import check_gradients, cuda_devices, find_device, seed_all, seeded
from .epochs import Terms, train_epoch, validate
from .errors import CheckpointError, ConfigError, check_positive
from .history import History, bound_name
from .model import VAE
from .model.checks import check_not_nan
from .objectives import Trace_ELBO
from .settings import Schedule, check_objective, check_optim, schedule, settings_of
from .state import Depends, alone, check_writable, folders, replacing, restore, set_weights, settle, store, weights

__all__ = ["fit"]


def fit(
    vae: VAE,
    train: Any,
    *,
    valid: Any = None,
    epochs: int = 100,
    batch_size: int = 128,
    lr: Schedule = 1e-3,
    optim: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    clip: float | None = None,
    objective: ELBO | None = None,
    beta: Schedule | None = None,
    patience: int | None = None,
    capture: Backend = "auto",
    precision: Literal["32", "bf16-mixed"] = "32",
    device: str | torch.device = "auto",
    seed: int | None = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1,
    resume: str | Path | bool | None = None,
    overwrite: bool = False,
    callbacks: Callable[[VAE, History], Any] | Sequence[Callable[[VAE, History], Any]] = (),
    progress: bool = True,
) -> History:
    """Train a model; return its history.

    Calling it again continues from the parameters reached, with a fresh optimiser. The model comes back in ``eval()``
    mode, on the device it was trained on, and leaves nothing in Pyro's param store but what functions of yours made by
    ``pyro.param``, which ``pv.save`` does not know. So it does when training is interrupted (Ctrl-C), with its last
    weights; the best under ``patience`` are then in ``checkpoint`` alone, as of its last writing.

    Arguments:
        vae: the model.
        train: x (N, *x_shape); a tuple (x, y), or (x, y, mask) with True where a pixel is seen; a
            :class:`~ppl_vae.data.Split` or another ``Dataset``, whose labels are used if the model has a condition; or
            a ``DataLoader``, which then sets the batches. A ``Dataset`` is read into memory once, before training: one
            that draws its rows anew goes into a ``DataLoader``.
        valid: likewise; its −ELBO is measured after every epoch, with the same noise every time.
        epochs: how many, in all: a resumed run counts those it had.
        batch_size: rows a step; all rows where there are fewer.
        lr: the learning rate, or a function of the epoch (from 1) that is positive in the first; groups of parameters
            that ``optim`` begins with other rates keep their proportion to it.
        optim: a class of ``torch.optim``, called with all parameters and ``lr=``; with more options it is
            ``functools.partial(torch.optim.AdamW, weight_decay=0.01)``.
        clip: the largest norm of the whole gradient, if any.
        objective: a Pyro ELBO; ``Trace_ELBO()`` by default.
        beta: the weight of the KL, or a function of the epoch such as ``objectives.warmup(20)``; None leaves the
            model's own. The model keeps the last one.
        patience: stop after so many epochs without a better loss on ``valid``, and return the best model. It is
            −log p(x|z,y) + β KL, with the β that training is to end with: −ELBO where that is 1, also on the way there.
        capture: "off" for stock Pyro steps; "auto" records the programs as a graph where that pays and replays it, with
            the same numbers; or a backend of :class:`~ppl_vae.capture.CapturedSVI`. ``history.info["capture"]`` says
            what it came to.
        precision: "32", or "bf16-mixed" for matrix products in bfloat16.
        device: "auto" is CUDA where there is one, else the CPU.
        seed: of every random number in training, whatever the caller's generators, which are left as they were; None
            uses those. The first weights are drawn when the model is built: ``torch.manual_seed`` before that.
        checkpoint: a folder to write the state of training to.
        checkpoint_every: how many epochs from one writing to the next; the first and the last are always written.
        resume: such a folder to continue from, bit for bit where ``epochs``, ``lr`` and ``beta`` are what they were and
            the data are tensors; it is also written to unless ``checkpoint`` names another. True is to continue from
            ``checkpoint`` if there is a state in it, and else to begin, so that a script can be run again and again.
            From a GPU to a CPU and back a run goes on with a warning: not bit for bit.
        overwrite: let the state of another training in ``checkpoint`` be replaced, which otherwise is an error. That
            happens when the first epoch of this one is written, and an error before leaves it as it was.
        callbacks: one or several, called as ``callback(vae, history)`` after every epoch; one that returns True ends
            training, and is asked again where that is resumed. What they change of the model is resumed, too; those
            that were interrupted are called anew.
        progress: show a bar.

    Raises:
        DataError, ShapeError, LabelError: before the first step, for data the model cannot take.
        ConfigError: for settings that make no sense; inside ``torch.inference_mode()``.
        NonFiniteError: when a loss or gradient is not finite, before it reaches the parameters; or −ELBO on ``valid``.
        CheckpointError: for a state that is damaged or belongs to another run, or would be written over.
        CaptureError: if a recorded graph and the program come to disagree.

    Example:
        >>> data = pv.data.load("digits").head(64)
        >>> vae = pv.cvae(data.x_shape, 2, 10, likelihood="Binomial", levels=17, range=data.range)
        >>> history = fit(vae, data.train, valid=data.valid, epochs=2, progress=False)
        >>> history[-1]["neg_elbo"] < history[0]["neg_elbo"]
        True
    """
    with torch.enable_grad():
        check_gradients("fit")
    check_positive(epochs=epochs, batch_size=batch_size, checkpoint_every=checkpoint_every)
    # Numbers of numpy's are no numbers to JSON.
    epochs, batch_size = int(epochs), int(batch_size)
    seed, clip = None if seed is None else operator.index(seed), None if clip is None else float(clip)
    lr_at, beta_at = schedule("lr", lr), None if beta is None else schedule("beta", beta)
    if not lr_at(1) > 0:
        raise ConfigError(f"expected lr > 0, got {lr_at(1)}")
    check_optim(optim)
    if clip is not None and not clip > 0:
        raise ConfigError(f"expected clip > 0, got {clip}")
    if patience is not None:
        check_positive(patience=patience)
        if valid is None:
            raise ConfigError("patience needs validation data: pass valid=")
    objective = Trace_ELBO() if objective is None else objective
    check_objective(objective)
    callbacks = [callbacks] if callable(callbacks) else callbacks
    checkpoint, resume = folders(checkpoint, resume, overwrite)
    device = find_device(device)
    vae.to(device)
    if resume is None:
        check_not_nan(vae, "fit")
    # A DataLoader spends random numbers when it is opened, and they are neither the caller's nor training's.
    with torch.random.fork_rng(cuda_devices(device)):
        if seed is not None:
            seed_all(seed, device)
        batches = Batches(vae, train, batch_size, device, observe=True)
        validation = None if valid is None else Batches(vae, valid, batch_size, device)
        if resume is None:
            batches.start()

    history = History(
        info=settings_of(
            vae, batches, validation, objective, optim, seed, clip, precision, None if beta_at else vae.beta
        )
    )
    steps = CapturedSVI(
        vae.model,
        vae.guide,
        _together(optim, lr_at(1), device),
        objective,
        capture,
        steps=None if batches.steps is None else epochs * batches.steps,
        clip=clip,
        weight=1 / batches.batch_size,
        precision=precision,
        batch=batches.draw,
        watch=Terms,
        # A stock step costs a few replays on a CPU, and hundreds of those that stay on a GPU.
        check_every=5000 if device.type == "cuda" else 500,
    )
    # The epoch of the best weights, and these.
    best: tuple[int, dict[str, Tensor]] | None = None

    def asked(some: Sequence[Callable[[VAE, History], Any]]) -> list[bool]:
        """Which of the callbacks end training; each is called."""
        with torch.random.fork_rng(cuda_devices(device)):
            found = [callback(vae, history) for callback in some]
        # And no other value that passes for true; numpy's own is one.
        return [isinstance(value, bool | np.bool_) and bool(value) for value in found]

    # Gradients are recorded, and the precision is an argument, whatever the caller is inside of.
    with (
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        seeded(seed, device),
        _quiet(),
        alone(checkpoint),
    ):
        try:
            # Another may have trained there while this one waited for its data.
            folders(checkpoint, resume, overwrite)
            shapes = batches.shapes()
            if (begin := getattr(objective, "begin_epoch", None)) is not None:
                begin(1)
            _meet(vae, steps, shapes)
            waiting = False
            if resume is not None:
                best, waiting = restore(resume, vae, steps, history)
            # The β that training is to end with, by which the best model is chosen.
            last_beta = history.info["beta"] if beta_at is None else beta_at(epochs)
            if resume is not None and patience is not None and (best and best[0]) != history.best_epoch(last_beta):
                raise ConfigError(
                    f"patience: {resume} was written without it at times, or for another β, and has not kept the "
                    "best model: resume without patience, or train anew with it"
                )
            begun, last = len(history), epochs
            # What goes on elsewhere is written there, if there is no epoch left to train, too.
            written = checkpoint == resume and not waiting
            if checkpoint is not None and (begun < last or not written):
                check_writable(checkpoint)
            vae.eval()  # As it was at the end of an epoch, which is when callbacks see it.
            # What ended it is asked again: a limit of time begins anew, a criterion does not. So are all, if they were
            # interrupted after the last epoch.
            said = history.info.pop("stopped", [])
            some = [callback for callback, ends in zip(callbacks, said, strict=False) if ends]
            again = callbacks if waiting or (said and len(said) != len(callbacks)) else some
            if any(found := asked(again)):
                last, history.info["stopped"] = begun, said if again is some else found
            bar = tqdm(total=epochs, initial=len(history), unit="epoch", disable=not progress, dynamic_ncols=True)
            with bar, replacing(None if resume == checkpoint else checkpoint):
                for epoch in range(begun + 1, last + 1):
                    if patience is not None and best is not None and len(history) - best[0] >= patience:
                        break
                    if beta_at is not None:
                        vae.beta = beta_at(epoch)
                    if begin is not None:
                        begin(epoch)
                    steps.optim.set_lr(rate := lr_at(epoch))
                    # A program that β or the objective has changed is another; met here, it begins with a replay
                    # whether or not the run was interrupted.
                    _meet(vae, steps, shapes)
                    row = {"epoch": epoch, **train_epoch(vae, steps, batches), "beta": vae.beta, "lr": rate}
                    if validation is not None:
                        row |= validate(vae, validation, seed)
                    history.append(row)
                    if patience is not None and history.best_epoch(last_beta) == epoch:
                        best = epoch, {k: v.clone() for k, v in weights(vae, steps).items()}
                    history.info["capture"] = steps.backend
                    shown = row.get("valid_neg_elbo", row["neg_elbo"])
                    bar.set_postfix_str(f"{bound_name([row])} {shown:.2f} nats, {row['rate']:,.0f} rows/s")
                    bar.update()
                    # Before the callbacks, so that one that is interrupted costs no epoch and leaves nothing half done;
                    # and after them, what they have changed.
                    written = checkpoint is not None and (epoch % checkpoint_every == 0 or epoch in (1, epochs))
                    if checkpoint is not None and written:
                        store(checkpoint, vae, steps, history, best, waiting=bool(callbacks))
                    before = Depends(vae, steps, history) if written and callbacks else None
                    if any(said := asked(callbacks)):
                        history.info["stopped"], written = said, False
                        break
                    if checkpoint is not None and before is not None:
                        if before == Depends(vae, steps, history):
                            settle(checkpoint)
                        else:
                            store(checkpoint, vae, steps, history, best)
            if checkpoint is not None and not written:
                store(checkpoint, vae, steps, history, best)
            if patience is not None and best is not None:
                _take_best(vae, steps, best)
        finally:
            vae.unregister()
            vae.eval()
            history.info["capture"] = steps.backend
    return history


def _take_best(vae: VAE, steps: CapturedSVI, best: tuple[int, dict[str, Tensor]]) -> None:
    try:
        set_weights(vae, steps, best[1], "the best model")
    except CheckpointError as error:
        warnings.warn(
            f"patience: returning the model of the last epoch, as that of epoch {best[0]}, the best, was of other "
            f"shapes, before a callback changed them: {error}",
            stacklevel=3,
        )


def _meet(vae: VAE, steps: CapturedSVI, shapes: list[tuple[Any, ...]]) -> None:
    vae.train()
    # Whatever is switched off elsewhere: the first step of every shape is a checked one.
    with pyro.validation_enabled():
        for inputs in shapes:
            steps.meet(*inputs)


def _together(optim: Callable[..., torch.optim.Optimizer], lr: float, device: torch.device) -> Any:
    """The optimiser, fused where it can be; on CUDA so that a graph may hold its step, with a rate that can change."""
    options: dict[str, Any] = {"lr": lr}
    chosen = optim.keywords if isinstance(optim, functools.partial) else {}
    try:
        accepted = inspect.signature(optim).parameters
    except (TypeError, ValueError):
        accepted = inspect.signature(lambda **kwargs: None).parameters
    # There is one implementation at a time, and the caller's choice comes first.
    other = chosen.get("foreach") or chosen.get("differentiable")
    if "fused" in accepted and "fused" not in chosen and not other:
        options["fused"] = True
    if "capturable" in accepted and chosen.get("capturable", True) and device.type == "cuda":
        options |= {"capturable": True, "lr": torch.tensor(lr, dtype=torch.float32, device=device)}
    return functools.partial(optim, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pyro's warning about a loss that is not finite: here that is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered (NaN|inf)", module="pyro")
        yield

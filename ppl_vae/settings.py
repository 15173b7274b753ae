r"""What ``fit`` is asked: settings that make no sense are refused, and those that make a run this one are told.

.. math:: \text{run} = (\text{model},\ \text{data},\ \text{optimiser},\ \text{objective},\ \text{seed},\ \ldots)
"""

from __future__ import annotations

import functools
import json
import math
import numbers
import re
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO, ReweightedWakeSleep
from pyro.optim import PyroOptim

from . import presets
from .batches import Batches
from .errors import ConfigError, PartError
from .model import VAE

__all__ = ["Schedule", "check_objective", "check_optim", "schedule", "settings_of"]

Schedule = float | Callable[[int], float]


def schedule(name: str, value: Schedule) -> Callable[[int], float]:
    """Return a number of the epoch, checked in each, whichever of the two was given.

    Raises:
        ConfigError: for what is neither; or, from the function, for a number below zero, infinite or NaN.
    """
    if not callable(value) and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise ConfigError(f"{name}: expected a number or a function of the epoch, got {value!r}")

    def at(epoch: int) -> float:
        found = value(epoch) if callable(value) else value
        try:
            now = float(found)
        except (TypeError, ValueError) as error:
            way_out = ": call it first" if callable(found) else ""
            raise ConfigError(f"{name}: expected a number in epoch {epoch}, got {found!r}{way_out}") from error
        if not 0 <= now < math.inf:
            raise ConfigError(f"expected 0 ≤ {name} < ∞, got {now} in epoch {epoch}")
        return now

    at(1)
    return at


def check_optim(optim: Any) -> None:
    """Raise unless it is a class of ``torch.optim``, or a function like one, that has no rate yet."""
    if isinstance(optim, PyroOptim | torch.optim.Optimizer) or not callable(optim):
        raise PartError(
            f"optim: expected a class such as torch.optim.Adam, got {type(optim).__name__}: pass lr= beside"
        )
    if isinstance(optim, functools.partial) and "lr" in optim.keywords:
        raise ConfigError(
            "optim: expected options other than lr, such as functools.partial(torch.optim.AdamW, weight_decay=0.01), "
            f"got lr={optim.keywords['lr']}: pass lr= to fit"
        )


def check_objective(objective: Any) -> None:
    """Raise unless it is a Pyro ELBO that has one loss, and is recorded here if at all."""
    if not isinstance(objective, ELBO):
        kind = objective if isinstance(objective, type) else type(objective)
        way_out = f" itself: call it, {kind.__name__}()" if kind is objective else ""
        raise PartError(f"objective: expected a Pyro ELBO such as Trace_ELBO(), got {kind.__name__}{way_out}")
    if isinstance(objective, ReweightedWakeSleep):
        raise PartError(
            "objective: expected an ELBO with one loss, got ReweightedWakeSleep, which has two: train it with "
            "pyro.infer.SVI"
        )
    if type(objective).__name__.startswith("Jit"):
        raise PartError(
            f"objective: expected an ELBO as it is, got {type(objective).__name__}, which compiles itself: take "
            f"{type(objective).__name__.removeprefix('Jit')}(), which is recorded here (capture=)"
        )


def settings_of(
    vae: VAE,
    batches: Batches,
    validation: Batches | None,
    objective: ELBO,
    optim: Any,
    seed: int | None,
    clip: float | None,
    precision: str,
    beta: float | None,
) -> dict[str, Any]:
    """What makes a run this one and no other, as JSON has it; epochs, the rate and a scheduled β may change."""
    told = {
        "rows": batches.rows,
        "binarize": batches.binarize,
        "batch_size": batches.batch_size,
        "seed": seed,
        # Where in memory a function is, in the repr of a partial of it, is another place in every process.
        "optim": getattr(optim, "__name__", re.sub(" at 0x[0-9a-f]+", "", repr(optim))),
        "clip": clip,
        "objective": type(objective).__name__,
        # Pyro writes what it guessed of the plates into the objective, which changes no result.
        "objective_options": {
            k: repr(v)
            for k, v in vars(objective).items()
            if isinstance(v, bool | int | float) and k != "max_plate_nesting" and not k.startswith("_")
        },
        "precision": precision,
        "data": batches.digest(),
        # Its kind alone: one device goes by several names, cpu and cpu:0.
        "device": batches.device.type,
        "model": _described(vae),
    }
    if validation is not None:
        told["valid"] = validation.digest()
    return told if beta is None else told | {"beta": beta}


def _described(vae: VAE) -> dict[str, Any] | None:
    """What the model is made of, but for β; None where a part has no name."""
    try:
        description = presets.to_dict(vae)
    except PartError:
        return None
    del description["beta"]
    # Infinities are no numbers to JSON either, and few of them are settings.
    return json.loads(json.dumps(description), parse_constant=str)

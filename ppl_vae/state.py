r"""The state of a run on disk: everything that the next epoch depends on.

.. math:: (\theta_t,\ \text{moments}_t,\ \text{generators}_t,\ \text{history}_t) \mapsto \text{epoch } t + 1

Parameters, both moments of the optimiser, the state of the generators and the history, so that a resumed run is, bit
for bit, the one that was not interrupted, on a device of the same kind.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .capture import CapturedSVI
from .devices import cuda_devices
from .errors import CheckpointError, ConfigError
from .model import VAE

try:
    import fcntl
except ImportError:  # Windows has other locks, and is left without.
    fcntl = None  # type: ignore[assignment]

__all__ = ["alone", "folders", "has_state", "restore", "set_weights", "store", "weights"]


def weights(vae: VAE, steps: CapturedSVI) -> dict[str, Tensor]:
    """The model's tensors, and under "param." those that functions of the user's made by ``pyro.param``."""
    return vae.state_dict() | {f"param.{k}": v.detach() for k, v in _loose(vae, steps).items()}


def _loose(vae: VAE, steps: CapturedSVI) -> dict[str, Tensor]:
    return {k: v for k, v in steps.optim.leaves.items() if not k.startswith(f"{vae.name}$$$")}


def _trained(vae: VAE, steps: CapturedSVI) -> list[str]:
    """The names of the parameters that the optimiser has, in its order."""
    names = {id(leaf): name.removeprefix(f"{vae.name}$$$") for name, leaf in steps.optim.leaves.items()}
    return [names[id(p)] for group in steps.optim.optimizer.param_groups for p in group["params"]]


def set_weights(vae: VAE, steps: CapturedSVI, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put back what :func:`weights` returned; nothing, if any of it does not fit."""
    own = weights(vae, steps)
    checkpoint.check_fit(own, tensors, where)
    vae.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("param.")})
    with torch.no_grad():
        for key, leaf in _loose(vae, steps).items():
            leaf.copy_(tensors[f"param.{key}"])


def store(folder: str | Path, vae: VAE, steps: CapturedSVI, history: Any, best: Any) -> None:
    """Write everything the next epoch depends on."""
    tensors = {f"model.{k}": v for k, v in weights(vae, steps).items()}
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
    info["trained"] = _trained(vae, steps)
    checkpoint.write(folder, "training", tensors, info | {"best_epoch": None if best is None else best[0]})


@contextlib.contextmanager
def alone(folder: str | Path | None) -> Iterator[None]:
    """Keep other processes from training in a folder meanwhile. The lock is the process's own, and ends with it.

    Raises:
        CheckpointError: if one is training there, or there can be no such folder.
    """
    if folder is None or fcntl is None:
        yield
        return
    there = Path(folder).exists()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{folder}: expected a folder to write to: {error.strerror or error}") from error
    try:
        # A file system that knows no locks gives another error.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CheckpointError(
                    f"{folder}: another training writes to it: wait for its end, or name another folder"
                ) from error
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_UN)
        os.close(held)
        if not there:
            with contextlib.suppress(OSError):
                Path(folder).rmdir()  # Only if it is empty: nothing was trained.


def has_state(folder: str | Path) -> bool:
    """Whether a folder holds the state of a training, whole or not."""
    return (Path(folder) / "training.json").exists()


def folders(
    checkpoint: str | Path | None, resume: str | Path | bool | None, overwrite: bool
) -> tuple[str | Path | None, str | Path | None]:
    """Where a training writes its state, and what it continues from, of what ``fit`` was asked."""
    if isinstance(resume, bool):
        if resume and checkpoint is None:
            raise ConfigError("resume=True: expected checkpoint=, the folder to continue from")
        resume = checkpoint if resume and checkpoint is not None and has_state(checkpoint) else None
    if checkpoint is None:
        return resume, resume
    same = resume is not None and Path(resume).resolve() == Path(checkpoint).resolve()
    if not (same or overwrite) and has_state(checkpoint):
        raise CheckpointError(
            f"{checkpoint} holds the state of a training, which this one would replace: pass "
            "resume=True to continue it or overwrite=True to replace it, or name another folder"
        )
    return checkpoint, resume


def _differences(name: str, then: Any, now: Any) -> Iterator[str]:
    """What of the settings now was another then, each as precisely as it has a name."""
    if isinstance(then, dict) and isinstance(now, dict):
        # Of the run as a whole, what both tell; of a part of it, all.
        # What an object remembers for itself, with an underscore, is no setting.
        every = [key for key in dict.fromkeys([*then, *now]) if not key.startswith("_")]
        for key in [key for key in every if name or (key in then and key in now)]:
            yield from _differences(f"{name}.{key}".lstrip("."), then.get(key), now.get(key))
    elif then != now:
        yield f"{name}: {then!r} then, {now!r} now"


def restore(folder: str | Path, vae: VAE, steps: CapturedSVI, history: Any) -> Any:
    """Take up a stored state; return the epoch of the best model so far and its weights, or None."""
    tensors, info = checkpoint.read(folder, "training")
    if not isinstance(settings := info.get("settings"), dict) or not settings:
        raise CheckpointError(f"{folder}: damaged: no settings of a run in it")
    # A machine with a GPU may be gone, and the run is not lost with it.
    here = history.info["device"]
    if other := list(_differences("", settings | {"device": here}, history.info)):
        raise CheckpointError(f"{folder}: expected to resume the same run, got another {'; '.join(other)}")
    part: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "rng": {}, "optim": {}}
    try:
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            part[kind][name] = tensor
        state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in info["optimizer"].items()}
        for key, tensor in part["optim"].items():
            i, _, name = key.partition(".")
            state.setdefault(int(i), {})[name] = tensor
        # Before names were written down, the order was that of the model.
        trained = [str(name) for name in info.get("trained", _trained(vae, steps))]
        rows = [dict(row) for row in info["history"]]
        done, best = int(info["steps"]), None if info["best_epoch"] is None else (int(info["best_epoch"]), part["best"])
        moved = (begun_on := settings["device"]) != here
        # What a GPU draws begins anew there, as in a run that begins there.
        kept = [] if moved else cuda_devices(vae._beta.device)
        rng = [part["rng"]["cpu"], *(part["rng"]["cuda"] for _ in kept)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: damaged: no state of training in it: {error!r}") from error
    state = _in_order(folder, trained, _trained(vae, steps), state)
    set_weights(vae, steps, part["model"], str(folder))
    groups = steps.optim.optimizer.state_dict()["param_groups"]
    steps.optim.optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(rng[0])
    for device in kept:
        torch.cuda.set_rng_state(rng[1], device)
    if moved:
        warnings.warn(
            f"{folder}: this training was on {begun_on}, and goes on on {here}: the same model, data and settings, "
            "and other random numbers and roundings than there",
            stacklevel=3,
        )
    if moves := [*settings.get("moves", []), *([[len(rows), begun_on]] if moved else [])]:
        history.info["moves"] = moves
    if settings.get("stopped"):
        history.info["stopped"] = True
    steps.steps = done
    history.extend(rows)
    return best


def _in_order(folder: str | Path, then: list[str], now: list[str], state: dict[int, Any]) -> dict[int, Any]:
    """What an optimiser keeps of every parameter, by the parameter's place in the one that there is now."""
    if set(then) != set(now):
        idle, joined = (", ".join(sorted(set(a) - set(b))) for a, b in ((then, now), (now, then)))
        changed = [f"{how}: {names}" for how, names in (("then alone", idle), ("now alone", joined)) if names]
        raise CheckpointError(
            f"{folder}: expected the same parameters to be trained as then, got {'; '.join(changed)}: set "
            "requires_grad as it was, or train anew in another folder"
        )
    if not all(0 <= i < len(then) for i in state):
        raise CheckpointError(
            f"{folder}: expected the state of {len(then)} parameters that are trained, got that of {max(state) + 1}: "
            "set requires_grad as it was, or train anew in another folder"
        )
    return {now.index(then[i]): values for i, values in state.items()}

r"""The state of a run on disk: everything that the next epoch depends on.

.. math:: (\theta_t,\ \text{moments}_t,\ \text{generators}_t,\ \text{history}_t) \mapsto \text{epoch } t + 1

Parameters, both moments of the optimiser, the state of the generators and the history, so that a resumed run is, bit
for bit, the one that was not interrupted, on a device of the same kind.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyro
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

__all__ = [
    "Depends",
    "alone",
    "check_writable",
    "folders",
    "has_state",
    "replacing",
    "restore",
    "set_weights",
    "settle",
    "store",
    "weights",
]


def weights(vae: VAE, steps: CapturedSVI) -> dict[str, Tensor]:
    """The model's tensors, and under "param." those that functions of the user's made by ``pyro.param``."""
    return vae.state_dict() | {f"param.{k}": v.detach() for k, v in _loose(vae, steps).items()}


def _loose(vae: VAE, steps: CapturedSVI) -> dict[str, Tensor]:
    """The parameters of the program that no module of the model's has."""
    leaves, store = steps.optim.leaves.items(), pyro.get_param_store()
    return {name: leaf for name, leaf in leaves if name in store and not name.startswith(f"{vae.name}$$$")}


def _trained(vae: VAE, steps: CapturedSVI) -> list[dict[str, Tensor]]:
    """The parameters that the optimiser has by name, a dict for each of its groups.

    Those that the program has lost, as with a layer that is exchanged, are not among them.
    """
    held = [*_loose(vae, steps).items(), *vae.named_parameters()]
    names = {id(parameter): name for name, parameter in held}
    groups = steps.optim.optimizer.param_groups
    return [{names[id(p)]: p for p in group["params"] if id(p) in names} for group in groups]


def _asked(vae: VAE, steps: CapturedSVI) -> set[str]:
    """The names of the parameters that the next step is to train, as far as the program has them."""
    return {name for name, p in vae.named_parameters() if p.requires_grad} | _loose(vae, steps).keys()


class Depends:
    """What of a state a callback may change: compares equal while nothing of it has."""

    def __init__(self, vae: VAE, steps: CapturedSVI, history: Any) -> None:
        rows = json.dumps((list(history), history.info), default=str)
        self.told = vae.beta, _asked(vae, steps), [{*names} for names in _trained(vae, steps)], rows
        self.weights = {name: tensor.detach().clone() for name, tensor in weights(vae, steps).items()}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Depends) or self.told != other.told or self.weights.keys() != other.weights.keys():
            return False
        pairs = [(tensor, other.weights[name]) for name, tensor in self.weights.items()]
        return all(a.device == b.device and torch.equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


def _progress(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, float | str]:
    """What an optimiser that adapts by itself keeps beside its parameters: numbers that it did not begin with."""
    numbers = {k: v for k, v in group.items() if k != "lr" and isinstance(v, int | float) and not isinstance(v, bool)}
    # JSON has no infinity, but its name.
    return {k: v if math.isfinite(v) else str(v) for k, v in numbers.items() if v != defaults.get(k)}


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    """What :func:`_progress` returned."""
    return {k: float(v) if isinstance(v, str) else v for k, v in group["numbers"].items()}


def set_weights(vae: VAE, steps: CapturedSVI, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put back what :func:`weights` returned; nothing, if any of it does not fit."""
    own = weights(vae, steps)
    checkpoint.check_fit(own, tensors, where)
    vae.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("param.")})
    with torch.no_grad():
        for key, leaf in _loose(vae, steps).items():
            leaf.copy_(tensors[f"param.{key}"])


def store(folder: str | Path, vae: VAE, steps: CapturedSVI, history: Any, best: Any, *, waiting: bool = False) -> None:
    """Write everything the next epoch depends on.

    Arguments:
        folder: where to.
        vae, steps, history, best: of the training.
        waiting: whether there are callbacks that have yet to be called after the last epoch.
    """
    tensors = {f"model.{k}": v for k, v in weights(vae, steps).items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    for device in cuda_devices(vae._beta.device):
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    if best is not None:
        tensors |= {f"best.{k}": v for k, v in best[1].items()}
    optim, optimizer, groups = steps.optim.optimizer, {}, []
    for trained, group in zip(_trained(vae, steps), optim.param_groups, strict=True):
        groups.append({"names": list(trained), "numbers": _progress(group, optim.defaults)})
        for name, parameter in trained.items():
            state = optim.state.get(parameter, {})
            tensors |= {f"optim.{name}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
            optimizer[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    info = {"history": list(history), "settings": history.info, "steps": steps.steps, "beta": vae.beta}
    info |= {"trained": sorted(_asked(vae, steps)), "waiting": waiting}
    info |= {"groups": groups, "optimizer": {name: values for name, values in optimizer.items() if values}}
    checkpoint.write(folder, "training", tensors, info | {"best_epoch": None if best is None else best[0]})
    _mark(folder).unlink(missing_ok=True)


def settle(folder: str | Path) -> None:
    """Write that no callback has yet to be called."""
    path = Path(folder) / "training.json"
    info = json.loads(path.read_bytes()) | {"waiting": False}
    checkpoint.replace(path, (json.dumps(info, indent=2) + "\n").encode())


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
            checkpoint.sweep(folder, "training")
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_UN)
        os.close(held)
        if not there:
            with contextlib.suppress(OSError):
                Path(folder).rmdir()  # Only if it is empty: nothing was trained.


def check_writable(folder: str | Path) -> None:
    """Raise for a folder that nothing can be written to, before there is an epoch to lose."""
    probe = Path(folder) / f".{os.getpid()}.tmp"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: expected a folder to write to: {error.strerror or error}") from error


def has_state(folder: str | Path) -> bool:
    """Whether a folder holds the state of a training, whole or not, and none that was being replaced by another's."""
    return (Path(folder) / "training.json").exists() and not _mark(folder).exists()


def _mark(folder: str | Path) -> Path:
    return Path(folder) / "training.replaced"


class replacing(contextlib.AbstractContextManager[None]):
    """Mark the state in a folder as one that is being replaced, from the first step to the first writing.

    Until then it stays where it is. An error takes the mark off again: a bad option costs nobody a run. What stops
    training otherwise does not: it was to be replaced, and is not what a later call goes on with.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.mark = _mark(folder) if folder is not None and has_state(folder) else None

    def __enter__(self) -> None:
        if self.mark is not None:
            self.mark.touch()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if self.mark is not None and kind is not None and issubclass(kind, Exception):
            self.mark.unlink(missing_ok=True)


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
    if resume is not None and Path(resume).resolve() == Path(checkpoint).resolve():
        return checkpoint, checkpoint
    if not overwrite and has_state(checkpoint):
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


def restore(folder: str | Path, vae: VAE, steps: CapturedSVI, history: Any) -> tuple[Any, bool]:
    """Take up a stored state.

    Returns:
        The epoch of the best model so far and its weights, or None; and whether callbacks have yet to be called.
    """
    if _mark(folder).exists():
        raise CheckpointError(
            f"{folder}: expected a training to go on with, got one that was being replaced by another, which had not "
            f"written anything yet: begin that one anew, or delete {_mark(folder)} to go on with the one before"
        )
    tensors, info = checkpoint.read(folder, "training")
    if not isinstance(settings := info.get("settings"), dict) or not settings:
        raise CheckpointError(f"{folder}: damaged: no settings of a run in it")
    # Where no β is asked for, the model may be as it was built, or as a callback of the run has left it.
    if "beta" in history.info and history.info["beta"] == info.get("beta"):
        history.info["beta"] = settings.get("beta", info["beta"])
    # A machine with a GPU may be gone, and the run is not lost with it.
    here = history.info["device"]
    if other := list(_differences("", settings | {"device": here}, history.info)):
        raise CheckpointError(f"{folder}: expected to resume the same run, got another {'; '.join(other)}")
    part: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "rng": {}, "optim": {}}
    try:
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            part[kind][name] = tensor
        state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in info["optimizer"].items()}
        for key, tensor in part["optim"].items():
            name, _, of = key.rpartition(".")
            state.setdefault(name, {})[of] = tensor
        numbers = {name: _numbers(group) for group in info["groups"] for name in group["names"]}
        if lost := state.keys() - numbers.keys():
            raise KeyError(*sorted(lost))
        rows = [dict(row) for row in info["history"]]
        beta, trained = float(info["beta"]), set(info["trained"])
        done, best = int(info["steps"]), None if info["best_epoch"] is None else (int(info["best_epoch"]), part["best"])
        moved = (begun_on := settings["device"]) != here
        # What a GPU draws begins anew there, as in a run that begins there.
        kept = [] if moved else cuda_devices(vae._beta.device)
        rng = [part["rng"]["cpu"], *(part["rng"]["cuda"] for _ in kept)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: damaged: no state of training in it: {error!r}") from error
    _check_same(folder, trained, _asked(vae, steps))
    set_weights(vae, steps, part["model"], str(folder))
    # What is frozen now may be thawed yet, and has its moments then.
    known = {f"{vae.name}$$${name}": p for name, p in vae.named_parameters() if name in numbers}
    steps.optim.meet(steps.optim.leaves | known)
    now = _trained(vae, steps)
    optimizer = steps.optim.optimizer
    groups = optimizer.state_dict()["param_groups"]
    # All of a group moved together, so that one of its parameters tells of it.
    kept_by = [next((numbers[name] for name in names if name in numbers), {}) for names in now]
    groups = [group | own for group, own in zip(groups, kept_by, strict=True)]
    places = {name: place for place, name in enumerate(name for names in now for name in names)}
    optimizer.load_state_dict({"state": {places[n]: values for n, values in state.items()}, "param_groups": groups})
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
    if said := settings.get("stopped"):
        history.info["stopped"] = said
    steps.steps, vae.beta = done, beta
    if "beta" in history.info:
        history.info["beta"] = settings.get("beta", beta)
    history.extend(rows)
    return best, bool(info.get("waiting"))


def _check_same(folder: str | Path, then: set[str], now: set[str]) -> None:
    """Raise unless the same parameters are trained as then."""
    if then != now:
        idle, joined = (", ".join(sorted(a - b)) for a, b in ((then, now), (now, then)))
        changed = [f"{how}: {names}" for how, names in (("then alone", idle), ("now alone", joined)) if names]
        raise CheckpointError(
            f"{folder}: expected the same parameters to be trained as then, got {'; '.join(changed)}: set "
            "requires_grad as it was, or train anew in another folder"
        )

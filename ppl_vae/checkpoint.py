r"""A model on disk: weights in safetensors, what they belong to in JSON, no pickle anywhere.

.. math:: \mathrm{load}(\mathrm{save}(\text{vae})) \equiv \text{vae}, \quad \text{bit for bit}

A *record* is two files: ``<stem>-<digest>.safetensors``, written first under a name of its own, and ``<stem>.json``,
which names it, carries its SHA-256 and replaces its predecessor in one step. Whoever is interrupted leaves the old
record or the new one, never a mixture.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from . import presets
from .devices import find_device
from .errors import CheckpointError, ConfigError, PartError, PplVaeError
from .model import VAE

__all__ = ["forget", "load", "read", "replace", "save", "sweep", "write"]

FORMAT = 1
# What model.json says of a model and its file.
_OURS = {"format", "config", "why", "dtype", "weights"}
# What a part may raise when a damaged or hostile file has it made with nonsense.
_NONSENSE = (
    PplVaeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)


def write(folder: str | Path, stem: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> Path:
    """Write a record; return the path of its JSON.

    Arguments:
        folder: is made if it is not there.
        stem: the name of the record, such as ``"model"``.
        tensors: any names; tensors that share memory are written once.
        info: anything JSON can hold, except a ``"weights"`` key.

    Raises:
        CheckpointError: if the folder cannot be written to; the previous record is intact.
    """
    folder = Path(folder)
    path = folder / f"{stem}.json"
    kept, aliases = _distinct(tensors)
    data = safetensors.torch.save(kept)
    digest = hashlib.sha256(data).hexdigest()
    weights = f"{stem}-{digest[:16]}.safetensors"
    record = {"format": FORMAT, **info, "weights": {"file": weights, "sha256": digest, "aliases": aliases}}
    try:
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: expected info that JSON can hold: {error}") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        since = path.stat().st_mtime_ns if path.exists() else 0
        replace(folder / weights, data)
        replace(path, text.encode())
    except OSError as error:
        raise CheckpointError(f"{folder}: expected a folder to write to: {error.strerror or error}") from error
    # Those of before, as another may be writing here, too.
    for old in _weights_of(folder, stem):
        with contextlib.suppress(FileNotFoundError):
            if old.name != weights and old.stat().st_mtime_ns <= since:
                old.unlink()
    return path


def _distinct(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split names into those with memory of their own and aliases of those."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            # A clone, because a view into a larger storage is no tensor of its own to safetensors.
            kept[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return kept, aliases


def replace(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` so that at any moment the old file is there or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _weights_of(folder: Path, stem: str) -> list[Path]:
    """The weights that records of this name have had; ours alone: somebody may keep a model-best.safetensors here."""
    return list(folder.glob(f"{stem}-{16 * '[0-9a-f]'}.safetensors"))


def forget(folder: str | Path, stem: str) -> None:
    """Remove a record, if there is one; for who knows that nobody writes it now."""
    for path in (Path(folder) / f"{stem}.json", *_weights_of(Path(folder), stem)):
        path.unlink(missing_ok=True)


def sweep(folder: str | Path, stem: str) -> None:
    """Remove what writers of a record that were killed left half done; for who knows that nobody writes it now."""
    for pattern in (f".{stem}-*.safetensors.*.tmp", f".{stem}.json.*.tmp"):
        for path in Path(folder).glob(pattern):
            path.unlink(missing_ok=True)


def read(folder: str | Path, stem: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the info of a record.

    Raises:
        CheckpointError: if it is missing, damaged, or of a newer format.
    """
    path = Path(folder) / f"{stem}.json"
    try:
        info = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: expected a saved {stem}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON: {error}") from error
    if not isinstance(info, dict) or not isinstance(info.get("format"), int):
        raise CheckpointError(f"{path}: expected a record with a format number")
    if info["format"] > FORMAT:
        raise CheckpointError(f"{path}: expected format ≤ {FORMAT}, got {info['format']}: update ppl_vae to read it")
    weights = info.get("weights")
    if not isinstance(weights, dict) or Path(str(weights.get("file"))).name != weights.get("file"):
        raise CheckpointError(f"{path}: expected the name of a weights file beside it")
    try:
        data = (path.parent / weights["file"]).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.parent / weights['file']}: {error}") from error
    if hashlib.sha256(data).hexdigest() != weights.get("sha256"):
        raise CheckpointError(f"{path.parent / weights['file']}: damaged: its SHA-256 is not the one in {path.name}")
    try:
        tensors = safetensors.torch.load(data)
        tensors |= {alias: tensors[name] for alias, name in dict(weights.get("aliases") or {}).items()}
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path.parent / weights['file']}: expected safetensors: {error}") from error
    return tensors, info


def save(vae: VAE, path: str | Path, **info: Any) -> Path:
    """Save a model to a folder; return the path of its ``model.json``.

    Weights and buffers are always written. What the model is made of is written too when all its parts have names;
    otherwise the reason is, and :func:`load` needs ``into=``.

    Arguments:
        vae: the model.
        path: a folder, made if it is not there.
        info: more to keep in ``model.json``, anything JSON can hold, under names that it has not itself.

    Raises:
        CheckpointError: if the folder cannot be written to.
        ConfigError: for info under a name of ours.
    """
    if taken := sorted(_OURS & info.keys()):
        raise ConfigError(
            f"save: expected info under names other than {', '.join(sorted(_OURS))}, which model.json has itself, got "
            f"{', '.join(taken)}: choose another name"
        )
    config: dict[str, Any] | None = None
    why = None
    try:
        config = presets.to_dict(vae)
    except PartError as error:
        why = str(error)
    dtype = str(vae._beta.dtype).removeprefix("torch.")
    return write(path, "model", vae.state_dict(), {**info, "config": config, "why": why, "dtype": dtype})


def load(
    path: str | Path,
    into: VAE | None = None,
    *,
    device: str | torch.device | None = None,
    allow_nonfinite: bool = False,
) -> VAE:
    """Load a model that :func:`save` saved.

    Arguments:
        path: the folder, or the path that :func:`save` returned.
        into: a model built as the saved one was, to receive the weights; needed where a part is a function, a module of
            yours or anything else without a name. It is returned, and is unchanged if anything is wrong. It keeps its
            own β, which is a setting and no weight.
        device: where the model goes; by default ``into`` stays where it is, and one that is rebuilt, which is in
            ``eval()`` mode, is on the CPU.
        allow_nonfinite: load weights that hold NaN or infinity.

    Raises:
        CheckpointError: for a missing or damaged file, or weights that do not fit; all that do not are listed.
        ConfigError: for a device that is not here.

    Example:
        >>> import tempfile
        >>> vae = pv.vae((4,), 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(vae, folder)
        ...     again = load(folder)
        >>> all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters()))
        True
    """
    if device is not None:
        device = find_device(device)
    path = Path(path)
    path = path.parent if path.name == "model.json" else path
    tensors, info = read(path, "model")
    bad = [] if allow_nonfinite else [k for k, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or infinity in {', '.join(bad)}: train it anew; load(..., allow_nonfinite=True) takes them "
            "in Python"
        )
    vae = into
    if vae is None:
        if not isinstance(info.get("config"), dict):
            raise CheckpointError(
                f"{path}: expected a model of named parts; {info.get('why') or 'none are written down'}"
            )
        dtype = getattr(torch, str(info.get("dtype", "float32")), None)
        if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise CheckpointError(f"{path}: expected a floating-point dtype, got {info.get('dtype')!r}")
        try:
            # No random number of the caller's is spent on weights that are replaced at once.
            with torch.random.fork_rng(devices=[]):
                vae = presets.build(info["config"]).to(dtype).eval()
            # In the model's own precision.
            vae.beta = info["config"].get("beta", 1.0)
        except _NONSENSE as error:
            raise CheckpointError(
                f"{path}: the configuration in model.json builds no model: {error}. A name of your own has to be in "
                "ppl_vae.presets before; or load with load(path, into=vae)"
            ) from error
    fill(vae, tensors, str(path))
    return vae if device is None else vae.to(device)


def fill(vae: VAE, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy weights into a model, all or, where any does not fit, none.

    Raises:
        CheckpointError: listing every missing, unexpected and ill-fitting tensor.
    """
    check_fit(vae.state_dict(), tensors, where)
    vae.load_state_dict(dict(tensors))


def check_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise a CheckpointError unless ``tensors`` has the names, shapes and dtypes of ``own``; it lists all misfits."""
    wrong = [f"missing {key}" for key in own if key not in tensors]
    wrong += [f"unexpected {key}" for key in tensors if key not in own]
    for key in own.keys() & tensors.keys():
        expected, got = (f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in (own[key], tensors[key]))
        if expected != got:
            wrong.append(f"{key}: expected {expected}, got {got}")
    if wrong:
        raise CheckpointError(f"{where}: weights do not fit the model: {'; '.join(sorted(wrong))}")

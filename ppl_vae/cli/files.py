"""The files of a run that the command line writes and reads: all of a file or none of it, and no pickle."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import data
from ..checkpoint import replace
from ..errors import CheckpointError
from ..evaluation import Evaluation

__all__ = [
    "described",
    "fingerprint",
    "read_evaluation",
    "write_arrays",
    "write_evaluation",
    "write_json",
]


def write_evaluation(out: Path, result: Evaluation, split: data.Split, more: Mapping[str, Any] | None = None) -> None:
    """Write ``evaluation.json``, the means, and ``evaluation.npz``, all values and which rows they are of."""
    columns: dict[str, Any] = {name: values.numpy() for name, values in result.values.items()}
    columns |= {"_rows": fingerprint(split), "_samples": result.samples, "_density": result.density}
    if result.discrete is not None:
        columns["_discrete"] = result.discrete
    if result.conditional is not None:
        columns["_conditional"] = result.conditional
    if result.pareto_k is not None:
        columns["_pareto_k"] = result.pareto_k.numpy()
    write_arrays(out / "evaluation.npz", columns)
    write_json(out / "evaluation.json", {**result.to_dict(), **(more or {})})


def read_evaluation(run: str) -> tuple[Evaluation, str]:
    """Return what ``evaluate`` found for a run, and a fingerprint of the rows.

    Raises:
        CheckpointError: if it has not been evaluated, or the file is damaged.
    """
    path = Path(run) / "evaluation.npz"
    try:
        # Opened here because numpy, given a path, leaves a damaged file open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            # Files of old have no k̂, and do not say of what kind p is, or whether it is given y.
            names = [name for name in file.files if not name.startswith("_") or name == "_pareto_k"]
            values = {name: torch.from_numpy(file[name]) for name in names}
            discrete, conditional = (bool(file[n]) if n in file.files else None for n in ("_discrete", "_conditional"))
            samples, density, rows = int(file["_samples"]), bool(file["_density"]), str(file["_rows"])
        if not values or len({v.shape for v in values.values()}) > 1 or next(iter(values.values())).dim() != 1:
            raise ValueError(f"no columns of one length in it: {list(values)}")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there: run ppl-vae evaluate {run} first") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged ({error}): run ppl-vae evaluate {run} again") from error
    pareto_k = values.pop("_pareto_k", None)
    found = Evaluation(values, samples, density, pareto_k=pareto_k, discrete=discrete, conditional=conditional)
    return found, rows


def described(run: str) -> dict[str, Any]:
    """What the model of a run says of its data.

    Raises:
        CheckpointError: if that is no description.
    """
    path = Path(run) / "model.json"
    said = json.loads(path.read_text()).get("data") or {}
    numbers = said.get("range", (0, 1)) if isinstance(said, dict) else None
    if not isinstance(numbers, list | tuple) or [type(n) in (int, float) for n in numbers] != [True, True]:
        raise CheckpointError(
            f"{path}: damaged: expected data to be described, a range of two numbers in it, got {said}"
        )
    return said


def fingerprint(split: data.Split) -> str:
    """What these rows, in this order, have to themselves."""
    sha = hashlib.sha256()
    for tensor in (split.x, split.y):
        if tensor is not None:
            sha.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
            sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    replace(path, buffer.getvalue())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values, one line each."""
    replace(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())

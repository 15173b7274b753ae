"""Readers: the splits of each named data set, and the arrays in a file of the user's own; nothing is unpickled."""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .arrays import as_split, cut
from .splits import PARTS, Split

__all__ = ["SOURCES", "user_arrays"]

IDX = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


def _digits(root: Path) -> list[Split]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return cut(as_split(bunch.images[:, None], bunch.target), 250, 250)


def _mnist(kind: str, root: Path) -> list[Split]:
    """One of the MNIST family, read here because torchvision would unpickle an old ``processed/*.pt``."""
    folder = root / kind / "raw"
    if not all(os.path.isfile(folder / file) for file in IDX):
        _download(kind, root)
    x, y, test_x, test_y = (_idx(folder / file, shape) for file, shape in IDX.items())
    whole, test = as_split(x[:, None], y), as_split(test_x[:, None], test_y)
    return [whole.subset(slice(-10_000)), whole.subset(slice(-10_000, None)), test]


def _idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """One idx file of bytes: a magic number, the sizes, the values."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"expected to read {path}, got {error}: mend it, or pass another root") from error
    head = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
    if not raw.startswith(head) or len(raw) != len(head) + math.prod(shape):
        raise DataError(
            f"expected {path} to be an uncompressed idx file of {shape} bytes, got {len(raw)} bytes that "
            f"start with {raw[: len(head)].hex() or 'nothing'}: delete it, and it is downloaded again"
        )
    return np.frombuffer(raw, np.uint8, offset=len(head)).reshape(shape)


def _download(kind: str, root: Path) -> None:
    """Torchvision's download, moved into place when complete: one that fails leaves nothing behind."""
    from torchvision import datasets

    folder = root.absolute() / kind / "raw"
    nearest = next(parent for parent in folder.parents if parent.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=nearest) as new, contextlib.redirect_stderr(io.StringIO()):
            getattr(datasets, kind)(new, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for file in IDX:
                os.replace(Path(new, kind, "raw", file), folder / file)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"expected {', '.join(IDX)} in {folder}, got no such files and no download ({reason}): put them "
            "there uncompressed, pass the root that holds them, or load 'digits', which needs no file"
        ) from error


def _binarized_mnist(root: Path) -> list[Split]:
    packed = _bytes(root / "binarized_mnist_packed.npz", PARTS, (98,))
    return [as_split(np.unpackbits(packed[part], axis=1).reshape(-1, 1, 28, 28)) for part in PARTS]


def _omniglot(root: Path) -> list[Split]:
    drawings = _bytes(root / "omniglot_28.npz", ("train", "test"), (28, 28))
    return [*cut(as_split(drawings["train"][:, None]), 1345, 0)[:2], as_split(drawings["test"][:, None])]


def _frey_faces(root: Path) -> list[Split]:
    return cut(as_split(_bytes(root / "frey_faces.npz", ("x",), (28, 20))["x"][:, None]), 200, 200)


def user_arrays(path: Path) -> dict[str, Any]:
    """The arguments of from_tensors that a user's file holds."""
    arrays = _npz(path, [letter + part for letter in "xy" for part in ("", "_train", "_valid", "_test")])
    end = "_train" if "x_train" in arrays else ""
    if f"x{end}" not in arrays:
        raise DataError(f"expected pixels under the key x or x_train in {path}, got neither: rename the key")
    held = {part: (arrays[f"x_{part}"], arrays.get(f"y_{part}")) for part in PARTS[1:] if f"x_{part}" in arrays}
    ends = (end, *(f"_{part}" for part in held))
    if alone := [key for key in arrays if key[1:] not in ends]:
        raise DataError(
            f"expected keys that go together in {path}, x and y or x_train and y_train, got {', '.join(alone)} beside "
            f"x{end}: rename or remove {'it' if len(alone) == 1 else 'them'}"
        )
    return {"x": arrays[f"x{end}"], "y": arrays.get(f"y{end}"), **held}


# What numpy and zipfile raise on files that are missing, cut short, altered, or claim an absurd size.
_DAMAGED: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, TypeError, RuntimeError)
_DAMAGED += (MemoryError, OverflowError, zipfile.BadZipFile, zlib.error)


def _npz(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Those of the keys that a file has, nothing unpickled."""
    try:
        # Opened here because numpy, given a path, leaves a damaged file open.
        with path.open("rb") as raw:
            if raw.peek(2)[:2] != b"PK":
                # Numpy would say how to unpickle it.
                raise DataError(
                    f"expected an .npz file of plain arrays at {path}, got another: write it with numpy.savez; of a "
                    "csv, numpy.savez('my.npz', x=numpy.loadtxt('my.csv', delimiter=',', skiprows=1))"
                )
            with np.load(raw, allow_pickle=False) as file:
                return {key: file[key] for key in keys if key in file.files}
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(
            f"expected an .npz file of plain arrays at {path}, got {type(error).__name__} ({error}): mend "
            "the path or root, or write the file again with numpy.savez"
        ) from error


def _bytes(path: Path, keys: Sequence[str], row: tuple[int, ...]) -> dict[str, np.ndarray]:
    """All of the keys, each rows of bytes."""
    arrays = _npz(path, keys)
    for key in keys:
        got = (str(arrays[key].dtype), *arrays[key].shape) if key in arrays else ("nothing",)
        if got[0] != "uint8" or got[2:] != row:
            raise DataError(f"expected {key} in {path} to be ('uint8', N, *{row}), got {got}: see ppl_vae.data")
    return arrays


SOURCES: dict[str, tuple[int, Callable[[Path], list[Split]]]] = {
    "digits": (17, _digits),
    "mnist": (256, partial(_mnist, "MNIST")),
    "fashion-mnist": (256, partial(_mnist, "FashionMNIST")),
    "kmnist": (256, partial(_mnist, "KMNIST")),
    "binarized-mnist": (2, _binarized_mnist),
    "omniglot": (256, _omniglot),
    "frey-faces": (256, _frey_faces),
}

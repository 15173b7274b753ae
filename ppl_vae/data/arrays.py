"""Arrays and tensors of any kind as splits: what is refused, which levels they have, how rows are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, LabelError
from .splits import Split, check_finite

__all__ = ["as_split", "cut", "levels_of"]


def _numbers(a: Any, what: str = "x", error: type[ValueError] = DataError) -> np.ndarray:
    """Real numbers of any kind as a numpy array, without a copy where that is possible."""
    if isinstance(a, Tensor):
        a = a.detach().cpu()
        a = a.float() if a.is_floating_point() else a  # numpy has no bfloat16
    a = np.asarray(a)
    if a.dtype.kind not in "biuf":
        raise error(f"expected {what} to hold real numbers, got dtype {a.dtype}: turn it into numbers first")
    return a


def as_split(x: Any, y: Any = None, what: str = "x") -> Split:
    """Pixels as finite float32 and labels as int64, copied, or an error that says what they are instead."""
    pixels = _numbers(x, what)
    if not pixels.size:
        raise DataError(f"expected {what} to have rows and pixels, got shape {pixels.shape}: it is empty")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and check_finite says where
        split = Split(torch.from_numpy(pixels.astype(np.float32)), None if y is None else _labels(y))
    check_finite(split.x, what)
    return split


def _labels(y: Any) -> Tensor:
    labels = _numbers(y, "y", LabelError)
    fit = np.isfinite(labels) & (labels == np.floor(labels)) & (labels >= 0)
    if not fit.all():
        first = int(fit.argmin())
        row = np.unravel_index(first, fit.shape)[0]
        raise LabelError(
            f"expected labels to be whole numbers from 0, got {labels.flat[first]} in row {row}: "
            "number the classes with numpy.unique(y, return_inverse=True)[1]; real y: fit(vae, (x, y)) in Python"
        )
    return torch.from_numpy(labels.astype(np.int64))


def levels_of(xs: list[Any]) -> int | None:
    """How many levels the dtypes of a data set's parts declare, counting from 0, or None for real-valued data."""
    pixels = [_numbers(x) for x in xs]
    if any(a.dtype.kind == "f" or a.min() < 0 for a in pixels):
        return None
    largest = max(1, *(int(a.max()) for a in pixels))
    return 256 if largest > 1 and all(a.dtype == np.uint8 for a in pixels) else largest + 1


def cut(whole: Split, valid: int, test: int) -> list[Split]:
    """The rest, valid and test rows, disjoint, by one fixed permutation; in order if nothing is cut."""
    train = len(whole) - valid - test
    if train < 1:
        raise DataError(f"expected more rows than the {valid + test} for valid and test, got {len(whole)}")
    order = np.random.RandomState(0).permutation(len(whole)) if valid + test else np.arange(len(whole))
    return [whole.subset(rows) for rows in np.split(order, [train, train + valid])]

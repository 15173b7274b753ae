"""Rows of pixels and labels, the three splits of a data set, and the one test that every pixel is a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError, LabelError, ShapeError, known

__all__ = ["BINARIZE", "PARTS", "Data", "Split", "as_tensor", "check_finite", "drawn"]

PARTS = ("train", "valid", "test")
BINARIZE = ("none", "threshold", "static", "dynamic")
# What to pass where something was no tensor.
_WAYS_OUT = {
    "x": "pass rows, such as data.test.x (and data.test.y)",
    "y": "pass numbers, such as data.test.y or numpy.unique(y, return_inverse=True)[1]",
    "mask": "pass True where a pixel is seen, such as ~x.isnan()",
}


@dataclass(frozen=True, eq=False, repr=False)
class Split(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """Rows of one part of a data set: pixels, and labels where there are any.

    Arguments:
        x: pixels ``(N, *x_shape)``, floating point.
        y: labels ``(N,)``, int64, or None.
        binarize: what was done to x, "none", "threshold" or "static"; or what is to be, "dynamic": x holds
            probabilities, and whoever trains on a row first draws its 0/1 pixels from them. Indexing gives x as it is.

    Raises:
        ShapeError: x has no pixel dimension, or y is not one label a row.
        ConfigError: binarize is another word.

    Example:
        >>> Split(torch.zeros(5, 3), torch.arange(5)).subset([4, 0])[0]
        (tensor([0., 0., 0.]), tensor(4))
    """

    x: Tensor
    y: Tensor | None = None
    binarize: str = "none"

    def __post_init__(self) -> None:
        known("binarize", self.binarize, BINARIZE)
        shape = tuple(self.x.shape)
        if len(shape) < 2:
            raise ShapeError(f"expected x of shape (N, *x_shape), got {shape}: pass x[:, None] for one pixel a row")
        if self.y is not None and tuple(self.y.shape) != shape[:1]:
            column = tuple(self.y.shape) == (*shape[:1], 1)
            way_out = "pass y.squeeze(1)" if column else "turn one-hot rows into labels with y.argmax(1)"
            raise ShapeError(
                f"expected y of shape {shape[:1]}, a label for each row of x, got {tuple(self.y.shape)}: {way_out}; "
                "real y, without a Split: fit(vae, (x, y))"
            )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return (self.x[i],) if self.y is None else (self.x[i], self.y[i])

    def __repr__(self) -> str:
        labels = "no labels" if self.y is None else "labels"
        return f"Split({len(self)} rows of {tuple(self.x.shape[1:])}, {labels}, binarize={self.binarize!r})"

    def subset(self, rows: slice | Sequence[int] | np.ndarray | Tensor) -> Split:
        """The given rows, by a slice (which shares memory) or by indices (which copies)."""
        at = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return dataclasses.replace(self, x=self.x[at], y=None if self.y is None else self.y[at])

    def draw(self) -> Tensor:
        """The pixels; where x holds probabilities, 0/1 pixels drawn from them, anew with every call.

        Example:
            >>> Split(torch.tensor([[0.0, 1.0]]), binarize="dynamic").draw()
            tensor([[0., 1.]])
        """
        return torch.bernoulli(self.x) if self.binarize == "dynamic" else self.x

    def head(self, n: int) -> Split:
        """The first n rows, or all of them where there are fewer."""
        if n < 1:
            raise ConfigError(f"expected at least one row, got head({n})")
        return self.subset(slice(n))


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set in three splits, and what its pixels are.

    Arguments:
        name: the name or path it was loaded by.
        train: rows to learn from.
        valid: rows to choose by; empty only where a user's data were too few to cut.
        test: rows to report on; likewise.
        classes: number of labels, or None without labels.
        range: smallest and largest value a pixel may take (of real-valued data: takes in the training split).
        binarization: what loading did: "none", "threshold", "static" or "dynamic".
        levels: how many values a pixel may take, 0 … levels − 1; 2 for binary pixels, None for real-valued ones.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    classes: int | None
    range: tuple[float, float]
    binarization: str
    levels: int | None

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.train.x.shape[1:])

    def head(self, n: int) -> Data:
        """The same data set with the first n rows of every split."""
        train, valid, test = self.train.head(n), self.valid.head(n), self.test.head(n)
        return dataclasses.replace(self, train=train, valid=valid, test=test)

    def describe(self) -> dict[str, Any]:
        """The facts as plain JSON values, for the config and the history of a run.

        Example:
            >>> pv.data.load("digits").describe()["sizes"]
            {'train': 1297, 'valid': 250, 'test': 250}
        """
        return {
            "name": self.name,
            "x_shape": list(self.x_shape),
            "classes": self.classes,
            "range": list(self.range),
            "levels": self.levels,
            "binarization": self.binarization,
            "sizes": {part: len(getattr(self, part)) for part in PARTS},
        }

    def __repr__(self) -> str:
        name, *facts = (f"{key}={value!r}" for key, value in self.describe().items())
        return f"Data({', '.join([name, *facts])})"


def as_tensor(x: Any, what: str = "x", error: type[DataError | LabelError] = DataError) -> Tensor:
    """Return x as a tensor of real numbers; a Split or a whole data set is none.

    Arguments:
        x: x itself, y or a mask.
        what: what the error calls it, "x", "y" or "mask".
        error: what is raised: :class:`LabelError` for y.

    Example:
        >>> as_tensor(["cat", "dog"], "y", LabelError)
        Traceback (most recent call last):
        ppl_vae.errors.LabelError: y: expected a tensor, got list: too many dimensions 'str': ...
    """
    try:
        tensor = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise error(f"{what}: expected a tensor, got {type(x).__name__}: {reason}: {_WAYS_OUT[what]}") from reason
    if tensor.is_complex():
        raise error(
            f"{what}: expected real numbers, got {tensor.dtype}: pass what is meant of them, {what}.abs(), or both "
            f"parts side by side, torch.view_as_real({what})"
        )
    return tensor


def drawn(x: Any) -> Tensor:
    """Return the rows of a split, whose pixels are drawn once where they are drawn in training; or x as a tensor.

    Raises:
        DataError: for what is neither.
    """
    return x.draw() if isinstance(x, Split) else as_tensor(x)


def check_finite(x: Tensor, what: str = "x") -> None:
    """Refuse NaN and infinite values, and say how many there are and where the first is.

    Arguments:
        x: ``(N, *x_shape)``.
        what: what the error calls it.

    Raises:
        DataError: naming the row and the pixel in it.

    Example:
        >>> check_finite(torch.tensor([[0.0, 1.0], [2.0, float("nan")]]))
        Traceback (most recent call last):
        ppl_vae.errors.DataError: expected finite x, got 1 value that is not,
        the first nan at row 1, pixel (1,): ...
    """
    finite = x.isfinite()
    if finite.all():
        return
    bad = finite.numel() - int(finite.sum())
    values = "value that is" if bad == 1 else "values that are"
    row, *pixel = (int(i) for i in np.unravel_index(int(finite.flatten().int().argmin()), x.shape))
    raise DataError(
        f"expected finite {what}, got {bad} {values} not, the first {x[(row, *pixel)].item()} at row {row}, "
        f"pixel {tuple(pixel)}: leave such rows out, or where pixels are missing pass a mask, True where seen, to "
        "what takes one: fit(vae, (x, y, mask)), evaluate(vae, x, y, mask), impute(x, y, mask)"
    )

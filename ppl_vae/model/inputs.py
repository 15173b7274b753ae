r"""From what users pass to tensors: x, mask and the context c of y, each checked and cast.

.. math:: y \mapsto c \in \mathbb{R}^{\text{context}}
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data import as_tensor, check_finite
from ..errors import DataError, LabelError, PartError, ShapeError
from .assembly import Assembly
from .checks import check_rows, check_together
from .masking import seen_alone

__all__ = ["Checked", "not_one_batch"]


class Checked(Assembly):
    """Parts that know what their x and y may be."""

    def _tensor(self, x: Any) -> Tensor | None:
        """X in the model's dtype and on its device: integers and float64 are cast."""
        return None if x is None else as_tensor(x).to(self._beta)

    @staticmethod
    def _mask(x: Tensor | None, mask: Any) -> Tensor | None:
        if mask is None:
            return None
        mask = as_tensor(mask, "mask")
        if x is None or mask.dtype != torch.bool or mask.shape != x.shape:
            expected = "an x to go with it" if x is None else f"bool {tuple(x.shape)}"
            raise ShapeError(f"mask: expected {expected}, got {mask.dtype} {tuple(mask.shape)}")
        return mask.to(x.device)

    def _context(self, y: Any) -> Tensor | None:
        """C = condition(y), (*, context), in the model's dtype and device; None without a condition."""
        if self.condition is None:
            if y is not None:
                raise LabelError(
                    "this model has no condition but is given y: drop y, or build it with condition=OneHot(classes)"
                )
            return None
        if y is None:
            raise LabelError(
                "this model is conditional: pass y, one for every row of x (an integer label, say); to fit, "
                "the two as one, fit(vae, (x, y))"
            )
        y = as_tensor(y, "y", LabelError).to(self._beta.device)
        c = self.condition(y.to(self._beta.dtype) if y.is_floating_point() else y)
        if not isinstance(c, Tensor) or c.dim() == 0:
            raise PartError(f"condition: expected it to return floats (*, context), got {type(c).__name__}")
        return c.to(self._beta)

    def _context_of(self, x: Tensor, y: Any) -> Tensor | None:
        """C of a y for each row of x, or of one for all; a column of them would meet every row with every y."""
        c, shapes = self._context(y), (getattr(part, "x_shape", None) for part in (self.likelihood, self.encoder))
        # Where neither says, an event of x has one dimension at the least.
        event = next((len(shape) for shape in shapes if shape is not None), 1)
        if c is not None and c.dim() - 1 > max(1, x.dim() - event):
            raise not_one_batch(c.shape[:-1], squeezable=True)
        return c

    def observe(self, y: Tensor) -> None:
        """Show the labels of training rows to a condition that keeps count of them."""
        if (observe := getattr(self.condition, "observe", None)) is not None:
            observe(y)

    def per_row(self, y: Tensor) -> bool:
        """Whether y has a batch dimension: one for every row of x, and not one for all; a y may have dimensions too."""
        return y.dim() > len(getattr(self.condition, "y_shape", ()))

    def _labels_of(self, y: Tensor | None, rows: slice) -> Tensor | None:
        """The labels of some rows: one y for all is theirs too."""
        return y if y is None or not self.per_row(y) else y[rows]

    def _rows(self, x: Tensor) -> torch.Size:
        """The batch shape of x: none, where it is one datum."""
        # A wrapper says None where what it wraps does not say.
        shape = getattr(self.likelihood, "x_shape", None) or ()
        return x.shape[:1] if x.dim() > max(1, len(shape)) else torch.Size()

    def check(self, x: Any, y: Any = None, mask: Any = None) -> None:
        """Raise unless x and y are data for this model, whose parts go together; for a whole data set, before a step.

        With a mask, True where a pixel is seen, what stands in the place of the others is not looked at.

        Raises:
            DataError: for NaN, infinity, no rows, no pixel that is seen, or values that the likelihood cannot have
                generated.
            ShapeError: if x has another shape than the likelihood's, or y more dimensions than one a row.
            PartError: if the parts do not go together: a sphere and all of space, for one.
            LabelError: if y is missing, unwanted, of another length, or out of range.
        """
        x = self._seen(x, mask)
        self.check_values(x, y)
        check_together(self, x, None if y is None else as_tensor(y, "y", LabelError))

    def check_values(self, x: Any, y: Any = None, mask: Any = None) -> None:
        """As :meth:`check`, of the data alone."""
        x = self._seen(x, mask)
        check_rows(x)
        check_x = getattr(self.likelihood, "check", None) or check_finite
        check_x(x)
        if x.dtype != (own := self._beta.dtype):
            try:
                # What is inside the support can be rounded out of it.
                check_x(x.to(own))
            except DataError as error:
                raise DataError(
                    f"{error} (x is {x.dtype}, and so it becomes when cast to the model's {own}: clamp it, or take "
                    f"vae.to({x.dtype}))"
                ) from error
        self.check_labels(x, y)

    def check_labels(self, x: Tensor, y: Any = None) -> None:
        """As :meth:`check`, of y alone, for rows of x in which there may be nothing to look at."""
        if self.condition is None or y is None:
            self._context(y)
            return
        y = as_tensor(y, "y", LabelError)
        self._check_one_batch(y)
        if self.per_row(y) and not self._rows(x):
            raise LabelError(f"expected one y for one x {tuple(x.shape)}, got {tuple(y.shape)}: pass y[0], or x[None]")
        if self.per_row(y) and len(y) != len(x):
            raise LabelError(f"expected one y a row of x, got {len(y)} for {len(x)} rows")
        if (check := getattr(self.condition, "check", None)) is not None:
            check(y)
        elif y.is_floating_point():
            check_finite(y, "y")

    def _seen(self, x: Any, mask: Any) -> Tensor:
        """X, in which values that are seen stand for those that are not."""
        x, mask = as_tensor(x), self._mask(as_tensor(x), mask)
        if mask is None:
            return x
        if not mask.any():
            raise DataError("mask: expected at least one pixel that is seen (True), got none")
        return seen_alone(x, mask)

    def _check_one_batch(self, y: Tensor) -> None:
        shape = getattr(self.condition, "y_shape", None)
        if shape is not None and y.dim() > 1 + len(shape):
            raise not_one_batch(y.shape[: y.dim() - len(shape)], squeezable=not shape)

    def check_training(self, x: Any, y: Any = None) -> None:
        """As :meth:`check`, for rows to train on: a model may do without some labels there."""
        self.check(x, self.labels_to_check(y))

    def labels_to_check(self, y: Any) -> Any:
        """Return what :meth:`check` is to see of the labels of rows to train on."""
        return y


def not_one_batch(batch: torch.Size, squeezable: bool) -> ShapeError:
    """The error for a y of more than one batch dimension."""
    way_out = ": pass y.squeeze(-1)" if batch[-1] == 1 and squeezable else ""
    return ShapeError(f"y: expected one a row of x, one batch dimension, got {tuple(batch)}{way_out}")

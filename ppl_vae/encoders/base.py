r"""What all encoders share: a network of a standardised x, joined with its context, and what its numbers stand for.

.. math:: q(z \mid x, y) = \mathrm{from\_raw}\bigl(\mathrm{network}([(x - \text{shift}) / \text{scale};\ c])\bigr)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import check_shape, check_units
from ..networks import Body, Network
from ..parts import Part, check_context

__all__ = ["Encoder", "standardising"]


class Encoder(Part):
    """The network of (x − shift) / scale, joined with c, for as many raw numbers as a distribution needs.

    A class says how many, and which distribution they make, in :meth:`from_raw`.

    Arguments:
        width: how many.
        x_shape, context, hidden, network, shift, scale: as the encoders take them.

    Raises:
        ConfigError: for a shift or scale that is no finite number, or a scale that is not positive.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        width: int,
        x_shape: Sequence[int],
        context: int,
        hidden: Sequence[int],
        network: Body | None,
        shift: float,
        scale: float,
    ) -> None:
        super().__init__()
        shift, scale = check_units(shift, scale)
        self.x_shape, self.context = check_shape("x_shape", x_shape), context
        self.network = Network(self.x_shape, (width,), context, hidden, network)
        self.constant("shift", shift)
        self.constant("scale", scale)

    def raw(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Return the raw numbers (*, width)."""
        check_context(self, c, self.context)
        return self.network((x - self.shift) / self.scale, c)

    def from_raw(self, raw: Tensor) -> Any:
        """Return the distribution that the raw numbers (*, width) stand for, batch shape (*)."""
        raise NotImplementedError

    def forward(self, x: Tensor, c: Tensor | None = None) -> Any:
        """Return the distribution for x (*, *x_shape) and c (*, context)."""
        return self.from_raw(self.raw(x, c))

    def of_rows(self, x: Tensor, c: Tensor, rows: Tensor) -> Any:
        """Return ``self(x, c)`` of picked rows: what ``self(x, c[rows])`` is, with a pass a row of c and not a pick.

        Arguments:
            x: (*, *x_shape), broadcast against the dimensions of c behind its first.
            c: (M, *, context).
            rows: integers 0 … M − 1, any shape, which the batch shape then begins with.

        Example:
            >>> encoder, x, labels = pv.encoders.Gaussian(2, (4,), context=3), torch.rand(5, 4), torch.eye(3)
            >>> encoder.of_rows(x, labels.unsqueeze(-2), torch.tensor([2, 2, 0, 1])).shape()
            torch.Size([4, 5, 2])
        """
        # A class with a forward of its own, or with hooks on it, is more than its raw numbers.
        if type(self).forward is not Encoder.forward or self._forward_hooks or self._forward_pre_hooks:
            return self(x, c[rows])
        return self.from_raw(self.raw(x, c)[rows])


def standardising(part: Any) -> list[Encoder]:
    """Return the encoders a part is, or is around, which standardise x."""
    return [module for module in part.modules() if isinstance(module, Encoder)] if isinstance(part, nn.Module) else []

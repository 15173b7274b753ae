r"""An encoder that is told which pixels are seen.

.. math:: q(z \mid x_{\text{seen}}, m, y) = \mathrm{encoder}([x \odot m;\ m], c), \qquad m_d \in \{0, 1\}
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PartError, ShapeError
from ..networks.convolutional import Convolutional
from ..parts import Part
from .base import standardising

__all__ = ["Masked"]


class Masked(Part):
    r"""Wraps an encoder, which then gets the mask of seen pixels behind x, as further channels.

    Without it an encoder sees zeros in the place of unseen pixels and cannot tell them from pixels that are zero. The
    network behind the encoder's standardisation of x gets a mask of zeros and ones, whatever the range of a pixel.

    Arguments:
        part: an encoder of twice the channels, ``x_shape = (2 C, ...)``.

    Raises:
        PartError: for what cannot be called, or does not say its ``x_shape``; or a chain whose encoders standardise x
            in two ways.
        ShapeError: if its channels are not an even number, or a convolution has none; or, when called, for another x.

    Reference:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei and Frellsen, 2019), which feeds
        zeros; Conditional Neural Processes (Garnelo et al., 2018) for telling what was seen

    Example:
        >>> encoder = Masked(pv.encoders.Gaussian(2, (2, 8, 8)))
        >>> encoder.x_shape, encoder(torch.zeros(5, 1, 8, 8)).shape()
        ((1, 8, 8), torch.Size([5, 2]))
    """

    sees_mask = True

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        inner = getattr(part, "x_shape", None)
        if not callable(part) or inner is None:
            raise PartError(f"Masked: expected an encoder that says its x_shape, got {type(part).__name__}")
        if inner[0] % 2:
            raise ShapeError(f"Masked: expected an encoder of x and its mask, x_shape (2 C, ...), got {tuple(inner)}")
        self.part, self.x_shape = part, (inner[0] // 2, *inner[1:])
        if len(inner) == 2 and any(isinstance(e.network.body, Convolutional) for e in standardising(part)):
            size = ", ".join(map(str, self.x_shape))
            raise ShapeError(
                f"Masked: expected a convolution to have the mask in a channel, x_shape (2, {size}), got "
                f"{tuple(inner)} with the mask below the image: give x a channel, x_shape (1, {size})"
            )
        if len(units := {(float(e.shift), float(e.scale)) for e in standardising(part)}) > 1:
            raise PartError(f"Masked: expected encoders of one (shift, scale) of x, got {sorted(units)}")

    @property
    def features(self) -> int | None:
        """The number of latent features, where the wrapped encoder says it."""
        return getattr(self.part, "features", None)

    @property
    def context(self) -> int | None:
        """The number of context features, where the wrapped encoder says it."""
        return getattr(self.part, "context", None)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Any:
        """Return q(z | x, y) for x (*, *x_shape), all of it seen; or for x and its mask in one, (*, 2 C, ...)."""
        dim = -len(self.x_shape)
        x, mask = (x, torch.ones_like(x)) if x.shape[dim:] == self.x_shape else x.tensor_split(2, dim)
        # For whose network (m − shift) / scale is to be a mask.
        if encoders := standardising(self.part):
            mask = mask * encoders[0].scale + encoders[0].shift
        return self.part(torch.cat([x, mask], dim), c)

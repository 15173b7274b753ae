"""What all encoders share: a network of a standardised x, joined with its context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from ..networks import Body, Network
from ..parts import Part, check_context, check_positive

__all__ = ["Encoder"]


class Encoder(Part):
    """The network of (x − shift) / scale, joined with c, for as many raw numbers as a distribution needs.

    Arguments:
        width: how many.
        x_shape, context, hidden, network, shift, scale: as the encoders take them.
        sizes: whole numbers of at least one, to be checked and kept, such as the number of latent features.

    Raises:
        ConfigError: for a size that is none, or a scale that is not positive.
    """

    features: int
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
        **sizes: int,
    ) -> None:
        super().__init__()
        check_positive(**sizes)
        for name, size in sizes.items():
            setattr(self, name, size)
        if not scale > 0:
            raise ConfigError(f"expected scale > 0, got {scale}")
        self.x_shape, self.context = tuple(x_shape), context
        self.network = Network(x_shape, (width,), context, hidden, network)
        self.register_buffer("shift", torch.tensor(float(shift)))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def raw(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Return the raw numbers (*, width)."""
        check_context(self, c, self.context)
        return self.network((x - self.shift) / self.scale, c)

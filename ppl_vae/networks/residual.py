r"""A residual convolutional body: what convolutions find is added to what they were given.

.. math:: h \mapsto h + W_2 * \sigma\bigl(\mathrm{FiLM}_c(W_1 * \sigma(h))\bigr)

where the modulation by the context is there if it is asked for. The sum has no activation behind it, so that the
identity is a straight way through all blocks of a level (He et al., 2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import check_positive
from .convolutional import Convolutional
from .film import Modulation
from .mlp import Activation, activate

__all__ = ["Block", "ResNet"]


class Block(nn.Module):
    """One residual block of maps (N, channels, H, W).

    Arguments:
        channels: of the maps.
        modulation: what scales and shifts the maps inside by the context, if anything does.
        activation: as :class:`~ppl_vae.networks.MLP` takes it.
    """

    def __init__(self, channels: int, modulation: Modulation | None, activation: Activation) -> None:
        super().__init__()
        self.activation, self.modulation = activate(activation), modulation
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, c: Tensor | None = None) -> Tensor:
        """Return h and what is added to it, for h (N, channels, H, W) and c (N, context)."""
        found = self.first(self.activation(h))
        if self.modulation is not None:
            found = self.modulation(found, c)
        return h + self.second(self.activation(found))


class ResNet(Convolutional):
    r"""A residual convolutional body for images of any size, down or up as :class:`~ppl_vae.networks.Conv`.

    .. math:: h \mapsto h + W_2 * \phi(W_1 * \phi(h))

    At every size so many residual blocks follow the convolution that halves, or come before the one that doubles. There
    is no normalisation: every row is what it would be alone.

    Arguments:
        in_shape, out_shape: the first of them that ends in (H, W), with any dimensions (channels) before, is the image.
        context: the number of context features.
        hidden: the widths of the dense layers between the features and the other side.
        channels: the channels at each size, from the image inwards.
        blocks: how many residual blocks at each size.
        film: the context modulates the maps in every block, instead of joining at the dense end.
        activation: as :class:`~ppl_vae.networks.MLP` takes it.

    Raises:
        ShapeError: if neither of the sides is an image.
        ConfigError: for ``film`` without a context.

    References:
        Identity Mappings in Deep Residual Networks (He, Zhang, Ren and Sun, 2016);
        FiLM: Visual Reasoning with a General Conditioning Layer (Perez, Strub, de Vries, Dumoulin and Courville, 2018).

    Example:
        >>> ResNet((3, 32, 32), (64,), context=10, channels=(8, 16))(torch.zeros(5, 3082)).shape
        torch.Size([5, 64])
        >>> ResNet((16,), (1, 28, 28), context=10, channels=(8, 16), film=True)(torch.zeros(5, 26)).shape
        torch.Size([5, 784])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        channels: Sequence[int] = (32, 64),
        blocks: int = 2,
        film: bool = False,
        activation: Activation = "relu",
    ) -> None:
        check_positive(blocks=blocks, levels=len(channels))

        def between(width: int) -> list[nn.Module]:
            modulations = [Modulation(context, width, dims=2) if film else None for _ in range(blocks)]
            return [Block(width, modulation, activation) for modulation in modulations]

        super().__init__(in_shape, out_shape, 0 if film else context, hidden, channels, activation, between)
        self.film = film

    def apart(self, a: Tensor, c: Tensor) -> Tensor:
        """Return what the joined input gives, (*, out), for ``a`` (*, in) and ``c`` (*, context)."""
        if not self.film:
            return super().apart(a, c)
        # Maps are modulated, so there is one for every pair of a row of each.
        batch = torch.broadcast_shapes(a.shape[:-1], c.shape[:-1])
        c = c.expand(*batch, -1)
        if self.down:
            return self.dense(self.rows(a.expand(*batch, -1), c))
        return self.rows(self.dense(a).expand(*batch, -1), c)

    def maps(self, h: Tensor, c: Tensor | None) -> Tensor:
        """Take maps (N, channels, H, W) through the convolutions and blocks."""
        for layer in self.convolutions:
            h = layer(h, c) if isinstance(layer, Block) else layer(h)
        return h

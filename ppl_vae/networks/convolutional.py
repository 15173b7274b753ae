r"""Convolutional bodies: down where the input is an image, up where the output is one.

.. math:: (H, W) \to (\lceil H/2 \rceil, \lceil W/2 \rceil) \to \ldots \qquad\text{or back}

Every size of an image has its way down and exactly back up; the context joins at the dense end.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from ..errors import ShapeError, check_positive
from .joining import through
from .mlp import MLP, Activation, activate

__all__ = ["Conv", "Convolutional"]


class Convolutional(nn.Module):
    """What convolutional bodies share: the sizes, the halvings or doublings, and the dense end.

    Arguments:
        in_shape, out_shape: the first of them that ends in (H, W), with any dimensions (channels) before, is the image.
        context: the number of context features that join at the dense end.
        hidden: the widths of the dense layers between the features and the other side.
        channels: the channels of the convolutions, from the image inwards.
        activation: as :class:`~ppl_vae.networks.MLP` takes it.
        between: makes the layers that follow a halving, or come before a doubling, for a number of channels.

    Raises:
        ShapeError: if neither of the sides is an image.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        context: int,
        hidden: Sequence[int],
        channels: Sequence[int],
        activation: Activation,
        between: Callable[[int], Sequence[nn.Module]] = lambda width: (),
    ) -> None:
        super().__init__()
        self.down = len(in_shape) >= 2
        if not self.down and len(out_shape) < 2:
            raise ShapeError(
                f"{type(self).__name__}: expected an image (channels, H, W) on one side, got {tuple(in_shape)} -> "
                f"{tuple(out_shape)}: give x_shape its channels, or use the default MLP"
            )
        check_positive(**{f"channels[{i}]": width for i, width in enumerate(channels)})
        image = tuple(in_shape if self.down else out_shape)
        self.inputs = math.prod(in_shape) if in_shape else 0
        self.image = (math.prod(image[:-2]), *image[-2:])
        if self.image[2] in (1, 3, 4) and self.image[0] == self.image[1] > 4:
            warnings.warn(
                f"{type(self).__name__}: an image {image} is {self.image[0]} channels of {self.image[1]} × "
                f"{self.image[2]}: of one whose channels come last, x.permute(0, 3, 1, 2) is what is wanted",
                stacklevel=2,
            )
        sizes = [self.image[1:]]
        for _ in channels:
            sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
        levels = [self.image[0], *channels]
        self.small = (levels[-1], *sizes[-1])
        layers: list[nn.Module] = []
        if self.down:
            for i, o in pairwise(levels):
                layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), *between(o), activate(activation)]
            self.dense = MLP((math.prod(self.small),), out_shape, context, hidden, activation)
        else:
            for k in reversed(range(len(channels))):
                # What a halving rounded up is undone here: an even side needs one more row than an odd one.
                extra = sizes[k][0] - 2 * sizes[k + 1][0] + 1, sizes[k][1] - 2 * sizes[k + 1][1] + 1
                up = nn.ConvTranspose2d(levels[k + 1], levels[k], 3, stride=2, padding=1, output_padding=extra)
                layers += [*between(levels[k + 1]), activate(activation), up]
            self.dense = MLP(in_shape, self.small, context, hidden, activation)
        self.convolutions = nn.Sequential(*layers)

    @property
    def last(self) -> nn.Module:
        """The layer whose bias is added to the output."""
        return self.convolutions[-1] if len(self.convolutions) and not self.down else self.dense[-1]

    def forward(self, joined: Tensor) -> Tensor:
        """Map a joined input (N, in + context) to (N, out)."""
        return self.apart(*joined.tensor_split([self.inputs], dim=-1))

    def apart(self, a: Tensor, c: Tensor) -> Tensor:
        """Return what the joined input gives, (*, out), for ``a`` (*, in) and ``c`` (*, context)."""
        return through(self.dense, self.rows(a), c) if self.down else self.rows(through(self.dense, a, c))

    def rows(self, h: Tensor, c: Tensor | None = None) -> Tensor:
        """Take h (*, n) through the convolutions, as (*, m), with c (*, context) beside it where they look at it."""
        before, after = (self.image, self.small) if self.down else (self.small, self.image)
        maps = self.maps(h.reshape(-1, *before), None if c is None else c.reshape(-1, c.shape[-1]))
        return maps.reshape(*h.shape[:-1], math.prod(after))

    def maps(self, h: Tensor, c: Tensor | None) -> Tensor:
        """Take maps (N, channels, H, W) through the convolutions."""
        return self.convolutions(h)


class Conv(Convolutional):
    r"""A convolutional body for images of any size: down where the input is an image, up where the output is one.

    .. math:: h_{i+1}[u] = \phi\Bigl(b_i + \sum_v W_i[v]\, h_i[2u + v]\Bigr), \qquad u, v \in \mathbb{Z}^2

    Each layer halves (doubles) height and width, rounding up; the condition joins at the dense end.

    Arguments:
        in_shape, out_shape: the first of them that ends in (H, W), with any dimensions (channels) before, is the image.
        context: the number of context features.
        hidden: the widths of the dense layers between the features and the other side.
        channels: the channels of the convolutions, from the image inwards.
        activation: as :class:`~ppl_vae.networks.MLP` takes it.

    Raises:
        ShapeError: if neither of the sides is an image.

    Reference:
        Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks (Radford, Metz and
        Chintala, 2016)

    Example:
        >>> Conv((1, 28, 20), (32,), context=10)(torch.zeros(5, 570)).shape
        torch.Size([5, 32])
        >>> Conv((16,), (1, 28, 20), context=10)(torch.zeros(5, 26)).shape
        torch.Size([5, 560])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        channels: Sequence[int] = (32, 64),
        activation: Activation = "relu",
    ) -> None:
        super().__init__(in_shape, out_shape, context, hidden, channels, activation)

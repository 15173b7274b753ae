r"""What likelihoods share: the network of a z joined with c, the checks of x, and a spread that may be learned.

.. math:: \theta(z, c) = \mathrm{network}([z; c]) \in \mathbb{R}^{k \times D}

with k raw numbers a pixel, which stand in the first dimension of x's shape: channels, for a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data import Split, check_finite, drawn
from ..errors import ConfigError, DataError, ShapeError, check_positive, check_range, check_shape
from ..networks import Network
from ..parts import Part, check_context

__all__ = ["Likelihood", "Spread", "SpreadOf", "check_counts", "logit_of"]

# How a spread comes about: a fixed number, one learned number, one a pixel, or an output of the network.
SpreadOf = float | Literal["shared", "pixel", "output"]


class Likelihood(Part):
    """A network from a z joined with c to the raw parameters of a pixel's distribution; and what x it is about.

    ``density`` says whether it is one, or a probability, which grey pixels under a Bernoulli are not; ``levels``, how
    many values a pixel can take, None where there is no such number.
    """

    density = True
    levels: int | None = None
    network: Network

    def __init__(self, x_shape: Sequence[int], features: int, context: int) -> None:
        super().__init__()
        check_positive(features=features)
        self.x_shape, self.features, self.context = check_shape("x_shape", x_shape), features, context

    def body(self, hidden: Sequence[int], network: Any, numbers: int = 1) -> Network:
        """Return the network for so many raw numbers a pixel."""
        raw = self.x_shape if numbers == 1 else (numbers * self.x_shape[0], *self.x_shape[1:])
        if numbers > 1 and len(self.x_shape) == 2:
            # For a convolution an image (H, W) is one channel, and not H of them.
            raw = (numbers, *self.x_shape)
        return Network((self.features,), raw, self.context, hidden, network)

    def raw(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Return the raw parameters (*, k · x_shape[0], …) for z (*, features) and c (*, context)."""
        check_context(self, c, self.context)
        raw = self.network(z, c)
        return raw if len(self.network.out_shape) == len(self.x_shape) else raw.flatten(-3, -2)

    def per_pixel(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Return the raw parameters with a pixel's numbers side by side, (*, *x_shape, k)."""
        dim = -len(self.x_shape)
        return self.raw(z, c).unflatten(dim, (-1, self.x_shape[0])).movedim(dim - 1, -1)

    def check(self, x: Tensor) -> None:
        """Raise unless x (*, *x_shape) is data that this likelihood can have generated.

        Raises:
            ShapeError: if x ends in another shape.
            DataError: for NaN, infinity, or values outside the support; the message says the way out.
        """
        event = x.dim() - len(self.x_shape)
        if event < 0 or tuple(x.shape[event:]) != self.x_shape:
            raise ShapeError(f"x: expected (N, {', '.join(map(str, self.x_shape))}), got {tuple(x.shape)}")
        check_finite(x)
        if x.numel():
            self._check_support(x)

    def _check_support(self, x: Tensor) -> None:
        """Raise a DataError for values outside the support; any finite value is inside it unless a class says more."""

    @torch.no_grad()
    def start_from(self, x: Tensor | Split) -> None:
        """Let the biases say what data look like, before training: the mean of x, a pixel at a time.

        It sets the bias of the network's last layer, so that with weights of zero the likelihood's mean is that of the
        data; a learned spread starts at the spread around it. Pixels that never vary are kept from certainty.

        Arguments:
            x: (*, *x_shape), or a data set's training split; pixels that are drawn in training are drawn here, once.

        Raises:
            DataError: if there are no rows, or none that this likelihood can have generated.
            PartError: if the network's last layer has no bias.
        """
        x = drawn(x)
        if not x.numel():
            raise DataError("start_from: expected at least one row of data, got none")
        x = x.to(next(self.network.parameters(), torch.zeros(())))
        self.check(x)
        self._start(x.reshape(-1, *self.x_shape))

    def _start(self, x: Tensor) -> None:
        """Set biases and what else is learned, for x (N, *x_shape)."""
        self._start_at(self._raw_start(x))

    def _start_at(self, raw: Tensor) -> None:
        """Have the network begin at raw parameters (k · x_shape[0], …)."""
        self.network.start_at(raw.reshape(self.network.out_shape))

    def _raw_start(self, x: Tensor) -> Tensor:
        """The raw parameters (k · x_shape[0], …) to start at, for x (N, *x_shape)."""
        raise NotImplementedError


class Spread(Likelihood):
    """A likelihood with two numbers a pixel: where it is, from the network, and how wide, which may be learned.

    A class says which spread a logarithm stands for, in ``_spread``, and back, in ``_log``; what the data say, in
    ``_place`` and ``_estimate``; and the name of the learned logarithm, in ``_parameter``.
    """

    _parameter = "log_scale"
    fixed: Tensor

    def set_up(
        self, hidden: Sequence[int], network: Any, option: str, spread: SpreadOf, clamp: Sequence[float]
    ) -> None:
        """Make the network and the parameters for a spread that comes about like that."""
        self.network = self.body(hidden, network, 2 if spread == "output" else 1)
        self.spread, self.clamp = spread, check_range("clamp", clamp)
        if spread in ("shared", "pixel"):
            zeros = torch.zeros(self.x_shape if spread == "pixel" else ())
            self.register_parameter(self._parameter, nn.Parameter(zeros))
        elif spread != "output":
            if isinstance(spread, str) or not 0 < spread < math.inf:
                raise ConfigError(f"expected {option} > 0, 'shared', 'pixel' or 'output', got {spread!r}")
            self.constant("fixed", float(spread), persistent=False)

    def place_and_spread(self, z: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the network says about the place (*, *x_shape), and the spread, which broadcasts with it."""
        raw = self.raw(z, c)
        if not isinstance(self.spread, str):
            return raw, self.fixed
        if self.spread == "output":
            raw, log = raw.chunk(2, -len(self.x_shape))
        else:
            log = getattr(self, self._parameter)
        return raw, self._spread(log.clamp(*self.clamp))

    def _spread(self, log: Tensor) -> Tensor:
        raise NotImplementedError

    def _log(self, spread: Tensor) -> Tensor:
        raise NotImplementedError

    def _place(self, mean: Tensor) -> Tensor:
        """The raw numbers (*x_shape) that put the likelihood's mean there."""
        raise NotImplementedError

    def _estimate(self, x: Tensor, mean: Tensor, dims: tuple[int, ...]) -> Tensor:
        """The spread of x (N, *x_shape) around its mean (*x_shape), over these dimensions."""
        raise NotImplementedError

    def _start(self, x: Tensor) -> None:
        mean = x.mean(0)
        place = self._place(mean)
        if not isinstance(self.spread, str):
            self._start_at(place)
            return
        spread = self._estimate(x, mean, tuple(range(x.dim())))
        if self.spread != "shared":
            # A pixel that never varies would start at no spread at all.
            spread = self._estimate(x, mean, (0,)).clamp(spread / 10, spread * 10)
        log = self._log(spread).clamp(*self.clamp)
        self._start_at(torch.cat([place, log]) if self.spread == "output" else place)
        if self.spread != "output":
            getattr(self, self._parameter).copy_(log)


def logit_of(mean: Tensor) -> Tensor:
    """Return the logit of a mean, which is kept from 0 and 1 by a thousandth."""
    return torch.logit(mean.clamp(0.001, 0.999))


def check_counts(name: str, x: Tensor, largest: int | None, way_out: str, alternative: str) -> None:
    """Raise a DataError unless x holds whole numbers from 0 to the largest, if there is one.

    Arguments:
        name: of the likelihood.
        x: any shape, not empty.
        largest: the largest count.
        way_out: what to do about numbers that are too small or too large.
        alternative: what to do about fractions.
    """
    counts = "0, 1, 2, …" if largest is None else f"0 … {largest}"
    low, high = x.min().item(), x.max().item()
    if low < 0 or (largest is not None and high > largest):
        raise DataError(f"{name}: expected counts {counts}, got {low:g} … {high:g}: {way_out}")
    if x.is_floating_point() and (x != x.round()).any():
        raise DataError(f"{name}: expected whole counts {counts}, got fractions in {low:g} … {high:g}: {alternative}")

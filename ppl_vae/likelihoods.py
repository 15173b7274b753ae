r"""Likelihoods: z, c → p(x | z, y).

.. math:: \log p(x \mid z, y) = \sum_{d=1}^{D} \log p(x_d;\ \theta_d(z, c))

Always the normalised log-density (or log-probability) of x in its own units, in nats, summed over the D pixels. Each
says what data it could have generated, and ``check(x)`` refuses others with the way out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .data import check_finite
from .distributions import GreyBernoulli
from .errors import ConfigError, DataError, ShapeError
from .networks import Body, Network
from .parts import Part, Unconditional, check_context, check_positive

__all__ = ["Bernoulli", "Binomial", "Gaussian", "Unconditional"]


class _Likelihood(Part):
    """What likelihoods share: the network of a z joined with c, and the checks every x must pass."""

    density = True
    network: Network

    def __init__(self, x_shape: Sequence[int], features: int, context: int) -> None:
        super().__init__()
        check_positive(features=features, **{f"x_shape[{i}]": n for i, n in enumerate(x_shape)})
        self.x_shape, self.features, self.context = tuple(x_shape), features, context

    def raw(self, z: Tensor, c: Tensor | None) -> Tensor:
        check_context(self, c, self.context)
        return self.network(z, c)

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


class Bernoulli(_Likelihood):
    r"""Binary pixels; its negative logarithm is the cross-entropy.

    .. math:: \log p(x \mid z, y) = \sum_d x_d \log \pi_d + (1 - x_d) \log(1 - \pi_d), \qquad x_d \in \{0, 1\}

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        grey: accept x in [0, 1] and return the cross-entropy, which is then **not a density**; for repeating others'
            figures only. Every table says so.

    Example:
        >>> Bernoulli((1, 28, 28), 20, context=10)(torch.zeros(5, 20), torch.zeros(5, 10)).shape()
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        grey: bool = False,
    ) -> None:
        super().__init__(x_shape, features, context)
        self.grey = grey
        self.density = not grey
        self.network = Network((features,), x_shape, context, hidden, network)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        family = GreyBernoulli if self.grey else dist.Bernoulli
        return family(logits=self.raw(z, c)).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        low, high = x.min().item(), x.max().item()
        if low < 0 or high > 1:
            hint = ": divide x by 255 (scale='unit')" if x.dtype == torch.uint8 or high > 1 else ""
            raise DataError(
                f"Bernoulli: expected x in {'[0, 1]' if self.grey else '{0, 1}'}, got {low:g} … {high:g}{hint}, and "
                f"binarise it (binarize='threshold', 'static' or 'dynamic'), or use Binomial for counts"
            )
        if not self.grey and not ((x == 0) | (x == 1)).all():
            raise DataError(
                f"Bernoulli: expected x in {{0, 1}}, got grey values in {low:g} … {high:g}, of which it is no density: "
                "binarise x (binarize='threshold', 'static' or 'dynamic'), use a continuous Bernoulli or another "
                "density, or Bernoulli(grey=True) to repeat a figure computed like that"
            )


class Binomial(_Likelihood):
    r"""Pixels that count: how many of n dots are inked.

    .. math:: \log p(x \mid z, y) = \sum_d \log \binom{n}{x_d} + x_d \log \pi_d + (n - x_d) \log(1 - \pi_d)

    A pixel of scikit-learn's digits counts the inked dots of a 4 × 4 block, so n = 16 is its natural density.

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        total_count: n, the largest count.

    Example:
        >>> p = Binomial((1, 8, 8), 16, total_count=16)(torch.zeros(5, 16))
        >>> p.shape(), p.mean.max().item() <= 16
        (torch.Size([5, 1, 8, 8]), True)
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        total_count: int = 255,
    ) -> None:
        super().__init__(x_shape, features, context)
        check_positive(total_count=total_count)
        self.total_count = total_count
        self.network = Network((features,), x_shape, context, hidden, network)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        return dist.Binomial(self.total_count, logits=self.raw(z, c)).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        low, high = x.min().item(), x.max().item()
        if low < 0 or high > self.total_count:
            raise DataError(
                f"Binomial: expected counts 0 … {self.total_count}, got {low:g} … {high:g}: set total_count to the "
                f"largest count a pixel can have"
            )
        if x.is_floating_point() and (x != x.round()).any():
            raise DataError(
                f"Binomial: expected whole counts 0 … {self.total_count}, got fractions in {low:g} … {high:g}: load "
                "with scale='levels', or use Gaussian for real values"
            )


class Gaussian(_Likelihood):
    r"""Real pixels around a mean from the network.

    .. math:: -\log p(x \mid z, y) = \sum_d \frac{(x_d - \hat x_d)^2}{2 \sigma_d^2} + \frac12 \log 2 \pi \sigma_d^2

    With σ² = ½ it is the summed squared error plus the constant (D/2) log π.

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        sigma: σ in the units of x: a number (fixed), ``"shared"`` (one learned σ), ``"pixel"`` (one learned σ a pixel),
            or ``"output"`` (from the network, so that it depends on z and y).
        shift, scale: the mean is shift + scale × the network's output, and a learned σ starts at scale.
        clamp: log (σ²/scale²) of a learned σ is kept in this range.

    Example:
        >>> squared_error = Gaussian((64,), 2, sigma=0.5**0.5)
        >>> x, z = torch.rand(5, 64), torch.zeros(5, 2)
        >>> nll = -squared_error(z).log_prob(x)
        >>> error = (x - squared_error(z).mean).square().sum(-1)
        >>> torch.allclose(nll, error + 32 * math.log(math.pi))
        True
    """

    shift: Tensor
    scale: Tensor
    fixed: Tensor

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        sigma: float | Literal["shared", "pixel", "output"] = "shared",
        shift: float = 0.0,
        scale: float = 1.0,
        clamp: tuple[float, float] = (-14.0, 14.0),
    ) -> None:
        super().__init__(x_shape, features, context)
        if not scale > 0:
            raise ConfigError(f"expected scale > 0, got {scale}")
        raw = (2 * self.x_shape[0], *self.x_shape[1:]) if sigma == "output" else self.x_shape
        self.network = Network((features,), raw, context, hidden, network)
        self.sigma, self.clamp = sigma, tuple(clamp)
        self.register_buffer("shift", torch.tensor(float(shift)))
        self.register_buffer("scale", torch.tensor(float(scale)))
        fixed = None
        if sigma in ("shared", "pixel"):
            self.log_variance = nn.Parameter(torch.zeros(self.x_shape if sigma == "pixel" else ()))
        elif sigma != "output":
            if isinstance(sigma, str) or not 0 < sigma < math.inf:
                raise ConfigError(f"expected sigma > 0, 'shared', 'pixel' or 'output', got {sigma!r}")
            fixed = torch.tensor(float(sigma))
        self.register_buffer("fixed", fixed, persistent=False)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        loc, log_variance = self.raw(z, c), None
        if self.sigma == "output":
            loc, log_variance = loc.chunk(2, -len(self.x_shape))
        elif isinstance(self.sigma, str):
            log_variance = self.log_variance
        sigma = self.fixed
        if log_variance is not None:
            sigma = self.scale * (0.5 * log_variance.clamp(*self.clamp)).exp()
        return dist.Normal(self.shift + self.scale * loc, sigma).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        if x.dtype == torch.uint8:
            raise DataError(
                "Gaussian: expected floats, got uint8 (0 … 255): pass x / 255 (scale='unit' when loading), or "
                "x.float() to model the grey levels as they are"
            )

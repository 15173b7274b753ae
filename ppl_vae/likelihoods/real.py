r"""Real pixels around a location from the network.

.. math:: p(x \mid z, y) = \prod_d \frac{1}{\sigma_d}\, f\Bigl(\frac{x_d - \hat x_d}{\sigma_d}\Bigr), \qquad
    \hat x = \text{shift} + \text{scale} \cdot \mathrm{network}([z; c])

with f the standard normal, the Laplace or a Student-t density, whose tails are the heavier the later it is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import StudentT as StudentTPixel
from ..errors import ConfigError, DataError, check_units
from ..networks import Body
from .base import Spread, SpreadOf

__all__ = ["Gaussian", "Laplace", "LocationScale", "StudentT"]


class LocationScale(Spread):
    """A location and a scale; a class says of which family."""

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        sigma: SpreadOf = "shared",
        shift: float = 0.0,
        scale: float = 1.0,
        clamp: tuple[float, float] = (-7.0, 7.0),
    ) -> None:
        super().__init__(x_shape, features, context)
        shift, scale = check_units(shift, scale)
        self.set_up(hidden, network, "sigma", sigma, clamp)
        self.constant("shift", shift)
        self.constant("scale", scale)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        place, sigma = self.place_and_spread(z, c)
        return self._family(self.shift + self.scale * place, sigma).to_event(len(self.x_shape))

    def _family(self, loc: Tensor, sigma: Tensor) -> Any:
        raise NotImplementedError

    def _unit(self) -> Tensor:
        """The σ that a learned one starts at."""
        return self.scale

    def _spread(self, log: Tensor) -> Tensor:
        return self._unit() * log.exp()

    def _log(self, spread: Tensor) -> Tensor:
        return (spread / self._unit()).log()

    def _place(self, mean: Tensor) -> Tensor:
        return (mean - self.shift) / self.scale

    def _check_support(self, x: Tensor) -> None:
        if x.dtype == torch.uint8:
            raise DataError(
                f"{type(self).__name__}: expected floats, got uint8 (0 … 255): pass x / 255 (scale='unit' when "
                "loading), or x.float() to model the grey levels as they are"
            )


class Gaussian(LocationScale):
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

    Reference:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014); Simple and Effective VAE Training with Calibrated
        Decoders (Rybkin, Daniilidis and Levine, 2021), for one learned σ

    Example:
        >>> squared_error = Gaussian((64,), 2, sigma=0.5**0.5)
        >>> x, z = torch.rand(5, 64), torch.zeros(5, 2)
        >>> nll = -squared_error(z).log_prob(x)
        >>> error = (x - squared_error(z).mean).square().sum(-1)
        >>> torch.allclose(nll, error + 32 * math.log(math.pi))
        True
    """

    _parameter = "log_variance"

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        sigma: SpreadOf = "shared",
        shift: float = 0.0,
        scale: float = 1.0,
        clamp: tuple[float, float] = (-14.0, 14.0),
    ) -> None:
        super().__init__(x_shape, features, context, hidden, network, sigma, shift, scale, clamp)

    def _family(self, loc: Tensor, sigma: Tensor) -> Any:
        return dist.Normal(loc, sigma)

    def _spread(self, log: Tensor) -> Tensor:
        return self.scale * (0.5 * log).exp()

    def _log(self, spread: Tensor) -> Tensor:
        return 2 * (spread / self.scale).log()

    def _estimate(self, x: Tensor, mean: Tensor, dims: tuple[int, ...]) -> Tensor:
        return (x - mean).square().mean(dims).sqrt()


class Laplace(LocationScale):
    r"""Real pixels around a median from the network: the absolute error.

    .. math:: -\log p(x \mid z, y) = \sum_d \frac{|x_d - \hat x_d|}{\sigma_d} + \log 2 \sigma_d

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        sigma: the scale σ in the units of x, 1/√2 of the standard deviation: a number, ``"shared"``, ``"pixel"`` or
            ``"output"``, as for :class:`Gaussian`.
        shift, scale: the location is shift + scale × the network's output, and a learned σ starts at scale.
        clamp: log (σ/scale) of a learned σ is kept in this range.

    Reference:
        Loss Functions for Image Restoration with Neural Networks (Zhao, Gallo, Frosio and Kautz, 2017)

    Example:
        >>> p = Laplace((64,), 2, sigma=1.0)(torch.zeros(5, 2))
        >>> p.log_prob(p.mean) / 64 / math.log(2)
        tensor([-1., -1., -1., -1., -1.], grad_fn=<DivBackward0>)
    """

    def _family(self, loc: Tensor, sigma: Tensor) -> Any:
        return dist.Laplace(loc, sigma)

    def _estimate(self, x: Tensor, mean: Tensor, dims: tuple[int, ...]) -> Tensor:
        return (x - mean).abs().mean(dims)


class StudentT(LocationScale):
    r"""Real pixels around a mean from the network, of which a few may lie far away.

    .. math:: -\log p(x \mid z, y) = \sum_d \frac{\nu + 1}{2}
        \log \Bigl(1 + \frac{(x_d - \hat x_d)^2}{\nu \sigma_d^2}\Bigr) + \log \sigma_d
        + \log \frac{\sqrt{\nu \pi}\, \Gamma(\frac\nu2)}{\Gamma(\frac{\nu + 1}2)}

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        sigma: the scale σ in the units of x: a number, ``"shared"``, ``"pixel"`` or ``"output"``, as for
            :class:`Gaussian`, which this becomes as df grows.
        df: the degrees of freedom ν > 1, fixed; the variance σ²ν/(ν − 2) is infinite up to 2.
        shift, scale: the mean is shift + scale × the network's output, and a learned σ starts at scale.
        clamp: log (σ/scale) of a learned σ is kept in this range.

    Reference:
        Student-t Variational Autoencoder for Robust Density Estimation (Takahashi et al., 2018)

    Example:
        >>> p = StudentT((64,), 2, df=4.0, sigma=1.0)(torch.zeros(5, 2))
        >>> p.variance.mean()
        tensor(2.)
    """

    df: Tensor

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        sigma: SpreadOf = "shared",
        df: float = 5.0,
        shift: float = 0.0,
        scale: float = 1.0,
        clamp: tuple[float, float] = (-7.0, 7.0),
    ) -> None:
        super().__init__(x_shape, features, context, hidden, network, sigma, shift, scale, clamp)
        if not 1 < df < math.inf:
            raise ConfigError(f"expected df > 1, for a mean to exist, got {df}: Gaussian is the limit of a large df")
        self.constant("df", float(df), persistent=False)

    def _family(self, loc: Tensor, sigma: Tensor) -> Any:
        return StudentTPixel(self.df, loc, sigma)

    def _estimate(self, x: Tensor, mean: Tensor, dims: tuple[int, ...]) -> Tensor:
        # By the mean absolute deviation, which exists for every df > 1: E|t| = 2 √ν Γ((ν + 1)/2) / (√π Γ(ν/2) (ν − 1)).
        df = float(self.df)
        ratio = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
        return (x - mean).abs().mean(dims) / (2 * math.sqrt(df) * ratio / (df - 1))

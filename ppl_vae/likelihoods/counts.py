r"""Pixels that count.

.. math:: x_d \in \{0, \dots, n\}, \qquad x_d \in \{0, 1, 2, \dots\}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import Binomial as BinomialPixel
from ..distributions import NegativeBinomial as NegativeBinomialPixel
from ..distributions import Poisson as PoissonPixel
from ..errors import check_positive, check_range
from ..networks import Body
from .base import Likelihood, Spread, SpreadOf, check_counts, logit_of

__all__ = ["Binomial", "NegativeBinomial", "Poisson"]


class Binomial(Likelihood):
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

    Reference:
        Generalized Linear Models (McCullagh and Nelder, 1989)

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
        self.total_count, self.levels = total_count, total_count + 1
        self.network = self.body(hidden, network)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        # Of few, Pyro's own is as right, and faster.
        family = dist.Binomial if self.total_count <= 32 else BinomialPixel
        return family(self.total_count, logits=self.raw(z, c)).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        check_counts(
            "Binomial",
            x,
            self.total_count,
            "set total_count to the largest count a pixel can have",
            "load with scale='levels', or use Gaussian for real values",
        )

    def _raw_start(self, x: Tensor) -> Tensor:
        return logit_of(x.mean(0) / self.total_count)


class Poisson(Likelihood):
    r"""Counts without a largest, whose variance is their mean: photons, spikes, words.

    .. math:: \log p(x \mid z, y) = \sum_d x_d \log \lambda_d - \lambda_d - \log x_d!, \qquad
        \lambda = e^{\mathrm{network}([z; c])}

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        clamp: log λ is kept in this range. A fresh network says about 0, so counts in the thousands want
            ``start_from``.

    Reference:
        Generalized Linear Models (McCullagh and Nelder, 1989)

    Example:
        >>> p = Poisson((64,), 2)(torch.zeros(5, 2))
        >>> bool((p.mean == p.variance).all())
        True
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        clamp: tuple[float, float] = (-14.0, 14.0),
    ) -> None:
        super().__init__(x_shape, features, context)
        self.clamp = check_range("clamp", clamp)
        self.network = self.body(hidden, network)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        return PoissonPixel(self.raw(z, c).clamp(*self.clamp).exp()).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        _check_unbounded("Poisson", x)

    def _raw_start(self, x: Tensor) -> Tensor:
        return _log_of(x.mean(0))


class NegativeBinomial(Spread):
    r"""Counts without a largest that vary more than a Poisson's: mean μ from the network, variance μ + μ²/r.

    .. math:: \log p(x \mid z, y) = \sum_d \log \frac{\Gamma(r_d + x_d)}{\Gamma(r_d)\, x_d!}
        + r_d \log \frac{r_d}{r_d + \mu_d} + x_d \log \frac{\mu_d}{r_d + \mu_d}, \qquad
        \mu = e^{\mathrm{network}([z; c])}

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        dispersion: r: a number (fixed), ``"shared"`` (one learned r), ``"pixel"`` (one learned r a pixel), or
            ``"output"`` (from the network). A learned one starts at 1; large ones are a :class:`Poisson`.
        clamp: log r of a learned r is kept in this range, and log μ in −14 … 14.

    Reference:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)

    Example:
        >>> p = NegativeBinomial((64,), 2, dispersion=0.5)(torch.zeros(5, 2))
        >>> torch.allclose(p.variance, p.mean + 2 * p.mean**2)
        True
    """

    _parameter = "log_dispersion"

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        dispersion: SpreadOf = "shared",
        clamp: tuple[float, float] = (-7.0, 14.0),
    ) -> None:
        super().__init__(x_shape, features, context)
        self.set_up(hidden, network, "dispersion", dispersion, clamp)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        place, r = self.place_and_spread(z, c)
        return NegativeBinomialPixel(r, r * torch.exp(-place.clamp(-14.0, 14.0))).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        _check_unbounded("NegativeBinomial", x)

    def _spread(self, log: Tensor) -> Tensor:
        return log.exp()

    def _log(self, spread: Tensor) -> Tensor:
        return spread.log()

    def _place(self, mean: Tensor) -> Tensor:
        return _log_of(mean)

    def _estimate(self, x: Tensor, mean: Tensor, dims: tuple[int, ...]) -> Tensor:
        # From what the variance has above the mean; nothing above would be a Poisson's, where r has no gradient.
        squares, excess = mean.square().expand_as(x).mean(dims), ((x - mean).square() - mean).mean(dims)
        return (squares / excess.clamp(min=1e-6)).clamp(0.01, 100.0)


def _log_of(mean: Tensor) -> Tensor:
    return mean.clamp(min=0.001).log()


def _check_unbounded(name: str, x: Tensor) -> None:
    check_counts(
        name,
        x,
        None,
        "counts start at 0; use Gaussian for real values",
        "load with scale='levels', or use Gaussian for real values",
    )

r"""Mixtures of diagonal Gaussians whose draws can be differentiated, in the weights as well.

.. math:: p(z) = \sum_k \pi_k \prod_i \mathcal{N}(z_i; \mu_{ki}, \sigma_{ki}^2), \qquad
    F_i(z) = \sum_k p(k \mid z_{<i})\, \Phi\Bigl(\frac{z_i - \mu_{ki}}{\sigma_{ki}}\Bigr), \qquad
    \frac{dz}{d\theta} = -\Bigl(\frac{\partial F}{\partial z}\Bigr)^{-1} \frac{\partial F}{\partial \theta}

:math:`F(z)` is uniform noise if z is a draw: keeping it fixed while the parameters move says how the draw moves with
them. The component a draw came from plays no part, so nothing discrete has to be differentiated.

The gradient of the weights is carried by draws between the components. Where these are several standard deviations
apart hardly any are there: it stays unbiased, but of so heavy a tail that the mean of thousands of draws can miss it.

Components that all rows share, as a VampPrior's, are compared with all z by two matrix products, :func:`log_normals`,
and not by every difference of a z and a mean.

Reference:
    Implicit Reparameterization Gradients (Figurnov, Mohamed and Mnih, 2018)
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Independent, Normal

from ..devices import uncast

__all__ = ["NormalMixture", "diagonal", "log_normals"]

# How far below the likeliest component, in nats, another one is nothing in double precision: 3e-20 of it.
_LEAST = 45.0


def diagonal(d: Any) -> tuple[Tensor, Tensor] | None:
    """Return μ and σ (*, D) of a diagonal Gaussian over vectors; None for any other distribution.

    Example:
        >>> [t.shape for t in diagonal(dist.Normal(torch.zeros(5, 2), 1.0).to_event(1))]
        [torch.Size([5, 2]), torch.Size([5, 2])]
        >>> diagonal(dist.Normal(torch.zeros(5, 2), 1.0))
    """
    normal = d.base_dist if isinstance(d, Independent) and len(d.event_shape) == 1 else None
    return (normal.loc, normal.scale) if isinstance(normal, Normal) else None


def log_normals(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""Return the log-density, in nats, of every z under every one of K diagonal Gaussians: (*, K), in float64.

    .. math:: \log \mathcal N(z; \mu_k, \operatorname{diag} \sigma_k^2)
        = z \cdot \frac{\mu_k}{\sigma_k^2} - \frac{z^2}{2} \cdot \frac{1}{\sigma_k^2} + \text{const}_k

    The squares that are multiplied out, about the middle of the means, cancel where z is near one of them. What that
    leaves of float64 is an error of about 1e-16 (|μ| / σ)², in units in which the middle is 0.

    Arguments:
        z: (*, D).
        loc, scale: (K, D).

    Example:
        >>> z, loc, scale = torch.randn(6, 2), torch.randn(3, 2), torch.ones(3, 2)
        >>> one_by_one = torch.stack([dist.Normal(m, s).to_event(1).log_prob(z) for m, s in zip(loc, scale)], -1)
        >>> torch.allclose(log_normals(z, loc, scale), one_by_one.double(), atol=1e-5)
        True
    """
    z, loc, scale = z.double(), loc.double(), scale.double()
    # No gradient: the density does not depend on where the origin is.
    middle = loc.detach().mean(0)
    z, loc, precision = z - middle, loc - middle, scale.pow(-2)
    constant = -0.5 * (loc.square() * precision).sum(-1) - (scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
    return z @ (loc * precision).mT - 0.5 * (z.square() @ precision.mT) + constant


class NormalMixture(dist.MixtureSameFamily):
    """A ``MixtureSameFamily`` of diagonal Gaussians with ``rsample``; :meth:`of` makes it from tensors.

    Its density takes K numbers a z where the components are shared, and K · D where every row has its own.

    Example:
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> d = NormalMixture.of(logits, torch.randn(3, 2), torch.ones(3, 2))
        >>> d.rsample((5,)).sum().backward()
        >>> d.shape(), logits.grad.any().item()
        (torch.Size([2]), True)
    """

    has_rsample = True
    # Means and standard deviations (K, D) where all rows have the same.
    _shared: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, logits: Tensor, loc: Tensor, scale: Tensor) -> NormalMixture:
        """Return the mixture with logits (*, K), and means and standard deviations (*, K, D) or shared (K, D)."""
        shape = *logits.shape, loc.shape[-1]
        new = cls(dist.Categorical(logits=logits), dist.Normal(loc.expand(shape), scale.expand(shape)).to_event(1))
        new._shared = (loc, scale) if loc.dim() == scale.dim() == 2 else None
        return new

    def expand(self, batch_shape: Any, _instance: Any = None) -> NormalMixture:
        """Return the mixture with a larger batch shape; what rows share, they still do."""
        new = super().expand(batch_shape, _instance)
        new._shared = self._shared
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density (*) of z (*, D), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        # Not every device has double precision.
        if self._shared is None or value.device.type == "mps":
            log_p = self.component_distribution.log_prob(value.unsqueeze(-2))
        else:
            log_p = log_normals(value, *self._shared)
        log_joint = log_p + self.mixture_distribution.logits.log_softmax(-1)
        # What adds less than rounding does is left out: its gradient is a denormal number, with which CPUs are slow.
        least = log_joint.detach().amax(-1, keepdim=True) - _LEAST
        log_p = log_joint.masked_fill(log_joint < least, -math.inf).logsumexp(-1)
        return log_p.to(torch.result_type(value, self.component_distribution.base_dist.loc))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws (*sample_shape, *, D), of one component each."""
        with torch.no_grad():
            chosen = self.mixture_distribution.sample(Size(sample_shape))
            normal = self.component_distribution.base_dist
            loc, scale = (self._of(chosen, t) for t in (normal.loc, normal.scale))
            return torch.normal(loc, scale)

    def _of(self, chosen: Tensor, parameter: Tensor) -> Tensor:
        """The rows of a parameter (*, K, D) that belong to chosen components (*sample_shape, *)."""
        parameter = parameter.expand(*chosen.shape, *parameter.shape[-2:])
        return parameter.gather(-2, chosen[..., None, None].expand(*chosen.shape, 1, parameter.shape[-1])).squeeze(-2)

    @uncast
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws (*sample_shape, *, D), differentiable in weights, means and standard deviations."""
        z = self.sample(Size(sample_shape))
        if not torch.is_grad_enabled():
            return z
        components = self.component_distribution.base_dist
        standard = (z.unsqueeze(-2) - components.loc) / components.scale
        # All without the 2π, which the weights do not feel.
        log_normal = -0.5 * standard.square() - components.scale.log()
        # What comes before, added up as it is: taken off a sum of everything, a large one would leave its rounding.
        before = torch.nn.functional.pad(log_normal[..., :-1].cumsum(-1), (1, 0))
        log_weights = self.mixture_distribution.logits.unsqueeze(-1) + before
        weights = log_weights.softmax(-2)
        below = torch.special.ndtr(standard)
        noise = (weights * below).sum(-2)
        with torch.no_grad():
            density = (weights * log_normal.exp()).sum(-2) / math.sqrt(2 * math.pi)
            change = (weights * (below - noise.unsqueeze(-2))).mT @ (-standard / components.scale)
            # No draw has a conditional density of zero; one that rounds to it is not to make a NaN of 0 / 0.
            density = density.clamp_min(torch.finfo(density.dtype).tiny)
            jacobian = change.tril(-1) + torch.diag_embed(density)
        still = noise - noise.detach()
        return z - torch.linalg.solve_triangular(jacobian, still.unsqueeze(-1), upper=False).squeeze(-1)

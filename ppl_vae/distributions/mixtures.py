r"""Mixtures of diagonal Gaussians whose draws can be differentiated, in the weights as well.

.. math:: p(z) = \sum_k \pi_k \prod_i \mathcal{N}(z_i; \mu_{ki}, \sigma_{ki}^2), \qquad
    F_i(z) = \sum_k p(k \mid z_{<i})\, \Phi\Bigl(\frac{z_i - \mu_{ki}}{\sigma_{ki}}\Bigr), \qquad
    \frac{dz}{d\theta} = -\Bigl(\frac{\partial F}{\partial z}\Bigr)^{-1} \frac{\partial F}{\partial \theta}

:math:`F(z)` is uniform noise if z is a draw: keeping it fixed while the parameters move says how the draw moves with
them. The component a draw came from plays no part, so nothing discrete has to be differentiated.

The gradient of the weights is carried by draws between the components. Where these are several standard deviations
apart hardly any are there: it stays unbiased, but of so heavy a tail that the mean of thousands of draws can miss it.

Reference:
    Implicit Reparameterization Gradients (Figurnov, Mohamed and Mnih, 2018)
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor

__all__ = ["NormalMixture"]


class NormalMixture(dist.MixtureSameFamily):
    """A ``MixtureSameFamily`` of diagonal Gaussians with ``rsample``; :meth:`of` makes it from tensors.

    Example:
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> d = NormalMixture.of(logits, torch.randn(3, 2), torch.ones(3, 2))
        >>> d.rsample((5,)).sum().backward()
        >>> d.shape(), logits.grad.any().item()
        (torch.Size([2]), True)
    """

    has_rsample = True

    @classmethod
    def of(cls, logits: Tensor, loc: Tensor, scale: Tensor) -> NormalMixture:
        """Return the mixture with logits (*, K), and means and standard deviations (*, K, D) or shared (K, D)."""
        shape = *logits.shape, loc.shape[-1]
        return cls(dist.Categorical(logits=logits), dist.Normal(loc.expand(shape), scale.expand(shape)).to_event(1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws (*sample_shape, *, D), differentiable in weights, means and standard deviations."""
        z = self.sample(Size(sample_shape))
        components = self.component_distribution.base_dist
        standard = (z.unsqueeze(-2) - components.loc) / components.scale
        # All without the 2π, which the weights do not feel.
        log_normal = -0.5 * standard.square() - components.scale.log()
        log_weights = self.mixture_distribution.logits.unsqueeze(-1) + log_normal.cumsum(-1) - log_normal
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

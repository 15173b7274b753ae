r"""The ELBO written by hand: plain torch, no Pyro program in it.

.. math:: \mathrm{ELBO}(x, y) = \mathbb{E}_{q(z \mid x, y)}\bigl[\log p(x \mid z, y)\bigr]
    - \mathrm{KL}\bigl(q(z \mid x, y) \,\|\, p(z \mid y)\bigr)

It is what every other way to the number is checked against.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Binomial, Distribution, Independent, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from ..distributions import diagonal
from ..errors import NoClosedFormError, ShapeError
from ..model import VAE
from ..model.checks import check_pair, check_spheres
from ..model.masking import given, observed

__all__ = ["analytic_elbo", "elbo_terms", "kl_gaussian", "kl_standard", "log_likelihood"]


def kl_standard(loc: Tensor, scale: Tensor) -> Tensor:
    r"""Return KL(N(μ, σ²) ‖ N(0, I)) in nats, (*) for μ and σ (*, D).

    .. math:: -\tfrac12 \sum_i \bigl(1 + \log \sigma_i^2 - \mu_i^2 - \sigma_i^2\bigr)

    Reference:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), appendix B

    Example:
        >>> kl_standard(torch.tensor([1.0, 0.0]), torch.ones(2))
        tensor(0.5000)
    """
    return -0.5 * (1 + 2 * scale.log() - loc.square() - scale.square()).sum(-1)


def kl_gaussian(loc_q: Tensor, scale_q: Tensor, loc_p: Tensor, scale_p: Tensor) -> Tensor:
    r"""Return KL(N(μ_q, σ_q²) ‖ N(μ_p, σ_p²)) in nats, (*) for means and scales (*, D).

    .. math:: \sum_i \log \frac{\sigma_{p,i}}{\sigma_{q,i}}
        + \frac{\sigma_{q,i}^2 + (\mu_{q,i} - \mu_{p,i})^2}{2 \sigma_{p,i}^2} - \tfrac12

    Example:
        >>> one, zero = torch.ones(2), torch.zeros(2)
        >>> kl_gaussian(zero, one, one, one)
        tensor(1.)
    """
    squares = (scale_q.square() + (loc_q - loc_p).square()) / (2 * scale_p.square())
    return (scale_p.log() - scale_q.log() + squares - 0.5).sum(-1)


def log_likelihood(p: Distribution, x: Tensor) -> Tensor:
    """Return log p(x) in nats by the formula for independent Bernoulli, binomial or Gaussian pixels.

    Arguments:
        p: the distribution a likelihood returned, whose parameters are read off; its own ``log_prob`` is used only
            where there is no formula here.
        x: (*, *x_shape).

    Example:
        >>> p = Independent(Bernoulli(logits=torch.zeros(3)), 1)
        >>> log_likelihood(p, torch.ones(3)) / math.log(2)
        tensor(-3.)
    """
    base = p.base_dist if isinstance(p, Independent) else p
    pixels: Tensor
    if isinstance(base, Bernoulli):
        x, logits = torch.broadcast_tensors(x, base.logits)
        pixels = -binary_cross_entropy_with_logits(logits, x, reduction="none")
    elif isinstance(base, Binomial):
        n = base.total_count
        choose = torch.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)
        pixels = choose + x * base.logits - n * softplus(base.logits)
    elif isinstance(base, Normal):
        variance = base.scale.square()
        pixels = -((x - base.loc).square() / (2 * variance)) - 0.5 * torch.log(2 * math.pi * variance)
    else:
        return p.log_prob(x)
    return pixels.flatten(pixels.dim() - len(p.event_shape)).sum(-1) if p.event_shape else pixels


def _diagonal(d: Any, what: str) -> tuple[Tensor, Tensor]:
    """The mean and scale of a diagonal Gaussian over vectors."""
    if (parameters := diagonal(d)) is not None:
        return parameters
    raise NoClosedFormError(
        f"expected {what} to be a diagonal Gaussian, whose KL is known in closed form, got {type(d).__name__}: use "
        "Trace_ELBO(), which samples the KL"
    )


def _encode(vae: VAE, x: Tensor, y: Any, mask: Tensor | None = None) -> Any:
    """The posterior q(z | x, y), once it is one a row: a y of more dimensions would make it one a pair of rows."""
    q = vae.encode(given(vae.encoder, x, mask), y)
    if len(q.batch_shape) > 1:
        raise ShapeError(
            f"y: expected one a row of x, (N, …), got posteriors {tuple(q.batch_shape)} for {len(x)} rows: pass "
            "y.squeeze(-1)"
        )
    return q


def analytic_elbo(vae: VAE, x: Any, y: Any = None, *, beta: float = 1.0) -> Tensor:
    r"""Return the ELBO per datum by hand: one reparameterised z, the KL in closed form.

    .. math:: \log p(x \mid z, y) - \beta\,\mathrm{KL}, \qquad
        z = \mu + \sigma \odot \varepsilon,\ \varepsilon \sim N(0, I)

    Plain torch: autograd through it gives the gradients that Pyro's are compared with.

    Arguments:
        vae: with a diagonal Gaussian encoder and prior; or a point encoder and no prior, an autoencoder.
        x: (N, *x_shape), and y as elsewhere.
        beta: the weight of the KL.

    Returns:
        (N,), nats.

    Raises:
        NoClosedFormError: for any other encoder or prior.
    """
    x = torch.as_tensor(x).to(vae._beta)
    q = _encode(vae, x, y)
    if vae.prior is None:
        if not isinstance(q, dist.Delta):
            raise NoClosedFormError(
                f"expected a point encoder (Delta) beside prior=None, got {type(q).__name__}: give the model a prior"
            )
        return log_likelihood(*observed(vae.decode(q.mean, y), x, None))
    loc, scale = _diagonal(q, "the encoder's q(z|x,y)")
    loc_p, scale_p = _diagonal(vae.prior_given(y), "the prior p(z|y)")
    # torch.normal and not randn_like: it is what rsample draws with, so the same seed gives the same noise.
    z = loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
    reconstruction = log_likelihood(*observed(vae.decode(z, y), x, None))
    return reconstruction - beta * kl_gaussian(loc, scale, loc_p, scale_p)


def elbo_terms(vae: VAE, x: Any, y: Any = None, samples: int = 1, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return (reconstruction, KL) per datum, −log p(x|z,y) and KL(q ‖ p), whose sum is −ELBO at β = 1.

    The KL is in closed form where one is registered, else log q − log p at the same draws of z. With a mask the
    reconstruction is of the pixels that are seen.

    Returns:
        Two tensors (N,), nats.
    """
    x = torch.as_tensor(x).to(vae._beta)
    mask = vae._mask(x, mask)
    q = _encode(vae, x, y, mask)
    # What ignores x, or z, may give one for all rows, or for all draws.
    q = q if q.batch_shape else q.expand(vae._rows(x))
    z = q.rsample((samples,)) if q.has_rsample else q.sample((samples,))
    p, x = observed(vae.decode(z, y), x, mask)
    reconstruction = -p.log_prob(x).expand(samples, *q.batch_shape).mean(0)
    if vae.prior is None:
        return reconstruction, torch.zeros_like(reconstruction)
    p = vae.prior_given(y)
    check_spheres(q, p)
    check_pair(z, p)
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        kl = (q.log_prob(z) - p.log_prob(z)).mean(0)
    return reconstruction, kl.expand_as(reconstruction)

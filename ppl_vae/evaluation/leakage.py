r"""Leakage: how much of y is in z?

.. math:: I(z; y) = H(y) - H(y \mid z) \ge H(y) + \mathbb{E}\bigl[\log r_\tau(y \mid z)\bigr], \qquad
    r_\tau(y \mid z) \propto p(y)\, r(z \mid y)^\tau, \quad 0 \le \tau \le 1

Any classifier of z bounds the information from below, and an exponent τ lets it be less sure than it is. There are two,
and the one that finds more counts. One knows the aggregate posterior of every label, without the row that z was drawn
from: with it, each z would be known by its own row, leak or none. It finds leaks of every form, but where codes are
narrow and of many dimensions, the nearest of them says little. The other takes the codes of a label for a Gaussian, of
one covariance for all labels, and learns them from one half of the rows to judge the other: it finds what is linear.

References: The IM Algorithm: A Variational Approach to Information Maximization (Barber and Agakov, 2003), for the
bound; The Use of Multiple Measurements in Taxonomic Problems (Fisher, 1936), for the second classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..model import VAE
from .aggregate import log_density_sums

__all__ = ["PRIOR_DRAWS", "prior_information", "told_of_labels"]

# How many draws of the prior for every label say how much it tells of y; no model is decoded for them.
PRIOR_DRAWS = 1000


def told_of_labels(vae: VAE, x: Tensor, y: Tensor, z: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return log r(y | z) of the better classifier, and how often it is right, for every row, (N,) each.

    Arguments:
        vae: whose codes these are.
        x: (N, *x_shape).
        y: (N,) integers, two rows or more of every label that occurs.
        z: (N, draws, latent), drawn from q(z | x, y).
        batch_size: rows at a time, where codes are compared.
    """
    scores = _mixture_scores(vae, x, y, z, batch_size), _linear_scores(y, z)
    return max((_told(each, y) for each in scores), key=lambda told: told[0].mean().item())


def _mixture_scores(vae: VAE, x: Tensor, y: Tensor, z: Tensor, batch_size: int) -> Tensor:
    """Log q(z | y) of every draw under every label of the data, without its own row: (N, draws, labels)."""
    scores, places = [], z.flatten(0, 1)
    for label in y.unique():
        rows = (y == label).nonzero()[:, 0]
        own = torch.full((len(y),), -1).index_copy(0, rows, torch.arange(len(rows)))
        own = own.to(z.device).repeat_interleave(z.shape[1])
        at = rows.to(x.device)
        _, others = log_density_sums(vae, x[at], y[rows], places, own, batch_size)
        scores.append(others - (len(rows) - (own >= 0).double()).log())
    # A support that ends gives −∞, for which an exponent of zero would be no number.
    return torch.stack(scores, -1).unflatten(0, z.shape[:2]).clamp(min=-1e30).cpu()


def _linear_scores(y: Tensor, z: Tensor) -> Tensor:
    """The log-density of every draw under a Gaussian for every label, learned from other rows: (N, draws, labels).

    Less what it has in common under all labels, which tells nothing.
    """
    labels, at = y.unique(return_inverse=True)
    belongs = torch.nn.functional.one_hot(at, len(labels)).double()
    # Every other row of a label.
    half = (belongs.cumsum(0) * belongs).sum(1) % 2 == 0
    z, size = z.double().cpu(), z.shape[-1]
    scores = z.new_empty(*z.shape[:2], len(labels))
    for judged in (half, ~half):
        known, codes = belongs[~judged], z[~judged]
        loc = (known / known.sum(0)).T @ codes.mean(1)
        apart = (codes - loc[at[~judged]].unsqueeze(1)).flatten(0, 1)
        covariance, freedom = apart.T @ apart / len(apart), max(0, len(codes) - len(labels))
        # Of few rows, what lies off the diagonal is mostly noise, and would be no covariance.
        variance = covariance.diagonal().clamp(min=1e-12 * covariance.diagonal().max() + 1e-30)
        covariance = (freedom * covariance + size * variance.diag()) / (freedom + size)
        slope = torch.linalg.solve(covariance, loc.T)
        scores[judged] = z[judged] @ slope - (loc.T * slope).sum(0) / 2
    return scores


def _told(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Log r_τ(y | z), and how often its largest is right, for every row, at the best τ in [0, 1]."""
    _, at, counts = y.unique(return_inverse=True, return_counts=True)
    log_p = (counts.double() / len(y)).log()
    right = at.view(-1, 1, 1).expand(-1, scores.shape[1], 1)
    scores = scores - scores.amax(-1, keepdim=True)

    def log_r(tau: float) -> Tensor:
        return (log_p + tau * scores).log_softmax(-1)

    def slope(tau: float) -> float:
        return (scores.gather(-1, right)[..., 0] - (log_r(tau).exp() * scores).sum(-1)).mean().item()

    # The mean of log r is concave in τ.
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) >= 0 else (low, middle)
    found = log_r(low)
    hits = (log_r(1.0).argmax(-1) == right[..., 0]).double()
    return found.gather(-1, right)[..., 0].mean(1), hits.mean(1)


def prior_information(vae: VAE, labels: Tensor, frequency: Tensor) -> Tensor:
    """Log p(z | y) − log p(z) of draws from the prior, whose mean is I(z; y): (draws,); of labels that there are."""
    p, told = vae.prior_given(labels), []
    z, log_p_y = p.sample((PRIOR_DRAWS,)), frequency.log()
    for k in range(len(labels)):
        every = p.log_prob(z[:, k : k + 1].expand_as(z)).double().cpu()
        told.append(every[:, k] - (every + log_p_y).logsumexp(-1))
    return torch.stack(told, -1) @ frequency

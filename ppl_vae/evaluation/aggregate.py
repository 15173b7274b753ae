r"""The aggregate posterior: where the encoder puts all rows together.

.. math:: q(z \mid y) = \frac1{N_y} \sum_{j:\, y_j = y} q(z \mid x_j, y)

As a mixture with one component a row it has a density for every encoder that has one. A z that was drawn from a row of
its own can be scored with that row or without it; that is why the two sums below are kept apart.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..distributions import diagonal, is_point, log_normals
from ..errors import NoDensityError
from ..model import VAE, density_numbers

__all__ = ["divergence", "kl_per_dimension", "log_density_sums", "posterior", "row_wise"]

# How many numbers z − μ are held at a time, for pairs of a z and a component.
_CHUNK = 2**22


def row_wise(vae: VAE, x: Any, y: Any) -> tuple[Tensor, Tensor | None]:
    """X and y as tensors with one y a row, where one y was given for all."""
    x, y = torch.as_tensor(x), None if y is None else torch.as_tensor(y)
    return x, y if y is None or vae.per_row(y) else y.expand(len(x), *y.shape)


POINT = (
    "a point encoder (Delta) has no density, so no rate and no information can be told from it: evaluate(vae, x) gives "
    "its reconstruction"
)


def posterior(vae: VAE, x: Tensor, y: Tensor | None) -> Any:
    """Return q(z | x, y) with the batch shape of the rows.

    Raises:
        NoDensityError: if it is a point.
    """
    q = vae.encode(x, y)
    if is_point(q):
        raise NoDensityError(POINT)
    # An encoder that ignores its input gives no batch shape.
    rows = torch.Size([len(x)])
    return q if q.batch_shape == rows else q.expand(rows)


def divergence(q: Any, p: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(q ‖ p) (N,), and log q − log p (draws, N) at draws z (draws, N, latent), in nats, in float64.

    The first is in closed form where there is one, else the mean of the second.
    """
    sampled = (q.log_prob(z) - p.log_prob(z)).double()
    try:
        return kl_divergence(q, p).expand(q.batch_shape).double(), sampled
    except NotImplementedError:
        return sampled.mean(0), sampled


def kl_per_dimension(q: Any, p: Any) -> Tensor | None:
    """Return KL(q ‖ p) (N, latent) of each dimension; None unless they are independent and their KL has a formula."""
    if not all(isinstance(d, Independent) and d.event_shape == d.base_dist.batch_shape[-1:] for d in (q, p)):
        return None
    try:
        return kl_divergence(q.base_dist, p.base_dist).expand(q.base_dist.batch_shape).double()
    except NotImplementedError:
        return None


def log_density_sums(
    vae: VAE, x: Tensor, y: Tensor | None, z: Tensor, own: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    r"""Return the density of each z under its own row, and under all other rows together.

    .. math:: \log q(z_i \mid x_{o_i}, y), \qquad \log \sum_{j \ne o_i} q(z_i \mid x_j, y)

    Memory stays bounded, whatever the number of rows: rows come ``batch_size`` at a time, and for each lot of them the
    z come in chunks.

    Arguments:
        vae: whose encoder it is.
        x: (N, *x_shape), the rows of the mixture, and y likewise.
        z: (M, latent).
        own: (M,), the row o that a z was drawn from, or −1 if it is none of these.
        batch_size: rows at a time.

    Returns:
        Two tensors (M,) in nats, in float64: the first −∞ where there is no own row, the second where there is no
        other.
    """
    mine, others = (torch.full((len(z),), -math.inf, dtype=torch.float64, device=z.device) for _ in range(2))
    width = max(z.shape[-1], density_numbers(vae.encoder))
    for first in range(0, len(x), batch_size):
        rows = slice(first, first + batch_size)
        q = posterior(vae, x[rows], None if y is None else y[rows])
        for some in torch.arange(len(z), device=z.device).split(max(1, _CHUNK // (len(x[rows]) * width))):
            log_q, column = _pairs(q, z[some]), own[some] - first
            at = ((column >= 0) & (column < log_q.shape[1])).nonzero()[:, 0]
            mine[some[at]] = log_q[at, column[at]]
            log_q[at, column[at]] = -math.inf
            others[some] = torch.logaddexp(others[some], log_q.logsumexp(1))
    return mine, others


def _pairs(q: Any, z: Tensor) -> Tensor:
    """The log-density of every z (M, latent) under every component of q's batch (B,): (M, B), in float64."""
    if (parameters := diagonal(q)) is not None:
        return log_normals(z, *parameters)
    return q.log_prob(z.unsqueeze(1).expand(-1, *q.batch_shape, -1)).double()

r"""Simulation-based calibration: is the guide the posterior of its own model?

.. math:: z^* \sim p(z \mid y), \quad x \sim p(x \mid z^*, y), \quad z_1, \dots, z_S \sim q(z \mid x, y), \qquad
    r_j = \#\{s : z_{sj} < z^*_j\}

Given x and y, :math:`z^*` is a draw from the posterior. If q is the posterior, then :math:`z^*, z_1, \dots, z_S` are
S + 1 draws of one law, and the rank :math:`r_j` of any coordinate is uniform over 0 … S. How far it is from that, over
many replicates, is one χ² statistic for every coordinate,

.. math:: \chi^2_j = \sum_{b=1}^{B} \frac{(n_{bj} - N/B)^2}{N/B} \sim \chi^2_{B-1},

with :math:`n_{bj}` of N ranks in bin b. No data are needed, and no density: the model draws what its guide is asked
about, so whatever can be drawn can be calibrated.

What it sees, with N = 2,000, S = 99, B = 20 and α = 1e-6: a guide that is 0.25 posterior standard deviations off, or
0.8 or 1.25 times as wide, with power 1 − 3e-5 or more a coordinate. Below 0.2 standard deviations or 15% it sees little
(0.15: 44%; 0.1: 2%; 0.9 times as wide: 29%; 1.1 times: 7%). And what it does not see at all: a guide that is the prior,
whatever x, has uniform ranks too. A learned guide is seldom the posterior, and a test with enough replicates says so;
that is no mistake in a program, and importance sampling corrects for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ..data import as_tensor
from ..distributions import is_point
from ..errors import ConfigError, LabelError, NoDensityError, check_positive
from ..model import VAE
from ..model.checks import check_not_nan
from .measuring import Report, measuring, plain

__all__ = ["Calibration", "calibration"]

_SHOWN = 10


@dataclass(frozen=True, repr=False)
class Calibration(Report):
    """What :func:`calibration` found: the ranks, and what follows from them; ``str`` makes the table.

    ``ranks`` are whole numbers (replicates, latent) from 0 to ``draws``.
    """

    ranks: Tensor
    draws: int
    bins: int
    alpha: float

    @property
    def chi_square(self) -> Tensor:
        """χ² of every coordinate against uniform ranks, (latent,)."""
        expected = len(self.ranks) / self.bins
        bin_of = self.ranks // ((self.draws + 1) // self.bins)
        counts = torch.zeros(self.bins, self.ranks.shape[1], dtype=torch.float64)
        counts.scatter_add_(0, bin_of, torch.ones_like(bin_of, dtype=torch.float64))
        return (counts - expected).square().sum(0) / expected

    @property
    def limit(self) -> float:
        """The χ² that a coordinate of an exact guide exceeds with probability α."""
        from scipy.stats import chi2  # importing it takes a second

        return float(chi2.isf(self.alpha, self.bins - 1))

    @property
    def passed(self) -> bool:
        """Whether no coordinate is beyond the limit."""
        return bool((self.chi_square <= self.limit).all())

    @property
    def coverage(self) -> dict[float, Tensor]:
        """By the probability of a central interval of the draws, how often z* is inside: (latent,), for 50% and 90%.

        Where so many draws have no interval of exactly that probability, it is the nearest.
        """
        found = {}
        for level in (0.5, 0.9):
            tail = round((1 - level) / 2 * (self.draws + 1))
            inside = (self.ranks >= tail) & (self.ranks <= self.draws - tail)
            found[round(1 - 2 * tail / (self.draws + 1), 4)] = inside.double().mean(0)
        return found

    @property
    def verdicts(self) -> list[str]:
        """What is wrong with the guide's draws of every coordinate: "ok", or "too low", "high", "narrow" or "wide".

        Or "of another shape", where place and width are what chance makes of them.
        """
        values = self.draws + 1
        u = (self.ranks.double() + 0.5) / values
        # In standard errors, by the second and the fourth moment of so many values in equal steps: 1/12 and 1/80 for
        # ever more of them. Two values have a place and no width.
        second = (1 - values**-2) / 12
        fourth = (1 - values**-2) * (3 - 7 * values**-2) / 240
        place = (u.mean(0) - 1 / 2) * math.sqrt(len(u) / second)
        width = (u.var(0) - second) * (math.sqrt(len(u) / (fourth - second**2)) if values > 2 else 0.0)
        words, chance = [], NormalDist().inv_cdf(1 - self.alpha / 4)
        for chi_square, a, b in zip(self.chi_square, place.tolist(), width.tolist(), strict=True):
            wrong = ("low" if a > 0 else "high") if abs(a) > abs(b) else ("narrow" if b > 0 else "wide")
            told = f"too {wrong}" if max(abs(a), abs(b)) > chance else "of another shape"
            words.append("ok" if chi_square <= self.limit else told)
        return words

    def __str__(self) -> str:
        chi_square, coverage, verdicts, limit = self.chi_square, self.coverage, self.verdicts, self.limit
        levels = "".join(f"{f'{level:.0%} interval':>15s}" for level in coverage)
        lines = [f"{f'{len(self.ranks)} replicates, {self.draws} draws':28s} {f'χ² ({self.bins - 1})':>9s}{levels}"]
        worst = chi_square.argsort(descending=True).tolist()
        for j in worst[:_SHOWN]:
            inside = "".join(f"{share[j].item():15.1%}" for share in coverage.values())
            lines.append(f"{f'latent dimension {j + 1}':28s} {chi_square[j].item():9.1f}{inside}   {verdicts[j]}")
        if worst[_SHOWN:]:
            lines.append(f"and {len(worst) - _SHOWN} more, of smaller χ²")
        lines.append(f"limit {limit:.2f}, which an exact guide exceeds with probability {self.alpha:g} a dimension")
        return "\n".join([*lines, f"calibration: {'pass' if self.passed else 'FAIL'}"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return plain(
            {
                "replicates": len(self.ranks),
                "draws": self.draws,
                "bins": self.bins,
                "alpha": self.alpha,
                "limit": self.limit,
                "passed": self.passed,
                "chi_square": self.chi_square,
                "coverage": {str(level): share for level, share in self.coverage.items()},
                "verdicts": self.verdicts,
            }
        )


@torch.no_grad()
def calibration(
    vae: VAE,
    y: Any = None,
    *,
    replicates: int = 2000,
    draws: int = 99,
    bins: int = 20,
    alpha: float = 1e-6,
    batch_size: int = 250,
    seed: int = 0,
) -> Calibration:
    """Compare the guide with the posterior by ranks, on data that the model draws.

    Arguments:
        vae: the model; it is asked in ``eval()`` mode, and left in the mode it was in.
        y: for a conditional model, one y for all replicates, or rows (N, ...) of which every replicate takes one at
            random; without them, labels are drawn uniformly over the classes of the condition.
        replicates: how many z* and x.
        draws: from q for every x, one less than a multiple of ``bins``.
        bins: of the ranks.
        alpha: the chance that a coordinate of an exact guide fails.
        batch_size: replicates at a time.
        seed: of the draws; the caller's generators are left as they were.

    Returns:
        A :class:`Calibration`; ``plots.calibration(found.ranks, draws=found.draws, bins=found.bins)`` draws it.

    Raises:
        NoDensityError: if the model has no prior, or its encoder gives a point.
        LabelError: if y is needed, unwanted, or none of the condition's.
        ConfigError: for numbers that do not fit each other.

    Reference:
        Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts, Betancourt, Simpson, Vehtari
        and Gelman, 2018)

    Example:
        >>> found = calibration(pv.vae((4,), 2), replicates=200, draws=19)
        >>> found.ranks.shape, list(found.coverage)
        (torch.Size([200, 2]), [0.5, 0.9])
    """
    check_positive(replicates=replicates, draws=draws, bins=bins, batch_size=batch_size)
    check_not_nan(vae, "calibration")
    if bins < 2 or (draws + 1) % bins:
        raise ConfigError(f"expected draws + 1 to be a multiple of bins ≥ 2, got draws={draws} and bins={bins}")
    if replicates < 5 * bins:
        raise ConfigError(
            f"expected at least 5 replicates a bin, without which χ² is none, got {replicates} for {bins}"
        )
    if not 0 < alpha < 1:
        raise ConfigError(f"expected 0 < alpha < 1, got {alpha}")
    ranks = []
    with measuring(vae, seed, "calibration"):
        ys = _rows(vae, y, replicates)
        for first in range(0, replicates, batch_size):
            n = min(batch_size, replicates - first)
            ranks.append(_ranks(vae, None if ys is None else ys[first : first + n], n, draws).cpu())
    return Calibration(torch.cat(ranks), draws, bins, alpha)


def _rows(vae: VAE, y: Any, n: int) -> Tensor | None:
    """One y for each of n replicates."""
    if vae.condition is None:
        vae._context(y)
        return None
    if y is None:
        classes = getattr(vae.condition, "classes", None)
        if classes is None:
            raise LabelError(
                f"expected y, of which {type(vae.condition).__name__} has no finite number to draw from: pass one, or "
                "rows such as those of the data"
            )
        columns = [torch.randint(k, (n,)) for k in ([classes] if isinstance(classes, int) else classes)]
        return columns[0] if isinstance(classes, int) else torch.stack(columns, -1)
    y = as_tensor(y)
    vae._context(y)
    vae._check_one_batch(y)
    if not vae.per_row(y):
        return y.expand(n, *y.shape)
    if not len(y):
        raise LabelError("expected at least one y, got none")
    return y[torch.randint(len(y), (n,)).to(y.device)]


def _ranks(vae: VAE, y: Tensor | None, n: int, draws: int) -> Tensor:
    """The ranks of n replicates, (n, latent)."""
    p = vae.prior_given(y)
    z = p.sample((n,) if y is None else ())
    q = vae.encode(vae.decode(z, y).sample(), y)
    if is_point(q):
        raise NoDensityError("a point encoder (Delta) is no posterior, so it has nothing to be calibrated")
    # A guide that ignores x has no batch.
    others = q.expand(torch.broadcast_shapes(q.batch_shape, (n,))).sample((draws,))
    below, ties = (others < z).sum(0), (others == z).sum(0)
    # Equal draws, as of a discrete z, are in random order.
    return below + (torch.rand(ties.shape, dtype=torch.float64, device=z.device) * (ties + 1)).long()

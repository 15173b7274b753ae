r"""What the latent variable does: how much of x it says, which of its dimensions, and whether the prior knows it.

.. math::
    \underbrace{\mathbb{E}_x \mathrm{KL}\bigl(q(z \mid x) \,\|\, p(z)\bigr)}_{\text{rate}}
    = \underbrace{\mathbb{E}_x \mathrm{KL}\bigl(q(z \mid x) \,\|\, q(z)\bigr)}_{I(x;\, z)}
    + \underbrace{\mathrm{KL}\bigl(q(z) \,\|\, p(z)\bigr)}_{\text{aggregate}}, \qquad
    q(z) = \frac1N \sum_j q(z \mid x_j)

The first part is what z says of x; the second is where the prior is not where the codes are. −ELBO is rate plus
distortion. With a condition everything is given y, and q(z | y) is the mixture over the rows of that y.

For these N rows that is exact, up to the noise of the draws. For the distribution they came from, N rows give a
bracket. With its own row in the mixture the density of a draw comes out too high, so I is a lower bound on average, and
never above log N; without it, it comes out too low, and I is an upper bound. The rate is an upper bound as well.

References: ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman and Johnson, 2016);
Fixing a Broken ELBO (Alemi et al., 2018); On Variational Bounds of Mutual Information (Poole et al., 2019); Importance
Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016), for active units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import check_positive
from ..model import VAE
from ..model.checks import check_not_nan, check_precision
from ..model.masking import observed
from .aggregate import divergence, kl_per_dimension, log_density_sums, posterior, row_wise
from .measuring import GREY, Report, mean_and_error, measuring, named, plain

__all__ = ["Diagnostics", "diagnostics"]

# Burda et al.'s threshold for the variance of a posterior mean, and what is called no nats at all.
_ACTIVE, _NOTHING = 0.01, 0.01
# Of fewer rows than this, less the labels among them, a variance says too little to call a dimension unused.
_FEW = 5
# How many dimensions, and how many labels, a table shows; how many numbers of a decoded batch are held at a time.
_SHOWN, _CHUNK = 20, 2**22


@dataclass(frozen=True, repr=False)
class Diagnostics(Report):
    """What :func:`diagnostics` found, in nats per datum; ``str`` makes the table, ``finding`` says it in words.

    ``terms`` holds means with their standard errors over the rows. ``variance`` (latent,) is Var_x E_q[z], and
    ``kl_per_dimension`` and ``kl_standard_error`` (latent,) are None unless q and p are both independent over the
    dimensions. ``prior_variance`` (latent,) is that of z under the prior, None where that does not say it; ``freedom``,
    how many rows more than labels there are. ``ceiling`` is the mean of log N_y, which the mutual information cannot
    pass, N_y being the rows of a y; None, as all that goes by it, where nearly every row has a y of its own.
    """

    rows: int
    draws: int
    terms: dict[str, tuple[float, float]]
    variance: Tensor
    kl_per_dimension: Tensor | None
    kl_standard_error: Tensor | None
    prior_variance: Tensor | None
    freedom: int
    conditional: bool = False
    ceiling: float | None = None
    by_label: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    rows_by_label: dict[str, int] = field(default_factory=dict)
    density: bool = True

    def __getitem__(self, name: str) -> float:
        return self.terms[name][0]

    @property
    def active(self) -> list[int]:
        """The indices, from 0, of the dimensions whose posterior mean varies with x: Var_x E_q[z] > 0.01."""
        return (self.variance > _ACTIVE).nonzero()[:, 0].tolist()

    @property
    def used(self) -> list[int]:
        """As :attr:`active`, in units of the prior's variance where it has one, and not where q is the prior."""
        scale = torch.ones_like(self.variance) if self.prior_variance is None else self.prior_variance
        moving = self.variance > _ACTIVE * torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
        if self.kl_per_dimension is not None:
            moving &= self.kl_per_dimension >= _NOTHING
        return moving.nonzero()[:, 0].tolist()

    @property
    def finding(self) -> str:
        """Which dimensions are used, and what has become of the others."""
        if self.freedom < _FEW:
            return "too few rows to tell which dimensions are used."
        used, size = self.used, len(self.variance)
        said = f"{len(used)} of {size} dimensions are used"
        if len(used) == size:
            return f"{said}."
        others = [i for i in range(size) if i not in used]
        rest = f"the other {len(others)}" if used else "all of them"
        which = f"{said}: {_listed(used)}" if used else said
        if self.kl_per_dimension is None:
            if not used and self["rate"] < _NOTHING * size:
                return f"{which}: the posterior has collapsed onto the prior, and z says nothing of x."
            return f"{which}; in {rest} the posterior mean hardly moves with x."
        kl = {i: self.kl_per_dimension[i].item() for i in others}
        fallen, idle = ([i for i in others if (kl[i] < _NOTHING) == low] for low in (True, False))
        parts = [which]
        if fallen:
            where = rest if not idle else f"{len(fallen)} ({_listed(fallen)})"
            nats = f"{sum(kl[i] for i in fallen):.3f} nats"
            parts.append(f"in {where} the posterior has collapsed onto the prior ({nats} together)")
        if idle:
            where = rest if not fallen else f"{len(idle)} ({_listed(idle)})"
            nats = f"{sum(kl[i] for i in idle):.3f} nats"
            parts.append(f"in {where} its mean hardly moves with x and yet it is not the prior, which costs {nats}")
        return "; ".join(parts) + "."

    def __str__(self) -> str:
        x, z, given = ("x,y", "z|y", " | y") if self.conditional else ("x", "z", "")
        names = {
            "neg_elbo": "−ELBO",
            "distortion": f"distortion −log p(x|{'z,y' if self.conditional else 'z'})",
            "rate": f"rate KL(q(z|{x}) ‖ p({z}))",
            "mutual_information": f"  mutual information I(x; z{given})",
            "aggregate_kl": f"  aggregate KL(q({z}) ‖ p({z}))",
        }
        lines = [f"{f'{self.rows} rows, nats per datum':36s} {'mean':>10s} {'std. error':>11s}"]
        for name, text in names.items():
            if name in self.terms:
                lines.append(_line(text, *self.terms[name]))
        if self.ceiling is None:
            lines.append("  nearly every row has a y of its own: no information given y, no aggregate posterior")
        else:
            most, rows = self["mutual_information_at_most"], "log N_y" if self.conditional else "log N"
            if self["mutual_information"] > self.ceiling - 0.1:
                lines.append(
                    f"  for so few rows I is at its largest, {rows} = {self.ceiling:.3f}: more rows would show more"
                )
            error = self.terms["mutual_information_at_most"][1]
            lines.append(f"  both are of these rows; of rows without end I is at most {most:z.3f} ± {error:.3f}")
        if 1 < len(self.by_label) <= _SHOWN:
            lines += ["", f"{'label':>5s} {'rows':>7s} {'rate':>10s} {'information':>12s} {'aggregate KL':>13s}"]
            for label, terms in self.by_label.items():
                rate, information, aggregate = (
                    terms[name][0] for name in ("rate", "mutual_information", "aggregate_kl")
                )
                count = self.rows_by_label[label]
                lines.append(f"{label:>5s} {count:7d} {rate:10.3f} {information:12.3f} {aggregate:z13.3f}")
        if not self.density:
            lines.append(GREY)
        return "\n".join([*lines, "", *self._dimensions(), "", self.finding])

    def _dimensions(self) -> list[str]:
        kl = self.kl_per_dimension
        order = (self.variance if kl is None else kl).argsort(descending=True).tolist()
        lines = [f"{'latent dimension':>16s} {'KL':>10s} {'std. error':>11s} {'Var E[z]':>10s}"]
        for i in order[:_SHOWN]:
            error = self.kl_standard_error
            columns = (
                f"{'–':>10s}" if kl is None else f"{kl[i].item():z10.3f}",
                f"{'–':>11s}" if error is None else f"{error[i]:11.3f}",
                f"{'–':>10s}" if self.variance[i].isnan() else f"{self.variance[i]:10.4f}",
            )
            idle = self.freedom >= _FEW and i not in self.used
            lines.append(f"{i + 1:16d} {' '.join(columns)}{'  not used' if idle else ''}")
        if rest := order[_SHOWN:]:
            most = self.variance[rest].max().item()
            together = "" if kl is None else f"KL {kl[rest].sum():.3f} together, "
            lines.append(f"and {len(rest)} more: {together}Var E[z] at most {most:.4f}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return plain(
            {
                "rows": self.rows,
                "draws": self.draws,
                "density": self.density,
                "unit": "nats per datum",
                **named(self.terms),
                "log_rows": self.ceiling,
                "active": self.active,
                "used": self.used if self.freedom >= _FEW else None,
                "variance_of_mean": self.variance,
                "prior_variance": self.prior_variance,
                "kl_per_dimension": self.kl_per_dimension,
                "kl_standard_error": self.kl_standard_error,
                "by_label": {
                    label: {"rows": self.rows_by_label[label], **named(terms)} for label, terms in self.by_label.items()
                },
                "finding": self.finding,
            }
        )


@torch.no_grad()
def diagnostics(
    vae: VAE, x: Any, y: Any = None, *, draws: int = 10, batch_size: int = 250, seed: int = 0
) -> Diagnostics:
    r"""Say what the latent variable of a model does, on data that it was not trained on.

    ==================================== ===============================================================================
    ``neg_elbo``                         distortion + rate
    ``distortion``                       :math:`-\log p(x \mid z, y)`, the reconstruction
    ``rate``                             :math:`\mathrm{KL}(q(z \mid x, y) \| p(z \mid y))`, in closed form where there
                                         is one
    ``mutual_information``               :math:`I(x; z \mid y)` under q, for these rows; of more rows, a lower bound
    ``mutual_information_at_most``       the bound from above, for more rows than these
    ``aggregate_kl``                     :math:`\mathrm{KL}(q(z \mid y) \| p(z \mid y))`, which is rate minus
                                         information
    ==================================== ===============================================================================

    An active unit is a dimension with :math:`\mathrm{Var}_x \mathbb{E}_q[z] > 0.01`, for a z on the scale of one; what
    is said in words goes by the prior's variance, and by the KL of a dimension where that is known. With labels the
    variance is within a label, because a mean that moves with y alone says nothing of x.

    Densities are needed for every pair of a draw and a row of its label: ``rows`` times ``draws`` times the rows of a
    label. That is seconds for 10,000 rows of a Gaussian encoder, and long for a flow: give it fewer rows.

    Arguments:
        vae: the model; it is measured in ``eval()`` mode, and left in the mode it was in.
        x: (N, *x_shape), and y as elsewhere.
        draws: of z for each row.
        batch_size: rows at a time; the means do not depend on it beyond their noise.
        seed: of the draws; the caller's generators are left as they were.

    Returns:
        A :class:`Diagnostics`. Where y is hardly ever the same in two rows (a number, an image) it has no information
        given y and no aggregate, and the variance of the means is that over all rows.

    Raises:
        NoDensityError: for a model without a prior, or with an encoder that gives a point.
        ConfigError: for a model in half precision.

    References:
        ELBO surgery (Hoffman and Johnson, 2016); Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov,
        2016)

    Example:
        >>> vae = pv.vae((4,), 3, likelihood="Gaussian")
        >>> for parameter in vae.encoder.parameters():
        ...     _ = parameter.data.zero_()
        >>> print(diagnostics(vae, torch.randn(8, 4)).finding)
        0 of 3 dimensions are used; in all of them the posterior has collapsed onto the prior (0.000 nats together).
    """
    check_not_nan(vae, "diagnostics")
    check_precision(vae, "diagnostics")
    check_positive(draws=draws, batch_size=batch_size)
    vae.check(x, y)
    x, y = row_wise(vae, x, y)
    values, groups = _groups(y, len(x))
    with measuring(vae, seed, "diagnostics"):
        rows = _Rows.together(
            [
                _measure(vae, x[i : i + batch_size], None if y is None else y[i : i + batch_size], draws)
                for i in range(0, len(x), batch_size)
            ]
        )
        alone = y is not None and len(values) > len(x) / 2
        told = None if alone else _information(vae, x, y, rows, groups, batch_size)
    columns = {"neg_elbo": rows.distortion + rows.rate, "distortion": rows.distortion, "rate": rows.rate}
    if told is not None:
        columns |= {"mutual_information": told[0], "aggregate_kl": rows.rate - told[0]}
    terms, sizes = {name: mean_and_error(column) for name, column in columns.items()}, groups.bincount().tolist()
    if told is not None:
        terms["mutual_information_at_most"] = min(terms["rate"], mean_and_error(told[1]))
    labels = {} if alone or not _are_labels(y) else {str(value): groups == k for k, value in enumerate(values)}
    single, together = len(x) == 1, torch.zeros_like(groups) if alone else groups
    return Diagnostics(
        rows=len(x),
        draws=draws,
        terms=terms,
        variance=_variance(rows.means, together).cpu(),
        kl_per_dimension=None if rows.kl is None else rows.kl.mean(0).cpu(),
        kl_standard_error=None if rows.kl is None or single else (rows.kl.std(0) / math.sqrt(len(x))).cpu(),
        prior_variance=None if rows.spread is None else rows.spread.mean(0).cpu(),
        freedom=len(x) - len(together.unique()),
        conditional=vae.condition is not None,
        ceiling=None if alone else sum(n / len(x) * math.log(n) for n in sizes),
        by_label={
            label: {name: mean_and_error(column[mine]) for name, column in columns.items()}
            for label, mine in labels.items()
        },
        rows_by_label={label: int(mine.sum()) for label, mine in labels.items()},
        density=getattr(vae.likelihood, "density", True),
    )


class _Rows(NamedTuple):
    """What is known of every row: draws of z, log q − log p at them, and means over the draws."""

    z: Tensor  # (N, draws, latent)
    sampled: Tensor  # (N, draws)
    rate: Tensor  # (N,)
    distortion: Tensor  # (N,)
    means: Tensor  # (N, 2, latent)
    kl: Tensor | None  # (N, latent)
    spread: Tensor | None  # (N, latent), the prior's variance

    @classmethod
    def together(cls, lots: list[_Rows]) -> _Rows:
        """Rows that were measured in lots, as one; only z stays on the device."""
        z, *columns = zip(*lots, strict=True)
        return cls(torch.cat(z), *(None if of[0] is None else torch.cat(of).cpu() for of in columns))  # type: ignore


def _measure(vae: VAE, x: Tensor, y: Tensor | None, draws: int) -> _Rows:
    q, p = posterior(vae, x, y), vae.prior_given(y)
    z = q.rsample((draws,)) if q.has_rsample else q.sample((draws,))
    rate, sampled = divergence(q, p, z)
    seen, log_likelihood = x.to(vae._beta), []
    for some in z.split(max(1, _CHUNK // vae.numbers(x))):
        likelihood, _ = observed(vae.decode(some, y), seen, None)
        log_likelihood.append(likelihood.log_prob(seen).expand(some.shape[:-1]))
    distortion = -torch.cat(log_likelihood).double().mean(0)
    return _Rows(z.movedim(0, 1), sampled.T, rate, distortion, _means(q), kl_per_dimension(q, p), _spread(p, len(x)))


def _means(q: Any) -> Tensor:
    """The mean of q twice, (N, 2, latent): from draws of their own where it has no closed form.

    Two that are independent, because the variance of a mean of draws is more than that of the mean.
    """
    try:
        return torch.stack([q.mean, q.mean], 1).double()
    except NotImplementedError:
        return torch.stack([q.sample((100,)).mean(0) for _ in range(2)], 1).double()


def _spread(p: Any, rows: int) -> Tensor | None:
    """The variance of a prior over vectors (N, latent), where it says it."""
    try:
        return p.variance.double().expand(rows, -1)
    except NotImplementedError:
        return None


def _groups(y: Tensor | None, rows: int) -> tuple[list[Any], Tensor]:
    """The different y, and for every row which of them it has."""
    if y is None:
        return [None], torch.zeros(rows, dtype=torch.long)
    values, groups = torch.unique(y.cpu(), dim=0, return_inverse=True)
    return values.tolist(), groups


def _are_labels(y: Tensor | None) -> bool:
    return y is not None and y.dim() == 1 and not y.is_floating_point()


def _information(
    vae: VAE, x: Tensor, y: Tensor | None, rows: _Rows, groups: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Log q(z|x,y) − log q(z|y) of every row, (N,): with the row itself in the mixture, and without it."""
    low, high = (torch.empty_like(rows.rate) for _ in range(2))
    for k in groups.unique():
        mine = (groups == k).nonzero()[:, 0]
        n, z = len(mine), rows.z[mine.to(rows.z.device)]
        own = torch.arange(n, device=z.device).repeat_interleave(z.shape[1])
        some = x[mine.to(x.device)], None if y is None else y[mine.to(y.device)]
        sums = log_density_sums(vae, *some, z.flatten(0, 1), own, batch_size)
        log_q, others = (log.cpu().unflatten(0, (n, -1)) for log in sums)
        sampled, rate = rows.sampled[mine], rows.rate[mine]
        low[mine] = _steadied(log_q - torch.logaddexp(log_q, others) + math.log(n), sampled, rate)
        # A row that is alone of its y has no others, and no bound from above.
        high[mine] = _steadied(log_q - others + math.log(max(1, n - 1)), sampled, rate)
    return low, high


def _steadied(values: Tensor, sampled: Tensor, rate: Tensor) -> Tensor:
    """The mean over the draws (N, draws), freed of what log q − log p says of their noise, its mean being known."""
    within, noise = (v - v.mean(1, keepdim=True) for v in (values, sampled))
    slope = (within * noise).sum() / noise.square().sum().clamp(min=torch.finfo(noise.dtype).tiny)
    return values.mean(1) - slope.nan_to_num(0.0) * (sampled.mean(1) - rate)


def _variance(means: Tensor, groups: Tensor) -> Tensor:
    """Var_x E_q[z] (latent,) within groups, from two means of every row; NaN for groups of one."""
    total = means.new_zeros(means.shape[-1])
    for k in groups.unique():
        centred = means[(groups == k).to(means.device)]
        centred = centred - centred.mean(0)
        total += centred.prod(1).sum(0)
    freedom = len(means) - len(groups.unique())
    return total / freedom if freedom else torch.full_like(total, math.nan)


def _line(text: str, mean: float, error: float) -> str:
    return f"{text:36s} {mean:z10.3f} {error:11.3f}"


def _listed(dimensions: list[int]) -> str:
    """The first dozen, counted from 1 as everywhere that people read, and how many more."""
    shown = ", ".join(str(i + 1) for i in dimensions[:12])
    return shown if len(dimensions) <= 12 else f"{shown} and {len(dimensions) - 12} more"

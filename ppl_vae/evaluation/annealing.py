r"""Two bounds on log p(x | y), from below and from above, by annealed importance sampling.

.. math:: f_t(z) = r(z)^{1 - t}\, \bigl(p(z \mid y)\, p(x \mid z, y)\bigr)^t, \qquad
    \log w = \sum_{k=1}^{K} (t_k - t_{k-1})\, u(z_{k-1}), \qquad
    u(z) = \log \frac{p(z \mid y)\, p(x \mid z, y)}{r(z)}

Up from :math:`t_0 = 0`: :math:`z_0 \sim r`, and :math:`z_k` is :math:`z_{k-1}` after a move that leaves
:math:`f_{t_k}` invariant. Then :math:`\mathbb{E}[w] = p(x \mid y)` whatever the moves and however few the temperatures,
so the log of a mean of weights is below log p(x|y) on average. Down from t = 1, the same sum along the same moves in
reverse order, starting at an exact draw :math:`z \sim p(z \mid x, y)`, has :math:`\mathbb{E}[w] = 1 / p(x \mid y)`, so
minus that log is above log p(x|y) on average. Nobody has an exact draw for real data; for simulated data it is the z
that made x.

The moves are Hamiltonian Monte Carlo, all rows and chains at once. They read their step sizes off a table that a run of
its own has filled: steps that adapted to the chains they move would make the weights biased.

Reference:
    Annealed Importance Sampling (Neal, 2001); Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo
    (Grosse, Ghahramani and Adams, 2015); On the Quantitative Analysis of Decoder-Based Generative Models (Wu, Burda,
    Salakhutdinov and Grosse, 2017)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ..devices import check_gradients
from ..distributions import is_periodic, is_point
from ..errors import NoDensityError, NonFiniteError, PartError, PplVaeError, ShapeError, check_positive, known
from ..model import VAE
from ..model.checks import check_not_nan, check_precision
from ..model.masking import observed
from .measuring import GREY, Report, frozen, mean_and_error, measuring, named, plain

__all__ = ["Bounds", "bounds"]

# How many numbers of decoded x, raw ones included, are held at a time: 16 MB in float32, and 256 on a CUDA device.
_CHUNK, _CHUNK_CUDA = 2**22, 2**26
# The preliminary run: so many chains; at least so many moves, and so many more before the first step size is read off;
# what acceptance it aims at, and how much log(step) changes for one that is off by a unit.
_PILOTS, _MOVES, _FIRST_MOVES, _ACCEPTANCE, _RATE = 4, 50, 20, 0.9, 0.5
# The largest force, so that z stays finite; and from how far out a trajectory is given up.
_FORCE, _FAR = 1e10, 1e4
# A function that does not depend on z has the slope 0.
_NO_SLOPE = {"allow_unused": True, "materialize_grads": True}


@dataclass(frozen=True, repr=False)
class Bounds(Report):
    """What :func:`bounds` found, a number a row, in nats, on the CPU in float64; ``str`` makes the table.

    Attributes:
        lower: (N,), the log of the mean weight of the way up, below log p(x|y) on average.
        lower_error: (N,), its standard error by its weights' spread over the chains; NaN for one chain.
        upper: (N,), minus that log for the way down, above log p(x|y) on average; None without z.
        upper_error: (N,), the same of that, given the row's z.
        acceptance: (1 or 2, N), the mean acceptance of a row's moves on each way.
        temperatures, chains, leapfrog, start: as they were asked for.
        density: whether p is one.
    """

    lower: Tensor
    lower_error: Tensor
    upper: Tensor | None
    upper_error: Tensor | None
    acceptance: Tensor
    temperatures: int
    chains: int
    leapfrog: int
    start: str
    density: bool = True

    @property
    def gap(self) -> tuple[float, float] | None:
        """The mean of upper − lower over the rows and its standard error; None without an upper bound.

        One row's two bounds can be in the wrong order, by chance; their means are that only as far as chance goes.
        """
        return None if self.upper is None else mean_and_error(self.upper - self.lower)

    def _means(self) -> dict[str, tuple[float, float]]:
        means = {"lower": mean_and_error(self.lower)}
        if self.upper is not None:
            means |= {"upper": mean_and_error(self.upper), "gap": mean_and_error(self.upper - self.lower)}
        return means

    def __str__(self) -> str:
        names = {"lower": "log p(x|y), lower bound", "upper": "log p(x|y), upper bound", "gap": "the gap between them"}
        lines = [f"{f'{len(self.lower)} rows, nats per datum':36s} {'mean':>10s} {'std. error':>11s}"]
        lines += [f"{names[name]:36s} {mean:10.3f} {error:11.3f}" for name, (mean, error) in self._means().items()]
        lines.append(f"{self.temperatures} temperatures from the {self.start}, {self.chains} chains")
        if self.temperatures > 1:
            ways = zip(self.acceptance.mean(1).tolist(), ("up", "down"), strict=False)
            accepted = ", ".join(f"{rate:.2f} on the way {way}" for rate, way in ways)
            lines.append(f"{self.leapfrog} leapfrog steps a move, accepted: {accepted}")
        return "\n".join(lines if self.density else [*lines, GREY])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return plain(
            {
                "rows": len(self.lower),
                "temperatures": self.temperatures,
                "chains": self.chains,
                "leapfrog": self.leapfrog,
                "start": self.start,
                "acceptance": self.acceptance.mean(1),
                "density": self.density,
                "unit": "nats per datum",
                **named(self._means()),
            }
        )


@torch.no_grad()
def bounds(
    vae: VAE,
    x: Any,
    y: Any = None,
    *,
    z: Any = None,
    temperatures: int = 200,
    chains: int = 16,
    leapfrog: int = 10,
    start: Literal["prior", "encoder"] = "encoder",
    batch_size: int | None = None,
    seed: int = 0,
) -> Bounds:
    r"""Bound log p(x|y) from below and, where z is known, from above, by annealed importance sampling.

    The lower bound is for any data. For data of ``simulate``, whose z is known, there is an upper bound as well,
    and log p(x|y) lies between the two on average: ``gap`` is how well this model's log p(x|y) is known. Both are
    stochastic: they hold for the mean, and for one row as far as chance goes.

    A row costs chains × temperatures × leapfrog decodings with their gradients, twice with z, and a quarter of that at
    16 chains for the preliminary run.

    Arguments:
        vae: the model; it is measured in ``eval()`` mode, and left in the mode it was in.
        x: (N, *x_shape), and y as elsewhere.
        z: (N, latent), for every row an exact draw from p(z|x,y); None for real data.
        temperatures: K, how many steps from t = 0 to t = 1; with one step it is importance sampling.
        chains: how many weights a row.
        leapfrog: how many steps a move makes.
        start: r(z): ``"encoder"`` for q(z|x,y), which is nearer to the posterior if it is any good, and then gives the
            smaller gap; or ``"prior"`` for p(z|y), which asks nothing of the encoder.
        batch_size: rows at a time, by default as many as take 16 MB to decode in float32, on CUDA 256.
        seed: of the draws; the caller's generators are left as they were.

    Returns:
        A :class:`Bounds`.

    Raises:
        DataError, ShapeError, LabelError: as ``VAE.check``; ShapeError for a z of another shape too.
        ConfigError: for another word for ``start``, or a model in half precision; inside ``torch.inference_mode()``.
        NoDensityError: if the model has no prior, or it is to start from an encoder that gives a point.
        PartError: if p(z|y) or the start is not over all of :math:`\mathbb{R}^D`, as a sphere is not.
        NonFiniteError: if a log-density is NaN, or an exact draw is impossible.

    Reference:
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)

    Example:
        >>> vae = pv.vae((4,), 2, likelihood="Gaussian")
        >>> x, _, z = pv.evaluation.simulate(vae, 50)
        >>> found = bounds(vae, x, z=z, temperatures=20, chains=4, leapfrog=5)
        >>> found.lower.shape, abs(found.gap[0]) < 0.5
        (torch.Size([50]), True)
    """
    check_not_nan(vae, "bounds")
    check_precision(vae, "bounds")
    with torch.enable_grad():
        check_gradients("bounds")
    check_positive(temperatures=temperatures, chains=chains, leapfrog=leapfrog)
    known("start", start, ("prior", "encoder"))
    # Also of a model that may be trained without some labels: what is measured is measured given y.
    vae.check_values(x, y)
    x, y = torch.as_tensor(x), None if y is None else torch.as_tensor(y)
    if batch_size is None:
        chunk = _CHUNK_CUDA if vae._beta.is_cuda else _CHUNK
        batch_size = max(1, chunk // (chains * vae.numbers(x[:1])))
    check_positive(batch_size=batch_size)
    ladder = _ladder(temperatures)
    columns = []
    with measuring(vae, seed, "bounds"), frozen(vae):
        z = _checked(_Path(vae, x[:1], vae._labels_of(y, slice(1)), start), x, vae._tensor(z))
        for first in range(0, len(x), batch_size):
            some = slice(first, first + batch_size)
            path = _Path(vae, x[some], vae._labels_of(y, some), start)
            steps = _step_sizes(path, ladder, leapfrog)
            runs = [_anneal(path, path.draw(chains), ladder, steps, leapfrog)]
            if z is not None:
                runs.append(_anneal(path, z[some].expand(chains, -1, -1), ladder[::-1], steps[::-1], leapfrog))
            columns.append(torch.stack([torch.stack([*_log_mean(log_w), accepted]) for log_w, accepted in runs]).cpu())
    log_mean, error, acceptance = torch.cat(columns, -1).unbind(1)
    return Bounds(
        lower=log_mean[0],
        lower_error=error[0],
        upper=None if z is None else -log_mean[1],
        upper_error=None if z is None else error[1],
        acceptance=acceptance,
        temperatures=temperatures,
        chains=chains,
        leapfrog=leapfrog,
        start=start,
        density=getattr(vae.likelihood, "density", True),
    )


def _log_mean(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the mean of weights (chains, N), and its standard error by the delta method, (N,) each."""
    n, log_mean = len(log_w), log_w.logsumexp(0) - math.log(len(log_w))
    variance = ((log_w - log_mean).exp() - 1).square().sum(0) / (n * (n - 1) or math.nan)
    return log_mean, variance.sqrt()


def _ladder(steps: int) -> list[float]:
    """The temperatures from 0 to 1, ``steps`` + 1 of them: an S-curve, dense at both ends (Wu et al., 2017)."""
    t = torch.linspace(-4, 4, steps + 1, dtype=torch.float64).sigmoid()
    return ((t - t[0]) / (t[-1] - t[0])).tolist()


class _Place(NamedTuple):
    """Where chains are: z (chains, N, latent); log r and u there, (chains, N); the gradients of these in z."""

    z: Tensor
    log_r: Tensor
    u: Tensor
    slope_r: Tensor
    slope_u: Tensor

    def at(self, t: float) -> tuple[Tensor, Tensor]:
        """Return log f_t and its gradient: both are straight lines in t, so one evaluation serves every temperature."""
        return self.log_r + t * self.u, self.slope_r + t * self.slope_u


class _Path:
    """The densities between the start and the target, for some rows, as functions of z (chains, N, latent)."""

    def __init__(self, vae: VAE, x: Tensor, y: Tensor | None, start: str) -> None:
        self.vae, self.x, self.c = vae, x.to(vae._beta), vae._context(y)
        self.prior = vae.prior_given(y)
        self.start = self.prior if start == "prior" else vae.encode(x, y)

    def draw(self, chains: int) -> Tensor:
        """Draw from the start."""
        return self.start.expand((len(self.x),)).sample((chains,))

    def __call__(self, z: Tensor) -> _Place:
        """Return the place z."""
        z = z.detach()
        # One z for each density, so that one backward pass gives both gradients, apart.
        of_r, of_p = z.clone().requires_grad_(), z.clone().requires_grad_()
        apart = self.start is not self.prior
        with torch.enable_grad():
            try:
                likelihood, x = observed(self.vae._decoded(of_p, self.c), self.x, None)
                log_r, log_p = self.start.log_prob(of_r), likelihood.log_prob(x)
            except PplVaeError:
                raise
            except ValueError as error:
                # What validation says of parameters that are not finite.
                first = str(error).splitlines()[0]
                raise NonFiniteError(f"bounds: log p(x, z | y) is not defined at z: {first}") from error
            if apart:
                log_p = log_p + self.prior.log_prob(of_p)
            # A likelihood may be one that z says nothing to.
            values = [each for each in (log_r, log_p) if each.requires_grad]
            slopes = torch.autograd.grad(values, (of_r, of_p), [torch.ones_like(each) for each in values], **_NO_SLOPE)
        # A part that ignores what it is given may give one number for all.
        log_r, log_p = (each.detach().expand(z.shape[:-1]) for each in (log_r, log_p))
        slope_r, slope_p = slopes
        # From the prior, p(z|y) is in r and in p, and is left out of u.
        u, slope_u = (log_p - log_r, slope_p - slope_r) if apart else (log_p, slope_p)
        return _Place(z, log_r, u, slope_r, slope_u)


def _anneal(
    path: _Path, z: Tensor, ladder: Sequence[float], steps: Sequence[Tensor], leapfrog: int
) -> tuple[Tensor, Tensor]:
    """Take z (chains, N, latent) along the temperatures, up or down, with a move at each that is not an end.

    Returns:
        The log-weights (chains, N), and the acceptance of every row (N,), in float64.
    """
    place = path(z)
    log_w = (ladder[1] - ladder[0]) * place.u.double()
    if (wrong := (log_w.isnan() | (log_w == math.inf)).any(0)).any():
        raise NonFiniteError(
            f"bounds: log p(x, z | y) is not finite at the first z of {int(wrong.sum())} of {len(wrong)} rows: look at "
            "the parameters of the model, and at z if it was given"
        )
    accepted = torch.zeros_like(log_w)
    for t, following, step in zip(ladder[1:-1], ladder[2:], steps, strict=True):
        place, rate = _move(path, t, place, step, leapfrog)
        log_w += (following - t) * place.u.double()
        accepted += rate
    return log_w, accepted.mean(0) / max(1, len(ladder) - 2)


def _step_sizes(path: _Path, ladder: Sequence[float], leapfrog: int) -> list[Tensor]:
    """Return a step size for every row, (N,), at every temperature that is not an end, from a run of its own."""
    place = path(path.draw(_PILOTS))
    log_step = place.z.std(0).amin(-1).log()
    steps = []
    for k, t in enumerate(ladder[1:-1]):
        for _ in range(math.ceil(_MOVES / (len(ladder) - 2)) + (_FIRST_MOVES if k == 0 else 0)):
            place, rate = _move(path, t, place, log_step.exp(), leapfrog)
            log_step = log_step + _RATE * (rate.mean(0) - _ACCEPTANCE)
        steps.append(log_step.exp())
    return steps


def _move(path: _Path, t: float, place: _Place, step: Tensor, leapfrog: int) -> tuple[_Place, Tensor]:
    """Make one Hamiltonian move in f_t from a place, with steps (N,) that do not depend on z.

    Returns:
        The place where the chains are then, and the acceptance rate, (chains, N).
    """
    log_f, gradient = place.at(t)
    # From none to twice the step, at random: of one length, trajectories could close in on themselves.
    step = (step * 2 * torch.rand_like(log_f)).unsqueeze(-1)
    there, momentum = place, torch.randn_like(place.z)
    energy = 0.5 * momentum.square().sum(-1) - log_f
    lost = _far(place.z)
    for _ in range(leapfrog):
        momentum = momentum + 0.5 * step * _force(gradient)
        z = there.z + step * momentum
        # A trajectory that flies off is rejected, as it would be from its other end, and the model is not asked there.
        lost = lost | _far(z)
        there = path(torch.where(lost.unsqueeze(-1), place.z, z))
        log_f, gradient = there.at(t)
        momentum = momentum + 0.5 * step * _force(gradient)
    energy_there = 0.5 * momentum.square().sum(-1) - log_f
    rate = (energy - energy_there).clamp(max=0).exp().nan_to_num(0.0).masked_fill(lost, 0.0)
    accepted = _accept(rate)
    pairs = zip(there, place, strict=True)
    # Those with a coordinate more, z and the gradients, are taken whole.
    moved = (torch.where(accepted.unsqueeze(-1) if a.dim() > accepted.dim() else accepted, a, b) for a, b in pairs)
    return _Place(*moved), rate


def _far(z: Tensor) -> Tensor:
    return ~(z.abs() < _FAR).all(-1)


def _accept(rate: Tensor) -> Tensor:
    return torch.rand_like(rate) < rate


def _force(gradient: Tensor) -> Tensor:
    """The gradient, made finite; any force that z determines lets a trajectory keep volume and be run backwards."""
    limit = min(_FORCE, torch.finfo(gradient.dtype).max)
    return gradient.clamp(-limit, limit).nan_to_num(0.0)


def _checked(path: _Path, x: Tensor, z: Tensor | None) -> Tensor | None:
    """Z, once the moves can be made and it can be their start."""
    for name, d, way_out in (
        ("prior", path.prior, "take VAE.log_prob, which weighs draws of any kind"),
        ("encoder", path.start, "take start='prior'"),
    ):
        if is_point(d):
            raise NoDensityError(f"{name}: expected a density, got a point (Delta): {way_out}")
        support = d.support
        while (inner := getattr(support, "base_constraint", None)) is not None:
            support = inner
        if support is not constraints.real:
            raise PartError(
                f"{name}: expected a density over all of R^D, in which z can move, got one over {support}: {way_out}"
            )
        if is_periodic(d):
            raise PartError(
                f"{name}: expected a density over all of R^D, got one of angles, which adds up to one on (−π, π) "
                f"alone: {way_out}"
            )
    expected = len(x), *path.prior.event_shape
    if z is not None and tuple(z.shape) != expected:
        raise ShapeError(f"z: expected {expected}, an exact draw for every row of x, got {tuple(z.shape)}")
    if z is not None and (wrong := ~z.isfinite().all(-1)).any():
        raise NonFiniteError(f"z: expected finite numbers, got others in {int(wrong.sum())} of {len(z)} rows")
    return z

r"""What one asks of a generative model: draw, encode, decode, reconstruct, translate, and log p(x | y).

.. math:: \log p(x \mid y) \approx \log \frac1S \sum_{s=1}^S
    \frac{p(z_s \mid y)\, p(x \mid z_s, y)}{q(z_s \mid x, y)}, \qquad z_s \sim q(z \mid x, y)
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from ..data import as_tensor
from ..distributions import as_pyro, is_point, onto_spheres, transport
from ..errors import ConfigError, LabelError, NoDensityError, check_positive
from ..networks import widest
from ..parts import Chain
from .checks import (
    check_latent,
    check_not_nan,
    check_pair,
    check_precision,
    check_rows,
    check_same_rows,
    check_spheres,
)
from .masking import filled, given, observed
from .programs import NO_PRIOR, Programs

__all__ = ["VAE", "Proposal", "density_numbers"]

# Where importance samples of z come from.
Proposal = Literal["encoder", "prior"] | Callable[[Tensor], Any]

# How many numbers of a decoded batch, raw ones included, are held at a time while log-weights are computed or pixels
# drawn: 16 MB in float32.
_CHUNK = 2**22


class VAE(Programs):
    r"""A generative program p(z | y) p(x | z, y) with its guide q(z | x, y).

    ``vae.model`` and ``vae.guide`` are Pyro programs for ``pyro.infer.SVI``, every ELBO of Pyro's, ``Predictive`` and
    ``poutine``, as they are.

    Arguments:
        prior: c → p(z | y); None for an autoencoder, whose z has no density.
        likelihood: z, c → p(x | z, y).
        encoder: x, c → q(z | x, y).
        condition: y → c, floats (*, context); None for a model without y, whose parts get None for their context.
        beta: the weight of the KL term in both programs, and nowhere else: every evaluation is at β = 1.
        name: what Pyro's param store knows the parameters under. By default it is unique in the process, and every copy
            gets another, so that two models never train each other's parameters.

    Raises:
        PartError: if a part cannot be called, or not with its context.
        ConfigError: if β is no number, negative or not finite, or a living model has the explicit name already.

    Example:
        >>> cvae = VAE(
        ...     prior=pv.priors.Gaussian(20, context=10),
        ...     likelihood=pv.likelihoods.Bernoulli((1, 28, 28), 20, context=10),
        ...     encoder=pv.encoders.Gaussian(20, (1, 28, 28), context=10),
        ...     condition=pv.OneHot(10),
        ... )
        >>> cvae.sample(8, y=torch.arange(10)).shape
        torch.Size([8, 10, 1, 28, 28])
    """

    def encode(self, x: Any, y: Any = None) -> Any:
        """Return q(z | x, y), a distribution over (latent,), for x (*, *x_shape)."""
        return self._encoded(self._tensor(x), self._context(y))

    def decode(self, z: Any, y: Any = None) -> Any:
        """Return p(x | z, y), a distribution over x_shape, for z (*, latent)."""
        return self._decoded(self._tensor(z), self._context(y))

    def prior_given(self, y: Any = None) -> Any:
        """Return p(z | y), a distribution over (latent,) with the batch shape of y.

        Raises:
            NoDensityError: if the model has no prior.
            ShapeError: if the prior is over another number of features than the encoder gives.
        """
        if self.prior is None:
            raise NoDensityError(NO_PRIOR)
        c = self._context(y)
        p = self._prior(c)
        if isinstance(features := getattr(self.encoder, "features", None), numbers.Integral):
            check_latent(int(features), p)
        batch = torch.Size() if c is None else c.shape[:-1]
        return p.expand(torch.broadcast_shapes(p.batch_shape, batch))

    @torch.no_grad()
    def sample(self, n: int = 1, y: Any = None, *, mean: bool = False) -> Tensor:
        """Draw x ~ p(x | y).

        Arguments:
            n: how many for each y.
            y: an integer (batch shape ()), or a tensor of labels.
            mean: return the mean of p(x | z, y) instead of a draw from it; z is drawn all the same.

        Returns:
            (n, *y's batch shape, *x_shape).

        Raises:
            NoDensityError: if the model has no prior.
        """
        check_positive(n=n)
        z = self.prior_given(y).sample((n,))
        p = self.decode(z, y)
        return self._mean(p) if mean else p.sample()

    @torch.no_grad()
    def embed(self, x: Any, y: Any = None, mask: Any = None, *, draws: int = 100) -> Tensor:
        """Return the mean of q(z | x, y), (*, latent); that of so many draws where it has no closed form.

        With a mask, True where a pixel is seen, x is what is seen of it.
        """
        x = self._tensor(x)
        return self._mean(self._encoded(given(self.encoder, x, self._mask(x, mask)), self._context_of(x, y)), draws)

    @torch.no_grad()
    def reconstruct(self, x: Any, y: Any = None) -> Tensor:
        """Return the mean of p(x | z, y), (*, *x_shape), at the mean of q(z | x, y); on a sphere, right above that."""
        x = self._tensor(x)
        c = self._context_of(x, y)
        q = self._encoded(x, c)
        return self._mean(self._decoded(onto_spheres(self._mean(q), q.support), c))

    @torch.no_grad()
    def translate(self, x: Any, y: Any = None, *, to: Any, carry: bool = False) -> Tensor:
        """Keep z, change y: the same style in another class.

        Arguments:
            x: (N, *x_shape), and y as elsewhere.
            to: the other y; ``torch.arange(10)[:, None]`` gives every class, (10, N, *x_shape).
            carry: with a learned p(z|y), z tells the class as well as the style; this keeps z's place within p(z|y) and
                takes the same place in p(z|to), by :func:`~ppl_vae.distributions.transport`.

        Returns:
            The mean of p(x | z, to), with the batch shapes of x and ``to`` broadcast.

        Raises:
            LabelError: for a y, or a ``to``, of other rows than x.
            NoClosedFormError: if z is to be carried between priors without a map.
        """
        x = self._tensor(x)
        c, c_to = self._context_of(x, y), self._context(to)
        q = self._encoded(x, c)
        z = onto_spheres(self._mean(q), q.support)
        if carry and c is not None and c_to is not None:
            check_same_rows("z", z.shape[:-1], c_to.shape[:-1])
            batch = torch.broadcast_shapes(z.shape[:-1], c.shape[:-1], c_to.shape[:-1])
            z, *both = (t.expand(*batch, -1) for t in (z, c, c_to))
            z = transport(z, *map(self._prior, both))
        return self._mean(self._decoded(z, c_to))

    @torch.no_grad()
    def interpolate(self, x: Any, other: Any, y: Any = None, *, to: Any = None, steps: int = 8) -> Tensor:
        """Decode the straight line from the z of x to the z of ``other``; on a sphere, the arc above it.

        Arguments:
            x, other: (N, *x_shape), the two ends.
            y: the label of both, or of x where ``to`` gives that of ``other``; c is interpolated too.
            steps: how many images, both ends included.

        Returns:
            Means, (steps, N, *x_shape).
        """
        check_positive(steps=steps)
        x, other, to = self._tensor(x), self._tensor(other), y if to is None else to
        contexts = self._context_of(x, y), self._context_of(other, to)
        posteriors = self._encoded(x, contexts[0]), self._encoded(other, contexts[1])
        ends = [onto_spheres(self._mean(q), q.support) for q in posteriors]
        t = torch.linspace(0, 1, steps).to(self._beta).reshape(-1, *[1] * ends[0].dim())
        z, c = onto_spheres(torch.lerp(ends[0], ends[1], t), posteriors[0].support), None
        if contexts[0] is not None and contexts[1] is not None:
            first, last = (c.expand(*ends[0].shape[:-1], -1) for c in contexts if c is not None)
            c = torch.lerp(first, last, t)
        return self._mean(self._decoded(z, c))

    def _mean(self, d: Any, draws: int = 100) -> Tensor:
        """The mean of a distribution; that of so many draws where it has no closed form."""
        with suppress(NotImplementedError):
            mean = d.mean
            # Torch's Categorical says NaN. Of real numbers that is the truth, as of a Cauchy: draws would make one up.
            if not (mean.isnan().all() and d.support.is_discrete):
                return mean
        return d.sample((draws,)).to(self._beta).mean(0)

    @torch.no_grad()
    def impute(self, x: Any, y: Any = None, mask: Any = None, n: int = 1, *, candidates: int = 100) -> Tensor:
        r"""Draw the unseen pixels from p(x_unseen | x_seen, y).

        .. math:: z_k \sim q(z \mid x_{\text{seen}}, y), \qquad w_k \propto
            \frac{p(z_k \mid y)\, p(x_{\text{seen}} \mid z_k, y)}{q(z_k \mid x_{\text{seen}}, y)}

        A z is chosen among the candidates with those weights, for each draw anew, and x is drawn given it. The encoder,
        which may never have met zeros in the place of pixels, so only proposes; the draws are exact as ``candidates``
        grows.

        Arguments:
            x: (N, *x_shape); unseen entries may be anything, NaN included.
            y: (N,) as elsewhere.
            mask: True where a pixel is seen, of the shape of x; it has to be given.
            n: how many draws.
            candidates: how many z are proposed for a row.

        Returns:
            (n, N, *x_shape), in which seen pixels are as they were given.

        Raises:
            NoDensityError: as :meth:`log_weights`.
            ConfigError, ShapeError: for no mask, or one of another shape.
            PartError: for a likelihood whose pixels are not independent.

        Reference:
            MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei and Frellsen, 2019)

        Example:
            >>> vae = pv.vae((4,), 2)
            >>> x = torch.tensor([[1.0, 0.0, float("nan"), float("nan")]])
            >>> vae.impute(x, mask=~x.isnan(), n=3).shape
            torch.Size([3, 1, 4])
        """
        check_positive(n=n, candidates=candidates)
        if mask is None:
            raise ConfigError("impute: expected a mask, True where x is seen, got None: e.g. mask=~x.isnan()")
        x = self._tensor(x)
        check_rows(x)
        mask = self._mask(x, mask)
        y = None if y is None else as_tensor(y, "y", LabelError).to(x.device)
        if y is not None and self.per_row(y) and len(y) == 1:
            y = y.expand(len(x), *y.shape[1:])
        # Where nothing is seen there is nothing to check, and the draws are those of p(x | y).
        if mask.any():
            self.check(x, y, mask)
        step = max(1, _CHUNK // (candidates * self.numbers(x[:1])))
        rows = [slice(first, first + step) for first in range(0, len(x), step)]
        drawn = [self._impute(x[some], self._labels_of(y, some), mask[some], n, candidates) for some in rows]
        return torch.cat(drawn, 1)

    def _impute(self, x: Tensor, y: Any, mask: Tensor, n: int, candidates: int) -> Tensor:
        z, log_w = (torch.cat(chunks) for chunks in zip(*self._propose(x, y, candidates, mask), strict=True))
        chosen = dist.Categorical(logits=log_w.movedim(0, -1)).sample((n,))
        z = z.gather(0, chosen.unsqueeze(-1).expand(-1, -1, z.shape[-1]))
        chunk = max(1, _CHUNK // self.numbers(x))
        return torch.cat([torch.where(mask, x, self.decode(some, y).sample().to(x)) for some in z.split(chunk)])

    def numbers(self, x: Tensor) -> int:
        """Return how many numbers the z of x (N, *x_shape) cost at a time, one a row.

        That is the most of: the raw numbers of the pixels, or the widest layer on the way to them; the layers of a
        flow; and the components of a mixture, in the prior or in the encoder.
        """
        densities = (density_numbers(part) for part in (self.prior, self.encoder))
        return max(x.numel(), len(x) * max(1, widest(_inner(self.likelihood)), *densities))

    @torch.no_grad()
    def log_weights(
        self,
        x: Any,
        y: Any = None,
        samples: int = 1000,
        *,
        mask: Any = None,
        proposal: Proposal = "encoder",
        memory: int | None = None,
    ) -> Iterator[Tensor]:
        r"""Yield importance weights of z ~ r, which is q(z | x, y), p(z | y) or another distribution.

        .. math:: \log w = \log p(z \mid y) + \log p(x \mid z, y) - \log r(z)

        Everything that estimates log p(x | y) reduces these; β plays no part in them.

        Arguments:
            x: (N, *x_shape), and y as elsewhere.
            samples: how many draws of z in all.
            mask: True where a pixel is seen, of the shape of x: x is then what is seen of it, in all of these.
            proposal: where z is drawn from; a function of x (N, *x_shape) returns a distribution, batch shape (N,).
                With a mask it is given zeros for what is not seen.
            memory: how many numbers are held at a time, of decoded x or of what is wider on the way there
                (:meth:`numbers`); by default 2²², 16 MB.

        Returns:
            Chunks (k, N) in nats, with the k adding up to ``samples``.

        Raises:
            NoDensityError: if the model has no prior, or its encoder gives a point and is to propose.
            ConfigError: for another proposal.
            PartError: with a mask, for a likelihood whose pixels are not independent.
        """
        check_positive(samples=samples)
        mask = self._mask(self._tensor(x), mask)
        for _, log_w in self._propose(x, y, samples, mask, proposal=proposal, memory=memory):
            yield log_w

    def _propose(
        self,
        x: Any,
        y: Any,
        samples: int,
        mask: Tensor | None = None,
        proposal: Proposal = "encoder",
        memory: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield z from the proposal and their log-weights, in chunks (k, N, latent) and (k, N)."""
        x = self._tensor(x)
        p = self.prior_given(y)
        if callable(proposal):
            q = as_pyro(proposal(x if mask is None else filled(x, mask))).expand(self._rows(x))
        elif proposal in ("encoder", "prior"):
            q = self.encode(given(self.encoder, x, mask), y) if proposal == "encoder" else p
            # An encoder that ignores x may give one distribution for all rows.
            q = q if q.batch_shape == (rows := self._rows(x)) else q.expand(rows)
        else:
            raise ConfigError(f"proposal: expected 'encoder', 'prior' or a function of x, got {proposal!r}")
        if is_point(q):
            raise NoDensityError(
                "a point (Delta) has no density, so it gives no importance weights: take proposal='prior' where the "
                "prior has one"
            )
        if proposal != "prior":
            # Aside, as a chain draws to say what it is made of.
            with self._aside():
                check_spheres(q, p)
        chunk = max(1, (memory or _CHUNK) // self.numbers(x))
        for done in range(0, samples, chunk):
            # rsample, because a flow then scores its own draw without being inverted.
            draw = q.rsample if q.has_rsample else q.sample
            z = draw((min(chunk, samples - done),))
            if not done:
                check_pair(z, p)
            likelihood, seen = self.decode(z, y), x
            if mask is not None:
                likelihood, seen = observed(likelihood, x, mask)
            ratio = 0.0 if proposal == "prior" else p.log_prob(z) - q.log_prob(z)
            yield z, ratio + likelihood.log_prob(seen)

    @torch.no_grad()
    def log_prob(self, x: Any, y: Any = None, samples: int = 1000, *, mask: Any = None) -> Tensor:
        r"""Estimate log p(x | y) by importance sampling, :math:`\log \frac1S \sum_s w_s`.

        A stochastic lower bound: its expectation grows with ``samples`` towards log p(x | y). With a mask it is that
        of what is seen, log p(x_seen | y).

        Returns:
            (N,), nats.

        Raises:
            DataError, ShapeError, LabelError: as :meth:`check`.
            NoDensityError: as :meth:`log_weights`.
            ConfigError: for a model in half precision.

        Reference:
            Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016)
        """
        check_not_nan(self, "log_prob")
        check_precision(self, "log_prob")
        self.check(x, y, mask)
        total = torch.tensor(-math.inf, dtype=torch.float64, device=self._beta.device)
        for log_w in self.log_weights(x, y, samples, mask=mask):
            total = torch.logaddexp(total, log_w.double().logsumexp(0))
        return (total - math.log(samples)).to(self._beta.dtype)


def density_numbers(part: Any) -> int:
    """How many numbers a prior's or an encoder's density takes at one z: of a flow's layers, of a mixture's components.

    It is 0 where there are neither.
    """
    part = _inner(part)
    if isinstance(part, Chain):
        # Its second network sees z: one pass of it a z, and not one a row.
        return max(density_numbers(part.first), density_numbers(part.second), widest(part.second))
    sizes = [getattr(part, name, None) for name in ("components", "features")]
    mixture = math.prod(sizes) if all(isinstance(size, numbers.Integral) for size in sizes) else 0  # type: ignore
    return max(int(mixture), widest(part, False))


def _inner(part: Any) -> Any:
    """What the wrappers are around."""
    while (inner := getattr(part, "part", None)) is not None:
        part = inner
    return part

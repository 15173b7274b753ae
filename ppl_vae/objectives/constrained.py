r"""Objectives that keep the KL from falling to nothing, or hold it where one wants it.

.. math:: \text{loss} = s \Bigl(-\sum_{n=1}^N \log p(x_n \mid z_n, y_n) + \beta N f\bigl(\overline{\mathrm{KL}}\bigr)
    \Bigr), \qquad \overline{\mathrm{KL}} = \frac1N \sum_{n=1}^N \mathrm{KL}\bigl(q(z \mid x_n, y_n) \,\|\,
    p(z \mid y_n)\bigr)

At f(KL) = KL this is −β-ELBO of the batch. None of the others is a bound on log p(x|y), so they are for training, and
evaluation knows nothing of them. The mean is over the rows of the batch, and f comes after it: what is held is how much
a code tells about the data on the whole, not how much it tells about every single datum.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..errors import ConfigError, NoClosedFormError, PartError, check_positive
from .analytic import closed_form
from .base import Objective, common_scale, only_latent, sites, tempered

__all__ = ["Capacity", "FreeBits"]


class _Constrained(Objective):
    """The loss above, for an f that a subclass gives."""

    def __init__(self, num_particles: int, vectorize_particles: bool, max_plate_nesting: float) -> None:
        check_positive(num_particles=num_particles)
        super().__init__(
            num_particles=num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting
        )

    @abstractmethod
    def kl(self, name: str, q: Any, p: Any) -> Tensor:
        """Return the KL of a latent site, in nats: (*, groups), from the guide's site and the model's."""

    @abstractmethod
    def constrain(self, kl: Tensor) -> Tensor:
        """Return f of the mean KL, (groups)."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, ()."""
        traces = list(self._get_traces(model, guide, args, kwargs))
        scale = common_scale(traces[0][0])
        observed = [site for model_trace, _ in traces for _, site in sites(model_trace, observed=True)]
        reconstruction = -torch.stack([tempered(site, scale).sum() for site in observed]).sum() / self.num_particles
        name, latent = only_latent(traces[0][1], self)
        beta = latent["scale"] / scale
        if isinstance(latent["mask"], Tensor) or any(isinstance(s, Tensor) and s.dim() for s in (scale, beta)):
            raise PartError(
                f"site {name!r}: expected one weight for its KL in all rows, got a mask or a scale a row: use "
                "Analytic(), whose KL is a sum over rows"
            )
        if latent["mask"] is False:
            return scale * reconstruction
        kls = [self.kl(name, guide_trace.nodes[name], model_trace.nodes[name]) for model_trace, guide_trace in traces]
        mean = torch.stack([kl.reshape(-1, kl.shape[-1]).mean(0) for kl in kls]).mean(0)
        # Vectorised particles are rows of the one trace there is.
        rows = latent["fn"].batch_shape.numel() * len(traces) / self.num_particles
        return scale * (reconstruction + beta * rows * self.constrain(mean).sum())


class FreeBits(_Constrained):
    r"""The ELBO that asks nothing for the first nats of every group of latent features.

    .. math:: f(\overline{\mathrm{KL}}) = \sum_g \max\bigl(\lambda, \overline{\mathrm{KL}}_g\bigr)

    Below λ a group has no gradient from the prior, so nothing pushes it to collapse before the likelihood has found a
    use for it. The mean comes before the maximum, as in the paper: λ is then a floor for what a feature tells about the
    data on average, and single data may take more or less. A floor for every datum would hold even those that a feature
    has nothing to say about. A batch's mean stands for the data set's, so the loss depends on the batch size a little.

    Arguments:
        nats: λ, for each group.
        group: how many features in a row make a group.
        num_particles: how many draws of z a step, for the likelihood.
        vectorize_particles, max_plate_nesting: as :class:`~ppl_vae.objectives.IWAE`.

    Raises:
        ConfigError: for options that make no sense.
        NoClosedFormError: in a step, unless prior and encoder are both independent over the features, of families whose
            KL has a formula.

    Reference:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)

    Example:
        >>> vae = pv.vae((4,), 2, likelihood="Gaussian")
        >>> FreeBits(0.5).loss(vae.model, vae.guide, torch.zeros(3, 4)) > 0
        True
    """

    def __init__(
        self,
        nats: float = 0.5,
        group: int = 1,
        num_particles: int = 1,
        vectorize_particles: bool = False,
        max_plate_nesting: float = 1,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting)
        check_positive(group=group)
        if not 0 <= nats < math.inf:
            raise ConfigError(f"FreeBits: expected 0 ≤ nats < ∞, got {nats}")
        self.nats, self.group = float(nats), group

    def kl(self, name: str, q: Any, p: Any) -> Tensor:
        """Return the KL of every group, (*, groups)."""
        ends, way_out = (q["fn"], p["fn"]), "two diagonal Gaussians, say, or Capacity(..., fallback='sample')"
        kinds = [(d.event_shape, d.reinterpreted_batch_ndims) for d in ends if isinstance(d, Independent)]
        if len(kinds) != 2 or kinds[0] != kinds[1]:
            raise NoClosedFormError(
                f"site {name!r}: FreeBits expected an encoder and a prior that are independent over the features "
                f"(.to_event), got {' and '.join(type(d).__name__ for d in ends)}: use {way_out}"
            )
        base, ndims = ends[0].base_dist, ends[0].reinterpreted_batch_ndims
        each = closed_form(name, base, ends[1].base_dist, way_out).expand(base.batch_shape).flatten(-ndims)
        if each.shape[-1] % self.group:
            raise ConfigError(
                f"FreeBits: expected groups that divide the {each.shape[-1]} latent features, got {self.group}"
            )
        return each.unflatten(-1, (-1, self.group)).sum(-1)

    def constrain(self, kl: Tensor) -> Tensor:
        """Return max(λ, KL), (groups)."""
        return kl.clamp(min=self.nats)


class Capacity(_Constrained):
    r"""The KL held at a capacity C, which may rise from epoch to epoch.

    .. math:: f(\overline{\mathrm{KL}}) = \gamma\, \bigl|\overline{\mathrm{KL}} - C\bigr|, \qquad
        C_{\text{epoch}} = \text{capacity} \cdot \min(1, \text{epoch} / \text{epochs})

    :func:`ppl_vae.fit` calls :meth:`begin_epoch`; with ``SVI``, call it yourself. C is a tensor, so a recorded graph
    follows it. γ takes the place of β, which multiplies this term too and is best left at 1.

    Arguments:
        capacity: the C that is reached, in nats a datum.
        gamma: how strongly the KL is held there.
        epochs: over how many C rises from 0; None for the same C from the start.
        fallback: ``"sample"`` to use log q − log p at the draws where the KL has no closed form.
        num_particles: how many draws of z a step.
        vectorize_particles, max_plate_nesting: as :class:`~ppl_vae.objectives.IWAE`.

    Raises:
        ConfigError: for options that make no sense; in a step, where C is to rise and no epoch has begun.
        NoClosedFormError: in a step, where the KL has no closed form, unless asked to sample it.

    Reference:
        Understanding disentangling in β-VAE (Burgess et al., 2018)

    Example:
        >>> objective = Capacity(25.0, gamma=100.0, epochs=10)
        >>> objective.begin_epoch(4)
        >>> objective.constrain(torch.tensor([7.0]))
        tensor([300.])
    """

    def __init__(
        self,
        capacity: float = 25.0,
        gamma: float = 1000.0,
        epochs: int | None = None,
        fallback: Literal["sample"] | None = None,
        num_particles: int = 1,
        vectorize_particles: bool = False,
        max_plate_nesting: float = 1,
    ) -> None:
        super().__init__(num_particles, vectorize_particles, max_plate_nesting)
        if not (0 <= capacity < math.inf and 0 <= gamma < math.inf):
            raise ConfigError(f"Capacity: expected 0 ≤ capacity, gamma < ∞, got {capacity} and {gamma}")
        if epochs is not None:
            check_positive(epochs=epochs)
        if fallback not in (None, "sample"):
            raise ConfigError(f"fallback: expected None or 'sample', got {fallback!r}")
        self.capacity, self.gamma, self.epochs, self.fallback = float(capacity), float(gamma), epochs, fallback
        # C, once more on every device and in every dtype it was asked for in. A first step, which is never a recorded
        # one, makes the tensor that later graphs hold.
        self._now = {("cpu", torch.float64): torch.tensor(self.capacity, dtype=torch.float64)}
        self._begun = epochs is None

    def begin_epoch(self, epoch: int) -> None:
        """Set C to what it is in an epoch, counted from 1."""
        check_positive(epoch=epoch)
        self._begun = True
        now = self.capacity if self.epochs is None else self.capacity * min(1.0, epoch / self.epochs)
        for tensor in self._now.values():
            tensor.fill_(now)

    def kl(self, name: str, q: Any, p: Any) -> Tensor:
        """Return the KL of every row, (*, 1)."""
        if self.fallback is None:
            way_out = "Capacity(..., fallback='sample') to sample it"
            return closed_form(name, q["fn"], p["fn"], way_out).expand(q["fn"].batch_shape).unsqueeze(-1)
        try:
            return kl_divergence(q["fn"], p["fn"]).expand(q["fn"].batch_shape).unsqueeze(-1)
        except NotImplementedError:
            return (q["unscaled_log_prob"] - p["unscaled_log_prob"]).unsqueeze(-1)

    def constrain(self, kl: Tensor) -> Tensor:
        """Return γ |KL − C|, (1)."""
        if not self._begun:
            raise ConfigError(
                f"Capacity(epochs={self.epochs}): expected to be told the epoch, which sets C: call "
                "begin_epoch(epoch), counted from 1, before its steps, as fit does, or leave epochs out"
            )
        # Half precision would round 25 nats.
        kl = kl.to(torch.promote_types(kl.dtype, torch.float32))
        key = str(kl.device), kl.dtype
        if key not in self._now:
            self._now[key] = self._now["cpu", torch.float64].to(kl)
        return self.gamma * (kl - self._now[key]).abs()

r"""The ELBO with the KL in closed form, and no other.

.. math:: \mathrm{ELBO}(x, y) = \mathbb{E}_{q(z \mid x, y)}\bigl[\log p(x \mid z, y)\bigr]
    - \underbrace{\mathrm{KL}\bigl(q(z \mid x, y) \,\|\, p(z \mid y)\bigr)}_{\text{a formula}}
"""

from __future__ import annotations

from typing import Any, Literal

from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from ..errors import ConfigError, NoClosedFormError

__all__ = ["Analytic", "closed_form"]


def closed_form(name: str, q: Any, p: Any, way_out: str) -> Tensor:
    """Return KL(q ‖ p) by the formula registered for the pair, in nats, with the batch shape of both.

    Arguments:
        name: of the site, for the message.
        q, p: two distributions.
        way_out: what to use instead, for the message.

    Raises:
        NoClosedFormError: where none is registered.

    Example:
        >>> closed_form("z", dist.Normal(1.0, 1.0), dist.Normal(0.0, 1.0), "Trace_ELBO()")
        tensor(0.5000)
    """
    try:
        return kl_divergence(q, p)
    except NotImplementedError as error:
        names = (type(getattr(d, "base_dist", d)).__name__ for d in (q, p))
        raise NoClosedFormError(f"site {name!r}: KL({' ‖ '.join(names)}) has no closed form: use {way_out}") from error


class Analytic(TraceMeanField_ELBO):
    r"""``TraceMeanField_ELBO`` that does not sample the KL behind your back.

    .. math:: \frac1K \sum_k \log p(x \mid z_k, y) - \beta\,\mathrm{KL}\bigl(q(z \mid x, y) \,\|\, p(z \mid y)\bigr),
        \qquad z_k \sim q(z \mid x, y)

    Pyro's falls back to sampling, silently, where no closed form is registered. This one raises, unless asked.

    Arguments:
        num_particles: how many draws of z a step.
        fallback: ``"sample"`` to do as Pyro's.
        kwargs: as ``TraceMeanField_ELBO``.

    Raises:
        NoClosedFormError: in a step that meets such a pair.

    Reference:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), appendix B

    Example:
        >>> vae = pv.vae((4,), 2, likelihood="Gaussian")
        >>> Analytic().loss(vae.model, vae.guide, torch.zeros(3, 4)) > 0
        True
    """

    def __init__(self, num_particles: int = 1, fallback: Literal["sample"] | None = None, **kwargs: Any) -> None:
        super().__init__(num_particles=num_particles, **kwargs)
        if fallback not in (None, "sample"):
            raise ConfigError(f"fallback: expected None or 'sample', got {fallback!r}")
        self.fallback = fallback

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        if self.fallback is None:
            for name, site in guide_trace.nodes.items():
                if site["type"] == "sample" and name in model_trace.nodes:
                    # Every step: whether there is a formula can depend on more than the types (on transforms, say).
                    way_out = "Trace_ELBO(), or Analytic(fallback='sample') to sample it"
                    closed_form(name, site["fn"], model_trace.nodes[name]["fn"], way_out)
        return model_trace, guide_trace

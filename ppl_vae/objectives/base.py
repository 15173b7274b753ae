r"""What our objectives stand on: traces of the two programs, and how much a site's log-density weighs.

.. math:: \text{loss} = s \cdot f\bigl(\log p(x \mid z, y),\ \beta \log p(z \mid y),\ \beta \log q(z \mid x, y)\bigr)

Pyro scales every site by one number. Here it has two factors, because an objective that is not linear in the
log-densities must keep them apart: s, the scale that all observed sites share, says how many data a row stands for
(``total``, a plate that subsamples) and multiplies from outside; what is left, β at the site z, belongs to the
objective and stays inside.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from pyro import util
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from ..errors import PartError

__all__ = ["Objective", "common_scale", "only_latent", "sites", "tempered"]


def sites(trace: Any, observed: bool | None = None) -> Iterator[tuple[str, Any]]:
    """Yield the sample sites of a trace by name: all, the observed ones, or those that are not."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and observed in (None, site["is_observed"]):
            yield name, site


def common_scale(model_trace: Any) -> Any:
    """Return s, the scale that the observed sites of a model have in common: a number or a tensor.

    Raises:
        PartError: if they have several.
    """
    scales = {name: site["scale"] for name, site in sites(model_trace, observed=True)}
    first = next(iter(scales.values()), 1.0)
    if not all(_same(scale, first) for scale in scales.values()):
        shown = {k: f"a tensor {tuple(v.shape)}" if isinstance(v, Tensor) and v.dim() else v for k, v in scales.items()}
        found = ", ".join(f"{name!r}: {scale}" for name, scale in shown.items())
        raise PartError(
            f"expected one scale for all observed sites, which multiplies the loss from outside, got {found}: weigh "
            "them equally, or use Trace_ELBO(), which is linear in every site"
        )
    return first


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        # A recording must not look at values; the checked step before it has.
        return not is_validation_enabled() or bool(((torch.as_tensor(a) / b - 1).abs() <= 1e-6).all())
    return math.isclose(a, b, rel_tol=1e-6)


def tempered(site: Any, scale: Any) -> Tensor:
    """Return a site's log-density without the common scale, and with all else: β, and masks."""
    return scale_and_mask(site["unscaled_log_prob"], site["scale"] / scale, site["mask"])


def only_latent(guide_trace: Any, objective: Any) -> tuple[str, Any]:
    """Return the one latent site of a guide, with its name.

    Raises:
        PartError: if there are several, or none.
    """
    found = dict(sites(guide_trace, observed=False))
    if len(found) != 1:
        raise PartError(
            f"{type(objective).__name__}: expected a guide with one latent site, got {len(found)} "
            f"({', '.join(map(repr, found))}): make them one site whose distribution is over all of them (a Chain), or "
            "use Trace_ELBO() or IWAE(k)"
        )
    return next(iter(found.items()))


class Objective(ELBO):
    """A Pyro ELBO that is known by its ``differentiable_loss``; its gradient comes through the draws of z."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        try:
            traces = get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
        except ValueError as error:
            if "plate stack overflow" not in str(error):
                raise
            raise PartError(
                f"{type(self).__name__}: expected a program of at most {self.max_plate_nesting} plates, got one of "
                "more: pass max_plate_nesting=; one that sums missing labels out, whose bound is linear in every "
                "label, takes Trace_ELBO() or Analytic()"
            ) from error
        if is_validation_enabled():
            util.check_if_enumerated(traces[1])
        for name, site in sites(traces[1], observed=False):
            if "weights" in site["infer"]:
                raise PartError(
                    f"{type(self).__name__}: expected a program of one z a row, got one that sums missing labels out, "
                    "whose bound is linear in every label: use Trace_ELBO() or Analytic()"
                )
            if torch.is_grad_enabled() and not getattr(site["fn"], "has_rsample", False):
                raise PartError(
                    f"{type(self).__name__}: expected a guide that is reparameterised (has_rsample), got "
                    f"{type(site['fn']).__name__} at site {name!r}: use Trace_ELBO(), or another encoder"
                )
        return traces

    @abstractmethod
    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, (), whose gradient is the estimate."""

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss, a number."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs).item()
        util.warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss, a number, and add its gradient to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        util.warn_if_nan(loss, "loss")
        return loss.item()

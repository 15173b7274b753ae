r"""What the programs check while they run: that there are rows, and that the guide's z is one of the prior's.

.. math:: z \sim q(z \mid x, y) \implies p(z \mid y) > 0
"""

from __future__ import annotations

from typing import Any

from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from ..errors import DataError, PartError, ShapeError

__all__ = ["check_data", "check_pair", "check_rows"]


def check_rows(x: Tensor) -> None:
    """Raise unless x has rows."""
    if x.dim() == 0:
        raise ShapeError("x: expected (N, *x_shape), got a number")
    if not len(x):
        raise DataError("expected at least one row of data, got none")


def check_data(likelihood: Any, x: Tensor | None) -> None:
    """Raise unless x is something that the likelihood can have generated, in the words of its own ``check``."""
    check = getattr(likelihood, "check", None)
    if x is not None and check is not None and is_validation_enabled():
        check(x)


def check_pair(z: Tensor, prior: Any) -> None:
    """Raise unless z, where the guide has drawn it, is something that the prior could have drawn."""
    if z.shape[-1:] != prior.event_shape:
        raise ShapeError(
            f"prior: expected a distribution over the latent ({z.shape[-1]},) that the encoder draws, got one over "
            f"{tuple(prior.event_shape)}: give both the same number of features, and end the prior in .to_event(1)"
        )
    # A z that is not finite has an error of its own, which names the step.
    if is_validation_enabled() and bool(z.isfinite().all()) and not prior.support.check(z).all():
        name = type(getattr(prior, "base_dist", prior)).__name__
        raise PartError(
            f"prior: the encoder draws z outside the support of the prior ({name}), where log p(z|y) is −∞: take an "
            "encoder with that support (Sphere goes with PowerSpherical), or a prior over all of z"
        )

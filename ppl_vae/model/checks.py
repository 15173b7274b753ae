r"""What a model checks: its parts when it is made; while its programs run, that there are rows, and a z of the prior's.

.. math:: z \sim q(z \mid x, y) \implies p(z \mid y) > 0
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..distributions import as_pyro, is_periodic, spheres
from ..errors import ConfigError, DataError, LabelError, NonFiniteError, PartError, PplVaeError, ShapeError
from ..parts import Unconditional
from .masking import observed

__all__ = [
    "check_data",
    "check_latent",
    "check_not_nan",
    "check_pair",
    "check_part",
    "check_precision",
    "check_prior",
    "check_rows",
    "check_same_rows",
    "check_spheres",
    "check_together",
    "given_by",
]


# The relative rounding that a log-density may have: that of single precision is 1e-7, of float16 1e-3.
_COARSEST = 1e-5


def check_precision(vae: Any, what: str) -> None:
    """Raise for half precision, in which no log-density can be told."""
    dtype = vae._beta.dtype
    if (eps := torch.finfo(dtype).eps) > _COARSEST:
        raise ConfigError(
            f"{what}: expected a model in single or double precision, got {dtype}, in which a log-density of 100 nats "
            f"comes in steps of {64 * eps:.2g}: call vae.float() first (precision='bf16-mixed' of fit and of "
            "log_likelihood has the matrix products alone in bfloat16)"
        )


def check_not_nan(vae: nn.Module, what: str) -> None:
    """Raise for weights that are NaN, from which nothing comes, and of which a distribution says no more than that."""
    known = {name: weights for name, weights in vae.named_parameters() if not is_lazy(weights)}
    # One look at the device for all.
    if known and torch.stack([weights.detach().isnan().any() for weights in known.values()]).any():
        name = next(name for name, weights in known.items() if weights.isnan().any())
        raise NonFiniteError(
            f"{what}: expected a model whose weights are numbers, got NaN in {name}: load weights from before the step "
            "that made them so, or make the model anew"
        )


def check_part(kind: str, part: Any, *inputs: str) -> None:
    """Raise unless a part can be called, and with inputs such as these, of which the context is the last."""
    name = getattr(part, "__name__", type(part).__name__)
    if isinstance(part, type):
        raise PartError(f"{kind}: expected a part, got the class {name} itself: call it, {name}(...)")
    # Pyro's distributions can be called, and draw.
    if isinstance(part, torch.distributions.Distribution):
        raise PartError(
            f"{kind}: expected something that returns a distribution, got the {name} itself: pass a function that "
            "returns it, or priors.Fixed(...)"
        )
    if not callable(part):
        way_out = ": names are for pv.vae(...) and pv.cvae(...)" if isinstance(part, str) else ""
        raise PartError(f"{kind}: expected something to call, got {name}{way_out}")
    try:
        signature = inspect.signature(part.forward if isinstance(part, nn.Module) else part)
    except (TypeError, ValueError):
        return  # Not everything that can be called says how.
    try:
        signature.bind(*inputs)
    except TypeError as error:
        raise PartError(
            f"{kind}: expected a part that is called with its context, {kind}({', '.join(inputs)}), got "
            f"{name}{signature}: {error}"
        ) from error


def given_by(kind: str, returned: Any) -> Any:
    """Return what a part gave as a Pyro distribution."""
    try:
        return as_pyro(returned)
    except PartError as error:
        raise PartError(f"{kind}: {error}") from error


def called(kind: str, part: Any, a: Tensor, c: Tensor | None, event_dims: int | None) -> Any:
    """Return what a likelihood or an encoder gives of a (*, *event) and c, as a Pyro distribution.

    Arguments:
        event_dims: how many dimensions an event of a has, if that is known.

    Raises:
        LabelError: if c is that of other rows.
        ShapeError: if it fails where there is more than one leading dimension, or c has others.
    """
    try:
        returned = part(a, c)
    except (PplVaeError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        if c is not None and event_dims is not None:
            check_same_rows("x" if kind == "encoder" else "z", a.shape[: max(0, a.dim() - event_dims)], c.shape[:-1])
        lead = 1 if event_dims is None else a.dim() - event_dims
        if event_dims is None or (lead < 2 and (c is None or c.dim() - 1 == lead)):
            raise
        given = "" if c is None else f" and c {tuple(c.shape)}"
        raise ShapeError(
            f"{kind}: expected a part that takes any leading dimensions, and a c with fewer of them, got one that "
            f"failed on {tuple(a.shape)}{given}: {error}. Join the two with networks.join, and flatten the leading "
            "dimensions for a layer that wants one; or build on networks.Network, which does both"
        ) from error
    return given_by(kind, returned)


def check_same_rows(name: str, rows: torch.Size, labels: torch.Size) -> None:
    """Raise unless the batch shape of y broadcasts with that of what is named."""
    try:
        torch.broadcast_shapes(rows, labels)
    except RuntimeError as error:
        got, expected = (" × ".join(map(str, batch)) for batch in (labels, rows))
        raise LabelError(f"expected one y a row of {name}, got {got} for {expected} rows") from error


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


def check_latent(features: int, prior: Any) -> None:
    """Raise unless the prior is a distribution over so many latent features."""
    if prior.event_shape != (features,):
        raise ShapeError(
            f"prior: expected a distribution over the latent ({features},) that the encoder draws, got one over "
            f"{tuple(prior.event_shape)}: give both the same number of features, and end the prior in .to_event(1)"
        )


def check_prior(prior: Any, c: Tensor | None, like: Tensor) -> None:
    """Raise unless a prior has a density for such a context, (*, context) or None, with the way out.

    A zuko flow finds out only when it is asked for one, and then says no more than that two matrices do not fit.
    """
    try:
        p = given_by("prior", prior(c))
        p.log_prob(like.new_zeros(p.shape()))
    except PplVaeError:
        raise
    except ValueError:
        pass  # Zero is no point of the support, which says nothing of the context.
    except (RuntimeError, AttributeError, TypeError) as error:
        name = getattr(prior, "__name__", type(prior).__name__)
        if c is None:
            module = isinstance(prior, nn.Module)
            way_out = "build the prior with context=0" if module else "take priors.Fixed(...), which needs no c"
            raise ShapeError(
                f"prior: {name} failed without a context: {error}. Give the VAE a condition, or {way_out}"
            ) from error
        way_out = f"Build it with context={c.shape[-1]}, or wrap it in Unconditional(...) to ignore y"
        if isinstance(prior, Unconditional):
            way_out = "It is given no context: build what is inside without one"
        raise ShapeError(f"prior: {name} failed on a context {tuple(c.shape)}: {error}. {way_out}") from error


def check_spheres(q: Any, prior: Any) -> None:
    """Raise unless the prior has a sphere where the encoder has one: log p − log q would mix volumes and surfaces.

    Nor is all of space a circle, on which a prior of angles lives.
    """
    if not is_validation_enabled():
        return
    # Torch knows of no support of what is squeezed into a box, so its draws have to tell.
    if is_periodic(prior) and not is_periodic(q) and (q.sample((1000,)).abs() > math.pi).any():
        raise PartError(
            "prior: a density of angles, which adds up to one on (−π, π) alone, goes with an encoder of angles: take "
            "a prior over all of space, such as zuko.flows.NSF in the place of NCSF"
        )
    on, size = spheres(q.support, q.event_shape.numel()), prior.event_shape.numel()
    if on and not on <= spheres(prior.support, size):
        raise PartError(
            f"encoder: {type(q).__name__} draws points on a sphere, where a prior over all of space has no mass: "
            "take priors.Sphere (in a Chain, at the same place)"
        )


def check_pair(z: Tensor, prior: Any) -> None:
    """Raise unless z, where the guide has drawn it, is something that the prior could have drawn."""
    check_latent(z.shape[-1], prior)
    # A z that is not finite has an error of its own, which names the step.
    if is_validation_enabled() and bool(z.isfinite().all()) and not prior.support.check(z).all():
        name = type(getattr(prior, "base_dist", prior)).__name__
        raise PartError(
            f"prior: the encoder draws z outside the support of the prior ({name}), where log p(z|y) is −∞: take an "
            "encoder with that support (Sphere goes with PowerSpherical), or a prior over all of z"
        )


def check_together(vae: Any, x: Tensor, y: Tensor | None) -> None:
    """Raise unless the parts of a model go together on a row, as its programs ask where validation is not switched off.

    Arguments:
        vae: the programs, which remember what was found to fit.
        x, y: data that its likelihood and its condition take.
    """
    # One datum may come without a batch dimension; what has more of them is no batch of rows, and its own error.
    shape = getattr(vae.likelihood, "x_shape", None)
    if shape is not None and x.dim() > 1 + len(shape):
        return
    alone = x.dim() == max(1, len(shape or ()))
    x, y = x[None] if alone else x[:1], y[:1] if y is not None and vae.per_row(y) else y
    parts = (id(getattr(vae, kind)) for kind in ("prior", "likelihood", "encoder", "condition"))
    together = *parts, x.shape, None if y is None else (y.shape, y.dtype)
    if together == vae._together:
        return
    try:
        with pyro.validation_enabled(), vae._aside():
            x = vae._tensor(x)
            c, _ = vae._row_context(x, y)
            q, prior = vae._posterior(x, c, None), vae._prior(c)
            z = q.sample()
            check_pair(z, prior)
            observed(vae._decoded(z, c), x, None)
    except PplVaeError:
        raise
    except (RuntimeError, ValueError, IndexError):
        return  # What goes with a batch and not with a row, the first step will tell.
    vae._together = together

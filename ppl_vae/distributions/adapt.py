r"""Any distribution becomes a Pyro one.

.. math:: d \mapsto \mathrm{as\_pyro}(d), \qquad
    \log p_{\mathrm{as\_pyro}(d)}(x) = \log p_d(x) \ \text{for every } x

``pyro.sample`` takes Pyro distributions only. :func:`as_pyro` keeps the object and changes its class: to Pyro's own
class of the same name where there is one (``torch.distributions.Normal`` becomes ``pyro.distributions.Normal``),
else to a class made on the spot that is both the old one and Pyro's. Being a subclass of what it was, it keeps
``rsample``, ``support`` and the closed forms registered with :func:`torch.distributions.kl_divergence`.

This is also the one place that imports zuko.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from ..devices import uncast
from ..errors import NoClosedFormError, PartError
from .precision import in_single

__all__ = ["as_pyro", "inside", "is_ode", "is_periodic", "is_point", "transport", "zuko"]


def _import_zuko() -> Any:
    """Import zuko and undo what that does to torch for the whole process.

    ``zuko.distributions`` switches argument validation off in the base class of all torch distributions and empties
    its ``arg_constraints``. Both go back to what they were; zuko's own classes, which rely on it, get their own.
    """
    before = {name: vars(Distribution)[name] for name in ("_validate_args", "arg_constraints")}
    import zuko

    for name, value in before.items():
        setattr(Distribution, name, value)
    for cls in vars(zuko.distributions).values():
        ours = inspect.isclass(cls) and cls.__module__ == zuko.distributions.__name__
        if ours:
            cls._validate_args = False
            if cls.arg_constraints is before["arg_constraints"]:
                cls.arg_constraints = {}
    return zuko


zuko = _import_zuko()


class _AsPyro:
    """What a foreign distribution lacks to stand in a Pyro program."""

    def expand(self, batch_shape: Size, _instance: Any = None) -> Any:
        # zuko concatenates the shape it is given, so a list would fail; what comes back may have the old class.
        return as_pyro(super().expand(Size(batch_shape)))  # type: ignore[misc]

    @property
    def support(self) -> Any:
        try:
            return super().support  # type: ignore[misc]
        except NotImplementedError:
            return constraints.independent(constraints.real, len(self.event_shape))  # type: ignore[attr-defined]


class _Flow(_AsPyro):
    """A distribution that can draw and score at once, as a flow does; scoring the draw again would invert it.

    The networks of a flow are inside of its density, which is one in the precision of its parameters alone: mixed
    precision ends before them.
    """

    @uncast
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        value, log_prob = self.rsample_and_log_prob(Size(sample_shape))  # type: ignore[attr-defined]
        self._drawn = value, log_prob, torch.is_grad_enabled()
        return value

    @uncast
    def log_prob(self, value: Tensor) -> Tensor:
        drawn, log_prob, differentiable = self.__dict__.get("_drawn", (None, None, False))
        # A density kept from a draw without gradients would hide the flow's parameters from a loss.
        if drawn is value and (differentiable or not torch.is_grad_enabled()):
            return log_prob
        return super().log_prob(value)  # type: ignore[misc]


@functools.cache
def _pyro_class(cls: type) -> type:
    """Pyro's class for a torch one: its namesake, or a mixture of both."""
    namesake = getattr(dist, cls.__name__, None)
    if cls.__module__.startswith("torch.distributions") and inspect.isclass(namesake) and issubclass(namesake, cls):
        return namesake
    mixin = _Flow if hasattr(cls, "rsample_and_log_prob") else _AsPyro
    return type(cls.__name__, (mixin, cls, TorchDistributionMixin), {"__module__": cls.__module__})


# Where a distribution holds others that must become Pyro's too, for `.mask` and `.to_event` on its base.
_INNER = ("base_dist", "_mixture_distribution", "_component_distribution")


def as_pyro(distribution: Any) -> Any:
    """Return the distribution as one that ``pyro.sample`` accepts; the same object if it already is.

    Arguments:
        distribution: a Pyro, ``torch.distributions`` or zuko distribution, with batch shape ``(*)`` and any event
            shape.

    Returns:
        A Pyro distribution with the same parameters, shapes, density and closed forms. The one given is left as it is.
        Inside of ``torch.autocast`` parameters in half precision are in single, and so is what matrices are used for.

    Raises:
        PartError: for anything that is not a distribution.

    Example:
        >>> d = as_pyro(torch.distributions.Normal(0.0, 1.0))
        >>> type(d) is dist.Normal
        True
        >>> flow = as_pyro(zuko.flows.MAF(2, transforms=1)())
        >>> flow.shape(), isinstance(flow, zuko.distributions.NormalizingFlow)
        (torch.Size([2]), True)
    """
    if isinstance(distribution, ZukoToPyro):
        # Pyro's own wrapper has no support, nor the closed forms of what it wraps.
        distribution = distribution.dist
    if isinstance(distribution, TorchDistributionMixin):
        return in_single(distribution)
    if not isinstance(distribution, Distribution):
        way_out = ""
        if isinstance(distribution, type) or callable(distribution):
            way_out = "; that looks like something to be called first"
        elif isinstance(distribution, Tensor):
            way_out = "; a point is pyro.distributions.Delta(value, event_dim=1)"
        raise PartError(
            "expected a part to return a distribution (of pyro.distributions, torch.distributions or zuko), "
            f"got {type(distribution).__module__}.{type(distribution).__qualname__}{way_out}"
        )
    distribution = in_single(distribution)
    if isinstance(distribution, TorchDistributionMixin):
        return distribution
    cls = _pyro_class(type(distribution))  # type: ignore[arg-type]
    if "__init__" in vars(cls):
        # Pyro's Uniform and Poisson remember more than torch's, so they are made again from their arguments.
        arguments = {name: getattr(distribution, name) for name in distribution.arg_constraints}
        return cls(**arguments, validate_args=vars(distribution).get("_validate_args"))
    new: Any = object.__new__(cls)
    new.__dict__.update(vars(distribution))
    for name in _INNER:
        if isinstance(inner := vars(distribution).get(name), Distribution):
            new.__dict__[name] = as_pyro(inner)
    return new


def transport(z: Tensor, source: Any, target: Any) -> Tensor:
    r"""Carry z from one distribution to the place in another that the same noise makes.

    .. math:: z' = T_{\text{target}}\bigl(T_{\text{source}}^{-1}(z)\bigr), \qquad T(\varepsilon) \sim p

    Arguments:
        z: (*, D).
        source, target: two diagonal Gaussians or two zuko flows over (D,), such as p(z|y) for two y.

    Raises:
        NoClosedFormError: for distributions without such a map.

    Example:
        >>> p, q = (dist.Normal(torch.tensor([m]), s).to_event(1) for m, s in [(0.0, 1.0), (5.0, 2.0)])
        >>> transport(torch.tensor([1.0]), p, q)
        tensor([7.])
    """
    if hasattr(source, "transform") and hasattr(target, "transform") and not hasattr(source, "transforms"):
        return target.transform.inv(source.transform(z))
    # Independent alone is looked into: a log-normal has a normal base_dist as well, in other coordinates.
    ends = [d.base_dist if isinstance(d, torch.distributions.Independent) else d for d in (source, target)]
    if all(isinstance(d, torch.distributions.Normal) for d in ends):
        return ends[1].loc + ends[1].scale * (z - ends[0].loc) / ends[0].scale
    raise NoClosedFormError(
        f"expected two diagonal Gaussians or two flows to carry z between, got {type(source).__name__} and "
        f"{type(target).__name__}: keep z as it is instead"
    )


def is_point(d: Any) -> bool:
    """Return whether a distribution is a point, whose "density" is one by convention and no density.

    Example:
        >>> is_point(dist.Delta(torch.zeros(2), event_dim=1)), is_point(dist.Normal(0.0, 1.0))
        (True, False)
    """
    return isinstance(getattr(d, "base_dist", d), dist.Delta)


def is_ode(module: Any) -> bool:
    """Return whether a module is the transform of a continuous flow, whose mode is not what others' is.

    All that it decides is whether the flow's parameters get a gradient.
    """
    return isinstance(module, zuko.flows.FFJTransform)


def is_periodic(d: Any) -> bool:
    """Return whether a distribution is one of angles, whose density repeats and adds up to one on (−π, π) alone.

    Neither torch nor zuko says so in its support.

    Example:
        >>> is_periodic(dist.VonMises(torch.zeros(2), 1.0).to_event(1)), is_periodic(zuko.flows.NCSF(2)())
        (True, True)
    """
    while (inner := getattr(d, "component_distribution", None) or getattr(d, "base_dist", None)) is not None:
        if not isinstance(d, torch.distributions.Independent | torch.distributions.MixtureSameFamily):
            break
        d = inner
    if (parts := getattr(d, "parts", None)) is not None:
        # A chain is one of angles if either of its parts is.
        return any(is_periodic(part) for part in parts())
    if isinstance(d, zuko.distributions.NormalizingFlow):
        # A flow of a box; one that ends in a map from all of space into the box has that for its codomain.
        reaches = getattr(d.transform.codomain, "base_constraint", d.transform.codomain)
        return isinstance(d.base, zuko.distributions.BoxUniform) and reaches is constraints.real
    return isinstance(d, torch.distributions.VonMises)


def inside(support: Any) -> Any:
    """Return a number, or a tensor of them, at which a density with this support and its gradient are finite.

    What is not looked at (an unseen pixel) still has to be a value: NaN times zero is NaN.

    Arguments:
        support: a constraint on numbers; zero where it has no bounds.

    Example:
        >>> inside(dist.Beta(2.0, 2.0).support), inside(dist.Gamma(2.0, 2.0).support), inside(dist.Poisson(3.0).support)
        (0.5, 1.0, 0)
    """
    # Those of independent parts and of mixtures hold the one that is meant.
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is not None and (high is None or support.is_discrete):
        return low if support.is_discrete else low + 1.0
    if high is not None:
        return high if low is None and support.is_discrete else high - 1.0 if low is None else (low + high) / 2
    return 0.0

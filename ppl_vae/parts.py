r"""The one rule: every part is called with its context and returns a distribution.

.. math::
    \text{prior}(c) \to p(z \mid y), \qquad
    \text{likelihood}(z, c) \to p(x \mid z, y), \qquad
    \text{encoder}(x, c) \to q(z \mid x, y), \qquad c = \text{condition}(y)

Anything that keeps the rule is a part: a function, any ``nn.Module``, a zuko flow. :class:`Part` is only for what this
library builds itself: a module that remembers its arguments, so that a saved model can be made again.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from . import distributions
from .data import check_finite
from .errors import PartError, ShapeError
from .modes import evaluating

__all__ = ["Chain", "Part", "Unconditional", "check_context", "kept"]


class Part(nn.Module):
    """A module that remembers the arguments it was made with, in ``arguments``.

    Example:
        >>> class Mine(Part):
        ...     def __init__(self, features, width=3):
        ...         super().__init__()
        >>> Mine(2).arguments
        {'features': 2}
    """

    arguments: dict[str, Any]
    _constants: dict[str, Tensor]

    def __new__(cls, *args: Any, **kwargs: Any) -> Part:
        """Make the object and keep the arguments for ``arguments``."""
        self = super().__new__(cls)
        # Partial, because copying and unpickling make the object without arguments and fill in its state afterwards.
        signature = inspect.signature(cls.__init__)
        given = dict(list(signature.bind_partial(self, *args, **kwargs).arguments.items())[1:])
        others = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
        self.__dict__["arguments"] = kept(given | given.pop(others, {}))
        self.__dict__["_constants"] = {}
        return self

    def constant(self, name: str, value: float | Sequence[float] | Tensor, persistent: bool = True) -> None:
        """Keep a setting as a buffer: a recorded graph finds it there, and it is as precise as the model's dtype.

        Arguments:
            name: the buffer's.
            value: what it holds, whatever the dtype is later.
            persistent: whether it is in the ``state_dict``.
        """
        self._constants[name] = exact = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
        self.register_buffer(name, exact.to(torch.get_default_dtype()), persistent=persistent)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        before = {name: getattr(self, name) for name in self._constants}
        super()._apply(*args, **kwargs)
        for name, old in before.items():
            new, exact = getattr(self, name), self._constants[name]
            # A 0.1 that was a float32 would stay one in float64. One set since, by hand or from a file, is left alone.
            if (
                new.dtype != old.dtype
                and not (new.is_meta or old.is_meta)
                and torch.equal(old.cpu(), exact.to(old.dtype))
            ):
                new.copy_(exact)
        return self


class Unconditional(Part):
    r"""Wraps any part (prior, likelihood or encoder) and drops its context: :math:`p(z \mid y) = p(z)`.

    Arguments:
        part: a part built without context, e.g. ``zuko.flows.NSF(20)``.

    Raises:
        PartError: for what is no part, or one that is built with a context, where it says so.

    Example:
        >>> from ppl_vae.distributions import zuko
        >>> prior = Unconditional(zuko.flows.NSF(20))
        >>> prior(torch.ones(5, 10)).event_shape
        torch.Size([20])
    """

    def __init__(self, part: Callable[..., Any]) -> None:
        super().__init__()
        if not callable(part):
            raise PartError(f"Unconditional: expected a part (something to call), got {type(part).__name__}")
        if isinstance(part, type):
            raise PartError(f"Unconditional: expected a part, got the class {part.__name__} itself: call it")
        if isinstance(context := getattr(part, "context", 0), numbers.Integral) and context:
            raise PartError(
                f"Unconditional: expected a part built without context, got a {type(part).__name__} built with "
                f"context={context}: build it with context=0, or leave Unconditional out"
            )
        self.part = part

    @property
    def features(self) -> int | None:
        """The number of latent features, where the wrapped part says it."""
        return getattr(self.part, "features", None)

    @property
    def x_shape(self) -> tuple[int, ...] | None:
        """The shape of one x, where the wrapped part says it."""
        return getattr(self.part, "x_shape", None)

    @property
    def density(self) -> bool:
        """Whether the wrapped likelihood is a density; grey pixels under a Bernoulli are none."""
        return getattr(self.part, "density", True)

    @property
    def levels(self) -> int | None:
        """How many values a pixel can take, where the wrapped likelihood says it."""
        return getattr(self.part, "levels", None)

    @property
    def sees_mask(self) -> bool:
        """Whether the wrapped encoder is told which pixels are seen."""
        return getattr(self.part, "sees_mask", False)

    def start_from(self, x: Any) -> None:
        """Hand data to the wrapped likelihood, which sets its output's bias from them."""
        if (start := getattr(self.part, "start_from", None)) is None:
            raise PartError(f"start_from: expected a part that starts from data, got {type(self.part).__name__}")
        start(x)

    def check(self, x: Tensor) -> None:
        """Hand data to the wrapped likelihood's ``check``; without one, refuse NaN and infinity."""
        getattr(self.part, "check", check_finite)(x)

    def forward(self, *inputs: Any) -> Any:
        """Call the part with everything but the context, which comes last."""
        return self.part(*inputs[:-1], None)


class Chain(Part):
    r"""Two priors, or two encoders, of which the second sees what the first gave: a hierarchical model.

    .. math:: p(z_1, z_2 \mid y) = p(z_1 \mid y)\, p(z_2 \mid z_1, y), \qquad
        q(z_1, z_2 \mid x, y) = q(z_1 \mid x, y)\, q(z_2 \mid x, z_1, y)

    What came before is context: the second part is built with ``context + first.features`` and called with [c; z₁].
    The joint z is [z₁; z₂], so likelihoods and all else see one vector. Either part may be a chain itself.

    Arguments:
        first: a part over (D₁,).
        second: a part of the same kind over (D₂,).

    Raises:
        PartError: for what cannot be called.
        ShapeError: if the second part is built for another context than [c; z₁].

    Reference:
        Ladder Variational Autoencoders (Sønderby et al., 2016); NVAE: A Deep Hierarchical Variational Autoencoder
        (Vahdat and Kautz, 2020)

    Example:
        >>> prior = Chain(pv.priors.Gaussian(2, context=10), pv.priors.Gaussian(3, context=12))
        >>> encoder = Chain(pv.encoders.Gaussian(2, (4,), 10), pv.encoders.Gaussian(3, (4,), 12))
        >>> c = torch.zeros(7, 10)
        >>> prior(c).shape(), encoder(torch.zeros(7, 4), c).rsample().shape
        (torch.Size([7, 5]), torch.Size([7, 5]))
    """

    def __init__(self, first: Callable[..., Any], second: Callable[..., Any]) -> None:
        super().__init__()
        for name, part in (("first", first), ("second", second)):
            if not callable(part):
                raise PartError(f"Chain: expected {name} to be a part (something to call), got {type(part).__name__}")
        self.first, self.second = first, second
        self._told: tuple[Any, ...] = (None,)
        context, features, joined = _said(first, "context"), _said(first, "features"), _said(second, "context")
        if None not in (context, features, joined) and context + features != joined:
            raise ShapeError(
                f"Chain: the second part sees the context ({context}) and what the first gives ({features}): expected "
                f"it to be built with context={context + features}, got context={joined}"
            )

    @property
    def features(self) -> int | None:
        """The number of latent features of both, where both say theirs."""
        first, second = _said(self.first, "features"), _said(self.second, "features")
        return None if first is None or second is None else first + second

    @property
    def context(self) -> int | None:
        """The number of context features, where a part says it."""
        features, joined = _said(self.first, "features"), _said(self.second, "context")
        otherwise = None if features is None or joined is None else joined - features
        return getattr(self.first, "context", otherwise)

    @property
    def x_shape(self) -> tuple[int, ...] | None:
        """The shape of one x, where the first part says it."""
        return getattr(self.first, "x_shape", None)

    @property
    def sees_mask(self) -> bool:
        """Whether the parts are encoders that are told which pixels are seen.

        Raises:
            PartError: if one of them is and the other is not, which is given the same input.
        """
        told = [getattr(part, "sees_mask", False) for part in (self.first, self.second)]
        if told[0] != told[1]:
            raise PartError("Chain: expected both encoders to be Masked, or none; or Masked around the whole chain")
        return told[0]

    def forward(self, *inputs: Any) -> Any:
        """Return the joint distribution, event shape (D₁ + D₂,); the context comes last."""
        *inputs, c = inputs  # type: ignore[assignment]
        if self.context is not None:
            check_context(self, c, self.context)
        first = distributions.as_pyro(self.first(*inputs, c))
        if c is not None:
            # A first part that ignores c has fewer batch dimensions than a second one that does not.
            first = first.expand(torch.broadcast_shapes(first.batch_shape, c.shape[:-1]))

        def then(z: Tensor) -> Any:
            if c is None:
                return self.second(*inputs, z)
            batch = torch.broadcast_shapes(c.shape[:-1], z.shape[:-1])
            return self.second(*inputs, torch.cat([c.expand(*batch, -1), z.expand(*batch, -1)], dim=-1))

        # What kind of distribution the second gives is asked once: another pass of its network is not free.
        if self._told[0] != id(self.second):
            tensors = (*inputs, c, *self.parameters(), *self.buffers(), torch.empty(()))
            like = next(t for t in tensors if t is not None and t.is_floating_point())
            with torch.no_grad(), evaluating(self):
                second = distributions.as_pyro(then(like.new_zeros(first.shape())))
            told = second.event_shape.numel(), second.has_rsample, second.support
            self._told = id(self.second), distributions.is_point(second), told
        _, point, told = self._told
        if distributions.is_point(first) != point:
            raise PartError(
                "Chain: expected two parts with densities, or two that give points, got one of each: a point has no "
                "density, so the two have none together"
            )
        if point:
            second = distributions.as_pyro(then(first.mean))
            return dist.Delta(torch.cat([first.mean, second.mean], -1), event_dim=1)
        return distributions.Chain(first, then, *told)


def kept(value: Any) -> Any:
    """Return a copy of what the caller may yet change; tensors and modules, which a part may share, as they are."""
    if isinstance(value, dict):
        return {key: kept(held) for key, held in value.items()}
    if type(value) in (list, tuple):
        return type(value)(kept(held) for held in value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _said(part: object, what: str) -> Any:
    """What a part says of itself; None where it does not."""
    return getattr(part, what, None)


def check_context(part: object, c: Tensor | None, context: int) -> None:
    """Raise unless ``c`` is what a part with that many context features takes.

    Raises:
        ShapeError: with what was expected, what came, and the way out.
    """
    name = type(part).__name__
    if c is None:
        if context:
            raise ShapeError(
                f"{name}: expected a context (*, {context}), got none: pass y, and give the VAE a condition such as "
                f"OneHot({context})"
            )
    elif not context:
        raise ShapeError(
            f"{name} was built with context=0 but is given a context {tuple(c.shape)}: build it with "
            f"context={c.shape[-1]}, or wrap it in Unconditional(...) to ignore y"
        )
    elif c.shape[-1] != context:
        raise ShapeError(f"{name}: expected a context (*, {context}), got {tuple(c.shape)}")

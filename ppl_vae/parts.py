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
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .data import check_finite
from .errors import ConfigError, PartError, ShapeError

__all__ = ["Part", "Unconditional", "check_context", "check_positive"]


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

    def __new__(cls, *args: Any, **kwargs: Any) -> Part:
        """Make the object and keep the arguments for ``arguments``."""
        self = super().__new__(cls)
        # Partial, because copying and unpickling make the object without arguments and fill in its state afterwards.
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs).arguments
        given = dict(list(bound.items())[1:])
        self.__dict__["arguments"] = given | given.pop("kwargs", {})
        return self


class Unconditional(Part):
    r"""Wraps any part (prior, likelihood or encoder) and drops its context: :math:`p(z \mid y) = p(z)`.

    Arguments:
        part: a part built without context, e.g. ``zuko.flows.NSF(20)``.

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

    def check(self, x: Tensor) -> None:
        """Hand data to the wrapped likelihood's ``check``; without one, refuse NaN and infinity."""
        getattr(self.part, "check", check_finite)(x)

    def forward(self, *inputs: Any) -> Any:
        """Call the part with everything but the context, which comes last."""
        return self.part(*inputs[:-1], None)


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


def check_positive(**sizes: int) -> None:
    """Raise a ConfigError unless every named size is a whole number of at least one."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"expected {name} to be a whole number ≥ 1, got {size!r}")

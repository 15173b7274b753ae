r"""The loss of a step: an ELBO of the program, weighted, with the matrix products of its networks in a precision.

.. math:: \ell(\theta) = -w\, \mathrm{ELBO}(\theta)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro.infer import ELBO
from pyro.infer.util import torch_backward
from torch import Tensor

from ..devices import mixed
from ..errors import ConfigError, known

__all__ = ["Loss"]


class Loss:
    """What a step goes down on.

    Arguments:
        model, guide: the program.
        elbo: a Pyro ELBO.
        weight: a constant that multiplies loss and gradient from outside.
        precision: "32", or "bf16-mixed" for matrix products in bfloat16.

    Raises:
        ConfigError: for an objective that cannot go backwards in the precision that it has forwards.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        elbo: ELBO,
        weight: float,
        precision: Literal["32", "bf16-mixed"],
    ) -> None:
        known("precision", precision, ("32", "bf16-mixed"))
        self.model, self.guide, self.elbo, self.weight = model, guide, elbo, weight
        self.is_mixed = precision != "32"
        self.mixed = functools.partial(mixed, self.is_mixed)
        if self.is_mixed and not self.is_recordable:
            raise ConfigError(
                f"precision='bf16-mixed': expected an objective with differentiable_loss, got {type(elbo).__name__}: "
                "take its like in ppl_vae.objectives, or precision='32'"
            )

    @property
    def is_recordable(self) -> bool:
        """Whether the objective says its loss apart from the gradient."""
        return hasattr(self.elbo, "differentiable_loss")

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of the program's arguments, (), to go backwards from."""
        with self.mixed():
            return self.weight * self.elbo.differentiable_loss(self.model, self.guide, *args, **kwargs)

    def and_gradients(self, *args: Any, **kwargs: Any) -> tuple[Any, float]:
        """Return the loss, and what the gradients that it leaves on the parameters are still to be multiplied by."""
        if self.is_mixed:
            # Pyro's own would go backwards inside of autocast, which casts there what it did not cast forwards.
            torch_backward(loss := self(*args, **kwargs))
            return loss, 1.0
        return self.weight * self.elbo.loss_and_grads(self.model, self.guide, *args, **kwargs), self.weight

    @torch.no_grad()
    def look(self, *args: Any, **kwargs: Any) -> None:
        """Run the programs and compute the loss, which makes every parameter that there is not yet."""
        self.elbo.loss(self.model, self.guide, *args, **kwargs)

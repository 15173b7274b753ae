"""One optimiser for all parameters, where Pyro's keep one for each.

.. math:: \\theta \\leftarrow \\mathrm{optim}\\bigl(\\theta,\\ \\min(1, c / \\lVert g \\rVert)\\, g\\bigr)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from ..errors import ConfigError, PartError

__all__ = ["Together"]


class Together(pyro.optim.PyroOptim):
    """A ``torch.optim`` optimiser, or one of Pyro's, behind Pyro's interface: called with parameters, it takes a step.

    Arguments:
        optim: a class of ``torch.optim`` or a ``functools.partial`` of one, called with the list of parameters; an
            instance; or an optimiser of Pyro's, which stays as it is.
        clip: the largest norm of the whole gradient, or None.

    Raises:
        PartError: for anything else.
    """

    def __init__(self, optim: Any, clip: float | None = None) -> None:
        instance = isinstance(optim, torch.optim.Optimizer | pyro.optim.PyroOptim)
        if not instance and not callable(optim):
            raise PartError(f"optim: expected an optimiser of torch.optim or pyro.optim, got {type(optim).__name__}")
        self.make: Callable[..., torch.optim.Optimizer] | None = None if instance else optim
        self.optimizer: Any = optim if instance else None
        self.clip = clip
        self.leaves: dict[str, Tensor] = {}
        # The rate of every group, as a multiple of the one that was asked for.
        self._shares: list[float] = []

    @property
    def of_pyro(self) -> bool:
        """Whether it is one of Pyro's."""
        return isinstance(self.optimizer, pyro.optim.PyroOptim)

    @property
    def fused(self) -> bool:
        """Whether it takes a flag that makes it do nothing, as fused optimisers of torch do."""
        return not self.of_pyro and all(group.get("fused") for group in getattr(self.optimizer, "param_groups", [{}]))

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph may hold its step: fused, and its rate a tensor there; a number would stay as it is."""

        def there(lr: Any, params: list[Tensor]) -> bool:
            return isinstance(lr, Tensor) and all(lr.device == p.device for p in params)

        groups = getattr(self.optimizer, "param_groups", [{}])
        return self.fused and all(group.get("capturable") and there(group["lr"], group["params"]) for group in groups)

    def meet(self, leaves: Mapping[str, Tensor]) -> None:
        """Take on parameters by name; new ones join those that are there.

        Raises:
            ConfigError: if there are none, or the optimiser needs more than gradients.
        """
        if not leaves:
            raise ConfigError("expected a program with parameters to train, got none with requires_grad")
        known = {id(leaf) for leaf in self.leaves.values()}
        new = [leaf for leaf in leaves.values() if id(leaf) not in known]
        self.leaves |= leaves
        if not new or self.of_pyro:
            return
        if self.optimizer is None and self.make is not None:
            self.optimizer = self.make(new)
            if isinstance(self.optimizer, torch.optim.LBFGS):
                raise ConfigError("optim: expected one that steps by gradients alone, got LBFGS, which needs a closure")
            return
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if joining := [leaf for leaf in new if id(leaf) not in held]:
            # At the rate of the others now, and not at the one that training began with; an instance has its own.
            rate = {"lr": self.optimizer.param_groups[0]["lr"]} if self.make is not None else {}
            self.optimizer.add_param_group({"params": joining, **rate})

    def set_lr(self, lr: float) -> None:
        """Set the learning rate, of every group its share, in place where it is a tensor that a graph refers to."""
        groups = self.optimizer.param_groups
        if not self._shares and (asked := getattr(self.make, "keywords", {}).get("lr")):
            self._shares = [float(group["lr"]) / float(asked) for group in groups]
        # One that has joined since is like the first.
        joined = self._shares[:1] or [1.0]
        for group, share in zip(groups, self._shares + joined * (len(groups) - len(self._shares)), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(share * lr)
            else:
                group["lr"] = share * lr

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for leaf in self.leaves.values():
            leaf.grad = None

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
        """Take a step with the gradients that the parameters hold."""
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(params), self.clip)
        if self.of_pyro:
            self.optimizer(set(params))
        else:
            self.optimizer.step()

    def get_state(self) -> Any:
        """Return the optimiser's own state."""
        return self.optimizer.get_state() if self.of_pyro else self.optimizer.state_dict()

    def set_state(self, state: Any) -> None:
        """Take up a state that :meth:`get_state` returned."""
        self.optimizer.set_state(state) if self.of_pyro else self.optimizer.load_state_dict(state)

r"""What a model holds: its parts, the weight of the KL term, and the names its parameters have in Pyro's store.

.. math:: \log p(x \mid z, y) - \beta \log \frac{q(z \mid x, y)}{p(z \mid y)}
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self
from weakref import WeakValueDictionary

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import ProvenanceTensor
from torch import Tensor, nn

from ..devices import cuda_devices
from ..distributions import is_ode
from ..errors import ConfigError, PartError, ShapeError
from ..modes import evaluating
from .checks import check_part

__all__ = ["Assembly"]

_KINDS = ("prior", "likelihood", "encoder")
_count = itertools.count()
_named: WeakValueDictionary[str, Assembly] = WeakValueDictionary()


class Assembly(nn.Module):
    """The parts as one module; :class:`~ppl_vae.VAE` says what they are."""

    _beta: Tensor

    def __init__(
        self,
        prior: Callable[..., Any] | None,
        likelihood: Callable[..., Any],
        encoder: Callable[..., Any],
        condition: Callable[..., Any] | None = None,
        beta: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        check_part("likelihood", likelihood, "z", "c")
        check_part("encoder", encoder, "x", "c")
        if prior is not None:
            check_part("prior", prior, "c")
        if condition is not None:
            check_part("condition", condition, "y")
        if prior is None and getattr(encoder, "features", None) is None:
            raise PartError("prior=None: expected an encoder with `features`, the number of latent features")
        self.prior, self.likelihood, self.encoder, self.condition = prior, likelihood, encoder, condition
        said = {kind: getattr(getattr(self, kind), "features", None) for kind in _KINDS}
        said = {kind: features for kind, features in said.items() if isinstance(features, numbers.Integral)}
        if len(set(said.values())) > 1:
            sizes = ", ".join(f"{features} in the {kind}" for kind, features in said.items())
            raise ShapeError(f"expected one number of latent features in all parts, got {sizes}")
        # A buffer and not a number, which a program recorded as a graph would freeze. It also tells the model's
        # dtype and device. It is a setting, not a weight, so it is in no checkpoint.
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        self.register_buffer("_beta", torch.ones((), dtype=like.dtype, device=like.device), persistent=False)
        self.beta = beta
        if name is not None and name in _named:
            raise ConfigError(f"a living model is named {name!r} already: choose another name, or leave it out")
        # What was tried last: a prior with a context, and all parts on a row.
        self._tried: Any = None
        self._together: Any = None
        # Under which name the store has had the parameters; under another it may hold what a file had.
        self._registered: str | None = None
        self._auto_name = name is None
        self.name = self._fresh_name() if name is None else name
        if name is not None:
            _named[name] = self

    @staticmethod
    def _fresh_name() -> str:
        return f"vae_{next(_count)}"

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; a part whose parameters are all frozen stays in evaluation mode.

        Its batch statistics and dropout masks are not to change what was frozen.
        """
        super().train(mode)
        for module in self.modules():
            if is_ode(module):
                module.training = True
        for part in self.children():
            flags = [parameter.requires_grad for parameter in part.parameters()]
            if flags and not any(flags):
                part.eval()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copying and unpickling come through here: under the old name, SVI would train the original's tensors instead.
        super().__setstate__(state)
        self._auto_name, self.name = True, self._fresh_name()

    @property
    def beta(self) -> float:
        """The weight of the KL term in both programs."""
        return float(self._beta)

    @beta.setter
    def beta(self, beta: float) -> None:
        if callable(beta):
            raise ConfigError("beta: expected a number, got a function of the epoch: a schedule goes to fit(beta=...)")
        # A number of numpy's, or a tensor of one, is as good as Python's.
        number: Any = beta
        if getattr(number, "ndim", None) == 0:
            number = number.item()
        real = isinstance(number, numbers.Real) and not isinstance(number, bool)
        if not real:
            raise ConfigError(f"beta: expected a number, got {beta!r}")
        if not 0 <= number <= torch.finfo(self._beta.dtype).max:
            raise ConfigError(f"expected 0 ≤ β < ∞, got {number}")
        self._beta.fill_(number)
        # Asked of the buffer, in which a tiny β can be zero.
        self._kl_is_off = self.beta == 0

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # Casting the model can make a tiny β zero.
        super()._apply(*args, **kwargs)
        if not self._beta.is_meta:
            self._kl_is_off = self.beta == 0
        return self

    @property
    def structure(self) -> tuple[Any, ...]:
        """What of the programs is decided in Python: a recorded graph of them holds while this is the same."""
        # Parts that are modules are found as such; those that are functions are here.
        return self._kl_is_off, *(id(vars(self).get(kind)) for kind in (*_KINDS, "condition"))

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run parts in eval mode, without gradients, with random numbers that are nobody's, and seen by no handler."""
        generators = torch.random.fork_rng(cuda_devices(self._beta.device))
        with evaluating(self), poutine.block(), torch.no_grad(), generators:
            yield

    def _register(self) -> None:
        """Make the parameters known to Pyro, as ``pyro.module`` would, but never as another model's."""
        store = pyro.get_param_store()
        for key, parameter in self.named_parameters():
            site = f"{self.name}$$${key}"
            if not parameter.requires_grad:
                continue
            if site in store and store[site] is not parameter:
                if not self._auto_name:
                    raise ConfigError(
                        f"the param store holds other parameters under the name {self.name!r}: clear it with "
                        "pyro.clear_param_store(), or leave the name out"
                    )
                if self._registered == self.name:
                    # A layer was exchanged: the others would stay in the store under the old name for good.
                    self.unregister()
                self.name = self._fresh_name()
                return self._register()
            if site not in store and not parameter.is_contiguous():
                raise PartError(
                    f"{site}: expected a parameter that is contiguous in memory, as Pyro's param store would train a "
                    f"copy of any other, got strides {parameter.stride()} for {tuple(parameter.shape)}: make it of a "
                    ".contiguous() tensor; for convolutions, vae.to(memory_format=torch.contiguous_format)"
                )
            found = pyro.param(site, parameter)
            # Pyro's drawings of a program wrap what it passes round, which changes no value.
            if found is not parameter and not isinstance(found, ProvenanceTensor):
                raise PartError(
                    f"{site}: expected the parameter itself, got another value from an effect handler such as "
                    "poutine.lift, which the parts, being nn.Modules, would never see"
                )
        self._registered = self.name

    def unregister(self) -> None:
        """Take this model's parameters out of Pyro's param store, which otherwise keeps them alive."""
        store = pyro.get_param_store()
        mine = {key: value for key, value in store.named_parameters() if key.startswith(f"{self.name}$$$")}
        ids = {id(value) for value in mine.values()}
        # Pyro finds the name of a tensor that several models share by the last of them: it is ours to be deleted, and
        # then that of a model which still has it.
        store.set_state({"params": mine, "constraints": {}})
        for key in mine:
            del store[key]
        shared = {key: value for key, value in store.named_parameters() if id(value) in ids}
        store.set_state({"params": shared, "constraints": {}})
        self._forget_references()

    def _forget_references(self) -> None:
        """Take off the weak references that Pyro leaves on parameters, and makes anew when it needs them."""
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)

    def __getstate__(self) -> Any:
        """Return what is copied and pickled, which no weak reference can be."""
        self._forget_references()
        return super().__getstate__()

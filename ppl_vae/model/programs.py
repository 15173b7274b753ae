r"""The two Pyro programs of a VAE, and what they stand on: parts, names, β, and tensors out of what users pass.

.. math::
    \text{model:}\quad z \sim p(z \mid y), \quad x \sim p(x \mid z, y)
    \qquad\qquad
    \text{guide:}\quad z \sim q(z \mid x, y)
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Self
from weakref import WeakValueDictionary

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.provenance import ProvenanceTensor
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from ..data import as_tensor, check_finite
from ..devices import cuda_devices
from ..distributions import is_ode, is_point, spheres
from ..errors import ConfigError, DataError, LabelError, NoDensityError, PartError, ShapeError
from .checks import (
    called,
    check_data,
    check_pair,
    check_part,
    check_prior,
    check_rows,
    check_spheres,
    check_together,
    given_by,
)
from .masking import given, observed, seen_alone

__all__ = ["NO_PRIOR", "Programs"]

_KINDS = ("prior", "likelihood", "encoder")
_count = itertools.count()
_named: WeakValueDictionary[str, Programs] = WeakValueDictionary()
NO_PRIOR = (
    "an autoencoder (prior=None) has no p(z), so it neither samples nor has a likelihood: build vae(...) or cvae(...), "
    "or give this one a prior"
)


class _NoPrior(dist.ImproperUniform):
    """What stands at an autoencoder's z: every z weighs the same, and none can be drawn."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        raise NoDensityError(NO_PRIOR)

    def log_prob(self, value: Tensor) -> Tensor:
        # Pyro's own zeros stay on the CPU.
        return value.new_zeros(torch.broadcast_shapes(value.shape[:-1], self.batch_shape))


class Programs(nn.Module):
    """``model`` and ``guide`` over parts that are arguments; :class:`~ppl_vae.VAE` says what they are.

    It is a class of its own so that the programs can be read on one page.
    """

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
        if not 0 <= beta <= torch.finfo(self._beta.dtype).max:
            raise ConfigError(f"expected 0 ≤ β < ∞, got {beta}")
        self._beta.fill_(beta)
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

    # The two programs

    def model(self, x: Any = None, y: Any = None, mask: Tensor | None = None, total: float | None = None) -> Tensor:
        """The generative program: z ~ p(z | y), x ~ p(x | z, y).

        Arguments:
            x: (N, *x_shape) observed, or None to sample it.
            y: (N,) labels or whatever the condition takes; None for a model without condition.
            mask: True where a pixel of x is seen; unseen ones take no part, whatever their value.
            total: the size of the data set this batch stands for: the log-density is scaled by total / N.

        Returns:
            x, observed or sampled, (N, *x_shape).
        """
        x, mask = self._tensor(x), self._mask(x, mask)
        c, size = self._programs_context(x, y)
        with self._plate(size, total):
            with self._kl_weight():
                prior = self._prior(c)
                z = pyro.sample("z", prior)
            check_pair(z, prior)
            p, x = observed(self._decoded(z, c), x, mask)
            check_data(self.likelihood, x)
            return pyro.sample("x", p, obs=x)

    def guide(self, x: Any = None, y: Any = None, mask: Tensor | None = None, total: float | None = None) -> Tensor:
        """The inference program: z ~ q(z | x, y), with the signature of the model.

        Returns:
            z, (N, latent).
        """
        x, mask = self._tensor(x), self._mask(x, mask)
        if x is None:
            raise DataError("the guide is q(z | x, y) and needs x; to sample from the prior, run the model alone")
        c, size = self._programs_context(x, y)
        q = self._posterior(x, c, mask)
        with self._plate(size, total), self._kl_weight():
            return pyro.sample("z", q)

    def _programs_context(self, x: Tensor | None, y: Any) -> tuple[Tensor | None, int]:
        """Register the parameters; return c (N, context) or None, and N."""
        self._register()
        return self._row_context(x, y)

    def _row_context(self, x: Tensor | None, y: Any) -> tuple[Tensor | None, int]:
        """C (N, context) or None, and N."""
        c = self._context(y)
        if c is not None and c.dim() == 1:
            c = c.unsqueeze(0)
        if c is not None and c.dim() != 2:
            shape = tuple(c.shape[:-1])
            way_out = ": pass y.squeeze(-1)" if shape[-1] == 1 else ""
            raise ShapeError(f"y: expected one a row of x, one batch dimension, got {shape}{way_out}")
        if x is None:
            return c, 1 if c is None else len(c)
        check_rows(x)
        if c is not None and len(c) != len(x):
            if len(c) != 1:
                raise LabelError(f"expected one y a row of x, got {len(c)} for {len(x)} rows")
            c = c.expand(len(x), -1)
        return c, len(x)

    @staticmethod
    def _plate(size: int, total: float | None) -> AbstractContextManager[Any]:
        stack = ExitStack()
        if total is not None:
            if not 0 < total < math.inf:
                raise ConfigError(f"expected total > 0, the size of the data set, got {total}")
            # A plate of that size with subsample_size would draw random indices that nobody uses.
            stack.enter_context(poutine.scale(scale=total / size))
        stack.enter_context(pyro.plate("data", size))
        return stack

    def _posterior(self, x: Tensor, c: Tensor | None, mask: Tensor | None) -> Any:
        """Return q(z | x, y), once it goes with the prior."""
        q = self._encoded(given(self.encoder, x, mask), c)
        if self.prior is None and not is_point(q):
            raise PartError(
                f"prior=None: expected a point encoder (Delta), got {type(q).__name__}, whose entropy nothing would "
                "hold back: give the model a prior"
            )
        first = self.prior is not None and self._tried is None
        if is_validation_enabled() and (first or spheres(q.support, q.event_shape.numel())):
            with self._aside():
                check_spheres(q, self._prior(c))
        return q

    def _rows(self, x: Tensor) -> torch.Size:
        """The batch shape of x: none, where it is one datum."""
        return x.shape[:1] if x.dim() > max(1, len(getattr(self.likelihood, "x_shape", ()))) else torch.Size()

    def _decoded(self, z: Any, c: Tensor | None) -> Any:
        return called("likelihood", self.likelihood, z, c, 1)

    def _encoded(self, x: Any, c: Tensor | None) -> Any:
        shape = getattr(self.likelihood, "x_shape", None)
        q = called("encoder", self.encoder, x, c, None if shape is None else len(shape))
        if not q.event_shape:
            raise PartError(
                f"encoder: expected a distribution over all of z, (latent,), got a {type(q).__name__} over one number "
                "at a time: end it in .to_event(1)"
            )
        return q

    def _kl_weight(self) -> AbstractContextManager[Any]:
        return poutine.mask(mask=False) if self._kl_is_off else poutine.scale(scale=self._beta)

    def _prior(self, c: Tensor | None) -> Any:
        if self.prior is None:
            return _NoPrior(dist.constraints.real_vector, (), torch.Size([self.encoder.features]))  # type: ignore
        tried = id(self.prior), None if c is None else c.shape[-1]
        if self._tried != tried and is_validation_enabled():
            # Once for a width of the context, or for none.
            with self._aside():
                check_prior(self.prior, c, self._beta)
            self._tried = tried
        return given_by("prior", self.prior(c))

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Run parts in eval mode, without gradients, with random numbers that are nobody's, and seen by no handler."""
        modes = [(module, module.training) for module in self.modules()]
        super().eval()
        try:
            with poutine.block(), torch.no_grad(), torch.random.fork_rng(cuda_devices(self._beta.device)):
                yield
        finally:
            for module, mode in modes:
                module.training = mode

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
                self.name = self._fresh_name()
                return self._register()
            found = pyro.param(site, parameter)
            # Pyro's drawings of a program wrap what it passes round, which changes no value.
            if found is not parameter and not isinstance(found, ProvenanceTensor):
                raise PartError(
                    f"{site}: expected the parameter itself, got another value from an effect handler such as "
                    "poutine.lift, which the parts, being nn.Modules, would never see"
                )

    def unregister(self) -> None:
        """Take this model's parameters out of Pyro's param store, which otherwise keeps them alive."""
        store = pyro.get_param_store()
        for key in [key for key in store if key.startswith(f"{self.name}$$$")]:
            del store[key]
        self._forget_references()

    def _forget_references(self) -> None:
        """Take off the weak references that Pyro leaves on parameters, and makes anew when it needs them."""
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)

    def __getstate__(self) -> Any:
        """Return what is copied and pickled, which no weak reference can be."""
        self._forget_references()
        return super().__getstate__()

    # From what users pass to tensors

    def _tensor(self, x: Any) -> Tensor | None:
        """X in the model's dtype and on its device: integers and float64 are cast."""
        return None if x is None else as_tensor(x).to(self._beta)

    @staticmethod
    def _mask(x: Tensor | None, mask: Any) -> Tensor | None:
        if mask is None:
            return None
        mask = torch.as_tensor(mask)
        if x is None or mask.dtype != torch.bool or mask.shape != x.shape:
            expected = "an x to go with it" if x is None else f"bool {tuple(x.shape)}"
            raise ShapeError(f"mask: expected {expected}, got {mask.dtype} {tuple(mask.shape)}")
        return mask.to(x.device)

    def _context(self, y: Any) -> Tensor | None:
        """C = condition(y), (*, context), in the model's dtype and device; None without a condition."""
        if self.condition is None:
            if y is not None:
                raise LabelError(
                    "this model has no condition but is given y: drop y, or build it with condition=OneHot(classes)"
                )
            return None
        if y is None:
            raise LabelError(
                "this model is conditional: pass y, one for every row of x (an integer label, say); to fit, "
                "the two as one, fit(vae, (x, y))"
            )
        y = torch.as_tensor(y, device=self._beta.device)
        c = self.condition(y.to(self._beta.dtype) if y.is_floating_point() else y)
        if not isinstance(c, Tensor) or c.dim() == 0:
            raise PartError(f"condition: expected it to return floats (*, context), got {type(c).__name__}")
        return c.to(self._beta)

    def observe(self, y: Tensor) -> None:
        """Show the labels of training rows to a condition that keeps count of them."""
        if (observe := getattr(self.condition, "observe", None)) is not None:
            observe(y)

    def per_row(self, y: Tensor) -> bool:
        """Whether y has a batch dimension: one for every row of x, and not one for all; a y may have dimensions too."""
        return y.dim() > len(getattr(self.condition, "y_shape", ()))

    def check(self, x: Any, y: Any = None, mask: Any = None) -> None:
        """Raise unless x and y are data for this model, whose parts go together; for a whole data set, before a step.

        With a mask, True where a pixel is seen, what stands in the place of the others is not looked at.

        Raises:
            DataError: for NaN, infinity, no rows, no pixel that is seen, or values that the likelihood cannot have
                generated.
            ShapeError: if x has another shape than the likelihood's, or y more dimensions than one a row.
            PartError: if the parts do not go together: a sphere and all of space, for one.
            LabelError: if y is missing, unwanted, of another length, or out of range.
        """
        x = self._seen(x, mask)
        self.check_values(x, y)
        check_together(self, x, None if y is None else torch.as_tensor(y))

    def check_values(self, x: Any, y: Any = None, mask: Any = None) -> None:
        """As :meth:`check`, of the data alone."""
        x = self._seen(x, mask)
        check_rows(x)
        check_x = getattr(self.likelihood, "check", None) or check_finite
        check_x(x)
        if x.dtype != (own := self._beta.dtype):
            try:
                # What is inside the support can be rounded out of it.
                check_x(x.to(own))
            except DataError as error:
                raise DataError(
                    f"{error} (x is {x.dtype}, and so it becomes when cast to the model's {own}: clamp it, or take "
                    f"vae.to({x.dtype}))"
                ) from error
        if self.condition is None or y is None:
            self._context(y)
            return
        y = torch.as_tensor(y)
        self._check_one_batch(y)
        if self.per_row(y) and len(y) != len(x):
            raise LabelError(f"expected one y a row of x, got {len(y)} for {len(x)} rows")
        if (check := getattr(self.condition, "check", None)) is not None:
            check(y)
        elif y.is_floating_point():
            check_finite(y, "y")

    def _seen(self, x: Any, mask: Any) -> Tensor:
        """X, in which values that are seen stand for those that are not."""
        x, mask = as_tensor(x), self._mask(as_tensor(x), mask)
        if mask is None:
            return x
        if not mask.any():
            raise DataError("mask: expected at least one pixel that is seen (True), got none")
        return seen_alone(x, mask)

    def _check_one_batch(self, y: Tensor) -> None:
        shape = getattr(self.condition, "y_shape", None)
        if shape is not None and y.dim() > 1 + len(shape):
            batch = tuple(y.shape[: y.dim() - len(shape)])
            way_out = ": pass y.squeeze(-1)" if batch[-1] == 1 and not shape else ""
            raise ShapeError(f"y: expected one a row of x, one batch dimension, got {batch}{way_out}")

    def check_training(self, x: Any, y: Any = None) -> None:
        """As :meth:`check`, for rows to train on: a model may do without some labels there."""
        self.check(x, y)

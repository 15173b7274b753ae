r"""The two Pyro programs of a VAE.

.. math::
    \text{model:}\quad z \sim p(z \mid y), \quad x \sim p(x \mid z, y)
    \qquad\qquad
    \text{guide:}\quad z \sim q(z \mid x, y)
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from ..distributions import is_point, spheres
from ..errors import ConfigError, DataError, LabelError, NoDensityError, PartError
from .checks import called, check_data, check_pair, check_prior, check_rows, check_spheres, given_by
from .inputs import Checked, not_one_batch
from .masking import given, observed

__all__ = ["NO_PRIOR", "Programs"]

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


class Programs(Checked):
    """``model`` and ``guide`` over parts that are arguments, on one page; :class:`~ppl_vae.VAE` says what they are."""

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
        x = self._tensor(x)
        mask = self._mask(x, mask)
        self._register()
        c, size = self._row_context(x, y)
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
        x = self._tensor(x)
        mask = self._mask(x, mask)
        if x is None:
            raise DataError("the guide is q(z | x, y) and needs x; to sample from the prior, run the model alone")
        self._register()
        c, size = self._row_context(x, y)
        q = self._posterior(x, c, mask)
        with self._plate(size, total), self._kl_weight():
            return pyro.sample("z", q)

    def _row_context(self, x: Tensor | None, y: Any) -> tuple[Tensor | None, int]:
        """C (N, context) or None, and N."""
        c = self._context(y)
        if c is not None and c.dim() == 1:
            c = c.unsqueeze(0)
        if c is not None and c.dim() != 2:
            raise not_one_batch(c.shape[:-1], squeezable=True)
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

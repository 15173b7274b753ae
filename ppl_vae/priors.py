r"""Priors: c → p(z | y).

.. math:: p(z \mid y) = \mathcal{N}\bigl(z;\ \mu(c),\ \operatorname{diag} \sigma^2(c)\bigr),
    \qquad c = \text{condition}(y)

A prior is called with its context, None where the model has no condition, and returns a distribution over (latent,).
A function or a zuko flow is one as it stands; here are the parts that have parameters or constants of their own.
To add one: subclass :class:`~ppl_vae.parts.Part`, return a distribution from ``forward(c)``, and enter it in
``presets.PRIORS`` so that it has a name on the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .distributions import as_pyro
from .errors import PartError, ShapeError
from .networks import Body, Network
from .parts import Part, Unconditional, check_context, check_positive

__all__ = ["Fixed", "Gaussian", "Standard", "Unconditional"]


class Standard(Part):
    r"""The standard normal, :math:`p(z) = \mathcal{N}(0, I)`, whatever the context.

    Arguments:
        features: the number of latent features.

    Reference:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014)

    Example:
        >>> Standard(20)(None).event_shape
        torch.Size([20])
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        check_positive(features=features)
        self.features = features
        self.register_buffer("loc", torch.zeros(features), persistent=False)
        self.register_buffer("scale", torch.ones(features), persistent=False)

    def forward(self, c: Tensor | None = None) -> Any:
        """Return p(z), event shape (features,)."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class Gaussian(Part):
    r"""A learned diagonal Gaussian: p(z) with parameters of its own, or p(z | y) when it has a context.

    .. math:: p(z \mid y) = \mathcal{N}(\mu(c), \operatorname{diag} \sigma^2(c)), \qquad
        (\mu, \log \sigma^2) = \mathrm{network}(c)

    Arguments:
        features: the number of latent features.
        context: the number of context features; 0 for p(z).
        hidden: the widths of the hidden layers; ``()`` makes a table with one row a label out of a one-hot context.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        clamp: log σ² is kept in this range, where its gradient is zero beyond.

    Reference:
        Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et al., 2015)

    Example:
        >>> Gaussian(20, context=10)(torch.eye(10)).shape()
        torch.Size([10, 20])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        clamp: tuple[float, float] = (-14.0, 14.0),
    ) -> None:
        super().__init__()
        check_positive(features=features)
        self.features, self.context, self.clamp = features, context, tuple(clamp)
        if context:
            self.network = Network((), (2 * features,), context, hidden, network)
        else:
            self.loc = nn.Parameter(torch.zeros(features))
            self.log_variance = nn.Parameter(torch.zeros(features))

    def forward(self, c: Tensor | None = None) -> Any:
        """Return p(z | y), event shape (features,), for c (*, context)."""
        check_context(self, c, self.context)
        if self.context:
            loc, log_variance = self.network(None, c).chunk(2, -1)
        else:
            loc, log_variance = self.loc, self.log_variance
        return dist.Normal(loc, (0.5 * log_variance.clamp(*self.clamp)).exp()).to_event(1)


class Fixed(Part):
    r"""Any distribution with constants, independent over the features, whatever the context.

    .. math:: p(z) = \prod_{i=1}^{\text{features}} d(z_i; \theta)

    The constants are buffers: they follow the model to another device and are saved with it.

    Arguments:
        distribution: a class of ``pyro.distributions`` (or of torch's or zuko's).
        args: its arguments, numbers or tensors.
        features: the number of latent features.
        kwargs: its keyword arguments.

    Raises:
        ShapeError: if the distribution is over vectors of another length.

    Example:
        >>> Fixed(dist.Laplace, 0.0, 1.0, features=20)(None).event_shape
        torch.Size([20])
    """

    def __init__(self, distribution: type, *args: Any, features: int, **kwargs: Any) -> None:
        super().__init__()
        check_positive(features=features)
        if not callable(distribution):
            raise PartError(f"Fixed: expected a class of distributions, got {distribution!r}")
        self.distribution, self.features = distribution, features
        for i, value in enumerate(args):
            self.register_buffer(f"arg{i}", torch.as_tensor(value, dtype=torch.get_default_dtype()))
        for name, value in kwargs.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.get_default_dtype()))
        self._positional, self._keywords = len(args), tuple(kwargs)
        self()

    def forward(self, c: Tensor | None = None) -> Any:
        """Return p(z), event shape (features,)."""
        positional = [getattr(self, f"arg{i}") for i in range(self._positional)]
        d = as_pyro(self.distribution(*positional, **{name: getattr(self, name) for name in self._keywords}))
        if not d.event_shape:
            d = d.expand([self.features]).to_event(1)
        if d.shape() != (self.features,):
            raise ShapeError(f"Fixed: expected a distribution over ({self.features},), got {tuple(d.shape())}")
        return d

r"""Priors: c → p(z | y).

.. math:: p(z \mid y) = \mathcal{N}\bigl(z;\ \mu(c),\ \operatorname{diag} \sigma^2(c)\bigr),
    \qquad c = \text{condition}(y)

A prior is called with its context, None where the model has no condition, and returns a distribution over (latent,).
A function or a zuko flow is one as it stands; here are the parts that have parameters or constants of their own.
To add one: subclass :class:`~ppl_vae.parts.Part`, return a distribution from ``forward(c)``, and enter it in
``presets.PRIORS`` so that it has a name on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from .data import drawn
from .distributions import NormalMixture, SphericalUniform, as_pyro, diagonal, is_point
from .encoders.base import standardising
from .errors import ConfigError, LabelError, PartError, ShapeError, check_positive, check_range
from .networks import Body, Network
from .parts import Chain, Part, Unconditional, check_context

__all__ = ["Chain", "Fixed", "Gaussian", "Mixture", "Sphere", "Standard", "Unconditional", "Vamp"]


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
        self.features, self.context, self.clamp = features, context, check_range("clamp", clamp)
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
        PartError: for what is no class, or an argument that is no numbers.
        ShapeError: if the distribution is over vectors of another length.

    Reference:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014), whose prior is fixed

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
        for name, value in ({f"arg{i}": value for i, value in enumerate(args)} | kwargs).items():
            try:
                self.constant(name, value)
            except (TypeError, ValueError) as error:
                raise PartError(
                    f"Fixed: expected a number or numbers for {name}, got {type(value).__name__}: a distribution of "
                    "others is a function that returns it, or a Part of your own"
                ) from error
        self._positional, self._keywords = len(args), tuple(kwargs)
        self()

    def forward(self, c: Tensor | None = None) -> Any:
        """Return p(z), event shape (features,)."""
        positional = [getattr(self, f"arg{i}") for i in range(self._positional)]
        d = as_pyro(self.distribution(*positional, **{name: getattr(self, name) for name in self._keywords}))
        # Of another length it cannot be expanded.
        if not d.event_shape and d.batch_shape in ((), (1,), (self.features,)):
            d = d.expand([self.features]).to_event(1)
        if d.shape() != (self.features,):
            raise ShapeError(f"Fixed: expected a distribution over ({self.features},), got {tuple(d.shape())}")
        return d


class Mixture(Part):
    r"""A mixture of diagonal Gaussians: p(z) with parameters of its own, or p(z | y) when it has a context.

    .. math:: p(z \mid y) = \sum_{k=1}^{K} \pi_k(c)\, \mathcal{N}(z;\ \mu_k(c), \operatorname{diag} \sigma_k^2(c))

    Arguments:
        features: the number of latent features.
        context: the number of context features; 0 for p(z).
        components: K.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        depends: what depends on y: ``"all"``, or ``"weights"`` alone, so that the components are shared by all y.
        clamp: log σ² is kept in this range, where its gradient is zero beyond.

    Raises:
        ConfigError: for another word for ``depends``.

    Reference:
        Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders (Dilokthanakul et al., 2016)

    Example:
        >>> Mixture(20, context=10, components=5)(torch.eye(10)).shape()
        torch.Size([10, 20])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        components: int = 10,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        depends: Literal["all", "weights"] = "all",
        clamp: tuple[float, float] = (-14.0, 14.0),
    ) -> None:
        super().__init__()
        check_positive(features=features, components=components)
        if depends not in ("all", "weights"):
            raise ConfigError(f"Mixture: expected depends to be 'all' or 'weights', got {depends!r}")
        self.features, self.context, self.components = features, context, components
        self.depends, self.clamp = depends, check_range("clamp", clamp)
        # Apart from the start, or components that are alike would stay so. A network moves them from here.
        self.loc = nn.Parameter(torch.randn(components, features))
        everything = context and depends == "all"
        if context:
            outputs = components * (1 + 2 * features) if everything else components
            self.network = Network((), (outputs,), context, hidden, network)
        else:
            self.logits = nn.Parameter(torch.zeros(components))
        if not everything:
            self.log_variance = nn.Parameter(torch.zeros(components, features))

    def forward(self, c: Tensor | None = None) -> Any:
        """Return p(z | y), event shape (features,), for c (*, context)."""
        check_context(self, c, self.context)
        logits = self.network(None, c) if self.context else self.logits
        if self.context and self.depends == "all":
            logits, places = logits.tensor_split([self.components], -1)
            move, log_variance = places.unflatten(-1, (2, self.components, self.features)).unbind(-3)
            loc = self.loc + move
        else:
            loc, log_variance = self.loc, self.log_variance
        return NormalMixture.of(logits, loc, (0.5 * log_variance.clamp(*self.clamp)).exp())


class Vamp(Part):
    r"""What the encoder says of K made-up inputs, on average: a prior close to the aggregate posterior.

    .. math:: p(z \mid y) = \frac1K \sum_{k=1}^{K} q(z \mid u_k, y)

    The pseudo-inputs u are parameters in the units of x. They are not clamped to the range of x: the encoder takes any
    real input, the mixture is a density for every u, and a clamped u has no gradient to come back with.

    The encoder is the model's own, shared with it and trained by both: ``VAE(prior=Vamp(encoder), encoder=encoder)``.
    Calling the prior takes K passes of the encoder, and for a batch of B different y it takes B·K. Where y is one of
    ``classes`` labels it takes no more than classes·K, by any encoder of this library but a Chain and one Masked.

    Arguments:
        encoder: the encoder of the model: x, c → q(z | x, y), with a density.
        components: K; by default 500, or 50 for an encoder with a context.
        pseudo_inputs: where u starts, (K, *x_shape); by default at random in the encoder's range of x, until
            :meth:`start_from` is called with data, as ``fit`` does.
        classes: the number of labels, where the context is the one-hot row of one; the presets say it. Rows between
            labels, as interpolation has them, are taken as they are where there are no more of them than labels.

    Raises:
        PartError: for an encoder that cannot be called, gives a point, or does not say its ``x_shape`` where there are
            no pseudo-inputs.
        ShapeError: for pseudo-inputs of another shape than x.
        ConfigError: if ``components`` is not the number of pseudo-inputs, or ``classes`` not the encoder's context.
        LabelError: when called with more rows of context than ``classes``, not all of them one-hot.

    Reference:
        VAE with a VampPrior (Tomczak and Welling, 2018)

    Example:
        >>> encoder = pv.encoders.Gaussian(2, (4,), context=3)
        >>> prior = Vamp(encoder, components=5)
        >>> prior(torch.eye(3)).shape(), prior.encoder is encoder
        (torch.Size([3, 2]), True)
    """

    started: Tensor

    def __init__(
        self,
        encoder: Callable[..., Any],
        components: int | None = None,
        pseudo_inputs: Tensor | Sequence[Any] | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if not callable(encoder):
            raise PartError(f"Vamp: expected the encoder of the model, got {type(encoder).__name__}")
        # None where it does not say.
        self.context: int | None = getattr(encoder, "context", None)
        shape = getattr(encoder, "x_shape", None)
        given = None if pseudo_inputs is None else torch.as_tensor(pseudo_inputs, dtype=torch.get_default_dtype())
        if given is not None:
            if not given.dim() or (shape is not None and given.shape[1:] != shape):
                expected = "*x_shape" if shape is None else ", ".join(map(str, shape))
                raise ShapeError(f"pseudo_inputs: expected (K, {expected}), got {tuple(given.shape)}")
            if components not in (None, len(given)):
                raise ConfigError(f"Vamp: expected components={len(given)}, one a pseudo-input, got {components}")
            components = len(given)
        components = components if components is not None else 50 if self.context else 500
        check_positive(components=components)
        if None not in (classes, self.context) and classes != self.context:
            raise ConfigError(f"Vamp: expected classes={self.context}, the encoder's context, got {classes}")
        if given is None:
            if shape is None:
                raise PartError(
                    f"Vamp: expected an encoder with an x_shape, got {type(encoder).__name__}: give pseudo_inputs "
                    "(K, *x_shape) instead"
                )
            told = encoder if hasattr(encoder, "shift") else next(iter(standardising(encoder)), encoder)
            shift, scale = (torch.as_tensor(getattr(told, n, d)).cpu() for n, d in (("shift", 0.0), ("scale", 1.0)))
            given = shift + scale * torch.rand(components, *shape)
        self.encoder, self.components, self.classes = encoder, components, classes
        self.pseudo_inputs = nn.Parameter(given.clone())
        self.register_buffer("started", torch.tensor(pseudo_inputs is not None))
        # The encoder is the model's to remember, and where u started is forgotten as soon as it is trained.
        self.arguments = {"components": components} | ({} if classes is None else {"classes": classes})

    @property
    def features(self) -> int | None:
        """The number of latent features, where the encoder says it."""
        return getattr(self.encoder, "features", None)

    @torch.no_grad()
    def start_from(self, x: Any) -> None:
        """Take K random rows of x (N, *x_shape), no row twice, for the pseudo-inputs, unless they have been started.

        A pseudo-input stands for every y.

        Raises:
            ShapeError: if a row is no x.
            ConfigError: if there are fewer rows than components.
        """
        if self.started:
            return
        x = drawn(x)
        if x.shape[1:] != self.pseudo_inputs.shape[1:]:
            expected = ", ".join(map(str, self.pseudo_inputs.shape[1:]))
            raise ShapeError(f"x: expected (N, {expected}), got {tuple(x.shape)}")
        if len(x) < self.components:
            raise ConfigError(
                f"Vamp: expected at least as many rows as components to start from, got {len(x)} rows for "
                f"{self.components}: set components to {len(x)} or fewer, or give pseudo_inputs"
            )
        self.pseudo_inputs.copy_(x[torch.randperm(len(x))[: self.components].to(x.device)])
        self.started.fill_(True)

    def forward(self, c: Tensor | None = None) -> Any:
        """Return p(z | y), event shape (features,), for c (*, context)."""
        if self.context is not None:
            check_context(self, c, self.context)
        q = as_pyro(self._of_pseudo_inputs(c))
        if is_point(q):
            raise PartError("Vamp: expected an encoder with a density, got one that gives a point (Delta)")
        # An encoder that ignores its input gives fewer.
        q = q.expand(torch.broadcast_shapes(q.batch_shape, (self.components,)))
        logits = self.pseudo_inputs.new_zeros(q.batch_shape)
        if (parameters := diagonal(q)) is not None:
            return NormalMixture.of(logits, *parameters)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), q)

    def _of_pseudo_inputs(self, c: Tensor | None) -> Any:
        """The posteriors q(z | u, y) of all pseudo-inputs, batch shape (*, K)."""
        u = self.pseudo_inputs
        if c is None:
            return self.encoder(u, None)
        of_rows = getattr(self.encoder, "of_rows", None)
        if self.classes is None or of_rows is None or c.shape[:-1].numel() <= self.classes:
            return self.encoder(u, c.unsqueeze(-2))
        if is_validation_enabled() and not (((c == 0) | (c == 1)).all() and (c.sum(-1) == 1).all()):
            raise LabelError(
                f"Vamp: expected one-hot rows of {self.classes} labels for the context, got other numbers: make it "
                "without classes"
            )
        return of_rows(u, torch.eye(self.classes, dtype=c.dtype, device=c.device).unsqueeze(-2), c.argmax(-1))


class Sphere(Part):
    r"""The uniform distribution on the unit sphere, whatever the context; it goes with the encoder PowerSpherical.

    .. math:: p(z) = \frac{\Gamma(D/2)}{2 \pi^{D/2}}, \qquad \lVert z \rVert = 1

    Arguments:
        features: D, the number of coordinates of z, at least two.

    Reference:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018)

    Example:
        >>> Sphere(3)(None).sample().norm()
        tensor(1.)
    """

    like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        check_positive(features=features)
        self.features = features
        # It has no numbers, only a dtype and a device.
        self.register_buffer("like", torch.empty(0), persistent=False)
        self()

    def forward(self, c: Tensor | None = None) -> Any:
        """Return p(z), event shape (features,)."""
        return SphericalUniform(self.features, dtype=self.like.dtype, device=self.like.device)

r"""The three systems: an autoencoder, a VAE, and a class-conditional VAE.

.. math:: p(x \mid z),\ z = f(x) \qquad p(z)\, p(x \mid z) \qquad p(z \mid y)\, p(x \mid z, y)

What the parts share, such as the number of latent features, is said once.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import conditions
from ..errors import ConfigError, check_positive, check_shape
from ..model import VAE
from .dictionaries import complete, in_order, make
from .tables import Spec

__all__ = ["ae", "cvae", "vae"]


def ae(
    x_shape: Sequence[int],
    features: int,
    *,
    likelihood: Spec | None = None,
    encoder: Spec = "Delta",
    **rest: Any,
) -> VAE:
    r"""Make an autoencoder: z = f(x), no prior, :math:`-\log p(x \mid z)` for a loss.

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        likelihood: None for the summed squared error ‖x − x̂‖², as a Gaussian with σ² = ½ (plus (D/2) log π).
        encoder: a point.
        rest: as :func:`vae`.

    Example:
        >>> ae((64,), 2).reconstruct(torch.rand(5, 64)).shape
        torch.Size([5, 64])
    """
    if "prior" in rest:
        raise ConfigError("ae: an autoencoder has no prior: take pv.vae")
    if likelihood is None:
        likelihood = {"name": "Gaussian", "sigma": 0.5**0.5}
    return vae(x_shape, features, prior=None, likelihood=likelihood, encoder=encoder, **rest)


def vae(
    x_shape: Sequence[int],
    features: int,
    *,
    prior: Spec | None = "Standard",
    likelihood: Spec = "Bernoulli",
    encoder: Spec = "Gaussian",
    condition: Spec | None = None,
    context: int | None = None,
    hidden: Sequence[int] | int | None = None,
    network: Any = None,
    range: tuple[float, float] = (0.0, 1.0),
    levels: int | None = None,
    beta: float = 1.0,
) -> VAE:
    """Make a VAE, p(z) p(x|z) with q(z|x).

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        prior, likelihood, encoder, condition: each a name from the tables, a dict ``{"name": ..., option: ...}``, or a
            part of your own, which is used as it is. A Vamp has the model's encoder. The two parts of
            ``{"name": "Chain", "first": ..., "second": ...}`` share the features, by halves unless one says its own.
        context: the number of context features that the condition makes, where it is one that does not say.
        hidden, network: for the likelihood and the encoder, as :class:`~ppl_vae.networks.Network` takes them; by
            default one hidden layer of 400.
        range: the least and the largest value of a pixel; encoders and likelihoods of real numbers standardise with it.
        levels: how many values a pixel may take, 0 … levels − 1, for likelihoods of whole numbers.
        beta: the weight of the KL.

    Example:
        >>> vae((1, 28, 28), 20).sample(3).shape
        torch.Size([3, 1, 28, 28])
    """
    check_positive(features=features)
    # Nothing is shared with a condition: the shape and the features of a y are its own.
    named = isinstance(condition, str | Mapping)
    of_y: Any = make("condition", complete("condition", condition)) if named else condition  # type: ignore[arg-type]
    if context is None:
        said = 0 if of_y is None else getattr(of_y, "context", None)
        context = int(said) if isinstance(said, numbers.Integral) else None
    shared = {"features": int(features), "x_shape": check_shape("x_shape", x_shape), "context": context}
    try:
        low, high = (float(end) for end in range)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"range: expected the least and the largest value of all pixels, two numbers, got {range!r}: standardise "
            "columns of different scales"
        ) from error
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"range: expected two finite numbers, got {(low, high)}: take those of seen pixels")
    shared |= {"shift": low, "scale": (high - low) or 1.0}
    if levels is not None:
        check_positive(levels=levels)
        if levels < 2:
            raise ConfigError(f"levels: expected two values or more, 0 … levels − 1, got {levels}")
        shared |= {"total_count": levels - 1, "levels": levels}
    if isinstance(of_y, conditions.OneHot):
        shared["classes"] = of_y.classes
    parts: dict[str, Any] = {}
    # Or the first of the parts would use it up.
    hidden = tuple(hidden) if isinstance(hidden, Iterator) else hidden
    bodies = {k: v for k, v in {"hidden": hidden, "network": network}.items() if v is not None}

    def part(kind: str, spec: Spec | None, **more: Any) -> Any:
        if spec is None or not isinstance(spec, str | Mapping):
            return spec
        config = complete(kind, spec, **shared, **more)
        if config.get("context", 0) is None:
            raise ConfigError(
                f"context: expected how many features the condition ({type(of_y).__name__}) makes of a y, which it "
                "does not say itself: pass context=, or 0 for parts that ignore y"
            )
        return make(kind, config, conditional=of_y is not None, encoder=parts.get("encoder"))

    specs: dict[str, Spec | None] = {"prior": prior, "likelihood": likelihood, "encoder": encoder}
    for kind in in_order(specs):
        parts[kind] = part(kind, specs[kind], **{} if kind == "prior" else bodies)
    return VAE(**parts, condition=of_y, beta=beta)


def cvae(x_shape: Sequence[int], features: int, classes: int, *, prior: Spec = "Gaussian", **rest: Any) -> VAE:
    """Make a class-conditional VAE, p(z|y) p(x|z,y) with q(z|x,y).

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        classes: the number of labels.
        prior: ``"Gaussian"`` for a learned p(z|y); ``"Standard"``, or ``{"name": ..., "context": 0}``, for p(z).
        rest: as :func:`vae`.

    Example:
        >>> cvae((1, 28, 28), 20, 10).sample(8, y=torch.arange(10)).shape
        torch.Size([8, 10, 1, 28, 28])
    """
    if "condition" in rest:
        raise ConfigError(f"cvae: its condition is OneHot({classes}): for another take pv.vae(..., condition=...)")
    return vae(x_shape, features, prior=prior, condition=conditions.OneHot(classes), **rest)

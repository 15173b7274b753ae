r"""A prior after the fact: fitted to where the encoder of a trained model puts the data.

.. math:: \max_p\ \mathbb{E}_{\text{data}}\, \mathbb{E}_{q(z \mid x, y)} \bigl[\log p(z \mid y)\bigr]

That is the part of the ELBO in which the prior stands, so the fit is the usual one with everything else frozen.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoint, presets
from .devices import find_device
from .errors import CheckpointError, ConfigError, PartError
from .model import VAE
from .modes import same_modes
from .state import folders
from .training import fit

__all__ = ["fit_prior"]


def fit_prior(vae: VAE, train: Any, prior: str | Mapping[str, Any] | Callable[..., Any], **options: Any) -> VAE:
    """Return a model with a new prior, fitted to the aggregate posterior; it shares the other parts, which stay as is.

    The second stage of a two-stage model. It also makes a generative model of an autoencoder: its codes get a density.

    Arguments:
        vae: a trained model; of it nothing is changed but which labels its condition has seen.
        train: as :func:`ppl_vae.fit` takes it.
        prior: a part, a name, or a dict ``{"name": ..., option: ...}``, as the presets take it.
        options: of :func:`ppl_vae.fit`: ``epochs``, ``lr``, ``valid``, ``callbacks``, ...

    Returns:
        A model in the mode, ``train()`` or ``eval()``, that the one it was given is in.

    Raises:
        PartError: if the prior has nothing to fit, or shares parameters with the parts that are frozen and no others;
            or is the model's own, which the fit would change; or the model is more than its parts.
        ConfigError: for an option that does not apply, or another device than the model's.
        CheckpointError: as :func:`ppl_vae.fit`, and for a state that was written with the model as it was before.

    Reference:
        Diagnosing and Enhancing VAE Models (Dai and Wipf, 2019); From Variational to Deterministic Autoencoders (Ghosh
        et al., 2020)

    Example:
        >>> ae = pv.ae((4,), 2)
        >>> generator = fit_prior(ae, torch.randn(64, 4), {"name": "GMM", "components": 3}, epochs=2, progress=False)
        >>> generator.sample(5).shape, generator.encoder is ae.encoder
        (torch.Size([5, 4]), True)
    """
    if "beta" in options:
        raise ConfigError("beta: it weighs the prior against the likelihood, and here the prior alone is fitted")
    _check_device(vae, options.get("device", vae._beta.device))
    if type(vae) is not VAE:
        raise PartError(
            f"expected a VAE, which its parts describe, got a {type(vae).__name__}: fit the prior of the VAE inside, "
            "on rows with labels, and put the result in its place"
        )
    part: Any = prior
    if isinstance(prior, str | Mapping):
        sizes = [getattr(of, "features", None) for of in (vae.encoder, vae.likelihood, vae.prior)]
        shared = {"features": next((int(size) for size in sizes if isinstance(size, numbers.Integral)), None)}
        shared["context"] = 0 if vae.condition is None else _context(vae)
        told = isinstance(prior, Mapping) and ("context" in prior or prior.get("name") == "Unconditional")
        if shared["context"] is None and not told:
            raise ConfigError(
                "prior: expected a condition that says how many features it gives (`context`), got "
                f"{getattr(vae.condition, '__name__', type(vae.condition).__name__)}: pass "
                "{'name': ..., 'context': n}, with 0 to ignore y"
            )
        classes = getattr(vae.condition, "classes", None)
        shared["classes"] = classes if isinstance(classes, int) else None
        shared = {key: value for key, value in shared.items() if value is not None}
        spec = presets.complete("prior", prior, **shared)
        part = presets.make("prior", spec, conditional=vae.condition is not None, encoder=vae.encoder)
        part.to(vae._beta)
    if part is vae.prior:
        raise PartError("prior: expected a new one, got the model's own: pass its name, or a copy")
    new = VAE(part, vae.likelihood, vae.encoder, vae.condition)
    others = (vae.likelihood, vae.encoder, vae.condition)
    frozen = {p for other in others if isinstance(other, nn.Module) for p in other.parameters() if p.requires_grad}
    if not isinstance(part, nn.Module) or all(p in frozen or not p.requires_grad for p in part.parameters()):
        raise PartError(f"prior: expected one with parameters of its own to fit, got {type(part).__name__}")
    _, resume = folders(options.get("checkpoint"), options.get("resume"), options.get("overwrite", False))
    if resume is not None:
        _check_shared(resume, vae)
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        # What is shared is as it was, a part that the caller has set by itself included.
        with same_modes(vae):
            fit(new, train, **options | {"device": vae._beta.device})
            new.train(vae.training)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    new.beta = vae.beta
    return new


def _check_shared(folder: str | Path, vae: VAE) -> None:
    """Raise unless the parts that are shared are those that a state was written with: it would put those in place."""
    stored, _ = checkpoint.read(folder, "training")
    own = {k: v for k, v in vae.state_dict().items() if not k.startswith("prior.") and not k.endswith(".seen")}
    other = [k for k, v in own.items() if f"model.{k}" in stored and not torch.equal(stored[f"model.{k}"], v.cpu())]
    if other:
        raise CheckpointError(
            f"{folder}: expected the model that its prior was fitted to, got another {', '.join(other)}: fit anew, "
            "with overwrite=True or in another folder"
        )


def _check_device(vae: VAE, device: str | torch.device) -> None:
    """Raise for another device than the model's: what is moved elsewhere would be the parts that are shared."""
    own = vae._beta.device
    # One device goes by several names: of a tensor that is there it is one.
    if (found := torch.empty(0, device=find_device(device)).device) != own:
        raise ConfigError(
            f"device: expected the model's own, {own}, as its parts are shared, got {found}: move the model first, "
            f"vae.to({str(found)!r})"
        )


def _context(vae: VAE) -> int | None:
    """How many features c has, where the condition or a part that is given it says so."""
    parts = (vae.condition, vae.encoder, vae.likelihood, vae.prior)
    sizes = (getattr(part, "context", None) for part in parts)
    return next((int(size) for size in sizes if isinstance(size, numbers.Integral) and size), None)

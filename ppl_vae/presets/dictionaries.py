r"""Plain dict ↔ model.

.. math:: \{\texttt{"prior"}: \{\texttt{"name"}: \ldots\}, \ldots\}
    \;\leftrightarrow\; p(z \mid y)\, p(x \mid z, y),\ q(z \mid x, y)

A dictionary can name what is in a table and nothing else, so reading one runs no code but the parts' own.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import nn

from .. import encoders, priors
from ..errors import ConfigError, PartError, known
from ..model import VAE
from ..parts import Chain, Unconditional, kept
from .tables import FLOWS, HANDED_ON, NETWORKS, TABLES, lookup

__all__ = ["build", "complete", "in_order", "make", "to_dict"]


def complete(kind: str, spec: str | Mapping[str, Any], **shared: Any) -> dict[str, Any]:
    """Return a part's dictionary with the arguments it shares with the other parts filled in, where it takes them.

    Raises:
        ConfigError: for a name that is in no table or an option the part does not take; names the nearest.

    Example:
        >>> complete("prior", "Gaussian", features=16, x_shape=(1, 8, 8), context=10)
        {'name': 'Gaussian', 'features': 16, 'context': 10}
    """
    if not isinstance(spec, str | Mapping):
        raise ConfigError(f"{kind}: expected a name or a dict with one, got {type(spec).__name__}")
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    if shared.get("classes") != shared.get("context"):
        # Within a chain the context is more than a label.
        shared.pop("classes", None)
    if given.get("name") == "Unconditional" and set(given) == {"name", "part"}:
        return given | {"part": complete(kind, given["part"], **shared | {"context": 0})}
    if given.get("name") == "Masked" and set(given) == {"name", "part"} and "x_shape" in shared:
        channels, *rest = shared["x_shape"]
        return given | {"part": complete(kind, given["part"], **shared | {"x_shape": (2 * channels, *rest)})}
    cls = lookup(TABLES[kind], given.get("name"), f"{kind} name")
    if cls is Chain:
        return _complete_chain(kind, given, shared)
    # The encoder of a Vamp is the model's, and no option.
    parameters = [option for option in _options(cls) if option != "encoder"]
    for option in given:
        if option != "name" and cls is not priors.Fixed:
            known(f"{kind} {given['name']}", option, parameters)
    return {"name": given["name"]} | {k: v for k, v in shared.items() if k in parameters} | given


def _complete_chain(kind: str, given: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Share the features out between the two parts; the second has those of the first in its context."""
    for option in given:
        if option != "name":
            known(f"{kind} Chain", option, ["first", "second", "features", "context"])
    shared = {**shared, **{key: given[key] for key in ("features", "context") if key in given}}
    specs = [given.get(key) for key in ("first", "second")]
    if not all(isinstance(spec, str | Mapping) for spec in specs):
        raise ConfigError(f"{kind} Chain: expected first and second, each a name or a dict with one, got {specs}")
    first, second = (spec.get("features") if isinstance(spec, Mapping) else None for spec in specs)
    total = shared.get("features", (first or 0) + (second or 0))
    if first is None:
        first = total - total // 2 if second is None else total - second
    second = total - first if second is None else second
    if first + second != total:
        raise ConfigError(f"{kind} Chain: expected features that add up to {total}, got {first} and {second}")
    context = shared.get("context", 0)
    joined = None if context is None else context + first
    halves = {
        "first": complete(kind, specs[0], **shared | {"features": first}),  # type: ignore[arg-type]
        "second": complete(kind, specs[1], **shared | {"features": second, "context": joined}),  # type: ignore[arg-type]
    }
    # Said where it is zero on purpose, or unknown.
    said = context is None or given.get("context") == 0
    return {"name": "Chain"} | halves | ({"context": context} if said else {})


def _options(cls: type) -> list[str]:
    """The names of what a class takes, and for a zuko flow also of what it hands on."""
    takers: list[Callable[..., Any]] = [cls, *(taker for c in cls.__mro__ for taker in HANDED_ON.get(c, ()))]
    takers += [c for c in cls.__mro__[1:] if c in HANDED_ON]
    signatures = [inspect.signature(taker).parameters.values() for taker in takers]
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return list(dict.fromkeys(p.name for parameters in signatures for p in parameters if p.kind not in kinds))


def in_order(specs: Mapping[str, Any]) -> list[str]:
    """The kinds of parts in the order to make them: a prior that holds a Vamp comes after its encoder."""
    return sorted(specs, key=lambda kind: kind == "prior" and _has_vamp(specs[kind]))


def _has_vamp(spec: Any) -> bool:
    inner = spec.values() if isinstance(spec, Mapping) else ()
    return (isinstance(spec, str) and spec == "Vamp") or any(_has_vamp(value) for value in inner)


def make(kind: str, config: Mapping[str, Any], conditional: bool = False, encoder: Any = None) -> Any:
    """Return the part a dictionary describes.

    Arguments:
        kind: "prior", "likelihood", "encoder" or "condition".
        config: the name and the arguments.
        conditional: whether the model has a condition; a part with ``context: 0`` is then wrapped to ignore it.
        encoder: the encoder of the model, for a Vamp; within a chain, the part of it at the same place.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{kind}: expected a dict with a name, got {type(config).__name__}")
    options = dict(config)
    name = options.pop("name", None)
    ignores = conditional and config.get("context", 1) == 0
    if name in ("Unconditional", "Masked"):
        if list(options) != ["part"]:
            raise ConfigError(f"{kind} {name}: expected one option, part, got {list(options)}")
        if name == "Masked":
            return encoders.Masked(make(kind, options["part"], conditional))
        return Unconditional(make(kind, options["part"], encoder=encoder))
    cls = lookup(TABLES[kind], name, f"{kind} name")
    if cls is Chain:
        if set(options) - {"context"} != {"first", "second"}:
            raise ConfigError(f"{kind} Chain: expected two options, first and second, got {list(options)}")
        first, second = (
            make(kind, options[key], conditional and not ignores, getattr(encoder, key, None))
            for key in ("first", "second")
        )
        return Unconditional(Chain(first, second)) if ignores else Chain(first, second)
    positional = options.pop("args", [])
    arguments = {key: _value(key, value) for key, value in options.items()}
    if cls is priors.Fixed:
        positional = [arguments.pop("distribution", None), *_number(positional)]
        arguments = {key: _number(value) for key, value in arguments.items()}
    if cls is priors.Vamp:
        if encoder is None:
            raise ConfigError(
                f"{kind} Vamp: expected the model to have an encoder at the same place (in a Chain, if the Vamp is in "
                "one), got none"
            )
        arguments["encoder"] = encoder
    try:
        part = cls(*positional, **arguments)
    except TypeError as error:
        if isinstance(error, PartError):
            raise
        raise ConfigError(f"{kind} {name}: {error}") from error
    # zuko's flows do not remember how they were made; our own parts do.
    part.__dict__.setdefault("arguments", kept(options))
    return Unconditional(part) if ignores else part


def _value(key: str, value: Any) -> Any:
    if key == "network" and isinstance(value, str):
        return lookup(NETWORKS, value, "network")
    if key == "network" and isinstance(value, Mapping):
        options = {k: v for k, v in value.items() if k != "name"}
        return functools.partial(lookup(NETWORKS, value.get("name"), "network"), **options)
    if key == "flow" and isinstance(value, str | Mapping):
        given = {"name": value} if isinstance(value, str) else dict(value)
        flow = lookup(FLOWS, given.pop("name", None), "flow")
        for option in given:
            known(f"flow {flow.__name__}", option, _options(flow))
        return functools.partial(flow, **given) if given else flow
    if key == "distribution" and isinstance(value, str):
        return lookup(_distributions(), value, "distribution")
    return value


@functools.cache
def _distributions() -> dict[str, type]:
    families = {name: value for name, value in vars(dist).items() if inspect.isclass(value)}
    return {name: cls for name, cls in families.items() if issubclass(cls, torch.distributions.Distribution)}


def _number(value: Any) -> Any:
    """A number, or a list of them, with infinity and NaN read from their names."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_number(v) for v in value]
    return float(value) if isinstance(value, str) and value in ("Infinity", "-Infinity", "NaN") else value


def build(config: Mapping[str, Any]) -> VAE:
    """Return the model that :func:`to_dict` wrote down, with fresh parameters.

    Example:
        >>> build(to_dict(pv.vae((4,), 2))).encode(torch.zeros(3, 4)).shape()
        torch.Size([3, 2])
    """
    parts: dict[str, Any] = {}
    for kind in in_order({kind: config.get(kind) for kind in TABLES}):
        spec = config.get(kind)
        parts[kind] = None if spec is None else make(kind, spec, encoder=parts.get("encoder"))
    return VAE(**parts, beta=config.get("beta", 1.0))


def to_dict(vae: VAE) -> dict[str, Any]:
    """Return the model as a plain dict of names, numbers and lists; its weights are not in it.

    Raises:
        PartError: if a part is not in a table: a function, a module of yours, a zuko flow made by hand.
    """
    if type(vae) is not VAE:
        raise PartError(
            f"expected a VAE, which its parts and β describe, got a {type(vae).__name__}: load such a model with "
            "load(path, into=vae)"
        )
    config: dict[str, Any] = {}
    for kind in TABLES:
        part = getattr(vae, kind)
        config[kind] = None if part is None else _describe(kind, part, vae.encoder)
    # The shortest decimal that is this float32: 0.1, not 0.10000000149.
    own = np.float64 if vae._beta.dtype == torch.float64 else np.float32
    return config | {"beta": float(str(own(vae.beta)))}


def _describe(kind: str, part: Any, encoder: Any) -> dict[str, Any]:
    if isinstance(part, Unconditional):
        return {"name": "Unconditional", "part": _describe(kind, part.part, encoder)}
    if isinstance(part, encoders.Masked):
        return {"name": "Masked", "part": _describe(kind, part.part, encoder)}
    if type(part) is Chain:
        halves = ((key, getattr(part, key), getattr(encoder, key, None)) for key in ("first", "second"))
        return {"name": "Chain"} | {key: _describe(kind, half, of) for key, half, of in halves}
    if isinstance(part, priors.Vamp) and part.encoder is not encoder:
        raise PartError(
            f"{kind}: expected a Vamp of the model's own encoder, got one of another {type(part.encoder).__name__}, "
            "which cannot be written down: give the model the same object, or load with load(path, into=vae)"
        )
    name = next((n for n, cls in TABLES[kind].items() if type(part) is cls), None)
    if name is None or "arguments" not in vars(part):
        raise PartError(
            f"{kind}: expected a part with a name ({', '.join(TABLES[kind])}), got {type(part).__name__}, which "
            f"cannot be written down; make it with presets.make({kind!r}, ...), or load with load(path, into=vae)"
        )
    if lost := _nameless(type(part)) & set(part.arguments):
        raise PartError(
            f"{kind}: expected a part that can be made again from named arguments, got {type(part).__name__} with "
            f"{', '.join(sorted(lost))}: take keywords in its place, or load with load(path, into=vae)"
        )
    return {"name": name} | {key: _plain(f"{kind}.{key}", value) for key, value in part.arguments.items()}


def _nameless(cls: type) -> set[str]:
    """The arguments that :func:`make` cannot hand to a class again: it gives all by name, save ``*args`` in front."""
    parameters = list(inspect.signature(cls).parameters.values())
    places = {p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)}
    in_front = cls is priors.Fixed or any(p.name == "args" and p.kind is p.VAR_POSITIONAL for p in parameters[:1])
    # In a dictionary these two words have a meaning of their own.
    return (places | {"name", "args"}) - ({"args"} if in_front else set())


def _plain(what: str, value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no infinity, and Python's name of it; the open end of a range is read from that.
        return json.dumps(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return _plain(what, value.tolist())
    if isinstance(value, Sequence):
        return [_plain(what, v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(what, v) for k, v in value.items()}
    if isinstance(value, functools.partial) and not value.args:
        return {"name": _plain(what, value.func)} | {k: _plain(what, v) for k, v in value.keywords.items()}
    if inspect.isclass(value) and value in (NETWORKS | FLOWS | _distributions()).values():
        return value.__name__
    kind = "a module" if isinstance(value, nn.Module) else type(value).__name__
    raise PartError(f"{what}: {kind} cannot be written down; load such a model with load(path, into=vae)")

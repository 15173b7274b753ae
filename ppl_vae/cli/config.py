"""What a run is made with: words, over a file of options such as a run's own ``config.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..state import has_state

__all__ = [
    "CHOSEN",
    "NAMED",
    "PARTS",
    "SHARED",
    "as_chosen",
    "as_yaml",
    "in_full",
    "read_yaml",
    "take_config",
    "value_of",
]

PARTS = ("prior", "likelihood", "encoder")
CHOSEN = (*PARTS, "objective")
NAMED = (*CHOSEN, "data")
# What parts share is filled in; these can be typed all the same, to override it.
SHARED: dict[str, Any] = {"features": int, "x_shape": list[int], "context": int, "total_count": int, "levels": int}
SHARED |= {"shift": float, "scale": float, "hidden": list[int] | int}


def in_full(words: list[str]) -> list[str]:
    """Return the words with ``--prior.name`` for ``--prior``, and so on."""
    return [re.sub(rf"^--({'|'.join(NAMED)})(?==|$)", r"--\1.name", word) for word in words]


def value_of(option: str, words: list[str]) -> str | None:
    """Return the value that the words give an option; the last, where it is given several times."""
    for i in reversed(range(len(words))):
        if words[i].startswith(f"--{option}="):
            return words[i].partition("=")[2]
        if words[i] == f"--{option}" and i + 1 < len(words):
            return words[i + 1]
    return None


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Return settings as a file has them."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the options of a file, which is in UTF-8 wherever it is read.

    Raises:
        ConfigError: for a file that is not there, or holds no mapping.
    """
    try:
        config = yaml.safe_load(Path(path).read_bytes())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: expected a YAML file of options: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: expected a mapping of options, got {type(config).__name__}")
    return config


def take_config(words: list[str]) -> dict[str, Any]:
    """Take ``--config FILE`` out of the words; return what the file says, or what a run to be resumed was made with.

    Raises:
        ConfigError: for several files, or one that cannot be read or contradicts itself.
    """
    places = [i for i, word in enumerate(words) if re.match(r"--config(=|$)", word)]
    if len(places) > 1:
        raise ConfigError(f"--config: expected one file, got {len(places)}: put their options into one")
    if places:
        at = places[0]
        file = words[at].partition("=")[2] if "=" in words[at] else "".join(words[at + 1 : at + 2])
        del words[at : at + (1 if "=" in words[at] else 2)]
        if not file:
            raise ConfigError("--config: expected a YAML file of options, got none")
    else:
        out = value_of("out", words) if "--resume" in words else None
        if out is None:
            return {}
        file = str(Path(out, "config.yaml"))
        if not Path(file).is_file():
            if not has_state(out):
                return {}
            raise ConfigError(
                f"--resume: expected a run of ppl-vae train in {out}, with its config.yaml, got one without: "
                "fit(resume=...) goes on with it in Python, or name the options that it had in --config"
            )
    config = read_yaml(file)
    config = {k: {"name": v} if k in NAMED and isinstance(v, str) else v for k, v in config.items()}
    config = {k: v for k, v in config.items() if not (k in PARTS and v is None)}
    for kind in NAMED:
        if not isinstance(config.get(kind, {}), dict):
            raise ConfigError(f"{file}: expected {kind} to be a name or a mapping with one, got {config[kind]!r}")
    latent = {"features": config.get("latent")}
    bodies = latent | {key: config.get(key) for key in ("hidden", "network")}
    parts = {kind: config[kind] for kind in PARTS if kind in config}
    for kind, part in parts.items():
        if config.get("latent") is not None and part.get("features", config["latent"]) != config["latent"]:
            raise ConfigError(
                f"{file}: latent is {config['latent']!r} and {kind}.features {part['features']!r}, which is to be the "
                "same: leave features out of the parts, and it will be"
            )
    return config | {kind: _alone(part, latent if kind == "prior" else bodies) for kind, part in parts.items()}


def as_chosen(part: Mapping[str, Any], typed: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
    """A part without what parts share and nobody typed: who edits ``latent`` in a file means all of them."""
    return _alone(_typed_of(part, typed), shared)


def _typed_of(part: Mapping[str, Any], typed: Any) -> dict[str, Any]:
    """A part without what is filled in, where it was not typed."""
    # A part within a part may have been typed as a name.
    typed = typed if isinstance(typed, Mapping) else {}
    kept = {k: v for k, v in part.items() if k not in (*SHARED, "network") or typed.get(k) is not None}
    return {k: _typed_of(v, typed.get(k)) if isinstance(v, dict) else v for k, v in kept.items()}


def _alone(part: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """A part without what it has from options that parts share, since the words may give these another value."""
    inner = {key: _alone(value, shared) if isinstance(value, dict) else value for key, value in part.items()}
    return {key: value for key, value in inner.items() if key not in shared or value != shared[key]}

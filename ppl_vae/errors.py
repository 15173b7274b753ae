"""What a caller can get wrong: each error says what was expected, what came, and the way out.

Every one is a :class:`ValueError` or a :class:`TypeError` as well as a :class:`PplVaeError`, so code that
catches the built-in keeps working, and ``except PplVaeError`` catches only what this library raised on purpose.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LabelError",
    "NoClosedFormError",
    "NoDensityError",
    "NonFiniteError",
    "PartError",
    "PplVaeError",
    "ShapeError",
    "check_positive",
    "known",
]


class PplVaeError(Exception):
    """The base of every error this library raises on purpose."""


class ConfigError(PplVaeError, ValueError):
    """An option or a configuration key that does not exist or has an impossible value."""


class DataError(PplVaeError, ValueError):
    """Data that a likelihood cannot have generated, or that cannot be found or read."""


class LabelError(PplVaeError, ValueError):
    """A condition y that is missing, unwanted or out of range."""


class ShapeError(PplVaeError, ValueError):
    """A tensor or a network whose shape does not fit."""


class PartError(PplVaeError, TypeError):
    """A prior, likelihood, encoder or condition that is not what the one rule asks for."""


class NoDensityError(PplVaeError, TypeError):
    """A generative question put to a model without a prior, such as a plain autoencoder."""


class NoClosedFormError(PplVaeError, TypeError):
    """A KL divergence that has no closed form where one was asked for."""


class NonFiniteError(PplVaeError, ValueError):
    """A loss or gradient that is NaN or infinite; raised before the update, parameters untouched."""


class CaptureError(PplVaeError, ValueError):
    """A recorded graph that no longer is the program it was recorded from."""


class CheckpointError(PplVaeError, ValueError):
    """A file that is missing, damaged, or does not fit the model it is loaded into."""


def known(what: str, value: object, options: Collection[str], other: str = "") -> None:
    """Raise a :class:`ConfigError` unless a value is one of the options; it names the nearest.

    Example:
        >>> known("prior", "Gausian", ["Gaussian", "Standard"])
        Traceback (most recent call last):
        ppl_vae.errors.ConfigError: prior: expected one of Gaussian, Standard, got 'Gausian'; did you mean 'Gaussian'?
    """
    if isinstance(value, str) and value in options:
        return
    plain = {option.lower().replace("_", "-"): option for option in options}
    close = difflib.get_close_matches(str(value).lower().replace("_", "-"), list(plain), 1, 0.4)
    hint = f"; did you mean {plain[close[0]]!r}?" if close else ""
    listed = ", ".join(sorted(options)) + (f" or {other}" if other else "")
    raise ConfigError(f"{what}: expected one of {listed}, got {value!r}{hint}")


def check_positive(**sizes: object) -> None:
    """Raise a :class:`ConfigError` unless every named size is a whole number of at least one.

    Example:
        >>> check_positive(samples=0)
        Traceback (most recent call last):
        ppl_vae.errors.ConfigError: expected samples to be a whole number ≥ 1, got 0
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"expected {name} to be a whole number ≥ 1, got {size!r}")

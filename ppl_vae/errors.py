"""What a caller can get wrong: each error says what was expected, what came, and the way out.

Every one is a :class:`ValueError` or a :class:`TypeError` as well as a :class:`PplVaeError`, so code that
catches the built-in keeps working, and ``except PplVaeError`` catches only what this library raised on purpose.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Collection, Iterable
from typing import Any

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
    "check_range",
    "check_shape",
    "check_units",
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
        # One of numpy's is as good as Python's.
        if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1:
            raise ConfigError(f"expected {name} to be a whole number ≥ 1, got {size!r}")


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """Return the shape of one x, or y, as a tuple.

    Raises:
        ConfigError: for what is no sequence of whole numbers of at least one, or an empty one.

    Example:
        >>> check_shape("x_shape", 784)
        Traceback (most recent call last):
        ppl_vae.errors.ConfigError: x_shape: expected a shape such as (784,), got 784
    """
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        example = f"({shape},)" if isinstance(shape, numbers.Integral) else "(1, 28, 28)"
        raise ConfigError(f"{name}: expected a shape such as {example}, got {shape!r}")
    sizes = tuple(shape)
    if not sizes:
        raise ConfigError(f"{name}: expected at least one dimension, got (): pass (1,) for one number, x[:, None]")
    check_positive(**{f"{name}[{i}]": size for i, size in enumerate(sizes)})
    return tuple(int(size) for size in sizes)


def check_units(shift: Any, scale: Any) -> tuple[float, float]:
    """Return what standardises a number, as (x − shift) / scale.

    Raises:
        ConfigError: unless these are two finite numbers, of which the scale is positive.

    Example:
        >>> check_units(0.0, float("nan"))
        Traceback (most recent call last):
        ppl_vae.errors.ConfigError: scale: expected a finite number for all pixels, got nan: standardise before
    """
    for name, value in {"shift": shift, "scale": scale}.items():
        # One in a tensor is as good as Python's.
        number = value.item() if getattr(value, "ndim", None) == 0 else value
        if not isinstance(number, numbers.Real) or not math.isfinite(number):
            raise ConfigError(f"{name}: expected a finite number for all pixels, got {value!r}: standardise before")
    if not scale > 0:
        raise ConfigError(f"expected scale > 0, got {scale}")
    return float(shift), float(scale)


def check_range(name: str, ends: Any) -> tuple[float, float]:
    """Return what a number is kept between; an end may be infinite, or the name of that.

    Raises:
        ConfigError: unless these are two numbers, the smaller one first.

    Example:
        >>> check_range("clamp", (2, -6))
        Traceback (most recent call last):
        ppl_vae.errors.ConfigError: clamp: expected (low, high) with low < high, got (2, -6)
    """
    try:
        low, high = (float(end) for end in ends)
        if low < high:
            return low, high
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{name}: expected (low, high) with low < high, got {ends!r}")

"""Data sets by name, by file or from tensors: all that is asked of them in one call."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ConfigError, known
from .arrays import as_split, cut, levels_of
from .pixels import BINARIZE, SCALE, as_data
from .sources import SOURCES, user_arrays
from .splits import PARTS, Data

__all__ = ["from_tensors", "load"]

Array = Tensor | np.ndarray
Pair = tuple[Array, Array | None] | list[Array | None]


def load(
    name: str | Path,
    root: str | Path = "data",
    binarize: str = "none",
    scale: str = "levels",
    seed: int = 777,
) -> Data:
    """A data set by its name, or by the path of an ``.npz`` file.

    A file of one's own holds ``x`` and perhaps ``y``, or ``x_train``, ``y_train``, ``x_valid``, ...; what is
    missing is cut as :func:`from_tensors` does, and keys of other names are ignored. Shapes stay as they are: pixels
    ``(N, H, W)`` have the x_shape ``(H, W)``. The same call gives the same tensors, no global random state is
    touched, and nothing is written but a download of the MNIST family into ``root``.

    Arguments:
        name: a name in the table of :mod:`ppl_vae.data`, or a path.
        root: the folder with the named data sets' files (a path in ``name`` is not looked up there).
        binarize: "none", "threshold", "static" or "dynamic".
        scale: "levels" or "unit"; binarisation gives the same for both.
        seed: of the binary draws and of nothing else.

    Raises:
        ConfigError: an unknown option or name (the nearest is named), or binary pixels to be binarised.
        DataError: a file that is missing or damaged, keys that do not go together, such as ``x_train`` and ``y``, or
            values that cannot be binarised.
        LabelError: labels that are no whole numbers from 0, or that some splits have and others lack.
        ShapeError: arrays that do not fit each other.

    Example:
        >>> load("digits", binarize="threshold").train.x.unique()
        tensor([0., 1.])
    """
    known("binarize", binarize, BINARIZE)
    known("scale", scale, SCALE)
    # A file of another kind that is here has an error of its own.
    here = name not in SOURCES and os.path.isfile(name)
    if isinstance(name, Path) or name.endswith(".npz") or os.sep in name or here:
        arrays = user_arrays(Path(name).expanduser())
        return from_tensors(**arrays, name=str(name), binarize=binarize, scale=scale, seed=seed)
    known("name", name, SOURCES, "a path to an .npz file of your own")
    levels, read = SOURCES[name]
    return as_data(name, read(Path(root).expanduser()), levels, binarize, scale, seed)


def from_tensors(
    x: Array,
    y: Array | None = None,
    *,
    name: str = "tensors",
    binarize: str = "none",
    scale: str = "levels",
    seed: int = 777,
    valid: Array | Pair | None = None,
    test: Array | Pair | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Data:
    """A data set from the user's own tensors or arrays, copied to float32 on the CPU.

    Floating point is real-valued. Integers are counts (exact up to 2²⁴), and their dtype declares the levels:
    bool 2; uint8 256, but 2 where no value exceeds 1; others one more than the largest value. With negative
    integers data are real-valued. ``classes`` is one more than the largest label in any split.

    Arguments:
        x: pixels ``(N, *x_shape)`` of any real dtype.
        y: labels ``(N,)``, whole numbers from 0, or None.
        name: what ``describe()`` calls the data set.
        binarize: as in :func:`load`; real-valued data must lie in [0, 1], and are then the probabilities.
        scale: as in :func:`load`; valid and test may leave [0, 1] where data are real-valued.
        seed: of the binary draws and of nothing else.
        valid: validation rows, x or (x, y), a tuple or a list; cut from x by a fixed permutation if None.
        test: test rows, likewise.
        split: the fractions of x for train, valid and test, where they are cut.

    Raises:
        ConfigError: an unknown option, or fractions that do not sum to 1.
        DataError: no rows, no numbers, NaN or infinite values, or values that cannot be binarised.
        LabelError: labels that are no whole numbers from 0, or that some splits have and others lack.
        ShapeError: x, y and the splits do not fit each other.

    Example:
        >>> from_tensors(torch.arange(40).reshape(20, 2), torch.arange(20) % 3)
        Data(name='tensors', x_shape=[2], classes=3, range=[0.0, 39.0], levels=40, binarization='none',
        sizes={'train': 16, 'valid': 2, 'test': 2})
    """
    known("binarize", binarize, BINARIZE)
    known("scale", scale, SCALE)
    if len(split) != 3 or min(split) < 0 or not math.isclose(sum(split), 1):
        raise ConfigError(f"expected three fractions (train, valid, test) that sum to 1, got split={split}")
    whole, xs = as_split(x, y), [x]
    fractions = [fraction if given is None else 0 for given, fraction in ((valid, split[1]), (test, split[2]))]
    splits = cut(whole, *(round(len(whole) * fraction) for fraction in fractions))
    for at, given in ((1, valid), (2, test)):
        if given is not None:
            pair: Any = given if _is_pair(given) else (given, None)
            held_x, held_y = pair
            splits[at] = as_split(held_x, held_y, f"x of {PARTS[at]}")
            xs.append(held_x)
    return as_data(name, splits, levels_of(xs), binarize, scale, seed)


def _is_pair(given: Any) -> bool:
    """Whether these are rows x and their y, of fewer dimensions; a list of rows that are alike is x."""
    if not isinstance(given, list) or len(given) != 2:
        return isinstance(given, tuple)
    x, y = given
    return y is None or np.ndim(x) > np.ndim(y)

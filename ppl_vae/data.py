"""Named data sets as tensors with fixed splits; nothing learns here.

===============  ===========  =======  ======  =====================  ======================================
name             shape        classes  levels  train / valid / test   source, under ``root``
===============  ===========  =======  ======  =====================  ======================================
digits           (1, 8, 8)    10       16      1297 / 250 / 250       scikit-learn's ``load_digits``: no file
mnist            (1, 28, 28)  10       255     50000 / 10000 / 10000  ``MNIST/raw`` in torchvision's layout
fashion-mnist    (1, 28, 28)  10       255     50000 / 10000 / 10000  ``FashionMNIST/raw``, the same
kmnist           (1, 28, 28)  10       255     50000 / 10000 / 10000  ``KMNIST/raw``, the same
binarized-mnist  (1, 28, 28)  none     1       50000 / 10000 / 10000  ``binarized_mnist_packed.npz``
omniglot         (1, 28, 28)  none     255     23000 / 1345 / 8115    ``omniglot_28.npz``
frey-faces       (1, 28, 20)  none     255     1565 / 200 / 200       ``frey_faces.npz``
a path           any          any      any     as stored, or cut      the user's ``.npz``
===============  ===========  =======  ======  =====================  ======================================

**Splits.** Of the MNIST family the last 10,000 training images, in file order, validate. ``binarized-mnist``
is Larochelle's own three parts (each ``np.packbits(pixels, axis=1)``). All else is cut by the permutation of
``numpy.random.RandomState(0)``, whose stream numpy has frozen: a split does not depend on ``seed``. For
``omniglot`` that cuts the validation part from the training drawings; neither it nor the drawings are those
of Burda et al. (2016), so likelihoods do not compare with published ones. ``frey-faces`` is a video, and its
permutation puts frames that are nearly alike into different splits.

**Units.** ``scale="levels"`` keeps pixels as stored, in float32. ``scale="unit"`` divides by the largest
level a pixel can have (not the largest seen), or maps the training range of real-valued data to [0, 1].

**Binarisation.** With p the pixel over its largest level, ``"threshold"`` keeps p ≥ ½, ``"static"`` draws
each pixel once from Bernoulli(p), and ``"dynamic"`` leaves p in the training split, to be drawn afresh
whenever it is trained on, with the ``"static"`` draw in valid and test. The draws of train, valid and test
come from ``RandomState([seed, k])``, k = 0, 1, 2, so that none depends on the size of another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import http.client
import io
import math
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ConfigError, DataError, LabelError, ShapeError

__all__ = ["Data", "Split", "check_finite", "from_tensors", "load"]

Array = Tensor | np.ndarray

PARTS = ("train", "valid", "test")
BINARIZE = ("none", "threshold", "static", "dynamic")
SCALE = ("levels", "unit")
IDX = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


@dataclass(frozen=True, eq=False, repr=False)
class Split(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """Rows of one part of a data set: pixels, and labels where there are any.

    Arguments:
        x: pixels ``(N, *x_shape)``, floating point.
        y: labels ``(N,)``, int64, or None.
        binarize: "none", or "dynamic": x holds probabilities, and whoever trains on a row first draws its 0/1
            pixels from them. Indexing gives x as it is.

    Raises:
        ShapeError: x has no pixel dimension, or y is not one label a row.
        ConfigError: binarize is neither of the two.

    Example:
        >>> Split(torch.zeros(5, 3), torch.arange(5)).subset([4, 0])[0]
        (tensor([0., 0., 0.]), tensor(4))
    """

    x: Tensor
    y: Tensor | None = None
    binarize: str = "none"

    def __post_init__(self) -> None:
        _known("binarize", self.binarize, ("none", "dynamic"))
        shape = tuple(self.x.shape)
        if len(shape) < 2:
            raise ShapeError(f"expected x of shape (N, *x_shape), got {shape}: pass x[:, None] for one pixel a row")
        if self.y is not None and tuple(self.y.shape) != shape[:1]:
            raise ShapeError(
                f"expected y of shape {shape[:1]}, a label for each row of x, got {tuple(self.y.shape)}: "
                "turn one-hot rows into labels with y.argmax(1)"
            )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return (self.x[i],) if self.y is None else (self.x[i], self.y[i])

    def __repr__(self) -> str:
        labels = "no labels" if self.y is None else "labels"
        return f"Split({len(self)} rows of {tuple(self.x.shape[1:])}, {labels}, binarize={self.binarize!r})"

    def subset(self, rows: slice | Sequence[int] | np.ndarray | Tensor) -> Split:
        """The given rows, by a slice (which shares memory) or by indices (which copies)."""
        at = rows if isinstance(rows, slice) else torch.as_tensor(rows)
        return dataclasses.replace(self, x=self.x[at], y=None if self.y is None else self.y[at])

    def head(self, n: int) -> Split:
        """The first n rows, or all of them where there are fewer."""
        if n < 1:
            raise ConfigError(f"expected at least one row, got head({n})")
        return self.subset(slice(n))


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set in three splits, and what its pixels are.

    Arguments:
        name: the name or path it was loaded by.
        train: rows to learn from.
        valid: rows to choose by; empty only where a user's data were too few to cut.
        test: rows to report on; likewise.
        classes: number of labels, or None without labels.
        range: smallest and largest value a pixel may take (of real-valued data: takes in the training split).
        binarization: what loading did: "none", "threshold", "static" or "dynamic".
        levels: the largest integer count of a pixel; 1 for binary pixels, None for real-valued ones.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    classes: int | None
    range: tuple[float, float]
    binarization: str
    levels: int | None

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.train.x.shape[1:])

    def head(self, n: int) -> Data:
        """The same data set with the first n rows of every split."""
        train, valid, test = self.train.head(n), self.valid.head(n), self.test.head(n)
        return dataclasses.replace(self, train=train, valid=valid, test=test)

    def describe(self) -> dict[str, Any]:
        """The facts as plain JSON values, for the config and the history of a run.

        Example:
            >>> load("digits").describe()["sizes"]
            {'train': 1297, 'valid': 250, 'test': 250}
        """
        return {
            "name": self.name,
            "x_shape": list(self.x_shape),
            "classes": self.classes,
            "range": list(self.range),
            "levels": self.levels,
            "binarization": self.binarization,
            "sizes": {part: len(getattr(self, part)) for part in PARTS},
        }

    def __repr__(self) -> str:
        name, *facts = (f"{key}={value!r}" for key, value in self.describe().items())
        return f"Data({', '.join([name, *facts])})"


def load(
    name: str | Path,
    root: str | Path = "data",
    binarize: str = "none",
    scale: str = "levels",
    seed: int = 777,
) -> Data:
    """A data set by its name, or by the path of an ``.npz`` file.

    A file of one's own holds ``x`` and perhaps ``y``, or ``x_train``, ``y_train``, ``x_valid``, ...; what is
    missing is cut as :func:`from_tensors` does, and other keys are ignored. Shapes stay as they are: pixels
    ``(N, H, W)`` have the x_shape ``(H, W)``. The same call gives the same tensors, no global random state is
    touched, and nothing is written but a download of the MNIST family into ``root``.

    Arguments:
        name: a name in the table above, or a path.
        root: the folder with the named data sets' files (a path in ``name`` is not looked up there).
        binarize: "none", "threshold", "static" or "dynamic".
        scale: "levels" or "unit"; binarisation gives the same for both.
        seed: of the binary draws and of nothing else.

    Raises:
        ConfigError: an unknown option or name (the nearest is named), or binary pixels to be binarised.
        DataError: a file that is missing or damaged, or values that cannot be binarised.
        LabelError: labels that are no whole numbers from 0, or that some splits have and others lack.
        ShapeError: arrays that do not fit each other.

    Example:
        >>> load("digits", binarize="threshold").train.x.unique()
        tensor([0., 1.])
    """
    _known("binarize", binarize, BINARIZE)
    _known("scale", scale, SCALE)
    if isinstance(name, Path) or name.endswith(".npz") or os.sep in name:
        arrays = _user_arrays(Path(name).expanduser())
        return from_tensors(**arrays, name=str(name), binarize=binarize, scale=scale, seed=seed)
    _known("name", name, _SETS, "a path to an .npz file of your own")
    levels, read = _SETS[name]
    return _data(name, read(Path(root).expanduser()), levels, binarize, scale, seed)


def from_tensors(
    x: Array,
    y: Array | None = None,
    *,
    name: str = "tensors",
    binarize: str = "none",
    scale: str = "levels",
    seed: int = 777,
    valid: Array | tuple[Array, Array | None] | None = None,
    test: Array | tuple[Array, Array | None] | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> Data:
    """A data set from the user's own tensors or arrays, copied to float32 on the CPU.

    Floating point is real-valued. Integers are counts (exact up to 2²⁴), and their dtype declares the levels:
    bool 1; uint8 255, but 1 where no value exceeds 1; others the largest value. With negative integers data
    are real-valued. ``classes`` is one more than the largest label in any split.

    Arguments:
        x: pixels ``(N, *x_shape)`` of any real dtype.
        y: labels ``(N,)``, whole numbers from 0, or None.
        name: what ``describe()`` calls the data set.
        binarize: as in :func:`load`; real-valued data must lie in [0, 1], and are then the probabilities.
        scale: as in :func:`load`; valid and test may leave [0, 1] where data are real-valued.
        seed: of the binary draws and of nothing else.
        valid: validation rows, x or (x, y); cut from x by a fixed permutation if None.
        test: test rows, likewise.
        split: the fractions of x for train, valid and test, where they are cut.

    Raises:
        ConfigError: an unknown option, or fractions that do not sum to 1.
        DataError: no rows, no numbers, NaN or infinite values, or values that cannot be binarised.
        LabelError: labels that are no whole numbers from 0, or that some splits have and others lack.
        ShapeError: x, y and the splits do not fit each other.

    Example:
        >>> from_tensors(torch.arange(40).reshape(20, 2), torch.arange(20) % 3)
        Data(name='tensors', x_shape=[2], classes=3, range=[0.0, 39.0], levels=39, binarization='none',
        sizes={'train': 16, 'valid': 2, 'test': 2})
    """
    _known("binarize", binarize, BINARIZE)
    _known("scale", scale, SCALE)
    if len(split) != 3 or min(split) < 0 or not math.isclose(sum(split), 1):
        raise ConfigError(f"expected three fractions (train, valid, test) that sum to 1, got split={split}")
    whole, pixels = _split(x, y), [_numbers(x)]
    cut = [fraction if given is None else 0 for given, fraction in ((valid, split[1]), (test, split[2]))]
    splits = _cut(whole, *(round(len(whole) * fraction) for fraction in cut))
    for at, given in ((1, valid), (2, test)):
        if given is not None:
            held_x, held_y = given if isinstance(given, tuple) else (given, None)
            splits[at] = _split(held_x, held_y, f"x of {PARTS[at]}")
            pixels.append(_numbers(held_x))
    return _data(name, splits, _levels(pixels), binarize, scale, seed)


def check_finite(x: Tensor, what: str = "x") -> None:
    """Refuse NaN and infinite values, and say how many there are and where the first is.

    Arguments:
        x: ``(N, *x_shape)``.
        what: what the error calls it.

    Raises:
        DataError: naming the row and the pixel in it.

    Example:
        >>> check_finite(torch.tensor([[0.0, 1.0], [2.0, float("nan")]]))
        Traceback (most recent call last):
        ppl_vae.errors.DataError: expected finite x, got 1 value that is not,
        the first nan at row 1, pixel (1,): ...
    """
    finite = x.isfinite()
    if finite.all():
        return
    bad = finite.numel() - int(finite.sum())
    values = "value that is" if bad == 1 else "values that are"
    row, *pixel = (int(i) for i in np.unravel_index(int(finite.flatten().int().argmin()), x.shape))
    raise DataError(
        f"expected finite {what}, got {bad} {values} not, the first {x[(row, *pixel)].item()} at row {row}, "
        f"pixel {tuple(pixel)}: leave such rows out, or where pixels are missing put any finite value in and "
        "pass a mask"
    )


def _known(what: str, value: object, known: Collection[str], other: str = "") -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value).lower().replace("_", "-"), known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        options = ", ".join(map(repr, known)) + (f" or {other}" if other else "")
        raise ConfigError(f"expected {what} to be one of {options}, got {value!r}{hint}")


# From arrays to splits.


def _numbers(a: Any, what: str = "x", error: type[ValueError] = DataError) -> np.ndarray:
    """Real numbers of any kind as a numpy array, without a copy where that is possible."""
    if isinstance(a, Tensor):
        a = a.detach().cpu()
        a = a.float() if a.is_floating_point() else a  # numpy has no bfloat16
    a = np.asarray(a)
    if a.dtype.kind not in "biuf":
        raise error(f"expected {what} to hold real numbers, got dtype {a.dtype}: turn it into numbers first")
    return a


def _split(x: Any, y: Any = None, what: str = "x") -> Split:
    pixels = _numbers(x, what)
    if not pixels.size:
        raise DataError(f"expected {what} to have rows and pixels, got shape {pixels.shape}: it is empty")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and check_finite says where
        split = Split(torch.from_numpy(pixels.astype(np.float32)), None if y is None else _labels(y))
    check_finite(split.x, what)
    return split


def _labels(y: Any) -> Tensor:
    labels = _numbers(y, "y", LabelError)
    fit = np.isfinite(labels) & (labels == np.floor(labels)) & (labels >= 0)
    if not fit.all():
        row = int(fit.argmin())
        raise LabelError(
            f"expected labels to be whole numbers from 0, got {labels.flat[row]} in row {row}: "
            "number the classes with numpy.unique(y, return_inverse=True)[1]"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _levels(pixels: list[np.ndarray]) -> int | None:
    """The largest count that dtypes declare, or None for real-valued data."""
    if any(a.dtype.kind == "f" or a.min() < 0 for a in pixels):
        return None
    largest = max(1, *(int(a.max()) for a in pixels))
    return 255 if largest > 1 and all(a.dtype == np.uint8 for a in pixels) else largest


def _cut(whole: Split, valid: int, test: int) -> list[Split]:
    """The rest, valid and test rows, disjoint, by one fixed permutation; in order if nothing is cut."""
    train = len(whole) - valid - test
    if train < 1:
        raise DataError(f"expected more rows than the {valid + test} for valid and test, got {len(whole)}")
    order = np.random.RandomState(0).permutation(len(whole)) if valid + test else np.arange(len(whole))
    return [whole.subset(rows) for rows in np.split(order, [train, train + valid])]


# From splits to a data set.


def _data(name: str, splits: list[Split], levels: int | None, binarize: str, scale: str, seed: int) -> Data:
    if levels == 1 and binarize != "none":
        raise ConfigError(f"expected binarize='none', got {binarize!r}: the pixels of {name} are 0 and 1 already")
    first = splits[0]
    for part, split in zip(PARTS, splits, strict=True):
        if split.x.shape[1:] != first.x.shape[1:]:
            shapes = [tuple(s.x.shape[1:]) for s in (first, split)]
            raise ShapeError(f"expected rows of {shapes[0]} as in train, got {shapes[1]} in {part}: reshape them")
        if (split.y is None) != (first.y is None):
            raise LabelError(f"expected labels in every split or none, got train and {part} differ: pass (x, y)")
    labels = [int(split.y.max()) for split in splits if split.y is not None and len(split)]
    low, high = (0.0, float(levels)) if levels else (float(first.x.min()), float(first.x.max()))
    if scale == "unit" and levels != 1:
        width = high - low or 1.0  # constant pixels become 0
        splits = [dataclasses.replace(split, x=(split.x - low) / width) for split in splits]
        low, high, levels = 0.0, 1.0, None
    if binarize != "none":
        splits = [_binary(split, part, levels or 1, binarize, seed) for split, part in zip(splits, PARTS, strict=True)]
        low, high, levels = 0.0, 1.0, 1
    train, valid, test = splits
    classes = 1 + max(labels) if labels else None
    return Data(name, train, valid, test, classes, (low, high), binarize, levels)


def _binary(split: Split, part: str, top: int, how: str, seed: int) -> Split:
    """The split with 0/1 pixels, or with their probabilities where training is to draw them."""
    p = split.x / top
    if ((p < 0) | (p > 1)).any():
        raise DataError(
            f"expected values in [0, 1] to binarise, got {p.min():g} to {p.max():g} in {part}: map them "
            "there (scale='unit' does, by the training range), pass integer counts, or binarize='none'"
        )
    if how == "threshold":
        return dataclasses.replace(split, x=(p >= 0.5).float())
    if how == "dynamic" and part == "train":
        return dataclasses.replace(split, x=p, binarize="dynamic")
    return dataclasses.replace(split, x=_draw(p, seed, PARTS.index(part)))


def _draw(p: Tensor, seed: int, stream: int) -> Tensor:
    """One Bernoulli draw, in pieces because the float64 uniforms for all of MNIST would take 300 MB."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"expected a seed from 0 to 2³² - 1, got {seed}")
    state = np.random.RandomState([seed, stream])
    return torch.cat([(torch.from_numpy(state.random_sample(q.shape)) < q).float() for q in p.split(4096)])


# From files to splits.


def _digits(root: Path) -> list[Split]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return _cut(_split(bunch.images[:, None], bunch.target), 250, 250)


def _mnist(kind: str, root: Path) -> list[Split]:
    """One of the MNIST family, read here because torchvision would unpickle an old ``processed/*.pt``."""
    folder = root / kind / "raw"
    if not all(os.path.isfile(folder / file) for file in IDX):
        _download(kind, root)
    x, y, test_x, test_y = (_idx(folder / file, shape) for file, shape in IDX.items())
    whole, test = _split(x[:, None], y), _split(test_x[:, None], test_y)
    return [whole.subset(slice(-10_000)), whole.subset(slice(-10_000, None)), test]


def _idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """One idx file of bytes: a magic number, the sizes, the values."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"expected to read {path}, got {error}: mend it, or pass another root") from error
    head = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
    if not raw.startswith(head) or len(raw) != len(head) + math.prod(shape):
        raise DataError(
            f"expected {path} to be an uncompressed idx file of {shape} bytes, got {len(raw)} bytes that "
            f"start with {raw[: len(head)].hex() or 'nothing'}: delete it, and it is downloaded again"
        )
    return np.frombuffer(raw, np.uint8, offset=len(head)).reshape(shape)


def _download(kind: str, root: Path) -> None:
    """Torchvision's download, moved into place when complete: one that fails leaves nothing behind."""
    from torchvision import datasets

    folder = root.absolute() / kind / "raw"
    nearest = next(parent for parent in folder.parents if parent.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=nearest) as new, contextlib.redirect_stderr(io.StringIO()):
            getattr(datasets, kind)(new, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for file in IDX:
                os.replace(Path(new, kind, "raw", file), folder / file)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"expected {', '.join(IDX)} in {folder}, got no such files and no download ({reason}): put them "
            "there uncompressed, pass the root that holds them, or load 'digits', which needs no file"
        ) from error


def _binarized_mnist(root: Path) -> list[Split]:
    packed = _npz(root / "binarized_mnist_packed.npz", PARTS, (98,))
    return [_split(np.unpackbits(packed[part], axis=1).reshape(-1, 1, 28, 28)) for part in PARTS]


def _omniglot(root: Path) -> list[Split]:
    drawings = _npz(root / "omniglot_28.npz", ("train", "test"), (28, 28))
    return [*_cut(_split(drawings["train"][:, None]), 1345, 0)[:2], _split(drawings["test"][:, None])]


def _frey_faces(root: Path) -> list[Split]:
    return _cut(_split(_npz(root / "frey_faces.npz", ("x",), (28, 20))["x"][:, None]), 200, 200)


def _user_arrays(path: Path) -> dict[str, Any]:
    """The arguments of from_tensors that a user's file holds."""
    arrays = _npz(path, [letter + part for letter in "xy" for part in ("", "_train", "_valid", "_test")])
    end = "_train" if "x_train" in arrays else ""
    if f"x{end}" not in arrays:
        raise DataError(f"expected pixels under the key x or x_train in {path}, got neither: rename the key")
    held = {part: (arrays[f"x_{part}"], arrays.get(f"y_{part}")) for part in PARTS[1:] if f"x_{part}" in arrays}
    return {"x": arrays[f"x{end}"], "y": arrays.get(f"y{end}"), **held}


# What numpy and zipfile raise on files that are missing, cut short, altered, or claim an absurd size.
_DAMAGED: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, TypeError, RuntimeError)
_DAMAGED += (MemoryError, OverflowError, zipfile.BadZipFile, zlib.error)


def _npz(path: Path, keys: Sequence[str], row: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
    """Those of the keys that a file has, nothing unpickled; with row, all of them as rows of bytes."""
    try:
        # Opened here because numpy, given a path, leaves a damaged file open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in keys if key in file.files}
    except _DAMAGED as error:
        raise DataError(
            f"expected an .npz file of plain arrays at {path}, got {type(error).__name__} ({error}): mend "
            "the path or root, or write the file again with numpy.savez"
        ) from error
    for key in keys if row else ():
        got = (str(arrays[key].dtype), *arrays[key].shape) if key in arrays else ("nothing",)
        if got[0] != "uint8" or got[2:] != row:
            raise DataError(f"expected {key} in {path} to be ('uint8', N, *{row}), got {got}: see ppl_vae.data")
    return arrays


_SETS: dict[str, tuple[int, Callable[[Path], list[Split]]]] = {
    "digits": (16, _digits),
    "mnist": (255, partial(_mnist, "MNIST")),
    "fashion-mnist": (255, partial(_mnist, "FashionMNIST")),
    "kmnist": (255, partial(_mnist, "KMNIST")),
    "binarized-mnist": (1, _binarized_mnist),
    "omniglot": (255, _omniglot),
    "frey-faces": (255, _frey_faces),
}

"""Units and binarisation: splits as they were read become the data set that the caller asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError, LabelError, ShapeError
from .splits import BINARIZE, PARTS, Data, Split

__all__ = ["BINARIZE", "SCALE", "as_data"]

SCALE = ("levels", "unit")


def as_data(name: str, splits: list[Split], levels: int | None, binarize: str, scale: str, seed: int) -> Data:
    """The data set of three splits that fit each other, in the units and with the binary draws asked for."""
    if levels == 2 and binarize != "none":
        raise ConfigError(f"expected binarize='none', got {binarize!r}: the pixels of {name} are 0 and 1 already")
    first = splits[0]
    for part, split in zip(PARTS, splits, strict=True):
        if split.x.shape[1:] != first.x.shape[1:]:
            shapes = [tuple(s.x.shape[1:]) for s in (first, split)]
            raise ShapeError(f"expected rows of {shapes[0]} as in train, got {shapes[1]} in {part}: reshape them")
        if (split.y is None) != (first.y is None):
            raise LabelError(f"expected labels in every split or none, got train and {part} differ: pass (x, y)")
    labels = [int(split.y.max()) for split in splits if split.y is not None and len(split)]
    low, high = (0.0, float(levels - 1)) if levels else (float(first.x.min()), float(first.x.max()))
    if scale == "unit" and levels != 2:
        width = high - low or 1.0  # constant pixels become 0
        splits = [dataclasses.replace(split, x=(split.x - low) / width) for split in splits]
        low, high, levels = 0.0, 1.0, None
    if binarize != "none":
        splits = [
            _binary(split, part, (levels or 2) - 1, binarize, seed) for split, part in zip(splits, PARTS, strict=True)
        ]
        low, high, levels = 0.0, 1.0, 2
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
        return dataclasses.replace(split, x=(p >= 0.5).float(), binarize=how)
    if how == "dynamic" and part == "train":
        return dataclasses.replace(split, x=p, binarize="dynamic")
    return dataclasses.replace(split, x=_draw(p, seed, PARTS.index(part)), binarize="static")


def _draw(p: Tensor, seed: int, stream: int) -> Tensor:
    """One Bernoulli draw, in pieces because the float64 uniforms for all of MNIST would take 300 MB."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"expected a seed from 0 to 2³² - 1, got {seed}")
    state = np.random.RandomState([seed, stream])
    return torch.cat([(torch.from_numpy(state.random_sample(q.shape)) < q).float() for q in p.split(4096)])

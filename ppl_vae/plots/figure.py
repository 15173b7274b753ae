"""What every picture shares: its sizes and colours, how arguments are read, and :func:`save`."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import DataError, ShapeError

__all__ = [
    "COLOURS",
    "DPI",
    "INK",
    "PALE",
    "TEXT",
    "Labels",
    "Picture",
    "as_names",
    "as_numbers",
    "dress",
    "empty",
    "misfit",
    "save",
]

Labels = Sequence[Any] | np.ndarray | Tensor

COLOURS = ["#332288", "#ee7733", "#117733", "#88ccee", "#cc6677"]
COLOURS += ["#ddcc77", "#aa4499", "#44aa99", "#882255", "#999933"]
INK, PALE = "0.15", "0.72"
DPI, TEXT = 200, 8  # dots an inch; points
FORMATS = (".png", ".pdf", ".svg")


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG (or, by the name's ending, PDF or SVG): the whole file or, on a fault, none.

    Arguments:
        figure: Any figure.
        path: The file; missing folders are made, an existing file is replaced in one step.

    Returns:
        The path.

    Raises:
        DataError: If the name ends otherwise.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise DataError(f"expected a name that ends in {', '.join(FORMATS)}, got {path.name!r}; rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")  # the same folder, hence the same file system
    try:
        figure.savefig(draft, format=ending[1:])
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


class Picture(Figure):
    """A figure that a notebook shows where it is the last line of a cell, as it would one of pyplot's."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def empty(width: float, height: float, title: str) -> Figure:
    """A figure without axes, laid out around those it gets."""
    figure = Picture((width, height), dpi=DPI, layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=TEXT + 2, color=INK)
    return figure


def dress(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Name the axes and give them the one look."""
    ax.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    ax.set_ylabel(ylabel, fontsize=TEXT, color=INK)
    ax.tick_params(labelsize=TEXT - 1, labelcolor=INK, color=INK)
    ax.spines[:].set_color(INK)
    ax.spines[["top", "right"]].set_visible(False)


def as_numbers(values: Any) -> Tensor:
    """Plain float64 numbers on the CPU (`cpu` first: not every device has float64)."""
    return torch.as_tensor(values).detach().cpu().double()


def as_names(labels: Labels, count: int, what: str) -> list[str]:
    """The labels as text, after checking that there are `count` of them."""
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if len(values) != count or any(isinstance(value, list) for value in values):
        raise ShapeError(f"expected {count} {what}, got {len(values)}: {str(values)[:60]}; give a flat list")
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in values]


def misfit(expected: str, *got: Tensor, out: str) -> ShapeError:
    """The error of shapes that do not fit."""
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in got)
    return ShapeError(f"expected {expected}, got {shapes}; {out}")

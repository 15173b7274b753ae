"""Tensors as tiles of colour, and tiles in rows and columns on one canvas whose pixels stay sharp."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from ..errors import DataError
from .figure import DPI, INK, TEXT, Labels, Picture, as_names, as_numbers, dress, misfit

__all__ = ["Range", "paint", "sheet", "wrap"]

Range = tuple[float, float]

MISSING = (0.75, 0.85, 0.95)
TILE, PAGE = 0.5, 7.0  # inches an image aims at; inches a sheet of them stays within


def paint(images: Tensor, lead: int, vrange: Range | None, expected: str) -> Tensor:
    """`(*lead, *x_shape)` as colours `(*lead, H, W, 3)` in [0, 1]."""
    x = as_numbers(images)
    if x.ndim == lead + 1:
        side = math.isqrt(x.shape[-1])
        if side * side != x.shape[-1]:
            raise misfit(f"{expected} with flat x of square length", images, out="reshape x to (H, W)")
        x = x.unflatten(-1, (side, side))
    if x.ndim == lead + 2:
        x = x.unsqueeze(-3)
    if x.ndim != lead + 3 or x.shape[lead] not in (1, 3) or not x.numel():
        out = "x_shape is (1, H, W), (H, W), (3, H, W) or a flat square (D,)"
        raise misfit(f"a non-empty batch of {expected}", images, out=out)
    if vrange is None:
        seen = x[x.isfinite()]
        low, high = (seen.min().item(), seen.max().item()) if len(seen) else (0.0, 1.0)
        high = high if high > low else low + 1.0
    else:
        low, high = map(float, vrange)
        if not low < high:
            raise DataError(f"expected vrange (lo, hi) with lo < hi, got {vrange}; left out it is min, max")
    u = ((x - low) / (high - low)).clamp(0, 1).movedim(-3, -1)
    return torch.where(u.isnan(), u.new_tensor(MISSING), u)  # grey becomes three colours by broadcasting


def wrap(tiles: Tensor, columns: int, rows: int = 1) -> Tensor:
    """`(N, H, W, 3)` row by row as `(R, columns, H, W, 3)`, white where there is none left."""
    rows = max(rows, -(-len(tiles) // columns))
    blank = tiles.new_ones(rows * columns - len(tiles), *tiles.shape[1:])
    return torch.cat([tiles, blank]).unflatten(0, (rows, columns))


def _starts(count: int, pitch: int, blocks: Collection[int], gap: int) -> np.ndarray:
    """The first pixel of each of `count` tiles: one every `pitch`, and `gap` more before each block."""
    return np.arange(count) * pitch + gap * np.cumsum([i in blocks for i in range(count)])


def sheet(
    tiles: Tensor,
    title: str,
    rows: Labels | None = None,
    columns: Labels | None = None,
    *,
    xlabel: str = "",
    ylabel: str = "",
    top: bool = True,
    row_blocks: Collection[int] = (),
    column_blocks: Collection[int] = (),
    captions: Mapping[tuple[int, int], str] | None = None,
) -> Figure:
    """Tiles `(R, C, H, W, 3)` on one canvas: a single `imshow` is far faster than R C axes."""
    R, C, H, W, _ = tiles.shape
    row_names = [] if rows is None else as_names(rows, R, "labels, one a row")
    column_names = [] if columns is None else as_names(columns, C, "labels, one a column")
    frame = max(1, max(H, W) // 32)
    top_of = _starts(R, H + frame, row_blocks, -(-H // 2) if captions else -(-H // 4))
    left_of = _starts(C, W + frame, column_blocks, -(-W // 3))
    canvas = np.ones((top_of[-1] + H, left_of[-1] + W, 3), dtype=np.float32)
    for r, t in enumerate(top_of):
        for c, left in enumerate(left_of):
            canvas[t : t + H, left : left + W] = tiles[r, c].numpy()

    # A whole number of dots a pixel where they fit: unequal pixels look like noise.
    scale = min(DPI * TILE / max(H, W), DPI * PAGE / max(canvas.shape))
    scale = math.floor(scale) if scale >= 1 else scale
    figure = Picture((canvas.shape[1] * scale / DPI, canvas.shape[0] * scale / DPI), dpi=DPI)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(canvas, origin="upper", interpolation="nearest" if scale >= 1 else "antialiased")
    dress(ax, xlabel, ylabel)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0 if top else 2, pad=3, labelsize=TEXT)
    ax.tick_params(top=False, labeltop=top, bottom=not top, labelbottom=not top)
    ax.set_title(title, loc="left", fontsize=TEXT + 2, color=INK, pad=16 if captions else 6)

    ax.set_yticks(*_ticks(row_names, top_of + (H - 1) / 2, H * scale))
    ax.set_xticks(*_ticks(column_names, left_of + (W - 1) / 2, math.inf))
    if top and _widest(ax.get_xticklabels()) > W * scale:
        ax.set_xticks(*_ticks(column_names, left_of + (W - 1) / 2, W * scale))
        for label in ax.get_xticklabels():
            label.set(rotation=45, ha="left", rotation_mode="anchor")
    texts = []
    for (r, c), name in (captions or {}).items():
        x, y = left_of[c] + (W - 1) / 2, top_of[r] - 1
        texts.append(ax.text(x, y, name, ha="center", va="bottom", fontsize=TEXT, color=INK))
    shrink = min(1, W * scale / max(1, _widest(texts)))
    for text in texts:
        text.set_fontsize(TEXT * shrink)
    return _fit(figure, ax)


def _widest(texts: Iterable[Text]) -> float:
    return max((text.get_window_extent().width for text in texts if text.get_text()), default=0)


def _ticks(names: list[str], centres: np.ndarray, room: float) -> tuple[list[float], list[str]]:
    """Where the labels, if any, are and what they say; every n-th where `room` dots are too few for a line."""
    every = max(1, math.ceil(1.2 * TEXT / 72 * DPI / room))
    kept = [(float(centre), name) for centre, name in zip(centres, names, strict=False) if name][::every]
    return [centre for centre, _ in kept], [name for _, name in kept]


def _fit(figure: Figure, ax: Axes) -> Figure:
    """Grow a figure that its axes fill by just the room that the labels take, to whole dots."""
    inner = ax.get_window_extent().frozen()  # frozen: it would follow the figure's size
    outer = ax.get_tightbbox() or inner
    pad = 0.05 * figure.dpi
    rooms = (-outer.x0, -outer.y0, outer.x1 - inner.x1, outer.y1 - inner.y1)
    west, south, east, north = (math.ceil(max(0.0, room) + pad) for room in rooms)
    width, height = inner.width + west + east, inner.height + south + north
    figure.set_size_inches(width / figure.dpi, height / figure.dpi)
    ax.set_position((west / width, south / height, inner.width / width, inner.height / height))
    return figure

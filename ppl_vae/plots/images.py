"""Images by their meaning (draws, pairs, paths, translations, points of a plane) as rows and columns of a sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import DataError, ShapeError
from .figure import Labels, as_names, as_numbers, misfit
from .sheet import Range, paint, sheet, wrap

__all__ = ["grid", "interpolation", "manifold", "reconstructions", "samples", "translations"]


def grid(
    images: Tensor,
    *,
    rows: int | None = None,
    vrange: Range | None = None,
    title: str = "",
    row_labels: Labels | None = None,
    column_labels: Labels | None = None,
) -> Figure:
    """Images in rows and columns on one canvas.

    Arguments:
        images: `(R, C, *x_shape)`; with `rows`, `(N, *x_shape)` to be filled in row by row.
        rows: The number of rows for a plain batch. The last ones may stay partly empty. `(N, 1, H, W)` without labels
            is a plain batch too, and nearly square by default.
        row_labels: R names, left of the rows.
        column_labels: C names, above the columns.

    Returns:
        A figure with one axes that holds one RGB canvas: a tile every H + 1 by W + 1 pixels (wider
        frames for images beyond 64 pixels).

    Example:
        >>> figure = grid(torch.rand(2, 3, 1, 8, 8), row_labels=["a", "b"])
        >>> figure.axes[0].images[0].get_array().shape
        (17, 26, 3)
    """
    if rows is None and images.ndim == 4 and images.shape[1] == 1 and row_labels is column_labels is None:
        rows = math.isqrt(len(images)) or 1
    if rows is None:
        tiles = paint(images, 2, vrange, "images (R, C, *x_shape)")
    elif rows < 1:
        raise ShapeError(f"expected rows >= 1, got rows={rows}; leave it out for images (R, C, *x_shape)")
    else:
        flat = paint(images, 1, vrange, "images (N, *x_shape)")
        tiles = wrap(flat, -(-len(flat) // rows), rows)
    return sheet(tiles, title, row_labels, column_labels)


def samples(
    images: Tensor,
    labels: Labels | None = None,
    *,
    vrange: Range | None = None,
    title: str = "",
) -> Figure:
    """Samples by label: one row a label, one column a draw.

    Arguments:
        images: `(n, K, *x_shape)` as `VAE.sample(n, y=labels)` returns them; or, without `labels`,
            `(n, *x_shape)`, arranged as nearly in a square as n allows. All labels are drawn that are given: of many,
            give the first few, as ``ppl-vae`` does of more than twenty.
        labels: The K labels. Only they tell `(n, K, H, W)` from `(n, 3, H, W)`.

    Example:
        >>> figure = samples(torch.rand(3, 10, 1, 8, 8), range(10))
        >>> figure.axes[0].images[0].get_array().shape  # 10 rows, 3 columns
        (89, 26, 3)
    """
    if labels is None and images.ndim < 5:
        flat = paint(images, 1, vrange, "images (n, *x_shape), or (n, K, *x_shape) with K labels")
        return sheet(wrap(flat, math.ceil(math.sqrt(len(flat)))), title)
    tiles = paint(images, 2, vrange, "images (n, K, *x_shape)").transpose(0, 1)
    return sheet(tiles, title, labels, ylabel="" if labels is None else "label y")


def reconstructions(
    x: Tensor,
    x_hat: Tensor,
    labels: Labels | None = None,
    *,
    columns: int = 10,
    vrange: Range | None = None,
    title: str = "",
) -> Figure:
    """Each original above its reconstruction, in pairs of rows.

    Arguments:
        x: `(N, *x_shape)`.
        x_hat: `(N, *x_shape)`.
        labels: N labels, written above the originals.
        columns: Images a row; further ones go into further pairs of rows.
        vrange: By default the range of both together: a washed-out reconstruction looks washed out.

    Example:
        >>> x = torch.rand(12, 1, 8, 8)
        >>> figure = reconstructions(x, x.round(), columns=6)
        >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        ['original', 'reconstruction', 'original', 'reconstruction']
    """
    if x.shape != x_hat.shape:
        raise misfit("x and x_hat of one shape (N, *x_shape)", x, x_hat, out="decode to the shape of x")
    if columns < 1:
        raise ShapeError(f"expected columns >= 1, got columns={columns}; ten fit a page")
    pair = paint(torch.stack([as_numbers(x), as_numbers(x_hat)]), 2, vrange, "x (N, *x_shape)")
    columns = min(columns, len(x))
    tiles = torch.stack([wrap(tiles, columns) for tiles in pair], 1).flatten(0, 1)
    names = [] if labels is None else as_names(labels, len(x), "labels, one an image")
    return sheet(
        tiles,
        title,
        ["original", "reconstruction"] * (len(tiles) // 2),
        row_blocks=range(2, len(tiles), 2),
        captions={(2 * (i // columns), i % columns): name for i, name in enumerate(names)},
    )


def interpolation(
    images: Tensor, row_labels: Labels | None = None, *, vrange: Range | None = None, title: str = ""
) -> Figure:
    """Decoded paths between two codes: one row a path, its steps from left to right.

    Arguments:
        images: `(steps, N, *x_shape)`.
        row_labels: N names.

    Example:
        >>> figure = interpolation(torch.rand(7, 2, 1, 8, 8))
        >>> figure.axes[0].images[0].get_array().shape  # 2 rows, 7 columns
        (17, 62, 3)
    """
    tiles = paint(images, 2, vrange, "images (steps, N, *x_shape)").transpose(0, 1)
    return sheet(tiles, title, row_labels)


def translations(
    styles: Tensor, images: Tensor, labels: Labels, *, vrange: Range | None = None, title: str = ""
) -> Figure:
    """The originals in a column of their own, then each one's style in every class.

    Arguments:
        styles: The originals `(S, *x_shape)`.
        images: `(S, K, *x_shape)`: `images[s, k]` has the style of `styles[s]` and the class `labels[k]`. These are
            S times K images: ``ppl-vae`` draws twenty styles in twenty classes at most.
        labels: The K classes, above the columns.

    Example:
        >>> figure = translations(torch.rand(2, 8, 8), torch.rand(2, 3, 8, 8), ["a", "b", "c"])
        >>> [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        ['original', 'a', 'b', 'c']
    """
    if styles.ndim < 2 or images.shape[:1] + images.shape[2:] != styles.shape:
        raise misfit(
            "styles (S, *x_shape) and images (S, K, *x_shape)",
            styles,
            images,
            out="images[s] holds the K translations of styles[s]",
        )
    names = as_names(labels, images.shape[1], "labels, one a class")
    both = torch.cat([as_numbers(styles)[:, None], as_numbers(images)], 1)
    tiles = paint(both, 2, vrange, "images (S, K, *x_shape)")
    return sheet(tiles, title, columns=["original", *names], column_blocks=[1])


def manifold(
    images: Tensor,
    z1: Sequence[float] | Tensor,
    z2: Sequence[float] | Tensor,
    *,
    vrange: Range | None = None,
    title: str = "",
) -> Figure:
    """What each point of a two-dimensional latent space decodes to, laid out like a plot of that space.

    Arguments:
        images: `(R, C, *x_shape)`: `images[r, c]` is decoded at `(z1[c], z2[r])`.
        z1: C coordinates, in any order: they are drawn growing to the right.
        z2: R coordinates, in any order: they are drawn growing upwards.

    Example:
        >>> z = torch.linspace(-2, 2, 5)
        >>> figure = manifold(torch.rand(5, 5, 1, 8, 8), z, z)
        >>> [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        ['−2', '−1', '0', '1', '2']
    """
    tiles = paint(images, 2, vrange, "images (R, C, *x_shape)")
    z1, z2 = as_numbers(z1), as_numbers(z2)
    if z1.shape != tiles.shape[1:2] or z2.shape != tiles.shape[:1]:
        out = "images[r, c] is decoded at (z1[c], z2[r])"
        raise misfit("images (R, C, *x_shape), z1 (C,) and z2 (R,)", images, z1, z2, out=out)
    if not (z1.isfinite().all() and z2.isfinite().all()):
        raise DataError("expected finite coordinates z1 and z2, got NaN or ±inf; quantiles need 0 < p < 1")
    right, down = z1.argsort(), z2.argsort(descending=True)
    return sheet(
        tiles[down][:, right],
        title,
        _coordinates(z2[down]),
        _coordinates(z1[right]),
        xlabel="latent dimension 1",
        ylabel="latent dimension 2",
        top=False,
    )


def _coordinates(z: Tensor) -> list[str]:
    """At most seven of the numbers, evenly chosen, to a hundredth or so of their range; "" for the others."""
    every = max(1, math.ceil((len(z) - 1) / 6))
    shown = range((len(z) - 1) % every // 2, len(z), every)
    span = (z.max() - z.min()).item() or 1.0
    values = np.round(z.numpy(), 2 - math.floor(math.log10(span))) + 0.0  # no −0
    return [f"{v:g}".replace("-", "−") if i in shown else "" for i, v in enumerate(values)]

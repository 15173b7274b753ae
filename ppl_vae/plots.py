r"""Pictures of a latent variable model: tensors in, a matplotlib :class:`~matplotlib.figure.Figure` out.

================================= =======================================================================
:func:`grid`                      images in rows and columns: the sheet that the next five are made of
:func:`samples`                   draws from the model, one row a label
:func:`reconstructions`           x above, its reconstruction below
:func:`interpolation`             decoded paths between two codes, one row a path
:func:`translations`              the style of one image written in every class
:func:`manifold`                  what each point of a two-dimensional latent space decodes to
:func:`latents`                   codes z, coloured by label
:func:`prior_vs_posterior`        draws from p(z) against the aggregate posterior
:func:`history`                   −ELBO, its two parts and β over the epochs
:func:`save`                      a figure as a file, all of it or none of it
================================= =======================================================================

An image is ``(1, H, W)`` or ``(H, W)`` grey, ``(3, H, W)`` colour, or flat ``(D,)`` with D a square. A value
v is drawn with the brightness

.. math:: u = \min(1, \max(0, (v - lo) / (hi - lo))), \qquad (lo, hi) = \texttt{vrange}:

0 is black and 1 white. ``vrange`` is by default the smallest and the largest finite value in the picture, and
a missing value (NaN) is pale blue. Codes of more than two dimensions are projected on the two leading
eigenvectors of their covariance, and the axes say which share of the variance that is.

Every function takes a heading as ``title``, and tensors on any device, of any dtype, which it leaves as they
are; what does not fit is a :class:`ShapeError`. Figures are made without pyplot: no backend is chosen,
nothing has to be closed, and a machine without a display works as well.

Reference: P. Tol, *Colour Schemes*, 2021 (the label colours: his muted nine, and the orange of his vibrant).
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .errors import DataError, ShapeError

__all__ = [
    "grid",
    "history",
    "interpolation",
    "latents",
    "manifold",
    "prior_vs_posterior",
    "reconstructions",
    "samples",
    "save",
    "translations",
]

Labels = Sequence[Any] | np.ndarray | Tensor
Range = tuple[float, float]

COLOURS = ["#332288", "#ee7733", "#117733", "#88ccee", "#cc6677"]
COLOURS += ["#ddcc77", "#aa4499", "#44aa99", "#882255", "#999933"]
MARKERS = "o^sDvP"  # the next one for every further ten labels
INK, PALE = "0.15", "0.72"
MISSING = (0.75, 0.85, 0.95)
FORMATS = (".png", ".pdf", ".svg")
DPI, TILE, PAGE = 200, 0.5, 7.0  # dots an inch; inches an image aims at; inches a sheet of them stays within
TEXT = 8  # points


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
        rows: The number of rows for a plain batch. The last ones may stay partly empty.
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
    if rows is None:
        tiles = _paint(images, 2, vrange, "images (R, C, *x_shape)")
    elif rows < 1:
        raise ShapeError(f"expected rows >= 1, got rows={rows}; leave it out for images (R, C, *x_shape)")
    else:
        flat = _paint(images, 1, vrange, "images (N, *x_shape)")
        tiles = _wrap(flat, -(-len(flat) // rows), rows)
    return _sheet(tiles, title, row_labels, column_labels)


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
            `(n, *x_shape)`, arranged as nearly in a square as n allows.
        labels: The K labels. Only they tell `(n, K, H, W)` from `(n, 3, H, W)`.

    Example:
        >>> figure = samples(torch.rand(3, 10, 1, 8, 8), range(10))
        >>> figure.axes[0].images[0].get_array().shape  # 10 rows, 3 columns
        (89, 26, 3)
    """
    if labels is None and images.ndim < 5:
        flat = _paint(images, 1, vrange, "images (n, *x_shape), or (n, K, *x_shape) with K labels")
        return _sheet(_wrap(flat, math.ceil(math.sqrt(len(flat)))), title)
    tiles = _paint(images, 2, vrange, "images (n, K, *x_shape)").transpose(0, 1)
    return _sheet(tiles, title, labels, ylabel="" if labels is None else "label y")


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
        raise _misfit("x and x_hat of one shape (N, *x_shape)", x, x_hat, out="decode to the shape of x")
    if columns < 1:
        raise ShapeError(f"expected columns >= 1, got columns={columns}; ten fit a page")
    pair = _paint(torch.stack([_numbers(x), _numbers(x_hat)]), 2, vrange, "x (N, *x_shape)")
    columns = min(columns, len(x))
    tiles = torch.stack([_wrap(tiles, columns) for tiles in pair], 1).flatten(0, 1)
    names = [] if labels is None else _names(labels, len(x), "labels, one an image")
    return _sheet(
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
    tiles = _paint(images, 2, vrange, "images (steps, N, *x_shape)").transpose(0, 1)
    return _sheet(tiles, title, row_labels)


def translations(
    styles: Tensor, images: Tensor, labels: Labels, *, vrange: Range | None = None, title: str = ""
) -> Figure:
    """The originals in a column of their own, then each one's style in every class.

    Arguments:
        styles: The originals `(S, *x_shape)`.
        images: `(S, K, *x_shape)`: `images[s, k]` has the style of `styles[s]` and the class `labels[k]`.
        labels: The K classes, above the columns.

    Example:
        >>> figure = translations(torch.rand(2, 8, 8), torch.rand(2, 3, 8, 8), ["a", "b", "c"])
        >>> [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        ['original', 'a', 'b', 'c']
    """
    if styles.ndim < 2 or images.shape != (len(styles), *images.shape[1:2], *styles.shape[1:]):
        raise _misfit(
            "styles (S, *x_shape) and images (S, K, *x_shape)",
            styles,
            images,
            out="images[s] holds the K translations of styles[s]",
        )
    names = _names(labels, images.shape[1], "labels, one a class")
    both = torch.cat([_numbers(styles)[:, None], _numbers(images)], 1)
    tiles = _paint(both, 2, vrange, "images (S, K, *x_shape)")
    return _sheet(tiles, title, columns=["original", *names], column_blocks=[1])


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
    tiles = _paint(images, 2, vrange, "images (R, C, *x_shape)")
    z1, z2 = _numbers(z1), _numbers(z2)
    if z1.shape != tiles.shape[1:2] or z2.shape != tiles.shape[:1]:
        out = "images[r, c] is decoded at (z1[c], z2[r])"
        raise _misfit("images (R, C, *x_shape), z1 (C,) and z2 (R,)", images, z1, z2, out=out)
    if not (z1.isfinite().all() and z2.isfinite().all()):
        raise DataError("expected finite coordinates z1 and z2, got NaN or ±inf; quantiles need 0 < p < 1")
    right, down = z1.argsort(), z2.argsort(descending=True)
    axes = ("latent dimension 1", "latent dimension 2")
    names = [_coordinates(z) for z in (z2[down], z1[right])]
    return _sheet(tiles[down][:, right], title, *names, xlabel=axes[0], ylabel=axes[1], top=False)


def latents(z: Tensor, y: Labels | None = None, *, title: str = "") -> Figure:
    """Codes, coloured by label: as they are, or their first two principal components.

    Arguments:
        z: `(N, L)`. L = 1 becomes a histogram, L = 2 is drawn as it is, L > 2 is projected.
        y: N labels.

    Raises:
        DataError: If a code is not finite, or there are more than 60 labels (10 for a histogram), which no
            colours and marks tell apart.

    Example:
        >>> figure = latents(torch.randn(50, 2), torch.arange(50) % 3)
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['0', '1', '2']
    """
    codes = _codes(z, "z")
    groups = _groups(y, len(codes), "z", len(COLOURS) * (1 if codes.shape[1] == 1 else len(MARKERS)))
    figure = _figure(4.8, 4.2 if codes.shape[1] > 1 else 3.2, title)
    ax = figure.add_subplot()
    if codes.shape[1] == 1:
        names, parts = zip(*((name, codes[members, 0].numpy()) for name, members in groups), strict=True)
        ax.hist(parts, 50, stacked=True, color=COLOURS[: len(parts)], label=names)
        _dress(ax, "latent dimension 1", "codes per bin")
    else:
        mean, basis, axes = _plane(codes)
        _scatter(ax, (codes - mean) @ basis, groups)
        _dress(ax, *axes)
    if y is not None:
        handles = ax.get_legend_handles_labels()[0]
        _legend(figure, handles, title="label y", **_beside(groups))
    return figure


def prior_vs_posterior(
    z_prior: Tensor,
    z_posterior: Tensor,
    y: Labels | None = None,
    *,
    title: str = "",
) -> Figure:
    """Where the prior puts its mass against where the codes of the data lie; samples go wrong in the holes.

    Arguments:
        z_prior: `(M, L)`, draws from p(z).
        z_posterior: `(N, L)`, a draw from q(z given x) for every x: together, the aggregate posterior.
        y: N labels of the posterior draws, to colour them.

    Returns:
        A figure with a scatter (the two dimensions, or the first two principal components of the posterior
        draws) and the densities along each of the first six dimensions; for L = 1 the density alone.

    Example:
        >>> figure = prior_vs_posterior(torch.randn(90, 4), 0.5 * torch.randn(80, 4))
        >>> len(figure.axes)  # the scatter and four dimensions
        5
    """
    prior, posterior = _codes(z_prior, "z_prior"), _codes(z_posterior, "z_posterior")
    if prior.shape[1] != posterior.shape[1]:
        expected = "z_prior (M, L) and z_posterior (N, L) with the same L"
        raise _misfit(expected, prior, posterior, out="draw both from one model")
    groups = _groups(y, len(posterior), "aggregate posterior", len(COLOURS) * len(MARKERS))
    margins = min(posterior.shape[1], 6)
    down = {1: 1, 2: 2, 4: 2}.get(margins, 3)
    across = -(-margins // down)
    scatter = margins > 1
    width = 3.7 + 1.7 * across if scatter else 4.8
    figure = _figure(width + 1.3 * (y is not None), 4.2 if scatter else 3.2, title)
    spec = figure.add_gridspec(down, across + scatter, width_ratios=[2.2] * scatter + [1] * across)
    handles: list[Any] = []
    if scatter:
        ax = figure.add_subplot(spec[:, 0])
        mean, basis, axes = _plane(posterior)
        _scatter(ax, (prior - mean) @ basis, [("prior", np.arange(len(prior)))], [PALE])
        _scatter(ax, (posterior - mean) @ basis, groups)
        _dress(ax, *axes)
        handles = ax.get_legend_handles_labels()[0]
    for i in range(margins):
        ax = figure.add_subplot(spec[i // across, i % across + scatter])
        p, q = prior[:, i].numpy(), posterior[:, i].numpy()
        edges = np.histogram_bin_edges(np.concatenate([p, q]), 40).tolist()
        ax.hist(p, edges, density=True, color=PALE, label="prior")
        tint = COLOURS[0] if y is None else INK
        ax.hist(q, edges, density=True, histtype="step", color=tint, label="aggregate posterior")
        _dress(ax, f"latent dimension {i + 1}", "" if i % across else "density")
    bars, line = ax.get_legend_handles_labels()[0]
    if not scatter:
        handles = [bars, line]
    elif y is not None:  # the points have the labels' colours, so the line needs an entry of its own
        handles.append(line)
    where = {"loc": "outside lower center", "ncols": 2} if y is None else _beside(groups)
    _legend(figure, handles, **where)
    return figure


def history(history: Iterable[Mapping[str, Any]], *, title: str = "") -> Figure:
    """The −ELBO in training and validation, and its two parts, over the epochs.

    Arguments:
        history: One mapping an epoch, with `epoch` and any of `neg_elbo`, `valid_neg_elbo`, `loss`,
            `reconstruction`, `kl` (nats per image) and `beta`. What is missing or None is left out.

    Returns:
        A figure of two panels. The minimised `loss` is drawn where it is not the −ELBO itself, and β, on
        an axis of its own, where it varies.

    Raises:
        DataError: If there is no epoch, or one without its number.

    Example:
        >>> epochs = [{"epoch": e, "neg_elbo": 9 / e, "reconstruction": 6 / e, "kl": 3 / e} for e in (1, 2)]
        >>> [[line.get_label() for line in ax.lines] for ax in history(epochs).axes]
        [['train'], ['reconstruction', 'KL']]
    """
    entries = list(history)
    if not entries or any(entry.get("epoch") is None for entry in entries):
        raise DataError(f"expected one mapping with 'epoch' an epoch, got {entries[:1]}; fit returns them")

    def curve(key: str) -> tuple[list[float], list[float]]:
        kept = [entry for entry in entries if entry.get(key) is not None]
        return [float(entry["epoch"]) for entry in kept], [float(entry[key]) for entry in kept]

    def draw(ax: Axes, key: str, name: str, colour: str, style: str = "-") -> None:
        epochs, values = curve(key)
        if epochs:
            marker = "o" if len(epochs) < 20 else ""
            ax.plot(epochs, values, style, color=colour, marker=marker, ms=3, lw=1.4, label=name)

    varies = len(set(curve("beta")[1])) > 1
    figure = _figure(8.8 if varies else 7.2, 2.8, title)
    panels = figure.subplots(1, 2 + varies, width_ratios=[3, 3, 1.8][: 2 + varies])
    draw(panels[0], "neg_elbo", "train", COLOURS[0])
    draw(panels[0], "valid_neg_elbo", "validation", COLOURS[1])
    (_, loss), (_, bound) = curve("loss"), curve("neg_elbo")
    if len(loss) != len(bound) or not np.allclose(loss, bound, rtol=1e-6, equal_nan=True):
        draw(panels[0], "loss", "minimised loss", "0.5", ":")
    draw(panels[1], "reconstruction", "reconstruction", COLOURS[2])
    draw(panels[1], "kl", "KL", COLOURS[6])
    if varies:
        draw(panels[2], "beta", "", INK)
    for ax, name in zip(panels, ("−ELBO (nats per image)", "its parts (nats per image)", "β"), strict=False):
        _dress(ax, "epoch", name)
        ax.grid(axis="y", color="0.92")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=TEXT)
    return figure


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
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"expected a name that ends in {', '.join(FORMATS)}, got {path.name!r}; rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{uuid.uuid4().hex}.tmp")  # the same folder, hence the same file system
    try:
        figure.savefig(draft, format=path.suffix[1:].lower())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _misfit(expected: str, *got: Tensor, out: str) -> ShapeError:
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in got)
    return ShapeError(f"expected {expected}, got {shapes}; {out}")


def _numbers(values: Any) -> Tensor:
    """Plain float64 numbers on the CPU (`cpu` first: not every device has float64)."""
    return torch.as_tensor(values).detach().cpu().double()


def _names(labels: Labels, count: int, what: str) -> list[str]:
    values = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    if len(values) != count or any(isinstance(value, list) for value in values):
        raise ShapeError(f"expected {count} {what}, got {len(values)}: {str(values)[:60]}; give a flat list")
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in values]


def _coordinates(z: Tensor) -> list[str]:
    """At most seven of the numbers, evenly chosen, to a hundredth or so of their range; "" for the others."""
    every = max(1, math.ceil((len(z) - 1) / 6))
    shown = range((len(z) - 1) % every // 2, len(z), every)
    span = (z.max() - z.min()).item() or 1.0
    values = np.round(z.numpy(), 2 - math.floor(math.log10(span))) + 0.0  # no −0
    return [f"{v:g}".replace("-", "−") if i in shown else "" for i, v in enumerate(values)]


def _paint(images: Tensor, lead: int, vrange: Range | None, expected: str) -> Tensor:
    """`(*lead, *x_shape)` as colours `(*lead, H, W, 3)` in [0, 1]."""
    x = _numbers(images)
    shape = x.shape[lead:]
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    if len(shape) == 1 and side * side != shape[0]:
        raise _misfit(f"{expected} with flat x of square length", x, out="reshape x to (H, W)")
    if len(shape) not in (1, 2, 3) or (len(shape) == 3 and shape[0] not in (1, 3)) or not x.numel():
        out = "x_shape is (1, H, W), (H, W), (3, H, W) or a flat square (D,)"
        raise _misfit(f"a non-empty batch of {expected}", x, out=out)
    height, width = (side, side) if side else shape[-2:]
    x = x.reshape(*x.shape[:lead], -1, height, width)

    if vrange is None:
        seen = x[x.isfinite()]
        low, high = (seen.min().item(), seen.max().item()) if len(seen) else (0.0, 1.0)
        high = high if high > low else low + 1.0
    else:
        low, high = map(float, vrange)
        if not low < high:
            raise DataError(f"expected vrange (lo, hi) with lo < hi, got {vrange}; left out it is min, max")
    u = ((x - low) / (high - low)).clamp(0, 1).movedim(-3, -1).expand(*x.shape[:lead], height, width, 3)
    return torch.where(u.isnan(), u.new_tensor(MISSING), u)


def _wrap(tiles: Tensor, columns: int, rows: int = 1) -> Tensor:
    """`(N, H, W, 3)` row by row as `(R, columns, H, W, 3)`, white where there is none left."""
    rows = max(rows, -(-len(tiles) // columns))
    blank = tiles.new_ones(rows * columns - len(tiles), *tiles.shape[1:])
    return torch.cat([tiles, blank]).unflatten(0, (rows, columns))


def _starts(count: int, pitch: int, blocks: Collection[int], gap: int) -> np.ndarray:
    """The first pixel of each of `count` tiles: one every `pitch`, and `gap` more before each block."""
    return np.arange(count) * pitch + gap * np.cumsum([i in blocks for i in range(count)])


def _sheet(
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
    names = [
        [""] * count if labels is None else _names(labels, count, f"labels, one a {what}")
        for labels, count, what in ((rows, R, "row"), (columns, C, "column"))
    ]
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
    figure = Figure((canvas.shape[1] * scale / DPI, canvas.shape[0] * scale / DPI), dpi=DPI)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(canvas, origin="upper", interpolation="nearest" if scale >= 1 else "antialiased")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0 if top else 2, pad=3, labelsize=TEXT, labelcolor=INK, color=INK)
    ax.tick_params(top=False, labeltop=top, bottom=not top, labelbottom=not top)
    ax.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    ax.set_ylabel(ylabel, fontsize=TEXT, color=INK)
    ax.set_title(title, loc="left", fontsize=TEXT + 2, color=INK, pad=16 if captions else 6)

    ax.set_yticks(*_ticks(names[0], top_of + (H - 1) / 2, H * scale))
    ax.set_xticks(*_ticks(names[1], left_of + (W - 1) / 2, math.inf))
    if top and _widest(ax.get_xticklabels()) > W * scale:
        ax.set_xticks(*_ticks(names[1], left_of + (W - 1) / 2, W * scale))
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
    """Where the labels are and what they say; every n-th where `room` dots are too few for a line."""
    every = max(1, math.ceil(1.2 * TEXT / 72 * DPI / room))
    kept = [(float(centre), name) for centre, name in zip(centres, names, strict=True) if name][::every]
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


def _codes(z: Tensor, name: str) -> Tensor:
    codes = _numbers(z)
    if codes.ndim != 2 or not codes.numel():
        raise _misfit(f"{name} of shape (N, L), not empty,", codes, out="flatten the batch")
    if not codes.isfinite().all():
        row = int((~codes.isfinite()).any(1).nonzero()[0])
        raise DataError(f"expected finite codes, got {codes[row].tolist()} at {name}[{row}]; look at its x")
    return codes


def _groups(y: Labels | None, count: int, name: str, most: int) -> list[tuple[str, np.ndarray]]:
    """Each label with the places that have it; a single group without labels."""
    if y is None:
        return [(name, np.arange(count))]
    values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if values.shape != (count,):
        out = "give one label a code, y.argmax(-1) for one-hot labels"
        raise ShapeError(f"expected y of shape ({count},), got {values.shape}; {out}")
    kinds, kind = np.unique(values, return_inverse=True)
    if len(kinds) > most:
        raise DataError(f"expected at most {most} different labels, got {len(kinds)}; bin or leave out y")
    return [(text, np.flatnonzero(kind == i)) for i, text in enumerate(_names(kinds, len(kinds), "labels"))]


def _plane(z: Tensor) -> tuple[Tensor, Tensor, tuple[str, str]]:
    """A mean `(L,)`, a basis `(L, 2)` and the names of its two axes."""
    features = z.shape[1]
    if features == 2:
        return z.new_zeros(2), torch.eye(2, dtype=z.dtype), ("latent dimension 1", "latent dimension 2")
    mean = z.mean(0)
    variance, basis = torch.linalg.eigh(torch.cov(z.T, correction=0))
    variance, basis = variance.flip(0).clamp(min=0), basis.flip(1)[:, :2]
    # An eigenvector has no sign of its own; this one lets two pictures of a model be compared.
    basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    share = 100 * variance / variance.sum().clamp(min=torch.finfo(z.dtype).tiny)
    first, second = (f"principal component {i + 1} ({share[i].item():.0f}% of variance)" for i in (0, 1))
    return mean, basis, (first, second)


def _scatter(
    ax: Axes,
    points: Tensor,
    groups: Sequence[tuple[str, np.ndarray]],
    colours: Sequence[str] = COLOURS,
) -> None:
    kind = np.empty(len(points), dtype=int)
    for i, (name, members) in enumerate(groups):
        kind[members] = i
        mark, colour = MARKERS[i // len(COLOURS)], colours[i % len(colours)]
        ax.scatter([], [], s=18, color=colour, marker=mark, linewidths=0, label=name)  # for the legend
    # Shuffled, so that no label covers the others because it comes last; by its own generator, so that
    # a picture leaves the seeds of an experiment alone.
    order = np.random.default_rng(0).permutation(len(points))
    size = min(14.0, max(1.5, 9000 / len(points)))
    for i, mark in enumerate(MARKERS):
        shown = order[kind[order] // len(COLOURS) == i]
        if len(shown):
            tint, (across, up) = to_rgba_array(colours)[kind[shown] % len(colours)], points[shown].T.numpy()
            ax.scatter(across, up, s=size, c=tint, marker=mark, alpha=0.75, linewidths=0, rasterized=True)
    ax.set_aspect("equal", adjustable="datalim")  # distances in latent space mean the same both ways


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=TEXT + 2, color=INK)
    return figure


def _dress(ax: Axes, xlabel: str, ylabel: str) -> None:
    ax.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    ax.set_ylabel(ylabel, fontsize=TEXT, color=INK)
    ax.tick_params(labelsize=TEXT - 1, labelcolor=INK, color=INK)
    ax.spines[:].set_color(INK)
    ax.spines[["top", "right"]].set_visible(False)


def _beside(groups: Sequence[Any]) -> dict[str, Any]:
    return {"loc": "outside right center", "ncols": -(-len(groups) // 20)}


def _legend(figure: Figure, handles: Sequence[Any], **where: Any) -> None:
    names = [handle.get_label() for handle in handles]
    where |= {"frameon": False, "fontsize": TEXT, "title_fontsize": TEXT, "handlelength": 1.2}
    figure.legend(handles, names, **where)

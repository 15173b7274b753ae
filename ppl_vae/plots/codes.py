"""Codes as clouds and densities: the data's, coloured by label, and the prior's behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import DataError, ShapeError
from .figure import COLOURS, INK, PALE, TEXT, Labels, as_names, as_numbers, dress, empty, misfit

__all__ = ["latents", "most_labels", "prior_vs_posterior"]

MARKERS = "o^sDvP"  # the next one for every further ten labels


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
    histogram = codes.shape[1] == 1
    names, group = _groups(y, len(codes), "z", most_labels(codes.shape[1]))
    figure = empty(4.8, 3.2 if histogram else 4.2, title)
    ax = figure.add_subplot()
    if histogram:
        parts = [codes[group == i, 0].numpy() for i in range(len(names))]
        ax.hist(parts, 50, stacked=True, color=COLOURS[: len(parts)], label=names)
        dress(ax, "latent dimension 1", "codes per bin")
    else:
        mean, basis, axes = _plane(codes)
        _scatter(ax, (codes - mean) @ basis, names, group)
        dress(ax, *axes)
    if y is not None:
        _legend(figure, _marks(ax), title="label y")
    return figure


def most_labels(features: int) -> int:
    """Return how many labels a picture of codes (N, features) tells apart, by colours and marks.

    Example:
        >>> most_labels(1), most_labels(2)
        (10, 60)
    """
    return len(COLOURS) * (1 if features == 1 else len(MARKERS))


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
        raise misfit(expected, prior, posterior, out="draw both from one model")
    names, group = _groups(y, len(posterior), "aggregate posterior", len(COLOURS) * len(MARKERS))
    margins = min(posterior.shape[1], 6)
    across = 1 if margins < 4 else 2
    down = -(-margins // across)
    scatter = margins > 1
    width = 3.7 + 1.7 * across if scatter else 4.8
    figure = empty(width + 1.3 * (y is not None), 4.2 if scatter else 3.2, title)
    spec = figure.add_gridspec(down, across + scatter, width_ratios=[2.2] * scatter + [1] * across)
    if scatter:
        ax = figure.add_subplot(spec[:, 0])
        mean, basis, axes = _plane(posterior)
        _scatter(ax, (prior - mean) @ basis, ["prior"], np.zeros(len(prior), dtype=int), [PALE])
        _scatter(ax, (posterior - mean) @ basis, names, group)
        dress(ax, *axes)
    for i in range(margins):
        ax = figure.add_subplot(spec[i // across, i % across + scatter])
        p, q = prior[:, i].numpy(), posterior[:, i].numpy()
        edges = np.histogram_bin_edges(np.concatenate([p, q]), 40).tolist()
        ax.hist(p, edges, density=True, color=PALE, label="prior")
        tint = COLOURS[0] if y is None else INK
        ax.hist(q, edges, density=True, histtype="step", color=tint, label="aggregate posterior")
        dress(ax, f"latent dimension {i + 1}", "" if i % across else "density")
    marks = _marks(figure.axes[0])
    if scatter and y is not None:  # the points have the labels' colours, so the line needs an entry of its own
        marks += _marks(ax)[1:]
    _legend(figure, marks, **({"loc": "outside lower center", "ncols": 2} if y is None else {}))
    return figure


def _codes(z: Tensor, name: str) -> Tensor:
    codes = as_numbers(z)
    if codes.ndim != 2 or not codes.numel():
        raise misfit(f"{name} of shape (N, L), not empty,", codes, out="flatten the batch")
    if not codes.isfinite().all():
        row = int((~codes.isfinite()).any(1).nonzero()[0])
        raise DataError(f"expected finite codes, got {codes[row].tolist()} at {name}[{row}]; look at its x")
    return codes


def _groups(y: Labels | None, count: int, name: str, most: int) -> tuple[list[str], np.ndarray]:
    """The names of the different labels, and which of them each code has; a single one without labels."""
    if y is None:
        return [name], np.zeros(count, dtype=int)
    values = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if values.shape != (count,):
        out = "give one label a code, y.argmax(-1) for one-hot labels"
        raise ShapeError(f"expected y of shape ({count},), got {values.shape}; {out}")
    kinds, group = np.unique(values, return_inverse=True)
    if len(kinds) > most:
        raise DataError(f"expected at most {most} different labels, got {len(kinds)}; bin or leave out y")
    return as_names(kinds, len(kinds), "labels"), group


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
    names: Sequence[str],
    group: np.ndarray,
    colours: Sequence[str] = COLOURS,
) -> None:
    """The points `(N, 2)`, point i in the colour and with the mark of `names[group[i]]`."""
    for i, name in enumerate(names):
        mark, colour = MARKERS[i // len(COLOURS)], colours[i % len(colours)]
        ax.scatter([], [], s=18, color=colour, marker=mark, linewidths=0, label=name)  # for the legend
    # Shuffled, so that no label covers the others because it comes last; by its own generator, so that
    # a picture leaves the seeds of an experiment alone.
    order = np.random.default_rng(0).permutation(len(points))
    size = min(14.0, max(1.5, 9000 / len(points)))
    for i, mark in enumerate(MARKERS):
        shown = order[group[order] // len(COLOURS) == i]
        if len(shown):
            tint, (across, up) = to_rgba_array(colours)[group[shown] % len(colours)], points[shown].T.numpy()
            ax.scatter(across, up, s=size, c=tint, marker=mark, alpha=0.75, linewidths=0, rasterized=True)
    ax.set_aspect("equal", adjustable="datalim")  # distances in latent space mean the same both ways


def _marks(ax: Axes) -> list[Any]:
    return ax.get_legend_handles_labels()[0]


def _legend(figure: Figure, marks: Sequence[Any], **where: Any) -> None:
    """Name the marks, right of the axes in columns of twenty unless told otherwise."""
    beside: dict[str, Any] = {"loc": "outside right center", "ncols": -(-len(marks) // 20)}
    figure.legend(handles=marks, frameon=False, fontsize=TEXT, title_fontsize=TEXT, handlelength=1.2, **beside | where)

"""The ranks of simulation-based calibration as histograms, with the band that uniform ranks stay in."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure

from ..errors import DataError
from .figure import COLOURS, INK, PALE, TEXT, as_numbers, dress, empty, misfit

__all__ = ["calibration"]

COLUMNS = 3


def calibration(ranks: Any, *, draws: int, bins: int = 20, worst: int = 6, title: str = "") -> Figure:
    """How often every rank came: flat for an exact guide, ∪ for one too narrow, ∩ for one too wide, a slope if shifted.

    Arguments:
        ranks: `(N, L)`, the rank of z* among so many draws, for every replicate and latent coordinate.
        draws: Of how many draws; it is the largest rank that there can be, which ranks do not tell.
        bins: How many bars; it divides the `draws + 1` ranks.
        worst: How many coordinates at most: those of the largest χ², the largest first.

    Returns:
        A figure of one panel a coordinate. The grey band holds a bar of uniform ranks with probability 99%.

    Raises:
        ShapeError: If the ranks are not `(N, L)`.
        DataError: If they are no whole numbers from 0 to `draws`, or the bins do not divide them.

    Reference: Talts et al., *Validating Bayesian Inference Algorithms with Simulation-Based Calibration*, 2018.

    Example:
        >>> figure = calibration(torch.randint(100, (2000, 9)), draws=99)
        >>> len(figure.axes)
        6
    """
    from scipy.stats import binom  # importing it takes a second

    values = as_numbers(ranks)
    if values.dim() != 2 or not values.numel():
        raise misfit("ranks (N, L)", values, out="stack the replicates in the first dimension")
    if bins < 2 or (draws + 1) % bins:
        raise DataError(f"expected bins ≥ 2 that divide draws + 1, got bins={bins} and draws={draws}")
    if not ((values == values.round()) & (values >= 0) & (values <= draws)).all():
        raise DataError(
            f"expected whole ranks from 0 to {draws}, got {values.min():g} … {values.max():g}: say how many draws"
        )
    bars = torch.stack([torch.histc(column, bins, -0.5, draws + 0.5) for column in values.T])
    count = len(values)
    order = (bars - count / bins).square().sum(1).argsort(descending=True)[: max(1, worst)].tolist()
    columns = min(COLUMNS, len(order))
    rows = math.ceil(len(order) / columns)
    figure = empty(2.4 * columns + 0.4, 1.9 * rows + 0.2, title)
    low, high = binom.interval(0.99, count, 1 / bins)
    width = (draws + 1) / bins
    for i, j in enumerate(order):
        ax = figure.add_subplot(rows, columns, i + 1)
        ax.axhspan(low, high, color=PALE, alpha=0.6, lw=0)
        ax.axhline(count / bins, color=INK, lw=0.8)
        ax.bar([(b + 0.5) * width - 0.5 for b in range(bins)], bars[j].tolist(), 0.9 * width, color=COLOURS[0])
        ax.set_xlim(-0.5, draws + 0.5)
        ax.set_title(f"latent dimension {j + 1}", fontsize=TEXT, color=INK)
        last, first = i + columns >= len(order), i % columns == 0
        dress(ax, f"rank among {draws} draws" if last else "", "replicates" if first else "")
    return figure

"""How an estimate of log p(x|y) grows with the number of samples, and how heavy its weights are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from .figure import COLOURS, INK, TEXT, as_numbers, dress, empty, misfit

__all__ = ["likelihood"]


def likelihood(
    points: Sequence[int],
    curve: Any,
    pareto_k: Any | None = None,
    *,
    limit: float = 0.7,
    of: str = "x|y",
    unit: str = "nats per datum",
    title: str = "",
) -> Figure:
    """The mean of −log p̂ after so many samples, and the k̂ of every row beside it.

    Arguments:
        points: Numbers of samples.
        curve: (points, N), log p̂ of every row after so many.
        pareto_k: (N,), or None for no second panel; −∞ is a tail that is flat, and NaN one that nothing is known of.
        limit: The k̂ from which a row is not to be trusted.
        of: Whose log p̂ it is, "x" where nothing is given.
        unit: What the axis calls the unit.

    Returns:
        A figure of one or two panels; the band is twice the standard error of what is still to come, paired by row.

    Raises:
        ShapeError: If the curve has another number of points.

    Example:
        >>> figure = likelihood([1, 10], torch.tensor([[-9.0, -8.0], [-7.0, -6.0]]), torch.tensor([0.1, 0.9]))
        >>> [ax.get_xlabel() for ax in figure.axes]
        ['samples of z', 'Pareto k̂']
    """
    values = -as_numbers(curve)
    if values.dim() != 2 or len(values) != len(points):
        raise misfit(f"a curve ({len(points)}, N)", values, out="give one row for every number of samples")
    mean, gain = values.mean(1), values - values[-1]
    error = gain.std(1) / gain.shape[1] ** 0.5 if gain.shape[1] > 1 else torch.zeros(len(points))
    figure = empty(6.6 if pareto_k is not None else 3.6, 2.8, title)
    panels = figure.subplots(1, 1 + (pareto_k is not None), squeeze=False)[0]
    panels[0].fill_between(points, mean - 2 * error, mean + 2 * error, color=COLOURS[0], alpha=0.2, lw=0)
    panels[0].plot(points, mean, color=COLOURS[0], marker="o", ms=3, lw=1.4)
    panels[0].set_xscale("log")
    panels[0].grid(axis="y", color="0.92")
    dress(panels[0], "samples of z", f"−log p̂({of}), {unit}")
    if pareto_k is not None:
        k = as_numbers(pareto_k)
        panels[1].hist(k[~k.isnan()].clamp(-1, 2).numpy(), bins=40, range=(-1, 2), color=COLOURS[3])
        panels[1].axvline(limit, color=INK, lw=1)
        text = f"{int((k >= limit).sum())} of {len(k)} rows\nat {limit:.2f} or above"
        text += f"\nnot known for {unknown}" if (unknown := int(k.isnan().sum())) else ""
        panels[1].set_ylim(top=1.3 * panels[1].get_ylim()[1])
        panels[1].text(0.02, 0.98, text, transform=panels[1].transAxes, ha="left", va="top", fontsize=TEXT, color=INK)
        panels[1].set_xticks([-1, 0, 1, 2], ["≤ −1", "0", "1", "≥ 2"])
        dress(panels[1], "Pareto k̂", "rows")
    return figure

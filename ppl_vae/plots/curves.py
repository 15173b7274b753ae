"""The −ELBO, its two parts and β over the epochs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import DataError
from ..history import bound_name
from .figure import COLOURS, INK, TEXT, dress, empty

__all__ = ["history"]


def history(history: Iterable[Mapping[str, Any]], *, unit: str = "nats per image", title: str = "") -> Figure:
    """The −ELBO in training and validation, and its two parts, over the epochs.

    Arguments:
        history: One mapping an epoch, with `epoch` and any of `neg_elbo`, `valid_neg_elbo`, `loss`,
            `reconstruction`, `kl` and `beta`. What is missing or None is left out.
        unit: What the y axes call the unit of the numbers, which are drawn as they are.

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
    figure = empty(8.8 if varies else 7.2, 2.8, title)
    panels = figure.subplots(1, 2 + varies, width_ratios=[3, 3, 1.8][: 2 + varies])
    draw(panels[0], "neg_elbo", "train", COLOURS[0])
    draw(panels[0], "valid_neg_elbo", "validation", COLOURS[1])
    (_, loss), (_, bound) = curve("loss"), curve("neg_elbo")
    if len(loss) != len(bound) or not np.allclose(loss, bound, rtol=1e-6, equal_nan=True):
        draw(panels[0], "loss", "minimised loss", "0.5", ":")
    draw(panels[1], "reconstruction", "reconstruction", COLOURS[2])
    # Without a prior, as in an autoencoder, there is no KL.
    if (told := bound_name(entries)) == "−ELBO":
        draw(panels[1], "kl", "KL", COLOURS[6])
    if varies:
        draw(panels[2], "beta", "", INK)
    names = f"{told} ({unit})", f"its parts ({unit})", "β"
    for ax, name in zip(panels, names, strict=False):
        dress(ax, "epoch", name)
        ax.grid(axis="y", color="0.92")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=TEXT)
    return figure

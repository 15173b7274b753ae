"""Which latent dimensions a model uses."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import DataError
from .figure import COLOURS, TEXT, as_numbers, dress, empty, misfit

__all__ = ["dimensions"]

# With more bars than this there is no room for a number under each.
_NUMBERED = 40


def dimensions(kl: Any, variance: Any = None, *, threshold: float = 0.01, title: str = "") -> Figure:
    """The KL of every latent dimension, the largest first; shaded where the dimension is not used.

    Arguments:
        kl: `(L,)`, the mean KL(q ‖ p) of each dimension, in nats.
        variance: `(L,)`, the variance over the data of each posterior mean.
        threshold: A dimension with no more variance than this is not used. Under a prior of another scale than one,
            give ``found.variance / found.prior_variance``.

    Raises:
        DataError: If a number is not finite.

    Example:
        >>> figure = dimensions(torch.tensor([0.1, 2.0, 0.0]), torch.tensor([0.2, 0.9, 0.0]))
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['2', '1', '3']
    """
    heights = as_numbers(kl)
    spread = None if variance is None else as_numbers(variance)
    if heights.ndim != 1 or not len(heights) or (spread is not None and spread.shape != heights.shape):
        both = [heights] if spread is None else [heights, spread]
        raise misfit("kl (L,), and variance (L,) if there is one,", *both, out="average over the rows")
    if not heights.isfinite().all():
        raise DataError(f"expected finite KL, got {heights.tolist()}; look at the encoder's parameters")
    order = heights.argsort(descending=True)
    used = [spread is None or bool(spread[i] > threshold) for i in order]
    figure = empty(min(8.8, max(3.6, 0.22 * len(heights) + 1.2)), 2.8, title)
    ax = figure.add_subplot()
    ax.bar(range(1, len(heights) + 1), heights[order].numpy(), color=COLOURS[0], width=0.8)
    shade = None
    for place, of in enumerate(used, 1):
        # Behind the bar, which may have no height to be pale.
        shade = shade if of else ax.axvspan(place - 0.5, place + 0.5, color="0.88", linewidth=0, zorder=0)
    dress(ax, "latent dimension", "KL(q ‖ p) (nats)")
    ax.set_xlim(0.5, len(heights) + 0.5)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    if len(heights) <= _NUMBERED:
        ax.set_xticks(range(1, len(heights) + 1), [str(int(i) + 1) for i in order])
    else:
        ax.set_xlabel("latent dimensions, the largest KL first", fontsize=TEXT)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if shade is not None:
        name = f"not used: Var E[z] ≤ {threshold:g}"
        figure.legend([shade], [name], frameon=False, fontsize=TEXT, loc="outside lower center")
    return figure

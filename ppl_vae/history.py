r"""The history of a training: what every epoch came to.

.. math:: -\mathrm{ELBO} = \underbrace{-\mathbb{E}_q[\log p(x \mid z, y)]}_{\texttt{reconstruction}}
    + \underbrace{\mathrm{KL}(q(z \mid x, y) \,\|\, p(z \mid y))}_{\texttt{kl}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["History", "bound_name"]


class History(list[dict[str, Any]]):
    """One dict an epoch: ``loss``, as minimised; ``neg_elbo`` = ``reconstruction`` + ``kl``, at β = 1; and others.

    All are exact means over the epoch's data, in nats per datum. ``info`` holds the settings of the run; of one that
    has moved between devices ``moves`` too, pairs of how many epochs there were and the device that it left.

    Example:
        >>> history = History([{"epoch": 1, "neg_elbo": 30.0}, {"epoch": 2, "neg_elbo": 25.0}])
        >>> history.column("neg_elbo")
        [30.0, 25.0]
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = (), info: dict[str, Any] | None = None) -> None:
        super().__init__(rows)
        self.info = info or {}

    def __repr__(self) -> str:
        if not self:
            return "History of no epochs"
        last = self[-1]
        names = {"neg_elbo": bound_name(self), "valid_neg_elbo": "on valid"}
        told = ", ".join(f"{word} {last[name]:.3f}" for name, word in names.items() if name in last)
        return f"History of {len(self)} epoch{'s' * (len(self) > 1)}, the last: {told} nats"

    def column(self, name: str) -> list[Any]:
        """Return one value an epoch, None where an epoch lacks it."""
        return [row.get(name) for row in self]

    def best_epoch(self, beta: float) -> int | None:
        """Return the first epoch of the least loss on validation data at this β, that of the end; None without any."""
        losses = {
            row["epoch"]: row["valid_reconstruction"] + beta * row["valid_kl"]
            for row in self
            if "valid_reconstruction" in row
        }
        return min(losses, key=losses.__getitem__) if losses else None


def bound_name(rows: Iterable[Mapping[str, Any]]) -> str:
    """What ``neg_elbo`` is: without a prior, as in an autoencoder, the reconstruction alone, which bounds nothing."""
    return "−ELBO" if any(row.get("kl") != 0 for row in rows) else "reconstruction"

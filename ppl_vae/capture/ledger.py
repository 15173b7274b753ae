r"""The ledger: what came of the steps since somebody last looked, kept on the device until somebody does.

.. math:: \text{flag}_t = \max(\text{flag}_{t-1}, 1[\ell_t, \nabla \ell_t \text{ not finite}]), \qquad
    \text{sums}_t = \text{sums}_{t-1} + 1[\text{flag}_t = 0]\, (\ell_t, 1, \ldots)

Looking at a number on a GPU means waiting for it, so steps that nobody waits for add up there; and as one of them may
turn out not to have been finite, the last of their inputs are kept, to run that one again and say where it began.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Ledger", "count"]

# Steps whose inputs are kept, on the device; and bytes of these.
_KEPT, _BYTES = 100, 2**28


def count(loss: Tensor, norm: Tensor, watched: Sequence[Tensor], flag: Tensor, totals: Tensor) -> None:
    """Raise the flag if this step is not finite, and add it to the totals if no step was; all in place.

    Arguments:
        loss: (), of the step.
        norm: (), one number for its gradients: not finite if one of them is not.
        watched: of shape (), what else is added up.
        flag: (), zero until a step is not finite.
        totals: (2 + len(watched),), in double precision: of the loss, of steps, of what is watched.
    """
    finite = (loss.double() + norm.double()).isfinite()
    flag.copy_(torch.maximum(flag, (~finite).to(flag)))
    values = torch.stack([v.double() for v in (loss, torch.ones_like(loss), *watched)])
    totals.add_(torch.where(flag == 0, values, torch.zeros_like(values)))


class Ledger:
    """Sums over steps, of which some are on the device, and the inputs of the last of these."""

    def __init__(self) -> None:
        # Of the dtype that fused optimisers read, whatever the default is.
        self.flag = torch.zeros((), dtype=torch.float32)
        self._sums: dict[str, float] = collections.defaultdict(float)
        self._totals: dict[tuple[str, ...], Tensor] = {}
        self._kept: dict[int, Any] = {}
        self._bytes = 0
        # How many steps the device had counted when the first of these was kept.
        self._before = 0

    def to(self, device: torch.device) -> None:
        """Keep the flag, and the totals that are still to come, there."""
        self.flag = self.flag.to(device)

    def totals(self, watched: Mapping[str, Tensor]) -> Tensor:
        """Return the totals on the device for steps with these names beside the loss; all their graphs share them."""
        names = ("loss", "steps", *watched)
        if names not in self._totals:
            self._totals[names] = torch.zeros(len(names), dtype=torch.float64, device=self.flag.device)
        return self._totals[names]

    def add(self, **values: float) -> None:
        """Add what is known of a step already."""
        for name, value in values.items():
            self._sums[name] += value

    def keep(self, step: int, inputs: Any, size: int) -> None:
        """Keep the inputs of a step that nobody waits for, so many bytes."""
        self._kept[step] = inputs
        self._bytes += size

    @property
    def full(self) -> bool:
        """Whether it is time to look at the flag."""
        return len(self._kept) >= _KEPT or self._bytes >= _BYTES

    def look(self) -> tuple[int, Any] | None:
        """Return the first step that was not finite and its inputs, or None. It waits.

        Afterwards the flag is down, and no inputs are kept.
        """
        if not self._kept:
            return None
        counted = int(self._on_device()["steps"])
        kept, self._kept, self._bytes = list(self._kept.items()), {}, 0
        good, self._before = counted - self._before, counted
        if not self.flag.item():
            return None
        self.flag.zero_()
        return kept[good]

    def _on_device(self) -> dict[str, float]:
        sums: dict[str, float] = collections.defaultdict(float)
        for names, totals in self._totals.items():
            for name, value in zip(names, totals.tolist(), strict=True):
                sums[name] += value
        return sums

    def read(self) -> dict[str, float]:
        """Return the sums since the last call, which begin anew."""
        sums = self._on_device()
        for name, value in self._sums.items():
            sums[name] += value
        self._sums.clear()
        for totals in self._totals.values():
            totals.zero_()
        self._before = 0
        return dict(sums)

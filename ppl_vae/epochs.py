r"""One pass over the rows: an epoch of training, and the measurement on the rows that are held out.

.. math:: -\mathrm{ELBO} = \frac1N \sum_{i=1}^N \bigl(-\log p(x_i \mid z_i, y_i) + \mathrm{KL}_i\bigr)

at β = 1, whatever β is trained with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import Unit
from torch import Tensor

from .batches import READ_ONCE, Batches
from .capture import CapturedSVI, Watch
from .devices import seeded
from .errors import DataError, NonFiniteError
from .model import VAE
from .objectives import elbo_terms

__all__ = ["Terms", "train_epoch", "validate"]


class Terms(Watch):
    """Sees −log p of the site x and log q − log p of the site z, at β = 1, as they pass in one step."""

    def __init__(self) -> None:
        super().__init__()
        self.reconstruction: Tensor | float = 0.0
        self.kl: Tensor | float = 0.0
        self.passes = 0
        self._of_guide = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == "missing" and isinstance(msg["fn"], Unit):
            # −KL(q(y|x) ‖ p(y)) of labels that were summed out.
            self.kl = self.kl - msg["fn"].log_factor.sum(-1).mean().detach()
        if msg["name"] not in ("x", "z"):
            return
        # Not under no_grad: a transform that remembers its inverse would then hand the loss one without a gradient.
        log_prob = msg["fn"].log_prob(msg["value"])
        if (weights := msg["infer"].get("weights")) is not None:
            log_prob = (weights * log_prob).sum(-2)
        # (*, N): vectorised particles stand in front of the batch, and what counts is their mean.
        log_prob = log_prob.sum(-1).mean().detach()
        if msg["name"] == "x":
            self.reconstruction = self.reconstruction - log_prob
            self.passes += 1
        else:
            # The guide's z comes first, log q; then the model's, which replays it, log p.
            self.kl = self.kl + (log_prob if self._of_guide else -log_prob)
            self._of_guide = not self._of_guide

    def values(self) -> dict[str, Tensor]:
        """Return both, summed over the batch and averaged over particles."""
        if not self.passes:
            return {}
        return {"reconstruction": self.reconstruction / self.passes, "kl": self.kl / self.passes}  # type: ignore


def train_epoch(vae: VAE, steps: CapturedSVI, batches: Batches) -> dict[str, float]:
    """Run one epoch; return its means per datum."""
    vae.train()
    started, rows = time.perf_counter(), 0

    def counted() -> Iterator[tuple[Any, ...]]:
        nonlocal rows
        for inputs in batches.shuffled():
            rows += len(inputs[0])
            yield inputs

    steps.run(counted())
    if not rows:
        raise DataError(READ_ONCE)
    sums = steps.read()
    seconds = time.perf_counter() - started
    vae.eval()
    reconstruction, kl = (sums.get(name, math.nan) / rows for name in ("reconstruction", "kl"))
    row = {"loss": sums["loss"] * batches.batch_size / rows, "neg_elbo": reconstruction + kl}
    return row | {"reconstruction": reconstruction, "kl": kl, "seconds": seconds, "rate": rows / seconds}


def validate(vae: VAE, batches: Batches, seed: int | None) -> dict[str, float]:
    """Return the −ELBO per datum at β = 1, from the same random numbers every time and none of training's."""
    vae.eval()
    with seeded(seed or 0, batches.device), torch.no_grad():
        found = [torch.stack(elbo_terms(vae, x, y, 1, *mask), -1) for x, y, *mask in batches.in_order()]
    if not found:
        raise DataError(READ_ONCE)
    terms = torch.cat(found)
    reconstruction, kl = terms.double().mean(0).tolist()
    if not math.isfinite(reconstruction + kl):
        row = int(terms.isfinite().all(-1).int().argmin())
        raise NonFiniteError(
            f"validation: −log p(x|z,y) = {reconstruction:g} and KL = {kl:g}, expected finite; the first row that is "
            f"not is {row}. Look at the range of valid beside that of train"
        )
    return {"valid_neg_elbo": reconstruction + kl, "valid_reconstruction": reconstruction, "valid_kl": kl}

r"""Batches: whatever holds data, as (x, y) on the device.

.. math:: \{(x_i, y_i)\}_{i=1}^{N} \to \text{batches of } B, \text{ each row once an epoch}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from .data import Split
from .errors import ConfigError
from .model import VAE

__all__ = ["Batches"]


class Batches:
    """Whatever ``fit`` was given, as batches (x, y) on the device; rows live there when they are tensors."""

    def __init__(self, vae: VAE, source: Any, batch_size: int, device: torch.device) -> None:
        self.vae, self.device, self.batch_size = vae, device, batch_size
        self.binarize, self.loader = "none", None
        if isinstance(source, DataLoader):
            if source.batch_size is None:
                raise ConfigError("a DataLoader needs a batch_size, which the loss per datum is scaled by")
            self.loader, self.batch_size = source, source.batch_size
            self.x, self.y = self._unpack(next(iter(source)), from_dataset=True)
            self.rows = len(source.dataset)  # type: ignore[arg-type]
        else:
            if isinstance(source, Split):
                self.binarize = source.binarize
                source, labelled = (source.x, source.y), True
            elif isinstance(source, Dataset):
                source, labelled = default_collate([source[i] for i in range(len(source))]), True  # type: ignore
            else:
                labelled = False
            self.x, self.y = self._unpack(source, from_dataset=labelled)
            self.rows = len(self.x)
        self._check(self.x, self.y)
        if self.y is not None and (observe := getattr(vae.condition, "observe", None)) is not None:
            observe(self.y)

    def _unpack(self, batch: Any, from_dataset: bool) -> tuple[Tensor, Tensor | None]:
        x, y = (batch, None) if not isinstance(batch, Sequence) else (*batch, None)[:2]
        if from_dataset and self.vae.condition is None:
            # A data set carries labels by nature; a model that has no y does not look at them.
            y = None
        return torch.as_tensor(x), None if y is None else torch.as_tensor(y)

    def _check(self, x: Tensor, y: Tensor | None) -> None:
        # A fresh draw every step is of 0 or 1; rounding stands for all of them here.
        self.vae.check(x if self.binarize == "none" else x.round(), y)
        self.x = x.to(self.vae._beta) if self.loader is None else x
        self.y = None if y is None else y.to(self.device)

    def __len__(self) -> int:
        return self.rows

    def first(self) -> tuple[Tensor, Tensor | None]:
        """Return one batch, to meet the parameters."""
        return self._draw(self.x[: self.batch_size]), None if self.y is None else self.y[: self.batch_size]

    def shuffled(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield every row once, in random order."""
        return self._from_loader() if self.loader is not None else self._rows(torch.randperm(self.rows))

    def in_order(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield every row once, in order."""
        return self._from_loader() if self.loader is not None else self._rows(torch.arange(self.rows))

    def _rows(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        for index in order.to(self.device).split(self.batch_size):
            yield self._draw(self.x[index]), None if self.y is None else self.y[index]

    def _from_loader(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in self.loader:  # type: ignore[union-attr]
            x, y = self._unpack(batch, from_dataset=True)
            self.vae.check(x, y)
            yield x.to(self.vae._beta), None if y is None else y.to(self.device)

    def _draw(self, x: Tensor) -> Tensor:
        return torch.bernoulli(x) if self.binarize == "dynamic" else x.to(self.vae._beta)

    def digest(self) -> str:
        """Return a fingerprint of the rows, so that a run is not resumed on others."""
        sha = hashlib.sha256()
        for tensor in (self.x, self.y):
            if tensor is not None:
                sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

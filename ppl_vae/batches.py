r"""Batches: whatever holds data, as (x, y) on the device.

.. math:: \{(x_i, y_i)\}_{i=1}^{N} \to \text{batches of } B, \text{ each row once an epoch}
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from .data import Split, as_tensor
from .errors import ConfigError, DataError, LabelError, ShapeError
from .model import VAE
from .networks import widest

__all__ = ["READ_ONCE", "Batches"]

READ_ONCE = "expected batches in every epoch, got a DataLoader with none left: it can be read only once"
# How many numbers rows may cost that are looked at together, without a gradient.
_TOGETHER = {"cpu": 2**20, "cuda": 2**25}


class Batches:
    """Whatever ``fit`` was given, as batches (x, y) or (x, y, mask) on the device; tensors of rows live there."""

    def __init__(self, vae: VAE, source: Any, batch_size: int, device: torch.device, *, observe: bool = False) -> None:
        self.vae, self.device, self.batch_size = vae, device, batch_size
        # Told which labels there are, if these are the rows that are trained on.
        self.observe = vae.observe if observe else None
        self.binarize, self.loader = "none", None
        if isinstance(source, DataLoader):
            if source.batch_size is None:
                raise ConfigError("a DataLoader needs a batch_size, which the loss per datum is scaled by")
            # A worker has a copy of its own in every epoch.
            if not source.num_workers:
                _check_again(source.dataset)
            self.loader, self.batch_size = source, int(source.batch_size)
            first = next(iter(source), None)
            if first is None:
                raise DataError("expected at least one batch of data, got a DataLoader with none")
            self.x, self.y, self.mask = self._unpack(first, from_dataset=True)
            # A sampler may draw more rows than there are, or fewer; torch's own for a stream does not say.
            counted: Any = source.sampler if hasattr(source.sampler, "__len__") else source.dataset
            self.rows = len(counted) if hasattr(counted, "__len__") else None
        else:
            if isinstance(source, Split):
                self.binarize = source.binarize
                source, labelled = (source.x, source.y), True
            elif isinstance(source, Dataset):
                if not hasattr(source, "__len__") or not len(source):
                    raise DataError("expected a Dataset with at least one row, and a DataLoader round an iterable one")
                source, labelled = default_collate([source[i] for i in range(len(source))]), True
            else:
                labelled = False
            self.x, self.y, self.mask = self._unpack(source, from_dataset=labelled)
            self.rows = len(self.x)
        self._check(self.x, self.y, self.mask)
        if self.rows is not None:
            self.batch_size = min(self.batch_size, self.rows)
        self.divisor: int | None = None
        if self.loader is None:
            self.x, self.divisor = _compact(self.x.to(vae._beta))
        if self.divisor is not None:
            self.levels = _levels(self.divisor, vae._beta.dtype).to(device)
        self.y, self.mask = (None if rows is None else rows.to(device) for rows in (self.y, self.mask))
        if observe:
            self._check_range()

    def _unpack(self, batch: Any, from_dataset: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        given = tuple(batch) if isinstance(batch, Sequence) else (batch,)
        if not 1 <= len(given) <= 3:
            raise DataError(f"expected x, (x, y) or (x, y, mask), got {len(given)} things: a list is no array of rows")
        x, y, mask = (*given, None, None)[:3]
        if from_dataset and self.vae.condition is None:
            # A data set carries labels by nature; a model that has no y does not look at them.
            y = None
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                "expected x, (x, y), (x, y, mask), a Split (of a data set, pass data.train), a Dataset or a DataLoader "
                f"that gives one of these, got {type(batch).__name__}: {error}"
            ) from error
        # Rows are given, and none of what made them is trained.
        x, y = as_tensor(x).detach(), None if y is None else as_tensor(y, "y", LabelError).detach()
        if not x.dim():
            raise ShapeError("x: expected (N, *x_shape), got a number")
        like_x = y is not None and mask is None and y.dtype == torch.bool and y.shape == x.shape and x.dim() > 1
        if like_x and tuple(getattr(self.vae.condition, "y_shape", ())) != tuple(x.shape[1:]):
            raise DataError("expected (x, y), got a bool y of the shape of x: pass a mask third, as (x, None, mask)")
        mask = self.vae._mask(x, mask)
        # What is not seen may be NaN, and need not be kept.
        x = x if mask is None else torch.where(mask, x, torch.zeros_like(x))
        if y is not None and not self.vae.per_row(y):
            if tuple(y.shape) != (shape := tuple(getattr(self.vae.condition, "y_shape", ()))):
                raise ShapeError(
                    f"y: expected (N, {', '.join(map(str, shape))}), got {tuple(y.shape)}: pass y[:, None] for one "
                    "number a row"
                )
            y = y.expand(len(x), *shape)
        return x, y, mask

    def _check(self, x: Tensor, y: Tensor | None, mask: Tensor | None) -> None:
        # In one batch of many nothing may be seen: its rows count as they do among others, and their KL is trained.
        unseen = self.loader is not None and mask is not None and not mask.any()
        x = x if unseen else self.vae._seen(x, mask)
        if self.binarize == "dynamic":
            if ((x < 0) | (x > 1)).any():
                raise DataError(f"binarize='dynamic': expected probabilities in [0, 1], got {x.min():g} … {x.max():g}")
            # A fresh draw every step is of 0 or 1; rounding stands for all of them here.
            x = x.round()
        y = y if self.observe is None else self.vae.labels_to_check(y)
        with warnings.catch_warnings():
            if self.observe is not None:
                # What training shows now, it need not have shown before.
                warnings.filterwarnings("ignore", "label .* was never seen in training")
            (self.vae.check_labels if unseen else self.vae.check)(x, y)
        expected = getattr(self.vae.likelihood, "x_shape", None)
        if expected is not None and tuple(x.shape[1:]) != tuple(expected):
            raise ShapeError(f"x: expected (N, {', '.join(map(str, expected))}), got {tuple(x.shape)}")

    def _check_range(self) -> None:
        """Warn of rows that every part takes, and of which a model built for others learns next to nothing."""
        x, found = self._values(self.x), []
        parts: Any = self.vae.encoder.modules() if isinstance(self.vae.encoder, nn.Module) else ()
        said = [part for part in parts if all(hasattr(part, name) for name in ("x_shape", "shift", "scale"))]
        for part in said[:1]:
            units = (x - part.shift) / part.scale
            units = units if self.mask is None else units[self.mask]
            # Of rows that are standardised it is about 1.
            if units.square().mean() > 5**2:
                found.append(
                    f"x reaches {units.abs().max():.3g} in units of the encoder's range: build the model with "
                    "range=data.range"
                )
            zero = ((x.new_zeros(()) - part.shift) / part.scale).abs().max()
            if self.mask is not None and not self.mask.all() and zero > 5:
                found.append(
                    f"unseen pixels are given to the encoder as 0, {zero:.3g} units from its range: standardise x"
                )
        levels, largest = getattr(self.vae.likelihood, "levels", None), x.max().item()
        # The first batch of a loader need not have the largest count.
        if self.loader is None and isinstance(levels, int) and levels - 1 > 4 * max(1, largest):
            found.append(
                f"x reaches {largest:g} of the likelihood's {levels - 1}: build the model with levels={largest + 1:g}, "
                "if no pixel can have more"
            )
        if found:
            warnings.warn("; ".join(found), stacklevel=4)

    @property
    def steps(self) -> int | None:
        """How many batches an epoch has; None where that is not known."""
        return None if self.rows is None else math.ceil(self.rows / self.batch_size)

    def shapes(self) -> list[tuple[Any, ...]]:
        """Return inputs for a step of every shape there is; labels of training rows count as seen from here on."""
        self._seen(self.y)
        if self.loader is not None:
            return [self._row(self.x.to(self.vae._beta), self.y, self.mask)]
        sizes = {min(self.batch_size, len(self.x)), len(self.x) % self.batch_size} - {0}
        return [(torch.arange(size, device=self.device),) for size in sorted(sizes, reverse=True)]

    def start(self) -> None:
        """Show the rows to whatever of the prior wants to start from data, as pseudo-inputs do, and has not yet."""
        parts = self.vae.prior.modules() if isinstance(self.vae.prior, nn.Module) else ()
        waiting = [part for part in parts if hasattr(part, "started") and not part.started]
        if not waiting:
            return
        needed = max(number if isinstance(number := getattr(p, "components", 0), int) else 0 for p in waiting)
        x = self._rows(needed)
        for part in waiting:
            part.start_from(x)  # type: ignore[operator]

    def _rows(self, needed: int) -> Tensor:
        """At least so many rows, where there are as many; pixels that are not seen are the mean of those that are."""
        batches = [(self._values(self.x), self.mask)]
        if self.loader is not None and not _suffice(batches, needed):
            # From the start, as a loader that shuffles could give rows of the first batch again.
            batches = []
            for batch in self.loader:
                x, y, mask = self._unpack(batch, from_dataset=True)
                self._check(x, y, mask)
                batches.append((x.to(self.vae._beta), mask))
                if _suffice(batches, needed):
                    break
        xs, masks = zip(*batches, strict=True)
        x = torch.cat(xs)
        if all(mask is None for mask in masks):
            return x
        seen = [torch.ones_like(x, dtype=torch.bool) if m is None else m for x, m in zip(xs, masks, strict=True)]
        mask = torch.cat([mask.to(x.device) for mask in seen])
        if not mask.any():
            raise DataError("mask: expected at least one pixel that is seen (True) in all batches, got none")
        return _filled(x, mask)

    def shuffled(self) -> Iterator[tuple[Any, ...]]:
        """Yield the inputs of an epoch's steps: indices of all rows in random order, or what the loader gives."""
        if self.loader is not None:
            yield from self._from_loader()
        else:
            yield from ((index,) for index in torch.randperm(len(self.x)).to(self.device).split(self.batch_size))

    @staticmethod
    def _row(x: Tensor, y: Tensor | None, mask: Tensor | None) -> tuple[Any, ...]:
        return (x, y) if mask is None else (x, y, mask)

    def draw(self, first: Tensor, *rest: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the programs for the inputs of a step; what is drawn here is drawn anew each time."""
        if self.loader is not None:
            return (first, *rest), {}
        x = self.x[first]
        x = self._values(x)
        x = torch.bernoulli(x) if self.binarize == "dynamic" else x
        return self._row(x, *(None if rows is None else rows[first] for rows in (self.y, self.mask))), {}

    def _values(self, rows: Tensor) -> Tensor:
        if self.divisor is None:
            return rows.to(self.vae._beta)
        # A GPU divides by a number as it multiplies by another, which half of the grey levels do not survive.
        return self.levels[rows.int()] if rows.is_cuda else rows.to(self.vae._beta) / self.divisor

    def in_order(self) -> Iterator[tuple[Any, ...]]:
        """Yield every row once, in order, as (x, y) or (x, y, mask)."""
        if self.loader is not None:
            yield from self._from_loader()
        else:
            # Many small batches are mostly overhead, where nothing has to be kept for a gradient.
            numbers = max(self.vae.numbers(self.x[:1]), widest(self.vae.encoder))
            fit = _TOGETHER["cuda" if self.device.type == "cuda" else "cpu"] // numbers
            for index in torch.arange(len(self.x), device=self.device).split(max(self.batch_size, fit)):
                yield self.draw(index)[0]

    def _from_loader(self) -> Iterator[tuple[Any, ...]]:
        for batch in self.loader:  # type: ignore[union-attr]
            x, y, mask = self._unpack(batch, from_dataset=True)
            self._check(x, y, mask)
            self._seen(y)
            # Of a loader that pins its memory, what comes next is fetched while the device is still at work.
            y, mask = (None if rows is None else rows.to(self.device, non_blocking=True) for rows in (y, mask))
            yield self._row(x.to(self.device, self.vae._beta.dtype, non_blocking=True), y, mask)

    def _seen(self, y: Tensor | None) -> None:
        if self.observe is not None and y is not None:
            self.observe(y)

    def digest(self) -> str:
        """Return a fingerprint of the rows, so that a run is not resumed on others; none of what a loader will give."""
        if self.loader is not None:
            return ""
        sha = hashlib.sha256()
        for name, tensor in (("x", self.x), ("y", self.y), ("mask", self.mask)):
            if tensor is not None:
                # The same bytes may be other rows: of grey levels 0 … 255 and 0 … 1, or of images of another shape.
                divisor = self.divisor if name == "x" else None
                sha.update(repr((name, str(tensor.dtype), tuple(tensor.shape), divisor)).encode())
                # A copy, as one column or one row passes for contiguous whatever its strides.
                flat = tensor.cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
                sha.update(flat.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


def _check_again(stream: Any) -> None:
    """Raise for a stream that keeps one iterator, as the look at the first batch would be the end of that batch.

    One that is its own iterator may begin anew whenever it is asked for.
    """
    if isinstance(stream, IterableDataset) and (begun := iter(stream)) is not stream and begun is iter(stream):
        raise DataError(READ_ONCE)


def _suffice(batches: list[tuple[Tensor, Tensor | None]], needed: int) -> bool:
    """Whether there are so many rows, and something is seen of them."""
    return sum(len(x) for x, _ in batches) >= needed and any(mask is None or mask.any() for _, mask in batches)


def _filled(x: Tensor, mask: Tensor) -> Tensor:
    """X, which is zero where it is not seen, with the mean of a pixel there; of all pixels, if it is never seen."""
    seen, total = mask.sum(0), x.sum(0, dtype=torch.float64)
    mean = torch.where(seen > 0, total / seen.clamp(min=1), total.sum() / seen.sum())
    return torch.where(mask, x, mean.to(x))


def _levels(divisor: int, dtype: torch.dtype) -> Tensor:
    """What the bytes stand for, as a CPU divides."""
    return torch.arange(256, dtype=dtype) / divisor


def _compact(x: Tensor) -> tuple[Tensor, int | None]:
    """Rows as bytes and what to divide them by, if that gives them back bit for bit; else as they are.

    Grey levels and binary pixels need a quarter of the memory, and so does fetching a batch of them.
    """
    for divisor in (1, 255):
        levels = (x * divisor).round()
        if levels.min() < 0 or levels.max() > 255:
            continue
        if torch.equal(_levels(divisor, x.dtype).to(x)[levels.int()], x):
            return levels.to(torch.uint8), divisor
    return x, None

r"""The judge of samples: a small classifier of the real training data.

.. math:: p(y \mid x) = \mathrm{softmax}\bigl(W f(x) + b\bigr), \qquad f(x) \in \mathbb{R}^{64}

What it sees in a sample is a label; what lies close together for it, in f, is alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..data import check_finite
from ..devices import check_gradients, seeded
from ..errors import LabelError, check_positive
from ..networks import Conv, Network
from .labels import check_labels

__all__ = ["Judge", "train_judge"]

_FEATURES = 64


class Judge(nn.Module):
    """A small classifier: convolutions where x is an image, else dense layers; then 64 features, then the labels.

    Arguments:
        x_shape: the shape of one x.
        classes: the number of labels.

    Example:
        >>> judge = Judge((1, 8, 8), 10)
        >>> x = torch.zeros(5, 1, 8, 8)
        >>> judge(x).shape, judge.features(x).shape
        (torch.Size([5, 10]), torch.Size([5, 64]))
    """

    shift: Tensor
    scale: Tensor
    unit: Tensor

    def __init__(self, x_shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.x_shape, self.classes = tuple(x_shape), classes
        self.body = Network(x_shape, (_FEATURES,), 0, (256,), Conv if len(x_shape) > 1 else None)
        self.head = nn.Linear(_FEATURES, classes)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("unit", torch.ones(()))

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer, (N, 64)."""
        return self.body((x.to(self.shift) - self.shift) / self.scale).relu() / self.unit

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for x (N, *x_shape)."""
        return self.head(self.features(x) * self.unit)


def train_judge(
    x: Any,
    y: Any,
    *,
    steps: int = 1000,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    device: torch.device | None = None,
) -> Judge:
    """Train a :class:`Judge` on real data, with Adam and a learning rate that falls to zero.

    Arguments:
        x: (N, *x_shape), of the kind a model draws: binary, if its samples are.
        y: (N,) integer labels from 0.
        steps: how many batches.
        batch_size: rows in each.
        lr: the learning rate at the start.
        seed: of everything random; the same data and seed give the same judge.
        device: where it is trained; that of x if None.

    Raises:
        LabelError: unless there is a label a row, and two labels or more.
        DataError: for values that are not finite.
        ConfigError: inside ``torch.inference_mode()``.

    Example:
        >>> y = torch.arange(40) % 2
        >>> x = torch.randn(40, 3) + 6.0 * y[:, None]
        >>> judge = train_judge(x, y, steps=50)
        >>> bool((judge(x).argmax(1) == y).all())
        True
    """
    check_positive(steps=steps, batch_size=batch_size)
    x = torch.as_tensor(x)
    y = check_labels(y, len(x))
    check_finite(x)
    if not len(x) or y.min() < 0 or y.max() == y.min():
        raise LabelError(f"train_judge: expected rows of two labels or more, from 0, got {y.unique().tolist()}")
    device = x.device if device is None else device
    # Not float64, which the judge does not need; not bytes, which have no mean.
    x, y = x.to(device, torch.float32), y.to(device)
    with seeded(seed, device), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        check_gradients("train_judge")
        judge = Judge(tuple(x.shape[1:]), int(y.max()) + 1).to(device)
        judge.shift.copy_(x.mean())
        judge.scale.copy_(x.std().clamp(min=1e-6))
        adam = torch.optim.Adam(judge.parameters(), lr)
        falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        left = torch.empty(0, dtype=torch.long, device=device)
        for _ in range(steps):
            if not len(left):
                left = torch.randperm(len(x)).to(device)
            batch, left = left[:batch_size], left[batch_size:]
            adam.zero_grad()
            cross_entropy(judge(x[batch]), y[batch]).backward()
            adam.step()
            falling.step()
        judge.eval().requires_grad_(False)
        # Sizes grow while it learns, which would be all that a cubic kernel sees.
        squares = torch.stack([judge.features(some).square().mean() * len(some) for some in x.split(1000)])
        judge.unit.copy_((squares.sum() / len(x)).sqrt().clamp(min=1e-6))
    return judge

r"""Conditions: y → c.

.. math:: c = \mathrm{condition}(y) \in \mathbb{R}^{* \times \text{context}}

A condition is called with y, any batch dimensions in front, and returns floats (*, context) that every part is given. A
function or a module of yours is one as it stands; here are those that also say how wide c is (``context``), how one y
is shaped (``y_shape``), and which y they take (``check``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from .data import as_tensor, check_finite
from .errors import ConfigError, LabelError, ShapeError, check_positive, check_shape, check_units
from .networks import Body, Network
from .parts import Part

__all__ = ["Continuous", "Image", "OneHot", "OneHots"]


class _Condition(Part):
    """What conditions share: the shape of one y, the width of what it becomes, and the checks every y must pass."""

    def __init__(self, y_shape: Sequence[int], context: int) -> None:
        super().__init__()
        self.y_shape, self.context = tuple(y_shape), context

    def check(self, y: Any) -> None:
        """Raise unless y (*, *y_shape) is what this condition takes.

        Raises:
            ShapeError: if y ends in another shape.
            LabelError: for labels that are no whole numbers or out of range.
            DataError: for NaN or infinity.
        """
        y = as_tensor(y, "y", LabelError)
        event = y.dim() - len(self.y_shape)
        if event < 0 or tuple(y.shape[event:]) != self.y_shape:
            raise ShapeError(f"y: expected (N, {', '.join(map(str, self.y_shape))}), got {tuple(y.shape)}")
        self._check_values(y)

    def _check_values(self, y: Tensor) -> None:
        check_finite(y, "y")

    def _checked(self, y: Tensor) -> Tensor:
        """Y, once it is checked; Pyro's switch turns that off, as recording does, for data that are known."""
        if is_validation_enabled():
            self.check(y)
        return y


def _check_labels(y: Tensor, seen: Tensor, where: str = "") -> None:
    """Raise unless y is labels 0 … len(seen) − 1; warn of one that was not seen where others were."""
    if y.is_floating_point() or y.dtype == torch.bool:
        raise LabelError(f"expected integer labels{where}, got {y.dtype}: pass y.long() if they are whole numbers")
    if not y.numel():
        return
    if y.min() < 0 or y.max() >= len(seen):
        raise LabelError(f"expected labels{where} 0 … {len(seen) - 1}, got {y.min().item()} … {y.max().item()}")
    unseen = ~seen[y.long().to(seen.device)]
    if unseen.any() and seen.any():
        labels = y.to(unseen.device)[unseen].unique().tolist()
        warnings.warn(f"label {', '.join(map(str, labels))}{where} was never seen in training", stacklevel=4)


def _one_hot(y: Tensor, classes: int) -> Tensor:
    return (y.unsqueeze(-1) == torch.arange(classes, device=y.device)).to(torch.get_default_dtype())


class OneHot(_Condition):
    r"""The condition of labels: an integer y in 0 … classes − 1 becomes a row of the identity.

    .. math:: c_k = [y = k]

    Arguments:
        classes: the number of labels.

    Reference:
        Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et al., 2015)

    Example:
        >>> OneHot(3)(torch.tensor([0, 2]))
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """

    seen: Tensor

    def __init__(self, classes: int) -> None:
        check_positive(classes=classes)
        super().__init__((), int(classes))
        self.classes = int(classes)
        # Which labels training has shown; none means that nobody kept count.
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def observe(self, y: Tensor) -> None:
        """Remember that these labels were trained on; others asked for later give a warning."""
        self.seen[y.unique().long().to(self.seen.device)] = True

    def _check_values(self, y: Tensor) -> None:
        _check_labels(y, self.seen)

    def forward(self, y: Tensor) -> Tensor:
        """Return floats (*, classes) for integers y (*)."""
        return _one_hot(self._checked(y), self.classes)


class OneHots(_Condition):
    r"""The condition of several labels at once, such as what an image shows and who drew it: their one-hot rows.

    .. math:: c = [e_{y_1}; e_{y_2}; \ldots]

    Arguments:
        classes: the number of labels in each column of y.

    Reference:
        Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et al., 2015)

    Example:
        >>> OneHots((2, 3))(torch.tensor([[0, 2], [1, 0]]))
        tensor([[1., 0., 0., 0., 1.],
                [0., 1., 1., 0., 0.]])
    """

    seen: Tensor

    def __init__(self, classes: Sequence[int]) -> None:
        check_positive(columns=len(classes), **{f"classes[{i}]": k for i, k in enumerate(classes)})
        super().__init__((len(classes),), int(sum(classes)))
        self.classes = tuple(map(int, classes))
        self.register_buffer("seen", torch.zeros(self.context, dtype=torch.bool))

    def observe(self, y: Tensor) -> None:
        """Remember that these labels were trained on; others asked for later give a warning."""
        for column, seen in zip(y.unbind(-1), self.seen.split(self.classes), strict=True):
            seen[column.unique().long().to(seen.device)] = True

    def _check_values(self, y: Tensor) -> None:
        for i, (column, seen) in enumerate(zip(y.unbind(-1), self.seen.split(self.classes), strict=True)):
            _check_labels(column, seen, f" of column {i}")

    def forward(self, y: Tensor) -> Tensor:
        """Return floats (*, sum of classes) for integers y (*, columns)."""
        columns = zip(self._checked(y).unbind(-1), self.classes, strict=True)
        return torch.cat([_one_hot(column, k) for column, k in columns], -1)


class Continuous(_Condition):
    r"""The condition of real numbers, standardised: :math:`c = (y - \text{shift}) / \text{scale}`.

    Arguments:
        features: how many numbers one y has.
        shift, scale: a number for all of them, or one each, such as ``y.mean(0)`` and ``y.std(0)`` of the training
            data.

    Raises:
        ConfigError: if they are not finite, a scale is not positive, or there are more or fewer than features.

    Reference:
        Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et al., 2015)

    Example:
        >>> Continuous(2, shift=10.0, scale=[1.0, 5.0])(torch.tensor([[11.0, 15.0]]))
        tensor([[1., 1.]])
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        features: int,
        shift: float | Sequence[float] | Tensor = 0.0,
        scale: float | Sequence[float] | Tensor = 1.0,
    ) -> None:
        check_positive(features=features)
        super().__init__((features,), features)
        for name, value in {"shift": shift, "scale": scale}.items():
            numbers = torch.as_tensor(value, dtype=torch.float64)
            if numbers.shape not in ((), (features,)) or not numbers.isfinite().all():
                raise ConfigError(f"{name}: expected one finite number, or one for each of {features}, got {value}")
            self.constant(name, numbers.expand(features))
        if not (self.scale > 0).all():
            raise ConfigError(f"expected scale > 0, got {scale}")

    def forward(self, y: Tensor) -> Tensor:
        """Return floats (*, features) for y (*, features)."""
        return (self._checked(y).to(self.shift) - self.shift) / self.scale


class Image(_Condition):
    r"""The condition of an image, or of any y that a network is to look at: learned with the rest of the model.

    .. math:: c = \mathrm{network}\bigl((y - \text{shift}) / \text{scale}\bigr)

    With the quadrant of an image for y and all of it for x, say, this is structured output prediction.

    Arguments:
        y_shape: the shape of one y.
        features: the number of context features the network makes of it.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        shift, scale: what standardises y.

    Reference:
        Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee and Yan, 2015)

    Example:
        >>> Image((1, 28, 28), 50)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 50])
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        y_shape: Sequence[int],
        features: int,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        shift: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        check_positive(features=features)
        super().__init__(check_shape("y_shape", y_shape), features)
        shift, scale = check_units(shift, scale)
        self.network = Network(self.y_shape, (features,), 0, hidden, network)
        self.constant("shift", shift)
        self.constant("scale", scale)

    def forward(self, y: Tensor) -> Tensor:
        """Return floats (*, features) for y (*, *y_shape)."""
        return self.network((self._checked(y).to(self.shift) - self.shift) / self.scale)

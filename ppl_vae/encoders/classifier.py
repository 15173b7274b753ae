r"""What tells the label from x.

.. math:: q(y \mid x) = \mathrm{Categorical}(\mathrm{softmax}(\mathrm{network}(x)))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from ..errors import check_positive
from ..networks import Body
from .base import Encoder

__all__ = ["Classifier"]


class Classifier(Encoder):
    r"""A categorical distribution over labels, from a network of x: the encoder of y.

    Arguments:
        classes: the number of labels.
        x_shape: the shape of one x.
        context: the number of context features, if the label depends on more than x.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        shift, scale: what standardises x.

    Reference:
        Semi-supervised Learning with Deep Generative Models (Kingma et al., 2014)

    Example:
        >>> Classifier(10, (1, 28, 28))(torch.zeros(5, 1, 28, 28)).probs.shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        classes: int,
        x_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        shift: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        check_positive(classes=classes)
        super().__init__(classes, x_shape, context, hidden, network, shift, scale)
        self.classes = classes

    def from_raw(self, raw: Tensor) -> Any:
        """Return q(y | x), a distribution over 0 … classes − 1."""
        return dist.Categorical(logits=raw)

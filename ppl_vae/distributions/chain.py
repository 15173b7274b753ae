r"""Two distributions, the second given the first, as one over both.

.. math:: \log p(z_1, z_2) = \log p(z_1) + \log p(z_2 \mid z_1)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.nn.functional import normalize

from ..errors import ShapeError
from .adapt import as_pyro

__all__ = ["Chain", "onto_spheres", "spheres"]


class Chain(TorchDistribution):
    """The joint distribution of one vector [z₁; z₂].

    Arguments:
        first: p(z₁), a distribution over (D₁,) with batch shape (*).
        then: z₁ (*, D₁) → p(z₂ | z₁), a distribution over (D₂,).
        features: D₂.
        reparameterized: whether what ``then`` returns has ``rsample``; the joint one has it if both have.
        support: where z₂ lies, a constraint on vectors.

    Raises:
        ShapeError: if either of them is not over vectors, or z₂ has other than ``features`` coordinates.

    Example:
        >>> z1 = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> joint = Chain(z1, lambda z: dist.Normal(z.sum(-1, keepdim=True), 0.1).to_event(1), 1)
        >>> z = joint.sample((5,))
        >>> z.shape, bool(((z[:, 0] + z[:, 1] - z[:, 2]).abs() < 0.5).all())
        (torch.Size([5, 3]), True)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        first: Any,
        then: Callable[[Tensor], Any],
        features: int,
        reparameterized: bool = True,
        support: Any = constraints.real_vector,
        validate_args: bool | None = None,
    ) -> None:
        self.first, self.then, self.features = as_pyro(first), then, features
        if self.first.event_dim != 1:
            raise ShapeError(
                f"Chain: expected a first distribution over vectors, got one over {tuple(self.first.event_shape)}: "
                "end it in .to_event(1)"
            )
        self._reparameterized, self._second_support = reparameterized, support
        size = self.first.event_shape[0] + features
        super().__init__(self.first.batch_shape, Size([size]), validate_args)

    def parts(self) -> tuple[Any, Any]:
        """Return both distributions, the second as it is after a draw of the first."""
        return self.first, as_pyro(self.then(self.first.sample()))

    @property
    def has_rsample(self) -> bool:
        """Whether both distributions can be differentiated through their draws."""
        return self.first.has_rsample and self._reparameterized

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """Where z₁ lies, and beside it where z₂ lies."""
        first, second = self.first.support, self._second_support
        if _is_real(first) and _is_real(second):
            return constraints.real_vector
        return _Beside(first, second, self.first.event_shape[0])

    def expand(self, batch_shape: Any, _instance: Any = None) -> Chain:
        """Return the same distribution with a larger batch shape."""
        first = self.first.expand(Size(batch_shape))
        new = Chain(first, self.then, self.features, self._reparameterized, self._second_support, False)
        new._validate_args = self._validate_args
        return new

    def _second(self, z: Tensor) -> Any:
        second = as_pyro(self.then(z))
        if second.event_shape != (self.features,):
            raise ShapeError(
                f"Chain: expected a second distribution over ({self.features},), got {tuple(second.event_shape)}"
            )
        return second

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return [z₁; z₂] (*sample_shape, *, D₁ + D₂)."""
        z = _draw(self.first, Size(sample_shape))
        second, batch = self._second(z), z.shape[:-1]
        if torch.broadcast_shapes(second.batch_shape, batch) != batch:
            raise ShapeError(
                f"Chain: expected z₂ given z₁ to have a batch shape within {tuple(batch)}, that of z₁, got "
                f"{tuple(second.batch_shape)}: expand the first distribution to the batch shape of both"
            )
        second = second.expand(batch)
        w = _draw(second, Size())
        value = torch.cat([z, w], dim=-1)
        self._drawn = value, z, w, second, torch.is_grad_enabled()
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z₁) + log p(z₂ | z₁) (*) in nats for [z₁; z₂] (*, D₁ + D₂)."""
        if self._validate_args:
            self._validate_sample(value)
        drawn, z, w, second, differentiable = self.__dict__.get("_drawn", (None,) * 5)
        # Scoring its own draw takes no second pass, unless the draw was made without gradients and the score is not.
        if drawn is not value or not (differentiable or not torch.is_grad_enabled()):
            z, w = value.tensor_split([self.first.event_shape[0]], dim=-1)
            second = self._second(z)
        return self.first.log_prob(z) + second.log_prob(w)


def _draw(d: Any, sample_shape: Size) -> Tensor:
    return d.rsample(sample_shape) if d.has_rsample else d.sample(sample_shape)


def _is_real(support: Any) -> bool:
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    return support is constraints.real


def spheres(support: Any, features: int, start: int = 0) -> set[tuple[int, int]]:
    """Return where in a vector of so many features its support has spheres, each as the half-open range of its indices.

    Example:
        >>> spheres(dist.constraints.sphere, 3), spheres(dist.constraints.real_vector, 3)
        ({(0, 3)}, set())
    """
    if isinstance(support, _Beside):
        split = support.split
        return spheres(support.first, split, start) | spheres(support.second, features - split, start + split)
    if (inner := getattr(support, "base_constraint", None)) is not None:
        return spheres(inner, features, start)
    return {(start, start + features)} if support is constraints.sphere else set()


def onto_spheres(z: Tensor, support: Any) -> Tensor:
    """Return z (*, D) with what belongs on a sphere scaled to length one: a mean of points on one lies inside it.

    Example:
        >>> onto_spheres(torch.tensor([0.3, 0.4]), dist.constraints.sphere)
        tensor([0.6000, 0.8000])
    """
    for first, last in spheres(support, z.shape[-1]):
        index = torch.arange(first, last, device=z.device)
        z = z.index_copy(-1, index, normalize(z[..., first:last], dim=-1))
    return z


class _Beside(constraints.Constraint):
    """Two constraints on vectors, for the first coordinates and for the rest."""

    event_dim = 1

    def __init__(self, first: Any, second: Any, split: int) -> None:
        self.first, self.second, self.split = first, second, split
        self.is_discrete = first.is_discrete or second.is_discrete

    def check(self, value: Tensor) -> Tensor:
        z, w = value.tensor_split([self.split], dim=-1)
        return self.first.check(z) & self.second.check(w)

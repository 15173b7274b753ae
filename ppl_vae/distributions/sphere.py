r"""Two densities on the unit sphere: the uniform one, and one that leans towards a direction.

.. math:: p(z) = \frac{\Gamma(D/2)}{2 \pi^{D/2}}, \qquad
    p(z; \mu, \kappa) \propto (1 + \mu^\top z)^\kappa, \qquad
    z \in S^{D-1} = \{z \in \mathbb{R}^D : \lVert z \rVert = 1\}

Both are with respect to the surface measure, so their values are comparable with each other, and with no density over
:math:`\mathbb{R}^D`.

Reference:
    The Power Spherical distribution (De Cao and Aziz, 2020)
"""

from __future__ import annotations

import math
import numbers
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.distributions import Gamma, register_kl
from torch.nn.functional import normalize

from ..errors import ConfigError, ShapeError

__all__ = ["PowerSpherical", "SphericalUniform"]


class SphericalUniform(TorchDistribution):
    r"""The uniform distribution on the unit sphere :math:`S^{D-1}` in :math:`\mathbb{R}^D`.

    Arguments:
        dim: D, at least two.
        batch_shape: (*).
        dtype, device: of the draws; torch's defaults if None.

    Raises:
        ConfigError: for a sphere of fewer than two dimensions around it.

    Example:
        >>> d = SphericalUniform(3)
        >>> d.sample((5,)).shape, round(d.log_prob(d.sample()).exp().item() * 4 * math.pi, 4)
        (torch.Size([5, 3]), 1.0)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: Any = (),
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(dim, bool) or not isinstance(dim, numbers.Integral) or dim < 2:
            raise ConfigError(f"SphericalUniform: expected dim to be a whole number ≥ 2, got {dim!r}")
        self.dim: int = int(dim)
        self.kind: dict[str, Any] = {"dtype": dtype, "device": device}
        super().__init__(Size(batch_shape), Size([dim]), validate_args)

    @property
    def log_area(self) -> float:
        """The logarithm of the area of the sphere."""
        return math.log(2) + 0.5 * self.dim * math.log(math.pi) - math.lgamma(0.5 * self.dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SphericalUniform:
        """Return the same distribution with a larger batch shape."""
        new = SphericalUniform(self.dim, batch_shape, validate_args=False, **self.kind)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return normal noise divided by its length, (*sample_shape, *, D)."""
        return normalize(torch.randn(self._extended_shape(Size(sample_shape)), **self.kind), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the logarithm of the area (*), in nats, for value (*, D) on the sphere."""
        if self._validate_args:
            self._validate_sample(value)
        return value.new_full(torch.broadcast_shapes(value.shape[:-1], self.batch_shape), -self.log_area)

    def entropy(self) -> Tensor:
        """Return the logarithm of the area (*), in nats."""
        return torch.full(self.batch_shape, self.log_area, **self.kind)

    @property
    def mean(self) -> Tensor:
        """Zero (*, D), which is no point of the sphere."""
        return torch.zeros(self.shape(), **self.kind)

    @property
    def variance(self) -> Tensor:
        """The variance 1/D of every coordinate (*, D)."""
        return torch.full(self.shape(), 1 / self.dim, **self.kind)


class PowerSpherical(TorchDistribution):
    r"""A density on the unit sphere that is highest at μ and zero opposite to it.

    .. math:: p(z; \mu, \kappa) = \frac{(1 + \mu^\top z)^\kappa}{N(\kappa)}, \qquad
        N(\kappa) = 2^{a + b} \pi^b \frac{\Gamma(a)}{\Gamma(a + b)}, \quad a = b + \kappa, \quad b = \frac{D - 1}{2}

    It is drawn without rejection: :math:`(1 + \mu^\top z) / 2` has the law Beta(a, b), and the rest of z is uniform on
    the sphere around μ.

    Arguments:
        loc: μ (*, D), of length one.
        concentration: κ ≥ 0 (*); zero makes it uniform.

    Raises:
        ShapeError: unless μ has at least two coordinates.

    Reference:
        The Power Spherical distribution (De Cao and Aziz, 2020)

    Example:
        >>> d = PowerSpherical(torch.tensor([0.0, 0.0, 1.0]), 8.0)
        >>> d.mean, d.sample((5,)).shape
        (tensor([0.0000, 0.0000, 0.8000]), torch.Size([5, 3]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.sphere,
        "concentration": constraints.nonnegative,
    }
    support = constraints.sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        if loc.dim() < 1 or loc.shape[-1] < 2:
            raise ShapeError(f"PowerSpherical: expected loc (*, D) with D ≥ 2, got {tuple(loc.shape)}")
        concentration = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc, self.concentration = loc.expand(*batch_shape, -1), concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PowerSpherical:
        """Return the same distribution with a larger batch shape."""
        batch_shape = Size(batch_shape)
        new = PowerSpherical(self.loc.expand(*batch_shape, -1), self.concentration.expand(batch_shape), False)
        new._validate_args = self._validate_args
        return new

    @property
    def _ab(self) -> tuple[Tensor, float]:
        # In double, because what follows subtracts log-gammas and digammas that are large and nearly equal.
        b = (self.event_shape[0] - 1) / 2
        return self.concentration.double() + b, b

    def _log_normalizer(self) -> Tensor:
        """Log of the integral of ((1 + μᵀz) / 2)^κ, in double."""
        a, b = self._ab
        return 2 * b * math.log(2) + b * math.log(math.pi) + torch.lgamma(a) - torch.lgamma(a + b)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return z (*sample_shape, *, D), differentiable in μ and κ."""
        shape = self._extended_shape(Size(sample_shape))
        # A Beta draw as the share of one gamma in two, and the other's, because one minus the first rounds to zero.
        both = self.concentration + self._ab[1], torch.full_like(self.concentration, self._ab[1])
        near, far = (Gamma(a, torch.ones_like(a), False).rsample(Size(sample_shape)).unsqueeze(-1) for a in both)
        near, far = near / (near + far), far / (near + far)
        side = self._side(shape)
        # With side held fixed, this is how z moves when μ turns to μ + dμ by the shortest way: bounded for every μ.
        # A frame made from μ, such as the reflection of an axis onto it, has a derivative without bound near the axis.
        loc = self.loc.expand(shape)
        return (near - far) * loc + 2 * (near * far).sqrt() * (side - loc * (loc * side).sum(-1, keepdim=True))

    @torch.no_grad()
    def _side(self, shape: Size) -> Tensor:
        """A random direction at right angles to μ."""
        side = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        # Once leaves a part along μ to rounding, which is not small beside what a draw close to μ leaves.
        for _ in range(2):
            side = normalize(side - self.loc * (self.loc * side).sum(-1, keepdim=True), dim=-1)
        return side

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) (*) in nats for z (*, D) on the sphere."""
        if self._validate_args:
            self._validate_sample(value)
        # (1 + μᵀz) / 2 = 1 − ‖z − μ‖² / 4 on the sphere, which keeps the digits that κ multiplies.
        apart = (value - self.loc).square().sum(-1) / 4
        below_one = apart.clamp(max=1 - torch.finfo(apart.dtype).eps)
        return self.concentration * torch.log1p(-below_one) - self._log_normalizer().to(apart)

    def entropy(self) -> Tensor:
        """Return −E[log p(z)] (*), in nats."""
        a, b = self._ab
        expected = self.concentration * (torch.digamma(a) - torch.digamma(a + b))
        return (self._log_normalizer() - expected).to(self.loc)

    def _moments(self) -> tuple[Tensor, Tensor]:
        """The first two moments of μᵀz, (*, 1)."""
        a, b = self.concentration.unsqueeze(-1) + self._ab[1], self._ab[1]
        first = (a - b) / (a + b)
        return first, first.square() + 4 * a * b / ((a + b).square() * (a + b + 1))

    @property
    def mean(self) -> Tensor:
        """The mean (*, D), which lies inside the sphere."""
        return self.loc * self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """The variance of every coordinate (*, D)."""
        first, second = self._moments()
        square = self.loc.square()
        return (second - first.square()) * square + (1 - second) / (self.event_shape[0] - 1) * (1 - square)


@register_kl(PowerSpherical, SphericalUniform)
def _kl_power_uniform(q: PowerSpherical, p: SphericalUniform) -> Tensor:
    if q.event_shape != p.event_shape:
        raise ShapeError(f"KL: expected two distributions on one sphere, got R^{q.event_shape[0]} and R^{p.dim}")
    return (p.log_area - q.entropy()).expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))

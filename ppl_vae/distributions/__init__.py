r"""Any distribution becomes a Pyro one; and the few densities no library has.

.. math:: d \mapsto \mathrm{as\_pyro}(d), \qquad
    \log p_{\mathrm{as\_pyro}(d)}(x) = \log p_d(x) \ \text{for every } x
"""

from .adapt import as_pyro, inside, is_ode, is_periodic, is_point, transport, zuko
from .chain import Chain, onto_spheres, spheres
from .divergences import kl_to_diagonal
from .gammas import Beta, Binomial, NegativeBinomial, Poisson, StudentT
from .mixtures import NormalMixture, diagonal, log_normals
from .pixels import ContinuousBernoulli, DiscretizedLogistic, GreyBernoulli, Levels
from .precision import LowRankMultivariateNormal, MultivariateNormal
from .sphere import PowerSpherical, SphericalUniform

__all__ = [
    "Beta",
    "Binomial",
    "Chain",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "GreyBernoulli",
    "Levels",
    "LowRankMultivariateNormal",
    "MultivariateNormal",
    "NegativeBinomial",
    "NormalMixture",
    "Poisson",
    "PowerSpherical",
    "SphericalUniform",
    "StudentT",
    "as_pyro",
    "diagonal",
    "inside",
    "is_ode",
    "is_periodic",
    "is_point",
    "kl_to_diagonal",
    "log_normals",
    "onto_spheres",
    "spheres",
    "transport",
    "zuko",
]

r"""Likelihoods: z, c → p(x | z, y).

.. math:: \log p(x \mid z, y) = \sum_{d=1}^{D} \log p(x_d;\ \theta_d(z, c))

Always the normalised log-density (or log-probability) of x in its own units, in nats, summed over the D pixels. Each
says what data it could have generated, and ``check(x)`` refuses others with the way out.

====================================  ==============================================================
pixels                                likelihoods
====================================  ==============================================================
0 or 1                                :class:`Bernoulli`
between 0 and 1                       :class:`ContinuousBernoulli`, :class:`Beta` (ends excluded)
levels 0 … n                          :class:`Binomial`, :class:`DiscretizedLogistic`,
                                      :class:`DiscretizedLogisticMixture`, :class:`Categorical`
counts without a largest              :class:`Poisson`, :class:`NegativeBinomial`
real numbers                          :class:`Gaussian`, :class:`Laplace`, :class:`StudentT`
====================================  ==============================================================
"""

from ..parts import Unconditional
from .counts import Binomial, NegativeBinomial, Poisson
from .levels import Categorical, DiscretizedLogistic, DiscretizedLogisticMixture
from .real import Gaussian, Laplace, StudentT
from .unit import Bernoulli, Beta, ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "Laplace",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
    "Unconditional",
]

r"""Encoders: x, c → q(z | x, y).

.. math:: q(z \mid x, y), \qquad \text{such as}\quad
    \mathcal{N}\bigl(z;\ \mu(x, c),\ \operatorname{diag} \sigma^2(x, c)\bigr)

An encoder is called with x in the data's own units and the context, and returns a distribution over (latent,). It
standardises x itself, as (x − shift) / scale. :class:`Classifier` is called in the same way and gives a label.
"""

from ..parts import Chain, Unconditional
from .classifier import Classifier
from .flow import Flow
from .gaussian import FullGaussian, Gaussian, LowRankGaussian
from .masked import Masked
from .mixture import Mixture
from .point import Delta
from .sphere import PowerSpherical

__all__ = [
    "Chain",
    "Classifier",
    "Delta",
    "Flow",
    "FullGaussian",
    "Gaussian",
    "LowRankGaussian",
    "Masked",
    "Mixture",
    "PowerSpherical",
    "Unconditional",
]

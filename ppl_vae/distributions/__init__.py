r"""Any distribution becomes a Pyro one; and the few densities no library has.

.. math:: d \mapsto \mathrm{as\_pyro}(d), \qquad
    \log p_{\mathrm{as\_pyro}(d)}(x) = \log p_d(x) \ \text{for every } x
"""

from .adapt import as_pyro, transport, zuko
from .pixels import ContinuousBernoulli, DiscretizedLogistic, GreyBernoulli, Levels, NegativeBinomial

__all__ = [
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "GreyBernoulli",
    "Levels",
    "NegativeBinomial",
    "as_pyro",
    "transport",
    "zuko",
]

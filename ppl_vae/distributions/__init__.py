r"""Any distribution becomes a Pyro one; and the few densities no library has.

.. math:: d \mapsto \mathrm{as\_pyro}(d), \qquad
    \log p_{\mathrm{as\_pyro}(d)}(x) = \log p_d(x) \ \text{for every } x
"""

from .adapt import as_pyro, transport, zuko
from .pixels import GreyBernoulli

__all__ = ["GreyBernoulli", "as_pyro", "transport", "zuko"]

r"""Objectives: the ELBO as Pyro estimates it, its relatives, and the same number written by hand.

.. math:: \mathrm{ELBO}(x, y) = \mathbb{E}_{q(z \mid x, y)}\bigl[\log p(x \mid z, y)\bigr]
    - \mathrm{KL}\bigl(q(z \mid x, y) \,\|\, p(z \mid y)\bigr)

:mod:`~ppl_vae.objectives.by_hand` is plain torch and what every other way to the number is checked against. All the
others are Pyro's ELBO objects, for ``pyro.infer.SVI`` and :func:`ppl_vae.fit`: :mod:`~ppl_vae.objectives.analytic` (the
KL in closed form), :mod:`~ppl_vae.objectives.bounds` (several draws a datum) and
:mod:`~ppl_vae.objectives.constrained` (a KL that is kept from falling). They are for training: whatever the objective
and whatever β, evaluation measures the model itself.
"""

from pyro.infer import Trace_ELBO

from .analytic import Analytic
from .bounds import IWAE, STL, DReG, Renyi
from .by_hand import analytic_elbo, elbo_terms, kl_gaussian, kl_standard, log_likelihood
from .constrained import Capacity, FreeBits
from .schedules import cyclic, warmup

__all__ = [
    "IWAE",
    "STL",
    "Analytic",
    "Capacity",
    "DReG",
    "FreeBits",
    "Renyi",
    "Trace_ELBO",
    "analytic_elbo",
    "cyclic",
    "elbo_terms",
    "kl_gaussian",
    "kl_standard",
    "log_likelihood",
    "warmup",
]

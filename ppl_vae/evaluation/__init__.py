r"""Evaluation: how good is the model, and is the number right?

.. math:: \log p(x \mid y) = \log \int p(z \mid y)\, p(x \mid z, y)\, dz

Nothing here trains anything, and nothing here knows β: what is measured is the model itself.

============================================ ==========================================================
:mod:`~ppl_vae.evaluation.summary`           −ELBO, its parts and −log p(x|y) of a data set in one table
:mod:`~ppl_vae.evaluation.audit`             what SVI minimises against the loss written by hand
============================================ ==========================================================
"""

from .audit import Audit, audit
from .summary import Evaluation, evaluate

__all__ = ["Audit", "Evaluation", "audit", "evaluate"]

r"""Evaluation: how good is the model, and is the number right?

.. math:: \log p(x \mid y) = \log \int p(z \mid y)\, p(x \mid z, y)\, dz

Nothing here trains a model, and nothing here knows β: what is measured is the model itself.

============================================ ==========================================================
:mod:`~ppl_vae.evaluation.likelihood`        log p(x|y) of each row, with what it takes to trust it
:mod:`~ppl_vae.evaluation.annealing`         bounds on log p(x|y) from below and, for simulated data, from above
:mod:`~ppl_vae.evaluation.summary`           −ELBO, its parts and −log p(x|y) of a data set in one table
:mod:`~ppl_vae.evaluation.comparison`        several of them side by side, with the errors of differences
:mod:`~ppl_vae.evaluation.diagnostics`       what z says of x, which dimensions say it, and whether the prior knows
:mod:`~ppl_vae.evaluation.labels`            whether y is used, and whether z carries it too
:mod:`~ppl_vae.evaluation.leakage`           how much of y is in z
:mod:`~ppl_vae.evaluation.quality`           samples before a judge, a classifier of the real data; FID and KID
:mod:`~ppl_vae.evaluation.audit`             what SVI minimises, by every objective, against the same by hand
:mod:`~ppl_vae.evaluation.pairs`             the two side by side, and the tests of their difference
:mod:`~ppl_vae.evaluation.references`        the same by hand, in plain torch: no Pyro program and no objective
:mod:`~ppl_vae.evaluation.calibration`       the ranks of z* among the guide's draws, uniform if it is the posterior
============================================ ==========================================================
"""

from .annealing import Bounds, bounds
from .audit import Audit, AuditRow, audit
from .calibration import Calibration, calibration
from .comparison import Comparison, compare
from .diagnostics import Diagnostics, diagnostics
from .judge import Judge, train_judge
from .labels import LabelUse, label_use
from .likelihood import LogLikelihood, log_likelihood
from .quality import Quality, fid, kid, quality
from .simulation import simulate
from .summary import Evaluation, evaluate

__all__ = [
    "Audit",
    "AuditRow",
    "Bounds",
    "Calibration",
    "Comparison",
    "Diagnostics",
    "Evaluation",
    "Judge",
    "LabelUse",
    "LogLikelihood",
    "Quality",
    "audit",
    "bounds",
    "calibration",
    "compare",
    "diagnostics",
    "evaluate",
    "fid",
    "kid",
    "label_use",
    "log_likelihood",
    "quality",
    "simulate",
    "train_judge",
]

r"""Names: ``ae``, ``vae``, ``cvae``, and plain dict ↔ model.

.. math:: \{\texttt{"prior"}: \{\texttt{"name"}: \ldots\}, \ldots\}
    \;\leftrightarrow\; p(z \mid y)\, p(x \mid z, y),\ q(z \mid x, y)

This is the only place that knows parts by strings; a part gets its name in :mod:`~ppl_vae.presets.tables`.
"""

from .dictionaries import build, complete, make, to_dict
from .systems import ae, cvae, vae
from .tables import (
    CONDITIONS,
    ENCODERS,
    FLOWS,
    LIKELIHOODS,
    NETWORKS,
    OBJECTIVES,
    PRIORS,
    TABLES,
    Spec,
    lookup,
)

__all__ = [
    "CONDITIONS",
    "ENCODERS",
    "FLOWS",
    "LIKELIHOODS",
    "NETWORKS",
    "OBJECTIVES",
    "PRIORS",
    "TABLES",
    "Spec",
    "ae",
    "build",
    "complete",
    "cvae",
    "lookup",
    "make",
    "to_dict",
    "vae",
]

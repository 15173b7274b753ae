r"""Captured SVI: a Pyro program at the speed of hand-written code.

.. math:: \text{program} \xrightarrow{\ \text{recorded once}\ } \text{graph of } (\ell, \nabla \ell)
    \xrightarrow{\ \text{replayed}\ } \text{steps}

``SVI.step`` spends most of its time in Python: effect handlers, validation, one optimiser a parameter, autograd. None
of it is needed twice for a program of static structure. :class:`CapturedSVI` is for any such program, not only for
autoencoders: this folder knows Pyro and torch, and nothing of a VAE.
"""

from .optimiser import Together
from .recording import CaptureWarning, Generators, Watch
from .stages import TwoStages
from .svi import Backend, CapturedSVI

__all__ = ["Backend", "CaptureWarning", "CapturedSVI", "Generators", "Together", "TwoStages", "Watch"]

r"""The bodies of the parts: from an input and its context to a distribution's raw parameters.

.. math:: (a, c) \mapsto \mathrm{body}([a; c]) \in \mathbb{R}^{\text{out}}

where ``a`` is a z or a flattened x and ``[a; c]`` broadcasts leading sample dimensions. A body is any module that
maps a joined input ``(N, in + context)`` to raw parameters ``(N, out)``; the classes here are made by calling them with
``(in_shape, out_shape, context, hidden)``, and so is any class of yours.

A body may say two things more. ``apart(a, c)``, for ``a`` (*, in) and ``c`` (*, context) whose leading dimensions
broadcast, is ``body([a; c])`` computed without joining them; ``last`` is the layer whose bias is added to the output.
"""

from .convolutional import Conv
from .film import FiLM, Modulation
from .joining import join
from .mlp import MLP, GatedMLP
from .network import Body, Network, widest
from .residual import ResNet

__all__ = ["MLP", "Body", "Conv", "FiLM", "GatedMLP", "Modulation", "Network", "ResNet", "join", "widest"]

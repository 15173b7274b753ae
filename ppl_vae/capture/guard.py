r"""What a step is checked for: that a replay is the program, and that nothing in it is NaN or infinite.

.. math:: \lvert \ell_{\text{replay}} - \ell_{\text{stock}} \rvert \le \epsilon_\ell \sum \lvert \log p \rvert, \qquad
    \lVert g_{\text{replay}} - g_{\text{stock}} \rVert \le \epsilon_g \lVert g_{\text{stock}} \rVert

with the sum over the log-densities that the loss is made of, at least 1. For a graph as it was recorded
:math:`\epsilon_\ell` is 1e-6 and :math:`\epsilon_g` is 1e-4, for a compiled one they are 1e-4 and 5e-2; for parameters
in half precision more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..errors import CaptureError, NonFiniteError

__all__ = ["LastSite", "Sizes", "compare", "first_bad_site", "first_line", "not_finite", "size_of", "unconstrained"]

# How far a replay may be from the stock step, relative to the loss and to the norm of the gradient, which late in
# training is what remains of rows that all but cancel, each with its rounding. A compiler reorders sums; where the
# gradient jumps, at a knot of a spline say, the rounding of one row decides on which side it falls. All for single
# precision and better; what is coarser is allowed so many roundings of its own.
_ROUNDINGS = 8
_RECORDED, _COMPILED = (1e-6, 1e-4), (1e-4, 5e-2)
Outcome = tuple[Tensor, Mapping[str, Tensor]]


def compare(
    got: Outcome,
    expected: Outcome,
    size: float,
    compiled: bool,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    step: int,
) -> None:
    """Raise unless a replay is the stock step to rounding.

    Arguments:
        got, expected: loss and gradients by name, of the replay and of the stock step.
        size: of the terms that the loss is a sum of, which may all but cancel.
        compiled: whether sums may be reordered.
        before, now: the numbers that the program can reach, at the recording and now.
        step: for the message.

    Raises:
        CaptureError: naming the numbers that changed.
    """
    rounding = max((torch.finfo(g.dtype).eps for g in expected[1].values()), default=0.0)
    tolerances = [max(t, _ROUNDINGS * rounding) for t in (_COMPILED if compiled else _RECORDED)]
    loss, stock = got[0].item(), expected[0].item()
    norm = sum(g.double().square().sum().item() for g in expected[1].values())
    own = sum(g.double().square().sum().item() for g in got[1].values())
    if not (math.isfinite(loss + own) or math.isfinite(stock + norm)):
        return  # The step is refused for that, and the parameter named.
    of_loss = abs(loss - stock) / max(1.0, abs(stock), size)
    square = math.inf
    if got[1].keys() == expected[1].keys():
        square = sum((got[1][n] - g).double().square().sum().item() for n, g in expected[1].items())
    of_gradient = math.sqrt(square) / max(math.sqrt(norm), 1e-12)
    if of_loss <= tolerances[0] and of_gradient <= tolerances[1]:
        return
    changed = [f"{k} (was {v!r}, is {now.get(k)!r})" for k, v in before.items() if now.get(k) != v]
    frozen = (
        f"changed since it was recorded: {', '.join(changed)}"
        if changed
        else "no number that the program can reach has changed since it was recorded: look for one drawn in Python "
        "(random, numpy) or kept inside an object"
    )
    raise CaptureError(
        f"step {step}: the recorded graph gives loss {loss:.7g}, the program {stock:.7g} (relative difference "
        f"{of_loss:.1e}; gradient {of_gradient:.1e}); {frozen}. Make it a tensor (a buffer), pass it to step(), or "
        "run the program as it is: capture='off' in fit, backend='off' in CapturedSVI"
    )


def size_of(gradients: Iterable[Tensor]) -> Tensor:
    """Return one number to look at: NaN or infinite if a gradient has that in it, and seldom where none has."""
    # A norm of half-precision numbers is soon beyond the largest of them.
    gradients = [g.float() if g.dtype == torch.float16 else g for g in gradients]
    if any(g.is_cuda for g in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    # On a CPU a norm of many tensors is many small operations; sums in a compiled graph are slower yet.
    return torch.stack([torch.dot(flat, flat) for flat in (g.reshape(-1) for g in gradients)]).sum()


def not_finite(step: int, loss: float, where: str) -> NonFiniteError:
    """Return the error of a step whose loss or gradient is not finite, first of all there."""
    return NonFiniteError(
        f"step {step}: loss {loss:g}; not finite first in {where}. The parameters are those of the step before. Look "
        "at the range of the data, lower lr, or set clip="
    )


@torch.no_grad()
def first_bad_site(model: Any, guide: Any, args: Any, kwargs: Any) -> str | None:
    """Run the programs once and return the first site whose value or density is not finite."""
    traces = poutine.trace(), poutine.trace()
    # Validation would stop at the first NaN, before its site is there to be named.
    with pyro.validation_enabled(False):
        try:
            with traces[0]:
                guide(*args, **kwargs)
            with traces[1], poutine.replay(trace=traces[0].trace):
                model(*args, **kwargs)
        except (ValueError, RuntimeError):
            pass  # The sites before it are looked at all the same.
        for program, trace in zip(("guide", "model"), traces, strict=True):
            for name, site in trace.trace.nodes.items():
                if site["type"] != "sample" or not hasattr(site["fn"], "log_prob"):
                    continue
                if not (site["value"].isfinite().all() and site["fn"].log_prob(site["value"]).isfinite().all()):
                    return f"site {name!r} of the {program}"
    return None


class Sizes(Messenger):
    """Adds up how large the terms of a loss are, log-densities of either sign: their rounding is that of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0.0

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or not hasattr(msg["fn"], "log_prob"):
            return
        # Not under no_grad: a transform that remembers its inverse would then hand the loss one without a gradient.
        self.size += (msg["fn"].log_prob(msg["value"]).detach().abs() * msg["scale"]).sum().item()


class LastSite(Messenger):
    """Remembers the last site that passed, to say where something stopped."""

    name: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.name = msg["name"]

    def __str__(self) -> str:
        return "before the first site" if self.name is None else f"after site {self.name!r}"


def unconstrained(trace: Any) -> dict[str, Tensor]:
    """The parameters of a trace by name, as the optimiser sees them; a tensor that has two names, by the later one."""
    sites = {name: site["value"].unconstrained() for name, site in trace.nodes.items() if site["type"] == "param"}
    last = {id(leaf): name for name, leaf in sites.items()}
    return {name: leaf for name, leaf in sites.items() if last[id(leaf)] == name}


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().split("\n")[0]

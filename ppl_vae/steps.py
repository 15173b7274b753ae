r"""One training step that cannot poison the parameters.

.. math:: \theta_{t+1} = \begin{cases}
    \mathrm{optim}(\theta_t, \nabla_\theta \ell(\theta_t)) & \ell \text{ and } \nabla_\theta \ell \text{ finite} \\
    \theta_t \text{, and an error that says where} & \text{otherwise} \end{cases}

Stock ``SVI.step`` warns of a NaN loss, says nothing of an infinite one, and applies the update all the same. This file
knows Pyro and torch, and nothing of autoencoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from .errors import NonFiniteError

__all__ = ["GuardedSVI", "Together", "cuda_devices"]


def cuda_devices(device: torch.device) -> list[torch.device]:
    """Return [device] for a CUDA device, else []: what ``fork_rng`` must fork besides the CPU."""
    return [device] if device.type == "cuda" else []


class Together(pyro.optim.PyroOptim):
    """One ``torch.optim`` optimiser for all parameters, where Pyro's keep one for each.

    Arguments:
        optim: a class of ``torch.optim``.
        lr: the learning rate.
        clip: the largest norm of the whole gradient, or None.
    """

    def __init__(self, optim: Callable[..., torch.optim.Optimizer], lr: float, clip: float | None = None) -> None:
        self.make, self.lr, self.clip = optim, lr, clip
        self.leaves: dict[str, Tensor] = {}

    def build(self, leaves: dict[str, Tensor]) -> None:
        """Make the optimiser for these named parameters."""
        self.leaves = leaves
        self.optimizer = self.make(list(leaves.values()), lr=self.lr)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Take a step with the gradients that are there."""
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.leaves.values()), self.clip)
        self.optimizer.step()


class GuardedSVI(SVI):
    """``SVI`` whose step raises on a loss or gradient that is not finite, before it reaches the parameters."""

    optim: Together
    steps = 0

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Run the programs once, so that every parameter exists, and give them to the optimiser."""
        with poutine.trace(param_only=True) as capture, torch.no_grad():
            self.loss(self.model, self.guide, *args, **kwargs)
        sites = capture.trace.nodes.items()
        self.optim.build({name: site["value"].unconstrained() for name, site in sites})

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take one step; return the loss.

        Raises:
            NonFiniteError: naming the step and the site or parameter; the parameters are bit for bit what they were.
        """
        self.steps += 1
        leaves = self.optim.leaves
        cuda = cuda_devices(next(iter(leaves.values())).device)
        before = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in cuda]
        self.optim.optimizer.zero_grad(set_to_none=True)
        try:
            loss = float(self.loss_and_grads(self.model, self.guide, *args, **kwargs))
        except ValueError as error:
            # Pyro's validation meets a NaN parameter of a distribution before there is a loss.
            if "nan" not in str(error):
                raise
            loss = math.nan
        gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
        if math.isfinite(loss) and torch.nn.utils.get_total_norm(gradients).isfinite():
            self.optim(leaves)
            return loss
        bad = [name for name, leaf in leaves.items() if leaf.grad is not None and not leaf.grad.isfinite().all()]
        self.optim.optimizer.zero_grad(set_to_none=True)
        torch.set_rng_state(before[0])
        for device, state in zip(cuda, before[1], strict=True):
            torch.cuda.set_rng_state(state, device)
        where = (
            self._first_bad_site(*args, **kwargs) or f"the gradient of {', '.join(bad) or 'all parameters together'}"
        )
        raise NonFiniteError(
            f"step {self.steps}: loss {loss:g}; not finite first in {where}. The parameters are those of the "
            "step before. Look at the range of the data, lower lr, or set clip="
        )

    @torch.no_grad()
    def _first_bad_site(self, *args: Any, **kwargs: Any) -> str | None:
        """Run the programs once more with the same random numbers and look at every site."""
        guide = poutine.trace()
        model = poutine.trace()
        try:
            with guide:
                self.guide(*args, **kwargs)
            with model, poutine.replay(trace=guide.trace):
                self.model(*args, **kwargs)
        except ValueError as error:
            done = [*guide.trace.nodes, *model.trace.nodes]
            sampled = [name for name in done if "$$$" not in name]
            return f"what follows site {sampled[-1]!r}: {error}".split("\n")[0] if sampled else f"the guide: {error}"
        for program, trace in [("guide", guide.trace), ("model", model.trace)]:
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or not hasattr(site["fn"], "log_prob"):
                    continue
                if not (site["value"].isfinite().all() and site["fn"].log_prob(site["value"]).isfinite().all()):
                    return f"site {name!r} of the {program}"
        return None

r"""A normalising flow for a posterior.

.. math:: z = f(\varepsilon; h), \quad \varepsilon \sim \mathcal{N}(0, I), \quad
    h = \mathrm{network}(x, c), \qquad
    \log q(z \mid x, y) = \log \mathcal{N}(\varepsilon; 0, I)
    - \log \left| \det \frac{\partial f}{\partial \varepsilon} \right|
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributions import zuko
from ..errors import PartError, check_positive
from ..networks import Body
from .base import Encoder

__all__ = ["Flow"]


class Flow(Encoder):
    r"""A zuko flow whose context is what a network makes of x and y.

    .. math:: z = f(\varepsilon; h), \qquad \varepsilon \sim \mathcal{N}(0, I), \qquad
        h = \mathrm{network}([(x - \text{shift}) / \text{scale};\ c])

    Zuko's flows go from z to noise in one pass, and an autoregressive one takes a pass a feature to come back. A
    posterior is drawn from, and scored at its own draws, so the flow is turned round: noise to z in one pass, as in
    inverse autoregressive flow. The density of a z from elsewhere then takes a pass a feature.

    Arguments:
        features: the number of latent features.
        x_shape: the shape of one x.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        shift, scale: what standardises x.
        flow: a class of ``zuko.flows`` or ``functools.partial`` of one, called with (features, outputs); in the presets
            its name, or a dict of that and its options.
        outputs: how many features of x and y the flow is given.

    Raises:
        PartError: for what does not make a zuko flow.

    Reference:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)

    Example:
        >>> from ppl_vae.distributions import as_pyro, zuko
        >>> q = as_pyro(Flow(20, (4,), flow=zuko.flows.NSF)(torch.zeros(5, 4)))
        >>> q.log_prob(q.rsample()).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        x_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        shift: float = 0.0,
        scale: float = 1.0,
        flow: Callable[..., Any] = zuko.flows.MAF,
        outputs: int = 64,
    ) -> None:
        check_positive(features=features, outputs=outputs)
        super().__init__(outputs, x_shape, context, hidden, network, shift, scale)
        self.features, self.outputs = features, outputs
        if isinstance(flow, torch.nn.Module):
            raise PartError(
                f"Flow: expected a class of zuko.flows, such as {type(flow).__name__}, got one that is made: pass the "
                "class, or functools.partial of it, which is called with (features, outputs)"
            )
        made = flow(features, outputs) if callable(flow) else flow
        if not isinstance(made, zuko.lazy.Flow):
            raise PartError(f"Flow: expected a class of zuko.flows that transforms noise, such as MAF, got {flow!r}")
        self.flow = made

    def from_raw(self, raw: Tensor) -> Any:
        """Return q(z | x, y), event shape (features,)."""
        forwards = self.flow(raw)
        return zuko.distributions.NormalizingFlow(forwards.transform.inv, forwards.base)

r"""Pixels that are not seen take no part in anything, whatever stands in their place.

.. math:: \log p(x_{\text{seen}} \mid z, y) = \sum_{i\ \text{seen}} \log p(x_i \mid z, y), \qquad
    q(z \mid x_{\text{seen}}, y)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..distributions import as_pyro, inside
from ..errors import PartError, ShapeError

__all__ = ["filled", "given", "observed", "seen_alone"]


def given(encoder: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """What an encoder is given: zeros for what is unseen, and the mask beside it if the encoder wants to know.

    Arguments:
        encoder: a part with an x; one with ``sees_mask`` is told, in twice as many channels.
        x: (N, *x_shape).
        mask: True where a pixel is seen, of the shape of x; None where all are.
    """
    if mask is None:
        return x
    x = filled(x, mask)
    return torch.cat([x, mask.to(x)], -len(encoder.x_shape)) if getattr(encoder, "sees_mask", False) else x


def observed(p: Any, x: Tensor | None, mask: Tensor | None) -> tuple[Any, Any]:
    """Return p(x | z, y) over the pixels that are seen, and the x it observes, None where that is to be drawn.

    Raises:
        ShapeError: if x has another shape than what p is over.
        PartError: if there is a mask, and the pixels of p are not independent.
    """
    # Without this, an x that lacks its batch dimension would broadcast, and be counted once a row.
    if x is not None and x.shape[1:] != p.event_shape:
        way_out = "" if p.event_shape else f": end the likelihood in .to_event({x.dim() - 1})"
        raise ShapeError(f"x: expected (N, {', '.join(map(str, p.event_shape))}), got {tuple(x.shape)}{way_out}")
    if x is None or mask is None:
        return p, x
    p = _only_seen(p, mask)
    return p, filled(x, mask, inside(p.support))


def seen_alone(x: Tensor, mask: Tensor) -> Tensor:
    """X for a check of its values: in the place of a pixel that is not seen, the middle of where it is in other rows.

    Of a pixel that no row has seen it is the middle of all.
    """
    seen = torch.where(mask, x, math.nan)
    middle = seen.nanmedian(0).values
    return torch.where(mask, x, torch.where(middle.isnan(), seen.nanmedian(), middle).to(x.dtype))


def filled(x: Tensor, mask: Tensor, fill: Any = 0.0) -> Tensor:
    """X with unseen entries filled in, NaN included; they reach neither a value nor a gradient."""
    return torch.where(mask, x, torch.as_tensor(fill, dtype=x.dtype, device=x.device))


def _only_seen(p: Any, mask: Tensor) -> Any:
    """P with unseen pixels masked before their dimensions are declared event; ``poutine.mask`` acts on batch ones."""
    if not isinstance(p, torch.distributions.Independent) or p.base_dist.event_shape:
        raise PartError(f"mask: expected a likelihood with independent pixels (.to_event), got {type(p).__name__}")
    return as_pyro(p.base_dist).mask(mask).to_event(p.reinterpreted_batch_ndims)

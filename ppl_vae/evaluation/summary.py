r"""The summary of a model on data it was not trained on: −ELBO, its two parts, and −log p(x | y).

.. math:: -\log p(x \mid y) \approx -\log \frac1S \sum_{s=1}^S
    \frac{p(z_s \mid y)\, p(x \mid z_s, y)}{q(z_s \mid x, y)}, \qquad z_s \sim q(z \mid x, y)

Always at β = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..devices import seeded
from ..distributions import is_point
from ..model import VAE
from ..objectives import elbo_terms
from ..parts import check_positive
from .modes import evaluating

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Means over a data set with their standard errors over its rows, in nats per datum; ``str`` makes the table."""

    rows: int
    samples: int
    terms: dict[str, tuple[float, float]]
    density: bool = True

    def __getitem__(self, name: str) -> float:
        return self.terms[name][0]

    def __str__(self) -> str:
        names = {
            "neg_elbo": "−ELBO",
            "reconstruction": "reconstruction −log p(x|z,y)",
            "kl": "KL(q(z|x,y) ‖ p(z|y))",
            "neg_log_prob": f"−log p(x|y), {self.samples} samples",
            "bits_per_dim": "the same in bits per dimension",
        }
        lines = [f"{f'{self.rows} rows, nats per datum':36s} {'mean':>10s} {'std. error':>11s}"]
        lines += [f"{names[name]:36s} {mean:10.3f} {error:11.3f}" for name, (mean, error) in self.terms.items()]
        return "\n".join(lines if self.density else [*lines, "grey values under a Bernoulli: not a density"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        terms = {name: {"mean": mean, "standard_error": error} for name, (mean, error) in self.terms.items()}
        return {
            "rows": self.rows,
            "samples": self.samples,
            "density": self.density,
            "unit": "nats per datum",
            **terms,
        }


@torch.no_grad()
def evaluate(
    vae: VAE,
    x: Any,
    y: Any = None,
    *,
    samples: int = 500,
    draws: int = 10,
    batch_size: int = 250,
    seed: int = 0,
) -> Evaluation:
    """Measure a model on data that it was not trained on.

    Arguments:
        vae: the model; it is measured in ``eval()`` mode, and left in the mode it was in.
        x: (N, *x_shape), and y as elsewhere.
        samples: of z for the importance-sampled log p(x|y).
        draws: of z for the ELBO and its parts.
        batch_size: rows at a time; the means do not depend on it beyond their noise.
        seed: of the draws; the caller's generators are left as they were.

    Returns:
        ``neg_elbo``, ``reconstruction``, ``kl`` and ``neg_log_prob``, of which a model whose encoder gives a point has
        the reconstruction alone; and ``bits_per_dim``, −log₂ p(x|y) / D, where a pixel is one of 256 levels.

    Example:
        >>> print(evaluate(pv.ae((4,), 2), torch.zeros(8, 4)).terms.keys())
        dict_keys(['reconstruction'])
    """
    check_positive(samples=samples, draws=draws, batch_size=batch_size)
    vae.check(x, y)
    x, y = torch.as_tensor(x), None if y is None else torch.as_tensor(y)
    names = "neg_elbo", "reconstruction", "kl", "neg_log_prob", "bits_per_dim"
    chunks: dict[str, list[Tensor]] = {name: [] for name in names}
    with evaluating(vae), seeded(seed, vae._beta.device):
        # A point has no density to weigh against the prior's.
        point = vae.prior is None or is_point(vae.encode(x[:1], y if y is None or not vae.per_row(y) else y[:1]))
        for i in range(0, len(x), batch_size):
            rows = x[i : i + batch_size], y if y is None or not vae.per_row(y) else y[i : i + batch_size]
            reconstruction, kl = elbo_terms(vae, *rows, samples=draws)
            chunks["reconstruction"].append(reconstruction)
            if point:
                continue
            chunks["kl"].append(kl)
            chunks["neg_elbo"].append(reconstruction + kl)
            chunks["neg_log_prob"].append(-vae.log_prob(*rows, samples=samples))
            if getattr(vae.likelihood, "levels", None) == 256:
                bits = chunks["neg_log_prob"][-1] / (math.log(2) * x[0].numel())
                chunks["bits_per_dim"].append(bits)
    means = {}
    for name, values in chunks.items():
        if values:
            column = torch.cat(values).double()
            error = column.std().item() / math.sqrt(len(column)) if len(column) > 1 else math.nan
            means[name] = column.mean().item(), error
    return Evaluation(len(x), samples, means, density=getattr(vae.likelihood, "density", True))

r"""The summary of a model on data it was not trained on: −ELBO, its two parts, and −log p(x | y).

.. math:: -\log p(x \mid y) \approx -\log \frac1S \sum_{s=1}^S
    \frac{p(z_s \mid y)\, p(x \mid z_s, y)}{q(z_s \mid x, y)}, \qquad z_s \sim q(z \mid x, y)

Always at β = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distributions import is_point
from ..errors import check_positive
from ..model import VAE
from ..model.checks import check_not_nan, check_precision
from ..model.masking import given
from ..objectives import elbo_terms
from .likelihood import LogLikelihood, log_likelihood
from .measuring import GREY, SEEN, Report, digest, mean_and_error, measuring, named, plain, share
from .pareto import good_below

__all__ = ["Evaluation", "evaluate"]


_NAMES = {
    "neg_elbo": "−ELBO",
    "reconstruction": "reconstruction −log p(x|z,y)",
    "kl": "KL(q(z|x,y) ‖ p(z|y))",
    "neg_log_prob": "−log p(x|y)",
    "bits_per_dim": "the same in bits per dimension",
}


@dataclass(frozen=True, repr=False)
class Evaluation(Report):
    """What a model gives every row of a data set, in nats; ``str`` makes the table of means.

    Attributes:
        values: by name, (N,) each, float64.
        samples: of z for log p(x | y).
        density: whether p(x | z, y) is one.
        likelihood: the log-likelihoods with their diagnostics, where the model has them.
        pareto_k: (N,), k̂ of these, which is known of an evaluation read from a file, too.
        discrete: whether p(x | z, y) is a probability of values that x can take, and no density; None where that is not
            known.
        seen: the share of the pixels that are seen, of which alone all of this is; None without a mask.
        conditional: whether it is given y; None where that is not known.
        pixels: which they are, as a digest of the mask; None without one, or where that is not known.
    """

    values: Mapping[str, Tensor]
    samples: int
    density: bool = True
    likelihood: LogLikelihood | None = None
    pareto_k: Tensor | None = None
    discrete: bool | None = None
    seen: float | None = None
    conditional: bool | None = None
    pixels: str | None = None

    @property
    def rows(self) -> int:
        """How many there were."""
        return len(next(iter(self.values.values())))

    @property
    def rows_not_to_be_trusted(self) -> int | None:
        """How many have a log p(x | y) that k̂ does not vouch for; None where k̂ is not known."""
        return None if self.pareto_k is None else int((~(self.pareto_k < good_below(self.samples))).sum())

    @property
    def terms(self) -> dict[str, tuple[float, float]]:
        """Means over rows with their standard errors, by name."""
        return {name: mean_and_error(values) for name, values in self.values.items()}

    def __getitem__(self, name: str) -> float:
        return self.terms[name][0]

    def __str__(self) -> str:
        names = _NAMES | {"neg_log_prob": f"−log p(x|y), {self.samples} samples"}
        lines = [f"{f'{self.rows} rows, nats per datum':36s} {'mean':>10s} {'std. error':>11s}"]
        lines += [f"{names[name]:36s} {mean:10.3f} {error:11.3f}" for name, (mean, error) in self.terms.items()]
        if self.seen is not None:
            lines.append(SEEN.format(self.seen))
        if not self.density:
            lines.append(GREY)
        warning = None if self.likelihood is None else self.likelihood.warning()
        return "\n".join(lines if warning is None else [*lines, f"warning: {warning}"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON; rows are summed up."""
        return plain(
            {
                "rows": self.rows,
                "samples": self.samples,
                "density": self.density,
                "discrete": self.discrete,
                "seen": self.seen,
                "pixels": self.pixels,
                "conditional": self.conditional,
                "unit": "nats per datum",
                **named(self.terms),
                **({} if self.likelihood is None else {"likelihood": self.likelihood.to_dict()}),
            }
        )


@torch.no_grad()
def evaluate(
    vae: VAE,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    samples: int = 500,
    draws: int = 10,
    batch_size: int = 250,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Measure a model on data that it was not trained on.

    Arguments:
        vae: the model; it is measured in ``eval()`` mode, and left in the mode it was in.
        x: (N, *x_shape), and y as elsewhere.
        mask: True where a pixel is seen, of the shape of x: all of it is then about what is seen of x.
        samples: of z for the importance-sampled log p(x|y).
        draws: of z for the ELBO and its parts.
        batch_size: rows at a time for these, at most; the means do not depend on it beyond their noise.
        seed: of the draws; the caller's generators are left as they were.
        progress: show a bar while log p(x|y) is estimated.

    Returns:
        ``neg_elbo``, ``reconstruction``, ``kl`` and ``neg_log_prob``, of which a model whose encoder gives a point has
        the reconstruction alone; and ``bits_per_dim``, −log₂ p(x|y) / D, where a pixel is one of 256 levels and all are
        seen.

    Raises:
        DataError, ShapeError, LabelError: as ``VAE.check``.
        ConfigError: for a model in half precision.

    Example:
        >>> print(evaluate(pv.ae((4,), 2), torch.zeros(8, 4)).terms.keys())
        dict_keys(['reconstruction'])
    """
    check_not_nan(vae, "evaluate")
    check_precision(vae, "evaluate")
    check_positive(samples=samples, draws=draws, batch_size=batch_size)
    vae.check(x, y, mask)
    x, y = torch.as_tensor(x), None if y is None else torch.as_tensor(y)
    mask = vae._mask(x, mask)
    chunks = []
    with measuring(vae, seed, "evaluate"):
        # A point has no density to weigh against the prior's.
        first = x[:1].to(vae._beta)
        seen = vae._mask(first, None if mask is None else mask[:1])
        label = vae._labels_of(y, slice(1))
        q = vae.encode(given(vae.encoder, first, seen), label)
        point = vae.prior is None or is_point(q)
        try:
            discrete = bool(vae.decode(q.sample(), label).support.is_discrete)
        except NotImplementedError:
            discrete = None  # Not every distribution says where it lies.
        # No more decoded numbers at a time than log p takes.
        batch_size = max(1, min(batch_size, 2**22 // (draws * vae.numbers(x[:1]))))
        for i in range(0, len(x), batch_size):
            some = slice(i, i + batch_size)
            seen = None if mask is None else mask[some]
            chunks.append(elbo_terms(vae, x[some], vae._labels_of(y, some), samples=draws, mask=seen))
    reconstruction, kl = (torch.cat(column).double().cpu() for column in zip(*chunks, strict=True))
    density, conditional = getattr(vae.likelihood, "density", True), vae.condition is not None
    more = discrete, share(mask), conditional, digest(mask)
    if point:
        values = {"reconstruction": reconstruction}
        return Evaluation(values, samples, density, None, None, *more)
    found = log_likelihood(vae, x, y, mask, samples=samples, seed=seed, progress=progress)
    values = {
        "neg_elbo": reconstruction + kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "neg_log_prob": -found.values,
    }
    if found.bits is not None:
        values["bits_per_dim"] = -found.bits * found.values
    return Evaluation(values, samples, density, found, found.pareto_k, *more)

r"""Several models on the same rows: what lies between them, and how sure that is.

.. math:: \Delta = \frac1N \sum_i (a_i - b_i), \qquad \mathrm{se}(\Delta)^2 = \frac1N \mathrm{Var}_i (a_i - b_i)

A row that is hard for one model is hard for the next, so the error of a difference is a fraction of that of a mean.
Probabilities and densities are in different units, whose difference would mean nothing, and so would that of one half
of the pixels and the other. What is given y has less to say than what is not: log p(x) has y to tell, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..errors import DataError
from .measuring import GREY, Report, mean_and_error, plain
from .summary import Evaluation

__all__ = ["Comparison", "compare"]

_COLUMNS = {"neg_log_prob": "−log p(x|y)", "neg_elbo": "−ELBO", "kl": "KL", "reconstruction": "reconstruction"}


@dataclass(frozen=True, repr=False)
class Comparison(Report):
    """Evaluations by name, of the same rows; ``str`` makes the table, whose differences are from the first."""

    evaluations: Mapping[str, Evaluation]

    @property
    def terms(self) -> list[str]:
        """What all of them have."""
        return [t for t in _COLUMNS if all(t in e.values for e in self.evaluations.values())]

    def difference(self, name: str, term: str = "neg_log_prob") -> tuple[float, float]:
        """Return how much more of a term it has than the first, with the standard error, paired by row; in nats.

        NaN where one is a probability of x and the other a density, or no density at all, or of other pixels.
        """
        first = next(iter(self.evaluations.values()))
        other = self.evaluations[name]
        if not (_of_the_same_pixels(first, other) and (term == "kl" or _of_a_kind(first, other))):
            return math.nan, math.nan
        return mean_and_error(other.values[term] - first.values[term])

    def __str__(self) -> str:
        wide = max(map(len, [*self.evaluations, *(_COLUMNS[term] for term in self.terms)]))
        rows = next(iter(self.evaluations.values())).rows
        lines = [f"{rows} rows, nats per datum; differences from the first, paired by row"]
        for term in self.terms:
            lines.append(
                f"\n{_COLUMNS[term]:{wide}s} {'mean':>10s} {'std. error':>11s} {'difference':>11s} {'std. error':>11s}"
            )
            for name, evaluation in self.evaluations.items():
                numbers = *evaluation.terms[term], *self.difference(name, term)
                cells = f"{numbers[0]:10.3f} {numbers[1]:11.3f}"
                if math.isnan(numbers[2]):
                    cells += f" {'–':>11s} {'–':>11s}"
                elif name != next(iter(self.evaluations)):
                    cells += f" {numbers[2]:+11.3f} {numbers[3]:11.3f}"
                lines.append(f"{name:{wide}s} {cells}")
        for term, title in _COLUMNS.items():
            without = [name for name, e in self.evaluations.items() if term not in e.values]
            if 0 < len(without) < len(self.evaluations):
                lines.append(f"no {title}: {', '.join(without)} {'has' if len(without) == 1 else 'have'} none")
        kinds = {name: _kind(evaluation) for name, evaluation in self.evaluations.items()}
        pairs = list(combinations(self.evaluations.values(), 2))
        if not all(_of_a_kind(*pair) for pair in pairs):
            said = ", ".join(f"{name}: {kind or 'not known'}" for name, kind in kinds.items())
            lines.append(f"no difference between a probability of x and a density of x means anything ({said})")
        if not all(_of_the_same_pixels(*pair) for pair in pairs):
            said = ", ".join(f"{name}: {_pixels(evaluation)}" for name, evaluation in self.evaluations.items())
            lines.append(f"no difference between other pixels means anything ({said})")
        if given := [name for name, e in self.evaluations.items() if e.conditional]:
            without = [name for name, e in self.evaluations.items() if e.conditional is False]
            if without:
                lines.append(
                    f"given y: {', '.join(given)}; not: {', '.join(without)}, whose log p is of x alone, which tells y "
                    "as well: up to the entropy of y lies between them for that"
                )
        for name, evaluation in self.evaluations.items():
            if not evaluation.density:
                lines.append(f"{name}: {GREY}")
            if "neg_log_prob" in self.terms and (bad := evaluation.rows_not_to_be_trusted):
                lines.append(f"warning: {name}: k̂ does not vouch for log p of {bad} of {rows} rows: take more samples")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return plain(
            {
                name: {
                    term: dict(
                        zip(
                            ("mean", "standard_error", "difference", "standard_error_of_difference"),
                            (*evaluation.terms[term], *self.difference(name, term)),
                            strict=True,
                        )
                    )
                    for term in self.terms
                }
                | {"rows_not_to_be_trusted": evaluation.rows_not_to_be_trusted}
                for name, evaluation in self.evaluations.items()
            }
        )


def _kind(evaluation: Evaluation) -> str | None:
    """What p(x | z, y) is, in words; None where that is not known."""
    if not evaluation.density:
        return "neither"
    return None if evaluation.discrete is None else "a probability" if evaluation.discrete else "a density"


def _seen(evaluation: Evaluation) -> float:
    """The share of the pixels that it is of."""
    return 1.0 if evaluation.seen is None else evaluation.seen


def _pixels(evaluation: Evaluation) -> str:
    """Which pixels it is of, in words."""
    return f"{_seen(evaluation):.1%} seen" + (f" by mask {evaluation.pixels}" if evaluation.pixels else "")


def _of_the_same_pixels(one: Evaluation, other: Evaluation) -> bool:
    # One without a digest is of old, or of all pixels: of these the share says as much.
    unknown = None in (one.pixels, other.pixels)
    return _seen(one) == _seen(other) and (unknown or one.pixels == other.pixels)


def _of_a_kind(one: Evaluation, other: Evaluation) -> bool:
    if not (one.density and other.density):
        return one.density == other.density
    return None in (one.discrete, other.discrete) or one.discrete == other.discrete


def compare(evaluations: Mapping[str, Evaluation]) -> Comparison:
    """Put evaluations of the same rows side by side.

    Arguments:
        evaluations: by name, the first being what the others are compared with; that the rows are the same, in the same
            order, is for the caller to know.

    Raises:
        DataError: for fewer than two, different numbers of rows, or of samples where log p is among what all of them
            have, or nothing that they all have.

    Example:
        >>> x = torch.zeros(8, 4)
        >>> found = {n: pv.evaluate(pv.vae((4,), n, likelihood="Gaussian"), x, samples=10) for n in (1, 2)}
        >>> compare({f"{n} features": e for n, e in found.items()}).difference("1 features")
        (0.0, 0.0)
    """
    rows = {name: e.rows for name, e in evaluations.items()}
    if len(rows) < 2 or len(set(rows.values())) > 1:
        raise DataError(f"compare: expected two or more evaluations of the same rows, got {rows or 'none'}")
    comparison = Comparison(dict(evaluations))
    samples = {name: e.samples for name, e in evaluations.items()}
    if "neg_log_prob" in comparison.terms and len(set(samples.values())) > 1:
        raise DataError(
            f"compare: expected evaluations with as many samples, got {samples}, which changes log p by itself: "
            "evaluate all with the same samples"
        )
    if not comparison.terms:
        raise DataError(
            f"compare: expected evaluations with a term in common, got {[list(e.values) for e in evaluations.values()]}"
        )
    return comparison

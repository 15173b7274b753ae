r"""Is y used? Four questions to a model that is conditional on a label.

.. math::
    \hat y(x) = \arg\max_y\, [\log p(x \mid y) + \log p(y)], \qquad
    \Delta = \log p(x \mid y) - \overline{\log p(x \mid y')}_{y' \ne y}, \qquad
    \mathrm{KL}\bigl(q(z \mid x, y) \,\|\, p(z \mid y)\bigr), \qquad I(z; y)

A decoder that ignores y gives Δ = 0, and a classifier no better than the frequencies of the labels. An encoder that
puts y into z gives an information between them; where the prior does not depend on y, that is a leak: what is generated
with another y keeps some of the old one.

How much of y is in z is :mod:`~ppl_vae.evaluation.leakage`.

Reference:
    Are Generative Classifiers More Robust to Adversarial Attacks? (Li, Bradshaw and Sharma, 2019)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..data import as_tensor
from ..distributions import is_point
from ..errors import ConfigError, LabelError, NoDensityError, NonFiniteError, PartError, check_positive
from ..model import VAE
from ..model.checks import check_not_nan, check_precision
from .aggregate import POINT, divergence, posterior
from .leakage import PRIOR_DRAWS, prior_information, told_of_labels
from .likelihood import log_likelihood
from .measuring import GREY, Report, mean_and_error, measuring, named, plain

__all__ = ["LabelUse", "check_labels", "label_classes", "label_use"]

# One false alarm in a million, on either side for what a wrong label costs, by either classifier for what z tells.
_ALPHA = 1e-6
# As many numbers at a time as elsewhere.
_MEMORY = 2**22


@dataclass(frozen=True, repr=False)
class LabelUse(Report):
    """What :func:`label_use` found; ``str`` makes the table, ``finding`` says it in words.

    ``terms`` holds means with their standard errors over the rows, ``labels`` the labels that were tried, ``p_y`` their
    probabilities, ``log_prob`` (labels, N) what every row is worth under each, in nats, and ``predicted`` (N,) the
    label that the generative classifier gives it. ``by_label`` has a column for every label. ``untrusted`` are the
    shares of the log p whose Pareto k̂ is too large, or unknown, under the right label and under wrong ones.
    """

    rows: int
    samples: int
    labels: list[int]
    p_y: Tensor
    terms: dict[str, tuple[float, float]]
    by_label: dict[str, Tensor]
    log_prob: Tensor
    predicted: Tensor
    untrusted: tuple[float, float]
    density: bool = True

    def __getitem__(self, name: str) -> float:
        return self.terms[name][0]

    @staticmethod
    def _limit(freedom: int) -> float:
        """How many standard errors are taken for a difference: a quantile of Student's, as these are of few rows."""
        from scipy.stats import t as student  # a second's import

        return float(student.isf(_ALPHA / 2, freedom))

    @property
    def finding(self) -> str:
        """Whether the decoder uses y, and whether z carries it."""
        drop, error = self.terms["drop"]
        # A likelihood whose support ends can rule a label out.
        sure = math.isinf(drop) or (abs(drop) > self._limit(self.rows - 1) * error and abs(drop) > 1e-6)
        nats = f"{abs(drop):.2f} nats" if math.isinf(drop) else f"{abs(drop):.2f} ± {error:.2f} nats"
        if not sure:
            used = f"y is not seen to be used: a wrong label costs {drop:z.3f} ± {error:.3f} nats"
        elif drop > 0:
            used = f"y is used: with a wrong label log p(x|y) falls by {nats}"
        else:
            used = f"y is used, but with another label log p(x|y) rises by {nats}: are the labels permuted?"
        leak, error = self.terms["leakage"]
        prior, prior_error = self.terms["prior_information"]
        entropy, beyond = self["entropy"], leak - prior
        seen = int((self.by_label["rows"] > 0).sum())
        limit = self._limit(min(self.rows - seen, PRIOR_DRAWS - 1)) * math.hypot(error, prior_error)
        if beyond <= limit or beyond <= 0.01 * entropy:
            told = "more of y than the prior does" if prior > 0.01 * entropy else "anything of y"
            said = f"z is not seen to tell {told}"
        else:
            share = f"{leak:.2f} of the {entropy:.2f} nats of y"
            than = f", where the prior has {prior:.2f}" if prior > 0.01 * entropy else ": y leaks into z"
            said = f"z tells at least {share}{than}"
        return f"{used}; {said}."

    def __str__(self) -> str:
        head = f"{self.rows} rows, {len(self.labels)} labels"
        lines = [f"{head:58s} {'mean':>10s} {'std. error':>11s}"]
        names = {
            "accuracy": f"accuracy of argmax log p(x|y) + log p(y), {self.samples} samples",
            "chance": "  always the most frequent label",
            "log_posterior": "log p(y|x) of the right label, nats",
            "drop": "drop in log p(x|y) with a wrong label, nats",
            "kl": "KL(q(z|x,y) ‖ p(z|y)), nats",
            "leakage": "I(z; y) under q, at least, nats",
            "leakage_accuracy": "  accuracy of y told from z",
            "prior_information": "I(z; y) under the prior, nats",
            "entropy": "H(y), nats",
        }
        for name, text in names.items():
            mean, error = self.terms[name]
            lines.append(f"{text:58s} {mean:z10.3f}" + ("" if math.isnan(error) else f" {error:11.3f}"))
        if any(self.untrusted):
            right, wrong = self.untrusted
            lines.append(
                f"k̂ speaks against {right:.1%} of the log p(x|y) under the right label and {wrong:.1%} under wrong "
                "ones: they may be too low; take more samples"
            )
        lines += ["", f"{'label':>5s} {'rows':>7s} {'accuracy':>9s} {'drop':>10s} {'KL':>10s} {'taken for':>14s}"]
        columns = [self.by_label[name].tolist() for name in ("rows", "accuracy", "drop", "kl", "confused", "share")]
        for label, rows, accuracy, drop, kl, confused, share in zip(self.labels, *columns, strict=True):
            mistaken = f"{int(confused)} ({share:.1%})" if share else "–"
            lines.append(f"{label:5d} {int(rows):7d} {accuracy:9.1%} {drop:z10.3f} {kl:10.3f} {mistaken:>14s}")
        if not self.density:
            lines.append(GREY)
        return "\n".join([*lines, "", self.finding])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON; what is known row by row is left out."""
        return plain(
            {
                "rows": self.rows,
                "samples": self.samples,
                "density": self.density,
                "unit": "nats per datum; accuracies are shares",
                **named(self.terms),
                "labels": self.labels,
                "p_y": self.p_y,
                "not_to_be_trusted": dict(zip(("right_label", "wrong_label"), self.untrusted, strict=True)),
                "by_label": self.by_label,
                "finding": self.finding,
            }
        )


@torch.no_grad()
def label_use(
    vae: VAE,
    x: Any,
    y: Any,
    *,
    p_y: Any = None,
    samples: int = 200,
    draws: int = 5,
    batch_size: int = 250,
    seed: int = 0,
) -> LabelUse:
    r"""Say whether a model conditional on a label uses it, and whether z carries it too.

    ===================== ==============================================================================================
    ``accuracy``          of the generative classifier :math:`\arg\max_y [\log p(x \mid y) + \log p(y)]`
    ``chance``            that of naming the most frequent label
    ``log_posterior``     :math:`\log p(y \mid x)` of the right label by Bayes' rule, which punishes false certainty
    ``drop``              :math:`\log p(x \mid y)` minus its mean over the wrong labels, row by row
    ``kl``                :math:`\mathrm{KL}(q(z \mid x, y) \| p(z \mid y))`
    ``leakage``           a lower bound on I(z; y) for z from q, which is H(y) at most
    ``leakage_accuracy``  how often the classifier behind that bound is right
    ``prior_information`` I(z; y) for z from p(z|y), zero for a prior without y
    ``entropy``           H(y)
    ===================== ==============================================================================================

    Every log p(x|y) is an importance-sampled bound, by :func:`~ppl_vae.evaluation.log_likelihood`, with the same draws
    of z for all labels: from what the encoder says of x under each of them, in equal parts. So a model whose prior and
    likelihood ignore y gives exactly the same under every label, though its encoder does not.

    Arguments:
        vae: conditional on one integer label.
        x: (N, *x_shape).
        y: (N,) integers, two rows of every label or more.
        p_y: (classes,), the probabilities p(y) that the classifier goes by; by default the frequencies in y. A label
            of probability zero is not tried.
        samples: of z for every log p(x|y), of which the encoder has drawn so many over the number of labels under each.
        draws: of z from q for each row, for the leakage.
        batch_size: rows at a time, where codes are compared.
        seed: of the draws; the caller's generators are left as they were.

    Returns:
        A :class:`LabelUse`.

    Raises:
        PartError: for a model that is not conditional on one integer label.
        LabelError: unless there is a label a row, and two rows of each of two labels.
        ConfigError: for a p_y that is none, or a model in half precision.
        NoDensityError: for a model without a prior, or with an encoder that gives a point.
        NonFiniteError: for a row that is impossible under every label.

    Example:
        >>> vae = pv.cvae((4,), 2, 3, likelihood="Gaussian")
        >>> found = label_use(vae, torch.randn(12, 4), torch.arange(12) % 3, samples=5)
        >>> found.labels, list(found.log_prob.shape), round(found["entropy"], 3)
        ([0, 1, 2], [3, 12], 1.099)
    """
    check_not_nan(vae, "label_use")
    check_precision(vae, "label_use")
    check_positive(samples=samples, draws=draws, batch_size=batch_size)
    classes = label_classes(vae, "label_use")
    x = as_tensor(x)
    y = check_labels(y, len(x))
    vae.check(x, y)
    counts = y.bincount(minlength=classes)
    if (counts > 0).sum() < 2 or (counts == 1).any():
        raise LabelError(
            f"label_use: expected two rows or more of each of two labels or more, got {counts.tolist()} rows of the "
            f"labels 0 … {classes - 1}"
        )
    p = _probabilities(p_y, counts)
    labels = p.nonzero()[:, 0]
    with measuring(vae, seed, "label_use"):
        options: dict[str, Any] = {
            "samples": samples,
            "proposal": _under_any(vae, labels),
            # A mixture over labels holds a density of each.
            "memory": max(1, _MEMORY // len(labels)),
            "seed": seed,
            "progress": False,
        }
        estimates = [log_likelihood(vae, x, k, **options) for k in labels]
        kl, z = _rates(vae, x, y, draws, batch_size)
        told, told_right = told_of_labels(vae, x, y, z, batch_size)
        present = counts.nonzero()[:, 0]
        prior = prior_information(vae, present, counts[present].double() / len(y))
    log_prob = torch.stack([estimate.values for estimate in estimates])
    if (nowhere := (log_prob == -math.inf).all(0)).any():
        raise NonFiniteError(
            f"label_use: {int(nowhere.sum())} of {len(y)} rows, the first of them {int(nowhere.nonzero()[0])}, are "
            "impossible under every label: none can be told to be the right one"
        )
    right, bad = labels[:, None] == y, ~torch.stack([estimate.good for estimate in estimates])
    log_posterior = (log_prob + p[labels].log()[:, None]).log_softmax(0)
    predicted = labels[log_posterior.argmax(0)]
    truth = log_prob[right.T.nonzero()[:, 1], torch.arange(len(y))]
    drop = truth - log_prob.masked_fill(right, 0.0).sum(0) / (len(labels) - 1)
    # A row that is impossible under its own label may be so under another, too.
    drop = drop.masked_fill(truth == -math.inf, -math.inf)
    hit = (predicted == y).double()
    frequency = counts[counts > 0].double() / len(y)
    entropy = -(frequency * frequency.log()).sum().item()
    exact = math.nan
    return LabelUse(
        rows=len(x),
        samples=samples,
        labels=labels.tolist(),
        p_y=p[labels],
        terms={
            "accuracy": mean_and_error(hit),
            "chance": (counts.max().item() / len(y), exact),
            "log_posterior": mean_and_error(log_posterior.T[right.T]),
            "drop": mean_and_error(drop),
            "kl": mean_and_error(kl),
            "leakage": (told.mean().item() + entropy, _error_within(told, y)),
            "leakage_accuracy": mean_and_error(told_right),
            "prior_information": mean_and_error(prior),
            "entropy": (entropy, exact),
        },
        by_label=_by_label(labels, y, predicted, {"accuracy": hit, "drop": drop, "kl": kl}),
        log_prob=log_prob,
        predicted=predicted,
        untrusted=(bad[right].double().mean().item(), bad[~right].double().mean().item()),
        density=getattr(vae.likelihood, "density", True),
    )


def _error_within(values: Tensor, y: Tensor) -> float:
    """The standard error of the mean of values (N,) where so many rows of every label are given.

    What differs between labels is then no noise: of codes that tell nothing, log p(y) is all that a row says, and
    H(y) is exactly what it is less.
    """
    squares = sum((of := values[y == label]).var().item() * len(of) for label in y.unique())
    return math.sqrt(squares) / len(values)


def label_classes(vae: VAE, asked: str) -> int:
    """Return how many labels a model is conditional on.

    Raises:
        PartError: unless its condition is one integer label.
    """
    classes = getattr(vae.condition, "classes", None)
    if vae.condition is None or getattr(vae.condition, "y_shape", ()) != () or not isinstance(classes, int):
        got = "none" if vae.condition is None else type(vae.condition).__name__
        raise PartError(
            f"{asked}: expected a model conditional on one integer label, such as cvae(...) or "
            f"condition=OneHot(classes), got the condition {got}; one of your own says so with an attribute `classes`"
        )
    return classes


def check_labels(y: Any, rows: int) -> Tensor:
    """Return y (N,) as whole numbers on the CPU.

    Raises:
        LabelError: unless there is one for every row.
    """
    y = torch.as_tensor([] if y is None else y).cpu()
    if y.shape != (rows,) or y.is_floating_point() or y.dtype == torch.bool:
        raise LabelError(f"y: expected one integer label for each of {rows} rows, got {y.dtype} {tuple(y.shape)}")
    return y.long()


def _probabilities(p_y: Any, counts: Tensor) -> Tensor:
    """P(y) (classes,), the frequencies unless given."""
    p = counts.double() / counts.sum() if p_y is None else torch.as_tensor(p_y).cpu().double()
    if p.shape != counts.shape or not (p >= 0).all() or not abs(p.sum().item() - 1) < 1e-4:
        raise ConfigError(f"p_y: expected {len(counts)} probabilities that add up to one, got {p.tolist()}")
    if missing := ((counts > 0) & (p == 0)).nonzero()[:, 0].tolist():
        raise ConfigError(f"p_y: expected p > 0 for every label of the data, got 0 for {missing}")
    return p / p.sum()


class _InTurn(dist.MixtureSameFamily):
    """A mixture whose draws take its components in turn, from a random one on: each draw is one of the mixture's."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws (n, N, D) for a sample shape (n,)."""
        (n,), k = sample_shape, self.mixture_distribution.logits.shape[-1]
        z = self.component_distribution.sample((math.ceil(n / k),))
        turn = torch.arange(k, device=z.device) + torch.randint(k, (*self.batch_shape, 1), device=z.device)
        z = z.gather(-2, (turn % k).unsqueeze(-1).expand_as(z))
        return z.movedim(-2, 1).flatten(0, 1)[:n]


def _under_any(vae: VAE, labels: Tensor) -> Callable[[Tensor], Any]:
    """A proposal for z that is the same whatever the label: x → the mean of q(z | x, y) over labels."""

    def proposal(x: Tensor) -> Any:
        shape = len(x), len(labels)
        q = vae.encode(x.unsqueeze(1).expand(*shape, *x.shape[1:]), labels.to(x.device).expand(shape))
        if is_point(q):
            raise NoDensityError(POINT)
        return _InTurn(dist.Categorical(logits=x.new_zeros(shape)), q.expand(shape))

    return proposal


def _rates(vae: VAE, x: Tensor, y: Tensor, draws: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """KL(q ‖ p) of every row, (N,), and draws of z, (N, draws, latent)."""
    kls, zs = [], []
    for i in range(0, len(x), batch_size):
        rows = x[i : i + batch_size], y[i : i + batch_size]
        q = posterior(vae, *rows)
        z = q.rsample((draws,)) if q.has_rsample else q.sample((draws,))
        kls.append(divergence(q, vae.prior_given(rows[1]), z)[0])
        zs.append(z.movedim(0, 1))
    return torch.cat(kls).cpu(), torch.cat(zs)


def _by_label(labels: Tensor, y: Tensor, predicted: Tensor, columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over the rows of each label, and the label it is taken for most often when it is not seen as itself."""
    of = [(y == label) for label in labels]
    table = {"rows": torch.stack([rows.sum() for rows in of])}
    table |= {name: torch.stack([column[rows].mean() for rows in of]) for name, column in columns.items()}
    wrong = [predicted[rows & (predicted != y)] for rows in of]
    table["confused"] = torch.stack([w.mode().values if len(w) else torch.tensor(-1) for w in wrong])
    share = [(w == c).sum() / max(1, int(n)) for w, c, n in zip(wrong, table["confused"], table["rows"], strict=True)]
    table["share"] = torch.stack(share).double()
    return table

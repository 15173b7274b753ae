r"""Are the samples good? A classifier of the real training data is the judge.

.. math::
    \mathrm{FID} = \lVert \mu_1 - \mu_2 \rVert^2 + \operatorname{tr}\bigl(\Sigma_1 + \Sigma_2
    - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2}\bigr), \qquad
    \mathrm{KID} = \mathbb{E}\bigl[k(f, f') + k(g, g') - 2 k(f, g)\bigr], \quad
    k(f, g) = \bigl(\tfrac1F f^\top g + 1\bigr)^3

with μ and Σ the moments of the features, f those of samples and g those of data, F of them. The features are the last
hidden layer of the judge, in the unit in which their mean square is one on the training data. The judge has learned
from the data at hand, so no network of somebody else's has to be downloaded; the price is that the numbers compare
models of one data set, under one judge, and nothing published.

References: GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al., 2017), for
FID; Demystifying MMD GANs (Bińkowski, Sutherland, Arbel and Gretton, 2018), for KID; Classification Accuracy Score for
Conditional Generative Models (Ravuri and Vinyals, 2019), for judging by a classifier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, LabelError, ShapeError, check_positive
from ..model import VAE
from ..model.checks import check_not_nan
from .judge import Judge, train_judge
from .labels import check_labels, label_classes
from .measuring import Report, mean_and_error, measuring, named, plain

__all__ = ["Quality", "fid", "kid", "quality"]

# How many rows of a label are compared in pairs.
_PAIRED = 2000


@dataclass(frozen=True, repr=False)
class Quality(Report):
    """What :func:`quality` found; ``str`` makes the table.

    ``terms`` holds what the samples get and ``real`` what test data get in their place, each with a standard error, NaN
    where none is known; ``by_label`` has a column for every label of the test data.
    """

    rows: int
    conditional: bool
    terms: dict[str, tuple[float, float]]
    real: dict[str, tuple[float, float]]
    labels: list[int]
    by_label: dict[str, Tensor]
    judge: Judge

    def __getitem__(self, name: str) -> float:
        return self.terms[name][0]

    def __str__(self) -> str:
        names = {
            "accuracy": "accuracy: the judge sees the label that was asked for",
            "label_entropy": "entropy of the labels that the judge sees, nats",
            "doubt": "entropy of the judge's p(y|x), nats",
            "diversity": "diversity within a label",
            "judge_fid": "FID (features of a classifier of the training data)",
            "judge_kid": "KID (features of a classifier of the training data)",
        }
        lines = [f"{f'{self.rows} samples, {self.rows} rows of test data':54s} {'samples':>16s} {'test data':>18s}"]
        for name, text in names.items():
            if name in self.terms:
                lines.append(f"{text:54s} {_with_error(*self.terms[name])} {_with_error(*self.real[name])}")
        if not self.conditional:
            lines.append(f"{'the accuracy of the judge':54s} {'':17s} {_with_error(*self.real['accuracy'])}")
        lines.append("test data against test data are one half against the other: fewer rows, a larger FID")
        pair = ("accuracy", "real_accuracy") if self.conditional else ("share", "real_share")
        lines += ["", f"{'label':>5s} {pair[0]:>10s} {'test data':>10s} {'diversity':>10s}"]
        columns = [self.by_label[name].tolist() for name in (*pair, "diversity")]
        for label, found, real, diversity in zip(self.labels, *columns, strict=True):
            lines.append(f"{label:5d} {found:10.1%} {real:10.1%} {diversity:10.2f}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return plain(
            {
                "rows": self.rows,
                "features": "the last hidden layer of a classifier of the training data",
                "samples": named(self.terms),
                "real": named(self.real),
                "labels": self.labels,
                "by_label": self.by_label,
            }
        )


@torch.no_grad()
def quality(
    vae: VAE,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    judge: Judge | None = None,
    mean: bool = False,
    steps: int = 1000,
    batch_size: int = 250,
    seed: int = 0,
) -> Quality:
    """Judge as many samples as there are test data, by a classifier of the real training data.

    ================== ================================================================================================
    ``accuracy``       the share of samples in which the judge sees the label that was asked for; conditional models
    ``label_entropy``  of the labels that the judge sees; models without labels, which may leave some out
    ``doubt``          the mean entropy of the judge's p(y|x): more than for data, if samples look like no label
    ``diversity``      the mean distance of features between two samples of a label, over that of the test data
    ``judge_fid``      the distance from the test data, over the judge's features, and not a network's of photographs
    ``judge_kid``      likewise
    ================== ================================================================================================

    Samples of the wrong label are far from the others, and so count as diverse: read diversity beside accuracy. What
    test data get is given beside each number; for FID and KID it is the distance of one half of them from the other.
    (Training data would be no measure: the judge knows them by heart.) FID falls with the number of rows. KID does not,
    but samples with the labels of the test data are more alike to them than chance, and come out a little below zero.

    Arguments:
        vae: conditional on one integer label, or on nothing.
        train: (x, y), the real data the judge learns from, of the kind that the model draws; y are labels, whether or
            not the model is given them.
        test: (x, y), other real data. For each row a sample is drawn, with its label if the model takes one.
        judge: one that is trained already, so that several models can be compared; by default it is trained here, and
            given back as ``judge``.
        mean: judge the mean of p(x|z, y) in place of a draw from it.
        steps: of the judge's training.
        batch_size: samples at a time.
        seed: of the judge and the samples; the caller's generators are left as they were.

    Returns:
        A :class:`Quality`.

    Raises:
        PartError: for a model that is conditional on something else.
        DataError: for data that the model could not have drawn.
        LabelError: for labels that are none, or that the judge has not seen.
        NoDensityError: for a model without a prior.
        ConfigError: inside ``torch.inference_mode()``, if a judge is to be trained.

    Example:
        >>> y = torch.arange(80) % 2
        >>> x = torch.randn(80, 3) + 6.0 * y[:, None]
        >>> vae = pv.cvae((3,), 2, 2, likelihood="Gaussian")
        >>> found = quality(vae, (x[:40], y[:40]), (x[40:], y[40:]), steps=50)
        >>> sorted(found.terms)
        ['accuracy', 'diversity', 'doubt', 'judge_fid', 'judge_kid']
    """
    check_positive(batch_size=batch_size, steps=steps)
    check_not_nan(vae, "quality")
    conditional = vae.condition is not None
    if conditional:
        label_classes(vae, "quality")
    (x_train, y_train), (x_test, y_test) = _pair(vae, train, "train"), _pair(vae, test, "test")
    device = vae._beta.device
    judge = train_judge(x_train, y_train, steps=steps, seed=seed, device=device) if judge is None else judge
    if y_test.max() >= judge.classes or tuple(x_test.shape[1:]) != judge.x_shape:
        raise LabelError(
            f"expected test data {judge.x_shape} with labels 0 … {judge.classes - 1}, as the judge has learned, got "
            f"{tuple(x_test.shape[1:])} and labels up to {int(y_test.max())}"
        )
    with measuring(vae, seed, "quality"):
        drawn = []
        for some in y_test.split(batch_size):
            drawn.append(vae.sample(1, some, mean=mean)[0] if conditional else vae.sample(len(some), mean=mean))
        fake, real = (_judged(judge, x, batch_size) for x in (torch.cat(drawn), x_test))
        order = torch.randperm(len(y_test))
        # Samples with labels have as many of each as the test data, and so must the halves.
        order = order[y_test[order].argsort(stable=True)] if conditional else order
        halves = real.features[order[::2]], real.features[order[1::2]]
    labels, hit = y_test.unique(), (real.labels == y_test).double()
    # Without a label to ask for, a sample belongs to the one that is seen, and so does what it is compared with.
    of = (y_test, y_test) if conditional else (fake.labels, real.labels)
    diversity = _diversity(fake.features, of[0], labels) / _diversity(real.features, of[1], labels)
    terms, other, by_label = {}, {"accuracy": mean_and_error(hit)}, {"diversity": diversity}
    if conditional:
        seen = (fake.labels == y_test).double()
        terms["accuracy"] = mean_and_error(seen)
        by_label |= {"accuracy": _means_of(seen, y_test, labels), "real_accuracy": _means_of(hit, y_test, labels)}
    else:
        shares = [f.labels.bincount(minlength=judge.classes).double() / len(y_test) for f in (fake, real)]
        # The entropy of the frequencies of N draws is too low by about this much (Miller, 1955).
        too_low = [(int((share > 0).sum()) - 1) / (2 * len(y_test)) for share in shares]
        terms["label_entropy"] = _entropy(shares[0]).item() + too_low[0], math.nan
        other["label_entropy"] = _entropy(shares[1]).item() + too_low[1], math.nan
        by_label |= {"share": shares[0][labels], "real_share": shares[1][labels]}
    terms["doubt"], other["doubt"] = (mean_and_error(_entropy(f.probs)) for f in (fake, real))
    terms["diversity"], other["diversity"] = (diversity.nanmean().item(), math.nan), (1.0, math.nan)
    for found, ends in ((terms, (fake.features, real.features)), (other, halves)):
        found |= {"judge_fid": (fid(*ends), math.nan), "judge_kid": kid(*ends)}
    return Quality(len(x_test), conditional, terms, other, labels.tolist(), by_label, judge)


def fid(features: Tensor, others: Tensor) -> float:
    """Return the Fréchet distance of two Gaussians with the moments of these features, (N, F) and (M, F).

    Raises:
        ShapeError: unless both have two rows or more of as many features.

    Example:
        >>> x = torch.randn(100, 3)
        >>> round(fid(x, x + torch.tensor([3.0, 4.0, 0.0])), 3)
        25.0
    """
    a, b = _two(features, others)
    centred = [f - f.mean(0) for f in (a, b)]
    cov_a, cov_b = (f.T @ f / (len(f) - 1) for f in centred)
    values, axes = torch.linalg.eigh(cov_a)
    root = (axes * values.clamp(min=0).sqrt()) @ axes.T
    # The trace of the root of a product, as that of a symmetric matrix with the same eigenvalues.
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def kid(features: Tensor, others: Tensor) -> tuple[float, float]:
    """Return the unbiased squared distance of kernel means of features (N, F) and (M, F), and its standard error.

    The kernel is the cubic one of KID; no row is compared with itself, so the estimate may be below zero.

    Raises:
        ShapeError: unless both have two rows or more of as many features.

    Example:
        >>> kid(torch.zeros(5, 2), torch.ones(5, 2))
        (7.0, 0.0)
    """
    a, b = _two(features, others)

    def row_means(f: Tensor, g: Tensor, same: bool) -> Tensor:
        """The mean kernel of every row of f with all of g; but itself, where g is f."""
        total = torch.cat([((some @ g.T) / f.shape[1] + 1).pow(3).sum(1) for some in f.split(1000)])
        itself = (f.square().mean(1) + 1).pow(3) if same else 0.0
        return (total - itself) / (len(g) - same)

    of_a = row_means(a, a, same=True) - row_means(a, b, same=False)
    of_b = row_means(b, b, same=True) - row_means(b, a, same=False)
    # What every row contributes, to first order: twice its own mean.
    error = 2 * (of_a.var() / len(a) + of_b.var() / len(b)).sqrt()
    return (of_a.mean() + of_b.mean()).item(), error.item()


def _two(features: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    shapes = [tuple(f.shape) for f in (features, others)]
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ShapeError(f"expected features (N, F) and (M, F) with N, M ≥ 2, got {shapes[0]} and {shapes[1]}")
    return features.double(), others.double()


def _pair(vae: VAE, data: tuple[Any, Any], what: str) -> tuple[Tensor, Tensor]:
    """X and labels, once the model could have drawn them."""
    if not isinstance(data, tuple | list) or len(data) != 2 or data[1] is None:
        raise DataError(f"{what}: expected (x, y), the labels being the judge's, got {type(data).__name__}")
    x = torch.as_tensor(data[0])
    y = check_labels(data[1], len(x))
    vae.check(x, None if vae.condition is None else y)
    if len(x) < 4 or y.min() < 0:
        raise LabelError(f"{what}: expected four rows or more, with labels from 0, got {len(x)} rows")
    return x, y


class _Judged(NamedTuple):
    features: Tensor  # (N, 64)
    probs: Tensor  # (N, classes)
    labels: Tensor  # (N,)


def _judged(judge: Judge, x: Tensor, batch_size: int) -> _Judged:
    """What the judge makes of x, on the CPU in float64."""
    found = [judge.features(some.to(judge.shift)) for some in x.split(batch_size)]
    probs = torch.cat([judge.head(features * judge.unit).softmax(1) for features in found]).double().cpu()
    return _Judged(torch.cat(found).double().cpu(), probs, probs.argmax(1))


def _diversity(features: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """The mean distance between two rows of each label; NaN where there are no two."""
    of = [features[y == label][:_PAIRED] for label in labels]
    return torch.stack([torch.pdist(f).mean() if len(f) > 1 else f.new_tensor(math.nan) for f in of])


def _means_of(column: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([column[y == k].mean() for k in labels])


def _entropy(share: Tensor) -> Tensor:
    return -torch.xlogy(share, share).sum(-1)


def _with_error(mean: float, error: float) -> str:
    return f"{mean:z8.3f}" + (f" ± {error:6.3f}" if not math.isnan(error) else " " * 9)

r"""Labels that are missing for part of the data are summed out.

.. math::
    \text{labelled:}\quad \mathcal L(x, y) &= \mathrm{ELBO}(x \mid y) + \log p(y) + \alpha \log q(y \mid x) \\
    \text{unlabelled:}\quad \mathcal U(x) &= \sum_y q(y \mid x)
        \bigl[\mathrm{ELBO}(x \mid y) + \log p(y) - \log q(y \mid x)\bigr]

Both are one sum over y with weights: q(y|x) where the label is missing, a one where it is known. So both kinds of rows
go through one program of static shape, with the labels along a dimension of their own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from .data import as_tensor
from .errors import ConfigError, DataError, LabelError, PartError, ShapeError
from .model import VAE
from .model.checks import check_data, check_pair, check_part, check_rows, given_by
from .model.masking import given, observed

__all__ = ["SemiSupervised"]


class SemiSupervised(VAE):
    r"""A class-conditional VAE with a classifier beside it, for data of which few rows have a label.

    ``y`` is a whole number per row as elsewhere, and −1 where the label is missing. Everything that is asked of a model
    with its labels (``sample``, ``log_prob``, ``evaluate``, ...) is asked in the same way. A step encodes and decodes a
    row as many times as there are labels. ``history`` of a fit holds −ELBO(x|y) of labelled rows and −U(x) of the
    others; rows to validate on have labels. A posterior predictive by Pyro has z and x for every label, in a dimension
    before that of the rows. Move and cast the whole, not the ``vae`` whose parts it shares.

    Arguments:
        vae: class-conditional; its parts are shared, not copied.
        classifier: x, None → q(y | x), a categorical distribution, such as ``encoders.Classifier(10, x_shape)``.
        labels: None → p(y), a categorical distribution; by default all labels are as likely.
        alpha: the weight of log q(y | x) on labelled rows, which the bound itself does not train.

    Raises:
        PartError: if the model has no condition, or a part does not give a categorical distribution.

    Reference:
        Semi-supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed and Welling, 2014)

    Example:
        >>> classifier = pv.encoders.Classifier(3, (4,))
        >>> model = SemiSupervised(pv.cvae((4,), 2, 3), classifier)
        >>> x, y = torch.randint(2, (5, 4)).float(), torch.tensor([0, 2, -1, -1, -1])
        >>> pv.objectives.Trace_ELBO().loss(model.model, model.guide, x, y) > 0
        True
        >>> model.classify(x).probs.shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        vae: VAE,
        classifier: Callable[..., Any],
        labels: Callable[..., Any] | None = None,
        alpha: float = 1.0,
    ) -> None:
        if vae.condition is None:
            raise PartError(
                "SemiSupervised: expected a model conditional on labels, such as cvae(...), got one without y"
            )
        check_part("classifier", classifier, "x", "c")
        if labels is not None:
            check_part("labels", labels, "c")
        classes = getattr(vae.condition, "classes", None)
        if getattr(vae.condition, "y_shape", ()) != () or not isinstance(classes, int | None):
            raise PartError(
                f"expected a condition of one whole number a row, such as OneHot, got {type(vae.condition).__name__}"
            )
        if None not in (classes, told := getattr(classifier, "classes", None)) and told != classes:
            raise ShapeError(f"classifier: expected one of {classes} labels, as the condition has, got one of {told}")
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"expected 0 ≤ alpha < ∞, got {alpha}")
        super().__init__(vae.prior, vae.likelihood, vae.encoder, vae.condition, beta=vae.beta)
        self.classifier, self.labels, self.alpha = classifier, labels, alpha

    def classify(self, x: Any) -> Any:
        """Return q(y | x), a categorical distribution, for x (N, *x_shape)."""
        q = given_by("classifier", self.classifier(self._tensor(x), None))
        if not isinstance(q, torch.distributions.Categorical):
            raise PartError(f"classifier: expected it to return a Categorical, got {type(q).__name__}")
        return q

    def model(self, x: Any = None, y: Any = None, mask: Tensor | None = None, total: float | None = None) -> Tensor:
        """As :meth:`VAE.model`; rows of ``y`` that are −1 are summed over."""
        if x is None:
            return super().model(None, y, mask, total)
        x = self._tensor(x)
        mask = self._mask(x, mask)
        weights, log_q, y = self._weights(x, y, mask)
        c = self._every_context(weights)
        log_p, row = self._log_p(log_q), y.clamp(min=0)[None]
        unknown = (log_q.exp() * (log_p - log_q)).sum(0)
        known, log_q_y = (table.expand_as(log_q).gather(0, row)[0] for table in (log_p, log_q))
        with self._plate(len(x), total):
            zero = torch.zeros_like(known)
            pyro.factor("y", torch.where(y >= 0, known, zero))
            pyro.factor("missing", torch.where(y >= 0, zero, unknown))
            pyro.factor("classifier", self.alpha * torch.where(y >= 0, log_q_y, zero))
            with self._every_label(weights):
                with self._kl_weight():
                    prior = self._prior(c)
                    z = pyro.sample("z", prior, infer={"weights": weights})
                check_pair(z, prior)
                p, x = observed(self._decoded(z, c), x, mask)
                check_data(self.likelihood, x)
                return pyro.sample("x", p, obs=x, infer={"weights": weights})

    def guide(self, x: Any = None, y: Any = None, mask: Tensor | None = None, total: float | None = None) -> Tensor:
        """As :meth:`VAE.guide`, for every label at once: z is (labels, N, latent)."""
        x = self._tensor(x)
        mask = self._mask(x, mask)
        if x is None:
            raise DataError("the guide is q(z | x, y) and needs x; to sample from the prior, run the model alone")
        weights, _, _ = self._weights(x, y, mask)
        q = self._posterior(x, self._every_context(weights), mask)
        with self._plate(len(x), total), self._every_label(weights), self._kl_weight():
            return pyro.sample("z", q, infer={"weights": weights})

    def labels_to_check(self, y: Any) -> Tensor:
        """As :meth:`VAE.labels_to_check`; a label may be −1."""
        if y is None:
            raise LabelError("expected y, one label a row of x, and −1 where it is missing; got none")
        y = as_tensor(y, "y", LabelError)
        if y.numel() and y.min() < -1:
            raise LabelError(f"expected labels from 0, or −1 where they are missing, got {y.min().item()}")
        return y.clamp(min=0)

    def observe(self, y: Tensor) -> None:
        """Remember the labels that training has shown."""
        super().observe(y[y >= 0])

    @property
    def structure(self) -> tuple[Any, ...]:
        """As :attr:`VAE.structure`, and the parts that are functions."""
        return *super().structure, id(vars(self).get("classifier")), id(vars(self).get("labels")), self.alpha

    # The sum over y

    def _weights(self, x: Tensor, y: Any, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The weight of every label in every row, (labels, N); log q(y | x), likewise; and y (N,), −1 where missing."""
        self._register()
        check_rows(x)
        log_q = self.classify(given(self.classifier, x, mask)).logits.movedim(-1, 0)
        y = torch.full((len(x),), -1) if y is None else as_tensor(y, "y", LabelError)
        if y.is_floating_point() or y.dim() > 1 or (y.dim() and len(y) not in (1, len(x))):
            raise LabelError(
                f"expected one whole number a row of x, −1 where it is missing, got {y.dtype} {tuple(y.shape)} for "
                f"{len(x)} rows"
            )
        y = y.long().to(x.device).expand(len(x))
        if is_validation_enabled() and not ((y >= -1) & (y < len(log_q))).all():
            raise LabelError(f"expected labels 0 … {len(log_q) - 1}, or −1 where they are missing, got {y.tolist()}")
        known = torch.arange(len(log_q), device=x.device)[:, None] == y
        weights = torch.where(y >= 0, known.to(log_q), log_q.exp())
        # Pyro wants scales above zero; so small a weight leaves nothing of a finite number.
        return weights.clamp(min=torch.finfo(weights.dtype).tiny), log_q, y

    @staticmethod
    def _every_label(weights: Tensor) -> AbstractContextManager[Any]:
        """The dimension of the labels, left of that of the rows, and their weights."""
        stack = ExitStack()
        try:
            stack.enter_context(pyro.plate("labels", len(weights), dim=-2))
        except ValueError as error:
            raise PartError(
                "expected dimension −2 to be free for the labels, and vectorised particles have it: use Trace_ELBO "
                "or Analytic, with max_plate_nesting=2; the objectives of several weights (IWAE and its kin) are for "
                "one z a row"
            ) from error
        stack.enter_context(poutine.scale(scale=weights))
        return stack

    def _every_context(self, weights: Tensor) -> Tensor:
        """C of every label, (labels, 1, context)."""
        with warnings.catch_warnings():
            # A label without labelled rows is asked about all the same.
            warnings.filterwarnings("ignore", "label .* was never seen in training")
            return self._context(torch.arange(len(weights), device=weights.device)).unsqueeze(1)  # type: ignore[union-attr]

    def _log_p(self, log_q: Tensor) -> Tensor:
        """Log p(y), (labels, 1)."""
        if self.labels is None:
            return log_q.new_full((len(log_q), 1), -math.log(len(log_q)))
        p = given_by("labels", self.labels(None))
        if not isinstance(p, torch.distributions.Categorical) or p.logits.shape[-1] != len(log_q):
            raise PartError(f"labels: expected it to return a Categorical over {len(log_q)} labels, got {p}")
        return p.logits.unsqueeze(-1) if p.logits.dim() == 1 else p.logits.movedim(-1, 0)

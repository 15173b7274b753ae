"""Unseen pixels: drawn from the right conditional distribution, and never looked at."""

import math

import pytest
import torch
from ppca import D, Ppca
from torch.distributions import MultivariateNormal

import ppl_vae as pv
from ppl_vae.errors import NoDensityError, PartError, ShapeError

SEEN = torch.tensor([True, True, False, True, False, True, True, False])


def conditional(truth, x, y=None):
    """The mean and covariance of the unseen given the seen, in closed form."""
    a, b = ~SEEN, SEEN
    gain = truth.C[a][:, b] @ torch.linalg.inv(truth.C[b][:, b])
    mean = truth.mean(y)
    return mean[..., a] + (x[..., b] - mean[..., b]) @ gain.T, truth.C[a][:, a] - gain @ truth.C[b][:, a]


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("junk", [0.0, math.nan])
def test_draws_are_from_the_conditional_distribution(classes, junk):
    # An encoder that was told zeros for unseen pixels is far off; the weights must make up for it. Whitened by the
    # truth the draws are standard normal: their mean and covariance are z-tested, α = 1e-6 each, with twice the
    # standard error for the finite number of candidates.
    truth = Ppca(classes)
    x, y = truth.draw(1)
    vae = truth.vae(stretch=3.0)
    mask = SEEN.expand(1, D)
    torch.manual_seed(0)
    n = 4000
    draws = vae.impute(torch.where(mask, x, junk), y, mask=mask, n=n, candidates=20000)
    assert torch.equal(draws[..., SEEN], x[:, SEEN].expand(n, 1, -1))
    mean, covariance = conditional(truth, x, y)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (draws[:, 0][:, ~SEEN] - mean).T, upper=False
    ).T
    assert (white.mean(0).abs() < 2 * 4.9 / math.sqrt(n)).all()
    second = white.T @ white / n - torch.eye(3)
    assert (second.abs() < 2 * 4.9 * math.sqrt(2 / n)).all()
    # And the draws given by the encoder's proposals alone would fail that.
    z = vae.encode(torch.where(mask, x, 0.0), y).sample((n,))
    naive = vae.decode(z, y).sample()[:, 0][:, ~SEEN]
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (naive - mean).T, upper=False).T
    assert (white.mean(0).abs() > 2 * 4.9 / math.sqrt(n)).any()


def test_the_bound_of_the_seen_pixels_is_theirs():
    # The importance-sampled log-density of seen pixels alone, from the same weights, is that of their marginal.
    truth = Ppca()
    x, _ = truth.draw(5)
    vae = truth.vae(stretch=2.0)
    mask = SEEN.expand(5, D)
    torch.manual_seed(0)
    log_w = torch.cat([w for _, w in vae._propose(x, None, 50_000, mask)])
    expected = MultivariateNormal(truth.mu[0][SEEN], truth.C[SEEN][:, SEEN]).log_prob(x[:, SEEN])
    w = (log_w - expected).exp()
    # z-test, α = 1e-6 over the five rows.
    assert ((w.mean(0) - 1).abs() < 5.2 * w.std(0) / math.sqrt(len(w))).all()


def test_rows_in_parts_and_one_label_for_all(monkeypatch):
    truth = Ppca(3)
    x, y = truth.draw(7)
    mask = SEEN.expand(7, D)
    monkeypatch.setattr("ppl_vae.model.vae._CHUNK", 64)
    draws = truth.vae().impute(x, y, mask=mask, n=2, candidates=5)
    assert draws.shape == (2, 7, D)
    assert torch.equal(draws[..., SEEN], x[:, SEEN].expand(2, 7, -1))
    assert truth.vae().impute(x, 1, mask=mask).shape == (1, 7, D)
    assert truth.vae().impute(x, torch.tensor([1]), mask=mask).shape == (1, 7, D)


@pytest.mark.parametrize("name", ["Bernoulli", "Binomial", "Beta", "Poisson", "Categorical", "ContinuousBernoulli"])
def test_draws_are_values_that_the_likelihood_has(name):
    torch.manual_seed(0)
    vae = pv.vae((4,), 2, likelihood=name, levels=16)
    x = torch.rand(3, 4) if name in ("Beta", "ContinuousBernoulli") else torch.randint(2, (3, 4)).float()
    mask = torch.tensor([True, False, True, False]).expand(3, 4)
    draws = vae.impute(torch.where(mask, x, math.nan), mask=mask, n=5)
    assert draws.dtype == torch.float32
    vae.check(draws.flatten(0, 1))


def test_errors():
    vae, x = pv.vae((4,), 2), torch.zeros(3, 4)
    with pytest.raises(ShapeError, match="mask: expected bool"):
        vae.impute(x, mask=torch.ones(3, 4))
    with pytest.raises(NoDensityError):
        pv.ae((4,), 2).impute(x, mask=x == 0)
    whole = pv.VAE(
        pv.priors.Standard(2), lambda z, c: MultivariateNormal(z @ torch.ones(2, 4), torch.eye(4)), vae.encoder
    )
    with pytest.raises(PartError, match="independent pixels"):
        whole.impute(x, mask=x == 0)

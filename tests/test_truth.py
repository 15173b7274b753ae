"""Against models whose every number is known: nothing here compares the library with itself.

α = 1e-6 for every test that involves chance, divided by the number of its comparisons; such a test is marked ``fresh``.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from ppca import SIGMA, D, Free, L, Ppca, limit, sigma_points
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import Normal

import ppl_vae as pv
from ppl_vae.objectives import Analytic, analytic_elbo, elbo_terms, kl_standard

OFF = [(0.0, 1.0), (0.3, 1.5), (-1.0, 0.7)]  # how far a guide is from the posterior, in sd, and how much wider


def stock_loss(vae, elbo, x, y=None, **kwargs):
    return SVI(vae.model, vae.guide, pyro.optim.Adam({}), elbo).evaluate_loss(x, y, **kwargs)


@pytest.fixture
def exact_noise(monkeypatch):
    """Every standard normal drawn is the next of the sigma points: expectations of quadratics become exact."""

    def standard_normal(shape, dtype=torch.float64, device=None):
        return sigma_points(math.prod(shape) // (2 * L * L)).reshape(shape)

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", standard_normal)
    monkeypatch.setattr(torch, "normal", lambda mean, std: mean + std * standard_normal(mean.shape))


def over_sigma_points(x, y):
    """Repeat a batch once for every sigma point."""
    return x.repeat(2 * L, 1), None if y is None else y.repeat(2 * L)


# T1: with the exact posterior as the guide, every log-weight is log p(x), whatever z was drawn


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("n", [1, 7, 64])
def test_exact_posterior_log_weights(classes, dtype, tolerance, n):
    truth = Ppca(classes)
    x, y = truth.draw(n)
    log_w = torch.cat(list(truth.vae(dtype=dtype).log_weights(x, y, 50)))
    assert log_w.shape == (50, n)
    assert (log_w - truth.log_prob(x, y)).abs().max() <= tolerance


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("n", [1, 7, 64])
def test_exact_posterior_stock_losses(classes, dtype, tolerance, n):
    truth = Ppca(classes)
    (x, y), vae = truth.draw(n), truth.vae(dtype=dtype)
    expected = -truth.log_prob(x, y).mean().item()
    particles = {"num_particles": 5, "vectorize_particles": True, "max_plate_nesting": 1}
    for elbo in [Trace_ELBO(), Trace_ELBO(**particles), RenyiELBO(alpha=0, **particles)]:
        assert abs(stock_loss(vae, elbo, x, y) / n - expected) <= tolerance
        assert abs(stock_loss(vae, elbo, x, y, total=1.0) - expected) <= tolerance
        assert abs(stock_loss(vae, elbo, x, y, total=500.0) / 500 - expected) <= tolerance


@pytest.mark.parametrize("classes", [0, 3])
def test_exact_posterior_log_prob_needs_one_sample(classes):
    truth = Ppca(classes)
    x, y = truth.draw(20)
    for samples in (1, 3, 1000):
        torch.testing.assert_close(truth.vae().log_prob(x, y, samples=samples), truth.log_prob(x, y), rtol=0, atol=1e-9)


def test_functions_are_parts():
    """The same identity for a model of three functions and no module of the library's."""
    truth = Ppca()
    x, _ = truth.draw(7)
    vae = pv.VAE(
        prior=lambda c: dist.Normal(torch.zeros(L).double(), 1.0).to_event(1),
        likelihood=lambda z, c: Normal(z @ truth.W.T + truth.mu[0], SIGMA),
        encoder=lambda x, c: truth.posterior(x),
    ).double()
    with pytest.raises(ValueError, match=r"expected|Shape mismatch"):
        # Without .to_event the pixels are no event: an error, and not a wrong number.
        stock_loss(vae, Trace_ELBO(), x)
    vae.likelihood = lambda z, c: torch.distributions.Independent(Normal(z @ truth.W.T + truth.mu[0], SIGMA), 1)
    assert abs(stock_loss(vae, Trace_ELBO(), x) + truth.log_prob(x).sum().item()) <= 1e-9
    assert (torch.cat(list(vae.log_weights(x, samples=9))) - truth.log_prob(x)).abs().max() <= 1e-9


# T2: for a Gaussian guide the ELBO is log p(x) − KL(q ‖ posterior)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("shift", "stretch"), OFF)
def test_elbo_without_chance(exact_noise, classes, shift, stretch):
    """Trace, TraceMeanField, Analytic and the hand-written ELBO are quadratic in the noise: no chance involved."""
    truth = Ppca(classes)
    (x, y), vae = truth.draw(7), truth.vae(shift, stretch)
    q = truth.posterior(x, y).base_dist
    expected = truth.elbo(x, q.loc + shift * q.scale, stretch * q.scale, y)
    rows = over_sigma_points(x, y)
    for elbo in [Trace_ELBO(), TraceMeanField_ELBO(), Analytic()]:
        assert abs(stock_loss(vae, elbo, *rows, total=1.0) + expected.mean().item()) <= 1e-10
    by_hand = analytic_elbo(vae, *rows).unflatten(0, (2 * L, -1)).mean(0)
    torch.testing.assert_close(by_hand, expected, rtol=0, atol=1e-10)
    reconstruction, kl = elbo_terms(vae, x, y, samples=2 * L)
    torch.testing.assert_close(-(reconstruction + kl), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        -reconstruction,
        truth.log_likelihood_mean(x, q.loc + shift * q.scale, stretch * q.scale, y),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.fresh
def test_elbo_of_draws():
    """The mean of log w over K = 20,000 draws, |z| ≤ 4.89 over two guides.

    sd(log w) is 1.4 at most: an error of 0.1 nat (twice the limit's 0.05) is seen with power 1 − 1e-6.
    """
    truth, K = Ppca(), 20_000
    x, _ = truth.draw(1)
    q = truth.posterior(x).base_dist
    for shift, stretch in OFF[1:]:
        vae = truth.vae(shift, stretch)
        expected = truth.elbo(x, q.loc + shift * q.scale, stretch * q.scale).item()
        log_w = torch.cat(list(vae.log_weights(x, samples=K)))
        error = log_w.std().item() / math.sqrt(K)
        assert error < 1.5 / math.sqrt(K)
        assert abs(log_w.mean().item() - expected) <= limit(4) * error
        # SVI's own draws of the same number.
        assert abs(stock_loss(vae, Trace_ELBO(), x.expand(K, -1), total=1.0) + expected) <= limit(4) * error


# T3: importance weights are unbiased


@pytest.mark.fresh
@pytest.mark.parametrize("classes", [0, 3])
def test_importance_weights_are_unbiased(classes):
    """E_q[w] = p(x | y) for a guide off by 0.3 sd and 1.5 times too wide, K = 20,000, three x.

    sd(w / p) is 0.7: an error of 5% in p(x) (twice the limit) is seen with power 1 − 1e-6.
    """
    truth, K = Ppca(classes), 20_000
    (x, y), vae = truth.draw(3), truth.vae(0.3, 1.5)
    log_w = torch.cat(list(vae.log_weights(x, y, K)))
    ratio = (log_w - truth.log_prob(x, y)).exp()
    error = ratio.std(0) / math.sqrt(K)
    assert error.max() < 0.0055
    assert ((ratio.mean(0) - 1).abs() <= limit(3) * error).all()
    # Jensen's inequality, on the same weights: no chance involved.
    assert (log_w.mean(0) <= log_w.logsumexp(0) - math.log(K) + 1e-12).all()


def test_log_prob_is_log_mean_exp_of_the_weights():
    """Over the samples, not over the rows; and the same in one chunk and in many."""
    truth = Ppca()
    (x, _), vae = truth.draw(5), truth.vae(0.3, 1.5)
    torch.manual_seed(1)
    log_w = torch.cat(list(vae.log_weights(x, samples=200)))
    torch.manual_seed(1)
    expected = log_w.exp().mean(0).log()
    torch.testing.assert_close(vae.log_prob(x, samples=200), expected, rtol=0, atol=1e-12)


@pytest.mark.fresh
def test_importance_bound_tightens():
    """Its mean grows with the number of samples towards log p(x), and is never above it but by chance.

    10,000 copies of one x, for which the means are 0.53, 0.03 and 0.004 below: what is asserted is 7 standard errors
    away or more. A bound above log p(x), or one that fell by 0.01 nat, would be seen.
    """
    truth, copies = Ppca(), 10_000
    x, _ = truth.draw(1)
    vae, exact = truth.vae(0.3, 1.5), truth.log_prob(x).item()
    means = []
    for samples in (1, 8, 64):
        bound = vae.log_prob(x.expand(copies, -1), samples=samples)
        error = bound.std().item() / math.sqrt(copies)
        assert bound.mean().item() <= exact + limit(3) * error
        means.append(bound.mean().item())
    assert means == sorted(means)
    assert exact - means[-1] < 0.01


# T4: gradients


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, Analytic])
def test_gradient_is_that_of_the_loss(elbo, classes):
    """Autograd against a central difference with the same noise, along five directions over all parameters."""
    truth = Ppca(classes)
    (x, y), vae = truth.draw(7), truth.vae(0.3, 1.5, prior="Gaussian")
    parameters = list(vae.parameters())

    def loss():
        torch.manual_seed(3)
        return elbo().differentiable_loss(vae.model, vae.guide, x, y)

    gradient = torch.autograd.grad(loss(), parameters)
    for _ in range(5):
        direction, sides, h = [torch.randn_like(p) for p in parameters], [], 1e-5
        for sign in (h, -2 * h):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p += sign * d
                sides.append(loss().item())
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += h * d
        along = sum((g * d).sum().item() for g, d in zip(gradient, direction, strict=True))
        assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(along, rel=1e-6)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO(), Analytic()])
def test_gradient_without_chance(exact_noise, elbo):
    """Gradients of a quadratic are linear in the products of the noise: their mean over sigma points is exact."""
    draws, expected = Free.draws(elbo, 2 * L)
    for g, e in zip(draws, expected, strict=True):
        torch.testing.assert_close(g.mean(0), e, rtol=0, atol=1e-10)


# T7: training reaches the optimum


def optimum(residuals):
    """The largest mean log-likelihood of pPCA on centred rows (Tipping and Bishop, 1999)."""
    values = torch.linalg.eigvalsh(residuals.T @ residuals / len(residuals)).flip(0)
    noise = values[L:].mean()
    return -0.5 * (D * math.log(2 * math.pi) + values[:L].log().sum() + (D - L) * noise.log() + D).item()


def elbo_in_closed_form(vae, x, y):
    """The mean ELBO of a linear VAE with a diagonal Gaussian encoder, no sampling: its reconstruction is quadratic."""
    with torch.no_grad():
        q = vae.encode(x, y).base_dist
        p = vae.decode(q.loc, y).base_dist
        W = vae.likelihood.network.body[0].weight[:, :L]
        spread = (q.scale.square() * W.square().sum(0)).sum(-1)
        squares = (x - p.loc).square().sum(-1) + spread
        sigma = p.scale.flatten()[0]
        log_likelihood = -squares / (2 * sigma**2) - D / 2 * math.log(2 * math.pi) - D * sigma.log()
        return (log_likelihood - kl_standard(q.loc, q.scale)).mean().item()


@pytest.mark.parametrize(("classes", "seed"), [*((0, seed) for seed in range(5)), *((3, seed) for seed in range(5))])
def test_training_reaches_the_optimum(classes, seed):
    """``fit`` on pPCA data: never above LL*, and within 0.02 nat a datum of it at the end.

    It ends 0.001 to 0.007 below, for these seeds. With the KL weighed by 1.2 it would end 0.03 below, by 2, 0.6.
    """
    truth = Ppca(classes)
    x, y = truth.draw(600)
    means = torch.stack([x[y == k].mean(0) for k in range(classes)])[y] if classes else x.mean(0)
    best = optimum(x - means)
    torch.manual_seed(seed)
    condition = {"condition": pv.OneHot(classes), "context": classes} if classes else {}
    vae = pv.vae((D,), L, likelihood="Gaussian", hidden=(), **condition).double()
    path = []

    def lr(epoch):
        return 0.03 if epoch <= 70 else 0.03 * 0.88 ** (epoch - 70)

    pv.fit(
        vae,
        x if y is None else (x, y),
        epochs=100,
        batch_size=50,
        lr=lr,
        seed=seed,
        progress=False,
        callbacks=[lambda vae, history: path.append(elbo_in_closed_form(vae, x, y))],
    )
    print(f"LL* {best:.4f}, start {path[0]:.4f}, end {path[-1]:.4f}")
    assert max(path) <= best + 1e-9
    assert best - path[-1] <= 0.02

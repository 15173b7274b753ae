"""Every likelihood is a density: it adds up to one, its draws follow it, its mean is its mean, and float32 holds it.

Statistical tests take α = 1e-6 each, with 20,000 draws and fixed seeds: a Kolmogorov–Smirnov distance of 0.019 is seen,
and in a χ² test a probability of 0.3 that is off by a tenth.
"""

import copy
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from scipy import special, stats
from torch import nn

import ppl_vae as pv
from ppl_vae import likelihoods, presets
from ppl_vae.distributions import ContinuousBernoulli, DiscretizedLogistic, Levels, NegativeBinomial, Poisson, inside
from ppl_vae.errors import ConfigError, DataError, PartError

ALPHA, DRAWS = 1e-6, 20_000
IMAGE, LATENT = (2, 3), 2


def double(*values):
    return torch.tensor(values, dtype=torch.float64).squeeze()


class Constant(nn.Module):
    """A network that says the same of every z: the raw parameters are what a test wants them to be."""

    def __init__(self, raw):
        super().__init__()
        self.raw = nn.Parameter(torch.as_tensor(raw))

    def forward(self, joined):
        return self.raw.flatten().expand(len(joined), -1) + 0 * joined.sum(-1, keepdim=True)


def told(name, raw, x_shape=(3,), **options):
    """A likelihood's pixels where its network says ``raw``, in float64."""
    raw = torch.as_tensor(raw, dtype=torch.float64)
    part = getattr(likelihoods, name)(x_shape, LATENT, network=Constant(raw), **options).double()
    return part(torch.zeros(LATENT, dtype=torch.float64)).base_dist


# A pixel's distribution at parameters that a formula could get wrong, and its values: how many levels, or the ends of
# an interval that carries all but 1e-9 of it.
COUNTS = {
    "DiscretizedLogistic": lambda: (DiscretizedLogistic(double(2.3), double(0.7), 6), 6),
    "DiscretizedLogistic wide": lambda: (DiscretizedLogistic(double(7.0), double(30.0), 16), 16),
    "DiscretizedLogistic outside": lambda: (DiscretizedLogistic(double(-4.0), double(3.0), 256), 256),
    "DiscretizedLogistic binary": lambda: (DiscretizedLogistic(double(0.8), double(0.4), 2), 2),
    "Mixture": lambda: (told("DiscretizedLogisticMixture", [0.5, -1.0, 0.2, 0.1, 0.3, -1.5], (1,), levels=9,
                             components=2).expand((1,)), 9),
    "Levels": lambda: (Levels(logits=double(0.3, -1.0, 2.0, 0.0, 0.5)), 5),
    "Poisson": lambda: (told("Poisson", [1.7], (1,)), 60),
    "NegativeBinomial": lambda: (NegativeBinomial(double(1.7), double(0.4)), 150),
    "NegativeBinomial sparse": lambda: (NegativeBinomial(double(0.2), double(0.1)), 800),
    "NegativeBinomial Poisson": lambda: (NegativeBinomial(double(1e5), double(2e4)), 60),
}  # fmt: skip
REALS = {
    "ContinuousBernoulli falling": lambda: (ContinuousBernoulli(logits=double(-7.0)), (0, 1)),
    "ContinuousBernoulli rising": lambda: (ContinuousBernoulli(logits=double(2.5)), (0, 1)),
    "ContinuousBernoulli nearly flat": lambda: (ContinuousBernoulli(logits=double(0.15)), (0, 1)),
    "ContinuousBernoulli flat": lambda: (ContinuousBernoulli(logits=double(3e-5)), (0, 1)),
    "Laplace": lambda: (told("Laplace", [0.3], (1,), sigma=0.5, shift=1.0, scale=2.0), (-10, 13)),
    "StudentT": lambda: (told("StudentT", [0.3], (1,), sigma=0.5, df=9.0), (-40, 40)),
    "Beta": lambda: (told("Beta", [0.6], (1,), concentration=5.0), (0, 1)),
}


def all_of(table):
    return [pytest.param(make, id=name) for name, make in table.items()]


def expectation(d, f, ends):
    """∫ f(x) p(x) dx by the midpoint rule, which misses the ends, where a density may be infinite."""
    low, high = ends
    x = low + (high - low) * (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    return (f(x) * d.log_prob(x).exp()).mean() * (high - low)


@pytest.mark.parametrize("make", all_of(COUNTS))
def test_probabilities_add_up_to_one_and_give_the_mean_and_variance(make):
    d, levels = make()
    x = torch.arange(levels, dtype=torch.float64).reshape(-1, *[1] * len(d.batch_shape))
    p = d.log_prob(x).exp()
    torch.testing.assert_close(p.sum(0), torch.ones(d.batch_shape).double(), rtol=0, atol=1e-9)
    mean = (p * x).sum(0)
    torch.testing.assert_close(d.mean, mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(d.variance, (p * (x - mean).square()).sum(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", all_of(REALS))
def test_densities_integrate_to_one_and_give_the_mean_and_variance(make):
    d, ends = make()
    # The rule is off by 1e-7 at most, at a kink or an end.
    one = torch.ones((), dtype=torch.float64)
    assert expectation(d, torch.ones_like, ends).item() == pytest.approx(1, abs=1e-6)
    mean = expectation(d, lambda x: x, ends)
    torch.testing.assert_close(d.mean.squeeze(), mean * one, rtol=1e-5, atol=1e-6)
    variance = expectation(d, lambda x: (x - mean).square(), ends)
    torch.testing.assert_close(d.variance.squeeze(), variance * one, rtol=1e-5, atol=0)


@pytest.mark.fresh
@pytest.mark.parametrize("make", all_of(COUNTS))
def test_draws_of_counts_follow_the_probabilities(make):
    d, levels = make()
    x = d.sample((DRAWS,))
    assert x.dtype == torch.float64
    assert (x == x.round()).all()
    assert d.support.check(x).all()
    assert x.max() < levels
    values = torch.arange(levels, dtype=torch.float64).reshape(-1, *[1] * len(d.batch_shape))
    expected = DRAWS * d.log_prob(values).exp().detach().flatten().numpy()
    observed = np.bincount(x.flatten().long().numpy(), minlength=levels)
    # Rare values stand together.
    rare = expected < 10
    if rare.any():
        expected, observed = (np.append(a[~rare], a[rare].sum()) for a in (expected, observed))
    if expected[-1] < 10:
        expected, observed = (np.append(a[:-2], a[-2:].sum()) for a in (expected, observed))
    assert stats.chisquare(observed, expected * DRAWS / expected.sum()).pvalue > ALPHA


@pytest.mark.fresh
@pytest.mark.parametrize("make", all_of(REALS))
def test_draws_of_real_pixels_follow_the_density(make):
    d, (low, high) = make()
    x = d.sample((DRAWS,))
    assert d.support.check(x).all()
    width = (high - low) / 100_000
    middles = low + width * (np.arange(100_000) + 0.5)
    below = np.cumsum(d.log_prob(torch.from_numpy(middles)).exp().detach().numpy()) * width
    result = stats.kstest(x.flatten().numpy(), lambda v: np.interp(v, middles + width / 2, below))
    assert result.pvalue > ALPHA


# Against scipy, from the network's numbers on

RAW = [-1.3, 0.2, 2.1]


def logistic_masses(x, loc, scale, levels):
    """Bin masses as differences on the side where neither is near one."""
    upper, lower = np.where(x == levels - 1, np.inf, x + 0.5), np.where(x == 0, -np.inf, x - 0.5)
    d = stats.logistic(loc, scale)
    return np.where(x > loc, d.sf(lower) - d.sf(upper), d.cdf(upper) - d.cdf(lower))


def truncated_exponential(logits):
    """The continuous Bernoulli: an exponential density cut off at one, or its mirror image."""

    def log_density(x):
        rate = abs(logits)
        return stats.truncexpon(rate, scale=1 / rate).logpdf(np.where(logits < 0, x, 1 - x))

    return log_density


FORMULAS = {
    "Laplace": (
        "Laplace",
        {"sigma": 0.7, "shift": 1.0, "scale": 3.0},
        lambda raw: stats.laplace(1 + 3 * raw, 0.7).logpdf,
        [-3.0, 0.4, 9.0],
    ),
    "StudentT": (
        "StudentT",
        {"sigma": 0.7, "df": 3.5, "shift": 1.0, "scale": 3.0},
        lambda raw: stats.t(3.5, 1 + 3 * raw, 0.7).logpdf,
        [-3.0, 0.4, 90.0],
    ),
    "ContinuousBernoulli": ("ContinuousBernoulli", {}, truncated_exponential, [0.0, 0.4, 1.0]),
    "Beta": (
        "Beta",
        {"concentration": 3.0},
        lambda raw: stats.beta(3 * special.expit(raw), 3 * special.expit(-raw)).logpdf,
        [0.001, 0.4, 0.99],
    ),
    "Poisson": ("Poisson", {}, lambda raw: stats.poisson(np.exp(raw)).logpmf, [0.0, 3.0, 40.0]),
    "NegativeBinomial": (
        "NegativeBinomial",
        {"dispersion": 1.7},
        lambda raw: stats.nbinom(1.7, 1.7 / (1.7 + np.exp(raw))).logpmf,
        [0.0, 3.0, 40.0],
    ),
    "DiscretizedLogistic": (
        "DiscretizedLogistic",
        {"levels": 17, "sigma": 0.8},
        lambda raw: lambda x: np.log(logistic_masses(x, 8 * (1 + raw), 0.8, 17)),
        [0.0, 7.0, 16.0],
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_log_density_is_scipys(name):
    cls, options, formula, x = FORMULAS[name]
    d = told(cls, RAW, **options)
    # A σ and a ν that are fixed are kept in float32 until the model is cast.
    expected = torch.from_numpy(formula(np.array(RAW))(np.array(x)))
    torch.testing.assert_close(d.log_prob(torch.tensor(x).double()), expected, rtol=1e-6, atol=1e-7)


def test_the_mixture_is_a_sum_over_components():
    raw = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(9, 2)
    d = told("DiscretizedLogisticMixture", raw, (2,), components=3, levels=17)
    weights, place, log = raw.numpy().reshape(3, 3, 2)
    x = np.array([3.0, 16.0])
    loc = 8 * (1 + np.array([-2 / 3, 0, 2 / 3])[:, None] + place)
    masses = logistic_masses(x, loc, 8 / math.pi / 3 * np.exp(log), 17)
    expected = np.log((special.softmax(weights, 0) * masses).sum(0))
    torch.testing.assert_close(d.log_prob(torch.from_numpy(x)), torch.from_numpy(expected), rtol=1e-6, atol=0)


def test_categorical_is_a_softmax_of_a_pixels_own_numbers():
    raw = torch.randn(2 * 5, 3, dtype=torch.float64)
    d = told("Categorical", raw, (2, 3), levels=5)
    x = torch.randint(5, (2, 3))
    # Channels come first in the network's output, as for a convolution: level k of channel i is number k · 2 + i.
    logits = raw.reshape(5, 2, 3).log_softmax(0)
    torch.testing.assert_close(d.log_prob(x.double()), logits.gather(0, x.unsqueeze(0)).squeeze(0))


LEARNED = {
    "Laplace": ("sigma", "log_scale", 3.0, lambda d: d.scale),
    "StudentT": ("sigma", "log_scale", 3.0, lambda d: d.scale),
    "DiscretizedLogistic": ("sigma", "log_scale", 255 / (2 * math.pi), lambda d: d.scale),
    "Beta": ("concentration", "log_concentration", 2.0, lambda d: d.concentration1 + d.concentration0),
    "NegativeBinomial": ("dispersion", "log_dispersion", 1.0, lambda d: d.concentration),
}


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("spread", [0.7, "shared", "pixel", "output"])
def test_a_spread_is_fixed_learned_or_from_the_network(name, spread):
    option, parameter, unit, spread_of = LEARNED[name]
    options = {option: spread} | ({"scale": 3.0} if name in ("Laplace", "StudentT") else {})
    part = getattr(likelihoods, name)((1, 2, 3), LATENT, hidden=(4,), **options)
    z = torch.randn(5, LATENT)
    log = getattr(part, parameter, None)
    assert (log is not None) == (spread in ("shared", "pixel"))
    if log is not None:
        assert log.shape == ((1, 2, 3) if spread == "pixel" else ())
        # Where it starts without data.
        torch.testing.assert_close(spread_of(part(z).base_dist), torch.full((5, 1, 2, 3), unit))
        torch.nn.init.normal_(log)
    elif spread == "output":
        log = part.network(z)[:, 1:]
    expected = torch.tensor(0.7) if log is None else unit * log.exp()
    torch.testing.assert_close(spread_of(part(z).base_dist), expected.expand(5, 1, 2, 3))


# Float32


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_discretised_logistic_is_the_difference_of_sigmoids(levels):
    x, loc, scale = (
        a.flatten()
        for a in torch.meshgrid(
            torch.arange(levels).double(),
            double(-50.0, -0.4, 0.0, 3.3, 100.0, 300.0),
            double(0.05, 0.3, 1.0, 20.0, 900.0),
            indexing="ij",
        )
    )
    masses = logistic_masses(x.numpy(), loc.numpy(), scale.numpy(), levels)
    # Beyond, the difference is the one that is wrong.
    there = torch.from_numpy(masses > 1e-290)
    assert there.double().mean() > 0.75
    d = DiscretizedLogistic(loc, scale, levels)
    torch.testing.assert_close(
        d.log_prob(x)[there], torch.from_numpy(np.log(masses[there.numpy()])), rtol=1e-9, atol=1e-10
    )
    assert d.log_prob(x).isfinite().all()
    narrow = DiscretizedLogistic(loc.float(), scale.float(), levels).log_prob(x.float())
    torch.testing.assert_close(narrow.double(), d.log_prob(x), rtol=1e-5, atol=2e-5)


def test_discretised_logistic_holds_for_any_scale():
    x, loc, scale = torch.meshgrid(
        torch.tensor([0.0, 1.0, 100.0, 255.0]),
        torch.tensor([-1e6, 0.0, 100.0, 100.3, 1e6]),
        torch.logspace(-6, 6, 13),
        indexing="ij",
    )
    leaves = [loc.clone().requires_grad_(), scale.clone().requires_grad_()]
    log_p = DiscretizedLogistic(*leaves, 256).log_prob(x)
    assert log_p.isfinite().all()
    assert (log_p <= 1e-6).all()
    for gradient in torch.autograd.grad(log_p.sum(), leaves):
        assert gradient.isfinite().all()
    # Far away, where σ(a) − σ(b) is zero, something still says which way to go.
    far = torch.tensor(-1e6, requires_grad=True)
    DiscretizedLogistic(far, torch.tensor(1.0), 256).log_prob(torch.tensor(3.0)).backward()
    assert far.grad.item() == pytest.approx(1)


def test_discretised_logistic_draws_no_infinite_noise(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.zeros(1))
    assert DiscretizedLogistic(torch.tensor([10.0]), torch.tensor(0.01), 256).sample() == 10


def test_discretised_logistic_gradients():
    x = torch.arange(6).double()
    loc, scale = double(2.2).requires_grad_(), double(0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, s: DiscretizedLogistic(m, s, 6).log_prob(x), (loc, scale))
    assert torch.autograd.gradcheck(lambda m, s: DiscretizedLogistic(m, s, 6).mean, (loc, scale))


LOGITS = [-3000.0, -90.0, -16.0, -2.0, -0.21, -0.19, -1e-3, -9e-5, 0.0, 1e-6, 0.1, 0.5, 17.0, 100.0, 1e4]


def test_continuous_bernoulli_is_a_density_in_float32():
    logits = torch.tensor(LOGITS)
    d = ContinuousBernoulli(logits=logits)
    x = torch.tensor([[0.0], [1e-4], [0.3], [0.5], [0.9999], [1.0]])
    rate = logits[logits != 0].abs().double().numpy()
    mirrored = torch.where(logits < 0, x, 1 - x)[:, logits != 0].double().numpy()
    expected = torch.from_numpy(stats.truncexpon(rate, scale=1 / rate).logpdf(mirrored))
    torch.testing.assert_close(d.log_prob(x)[:, logits != 0].double(), expected, rtol=1e-6, atol=3e-6)
    assert not d.log_prob(x)[:, logits == 0].any()
    # Torch's own is off by 0.0075 in the mean and by 4 in the variance near π = ½; scipy's, where λ is nearly nothing.
    steep = rate > 1e-2
    means, variances = stats.truncexpon(rate[steep], scale=1 / rate[steep]).stats("mv")
    means = torch.from_numpy(np.where(logits[logits.abs() > 1e-2] < 0, means, 1 - means))
    flat = logits.abs() < 1e-2
    torch.testing.assert_close(d.mean[~flat].double(), means, rtol=0, atol=2e-6)
    torch.testing.assert_close(d.variance[~flat].double(), torch.from_numpy(variances), rtol=2e-3, atol=0)
    torch.testing.assert_close(d.mean[flat], 0.5 + logits[flat] / 12, rtol=0, atol=1e-7)
    torch.testing.assert_close(d.variance[flat], torch.full((4,), 1 / 12), rtol=1e-5, atol=0)


def test_continuous_bernoulli_has_gradients_everywhere():
    x = double(0.0, 0.2, 0.7, 1.0)
    for value in (-40.0, -3.0, -0.2001, -0.1, 0.0, 2e-4, 0.15, 0.3, 60.0):
        logits = double(value).requires_grad_()
        assert torch.autograd.gradcheck(lambda a: ContinuousBernoulli(logits=a).log_prob(x), logits)
        assert torch.autograd.gradcheck(lambda a: ContinuousBernoulli(logits=a).mean, logits)
        assert torch.autograd.gradcheck(lambda a: ContinuousBernoulli(logits=a).icdf(x[1:3]), logits, atol=1e-4)
    logits = torch.tensor(LOGITS, requires_grad=True)
    d = ContinuousBernoulli(logits=logits)
    for what in (d.log_prob(torch.rand(7, 1)), d.mean, d.variance, d.rsample((9,)), d.entropy()):
        assert what.isfinite().all()
        assert torch.autograd.grad(what.sum(), logits, retain_graph=True)[0].isfinite().all()
    # d/dλ log p = x − E[x], also where torch's clamp has none.
    (gradient,) = torch.autograd.grad(d.log_prob(torch.tensor(0.25)).sum(), logits)
    torch.testing.assert_close(gradient, 0.25 - d.mean, rtol=1e-4, atol=1e-5)


def test_continuous_bernoulli_has_its_other_formulas_right():
    logits = double(*[a for a in LOGITS if abs(a) < 100])
    d, u = ContinuousBernoulli(logits=logits), torch.linspace(0, 1, 11).double().unsqueeze(1)
    torch.testing.assert_close(d.cdf(d.icdf(u[1:-1])), u[1:-1].expand(9, len(logits)), rtol=1e-7, atol=1e-9)
    x = u.clone().requires_grad_()
    (density,) = torch.autograd.grad(d.cdf(x[1:-1]).sum(1).sum(), x)
    torch.testing.assert_close(density[1:-1, 0], d.log_prob(u[1:-1]).exp().sum(1), rtol=1e-7, atol=0)
    assert (d.cdf(double(0.0)).abs() < 1e-12).all()
    assert (d.cdf(double(1.0)) == 1).all()
    middle = (torch.arange(100_000).double() + 0.5).unsqueeze(1) / 100_000
    log_p = d.log_prob(middle)
    torch.testing.assert_close(d.entropy(), -(log_p.exp() * log_p).mean(0), rtol=0, atol=1e-5)
    other = ContinuousBernoulli(logits=double(1.3).expand(len(logits)))
    small = logits.abs() < 16  # torch's formula clamps π
    kl = (log_p.exp() * (log_p - other.log_prob(middle))).mean(0)
    torch.testing.assert_close(td.kl_divergence(d, other)[small], kl[small], rtol=0, atol=1e-5)


def test_continuous_bernoulli_draws_stay_inside_in_float32():
    d = ContinuousBernoulli(logits=torch.tensor(LOGITS))
    assert d.support.check(d.sample((1_000,))).all()
    ends = d.icdf(torch.tensor([[0.0], [1.0]]))
    assert d.support.check(ends).all()


@pytest.mark.parametrize("r", [1e-2, 1.0, 15.9, 16.1, 1e3, 1e6, 1e8])
def test_negative_binomial_is_scipys_in_float32(r):
    mean = torch.tensor([[0.01], [3.0], [200.0], [1e4], [1e6]])
    x = torch.tensor([0.0, 1.0, 7.0, 16.0, 17.0, 255.0, 1e4, 1e6])
    expected = stats.nbinom(r, r / (r + mean.double().numpy())).logpmf(x.numpy())
    concentration = torch.tensor(r, requires_grad=True)
    log_p = NegativeBinomial(concentration, concentration / mean).log_prob(x)
    # lgamma(256) alone is 1161 ± 6e-5. By differences of lgamma it would be off by 0.5 at r = 1e6, and of Stirling's
    # series by a nat for counts of a million there.
    torch.testing.assert_close(log_p.detach().double(), torch.from_numpy(expected), rtol=2e-6, atol=1e-3)
    exact = NegativeBinomial(concentration.double(), concentration.double() / mean.double()).log_prob(x.double())
    torch.testing.assert_close(exact.detach(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    log_p.sum().backward()
    assert concentration.grad.isfinite()


def test_negative_binomial_gradients():
    x = double(0.0, 2.0, 30.0, 900.0)
    for r in (0.3, 15.0, 17.0, 400.0):
        leaves = double(r).requires_grad_(), double(0.7).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b: NegativeBinomial(a, b).log_prob(x), leaves)


def test_levels_are_a_categorical_that_is_a_number():
    logits = torch.randn(3, 2, 7)
    d, theirs = Levels(logits=logits), td.Categorical(logits=logits)
    x = torch.randint(7, (4, 3, 2))
    torch.testing.assert_close(d.log_prob(x.float()), theirs.log_prob(x))
    for e in (d, d.expand((5, 3, 2)), Levels(probs=theirs.probs)):
        assert isinstance(e, Levels)
        assert e.sample().dtype == torch.float32
        assert e.sample((2,)).shape == (2, *e.batch_shape)
        torch.testing.assert_close(e.mean, (theirs.probs * torch.arange(7)).sum(-1).expand(e.batch_shape))


ALL = {
    "Bernoulli": {},
    "Binomial": {"total_count": 16},
    "Gaussian": {"sigma": "output", "scale": 5.0},
    "Laplace": {"sigma": "output", "scale": 5.0},
    "StudentT": {"sigma": "output", "scale": 5.0},
    "ContinuousBernoulli": {},
    "Beta": {"concentration": "output"},
    "DiscretizedLogistic": {"sigma": "output", "levels": 17},
    "DiscretizedLogisticMixture": {"levels": 17},
    "Categorical": {"levels": 17},
    "Poisson": {},
    "NegativeBinomial": {"dispersion": "output"},
}
# The ends of what each accepts.
ENDS = {"Bernoulli": (0.0, 1.0), "ContinuousBernoulli": (0.0, 1.0), "Beta": (1e-6, 1 - 1e-6)}
ENDS |= {"Gaussian": (-20.0, 20.0), "Laplace": (-20.0, 20.0), "StudentT": (-20.0, 20.0)}


def data(name, n=40):
    """Rows for a likelihood: pixels of different means, one that never varies."""
    u = torch.rand(n, *IMAGE, generator=torch.Generator().manual_seed(3)) ** torch.tensor([[0.5, 1, 2], [3, 1, 1]])
    u[:, 1, 2] = 0.5
    if name == "Bernoulli":
        return u.round()
    if name in ENDS:
        return 0.02 + 0.96 * u if ENDS[name][0] >= 0 else 10 * u - 3
    return (16 * u).round()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [1.0, 40.0, 1e4])
def test_whatever_a_network_says_is_finite_in_float32(name, size):
    part = getattr(likelihoods, name)(IMAGE, LATENT, hidden=(), **ALL[name])
    numbers = math.prod(part.network.out_shape)
    low, high = ENDS.get(name, (0.0, 16.0))
    for sign in (-1.0, 1.0):
        raw = size * torch.linspace(sign, -sign, numbers) + 0.1 * size * torch.randn(numbers)
        part.network.body = Constant(raw)
        p = part(torch.zeros(LATENT))
        for x in (torch.full(IMAGE, low), torch.full(IMAGE, high)):
            log_p = p.log_prob(x)
            assert log_p.isfinite()
            (gradient,) = torch.autograd.grad(log_p, part.network.body.raw, retain_graph=True)
            assert gradient.isfinite().all()
        assert p.mean.isfinite().all()
        assert p.support.check(p.sample((50,))).all()
        # A constant NaN would do for a support that checks nothing.
        assert not p.support.check(torch.full(IMAGE, math.nan)).any()


@pytest.mark.parametrize("name", ALL)
def test_a_fresh_likelihood_is_sensible_about_its_data(name):
    part, x = getattr(likelihoods, name)(IMAGE, LATENT, **ALL[name]), data(name)
    part.check(x)
    log_p = part(torch.randn(len(x), LATENT)).log_prob(x) / math.prod(IMAGE)
    # Counts have no natural range, so that a fresh rate of about 1 is far from some.
    assert log_p.mean() > (-40 if name in ("Poisson", "NegativeBinomial") else -8)


@pytest.mark.parametrize("name", ALL)
def test_the_support_is_true_behind_event_dims_and_masks(name):
    part, x = getattr(likelihoods, name)(IMAGE, LATENT, hidden=(4,), **ALL[name]), data(name)
    p = part(torch.zeros(len(x), LATENT))
    seen = torch.rand(x.shape) < 0.5
    masked = p.base_dist.mask(seen).to_event(len(IMAGE))
    _, high = ENDS.get(name, (0.0, 16.0))
    for d in (p, masked):
        assert d.support.event_dim == len(IMAGE)
        assert d.support.check(x).all()
        if name not in ("Gaussian", "Laplace", "StudentT"):
            assert not d.support.check(x - 20).any()
        if name not in ("Gaussian", "Laplace", "StudentT", "Poisson", "NegativeBinomial"):
            assert not d.support.check(x + high + 1).any()
        # Any point of it can stand where a pixel is unseen.
        filled = torch.where(seen, x, torch.as_tensor(inside(d.support), dtype=x.dtype))
        log_p = d.log_prob(filled)
        assert log_p.isfinite().all()
        gradients = torch.autograd.grad(log_p.sum(), [*part.parameters()], retain_graph=True)
        assert all(g.isfinite().all() for g in gradients)
    torch.testing.assert_close(
        masked.log_prob(filled), torch.where(seen, p.base_dist.log_prob(filled), 0.0).sum((-1, -2))
    )


def test_levels_say_how_many_values_a_pixel_has():
    def levels(name, **options):
        return getattr(likelihoods, name)(IMAGE, LATENT, hidden=(), **options).levels

    assert levels("Bernoulli") == 2
    assert levels("Binomial", total_count=16) == levels("Categorical", levels=17) == 17
    assert levels("DiscretizedLogistic") == levels("DiscretizedLogisticMixture") == levels("Categorical") == 256
    assert levels("Binomial") == 256
    for name in ("Gaussian", "Laplace", "StudentT", "ContinuousBernoulli", "Beta", "Poisson", "NegativeBinomial"):
        assert levels(name) is None
    assert levels("Bernoulli", grey=True) is None


# check(x)

UNIT, COUNT = torch.rand(4, *IMAGE), torch.arange(24.0).reshape(4, *IMAGE)
REFUSED = [
    ("Bernoulli", COUNT - 5, r"got -5 … 18: binarise.*for real numbers take likelihood='Gaussian' with range="),
    ("Bernoulli", 50 + 25 * UNIT, r"\d: binarise.*likelihood='Gaussian' with range="),
    ("Bernoulli", COUNT, r"divide x by its largest level, 255 .*Binomial for counts$"),
    ("Bernoulli", COUNT.byte(), r"divide x by its largest level, 255 .*Binomial for counts$"),
    ("Bernoulli", 100 * COUNT.int(), r"got 0 … 2300: binarise.*for real numbers"),
    ("ContinuousBernoulli", 2 * UNIT, r"\[0, 1\].*divide x by the largest value"),
    ("ContinuousBernoulli", UNIT - 1, r"\[0, 1\], got -.*Gaussian"),
    ("Beta", UNIT.round(), r"strictly between 0 and 1, got 0 … 1.*squeeze x.*dequantise.*ContinuousBernoulli"),
    ("Beta", UNIT / UNIT.max(), r"… 1, where its density is 0 or infinite"),
    ("Beta", 255 * UNIT, r"strictly between 0 and 1.*divide x"),
    ("Poisson", -COUNT, r"counts 0, 1, 2, …, got -23 … -?0: counts start at 0"),
    ("Poisson", UNIT, r"whole counts 0, 1, 2, …, got fractions.*scale='levels'"),
    ("NegativeBinomial", COUNT - 1, r"NegativeBinomial: expected counts 0, 1, 2, …, got -1 … 22"),
    ("NegativeBinomial", UNIT, r"NegativeBinomial: expected whole counts.*Gaussian"),
    ("DiscretizedLogistic", COUNT, r"DiscretizedLogistic: expected counts 0 … 16, got 0 … 23: set levels to one more"),
    ("DiscretizedLogistic", UNIT, r"expected whole counts 0 … 16, got fractions.*scale='levels'"),
    ("DiscretizedLogisticMixture", COUNT - 9, r"DiscretizedLogisticMixture: expected counts 0 … 16, got -9 … 14"),
    ("Categorical", COUNT, r"Categorical: expected counts 0 … 16.*set levels"),
    ("Categorical", UNIT, r"Categorical: expected whole counts"),
    ("Laplace", COUNT.byte(), r"Laplace: expected floats, got uint8"),
    ("StudentT", COUNT.byte(), r"StudentT: expected floats, got uint8"),
]


@pytest.mark.parametrize(("name", "x", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_check_says_what_is_wrong_and_the_way_out(name, x, message):
    with pytest.raises(DataError, match=message):
        getattr(likelihoods, name)(IMAGE, LATENT, hidden=(), **ALL[name]).check(x)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Laplace", {"sigma": "each"}, "expected sigma > 0, 'shared', 'pixel' or 'output', got 'each'"),
        ("Laplace", {"sigma": -1.0}, r"expected sigma > 0.*got -1\.0"),
        ("Laplace", {"scale": 0.0}, "expected scale > 0"),
        ("StudentT", {"df": 1.0}, r"df > 1, for a mean to exist, got 1\.0: Gaussian"),
        ("Beta", {"concentration": 0.0}, "expected concentration > 0"),
        ("NegativeBinomial", {"dispersion": math.inf}, "expected dispersion > 0"),
        ("DiscretizedLogistic", {"levels": 1}, "levels ≥ 2"),
        ("Categorical", {"levels": 2.5}, "levels to be a whole number"),
        ("DiscretizedLogisticMixture", {"components": 0}, "components to be a whole number"),
    ],
)
def test_impossible_options_are_typed_errors(name, options, message):
    with pytest.raises(ConfigError, match=message):
        getattr(likelihoods, name)(IMAGE, LATENT, hidden=(), **options)


# start_from


def without_weights(part):
    """The likelihood of a network whose last layer adds nothing to its bias."""
    with torch.no_grad():
        part.network.body[-1].weight.zero_()
    return part(torch.randn(LATENT))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("spread", ["fixed", "shared", "pixel", "output"])
def test_start_from_sets_the_mean_of_every_pixel(name, spread):
    options = dict(ALL[name])
    option = next((k for k in ("sigma", "concentration", "dispersion") if k in options), None)
    if option is None and spread != "output":
        return
    if option is not None:
        options[option] = 0.5 if spread == "fixed" else spread
    part, x = getattr(likelihoods, name)(IMAGE, LATENT, hidden=(4,), **options), data(name)
    before = without_weights(part).log_prob(x).mean()
    part.start_from(x)
    p = without_weights(part)
    mean = x.mean(0).clamp(0.001, 0.999) if name == "Bernoulli" else x.mean(0)
    # A discretised logistic starts with its location there, and what lies beyond the levels moves its mean inwards. A
    # categorical has seen each level a 17th of a time more.
    off = {"DiscretizedLogistic": 1.0, "DiscretizedLogisticMixture": 1.0, "Categorical": 0.3}.get(name, 1e-3)
    torch.testing.assert_close(p.mean, mean, rtol=1e-3, atol=off)
    if name == "DiscretizedLogistic":
        torch.testing.assert_close(p.base_dist.loc, mean, rtol=1e-5, atol=1e-5)
    assert p.log_prob(x).mean() > before


def test_start_from_takes_a_split_and_draws_what_training_draws():
    p = torch.tensor([0.0, 0.2, 0.5, 0.9]).expand(40_000, -1)
    part = likelihoods.Bernoulli((4,), LATENT, hidden=(4,))
    with pytest.raises(DataError, match="grey"):
        part.start_from(p)
    part.start_from(pv.data.Split(p, binarize="dynamic"))
    # Five standard errors; what never occurred is held at a thousandth.
    expected = torch.tensor([0.001, 0.2, 0.5, 0.9])
    torch.testing.assert_close(without_weights(part).mean, expected, rtol=0, atol=5 * 0.5 / 200)
    part.start_from(pv.data.Split(p.round()))
    torch.testing.assert_close(without_weights(part).mean, torch.tensor([0.001, 0.001, 0.001, 0.999]))


def test_start_from_checks_what_the_network_will_see():
    part = likelihoods.Gaussian((1,), LATENT, hidden=(4,))
    before = copy.deepcopy(part.state_dict())
    with pytest.raises(DataError, match="finite"):
        part.start_from(torch.tensor([[1e39]], dtype=torch.float64))
    with pytest.raises(DataError, match="at least one row"):
        part.start_from(torch.zeros(0, 1))
    assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())


@pytest.mark.parametrize("name", ["Gaussian", "Laplace", "StudentT", "DiscretizedLogistic", "Beta", "NegativeBinomial"])
@pytest.mark.parametrize("spread", ["shared", "pixel", "output"])
def test_start_from_finds_the_spread_that_data_have(name, spread):
    """Drawn from the family itself, with 4,000 rows a spread is known to 10% (a dispersion, by moments, to 30%)."""
    torch.manual_seed(5)
    option = {"Beta": "concentration", "NegativeBinomial": "dispersion"}.get(name, "sigma")
    more = {"scale": 5.0} if name in ("Gaussian", "Laplace", "StudentT") else {}
    more |= {"df": 4.0} if name == "StudentT" else {}
    more |= {"levels": 256} if name == "DiscretizedLogistic" else {}
    truth = {"DiscretizedLogistic": 9.0, "Beta": 6.0}.get(name, 2.0)
    cls = getattr(likelihoods, name)
    source = cls((3,), LATENT, network=Constant([-0.5, 0.1, 0.6]), **{option: truth}, **more)
    x = source(torch.zeros(4_000, LATENT)).sample()
    part = cls((3,), LATENT, hidden=(4,), **{option: spread}, **more)
    part.start_from(x)
    p = without_weights(part).base_dist
    spread_of = {
        "Beta": lambda d: d.concentration1 + d.concentration0,
        "NegativeBinomial": lambda d: d.concentration,
    }.get(name, lambda d: d.scale)
    torch.testing.assert_close(
        spread_of(p), torch.full((3,), truth), rtol=0.3 if name == "NegativeBinomial" else 0.1, atol=0
    )


@pytest.mark.parametrize("components", [1, 2, 5])
def test_a_mixture_starts_as_wide_as_the_data(components):
    """K components of s = √3 σ / πK side by side: a variance of σ²/K² in each, and of σ² (1 − 1/K²) between them."""
    torch.manual_seed(5)
    x = (100 + torch.tensor([6.0, 9.0, 12.0]) * torch.randn(4_000, 3)).round()
    part = likelihoods.DiscretizedLogisticMixture((3,), LATENT, hidden=(4,), components=components, levels=256)
    part.start_from(x)
    p, sigma = without_weights(part), x.std(0, correction=0)
    pixel = p.base_dist.component_distribution
    between = sigma**2 * (1 - 1 / components**2)
    torch.testing.assert_close(pixel.loc.var(-1, correction=0), between, rtol=1e-3, atol=1e-3)
    scale = (math.sqrt(3) / math.pi / components * sigma).unsqueeze(-1).expand_as(pixel.scale)
    torch.testing.assert_close(pixel.scale, scale, rtol=1e-3, atol=0)
    # And a twelfth of a level, of rounding.
    torch.testing.assert_close(p.variance, sigma**2 + 1 / 12, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_start_from_survives_pixels_that_never_vary(name):
    x = torch.full((4, *IMAGE), {"Beta": 0.3}.get(name, 0.0))
    part = getattr(likelihoods, name)(IMAGE, LATENT, hidden=(4,), **ALL[name])
    part.start_from(x)
    assert all(parameter.isfinite().all() for parameter in part.parameters())
    log_p = without_weights(part).log_prob(x)
    assert log_p.isfinite().all()
    assert (without_weights(part).log_prob(x + 0.1 if name == "Beta" else x + 1) < log_p).all()


def test_start_from_keeps_constant_pixels_from_certainty():
    x = data("Gaussian")
    part = likelihoods.Gaussian(IMAGE, LATENT, hidden=(4,), sigma="pixel", scale=10.0)
    part.start_from(x)
    sigma = without_weights(part).base_dist.scale
    overall = (x - x.mean(0)).square().mean().sqrt()
    assert sigma[1, 2].item() == pytest.approx(overall.item() / 10)


def test_start_from_takes_data_as_they_come():
    part = likelihoods.Binomial(IMAGE, LATENT, hidden=(4,), total_count=255).double()
    x = (16 * data("Bernoulli")).byte()
    part.start_from(x.reshape(4, 10, *IMAGE))
    torch.testing.assert_close(without_weights(part.float()).mean, x.float().mean(0), rtol=1e-3, atol=0.3)


def test_start_from_says_what_it_cannot_do():
    part = likelihoods.Bernoulli(IMAGE, LATENT, hidden=(4,))
    with pytest.raises(DataError, match="at least one row"):
        part.start_from(torch.zeros(0, *IMAGE))
    with pytest.raises(DataError, match="Bernoulli: expected x in"):
        part.start_from(torch.full((3, *IMAGE), 0.5))
    bare = likelihoods.Gaussian(IMAGE, LATENT, network=nn.Linear(LATENT, 6, bias=False))
    with pytest.raises(PartError, match="bias"):
        bare.start_from(data("Gaussian"))
    # Nothing is set halfway.
    assert not bare.log_variance


def test_start_from_a_convolution_sets_a_channel():
    part = likelihoods.Categorical((2, 4, 4), LATENT, network=pv.networks.Conv, levels=5)
    x = torch.randint(5, (50, 2, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    x[:, 1] = 3
    part.start_from(x)
    mean = part(torch.zeros(LATENT)).mean
    assert (mean[1] - 3).abs().max() < 0.5


# By name


def test_levels_come_from_the_data():
    for name in ("DiscretizedLogistic", "DiscretizedLogisticMixture", "Categorical"):
        part = pv.vae((1, 8, 8), 2, likelihood=name, levels=17, hidden=(4,)).likelihood
        assert part.levels == 17
        assert pv.vae((4,), 2, likelihood={"name": name, "levels": 9}, levels=17, hidden=()).likelihood.levels == 9
        assert pv.vae((4,), 2, likelihood=name, hidden=()).likelihood.levels == 256
    assert pv.vae((4,), 2, likelihood="Binomial", levels=17, hidden=()).likelihood.levels == 17


def test_real_likelihoods_take_the_range():
    for name in ("Laplace", "StudentT"):
        part = pv.vae((4,), 2, likelihood=name, range=(-1.0, 3.0), hidden=()).likelihood
        assert (part.shift.item(), part.scale.item()) == (-1, 4)


def test_every_likelihood_is_here():
    assert set(ALL) == set(presets.LIKELIHOODS)


@pytest.mark.parametrize(
    "name", ["ContinuousBernoulli", "Beta", "DiscretizedLogistic", "Categorical", "NegativeBinomial"]
)
def test_training_finds_the_density_of_one_pixel(name):
    """With a latent that says nothing, the fitted likelihood's entropy is that of the data, known here by counting."""
    torch.manual_seed(0)
    options = {"levels": 5} if name in ("DiscretizedLogistic", "Categorical") else {}
    part = getattr(likelihoods, name)((1,), LATENT, hidden=(), **options)
    p = dist.NegativeBinomial(2.0, torch.tensor(0.4)) if name == "NegativeBinomial" else None
    x = p.sample((2_000, 1)) if p else torch.rand(2_000, 1) ** 2 * 0.98 + 0.01
    x = (4 * x).round() if options else x
    part.start_from(x)
    adam = torch.optim.Adam(part.parameters(), lr=0.02)
    losses = []
    for _ in range(300):
        adam.zero_grad()
        loss = -part(torch.zeros(1, LATENT)).log_prob(x).mean()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] <= losses[0] + 1e-6
    if name == "Categorical":
        frequencies = torch.bincount(x.flatten().long(), minlength=5) / len(x)
        assert losses[-1] == pytest.approx(td.Categorical(frequencies).entropy().item(), abs=1e-3)
    if name == "NegativeBinomial":
        assert losses[-1] == pytest.approx(-p.log_prob(x).mean().item(), abs=2e-3)
    torch.testing.assert_close(part(torch.zeros(LATENT)).mean.item(), x.mean().item(), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("mean", [10.0, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("r", [None, 0.5, 10.0, 1e3])
def test_many_counts_have_their_probability_in_single_precision(mean, r):
    """Against double precision, in which Γ is near enough; it would be off by nats where it is the plain formula."""

    def pixel(dtype):
        rate = torch.tensor(mean, dtype=dtype)
        if r is None:
            return Poisson(rate)
        return NegativeBinomial(torch.tensor(r, dtype=dtype), torch.tensor(r, dtype=dtype) / rate)

    spread = math.sqrt(mean + (0 if r is None else mean**2 / r))
    x = torch.linspace(max(0.0, mean - 8 * spread), mean + 8 * spread, 2001, dtype=torch.float64).round()
    found, exact = pixel(torch.float32).log_prob(x.float()), pixel(torch.float64).log_prob(x)
    assert (found - exact).abs().max() < 2e-3 * max(1.0, exact.abs().max().item() / 50)
    # In double precision it is the formula.
    if r is None:
        plain = x * math.log(mean) - mean - torch.lgamma(x + 1)
    else:
        plain = torch.lgamma(r + x) - math.lgamma(r) - torch.lgamma(x + 1)
        plain = plain + r * math.log(r / (r + mean)) + x * math.log(mean / (r + mean))
    torch.testing.assert_close(exact, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mean", [0.5, 20.0, 300.0])
def test_probabilities_of_counts_add_up_to_one(mean):
    x = torch.arange(2000, dtype=torch.float64)
    for r in (0.7, 12.0, 40.0):
        d = NegativeBinomial(torch.tensor(r).double(), torch.tensor(r / mean).double())
        total = d.log_prob(torch.arange(40_000, dtype=torch.float64)).exp().sum()
        assert total == pytest.approx(1.0, abs=1e-9)
    assert Poisson(torch.tensor(mean).double()).log_prob(x).exp().sum() == pytest.approx(1.0, abs=1e-11)

"""Densities of large numbers against fifty digits, and their gradients."""

import itertools
import math

import mpmath
import pyro.distributions as dist
import pytest
import torch

from ppl_vae import likelihoods
from ppl_vae.distributions import Beta, Binomial, StudentT

# Absolute where a density is near one, relative where it is far from it: some tens of roundings of each kind.
PRECISIONS = [(torch.float32, 2e-4, 1e-5), (torch.float64, 1e-9, 1e-12)]


@pytest.fixture(autouse=True)
def fifty_digits():
    with mpmath.workdps(50):
        yield


def agree(got, exact, dtype):
    absolute, relative = next((a, r) for kind, a, r in PRECISIONS if kind == dtype)
    error = abs(mpmath.mpf(got.item()) - exact)
    return error <= absolute or error <= relative * abs(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 16, 33, 34, 40, 255, 4095, 65535, 10**6])
def test_a_binomial(n, dtype):
    for p in (1e-30, 1e-8, 1e-4, 0.01, 0.3, 0.5, 0.9, 0.9999, 1 - 1e-7):
        logits = torch.tensor(math.log(p) - math.log1p(-p), dtype=dtype)
        exact_logits = mpmath.mpf(logits.item())
        sd = math.sqrt(n * p * (1 - p))
        counts = {0, 1, 5, 16, 17, int(n * p), int(n * p + 3 * sd), n // 2, n - 17, n - 16, n - 1, n}
        for x in sorted(x for x in counts if 0 <= x <= n):
            exact = mpmath.log(mpmath.binomial(n, x)) - x * mpmath.log(1 + mpmath.exp(-exact_logits))
            exact -= (n - x) * mpmath.log(1 + mpmath.exp(exact_logits))
            got = Binomial(torch.tensor(float(n), dtype=dtype), logits=logits).log_prob(torch.tensor(x, dtype=dtype))
            assert agree(got, exact, dtype), (p, x, got.item(), float(exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [0.01, 0.5, 1.0, 5.0, 16.0, 17.0, 100.0, 1e3, 1e6])
def test_a_beta(a, dtype):
    for b in (0.01, 0.5, 1.0, 5.0, 16.0, 17.0, 100.0, 1e3, 1e6):
        ends = torch.tensor([a, b], dtype=dtype)
        one, zero = (mpmath.mpf(end) for end in ends.tolist())
        mean = a / (a + b)
        sd = math.sqrt(mean * (1 - mean) / (a + b + 1))
        for x in torch.tensor([1e-6, 0.1, 0.5, 0.9, 0.999, mean, mean + sd, mean - 2 * sd, mean + 5 * sd], dtype=dtype):
            if not 0 < x < 1:
                continue
            at = mpmath.mpf(x.item())
            exact = (one - 1) * mpmath.log(at) + (zero - 1) * mpmath.log(1 - at)
            exact += mpmath.loggamma(one + zero) - mpmath.loggamma(one) - mpmath.loggamma(zero)
            got = Beta(*ends).log_prob(x)
            assert agree(got, exact, dtype), (b, x.item(), got.item(), float(exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("df", [1.1, 2.0, 5.0, 30.0, 33.0, 100.0, 1e4, 1e6, 1e8])
def test_a_student_t(df, dtype):
    df = torch.tensor(df, dtype=dtype)
    nu, loc, scale = mpmath.mpf(df.item()), torch.tensor(0.5, dtype=dtype), torch.tensor(2.0, dtype=dtype)
    for y in (0.0, 0.3, 3.0, 100.0, 1e4):
        exact = mpmath.loggamma((nu + 1) / 2) - mpmath.loggamma(nu / 2) - mpmath.log(mpmath.pi * nu) / 2
        exact -= mpmath.log(2) + (nu + 1) / 2 * mpmath.log(
            1 + mpmath.mpf(torch.tensor(y, dtype=dtype).item()) ** 2 / nu
        )
        got = StudentT(df, loc, scale).log_prob(loc + scale * y)
        # Adding 0.5 rounds a large y.
        assert y > 10 or agree(got, exact, dtype), (y, got.item(), float(exact))
        assert y <= 10 or math.isclose(got.item(), exact, rel_tol=1e-5)


def test_their_gradients():
    x = torch.tensor([0.0, 3.0, 16.0, 17.0, 100.0, 238.0, 239.0, 254.0, 255.0], dtype=torch.float64)
    for logit in (-3.0, 0.2, 4.0):
        logits = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda logits: Binomial(255, logits=logits).log_prob(x), (logits,))
    inside = torch.tensor([0.01, 0.3, 0.95], dtype=torch.float64)
    for a, b in itertools.product((0.5, 15.0, 17.0, 400.0), repeat=2):
        ends = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (a, b)]
        assert torch.autograd.gradcheck(lambda a, b: Beta(a, b).log_prob(inside), ends)
    for df in (1.5, 31.0, 33.0, 1e4):
        leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (df, 0.3, 0.7)]
        assert torch.autograd.gradcheck(lambda df, m, s: StudentT(df, m, s).log_prob(inside), leaves)


def test_gradients_are_finite_for_any_logits():
    logits = torch.tensor([-500.0, -90.0, 0.0, 90.0, 500.0], requires_grad=True)
    n, x = 4095, torch.tensor([[0.0], [20.0], [4000.0], [4095.0]])
    log_p = Binomial(n, logits=logits).log_prob(x)
    assert log_p.isfinite().all()
    (gradient,) = torch.autograd.grad(log_p.sum(), logits)
    # Of four terms of up to n, each with its rounding.
    rounding = 4 * n * torch.finfo(torch.float32).eps
    torch.testing.assert_close(gradient, (x - n * torch.sigmoid(logits)).sum(0), rtol=0, atol=rounding)


@pytest.mark.parametrize(
    ("name", "options", "made"),
    [
        ("Binomial", {"total_count": 32}, dist.Binomial),
        ("Binomial", {"total_count": 33}, Binomial),
        ("Beta", {}, Beta),
        ("StudentT", {}, StudentT),
    ],
)
def test_likelihoods_are_made_of_these(name, options, made):
    p = getattr(likelihoods, name)((4,), 2, **options)(torch.zeros(3, 2))
    assert type(p.base_dist) is made


def test_an_image_of_255_levels_in_single_precision():
    """784 pixels: Pyro's own density is off by 0.04 nats, always in the same direction."""
    torch.manual_seed(0)
    logits = torch.randn(64, 784)
    x = dist.Binomial(255, logits=logits).sample()
    exact = dist.Binomial(255, logits=logits.double()).log_prob(x.double()).sum(-1)
    assert (dist.Binomial(255, logits=logits).log_prob(x).sum(-1) - exact).mean() > 0.03
    assert (Binomial(255, logits=logits).log_prob(x).sum(-1) - exact).abs().max() < 0.002


def test_a_beta_at_the_ends_of_its_support():
    """Where torch has a power of zero that is one, or infinity."""
    for a, b in itertools.product((0.5, 1.0, 2.0, 20.0), repeat=2):
        for x in (0.0, 1.0):
            expected = dist.Beta(torch.tensor(a), torch.tensor(b)).log_prob(torch.tensor(x))
            got = Beta(torch.tensor(a), torch.tensor(b)).log_prob(torch.tensor(x))
            torch.testing.assert_close(got, expected, msg=f"{a}, {b} at {x}: {got}, expected {expected}")


def test_a_student_t_of_a_whole_number():
    x = torch.tensor([0.0, 2.0])
    expected = dist.StudentT(torch.tensor(5), torch.tensor(0.0), torch.tensor(1.0)).log_prob(x)
    torch.testing.assert_close(StudentT(torch.tensor(5), torch.tensor(0.0), torch.tensor(1.0)).log_prob(x), expected)

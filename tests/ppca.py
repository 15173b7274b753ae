r"""Probabilistic PCA: a VAE whose every number is known.

.. math:: z \sim N(0, I_L), \quad x \mid z \sim N(Wz + \mu, \sigma^2 I_D), \qquad
    \log p(x) = \log N(x; \mu, WW^\top + \sigma^2 I), \quad
    p(z \mid x) = N(M^{-1} W^\top (x - \mu), \sigma^2 M^{-1}), \quad M = W^\top W + \sigma^2 I

The columns of W are orthogonal here, so M is diagonal and a diagonal Gaussian guide can be the exact posterior. With
``classes`` the mean is μ(y), one row a label, and everything else is as it was.

Reference:
    Probabilistic Principal Component Analysis (Tipping and Bishop, 1999)
"""

import math

import pyro.distributions as dist
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

import ppl_vae as pv

D, L, SIGMA = 8, 2, 0.5
ALPHA = 1e-6


def limit(comparisons=1):
    """How many standard errors are too many: two-sided, α shared by so many comparisons."""
    return -Normal(0.0, 1.0).icdf(torch.tensor(ALPHA / (2 * comparisons), dtype=torch.float64)).item()


class Ppca:
    """The truth, in float64; ``vae()`` is the same model made of the library's parts.

    By default the seed is that of the test, negative so that noise drawn from torch's generator is not the same again.
    """

    def __init__(self, classes=0, seed=None, strengths=(1.5, 0.8)):
        seed = -torch.initial_seed() % 2**32 if seed is None else seed
        generator = torch.Generator().manual_seed(seed)
        axes = torch.linalg.qr(torch.randn(D, L, generator=generator, dtype=torch.float64)).Q
        self.classes = classes
        self.W = axes * torch.tensor(strengths, dtype=torch.float64)
        self.mu = torch.randn(max(1, classes), D, generator=generator, dtype=torch.float64)
        self.C = self.W @ self.W.T + SIGMA**2 * torch.eye(D, dtype=torch.float64)
        self.M = (self.W.T @ self.W).diagonal() + SIGMA**2
        self.generator = generator

    def mean(self, y=None):
        return self.mu[0] if y is None else self.mu[y]

    def draw(self, n):
        """x (n, D), and y (n,) or None."""
        y = torch.arange(n) % self.classes if self.classes else None
        z, noise = (torch.randn(n, k, generator=self.generator, dtype=torch.float64) for k in (L, D))
        return self.mean(y) + z @ self.W.T + SIGMA * noise, y

    def log_prob(self, x, y=None):
        return MultivariateNormal(self.mean(y), self.C).log_prob(x)

    def posterior(self, x, y=None):
        loc = (x - self.mean(y)) @ self.W / self.M
        return Independent(Normal(loc, (SIGMA / self.M.sqrt()).expand_as(loc)), 1)

    def log_likelihood_mean(self, x, m, s, y=None):
        """E over z ~ N(m, s²) of log p(x|z), by hand: the reconstruction term of the ELBO."""
        squares = (x - self.mean(y) - m @ self.W.T).square().sum(-1) + (s.square() * self.W.square().sum(0)).sum(-1)
        return -squares / (2 * SIGMA**2) - D / 2 * math.log(2 * math.pi * SIGMA**2)

    def elbo(self, x, m, s, y=None):
        """log p(x) − KL(N(m, s²) ‖ posterior)."""
        q = Independent(Normal(m, s), 1)
        return self.log_prob(x, y) - torch.distributions.kl_divergence(q, self.posterior(x, y))

    def vae(self, shift=0.0, stretch=1.0, dtype=torch.float64, beta=1.0, **options):
        """The library's linear VAE with these weights; q is off by ``shift`` sd and ``stretch`` times as wide."""
        condition = {"condition": pv.OneHot(self.classes), "context": self.classes} if self.classes else {}
        likelihood = {"name": "Gaussian", "sigma": SIGMA}
        vae = pv.vae((D,), L, likelihood=likelihood, hidden=(), beta=beta, **condition, **options)
        decoder, encoder = vae.likelihood.network.body[0], vae.encoder.network.body[0]
        gain, sd = self.W.T / self.M[:, None], SIGMA / self.M.sqrt()
        with torch.no_grad():
            vae.double()
            means = self.mu.T if self.classes else self.mu.T[:, :0]
            decoder.weight.copy_(torch.cat([self.W, means], 1))
            decoder.bias.copy_(torch.zeros(D) if self.classes else self.mu[0])
            encoder.weight.zero_()
            encoder.weight[:L].copy_(torch.cat([gain, -gain @ means], 1))
            encoder.bias[:L].copy_(shift * sd - (0 if self.classes else gain @ self.mu[0]))
            encoder.bias[L:].copy_(2 * (stretch * sd).log())
        return vae.to(dtype)


def sigma_points(n=1):
    """Noise (2L, n, L) with mean 0 and covariance I exactly: the average of a quadratic over it is its expectation."""
    points = math.sqrt(L) * torch.cat([torch.eye(L), -torch.eye(L)]).double()
    return points[:, None].expand(-1, n, -1)


class Free(torch.nn.Module):
    """The linear model with μ, σ of q and W as parameters, one copy a row, so that a row's gradient is one draw's."""

    def __init__(self, truth, x, shift, stretch, rows):
        super().__init__()
        q = truth.posterior(x).base_dist
        self.truth = truth
        self.m = torch.nn.Parameter((q.loc + shift * q.scale).repeat(rows, 1))
        self.s = torch.nn.Parameter((stretch * q.scale).repeat(rows, 1))
        self.W = torch.nn.Parameter((1.1 * truth.W).repeat(rows, 1, 1))

    def vae(self):
        return pv.VAE(
            prior=lambda c: dist.Normal(torch.zeros(L).double(), 1.0).to_event(1),
            likelihood=lambda z, c: dist.Normal((self.W @ z[..., None])[..., 0] + self.truth.mu[0], SIGMA).to_event(1),
            encoder=lambda x, c: dist.Normal(self.m, self.s).to_event(1),
        ).double()

    def gradient(self):
        """Of the ELBO in closed form: (L,), (L,) and (D, L)."""
        m, s, W = self.m[0], self.s[0], self.W[0]
        residual = self.x[0] - self.truth.mu[0] - W @ m
        return (
            W.T @ residual / SIGMA**2 - m,
            -((W.T @ W).diagonal() / SIGMA**2 + 1) * s + 1 / s,
            (residual[:, None] * m - W * s.square()) / SIGMA**2,
        )

    @classmethod
    def draws(cls, elbo, rows):
        truth = Ppca()
        x, _ = truth.draw(1)
        free = cls(truth, x, 0.3, 1.5, rows)
        free.x = x
        vae = free.vae()
        loss = elbo.differentiable_loss(vae.model, vae.guide, x.expand(rows, -1))
        draws = [-g for g in torch.autograd.grad(loss, [free.m, free.s, free.W])]
        return draws, [g.detach() for g in free.gradient()]

"""Objectives that constrain the KL: their formulas written out, what they hold, and what they refuse."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from ppca import D, L, Ppca
from pyro.infer import SVI
from torch import nn
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae.capture import CapturedSVI
from ppl_vae.distributions import zuko
from ppl_vae.errors import ConfigError, NoClosedFormError, PartError
from ppl_vae.objectives import Analytic, Capacity, FreeBits, kl_gaussian

N, FEATURES = 6, 6


def system(**options):
    torch.manual_seed(1)
    vae = pv.vae((D,), FEATURES, likelihood="Gaussian", hidden=(8,), **options).double()
    with torch.no_grad():
        for p in vae.parameters():
            p += 0.2 * torch.randn_like(p)
    return vae, torch.randn(N, D).double()


def run(objective, vae, x, **arguments):
    """Loss and gradient at one seed."""
    torch.manual_seed(3)
    loss = objective.differentiable_loss(vae.model, vae.guide, x, **arguments)
    gradient = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([loss.detach()[None], *(g.flatten() for g in gradient)])


def parts(vae, x):
    """−log p(x|z) of every row at the same noise, and the KL of every row and feature, by its formula."""
    torch.manual_seed(3)
    q, p = vae.encode(x).base_dist, vae.prior_given().base_dist
    z = q.loc + q.scale * torch.normal(torch.zeros_like(q.loc), torch.ones_like(q.loc))
    kl = kl_gaussian(q.loc[..., None], q.scale[..., None], p.loc[..., None], p.scale[..., None])
    return -vae.decode(z).log_prob(x), kl.expand(len(x), FEATURES)


# Free bits


@pytest.mark.parametrize("total", [None, 1.0, 60.0])
@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("group", [1, 2, 3, 6])
@pytest.mark.parametrize("prior", ["Standard", "Gaussian"])
def test_free_bits_by_hand(prior, group, beta, total):
    """Mean over the batch, sum within a group, floor, sum over groups: in that order; β on the KL, ``total`` on all."""
    vae, x = system(prior=prior)
    vae.beta = beta
    reconstruction, kl = parts(vae, x)
    groups = kl.mean(0).reshape(-1, group).sum(1)
    nats = groups.sort().values[len(groups) // 2].item() + 1e-6
    assert 0 < (groups < nats).sum() <= len(groups)
    scale = 1.0 if total is None else total / N
    expected = scale * (reconstruction.sum() + beta * N * torch.maximum(groups, torch.tensor(nats).double()).sum())
    gradient = torch.autograd.grad(expected, list(vae.parameters()), allow_unused=True, materialize_grads=True)
    found = run(FreeBits(nats, group), vae, x, total=total)
    expected = torch.cat([expected.detach()[None], *(g.flatten() for g in gradient)])
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
def test_without_bits_it_is_the_elbo(beta):
    """λ = 0, and a capacity of 0 at γ = 1, are the analytic ELBO at the same noise: value and gradient."""
    vae, x = system(prior="Gaussian")
    vae.beta = beta
    expected = run(Analytic(), vae, x, total=20.0)
    for objective in (FreeBits(0.0), FreeBits(0.0, group=3), Capacity(0.0, gamma=1.0)):
        torch.testing.assert_close(run(objective, vae, x, total=20.0), expected, rtol=1e-12, atol=1e-12)


def test_below_the_floor_the_prior_pulls_at_nothing():
    vae, x = system(prior="Gaussian")
    reconstruction = parts(vae, x)[0].sum()
    expected = torch.autograd.grad(reconstruction, list(vae.encoder.parameters()))
    loss = FreeBits(1e3).differentiable_loss
    torch.manual_seed(3)
    loss = loss(vae.model, vae.guide, x)
    found = torch.autograd.grad(loss, [*vae.encoder.parameters(), *vae.prior.parameters()])
    for g, e in zip(found, expected, strict=False):
        torch.testing.assert_close(g, e)
    assert not any(g.any() for g in found[len(expected) :])
    assert loss.item() == pytest.approx(reconstruction.item() + N * FEATURES * 1e3)


def test_free_bits_keep_features_alive():
    """A linear VAE whose KL weighs too much: without them both features collapse, with them each keeps its nats."""
    truth = Ppca(strengths=(0.9, 0.6))
    x, _ = truth.draw(200)
    found = []
    for objective in (Analytic(), FreeBits(0.6)):
        torch.manual_seed(0)
        vae = pv.vae((D,), L, likelihood={"name": "Gaussian", "sigma": 0.5}, hidden=(), beta=8.0).double()
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), objective)
        for _ in range(250):
            svi.step(x, total=1.0)
        q = vae.encode(x).base_dist
        zero, one = torch.zeros(1).double(), torch.ones(1).double()
        found.append([kl_gaussian(q.loc[:, [i]], q.scale[:, [i]], zero, one).mean().item() for i in range(L)])
    print(found)
    assert max(found[0]) < 0.1
    assert all(0.5 < kl < 0.8 for kl in found[1])


def test_a_latent_image_has_features_too():
    """(2, 3) latent features, an event of two dimensions: flattened row by row, then grouped."""
    x, loc, scale = torch.randn(N).double(), torch.randn(N, 2, 3).double(), torch.rand(N, 2, 3).double() + 0.5

    def model():
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, 3).double(), 1.0).to_event(2))
            pyro.sample("x", dist.Normal(0 * z.sum((-2, -1)), 1.0), obs=x)

    def guide():
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(loc, scale).to_event(2))

    kl = kl_divergence(dist.Normal(loc, scale), dist.Normal(torch.zeros(()).double(), 1.0)).mean(0)
    reconstruction = -dist.Normal(torch.zeros(()).double(), 1.0).log_prob(x).sum()
    for groups in (kl.reshape(6, 1), kl.reshape(3, 2), kl, kl.reshape(1, 6)):
        nats = groups.sum(1).mean().item()
        expected = reconstruction + N * groups.sum(1).clamp(min=nats).sum()
        assert FreeBits(nats, groups.shape[1]).loss(model, guide) == pytest.approx(expected.item(), rel=1e-12)


def test_another_pair_with_a_formula():
    """Gaussian against Laplace: the floor is on torch's formula, feature by feature."""
    vae, x = system(prior=lambda c: dist.Laplace(torch.zeros(FEATURES).double(), 1.0).to_event(1))
    torch.manual_seed(3)
    q = vae.encode(x).base_dist
    reconstruction = -vae.decode(q.rsample()).log_prob(x).sum()
    kl = kl_divergence(q, torch.distributions.Laplace(torch.zeros(FEATURES).double(), 1.0)).mean(0)
    expected = reconstruction + N * kl.clamp(min=0.4).sum()
    torch.testing.assert_close(run(FreeBits(0.4), vae, x)[0], expected.detach())


class FullEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(D, FEATURES)

    def forward(self, x, c=None):
        return dist.MultivariateNormal(self.loc(x), torch.eye(FEATURES, dtype=x.dtype))


def mixture(c):
    component = dist.Normal(torch.zeros(2, FEATURES).double(), 1.0).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), component)


REFUSED = {
    "flow": ({"prior": zuko.flows.MAF(FEATURES, transforms=1)}, r"independent over the features.*Capacity"),
    "mixture": ({"prior": mixture}, r"independent over the features.*Independent and Mixture.*Capacity"),
    "correlated": ({"encoder": FullEncoder()}, r"independent over the features.*MultivariateNormal and Indep"),
    "no formula": (
        {"prior": lambda c: dist.StudentT(3.0, torch.zeros(FEATURES).double(), 1.0).to_event(1)},
        r"KL\(Normal ‖ StudentT\) has no closed form.*Capacity",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_free_bits_refuse_what_has_no_formula_a_feature(name):
    options, message = REFUSED[name]
    vae, x = system(**options)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({}), FreeBits(0.5))
    with pytest.raises(NoClosedFormError, match=message):
        svi.step(x)
    # At β = 0 nobody asks for the KL.
    vae.beta = 0
    assert math.isfinite(svi.step(x))


# Capacity


@pytest.mark.parametrize("total", [None, 60.0])
@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("capacity", [0.5, 50.0])
def test_capacity_by_hand(capacity, beta, total):
    """γ |mean KL − C| N, from below and from above."""
    vae, x = system(prior="Gaussian")
    vae.beta = beta
    reconstruction, kl = parts(vae, x)
    scale = 1.0 if total is None else total / N
    assert (kl.sum(1).mean() < capacity) == (capacity == 50.0)
    expected = scale * (reconstruction.sum() + beta * 30.0 * (kl.sum(1).mean() - capacity).abs() * N)
    gradient = torch.autograd.grad(expected, list(vae.parameters()), allow_unused=True, materialize_grads=True)
    expected = torch.cat([expected.detach()[None], *(g.flatten() for g in gradient)])
    found = run(Capacity(capacity, gamma=30.0), vae, x, total=total)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_capacity_holds_the_kl():
    truth = Ppca()
    x, _ = truth.draw(200)
    for capacity in (0.7, 4.0):
        torch.manual_seed(0)
        vae = pv.vae((D,), L, likelihood={"name": "Gaussian", "sigma": 0.5}, hidden=()).double()
        objective = Capacity(capacity, gamma=50.0)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), objective)
        for _ in range(300):
            svi.step(x, total=1.0)
        kl = pv.objectives.elbo_terms(vae, x)[1].mean().item()
        print(f"C = {capacity}: KL {kl:.2f}")
        assert kl == pytest.approx(capacity, abs=0.3)


def test_the_capacity_rises_and_stays():
    rising, fixed = Capacity(20.0, epochs=4), Capacity(20.0)

    def now(objective):
        return (objective.constrain(torch.zeros(1)) / objective.gamma).item()

    with pytest.raises(ConfigError, match=r"begin_epoch\(epoch\), counted from 1"):
        now(rising)
    with pytest.raises(ConfigError, match="epoch"):
        rising.begin_epoch(0)
    found = []
    for epoch in range(1, 7):
        rising.begin_epoch(epoch)
        fixed.begin_epoch(epoch)
        found.append(now(rising))
        assert now(fixed) == 20
    assert found == [5.0, 10.0, 15.0, 20.0, 20.0, 20.0]
    # The first question in another dtype is answered with the capacity there is now.
    rising.begin_epoch(2)
    assert rising.constrain(torch.zeros(1, dtype=torch.float64)).item() == 10_000
    assert rising.constrain(torch.ones(1, dtype=torch.bfloat16)).item() == 9_000


def test_a_recorded_graph_follows_the_capacity():
    """C moves from epoch to epoch, and there is one recording: every loss is the stock one, to 1e-6."""
    losses, graphs = [], None
    for captured in (False, True):
        torch.manual_seed(1)
        vae, x = pv.vae((D,), FEATURES, likelihood="Gaussian", hidden=(8,)), torch.ones(N, D)
        objective = Capacity(20.0, gamma=5.0, epochs=4)
        if captured:
            adam = functools.partial(torch.optim.Adam, lr=1e-2)
            svi = CapturedSVI(vae.model, vae.guide, adam, objective, backend="graph")
        else:
            svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
        torch.manual_seed(0)
        found = []
        for epoch in range(1, 6):
            objective.begin_epoch(epoch)
            found += [svi.step(x) for _ in range(6)]
        losses.append(found)
        graphs = len(svi._graphs) if captured else graphs
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert graphs == 1
    assert losses[0][6] > losses[0][5] + 100


@pytest.mark.parametrize("prior", ["MAF", mixture], ids=["flow", "mixture"])
def test_capacity_samples_the_kl_when_asked_to(prior):
    vae, x = system(prior={"name": "MAF", "transforms": 1, "hidden_features": [4]} if prior == "MAF" else prior)
    with pytest.raises(NoClosedFormError, match=r"no closed form.*Capacity\(\.\.\., fallback='sample'\)"):
        Capacity(5.0).loss(vae.model, vae.guide, x)
    found = run(Capacity(5.0, gamma=3.0, fallback="sample"), vae, x)[0]
    torch.manual_seed(3)
    q = vae.encode(x)
    z = q.rsample()
    kl = (q.log_prob(z) - vae.prior_given().log_prob(z)).mean()
    expected = -vae.decode(z).log_prob(x).sum() + 3.0 * N * (kl - 5.0).abs()
    torch.testing.assert_close(found, expected.detach())
    # Where there is a formula, it is used all the same.
    vae, x = system()
    pair = (run(Capacity(5.0, fallback=fallback), vae, x) for fallback in (None, "sample"))
    assert torch.equal(*pair)


# Both


@pytest.mark.parametrize("make", [functools.partial(FreeBits, 0.3), functools.partial(Capacity, 4.0, 7.0)])
def test_particles_average_the_likelihood_before_the_constraint(monkeypatch, make):
    """Three draws: at once, and one by one with the same noise; and the KL counts once."""
    vae, x = system(prior="Gaussian")
    noise = torch.randn(3, N, FEATURES).double()
    used = [0]

    def standard_normal(shape, dtype, device):
        start = used[0] % noise.numel()
        used[0] += math.prod(shape)
        return noise.flatten()[start : start + math.prod(shape)].reshape(shape)

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", standard_normal)
    found = [run(make(num_particles=3, vectorize_particles=at_once), vae, x) for at_once in (False, True)]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    singles = [run(make(), vae, x) for _ in range(3)]
    torch.testing.assert_close(found[0], torch.stack(singles).mean(0), rtol=1e-12, atol=1e-12)


ROWS = [pyro.poutine.mask(mask=torch.arange(N) > 2), pyro.poutine.scale(scale=torch.ones(N))]


@pytest.mark.parametrize("handler", ROWS, ids=["mask", "scale"])
@pytest.mark.parametrize("objective", [FreeBits(0.3), Capacity(4.0)], ids=["free bits", "capacity"])
def test_rows_that_weigh_differently_are_an_error(objective, handler):
    def model(x):
        with pyro.plate("data", N):
            with handler:
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", N), handler:
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    with pytest.raises(PartError, match=r"'z'.*one weight.*Analytic"):
        objective.loss(model, guide, torch.zeros(N))


@pytest.mark.parametrize("objective", [FreeBits(0.3), Capacity(4.0)], ids=["free bits", "capacity"])
def test_several_latent_sites_are_an_error(objective):
    def model(x):
        with pyro.plate("data", N):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(b.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", N):
            for name in "ab":
                pyro.sample(name, dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(PartError, match="one latent site, got 2"):
        objective.loss(model, guide, torch.zeros(N))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreeBits(-0.1), "nats"),
        (lambda: FreeBits(math.nan), "nats"),
        (lambda: FreeBits(0.5, group=0), "group"),
        (lambda: FreeBits(0.5, num_particles=0), "num_particles"),
        (lambda: Capacity(-1.0), "capacity"),
        (lambda: Capacity(1.0, gamma=math.inf), "gamma"),
        (lambda: Capacity(1.0, epochs=0), "epochs"),
        (lambda: Capacity(1.0, fallback="draw"), "fallback"),
        (lambda: FreeBits(0.5, group=4).loss(*programs(), torch.zeros(N, D).double()), r"divide the 6 .* got 4"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def programs():
    vae, _ = system()
    return vae.model, vae.guide

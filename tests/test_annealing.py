"""T6: annealed importance sampling where log p(x|y) is known, and broken versions of it that must be seen.

Tests that involve chance hold α = 1e-6, divided by the number of their comparisons, and are marked ``fresh``. What is
compared is a mean over rows: nothing holds for one row but by chance.
"""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from ppca import SIGMA, L, Ppca, limit
from torch import nn

import ppl_vae as pv
from ppl_vae import encoders, likelihoods, priors
from ppl_vae.distributions import zuko
from ppl_vae.errors import ConfigError, DataError, LabelError, NoDensityError, NonFiniteError, PartError, ShapeError
from ppl_vae.evaluation import annealing, bounds, log_likelihood, simulate

ALPHA = 1e-6
# From where, how strong z is in x, and in how many temperatures: few, so that moves and weights have to be right, and
# such that the weights of both directions have light tails.
FEW = {"prior": ((0.28, 0.2), 20), "encoder": ((1.5, 0.8), 10)}


def labels(truth, n):
    return torch.arange(n) % truth.classes if truth.classes else None


def weights(start, classes, rows, seed, chains=8):
    """The mean weights of every row over their expectations p(x|y) and 1 / p(x|y): (rows,) up and down."""
    strengths, temperatures = FEW[start]
    truth = Ppca(classes, strengths=strengths)
    # Not much wider, nor x any stronger from the prior: where the start is 1.16 times as wide as the posterior, weights
    # of the way down have no fourth moment at first.
    vae = truth.vae(0.3, 1.1)
    x, y, z = simulate(vae, rows, labels(truth, rows), seed=seed)
    options = {"temperatures": temperatures, "chains": chains, "leapfrog": 2}
    found = bounds(vae, x, y, z=z, start=start, seed=seed, **options)
    exact = truth.log_prob(x, y)
    return (found.lower - exact).exp(), (exact - found.upper).exp()


def away(ratio):
    """How many standard errors the mean is from one."""
    return (ratio.mean().item() - 1) / (ratio.std().item() / math.sqrt(len(ratio)))


@pytest.mark.fresh
@pytest.mark.parametrize(("start", "classes"), [("prior", 3), ("encoder", 0)])
def test_weights_are_unbiased(start, classes, seed):
    """E[w] = p(x|y) on the way up and 1 / p(x|y) on the way down, however few the temperatures: 1,000 simulated x.

    The standard error is 0.5% at most: a bias of 5% (twice the limit) is seen with power 1 − 1e-6.
    """
    for ratio in weights(start, classes, 1000, seed, chains=4):
        assert ratio.std().item() / math.sqrt(1000) < 0.01
        assert abs(away(ratio)) <= limit(4)


@pytest.mark.fresh
@pytest.mark.parametrize(("start", "classes", "leapfrog"), [("prior", 0, 2), ("encoder", 3, 1)])
def test_the_bracket(start, classes, leapfrog, seed):
    """200 simulated x, 200 temperatures: the mean gap is not negative but by chance, and it is small.

    It is 0.01 with a standard error of 0.013 (from the prior; 0.007 and 0.006 from the encoder): 0.1 nat is seven of
    them away. That of a row's log mean is off by 6%, at one standard deviation, from what it is over the rows.
    """
    truth = Ppca(classes)
    vae = truth.vae(0.3, 1.5)
    x, y, z = simulate(vae, 200, labels(truth, 200), seed=seed)
    found = bounds(vae, x, y, z=z, chains=8, leapfrog=leapfrog, start=start, seed=seed)
    mean, error = found.gap
    print(found)
    assert error < 0.02
    assert -5.05 * error <= mean <= 0.1
    exact = truth.log_prob(x, y)
    for distance in (exact - found.lower, found.upper - exact):
        # A log of a mean is below the log of what it estimates, by half its variance.
        assert abs(distance.mean().item()) <= 0.02 + limit(4) * distance.std().item() / math.sqrt(200)
    for distance, own in ((exact - found.lower, found.lower_error), (found.upper - exact, found.upper_error)):
        assert 0.7 < distance.std() / own.square().mean().sqrt() < 1.4


# Broken versions


def after_the_move(path, z, ladder, steps, leapfrog):
    """A step in temperature weighs the z that the move at its end has made, instead of the one before it."""
    place = path(z)
    log_w, previous = torch.zeros(z.shape[:2]).double(), ladder[0]
    for t, step in zip(ladder[1:-1], steps, strict=True):
        place, _ = annealing._move(path, t, place, step, leapfrog)
        log_w, previous = log_w + (t - previous) * place.u, t
    return log_w + (ladder[-1] - previous) * place.u, torch.zeros(z.shape[1])


def break_weights(monkeypatch):
    monkeypatch.setattr(annealing, "_anneal", after_the_move)


def break_metropolis(monkeypatch):
    monkeypatch.setattr(annealing, "_accept", lambda rate: torch.ones_like(rate, dtype=torch.bool))


def break_momentum(monkeypatch):
    """All momenta point one way."""
    normal = torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda z: normal(z).abs())


def break_temperature(monkeypatch):
    """The moves are at another temperature than the weights think."""
    at = annealing._Place.at
    monkeypatch.setattr(annealing._Place, "at", lambda self, t: at(self, t**0.5))


def break_step(monkeypatch):
    """A step that depends on the z it is to move."""
    move = annealing._move

    def depends(path, t, place, step, leapfrog):
        return move(path, t, place, step * (0.3 + place.z.square().mean(-1)), leapfrog)

    monkeypatch.setattr(annealing, "_move", depends)


BROKEN = [
    (break_weights, "prior"),
    (break_metropolis, "prior"),
    (break_momentum, "encoder"),
    (break_temperature, "prior"),
    (break_step, "prior"),
]


@pytest.mark.parametrize(("broken", "start"), BROKEN, ids=lambda b: getattr(b, "__name__", b))
def test_biased_weights_are_seen(broken, start, monkeypatch):
    broken(monkeypatch)
    z = [away(ratio) for ratio in weights(start, 0, 500, seed=0)]
    print(f"{broken.__name__}: {z[0]:.1f} standard errors up, {z[1]:.1f} down")
    assert max(abs(z[0]), abs(z[1])) > limit(4)


# The moves


def moved(t, step, moves=10, chains=4000):
    """Exact draws of f_t, whitened, after some moves: (chains · 5, L); and the mean acceptance."""
    truth = Ppca()
    x, _ = truth.draw(5)
    path = annealing._Path(truth.vae(), x, None, "prior")
    precision = 1 + t * truth.W.square().sum(0) / SIGMA**2
    loc, scale = t * (x - truth.mu[0]) @ truth.W / SIGMA**2 / precision, precision.rsqrt()
    z = loc + scale * torch.randn(chains, 5, L).double()
    place = path(z)
    for _ in range(moves):
        place, rate = annealing._move(path, t, place, step * scale.min().expand(5), 3)
    # What a place says of itself is so, wherever it was accepted.
    for kept, anew in zip(place, path(place.z), strict=True):
        torch.testing.assert_close(kept, anew, rtol=0, atol=1e-10)
    return ((place.z - loc) / scale).flatten(0, 1), rate.mean().item()


def invariant(white):
    """Whether draws (N, 2) are standard normal, by each coordinate and by their length: Kolmogorov and Smirnov."""
    below = torch.cat([torch.special.ndtr(white), -torch.expm1(-0.5 * white.square().sum(-1, keepdim=True))], -1)
    steps = torch.arange(len(white) + 1, dtype=torch.float64)[:, None] / len(white)
    below = below.sort(0).values
    distance = torch.maximum(steps[1:] - below, below - steps[:-1]).max().item()
    return distance <= math.sqrt(math.log(2 * 3 / ALPHA) / (2 * len(white)))


@pytest.mark.fresh
@pytest.mark.parametrize("t", [0.3, 1.0])
def test_moves_leave_their_target_as_it_is(t):
    """20,000 exact draws, ten moves of large steps: what comes out has the law of what went in.

    The limit is 0.02: a shift by 0.1 standard deviations or a width 1.2 times as large is seen with power 1 − 1e-6.
    """
    white, rate = moved(t, 1.2)
    assert 0.5 < rate < 0.95
    assert invariant(white)


@pytest.mark.parametrize("broken", [break_metropolis, break_momentum, break_step])
def test_moves_that_change_their_target_are_seen(broken, monkeypatch):
    broken(monkeypatch)
    assert not invariant(moved(1.0, 1.2)[0])


def test_small_steps_are_always_accepted_and_energy_is_kept():
    """The error of a trajectory falls with the square of its step: force and density belong together."""
    rejected = [1 - moved(1.0, step, moves=1, chains=50)[1] for step in (0.2, 0.02)]
    assert rejected[0] < 0.02
    assert rejected[1] < rejected[0] / 30


def test_trajectories_that_fly_off_are_rejected():
    """An infinite energy, or none at all, leaves z where it is, and is no error, though every density is validated."""
    truth = Ppca()
    x, _ = truth.draw(3)
    z = torch.randn(4, 3, L).double()
    path = annealing._Path(truth.vae(), x, None, "prior")
    for step in (1e20, 1e200, math.inf):
        there, rate = annealing._move(path, 0.5, path(z), torch.full((3,), step, dtype=torch.float64), 3)
        assert torch.equal(there.z, z)
        assert torch.equal(there.u, path(z).u)
        assert not rate.any()


def test_step_sizes_follow_the_target():
    """At every temperature the moves are accepted about as often as they are to be, from any start."""
    truth = Ppca(strengths=(4.0, 0.5))
    x, _, z = simulate(truth.vae(), 30)
    for start in ("prior", "encoder"):
        found = bounds(truth.vae(0.5, 2.0), x, z=z, temperatures=40, chains=4, leapfrog=3, start=start)
        assert found.acceptance.shape == (2, 30)
        assert (found.acceptance.mean(1) - 0.9).abs().max() < 0.05
        assert found.acceptance.min() > 0.7


# Without chance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("temperatures", "classes", "batch_size"), [(1, 0, 1), (2, 0, None), (6, 3, 4)])
def test_from_the_exact_posterior_every_weight_is_the_evidence(classes, dtype, tolerance, temperatures, batch_size):
    """Up and down, whatever moves: both bounds are log p(x|y), in batches of any size."""
    truth = Ppca(classes)
    x, y = truth.draw(10)
    vae, z = truth.vae(dtype=dtype), truth.posterior(x, y).sample()
    options = {"temperatures": temperatures, "chains": 3, "leapfrog": 1, "batch_size": batch_size}
    found = bounds(vae, x, y, z=z, start="encoder", **options)
    for values, error in ((found.lower, found.lower_error), (found.upper, found.upper_error)):
        assert values.dtype == torch.float64
        torch.testing.assert_close(values, truth.log_prob(x, y), rtol=0, atol=tolerance)
        assert error.max() <= tolerance


def test_one_label_for_all():
    truth = Ppca(3)
    x, _ = truth.draw(5)
    found = bounds(truth.vae(), x, torch.tensor(1), temperatures=2, chains=2, leapfrog=1, start="encoder", batch_size=3)
    expected = truth.log_prob(x, torch.ones(5, dtype=torch.long))
    torch.testing.assert_close(found.lower, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", ["prior", "encoder"])
def test_one_temperature_is_importance_sampling(start, monkeypatch):
    """The log of the mean of p(z) p(x|z) / r(z) at the draws, and its standard error: by hand, on the same draws."""
    truth = Ppca()
    x, _, z = simulate(truth.vae(), 6)
    vae, drawn, draw = truth.vae(0.3, 1.5), [], annealing._Path.draw
    monkeypatch.setattr(annealing._Path, "draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    found = bounds(vae, x, z=z, temperatures=1, chains=50, start=start)

    def ratio(z):
        p = vae.prior_given().log_prob(z) + vae.decode(z).log_prob(x)
        return p - (vae.encode(x) if start == "encoder" else vae.prior_given()).log_prob(z)

    w = ratio(drawn[-1]).exp()
    assert w.shape == (50, 6)
    torch.testing.assert_close(found.lower, w.mean(0).log(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.lower_error, w.std(0) / w.mean(0) / math.sqrt(50), rtol=1e-9, atol=0)
    torch.testing.assert_close(found.upper, ratio(z), rtol=0, atol=1e-10)
    assert not found.acceptance.any()


def test_the_temperatures_are_an_s_curve():
    """σ(4 (2k/K − 1)), from 0 to 1 exactly (Wu et al., 2017)."""
    for steps in (1, 2, 9, 200):
        t = torch.tensor(annealing._ladder(steps), dtype=torch.float64)
        assert len(t) == steps + 1
        assert (t[0], t[-1]) == (0, 1)
        assert (t.diff() > 0).all()
        torch.testing.assert_close(t + t.flip(0), torch.ones_like(t), rtol=0, atol=1e-12)
    assert t[50].item() == pytest.approx((1 / (1 + math.exp(2)) - 1 / (1 + math.exp(4))) / math.tanh(2), abs=1e-12)


# Any model


def test_bernoulli_pixels():
    """With an encoder that is far from the posteriors: a bound above the importance-sampled one, from either start."""
    vae = pv.vae((60,), 6, hidden=(20,))
    with torch.no_grad():
        for p in vae.likelihood.parameters():
            p *= 3
    x, _, z = simulate(vae, 40)
    iwae = log_likelihood(vae, x, samples=64, progress=False).values
    for start in ("prior", "encoder"):
        found = bounds(vae, x, z=z, temperatures=60, chains=8, leapfrog=3, start=start)
        higher = found.lower - iwae
        print(found, f"above the importance-sampled bound by {higher.mean():.3f}", sep="\n")
        assert higher.mean() >= -5 * higher.std() / math.sqrt(40)
        assert higher.mean() > 0.5
        assert -5.05 * found.gap[1] <= found.gap[0] <= 0.3


SMALL = {"hidden": (8,)}
PRIORS = {
    "Gaussian": lambda e: priors.Gaussian(2, 3, **SMALL),
    "Mixture": lambda e: priors.Mixture(2, 3, 4, **SMALL),
    "Vamp": lambda e: priors.Vamp(e, 4),
    "flow": lambda e: zuko.flows.NSF(2, 3, transforms=1, hidden_features=(8,)),
    "unconditional flow": lambda e: pv.Unconditional(zuko.flows.MAF(2, transforms=1)),
    "chain": lambda e: pv.Chain(priors.Mixture(1, 3, 2, **SMALL), zuko.flows.MAF(1, 4, transforms=1)),
    "heavy tails": lambda e: priors.Fixed(dist.StudentT, 5.0, 0.0, 1.0, features=2),
    "function": lambda e: lambda c: dist.Laplace(c.new_zeros(2), 1.0).to_event(1),
}


def close(found, exact):
    """Whether both bounds are, on average, within 0.05 nat and five standard errors of 0.1 or less."""
    distances = found.lower - exact, found.upper - exact
    errors = [d.std().item() / math.sqrt(len(d)) for d in distances]
    print([f"{d.mean():.3f} ± {e:.3f}" for d, e in zip(distances, errors, strict=True)])
    return all(e < 0.1 and abs(d.mean()) < 0.05 + 5 * e for d, e in zip(distances, errors, strict=True))


@pytest.mark.parametrize("name", PRIORS)
def test_any_prior(name):
    """Against 5,000 draws of the prior, in two dimensions: both bounds are where they should be."""
    encoder = encoders.Gaussian(2, (4,), 3, **SMALL)
    likelihood = likelihoods.Gaussian((4,), 2, 3, **SMALL, sigma=0.5)
    vae = pv.VAE(PRIORS[name](encoder), likelihood, encoder, pv.OneHot(3))
    x, y, z = simulate(vae, 20, torch.arange(20) % 3)
    found = bounds(vae, x, y, z=z, temperatures=15, chains=8, leapfrog=2)
    exact = log_likelihood(vae, x, y, samples=5000, proposal="prior", progress=False)
    assert exact.standard_error.max() < 0.1
    assert close(found, exact.values)


@pytest.mark.parametrize("encoder", ["Mixture", "Flow"])
def test_any_encoder_to_start_from(encoder):
    vae = pv.vae((4,), 2, encoder={"name": encoder, **SMALL}, likelihood={"name": "Gaussian", **SMALL})
    x, _, z = simulate(vae, 20)
    found = bounds(vae, x, z=z, temperatures=15, chains=8, leapfrog=2, start="encoder")
    exact = log_likelihood(vae, x, samples=5000, proposal="prior", progress=False).values
    assert close(found, exact)


def test_real_data_have_a_lower_bound_alone():
    found = bounds(pv.vae((6,), 2), torch.rand(5, 6).round(), temperatures=3, chains=1, leapfrog=2)
    assert (found.upper, found.upper_error, found.gap) == (None, None, None)
    assert found.acceptance.shape == (1, 5)
    # One chain says nothing of its spread.
    assert found.lower_error.isnan().all()
    assert "upper" not in str(found)
    assert set(found.to_dict()) >= {"lower", "unit"}
    assert "upper" not in found.to_dict()


def test_a_point_encoder_needs_only_another_start():
    vae = pv.VAE(priors.Standard(2), likelihoods.Bernoulli((6,), 2), encoders.Delta(2, (6,)))
    x, _, z = simulate(vae, 5)
    assert bounds(vae, x, z=z, start="prior", temperatures=3, chains=2, leapfrog=1).lower.isfinite().all()
    with pytest.raises(NoDensityError, match="start='prior'"):
        bounds(vae, x)


# What it refuses


def on_a_sphere():
    return pv.vae((6,), 3, prior="Sphere", encoder="PowerSpherical")


def test_refuses_what_cannot_be_moved():
    x = torch.rand(4, 6).round()
    for vae in (on_a_sphere(), pv.VAE(priors.Fixed(dist.LogNormal, 0.0, 1.0, features=3), *other_parts(3))):
        with pytest.raises(PartError, match=r"prior: expected a density over all of R\^D.*log_prob"):
            bounds(vae, x)
    vae = pv.VAE(priors.Standard(3), likelihoods.Bernoulli((6,), 3), encoders.PowerSpherical(3, (6,)))
    with pytest.raises(PartError, match=r"encoder: expected a density over all.*start='prior'"):
        bounds(vae, x, start="encoder")
    with pytest.raises(NoDensityError, match="autoencoder"):
        bounds(pv.ae((6,), 2), torch.rand(4, 6))


def other_parts(features):
    return likelihoods.Bernoulli((6,), features), encoders.Gaussian(features, (6,))


def test_refuses_what_the_model_cannot_take():
    vae, x, y = pv.cvae((6,), 2, 3), torch.ones(4, 6), torch.zeros(4, dtype=torch.long)
    with pytest.raises(DataError, match="grey"):
        bounds(vae, x / 2, y)
    with pytest.raises(LabelError):
        bounds(vae, x)
    with pytest.raises(LabelError, match=r"0 … 2, got -1"):
        bounds(pv.SemiSupervised(vae, encoders.Classifier(3, (6,))), x, y - 1)
    with pytest.raises(ConfigError, match="start"):
        bounds(vae, x, y, start="posterior")
    for option in ("temperatures", "chains", "leapfrog", "batch_size"):
        with pytest.raises(ConfigError, match=option):
            bounds(vae, x, y, **{option: 0})
    for z in (torch.zeros(4, 3), torch.zeros(3, 2), torch.zeros(2), torch.zeros(2, 4, 2)):
        with pytest.raises(ShapeError, match=r"z: expected \(4, 2\), an exact draw"):
            bounds(vae, x, y, z=z)
    with pytest.raises(NonFiniteError, match="1 of 4 rows"):
        bounds(
            vae,
            x,
            y,
            z=torch.zeros(4, 2).index_fill(0, torch.tensor(2), math.nan),
            temperatures=2,
            chains=2,
            leapfrog=1,
        )
    with torch.no_grad():
        next(vae.likelihood.parameters()).fill_(math.inf)
    with pytest.raises(NonFiniteError, match="not defined at z"):
        bounds(vae, x, y, temperatures=3, chains=2, leapfrog=1)


# What it leaves, and what it says


def test_leaves_everything_as_it_was():
    """Random numbers, gradients and whether they are wanted, modes, buffers and the param store."""
    body = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6))
    vae = pv.vae((6,), 2, likelihood={"name": "Gaussian", "network": body, "sigma": 1.0})
    vae.train()
    vae.encoder.eval()
    frozen = next(body.parameters()).requires_grad_(False)
    before, random = {k: v.clone() for k, v in vae.state_dict().items()}, torch.get_rng_state()
    x, _, z = simulate(vae, 5)
    found = bounds(vae, x, z=z, temperatures=3, chains=2, leapfrog=1)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert (vae.training, body.training, vae.encoder.training) == (True, True, False)
    assert all(p.grad is None for p in vae.parameters())
    assert [p is frozen for p in vae.parameters()] == [not p.requires_grad for p in vae.parameters()]
    assert not list(pyro.get_param_store())
    assert not found.lower.requires_grad
    # Also where it fails.
    with pytest.raises(NonFiniteError):
        bounds(vae, x, z=z * math.nan, temperatures=3, chains=2, leapfrog=1)
    assert [p is frozen for p in vae.parameters()] == [not p.requires_grad for p in vae.parameters()]
    # The same as in eval mode: dropout does not act on an evaluation.
    assert bounds(vae.eval(), x, z=z, temperatures=3, chains=2, leapfrog=1).to_dict() == found.to_dict()


def test_beta_is_never_applied():
    truth = Ppca()
    x, _, z = simulate(truth.vae(), 5)
    tables = [
        bounds(truth.vae(beta=beta), x, z=z, temperatures=3, chains=2, leapfrog=1).to_dict() for beta in (1.0, 4.0, 0.0)
    ]
    assert tables[0] == tables[1] == tables[2]


def test_seed_repeats_and_is_not_that_of_the_data(monkeypatch):
    """Chains that started where the data were drawn from would have the upper bound's draw for the lower bound."""
    truth = Ppca()
    x, _, z = simulate(truth.vae(), 20, seed=3)
    drawn, draw = [], annealing._Path.draw
    monkeypatch.setattr(annealing._Path, "draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    found = [
        bounds(truth.vae(), x, z=z, temperatures=3, chains=2, leapfrog=1, seed=seed).to_dict() for seed in (3, 3, 4)
    ]
    assert found[0] == found[1] != found[2]
    torch.manual_seed(3)
    theirs = torch.cat([z.flatten(), torch.randn(200).double(), torch.randn(200, dtype=torch.float64)])
    assert not torch.isin(torch.cat([d.flatten() for d in drawn]), theirs).any()


@pytest.mark.fresh
def test_simulated_data_have_the_law_of_the_model(seed):
    """z is the z of x: what is left of x without it is noise of the likelihood's size. 5,000 rows, three labels."""
    truth = Ppca(3)
    y = torch.arange(5000) % 3
    x, same, z = simulate(truth.vae(), 5000, y, batch_size=1999, seed=seed)
    assert torch.equal(same, y)
    noise = (x - truth.mean(y) - z @ truth.W.T) / SIGMA
    for white in (noise, z):
        assert white.mean().abs() <= limit(4) / math.sqrt(white.numel())
        assert (white.square().mean() - 1).abs() <= limit(4) * math.sqrt(2 / white.numel())
    assert (z.T @ noise / 5000).abs().max() <= limit(4 * L * 8) / math.sqrt(5000)


def test_simulate_takes_labels_as_elsewhere():
    vae = pv.cvae((6,), 2, 3)
    x, y, z = simulate(vae, 4, 2)
    assert (x.shape, y.tolist(), z.shape) == ((4, 6), [2, 2, 2, 2], (4, 2))
    assert simulate(pv.vae((6,), 2), 4)[1] is None
    assert torch.equal(simulate(vae, 4, 2)[0], x)
    assert not torch.equal(simulate(vae, 4, 2, seed=1)[2], z)
    assert simulate(on_a_sphere(), 4)[2].norm(dim=-1).allclose(torch.ones(4))
    with pytest.raises(LabelError, match="got 3 for 4 rows"):
        simulate(vae, 4, torch.arange(3))
    for wrong in ((pv.vae((6,), 2), 1), (vae, None), (vae, 7)):
        with pytest.raises(LabelError):
            simulate(wrong[0], 4, wrong[1])
    with pytest.raises(NoDensityError, match="autoencoder"):
        simulate(pv.ae((6,), 2), 4)
    with pytest.raises(ConfigError, match="n to be"):
        simulate(vae, 0, 1)


def test_table():
    """Units, rows, every number with its error, how it was found; and plain numbers for JSON."""
    truth = Ppca()
    x, _, z = simulate(truth.vae(), 10)
    found = bounds(truth.vae(), x, z=z, temperatures=5, chains=3, leapfrog=2)
    lines = str(found).splitlines()
    assert lines[0].startswith("10 rows, nats per datum")
    assert [line.split("   ")[0] for line in lines[1:4]] == [
        "log p(x|y), lower bound",
        "log p(x|y), upper bound",
        "the gap between them",
    ]
    assert lines[4] == "5 temperatures from the encoder, 3 chains"
    assert lines[5].startswith("2 leapfrog steps a move, accepted: 0.")
    assert lines[5].endswith("on the way down")
    told = json.loads(json.dumps(found.to_dict()))
    assert told["gap"]["mean"] == pytest.approx(told["upper"]["mean"] - told["lower"]["mean"])
    assert (told["gap"]["mean"], told["gap"]["standard_error"]) == found.gap
    assert (told["rows"], told["temperatures"], told["chains"], told["start"]) == (10, 5, 3, "encoder")
    grey = pv.vae((6,), 2, likelihood={"name": "Bernoulli", "grey": True})
    assert "not a density" in str(bounds(grey, torch.rand(4, 6), temperatures=2, chains=2, leapfrog=1))

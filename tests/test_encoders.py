"""Posteriors beyond the diagonal Gaussian: what they make of their networks' numbers, and what their draws cost."""

import functools
import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae import Chain, encoders, likelihoods, presets, priors
from ppl_vae.devices import seeded
from ppl_vae.distributions import as_pyro, zuko
from ppl_vae.errors import ConfigError, PartError, ShapeError

IMAGE, CLASSES, N = (1, 4, 3), 3, 6


def shaken(part, seed=5, by=0.3):
    with seeded(seed, torch.device("cpu")), torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return part


def made(cls, features=3, by=0.3, **options):
    """An encoder in float64, rows of x and c, and the numbers its network gives for them."""
    part = shaken(cls(features, IMAGE, CLASSES, hidden=(8,), shift=0.5, scale=2.0, **options), by=by).double()
    x, c = torch.rand(N, *IMAGE, dtype=torch.float64), torch.rand(N, CLASSES, dtype=torch.float64)
    return part, x, c, part.network((x - 0.5) / 2.0, c)


def test_the_full_gaussian_has_a_cholesky_factor():
    part, x, c, raw = made(encoders.FullGaussian)
    q = part(x, c)
    factor = torch.eye(3, dtype=torch.float64).repeat(N, 1, 1)
    factor[:, 1, 0], factor[:, 2, 0], factor[:, 2, 1] = raw[:, 6:].unbind(-1)
    factor = (0.5 * raw[:, 3:6]).exp().unsqueeze(-1) * factor
    torch.testing.assert_close(q.mean, raw[:, :3])
    torch.testing.assert_close(q.covariance_matrix, factor @ factor.mT)
    assert raw.shape == (N, 9)


@pytest.mark.fresh
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_low_rank_gaussian_has_its_covariance(rank):
    part, x, c, raw = made(encoders.LowRankGaussian, rank=rank)
    q = part(x, c)
    w, scale = raw[:, 6:].reshape(N, 3, rank), torch.diag_embed((0.5 * raw[:, 3:6]).exp())
    expected = scale @ (torch.eye(3, dtype=torch.float64) + w @ w.mT) @ scale
    torch.testing.assert_close(q.mean, raw[:, :3])
    torch.testing.assert_close(q.covariance_matrix, expected)
    # And so have its draws: 50,000 of them know a covariance to 2% of its scale (4.9 standard errors, α = 1e-6).
    z = q.sample((50_000,)) - q.mean
    drawn = torch.einsum("sni,snj->nij", z, z) / len(z)
    scale = expected.diagonal(dim1=-2, dim2=-1).sqrt()
    error = (drawn - expected) / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    assert error.abs().max() < 4.9 * math.sqrt(2 / 50_000) * 1.4


def test_the_mixture_has_its_weights_means_and_variances():
    part, x, c, raw = made(encoders.Mixture, components=2)
    q = part(x, c)
    weights, loc = raw[:, :2].softmax(-1), raw[:, 2:8].reshape(N, 2, 3)
    variance = raw[:, 8:].reshape(N, 2, 3).exp()
    torch.testing.assert_close(q.mixture_distribution.probs, weights)
    torch.testing.assert_close(q.component_distribution.variance, variance)
    mean = (weights.unsqueeze(-1) * loc).sum(1)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.variance, (weights.unsqueeze(-1) * (variance + loc.square())).sum(1) - mean.square())
    assert q.has_rsample


def test_the_power_spherical_has_its_direction_and_concentration():
    part, x, c, raw = made(encoders.PowerSpherical)
    q = part(x, c)
    torch.testing.assert_close(q.loc, raw[:, :3] / raw[:, :3].norm(dim=-1, keepdim=True))
    torch.testing.assert_close(q.concentration, (1 + raw[:, 3].exp()).log())
    assert (q.mean.norm(dim=-1) < 1).all()


def test_the_classifier_gives_labels():
    part = encoders.Classifier(10, IMAGE, hidden=(8,), shift=0.5, scale=2.0)
    x = torch.rand(N, *IMAGE)
    q = part(x, None)
    torch.testing.assert_close(q.probs, part.network((x - 0.5) / 2.0).softmax(-1))
    assert (q.batch_shape, q.event_shape, part.classes) == ((N,), (), 10)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (encoders.LowRankGaussian, {"rank": 0}),
        (encoders.Mixture, {"components": 0}),
        (encoders.Flow, {"outputs": 0}),
        (encoders.FullGaussian, {"features": 2.5}),
        (encoders.PowerSpherical, {"features": 1}),
        (encoders.PowerSpherical, {"features": 0}),
        (encoders.Flow, {"scale": 0.0}),
    ],
)
def test_impossible_sizes(cls, options):
    with pytest.raises(ConfigError):
        cls(**{"features": 2, "x_shape": IMAGE} | options)
    with pytest.raises(ConfigError, match="classes"):
        encoders.Classifier(0, IMAGE)


@pytest.mark.parametrize("cls", [encoders.FullGaussian, encoders.LowRankGaussian, encoders.Mixture])
@pytest.mark.parametrize("size", [-1000.0, 1000.0])
def test_absurd_log_variances_are_held(cls, size):
    part = cls(2, IMAGE, hidden=(8,))
    with torch.no_grad():
        part.network.body[-1].bias.fill_(size)
    q = part(torch.zeros(3, *IMAGE))
    assert q.mean.isfinite().all()
    assert (q.variance > 0).all()
    # A full factor of such numbers has a covariance that float32 does not hold, but a draw and its density are finite.
    z = q.rsample()
    assert q.log_prob(z).isfinite().all()
    gradient = torch.autograd.grad(z.sum(), part.network.body[-1].bias)[0]
    assert gradient.isfinite().all()


# Flows


FLOWS = {
    "MAF": zuko.flows.MAF,
    "NSF": functools.partial(zuko.flows.NSF, transforms=2, bins=4),
    "NICE": functools.partial(zuko.flows.NICE, transforms=2),
}


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_a_flow_scores_its_own_draw_as_recomputed(flow):
    part, x, c, _ = made(encoders.Flow, flow=flow, outputs=4)
    q = as_pyro(part(x, c))
    z = q.rsample((5,))
    remembered, recomputed = q.log_prob(z), as_pyro(part(x, c)).log_prob(z)
    torch.testing.assert_close(remembered, recomputed, rtol=1e-6, atol=1e-6)
    gradients = [
        torch.autograd.grad(p.sum() + z.sum(), list(part.parameters()), retain_graph=True, allow_unused=True)
        for p in (remembered, recomputed)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_drawing_and_scoring_takes_one_pass_of_every_transform():
    part, x, c, _ = made(encoders.Flow, outputs=4)
    passes = []
    for transform in part.flow.transform.transforms:
        transform.hyper.register_forward_hook(lambda *_: passes.append(1))
    q = as_pyro(part(x, c))
    q.log_prob(q.rsample())
    assert len(passes) == len(part.flow.transform.transforms)
    passes.clear()
    # The density of a z from elsewhere takes a pass a feature, and one more for the determinant.
    q.log_prob(torch.zeros(N, 3, dtype=torch.float64))
    assert len(passes) >= 3 * len(part.flow.transform.transforms)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_a_flow_integrates_to_one(flow):
    part, x, c, _ = made(encoders.Flow, features=2, by=0.1, flow=flow, outputs=4)
    q = part(x[:1], c[:1])
    axis = torch.linspace(-8, 8, 241, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 1, 2)
    with torch.no_grad():
        total = q.log_prob(z).exp().sum() * (axis[1] - axis[0]) ** 2
    # The density of a spline flow has kinks.
    assert total.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("flow", [zuko.flows.GMM, nn.Linear, "MAF", 3])
def test_what_makes_no_flow(flow):
    with pytest.raises(PartError, match=r"zuko\.flows"):
        encoders.Flow(2, IMAGE, flow=flow)


def test_flows_by_name():
    vae = pv.vae(IMAGE, 2, encoder={"name": "Flow", "flow": {"name": "NSF", "transforms": 2, "bins": 4}, "outputs": 5})
    assert isinstance(vae.encoder.flow, zuko.flows.NSF)
    assert len(vae.encoder.flow.transform.transforms) == 2
    config = presets.to_dict(vae)
    assert config["encoder"]["flow"] == {"name": "NSF", "transforms": 2, "bins": 4}
    assert str(presets.build(json.loads(json.dumps(config)))) == str(vae)
    vae = pv.vae(IMAGE, 2, encoder=encoders.Flow(2, IMAGE, flow=zuko.flows.NICE))
    assert presets.to_dict(vae)["encoder"]["flow"] == "NICE"
    for flow, hint in [
        ("MAFF", "MAF"),
        ({"name": "NSF", "bin": 4}, "bins"),
        ({"name": "MAF", "transfroms": 4}, "transforms"),
    ]:
        with pytest.raises(ConfigError, match=f"did you mean '{hint}'"):
            pv.vae(IMAGE, 2, encoder={"name": "Flow", "flow": flow})
    with pytest.raises(ConfigError, match="expected one of"):
        pv.vae(IMAGE, 2, encoder={"name": "Flow", "flow": "GMM"})


# In a model


@pytest.mark.parametrize("name", ["FullGaussian", "LowRankGaussian"])
@pytest.mark.parametrize("prior", ["Standard", "Gaussian"])
def test_the_analytic_objective_takes_correlated_posteriors(name, prior):
    vae = pv.vae(IMAGE, 2, prior=prior, encoder=name, hidden=(8,))
    shaken(vae).double()
    x = torch.rand(N, *IMAGE, dtype=torch.float64).round()
    torch.manual_seed(1)
    loss = pv.objectives.Analytic().loss(vae.model, vae.guide, x)
    torch.manual_seed(1)
    q = vae.encode(x)
    expected = kl_divergence(q, vae.prior_given()) - vae.decode(q.rsample()).log_prob(x)
    assert loss == pytest.approx(expected.sum().item(), rel=1e-10)


def test_a_chain_of_encoders_sees_x_and_what_came_before():
    part = Chain(encoders.Gaussian(1, IMAGE, CLASSES, (8,)), encoders.FullGaussian(2, IMAGE, CLASSES + 1, (8,)))
    x, c, z = torch.rand(N, *IMAGE), torch.rand(N, CLASSES), torch.randn(4, N, 3)
    by_hand = part.first(x, c).log_prob(z[..., :1])
    context = torch.cat([c.expand(4, N, CLASSES), z[..., :1]], -1)
    by_hand = by_hand + part.second(x, context).log_prob(z[..., 1:])
    torch.testing.assert_close(part(x, c).log_prob(z), by_hand)
    assert (part.features, part.context, part.x_shape) == (3, CLASSES, IMAGE)
    with pytest.raises(ShapeError, match="context=4, got context=3"):
        Chain(encoders.Gaussian(1, IMAGE, CLASSES, (8,)), encoders.Gaussian(1, IMAGE, CLASSES, (8,)))


def test_the_gradient_of_a_chain_reaches_the_first_part_through_the_second():
    part = shaken(Chain(encoders.Gaussian(1, IMAGE, 0, (8,)), encoders.Gaussian(1, IMAGE, 1, (8,))))
    z = part(torch.rand(N, *IMAGE), None).rsample()
    gradients = torch.autograd.grad(z[:, 1].sum(), list(part.first.parameters()))
    assert all(g.any() for g in gradients)


def test_the_mean_of_a_posterior_without_one_is_that_of_draws():
    for name in ("Flow", "Chain"):
        spec = {"name": name} | ({"first": "Gaussian", "second": "Gaussian"} if name == "Chain" else {})
        vae = pv.vae(IMAGE, 2, encoder=spec, hidden=(8,))
        assert vae.embed(torch.rand(N, *IMAGE)).shape == (N, 2)


class Ridge(nn.Module):
    """A fixed decoder under which the posterior is correlated, curved and has two modes."""

    def forward(self, z, c=None):
        mean = torch.stack([z[..., 0] + 0.8 * z[..., 1], z[..., 1].square()], -1)
        return torch.distributions.Independent(torch.distributions.Normal(mean, 0.3), 1)


X = torch.tensor([[0.5, 0.6]], dtype=torch.float64)


def bound(spec):
    """The ELBO (nats) that an encoder is trained to on one x."""
    torch.manual_seed(1)
    part = presets.make("encoder", presets.complete("encoder", spec, features=2, x_shape=(2,), hidden=(16,)))
    vae = pv.VAE(priors.Standard(2), Ridge(), part).double()
    optimiser = torch.optim.Adam(vae.parameters(), lr=0.02)
    for _ in range(250):
        optimiser.zero_grad()
        pv.objectives.Trace_ELBO().differentiable_loss(vae.model, vae.guide, X.expand(32, 2)).div(32).backward()
        optimiser.step()
    return torch.cat(list(vae.log_weights(X, samples=2_000))).mean().item()


@pytest.fixture(scope="module")
def known():
    """What a diagonal Gaussian is trained to, and the evidence, an integral over a grid."""
    axis = torch.linspace(-5, 5, 801, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    joint = priors.Standard(2)(None).log_prob(z) + Ridge()(z).log_prob(X[0])
    return bound("Gaussian"), joint.flatten().logsumexp(0).item() + 2 * math.log(axis[1] - axis[0])


@pytest.mark.parametrize(
    "encoder",
    [
        {"name": "FullGaussian"},
        {"name": "LowRankGaussian"},
        {"name": "Mixture", "components": 2},
        {"name": "Flow", "outputs": 8},
        {"name": "Chain", "first": "Gaussian", "second": "Gaussian"},
    ],
    ids=lambda spec: spec["name"],
)
def test_a_richer_posterior_trains_to_a_tighter_bound(encoder, known):
    diagonal, evidence = known
    assert diagonal + 0.1 < bound(encoder) < evidence + 0.02


def test_encoders_do_not_clash_with_likelihoods_in_a_program():
    # Captured and stock, every encoder by its name.
    for name in sorted(set(presets.ENCODERS) - {"Delta", "Chain"}):
        prior = "Sphere" if name == "PowerSpherical" else "Standard"
        vae = pv.VAE(
            presets.make("prior", presets.complete("prior", prior, features=2)),
            likelihoods.Bernoulli(IMAGE, 2, hidden=(8,)),
            presets.make("encoder", presets.complete("encoder", name, features=2, x_shape=IMAGE)),
        )
        history = pv.fit(vae, torch.rand(8, *IMAGE).round(), epochs=2, batch_size=4, progress=False)
        assert len(history) == 2

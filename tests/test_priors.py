"""Priors that are mixtures, pseudo-inputs, spheres and chains: their formulas, their sharing, their misuse."""

import copy
import json
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae import Chain, OneHot, Unconditional, encoders, likelihoods, presets, priors
from ppl_vae.distributions import NormalMixture, as_pyro, zuko
from ppl_vae.errors import ConfigError, LabelError, PartError, ShapeError

IMAGE, CLASSES = (1, 4, 3), 3


def shaken(part, seed=5):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return part


def grid(limit=14.0, n=701):
    axis = torch.linspace(-limit, limit, n, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    return z, (axis[1] - axis[0]) ** 2


def encoder(context=0, features=2, cls=encoders.Gaussian, **options):
    return cls(features, IMAGE, context, hidden=(8,), **options)


def model(prior, encoder, context=0):
    likelihood = likelihoods.Bernoulli(IMAGE, prior.features, context, hidden=(8,))
    return pv.VAE(prior, likelihood, encoder, OneHot(context) if context else None)


# Mixtures


def parameters_of(prior, c):
    """Weights, means and standard deviations of a mixture of three, by the definition."""
    if not prior.context:
        return prior.logits, prior.loc, (0.5 * prior.log_variance).exp()
    raw = prior.network(None, c)
    if prior.depends == "weights":
        return raw, prior.loc, (0.5 * prior.log_variance).exp()
    logits, move, log_variance = raw.split([3, 6, 6], -1)
    return (
        logits,
        prior.loc + move.reshape(*c.shape[:-1], 3, 2),
        (0.5 * log_variance).exp().reshape(*c.shape[:-1], 3, 2),
    )


@pytest.mark.parametrize(("context", "depends"), [(0, "all"), (CLASSES, "all"), (CLASSES, "weights")])
def test_a_mixture_is_the_sum_of_its_components_and_integrates_to_one(context, depends):
    prior = shaken(priors.Mixture(2, context, 3, hidden=(8,), depends=depends)).double()
    c = torch.eye(CLASSES, dtype=torch.float64)[1] if context else None
    p = prior(c)
    logits, loc, scale = parameters_of(prior, c)
    z = torch.randn(7, 2, dtype=torch.float64)
    by_hand = sum(
        w * dist.Normal(m, s).to_event(1).log_prob(z).exp()
        for w, m, s in zip(logits.softmax(-1), loc, scale, strict=True)
    )
    torch.testing.assert_close(p.log_prob(z).exp(), by_hand)
    points, area = grid()
    assert (p.log_prob(points).exp().sum() * area).item() == pytest.approx(1, abs=1e-6)


def test_only_the_weights_depend_on_y_if_so_asked():
    c = torch.eye(CLASSES)
    shared = shaken(priors.Mixture(2, CLASSES, 3, hidden=(8,), depends="weights"))(c)
    assert (shared.component_distribution.mean == shared.component_distribution.mean[0]).all()
    assert not torch.equal(shared.mixture_distribution.probs[0], shared.mixture_distribution.probs[1])
    own = shaken(priors.Mixture(2, CLASSES, 3, hidden=(8,)))(c)
    assert not torch.equal(own.component_distribution.mean[0], own.component_distribution.mean[1])


def test_the_components_of_a_fresh_mixture_are_apart():
    for prior, c in [(priors.Mixture(2), None), (priors.Mixture(2, CLASSES), torch.eye(CLASSES)[0])]:
        assert torch.pdist(prior(c).component_distribution.mean).min() > 0.01


@pytest.mark.fresh
@pytest.mark.parametrize("make", [lambda: priors.Mixture(1, components=4), lambda: priors.Vamp(encoder(features=1), 4)])
def test_draws_come_from_all_components(make):
    # Components a hundred standard deviations apart: 4,000 draws miss a part of 1/4 by ±13% at most (χ², α = 1e-6).
    prior = make()
    p = prior(None)
    p.component_distribution.base_dist.loc = torch.tensor([[0.0], [100.0], [200.0], [300.0]])
    p.component_distribution.base_dist.scale = torch.ones(4, 1)
    z = p.sample((4_000,))
    counts = torch.bincount((z[:, 0] / 100).round().long(), minlength=4)
    assert len(counts) == 4
    assert ((counts - 1_000).square() / 1_000).sum() < 30.7


@pytest.mark.parametrize("options", [{"components": 0}, {"components": 2.5}, {"depends": "places"}, {"features": 0}])
def test_impossible_mixtures(options):
    with pytest.raises(ConfigError):
        priors.Mixture(**{"features": 2} | options)


# Pseudo-inputs


@pytest.mark.parametrize("context", [0, CLASSES])
@pytest.mark.parametrize(
    "make",
    [
        encoder,
        lambda c: encoder(c, cls=encoders.FullGaussian),
        lambda c: encoder(c, cls=encoders.Mixture),
        lambda c: encoder(c, cls=encoders.Flow, outputs=3),
        lambda c: Chain(encoder(c, 1), encoder(c + 1 if c else 1, 1)),
    ],
    ids=["Gaussian", "FullGaussian", "Mixture", "Flow", "Chain"],
)
def test_a_vamp_is_the_mean_of_what_the_encoder_says_of_its_pseudo_inputs(make, context):
    of = shaken(make(context)).double()
    prior = priors.Vamp(of, components=5).double()
    batch = (4, 2) if context else ()
    c = torch.rand(*batch, context, dtype=torch.float64) if context else None
    z = torch.randn(*batch, 2, dtype=torch.float64)
    each = [as_pyro(of(u.expand(*batch, *IMAGE), c)).log_prob(z).exp() for u in prior.pseudo_inputs]
    torch.testing.assert_close(prior(c).log_prob(z).exp(), torch.stack(each).mean(0))
    assert prior(c).sample((6,)).shape == (6, *batch, 2)


@pytest.mark.parametrize("cls", [encoders.Gaussian, encoders.FullGaussian, encoders.Mixture, encoders.Flow])
@pytest.mark.parametrize("batch", [(7,), (2, 4), (3,), ()])
def test_labels_that_are_alike_share_the_passes_of_a_vamp(cls, batch):
    of = shaken(encoder(CLASSES, cls=cls)).double()
    of.network.rows = []
    of.network.register_forward_hook(lambda network, inputs, raw: network.rows.append(raw.shape[:-1].numel()))
    every = priors.Vamp(of, components=5).double()
    shared = priors.Vamp(of, pseudo_inputs=every.pseudo_inputs, classes=CLASSES).double()
    torch.manual_seed(2)
    c = torch.eye(CLASSES, dtype=torch.float64)[torch.randint(CLASSES, batch)]
    z = torch.randn(*batch, 2, dtype=torch.float64)
    found = []
    for prior in (every, shared):
        loss = prior(c).log_prob(z).sum()
        found.append((loss, *torch.autograd.grad(loss, [prior.pseudo_inputs, *of.parameters()])))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    assert of.network.rows == [5 * c.shape[:-1].numel(), 5 * min(c.shape[:-1].numel(), CLASSES)]


def test_an_encoder_that_is_more_than_its_numbers_takes_every_pass():
    class Shifted(encoders.Gaussian):
        def forward(self, x, c=None):
            return dist.Normal(super().forward(x, c).mean + 100, 1.0).to_event(1)

    for of in (
        Shifted(2, IMAGE, CLASSES),
        Chain(encoder(CLASSES, 1), encoder(CLASSES + 1, 1)),
        Unconditional(encoder()),
    ):
        every = priors.Vamp(of, components=5)
        shared = priors.Vamp(of, pseudo_inputs=every.pseudo_inputs, classes=CLASSES)
        c, z = torch.eye(CLASSES)[[0, 1, 2, 2, 1]], torch.randn(5, 2)
        torch.testing.assert_close(shared(c).log_prob(z), every(c).log_prob(z))


def test_a_vamp_of_labels_refuses_what_is_none():
    prior = priors.Vamp(encoder(CLASSES), 4, classes=CLASSES)
    for c in (torch.full((5, CLASSES), 1 / CLASSES), torch.ones(5, CLASSES), torch.zeros(5, CLASSES)):
        with pytest.raises(LabelError, match="one-hot rows of 3 labels"):
            prior(c)
    with pytest.raises(ConfigError, match="classes=3, the encoder's context, got 4"):
        priors.Vamp(encoder(CLASSES), 4, classes=4)


def test_a_vamp_integrates_to_one_on_average_over_its_encoder():
    prior = priors.Vamp(shaken(encoder(CLASSES)).double(), 6).double()
    z, area = grid()
    assert (prior(torch.eye(CLASSES, dtype=torch.float64)[2]).log_prob(z).exp().sum() * area).item() == pytest.approx(1)


def test_the_number_of_pseudo_inputs():
    assert priors.Vamp(encoder()).pseudo_inputs.shape == (500, *IMAGE)
    assert priors.Vamp(encoder(CLASSES)).pseudo_inputs.shape == (50, *IMAGE)
    assert priors.Vamp(Unconditional(encoder())).pseudo_inputs.shape == (500, *IMAGE)
    assert priors.Vamp(encoder(), 7).pseudo_inputs.shape == (7, *IMAGE)
    given = torch.rand(3, *IMAGE)
    prior = priors.Vamp(encoder(), pseudo_inputs=given)
    assert torch.equal(prior.pseudo_inputs, given)
    assert prior.components == 3
    # The caller's tensor is not trained.
    assert prior.pseudo_inputs.data_ptr() != given.data_ptr()
    # In the range of the data, which the encoder knows, and what is around it.
    units = {"shift": -3.0, "scale": 10.0}
    told = encoders.Gaussian(2, (2, 4, 3), **units)
    chain = Chain(encoders.Gaussian(1, IMAGE, **units), encoders.Gaussian(1, IMAGE, 1, **units))
    for one in (encoder(**units), Unconditional(encoder(**units)), encoders.Masked(told), chain):
        u = priors.Vamp(one, 100).pseudo_inputs
        assert u.shape == (100, *IMAGE)
        assert -3 <= u.min() < -2.5
        assert 6.5 < u.max() <= 7
    # One that says it itself has another one inside, which is given what is standardised already.
    own = Unconditional(encoder())
    own.shift, own.scale = -3.0, 10.0
    assert priors.Vamp(own, 100).pseudo_inputs.min() < -2.5


def test_an_encoder_of_ones_own_will_do_if_it_comes_with_pseudo_inputs():
    class Mine(nn.Module):
        def forward(self, x, c):
            return dist.Normal(x.flatten(-3)[..., :2], 1.0).to_event(1)

    p = priors.Vamp(Mine(), pseudo_inputs=torch.rand(3, *IMAGE))(None)
    assert p.shape() == (2,)
    fixed = priors.Vamp(lambda x, c: dist.Normal(torch.zeros(2), 1.0).to_event(1), pseudo_inputs=torch.rand(3, 1))(None)
    torch.testing.assert_close(fixed.log_prob(torch.zeros(2)), torch.tensor(-math.log(2 * math.pi)))
    with pytest.raises(PartError, match=r"x_shape, got Mine: give pseudo_inputs"):
        priors.Vamp(Mine())


def test_impossible_vamps():
    with pytest.raises(PartError, match="encoder of the model, got NoneType"):
        priors.Vamp(None)
    with pytest.raises(PartError, match="Delta"):
        priors.Vamp(encoder(cls=encoders.Delta), 3)(None)
    with pytest.raises(ShapeError, match=r"\(K, 1, 4, 3\), got \(5, 4, 3\)"):
        priors.Vamp(encoder(), pseudo_inputs=torch.rand(5, 4, 3))
    with pytest.raises(ConfigError, match="components=5"):
        priors.Vamp(encoder(), 4, torch.rand(5, *IMAGE))
    with pytest.raises(ConfigError, match="components"):
        priors.Vamp(encoder(), 0)


def test_pseudo_inputs_start_from_distinct_rows_and_once():
    prior, x = priors.Vamp(encoder(), 7), torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, *IMAGE)
    before = prior.pseudo_inputs
    assert not prior.started
    torch.manual_seed(1)
    prior.start_from(x)
    assert prior.pseudo_inputs is before
    rows = prior.pseudo_inputs[:, 0, 0, 0].tolist()
    # Rows drawn with replacement would all be different in one case of fifty.
    assert len(set(rows)) == 7
    # The first rows, in their order, may all be of one class.
    assert rows != sorted(rows)
    assert set(rows) <= set(range(8))
    assert (prior.pseudo_inputs == prior.pseudo_inputs[:, :1, :1, :1]).all()
    # Torch's generator decides which, and a part that has been started keeps what it learned.
    torch.manual_seed(1)
    other = priors.Vamp(encoder(), 7)
    torch.manual_seed(1)
    other.start_from(x.numpy())
    assert torch.equal(other.pseudo_inputs, prior.pseudo_inputs)
    for started in (prior, copy.deepcopy(prior)):
        started.start_from(x + 100)
        assert torch.equal(started.pseudo_inputs, other.pseudo_inputs)
    loaded = priors.Vamp(encoder(), 7)
    loaded.load_state_dict(prior.state_dict())
    loaded.start_from(x + 100)
    assert torch.equal(loaded.pseudo_inputs, other.pseudo_inputs)
    assert priors.Vamp(encoder(), pseudo_inputs=x).started


def test_starting_from_the_wrong_data():
    prior = priors.Vamp(encoder(), 5)
    with pytest.raises(ConfigError, match="4 rows for 5: set components to 4"):
        prior.start_from(torch.rand(4, *IMAGE))
    with pytest.raises(ShapeError, match=r"\(N, 1, 4, 3\), got \(9, 4, 3\)"):
        prior.start_from(torch.rand(9, 4, 3))
    assert not prior.started


def test_fit_starts_the_pseudo_inputs_once():
    x = torch.rand(40, *IMAGE).round()
    vae = pv.vae(IMAGE, 2, prior={"name": "Vamp", "components": 6}, hidden=(8,))
    random = vae.prior.pseudo_inputs.detach().clone()
    pv.fit(vae, x, epochs=1, batch_size=20, lr=1e-4, progress=False)
    assert vae.prior.started
    learned = vae.prior.pseudo_inputs.detach().clone()
    # Close to rows of the data after two small steps, where it began at random.
    closest = [torch.cdist(u.flatten(1), x.flatten(1)).min(1).values.max() for u in (random, learned)]
    assert closest[1] < 0.01 < closest[0]
    pv.fit(vae, x, epochs=1, batch_size=20, lr=1e-4, progress=False)
    assert (vae.prior.pseudo_inputs - learned).abs().max() < 0.01


def systems():
    """Models with a Vamp, and where their shared encoders are."""
    of = encoder(CLASSES)
    yield "plain", model(priors.Vamp(of, 4), of, CLASSES), lambda v: [(v.prior.encoder, v.encoder)]
    of = Unconditional(encoder())
    yield (
        "Unconditional",
        model(Unconditional(priors.Vamp(of, 4)), of, CLASSES),
        lambda v: [(v.prior.part.encoder, v.encoder)],
    )
    of = Chain(encoder(CLASSES, 1), encoder(CLASSES + 1, 1))
    prior = Chain(priors.Vamp(of.first, 4), priors.Vamp(of.second, 3))
    yield (
        "Chain",
        model(prior, of, CLASSES),
        lambda v: [
            (v.prior.first.encoder, v.encoder.first),
            (v.prior.second.encoder, v.encoder.second),
        ],
    )


@pytest.mark.parametrize(("vae", "pairs"), [s[1:] for s in systems()], ids=[s[0] for s in systems()])
def test_the_encoder_stays_shared(vae, pairs, tmp_path):
    x, y = torch.rand(5, *IMAGE).round(), torch.arange(5) % CLASSES
    parameters = sum(p.numel() for p in vae.parameters())
    config = presets.to_dict(vae)
    assert "encoder" not in json.dumps(config["prior"])
    pv.save(vae, tmp_path)
    z = torch.randn(5, 2)
    for other in (copy.deepcopy(vae), presets.build(json.loads(json.dumps(config))), pv.load(tmp_path)):
        assert all(of is encoder for of, encoder in pairs(other))
        assert sum(p.numel() for p in other.parameters()) == parameters
    # The last one is the saved model, and its encoder is trained by both.
    assert torch.equal(other.prior_given(y).log_prob(z), vae.prior_given(y).log_prob(z))
    other.train()
    before = other.prior_given(y).log_prob(z)
    pv.fit(other, x if other.condition is None else (x, y), epochs=1, batch_size=5, progress=False)
    assert all(of is encoder for of, encoder in pairs(other))
    assert not torch.equal(other.prior_given(y).log_prob(z), before)


def test_a_vamp_by_name_gets_the_models_encoder():
    vae = pv.vae(IMAGE, 2, prior="Vamp")
    assert vae.prior.encoder is vae.encoder
    assert vae.prior.components == 500
    cvae = pv.cvae(IMAGE, 2, CLASSES, prior={"name": "Vamp", "components": 20})
    assert cvae.prior.encoder is cvae.encoder
    assert presets.to_dict(cvae)["prior"] == {"name": "Vamp", "components": 20, "classes": CLASSES}
    # What the encoder is given elsewhere is no label, or more than one.
    drawn_by = pv.vae(IMAGE, 2, prior="Vamp", condition={"name": "OneHots", "classes": [2]})
    assert drawn_by.prior.classes is None
    chains = ({"name": "Chain", "first": kind, "second": kind} for kind in ("Vamp", "Gaussian"))
    halves = pv.cvae(IMAGE, 4, CLASSES, **dict(zip(("prior", "encoder"), chains, strict=True)))
    assert [part.classes for part in (halves.prior.first, halves.prior.second)] == [CLASSES, None]
    ignoring = pv.cvae(IMAGE, 2, CLASSES, prior="Vamp", encoder={"name": "Gaussian", "context": 0})
    assert ignoring.sample(2, y=1).shape == (2, *IMAGE)
    assert cvae.sample(2, y=torch.arange(CLASSES)).shape == (2, CLASSES, *IMAGE)
    mine = encoder()
    assert pv.vae(IMAGE, 2, prior="Vamp", encoder=mine).prior.encoder is mine
    for spec in ({"name": "Vamp", "encoder": "Gaussian"}, {"name": "Vamp", "context": 0}):
        with pytest.raises(ConfigError, match="expected one of"):
            pv.vae(IMAGE, 2, prior=spec)
    with pytest.raises(ConfigError, match="encoder at the same place"):
        presets.make("prior", {"name": "Vamp", "components": 3})
    with pytest.raises(ConfigError, match="encoder at the same place"):
        pv.vae(IMAGE, 2, prior={"name": "Chain", "first": "Vamp", "second": "Gaussian"})


def test_a_vamp_of_another_encoder_has_no_name():
    vae = model(priors.Vamp(encoder(), 3), encoder())
    with pytest.raises(PartError, match=r"own encoder.*load\(path, into=vae\)"):
        presets.to_dict(vae)


def test_the_seed_of_a_model_without_a_vamp_is_what_it_was():
    # The order of construction decides which random numbers a part gets: prior, likelihood, encoder.
    torch.manual_seed(3)
    by_name = pv.vae(IMAGE, 2, prior="Mixture", hidden=(8,))
    torch.manual_seed(3)
    by_hand = pv.VAE(priors.Mixture(2), likelihoods.Bernoulli(IMAGE, 2, hidden=(8,)), encoder())
    for a, b in zip(by_name.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(a, b)


# Spheres


def test_the_sphere_goes_with_the_power_spherical_encoder():
    vae = pv.vae(IMAGE, 3, prior="Sphere", encoder="PowerSpherical", hidden=(8,))
    x = torch.rand(6, *IMAGE).round()
    loss = pv.objectives.Analytic().loss(vae.model, vae.guide, x)
    torch.manual_seed(0)
    q = vae.encode(x)
    assert math.isfinite(loss)
    torch.testing.assert_close(kl_divergence(q, vae.prior_given()), math.log(4 * math.pi) - q.entropy())
    torch.testing.assert_close(vae.sample(4).shape, torch.Size((4, *IMAGE)))
    # The mean of points on a sphere lies within it, where no z of the model's ever was.
    assert (q.mean.norm(dim=-1) < 1).all()
    z = torch.nn.functional.normalize(q.mean, dim=-1)
    torch.testing.assert_close(vae.reconstruct(x), vae.decode(z).mean)
    torch.testing.assert_close(vae.translate(x, to=None), vae.decode(z).mean)
    middle = torch.nn.functional.normalize(z[:3] + z[3:], dim=-1)
    path = vae.interpolate(x[:3], x[3:], steps=3)
    torch.testing.assert_close(path, vae.decode(torch.stack([z[:3], middle, z[3:]])).mean)
    with pytest.raises(ConfigError, match="≥ 2"):
        priors.Sphere(1)
    with pytest.raises(ConfigError, match="≥ 2"):
        encoders.PowerSpherical(1, IMAGE)


# Chains


def test_a_chain_sees_what_came_before_as_context():
    prior = Chain(priors.Gaussian(1, CLASSES, hidden=(8,)), priors.Gaussian(2, CLASSES + 1, hidden=(8,)))
    c, z = torch.rand(5, CLASSES), torch.randn(4, 5, 3)
    by_hand = prior.first(c).log_prob(z[..., :1])
    by_hand = by_hand + prior.second(torch.cat([c.expand(4, 5, CLASSES), z[..., :1]], -1)).log_prob(z[..., 1:])
    torch.testing.assert_close(prior(c).log_prob(z), by_hand)
    assert (prior.features, prior.context) == (3, CLASSES)


def test_three_levels():
    prior = Chain(
        priors.Gaussian(1, CLASSES, hidden=(8,)),
        Chain(priors.Gaussian(2, CLASSES + 1, hidden=(8,)), priors.Gaussian(3, CLASSES + 3, hidden=(8,))),
    )
    of = Chain(Chain(encoder(CLASSES, 1), encoder(CLASSES + 1, 2)), encoder(CLASSES + 3, 3))
    vae = model(prior, of, CLASSES)
    x, y = torch.rand(5, *IMAGE).round(), torch.arange(5) % CLASSES
    assert vae.encode(x, y).event_shape == vae.prior_given(y).event_shape == (6,)
    assert vae.embed(x, y).shape == (5, 6)
    assert vae.log_prob(x, y, samples=4).isfinite().all()
    loss = pv.objectives.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x, y)
    loss.backward()
    assert all(p.grad is not None for p in vae.parameters())
    assert str(presets.build(presets.to_dict(vae))) == str(vae)


def test_a_first_part_that_ignores_y_is_drawn_once_a_row():
    prior = Chain(priors.Standard(1), priors.Gaussian(1, CLASSES + 1, hidden=(8,)))
    z = as_pyro(prior(torch.eye(CLASSES))).sample()
    assert z.shape == (CLASSES, 2)
    assert len(z[:, 0].unique()) == CLASSES


def test_flows_by_hand_chain_without_saying_their_widths():
    prior = Chain(zuko.flows.MAF(2, 3, transforms=1), zuko.flows.MAF(1, 5, transforms=1))
    p = prior(torch.rand(4, 3))
    assert (p.shape(), prior.features, prior.context) == ((4, 3), None, None)
    assert p.log_prob(p.rsample()).shape == (4,)


def test_what_a_chain_asks_of_its_second_part_leaves_no_trace():
    class Body(nn.Module):
        def __init__(self, in_shape, out_shape, context, hidden):
            super().__init__()
            self.norm = nn.BatchNorm1d(context)
            self.last = nn.Sequential(nn.Dropout(0.5), nn.Linear(context, out_shape[0]))

        def forward(self, joined):
            return self.last(self.norm(joined))

    prior = Chain(priors.Gaussian(1, CLASSES), priors.Gaussian(1, CLASSES + 1, network=Body))
    before, random = copy.deepcopy(prior.state_dict()), torch.get_rng_state()
    prior(torch.eye(CLASSES))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in prior.state_dict().items())
    assert all(module.training for module in prior.modules())


class Shifted(nn.Module):
    """A conditional prior whose only tensor is a buffer of weights, behind one of whole numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("weight", torch.ones(2, 1))

    def forward(self, c):
        return dist.Normal(c @ self.weight, 1.0).to_event(1)


@pytest.mark.parametrize(
    "first", [lambda: lambda c: dist.Normal(torch.zeros(2).double(), 1.0).to_event(1), lambda: priors.Standard(2)]
)
def test_a_chain_of_buffers_has_their_precision(first):
    z = as_pyro(Chain(first(), Shifted()).double()(None)).sample()
    assert z.dtype == torch.float64


def test_a_chain_notices_another_second_part():
    prior = Chain(priors.Standard(1), priors.Gaussian(1, 1))
    assert prior(None).shape() == (2,)
    prior.second = zuko.flows.GMM(3, 1, components=2)
    assert prior(None).shape() == (4,)
    assert not prior(None).has_rsample


def test_impossible_chains():
    with pytest.raises(PartError, match="second to be a part"):
        Chain(priors.Standard(1), None)
    with pytest.raises(ShapeError, match=r"context \(3\).*first gives \(2\).*context=5, got context=3"):
        Chain(priors.Gaussian(2, CLASSES), priors.Gaussian(2, CLASSES))
    prior = Chain(priors.Gaussian(2, CLASSES), priors.Gaussian(2, CLASSES + 2))
    with pytest.raises(ShapeError, match=r"Chain: expected a context \(\*, 3\), got none"):
        prior(None)


# Fixed


def test_a_fixed_prior_of_another_length_says_so():
    for loc, found in ((torch.zeros(3), r"\(3,\)"), (torch.zeros(2, 2), r"\(2, 2\)")):
        with pytest.raises(ShapeError, match=rf"Fixed: expected a distribution over \(2,\), got {found}"):
            priors.Fixed(dist.Normal, loc, 1.0, features=2)
    for loc in (0.0, torch.zeros(1), torch.zeros(2)):
        assert priors.Fixed(dist.Normal, loc, 1.0, features=2)(None).event_shape == (2,)


def test_a_fixed_prior_is_made_of_numbers():
    parts = dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)
    for args, kwargs, name in ((parts, {}, "arg0"), ((), {"loc": "zero"}, "loc"), (([[1.0], []],), {}, "arg0")):
        with pytest.raises(PartError, match=rf"expected a number or numbers for {name}, got .*is a function"):
            priors.Fixed(dist.MixtureSameFamily, *args, features=1, **kwargs)


# Chains by name


def test_a_chain_by_name_shares_the_features_out():
    def features(**spec):
        vae = pv.cvae(IMAGE, 5, CLASSES, prior={"name": "Chain", "first": "Gaussian", "second": "Gaussian", **spec})
        return vae.prior.first.features, vae.prior.second.features, vae.prior.second.context

    assert features() == (3, 2, 6)
    assert features(first={"name": "Gaussian", "features": 1}) == (1, 4, 4)
    assert features(second={"name": "Gaussian", "features": 1}) == (4, 1, 7)
    assert features(first={"name": "Gaussian", "features": 2}, second={"name": "Gaussian", "features": 3}) == (2, 3, 5)
    nested = {"name": "Chain", "features": 4, "first": "Gaussian", "second": "Gaussian"}
    assert features(second=nested) == (1, 4, 4)
    with pytest.raises(ConfigError, match="add up to 5, got 2 and 2"):
        features(first={"name": "Gaussian", "features": 2}, second={"name": "Gaussian", "features": 2})
    with pytest.raises(ConfigError, match="features"):
        features(first={"name": "Gaussian", "features": 5})


@pytest.mark.parametrize(
    ("prior", "encoder"),
    [
        ({"first": "Standard", "second": "Mixture"}, None),
        ({"first": {"name": "NSF", "transforms": 1}, "second": {"name": "Gaussian", "hidden": [4]}}, None),
        ({"first": {"name": "Vamp", "components": 3}, "second": "Gaussian"}, {"first": "Gaussian", "second": "Flow"}),
        ({"first": {"name": "Gaussian", "context": 0}, "second": "Gaussian"}, None),
        ({"first": {"name": "Unconditional", "part": "Gaussian"}, "second": "Gaussian"}, None),
        ({"first": "Gaussian", "second": "Gaussian", "context": 0}, None),
    ],
)
@pytest.mark.parametrize("classes", [None, CLASSES])
def test_chains_by_name_survive_json(prior, encoder, classes):
    options = {"prior": {"name": "Chain", **prior}, "hidden": (8,)}
    if encoder is not None:
        options["encoder"] = {"name": "Chain", **encoder}
    vae = pv.vae(IMAGE, 4, **options) if classes is None else pv.cvae(IMAGE, 4, classes, **options)
    config = presets.to_dict(vae)
    other = presets.build(json.loads(json.dumps(config)))
    assert str(other) == str(vae)
    assert presets.to_dict(other) == config
    other.load_state_dict(vae.state_dict())
    y = None if classes is None else torch.arange(classes)
    z = vae.prior_given(y).sample()
    torch.testing.assert_close(other.prior_given(y).log_prob(z), vae.prior_given(y).log_prob(z))
    if "context" in prior:
        assert isinstance(vae.prior, Unconditional) == (classes is not None)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "Chain"},
        {"name": "Chain", "first": "Gaussian"},
        {"name": "Chain", "first": "Gaussian", "second": 3},
        {"name": "Chain", "first": "Gaussian", "second": "Gausian"},
        {"name": "Chain", "first": "Gaussian", "second": "Gaussian", "third": "Gaussian"},
        {"name": "Chain", "first": {"features": 1}, "second": "Gaussian"},
    ],
    ids=str,
)
def test_broken_chains_by_name(spec):
    with pytest.raises(ConfigError, match="expected"):
        pv.vae(IMAGE, 4, prior=spec)
    with pytest.raises(ConfigError, match="expected"):
        presets.make("prior", spec)


def test_a_chain_is_a_normal_mixture_where_one_is_asked_for():
    assert isinstance(priors.Mixture(2)(None), NormalMixture)
    # As is a VampPrior of Gaussians, whose components all rows share, in a plate too.
    vamp = pv.vae(IMAGE, 2, prior={"name": "Vamp", "components": 3}, hidden=(4,)).prior(None)
    assert isinstance(vamp, NormalMixture)
    assert vamp.expand([5])._shared is not None

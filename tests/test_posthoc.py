"""A prior after the fact: where it must end, and what it must leave alone."""

import pytest
import torch
from ppca import Ppca
from torch import nn
from torch.distributions import MultivariateNormal

import ppl_vae as pv
from ppl_vae.distributions import zuko
from ppl_vae.errors import CheckpointError, ConfigError, NoDensityError, PartError


def aggregate(vae, x, y=None):
    """Mean and variance of z ~ q(z | x, y) over the data: by the law of total variance."""
    q = vae.encode(x, y).base_dist
    return q.loc.mean(0), q.scale.square().mean(0) + q.loc.var(0, correction=0)


def test_a_gaussian_ends_at_the_moments_of_the_aggregate_posterior():
    truth = Ppca()
    x, _ = truth.draw(500)
    vae = truth.vae(shift=2.0, stretch=1.5)
    options = {"epochs": 400, "batch_size": 500, "lr": lambda epoch: 0.05 * 0.985**epoch, "progress": False}
    new = pv.fit_prior(vae, x, pv.priors.Gaussian(2).double(), **options)
    loc, variance = aggregate(vae, x)
    # One draw of z a row and step: what is left of the noise after the rate has fallen is below a hundredth.
    torch.testing.assert_close(new.prior.loc, loc, rtol=0, atol=0.03)
    torch.testing.assert_close(new.prior.log_variance.exp(), variance, rtol=0.03, atol=0)


def test_a_conditional_prior_ends_at_the_moments_of_each_class():
    truth = Ppca(classes=3)
    x, y = truth.draw(600)
    vae = truth.vae(shift=2.0)
    options = {"epochs": 400, "batch_size": 600, "lr": lambda epoch: 0.05 * 0.985**epoch, "progress": False}
    new = pv.fit_prior(vae, (x, y), pv.priors.Gaussian(2, 3, hidden=()).double(), **options)
    for label in range(3):
        loc, variance = aggregate(vae, x[y == label], y[y == label])
        p = new.prior_given(label).base_dist
        torch.testing.assert_close(p.loc, loc, rtol=0, atol=0.04)
        torch.testing.assert_close(p.scale.square(), variance, rtol=0.05, atol=0)


@pytest.mark.parametrize("prior", ["MAF", "Gaussian", {"name": "Mixture", "components": 3}], ids=str)
def test_a_named_prior_has_the_precision_of_the_model(prior):
    x, y = (torch.rand(20, 4, dtype=torch.float64) < 0.5).double(), torch.arange(20) % 3
    new = pv.fit_prior(pv.cvae((4,), 2, 3).double(), (x, y), prior, epochs=1, progress=False)
    assert {p.dtype for p in new.parameters()} == {torch.float64}
    assert new.sample(2, y=1).dtype == torch.float64


def test_a_model_that_is_more_than_its_parts_is_refused():
    vae = pv.SemiSupervised(pv.cvae((4,), 2, 3), pv.encoders.Classifier(3, (4,)))
    with pytest.raises(PartError, match="the VAE inside"):
        pv.fit_prior(vae, (torch.rand(20, 4).round(), torch.arange(20) % 3), "MAF", progress=False)


def test_a_condition_that_does_not_say_its_size_is_not_dropped():
    one_hot = pv.OneHot(3)
    encoder = pv.Unconditional(pv.encoders.Gaussian(2, (4,)))
    likelihood = pv.Unconditional(pv.likelihoods.Bernoulli((4,), 2))
    vae = pv.VAE(pv.priors.Standard(2), likelihood, encoder, condition=lambda y: one_hot(y))
    data, options = ((torch.rand(20, 4) < 0.5).float(), torch.arange(20) % 3), {"epochs": 1, "progress": False}
    with pytest.raises(ConfigError, match=r"'context': n"):
        pv.fit_prior(vae, data, "Gaussian", **options)
    assert pv.fit_prior(vae, data, {"name": "Gaussian", "context": 3}, **options).prior.context == 3
    for ignoring in ({"name": "Gaussian", "context": 0}, {"name": "Unconditional", "part": "Gaussian"}):
        assert isinstance(pv.fit_prior(vae, data, ignoring, **options).prior, pv.Unconditional)


@pytest.mark.parametrize("prior", ["GMM", "MAF", {"name": "Gaussian"}], ids=str)
def test_it_raises_the_elbo_and_leaves_the_rest_alone(prior, device):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(8 + 3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
    vae = pv.cvae((8,), 2, 3, likelihood="Gaussian", encoder=pv.encoders.Gaussian(2, (8,), 3, network=body))
    vae.beta = 0.25
    truth = Ppca(classes=3)
    x, y = truth.draw(300)
    x = x.float()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    flags = [p.requires_grad for p in vae.parameters()]
    vae.to(device)
    new = pv.fit_prior(vae, (x, y), prior, epochs=30, lr=0.01, device=device.type, progress=False)
    # Nothing but which labels training has shown.
    changed = [key for key, value in vae.state_dict().items() if not torch.equal(value.cpu(), before[key])]
    assert changed == ["condition.seen"]
    assert [p.requires_grad for p in vae.parameters()] == flags
    assert all(getattr(new, kind) is getattr(vae, kind) for kind in ("encoder", "likelihood", "condition"))
    assert (vae.beta, new.beta) == (0.25, 0.25)

    def gain(model):
        torch.manual_seed(1)
        return -torch.stack(pv.objectives.elbo_terms(model, x, y, samples=20)).sum(0).mean().item()

    assert gain(new) > gain(vae) + 0.05
    assert new.sample(2, y=1).shape == (2, 8)


def test_an_autoencoder_becomes_generative():
    torch.manual_seed(0)
    ae = pv.ae((4,), 2, hidden=(8,))
    with pytest.raises(NoDensityError):
        ae.sample(3)
    x = torch.randn(128, 4)
    new = pv.fit_prior(ae, x, {"name": "GMM", "components": 4}, epochs=100, batch_size=16, lr=0.01, progress=False)
    assert new.sample(3).shape == (3, 4)
    codes = ae.embed(x)
    one = MultivariateNormal(codes.mean(0), codes.T.cov())
    # Four components have room for what one Gaussian, fitted in closed form, says of the codes.
    assert new.prior_given().log_prob(codes).mean() > one.log_prob(codes).mean()
    z = new.prior_given().sample((4000,))
    torch.testing.assert_close(z.quantile(0.5, dim=0), codes.quantile(0.5, dim=0), rtol=0, atol=0.1)
    with pytest.raises(NoDensityError, match="point"):
        new.log_prob(x)
    with pytest.raises(NoDensityError):
        ae.sample(3)


def test_it_is_saved_and_loaded_as_any_model(tmp_path):
    ae = pv.ae((4,), 2, hidden=(8,))
    new = pv.fit_prior(ae, torch.randn(64, 4), "MAF", epochs=1, progress=False)
    pv.save(new, tmp_path / "model")
    other = pv.load(tmp_path / "model")
    samples = []
    for model in (new, other):
        torch.manual_seed(0)
        samples.append(model.sample(5))
    assert torch.equal(*samples)


def test_errors_say_the_way_out():
    vae, x = pv.vae((4,), 2), torch.zeros(8, 4)
    with pytest.raises(PartError, match="parameters of its own"):
        pv.fit_prior(vae, x, "Standard")
    with pytest.raises(PartError, match="parameters of its own"):
        pv.fit_prior(vae, x, lambda c: zuko.distributions.DiagNormal(torch.zeros(2), torch.ones(2)))
    with pytest.raises(ConfigError, match="beta"):
        pv.fit_prior(vae, x, "MAF", beta=2.0)
    with pytest.raises(ConfigError, match="did you mean 'GMM'"):
        pv.fit_prior(vae, x, "GMN")
    assert all(p.requires_grad for p in vae.parameters())


def test_the_condition_says_the_width_and_modes_come_back():
    vae = pv.cvae((4,), 2, 3, encoder={"name": "Gaussian", "context": 0})
    vae.train()
    x, y = torch.randint(2, (60, 4)).float(), torch.arange(60) % 3
    new = pv.fit_prior(vae, (x, y), "Gaussian", epochs=1, progress=False)
    assert new.prior.context == 3
    assert all(module.training for module in vae.modules())
    function = pv.VAE(vae.prior, vae.likelihood, lambda x, c: vae.encoder(x, c), vae.condition)
    assert pv.fit_prior(function, (x, y), "Gaussian", epochs=1, progress=False).prior.features == 2


@pytest.mark.parametrize("prior", ["GMM", {"name": "Vamp", "components": 5}], ids=["GMM", "Vamp"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_the_mode_of_the_one_it_was_given(training, prior):
    vae, x = pv.vae((4,), 2), torch.randint(2, (60, 4)).float()
    vae.train(training)
    new = pv.fit_prior(vae, x, prior, epochs=1, progress=False)
    assert {module.training for module in (*new.modules(), *vae.modules())} == {training}
    # A part that the caller has set by itself, as a frozen network with batch statistics, stays.
    vae.encoder.train(not training)
    new = pv.fit_prior(vae, x, "GMM", epochs=1, progress=False)
    assert {module.training for module in vae.encoder.modules()} == {not training}
    assert {module.training for module in (new, *new.prior.modules(), *new.likelihood.modules())} == {training}


def test_a_model_is_not_moved_behind_its_back(monkeypatch):
    vae, x = pv.vae((4,), 2), torch.zeros(8, 4)
    for device in ("meta", torch.device("meta")):
        with pytest.raises(ConfigError, match=r"own, cpu, .* got meta: move the model first, vae\.to\('meta'\)"):
            pv.fit_prior(vae, x, "Gaussian", epochs=1, device=device, progress=False)
    for device in ("cpu", "cpu:0", torch.device("cpu", 0)):
        pv.fit_prior(vae, x, "Gaussian", epochs=1, device=device, progress=False)
    assert {t.device.type for t in vae.state_dict().values()} == {"cpu"}
    # Where there is a GPU, it is what "auto" means.
    monkeypatch.setattr(
        "ppl_vae.posthoc.find_device", lambda device: torch.device("meta" if device == "auto" else device)
    )
    with pytest.raises(ConfigError, match="got meta"):
        pv.fit_prior(vae, x, "Gaussian", epochs=1, device="auto", progress=False)


def test_a_vamp_after_the_fact_trains_its_pseudo_inputs_alone():
    torch.manual_seed(0)
    x, y = torch.rand(60, 1, 4, 4).round(), torch.arange(60) % 3
    vae = pv.cvae((1, 4, 4), 2, 3, hidden=(8,))
    pv.fit(vae, (x, y), epochs=2, progress=False)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    new = pv.fit_prior(vae, (x, y), {"name": "Vamp", "components": 5}, epochs=10, lr=0.05, progress=False)
    assert new.prior.encoder is vae.encoder
    assert new.prior.classes == 3
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())
    started = new.prior.pseudo_inputs
    assert (torch.cdist(started.flatten(1), x.flatten(1)).min(1).values > 0.01).all()


def test_a_models_own_prior_is_not_fitted_behind_its_back():
    vae = pv.vae((4,), 2, prior="Mixture")
    with pytest.raises(PartError, match="the model's own"):
        pv.fit_prior(vae, torch.zeros(8, 4), vae.prior)


def test_a_prior_that_goes_on_leaves_the_model_that_it_is_fitted_to(tmp_path):
    x, vae = torch.rand(20, 4).round(), pv.vae((4,), 2)
    options = {"checkpoint": tmp_path, "resume": True, "progress": False}
    one = pv.fit_prior(vae, x, "GMM", epochs=1, **options)
    two = pv.fit_prior(vae, x, "GMM", epochs=2, **options)
    assert [p.tolist() for p in one.prior.parameters()] != [p.tolist() for p in two.prior.parameters()]
    pv.fit(vae, x, epochs=1, progress=False)
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"expected the model that its prior was fitted to.*encoder\.network"):
        pv.fit_prior(vae, x, "GMM", epochs=3, **options)
    assert all(torch.equal(vae.state_dict()[k], v) for k, v in before.items())
    pv.fit_prior(vae, x, "GMM", epochs=1, **options | {"resume": False, "overwrite": True})


def test_running_statistics_of_what_is_shared_stay(tmp_path):
    body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    vae = pv.vae((4,), 2, encoder=pv.encoders.Gaussian(2, (4,), network=body))
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    pv.fit_prior(vae, torch.rand(20, 4).round(), "GMM", epochs=2, progress=False)
    assert [k for k, v in vae.state_dict().items() if not torch.equal(before[k], v)] == []

"""Parts that do not go together: each is a typed error that says the way out, and none is trained in silence."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro
from pyro.infer import Trace_ELBO

import ppl_vae as pv
from ppl_vae.capture import CapturedSVI
from ppl_vae.distributions import zuko
from ppl_vae.errors import ConfigError, DataError, NoDensityError, PartError, PplVaeError, ShapeError
from ppl_vae.model.masking import given

X, Y = torch.zeros(6, 4), torch.arange(6) % 3
flows = zuko.flows


def cvae(prior, encoder=None):
    return pv.VAE(
        prior, pv.likelihoods.Bernoulli((4,), 2, 3), encoder or pv.encoders.Gaussian(2, (4,), 3), pv.OneHot(3)
    )


def loss(vae, *data):
    return Trace_ELBO().loss(vae.model, vae.guide, *data)


def unlabelled(prior, encoder=None, likelihood=None):
    likelihood = likelihood or pv.likelihoods.Bernoulli((4,), 2)
    return pv.VAE(prior, likelihood, encoder or pv.encoders.Gaussian(2, (4,)))


def on_spheres(at=(0, 1)):
    """A chain of two encoders, of which those at these places draw points on a circle."""
    kinds = [pv.encoders.PowerSpherical if i in at else pv.encoders.Gaussian for i in range(2)]
    return pv.Chain(kinds[0](2, (4,)), kinds[1](2, (4,), 2))


CASES = {
    "a prior over another latent": (
        lambda: loss(cvae(lambda c: dist.Normal(c.new_zeros(5), 1.0).to_event(1)), X, Y),
        ShapeError,
        r"latent \(2,\).*over \(5,\).*same number of features",
    ),
    "a prior that forgot its event dimension": (
        lambda: loss(cvae(lambda c: dist.Normal(c.new_zeros(len(c)), 1.0)), X, Y),
        ShapeError,
        r"latent \(2,\).*over \(\).*to_event\(1\)",
    ),
    "a part of another size, at once": (
        lambda: cvae(pv.priors.Gaussian(5, 3)),
        ShapeError,
        r"one number of latent features.*5 in the prior.*2 in the encoder",
    ),
    "a context of the wrong width": (
        lambda: loss(cvae(pv.priors.Gaussian(2, 10)), X, Y),
        ShapeError,
        r"context \(\*, 10\), got \(6, 3\)",
    ),
    "an unconditional flow given y": (
        lambda: loss(cvae(flows.NSF(2, transforms=1, hidden_features=(8,))), X, Y),
        ShapeError,
        r"context \(6, 3\).*context=3.*Unconditional",
    ),
    "an unconditional mixture flow given y": (
        lambda: loss(cvae(flows.GMM(2, components=3)), X, Y),
        ShapeError,
        r"context \(6, 3\).*context=3.*Unconditional",
    ),
    "a conditional flow of another width": (
        lambda: loss(cvae(flows.MAF(2, 10, transforms=1, hidden_features=(8,))), X, Y),
        ShapeError,
        r"context \(6, 3\).*context=3",
    ),
    "grey pixels for Bernoulli": (
        lambda: pv.fit(pv.vae((4,), 2), X + 0.5, epochs=1, progress=False),
        DataError,
        r"Bernoulli.*grey.*binarise",
    ),
    "counts that are not whole": (
        lambda: pv.fit(pv.vae((4,), 2, likelihood="Poisson"), X + 0.5, epochs=1, progress=False),
        DataError,
        r"Poisson.*whole counts.*fractions",
    ),
    "more pseudo-inputs than rows": (
        lambda: pv.fit(pv.vae((4,), 2, prior={"name": "Vamp", "components": 7}), X, epochs=1, progress=False),
        ConfigError,
        r"Vamp.*6 rows for 7.*components to 6",
    ),
    "a sphere with a Gaussian encoder": (
        lambda: loss(cvae(pv.priors.Sphere(2)), X, Y),
        PartError,
        r"support of the prior \(SphericalUniform\).*PowerSpherical",
    ),
    "all of space with points on a sphere": (
        lambda: loss(cvae(pv.priors.Gaussian(2, 3), pv.encoders.PowerSpherical(2, (4,), 3)), X, Y),
        PartError,
        r"sphere.*priors.Sphere",
    ),
    "a chain of spheres under all of space": (
        lambda: loss(unlabelled(pv.priors.Gaussian(4), on_spheres(), likelihood=pv.likelihoods.Bernoulli((4,), 4)), X),
        PartError,
        r"sphere.*priors.Sphere",
    ),
    "a chain with its sphere at the other place": (
        lambda: loss(
            unlabelled(
                pv.Chain(pv.priors.Sphere(2), lambda c: dist.Normal(c.new_zeros(*c.shape[:-1], 2), 1.0).to_event(1)),
                on_spheres((1,)),
                likelihood=pv.likelihoods.Bernoulli((4,), 4),
            ),
            X,
        ),
        PartError,
        r"sphere.*priors.Sphere.*same place",
    ),
    "grey pixels in a stock step": (lambda: loss(pv.vae((4,), 2), X + 0.5), DataError, r"Bernoulli.*grey.*binarise"),
    "counts that are not whole in a stock step": (
        lambda: loss(pv.vae((4,), 2, likelihood="Poisson"), X + 0.5),
        DataError,
        r"Poisson.*whole counts.*fractions",
    ),
    "a flow that wants a context given none": (
        lambda: loss(unlabelled(flows.NSF(2, 10, transforms=1, hidden_features=(8,))), X),
        ShapeError,
        r"NSF failed without a context.*condition.*context=0",
    ),
    "a mixture flow that wants a context given none": (
        lambda: loss(unlabelled(flows.GMM(2, 3)), X),
        ShapeError,
        r"GMM failed without a context",
    ),
    "a function of a context given none": (
        lambda: loss(unlabelled(lambda c: dist.Laplace(c.new_zeros(2), 1.0).to_event(1)), X),
        ShapeError,
        r"failed without a context",
    ),
    "a prior over numbers above zero": (
        lambda: loss(cvae(lambda c: dist.Gamma(c.new_ones(2), 1.0).to_event(1)), X, Y),
        PartError,
        r"outside the support of the prior \(Gamma\)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_misfit_says_the_way_out(name):
    make, error, message = CASES[name]
    with pytest.raises(error, match=message):
        make()


CAPTURED = {
    "an unconditional flow given y": (lambda: cvae(flows.NSF(2, transforms=1, hidden_features=(8,))), (X, Y)),
    "a sphere with a Gaussian encoder": (lambda: cvae(pv.priors.Sphere(2)), (X, Y)),
    "grey pixels in a stock step": (lambda: pv.vae((4,), 2), (X + 0.5,)),
    "counts that are not whole in a stock step": (lambda: pv.vae((4,), 2, likelihood="Poisson"), (X + 0.5,)),
}


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_steps_say_it_too(name):
    make, data = CAPTURED[name]
    vae = make()
    svi = CapturedSVI(vae.model, vae.guide, torch.optim.Adam, Trace_ELBO(), backend="graph")
    with pytest.raises(PplVaeError, match=CASES[name][2]):
        svi.step(*data)


MISFITS = {
    "over one feature": (lambda c: dist.Normal(c.new_zeros(1), 1.0).to_event(1), None, ShapeError, r"latent \(2,\)"),
    "over five features": (lambda c: dist.Normal(c.new_zeros(5), 1.0).to_event(1), None, ShapeError, r"over \(5,\)"),
    "without an event": (lambda c: dist.Normal(c.new_zeros(2), 1.0), None, ShapeError, r"over \(\).*to_event"),
    "a sphere under a Gaussian": (pv.priors.Sphere(2), None, PartError, "outside the support"),
    "a Gaussian under a sphere": (
        pv.Unconditional(pv.priors.Standard(2)),
        pv.encoders.PowerSpherical(2, (4,), 3),
        PartError,
        r"take priors.Sphere",
    ),
}
ASKED = {
    "log_prob": lambda vae: vae.log_prob(X, Y, samples=3),
    "evaluate": lambda vae: pv.evaluate(vae, X, Y, samples=3, draws=2),
    "log_likelihood": lambda vae: pv.evaluation.log_likelihood(vae, X, Y, samples=3, progress=False),
    "elbo_terms": lambda vae: pv.objectives.elbo_terms(vae, X, Y),
    "impute": lambda vae: vae.impute(X, Y, mask=X == 0),
    "sample": lambda vae: vae.sample(3, Y),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("name", MISFITS)
def test_a_prior_that_does_not_fit_is_seen_without_training(name, asked):
    prior, encoder, error, message = MISFITS[name]
    if asked == "sample" and error is PartError:
        assert ASKED[asked](cvae(prior, encoder)).shape == (3, 6, 4)  # A prior alone is what it says.
        return
    with pytest.raises(error, match=message):
        ASKED[asked](cvae(prior, encoder))


def test_the_ways_out_work():
    x = torch.ones(6, 4)
    assert loss(cvae(pv.Unconditional(flows.NSF(2, transforms=1, hidden_features=(8,)))), x, Y) > 0
    assert loss(cvae(flows.GMM(2, 3, components=3)), x, Y) > 0
    assert loss(cvae(pv.priors.Sphere(2), pv.encoders.PowerSpherical(2, (4,), 3)), x, Y) > 0
    # A mixture of posteriors on the sphere has its mass there, too; and a chain, where its parts have.
    on_sphere = pv.encoders.PowerSpherical(2, (4,), 3)
    assert loss(cvae(pv.priors.Vamp(on_sphere, 4), on_sphere), x, Y) > 0
    circles = pv.Chain(pv.priors.Sphere(2), pv.Unconditional(pv.priors.Sphere(2)))
    assert loss(unlabelled(circles, on_spheres(), likelihood=pv.likelihoods.Bernoulli((4,), 4)), x) > 0


def test_a_prior_with_sites_of_its_own_is_tried_out_of_sight():
    def prior(c):
        w = pyro.sample("w", dist.Normal(c.new_zeros(()), 1.0))
        return dist.Normal(w.unsqueeze(-1) * c.new_ones(2), 1.0).to_event(1)

    vae = cvae(prior)
    assert set(poutine.trace(vae.model).get_trace(torch.ones(6, 4), Y).nodes) >= {"w", "z", "x"}


def test_only_the_sphere_of_a_chain_is_gone_back_to():
    encoder = on_spheres(at=(1,))
    vae = pv.VAE(pv.priors.Standard(4), pv.likelihoods.Bernoulli((4,), 4), encoder)
    vae.prior = pv.Chain(pv.priors.Standard(2), pv.priors.Sphere(2))
    z = vae.embed(X, draws=3)
    assert (z[:, 2:].norm(dim=-1) < 1).all()
    torch.manual_seed(0)
    z = vae.embed(X)
    on = torch.cat([z[:, :2], torch.nn.functional.normalize(z[:, 2:], dim=-1)], -1)
    torch.manual_seed(0)
    torch.testing.assert_close(vae.reconstruct(X), vae.decode(on).mean)


def test_a_point_beside_a_density_is_refused_and_two_points_are_one():
    parts = pv.encoders.Delta(1, (4,), 3), pv.encoders.Gaussian(1, (4,), 4)
    with pytest.raises(PartError, match="one of each"):
        loss(cvae(pv.priors.Gaussian(2, 3), pv.Chain(*parts)), X, Y)

    class Features(pv.encoders.Delta):
        def from_raw(self, raw):
            return dist.Delta(raw).to_event(1)

    for kind in (pv.encoders.Delta, Features):
        both = pv.Chain(kind(1, (4,), 3), kind(1, (4,), 4))
        ae = pv.VAE(None, pv.likelihoods.Bernoulli((4,), 2, 3), both, pv.OneHot(3))
        assert loss(ae, torch.ones(6, 4), Y) > 0
        with pytest.raises(NoDensityError):
            ae.log_prob(torch.ones(6, 4), Y)


def test_a_chain_hands_the_mask_on():
    halves = pv.encoders.Gaussian(1, (2, 2, 2)), pv.encoders.Gaussian(1, (2, 2, 2), 1)
    chain = pv.Chain(*(pv.encoders.Masked(half) for half in halves))
    vae = pv.VAE(pv.priors.Standard(2), pv.likelihoods.Bernoulli((1, 2, 2), 2), chain)
    x = torch.zeros(5, 1, 2, 2)
    assert given(vae.encoder, x, x == 0).shape == (5, 2, 2, 2)
    lopsided = pv.Chain(pv.encoders.Masked(halves[0]), pv.encoders.Gaussian(1, (1, 2, 2), 1))
    with pytest.raises(PartError, match="both encoders to be Masked"):
        pv.VAE(vae.prior, vae.likelihood, lopsided).guide(x, mask=x == 0)


def test_pyros_own_wrapper_of_a_flow_is_a_prior():
    flow = flows.NSF(2, transforms=1, hidden_features=(8,))
    vae, x = unlabelled(lambda c: ZukoToPyro(flow())), torch.ones(6, 4)
    expected = unlabelled(flow, vae.encoder, vae.likelihood)
    losses = []
    for each in (vae, expected):
        torch.manual_seed(0)
        losses.append(loss(each, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert vae.sample(3).shape == (3, 4)

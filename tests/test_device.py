"""The whole way on one device: training, state, measurements. ``--device cuda`` takes it on a GPU."""

import math
import warnings

import pytest
import torch
from ppca import Ppca, limit

import ppl_vae as pv
from ppl_vae.capture import CapturedSVI
from ppl_vae.devices import find_device
from ppl_vae.errors import ConfigError, NonFiniteError


def digits(binarize="dynamic", **options):
    torch.manual_seed(0)
    data = pv.data.load("digits", binarize=binarize).head(150)
    return pv.cvae(data.x_shape, 3, 10, hidden=(8,), **options), data


def fitted(vae, data, device, **options):
    settings = {"epochs": 8, "batch_size": 32, "lr": lambda e: 1e-2 / e, "beta": pv.objectives.warmup(3), "clip": 100.0}
    return pv.fit(vae, data.train, valid=data.valid, device=device, progress=False, **settings | options)


@pytest.mark.parametrize(
    ("capture", "prior"), [("cudagraph", "Gaussian"), ("cudagraph", "Vamp"), ("cudagraph-inductor", "Gaussian")]
)
def test_steps_that_stay_on_the_device_are_stock_steps(capture, prior, device):
    """150 rows make a last batch of another shape; the rate, β and the pixels change as they do in stock training."""
    # A compiler reorders sums, and twenty steps of Adam make more of it.
    tolerance = 1e-5 if capture == "cudagraph" else 1e-3
    histories = []
    for backend in ("off", capture):
        vae, data = digits(prior={"name": prior, "components": 5} if prior == "Vamp" else prior)
        histories.append(fitted(vae, data, device, capture=backend))
    assert histories[1].info["capture"] == capture
    assert histories[1].info["device"] == device.type
    for name in ("loss", "neg_elbo", "reconstruction", "kl", "valid_neg_elbo"):
        assert histories[1].column(name) == pytest.approx(histories[0].column(name), rel=tolerance)


@pytest.mark.parametrize("capture", ["off", "cudagraph"])
def test_a_resumed_run_is_the_one_that_was_not_interrupted(capture, device, tmp_path):
    """Bit for bit, on either device."""
    whole, data = digits()
    fitted(whole, data, device, capture=capture)
    vae, _ = digits()

    def interrupt(vae, history):
        return len(history) == 3

    fitted(vae, data, device, capture=capture, checkpoint=tmp_path, callbacks=interrupt)
    vae, _ = digits()
    history = fitted(vae, data, device, capture=capture, checkpoint=tmp_path, resume=True)
    assert len(history) == 8
    for (name, a), b in zip(whole.state_dict().items(), vae.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_goes_from_one_device_to_another_and_back(device, tmp_path):
    """Moments, weights and history go with it; on another kind of device it says that its numbers are others."""
    vae, data = digits()
    for end, where in enumerate(("cpu", device, "cpu"), 1):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            history = fitted(vae, data, where, epochs=2 * end, checkpoint=tmp_path, resume=True)
        told = [str(w.message) for w in said if "this training was on" in str(w.message)]
        assert len(told) == (end > 1 and device.type != "cpu")
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert history.column("neg_elbo") == sorted(history.column("neg_elbo"), reverse=True)


@pytest.mark.parametrize("capture", ["graph", "cudagraph"])
def test_a_run_that_is_not_finite_stops_before_the_parameters(capture, device):
    """The rows of one batch are far out; everything is as it was one step before."""
    vae = pv.vae((4,), 2, likelihood="Gaussian", hidden=(8,))
    x = torch.randn(32, 4)
    # Rows in order, so that the seventh batch of the epoch is the one.
    batches = [(x.to(device),) for _ in range(9)]
    batches[6] = (1e30 * batches[6][0],)
    vae.to(device)
    options = {"lr": torch.tensor(1e-3, device=device), "capturable": True} if device.type == "cuda" else {"lr": 1e-3}

    def adam(parameters):
        return torch.optim.Adam(parameters, fused=True, **options)

    states = []
    for steps in (6, 9):
        torch.manual_seed(0)
        twin = pv.vae((4,), 2, likelihood="Gaussian", hidden=(8,)).to(device)
        twin.load_state_dict(vae.state_dict())
        svi = CapturedSVI(twin.model, twin.guide, adam, pv.objectives.Trace_ELBO(), capture)

        def train(svi=svi, steps=steps):
            svi.run(batches[:steps])
            svi.read()

        if steps == 6:
            train()
        else:
            with pytest.raises(NonFiniteError, match=r"step 7: .* site 'z'"):
                train()
        states.append(twin.state_dict())
    assert all(torch.equal(a, states[1][name]) for name, a in states[0].items())


def test_a_run_looks_at_the_program_once_and_gives_the_same_as_steps(device, recording):
    backend, adam = recording
    found = []
    for one_by_one in (True, False):
        torch.manual_seed(0)
        vae = pv.vae((4,), 2, hidden=(8,)).to(device)
        x = torch.rand(40, 4, device=device).round()
        svi = CapturedSVI(vae.model, vae.guide, adam(1e-2), pv.objectives.Trace_ELBO(), backend, check_every=7)
        batches = [(x[i : i + 8],) for i in range(0, 40, 8)] * 5 + [(x[:5],)] * 6
        if one_by_one:
            for batch in batches:
                svi.step(*batch)
        else:
            svi.run(batches)
        sums = svi.read()
        assert (sums["steps"], svi.steps) == (31, 31)
        found.append((sums["loss"], vae.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert all(torch.equal(a, found[1][1][name]) for name, a in found[0][1].items())


def test_what_a_callback_changes_is_found_when_training_goes_on(device):
    """Steps that stay on the device are compared seldom, but when a number that the program can reach has changed."""
    vae, data = digits()

    def narrow(vae, history):
        vae.encoder.clamp = (-14.0, -13.0)

    with pytest.raises(pv.errors.CaptureError, match=r"VAE\.encoder\.clamp \(was \(-14\.0, 14\.0\), is"):
        # All batches of one shape, which is not compared any more by the end of the first epoch.
        fitted(vae, data, device, capture="cudagraph", callbacks=narrow, batch_size=30)


@pytest.mark.parametrize("capture", ["off", "graph"])
def test_log_likelihoods_are_exact_where_the_guide_is(capture, device):
    truth = Ppca(classes=3, seed=0)
    x, y = truth.draw(30)
    vae = truth.vae().to(device)
    found = pv.evaluation.log_likelihood(vae, x, y, samples=40, capture=capture, progress=False)
    torch.testing.assert_close(found.values, truth.log_prob(x, y), rtol=1e-9, atol=1e-9)
    assert found.standard_error.max() < 1e-6


def test_measurements_are_of_the_model_on_the_device(device):
    """Each against the truth, with one seed: log p to α = 1e-6, means to twenty standard errors, bounds to half a nat.

    A guide a tenth too wide has weights of light tails.
    """
    truth = Ppca(classes=3, seed=0, strengths=(0.6, 0.4))
    x, y = truth.draw(60)
    log_p = truth.log_prob(x, y)
    vae = truth.vae(stretch=1.1).to(device)
    found = pv.evaluation.log_likelihood(vae, x, y, samples=2000, progress=False)
    z = (found.values - log_p) / found.standard_error
    assert z.abs().max() < limit(len(x))
    q = truth.posterior(x, y).base_dist
    exact = truth.elbo(x, q.loc, 1.1 * q.scale, y).mean().item()
    measured = pv.evaluate(vae, x, y, samples=10, draws=200)
    assert measured["neg_elbo"] == pytest.approx(-exact, abs=0.2)
    told = pv.evaluation.diagnostics(vae, x, y, draws=20)
    assert told["neg_elbo"] == pytest.approx(-exact, abs=0.5)
    below = pv.evaluation.bounds(vae, x[:4], y[:4], temperatures=20, chains=4, leapfrog=2)
    torch.testing.assert_close(below.lower.double().cpu(), log_p[:4], atol=0.5, rtol=0)
    assert pv.evaluation.calibration(truth.vae().to(device), y=torch.arange(3), replicates=300).passed
    use = pv.evaluation.label_use(vae, x, y, samples=50)
    assert math.isfinite(use["accuracy"])


def test_the_audit_passes_on_the_device(device):
    vae, data = digits("threshold")
    result = pv.evaluation.audit(vae.to(device), data.test.x[:20], data.test.y[:20], particles=20)
    assert result.passed, result


def test_what_was_saved_there_is_the_same_model_on_a_cpu(device, tmp_path):
    vae, data = digits()
    fitted(vae, data, device, epochs=2)
    pv.save(vae, tmp_path)
    loaded = pv.load(tmp_path, device="cpu")
    x, y = data.valid.x[:7].round(), data.valid.y[:7]
    z = torch.randn(7, 3)
    torch.testing.assert_close(
        loaded.likelihood(z, loaded.condition(y)).log_prob(x),
        vae.likelihood(z.to(device), vae.condition(y.to(device))).log_prob(x.to(device)).cpu(),
        rtol=1e-5,
        atol=1e-4,
    )
    assert loaded.sample(5, y=3).device.type == "cpu"
    assert vae.sample(5, y=3).device.type == device.type


def test_judged_samples_and_pictures_come_from_the_device(device, tmp_path):
    vae, data = digits("threshold")
    fitted(vae, data, device, epochs=2)
    train, test = ((split.x, split.y) for split in (data.train, data.test))
    found = pv.evaluation.quality(vae, train, test, steps=20)
    assert 0 <= found["accuracy"] <= 1
    drawn = pv.plots.samples(vae.sample(4, y=[1, 2]), [1, 2])
    pv.plots.save(drawn, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
def test_a_device_without_double_precision_is_refused(error, monkeypatch):
    """As MPS is, which says so with a TypeError of its own in the middle of a measurement."""

    def empty(*shape, dtype=torch.float32, device=None):
        if dtype == torch.float64:
            raise error("the MPS framework doesn't support float64")
        return original(*shape, dtype=dtype)

    original = torch.empty
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ConfigError, match=r"device: expected .* has double precision, got 'mps': the MPS framework"):
        find_device("mps")

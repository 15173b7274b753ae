"""Labels that are missing are summed out: against Pyro's own enumeration, against sums by hand, and in training."""

import copy
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch.nn.functional import one_hot

import ppl_vae as pv
from ppl_vae.capture import CapturedSVI
from ppl_vae.errors import CheckpointError, ConfigError, DataError, LabelError, PartError, ShapeError
from ppl_vae.objectives import Analytic

LABELS, D, N = 3, 4, 6
X = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1]]).double()
MIXED = torch.tensor([-1, 2, 0, -1, 1, -1])


def semisupervised(**options):
    vae = pv.cvae((D,), 2, LABELS, hidden=(5,)).double()
    classifier = pv.encoders.Classifier(LABELS, (D,), hidden=(5,)).double()
    return pv.SemiSupervised(vae, classifier, **options)


def loss_and_gradients(elbo, model, guide, parameters, *args):
    torch.manual_seed(7)
    loss = elbo.differentiable_loss(model, guide, *args)
    return loss, torch.autograd.grad(loss, parameters, allow_unused=True)


def by_hand(ss, x, y, alpha):
    """−ELBO of the mixed batch, written as the formulas are: a sum over labels for every row."""
    torch.manual_seed(7)
    noise = torch.normal(torch.zeros(LABELS, len(x), 2).double(), torch.ones(LABELS, len(x), 2).double())
    log_q = ss.classify(x).logits
    total = 0.0
    for i, label in enumerate(y.tolist()):
        for k in range(LABELS) if label < 0 else [label]:
            c = one_hot(torch.tensor(k), LABELS).double()
            q, p = ss.encoder(x[i], c), ss.prior(c)
            z = q.base_dist.loc + q.base_dist.scale * noise[k, i]
            elbo = ss.likelihood(z, c).log_prob(x[i]) + p.log_prob(z) - q.log_prob(z) - math.log(LABELS)
            if label < 0:
                total = total + log_q[i, k].exp() * (elbo - log_q[i, k])
            else:
                total = total + elbo + alpha * log_q[i, k]
    return -total


def test_all_labels_missing_is_pyros_enumeration():
    ss = semisupervised()

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(LABELS).double()))
            c = one_hot(y, LABELS).double()
            z = pyro.sample("z", ss.prior(c))
            pyro.sample("x", ss.likelihood(z, c), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", ss.classify(x), infer={"enumerate": "parallel"})
            pyro.sample("z", ss.encoder(x, one_hot(y, LABELS).double()))

    parameters = list(ss.parameters())
    expected = loss_and_gradients(TraceEnum_ELBO(max_plate_nesting=1), model, guide, parameters, X)
    got = loss_and_gradients(Trace_ELBO(), ss.model, ss.guide, parameters, X)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("y", [MIXED, MIXED.abs(), torch.full((N,), -1)], ids=["mixed", "labelled", "unlabelled"])
def test_a_batch_is_the_sum_of_its_rows_by_hand(y, alpha):
    ss = semisupervised(alpha=alpha)
    parameters = list(ss.parameters())
    got = loss_and_gradients(Trace_ELBO(), ss.model, ss.guide, parameters, X, y)
    expected = by_hand(ss, X, y, alpha)
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    torch.testing.assert_close(got[0], expected, rtol=1e-10, atol=0)
    for g, e in zip(got[1], gradients, strict=True):
        # Where the classifier plays no part its gradient by hand is none, and here zero.
        torch.testing.assert_close(g, torch.zeros_like(g) if e is None else e, rtol=1e-8, atol=1e-10)


def test_a_prior_of_labels_counts():
    probs = torch.tensor([0.7, 0.2, 0.1]).double()
    ss = semisupervised()
    even = loss_and_gradients(Trace_ELBO(), ss.model, ss.guide, [ss.classifier.network.body[0].weight], X, MIXED.abs())
    other = pv.SemiSupervised(ss, ss.classifier, labels=lambda c: dist.Categorical(probs))
    uneven = loss_and_gradients(
        Trace_ELBO(), other.model, other.guide, [ss.classifier.network.body[0].weight], X, MIXED.abs()
    )
    expected = -(probs.log()[MIXED.abs()] + math.log(LABELS)).sum()
    torch.testing.assert_close(uneven[0] - even[0], expected)


def test_captured_steps_equal_stock(device, recording):
    backend, adam = recording
    ss = semisupervised().to(device)
    twin, losses = copy.deepcopy(ss), []
    stock = SVI(ss.model, ss.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    captured = CapturedSVI(twin.model, twin.guide, adam(0.01), Trace_ELBO(), backend=backend)
    for svi in (stock, captured):
        torch.manual_seed(0)
        losses.append([float(svi.step(X, MIXED.roll(i))) for i in range(8)])
    assert captured.backend == backend
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def test_total_scales_the_whole():
    ss = semisupervised()
    losses = []
    for total in (N, 10 * N):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(ss.model, ss.guide, X, MIXED, total=total))
    assert losses[1] == pytest.approx(10 * losses[0], rel=1e-12)


def test_fit_trains_it_and_reports_the_bound():
    data = pv.data.load("digits")
    x = data.train.x[:300]
    y = data.train.y[:300].clone()
    y[100:] = -1
    torch.manual_seed(0)
    vae = pv.cvae(data.x_shape, 4, 10, hidden=(32,), likelihood="Binomial", levels=17, range=data.range)
    classifier = pv.encoders.Classifier(10, data.x_shape, hidden=(32,), scale=16.0)
    ss = pv.SemiSupervised(vae, classifier, alpha=10.0)
    test, labels = data.test.x, data.test.y

    def accuracy():
        return (ss.classify(test).logits.argmax(-1) == labels).double().mean().item()

    before = accuracy()
    history = pv.fit(ss, (x, y), epochs=40, lr=3e-3, batch_size=50, progress=False)
    # By chance one in ten; a labelled third is enough for most.
    assert before < 0.4
    assert accuracy() > 0.7
    assert history[-1]["neg_elbo"] < history[0]["neg_elbo"] - 10
    assert ss.sample(2, y=3).shape == (2, *data.x_shape)
    # Pyro's loss with β = 1 and α = 0 is what history reports, up to the draws of an epoch.
    quiet = pv.SemiSupervised(ss, classifier, alpha=0.0)
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=2)
    now = elbo.loss(quiet.model, quiet.guide, x, y) / len(x)
    assert history[-1]["neg_elbo"] == pytest.approx(now, abs=2.0)


def test_copying_keeps_the_sum():
    ss = semisupervised()
    other = copy.deepcopy(ss)
    losses = []
    for model in (ss, other):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(model.model, model.guide, X, MIXED))
    assert losses[0] == losses[1]


def test_missing_pixels_and_missing_labels():
    ss = semisupervised()
    mask = torch.tensor([True, True, False, True]).expand(N, D)
    losses = []
    for junk in (0.0, math.nan):
        torch.manual_seed(0)
        x = torch.where(mask, X, junk)
        # The classifier sees what the encoder sees.
        losses.append(Trace_ELBO().loss(ss.model, ss.guide, x, MIXED, mask))
    assert losses[0] == losses[1]


def test_errors_say_the_way_out():
    with pytest.raises(PartError, match=r"conditional on labels.*cvae"):
        pv.SemiSupervised(pv.vae((D,), 2), pv.encoders.Classifier(LABELS, (D,)))
    with pytest.raises(ConfigError, match="alpha"):
        semisupervised(alpha=-1.0)
    with pytest.raises(ShapeError, match=r"3 labels.*one of 2"):
        pv.SemiSupervised(pv.cvae((D,), 2, LABELS), pv.encoders.Classifier(2, (D,)))
    several = pv.vae((D,), 2, condition=pv.conditions.OneHots((3, 2)))
    with pytest.raises(PartError, match=r"one whole number a row.*OneHots"):
        pv.SemiSupervised(several, pv.encoders.Classifier(LABELS, (D,)))
    ss = pv.SemiSupervised(pv.cvae((D,), 2, LABELS), pv.encoders.Gaussian(LABELS, (D,)))
    with pytest.raises(PartError, match="classifier: expected it to return a Categorical, got Independent"):
        ss.classify(X)
    ss = semisupervised()
    with pytest.raises(LabelError, match="−1 where it is missing"):
        ss.check_training(X)
    with pytest.raises(LabelError, match="got -2"):
        ss.check_training(X, MIXED - 1)
    with pytest.raises(LabelError, match="0 … 2"):
        ss.check_training(X, MIXED + 1)
    odd = semisupervised(labels=lambda c: dist.Categorical(torch.ones(7).double()))
    with pytest.raises(PartError, match="over 3 labels"):
        odd.model(X, MIXED)


@pytest.mark.parametrize("bad", [MIXED + 1, MIXED - 1, MIXED.double(), MIXED[:2], MIXED[:, None]], ids=str)
def test_labels_that_are_none_are_refused_by_the_programs(bad):
    with pytest.raises(LabelError, match="expected"):
        Trace_ELBO().loss(semisupervised().model, semisupervised().guide, X, bad)


def test_any_whole_numbers_are_labels():
    ss, losses = semisupervised(), []
    for dtype in (torch.int8, torch.int16, torch.int64):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(ss.model, ss.guide, X, MIXED.to(dtype)))
    assert len(set(losses)) == 1


def test_rows_that_are_none_are_refused():
    ss = semisupervised()
    with pytest.raises(DataError, match="at least one row"):
        ss.guide(X[:0])
    with pytest.raises(ShapeError, match="got a number"):
        ss.guide(X[0, 0])


def test_parts_that_do_not_go_together_are_refused_as_by_a_vae():
    sphere = pv.cvae((D,), 2, LABELS, encoder="PowerSpherical").double()
    classifier = pv.encoders.Classifier(LABELS, (D,)).double()
    with pytest.raises(PartError, match="sphere"):
        pv.SemiSupervised(sphere, classifier).guide(X, MIXED)
    away = pv.cvae((D,), 2, LABELS, prior="Sphere").double()
    ss = pv.SemiSupervised(away, classifier)
    with pytest.raises(PartError, match="support of the prior"):
        Trace_ELBO().loss(ss.model, ss.guide, X, MIXED)
    open_ended = pv.VAE(None, away.likelihood, away.encoder, away.condition)
    with pytest.raises(PartError, match="prior=None"):
        pv.SemiSupervised(open_ended, classifier).guide(X, MIXED)


def test_bounds_that_are_not_linear_are_refused():
    ss = semisupervised()
    for objective in (pv.objectives.IWAE(3, max_plate_nesting=2), pv.objectives.DReG(3, max_plate_nesting=2)):
        with pytest.raises(PartError, match=r"missing labels.*Trace_ELBO"), pyro.validation_enabled(False):
            objective.loss(ss.model, ss.guide, X, MIXED)
    for particles in (
        pv.objectives.IWAE(3),
        pv.objectives.Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
    ):
        with pytest.raises(PartError, match=r"dimension −2.*max_plate_nesting=2"):
            particles.loss(ss.model, ss.guide, X, MIXED)


def test_history_of_labelled_rows_is_that_of_validation():
    ss = semisupervised()
    rows = X.repeat(30, 1), MIXED.abs().repeat(30)
    row = pv.fit(ss, rows, valid=rows, epochs=1, batch_size=20, lr=1e-9, progress=False)[0]
    # Two noisy estimates of one number; log 3, what p(y) would add, is 1.1.
    assert row["neg_elbo"] == pytest.approx(row["valid_neg_elbo"], abs=0.35)
    before = copy.deepcopy(ss.state_dict())
    with pytest.raises(LabelError, match="0 … 2"):
        pv.fit(ss, rows, valid=(X, MIXED), epochs=1, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in ss.state_dict().items())


def test_a_classifier_can_be_told_what_is_seen():
    vae = pv.cvae((1, 2, 2), 2, LABELS)
    part = pv.encoders.Classifier(LABELS, (2, 2, 2), hidden=(5,))
    ss = pv.SemiSupervised(vae, pv.encoders.Masked(part))
    x = torch.zeros(4, 1, 2, 2)
    mask = torch.tensor([True, False, True, True]).reshape(1, 2, 2).expand(4, 1, 2, 2)
    inputs = []
    part.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    ss.guide(x, mask=mask)
    assert torch.equal(inputs[0][:, 1:], mask.float())


def test_audited_and_saved_without_a_name(tmp_path):
    ss = semisupervised()
    with pytest.raises(PartError, match=r"SemiSupervised.*into=vae"):
        pv.presets.to_dict(ss)
    assert pv.audit(ss, X, MIXED, objectives=[Trace_ELBO(), Analytic()], particles=2).passed
    pv.save(ss, tmp_path / "ss")
    other = semisupervised()
    pv.load(tmp_path / "ss", into=other)
    torch.testing.assert_close(other.classify(X).logits, ss.classify(X).logits)
    with pytest.raises(CheckpointError, match="into="):
        pv.load(tmp_path / "ss")


def test_a_label_that_no_row_has_is_asked_about_in_silence():
    vae = pv.cvae((D,), 2, LABELS)
    ss = pv.SemiSupervised(vae, pv.encoders.Classifier(LABELS, (D,)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(ss, (X, torch.tensor([0, 1, -1, -1, 0, 1])), epochs=1, progress=False)


@pytest.mark.parametrize("capture", ["off", "graph"])
def test_a_missing_label_is_trained_on_and_never_measured(capture):
    # Beyond the rows that a recording is checked on, too, where it would be a condition of nothing but zeros.
    ss = semisupervised()
    x = torch.rand(80, D).round()
    y = torch.zeros(80, dtype=torch.long)
    y[70] = -1
    for measure in (
        lambda: pv.evaluation.log_likelihood(ss, x, y, samples=4, capture=capture, progress=False),
        lambda: pv.evaluate(ss, x, y, samples=4),
        lambda: ss.log_prob(x, y, 4),
    ):
        with pytest.raises(LabelError, match="-1"):
            measure()
    ss.check_training(x, y)

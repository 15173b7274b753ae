"""``label_use`` against the exact Bayes classifier, an integral, and models that are known to ignore or to leak y."""

import importlib
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from ppca import Ppca, limit

import ppl_vae as pv
from ppl_vae import encoders, likelihoods, priors
from ppl_vae.errors import ConfigError, DataError, LabelError, NoDensityError, NonFiniteError, PartError
from ppl_vae.evaluation import label_use

CLASSES = 3
# The package's attribute of that name may be a function.
MODULE, LEAKAGE = (importlib.import_module(f"ppl_vae.evaluation.{name}") for name in ("labels", "leakage"))


def closer(classes=CLASSES):
    """Conditional pPCA whose classes overlap: the exact classifier errs in every seventh row or so."""
    truth = Ppca(classes)
    truth.mu = 0.3 * truth.mu
    return truth


def exact_table(truth, x):
    """Log p(x | y) of every row under every label, (labels, N), in closed form."""
    every = torch.arange(truth.classes)
    return torch.stack([truth.log_prob(x, torch.full((len(x),), k)) for k in every])


def ignoring(vae):
    """The same model with the columns of y taken out of both networks: neither looks at it."""
    with torch.no_grad():
        vae.likelihood.network.body[0].weight[:, -CLASSES:] = 0.0
        vae.encoder.network.body[0].weight[:, -CLASSES:] = 0.0
    return vae


# The generative classifier and the swap


def test_the_classifier_is_bayes_where_the_posterior_is_exact():
    """The proposal is what the labels' exact posteriors are on average, so a weight is p(x|y) times 3 at the most.

    In turn, 3,000 draws of it leave an error of 0.02 or so; a label for another would be off by tenths.
    """
    truth = closer()
    x, y = truth.draw(300)
    expected = exact_table(truth, x)
    found = label_use(truth.vae(), x, y, samples=3000, batch_size=64)
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=0.2)
    assert (found.log_prob - expected).mean().abs() < 0.01
    bayes = found.predicted
    sure = expected.topk(2, 0).values.diff(dim=0)[0].abs() > 0.2
    assert torch.equal(bayes[sure], expected.argmax(0)[sure])
    expected = found.log_prob
    hit = (bayes == y).double()
    assert 0.5 < hit.mean() < 0.95
    assert found["accuracy"] == pytest.approx(hit.mean().item())
    assert found.terms["accuracy"][1] == pytest.approx(hit.std().item() / math.sqrt(300))
    log_posterior = expected.log_softmax(0)[y, torch.arange(300)]
    assert found["log_posterior"] == pytest.approx(log_posterior.mean().item(), abs=1e-9)
    own = expected[y, torch.arange(300)]
    drop = own - (expected.sum(0) - own) / 2
    assert found["drop"] == pytest.approx(drop.mean().item(), abs=1e-9)
    assert found.terms["drop"][1] == pytest.approx(drop.std().item() / math.sqrt(300), abs=1e-9)
    for k in range(3):
        assert found.by_label["drop"][k] == pytest.approx(drop[y == k].mean().item(), abs=1e-9)
        assert found.by_label["accuracy"][k] == pytest.approx(hit[y == k].mean().item(), abs=1e-9)
        wrong = bayes[(y == k) & (bayes != y)]
        assert found.by_label["share"][k] == pytest.approx(wrong.bincount().max().item() / 100)
        assert found.by_label["confused"][k] == wrong.mode().values


def test_the_classifier_is_nearly_bayes_where_the_guide_is_off():
    """99% of the labels and, with them, the accuracy; a guide off by 0.3 sd and 1.5 times too wide.

    With 2,000 samples log p has an sd of 0.017 nat a row, and 0.7% of such rows lie so close between two labels.
    """
    truth = closer()
    x, y = truth.draw(300)
    bayes = exact_table(truth, x).argmax(0)
    found = label_use(truth.vae(0.3, 1.5), x, y, samples=2000, draws=1)
    assert (found.predicted == bayes).double().mean() >= 0.99
    assert found["accuracy"] == pytest.approx((bayes == y).double().mean().item(), abs=0.01)


def test_p_y_is_that_of_the_rows_unless_given():
    truth = closer()
    x, y = truth.draw(400)
    keep = (y == 0) | (torch.arange(400) % 4 == 0)
    x, y = x[keep], y[keep]
    frequency = y.bincount().double() / len(y)
    found = label_use(truth.vae(), x, y, samples=3)
    assert torch.equal(found.predicted, (found.log_prob + frequency.log()[:, None]).argmax(0))
    torch.testing.assert_close(found.p_y, frequency)
    assert found["chance"] == pytest.approx(frequency.max().item())
    given = torch.tensor([0.1, 0.1, 0.8])
    found = label_use(truth.vae(), x, y, samples=3, p_y=given)
    assert torch.equal(found.predicted, (found.log_prob + given.double().log()[:, None]).argmax(0))


def test_a_label_of_probability_zero_is_not_tried():
    truth = closer()
    x, y = truth.draw(60)
    two = y < 2
    found = label_use(truth.vae(), x[two], y[two], samples=3)
    assert found.labels == [0, 1]
    assert torch.equal(found.predicted, found.log_prob.argmax(0))
    # One that the rows lack, and p(y) does not.
    found = label_use(truth.vae(), x[two], y[two], samples=1, p_y=[0.4, 0.4, 0.2])
    assert found.labels == [0, 1, 2]
    assert found.by_label["rows"].tolist() == [20, 20, 0]
    assert found["prior_information"] == pytest.approx(0.0, abs=1e-9)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_decoder_that_ignores_y_is_found_out():
    """A drop of exactly zero, and the accuracy of naming one label for all."""
    truth = Ppca(CLASSES)
    x, y = truth.draw(300)
    found = label_use(ignoring(truth.vae()), x, y, samples=5)
    # The encoder is no longer the posterior, so weights have noise; but they are of one and the same p(x).
    assert abs(found["drop"]) < 1.0
    same = pv.VAE(
        priors.Standard(2),
        pv.Unconditional(Ppca().vae().likelihood),
        pv.Unconditional(Ppca().vae().encoder),
        pv.OneHot(CLASSES),
    ).double()
    found = label_use(same, x, y, samples=5)
    assert found["drop"] == pytest.approx(0.0, abs=1e-9)
    assert abs(found["accuracy"] - 1 / 3) < limit() * math.sqrt(2 / 9 / 300)
    assert found["log_posterior"] == pytest.approx(-math.log(3), abs=1e-9)
    assert found.finding.startswith("y is not seen to be used: a wrong label costs 0.000 ± 0.000 nats")


def test_an_encoder_that_looks_at_y_does_not_make_the_model_use_it():
    """What another label's encoder proposes is worse; the model's p(x) is the same, and so must its estimates be."""
    truth = Ppca(CLASSES)
    x, y = truth.draw(300)
    likelihood = pv.Unconditional(Ppca().vae().likelihood)
    vae = pv.VAE(priors.Standard(2), likelihood, truth.vae().encoder, pv.OneHot(CLASSES)).double()
    assert (vae.encode(x, 0).mean - vae.encode(x, 1).mean).abs().min() > 0
    found = label_use(vae, x, y, samples=7)
    assert found["drop"] == pytest.approx(0, abs=1e-12)
    assert found.finding.startswith("y is not seen to be used")


@pytest.mark.fresh
def test_draws_in_turn_are_draws_of_the_mixture():
    """As many of each component wherever they divide, and each from every component with the same probability.

    Components are 100 apart, so that each draw tells its own. χ² of 2,000 first draws over 4 of them, α = 1e-6.
    """
    loc = torch.tensor([[0.0], [100.0], [200.0], [300.0]]).expand(2000, 4, 1)
    mixture = MODULE._InTurn(dist.Categorical(logits=torch.zeros(2000, 4)), dist.Normal(loc, 1.0).to_event(1))
    of = (mixture.sample((6,))[..., 0] / 100).round().long()
    assert of.shape == (6, 2000)
    assert all(torch.equal(row.sort().values, torch.arange(4)) for row in of[:4].T)
    assert torch.equal(of[4:], of[:2])
    counts = of[0].bincount(minlength=4)
    assert ((counts - 500).square() / 500).sum() < 30.7


def test_estimates_that_are_not_to_be_trusted_are_counted():
    """None where every weight is the same; most where q is so narrow that it misses the posterior."""
    truth = Ppca(CLASSES)
    x, y = truth.draw(30)
    parts = pv.Unconditional(Ppca().vae().likelihood), pv.Unconditional(Ppca().vae().encoder)
    found = label_use(pv.VAE(priors.Standard(2), *parts, pv.OneHot(CLASSES)).double(), x, y, samples=50)
    assert found.untrusted == (0.0, 0.0)
    assert "k̂" not in str(found)
    found = label_use(truth.vae(2.0, 0.2), x, y, samples=50)
    assert min(found.untrusted) > 0.5
    assert "k̂ speaks against" in str(found)
    assert found.to_dict()["not_to_be_trusted"]["right_label"] == found.untrusted[0]


def test_a_decoder_that_uses_y_is_said_to():
    truth = Ppca(CLASSES)
    found = label_use(truth.vae(), *truth.draw(90), samples=2)
    assert found.finding.startswith("y is used: with a wrong label log p(x|y) falls by ")
    assert found["accuracy"] > 0.9


# What z carries of y


def gaussians(loc, scale, prior=None):
    """Q(z | x, y) = N(loc[y], scale²) in one dimension, whatever x."""
    loc = torch.as_tensor(loc).double()
    return pv.VAE(
        prior=prior or priors.Standard(1),
        likelihood=likelihoods.Gaussian((4,), 1, len(loc), hidden=(3,)),
        encoder=lambda x, c: dist.Normal((c @ loc[:, None]).expand(*x.shape[:-1], 1), scale).to_event(1),
        condition=pv.OneHot(len(loc)),
    ).double()


def mixture_information(loc, scale, weights):
    """I(z; y) for z ~ N(loc[y], scale²), by a sum over a grid."""
    z = torch.arange(-50, 50, 0.01, dtype=torch.float64)
    p = torch.distributions.Normal(torch.as_tensor(loc).double()[:, None], scale).log_prob(z)
    weights = torch.as_tensor(weights).double()[:, None]
    mean = (weights.log() + p).logsumexp(0)
    return (weights * p.exp() * (p - mean)).sum().item() * 0.01


@pytest.mark.fresh
@pytest.mark.parametrize("loc", [(0.0, 0.0, 0.0), (-1.0, 0.0, 1.5), (0.0, 0.0, 3.0), (-40.0, 0.0, 40.0)])
def test_leakage_is_the_integral_where_the_aggregate_is_known(loc, seed):
    """All rows of a label have one q, so the mixture without a row is the density itself: the bound is tight.

    Half of the rows have the label 0. From none of y to all of it; an error of 0.05 nat is seen with power 1 − 1e-6.
    """
    y = torch.arange(800) % 4 % 3
    x = torch.randn(800, 4)
    found = label_use(gaussians(loc, 1.0), x, y, samples=1, draws=5, seed=seed)
    exact = mixture_information(loc, 1.0, [0.5, 0.25, 0.25])
    error = found.terms["leakage"][1]
    assert error < 0.03
    assert abs(found["leakage"] - exact) <= limit(4) * error + 2e-3
    assert found["entropy"] == pytest.approx(1.5 * math.log(2))
    assert found["leakage"] <= found["entropy"] + 1e-9
    assert found["prior_information"] == pytest.approx(0.0, abs=1e-9)
    if loc[-1] == 40.0:
        assert found["leakage"] == pytest.approx(found["entropy"], abs=1e-6)
        assert found["leakage_accuracy"] == 1.0
        assert found.finding.endswith("z tells at least 1.04 of the 1.04 nats of y: y leaks into z.")
    if not any(loc):
        assert found.finding.endswith("z is not seen to tell anything of y.")


def test_the_exact_posterior_of_pPCA_leaks_nothing():
    """The aggregate of every label is the prior's N(0, I), as far as so many rows tell."""
    truth = Ppca(CLASSES)
    found = label_use(truth.vae(), *truth.draw(600), samples=1)
    assert found["leakage"] < 0.01
    assert abs(found["leakage_accuracy"] - 1 / 3) < 0.1


def test_codes_that_know_their_own_row_are_no_leak():
    """Narrow codes of many dimensions, as in any real model: with its row in the mixture each z would tell its y.

    That would be H(y) = 0.69 nats, of which there is nothing in the codes.
    """
    vae = pv.VAE(
        priors.Standard(10),
        likelihoods.Gaussian((10,), 10, 2, hidden=(3,)),
        lambda x, c: dist.Normal(x, 0.01).to_event(1),
        pv.OneHot(2),
    ).double()
    x, y = torch.randn(200, 10).double(), torch.arange(200) % 2
    found = label_use(vae, x, y, samples=1)
    assert 0 <= found["leakage"] < 0.02
    assert abs(found["leakage_accuracy"] - 0.5) < 0.2
    # And with a leak, which the same classifier finds.
    found = label_use(vae, x + 6.0 * y[:, None], y, samples=1)
    assert found["leakage"] > 0.6


@pytest.mark.fresh
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_leak_in_one_of_many_dimensions_is_found(shift, seed):
    """Codes so narrow and of so many dimensions that the nearest of them are no help: a straight line tells them apart.

    Of the 0.111 nats that y is worth half are found, with power 1 − 1e-6 (over 200 seeds 0.104 ± 0.010); of none, none.
    """
    vae = pv.VAE(
        priors.Standard(20),
        likelihoods.Gaussian((20,), 20, 2, hidden=(3,)),
        lambda x, c: dist.Normal(x, 0.3).to_event(1),
        pv.OneHot(2),
    ).double()
    y = torch.arange(2000) % 2
    x = math.sqrt(1 - 0.3**2) * torch.randn(2000, 20).double()
    x[:, 0] += shift * (2 * y - 1)
    found = label_use(vae, x, y, samples=1, seed=seed)
    assert found["leakage"] <= 0.111 + limit() * found.terms["leakage"][1]
    if shift:
        assert found["leakage"] > 0.0555
        assert "y leaks into z" in found.finding
    else:
        assert found.finding.endswith("z is not seen to tell anything of y.")


def test_the_linear_classifier_learns_from_other_rows():
    """By hand, a row at a time: means and covariance of the other half, shrunk to its diagonal as if by D rows."""
    y = torch.tensor([0, 2, 0, 2, 2, 0, 2])
    z = torch.randn(7, 3, 4).double() + y[:, None, None]
    scores = LEAKAGE._linear_scores(y, z)
    first = torch.tensor([True, True, False, False, True, True, False])
    for i in range(7):
        others = first != first[i]
        codes, of = z[others], y[others]
        loc = torch.stack([codes[of == k].mean((0, 1)) for k in (0, 2)])
        apart = torch.cat([(codes[of == k] - loc[j]).flatten(0, 1) for j, k in enumerate((0, 2))])
        covariance, freedom = apart.T @ apart / len(apart), len(of) - 2
        shrunk = (freedom * covariance + 4 * covariance.diagonal().diag()) / (freedom + 4)
        density = [torch.distributions.MultivariateNormal(mean, shrunk).log_prob(z[i]) for mean in loc]
        torch.testing.assert_close(scores[i, :, 1] - scores[i, :, 0], density[1] - density[0])


def test_leave_one_out_by_hand():
    """τ = 1 by force: log r(y | z) from loops over the rows, with no chance involved."""
    truth = closer()
    x, y = truth.draw(9)
    vae = truth.vae()
    with torch.no_grad():
        q = vae.encode(x, y)
        z = q.sample((2,)).movedim(0, 1)
        scores = LEAKAGE._mixture_scores(vae, x, y, z, batch_size=4)
        for i in range(9):
            for k in range(3):
                rows = [j for j in range(9) if y[j] == k and j != i]
                each = torch.stack([vae.encode(x[j : j + 1], y[j : j + 1]).log_prob(z[i]) for j in rows])
                expected = each.logsumexp(0) - math.log(len(rows))
                torch.testing.assert_close(scores[i, :, k], expected, rtol=0, atol=1e-9)


def test_the_exponent_is_the_best_there_is():
    """The mean of log r_τ is largest at the τ that is found; at τ = 0 it is −H(y)."""
    scores = 5 * torch.randn(200, 3, 4).double()
    y = torch.arange(200) % 4
    scores[torch.arange(200), :, y] += 2.0
    told, right = LEAKAGE._told(scores, y)
    taus = torch.linspace(0, 1, 201, dtype=torch.float64)
    means = [((tau * scores).log_softmax(-1)[torch.arange(200), :, y]).mean().item() for tau in taus]
    assert told.mean().item() >= max(means) - 1e-9
    assert told.mean().item() <= max(means) + 1e-4
    assert told.mean() > -math.log(4)
    assert right.mean().item() == pytest.approx((scores.argmax(-1) == y[:, None]).double().mean().item())
    # An encoder whose support ends gives −∞ for a label that could not have been; one that knows nothing gives it too.
    # Codes that are the label itself leave no slope at all.
    at = torch.arange(8) % 2
    told, _ = LEAKAGE._told(torch.where(torch.arange(2) == at[:, None, None], 0.0, -1e9).double(), at)
    torch.testing.assert_close(told, torch.zeros(8).double())
    told, _ = LEAKAGE._told(torch.full((8, 1, 2), -1e30).double(), torch.arange(8) % 2)
    torch.testing.assert_close(told, torch.full((8,), -math.log(2)).double())


def test_what_the_prior_carries_is_no_leak():
    """Q(z | y) = p(z | y): both tell the same, and the finding says so."""
    loc = torch.tensor([-2.0, 0.0, 2.0]).double()
    prior = lambda c: dist.Normal(c @ loc[:, None], 1.0).to_event(1)  # noqa: E731
    x, y = torch.randn(600, 4), torch.arange(600) % 3
    found = label_use(gaussians(loc, 1.0, prior), x, y, samples=1)
    exact = mixture_information(loc, 1.0, [1 / 3] * 3)
    told, error = found.terms["prior_information"]
    assert abs(told - exact) <= limit() * error
    assert error < 0.02
    assert found.finding.endswith("z is not seen to tell more of y than the prior does.")
    assert found["kl"] == pytest.approx(0.0, abs=1e-12)
    far = gaussians(3 * loc, 1.0, prior)
    found = label_use(far, x, y, samples=1)
    assert f"where the prior has {found['prior_information']:.2f}." in found.finding
    # N(±6, 1) against N(±2, 1), and 0 against 0.
    assert found["kl"] == pytest.approx(16 / 3, abs=1e-9)
    torch.testing.assert_close(found.by_label["kl"], torch.tensor([8.0, 0.0, 8.0]).double())


def test_what_two_labels_have_in_common_is_no_noise():
    """One label in ten, and z tells nothing: that is known exactly, and a small leak is seen beside it."""
    y = (torch.arange(2000) % 10 == 0).long()
    x = torch.randn(2000, 4)
    found = label_use(gaussians((0.0, 0.0), 1.0), x, y, samples=1)
    assert found.terms["leakage"] == pytest.approx((0.0, 0.0), abs=2e-3)
    assert found.finding.endswith("z is not seen to tell anything of y.")
    found = label_use(gaussians((0.0, 1.3), 1.0), x, y, samples=1)
    exact = mixture_information((0.0, 1.3), 1.0, [0.9, 0.1])
    leak, error = found.terms["leakage"]
    assert exact == pytest.approx(0.062, abs=0.01)
    assert abs(leak - exact) <= 5 * error + 2e-3
    # By all rows together it would be twice as much as by those of each label.
    assert error < 0.008
    assert found.finding.endswith("y leaks into z.")


def test_the_priors_draws_have_an_error_too():
    """Q = p for many rows and two labels: what the prior tells is known from 1,000 draws alone, and is no leak."""
    loc = torch.tensor([-0.5, 0.5]).double()
    prior = lambda c: dist.Normal(c @ loc[:, None], 1.0).to_event(1)  # noqa: E731
    x, y = torch.randn(4000, 4), torch.arange(4000) % 2
    for seed in range(5):
        found = label_use(gaussians(loc, 1.0, prior), x, y, samples=1, seed=seed)
        beyond, error = found["leakage"] - found["prior_information"], found.terms["prior_information"][1]
        assert error > found.terms["leakage"][1]
        assert abs(beyond) < 6 * error
        assert found.finding.endswith("z is not seen to tell more of y than the prior does.")


def test_labels_that_were_permuted_are_suspected():
    truth = Ppca(2)
    x, y = truth.draw(60)
    assert "y is used: with a wrong label" in label_use(truth.vae(), x, y, samples=50).finding
    found = label_use(truth.vae(), x, 1 - y, samples=50)
    assert found["accuracy"] < 0.1
    assert "rises by" in found.finding
    assert "are the labels permuted?" in found.finding


@pytest.mark.parametrize("encoder", [encoders.FullGaussian, encoders.Mixture, encoders.Flow])
def test_any_encoder_and_prior(encoder):
    vae = pv.VAE(
        priors.Mixture(2, 3, components=2, hidden=(4,)),
        likelihoods.Gaussian((4,), 2, 3, hidden=(4,)),
        encoder(2, (4,), 3, hidden=(4,)),
        pv.OneHot(3),
    )
    found = label_use(vae, torch.randn(15, 4), torch.arange(15) % 3, samples=4, draws=2, batch_size=4)
    assert all(math.isfinite(mean) for mean, _ in found.terms.values())


# What it is for, and what it says


@pytest.mark.parametrize(
    ("condition", "context", "y"),
    [
        (None, 0, torch.zeros(6, dtype=torch.long)),
        (pv.conditions.OneHots((2, 3)), 5, torch.zeros(6, 2, dtype=torch.long)),
        (pv.conditions.Continuous(1), 1, torch.zeros(6, 1)),
        (lambda y: torch.nn.functional.one_hot(y, 3).float(), 3, torch.zeros(6, dtype=torch.long)),
    ],
)
def test_other_conditions_are_refused(condition, context, y):
    vae = pv.VAE(
        priors.Standard(2),
        likelihoods.Gaussian((4,), 2, context),
        encoders.Gaussian(2, (4,), context),
        condition,
    )
    with pytest.raises(PartError, match="expected a model conditional on one integer label"):
        label_use(vae, torch.zeros(6, 4), y)


def test_what_does_not_fit_is_refused():
    vae = pv.cvae((4,), 2, 3, likelihood="Gaussian")
    x, y = torch.zeros(6, 4), torch.arange(6) % 3
    for wrong in (None, torch.tensor(1), y[:5], y.float(), y[:, None]):
        with pytest.raises(LabelError, match="one integer label for each of 6 rows"):
            label_use(vae, x, wrong)
    with pytest.raises(LabelError, match="0 … 2"):
        label_use(vae, x, y + 1)
    with pytest.raises(LabelError, match="two rows or more"):
        label_use(vae, x, torch.tensor([0, 0, 0, 1, 1, 2]))
    with pytest.raises(LabelError, match="two labels or more"):
        label_use(vae, x, torch.zeros(6, dtype=torch.long))
    for p_y in ([0.5, 0.5], [0.5, 0.6, 0.1], [-0.5, 1.0, 0.5], [math.nan, 0.5, 0.5]):
        with pytest.raises(ConfigError, match="p_y: expected 3 probabilities"):
            label_use(vae, x, y, p_y=p_y)
    with pytest.raises(ConfigError, match=r"got 0 for \[2\]"):
        label_use(vae, x, y, p_y=[0.5, 0.5, 0.0])
    with pytest.raises(ConfigError, match="samples"):
        label_use(vae, x, y, samples=0)
    with pytest.raises(DataError):
        label_use(vae, torch.full((6, 4), math.nan), y)
    ae = pv.VAE(None, likelihoods.Gaussian((4,), 2, 3), encoders.Delta(2, (4,), 3), pv.OneHot(3))
    with pytest.raises(NoDensityError):
        label_use(ae, x, y)


def test_a_semi_supervised_model_is_asked_as_any_other():
    vae = pv.cvae((4,), 2, 3, likelihood="Gaussian")
    model = pv.SemiSupervised(vae, encoders.Classifier(3, (4,)))
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    assert label_use(model, x, y, samples=3).to_dict() == label_use(vae, x, y, samples=3).to_dict()
    with pytest.raises(LabelError):
        label_use(model, x, torch.where(y == 2, -1, y))


def test_nothing_of_the_callers_is_touched_and_the_seed_decides():
    vae = pv.cvae((4,), 2, 3, likelihood="Gaussian")
    vae.train()
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    before = torch.get_rng_state()
    found = [label_use(vae, x, y, samples=3, seed=s).to_dict() for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in vae.modules())
    assert found[0] == found[1] != found[2]
    vae.beta = 4.0
    assert label_use(vae, x, y, samples=3).to_dict() == found[0]


def test_the_table_and_the_numbers():
    truth = Ppca(CLASSES)
    x, y = truth.draw(30)
    found = label_use(truth.vae(), x, y, samples=7)
    lines = str(found).splitlines()
    assert lines[0].startswith("30 rows, 3 labels")
    assert lines[1].startswith("accuracy of argmax log p(x|y) + log p(y), 7 samples ")
    assert [line.split()[0] for line in lines[-6:-2]] == ["label", "0", "1", "2"]
    assert lines[-1] == found.finding
    table = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert table["drop"]["mean"] == found["drop"]
    assert table["entropy"] == {"mean": pytest.approx(math.log(3)), "standard_error": None}
    assert table["labels"] == [0, 1, 2]


def test_a_row_that_no_label_can_have_made_is_no_hit():
    """It would count as right where the first label is its own."""

    def likelihood(z, c):
        return dist.Uniform(-1.0, 1.0).expand([*z.shape[:-1], 3]).to_event(1)

    vae = pv.VAE(priors.Standard(2), likelihood, lambda x, c: dist.Normal(x[..., :2], 1.0).to_event(1), pv.OneHot(2))
    x, y = 0.5 * torch.rand(8, 3), torch.arange(8) % 2
    x[4] = 7.0
    with pyro.validation_enabled(False), pytest.raises(NonFiniteError, match="1 of 8 rows, the first of them 4, are"):
        label_use(vae, x, y, samples=5)


def test_a_row_that_is_impossible_under_its_own_label_and_another():
    """Its drop would be infinity less infinity, and every row's mean no number."""

    def likelihood(z, c):
        half = (c @ torch.tensor([[1.0], [1.0], [10.0]])).expand(*z.shape[:-1], 3)
        return dist.Uniform(-half, half).to_event(1)

    vae = pv.VAE(priors.Standard(2), likelihood, lambda x, c: dist.Normal(x[..., :2], 1.0).to_event(1), pv.OneHot(3))
    x, y = 0.5 * torch.rand(9, 3), torch.arange(9) % 3
    x[3] = 5.0
    with pyro.validation_enabled(False):
        found = label_use(vae, x, y, samples=5)
    assert found["drop"] == -math.inf
    assert "with another label log p(x|y) rises by inf nats: are the labels permuted?" in found.finding


def test_a_label_without_rows_carries_nothing():
    """Where no z of it is one of another label, log p(z | y) − log p(z) is infinite, and counted no times."""

    def prior(c):
        low = 3.0 * (c @ torch.arange(3.0)[:, None])
        return dist.Uniform(low, low + 1.0).to_event(1)

    vae = pv.VAE(prior, likelihoods.Gaussian((4,), 1, 3), lambda x, c: prior(c), pv.OneHot(3))
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    with pyro.validation_enabled(False):
        found = label_use(vae, x, y, p_y=[0.4, 0.4, 0.2], samples=5)
    assert found["prior_information"] == pytest.approx(math.log(2), abs=1e-9)

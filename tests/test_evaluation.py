"""``evaluate`` against closed forms; what it must not depend on, and what it must say."""

import dataclasses
import json
import math
import re

import pytest
import torch
from ppca import Ppca
from torch import nn
from torch.distributions import Normal

import ppl_vae as pv
from ppl_vae import likelihoods
from ppl_vae.errors import ConfigError, DataError, LabelError, NonFiniteError, ShapeError
from ppl_vae.objectives import analytic_elbo

ALPHA = 1e-6
Z = -Normal(0.0, 1.0).icdf(torch.tensor(ALPHA / 2, dtype=torch.float64)).item()
TERMS = ["neg_elbo", "reconstruction", "kl", "neg_log_prob"]


def closed_forms(truth, x, y, shift, stretch):
    """What every row's terms are, for a guide off by ``shift`` sd and ``stretch`` times as wide."""
    q = truth.posterior(x, y).base_dist
    m, s = q.loc + shift * q.scale, stretch * q.scale
    reconstruction = -truth.log_likelihood_mean(x, m, s, y)
    elbo = truth.elbo(x, m, s, y)
    return {
        "neg_elbo": -elbo,
        "reconstruction": reconstruction,
        "kl": -elbo - reconstruction,
        "neg_log_prob": -truth.log_prob(x, y),
    }


@pytest.mark.parametrize("classes", [0, 3])
def test_exact_posterior(classes):
    """log p is exact, whatever the draws; the closed-form KL is too; and the standard error is that over the rows."""
    truth = Ppca(classes)
    x, y = truth.draw(60)
    found = pv.evaluate(truth.vae(), x, y, samples=3, batch_size=25)
    expected = closed_forms(truth, x, y, 0.0, 1.0)
    for name in ("kl", "neg_log_prob"):
        mean, error = found.terms[name]
        assert mean == pytest.approx(expected[name].mean().item(), abs=1e-9)
        assert error == pytest.approx(expected[name].std().item() / math.sqrt(60), abs=1e-9)


@pytest.mark.fresh
@pytest.mark.parametrize("classes", [0, 3])
def test_numbers_and_standard_errors(classes, seed):
    """A guide that is off: all four numbers within chance of their closed forms, |z| ≤ 4.89.

    The noise of the draws alone is compared. A draw of the reconstruction has sd 2.1 a row, so over 300 rows × 200
    draws twice the limit is 0.08 nat, seen with power 1 − 1e-6. With 3,000 samples log p is biased by 1e-4 nat.
    """
    truth = Ppca(classes)
    x, y = truth.draw(300)
    found = pv.evaluate(truth.vae(0.3, 1.5), x, y, samples=1000, draws=200, seed=seed)
    expected = closed_forms(truth, x, y, 0.3, 1.5)
    assert found["kl"] == pytest.approx(expected["kl"].mean().item(), abs=1e-9)
    for name in ("neg_elbo", "reconstruction"):
        assert abs(found[name] - expected[name].mean().item()) <= Z * 2.1 / math.sqrt(300 * 200)
    # sd(w)/p is 0.74, so log p̂ has sd 0.74/√1000 a row, and a bias of minus half its variance.
    assert abs(found["neg_log_prob"] - expected["neg_log_prob"].mean().item()) <= Z * 0.8 / math.sqrt(300 * 1000) + 6e-4
    for name in TERMS:
        over_rows = expected[name].std().item() / math.sqrt(300)
        assert found.terms[name][1] == pytest.approx(over_rows, rel=0.1)
    assert found["neg_elbo"] == pytest.approx(found["reconstruction"] + found["kl"], abs=1e-9)
    assert found["neg_log_prob"] < found["neg_elbo"]


def test_batch_size_does_not_matter():
    """Nothing but the noise depends on it: with the exact posterior log p has none, and an AE has none at all."""
    truth = Ppca(3)
    x, y = truth.draw(50)
    vae = truth.vae()
    ae = pv.ae((8,), 2, hidden=(4,)).double()
    whole = pv.evaluate(vae, x, y, samples=5, batch_size=50), pv.evaluate(ae, x, batch_size=50)
    for batch_size in (1, 7, 49, 1000):
        found = pv.evaluate(vae, x, y, samples=5, batch_size=batch_size)
        assert found["neg_log_prob"] == pytest.approx(whole[0]["neg_log_prob"], abs=1e-9)
        assert found["kl"] == pytest.approx(whole[0]["kl"], abs=1e-9)
        assert pv.evaluate(ae, x, batch_size=batch_size)["reconstruction"] == pytest.approx(
            whole[1]["reconstruction"], abs=1e-9
        )


def test_more_samples_than_a_batch_has_rows():
    """Few rows and many samples, many rows and few samples: neither is rounded up or down to the other."""
    truth = Ppca()
    x, _ = truth.draw(5)
    vae = truth.vae(0.3, 1.5)
    for samples in (1, 2, 3):
        torch.manual_seed(0)
        drawn = []
        original = vae.log_weights
        vae.log_weights = lambda *a, d=drawn, o=original, **k: [d.append(w) or w for w in o(*a, **k)]
        pv.evaluate(vae, x, samples=samples, batch_size=2)
        del vae.log_weights
        assert sum(w.numel() for w in drawn) == samples * len(x)


def test_an_autoencoder_gives_its_reconstruction_only():
    """Whose closed form is the squared error: no −ELBO, no KL, no likelihood."""
    ae = pv.ae((8,), 2, hidden=(4,)).double()
    x = torch.rand(20, 8).double()
    found = pv.evaluate(ae, x)
    assert list(found.terms) == ["reconstruction"]
    errors = (x - ae.reconstruct(x)).square().sum(1) + 4 * math.log(math.pi)
    assert found["reconstruction"] == pytest.approx(errors.mean().item(), rel=1e-7)
    assert "ELBO" not in str(found)
    assert "log p(x|y)" not in str(found)


def test_beta_is_never_applied():
    truth = Ppca(3)
    x, y = truth.draw(30)
    vae = truth.vae(0.3, 1.5)
    tables = []
    for vae.beta in (1.0, 4.0, 0.0):
        tables.append(pv.evaluate(vae, x, y, samples=10))
    assert tables[0].to_dict() == tables[1].to_dict() == tables[2].to_dict()


def grey(context=0):
    return likelihoods.Bernoulli((6,), 2, context=context, grey=True)


@pytest.mark.parametrize("wrapped", [False, True])
def test_grey_bernoulli_is_said_to_be_no_density(wrapped):
    """Also where it hides in ``Unconditional``."""
    likelihood = pv.Unconditional(grey()) if wrapped else grey(context=3)
    vae = pv.cvae((6,), 2, 3, likelihood=likelihood)
    found = pv.evaluate(vae, torch.rand(9, 6), torch.arange(9) % 3, samples=2)
    assert "not a density" in str(found)
    assert found.to_dict()["density"] is False
    y = torch.arange(9) % 3
    for others in (
        pv.evaluation.diagnostics(vae, torch.rand(9, 6), y),
        pv.evaluation.label_use(vae, torch.rand(9, 6), y),
    ):
        assert "not a density" in str(others)
        assert others.to_dict()["density"] is False


@pytest.mark.parametrize("rows", [1, 2])
def test_what_has_no_number_is_none_in_json(rows):
    """A single row has no standard error, and JSON has no NaN; a row that cannot be has log p = −∞."""
    vae = pv.vae((6,), 2, likelihood="Gaussian")
    found = pv.evaluate(vae, torch.rand(rows, 6), samples=5)
    assert (found.to_dict()["neg_elbo"]["standard_error"] is None) == (rows == 1)
    impossible = dataclasses.replace(found.likelihood, values=torch.full((rows,), -math.inf))
    assert impossible.to_dict()["log_prob"]["mean"] is None
    bounds = pv.evaluation.bounds(vae, torch.rand(rows, 6), temperatures=2, chains=2, leapfrog=1)
    for each in (found, impossible, pv.evaluation.diagnostics(vae, torch.rand(rows, 6)), bounds):
        json.dumps(each.to_dict(), allow_nan=False)


def test_a_comparison_says_whose_log_p_is_not_to_be_trusted():
    """K̂ from its limit on, 0.67 for 1,000 samples, or unknown; where nobody kept it, nothing is said."""
    values = {"neg_log_prob": torch.arange(4.0)}
    good = pv.evaluation.Evaluation(values, 1000, pareto_k=torch.tensor([0.6, -math.inf, 0.0, 0.5]))
    bad = dataclasses.replace(good, pareto_k=torch.tensor([0.6, -math.inf, 0.7, math.nan]))
    found = pv.evaluation.compare({"good": good, "bad": bad, "old": dataclasses.replace(good, pareto_k=None)})
    warnings = [line for line in str(found).splitlines() if "warning" in line]
    assert warnings == ["warning: bad: k̂ does not vouch for log p of 2 of 4 rows: take more samples"]
    counts = {name: numbers["rows_not_to_be_trusted"] for name, numbers in found.to_dict().items()}
    assert counts == {"good": 0, "bad": 2, "old": None}
    # Nothing is said of a number that is not in the table.
    ae = pv.evaluation.Evaluation({"reconstruction": torch.zeros(4)}, 1000)
    both = dataclasses.replace(bad, values=values | ae.values)
    assert "warning" not in str(pv.evaluation.compare({"ae": ae, "bad": both}))


def test_an_evaluation_counts_what_its_likelihood_counts():
    truth = Ppca()
    x, _ = truth.draw(30)
    found = pv.evaluate(truth.vae(3.0, 0.3), x, samples=100)
    assert found.rows_not_to_be_trusted == found.to_dict()["likelihood"]["rows_not_to_be_trusted"] > 0


def test_the_elbo_of_wide_images_takes_no_more_memory():
    """250 rows of 10 draws of 300 levels a pixel would be 75 million numbers at once."""
    vae = pv.vae((100,), 1, likelihood={"name": "Categorical", "levels": 300}, hidden=(2,))
    most = []
    vae.likelihood.network.register_forward_hook(lambda network, inputs, raw: most.append(raw.numel()))
    pv.evaluate(vae, torch.zeros(300, 100), samples=2)
    assert max(most) <= 2**22


def test_binary_bernoulli_is_a_density():
    found = pv.evaluate(pv.vae((6,), 2), torch.rand(9, 6).round(), samples=2)
    assert "density" not in str(found)
    assert found.to_dict()["density"] is True


def test_leaves_everything_as_it_was():
    """The caller's random numbers, the gradients, the mode; and a batch normalisation learns nothing from test data."""
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    vae = pv.vae((6,), 2, encoder={"name": "Gaussian", "network": body}, likelihood="Gaussian")
    vae.train()
    vae.likelihood.eval()
    x = torch.rand(20, 6)
    before, random = {k: v.clone() for k, v in vae.state_dict().items()}, torch.get_rng_state()
    found = pv.evaluate(vae, x, samples=5)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert (vae.training, body.training, vae.likelihood.training) == (True, True, False)
    assert all(p.grad is None for p in vae.parameters())
    # The same as in eval mode: dropout does not act on an evaluation.
    assert pv.evaluate(vae.eval(), x, samples=5).to_dict() == found.to_dict()


def test_seed_repeats():
    vae, x = pv.vae((6,), 2, likelihood="Gaussian"), torch.rand(20, 6)
    tables = [pv.evaluate(vae, x, samples=5, seed=seed).to_dict() for seed in (0, 0, 1)]
    assert tables[0] == tables[1] != tables[2]


def test_one_row_has_no_standard_error():
    found = pv.evaluate(pv.vae((6,), 2, likelihood="Gaussian"), torch.rand(1, 6), samples=2)
    assert all(math.isnan(error) for _, error in found.terms.values())


def test_one_label_for_all():
    """A number for y stands for every row."""
    truth = Ppca(3)
    x, _ = truth.draw(10)
    found = pv.evaluate(truth.vae(), x, torch.tensor(1), samples=2, batch_size=4)
    expected = -truth.log_prob(x, torch.ones(10, dtype=torch.long)).mean().item()
    assert found["neg_log_prob"] == pytest.approx(expected, abs=1e-9)


def test_refuses_pixels_that_are_no_event():
    """A function that forgets ``.to_event``: with one row its pixels would pass for rows, and the number be wrong."""
    vae = pv.VAE(
        pv.priors.Standard(2),
        lambda z, c: torch.distributions.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], 6), 1.0),
        pv.encoders.Gaussian(2, (6,)),
    )
    for n in (1, 6, 9):
        with pytest.raises(ShapeError, match="to_event"):
            pv.evaluate(vae, torch.rand(n, 6), samples=4)
        with pytest.raises(ShapeError, match="to_event"):
            analytic_elbo(vae, torch.rand(n, 6))


def test_refuses_what_the_model_cannot_take():
    vae = pv.cvae((6,), 2, 3)
    with pytest.raises(DataError, match="grey"):
        pv.evaluate(vae, torch.rand(4, 6), torch.zeros(4, dtype=torch.long))
    with pytest.raises(LabelError):
        pv.evaluate(vae, torch.ones(4, 6))
    with pytest.raises(ConfigError, match="samples"):
        pv.evaluate(vae, torch.ones(4, 6), torch.zeros(4, dtype=torch.long), samples=0)


def test_weights_that_are_nan_are_named_by_every_measurement():
    vae, x, ev = pv.vae((6,), 2, hidden=(4,)), torch.ones(8, 6), pv.evaluation
    y = torch.arange(8) % 2
    with torch.no_grad():
        list(vae.encoder.parameters())[-1][0] = math.nan
    name = next(name for name, weights in vae.named_parameters() if weights.isnan().any())
    for measure in (
        lambda: pv.evaluate(vae, x, samples=4),
        lambda: ev.log_likelihood(vae, x, samples=4),
        lambda: ev.diagnostics(vae, x),
        lambda: ev.calibration(vae, replicates=100),
        lambda: ev.bounds(vae, x),
        lambda: ev.simulate(vae, 4),
        lambda: ev.quality(vae, (x, y), (x, y)),
        lambda: ev.label_use(vae, x, y),
        lambda: ev.audit(vae, x),
        lambda: vae.log_prob(x),
        lambda: pv.fit(vae, x, epochs=1, progress=False),
    ):
        with pytest.raises(NonFiniteError, match=f"got NaN in {re.escape(name)}"):
            measure()


def test_table():
    """Units, the number of rows, and every number with its error."""
    truth = Ppca()
    x, _ = truth.draw(10)
    table = str(pv.evaluate(truth.vae(), x, samples=7))
    assert table.splitlines()[0].startswith("10 rows, nats per datum")
    assert [line.split("  ")[0] for line in table.splitlines()[1:]] == [
        "−ELBO",
        "reconstruction −log p(x|z,y)",
        "KL(q(z|x,y) ‖ p(z|y))",
        "−log p(x|y), 7 samples",
        "warning: 7 samples are too few to tell whether they are enough: take 25 or more",
    ]


def test_as_many_samples_or_no_difference_in_log_p():
    """One number of samples gives log p more than another; what none of them decides is compared all the same."""
    vae, x = pv.vae((4,), 2, likelihood="Gaussian"), torch.randn(10, 4)
    few, many = (pv.evaluate(vae, x, samples=n) for n in (5, 50))
    with pytest.raises(DataError, match=r"as many samples, got \{'few': 5, 'many': 50\}"):
        pv.evaluation.compare({"few": few, "many": many})
    point = pv.evaluate(pv.ae((4,), 2), x)
    found = pv.evaluation.compare({"few": few, "many": many, "point": point})
    assert found.terms == ["reconstruction"]
    assert "no −log p(x|y): point has none" in str(found)
    assert "no KL: point has none" in str(found)

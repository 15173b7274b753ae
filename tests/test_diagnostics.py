"""``diagnostics`` against closed forms, an integral on a grid, and sums over pairs of rows written as loops."""

import importlib
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from ppca import SIGMA, D, L, Ppca, limit
from torch import nn

import ppl_vae as pv
from ppl_vae import encoders, likelihoods, plots, priors
from ppl_vae.errors import ConfigError, DataError, LabelError, NoDensityError, ShapeError
from ppl_vae.evaluation import aggregate, diagnostics
from ppl_vae.evaluation.measuring import measuring
from ppl_vae.objectives import kl_standard

# The package's attribute of that name is the function.
MODULE = importlib.import_module("ppl_vae.evaluation.diagnostics")


def balanced(truth, n):
    """Rows whose codes have, within every class, exactly the mean 0 and covariance that the model says."""
    x, y = truth.draw(n)
    for k in range(max(1, truth.classes)):
        rows = torch.full((n,), True) if y is None else y == k
        centred = x[rows] - x[rows].mean(0)
        own = torch.linalg.cholesky(centred.T @ centred / len(centred))
        white = torch.linalg.solve_triangular(own, centred.T, upper=False)
        x[rows] = truth.mean(None if y is None else k) + (torch.linalg.cholesky(truth.C) @ white).T
    return x, y


def information(truth):
    """I(x; z) of the model in closed form, ½ log det(I + WᵀW / σ²)."""
    return 0.5 * torch.log1p(truth.W.square().sum(0) / SIGMA**2).sum().item()


# Closed forms


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(("shift", "stretch"), [(0.0, 1.0), (0.3, 1.5)])
def test_what_has_a_closed_form_is_exact(classes, shift, stretch):
    """Rate, KL of each dimension and active units, with no chance involved; errors are those over the rows."""
    truth = Ppca(classes)
    x, y = truth.draw(60)
    q = truth.posterior(x, y).base_dist
    m, s = q.loc + shift * q.scale, stretch * q.scale
    found = diagnostics(truth.vae(shift, stretch), x, y, batch_size=25, draws=2)
    rate, each = kl_standard(m, s), torch.stack([kl_standard(m[:, [i]], s[:, [i]]) for i in range(L)], 1)
    assert found["rate"] == pytest.approx(rate.mean().item(), abs=1e-9)
    assert found.terms["rate"][1] == pytest.approx(rate.std().item() / math.sqrt(60), abs=1e-9)
    torch.testing.assert_close(found.kl_per_dimension, each.mean(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.kl_standard_error, each.std(0) / math.sqrt(60), rtol=0, atol=1e-9)
    within = m if y is None else torch.cat([m[y == k] - m[y == k].mean(0) for k in range(classes)])
    expected = (within - within.mean(0)).square().sum(0) / (60 - max(1, classes))
    torch.testing.assert_close(found.variance, expected, rtol=0, atol=1e-9)
    assert found.active == [0, 1]


@pytest.mark.fresh
@pytest.mark.parametrize("classes", [0, 3])
def test_distortion_and_bound_are_the_elbos(classes, seed):
    """|z| ≤ 5.03 over 2 classes × 2 comparisons; the noise has sd 2.1 a draw: 0.13 nat, twice the limit, is seen."""
    truth = Ppca(classes)
    x, y = truth.draw(150)
    found = diagnostics(truth.vae(0.3, 1.5), x, y, draws=200, batch_size=40, seed=seed)
    q = truth.posterior(x, y).base_dist
    m, s = q.loc + 0.3 * q.scale, 1.5 * q.scale
    allowed = limit(4) * 2.1 / math.sqrt(150 * 200)
    assert abs(found["distortion"] + truth.log_likelihood_mean(x, m, s, y).mean().item()) <= allowed
    assert abs(found["neg_elbo"] + truth.elbo(x, m, s, y).mean().item()) <= allowed
    assert found["neg_elbo"] == pytest.approx(found["distortion"] + found["rate"], abs=1e-9)


@pytest.mark.parametrize("classes", [0, 2])
def test_with_the_exact_posterior_the_aggregate_nears_the_prior(classes):
    """Rows with exact moments make the mean rate I(x; z) itself; the mixture of N rows lacks what N rows cannot say.

    The bracket: I with its own row in the mixture is below, I without it above. What is left to the noise of draws is
    a fifth of a hundredth of a nat, so an estimate that is 0.03 nat off falls out of it.
    """
    truth = Ppca(classes)
    x, y = balanced(truth, 800)
    found = diagnostics(truth.vae(), x, y)
    exact = information(truth)
    assert found["rate"] == pytest.approx(exact, abs=1e-9)
    assert exact - 0.04 < found["mutual_information"] < exact
    assert 0 < found["aggregate_kl"] < 0.04
    # The rate is a bound as well, and at the exact posterior the tight one.
    assert found["mutual_information_at_most"] == pytest.approx(exact, abs=1e-9)
    off = diagnostics(truth.vae(0.0, 1.5), x, y)
    q = truth.posterior(x, y).base_dist
    # Wider codes of the same means: I falls to ½ log(1 + Var m / s²), and the aggregate is wider than the prior.
    wide = 0.5 * torch.log1p((1 - q.scale[0].square()) / (1.5 * q.scale[0]).square()).sum().item()
    # On average they are a bracket; the noise of the draws is 0.002.
    assert off["mutual_information"] - 0.01 < wide < off["mutual_information_at_most"] + 0.01
    assert off["mutual_information_at_most"] - off["mutual_information"] < 0.06
    variance = 1 - q.scale[0].square() + (1.5 * q.scale[0]).square()
    aggregate_kl = 0.5 * (variance - 1 - variance.log()).sum().item()
    assert aggregate_kl < off["aggregate_kl"] < aggregate_kl + 0.06


# The mixture of rows, by integration


@pytest.mark.fresh
@pytest.mark.parametrize("classes", [0, 2])
def test_information_is_the_integral(classes, seed):
    """Eight rows, 20,000 draws: I, its bound from above and the aggregate KL against sums over a grid of z.

    A draw's log q(z|x) − log q(z) has sd below 2, so 0.06 nat, twice the limit, is seen with power 1 − 1e-6.
    """
    truth, n = Ppca(classes), 8
    x, y = truth.draw(n)
    vae = truth.vae(0.3, 0.8)
    axis = torch.arange(-7, 7, 0.04, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    q, area = vae.encode(x, y), 0.04**2
    log_q = q.log_prob(grid[:, None])
    p = log_q.detach().exp()
    torch.testing.assert_close(p.sum(0) * area, torch.ones(n).double())
    of = torch.zeros(n, dtype=torch.long) if y is None else y
    same = (of[:, None] == of).double()
    apart = same - torch.eye(n).double()
    leave_in = (p @ same.T / same.sum(1)).log()
    leave_out = (p @ apart.T / apart.sum(1)).log()
    low = (p * (log_q - leave_in)).sum(0).mean().item() * area
    high = (p * (log_q - leave_out)).sum(0).mean().item() * area
    prior = vae.prior_given(None if y is None else torch.tensor(0)).log_prob(grid)
    rest = (p * (leave_in - prior[:, None])).sum(0).mean().item() * area
    found = diagnostics(vae, x, y, draws=20_000, seed=seed)
    allowed = limit(6) * 2.0 / math.sqrt(n * 20_000)
    assert abs(found["mutual_information"] - low) <= allowed
    assert abs(found["aggregate_kl"] - rest) <= allowed
    assert abs(found["mutual_information_at_most"] - min(high, found["rate"])) <= allowed
    assert found["mutual_information"] + found["aggregate_kl"] == pytest.approx(found["rate"], abs=1e-9)
    assert low + rest == pytest.approx(found["rate"], abs=1e-6)


# Every encoder, against loops over pairs

ENCODERS = {
    "Gaussian": encoders.Gaussian,
    "FullGaussian": encoders.FullGaussian,
    "LowRankGaussian": encoders.LowRankGaussian,
    "Mixture": encoders.Mixture,
    "Flow": lambda *a, **k: encoders.Flow(*a, outputs=4, **k),
    "PowerSpherical": encoders.PowerSpherical,
    "Chain": lambda features, x_shape, context, **k: pv.Chain(
        encoders.Gaussian(1, x_shape, context, **k), encoders.Gaussian(2, x_shape, context + 1, **k)
    ),
}


def small(encoder, context, prior=None):
    make = ENCODERS[encoder]
    if prior is None and encoder == "PowerSpherical":
        # On the sphere as well, with a KL that has no formula.
        pole = torch.tensor([1.0, 0.0, 0.0])
        prior = lambda c: pv.distributions.PowerSpherical(pole.double(), 2.0)  # noqa: E731
    return pv.VAE(
        prior=prior or priors.Mixture(3, context, components=2, hidden=(4,)),
        likelihood=likelihoods.Gaussian((4,), 3, context, hidden=(4,)),
        encoder=make(3, (4,), context, hidden=(4,)),
        condition=pv.OneHot(2) if context else None,
    ).double()


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_encoder_is_summed_over_its_pairs(encoder, context, monkeypatch):
    """The same draws, every density asked for on its own; the prior has no KL in closed form, so all of it is sampled.

    No chance is involved.
    """
    n, draws = 7, 3
    monkeypatch.setattr(aggregate, "_CHUNK", 20)
    vae = small(encoder, context)
    x, y = 2 * torch.randn(n, 4).double(), torch.arange(n) % 2 if context else None
    found = diagnostics(vae, x, y, draws=draws, batch_size=n, seed=3)
    in_lots = aggregate.log_density_sums
    monkeypatch.setattr(MODULE, "log_density_sums", lambda *a: in_lots(*a[:-1], 2))
    again = diagnostics(vae, x, y, draws=draws, batch_size=n, seed=3)
    with torch.no_grad(), measuring(vae, 3, "diagnostics"):
        q = vae.encode(x, y)
        z = q.rsample((draws,))
        rows = [(x[j : j + 1], None if y is None else y[j : j + 1]) for j in range(n)]
        log_q = torch.stack([vae.encode(*row).log_prob(z) for row in rows])  # (component, draw, row)
        log_p = vae.prior_given(y).log_prob(z)
    low, high, rest = [], [], []
    for i in range(n):
        mine = [j for j in range(n) if y is None or y[j] == y[i]]
        others = [j for j in mine if j != i]
        inside = log_q[mine, :, i].logsumexp(0) - math.log(len(mine))
        low.append((log_q[i, :, i] - inside).mean())
        high.append((log_q[i, :, i] - log_q[others, :, i].logsumexp(0) + math.log(len(others))).mean())
        rest.append((inside - log_p[:, i]).mean())
    low, high, rest = (torch.stack(column) for column in (low, high, rest))
    for result in (found, again):
        assert result["mutual_information"] == pytest.approx(low.mean().item(), abs=1e-9)
        assert result["aggregate_kl"] == pytest.approx(rest.mean().item(), abs=1e-9)
        assert result["rate"] == pytest.approx((low + rest).mean().item(), abs=1e-9)
        assert result["mutual_information_at_most"] == pytest.approx(
            min(high.mean().item(), (low + rest).mean().item()), abs=1e-9
        )
        assert result.terms["mutual_information"][1] == pytest.approx(low.std().item() / math.sqrt(n), abs=1e-9)
        assert result.kl_per_dimension is None
    if context:
        for k in (0, 1):
            assert found.by_label[str(k)]["aggregate_kl"][0] == pytest.approx(rest[y == k].mean().item(), abs=1e-9)
            assert found.rows_by_label[str(k)] == int((y == k).sum())
        assert found.ceiling == pytest.approx((4 * math.log(4) + 3 * math.log(3)) / 7)


def test_noise_that_is_known_is_taken_out():
    """Log q − log p at the draws has a mean in closed form: the estimates are freed of its noise, and not of more.

    Over 40 seeds, against the integral's stand-in, 20,000 draws: a bias of half the spread would be seen.
    """
    truth = Ppca()
    x, _ = truth.draw(30)
    vae = truth.vae()
    exact = diagnostics(vae, x, draws=20_000)["aggregate_kl"]
    found = torch.tensor([diagnostics(vae, x, draws=10, seed=s)["aggregate_kl"] for s in range(40)])
    plain = []
    for seed in range(40):
        q = vae.encode(x)
        with measuring(vae, seed, "diagnostics"):
            z = q.sample((10,)).flatten(0, 1)
        log_mixture = q.log_prob(z[:, None]).logsumexp(1) - math.log(30)
        log_q = q.log_prob(z.unflatten(0, (10, 30)))
        # I as it is drawn, and the rate that is known: what an estimate without the correction would be.
        plain.append(
            (kl_standard(q.base_dist.loc, q.base_dist.scale).mean() - log_q.mean() + log_mixture.mean()).item()
        )
    assert abs(found.mean().item() - exact) <= limit() * found.std().item() / math.sqrt(40)
    assert found.std() < 0.6 * torch.tensor(plain).std()


# What has to be said


def zeroed(vae, scale=1.0):
    """The same q for every x: N(0, scale²)."""
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.zero_()
        vae.encoder.network.body[-1].bias[vae.encoder.features :] = 2 * math.log(scale)
    return vae


def test_a_collapsed_posterior_is_called_so():
    x = torch.randn(50, D).double()
    found = diagnostics(zeroed(Ppca().vae()), x)
    assert found["rate"] == pytest.approx(0.0, abs=1e-12)
    assert found["mutual_information"] == pytest.approx(0.0, abs=1e-12)
    assert found["aggregate_kl"] == pytest.approx(0.0, abs=1e-12)
    assert found.active == []
    assert found.finding.startswith("0 of 2 dimensions are used; in all of them the posterior has collapsed")
    assert "-0.000" not in str(found)
    # The same for every x, and yet not the prior: that is no collapse, but a waste.
    found = diagnostics(zeroed(Ppca().vae(), 0.5), x)
    cost = 2 * (0.25 - 1 - math.log(0.25)) / 2
    assert found["rate"] == pytest.approx(cost, abs=1e-9)
    assert found["mutual_information"] == pytest.approx(0.0, abs=1e-9)
    assert "collapsed" not in found.finding
    assert f"costs {cost:.3f} nats" in found.finding


def test_dimensions_that_are_not_used_are_named():
    vae = pv.vae((4,), 4, likelihood="Gaussian", hidden=()).double()
    with torch.no_grad():
        zeroed(vae)
        layer = vae.encoder.network.body[-1]
        layer.weight[1, 0] = 1.0
        layer.weight[2, 1] = 0.05  # a variance of 0.0025
        layer.bias[3] = 1.0
    found = diagnostics(vae, torch.randn(400, 4).double())
    assert found.active == [1]
    assert found.finding == (
        "1 of 4 dimensions are used: 2; in 2 (1, 3) the posterior has collapsed onto the prior (0.001 nats together); "
        "in 1 (4) its mean hardly moves with x and yet it is not the prior, which costs 0.500 nats."
    )
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines if line.endswith("not used")] == ["4", "3", "1"]


@pytest.mark.parametrize(("width", "moves", "used"), [(0.05, 0.0475, [0]), (100.0, 0.2, []), (100.0, 60.0, [0])])
def test_what_is_used_goes_by_the_priors_scale(width, moves, used):
    """A narrow prior whose mean moves by most of it, and a wide one by next to nothing of it."""
    spread = (width**2 - min(moves, 0.99 * width) ** 2) ** 0.5
    vae = pv.VAE(
        prior=lambda c: dist.Normal(torch.zeros(1).double(), width).to_event(1),
        likelihood=likelihoods.Gaussian((4,), 1),
        encoder=lambda x, c: dist.Normal(moves * x[:, :1], spread).to_event(1),
    ).double()
    found = diagnostics(vae, torch.randn(300, 4).double())
    assert found.used == used
    assert found.prior_variance.tolist() == pytest.approx([width**2])
    assert found.finding.startswith(f"{len(used)} of 1 dimensions are used")
    assert ("collapsed" in found.finding) is (not used)
    assert ("not used" in str(found)) is (not used)
    assert found.active == ([0] if moves > 0.1 else [])


def test_a_spread_that_moves_is_no_mean_that_does():
    """σ of q depends on x and its mean does not: z says something of x, and no sentence denies it."""
    vae = pv.VAE(
        prior=priors.Standard(1),
        likelihood=likelihoods.Gaussian((4,), 1),
        encoder=lambda x, c: dist.Normal(0.0 * x[:, :1], torch.where(x[:, :1] > 0, 0.1, 1.0)).to_event(1),
    ).double()
    found = diagnostics(vae, torch.randn(300, 4).double())
    assert found["mutual_information"] > 0.1
    assert "its mean hardly moves with x and yet it is not the prior" in found.finding


def test_one_row_tells_little():
    """No variance, no sentence about dimensions, and none about a y that is not there; the KL is known all the same."""
    found = diagnostics(Ppca().vae(), Ppca().draw(1)[0])
    assert found.variance.isnan().all()
    assert found.finding == "too few rows to tell which dimensions are used."
    assert "y of its own" not in str(found)
    assert "not used" not in str(found)
    assert f"{found.kl_per_dimension.max():.3f}" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["used"] is None


def test_a_mean_that_moves_with_y_alone_says_nothing_of_x():
    """Both prior and posterior at 3 y: active over all rows, and not within a label."""
    vae = pv.VAE(
        prior=lambda c: dist.Normal(3.0 * c, 1.0).to_event(1),
        likelihood=likelihoods.Gaussian((4,), 2, 2),
        encoder=lambda x, c: dist.Normal((3.0 * c).expand(*x.shape[:-1], 2), 1.0).to_event(1),
        condition=pv.OneHot(2),
    ).double()
    x, y = torch.randn(40, 4).double(), torch.arange(40) % 2
    found = diagnostics(vae, x, y)
    assert found.active == []
    assert found["rate"] == pytest.approx(0.0, abs=1e-9)
    assert "I(x; z | y)" in str(found)


def test_few_rows_and_narrow_codes_reach_the_ceiling():
    """Codes that do not overlap: I is log N whatever the draws, and the rest of the rate is the aggregate's."""
    truth = Ppca(2)
    x, y = truth.draw(20)
    found = diagnostics(truth.vae(0.0, 1e-4), x, y)
    assert found["mutual_information"] == pytest.approx(math.log(10), abs=1e-9)
    assert found.terms["mutual_information"][1] == pytest.approx(0.0, abs=1e-9)
    assert found.ceiling == pytest.approx(math.log(10))
    assert found["aggregate_kl"] == pytest.approx(found["rate"] - math.log(10), abs=1e-9)
    assert found["mutual_information_at_most"] == pytest.approx(found["rate"])
    assert "for so few rows I is at its largest, log N_y = 2.303" in str(found)


@pytest.mark.parametrize("collapsed", [True, False])
def test_active_units_where_the_mean_is_drawn(collapsed):
    """A flow has no mean: that of 100 draws varies by 0.01 itself, which must not pass for activity.

    Over 150 rows the estimate has sd 8e-4 where it is zero.
    """
    vae = small("Flow", 0)
    with torch.no_grad():
        for parameter in vae.encoder.network.parameters():
            parameter.mul_(0.0 if collapsed else 3.0)
    x = 3 * torch.randn(150, 4).double()
    found = diagnostics(vae, x, draws=1)
    assert (found.active == []) == collapsed
    assert found.variance.abs().max() < 5e-3 or not collapsed
    assert "the posterior mean hardly moves with x" in found.finding or not collapsed


def test_y_that_is_never_the_same_twice():
    """There is no aggregate given y then, and the table says so."""
    vae = pv.VAE(
        priors.Gaussian(2, 1, hidden=()),
        likelihoods.Gaussian((4,), 2, 1),
        encoders.Gaussian(2, (4,), 1),
        pv.conditions.Continuous(1),
    )
    x, y = torch.randn(9, 4), torch.rand(9, 1)
    found = diagnostics(vae, x, y)
    assert "mutual_information" not in found.terms
    assert found.ceiling is None
    assert "y of its own" in str(found)
    torch.testing.assert_close(found.variance, vae.embed(x, y).double().var(0).detach())
    again = diagnostics(vae, x, torch.ones(9, 1))
    assert again["mutual_information"] <= again.ceiling == pytest.approx(math.log(9))
    assert not again.by_label


def test_a_row_that_is_alone_of_its_label():
    """It has no others to be compared with: I is zero for it, and the bound from above is the rate."""
    truth = Ppca(3)
    x, y = truth.draw(12)
    y = torch.where(y == 2, 0, y)
    y[0] = 2
    found = diagnostics(truth.vae(), x, y)
    assert found.by_label["2"]["mutual_information"][0] == pytest.approx(0.0, abs=1e-9)
    assert found["mutual_information_at_most"] == found["rate"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_one_y_for_all_rows():
    truth = Ppca(3)
    x, _ = truth.draw(20)
    vae = truth.vae()
    one, each = (diagnostics(vae, x, y) for y in (torch.tensor(1), torch.ones(20, dtype=torch.long)))
    assert one.to_dict() == each.to_dict()


# What it must not depend on


def test_nothing_of_the_callers_is_touched():
    vae = small("Flow", 2)
    vae.encoder.add_module("dropout", nn.Dropout())
    vae.encoder.dropout.eval()
    modes = [m.training for m in vae.modules()]
    x, y = torch.randn(9, 4), torch.arange(9) % 2
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = [diagnostics(vae, x, y, seed=s).to_dict() for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in vae.modules()] == modes
    assert not list(pyro.get_param_store())
    assert found[0] == found[1] != found[2]


def test_beta_is_never_applied():
    truth = Ppca(3)
    x, y = truth.draw(30)
    vae = truth.vae()
    tables = []
    for vae.beta in (1.0, 4.0, 0.0):
        tables.append(str(diagnostics(vae, x, y)))
    assert tables[0] == tables[1] == tables[2]


def test_the_table_and_the_numbers():
    truth = Ppca(3)
    x, y = truth.draw(30)
    found = diagnostics(truth.vae(), x, y)
    head = [line[:36].rstrip() for line in str(found).splitlines()[:6]]
    assert head == [
        "30 rows, nats per datum",
        "−ELBO",
        "distortion −log p(x|z,y)",
        "rate KL(q(z|x,y) ‖ p(z|y))",
        "  mutual information I(x; z | y)",
        "  aggregate KL(q(z|y) ‖ p(z|y))",
    ]
    table = json.loads(json.dumps(found.to_dict()))
    assert table["unit"] == "nats per datum"
    assert table["rate"]["mean"] == found["rate"]
    assert sum(table["kl_per_dimension"]) == pytest.approx(found["rate"], abs=1e-9)
    assert sorted(table["by_label"]) == ["0", "1", "2"]
    assert table["active"] == [0, 1]
    wide = diagnostics(pv.vae((4,), 30, likelihood="Gaussian"), torch.randn(8, 4))
    assert "and 10 more: KL " in str(wide)


def test_what_has_no_density_is_refused():
    with pytest.raises(NoDensityError, match="Delta"):
        diagnostics(pv.ae((4,), 2), torch.zeros(5, 4))
    with pytest.raises(ConfigError, match="draws"):
        diagnostics(pv.vae((4,), 2, likelihood="Gaussian"), torch.zeros(5, 4), draws=0)
    with pytest.raises(LabelError):
        diagnostics(pv.cvae((4,), 2, 3, likelihood="Gaussian"), torch.zeros(5, 4))
    with pytest.raises(ShapeError):
        diagnostics(pv.vae((4,), 2, likelihood="Gaussian"), torch.zeros(5, 3))


# The picture


def test_the_largest_kl_comes_first_and_what_is_not_used_is_shaded():
    figure = plots.dimensions(torch.tensor([0.1, 2.0, 0.0]), torch.tensor([0.2, 0.9, 0.01]))
    (ax,) = figure.axes
    bars = [patch for patch in ax.patches if patch.get_width() == pytest.approx(0.8)]
    assert [bar.get_height() for bar in bars] == pytest.approx([2.0, 0.1, 0.0])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "1", "3"]
    (shade,) = [patch for patch in ax.patches if patch not in bars]
    assert shade.get_x() == pytest.approx(2.5)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["not used: Var E[z] ≤ 0.01"]
    assert not plots.dimensions(torch.rand(50)).legends


def test_the_picture_refuses_what_does_not_fit():
    for kl, variance in ((torch.zeros(0), None), (torch.zeros(2, 2), None), (torch.zeros(2), torch.zeros(3))):
        with pytest.raises(ShapeError, match="average over the rows"):
            plots.dimensions(kl, variance)
    with pytest.raises(DataError, match="finite"):
        plots.dimensions(torch.tensor([math.nan]))

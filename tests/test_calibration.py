"""Calibration by ranks: the exact guide passes, guides that are off fail, and what it cannot see is said.

α = 1e-6 a coordinate, 2,000 replicates of 99 draws in 20 bins.
"""

import json
import math
import re

import pyro.distributions as dist
import pytest
import torch
from ppca import Ppca
from scipy import stats

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.errors import ConfigError, DataError, LabelError, NoDensityError, ShapeError
from ppl_vae.evaluation import Calibration, calibration

# Off by a quarter of a standard deviation, or 0.8 or 1.25 times as wide; and what it should be called.
BROKEN = {"too high": (0.25, 1.0), "too low": (-0.25, 1.0), "too narrow": (0.0, 0.8), "too wide": (0.0, 1.25)}


@pytest.mark.fresh
@pytest.mark.parametrize("classes", [0, 3])
def test_the_exact_guide_passes(classes, seed):
    """And its intervals cover what they say: α = 1e-6 over the four shares, which sees 6%."""
    found = calibration(Ppca(classes).vae(), seed=seed)
    assert found.limit == pytest.approx(63.68, abs=0.005)
    assert found.passed, found
    assert found.ranks.shape == (2000, 2)
    assert list(found.coverage) == [0.5, 0.9]
    for level, share in found.coverage.items():
        low, high = stats.binom(2000, level).interval(1 - 1e-6 / 4)
        assert ((2000 * share >= low) & (2000 * share <= high)).all(), found


@pytest.mark.fresh
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_guides_fail(name, classes, seed):
    """A shift is seen with power 1 − 3e-5 in each coordinate, a width with 1 − 6e-6 or more: here one is enough."""
    found = calibration(Ppca(classes).vae(*BROKEN[name]), seed=seed)
    assert not found.passed, found
    assert name in found.verdicts
    assert str(found).endswith("calibration: FAIL")


def power(shift, stretch):
    """That of one coordinate, for a guide off by ``shift`` sd and ``stretch`` times as wide."""
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    below = stats.norm.cdf(((z - shift) / stretch).numpy())
    weight = stats.norm.pdf(z.numpy()) * (z[1] - z[0]).item()
    ranks = torch.tensor([(stats.binom.pmf(r, 99, below) * weight).sum() for r in range(100)])
    share = ranks.reshape(20, 5).sum(1)
    centre = 2000 * ((share - 0.05).square() / 0.05).sum().item()
    return stats.ncx2.sf(stats.chi2.isf(1e-6, 19), 19, centre)


def test_what_it_sees_is_what_it_says():
    """The figures of the docstring, from the law of the ranks: a χ² that is not central."""
    for off in BROKEN.values():
        assert power(*off) > 1 - 3e-5
    for off, expected in [((0.15, 1.0), 0.44), ((0.1, 1.0), 0.02), ((0.0, 0.9), 0.29), ((0.0, 1.1), 0.07)]:
        assert power(*off) == pytest.approx(expected, abs=0.01)


@pytest.mark.fresh
def test_a_guide_that_is_the_prior_is_not_seen(seed):
    """Whatever x, its draws and z* are of one law: ranks do not say that a code tells about the data."""

    def prior(c):
        return dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)

    vae = pv.VAE(prior, Ppca().vae().likelihood, lambda x, c: prior(c))
    assert calibration(vae, seed=seed).passed


def conjugate(scale=1.0):
    """Three rates z ~ Gamma(2, 1), counts x ~ Poisson(z), and the posterior, Gamma(2 + x, 2), or ``scale`` times it."""
    return pv.VAE(
        lambda c: dist.Gamma(torch.full((3,), 2.0), 1.0).to_event(1),
        lambda z, c: dist.Poisson(z).to_event(1),
        lambda x, c: dist.Gamma(2.0 + x, 2.0 / scale).to_event(1),
    )


@pytest.mark.fresh
def test_any_prior_and_likelihood_can_be_calibrated(seed):
    """Of no Gaussian; in float32. 1.25 times as large is seen: larger, and wider as well."""
    assert calibration(conjugate(), seed=seed).passed
    found = calibration(conjugate(1.25), seed=seed)
    assert not found.passed
    assert set(found.verdicts) <= {"ok", "too high"}


@pytest.mark.fresh
def test_equal_draws_are_in_random_order(seed):
    """A z of 0 or 1, with its posterior: ranks that counted ties on one side would pile up at its ends."""
    q = 0.3

    def posterior(x, c):
        # log p(x | 1) − log p(x | 0) for x ~ N(z, 1) is x − ½.
        return dist.Bernoulli(logits=x - 0.5 + math.log(q / (1 - q))).to_event(1)

    vae = pv.VAE(
        lambda c: dist.Bernoulli(torch.full((2,), q)).to_event(1),
        lambda z, c: dist.Normal(z, 1.0).to_event(1),
        posterior,
    )
    assert calibration(vae, seed=seed).passed
    vae.encoder = lambda x, c: posterior(x + 1, c)
    assert not calibration(vae, seed=seed).passed


def test_a_learned_guide_is_reported():
    """After little training the table says what is wrong; nothing is asserted of it but that it is said."""
    data = pv.data.load("digits").head(256)
    vae = pv.cvae(data.x_shape, 12, 10, likelihood="Binomial", levels=17, range=data.range, hidden=(16,))
    pv.fit(vae, data.train, epochs=2, progress=False, device="cpu")
    found = calibration(vae, replicates=400, draws=19, bins=10)
    lines = str(found).splitlines()
    assert "12" not in lines[0]
    assert sum(line.startswith("latent dimension") for line in lines) == 10
    assert "and 2 more, of smaller χ²" in lines
    assert lines[-1] == f"calibration: {'pass' if found.passed else 'FAIL'}"
    told = json.loads(json.dumps(found.to_dict()))
    assert len(told["chi_square"]) == len(told["coverage"]["0.9"]) == len(told["verdicts"]) == 12
    assert told["passed"] is found.passed
    assert found.chi_square.dtype == torch.float64


# The numbers that follow from ranks


def ranks(*columns):
    return torch.tensor(columns).T


def test_chi_square_is_scipys():
    """Of ranks that are uniform, of some that are all alike, and of any."""
    some = torch.randint(100, (2000,)).tolist()
    found = Calibration(ranks(list(range(100)) * 20, [99] * 2000, some), 99, 20, 1e-6)
    counts = [[sum(r // 5 == b for r in column) for b in range(20)] for column in found.ranks.T.tolist()]
    expected = [stats.chisquare(column).statistic for column in counts]
    assert found.chi_square.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.chi_square[:2].tolist() == [0.0, 38_000.0]
    assert found.verdicts == ["ok", "too low", "ok"]
    assert not found.passed


@pytest.mark.parametrize(("draws", "levels"), [(99, [0.5, 0.9]), (19, [0.5, 0.9]), (9, [0.6, 1.0])])
def test_coverage_is_that_of_the_draws_own_intervals(draws, levels):
    """Between order statistics of the draws: of all ranks once, exactly the probability that it says."""
    found = Calibration(ranks(list(range(draws + 1))), draws, 2, 1e-6)
    assert list(found.coverage) == pytest.approx(levels)
    assert [share.item() for share in found.coverage.values()] == pytest.approx(levels)


def test_ranks_of_another_shape_are_called_so():
    """Two waves over the ranks: neither place nor width is off, and the χ² is. A shift and a width keep their words."""
    u = torch.rand(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = u[torch.rand(len(u), generator=torch.Generator().manual_seed(1)) < (1 + 0.5 * (8 * math.pi * u).cos()) / 1.5]
    low = kept.square()
    found = Calibration(torch.stack([(100 * t).long().clamp(max=99) for t in (kept, low, 1 - low)], 1), 99, 20, 1e-6)
    assert found.verdicts == ["of another shape", "too high", "too low"]


# Which y


def test_labels_are_drawn_from_all_classes_or_those_given(monkeypatch):
    seen = []
    vae = Ppca(3).vae()
    prior_given = vae.prior_given
    monkeypatch.setattr(vae, "prior_given", lambda y: (seen.append(y), prior_given(y))[1])

    def counts(**options):
        seen.clear()
        assert calibration(vae, replicates=300, draws=19, **options).passed
        assert [len(y) for y in seen] == [250, 50]
        return torch.cat(seen).bincount(minlength=3).tolist()

    assert min(counts()) > 60
    assert counts(y=1) == [0, 300, 0]
    assert counts(y=torch.tensor([2])) == [0, 0, 300]
    some = counts(y=[0, 2])
    assert some[1] == 0
    assert min(some[0], some[2]) > 100


def test_conditions_of_several_labels_or_of_none():
    many = pv.vae((4,), 2, condition=pv.conditions.OneHots((2, 3)), context=5, hidden=(4,))
    assert calibration(many, replicates=100, draws=19).ranks.shape == (100, 2)
    real = pv.vae((4,), 2, condition=pv.conditions.Continuous(1), context=1, hidden=(4,))
    assert calibration(real, torch.randn(7, 1), replicates=100, draws=19).ranks.shape == (100, 2)
    assert calibration(real, torch.randn(1), replicates=100, draws=19).ranks.shape == (100, 2)
    with pytest.raises(LabelError, match=r"expected y, of which Continuous .* pass one"):
        calibration(real, replicates=100, draws=19)


# What it must not touch, and must refuse


def test_leaves_everything_as_it_was():
    vae = pv.cvae((4,), 2, 3, hidden=(4,)).train()
    vae.encoder.eval()
    modes = [m.training for m in vae.modules()]
    before = torch.get_rng_state()
    first = calibration(vae, replicates=100, draws=19)
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in vae.modules()] == modes
    assert torch.equal(first.ranks, calibration(vae, replicates=100, draws=19).ranks)
    assert not torch.equal(first.ranks, calibration(vae, replicates=100, draws=19, seed=1).ranks)
    vae.beta = 4.0
    assert torch.equal(first.ranks, calibration(vae, replicates=100, draws=19).ranks)


@pytest.mark.parametrize(
    ("make", "y", "error", "message"),
    [
        (lambda: pv.ae((4,), 2, hidden=(4,)), None, NoDensityError, "no p"),
        (lambda: pv.vae((4,), 2, encoder="Delta", hidden=(4,)), None, NoDensityError, "point encoder"),
        (lambda: pv.vae((4,), 2, hidden=(4,)), 1, LabelError, "no condition"),
        (lambda: pv.cvae((4,), 2, 3, hidden=(4,)), 3, LabelError, "expected labels 0 … 2, got 3"),
        (lambda: pv.cvae((4,), 2, 3, hidden=(4,)), torch.zeros(0).long(), LabelError, "at least one y"),
    ],
)
def test_models_and_labels_it_cannot_take(make, y, error, message):
    with pytest.raises(error, match=message):
        calibration(make(), y, replicates=100, draws=19)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 100}, "draws \\+ 1 to be a multiple of bins ≥ 2, got draws=100 and bins=20"),
        ({"bins": 1}, "bins ≥ 2"),
        ({"replicates": 99}, "at least 5 replicates a bin.* got 99 for 20"),
        ({"replicates": 0}, "replicates to be a whole number ≥ 1"),
        ({"batch_size": 2.5}, "batch_size to be a whole number"),
        ({"alpha": 0.0}, "0 < alpha < 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        calibration(pv.vae((4,), 2, hidden=(4,)), **options)


# The picture


def test_the_picture_shows_the_worst_first_and_the_band_of_uniform_ranks():
    flat, high = list(range(100)) * 20, [99] * 1000 + list(range(100)) * 10
    some = [0] * 50 + list(range(100)) * 19 + list(range(50))
    figure = plots.calibration(ranks(flat, high, some), draws=99, worst=2, title="T")
    assert [ax.get_title() for ax in figure.axes] == ["latent dimension 2", "latent dimension 3"]
    heights = [bar.get_height() for bar in figure.axes[0].patches[1:]]
    assert heights == [50] * 19 + [1050]
    band = figure.axes[0].patches[0].get_bbox()
    assert (band.y0, band.y1) == stats.binom(2000, 1 / 20).interval(0.99)
    assert len(plots.calibration(ranks(*[flat] * 9), draws=99).axes) == 6
    assert len(plots.calibration(ranks([0, 1, 2, 3] * 5), draws=3, bins=2).axes[0].patches) == 3


def test_the_docstring_draws_what_was_found():
    """Of other draws than most, too, whose ranks do not tell how many they are of."""
    found = calibration(pv.vae((4,), 2), replicates=100, draws=19, bins=10)
    drawn = re.search(r"``(plots\.calibration\(.*\))``", calibration.__doc__).group(1)
    figure = eval(drawn, {"plots": plots, "found": found})
    for axes in figure.axes:
        assert axes.get_xlim() == (-0.5, 19.5)
        band, *bars = axes.patches
        assert len(bars) == 10
        assert sum(bar.get_height() for bar in bars) == 100
        assert (band.get_bbox().y0, band.get_bbox().y1) == stats.binom(100, 1 / 10).interval(0.99)
    with pytest.raises(TypeError, match="draws"):
        plots.calibration(found.ranks)


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        (torch.zeros(5), {}, ShapeError, r"expected ranks \(N, L\), got \(5,\)"),
        (torch.zeros(0, 2), {}, ShapeError, r"got \(0, 2\)"),
        (torch.full((5, 1), 100), {}, DataError, "whole ranks from 0 to 99, got 100 … 100"),
        (torch.full((5, 1), 0.5), {}, DataError, "whole ranks"),
        (torch.full((5, 1), math.nan), {}, DataError, "whole ranks"),
        (torch.zeros(5, 1), {"bins": 3}, DataError, "divide draws"),
    ],
)
def test_ranks_that_are_none(given, options, error, message):
    with pytest.raises(error, match=message):
        plots.calibration(given, draws=99, **options)

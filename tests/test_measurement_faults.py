"""What measurements owe to unusual models and data: a right number or an error that says so, and bounded memory."""

import math
import warnings
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import ppl_vae as pv
from ppl_vae.distributions import zuko
from ppl_vae.errors import ConfigError, PartError, ShapeError
from ppl_vae.evaluation import (
    Calibration,
    aggregate,
    annealing,
    audit,
    bounds,
    calibration,
    compare,
    diagnostics,
    evaluate,
    label_use,
    log_likelihood,
    quality,
    simulate,
)
from ppl_vae.evaluation.pareto import good_below, pareto_k, tail_length
from ppl_vae.model import density_numbers

FEW = {"temperatures": 3, "chains": 2, "leapfrog": 1}
MEASUREMENTS = {
    "audit": lambda vae, x, y: audit(vae, x, y, particles=3),
    "log_likelihood": lambda vae, x, y: log_likelihood(vae, x, y, samples=30, progress=False),
    # Of the caller's random numbers.
    "log_prob": lambda vae, x, y: (torch.manual_seed(0), vae.log_prob(x, y, samples=30))[1],
    "diagnostics": diagnostics,
    "evaluate": lambda vae, x, y: evaluate(vae, x, y, samples=30),
    "bounds": lambda vae, x, y: bounds(vae, x, y, **FEW),
    "bounds from the prior": lambda vae, x, y: bounds(vae, x, y, start="prior", **FEW),
}


class Angles(nn.Module):
    features = 2

    def forward(self, x, c=None):
        return dist.VonMises(torch.zeros(*x.shape[:-1], 2), torch.ones(2)).to_event(1)


PERIODIC = {
    "VonMises": lambda: pv.priors.Fixed(dist.VonMises, 0.0, 1.0, features=2),
    "NCSF": lambda: pv.Unconditional(zuko.flows.NCSF(2)),
    "a chain that begins with angles": lambda: pv.Chain(
        pv.priors.Fixed(dist.VonMises, 0.0, 1.0, features=1), pv.Unconditional(pv.priors.Standard(1))
    ),
}


@pytest.mark.parametrize("name", PERIODIC)
def test_angles_are_not_annealed_as_if_they_were_numbers(name):
    """Their densities repeat, so that a z that moves beyond π would be counted once more: nats above log p(x)."""
    x = torch.randn(6, 4)
    for encoder in (Angles(), pv.encoders.Gaussian(2, (4,))):
        vae = pv.VAE(PERIODIC[name](), pv.likelihoods.Gaussian((4,), 2), encoder)
        for start in ("prior", "encoder"):
            with pytest.raises(PartError, match=r"prior: expected a density over all of R.*angles.*log_prob"):
                bounds(vae, x, start=start, **FEW)
    with pytest.raises(PartError, match="density of angles"):
        log_likelihood(vae, x, samples=5, progress=False)
    vae = pv.VAE(pv.priors.Standard(2), pv.likelihoods.Gaussian((4,), 2), Angles())
    with pytest.raises(PartError, match=r"encoder: expected a density over all of R.*angles.*start='prior'"):
        bounds(vae, x, **FEW)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_parts_that_ignore_what_they_are_given(name):
    """One distribution for all rows, or for all draws: the same number as from parts that say it for each."""
    x = torch.randn(6, 4)
    likelihood, encoder = pv.likelihoods.Gaussian((4,), 2), pv.encoders.Gaussian(2, (4,))
    one = lambda x, c: dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1)  # noqa: E731
    each = lambda x, c: dist.Normal(x.new_zeros(*x.shape[:-1], 2), 1.0).to_event(1)  # noqa: E731
    flat = lambda z, c: dist.Normal(torch.zeros(4).to(z), 1.0).to_event(1)  # noqa: E731
    wide = lambda z, c: dist.Normal(z.new_zeros(*z.shape[:-1], 4), 1.0).to_event(1)  # noqa: E731
    pairs = [((likelihood, one), (likelihood, each)), ((flat, encoder), (wide, encoder))]
    for pair in pairs:
        found = [str(MEASUREMENTS[name](pv.VAE(pv.priors.Standard(2), *parts), x, None)) for parts in pair]
        assert found[0] == found[1]


TAKES_GRADIENTS = ["audit", "bounds", "bounds from the prior"]


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_number_is_the_same_wherever_gradients_are_recorded(name):
    """An audit of zeros with zeros would pass, and moves without a force are those of another sampler."""
    vae, x, y = pv.cvae((4,), 2, 3, likelihood="Gaussian"), torch.randn(6, 4), torch.arange(6) % 3
    expected = str(MEASUREMENTS[name](vae, x, y))
    with torch.no_grad():
        assert str(MEASUREMENTS[name](vae, x, y)) == expected
    with torch.inference_mode():
        if name in TAKES_GRADIENTS:
            told = rf"{name.split()[0]}: no gradient is recorded inside torch.inference_mode\(\): call it outside"
            with pytest.raises(ConfigError, match=told):
                MEASUREMENTS[name](vae, x, y)
        else:
            assert str(MEASUREMENTS[name](vae, x, y)) == expected


@pytest.mark.parametrize("name", [*MEASUREMENTS, "quality"])
def test_a_number_is_of_the_models_precision_inside_autocast(name):
    """``VAE.log_prob`` is no measurement, but a method of the model, and does as it is told."""
    measure = {"quality": lambda vae, x, y: quality(vae, (x, y), (x, y), steps=5)} | MEASUREMENTS
    vae, x, y = pv.cvae((4,), 2, 3, likelihood="Gaussian"), torch.randn(30, 4), torch.arange(30) % 3
    expected = str(measure[name](vae, x, y))
    with torch.autocast("cpu", torch.bfloat16):
        assert (str(measure[name](vae, x, y)) == expected) == (name != "log_prob")


def test_a_judge_is_not_trained_where_no_gradient_is_recorded():
    vae, x, y = pv.cvae((4,), 2, 3, likelihood="Gaussian"), torch.randn(30, 4), torch.arange(30) % 3
    expected = quality(vae, (x, y), (x, y), steps=5)
    with torch.no_grad():
        assert str(quality(vae, (x, y), (x, y), steps=5)) == str(expected)
    with torch.inference_mode():
        with pytest.raises(ConfigError, match=r"train_judge: no gradient .*inference_mode\(\)"):
            quality(vae, (x, y), (x, y), steps=5)
        # With one that is trained already nothing has to be learned.
        assert str(quality(vae, (x, y), (x, y), judge=expected.judge)) == str(expected)


def test_an_audit_of_a_model_that_is_not_trained_says_that_it_saw_no_gradient():
    """Of the loss alone it passes; no row of zeros is called right."""
    vae = pv.vae((4,), 2, likelihood="Gaussian").requires_grad_(False)
    found = audit(vae, torch.randn(6, 4), particles=3)
    gradients = [row for row in found.rows if row.what == "gradient"]
    assert gradients
    assert all(row.value is None and row.note == "no parameter of a module is to be trained" for row in gradients)
    assert found.passed
    assert found.line.startswith("audit: pass: SVI against the same written by hand: loss of Trace_ELBO, ")


def test_a_column_of_labels_is_no_label_a_row():
    vae, x, y = pv.cvae((4,), 2, 3, likelihood="Gaussian"), torch.randn(30, 4), torch.arange(30) % 3
    others = {
        "calibration": lambda vae, x, y: calibration(vae, y, replicates=100, draws=19),
        "simulate": lambda vae, x, y: simulate(vae, len(x), y),
        "the prior's": lambda vae, x, y: log_likelihood(vae, x, y, samples=30, proposal="prior", progress=False),
    }
    for measure in (MEASUREMENTS | others).values():
        with pytest.raises(ShapeError, match=r"\(30, 1\): pass y.squeeze\(-1\)"):
            measure(vae, x, y[:, None])
    # One y for all, which a condition of vectors has as well.
    pv.VAE(pv.priors.Gaussian(2, 3), *_parts(3), pv.conditions.Continuous(3)).check_values(x, torch.zeros(3))


def _parts(context):
    return pv.likelihoods.Gaussian((4,), 2, context), pv.encoders.Gaussian(2, (4,), context)


class Constants(nn.Module):
    """An encoder with numbers in single precision that no module knows of."""

    def __init__(self, broadcast):
        super().__init__()
        self.broadcast = broadcast

    def forward(self, x, c):
        batch = torch.broadcast_shapes(x.shape[:-1], c.shape[:-1]) if self.broadcast else x.shape[:1]
        return dist.Normal(torch.zeros(*batch, 2), 1.0).to_event(1)


@pytest.mark.parametrize("semisupervised", [False, True])
def test_a_model_that_cannot_be_doubled_is_audited_in_its_own_precision(semisupervised):
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    vae = pv.VAE(pv.priors.Standard(2), _parts(3)[0], Constants(semisupervised), pv.OneHot(3))
    if semisupervised:
        vae, y = pv.SemiSupervised(vae, pv.encoders.Classifier(3, (4,))), torch.where(y == 0, 0, -1)
    assert audit(vae, x, y, particles=5, objectives=[Trace_ELBO()]).passed
    if not semisupervised:
        assert audit(vae, x, y, particles=5).passed


@pytest.mark.parametrize(("encoder", "numbers"), [("Flow", 64), ({"name": "Mixture", "components": 50}, 200)])
def test_the_aggregate_posterior_is_as_large_as_its_densities_are(encoder, numbers, monkeypatch):
    vae = pv.vae((6,), 4, encoder=encoder, likelihood="Gaussian", hidden=(8,))
    assert density_numbers(vae.encoder) >= numbers
    monkeypatch.setattr(aggregate, "_CHUNK", 5 * 20 * density_numbers(vae.encoder))
    sizes, pairs = [], aggregate._pairs
    monkeypatch.setattr(aggregate, "_pairs", lambda q, z: sizes.append(len(z)) or pairs(q, z))
    with torch.no_grad():
        aggregate.log_density_sums(vae, torch.randn(20, 6), None, torch.randn(17, 4), torch.full((17,), -1), 20)
    assert sizes == [5, 5, 5, 2]


def test_a_mixed_recording_is_held_against_the_mixed_program():
    """Few pixels under a flow: its rounding in bfloat16 is more than what a recording may be off by."""
    for seed in range(8):
        torch.manual_seed(seed)
        x, vae = torch.randn(9, 6), pv.vae((6,), 3, likelihood="Gaussian", prior="NSF", hidden=(16,))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            log_likelihood(vae, x, samples=60, precision="bf16-mixed", capture="graph", progress=False)


def test_few_rows_ask_for_more_standard_errors():
    """Student's quantiles: of four rows, chance makes 4.9 standard errors far more often than once in a million."""
    vae = pv.cvae((4,), 2, 2, likelihood="Gaussian")
    limits = []
    for n in (4, 12, 400):
        limits.append(pv.evaluation.label_use(vae, torch.randn(n, 4), torch.arange(n) % 2, samples=5)._limit(n - 1))
    assert limits == pytest.approx([130.2, 9.3, 4.95], rel=0.05)
    assert "z is not seen to tell" in str(
        pv.evaluation.label_use(vae, torch.randn(4, 4), torch.arange(4) % 2, samples=5).finding
    )


def test_forces_fit_the_precision():
    for dtype in (torch.float16, torch.float32, torch.float64):
        force = annealing._force(torch.tensor([math.inf, -math.inf, math.nan, 2.0], dtype=dtype))
        assert force.isfinite().all()
        assert force.dtype == dtype
        assert force[3] == 2


def test_a_seed_has_64_bits():
    with pytest.raises(ConfigError, match="seed: expected a whole number of 64 bits"):
        log_likelihood(pv.vae((4,), 2, likelihood="Gaussian"), torch.zeros(2, 4), samples=2, seed=10**20)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_not_measured(dtype):
    vae, x = pv.vae((6,), 2, likelihood="Gaussian", hidden=(4,)).to(dtype), torch.randn(20, 6)
    step = {torch.bfloat16: "0.5", torch.float16: "0.062"}[dtype]
    measures = log_likelihood, pv.evaluate, pv.evaluation.bounds, pv.evaluation.diagnostics, pv.VAE.log_prob
    for measure in measures:
        with pytest.raises(ConfigError, match=rf"got {dtype}, in which .* in steps of {step}: call vae\.float\(\)"):
            measure(vae, x)
    # What is drawn is no log-density.
    assert pv.evaluation.simulate(vae, 3)[0].dtype == dtype
    assert math.isfinite(pv.evaluate(vae.float(), x, samples=5, progress=False)["neg_log_prob"])


def test_a_comparison_says_who_is_given_y_and_which_pixels_are_seen():
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    plain, given = pv.vae((4,), 2, likelihood="Gaussian"), pv.cvae((4,), 2, 3, likelihood="Gaussian")
    found = {
        "of x": evaluate(plain, x, samples=30),
        "of x given y": evaluate(given, x, y, samples=30),
        "of half of x": evaluate(plain, x, mask=torch.rand(60, 4) < 0.5, samples=30),
    }
    comparison = compare(found)
    assert math.isfinite(comparison.difference("of x given y")[0])
    assert "given y: of x given y; not: of x, of half of x" in str(comparison)
    assert all(math.isnan(comparison.difference("of half of x", term)[0]) for term in comparison.terms)
    assert "no difference between other pixels means anything (of x: 100.0% seen, " in str(comparison)
    alike = str(compare({name: found["of x"] for name in ("one", "two")}))
    assert "given y" not in alike
    assert "other pixels" not in alike


def test_halves_that_are_other_pixels_have_no_difference():
    """The left and the top half of an image are as many pixels; those of a mask that says all are the same as ever."""
    vae, x = pv.vae((1, 4, 4), 2, likelihood="Gaussian", hidden=(4,)), torch.randn(20, 1, 4, 4)
    left, top, whole = torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x, dtype=torch.bool), x == x
    left[..., :2], top[..., :2, :] = True, True
    masks = {"left": left, "top": top, "left again": left.clone(), "whole": whole, "all": None}
    found = {name: evaluate(vae, x, mask=mask, samples=30) for name, mask in masks.items()}
    assert found["left"].seen == found["top"].seen == 0.5
    other = compare({name: found[name] for name in ("left", "top")})
    assert all(math.isnan(other.difference("top", term)[0]) for term in other.terms)
    said = ", ".join(f"{name}: 50.0% seen by mask {found[name].pixels}" for name in ("left", "top"))
    assert f"no difference between other pixels means anything ({said})" in str(other)
    # Of old there was no digest, and the share alone tells.
    old = {"left, of old": replace(found["left"], pixels=None), "top": found["top"]}
    for pair in ({name: found[name] for name in ("left", "left again")}, old, dict(list(found.items())[-2:])):
        alike = compare(pair)
        assert all(math.isfinite(alike.difference(list(pair)[1], term)[0]) for term in alike.terms)
        assert "other pixels" not in str(alike)
    written = [found[name].to_dict()["pixels"] for name in masks]
    assert written[0] == written[2] == found["left"].pixels
    assert len(set(written)) == 4
    assert written[-1] is None


def test_labels_without_rows_are_no_degrees_of_freedom():
    """Six rows of two labels out of ten: no limit of a t distribution has −4 of them, and nothing leaks here."""
    vae = pv.cvae((4,), 2, 10, likelihood="Gaussian", prior="Standard")
    for seed in range(10):
        torch.manual_seed(seed)
        x, y = 10 * torch.randn(6, 4), torch.arange(6) % 2
        assert "leaks" not in label_use(vae, x, y, samples=5, p_y=torch.full((10,), 0.1)).finding


@pytest.mark.parametrize("samples", [200_000, 10**6])
def test_one_weight_that_is_everything_is_never_good(samples):
    """Beyond 1e-323 of it the others are zeros, of which k̂ of a long tail once came to 0.24."""
    n = tail_length(samples) + 1
    for log_w in (-1000 * torch.arange(1, n + 1).double().log(), torch.full((n,), -2000.0).double()):
        log_w[0] = 0.0
        assert pareto_k(log_w[:, None]).item() == math.inf
    assert not math.inf < good_below(samples)


def test_pixels_that_do_not_say_where_they_lie():
    class Mine(dist.TorchDistribution):
        arg_constraints = {}  # noqa: RUF012

        def __init__(self, loc):
            self.loc = loc
            super().__init__(loc.shape, validate_args=False)

        def sample(self, sample_shape=()):
            return self.loc + torch.randn(*sample_shape, *self.loc.shape)

        def log_prob(self, value):
            return dist.Normal(self.loc, 1.0).log_prob(value)

    layer, x = nn.Linear(2, 4), torch.randn(8, 4)
    encoder = pv.encoders.Gaussian(2, (4,))
    vae = pv.VAE(pv.priors.Standard(2), lambda z, c: Mine(layer(z)).to_event(1), encoder)
    twin = pv.VAE(pv.priors.Standard(2), lambda z, c: dist.Normal(layer(z), 1.0).to_event(1), encoder)
    found, expected = (evaluate(model, x, samples=5) for model in (vae, twin))
    assert found.discrete is None
    assert expected.discrete is False
    torch.testing.assert_close(found.values["reconstruction"], expected.values["reconstruction"])


def test_the_second_network_of_a_chain_is_run_for_every_z():
    """And for every pair of a z and a row, where an aggregate posterior is asked for."""
    chain = {"name": "Chain", "first": "Gaussian", "second": "Gaussian"}
    sizes = {"Gaussian": 0, "masked mixture": 6, "chain": 300, "chain in a wrapper": 300}
    masked = {"name": "Masked", "part": {"name": "Mixture", "components": 3}}
    parts = {"masked mixture": masked, "chain": chain, "chain in a wrapper": {"name": "Masked", "part": chain}}
    for name, size in sizes.items():
        vae = pv.vae((64,), 2, likelihood="Gaussian", encoder=parts.get(name, name), hidden=(300,))
        assert density_numbers(vae.encoder) == size, name


@pytest.mark.parametrize(("probabilities", "verdict"), [((0.23, 0.24, 0.26, 0.27), "too low"), ((0.4, 0.6), "too low"),
                                                        ((0.3, 0.2, 0.2, 0.3), "too narrow")])  # fmt: skip
def test_verdicts_of_few_draws(probabilities, verdict):
    """Ranks of few draws vary less than uniform numbers do: that is not a guide that is too wide."""
    torch.manual_seed(0)
    ranks = torch.multinomial(torch.tensor(probabilities), 20_000, True)[:, None]
    assert Calibration(ranks, len(probabilities) - 1, len(probabilities), 1e-6).verdicts == [verdict]

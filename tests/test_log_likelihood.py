"""``log_likelihood``: exact where the guide is, honest where it is not, and the same however it is computed."""

import dataclasses
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from ppca import D, L, Ppca, limit
from torch.distributions import Independent, Normal

import ppl_vae as pv
from ppl_vae.capture import CaptureWarning, TwoStages
from ppl_vae.distributions import as_pyro
from ppl_vae.errors import CaptureError, ConfigError, DataError, NoDensityError, NonFiniteError
from ppl_vae.evaluation import compare, diagnostics, likelihood, log_likelihood
from ppl_vae.evaluation.pareto import good_below, pareto_k, tail_length

QUIET = {"progress": False}
BACKENDS = ["off", "graph", "inductor"]


# log p̂


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("capture", BACKENDS)
@pytest.mark.parametrize("samples", [1, 7, 333])
def test_exact_posterior(classes, capture, samples, monkeypatch):
    """Every weight is p(x | y): for any number of samples, rows that fill no block, and chunks that nothing divides."""
    monkeypatch.setattr(likelihood, "_ROWS", 8)
    truth = Ppca(classes)
    x, y = truth.draw(21)
    found = log_likelihood(truth.vae(), x, y, samples=samples, capture=capture, memory=500, **QUIET)
    torch.testing.assert_close(found.values, truth.log_prob(x, y), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.curve, found.values.expand_as(found.curve), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.ess, torch.full((21,), float(samples)).double())
    if samples > 1:
        assert found.standard_error.max() < 1e-6
    if samples == 333:
        assert found.warning() is None


@pytest.mark.parametrize("proposal", ["encoder", "prior"])
@pytest.mark.parametrize("capture", ["off", "graph"])
def test_estimates_and_their_standard_errors(proposal, capture):
    """(log p̂ − log p) / se is about N(0, 1) over 400 rows: mean and square mean within chance.

    |mean| ≤ 4.89/√400 sees standard errors or values that are off by half of one; the mean square sees standard errors
    that are off by 20%.
    """
    truth = Ppca(3)
    x, y = truth.draw(400)
    found = log_likelihood(truth.vae(0.3, 1.5), x, y, samples=4000, proposal=proposal, capture=capture, **QUIET)
    assert found.proposal == proposal
    keep = found.good & (found.ess > 100)
    z = ((found.values - truth.log_prob(x, y)) / found.standard_error)[keep]
    n = len(z)
    assert n > 200
    # log p̂ is biased by half its variance.
    bias = (found.standard_error[keep] / 2).mean().item()
    assert abs(z.mean().item()) <= limit(2) / math.sqrt(n) + bias
    assert abs(z.square().mean().item() - 1) <= limit(2) * math.sqrt(2 / n) + 0.1


def test_sums_by_hand(monkeypatch):
    """The streamed results against the weights kept whole, in odd chunks."""
    truth = Ppca()
    x, _ = truth.draw(5)
    vae, kept = truth.vae(0.3, 1.5), []
    original = vae.log_weights
    monkeypatch.setattr(vae, "log_weights", lambda *a, **k: (kept.append(w) or w for w in original(*a, **k)))
    found = log_likelihood(vae, x, samples=1003, memory=8 * 5 * 13, capture="off", **QUIET)
    assert {len(w) for w in kept} == {13, 1003 % 13}
    log_w = torch.cat(kept).double()
    w = log_w.exp()
    torch.testing.assert_close(found.values, w.mean(0).log())
    torch.testing.assert_close(found.ess, w.sum(0).square() / w.square().sum(0))
    torch.testing.assert_close(found.standard_error, w.std(0) / w.mean(0) / math.sqrt(1003))
    torch.testing.assert_close(found.pareto_k, pareto_k(log_w.sort(0).values[-tail_length(1003) - 1 :]))
    assert found.points == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1003)
    by_hand = torch.stack([w[:n].mean(0).log() for n in found.points])
    torch.testing.assert_close(found.curve, by_hand)


@pytest.mark.parametrize("prior", ["Gaussian", "Vamp", "NSF", "Mixture"])
@pytest.mark.parametrize("proposal", ["encoder", "prior"])
def test_backends_give_the_same_numbers(prior, proposal):
    """The same chunks, so the same draws; whatever the prior."""
    torch.manual_seed(0)
    vae = pv.cvae((6,), 2, 3, prior=prior, hidden=(8,)).double()
    x, y = torch.rand(7, 6).round(), torch.arange(7) % 3
    options = {"samples": 50, "memory": 10 * vae.numbers(x), "proposal": proposal, **QUIET}
    off, graph = (log_likelihood(vae, x, y, capture=capture, **options) for capture in ("off", "graph"))
    for name in ("values", "standard_error", "ess", "pareto_k", "curve"):
        torch.testing.assert_close(getattr(off, name), getattr(graph, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("y", [1, torch.tensor(1)])
def test_one_label_for_all(y):
    truth = Ppca(3)
    x, _ = truth.draw(10)
    for capture in ("off", "graph"):
        found = log_likelihood(truth.vae(), x, y, samples=3, capture=capture, **QUIET)
        torch.testing.assert_close(found.values, truth.log_prob(x, torch.ones(10, dtype=torch.long)), rtol=0, atol=1e-9)


def test_memory_is_bounded_whatever_the_number_of_samples():
    """No tensor larger than the option says is ever decoded."""
    vae, decoded = pv.vae((1, 8, 8), 2, likelihood="Gaussian"), []
    vae.check(torch.rand(3, 1, 8, 8))  # Parts are tried once, on a row.
    handle = vae.likelihood.register_forward_hook(lambda _, __, p: decoded.append(p.batch_shape.numel() * 64))
    for samples in (10, 10_000):
        decoded.clear()
        log_likelihood(vae, torch.rand(3, 1, 8, 8), samples=samples, memory=64_000, capture="off", **QUIET)
        assert sum(decoded) == 3 * samples * 64
        assert max(decoded) <= 64_000
    handle.remove()


@pytest.mark.fresh
def test_an_autoencoder_with_a_prior_is_measured_from_its_prior(seed):
    """A point proposes nothing; draws from p(z) do, here with log p(x) in closed form."""
    truth = Ppca()
    x, _ = truth.draw(20)
    vae = truth.vae()
    vae.encoder = pv.encoders.Delta(L, (D,), hidden=()).double()
    with pytest.raises(NoDensityError, match="proposal='prior'"):
        log_likelihood(vae, x, samples=10, **QUIET)
    found = log_likelihood(vae, x, samples=20_000, proposal="prior", seed=seed, **QUIET)
    z = (found.values - truth.log_prob(x)) / found.standard_error
    assert z[found.good].abs().max() <= limit(20)


def test_bf16_is_near():
    """To hundredths of a nat in the mean, with the same draws; and not the same number, or nothing was in bfloat16."""
    torch.manual_seed(0)
    vae, x = pv.vae((1, 28, 28), 8, hidden=(32,)), torch.rand(16, 1, 28, 28).round()
    for capture in ("off", "graph"):
        options = {"samples": 200, "capture": capture, **QUIET}
        exact, near = (log_likelihood(vae, x, precision=p, **options).values for p in ("32", "bf16-mixed"))
        assert 0 < (exact - near).abs().mean() < 0.05


@pytest.mark.parametrize("memory", [1, 100, 5_000, 10**7])
def test_a_recorded_chunk_keeps_to_the_memory(memory):
    """Rows times samples of a chunk, decoded, are no more numbers than asked for; and all samples are drawn in all."""
    vae, x = pv.vae((5, 4), 2, likelihood="Gaussian"), torch.zeros(9, 5, 4)
    estimator = likelihood.Estimator(vae.eval(), 333, memory=memory, capture="graph")
    estimator.prepare(x)
    assert estimator.rows * estimator.chunk * 20 <= max(memory, 20)
    assert estimator.recorded().shape == (estimator.chunk, estimator.rows)
    assert math.ceil(333 / estimator.chunk) * estimator.chunk >= 333


def test_an_estimator_has_the_memory_of_its_device(monkeypatch):
    """So that a benchmark of it, without a word on memory, is one of ``log_likelihood`` without one."""
    vae, made, init = pv.vae((5, 4), 2, likelihood="Gaussian"), [], likelihood.Estimator.__init__

    def spy(self, *args):
        init(self, *args)
        made.append(self)

    monkeypatch.setattr(likelihood.Estimator, "__init__", spy)
    log_likelihood(vae, torch.zeros(3, 5, 4), samples=5, **QUIET)
    log_likelihood(vae, torch.zeros(3, 5, 4), samples=5, memory=100, **QUIET)
    likelihood.Estimator(vae, 5)
    likelihood.Estimator(SimpleNamespace(_beta=SimpleNamespace(is_cuda=True)), 5)
    assert [estimator.memory for estimator in made] == [2**22, 100, 2**22, 2**28]


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_counts_the_rows(shown, capsys):
    vae = pv.vae((6,), 2, likelihood="Gaussian")
    log_likelihood(vae, torch.zeros(70, 6), samples=4, progress=shown)
    assert ("70/70" in capsys.readouterr().err) is shown


def test_the_caller_keeps_what_is_his():
    vae = pv.vae((6,), 2, likelihood="Gaussian").train()
    state = torch.get_rng_state()
    options = {"samples": 30, **QUIET}
    values = [log_likelihood(vae, torch.zeros(4, 6), seed=seed, **options).values for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert vae.training


# What is said of the number


def test_warns_where_a_few_draws_decide():
    """A posterior far narrower than the prior that proposes: heavy weights, and a number below log p."""
    truth = Ppca(strengths=(15.0, 8.0))
    x, _ = truth.draw(40)
    found = log_likelihood(truth.vae(), x, samples=200, proposal="prior", **QUIET)
    assert not found.good.all()
    assert "k̂ ≥ 0.57" in str(found)
    assert found.mean < truth.log_prob(x).mean() - 1
    assert log_likelihood(truth.vae(), x, samples=200, **QUIET).warning() is None
    few = log_likelihood(truth.vae(), x, samples=10, **QUIET)
    assert few.pareto_k.isnan().all()
    assert "too few" in str(few)


def test_table_and_json():
    truth = Ppca()
    x, _ = truth.draw(10)
    found = log_likelihood(truth.vae(0.3, 1.5), x, samples=100, **QUIET)
    assert str(found).startswith("10 rows, 100 samples of q(z|x,y) each")
    plain = found.to_dict()
    assert plain["log_prob"]["mean"] == found.values.mean().item()
    assert plain["curve"]["100"] == found.values.mean().item()
    levels = pv.vae((2, 2), 1, likelihood="DiscretizedLogistic", levels=256)
    grey = log_likelihood(levels, torch.randint(256, (5, 2, 2)).float(), samples=30, **QUIET)
    assert grey.bits == pytest.approx(1 / (4 * math.log(2)))
    assert "bits per dimension" in str(grey)
    assert grey.to_dict()["bits_per_dim"] == pytest.approx(-grey.mean / (4 * math.log(2)))
    assert plain["bits_per_dim"] is None
    summary = pv.evaluate(levels, torch.randint(256, (5, 2, 2)).float(), samples=30)
    assert summary["bits_per_dim"] == pytest.approx(summary["neg_log_prob"] / (4 * math.log(2)))


def test_a_weight_of_zero_is_a_weight():
    """Rows that the model cannot have made: log p̂ = −∞ and no effective samples, and not an error."""
    vae = pv.VAE(
        prior=lambda c: Independent(Normal(torch.zeros(1), 1.0), 1),
        likelihood=lambda z, c: Independent(torch.distributions.Uniform(z * 0, z * 0 + 1, validate_args=False), 1),
        encoder=lambda x, c: Independent(Normal(torch.zeros_like(x), 1.0), 1),
    )
    found = log_likelihood(vae, torch.tensor([[0.5], [2.0]]), samples=50, capture="off", **QUIET)
    assert found.values[0] == pytest.approx(0.0, abs=1e-6)
    assert found.values[1] == -math.inf
    assert found.ess.tolist() == [pytest.approx(50), 0.0]
    assert found.good.tolist() == [True, False]
    assert found.warning().startswith("k̂ not known for 1 of 2 rows: ")
    heavy = dataclasses.replace(found, pareto_k=torch.tensor([math.inf, math.nan]))
    assert heavy.warning().startswith("k̂ ≥ 0.41 for 1 and not known for 1 of 2 rows: ")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_an_error(bad, monkeypatch):
    vae = pv.vae((6,), 2, likelihood="Gaussian")
    original = vae.log_weights
    spoilt = torch.tensor([0.0, bad, 0.0])
    monkeypatch.setattr(vae, "log_weights", lambda *a, **k: (w + spoilt for w in original(*a, **k)))
    with pytest.raises(NonFiniteError, match="row 1"):
        log_likelihood(vae, torch.zeros(3, 6), samples=30, **QUIET)


def test_bad_options():
    vae, x = pv.vae((6,), 2), torch.zeros(3, 6)
    for options, word in [({"samples": 0}, "samples"), ({"memory": 0}, "memory"), ({"proposal": "guide"}, "encoder")]:
        with pytest.raises(ConfigError, match=word):
            log_likelihood(vae, x, **options, **QUIET)
    for options in ({"capture": "cuda"}, {"precision": "16"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            log_likelihood(vae, x, **options, **QUIET)
    with pytest.raises(DataError):
        log_likelihood(vae, x + 0.5, **QUIET)
    with pytest.raises(NoDensityError, match="prior"):
        log_likelihood(pv.ae((6,), 2), x, **QUIET)


def test_a_model_that_cannot_be_recorded(monkeypatch):
    """Under "auto" it is run as it is, and that is said once; asked for by name, it is an error."""

    class Looks(torch.nn.Module):
        def forward(self, c):
            scale = 1.0 if torch.ones(()).item() > 0 else 2.0
            return Independent(Normal(torch.zeros(2), scale), 1)

    vae, x = pv.vae((6,), 2, prior=Looks(), likelihood="Gaussian"), torch.zeros(3, 6)
    expected = log_likelihood(vae, x, samples=30, capture="off", **QUIET)
    with pytest.raises(CaptureError, match="recorded"):
        log_likelihood(vae, x, samples=30, capture="graph", **QUIET)
    monkeypatch.setattr(likelihood, "_WORTH_RECORDING", {"cpu": 0, "cuda": 0})
    with pytest.warns(CaptureWarning, match="as it is"):
        found = log_likelihood(vae, x, samples=30, **QUIET)
    assert torch.equal(found.values, expected.values)


def test_the_components_of_a_mixture_take_memory_too():
    """A z is held by every pseudo-input of a Vamp, which here are many more numbers than its pixels."""
    vae = pv.vae((6,), 2, prior={"name": "Vamp", "components": 1000})
    x = torch.zeros(3, 6)
    assert vae.numbers(x[:1]) == 2000
    assert vae.numbers(x) == 6000
    most = []
    vae.likelihood.network.register_forward_hook(lambda network, inputs, raw: most.append(len(raw)))
    list(vae.log_weights(x, samples=50, memory=60_000))
    assert most == [10] * 5
    small = {"hidden": (3,), "prior": {"name": "Mixture", "components": 2}}
    assert pv.vae((6,), 2, **small).numbers(x[:1]) == 6


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"encoder": {"name": "Mixture", "components": 40}}, 80),
        ({"hidden": (50, 3)}, 50),
        ({"prior": {"name": "MAF", "hidden_features": [70]}}, 70),
        ({"encoder": {"name": "Flow", "flow": {"name": "MAF", "hidden_features": [90]}}}, 90),
        ({"likelihood": {"name": "Categorical", "levels": 5}}, 30),
        ({"x_shape": (1, 8, 8), "network": pv.networks.Conv, "hidden": (3,)}, 512),
        ({"x_shape": (1, 8, 8)}, 64),
    ],
    ids=["encoder", "layer", "flow prior", "flow encoder", "raw", "channels", "pixels"],
)
def test_what_a_z_costs_is_the_widest_it_meets(options, numbers):
    """What holds most of a z at a time: of two features and six pixels otherwise, hidden layers of three."""
    options = {"x_shape": (6,), "hidden": (3,)} | options
    shape = options.pop("x_shape")
    assert pv.vae(shape, 2, **options).numbers(torch.zeros(1, *shape)) == numbers


def test_few_rows_at_a_time_where_memory_is_small():
    vae, most = pv.vae((6,), 2, likelihood="Gaussian", hidden=(3,)), []
    vae.likelihood.network.register_forward_hook(lambda network, inputs, raw: most.append(raw.shape[:-1].numel()))
    log_likelihood(vae, torch.zeros(50, 6), samples=3, memory=60, capture="off", **QUIET)
    assert max(most) == 10


@pytest.mark.parametrize("capture", [pytest.param("off", marks=pytest.mark.fresh), "graph"])
def test_a_proposal_of_ones_own(capture, seed):
    """Unbiased whatever it is, and exact if it is the posterior; 20 rows at 4,000 draws, α in all."""
    truth = Ppca()
    x, _ = truth.draw(20)
    right, wide = truth.vae(), truth.vae(0.3, 1.5)
    # An encoder that is of no use, and is not asked.
    far = lambda x, c: Independent(Normal(x.new_full((len(x), L), 100.0), 0.1), 1)  # noqa: E731
    bad = pv.VAE(right.prior, right.likelihood, far)
    options = {"seed": seed, "capture": capture, **QUIET}
    exact = log_likelihood(bad, x, samples=3, proposal=right.encode, **options)
    torch.testing.assert_close(exact.values, truth.log_prob(x), rtol=0, atol=1e-9)
    found = log_likelihood(bad, x, samples=4000, proposal=wide.encode, **options)
    assert "a function of x" in str(found)
    z = (found.values.exp() / truth.log_prob(x).exp() - 1) / found.standard_error
    assert z.abs().max() < limit(20)


def test_without_a_compiler_the_recording_is_replayed(monkeypatch):
    def broken(*args, **options):
        def call(*tensors):
            raise RuntimeError("no C++ compiler\nand more")

        return call

    a, b = torch.rand(4, 5), torch.rand(5, 3)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", broken)
        with pytest.warns(CaptureWarning, match=r"not compiled, but replayed as recorded: no C\+\+ compiler"):
            staged = TwoStages(noisy, [a, b], compile=True)
    assert not staged.compiled
    torch.manual_seed(0)
    draw = staged()
    torch.manual_seed(0)
    torch.testing.assert_close(draw, noisy(a, b))


def test_a_recording_must_be_infinite_where_the_function_is():
    staged = TwoStages(lambda a: a.log() + torch.randn(3), [torch.tensor([0.0, 1.0, 2.0])])
    assert staged().isinf().tolist() == [True, False, False]
    for wrong in (torch.tensor([0.0, 0.0, 0.0]), torch.tensor([math.inf, 0.0, 0.0])):
        with pytest.raises(CaptureError, match="infinite elsewhere"):
            staged._compare(wrong, torch.tensor([-math.inf, 0.0, 0.0]))
    with pytest.raises(CaptureError, match=r"off by 1, for values up to 2"):
        staged._compare(torch.tensor([-math.inf, 1.0, 2.0]), torch.tensor([-math.inf, 0.0, 2.0]))


# Pareto k̂


@pytest.mark.parametrize("samples", [30, 100, 225, 900, 2500])
@pytest.mark.parametrize("spread", [0.5, 2.0, 5.0])
def test_pareto_k_against_arviz(samples, spread):
    """For numbers of samples whose tail has one length by any rounding."""
    log_w = np.random.default_rng(samples).standard_normal((samples, 3)) * spread
    expected = [array_stats.psislw(-column)[1] for column in log_w.T]
    largest = torch.tensor(log_w + 500).topk(tail_length(samples) + 1, 0, sorted=False).values
    np.testing.assert_allclose(pareto_k(largest), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_pareto_k_of_pareto_weights(k):
    """P(w > u) = u^(−1/k): k̂ is k, shrunk towards ½; 200 columns see an error of 0.05."""
    w = torch.rand(10_000, 200, dtype=torch.float64) ** -k
    n = tail_length(10_000)
    found = pareto_k(w.log().topk(n + 1, 0).values)
    expected = (n * k + 5) / (n + 10)
    assert abs(found.mean().item() - expected) <= limit(3) * found.std().item() / math.sqrt(200) + 0.01


def test_pareto_k_at_the_edges():
    assert pareto_k(torch.zeros(50, 2)).tolist() == [-math.inf] * 2
    assert pareto_k(torch.randn(5)).isnan()
    assert pareto_k(torch.full((50,), -math.inf)).isnan()
    assert good_below(100) == pytest.approx(0.5)
    assert good_below(10_000) == 0.7
    assert good_below(1) == -math.inf


# Recorded in two stages


def noisy(a, b):
    h = a.exp() @ b
    written = torch.zeros(3)
    written += torch.randn(3)
    return h + written + torch.empty(4, 3).uniform_()


@pytest.mark.parametrize("compile", [False, True])
def test_two_stages_give_what_the_function_gives(compile):
    a, b = torch.rand(4, 5), torch.rand(5, 3)
    staged = TwoStages(noisy, [a, b], compile=compile)
    for seed, inputs in enumerate([(a, b), (a + 1, b), (a, -b)]):
        staged.prepare(*inputs)
        torch.manual_seed(seed)
        found = [staged() for _ in range(3)]
        torch.manual_seed(seed)
        for draw in found:
            torch.testing.assert_close(draw, noisy(*inputs), rtol=1e-5, atol=1e-5)


def test_what_chance_does_not_touch_is_computed_once():
    a, b = torch.rand(4, 5), torch.rand(5, 3)
    staged = TwoStages(noisy, [a, b])
    first, second = ([str(node.target) for node in g.graph.nodes] for g in (staged.first, staged._second))
    assert {"aten.exp.default", "aten.mm.default"} <= set(first)
    assert not {"aten.exp.default", "aten.mm.default"} & set(second)


def test_two_stages_follow_the_parameters():
    """They are held by reference: an encoder that was trained on since is the one that is measured."""
    vae, x = pv.vae((6,), 2, likelihood="Gaussian").eval(), torch.rand(3, 6)
    staged = TwoStages(lambda x: torch.cat(list(vae.log_weights(x, samples=4))), [x])
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.1)
    staged.prepare(x)
    torch.manual_seed(0)
    found = staged()
    torch.manual_seed(0)
    torch.testing.assert_close(found, torch.cat(list(vae.log_weights(x, samples=4))))


def test_two_stages_refuse():
    def writes(a):
        return a.add_(1.0)

    with pytest.raises(CaptureError, match="writes to its inputs"):
        TwoStages(writes, [torch.zeros(3)])
    calls = []

    def changes(a):
        calls.append(None)
        return a + len(calls)

    with pytest.raises(CaptureError, match="off by"):
        TwoStages(changes, [torch.zeros(3)])


# Side by side


def test_comparison_is_paired():
    """The error of a difference is that of the differences, row by row."""
    truth = Ppca()
    x, _ = truth.draw(200)
    evaluations = {
        "exact": pv.evaluate(truth.vae(), x, samples=30),
        "off": pv.evaluate(truth.vae(0.3, 1.5), x, samples=30, draws=50),
    }
    found = compare(evaluations)
    q = truth.posterior(x).base_dist
    gap = truth.log_prob(x) - truth.elbo(x, q.loc + 0.3 * q.scale, 1.5 * q.scale)
    mean, error = found.difference("off", "kl")
    kl = evaluations["off"].values["kl"] - evaluations["exact"].values["kl"]
    assert (mean, error) == (kl.mean().item(), kl.std().item() / math.sqrt(200))
    mean, error = found.difference("off", "neg_elbo")
    assert abs(mean - gap.mean().item()) < limit() * error
    assert error < evaluations["off"].terms["neg_elbo"][1]
    assert found.difference("exact") == (0.0, 0.0)
    table = str(found)
    assert all(word in table for word in ("−log p(x|y)", "−ELBO", "exact", "off", "paired by row"))
    assert found.to_dict()["off"]["kl"]["difference"] == kl.mean().item()


def test_a_comparison_has_its_headings_above_its_numbers():
    x = torch.zeros(8, 4)
    vae = pv.vae((4,), 2, likelihood="Gaussian")
    for name in ("b", "a name longer than any heading"):
        table = str(compare({"a": pv.evaluate(vae, x, samples=30), name: pv.evaluate(vae, x, samples=30)}))
        heads = [line.index("mean") + len("mean") for line in table.splitlines() if " mean " in line]
        rows = [line for line in table.splitlines() if line.startswith("a  ")]
        assert len(heads) == len(rows) == 4
        for end, row in zip(heads, rows, strict=True):
            assert re.fullmatch(r"-?\d+\.\d{3}", row[:end].split()[-1])
            assert row[end] == " "


def test_probabilities_and_densities_have_no_difference():
    """A count by a binomial and by a Gaussian: the KLs compare, log p does not, and neither do grey pixels."""
    x = torch.randint(5, (8, 4)).float()
    likelihoods = {
        "binomial": {"name": "Binomial", "total_count": 4},
        "poisson": "Poisson",
        "gaussian": "Gaussian",
        "grey": {"name": "Bernoulli", "grey": True},
    }
    models = {name: pv.vae((4,), 2, likelihood=spec) for name, spec in likelihoods.items()}
    found = compare({n: pv.evaluate(m, x / 4 if n == "grey" else x, samples=30) for n, m in models.items()})
    assert [e.discrete for e in found.evaluations.values()] == [True, True, False, False]
    for name, comparable in {"poisson": True, "gaussian": False, "grey": False}.items():
        for term in ("neg_log_prob", "neg_elbo", "reconstruction"):
            assert math.isfinite(found.difference(name, term)[0]) is comparable
        assert math.isfinite(found.difference(name, "kl")[0])
    assert found.to_dict()["gaussian"]["neg_elbo"]["difference"] is None
    said = "means anything (binomial: a probability, poisson: a probability, gaussian: a density, grey: neither)"
    assert said in str(found)
    assert "means anything" not in str(compare({n: found.evaluations[n] for n in ("binomial", "poisson")}))


def test_comparison_needs_the_same_rows():
    ae, x = pv.ae((4,), 2), torch.rand(8, 4)
    one, other = pv.evaluate(ae, x), pv.evaluate(ae, x[:4])
    for wrong in ({}, {"a": one}, {"a": one, "b": other}):
        with pytest.raises(DataError, match="same rows"):
            compare(wrong)


def test_data_drawn_with_the_same_seed_are_no_better_known():
    """A stream that data and weights share would propose the very z that made x, and log p̂ come out too high."""
    truth = Ppca(strengths=(15.0, 8.0))
    vae = truth.vae()
    torch.manual_seed(0)
    x = vae.sample(64)
    found = log_likelihood(vae, x, samples=1, proposal="prior", seed=0, **QUIET)
    # By the z that made it a row would have about its reconstruction; by another, tens of nats less.
    assert found.mean < truth.log_prob(x).mean() - 20


def test_nor_are_their_reconstructions():
    """The same of the ELBO, whose encoder is the prior here, so that a shared stream would give every x its own z."""
    truth = Ppca(strengths=(15.0, 8.0))
    right = truth.vae()
    vae = pv.VAE(right.prior, right.likelihood, lambda x, c: as_pyro(right.prior(c)).expand(x.shape[:1]))
    torch.manual_seed(0)
    x = vae.sample(64)
    for found in (pv.evaluate(vae, x, samples=2, draws=1, seed=0), diagnostics(vae, x, draws=1, seed=0)):
        assert -found["neg_elbo"] < truth.log_prob(x).mean() - 20


@pytest.mark.parametrize(
    "parts",
    [
        {"encoder": "LowRankGaussian"},
        {"encoder": "FullGaussian"},
        {"prior": {"name": "Chain", "first": "Standard", "second": "MAF"}},
    ],
    ids=lambda parts: "-".join(map(str, parts)),
)
@pytest.mark.parametrize("capture", ["graph", "inductor"])
def test_recorded_draws_are_as_good_the_hundredth_time(parts, capture):
    """Many chunks of one recording: what it writes to in place is not what the chunk before left there.

    Both are within five of their standard errors, of 0.01 nats here; what a draw too many adds is nats.
    """
    torch.manual_seed(0)
    vae = pv.vae((6,), 4, likelihood={"name": "Gaussian", "sigma": 1.0}, hidden=(8,), **parts)
    x = torch.randn(20, 6)
    found, stock = (
        log_likelihood(vae, x, samples=4000, capture=how, memory=20_000, progress=False) for how in (capture, "off")
    )
    error = math.hypot(found.monte_carlo_error, stock.monte_carlo_error)
    assert error < 0.02
    assert abs(found.mean - stock.mean) < 5 * error

"""``as_pyro`` changes nothing but the class, importing changes nothing at all, and densities are densities."""

import copy
import inspect
import math
import subprocess
import sys
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae.distributions import GreyBernoulli, as_pyro, transport, zuko
from ppl_vae.errors import NoClosedFormError, PartError


def some(*shape):
    """Positive parameters, the same in every run."""
    return 0.2 + 0.6 * torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def flow(name, **options):
    """A conditional zuko flow over (2,) in float64, the same in every call."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(2)
        return getattr(zuko.flows, name)(2, 4, hidden_features=(8,), **options).double()(some(3, 4))


EYE = torch.eye(2, dtype=torch.float64)

# Every class that torch.distributions exports, with batch shape (3,).
TORCH = {
    "Bernoulli": lambda: td.Bernoulli(some(3)),
    "Beta": lambda: td.Beta(1 + some(3), some(3)),
    "Binomial": lambda: td.Binomial(5, some(3)),
    "Categorical": lambda: td.Categorical(some(3, 4)),
    "Cauchy": lambda: td.Cauchy(some(3), some(3)),
    "Chi2": lambda: td.Chi2(some(3)),
    "ContinuousBernoulli": lambda: td.ContinuousBernoulli(some(3)),
    "Dirichlet": lambda: td.Dirichlet(1 + some(3, 4)),
    "Exponential": lambda: td.Exponential(some(3)),
    "FisherSnedecor": lambda: td.FisherSnedecor(3 + some(3), 5 + some(3)),
    "Gamma": lambda: td.Gamma(1 + some(3), some(3)),
    "GeneralizedPareto": lambda: td.GeneralizedPareto(*(some(3).float() for _ in range(3))),
    "Geometric": lambda: td.Geometric(some(3)),
    "Gumbel": lambda: td.Gumbel(some(3), some(3)),
    "HalfCauchy": lambda: td.HalfCauchy(some(3)),
    "HalfNormal": lambda: td.HalfNormal(some(3)),
    "Independent": lambda: td.Independent(td.Normal(some(3, 2), 1 + some(3, 2)), 1),
    "InverseGamma": lambda: td.InverseGamma(3 + some(3), some(3)),
    "Kumaraswamy": lambda: td.Kumaraswamy(1 + some(3), 1 + some(3)),
    "LKJCholesky": lambda: td.LKJCholesky(3, 1 + some(3)),
    "Laplace": lambda: td.Laplace(some(3), some(3)),
    "LogNormal": lambda: td.LogNormal(some(3), some(3)),
    "LogisticNormal": lambda: td.LogisticNormal(some(3, 2), some(3, 2)),
    "LowRankMultivariateNormal": lambda: td.LowRankMultivariateNormal(some(3, 2), some(3, 2, 1), some(3, 2)),
    "MixtureSameFamily": lambda: td.MixtureSameFamily(
        td.Categorical(some(3, 4)), td.Independent(td.Normal(some(3, 4, 2), 1 + some(3, 4, 2)), 1)
    ),
    "Multinomial": lambda: td.Multinomial(5, some(3, 4)),
    "MultivariateNormal": lambda: td.MultivariateNormal(some(3, 2), EYE),
    "NegativeBinomial": lambda: td.NegativeBinomial(5, some(3)),
    "Normal": lambda: td.Normal(some(3), 1 + some(3)),
    "OneHotCategorical": lambda: td.OneHotCategorical(some(3, 4)),
    "OneHotCategoricalStraightThrough": lambda: td.OneHotCategoricalStraightThrough(some(3, 4)),
    "Pareto": lambda: td.Pareto(some(3), 3 + some(3)),
    "Poisson": lambda: td.Poisson(5 * some(3)),
    "RelaxedBernoulli": lambda: td.RelaxedBernoulli(torch.tensor(0.5), some(3)),
    "RelaxedOneHotCategorical": lambda: td.RelaxedOneHotCategorical(torch.tensor(0.5), some(3, 4)),
    "StudentT": lambda: td.StudentT(3 + some(3), some(3), some(3)),
    "TransformedDistribution": lambda: td.TransformedDistribution(td.Normal(some(3), 1.0), [td.ExpTransform()]),
    "Uniform": lambda: td.Uniform(-some(3), some(3)),
    "VonMises": lambda: td.VonMises(some(3), some(3)),
    "Weibull": lambda: td.Weibull(some(3), 1 + some(3)),
    "Wishart": lambda: td.Wishart(20 + some(3), EYE),
}
ZUKO = {
    "MAF": lambda: flow("MAF", transforms=2),
    "NSF": lambda: flow("NSF", transforms=1),
    "NICE": lambda: flow("NICE", transforms=2),
    "GMM": lambda: flow("GMM", components=3),
    "DiagNormal": lambda: zuko.distributions.DiagNormal(some(3, 2), some(3, 2)),
    "BoxUniform": lambda: zuko.distributions.BoxUniform(-some(3, 2), some(3, 2)),
    "Joint": lambda: zuko.distributions.Joint(td.Normal(some(3), 1.0), td.Uniform(-some(3), some(3))),
    "GeneralizedNormal": lambda: zuko.distributions.GeneralizedNormal(1 + some(3)),
    "Truncated": lambda: zuko.distributions.Truncated(td.Normal(some(3), 1.0), torch.tensor(0.0), torch.tensor(2.0)),
}
EVERY = [pytest.param(make, id=f"torch-{name}") for name, make in TORCH.items()]
EVERY += [pytest.param(make, id=f"zuko-{name}") for name, make in ZUKO.items()]


def seeded(draw):
    torch.manual_seed(7)
    return draw()


def test_the_list_of_torch_distributions_is_complete():
    classes = {
        name for name in td.__all__ if inspect.isclass(cls := getattr(td, name)) and issubclass(cls, td.Distribution)
    }
    assert classes - {"Distribution", "ExponentialFamily"} == set(TORCH)


# torch finds its own Wishart draws singular and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Singular sample:UserWarning")


@pytest.mark.parametrize("make", EVERY)
def test_samples_density_and_shapes_stay(make):
    d = make()
    p = as_pyro(make())
    assert isinstance(p, TorchDistributionMixin)
    assert isinstance(p, type(d))
    assert (p.batch_shape, p.event_shape, p.has_rsample) == (d.batch_shape, d.event_shape, d.has_rsample)
    x = seeded(lambda: d.sample((5,)))
    assert torch.equal(seeded(lambda: p.sample((5,))), x)
    # Pyro writes the binomial and the geometric differently; all else is the same code.
    torch.testing.assert_close(p.log_prob(x), d.log_prob(x), rtol=1e-6, atol=1e-9)
    assert p.log_prob(x).shape == (5, 3)


@pytest.mark.parametrize("make", EVERY)
def test_moments_and_support_stay(make):
    d, p = make(), as_pyro(make())
    for name in ("mean", "variance", "stddev", "mode"):
        try:
            expected = getattr(d, name)
        except NotImplementedError:
            continue
        torch.testing.assert_close(getattr(p, name), expected, equal_nan=True)
    x = d.sample((5,))
    assert p.support.check(x).all()
    assert p.support.check(x).shape == (5, 3)
    assert p.support.event_dim == len(p.event_shape)
    try:
        assert str(p.support) == str(d.support)
    except NotImplementedError:
        assert isinstance(d, tuple(vars(zuko.distributions)[name] for name in zuko.distributions.__all__))


@pytest.mark.parametrize("make", EVERY)
def test_pyro_can_do_with_it_what_it_does_with_its_own(make):
    p = as_pyro(make())
    # A plate passes a list to expand, and two plates make it expand.
    with pyro.plate("outer", 4, dim=-2), pyro.plate("inner", 3, dim=-1):
        x = pyro.sample("x", p)
    assert x.shape == (4, 3, *p.event_shape)
    expanded = p.expand([4, 3])
    assert isinstance(expanded, type(p))
    assert expanded.batch_shape == (4, 3)
    assert expanded.log_prob(x).shape == (4, 3)
    torch.testing.assert_close(expanded.log_prob(x), p.log_prob(x))
    assert p.to_event(1).event_shape == (3, *p.event_shape)
    seen = torch.tensor([True, False, True])
    assert (p.mask(seen).log_prob(x)[:, 1] == 0).all()
    assert (p.mask(seen).log_prob(x)[:, 0] == p.log_prob(x)[:, 0]).all()


@pytest.mark.parametrize("make", EVERY)
def test_the_one_given_is_left_as_it_is(make):
    d = make()
    before, state = type(d), dict(vars(d))
    as_pyro(d).sample()
    assert type(d) is before
    assert {name: id(value) for name, value in vars(d).items()} == {name: id(value) for name, value in state.items()}


@pytest.mark.parametrize("make", EVERY)
def test_it_can_be_copied_and_converted_again(make):
    p = as_pyro(make())
    assert as_pyro(p) is p
    x = p.sample()
    torch.testing.assert_close(copy.copy(as_pyro(make())).log_prob(x), p.log_prob(x))


@pytest.mark.parametrize("name", sorted(TORCH))
def test_pyros_class_of_the_same_name_is_taken(name):
    assert type(as_pyro(TORCH[name]())) is getattr(dist, name)


def closed_forms():
    for name, make in TORCH.items():
        d = make()
        try:
            kl_divergence(d, d)
        except NotImplementedError:
            continue
        yield name


@pytest.mark.parametrize("name", list(closed_forms()))
def test_kl_has_its_closed_form_still(name):
    d = TORCH[name]()
    expected = kl_divergence(d, d)
    torch.testing.assert_close(kl_divergence(as_pyro(d), as_pyro(TORCH[name]())), expected)


def test_kl_between_foreign_and_own_normals_is_the_known_number():
    ours = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    for d in (
        td.Independent(td.Normal(torch.tensor([1.0, 0.0]), torch.ones(2)), 1),
        zuko.distributions.DiagNormal(torch.tensor([1.0, 0.0]), torch.ones(2)),
    ):
        assert kl_divergence(as_pyro(d), ours).item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["MAF", "NSF", "NICE"])
def test_a_flow_scores_its_own_draw_as_recomputed(name):
    p = as_pyro(ZUKO[name]())
    z = p.rsample((6,))
    torch.testing.assert_close(p.log_prob(z), ZUKO[name]().log_prob(z), rtol=1e-8, atol=1e-8)


def test_a_flow_is_not_inverted_to_score_its_own_draw(monkeypatch):
    p = as_pyro(ZUKO["MAF"]())
    z = p.rsample()
    monkeypatch.setattr(zuko.distributions.NormalizingFlow, "log_prob", lambda *_: pytest.fail("inverted"))
    p.log_prob(z)


def test_a_flows_memory_is_of_one_value_only():
    p = as_pyro(ZUKO["MAF"]())
    first, second = p.rsample(), p.rsample()
    # Equal numbers in another tensor, an earlier draw, and the draw of a copy: each must be computed.
    for z in (second.clone(), first, p.expand([3]).rsample()):
        torch.testing.assert_close(p.log_prob(z), ZUKO["MAF"]().log_prob(z))
    assert not torch.allclose(p.log_prob(first), p.log_prob(second))


def test_scoring_a_draw_without_gradients_still_trains_the_flow():
    # Wake-sleep and maximum likelihood score samples; a density kept from `sample` has no gradient.
    part = zuko.flows.MAF(2, transforms=1, hidden_features=(8,))
    p = as_pyro(part())
    p.log_prob(p.sample()).sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())


def test_gradients_through_the_remembered_density_are_those_of_the_recomputed():
    part = zuko.flows.MAF(2, transforms=1, hidden_features=(8,)).double()
    gradients = []
    for remembered in (True, False):
        p = as_pyro(part())
        z = seeded(p.rsample)
        loss = (p if remembered else part()).log_prob(z).sum() + z.square().sum()
        gradients.append(torch.autograd.grad(loss, list(part.parameters()), allow_unused=True))
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("wrong", "received"),
    [
        (torch.zeros(2), "Tensor"),
        ((torch.zeros(2), torch.ones(2)), "tuple"),
        (None, "NoneType"),
        (td.Normal, "called first"),
        (lambda: td.Normal(0.0, 1.0), "called first"),
        (zuko.flows.MAF(2, transforms=1), "MAF"),
    ],
)
def test_errors_name_what_is_accepted_and_what_came(wrong, received):
    with pytest.raises(PartError, match=r"expected .*distribution.*zuko.* got") as error:
        as_pyro(wrong)
    assert received in str(error.value)


def test_a_users_subclass_is_adapted_as_well():
    class Shifted(td.Normal):
        def log_prob(self, value):
            return super().log_prob(value) + 1

    p = as_pyro(Shifted(0.0, 1.0))
    assert isinstance(p, Shifted)
    assert p.log_prob(torch.tensor(0.0)).item() == pytest.approx(1 - 0.5 * math.log(2 * math.pi))
    assert pyro.sample("x", p).shape == ()


def test_validation_keeps_working_after_zuko():
    with pytest.raises(ValueError, match="scale"):
        td.Normal(0.0, -1.0)
    with pytest.raises(ValueError, match="support"):
        as_pyro(td.Bernoulli(torch.tensor(0.5))).log_prob(torch.tensor(0.5))


# Importing: a library that is only imported changes nothing for anybody else.

GLOBALS = """
    import warnings, logging, sys
    import torch, numpy, pyro, matplotlib, zuko_first
    import pyro.infer, pyro.distributions, pyro.poutine.util
    from torch.distributions import Distribution

    def state():
        return dict(
            torch_validation=Distribution._validate_args,
            constraints=vars(Distribution)["arg_constraints"],
            pyro_validation=(pyro.poutine.util.is_validation_enabled(), pyro.distributions.is_validation_enabled(),
                             pyro.infer.util.is_validation_enabled()),
            dtype=torch.get_default_dtype(),
            device=str(torch.empty(0).device),
            rng=torch.get_rng_state().tolist(),
            numpy_rng=repr(numpy.random.get_state()),
            numpy_err=numpy.geterr(),
            printing=(repr(torch.tensor([1 / 3, 1e9])), repr(numpy.array([1 / 3, 1e9]))),
            # Asking for rcParams["backend"] in the usual way chooses one.
            rc={key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams.keys()},
            filters=list(warnings.filters),
            threads=(torch.get_num_threads(), torch.get_num_interop_threads()),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            grad=torch.is_grad_enabled(),
            precision=torch.get_float32_matmul_precision(),
            anomaly=torch.is_anomaly_enabled(),
            sharing=torch.multiprocessing.get_sharing_strategy(),
            settings=pyro.settings.get(),
            params=list(pyro.get_param_store()),
            logging=(logging.getLogger().level, len(logging.getLogger().handlers)),
            hook=sys.excepthook is sys.__excepthook__,
            pyplot="matplotlib.pyplot" in sys.modules,
        )
"""


def fresh_process(code):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("first", ["", "import zuko"], ids=["alone", "zuko first"])
def test_importing_leaves_every_global_setting_as_it_was(first):
    program = textwrap.dedent(GLOBALS).replace(", zuko_first", f"\n{first}")
    program += textwrap.dedent("""
        before = state()
        import ppl_vae
        after = state()
        print(*[name for name in before if before[name] != after[name]])
        import zuko
        if not Distribution._validate_args:
            sys.exit()
        # From here on zuko came second: what it switched off is on, and its own classes, which need it off, work.
        try:
            torch.distributions.Normal(0.0, -1.0)
        except ValueError:
            print("refused")
        zuko.distributions.GeneralizedNormal(torch.tensor(2.0)).sample()
        zuko.distributions.NormalizingFlow(zuko.transforms.SoftclipTransform(), torch.distributions.Normal(0.0, 1.0))
    """)
    assert fresh_process(program) == ([] if first else ["refused"])


# Densities of our own


def test_grey_bernoulli_is_the_cross_entropy_and_bernoulli_on_binary_pixels():
    logits, x = torch.randn(50, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    torch.testing.assert_close(GreyBernoulli(logits=logits).log_prob(x), -expected)
    torch.testing.assert_close(
        GreyBernoulli(logits=logits).log_prob(x.round()), dist.Bernoulli(logits=logits).log_prob(x.round())
    )
    with pytest.raises(ValueError, match="support"):
        GreyBernoulli(logits=logits).log_prob(x + 1)


def test_grey_bernoulli_is_not_a_density():
    # At logit 0 it is ½ everywhere on [0, 1], so it integrates to ½: the reason for the warning beside its numbers.
    x = torch.linspace(0, 1, 1001)
    assert torch.trapezoid(GreyBernoulli(logits=torch.tensor(0.0)).log_prob(x).exp(), x).item() == pytest.approx(0.5)


# transport


def test_transport_takes_the_same_place_in_the_other_gaussian():
    p = dist.Normal(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5])).to_event(1)
    q = dist.Normal(torch.tensor([0.0, 10.0]), torch.tensor([1.0, 3.0])).to_event(1)
    z = torch.randn(5, 2)
    carried = transport(z, p, q)
    torch.testing.assert_close((carried - q.mean) / q.stddev, (z - p.mean) / p.stddev)
    torch.testing.assert_close(transport(carried, q, p), z)


def test_transport_between_flows_keeps_the_noise():
    # In float64: what the map does to the density is the ratio of the two, to the last digits.
    part = zuko.flows.MAF(2, 4, transforms=2, hidden_features=(8,)).double()
    p, q = (as_pyro(part(torch.randn(4, dtype=torch.float64))) for _ in range(2))
    z = p.sample((5,))
    carried = transport(z, p, q)
    torch.testing.assert_close(q.transform(carried), p.transform(z))
    torch.testing.assert_close(transport(carried, q, p), z)


def test_transport_refuses_where_there_is_no_map():
    normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    # A log-normal has a normal base_dist too, but its z lives elsewhere.
    log_normal = dist.LogNormal(torch.zeros(2), 1.0)
    for source, target in [
        (normal, dist.Laplace(torch.zeros(2), 1.0).to_event(1)),
        (as_pyro(ZUKO["GMM"]()), as_pyro(ZUKO["GMM"]())),
        (normal, as_pyro(ZUKO["MAF"]())),
        (log_normal, log_normal),
    ]:
        with pytest.raises(NoClosedFormError, match=r"expected two .* got"):
            transport(torch.ones(2), source, target)


# Sampler against density


@pytest.mark.fresh
@pytest.mark.parametrize("name", ["MAF", "NSF", "NICE", "GMM"])
def test_a_zuko_sampler_agrees_with_its_density(name):
    # E_p[h(z)/p(z)] = ∫h for h a normal density, so the mean of h/p is one. α = 1e-6 (4.89 standard errors of 20,000
    # draws): a scale wrong by 5% or a missing ½ log 2π is seen. float64.
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        # Which density it is stays as it is; a fresh seed is one of the noise.
        torch.manual_seed(0)
        part = getattr(zuko.flows, name)(2).double()
    p = as_pyro(part())
    with torch.no_grad():
        z = p.sample((20_000,))
        h = dist.Normal(z.mean(0), 0.5 * z.std(0)).to_event(1)
        ratio = (h.log_prob(z) - p.log_prob(z)).exp()
    assert abs(ratio.mean() - 1) < 4.89 * ratio.std() / math.sqrt(len(z))


def test_a_flow_prior_without_and_with_expand_draws_the_same():
    p = as_pyro(ZUKO["NSF"]())
    assert torch.equal(seeded(lambda: p.sample((4,))), seeded(lambda: p.expand([4, 3]).sample()))


def test_the_package_offers_zuko_from_one_place():
    assert pv.distributions.zuko is zuko


ROOT = 0.3 * torch.randn(5, 20, 20, generator=torch.Generator().manual_seed(0))
COVARIANCE = ROOT @ ROOT.mT + 0.1 * torch.eye(20)
FACTOR = torch.linalg.cholesky(COVARIANCE)
CORRELATED = {
    "full": lambda: td.MultivariateNormal(torch.zeros(5, 20), scale_tril=FACTOR),
    "Pyro's": lambda: dist.MultivariateNormal(torch.ones(5, 20), COVARIANCE),
    "low rank": lambda: td.LowRankMultivariateNormal(torch.zeros(5, 20), 9 * COVARIANCE[..., :2], torch.ones(5, 20)),
    "zuko's mixture": lambda: zuko.distributions.Mixture(
        td.MultivariateNormal(torch.zeros(3, 5, 20), scale_tril=FACTOR), torch.zeros(5)
    ),
    "ours": lambda: pv.distributions.LowRankMultivariateNormal(
        torch.zeros(5, 20), 9 * COVARIANCE[..., :2], torch.ones(5, 20)
    ),
    "copies": lambda: td.Independent(td.MultivariateNormal(torch.zeros(5, 20), scale_tril=FACTOR), 1),
}


@pytest.mark.parametrize("name", CORRELATED)
def test_densities_stay_in_single_precision_under_autocast(name):
    """Theirs were off by nats; a draw had the rounding of bfloat16, which its density knew nothing of."""
    exact = as_pyro(CORRELATED[name]())
    z = exact.sample()
    with torch.autocast("cpu", torch.bfloat16):
        d = as_pyro(CORRELATED[name]())
        log_p = d.log_prob(z)
        torch.manual_seed(0)
        mixed = d.sample()
    torch.manual_seed(0)
    torch.testing.assert_close(mixed, exact.sample(), rtol=0, atol=1e-5)
    torch.testing.assert_close(log_p, exact.log_prob(z), rtol=1e-5, atol=1e-4)
    assert isinstance(d, type(CORRELATED[name]()))
    assert d.expand((2, *d.batch_shape)).batch_shape == (2, *d.batch_shape)


@pytest.mark.parametrize("encoder", ["FullGaussian", "LowRankGaussian"])
def test_posteriors_stay_in_single_precision_under_autocast(encoder):
    vae = pv.vae((6,), 8, encoder=encoder, hidden=(16,))
    raw = 3 * torch.randn(4, vae.encoder.network.out_shape[0])
    exact = vae.encoder.from_raw(raw)
    z = exact.sample()
    with torch.autocast("cpu", torch.bfloat16):
        q = vae.encoder.from_raw(raw)
        torch.testing.assert_close(q.log_prob(z), exact.log_prob(z), rtol=1e-5, atol=1e-3)
        assert q.rsample().dtype == torch.float32


@pytest.mark.parametrize("name", ["MAF", "NSF", "NICE", "BPF", "CNF", "NCSF", "SOSPF"])
def test_flows_stay_in_single_precision_under_autocast(name):
    """Their networks are inside of the density: a spline's was off by 0.4 nats, and did not belong to the draw."""
    flow, c = getattr(zuko.flows, name)(8, 3), torch.randn(5, 3)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(2.0)
    exact = as_pyro(flow(c))
    z = torch.rand(5, 8) - 0.5
    with torch.autocast("cpu", torch.bfloat16):
        d = as_pyro(flow(c))
        torch.testing.assert_close(d.log_prob(z), exact.log_prob(z))
        torch.manual_seed(0)
        drawn = d.rsample() if name != "SOSPF" else None
    if drawn is not None:
        torch.manual_seed(0)
        torch.testing.assert_close(drawn, exact.rsample())


def test_what_a_network_said_in_half_precision_is_a_density_in_single():
    loc = torch.randn(3, 2).bfloat16()
    given = td.Independent(td.Normal(loc, torch.ones_like(loc)), 1)
    with torch.autocast("cpu", torch.bfloat16):
        d = as_pyro(given)
    assert d.log_prob(torch.zeros(3, 2)).dtype == d.sample().dtype == torch.float32
    assert torch.equal(d.mean, loc.float())
    # The one given is left as it is; and outside nothing is changed, as a model may be in half precision as a whole.
    assert given.mean.dtype == as_pyro(given).sample().dtype == torch.bfloat16

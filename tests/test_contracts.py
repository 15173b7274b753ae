"""One contract for each kind of part. A new part is one entry in a list below, and gets every test.

The parts are tiny; every number is checked against the same parts called by hand, outside Pyro, in float64.
"""

import copy
import dataclasses
import functools
import json
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from ppl_vae import VAE, Chain, OneHot, Unconditional, audit, encoders, likelihoods, presets, priors
from ppl_vae.capture import CapturedSVI
from ppl_vae.devices import seeded
from ppl_vae.distributions import as_pyro, zuko
from ppl_vae.errors import PplVaeError, ShapeError
from ppl_vae.networks import Conv, join

LATENT, IMAGE, CLASSES, N = 2, (1, 6, 5), 3, 6
CPU = torch.device("cpu")
conv = functools.partial(Conv, channels=(2, 3))


@dataclasses.dataclass
class Entry:
    """A part, made for a number of context features; ``spec`` where it has a name."""

    make: Callable[[int], Any] | None = None
    spec: dict[str, Any] | None = None
    # Takes any context and none, and ignores it.
    any_context: bool = False
    # What x a likelihood is about: binary, unit, open unit, counts (up to 4), any count or real.
    data: str = "binary"
    contexts: tuple[int, ...] = (0, CLASSES)
    # Torch cannot run it without numbers, on the meta device.
    needs_numbers: bool = False
    # Other parts, by name, that it cannot do without.
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)


def named(name, any_context=False, data="binary", contexts=(0, CLASSES), needs_numbers=False, beside=None, **options):
    return Entry(None, {"name": name, **options}, any_context, data, contexts, needs_numbers, beside or {})


class Joined(nn.Module):
    """A part of a user's own: what a body makes of its inputs gives a distribution."""

    def __init__(self, inputs, outputs, context, distribution):
        super().__init__()
        self.body = nn.Linear(inputs + context, outputs)
        self.distribution = distribution

    def forward(self, a, c=None):
        a = a if a.shape[-1] == LATENT else a.flatten(-len(IMAGE))
        return self.distribution(self.body(a if c is None else join(a, c)))


class Correlated(Joined):
    """A Gaussian posterior with a full covariance."""

    def __init__(self, context):
        super().__init__(math.prod(IMAGE), 5, context, self.gaussian)

    @staticmethod
    def gaussian(raw):
        a, b, c = raw[..., 2:].unbind(-1)
        rows = torch.stack([a.exp(), torch.zeros_like(a)], -1), torch.stack([b, c.exp()], -1)
        return dist.MultivariateNormal(raw[..., :2], scale_tril=torch.stack(rows, -2))


class FlowEncoder(nn.Module):
    """A zuko flow for a posterior: its context is x and c."""

    def __init__(self, context, name="NSF"):
        super().__init__()
        self.flow = getattr(zuko.flows, name)(LATENT, math.prod(IMAGE) + context, transforms=1, hidden_features=(8,))

    def forward(self, x, c=None):
        return self.flow(x.flatten(-3) if c is None else join(x.flatten(-3), c))


def pixels(family):
    return lambda raw: family(raw.unflatten(-1, IMAGE))


# Of three channels, rectifiers could all be dead.
RESNET = {"name": "ResNet", "channels": [2, 3], "blocks": 1, "activation": "elu"}
BOX = {"distribution": "MultivariateNormal", "args": [[0.5, 0.0], [[1.0, 0.3], [0.3, 0.5]]]}
SMALL = {"name": "Gaussian", "hidden": [8]}
SMALL_FLOW = {"name": "Flow", "hidden": [8], "outputs": 4, "flow": {"name": "MAF", "transforms": 1}}
# Its inverse is by bisection, the dearest of all flows: with a context as a prior, without one as an encoder.
SMALL_BPF = {"name": "BPF", "transforms": 1, "hidden_features": [8]}
SMALL_CHAIN = {"name": "Chain", "first": SMALL, "second": SMALL}
SPHERICAL = {"name": "PowerSpherical", "hidden": [8]}
# Of measure zero in the plane, so no density there; tests/test_densities.py has theirs.
ON_THE_SPHERE = "Sphere", "PowerSpherical"

PRIORS = {
    "Standard": named("Standard", any_context=True),
    "Gaussian": named("Gaussian", hidden=[8]),
    "Gaussian table": named("Gaussian", hidden=[]),
    "Gaussian GatedMLP": named("Gaussian", contexts=(CLASSES,), hidden=[8], network="GatedMLP"),
    "Gaussian module": Entry(lambda c: priors.Gaussian(LATENT, c, network=nn.Linear(c, 4)), contexts=(CLASSES,)),
    "Fixed Laplace": named("Fixed", any_context=True, distribution="Laplace", args=[0.0, 1.0]),
    "Fixed StudentT": named("Fixed", any_context=True, distribution="StudentT", df=9.0, loc=[0.0, 1.0], scale=2),
    "Fixed Gumbel": named("Fixed", any_context=True, distribution="Gumbel", loc=0.0, scale=1.0),
    "Fixed MultivariateNormal": named("Fixed", any_context=True, **BOX),
    "Fixed torch": Entry(lambda c: priors.Fixed(td.Cauchy, 0.0, 1.0, features=LATENT), any_context=True),
    "Fixed zuko": Entry(
        lambda c: priors.Fixed(zuko.distributions.DiagNormal, [0.0, 1.0], [1.0, 2.0], features=LATENT), any_context=True
    ),
    "Mixture": named("Mixture", hidden=[8], components=3),
    "Mixture weights": named("Mixture", hidden=[8], components=3, depends="weights"),
    "Vamp": named("Vamp", components=3, beside={"encoder": SMALL}),
    "Vamp of a flow": named("Vamp", components=3, beside={"encoder": SMALL_FLOW}),
    "Vamp of a chain": named("Vamp", components=3, beside={"encoder": SMALL_CHAIN}),
    "Sphere": named("Sphere", any_context=True, beside={"encoder": SPHERICAL}),
    "Chain": named("Chain", first=SMALL, second={"name": "MAF", "transforms": 1, "hidden_features": [8]}),
    "Chain Standard": named("Chain", first="Standard", second=SMALL),
    "Chain Vamp": named(
        "Chain", first={"name": "Vamp", "components": 3}, second=SMALL, beside={"encoder": SMALL_CHAIN}
    ),
    "Chain by hand": Entry(
        lambda c: Chain(priors.Mixture(1, c, 2, hidden=(8,)), zuko.flows.GMM(1, c + 1, 2)), needs_numbers=True
    ),
    "Unconditional Chain": Entry(
        lambda _: Unconditional(Chain(priors.Gaussian(1), priors.Gaussian(1, 1, hidden=(8,)))), any_context=True
    ),
    "NSF": named("NSF", transforms=1, hidden_features=[8]),
    "MAF": named("MAF", transforms=2, hidden_features=[8], randperm=True),
    "BPF": named("BPF", contexts=(CLASSES,), transforms=1, hidden_features=[8]),
    "NICE": named("NICE", needs_numbers=True, transforms=2, hidden_features=[8]),
    "GMM": named("GMM", needs_numbers=True, components=3),
    "CNF": named("CNF", needs_numbers=True, hidden_features=[4], freqs=1, atol=1e-3, rtol=1e-3),
    "NSF by hand": Entry(lambda c: zuko.flows.NSF(LATENT, c, transforms=1, hidden_features=(8,))),
    "GMM by hand": Entry(
        lambda c: zuko.flows.GMM(LATENT, c, components=3, covariance_type="diagonal"), needs_numbers=True
    ),
    "Pyro lambda": Entry(
        lambda _: lambda c: dist.Laplace(c.new_zeros(LATENT), 1.0).to_event(1), any_context=True, contexts=(CLASSES,)
    ),
    "torch lambda": Entry(
        lambda _: lambda c: td.Independent(td.Normal(c[..., :LATENT], c.new_ones(LATENT)), 1), contexts=(CLASSES,)
    ),
    "torch mixture": Entry(
        lambda _: (
            lambda c: td.MixtureSameFamily(
                td.Categorical(c.new_ones(3)), td.Independent(td.Normal(c.new_ones(3, LATENT), 1.0), 1)
            )
        ),
        any_context=True,
        contexts=(CLASSES,),
    ),
    "Unconditional flow": Entry(
        lambda _: Unconditional(zuko.flows.NSF(LATENT, transforms=1, hidden_features=(8,))), any_context=True
    ),
    "Unconditional Gaussian": Entry(lambda _: Unconditional(priors.Gaussian(LATENT)), any_context=True),
}
LIKELIHOODS = {
    "Bernoulli": named("Bernoulli", hidden=[8]),
    "Bernoulli Conv": named("Bernoulli", network={"name": "Conv", "channels": [2, 3]}, hidden=[8]),
    "Bernoulli tanh": named("Bernoulli", network={"name": "MLP", "activation": "tanh"}, hidden=[8]),
    "Bernoulli GatedMLP": named("Bernoulli", network="GatedMLP", hidden=[8]),
    "Bernoulli FiLM": named("Bernoulli", contexts=(CLASSES,), network="FiLM", hidden=[8]),
    "Bernoulli ResNet": named("Bernoulli", network=RESNET, hidden=[8]),
    "Bernoulli ResNet FiLM": named("Bernoulli", contexts=(CLASSES,), network=RESNET | {"film": True}, hidden=[8]),
    "Bernoulli grey": named("Bernoulli", hidden=[8], grey=True, data="unit"),
    "Binomial": named("Binomial", hidden=[8], total_count=4, data="counts"),
    "Binomial Conv": named("Binomial", network={"name": "Conv", "channels": [2]}, total_count=4, data="counts"),
    "Gaussian fixed": named("Gaussian", hidden=[8], sigma=0.7, data="real"),
    "Gaussian shared": named("Gaussian", hidden=[8], data="real"),
    "Gaussian pixel": named("Gaussian", hidden=[], sigma="pixel", shift=1.0, scale=3.0, data="real"),
    "Gaussian output": named("Gaussian", hidden=[8], sigma="output", scale=2.0, data="real"),
    "Gaussian output Conv": named("Gaussian", network={"name": "Conv", "channels": [2]}, sigma="output", data="real"),
    "Laplace": named("Laplace", hidden=[8], data="real"),
    "Laplace output Conv": named("Laplace", network={"name": "Conv", "channels": [2]}, sigma="output", data="real"),
    "StudentT pixel": named("StudentT", hidden=[8], sigma="pixel", df=12.0, scale=2.0, data="real"),
    "StudentT output": named("StudentT", hidden=[8], sigma="output", df=12.0, data="real"),
    "ContinuousBernoulli": named("ContinuousBernoulli", hidden=[8], data="unit"),
    "ContinuousBernoulli Conv": named("ContinuousBernoulli", network={"name": "Conv", "channels": [2]}, data="unit"),
    "Beta": named("Beta", hidden=[8], data="open unit"),
    "Beta output Conv": named(
        "Beta", network={"name": "Conv", "channels": [2]}, concentration="output", data="open unit"
    ),
    "DiscretizedLogistic": named("DiscretizedLogistic", hidden=[8], levels=5, data="counts"),
    "DiscretizedLogistic output Conv": named(
        "DiscretizedLogistic", network={"name": "Conv", "channels": [2]}, sigma="output", levels=5, data="counts"
    ),
    "DiscretizedLogisticMixture": named(
        "DiscretizedLogisticMixture", hidden=[8], components=3, levels=5, data="counts"
    ),
    "DiscretizedLogisticMixture Conv": named(
        "DiscretizedLogisticMixture", network={"name": "Conv", "channels": [2]}, components=2, levels=5, data="counts"
    ),
    "Categorical": named("Categorical", hidden=[8], levels=5, data="counts"),
    "Categorical Conv": named("Categorical", network={"name": "Conv", "channels": [2]}, levels=5, data="counts"),
    "Poisson": named("Poisson", hidden=[8], data="any count"),
    "Poisson Conv": named("Poisson", network={"name": "Conv", "channels": [2]}, data="any count"),
    "NegativeBinomial": named("NegativeBinomial", hidden=[8], data="any count"),
    "NegativeBinomial output Conv": named(
        "NegativeBinomial", network={"name": "Conv", "channels": [2]}, dispersion="output", data="any count"
    ),
    "Bernoulli module": Entry(lambda c: likelihoods.Bernoulli(IMAGE, LATENT, c, network=nn.Linear(LATENT + c, 30))),
    "own, torch": Entry(
        lambda c: Joined(LATENT, 30, c, pixels(lambda a: td.Independent(td.Bernoulli(logits=a), 3))),
    ),
    "own, Pyro": Entry(
        lambda c: Joined(LATENT, 30, c, pixels(lambda a: dist.ContinuousBernoulli(logits=a).to_event(3))), data="unit"
    ),
    "own, zuko": Entry(
        lambda c: Joined(LATENT, 30, c, pixels(lambda a: zuko.distributions.DiagNormal(a, torch.ones_like(a), 3))),
        data="real",
    ),
    "Unconditional": Entry(
        lambda _: Unconditional(likelihoods.Bernoulli(IMAGE, LATENT, hidden=(8,))), any_context=True
    ),
}
ENCODERS = {
    "Gaussian": named("Gaussian", hidden=[8]),
    "Gaussian Conv": named("Gaussian", hidden=[8], network={"name": "Conv", "channels": [2, 3]}),
    "Gaussian GatedMLP": named("Gaussian", hidden=[8], network="GatedMLP"),
    "Gaussian FiLM": named("Gaussian", contexts=(CLASSES,), hidden=[8], network="FiLM"),
    "Gaussian ResNet": named("Gaussian", hidden=[8], network=RESNET),
    "Gaussian ResNet FiLM": named("Gaussian", contexts=(CLASSES,), hidden=[8], network=RESNET | {"film": True}),
    "Gaussian scaled": named("Gaussian", hidden=[8, 8], shift=0.5, scale=0.5),
    "Gaussian module": Entry(lambda c: encoders.Gaussian(LATENT, IMAGE, c, network=nn.Linear(30 + c, 4))),
    "FullGaussian": named("FullGaussian", hidden=[8]),
    "LowRankGaussian": named("LowRankGaussian", hidden=[8], rank=1),
    "Mixture": named("Mixture", hidden=[8], components=2),
    "Flow": named("Flow", hidden=[8], outputs=4),
    "Flow NSF": named("Flow", hidden=[8], outputs=4, flow={"name": "NSF", "transforms": 1, "bins": 4}),
    "Flow BPF": named("Flow", contexts=(0,), hidden=[8], outputs=4, flow=SMALL_BPF),
    "Flow NICE": named("Flow", needs_numbers=True, hidden=[8], outputs=4, flow="NICE"),
    "PowerSpherical": named("PowerSpherical", hidden=[8], beside={"prior": "Sphere"}),
    "Chain": named("Chain", first=SMALL, second=SMALL_FLOW),
    "Chain of others": named("Chain", first="FullGaussian", second={"name": "Mixture", "components": 2}),
    "Chain by hand": Entry(
        lambda c: Chain(encoders.Gaussian(1, IMAGE, c, (8,)), encoders.LowRankGaussian(1, IMAGE, c + 1, (8,)))
    ),
    "Masked": named("Masked", part={"name": "Gaussian", "hidden": [8]}),
    "Delta": named("Delta", hidden=[8]),
    "Delta Conv": named("Delta", network={"name": "Conv", "channels": [2]}),
    "own, correlated": Entry(Correlated),
    "own, torch": Entry(
        lambda c: Joined(30, 2, c, lambda raw: td.Independent(td.StudentT(5.0, raw, torch.ones_like(raw)), 1))
    ),
    "own, flow": Entry(FlowEncoder),
    "Unconditional": Entry(lambda _: Unconditional(encoders.Gaussian(LATENT, IMAGE, hidden=(8,))), any_context=True),
}
KINDS = {"prior": PRIORS, "likelihood": LIKELIHOODS, "encoder": ENCODERS}
ALL = [(kind, name, context) for kind in KINDS for name, entry in KINDS[kind].items() for context in entry.contexts]


@dataclasses.dataclass
class Case:
    """An entry with a context, and inputs for it."""

    kind: str
    name: str
    context: int

    def __str__(self):
        return f"{self.kind}-{self.name}-{self.context}"

    @property
    def entry(self):
        return KINDS[self.kind][self.name]

    @property
    def event(self):
        return IMAGE if self.kind == "likelihood" else (LATENT,)

    # Which part, and which inputs, stays as it is; what a test's seed says is the noise.
    def make(self, seed=0, encoder=None):
        with seeded(seed, CPU):
            if self.entry.spec is None:
                return self.entry.make(self.context)
            if encoder is None and "encoder" in self.entry.beside:
                encoder = self.other("encoder")
            return self.by_name(self.kind, self.entry.spec, encoder)

    def by_name(self, kind, spec, encoder=None):
        shared = {"features": LATENT, "x_shape": IMAGE, "context": self.context}
        return presets.make(kind, presets.complete(kind, spec, **shared), encoder=encoder)

    def other(self, kind):
        """Another part of the smallest model with this one."""
        if kind in self.entry.beside:
            return self.by_name(kind, self.entry.beside[kind])
        return {
            "prior": lambda: priors.Standard(LATENT),
            "likelihood": lambda: likelihoods.Bernoulli(IMAGE, LATENT, self.context, hidden=(8,)),
            "encoder": lambda: encoders.Gaussian(LATENT, IMAGE, self.context, hidden=(8,)),
        }[kind]()

    @seeded(1, CPU)
    def inputs(self, *batch, dtype=torch.float32):
        """What the part is called with before its context."""
        shape = {"prior": None, "likelihood": (LATENT,), "encoder": IMAGE}[self.kind]
        return [] if shape is None else [torch.randn(*batch, *shape, dtype=torch.float64).to(dtype)]

    @seeded(2, CPU)
    def c(self, *batch, dtype=torch.float32):
        return torch.rand(*batch, self.context, dtype=torch.float64).to(dtype) if self.context else None

    def __call__(self, part, *batch, dtype=torch.float32):
        return as_pyro(part(*self.inputs(*batch, dtype=dtype), self.c(*batch, dtype=dtype)))

    def x(self, n=N):
        """Images that the system's likelihood is about."""
        u = torch.rand(n, *IMAGE, generator=torch.Generator().manual_seed(3))
        data = self.entry.data if self.kind == "likelihood" else "binary"
        kinds = {"binary": u.round(), "unit": u, "open unit": 0.02 + 0.96 * u, "real": 3 * u - 1}
        return kinds[data] if data in kinds else (4 * u).round()

    def y(self, n=N):
        return torch.arange(n) % CLASSES if self.context else None

    def vae(self):
        """The smallest model with this part."""
        parts = {"encoder": self.other("encoder")} if "encoder" in self.entry.beside else {}
        for kind in KINDS:
            if kind not in parts:
                mine = kind == self.kind
                parts[kind] = self.make(encoder=parts.get("encoder")) if mine else self.other(kind)
        return VAE(**parts, condition=OneHot(CLASSES) if self.context else None)


def cases(choose=lambda case: True):
    chosen = [case for args in ALL if choose(case := Case(*args))]
    return pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in chosen])


def is_module(case):
    return isinstance(case.make(), nn.Module)


def is_named(case):
    return case.entry.spec is not None


def shaken(part, seed=5):
    """The part with every parameter moved, so that nothing is told by fresh zeros."""
    with seeded(seed, CPU), torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return part


# A part by itself


@cases()
@pytest.mark.parametrize("batch", [(), (N,), (4, N)], ids=["one", "batch", "two batch dims"])
def test_event_and_batch_shape(case, batch):
    d = case(case.make(), *batch)
    assert d.event_shape == case.event
    # A part that ignores its inputs may have fewer batch dimensions: the plate expands it.
    assert torch.broadcast_shapes(d.batch_shape, batch) == batch
    value = d.expand(batch).sample((7,))
    assert value.shape == (7, *batch, *case.event)
    log_prob = d.expand(batch).log_prob(value)
    assert log_prob.shape == (7, *batch)
    assert log_prob.isfinite().all()


@cases()
def test_leading_sample_dimensions_broadcast_with_the_context(case):
    part = case.make()
    (*inputs,) = case.inputs(4, N)
    d = as_pyro(part(*inputs, case.c(N)))
    value = d.expand((4, N)).sample()
    assert d.event_shape == case.event
    assert d.log_prob(value).shape == (4, N)


@cases()
def test_each_row_is_what_it_would_be_alone(case):
    part = case.make()
    part = shaken(part).double() if isinstance(part, nn.Module) else part
    inputs, c = case.inputs(N, dtype=torch.float64), case.c(N, dtype=torch.float64)
    together = as_pyro(part(*inputs, c)).expand((N,))
    if isinstance(together, dist.Delta):
        rows = [part(*(a[i] for a in inputs), None if c is None else c[i]).v for i in range(N)]
        torch.testing.assert_close(together.v, torch.stack(rows))
        return
    value = together.sample()
    alone = [
        as_pyro(part(*(a[i] for a in inputs), None if c is None else c[i])).log_prob(value[i]).reshape(())
        for i in range(N)
    ]
    # The adaptive solver of a continuous flow takes its steps for the whole batch at once.
    tolerance = 1e-2 if case.name == "CNF" else 1e-7
    torch.testing.assert_close(together.log_prob(value), torch.stack(alone), rtol=tolerance, atol=tolerance)


@cases(lambda case: case.context and not case.entry.any_context)
def test_the_context_matters(case):
    part = case.make()
    part = shaken(part) if isinstance(part, nn.Module) else part
    inputs = case.inputs()
    first, second = (as_pyro(part(*inputs, c)) for c in torch.eye(CLASSES)[:2])
    value = first.sample()
    if isinstance(first, dist.Delta):
        assert not torch.equal(first.v, second.v)
    else:
        assert first.log_prob(value) != second.log_prob(value)


@cases(lambda case: case.entry.any_context)
def test_a_part_for_any_context_ignores_it(case):
    part, inputs = case.make(), case.inputs(N)
    first, second = (as_pyro(part(*inputs, torch.full((N, 7), x))).expand((N,)) for x in (0.0, 1.0))
    value = first.sample()
    assert torch.equal(first.log_prob(value), second.log_prob(value))


@cases()
def test_follows_double(case):
    part = case.make()
    part = part.double() if isinstance(part, nn.Module) else part
    d = case(part, N, dtype=torch.float64)
    value = d.sample()
    assert value.dtype == torch.float64
    assert d.log_prob(value).dtype == torch.float64


def placed(case, part, device):
    part = part.to(device) if isinstance(part, nn.Module) else part
    inputs, c = ([a.to(device) for a in case.inputs(N)], case.c(N))
    return as_pyro(part(*inputs, None if c is None else c.to(device)))


@cases()
def test_follows_to_a_device(case, device):
    d = placed(case, case.make(), device)
    value = d.sample()
    assert value.device.type == device.type
    assert d.log_prob(value).device.type == device.type


@cases(lambda case: not case.entry.needs_numbers)
def test_leaves_nothing_behind_on_the_cpu(case):
    # The meta device has shapes and no numbers, and refuses to mix with the CPU: a second device on every machine.
    with pyro.validation_enabled(False):
        d = placed(case, case.make(), torch.device("meta"))
        # There is no drawing from a binomial or a Beta.
        value = d.mean if case.entry.data in ("counts", "open unit") else d.sample()
        assert value.device.type == "meta"
        assert d.log_prob(value).device.type == "meta"


@cases(is_module)
def test_a_copy_is_independent(case):
    part = case.make()
    other = copy.deepcopy(part)
    assert {id(p) for p in part.parameters()}.isdisjoint({id(p) for p in other.parameters()})
    value = case(part, N).sample()
    before = case(part, N).log_prob(value)
    torch.testing.assert_close(case(other, N).log_prob(value), before)
    shaken(other)
    assert torch.equal(case(part, N).log_prob(value), before)


@cases(is_module)
def test_the_state_dict_is_all_there_is(case):
    part, fresh = shaken(case.make()), case.make(seed=9)
    # What is drawn at construction and is no parameter, a flow's permutations say, must be saved too.
    fresh.load_state_dict(part.state_dict())
    value = case(part, N).sample()
    assert torch.equal(case(part, N).log_prob(value), case(fresh, N).log_prob(value))


@cases(is_named)
def test_a_named_part_survives_json(case):
    vae = case.vae()
    config = presets.to_dict(vae)
    rebuilt = presets.build(json.loads(json.dumps(config)))
    assert presets.to_dict(rebuilt) == config
    if "randperm" not in case.entry.spec:
        assert str(rebuilt) == str(vae)
    shapes = [{k: (v.shape, v.dtype) for k, v in m.state_dict().items()} for m in (vae, rebuilt)]
    assert shapes[0] == shapes[1]
    rebuilt.load_state_dict(vae.state_dict())
    losses = []
    for model in (vae, rebuilt):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(model.model, model.guide, case.x(), case.y()))
    assert losses[0] == losses[1]


def is_ours(case):
    return case.make().__class__.__module__.startswith("ppl_vae") and not case.entry.any_context


@cases(lambda case: is_ours(case) and case.context)
def test_a_wrong_or_missing_context_is_a_typed_error(case):
    part, inputs = case.make(), case.inputs(N)
    with pytest.raises(ShapeError, match=r"expected a context \(\*, 3\), got \(6, 4\)"):
        part(*inputs, torch.zeros(N, CLASSES + 1))
    with pytest.raises(ShapeError, match=r"expected a context \(\*, 3\), got none.*condition"):
        part(*inputs, None)


@cases(lambda case: is_ours(case) and not case.context)
def test_an_unwanted_context_names_the_ways_out(case):
    with pytest.raises(ShapeError, match=r"context=0.*\(6, 4\).*context=4.*Unconditional"):
        case.make()(*case.inputs(N), torch.zeros(N, 4))


@cases(lambda case: not case.context and is_module(case) and case.kind != "prior")
def test_unconditional_wraps_any_part(case):
    part = case.make()
    wrapped, inputs = Unconditional(part), case.inputs(N)
    value = as_pyro(part(*inputs, None)).sample()
    expected = as_pyro(part(*inputs, None)).log_prob(value)
    assert torch.equal(as_pyro(wrapped(*inputs, torch.zeros(N, 4))).log_prob(value), expected)
    assert list(wrapped.parameters()) == list(part.parameters())
    for said in ("features", "x_shape", "density", "levels"):
        if hasattr(part, said):
            assert getattr(wrapped, said) == getattr(part, said)


@pytest.mark.fresh
@cases(lambda case: case.kind != "likelihood" and not case.name.startswith(("Delta", *ON_THE_SPHERE)))
def test_the_sampler_agrees_with_log_prob(case):
    # E_p[h/p] = ∫h = 1 for a normal density h inside p. α = 1e-6 over all these comparisons together (5.7 standard
    # errors of 4,000 float64 draws): a scale wrong by 15%, or a missing constant of 0.1 nat, is seen.
    # A density over 30 pixels would need more draws than a test has.
    part = case.make()
    part = part.double() if isinstance(part, nn.Module) else part
    with torch.no_grad():
        d = case(part, dtype=torch.float64)
        z = d.sample((4_000,)).reshape(-1, LATENT)
        # Of the same shape, or the ratio would have heavy tails where p is narrow; of the middle of the draws, or one
        # of a Cauchy's far out would make h as wide as it is far.
        low, high = z.quantile(torch.tensor([0.05, 0.95]).double(), 0)
        middle = z[((z > low) & (z < high)).all(-1)]
        h = dist.MultivariateNormal(z.median(0).values, 0.5 * torch.cov(middle.T))
        ratio = (h.log_prob(z) - d.log_prob(z)).exp()
    assert abs(ratio.mean() - 1) < 5.7 * ratio.std() / math.sqrt(len(z))


@cases(
    lambda case: case.kind == "likelihood" and case.name != "Bernoulli grey" and not case.name.startswith("own, Pyro")
)
def test_pixels_are_drawn_with_the_mean_and_variance_they_say(case):
    # 2,000 draws, |z| < 6 over 30 pixels in 27 cases (α = 2e-6 in all): a mean off by 0.14 standard deviations.
    d = case(shaken(case.make().double()), dtype=torch.float64)
    x = d.sample((2_000,))
    assert ((x.mean(0) - d.mean).abs() < 6 * (d.variance / 2_000).sqrt()).all()
    # A variance of bounded or normal pixels has relative standard error ≤ sqrt(excess kurtosis + 2) / sqrt(n).
    torch.testing.assert_close(x.var(0).mean(), d.variance.mean(), rtol=0.1, atol=0)


# How many values carry all the probability, which falls faster than 0.9ˣ where there is no largest.
VALUES = {"binary": 2, "counts": 5, "any count": 400}


@cases(lambda case: case.kind == "likelihood" and case.entry.data in VALUES)
def test_the_probabilities_of_a_pixel_add_up_to_one(case):
    d = case(shaken(case.make().double()), dtype=torch.float64).base_dist
    values = torch.arange(VALUES[case.entry.data], dtype=torch.float64)
    total = sum(d.log_prob(value.expand(d.batch_shape)).exp() for value in values)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def on_a_line(data):
    """Places x and what each stands for, dx: of the unit interval, or of all numbers by x = sinh u, for heavy tails."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    if data != "real":
        return u, torch.full_like(u, 1 / 20_000)
    return (24 * u - 12).sinh(), (24 * u - 12).cosh() * 24 / 20_000


@cases(lambda case: case.kind == "likelihood" and case.entry.data not in VALUES and case.name != "Bernoulli grey")
def test_the_density_of_a_pixel_has_the_integral_one(case):
    # A constant of 0.01 nat too many is seen.
    d = case(shaken(case.make().double()), dtype=torch.float64).base_dist
    x, dx = on_a_line(case.entry.data)
    total = (d.log_prob(x.view(-1, *[1] * len(d.batch_shape))).exp() * dx.view(-1, *[1] * len(d.batch_shape))).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=3e-3)


@cases(lambda case: case.kind != "condition")
def test_what_svi_minimises_is_what_is_written_by_hand(case):
    # A density that a part gives another constant than its formula has, a sum that is a mean, an event too few.
    found = audit(case.vae(), case.x(), case.y(), objectives=[Trace_ELBO()], particles=2)
    assert found.passed, found


@cases(lambda case: case.kind == "likelihood" and is_ours(case))
def test_check_accepts_its_data_and_refuses_the_rest(case):
    part, x = case.make(), case.x()
    part.check(x)
    part.check(x[0])
    for bad in (math.nan, math.inf):
        with pytest.raises(PplVaeError, match=r"nan|inf|NaN|finite"):
            part.check(torch.where(torch.arange(N).reshape(-1, 1, 1, 1) == 2, bad, x))
    with pytest.raises(ShapeError, match=r"expected \(N, 1, 6, 5\), got \(6, 6, 5\)"):
        part.check(x[:, 0])
    if case.entry.data != "real":
        for bad in (x + 0.5, x - 1) if case.entry.data == "any count" else (x + 5, x - 1, x * 255):
            with pytest.raises(PplVaeError, match="expected"):
                part.check(bad)


# What the parts make of their networks' numbers, by their formulas


def raw(part, *inputs):
    """What the part's network gives, with its parameters moved off their fresh values."""
    return shaken(part).network(*inputs)


def test_the_learned_prior_has_log_variances():
    part, c = priors.Gaussian(LATENT, CLASSES, hidden=()), torch.eye(CLASSES)
    loc, log_variance = raw(part, None, c).chunk(2, -1)
    torch.testing.assert_close(part(c).mean, loc)
    torch.testing.assert_close(part(c).variance, log_variance.exp())
    free = shaken(priors.Gaussian(LATENT))
    torch.testing.assert_close(free(None).mean, free.loc)
    torch.testing.assert_close(free(None).variance, free.log_variance.exp())


def test_the_encoders_standardise_x():
    x = torch.rand(N, *IMAGE)
    for cls in (encoders.Gaussian, encoders.Delta):
        part = cls(LATENT, IMAGE, hidden=(8,), shift=3.0, scale=5.0)
        numbers = raw(part, (x - 3.0) / 5.0)
        q = part(x)
        torch.testing.assert_close(q.mean, numbers[:, :LATENT])
        if cls is encoders.Gaussian:
            torch.testing.assert_close(q.variance, numbers[:, LATENT:].exp())


@pytest.mark.parametrize("sigma", [0.7, "shared", "pixel", "output"])
def test_the_gaussian_likelihood_is_in_the_units_of_x(sigma):
    part, z = (
        likelihoods.Gaussian(IMAGE, LATENT, hidden=(8,), sigma=sigma, shift=3.0, scale=5.0),
        torch.randn(N, LATENT),
    )
    numbers = raw(part, z)
    p = part(z)
    torch.testing.assert_close(p.mean, 3.0 + 5.0 * numbers[:, :1])
    log_variance = numbers[:, 1:] if sigma == "output" else getattr(part, "log_variance", None)
    expected = torch.tensor(0.49) if sigma == 0.7 else 25.0 * log_variance.exp()
    torch.testing.assert_close(p.variance, expected.expand(N, *IMAGE))
    # A learned σ starts at the scale of the data.
    if sigma in ("shared", "pixel"):
        fresh = likelihoods.Gaussian(IMAGE, LATENT, sigma=sigma, scale=5.0)
        assert (fresh(z).stddev == 5.0).all()


def test_bernoulli_and_binomial_take_logits():
    z, x = torch.randn(N, LATENT), torch.rand(N, *IMAGE).round()
    for part, n in [(likelihoods.Bernoulli(IMAGE, LATENT), 1), (likelihoods.Binomial(IMAGE, LATENT, total_count=4), 4)]:
        p = raw(part, z).sigmoid()
        torch.testing.assert_close(part(z).mean, n * p)
        torch.testing.assert_close(part(z).variance, n * p * (1 - p))
        # Every pixel a 0 or an n, where the binomial coefficient is one.
        expected = n * (x * p.log() + (1 - x) * (-p).log1p()).flatten(1).sum(1)
        torch.testing.assert_close(part(z).log_prob(n * x), expected)


@pytest.mark.parametrize("size", [-1000.0, 1000.0])
def test_absurd_log_variances_give_finite_losses_and_gradients(size):
    class Constant(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.value = nn.Parameter(torch.full((n,), size))

        def forward(self, joined):
            return self.value.expand(len(joined), -1) + 0 * joined.sum(-1, keepdim=True)

    vae = VAE(
        priors.Gaussian(LATENT, CLASSES, network=Constant(4)),
        likelihoods.Gaussian((5,), LATENT, CLASSES, network=Constant(10), sigma="output"),
        encoders.Gaussian(LATENT, (5,), CLASSES, network=Constant(4)),
        condition=OneHot(CLASSES),
    )
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, torch.zeros(3, 5), torch.arange(3)).backward()
    for part in (vae.prior, vae.likelihood, vae.encoder):
        assert part.network.body.value.grad.isfinite().all()
        # Held at the end of its range, where it gets no gradient.
        assert not part.network.body.value.grad[-1]


# The part in a model


def by_hand(vae, x, y, particles):
    """−ELBO of a batch from the parts alone, with the draws that vectorised particles make."""
    c = None if y is None else vae.condition(y).to(x)
    q = as_pyro(vae.encoder(x, c)).expand((particles, len(x)))
    z = q.rsample() if q.has_rsample else q.sample()
    log_w = as_pyro(vae.prior(c)).log_prob(z) + as_pyro(vae.likelihood(z, c)).log_prob(x) - q.log_prob(z)
    assert log_w.shape == (particles, len(x))
    return -log_w.sum() / particles


@cases()
def test_the_loss_is_the_one_written_by_hand(case):
    vae, x, y = shaken(case.vae()).double(), case.x().double(), case.y()
    for elbo, particles in [
        (Trace_ELBO(), 1),
        (Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1), 5),
    ]:
        torch.manual_seed(4)
        loss = elbo.loss(vae.model, vae.guide, x, y)
        torch.manual_seed(4)
        assert loss == pytest.approx(by_hand(vae, x, y, particles).item(), rel=1e-9 if case.name != "CNF" else 1e-2)


@cases()
def test_the_mean_field_loss_takes_the_closed_form_where_there_is_one(case):
    vae, x, y = shaken(case.vae()).double(), case.x().double(), case.y()
    torch.manual_seed(4)
    loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, x, y)
    c = None if y is None else vae.condition(y).double()
    torch.manual_seed(4)
    q, p = as_pyro(vae.encoder(x, c)).expand((N,)), as_pyro(vae.prior(c)).expand((N,))
    try:
        kl = td.kl_divergence(q, p)
    except NotImplementedError:
        assert math.isfinite(loss)
        return
    expected = kl.sum() - as_pyro(vae.likelihood(q.rsample(), c)).log_prob(x).sum()
    assert loss == pytest.approx(expected.item(), rel=1e-9)


@cases()
def test_every_parameter_gets_a_gradient(case, device):
    # Label 0 … 2 each occur, so that no row of a table is left out. A loaded model is in eval mode.
    vae, x, y = shaken(case.vae()).to(device).eval(), case.x(), case.y()
    Trace_ELBO(num_particles=4).differentiable_loss(vae.model, vae.guide, x, y).backward()
    missing = [name for name, p in vae.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.isfinite().all() for p in vae.parameters())
    silent = [name for name, p in vae.named_parameters() if not p.grad.any()]
    assert not silent


@cases()
def test_stock_svi_lowers_the_loss(case):
    vae, x, y = case.vae(), case.x(), case.y()

    def loss():
        torch.manual_seed(6)
        elbo = Trace_ELBO(num_particles=50, vectorize_particles=True, max_plate_nesting=1)
        return elbo.loss(vae.model, vae.guide, x, y)

    before = loss()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(25):
        svi.step(x, y)
    assert loss() < before


# An adaptive solver looks at values to choose its steps.
TAKES_STOCK_STEPS = {"CNF"}


@cases()
@pytest.mark.filterwarnings("ignore::ppl_vae.capture.CaptureWarning")
def test_captured_steps_equal_stock(case, device, recording):
    """Every loss of twelve steps, so gradients, updates and random numbers as well."""
    vae, (backend, adam) = case.vae().to(device), recording
    twin = copy.deepcopy(vae)
    x, y = case.x(), case.y()
    stock = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    captured = CapturedSVI(twin.model, twin.guide, adam(1e-2), Trace_ELBO(), backend=backend)
    losses = []
    for svi in (stock, captured):
        torch.manual_seed(0)
        losses.append([float(svi.step(x, y)) for _ in range(12)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6, abs=1e-6)
    assert captured.backend == ("off" if case.name in TAKES_STOCK_STEPS else backend)


@cases()
@pytest.mark.parametrize("parallel", [False, True], ids=["one by one", "parallel"])
def test_predictive(case, parallel):
    vae, x, y = case.vae(), case.x(), case.y()
    prior = Predictive(vae.model, num_samples=4, parallel=parallel)(y=y)
    n = N if case.context else 1
    assert prior["z"].shape == (4, n, LATENT)
    assert prior["x"].shape == (4, n, *IMAGE)
    posterior = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=4, parallel=parallel)(x, y)
    assert posterior["x"].shape == (4, N, *IMAGE)
    assert not torch.equal(posterior["x"][0], x)
    latent = Predictive(vae.guide, num_samples=4, parallel=parallel)(x, y)["z"]
    assert latent.shape == (4, N, LATENT)
    if "Delta" not in case.name:
        assert not torch.equal(latent[0], latent[1])
        assert not torch.equal(prior["z"][0], prior["z"][1])


@cases()
def test_what_one_asks_of_a_model(case):
    vae, x, y = case.vae(), case.x(), case.y()
    assert vae.encode(x, y).event_shape == (LATENT,)
    assert vae.decode(torch.zeros(4, N, LATENT), y).event_shape == IMAGE
    assert vae.prior_given(y).batch_shape == ((N,) if case.context else ())
    assert vae.sample(4, y).shape == (4, *((N,) if case.context else ()), *IMAGE)
    assert vae.embed(x, y).shape == (N, LATENT)
    assert vae.reconstruct(x, y).shape == x.shape
    if "Delta" not in case.name:
        log_prob = vae.log_prob(x, y, samples=8)
        assert log_prob.shape == (N,)
        assert log_prob.isfinite().all()


# The lists themselves


@pytest.mark.parametrize(
    ("table", "entries"),
    [(presets.PRIORS, PRIORS), (presets.LIKELIHOODS, LIKELIHOODS), (presets.ENCODERS, ENCODERS)],
    ids=["priors", "likelihoods", "encoders"],
)
def test_every_named_part_is_under_contract(table, entries):
    assert set(table) <= {entry.spec["name"] for entry in entries.values() if entry.spec}

"""The two programs and what one asks of a model: names, masks, scales, β, and what users may pass."""

import copy
import gc
import math
import pickle
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import ppl_vae as pv
from ppl_vae import VAE, OneHot, Unconditional, encoders, likelihoods, priors
from ppl_vae.distributions import zuko
from ppl_vae.errors import (
    ConfigError,
    DataError,
    LabelError,
    NoClosedFormError,
    NoDensityError,
    NonFiniteError,
    PartError,
    PplVaeError,
    ShapeError,
)
from ppl_vae.objectives import analytic_elbo, elbo_terms

IMAGE, LATENT, N = (1, 3, 4), 2, 6
ELBOS = [pytest.param(Trace_ELBO, id="Trace"), pytest.param(TraceMeanField_ELBO, id="MeanField")]


def vae(seed=0, likelihood="Bernoulli", **options):
    torch.manual_seed(seed)
    return pv.vae(IMAGE, LATENT, likelihood=likelihood, hidden=(8,), **options)


def cvae(seed=0, **options):
    torch.manual_seed(seed)
    return pv.cvae(IMAGE, LATENT, 3, hidden=(8,), **options)


def binary(n=N, seed=1):
    return torch.rand(n, *IMAGE, generator=torch.Generator().manual_seed(seed)).round()


def loss(model, *args, elbo=Trace_ELBO, seed=2, **kwargs):
    torch.manual_seed(seed)
    return elbo().loss(model.model, model.guide, *args, **kwargs)


def loss_and_gradients(model, *args, elbo=Trace_ELBO, seed=2, **kwargs):
    torch.manual_seed(seed)
    value = elbo().differentiable_loss(model.model, model.guide, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value, list(model.parameters()))


def train(model, x, y=None, steps=3):
    torch.manual_seed(3)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    return snapshot(model)


def fit(model, x, y=None, mask=None):
    return pv.fit(model, (x, y, mask), epochs=1, capture="off", progress=False)


def snapshot(model):
    return [p.detach().clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Names: two models in one process is a normal day


def test_two_models_train_as_each_would_alone():
    x = binary()
    alone = []
    for seed in (0, 1):
        pyro.clear_param_store()
        alone.append(train(vae(seed), x))
    pyro.clear_param_store()
    first, second = vae(0), vae(1)
    assert same(train(first, x), alone[0])
    assert same(train(second, x), alone[1])
    assert same(snapshot(first), alone[0])


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_copies_get_a_name_of_their_own(duplicate):
    model = vae()
    assert duplicate(model).name != model.name
    assert duplicate(duplicate(model)).name not in {model.name, duplicate(model).name}


def test_a_deepcopy_trains_and_leaves_the_original_alone():
    x, model = binary(), vae()
    train(model, x)
    before, other = snapshot(model), copy.deepcopy(model)
    after = train(other, x)
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert same(snapshot(model), before)
    # The original was copied mid-training; it goes on as well.
    assert not same(train(model, x), before)


def test_a_dirty_param_store_does_not_leak_in():
    x = binary()
    expected = train(vae(), x)
    pyro.clear_param_store()
    model = vae()
    for name, parameter in model.named_parameters():
        pyro.param(f"{model.name}$$${name}", torch.full_like(parameter, 7.0))
    assert same(train(model, x), expected)


def test_a_store_under_an_explicit_name_is_refused_when_it_holds_others():
    model = vae()
    named = VAE(model.prior, model.likelihood, model.encoder, name="mine")
    key = next(iter(dict(named.named_parameters())))
    pyro.param(f"mine$$${key}", torch.zeros(3))
    with pytest.raises(ConfigError, match=r"mine.*clear_param_store"):
        named.model(binary())


def test_an_explicit_name_is_taken_while_its_model_lives():
    def make():
        part = vae()
        return VAE(part.prior, part.likelihood, part.encoder, name="taken")

    first = make()
    with pytest.raises(ConfigError, match="'taken'"):
        make()
    assert copy.deepcopy(first).name != "taken"
    train(first, binary())
    first.unregister()
    del first
    gc.collect()
    assert make().name == "taken"


def test_unregister_leaves_nothing_that_keeps_the_model_alive():
    keep, model = vae(), vae()
    train(keep, binary())
    train(model, binary())
    watch = weakref.ref(next(model.parameters()))
    model.unregister()
    assert not [key for key in pyro.get_param_store() if key.startswith(f"{model.name}$$$")]
    assert [key for key in pyro.get_param_store() if key.startswith(f"{keep.name}$$$")]
    model.zero_grad()
    del model
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("first", [0, 1])
def test_models_that_share_parts_unregister_in_any_order(first):
    x, a = binary(), vae()
    b = VAE(priors.Gaussian(LATENT), a.likelihood, a.encoder)
    train(a, x)
    train(b, x)
    gone, left = (a, b)[first], (a, b)[1 - first]
    gone.unregister()
    store = pyro.get_param_store()
    names = {f"{left.name}$$${key}": parameter for key, parameter in left.named_parameters()}
    assert set(store) == set(names)
    assert all(store.param_name(parameter) == name for name, parameter in names.items())
    train(left, x)
    left.unregister()
    assert not list(store)
    assert not store._param_to_name


def test_a_fit_beside_a_model_of_the_same_parts_has_its_history():
    x, a = binary(), vae()
    b = VAE(priors.Gaussian(LATENT), a.likelihood, a.encoder)
    svi = SVI(a.model, a.guide, pyro.optim.Adam(lambda name: {"lr": 0.01 if "encoder" in name else 0.02}), Trace_ELBO())
    svi.step(x)
    assert len(fit(b, x)) == 1
    # A rate by the name of a parameter, which Pyro looks up.
    svi.step(x)
    assert len(fit(a, x)) == 1


class Transposed(nn.Module):
    """A linear encoder whose weights are the transpose of what they were made of."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, LATENT).T)

    def forward(self, x, c):
        return dist.Normal(x.flatten(-3) @ self.weight.T, 1.0).to_event(1)


def test_weights_that_are_not_contiguous_are_told_so():
    x, model = binary(), vae()
    transposed = VAE(priors.Standard(LATENT), model.likelihood, Transposed())
    with pytest.raises(PartError, match=r"encoder\.weight: .*contiguous.*strides \(1, 2\) for \(2, 12\)"):
        fit(transposed, x)
    transposed.encoder.weight = nn.Parameter(transposed.encoder.weight.detach().contiguous())
    fit(transposed, x)
    image = torch.rand(N, 3, 8, 8).round()
    images = pv.vae((3, 8, 8), LATENT, network=pv.networks.Conv).to(memory_format=torch.channels_last)
    with pytest.raises(PartError, match=r"to\(memory_format=torch\.contiguous_format\)"):
        fit(images, image)
    fit(images.to(memory_format=torch.contiguous_format), image)


def test_building_a_model_puts_nothing_in_the_param_store():
    vae()
    cvae().sample(2, y=1)
    assert not list(pyro.get_param_store())


def test_names_are_in_no_checkpoint_and_no_configuration():
    model = vae()
    assert model.name not in str(list(model.state_dict())) + str(pv.presets.to_dict(model))
    assert "_beta" not in model.state_dict()


def test_frozen_parameters_stay_frozen():
    model, x = vae(), binary()
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    before = [p.clone() for p in model.encoder.parameters()]
    train(model, x)
    assert same(list(model.encoder.parameters()), before)
    assert not [key for key in pyro.get_param_store() if "encoder" in key]


def test_handlers_that_swap_parameters_are_refused_and_not_ignored():
    with pytest.raises(PartError, match="lift"):
        poutine.lift(vae().model, prior=dist.Normal(0.0, 1.0))(binary())


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, JitTrace_ELBO])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_pyros_elbos_train_every_parameter(elbo):
    model, x = vae(), binary()
    before = snapshot(model)
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.01}), elbo())
    for _ in range(2):
        svi.step(x)
    assert not any(torch.equal(a, b) for a, b in zip(snapshot(model), before, strict=True))


# Missing pixels


MASKED = {
    "Bernoulli": "Bernoulli",
    "Binomial": {"name": "Binomial", "total_count": 3},
    "Gaussian": {"name": "Gaussian", "sigma": "shared"},
    "Gaussian output": {"name": "Gaussian", "sigma": "output"},
}


@pytest.fixture
def mask():
    return torch.rand(N, *IMAGE, generator=torch.Generator().manual_seed(5)) < 0.6


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("likelihood", MASKED.values(), ids=MASKED)
@pytest.mark.parametrize("unseen", [math.nan, math.inf, 1.0, -1e30])
def test_unseen_values_reach_neither_loss_nor_gradients(mask, likelihood, elbo, unseen):
    model, x = vae(likelihood=likelihood), binary()
    expected = loss_and_gradients(model, x.where(mask, torch.zeros(())), mask=mask, elbo=elbo)
    got = loss_and_gradients(model, x.where(mask, torch.tensor(unseen)), mask=mask, elbo=elbo)
    assert torch.equal(got[0], expected[0])
    assert same(got[1], expected[1])
    assert got[0].isfinite()
    assert all(g.isfinite().all() for g in got[1])


@pytest.mark.parametrize("likelihood", MASKED.values(), ids=MASKED)
def test_the_masked_likelihood_is_the_sum_over_seen_pixels(mask, likelihood):
    model, x = vae(likelihood=likelihood).double(), binary().double()
    q = model.encode(x * mask)
    torch.manual_seed(2)
    z = q.rsample()
    pixels = model.decode(z).base_dist.log_prob(x)
    expected = q.log_prob(z).sum() - model.prior_given().log_prob(z).sum() - pixels[mask].sum()
    assert loss(model, x, mask=mask) == pytest.approx(expected.item(), rel=1e-12)


def test_a_mask_of_everything_changes_nothing_and_of_nothing_leaves_the_kl():
    model, x = vae(), binary()
    assert loss(model, x, mask=torch.ones_like(x, dtype=torch.bool)) == loss(model, x)
    nothing = loss(model, x, mask=torch.zeros_like(x, dtype=torch.bool), elbo=TraceMeanField_ELBO)
    kl = elbo_terms(model, torch.zeros_like(x))[1].sum()
    assert nothing == pytest.approx(kl.item(), rel=1e-6)


@pytest.mark.parametrize(
    "pixelwise",
    [
        lambda a: td.Independent(td.Bernoulli(logits=a), 3),
        lambda a: dist.Independent(td.Bernoulli(logits=a), 3),
        lambda a: zuko.distributions.DiagNormal(a, torch.ones_like(a), 3),
    ],
    ids=["torch", "Pyro around torch", "zuko"],
)
def test_masks_work_for_likelihoods_from_elsewhere(mask, pixelwise):
    part = vae()
    model = VAE(part.prior, lambda z, c: pixelwise(part.likelihood.network(z)), part.encoder)
    x = binary()
    assert math.isfinite(loss(model, x.where(mask, torch.tensor(math.nan)), mask=mask))
    assert loss(model, x, mask=mask) < loss(model, x)


def test_a_likelihood_of_dependent_pixels_cannot_be_masked(mask):
    part = vae()
    model = VAE(part.prior, lambda z, c: dist.MultivariateNormal(torch.zeros(12), torch.eye(12)), part.encoder)
    with pytest.raises(ShapeError, match=r"expected \(N, 12\), got \(6, 1, 3, 4\)"):
        loss(model, binary())
    flat = VAE(priors.Standard(2), model.likelihood, encoders.Gaussian(2, (12,)))
    with pytest.raises(PartError, match=r"independent pixels.*MultivariateNormal"):
        loss(flat, binary().flatten(1), mask=mask.flatten(1))


@pytest.mark.parametrize("wrong", [lambda m: m[:3], lambda m: m[:, 0], lambda m: m.float(), lambda m: m.long()])
def test_a_mask_of_another_shape_or_kind_is_refused(mask, wrong):
    with pytest.raises(ShapeError, match=r"mask: expected bool \(6, 1, 3, 4\), got"):
        loss(vae(), binary(), mask=wrong(mask))


def test_a_mask_without_x_is_refused_and_a_numpy_one_taken(mask):
    with pytest.raises(ShapeError, match="x to go with it"):
        vae().model(mask=mask)
    model, x = vae(), binary()
    assert loss(model, x, mask=mask.numpy()) == loss(model, x, mask=mask)


# Scales


@pytest.mark.parametrize("elbo", ELBOS)
def test_total_scales_loss_and_gradients_by_total_over_n(elbo):
    model, x = vae().double(), binary().double()
    one, gradients = loss_and_gradients(model, x, elbo=elbo)
    scaled, scaled_gradients = loss_and_gradients(model, x, total=4 * N, elbo=elbo)
    # A power of two, so that not one bit may differ.
    assert scaled == 4 * one
    assert same(scaled_gradients, [4 * g for g in gradients])
    assert loss(model, x, total=1.0) == pytest.approx(loss(model, x) / N, rel=1e-12)


@pytest.mark.parametrize("total", [0, -1, math.nan, math.inf])
def test_total_is_a_size(total):
    with pytest.raises(ConfigError, match="total"):
        loss(vae(), binary(), total=total)


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("make", [vae, cvae])
@pytest.mark.parametrize("beta", [0.5, 2.0, 7.25, 0.0])
def test_beta_weighs_the_kl_and_nothing_else(make, beta, elbo):
    model, x, y = make().double(), binary().double(), torch.arange(N) % 3 if make is cvae else None
    q = model.encode(x, y)
    torch.manual_seed(2)
    z = q.rsample()
    reconstruction = -model.decode(z, y).log_prob(x).sum()
    p = model.prior_given(y)
    kl = (q.log_prob(z) - p.log_prob(z)).sum() if elbo is Trace_ELBO else td.kl_divergence(q, p.expand((N,))).sum()
    model.beta = beta
    assert loss(model, x, y, elbo=elbo) == pytest.approx((reconstruction + beta * kl).item(), rel=1e-12)
    value, _ = loss_and_gradients(model, x, y, elbo=elbo) if beta else (loss(model, x, y, elbo=elbo), None)
    assert float(value) == pytest.approx((reconstruction + beta * kl).item(), rel=1e-12)


@pytest.mark.parametrize("elbo", ELBOS)
def test_at_beta_zero_the_prior_is_not_trained_and_the_encoder_is(elbo):
    model, x, y = cvae(beta=0.0), binary(), torch.arange(N) % 3
    torch.manual_seed(0)
    elbo().differentiable_loss(model.model, model.guide, x, y).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.prior.parameters())
    assert all(p.grad.any() for p in model.encoder.parameters())


def test_beta_is_in_training_only():
    one, two = vae(), vae(beta=10.0)
    x = binary()
    for ask in (lambda m: m.log_prob(x, samples=5), lambda m: m.sample(3), lambda m: analytic_elbo(m, x)):
        answers = []
        for model in (one, two):
            torch.manual_seed(0)
            answers.append(ask(model))
        assert torch.equal(*answers)


@pytest.mark.parametrize("beta", [-0.1, -1, math.nan, math.inf, 1e39])
def test_beta_is_finite_and_not_negative(beta):
    with pytest.raises(ConfigError, match="β"):
        vae(beta=beta)
    model = vae()
    with pytest.raises(ConfigError, match="β"):
        model.beta = beta
    assert model.beta == 1


@pytest.mark.parametrize("beta", [None, "0.5", True, torch.tensor(True), 1j, [0.5], torch.ones(2)], ids=repr)
def test_beta_is_a_number(beta):
    with pytest.raises(ConfigError, match="beta: expected a number, got"):
        vae(beta=beta)


@pytest.mark.parametrize("beta", [torch.tensor(0.25), np.float32(0.25), np.float64(0.25), np.array(0.25)], ids=repr)
def test_beta_may_be_a_number_of_other_libraries(beta):
    assert vae(beta=beta).beta == 0.25


def test_beta_can_change_between_steps_and_is_copied():
    model, x = vae(), binary()
    for beta in (0.0, 0.5, 1e-50, 2.0):
        model.beta = beta
        assert math.isfinite(loss(model, x))
        assert copy.deepcopy(model).beta == model.beta
        assert loss(copy.deepcopy(model), x) == loss(model, x)


# What users pass


@pytest.mark.parametrize(
    "cast",
    [
        torch.Tensor.double,
        torch.Tensor.byte,
        torch.Tensor.long,
        torch.Tensor.bool,
        torch.Tensor.numpy,
        torch.Tensor.tolist,
        lambda x: x.double().numpy(),
    ],
    ids=["float64", "uint8", "int64", "bool", "numpy", "list", "numpy float64"],
)
def test_x_of_any_dtype_is_cast_to_the_models(cast):
    model, x = vae(), binary()
    assert loss(model, cast(x)) == loss(model, x)
    assert torch.equal(model.embed(cast(x)), model.embed(x))
    torch.manual_seed(0)
    expected = model.log_prob(x, samples=3)
    torch.manual_seed(0)
    assert torch.equal(model.log_prob(cast(x), samples=3), expected)
    assert loss(model.double(), cast(x)) == pytest.approx(loss(vae(), x), rel=1)


@pytest.mark.parametrize(
    "cast",
    [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.int, torch.Tensor.byte, lambda y: y.numpy().astype("int32")],
    ids=["list", "numpy", "int32", "uint8", "numpy int32"],
)
def test_y_may_be_whatever_holds_integers(cast):
    model, x, y = cvae(), binary(), torch.arange(N) % 3
    assert loss(model, x, cast(y)) == loss(model, x, y)
    assert model.prior_given(cast(y)).batch_shape == (N,)


def test_one_y_for_every_row():
    model, x = cvae(), binary()
    expected = loss(model, x, torch.full((N,), 2))
    for y in (2, np.int64(2), [2], torch.tensor(2), torch.tensor([2])):
        assert loss(model, x, y) == pytest.approx(expected, rel=1e-6)
        assert model.embed(x, y).shape == (N, LATENT)


def programs(model, x, y):
    """Everything that takes x and y."""
    return {
        "loss": lambda: loss(model, x, y),
        "check": lambda: model.check(x, y),
        "log_prob": lambda: model.log_prob(x, y, samples=2),
    }


@pytest.mark.parametrize("ask", ["loss", "check", "log_prob"])
@pytest.mark.parametrize(
    ("make", "y", "message"),
    [
        (cvae, None, "conditional.*pass y"),
        (vae, torch.zeros(N).long(), "no condition.*OneHot"),
        (cvae, torch.zeros(N - 1).long(), "one y a row of x, got 5 for 6"),
        (cvae, torch.full((N,), 3), r"expected labels 0 … 2, got 3 … 3"),
        (cvae, torch.full((N,), -1), r"expected labels 0 … 2, got -1"),
        (cvae, torch.zeros(N), "expected integer labels, got torch.float32"),
        (cvae, torch.full((N,), math.nan), "expected integer labels"),
        (cvae, torch.zeros(N, dtype=torch.bool), "expected integer labels, got torch.bool"),
    ],
    ids=["missing", "unwanted", "too few", "too large", "negative", "float", "NaN", "bool"],
)
def test_a_y_that_does_not_fit_is_a_label_error(make, y, message, ask):
    with pytest.raises(LabelError, match=f"(?s){message}"):
        programs(make(), binary(), y)[ask]()


@pytest.mark.parametrize("ask", ["loss", "check", "log_prob"])
@pytest.mark.parametrize("shape", [(N, 3, 4), (N, 12), (N, 1, 4, 3), (N, 3, 3, 4), (12,)], ids=str)
def test_an_x_of_another_shape_is_a_shape_error(shape, ask):
    with pytest.raises(ShapeError, match=r"1, 3, 4\).*got"):
        programs(vae(), torch.zeros(shape), None)[ask]()


@pytest.mark.parametrize("x_shape", [(12,), (3, 2, 2), (1, 3, 4)], ids=str)
def test_an_x_without_its_batch_dimension_is_never_counted_several_times(x_shape):
    # It would broadcast: a (12,) image is also 12 rows of one pixel, each scored against a whole image.
    model = pv.vae(x_shape, LATENT, hidden=(8,))
    with pytest.raises(ShapeError, match="expected"):
        loss(model, torch.zeros(x_shape))


def test_two_batch_dimensions_or_none_at_all_are_refused():
    for x in (torch.zeros(5, N, *IMAGE), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"[Ss]hape|expected"):
            loss(vae(), x)
    with pytest.raises(ShapeError, match="one batch dimension"):
        cvae().model(y=torch.zeros(2, 3).long())


def test_no_rows_at_all():
    for ask in programs(vae(), binary(0), None).values():
        with pytest.raises(DataError, match="at least one row"):
            ask()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_check_finds_what_is_not_finite(bad):
    x = binary()
    x[4, 0, 1, 2] = bad
    for model in (
        vae(),
        vae(likelihood="Gaussian"),
        VAE(priors.Standard(2), lambda z, c: None, encoders.Gaussian(2, IMAGE)),
        VAE(priors.Standard(2), Unconditional(lambda z, c: None), encoders.Gaussian(2, IMAGE)),
    ):
        with pytest.raises(DataError, match="4"):
            model.check(x)
    with pytest.raises(DataError, match="y"):
        VAE(priors.Standard(2), vae().likelihood, vae().encoder, condition=nn.Linear(1, 3)).check(
            binary(), torch.full((N, 1), bad)
        )


def test_check_finds_data_the_likelihood_cannot_have_made():
    with pytest.raises(DataError, match=r"255.*scale='unit'"):
        vae().check((binary() * 255).byte())
    with pytest.raises(DataError, match=r"(?s)grey.*binarise.*Bernoulli\(grey=True\)"):
        vae().check(binary() * 0.5)
    with pytest.raises(DataError, match="uint8"):
        vae(likelihood="Gaussian").check((binary() * 255).byte())
    vae().check(binary().byte())
    vae(likelihood={"name": "Bernoulli", "grey": True}).check(binary() * 0.5)


def test_the_guide_needs_x():
    with pytest.raises(DataError, match="needs x"):
        vae().guide()


def test_parts_that_are_none_are_refused():
    part = vae()
    for arguments in [
        (part.prior, None, part.encoder),
        (part.prior, part.likelihood, dist.Normal(0.0, 1.0)),
        (dist.Normal(0.0, 1.0), part.likelihood, part.encoder),
        (part.prior, part.likelihood, part.encoder, 10),
        (None, part.likelihood, lambda x, c: None),
    ]:
        with pytest.raises(PartError, match="expected"):
            VAE(*arguments)
    # A Pyro distribution can be called, which draws from it: it is no part.
    with pytest.raises(PartError, match=r"prior: .*Normal.*Fixed"):
        VAE(dist.Normal(0.0, 1.0), part.likelihood, part.encoder)
    for broken in (lambda c: torch.zeros(2), lambda c: dist.Normal):
        with pytest.raises(PartError, match=r"return a distribution.*got"):
            loss(VAE(broken, part.likelihood, part.encoder), binary())
    with pytest.raises(PartError, match=r"condition.*\(\*, context\)"):
        VAE(part.prior, part.likelihood, part.encoder, condition=lambda y: 3).sample(1, y=0)


class Contextless(nn.Module):
    def forward(self, x):
        return dist.Normal(x.flatten(1)[:, :LATENT], 1.0).to_event(1)


@pytest.mark.parametrize(
    ("kind", "part", "message"),
    [
        ("likelihood", "Bernoulli", r"likelihood: .*got str: names are for pv\.vae\(\.\.\.\) and pv\.cvae\(\.\.\.\)"),
        ("prior", priors.Standard, r"prior: .*the class Standard itself: call it, Standard\(\.\.\.\)"),
        ("condition", OneHot, r"condition: .*the class OneHot itself: call it, OneHot\(\.\.\.\)"),
        ("encoder", Contextless(), r"encoder: .*called with its context, encoder\(x, c\), got Contextless\(x\)"),
        ("likelihood", lambda z: None, r"likelihood: .*likelihood\(z, c\), got <lambda>\(z\)"),
        ("prior", lambda: None, r"prior: .*prior\(c\), got <lambda>\(\)"),
    ],
)
def test_parts_that_do_not_keep_the_one_rule_are_named(kind, part, message):
    parts = {"prior": vae().prior, "likelihood": vae().likelihood, "encoder": vae().encoder}
    with pytest.raises(PartError, match=message):
        VAE(**parts | {kind: part})


def test_a_type_error_within_a_part_is_its_own():
    def likelihood(z, c):
        return len(3)

    with pytest.raises(TypeError, match=r"^object of type 'int' has no len\(\)$"):
        VAE(vae().prior, likelihood, vae().encoder).decode(torch.zeros(N, LATENT))


def test_what_a_part_returns_is_refused_under_its_name():
    part = vae()
    for kind in ("prior", "likelihood", "encoder"):
        parts = {"prior": part.prior, "likelihood": part.likelihood, "encoder": part.encoder}
        with pytest.raises(PartError, match=rf"^{kind}: .*got .*tuple"):
            loss(VAE(**parts | {kind: lambda *inputs: (torch.zeros(N, LATENT), 1.0)}), binary())


@pytest.mark.parametrize("rows", [N, LATENT])
def test_an_encoder_or_a_likelihood_without_its_event_dimensions_says_so(rows):
    # With as many rows as features the plate would not notice.
    model = VAE(vae().prior, vae().likelihood, lambda x, c: dist.Normal(x.new_zeros(len(x), LATENT), 1.0))
    for ask in (loss, VAE.embed):
        with pytest.raises(PartError, match=r"encoder: .*Normal.*\.to_event\(1\)"):
            ask(model, binary(rows))
    pixels = VAE(vae().prior, lambda z, c: dist.Normal(z.new_zeros(len(z), *IMAGE), 1.0), vae().encoder)
    with pytest.raises(ShapeError, match=r"\.to_event\(3\)"):
        loss(pixels, binary(rows))


@pytest.mark.parametrize("ask", [pv.evaluate, VAE.embed, VAE.check, VAE.log_prob])
def test_a_split_is_no_tensor(ask):
    data = pv.data.from_tensors(binary(40), torch.arange(40) % 3)
    for rows in (data.test, data):
        with pytest.raises(
            DataError, match=r"expected a tensor, got (Split|Data): .*data\.test\.x \(and data\.test\.y\)"
        ):
            ask(vae(), rows)


@pytest.mark.parametrize("ask", [fit, VAE.check, VAE.encode, VAE.embed, VAE.log_prob, loss])
def test_complex_numbers_are_not_taken_for_their_real_part(ask):
    y = torch.arange(N) % 3
    with pytest.raises(DataError, match=r"^x: expected real numbers, got torch\.complex64: .*view_as_real\(x\)"):
        ask(cvae(), binary() + 1j, y)
    model = vae(condition=pv.conditions.Continuous(1))
    with pytest.raises(LabelError, match=r"^y: expected real numbers, got torch\.complex64: .*view_as_real\(y\)"):
        ask(model, binary(), y[:, None] + 1j)


@pytest.mark.parametrize("ask", [fit, VAE.check, VAE.check_values, VAE.encode, VAE.log_prob, VAE.impute, loss])
def test_what_is_no_tensor_is_told_why(ask):
    x, y = binary(), np.arange(N) % 3
    for words, reason in ((["a"] * N, "numpy.unique"), (y[::-1], "got ndarray: At least one stride .* negative")):
        with pytest.raises(LabelError, match=rf"^y: expected a tensor, .*{reason}"):
            ask(cvae(), x, words, **{"mask": x == 0} if ask is VAE.impute else {})
    if ask not in (fit, loss):
        with pytest.raises(DataError, match=r"^x: expected a tensor, got ndarray: .*stride.*data\.test\.x"):
            ask(cvae(), x.numpy()[::-1], **{"mask": x == 0} if ask is VAE.impute else {})
    if ask is not VAE.encode:
        with pytest.raises(DataError, match=r"^mask: expected a tensor, got ndarray: .*stride.*isnan"):
            ask(cvae(), x, y, mask=(x == 0).numpy()[::-1])


def test_labels_that_may_be_missing_are_told_why_they_are_none():
    model = pv.SemiSupervised(cvae(), encoders.Classifier(3, IMAGE, hidden=(8,)))
    for ask in (fit, loss, pv.SemiSupervised.check_training):
        with pytest.raises(LabelError, match=r"^y: expected a tensor, got list"):
            ask(model, binary(), ["a"] * N)


def test_a_schedule_is_no_beta():
    with pytest.raises(ConfigError, match=r"a schedule goes to fit\(beta=\.\.\.\)"):
        vae(beta=pv.objectives.warmup(3))


def test_a_learned_condition_is_trained_and_cast():
    condition = nn.Embedding(3, 4)
    model = VAE(
        priors.Gaussian(LATENT, 4, hidden=()),
        likelihoods.Bernoulli(IMAGE, LATENT, 4),
        encoders.Gaussian(LATENT, IMAGE, 4),
        condition=condition,
    ).double()
    before = condition.weight.detach().clone()
    train(model, binary(), torch.arange(N) % 3)
    assert (condition.weight != before).any(1).all()
    real = VAE(model.prior, model.likelihood, model.encoder, condition=nn.Linear(2, 4)).double()
    assert real.sample(5, y=np.zeros((7, 2), dtype=np.float32)).shape == (5, 7, *IMAGE)


# What one asks of a model


@pytest.mark.parametrize("prior", ["Gaussian", "Standard", {"name": "Gaussian", "context": 0}, "NSF"], ids=str)
@pytest.mark.parametrize(
    "y", [2, torch.tensor([0, 2]), torch.arange(6).reshape(3, 2) % 3], ids=["()", "(2,)", "(3, 2)"]
)
@pytest.mark.parametrize("mean", [False, True])
def test_sample_has_n_then_the_batch_shape_of_y(prior, y, mean):
    model = cvae(prior=prior)
    x = model.sample(4, y, mean=mean)
    assert x.shape == (4, *torch.as_tensor(y).shape, *IMAGE)
    assert not x.requires_grad
    # Each draw and each y has a z of its own.
    flat = model.sample(4, y, mean=True).reshape(-1, 12)
    assert len(flat.unique(dim=0)) == len(flat)


def test_sample_without_y_and_with_an_n_that_is_none():
    assert vae().sample().shape == (1, *IMAGE)
    assert vae().sample(3).shape == (3, *IMAGE)
    for n in (0, -1, 2.0):
        with pytest.raises(ConfigError, match="n"):
            vae().sample(n)


def test_sample_follows_y():
    # A likelihood that paints its class: one whole row of the image each.
    class Paint(nn.Module):
        def forward(self, z, c):
            logits = (200 * c - 100)[..., None, :, None].expand(*c.shape[:-1], 1, 3, 4)
            batch = torch.broadcast_shapes(z.shape[:-1], c.shape[:-1])
            return dist.Bernoulli(logits=logits.expand(*batch, 1, 3, 4)).to_event(3)

    model = VAE(priors.Standard(LATENT), Paint(), encoders.Gaussian(LATENT, IMAGE, 3), condition=OneHot(3))
    x = model.sample(5, y=torch.arange(3))
    expected = torch.eye(3)[:, None, :, None].expand(5, 3, 1, 3, 4)
    assert torch.equal(x, expected)
    # Carried to another class, an image is that class; every class at once comes first.
    images = expected[0]
    assert torch.equal(model.translate(images, torch.arange(3), to=1).round(), expected[0][[1, 1, 1]])
    grid = model.translate(images, torch.arange(3), to=torch.arange(3)[:, None])
    assert grid.shape == (3, 3, *IMAGE)
    assert torch.equal(grid.round(), images[:, None].expand(3, 3, *IMAGE))
    between = model.interpolate(images[:1], images[2:], y=torch.tensor([0]), to=torch.tensor([2]), steps=3)
    assert torch.equal(between[0].round(), images[:1])
    assert torch.equal(between[2].round(), images[2:])


def test_reconstruct_and_embed_are_means():
    model, x = vae(), binary()
    q = model.encode(x)
    assert torch.equal(model.embed(x), q.mean)
    assert torch.equal(model.reconstruct(x), model.decode(q.mean).mean)
    assert model.embed(x[0]).shape == (LATENT,)
    assert model.reconstruct(x.reshape(2, 3, *IMAGE)).shape == (2, 3, *IMAGE)


def test_embed_takes_draws_where_there_is_no_mean():
    flow = zuko.flows.MAF(LATENT, 12, transforms=1, hidden_features=(8,))
    model = VAE(priors.Standard(LATENT), vae().likelihood, lambda x, c: flow(x.flatten(-3)))
    x = binary()
    torch.manual_seed(0)
    assert torch.equal(model.embed(x, draws=7), (torch.manual_seed(0), model.encode(x).sample((7,)).mean(0))[1])


def test_means_of_levels_are_those_of_draws():
    """Torch's Categorical says NaN for its mean, and draws integers."""
    table = torch.rand(*IMAGE, 3, dtype=torch.float64)
    likelihood = lambda z, c: dist.Categorical(table.expand(*z.shape[:-1], *table.shape)).to_event(3)  # noqa: E731
    model, x = VAE(priors.Standard(LATENT), likelihood, encoders.Gaussian(LATENT, IMAGE)).double(), binary()
    torch.manual_seed(0)
    expected = model.decode(model.embed(x)).sample((100,)).double().mean(0)
    for ask in (lambda: model.reconstruct(x), lambda: model.interpolate(x, x, steps=1)[0]):
        torch.manual_seed(0)
        assert torch.equal(ask(), expected)
    assert model.sample(N, mean=True).isfinite().all()
    # Draws have a mean where a Cauchy has none.
    model.likelihood = lambda z, c: dist.Cauchy(z, 1.0).to_event(1)
    assert model.sample(N, mean=True).isnan().all()


def test_interpolate_runs_straight_from_end_to_end():
    model, x = vae(), binary()
    steps = model.interpolate(x[:2], x[2:4], steps=5)
    assert steps.shape == (5, 2, *IMAGE)
    z = torch.stack([model.embed(x[:2]), model.embed(x[2:4])])
    torch.testing.assert_close(steps[0], model.reconstruct(x[:2]))
    torch.testing.assert_close(steps[4], model.reconstruct(x[2:4]))
    torch.testing.assert_close(steps[1], model.decode(0.75 * z[0] + 0.25 * z[1]).mean)
    assert model.interpolate(x[:1], x[1:2], steps=1).shape == (1, 1, *IMAGE)
    with pytest.raises(ConfigError, match="steps"):
        model.interpolate(x, x, steps=0)
    conditional = cvae()
    torch.testing.assert_close(conditional.interpolate(x, x, y=1, steps=2)[0], conditional.reconstruct(x, 1))


def test_translate_keeps_z_or_carries_its_place_in_the_prior():
    model, x = cvae(), binary()
    y, to = torch.zeros(N).long(), torch.ones(N).long()
    z = model.embed(x, y)
    torch.testing.assert_close(model.translate(x, y, to=to), model.decode(z, to).mean)
    torch.testing.assert_close(model.translate(x, y, to=y), model.reconstruct(x, y))
    torch.testing.assert_close(model.translate(x, y, to=y, carry=True), model.reconstruct(x, y))
    p, q = model.prior_given(y), model.prior_given(to)
    carried = q.mean + q.stddev * (z - p.mean) / p.stddev
    torch.testing.assert_close(model.translate(x, y, to=to, carry=True), model.decode(carried, to).mean)
    grid = model.translate(x, y, to=torch.arange(3)[:, None], carry=True)
    assert grid.shape == (3, N, *IMAGE)
    torch.testing.assert_close(grid[1], model.translate(x, y, to=1, carry=True))
    standard = cvae(prior="Standard")
    torch.testing.assert_close(standard.translate(x, y, to=to, carry=True), standard.translate(x, y, to=to))
    assert cvae(prior="NSF").translate(x, y, to=to, carry=True).shape == x.shape
    with pytest.raises(NoClosedFormError, match="keep z"):
        cvae(prior="GMM").translate(x, y, to=to, carry=True)


class Exact(nn.Module):
    """The posterior of x = z + noise: with z ~ N(0, 1) and noise ~ N(0, 1) it is N(x/2, 1/2)."""

    def forward(self, x, c):
        return dist.Normal(x / 2, math.sqrt(0.5)).to_event(1)


def exact(batch_dtype=torch.float64):
    model = VAE(priors.Standard(3), lambda z, c: dist.Normal(z, 1.0).to_event(1), Exact())
    return model.to(batch_dtype)


def test_a_wrapped_likelihood_need_not_say_its_shape():
    x, y = torch.randn(N, 3), torch.arange(N) % 3
    likelihood = Unconditional(lambda z, c: dist.Normal(z, 1.0).to_event(1))
    model = VAE(priors.Gaussian(3, 3, hidden=()), likelihood, encoders.Gaussian(3, (3,), 3, hidden=()), OneHot(3))
    assert len(fit(model, x, y)) == 1
    model.check(x, y)
    assert model.log_prob(x, y, samples=2).shape == (N,)
    assert model.log_prob(x[0], y[0], samples=2).shape == ()


def test_a_proposal_of_ones_own_is_asked_of_one_datum():
    x = torch.randn(3, dtype=torch.float64)
    expected = dist.Normal(torch.zeros(3).double(), math.sqrt(2)).to_event(1).log_prob(x)
    (found,) = exact().log_weights(x, samples=4, proposal=lambda x: Exact()(x, None))
    torch.testing.assert_close(found, expected.expand(4), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_log_prob_is_exact_under_the_exact_posterior_whatever_the_chunks(n, monkeypatch):
    x = torch.randn(n, 3, dtype=torch.float64)
    expected = dist.Normal(torch.zeros(3).double(), math.sqrt(2)).to_event(1).log_prob(x)
    for chunk in (1, 3 * n * 5, 2**22):
        monkeypatch.setattr("ppl_vae.model.vae._CHUNK", chunk)
        torch.testing.assert_close(exact().log_prob(x, samples=17), expected, rtol=0, atol=1e-10)
        assert -loss(exact(), x) == pytest.approx(expected.sum().item(), abs=1e-9)


def test_log_weights_come_in_bounded_chunks_that_add_up(monkeypatch):
    monkeypatch.setattr("ppl_vae.model.vae._CHUNK", 5 * N * 12)
    sizes = [tuple(w.shape) for w in vae().log_weights(binary(), samples=17)]
    assert sizes == [(5, N), (5, N), (5, N), (2, N)]


@pytest.mark.parametrize(
    ("likelihood", "numbers"),
    [
        ({"name": "Bernoulli"}, 1),
        ({"name": "Gaussian"}, 1),
        ({"name": "Gaussian", "sigma": "output"}, 2),
        ({"name": "Categorical", "levels": 8}, 8),
        ({"name": "DiscretizedLogisticMixture", "levels": 8, "components": 2}, 6),
    ],
    ids=lambda value: value.get("sigma", value["name"]) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("unconditional", [False, True])
def test_chunks_are_as_small_as_the_raw_numbers_are_many(likelihood, numbers, unconditional, monkeypatch):
    model, x = pv.vae(IMAGE, LATENT, likelihood=likelihood, hidden=(8,)), binary()
    if unconditional:
        model = VAE(model.prior, pv.Unconditional(pv.Unconditional(model.likelihood)), model.encoder)
    raw, network = [], next(m for m in model.likelihood.modules() if hasattr(m, "out_shape"))
    network.register_forward_hook(lambda module, given, out: raw.append(out.numel()))
    chunk = 2 * numbers * x.numel()
    monkeypatch.setattr("ppl_vae.model.vae._CHUNK", chunk)
    assert [len(w) for w in model.log_weights(x, samples=5)] == [2, 2, 1]
    draws = model.impute(x, mask=torch.rand(x.shape) < 0.5, n=5 * N, candidates=3)
    assert draws.shape == (5 * N, *x.shape)
    assert max(raw) == chunk


def test_log_prob_is_the_log_mean_exp_of_its_weights():
    model, x, y = cvae().double(), binary().double(), torch.arange(N) % 3
    torch.manual_seed(0)
    log_w = torch.cat(list(model.log_weights(x, y, samples=50)))
    torch.manual_seed(0)
    expected = log_w.logsumexp(0) - math.log(50)
    torch.testing.assert_close(model.log_prob(x, y, samples=50), expected)
    # By hand, z by z.
    torch.manual_seed(0)
    q = model.encode(x, y)
    z = q.rsample((50,))
    by_hand = model.prior_given(y).log_prob(z) + model.decode(z, y).log_prob(x) - q.log_prob(z)
    torch.testing.assert_close(log_w, by_hand)


@pytest.mark.parametrize("draws", [1, 3, 7, 50])
def test_log_prob_does_not_depend_on_its_chunks(draws, monkeypatch):
    # Of the same draws, handed out in order, so that nothing is left to chance.
    model, x, noise, asked = vae().double(), binary().double(), torch.randn(20, 6, LATENT).double(), []

    def next_draws(shape, **_):
        asked.append(shape[0])
        return noise[sum(asked[:-1]) :][: shape[0]]

    monkeypatch.setattr("torch.distributions.normal._standard_normal", next_draws)
    one = model.log_prob(x, samples=20)
    assert asked == [20]
    asked.clear()
    monkeypatch.setattr("ppl_vae.model.vae._CHUNK", draws * model.numbers(x))
    assert torch.allclose(model.log_prob(x, samples=20), one, rtol=1e-12)
    assert (sum(asked), max(asked)) == (20, min(draws, 20))


def test_log_prob_takes_one_datum_and_has_its_dtype():
    x = torch.randn(3)
    got = exact(torch.float32).log_prob(x, samples=2)
    assert got.shape == ()
    assert got.dtype == torch.float32
    with pytest.raises(ConfigError, match="samples"):
        exact().log_prob(x, samples=0)


# Autoencoders


def test_questions_that_need_a_prior_name_the_way_out():
    model, x = pv.ae(IMAGE, LATENT, hidden=(8,)), binary()
    asks = [
        lambda: model.sample(2),
        lambda: model.prior_given(),
        lambda: model.log_prob(x),
        lambda: list(model.log_weights(x)),
        lambda: model.model(),
        lambda: Predictive(model.model, num_samples=2)(),
        lambda: Predictive(model.model, num_samples=2, parallel=True)(),
    ]
    for ask in asks:
        with pytest.raises(NoDensityError, match=r"prior=None.*vae\(\.\.\.\)"):
            ask()
    with pytest.raises(NoDensityError, match="Delta"):
        VAE(priors.Standard(LATENT), model.likelihood, model.encoder).log_prob(x)
    assert model.reconstruct(x).shape == x.shape
    assert model.interpolate(x, x, steps=2).shape == (2, *x.shape)


@pytest.mark.parametrize("elbo", ELBOS)
def test_the_loss_of_an_autoencoder_is_the_summed_squared_error(elbo):
    model, x = pv.ae(IMAGE, LATENT, hidden=(8,)).double(), binary().double()
    expected = (x - model.reconstruct(x)).square().sum() + N * 12 / 2 * math.log(math.pi)
    # σ² = ½ is kept in float32.
    for beta in (1.0, 0.0):
        model.beta = beta
        assert loss(model, x, elbo=elbo) == pytest.approx(expected.item(), rel=1e-7)


def test_a_prior_of_none_stays_on_the_models_device():
    p = pv.ae(IMAGE, LATENT, hidden=(8,)).to("meta")._prior(None).expand([4])
    assert p.log_prob(torch.zeros(4, LATENT, device="meta")).device.type == "meta"
    assert p.log_prob(torch.zeros(4, LATENT).double()).dtype == torch.float64


# Odds and ends


def test_the_programs_have_one_batch_dimension_and_the_sites_z_and_x():
    model, x, y = cvae(), binary(), torch.arange(N) % 3
    trace = poutine.trace(model.model).get_trace(x, y, total=60)
    trace.compute_log_prob()
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and name in "xz"}
    assert set(sites) == {"x", "z"}
    assert all(site["log_prob"].shape == (N,) for site in sites.values())
    assert sites["x"]["is_observed"]
    assert torch.equal(trace.nodes["_RETURN"]["value"], x)
    guide = poutine.trace(model.guide).get_trace(x, y, total=60)
    assert {n for n, s in guide.nodes.items() if s["type"] == "sample" and n != "data"} == {"z"}


def test_the_programs_draw_only_what_they_need():
    # A subsampling plate would draw indices nobody uses, and so change every later random number.
    model, x = vae(), binary()
    losses = {total: loss(model, x, total=total) / (total or N) for total in (None, N, 100 * N)}
    assert max(losses.values()) == pytest.approx(min(losses.values()), rel=1e-6)


def test_every_error_is_a_builtin_one_too():
    for error in (ConfigError, DataError, LabelError, ShapeError, NonFiniteError):
        assert issubclass(error, (PplVaeError, ValueError))
    for error in (PartError, NoDensityError, NoClosedFormError):
        assert issubclass(error, TypeError)
        assert issubclass(error, PplVaeError)


def test_a_condition_network_for_images_is_trained_with_the_rest():
    """Structured output: y is an image, and what is seen of it is learned."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model = VAE(
        priors.Gaussian(2, context=4, hidden=(8,)),
        likelihoods.Bernoulli((1, 3, 4), 2, context=4, hidden=(8,)),
        encoders.Gaussian(2, (1, 3, 4), context=4, hidden=(8,)),
        condition=network,
    )
    before = network[1].weight.detach().clone()
    x, y = torch.rand(6, 1, 3, 4).round(), torch.rand(6, 1, 3, 4)
    SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(x, y)
    assert not torch.equal(before, network[1].weight)
    assert model.sample(5, y=y).shape == (5, 6, 1, 3, 4)
    assert model.log_prob(x, y, samples=3).shape == (6,)


def test_what_a_store_was_loaded_with_under_a_models_name_stays():
    """Of another process, where a model was called so too."""
    vae = pv.vae((4,), 2, hidden=[3])
    key = next(name for name, _ in vae.named_parameters())
    site, held = f"{vae.name}$$${key}", torch.full_like(vae.state_dict()[key], 7.0)
    pyro.param(site, held)
    Trace_ELBO().loss(vae.model, vae.guide, torch.zeros(3, 4))
    assert not site.startswith(f"{vae.name}$$$")
    vae.unregister()
    store = pyro.get_param_store()
    assert list(store) == [site]
    assert (store[site] == 7.0).all()

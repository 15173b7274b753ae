"""One contract for every objective: an entry in the list gets every test.

What each of them *is* has its own files (``test_objectives.py``, ``test_bounds.py``, ``test_constrained.py``); here is
what all must be to stand in ``SVI``, in a recorded graph and in ``fit``.
"""

import copy
import dataclasses
import math
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import ELBO, SVI

import ppl_vae as pv
from ppl_vae import presets
from ppl_vae.capture import CapturedSVI
from ppl_vae.objectives import warmup

N, LATENT, X, CLASSES = 6, 2, 5, 3
AT_ONCE = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}


@dataclasses.dataclass
class Entry:
    """An objective by name, with its options."""

    name: str
    options: dict[str, Any]
    # Needs a KL in closed form, feature by feature or at all.
    closed_form: bool = False
    # A sum over the rows of a batch.
    additive: bool = True

    def make(self):
        objective = presets.OBJECTIVES[self.name](**self.options)
        if hasattr(objective, "begin_epoch"):
            objective.begin_epoch(2)
        return objective


def named(name, closed_form=False, additive=True, **options):
    return Entry(name, options, closed_form, additive)


OBJECTIVES = {
    "trace": named("trace"),
    "trace at once": named("trace", **AT_ONCE),
    "analytic": named("analytic", closed_form=True),
    "analytic or sampled": named("analytic", fallback="sample", num_particles=2),
    "iwae": named("iwae", k=4),
    "iwae 1": named("iwae", k=1),
    "iwae one by one": named("iwae", k=3, vectorize_particles=False),
    "iwae, guessing": named("iwae", k=3, max_plate_nesting=math.inf),
    "renyi": named("renyi", k=4),
    "renyi -1": named("renyi", alpha=-1, k=4),
    "renyi 1": named("renyi", alpha=1, k=4),
    "renyi 2 one by one": named("renyi", alpha=2, k=3, vectorize_particles=False),
    "stl": named("stl"),
    "dreg": named("dreg", k=4),
    "dreg one by one": named("dreg", k=3, vectorize_particles=False),
    "freebits": named("freebits", closed_form=True, additive=False, nats=0.05),
    "freebits in groups": named("freebits", closed_form=True, additive=False, nats=0.1, group=2, num_particles=2),
    "capacity": named("capacity", closed_form=True, additive=False, capacity=1.0, gamma=3.0),
    "capacity at once": named("capacity", additive=False, gamma=2.0, epochs=5, fallback="sample", **AT_ONCE),
}
MODELS = {
    "cvae": lambda: pv.cvae((X,), LATENT, CLASSES, hidden=(8,), prior={"name": "Gaussian", "hidden": (8,)}),
    "vae": lambda: pv.vae((X,), LATENT, prior="Gaussian", likelihood="Gaussian", hidden=(8,)),
    "flow prior": lambda: pv.cvae(
        (X,), LATENT, CLASSES, hidden=(8,), prior={"name": "NSF", "transforms": 1, "hidden_features": (8,)}
    ),
}
CASES = [
    pytest.param(entry, model, id=f"{name}-{model}")
    for name, entry in OBJECTIVES.items()
    for model in MODELS
    # Variations of an objective meet one model; and without a formula for the KL there are those that need none.
    if (name in presets.OBJECTIVES or model == "cvae") and not (entry.closed_form and model == "flow prior")
]
every_case = pytest.mark.parametrize(("entry", "model"), CASES)
every_objective = pytest.mark.parametrize("entry", [pytest.param(e, id=name) for name, e in OBJECTIVES.items()])
every_name = pytest.mark.parametrize("entry", [pytest.param(OBJECTIVES[n], id=n) for n in presets.OBJECTIVES])


def system(model, dtype=torch.float64):
    torch.manual_seed(2)
    vae = MODELS[model]().to(dtype)
    with torch.no_grad():
        for p in vae.parameters():
            p += 0.1 * torch.randn_like(p)
    x = torch.rand(N, X).to(dtype)
    return vae, (x if model == "vae" else x.round()), (None if vae.condition is None else torch.arange(N) % CLASSES)


def gradient(vae, loss):
    gradients = torch.autograd.grad(loss, list(vae.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def ready(entry, vae, *args):
    """The objective, once it has been used: those that guess the nesting of plates spend random numbers on it."""
    objective = entry.make()
    objective.loss(vae.model, vae.guide, *args)
    return objective


@every_case
def test_three_methods_are_one_loss(entry, model):
    vae, *args = system(model)
    objective = ready(entry, vae, *args)
    assert isinstance(objective, ELBO)
    torch.manual_seed(0)
    loss = objective.loss(vae.model, vae.guide, *args)
    assert isinstance(loss, float)
    torch.manual_seed(0)
    differentiable = objective.differentiable_loss(vae.model, vae.guide, *args)
    assert differentiable.shape == ()
    assert differentiable.item() == pytest.approx(loss, rel=1e-9)
    torch.manual_seed(0)
    assert objective.loss_and_grads(vae.model, vae.guide, *args) == pytest.approx(loss, rel=1e-9)
    found = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in vae.parameters()])
    torch.testing.assert_close(found, gradient(vae, differentiable), rtol=1e-9, atol=1e-9)


@every_case
def test_every_parameter_gets_a_gradient(entry, model):
    vae, *args = system(model)
    entry.make().loss_and_grads(vae.model, vae.guide, *args)
    for name, p in vae.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        # Below its floor, free bits give the prior none.
        assert p.grad.any() or (entry.name == "freebits" and name.startswith("prior")), name


@every_case
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_total_multiplies_from_outside(entry, model, beta):
    """The loss and the gradient for ten times the data are ten times those: inside a logarithm they would not be."""
    vae, *args = system(model)
    vae.beta = beta
    objective = ready(entry, vae, *args)
    found = []
    for total in (float(N), 10.0 * N):
        torch.manual_seed(0)
        loss = objective.differentiable_loss(vae.model, vae.guide, *args, total=total)
        found.append(torch.cat([loss.detach()[None], gradient(vae, loss)]))
    torch.testing.assert_close(10 * found[0], found[1], rtol=1e-9, atol=1e-9)


@every_case
def test_without_beta_the_prior_is_out_of_it(entry, model):
    """β = 0: −log p(x|z) of some kind, whatever the prior; and a small β is next to it."""
    vae, *args = system(model)
    losses = []
    for beta in (0.0, 0.0, 1e-9):
        vae.beta = beta
        torch.manual_seed(0)
        losses.append(ready(entry, vae, *args).loss_and_grads(vae.model, vae.guide, *args))
        if beta == 0:
            assert not any(p.grad is not None and p.grad.any() for p in vae.prior.parameters())
            with torch.no_grad():
                for p in vae.prior.parameters():
                    p += 0.1
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("entry", [pytest.param(e, id=n) for n, e in OBJECTIVES.items() if e.additive])
def test_the_loss_of_a_batch_is_the_sum_over_its_rows(entry, monkeypatch):
    """With one noise for all rows and draws: two halves of a batch add up to it."""

    def standard_normal(shape, dtype, device):
        return torch.linspace(-1, 1, shape[-1], dtype=dtype).expand(shape)

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", standard_normal)
    vae, x, y = system("cvae")
    objective = entry.make()
    halves = slice(0, 6), slice(0, 2), slice(2, 6)
    whole, first, rest = (objective.loss(vae.model, vae.guide, x[i], y[i]) for i in halves)
    assert whole == pytest.approx(first + rest, rel=1e-9)


@every_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_follows_the_dtype_and_the_device(entry, dtype, device):
    vae, x, y = system("cvae", dtype)
    vae.to(device)
    objective = entry.make()
    loss = objective.differentiable_loss(vae.model, vae.guide, x.to(device), y.to(device))
    assert (loss.dtype, loss.device.type) == (dtype, device.type)
    loss.backward()
    assert all(p.grad.dtype == dtype for p in vae.parameters())


@every_objective
def test_unseen_pixels_take_no_part(entry):
    vae, x, y = system("cvae")
    mask = torch.rand(N, X) < 0.6
    objective = ready(entry, vae, x, y)
    found = []
    for unseen in (0.0, 1.0, math.nan):
        torch.manual_seed(0)
        loss = objective.differentiable_loss(vae.model, vae.guide, torch.where(mask, x, unseen), y, mask=mask)
        found.append(torch.cat([loss.detach()[None], gradient(vae, loss)]))
    assert found[0].isfinite().all()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@every_case
def test_stock_svi_lowers_the_loss(entry, model):
    vae, *args = system(model)
    objective = entry.make()

    def loss():
        torch.manual_seed(6)
        return sum(objective.loss(vae.model, vae.guide, *args) for _ in range(20))

    before = loss()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), objective)
    for _ in range(25):
        svi.step(*args)
    assert loss() < before


@every_case
def test_captured_steps_equal_stock(entry, model, device, recording):
    """Every loss of twelve steps to 1e-6, so gradients, updates and random numbers as well; β moves in between."""
    vae, *args = system(model, torch.float32)
    vae.to(device)
    twin, (backend, adam) = copy.deepcopy(vae), recording
    stock = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), entry.make())
    captured = CapturedSVI(twin.model, twin.guide, adam(1e-2), entry.make(), backend=backend)
    losses = []
    for svi, system_ in ((stock, vae), (captured, twin)):
        torch.manual_seed(0)
        found = []
        for beta in (1.0, 0.5):
            system_.beta = beta
            found += [float(svi.step(*args)) for _ in range(6)]
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6, abs=1e-6)
    assert captured.backend == backend
    # The key of a graph holds what an objective has guessed.
    assert sum(graph is not None for graph in captured._graphs.values()) == 1


@every_name
def test_fit_trains_with_it_and_measures_without(entry):
    """Captured or not, the same run; and the history's −ELBO is that of the model, whatever was minimised."""
    histories = []
    for capture in ("off", "graph"):
        vae, x, y = system("cvae", torch.float32)
        x, y = x.repeat(4, 1), y.repeat(4)
        options = {"epochs": 3, "batch_size": 8, "beta": warmup(2), "capture": capture, "progress": False}
        histories.append(pv.fit(vae, (x, y), valid=(x, y), objective=entry.make(), device="cpu", **options))
        assert histories[-1].info["capture"] == capture
    for column in ("loss", "neg_elbo", "valid_neg_elbo"):
        assert histories[0].column(column) == pytest.approx(histories[1].column(column), rel=1e-5)
    for row in histories[0]:
        assert row["neg_elbo"] == pytest.approx(row["reconstruction"] + row["kl"], rel=1e-6)
    measured = pv.evaluate(vae, x, y, samples=5)
    vae.beta = 7.0
    assert pv.evaluate(vae, x, y, samples=5).terms == measured.terms


@every_objective
def test_a_copy_is_the_same_objective(entry):
    vae, x, y = system("cvae")
    losses = []
    for objective in (first := ready(entry, vae, x, y), copy.deepcopy(first)):
        torch.manual_seed(0)
        losses.append(objective.loss(vae.model, vae.guide, x, y))
    assert losses[0] == losses[1]


def test_every_named_objective_is_under_contract():
    assert {entry.name for entry in OBJECTIVES.values()} == set(presets.OBJECTIVES)


def test_every_named_objective_needs_no_options():
    vae, x, y = system("cvae")
    for make in presets.OBJECTIVES.values():
        assert math.isfinite(make().loss(vae.model, vae.guide, x, y))

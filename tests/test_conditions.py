"""One contract for every condition: alone, in a model, captured, saved; and what y is refused, with what error."""

import copy
import dataclasses
import functools
import json
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae as pv
from ppl_vae import presets
from ppl_vae.capture import CapturedSVI
from ppl_vae.cli import main
from ppl_vae.conditions import Continuous, Image, OneHot, OneHots
from ppl_vae.errors import ConfigError, DataError, LabelError, ShapeError
from ppl_vae.networks import MLP, Conv

N, IMAGE, PATCH = 6, (1, 6, 5), (1, 4, 3)


@dataclasses.dataclass
class Entry:
    """A condition by its dictionary, and y for it."""

    spec: dict[str, Any]
    draw: Callable[..., torch.Tensor]
    context: int
    y_shape: tuple[int, ...] = ()

    def make(self, seed=0):
        torch.manual_seed(seed)
        return presets.make("condition", self.spec)

    def y(self, *batch, seed=1):
        return self.draw(*batch, *self.y_shape, generator=torch.Generator().manual_seed(seed))

    def vae(self, prior="Gaussian"):
        torch.manual_seed(0)
        return pv.vae(IMAGE, 2, condition=self.spec, prior=prior, hidden=(8,))


def columns(*shape, generator):
    return torch.stack([torch.randint(k, shape[:-1], generator=generator) for k in (3, 2)], -1)


ENTRIES = {
    "OneHot": Entry({"name": "OneHot", "classes": 3}, functools.partial(torch.randint, 0, 3), 3),
    "OneHots": Entry({"name": "OneHots", "classes": [3, 2]}, columns, 5, (2,)),
    "Continuous": Entry({"name": "Continuous", "features": 3}, torch.randn, 3, (3,)),
    "Continuous scaled": Entry(
        {"name": "Continuous", "features": 1, "shift": 0.5, "scale": [2.0]}, torch.randn, 1, (1,)
    ),
    "Image": Entry({"name": "Image", "y_shape": PATCH, "features": 4, "hidden": [8]}, torch.rand, 4, PATCH),
    "Image Conv": Entry(
        {
            "name": "Image",
            "y_shape": PATCH,
            "features": 4,
            "network": {"name": "Conv", "channels": [4], "activation": "elu"},
        },
        torch.rand,
        4,
        PATCH,
    ),
}
# OneHot's randint takes its shape as one argument.
ENTRIES["OneHot"].draw = lambda *shape, generator: torch.randint(3, shape, generator=generator)
every = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


def binary(n=N):
    return torch.rand(n, *IMAGE, generator=torch.Generator().manual_seed(3)).round()


# By themselves


@every
@pytest.mark.parametrize("batch", [(), (N,), (4, N), (0,)], ids=str)
def test_any_batch_dimensions_stand_in_front(entry, batch):
    condition = entry.make()
    y = entry.y(*batch)
    condition.check(y)
    c = condition(y)
    assert c.shape == (*batch, entry.context)
    assert c.is_floating_point()
    assert (condition.context, condition.y_shape) == (entry.context, entry.y_shape)


@every
def test_each_row_is_what_it_would_be_alone_and_rows_differ(entry):
    condition = entry.make().double()
    y = entry.y(12).double() if entry.y(1).is_floating_point() else entry.y(12)
    c = condition(y)
    torch.testing.assert_close(c.double(), torch.stack([condition(row) for row in y]).double())
    assert len(c.unique(dim=0)) == len(y.unique(dim=0)) > 1


@every
def test_follows_dtype_and_device(entry, device):
    condition, y = entry.make().to(device), entry.y(N).to(device)
    assert condition(y).device.type == device.type
    if entry.spec["name"] in ("Continuous", "Image"):
        assert condition.double()(y).dtype == torch.float64
    with pyro.validation_enabled(False):
        assert entry.make().to("meta")(entry.y(N).to("meta")).device.type == "meta"


@every
def test_validation_changes_no_valid_result(entry):
    condition, y = entry.make(), entry.y(N)
    with pyro.validation_enabled(False):
        unchecked = condition(y)
    assert torch.equal(condition(y), unchecked)


@every
def test_a_copy_is_independent_and_the_state_dict_is_all_there_is(entry):
    condition, fresh, y = entry.make(), entry.make(seed=9), entry.y(N)
    fresh.load_state_dict(condition.state_dict())
    assert torch.equal(fresh(y), condition(y))
    other = copy.deepcopy(condition)
    assert {id(p) for p in condition.parameters()}.isdisjoint({id(p) for p in other.parameters()})
    assert torch.equal(other(y), condition(y))


def test_every_named_condition_is_under_contract():
    assert set(presets.CONDITIONS) == {entry.spec["name"] for entry in ENTRIES.values()}


# In a model


@every
def test_a_model_reads_the_context_off_its_condition(entry):
    vae = entry.vae()
    assert [vae.prior.context, vae.likelihood.context, vae.encoder.context] == [entry.context] * 3
    # The latent features and the shape of x are not those of y.
    assert (vae.condition.context, vae.condition.y_shape) == (entry.context, entry.y_shape)
    again = pv.vae(IMAGE, 2, condition=entry.make(), prior="Gaussian", hidden=(8,))
    assert presets.to_dict(again) == presets.to_dict(vae)


def test_the_context_of_a_condition_of_ones_own_is_typed():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    vae = pv.vae(IMAGE, 2, condition=network, context=4, prior="Gaussian")
    assert vae.sample(2, y=torch.rand(N, *PATCH)).shape == (2, N, *IMAGE)
    with pytest.raises(ConfigError, match=r"how many features the condition \(Sequential\) makes.*context="):
        pv.vae(IMAGE, 2, condition=network)
    # What it holds under that name need not be a number.
    network.context = nn.Identity()
    with pytest.raises(ConfigError, match="context="):
        pv.vae(IMAGE, 2, condition=network)
    # Parts that are there already need no such number.
    assert pv.VAE(vae.prior, vae.likelihood, vae.encoder, condition=network).condition is network
    again = pv.vae(IMAGE, 2, prior="Standard", likelihood=vae.likelihood, encoder=vae.encoder, condition=network)
    assert again.condition is network


def test_a_context_of_zero_ignores_y():
    vae = pv.vae(IMAGE, 2, condition=OneHot(3), context=0)
    assert isinstance(vae.encoder, pv.Unconditional)
    assert torch.equal(vae.embed(binary(), 0), vae.embed(binary(), 2))


@every
def test_a_model_survives_json_and_disk(entry, tmp_path):
    vae = entry.vae()
    config = presets.to_dict(vae)
    assert {"name": config["condition"]["name"]} | entry.spec | config["condition"] == config["condition"]
    rebuilt = presets.build(json.loads(json.dumps(config)))
    assert presets.to_dict(rebuilt) == config
    assert str(rebuilt) == str(vae)
    pv.save(vae, tmp_path)
    again, y = pv.load(tmp_path), entry.y(N)
    assert torch.equal(again.reconstruct(binary(), y), vae.reconstruct(binary(), y))


def test_shift_and_scale_of_the_data_are_saved(tmp_path):
    y = 3 + 2 * torch.randn(50, 2)
    vae = pv.vae(IMAGE, 2, condition=Continuous(2, y.mean(0), y.std(0)))
    pv.save(vae, tmp_path)
    torch.testing.assert_close(pv.load(tmp_path).condition(y), (y - y.mean(0)) / y.std(0))


@every
def test_what_one_asks_of_a_model(entry):
    vae, x, y, one = entry.vae(), binary(), entry.y(N), entry.y()
    assert vae.sample(3, y=one).shape == (3, *IMAGE)
    assert vae.sample(3, y=y).shape == (3, N, *IMAGE)
    assert vae.sample(3, y=entry.y(4, N)).shape == (3, 4, N, *IMAGE)
    assert vae.sample(3, y=y.numpy()).shape == (3, N, *IMAGE)
    assert vae.encode(x, y).batch_shape == (N,)
    assert vae.embed(x, one).shape == (N, 2)
    assert vae.reconstruct(x, y).shape == x.shape
    assert vae.translate(x, y, to=one).shape == x.shape
    every_y = entry.y(4, 1)
    assert vae.translate(x, y, to=every_y, carry=True).shape == (4, N, *IMAGE)
    torch.testing.assert_close(vae.translate(x, y, to=every_y)[2], vae.translate(x, y, to=every_y[2, 0]))
    assert vae.interpolate(x, x, y=y, to=entry.y(N, seed=2), steps=3).shape == (3, N, *IMAGE)
    assert vae.log_prob(x, y, samples=4).shape == (N,)
    assert Predictive(vae.model, num_samples=4)(y=y)["x"].shape == (4, N, *IMAGE)
    assert Predictive(vae.model, num_samples=4)(y=one)["x"].shape == (4, 1, *IMAGE)


@every
def test_y_matters(entry):
    vae, x = entry.vae(), binary()
    first, second = entry.y(N, seed=1), entry.y(N, seed=2)
    differ = (first != second).reshape(N, -1).any(1)
    assert differ.any()
    moved = (vae.embed(x, first) - vae.embed(x, second)).abs().sum(-1) > 0
    assert torch.equal(moved, differ)


@every
def test_one_y_for_all_rows_is_that_y_in_every_row(entry):
    """Also one that has dimensions itself, and as many along the first as there are rows."""
    vae, one = entry.vae(), entry.y()
    for n in {N, *one.shape[:1]}:
        x, rows = binary(n), one.expand(n, *one.shape)
        evaluations = [pv.evaluate(vae, x, y, samples=5, draws=2, batch_size=2).to_dict() for y in (one, rows)]
        assert evaluations[0]["neg_elbo"]["mean"] == pytest.approx(evaluations[1]["neg_elbo"]["mean"], rel=1e-5)
        losses, imputed = [], []
        for y in (one, rows):
            torch.manual_seed(0)
            imputed.append(vae.impute(x, y, mask=torch.arange(5).expand(x.shape) < 2, n=2, candidates=5))
            fresh = copy.deepcopy(vae)
            losses.append(pv.fit(fresh, (x, y), epochs=2, batch_size=4, progress=False).column("loss"))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert torch.equal(*imputed)


@every
@pytest.mark.parametrize("prior", ["Gaussian", "Standard"])
def test_fit_trains_the_condition_with_the_rest(entry, prior):
    vae, x, y = entry.vae(prior), binary(), entry.y(N)
    before = {name: p.clone() for name, p in vae.named_parameters()}
    history = pv.fit(vae, (x, y), valid=(x, y), epochs=30, lr=1e-2, batch_size=4, progress=False, capture="graph")
    assert history.info["capture"] == "graph"
    assert history[-1]["loss"] < history[0]["loss"]
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert pv.audit(vae, x, y, particles=20).passed


@every
def test_fit_takes_y_from_whatever_holds_data(entry):
    x, y = binary(), entry.y(N)
    losses = []
    for source in (
        (x, y),
        (x.numpy(), y.numpy()),
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), batch_size=N),
    ):
        history = pv.fit(entry.vae(), source, epochs=2, batch_size=N, progress=False)
        losses.append(history[0]["reconstruction"] + history[0]["kl"])
    assert losses[0] == losses[1] == losses[2]
    # A loader shuffles by itself, or not: its noise falls on other rows.
    assert losses[3] == pytest.approx(losses[0], abs=2.0)


@every
def test_captured_steps_equal_stock(entry, device, recording):
    vae, (backend, adam) = entry.vae().to(device), recording
    twin = copy.deepcopy(vae)
    stock = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    captured = CapturedSVI(twin.model, twin.guide, adam(1e-2), Trace_ELBO(), backend=backend)
    losses = []
    for svi in (stock, captured):
        torch.manual_seed(0)
        losses.append([float(svi.step(binary(), entry.y(N, seed=i))) for i in range(12)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6, abs=1e-6)
    assert captured.backend == backend


# What is refused


def ask_everywhere(entry, x, y, error, match):
    for ask in (
        lambda vae: vae.check(x, y),
        lambda vae: vae.log_prob(x, y, samples=2),
        lambda vae: pv.evaluate(vae, x, y),
        lambda vae: pv.fit(vae, (x, y), epochs=1, progress=False),
        lambda vae: Trace_ELBO().loss(vae.model, vae.guide, x, y),
    ):
        with pytest.raises(error, match=match):
            ask(entry.vae())


@every
def test_a_row_too_many_is_a_label_error_everywhere(entry):
    ask_everywhere(entry, binary(), entry.y(N + 1), LabelError, "expected one y a row of x, got 7 for 6")


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.y_shape])
def test_a_y_of_another_shape_is_a_shape_error_everywhere(name):
    y = ENTRIES[name].y(N)
    for wrong in (y[..., 0], torch.cat([y, y], -1)):
        ask_everywhere(ENTRIES[name], binary(), wrong, ShapeError, r"y: expected \(N, .*got")


@pytest.mark.parametrize("name", ["Continuous", "Image"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(name, bad):
    entry = ENTRIES[name]
    y = entry.y(N)
    y[2] = bad
    vae = entry.vae()
    for ask in (vae.condition, vae.condition.check, lambda y: pv.fit(vae, (binary(), y), epochs=1, progress=False)):
        with pytest.raises(DataError, match=r"finite y.*row 2"):
            ask(y)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: OneHots(()), "columns"),
        (lambda: OneHots((3, 0)), r"classes\[1\]"),
        (lambda: OneHots((3, 2.0)), r"classes\[1\]"),
        (lambda: Continuous(0), "features"),
        (lambda: Continuous(2, shift=[1.0]), "shift: expected one finite number, or one for each of 2"),
        (lambda: Continuous(2, scale=torch.ones(3)), "scale: expected one finite number, or one for each of 2"),
        (lambda: Continuous(2, shift=math.nan), "shift"),
        (lambda: Continuous(2, scale=[1.0, 0.0]), "scale > 0"),
        (lambda: Continuous(2, scale=-1.0), "scale > 0"),
        (lambda: Image((1, 0), 3), r"y_shape\[1\]"),
        (lambda: Image((4,), 0), "features"),
        (lambda: Image((4,), 2, scale=0.0), "scale > 0"),
        (lambda: Image((4,), 2, scale=math.inf), "scale: expected a finite number"),
        (lambda: Image((4,), 2, shift=math.nan), "shift: expected a finite number"),
    ],
)
def test_impossible_conditions_are_config_errors(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_a_misspelt_condition_or_option_names_the_nearest():
    for spec, hint in [("OneHott", "OneHot"), ({"name": "Image", "feature": 3}, "features")]:
        with pytest.raises(ConfigError, match=f"did you mean '{hint}'"):
            pv.vae(IMAGE, 2, condition=spec)
    with pytest.raises(ConfigError, match="classes"):
        pv.vae(IMAGE, 2, condition="OneHot")


@pytest.mark.parametrize("name", ["OneHots", "Continuous", "Image"])
def test_the_command_line_draws_from_models_of_labels_and_says_so(name, tmp_path, capsys):
    pv.save(ENTRIES[name].vae(), tmp_path)
    assert main(["sample", str(tmp_path), "--device", "cpu"]) == 2
    assert re.search(rf"expected a model of labels, got one of {name}: .*sample\(n, y\)", capsys.readouterr().err)


# OneHot and OneHots


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_one_hot_is_a_row_of_the_identity(dtype):
    c = OneHot(3)(torch.tensor([[0, 2, 1], [1, 1, 0]], dtype=dtype))
    assert torch.equal(c, torch.eye(3)[torch.tensor([[0, 2, 1], [1, 1, 0]])])
    assert OneHot(3)(torch.tensor(2, dtype=dtype)).tolist() == [0, 0, 1]
    c = OneHots((3, 2))(torch.tensor([[0, 1], [2, 0]], dtype=dtype))
    assert c.tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 1, 0]]


@pytest.mark.parametrize(
    "y",
    [
        torch.tensor([0, 3]),
        torch.tensor([-1, 0]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([0.5]),
        torch.tensor([math.nan]),
        torch.tensor([True, False]),
        torch.tensor(7),
    ],
    ids=["too large", "negative", "float", "fraction", "NaN", "bool", "scalar"],
)
def test_labels_that_are_none_are_refused(y):
    one_hot, two = OneHot(3), OneHots((5, 3))
    for ask in (one_hot.check, one_hot):
        with pytest.raises(LabelError, match=r"expected .*got"):
            ask(y)
    # The other column is in order.
    pairs = torch.stack([torch.zeros_like(y), y], -1)
    where = "labels of column 1" if not y.is_floating_point() and y.dtype != torch.bool else "integer labels"
    for ask in (two.check, two):
        with pytest.raises(LabelError, match=rf"expected {where}.*got"):
            ask(pairs)


@pytest.mark.parametrize("classes", [0, -2, 2.0, "3", True])
def test_the_number_of_classes_is_a_positive_whole_number(classes):
    with pytest.raises(ConfigError, match="classes"):
        OneHot(classes)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_label_never_trained_on_gives_a_warning(dtype):
    one_hot = OneHot(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_hot(torch.tensor([0, 1, 2, 3]))  # nobody kept count
        one_hot.observe(torch.tensor([0, 2, 2], dtype=dtype))
        one_hot(torch.tensor([0, 2]))
    assert one_hot.seen.tolist() == [True, False, True, False]
    with pytest.warns(UserWarning, match=r"label 1, 3 was never seen in training"):
        one_hot(torch.tensor([0, 3, 1], dtype=dtype))


def test_each_column_keeps_its_own_count():
    two = OneHots((2, 3))
    two.observe(torch.tensor([[0, 1], [0, 2]]))
    assert two.seen.tolist() == [True, False, False, True, True]
    two(torch.tensor([0, 2]))
    with pytest.warns(UserWarning, match=r"label 0 of column 1 was never seen in training"):
        two(torch.tensor([0, 0]))


def test_what_was_seen_is_saved_with_the_model():
    one_hot, other = OneHot(3), OneHot(3)
    one_hot.observe(torch.tensor([1]))
    other.load_state_dict(one_hot.state_dict())
    with pytest.warns(UserWarning, match="label 0"):
        other(torch.tensor(0))


def test_fit_counts_the_labels_of_every_column_and_evaluation_warns():
    vae, x = pv.vae(IMAGE, 2, condition=OneHots((3, 2)), hidden=(8,)), binary()
    y = torch.tensor([[0, 1], [1, 1], [0, 1], [1, 1], [0, 1], [1, 1]])
    pv.fit(vae, (x, y), epochs=1, progress=False)
    assert vae.condition.seen.tolist() == [True, True, False, False, True]
    with pytest.warns(UserWarning, match="label 0 of column 1"):
        vae.sample(1, y=[0, 0])


# Continuous and Image


def test_continuous_standardises_each_number_by_its_own():
    y = torch.tensor([[1.0, 10.0], [3.0, -10.0]])
    torch.testing.assert_close(
        Continuous(2, shift=[1.0, 0.0], scale=[2.0, 5.0])(y), torch.tensor([[0.0, 2.0], [1.0, -2.0]])
    )
    assert torch.equal(Continuous(2)(y), y)
    # Whole numbers are numbers.
    assert torch.equal(Continuous(2)(y.long()), y)


def test_an_image_is_standardised_and_seen_by_its_network():
    image = Image(PATCH, 4, hidden=(8,), shift=100.0, scale=50.0)
    y = torch.randint(256, (N, *PATCH), dtype=torch.uint8)
    torch.testing.assert_close(image(y), image.network((y.float() - 100) / 50))
    assert isinstance(image.network.body, MLP)
    assert isinstance(Image(PATCH, 4, network=Conv).network.body, Conv)


def test_structured_output_is_learned_from_what_is_seen():
    """X is y or its negative, pixel for pixel: only a model that looks at y can know it without looking at x."""
    torch.manual_seed(0)
    y = torch.rand(256, 1, 2, 2).round()
    vae = pv.vae((1, 2, 2), 1, condition=Image((1, 2, 2), 8, hidden=(32,)), prior="Gaussian", hidden=(32,))
    pv.fit(vae, (1 - y, y), epochs=60, lr=1e-2, batch_size=64, progress=False)
    every = torch.tensor(np.indices((2, 2, 2, 2)).reshape(4, 16).T, dtype=torch.float32).reshape(16, 1, 2, 2)
    # All sixteen y, twenty draws each: a model that did not look at y would be right one time in sixteen.
    x = vae.sample(20, y=every)
    assert (x == 1 - every).flatten(2).all(-1).float().mean() > 0.8

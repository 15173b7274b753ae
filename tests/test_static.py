"""What a CUDA graph asks of a recorded graph, looked at without one: the "meta" device stands for a GPU."""

import copy
import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import ppl_vae as pv
from ppl_vae.capture import CapturedSVI
from ppl_vae.capture.guard import size_of
from ppl_vae.capture.static import cannot_stay, look_up
from ppl_vae.errors import CaptureError, NonFiniteError
from ppl_vae.objectives import Trace_ELBO

aten = torch.ops.aten
MASK = torch.tensor([True, False, True, True])


def operations(graph, *targets):
    return [node for node in graph.graph.nodes if node.target in targets]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, MASK],
        lambda x: x[:, ~MASK].sum(-1),
        lambda x: x[:, MASK.nonzero().squeeze(-1)],
        lambda x: x.clone().index_put((torch.arange(3)[:, None], MASK.nonzero().squeeze(-1)), x[:, MASK] + 1),
        lambda x: x.reshape(2, 2, 3)[:, MASK.reshape(2, 2).T[:, :1].expand(2, 3)],
    ],
    ids=["mask", "its opposite", "nonzero", "put", "two dimensions"],
)
def test_masks_are_looked_up_once(function):
    x = torch.randn(3, 4)
    graph = make_fx(function)(x)
    look_up(graph)
    assert torch.equal(graph(x), function(x))
    if not operations(graph, aten.expand.default):
        assert not operations(graph, aten.nonzero.default)
        kinds = [n.meta["val"].dtype for node in operations(graph, aten.index.Tensor) for n in node.args[1] if n]
        assert torch.bool not in kinds


def test_a_mask_that_is_written_to_is_not_looked_up():
    held = MASK.clone()

    def function(x):
        held.logical_not_()
        return x[:, held.nonzero().squeeze(-1)[:1]]

    x = torch.randn(3, 4)
    graph = make_fx(function)(x)
    look_up(graph)
    assert operations(graph, aten.nonzero.default)
    assert torch.equal(graph(x), x[:, held.nonzero()[:1, 0]])


def test_a_mask_that_is_made_and_written_to_is_not_looked_up():
    def function(x):
        mask = ~MASK
        mask[0] = True
        places = MASK.nonzero()
        places.sub_(1)
        return x[:, mask].sum(-1) + x[:, places[1:, 0]].sum(-1)

    x = torch.randn(3, 4)
    graph = make_fx(function)(x)
    look_up(graph)
    for _ in range(3):
        assert torch.equal(graph(x), function(x))


ELSEWHERE, NUMBER = torch.ones(4), torch.tensor(2.0)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: (x + 1).exp() * torch.ones(4, device=x.device), None),
        (lambda x: x * torch.tensor(2.0), None),  # a number on the host is an argument
        (lambda x: x + ELSEWHERE.to(x.device), "is on cpu"),
        (lambda x: x + torch.full((), 3.0).to(x.device), "is brought to meta"),
        (lambda x: x * NUMBER, "may change"),
        (lambda x: x * torch.rand(()), "may change"),
    ],
    ids=["all there", "a number", "a tensor elsewhere", "a number to be brought", "one that is held", "one drawn"],
)
def test_what_a_cuda_graph_cannot_hold(function, expected):
    x = torch.empty(3, 4, device="meta")
    graph = make_fx(function)(x)
    reason = cannot_stay(graph, x.device)
    assert (reason is None) if expected is None else expected in reason


def test_what_looks_at_values_cannot_stay():
    x = torch.randn(3, 4)
    graph = make_fx(lambda x: (x > 0).nonzero())(x)
    assert cannot_stay(graph, x.device) == "aten.nonzero.default looks at values"


def test_flows_that_split_by_masks_stay():
    torch.manual_seed(0)
    vae = pv.cvae((4,), 2, 3, prior={"name": "NICE", "transforms": 2, "hidden_features": [4]}, hidden=(5,))
    twin = copy.deepcopy(vae)
    x, y = torch.rand(6, 4).round(), torch.arange(6) % 3
    adam = functools.partial(torch.optim.Adam, lr=1e-2, fused=True)
    losses = []
    for system, backend in ((vae, "off"), (twin, "cudagraph")):
        torch.manual_seed(0)
        svi = CapturedSVI(system.model, system.guide, adam, Trace_ELBO(), backend)
        losses.append([float(svi.step(x, y)) for _ in range(10)])
        assert svi.backend == backend
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_program_that_looks_at_values_is_replayed_without_a_cuda_graph():
    """How many rows are positive decides a shape, so the program is one for stock steps or for plain replays."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        some = x[(x > 0).nonzero().squeeze(-1)]
        with pyro.plate("rows", len(some)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=some)

    def guide(x):
        pass

    x = torch.tensor([1.0, -1.0, 2.0])
    adam = functools.partial(torch.optim.Adam, lr=1e-2, fused=True)
    stock = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    expected = [stock.step(x) for _ in range(8)]
    pyro.clear_param_store()
    svi = CapturedSVI(model, guide, adam, Trace_ELBO(), "cudagraph")
    with pytest.warns(pv.capture.CaptureWarning, match="not in one CUDA graph, but replayed .*nonzero"):
        found = [float(svi.step(x)) for _ in range(8)]
    assert svi.backend == "graph"
    assert found == pytest.approx(expected, rel=1e-6)


def test_arguments_are_brought_to_where_the_parameters_are():
    """Rows on the host are one more copy into the buffers, and no other program; here the parameters are there too."""
    body = nn.Linear(3, 1).double()

    def model(x):
        pyro.module("body", body)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(body(x).squeeze(-1), 1.0), obs=x[:, 0])

    adam = functools.partial(torch.optim.Adam, lr=1e-2, fused=True)
    svi = CapturedSVI(model, lambda x: None, adam, Trace_ELBO(), "cudagraph")
    x = torch.randn(5, 3, dtype=torch.float64)
    losses = [float(svi.step(x)) for _ in range(8)]
    assert losses[-1] < losses[0]
    (replay,) = [replay for replay in svi._graphs.values() if replay is not None]
    assert all(buffer.device == body.weight.device for buffer in replay.static.inputs)


# What a recording hands to an optimiser


def test_gradients_are_laid_out_as_their_parameters_and_share_no_memory():
    """A fused optimiser reads both as if they were; clipping would scale twice what two parameters share."""

    def model(x):
        W = pyro.param("W", torch.arange(6.0).reshape(2, 3))
        a, c = (pyro.param(name, torch.zeros(3)) for name in "ac")
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(2 * (x[:, :2] @ W) + a + c, 1.0).to_event(1), obs=x)
        pyro.sample("V", dist.Normal(W.t() * 2, 1.0).to_event(2), obs=torch.ones(3, 2))

    torch.manual_seed(0)
    x, found = torch.randn(5, 3), []
    for backend in ("off", "graph", "cudagraph"):
        pyro.clear_param_store()
        adam = functools.partial(torch.optim.Adam, lr=1e-1, fused=True)
        svi = CapturedSVI(model, lambda x: None, adam, Trace_ELBO(), backend, clip=1.0)
        losses = [float(svi.step(x)) for _ in range(20)]
        found.append([*losses, *(pyro.param(name).flatten()[0].item() for name in "Wac")])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_a_gradient_of_one_shape_moves_nothing_in_a_step_of_another():
    """The program with y has a parameter that the one without does not reach."""

    def model(x, y=None):
        b, c = pyro.param("b", torch.zeros(())), pyro.param("c", torch.zeros(()))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(c, 1.0), obs=y)

    torch.manual_seed(0)
    x, y, found = torch.randn(5), torch.randn(5) + 1, []
    for backend in ("off", "cudagraph"):
        pyro.clear_param_store()
        adam = functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9, fused=True)
        svi = CapturedSVI(model, lambda *args: None, adam, Trace_ELBO(), backend)
        for _ in range(12):
            svi.step(x, y)
            svi.step(x)
        found.append(pyro.param("c").item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)


# Which step it was


def regression(backend="cudagraph", **options):
    def model(x, y):
        slope = pyro.param("slope", torch.zeros(()))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    adam = functools.partial(torch.optim.Adam, lr=1e-2, fused=True)
    svi = CapturedSVI(model, lambda x, y: None, adam, Trace_ELBO(), backend, **options)
    x = torch.linspace(-1, 1, 8)
    return svi, (x, x + 0.1), (x, x * torch.nan)


def trained(svi, batches):
    svi.run(batches)
    return svi.read()


def test_a_bad_step_is_named_after_others_were_caught():
    svi, good, bad = regression()
    svi.run([good])
    with pytest.raises(NonFiniteError, match="step 2:"):
        svi.step(*bad)
    with pytest.raises(NonFiniteError, match="step 16:"):
        trained(svi, [good] * 13 + [bad] + [good] * 5)
    # That step, and those after it whose updates did nothing, are of the past.
    with pytest.raises(NonFiniteError, match="step 25:"):
        trained(svi, [good] * 3 + [bad])


def test_a_bad_step_is_named_in_a_run_that_was_resumed():
    svi, good, bad = regression()
    svi.run([good] * 10)
    svi.read()
    svi.steps = 1000
    with pytest.raises(NonFiniteError, match="step 1006:"):
        trained(svi, [good] * 5 + [bad] + [good])


def test_a_bad_step_is_named_where_another_shape_cannot_stay(monkeypatch):
    """From there on steps are replayed one by one, and a flag that is up by then is looked at first."""
    svi, good, bad = regression()
    svi.run([good] * 10)
    monkeypatch.setattr("ppl_vae.capture.svi.cannot_stay", lambda *args: "a reason")
    short = tuple(t[:3] for t in good)
    # The stock step of the new shape is the first to look.
    with pytest.raises(NonFiniteError, match="step 13:"):
        svi.run([good] * 2 + [bad] + [good] * 3 + [short] * 4)
    with pytest.warns(pv.capture.CaptureWarning, match="not in one CUDA graph, .* a reason"):
        svi.run([short] * 4 + [good] * 3)
    assert svi.backend == "graph"
    with pytest.raises(NonFiniteError, match=rf"step {svi.steps + 2}:"):
        svi.run([good, bad])


def test_a_step_that_no_cuda_graph_can_hold_is_replayed(monkeypatch):
    def refused(*args):
        raise CaptureError("no CUDA graph can hold this step: a reason")

    monkeypatch.setattr("ppl_vae.capture.svi.StaticStep", refused)
    svi, good, _ = regression()
    with pytest.warns(pv.capture.CaptureWarning, match="replayed as recorded: no CUDA graph .* a reason"):
        sums = trained(svi, [good] * 12)
    assert (svi.backend, sums["steps"]) == ("graph", 12)


def test_batches_without_labels_are_run_like_others():
    """A loader of images gives (x, None); what is no tensor has no buffer."""
    vae = pv.vae((4,), 2, hidden=(8,))
    svi = CapturedSVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, fused=True), Trace_ELBO(), "cudagraph")
    x = torch.rand(6, 4).round()
    looks = []
    step, svi.step = svi.step, lambda *args: looks.append(args) or step(*args)
    svi.run([(x, None)] * 20)
    assert svi.read()["steps"] == 20
    assert len(looks) < 10


# What a CUDA graph froze


def stayed(freeze=False, **options):
    """A program whose whole steps stay on the device, after a few of them."""
    torch.manual_seed(0)
    vae = pv.vae((4,), 2, likelihood="Gaussian", hidden=(8,))
    vae.likelihood.requires_grad_(not freeze)
    adam = functools.partial(torch.optim.Adam, lr=torch.tensor(1e-2), fused=True)
    svi = CapturedSVI(vae.model, vae.guide, adam, Trace_ELBO(), "cudagraph", **options)
    svi.run([(torch.randn(6, 4),)] * 10)
    return svi, vae, next(replay.static for replay in svi._graphs.values())


def swapped(svi, vae):
    for p in vae.likelihood.parameters():
        p.data = p.data.clone()


CHANGES = {
    # A state that is loaded comes with a rate of its own, and goes by that from then on.
    "a state that was loaded": lambda svi, vae: svi.optim.set_state(svi.optim.get_state()),
    "another rate": lambda svi, vae: svi.optim.optimizer.param_groups[0].update(lr=torch.tensor(0.1)),
    "weight decay": lambda svi, vae: svi.optim.optimizer.param_groups[0].update(weight_decay=0.1),
    "clip": lambda svi, vae: setattr(svi.optim, "clip", 1.0),
    "parameters that are not trained": swapped,
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_cuda_graph_would_not_see_makes_another(name):
    """It reads and writes where things were, and numbers are part of it."""
    svi, vae, static = stayed(freeze=True)
    assert static.places == static._places()
    svi.optim.set_lr(0.5)
    assert static.places == static._places()
    CHANGES[name](svi, vae)
    assert static.places != static._places()
    # Without a GPU there is no graph to be made anew.
    assert not static.moved


def test_the_flag_of_one_program_is_none_of_anothers():
    """They share the optimiser; what the one has not looked at yet does not keep the other from its steps."""
    svi, vae, _ = stayed()
    x = torch.randn(6, 4)
    other = CapturedSVI(vae.model, vae.guide, svi.optim.optimizer, Trace_ELBO(), "graph")
    for _ in range(8):
        other.step(x)
    svi.step(x * math.nan)
    before = [p.detach().clone() for p in vae.parameters()]
    other.step(x)
    assert not any(torch.equal(p, b) for p, b in zip(vae.parameters(), before, strict=True))
    with pytest.raises(NonFiniteError):
        svi.read()


@pytest.mark.parametrize("backend", ["off", "graph", "cudagraph"])
def test_arguments_that_are_no_tensors_are_run_as_they_are_stepped(backend):
    def model(batch):
        pyro.module("layer", layer)
        with pyro.plate("rows", len(batch["x"])):
            pyro.sample("x", dist.Normal(layer(batch["x"]).squeeze(-1), 1.0), obs=batch["x"][:, 0])

    layer = nn.Linear(3, 1)
    adam = functools.partial(torch.optim.Adam, lr=1e-2, fused=True)
    svi = CapturedSVI(model, lambda batch: None, adam, Trace_ELBO(), backend)
    svi.run([({"x": torch.randn(6, 3)},)] * 12)
    assert svi.read()["steps"] == 12


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("capture", ["off", "graph", "cudagraph"])
def test_training_where_numbers_are_double_by_default(capture, device, double_by_default):
    """A fused optimiser reads flag and rate in single precision, whatever the default is."""
    vae, x = pv.vae((4,), 2, likelihood="Gaussian", hidden=(8,)), torch.randn(20, 4)
    history = pv.fit(vae, x, epochs=9, batch_size=4, capture=capture, device=device, progress=False)
    assert history.info["capture"] == capture
    assert history[-1]["neg_elbo"] < history[0]["neg_elbo"]


def test_inputs_are_kept_up_to_so_many_bytes(monkeypatch):
    """A step that is not finite is named all the same."""
    from ppl_vae.capture import ledger

    monkeypatch.setattr(ledger, "_BYTES", 1000)
    svi, _, _ = stayed()
    looks = []
    look = svi._ledger.look
    monkeypatch.setattr(svi._ledger, "look", lambda: (looks.append(len(svi._ledger._kept)), look())[1])
    x = torch.randn(6, 4)
    svi.run([(x,)] * 25)
    # 96 bytes each: eleven of them are more.
    assert looks[:2] == [11, 11]
    with pytest.raises(NonFiniteError, match="step 39"):
        svi.run([(x,)] * 3 + [(x * math.nan,)] + [(x,)] * 30)


def test_a_gradient_in_half_precision_may_be_larger_than_its_norm_could_be():
    assert size_of([torch.full((100,), 100.0, dtype=torch.float16)]).isfinite()
    assert not size_of([torch.tensor([1.0, math.inf], dtype=torch.float16)]).isfinite()

"""What a CUDA graph asks of a recorded graph, looked at without one: the "meta" device stands for a GPU."""

import copy
import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import ppl_vae as pv
from ppl_vae.capture import CapturedSVI
from ppl_vae.capture.static import cannot_stay, look_up
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


ELSEWHERE = torch.ones(4)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: (x + 1).exp() * torch.ones(4, device=x.device), None),
        (lambda x: x * torch.tensor(2.0), None),  # a number on the host is an argument
        (lambda x: x + ELSEWHERE.to(x.device), "is on cpu"),
        (lambda x: x + torch.full((), 3.0).to(x.device), "is brought to meta"),
    ],
    ids=["all there", "a number", "a tensor elsewhere", "a number to be brought"],
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

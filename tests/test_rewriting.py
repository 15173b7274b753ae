"""Rewritten graphs give the numbers of those they were, whatever the logits and however many the pixels."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.capture.rewriting import keep_draws, rewrite

aten = torch.ops.aten


def recorded(function, *inputs):
    """The graph as it was, and rewritten."""
    with pyro.validation_enabled(False), torch.no_grad():
        graphs = [make_fx(function)(*inputs) for _ in range(2)]
    rewrite(graphs[1])
    return graphs


def operations(graph, target):
    return graph.graph.find_nodes(op="call_function", target=target)


def log_prob(dims):
    return lambda logits, x: dist.Bernoulli(logits=logits).to_event(dims).log_prob(x)


# 784 pixels are 49 factors for 16 logarithms; 588 and 196 are those of R6; 17 and 13 have nothing to be divided by.
SHAPES = {(1, 28, 28): 16, (588,): 21, (196,): 28, (3, 32, 32): 48, (17,): None, (13,): None, (16, 2): 16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probabilities_of_pixels(shape, dtype):
    """At logits of every size, for x of 0, 1 and between; in float32 to 1.2e-7 a pixel, twice what is stated."""
    size = torch.linspace(-3, 6, 5, dtype=dtype).exp().view(5, 1, *[1] * len(shape))
    logits = size * torch.randn(5, 3, *shape, dtype=dtype)
    x = torch.rand(3, *shape, dtype=dtype).round()
    x[0] = torch.rand(shape, dtype=dtype)
    before, after = recorded(log_prob(len(shape)), logits, x)
    exact = before(logits.double(), x.double())
    found = after(logits, x)
    assert found.shape == (5, 3)
    assert found.dtype == dtype
    # What rounding a sum of this size costs in any case, and the factors.
    eps = torch.finfo(dtype).eps
    assert ((found - exact).abs() <= math.prod(shape) * eps + 20 * eps * exact.abs()).all()
    logarithms = operations(after, aten.log.default)
    if SHAPES[shape] is None:
        assert not logarithms
        assert torch.equal(found, before(logits, x))
    else:
        assert len(logarithms) == 1
        assert not operations(after, aten.binary_cross_entropy_with_logits.default)
        (product,) = operations(after, aten.prod.dim_int)
        assert product.args[0].args[1] == [5, 3, math.prod(shape) // SHAPES[shape], SHAPES[shape]]


@pytest.mark.parametrize("logit", [1e4, -1e4, 3e38, -3e38, 0.0, 100.0, -100.0])
def test_extreme_logits(logit):
    logits, x = torch.full((2, 64), logit), torch.stack([torch.zeros(64), torch.ones(64)])
    before, after = recorded(log_prob(1), logits, x)
    torch.testing.assert_close(after(logits, x), before(logits, x), rtol=1e-6, atol=1e-5)


def test_what_is_not_finite_stays_so():
    logits, x = torch.randn(3, 64), torch.ones(3, 64)
    logits[1, 5], logits[2, 7] = math.nan, -math.inf
    before, after = recorded(log_prob(1), logits, x)
    assert torch.equal(after(logits, x).isfinite(), before(logits, x).isfinite())
    assert after(logits, x)[2] == -math.inf


def test_logits_that_are_no_block_of_memory():
    logits, x = torch.randn(3, 8, 4, 8).transpose(1, 3), torch.rand(8, 4, 8).round()
    before, after = recorded(log_prob(3), logits, x)
    torch.testing.assert_close(after(logits, x), before(logits, x), rtol=1e-5, atol=1e-4)


def with_weights(logits, x):
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, torch.full((64,), 2.0), reduction="none")
    return -each.view(3, -1).sum(-1)


def of_which_more_is_used(logits, x):
    each = dist.Bernoulli(logits=logits).log_prob(x)
    return each.view(3, -1).sum(-1) + each[:, 0]


def summed_over_rows(logits, x):
    return dist.Bernoulli(logits=logits).log_prob(x).view(3, -1).sum(0)


@pytest.mark.parametrize("function", [with_weights, of_which_more_is_used, summed_over_rows])
def test_anything_else_is_left_alone(function):
    logits, x = torch.randn(3, 64), torch.rand(3, 64).round()
    before, after = recorded(function, logits, x)
    assert before.code == after.code
    assert torch.equal(after(logits, x), before(logits, x))


def test_a_bias_comes_after_its_product():
    h, weight, bias = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)
    before, after = recorded(lambda h, w, b: torch.nn.functional.linear(h, w, b).relu(), h, weight, bias)
    assert operations(before, aten.addmm.default)
    assert not operations(after, aten.addmm.default)
    torch.testing.assert_close(after(h, weight, bias), before(h, weight, bias))


@pytest.mark.parametrize("options", [{"beta": 0.5}, {"alpha": 2.0}])
def test_a_scaled_product_or_a_whole_matrix_is_left_alone(options):
    a, b = torch.randn(5, 4), torch.randn(4, 3)
    for bias, scales in ((torch.randn(3), options), (torch.randn(5, 3), {})):
        before, after = recorded(functools.partial(torch.addmm, **scales), bias, a, b)
        assert before.code == after.code


def test_draws_stay_those_of_the_program():
    """Inductor takes bernoulli(p) apart, and not what is left here; the numbers of a seed are what they were."""
    p = torch.rand(50, 20)
    with torch.no_grad():
        graph = make_fx(lambda p: torch.bernoulli(p).sum(-1))(p)
    keep_draws(graph)
    assert not operations(graph, aten.bernoulli.default)
    assert len(operations(graph, aten.bernoulli_.Tensor)) == 1
    before = torch.get_rng_state()
    found = graph(p)
    torch.set_rng_state(before)
    assert torch.equal(found, torch.bernoulli(p).sum(-1))

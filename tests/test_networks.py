"""Bodies take every image size and leading dimension; mistakes are found when a part is made, not in step 7,000."""

import functools
import math
import warnings

import pyro
import pytest
import torch
from torch import nn

from ppl_vae.errors import ConfigError, LabelError, PartError, ShapeError
from ppl_vae.networks import MLP, Conv, Network, OneHot, join

IMAGES = [(1, 8, 8), (1, 28, 20), (1, 28, 28), (3, 32, 32), (1, 7, 5), (2, 1, 1), (1, 1, 9), (9, 6), (2, 3, 5, 4)]
SMALL = functools.partial(Conv, channels=(2, 3))
BODIES = [pytest.param(None, id="MLP"), pytest.param(SMALL, id="Conv")]


@pytest.mark.parametrize("network", BODIES)
@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("context", [0, 4])
def test_bodies_go_down_and_up_for_every_size(image, context, network):
    c = torch.zeros(5, context) if context else None
    down = Network(image, (6,), context, hidden=(8,), network=network)
    up = Network((3,), image, context, hidden=(8,), network=network)
    assert down(torch.randn(5, *image), c).shape == (5, 6)
    assert up(torch.randn(5, 3), c).shape == (5, *image)


@pytest.mark.parametrize("network", BODIES)
def test_any_leading_dimensions_give_what_each_row_gives(network):
    body = Network((1, 5, 4), (6,), 3, hidden=(8,), network=network).double()
    x, c = torch.randn(2, 4, 3, 1, 5, 4).double(), torch.randn(3, 3).double()
    out = body(x, c)
    assert out.shape == (2, 4, 3, 6)
    for i, j, k in [(0, 0, 0), (1, 3, 2), (0, 2, 1)]:
        torch.testing.assert_close(out[i, j, k], body(x[i, j, k], c[k]))
    assert body(x[0, 0, 0], c[0]).shape == (6,)
    assert body(x[:0, 0, 0], c[:1]).shape == (0, 6)


@pytest.mark.parametrize("network", BODIES)
def test_every_pixel_and_every_context_feature_matters(network):
    body = Network((1, 6, 6), (4,), 3, hidden=(16,), network=network)
    x, c = torch.randn(64, 1, 6, 6, requires_grad=True), torch.randn(64, 3, requires_grad=True)
    body(x, c).square().sum().backward()
    # Any one row may meet dead rectifiers only; 64 do not.
    assert (x.grad != 0).any(0).all()
    assert (c.grad != 0).any(0).all()


def test_a_convolution_sees_the_image_the_right_way_up():
    # Only the first row of a 2-row image is inked; moving it must move what a one-pixel convolution finds.
    conv = Conv((1, 4, 2), (8,), channels=(1,), hidden=())
    with torch.no_grad():
        conv.convolutions[0].weight.zero_()
        conv.convolutions[0].weight[0, 0, 1, 1] = 1
        conv.convolutions[0].bias.zero_()
    x = torch.arange(8.0).reshape(1, 1, 4, 2)
    found = conv.convolutions(x)
    assert found.flatten().tolist() == [0.0, 4.0]


def test_join_broadcasts_leading_dimensions_both_ways():
    a, c = torch.randn(5, 3, 2), torch.randn(3, 4)
    out = join(a, c)
    assert out.shape == (5, 3, 6)
    assert torch.equal(out[..., :2], a)
    assert torch.equal(out[2, :, 2:], c)
    assert join(torch.zeros(2), torch.zeros(7, 1, 4)).shape == (7, 1, 6)
    with pytest.raises(RuntimeError, match=r"[Ss]hape"):
        join(torch.zeros(5, 2), torch.zeros(3, 4))


def test_a_network_of_the_context_alone():
    table = Network((), (4,), context=3, hidden=())
    assert [tuple(p.shape) for p in table.parameters()] == [(4, 3), (4,)]
    assert table(None, torch.eye(3)).shape == (3, 4)


# Found at construction


@pytest.mark.parametrize(
    ("network", "expected", "got"),
    [
        (nn.Linear(7, 5), r"\(N, 6\)", r"\(2, 5\)"),
        (nn.Sequential(nn.Linear(7, 6), nn.Flatten(0)), r"\(N, 6\)", r"\(12,\)"),
        (nn.Linear(8, 6), r"\(N, 7\)", "8x6"),
        (nn.BatchNorm2d(7), r"\(N, 7\)", "4D input"),
        (nn.Bilinear(7, 7, 6), r"\(N, 7\)", "input2"),
        (nn.LSTM(7, 6), r"\(N, 6\)", "tuple"),
    ],
    ids=["out", "flattened", "in", "raises ValueError", "two inputs", "returns a tuple"],
)
def test_a_body_that_does_not_fit_is_refused_with_expected_and_got(network, expected, got):
    with pytest.raises(ShapeError, match=rf"(?s)expected.*{expected}.*{got}"):
        Network((4,), (6,), 3, network=network)


@pytest.mark.parametrize("wrong", ["MLP", 3, (8,)])
def test_a_body_that_is_neither_class_nor_module_is_refused(wrong):
    with pytest.raises(PartError, match="expected None, a class or a module"):
        Network((4,), (6,), network=wrong)


@pytest.mark.parametrize("hidden", [(0,), (8, -1), (2.5,), ("8",), (True,)])
def test_hidden_widths_are_positive_whole_numbers(hidden):
    with pytest.raises(ConfigError, match="hidden"):
        MLP((4,), (6,), hidden=hidden)


@pytest.mark.parametrize("context", [-1, 1.5, "3", True])
def test_the_context_is_a_whole_number(context):
    with pytest.raises(ConfigError, match="context"):
        Network((4,), (6,), context)


def test_conv_between_two_vectors_says_the_way_out():
    with pytest.raises(ShapeError, match=r"\(64,\) -> \(6,\).*MLP"):
        Network((64,), (6,), network=Conv)


class Counting(nn.Module):
    """Batch normalisation, dropout, and a record of how it was run."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.layers[1].eval()
        self.ran = []

    def forward(self, joined):
        self.ran.append((self.training, torch.is_grad_enabled()))
        return self.layers(joined)


def test_the_dry_run_leaves_no_trace():
    module = Counting()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    rng = torch.get_rng_state()
    Network((4,), (6,), network=module)
    assert module.ran == [(False, False)]
    assert torch.equal(torch.get_rng_state(), rng)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
    # Each module goes back to its own mode, also the one that was frozen on purpose.
    assert module.training
    assert module.layers[0].training
    assert not module.layers[1].training


def test_a_failed_dry_run_restores_the_modes_too():
    module = nn.Sequential(nn.Dropout(), nn.Linear(9, 9))
    with pytest.raises(ShapeError):
        Network((4,), (6,), network=module)
    assert module.training
    assert module[0].training


def test_users_own_modules_and_functions_that_make_them():
    module = nn.Linear(7, 6)
    assert Network((4,), (6,), 3, network=module).body is module
    seen = []

    def make(in_shape, out_shape, context, hidden):
        seen.append((in_shape, out_shape, context, hidden))
        return nn.Linear(7, 6)

    Network([4], [6], 3, [5], network=make)
    assert seen == [((4,), (6,), 3, (5,))]


def test_a_double_body_is_run_in_double():
    assert Network((4,), (6,), network=nn.Linear(4, 6).double()).body.weight.dtype == torch.float64


def test_users_convolutions_get_one_batch_dimension():
    body = nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3), nn.Flatten())
    assert Network((1, 4, 4), (8,), network=body)(torch.zeros(5, 3, 1, 4, 4)).shape == (5, 3, 8)


def test_inputs_of_another_shape_are_refused():
    network = Network((1, 4, 4), (6,), context=3)
    for x in (torch.zeros(5, 16), torch.zeros(5, 4, 4), torch.zeros(4)):
        with pytest.raises(ShapeError, match=r"expected \(1, 4, 4\).*got"):
            network(x, torch.zeros(5, 3))
    for c in (None, torch.zeros(5, 4)):
        with pytest.raises(ShapeError, match=r"\(\*, 3\)"):
            network(torch.zeros(5, 1, 4, 4), c)
    with pytest.raises(ShapeError, match="Unconditional"):
        Network((4,), (6,))(torch.zeros(5, 4), torch.zeros(5, 3))


def test_parameter_counts_are_those_of_the_layers():
    assert sum(p.numel() for p in MLP((1, 8, 8), (5,), 3, (7,)).parameters()) == (67 + 1) * 7 + (7 + 1) * 5
    conv = Conv((1, 8, 8), (5,), 3, (7,), channels=(2, 4))
    expected = (9 + 1) * 2 + (2 * 9 + 1) * 4 + (4 * 2 * 2 + 3 + 1) * 7 + (7 + 1) * 5
    assert sum(p.numel() for p in conv.parameters()) == expected


# OneHot


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_one_hot_is_a_row_of_the_identity(dtype):
    c = OneHot(3)(torch.tensor([[0, 2, 1], [1, 1, 0]], dtype=dtype))
    assert torch.equal(c, torch.eye(3)[torch.tensor([[0, 2, 1], [1, 1, 0]])])
    assert OneHot(3)(torch.tensor(2, dtype=dtype)).tolist() == [0, 0, 1]


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
    one_hot = OneHot(3)
    with pytest.raises(LabelError, match=r"expected .*got"):
        one_hot.check(y)
    with pytest.raises(LabelError, match=r"expected .*got"):
        one_hot(y)


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


def test_what_was_seen_is_saved_with_the_model():
    one_hot, other = OneHot(3), OneHot(3)
    one_hot.observe(torch.tensor([1]))
    other.load_state_dict(one_hot.state_dict())
    with pytest.warns(UserWarning, match="label 0"):
        other(torch.tensor(0))


def test_label_checks_follow_pyros_validation():
    # The fast path checks the whole data set once and then switches this off, which must not change a valid result.
    with pyro.validation_enabled(False):
        assert torch.equal(OneHot(3)(torch.tensor([1, 2])), torch.eye(3)[[1, 2]])

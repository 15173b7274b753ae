"""Bodies take every image size and leading dimension; mistakes are found when a part is made, not in step 7,000."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.flop_counter import FlopCounterMode

import ppl_vae as pv
from ppl_vae import presets
from ppl_vae.errors import ConfigError, DataError, PartError, ShapeError
from ppl_vae.networks import MLP, Conv, FiLM, GatedMLP, Modulation, Network, ResNet, join
from ppl_vae.networks.residual import Block

IMAGES = [(1, 8, 8), (1, 28, 20), (1, 28, 28), (3, 32, 32), (1, 7, 5), (2, 1, 1), (1, 1, 9), (9, 6), (2, 3, 5, 4)]
SMALL = functools.partial(Conv, channels=(2, 3))
RESIDUAL = functools.partial(ResNet, channels=(2, 3), blocks=1)
FILMED = functools.partial(RESIDUAL, film=True)
BODIES = [
    pytest.param(None, id="MLP"),
    pytest.param(GatedMLP, id="GatedMLP"),
    pytest.param(SMALL, id="Conv"),
    pytest.param(RESIDUAL, id="ResNet"),
]
# These are nothing without a context.
MODULATED = [pytest.param(FiLM, id="FiLM"), pytest.param(FILMED, id="ResNet FiLM")]


@pytest.mark.parametrize("network", BODIES)
@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("context", [0, 4])
def test_bodies_go_down_and_up_for_every_size(image, context, network):
    c = torch.zeros(5, context) if context else None
    down = Network(image, (6,), context, hidden=(8,), network=network)
    up = Network((3,), image, context, hidden=(8,), network=network)
    assert down(torch.randn(5, *image), c).shape == (5, 6)
    assert up(torch.randn(5, 3), c).shape == (5, *image)


@pytest.mark.parametrize("network", MODULATED)
@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_modulated_bodies_go_down_and_up_for_every_size(image, network):
    down = Network(image, (6,), 4, hidden=(8,), network=network)
    up = Network((3,), image, 4, hidden=(8,), network=network)
    assert down(torch.randn(5, *image), torch.zeros(5, 4)).shape == (5, 6)
    assert up(torch.randn(5, 3), torch.zeros(5, 4)).shape == (5, *image)


@pytest.mark.parametrize("network", [*BODIES, *MODULATED])
def test_any_leading_dimensions_give_what_each_row_gives(network):
    body = Network((1, 5, 4), (6,), 3, hidden=(8,), network=network).double()
    x, c = torch.randn(2, 4, 3, 1, 5, 4).double(), torch.randn(3, 3).double()
    out = body(x, c)
    assert out.shape == (2, 4, 3, 6)
    for i, j, k in [(0, 0, 0), (1, 3, 2), (0, 2, 1)]:
        torch.testing.assert_close(out[i, j, k], body(x[i, j, k], c[k]))
    assert body(x[0, 0, 0], c[0]).shape == (6,)
    assert body(x[:0, 0, 0], c[:1]).shape == (0, 6)


@pytest.mark.parametrize("network", [*BODIES, *MODULATED])
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


class Otherwise(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()


@pytest.mark.parametrize("wrong", [Otherwise, nn.Linear, functools.partial(MLP, width=3)])
def test_a_class_that_is_called_otherwise_is_told_how(wrong):
    with pytest.raises(PartError, match=r"called with \(in_shape, out_shape, context, hidden\), got (Oth|Lin|part)"):
        Network((4,), (6,), network=wrong)


def test_an_error_of_a_bodys_own_is_not_taken_for_its_signature():
    with pytest.raises(PartError, match=r"^activation: "):
        Network((4,), (6,), network=functools.partial(MLP, activation=3))


def test_a_module_that_starts_with_a_convolution():
    body = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 6))
    assert Network((1, 8, 8), (6,), network=body)(torch.zeros(5, 3, 1, 8, 8)).shape == (5, 3, 6)


def test_one_hidden_layer_needs_no_list():
    assert [p.shape for p in Network((4,), (6,), hidden=8).parameters()] == [
        p.shape for p in Network((4,), (6,), hidden=(8,)).parameters()
    ]
    with pytest.raises(ConfigError, match="hidden"):
        Network((4,), (6,), hidden=True)


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


# The bodies by their formulas


def test_a_gated_layer_is_one_product_times_the_sigmoid_of_another():
    body, x = GatedMLP((4,), (2,), 3, hidden=(5, 6)).double(), torch.randn(7, 7, dtype=torch.float64)
    h = x
    for layer, width in [(body[0], 5), (body[2], 6)]:
        w, v, b, c = layer.weight[:width], layer.weight[width:], layer.bias[:width], layer.bias[width:]
        h = (h @ w.T + b) * torch.sigmoid(h @ v.T + c)
    torch.testing.assert_close(body(x), h @ body[4].weight.T + body[4].bias)
    assert [layer.out_features for layer in body if isinstance(layer, nn.Linear)] == [10, 12, 2]


def test_film_scales_and_shifts_every_hidden_layer():
    body = FiLM((4,), (2,), 3, hidden=(5, 6), activation="tanh").double()
    x, c = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    h = x
    for layer, modulation, width in zip(body.layers, body.modulations, (5, 6), strict=True):
        numbers = c @ modulation.linear.weight.T + modulation.linear.bias
        gamma, beta = 1 + numbers[:, :width], numbers[:, width:]
        h = torch.tanh(gamma * (h @ layer.weight.T + layer.bias) + beta)
    torch.testing.assert_close(body(torch.cat([x, c], -1)), h @ body.last.weight.T + body.last.bias)


def test_modulated_maps_have_one_scale_and_one_shift_a_channel():
    modulation, h, c = Modulation(3, 2, dims=2), torch.randn(5, 2, 4, 6), torch.randn(5, 3)
    numbers = modulation.linear(c)
    out = modulation(h, c)
    for n, k in [(0, 0), (3, 1), (4, 0)]:
        torch.testing.assert_close(out[n, k], (1 + numbers[n, k]) * h[n, k] + numbers[n, 2 + k])


def test_a_residual_block_adds_two_convolutions_to_its_input():
    block, h = Block(3, None, "relu"), torch.randn(5, 3, 4, 6)
    torch.testing.assert_close(block(h) - h, block.second(block.first(h.relu()).relu()))
    with torch.no_grad():
        block.second.weight.zero_()
        block.second.bias.zero_()
    # With nothing to add it is the identity, negative numbers included.
    assert torch.equal(block(h), h)


def test_a_resnet_without_what_its_blocks_add_is_the_convolutional_body():
    for shapes in [((1, 7, 6), (5,)), ((4,), (1, 7, 6))]:
        resnet, conv = ResNet(*shapes, 3, (8,), (2, 3)), Conv(*shapes, 3, (8,), (2, 3))
        blocks = [layer for layer in resnet.convolutions if isinstance(layer, Block)]
        assert len(blocks) == 4
        with torch.no_grad():
            for block in blocks:
                block.second.weight.zero_()
                block.second.bias.zero_()
            rest = [p for layer in resnet.convolutions if not isinstance(layer, Block) for p in layer.parameters()]
            for p, q in zip([*resnet.dense.parameters(), *rest], conv.parameters(), strict=True):
                q.copy_(p)
        joined = torch.randn(5, 3 + math.prod(shapes[0]))
        assert torch.equal(resnet(joined), conv(joined))


def test_film_takes_the_place_of_the_concatenation():
    resnet = ResNet((1, 8, 8), (5,), 3, (7,), (2, 4), blocks=1, film=True)
    assert resnet.dense[0].in_features == 4 * 2 * 2
    assert [m.linear.in_features for m in resnet.modules() if isinstance(m, Modulation)] == [3, 3]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("relu", torch.relu),
        ("tanh", torch.tanh),
        ("softplus", softplus),
        ("elu", nn.functional.elu),
        ("silu", lambda x: x * torch.sigmoid(x)),
        ("gelu", lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
    ],
)
def test_an_activation_by_its_name(name, function):
    x = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(MLP((4,), (2,), activation=name)[1](x), function(x))
    for body in (
        FiLM((4,), (2,), 3, activation=name),
        Conv((4, 4), (2,), activation=name),
        ResNet((4,), (4, 4), activation=name),
    ):
        found = {
            type(m) for m in body.modules() if type(m) in {nn.ReLU, nn.Tanh, nn.Softplus, nn.ELU, nn.SiLU, nn.GELU}
        }
        assert found == {type(MLP((4,), (2,), activation=name)[1])}


def test_an_activation_of_ones_own():
    for activation in (nn.Hardtanh, functools.partial(nn.LeakyReLU, 0.3), lambda: nn.PReLU()):
        assert isinstance(MLP((4,), (2,), activation=activation)[1], type(activation()))
    # Each layer gets one of its own, parameters and all.
    mlp = MLP((4,), (2,), hidden=(3, 3), activation=nn.PReLU)
    assert mlp[1] is not mlp[3]


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), torch.relu, 3, None, lambda: torch.relu], ids=lambda a: type(a).__name__
)
def test_an_activation_that_makes_no_module_is_refused(activation):
    with pytest.raises(PartError, match=r"activation: expected 'relu'.*nn.Tanh, got"):
        MLP((4,), (2,), activation=activation)


def test_a_misspelt_activation_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'softplus'"):
        MLP((4,), (2,), activation="sofplus")


@pytest.mark.parametrize(
    "network",
    [
        {"name": "MLP", "activation": "tanh"},
        {"name": "GatedMLP"},
        {"name": "FiLM", "activation": "silu"},
        {"name": "ResNet", "channels": [2, 3], "blocks": 1, "film": True},
        "FiLM",
    ],
    ids=str,
)
def test_bodies_by_name_come_back(network):
    parts = {
        "likelihood": {"name": "Bernoulli", "network": network},
        "encoder": {"name": "Gaussian", "network": network},
    }
    vae = pv.cvae((1, 6, 5), 2, 3, hidden=(8,), **parts)
    config = presets.to_dict(vae)
    assert config["encoder"]["network"] == config["likelihood"]["network"] == network
    again = presets.build(config)
    assert str(again) == str(vae)
    again.load_state_dict(vae.state_dict())
    assert torch.equal(again.reconstruct(torch.ones(2, 1, 6, 5), 1), vae.reconstruct(torch.ones(2, 1, 6, 5), 1))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: FiLM((4,), (2,)), ConfigError, "context=0.*condition"),
        (lambda: FiLM((4,), (2,), 3, hidden=()), ConfigError, r"hidden=\(\)"),
        (lambda: FiLM((), (2,), 3), ShapeError, "beside the context.*MLP"),
        (lambda: ResNet((1, 8, 8), (2,), film=True), ConfigError, "context=0.*condition"),
        (lambda: ResNet((64,), (2,)), ShapeError, r"ResNet: .*\(64,\) -> \(2,\).*MLP"),
        (lambda: ResNet((1, 8, 8), (2,), blocks=0), ConfigError, "blocks"),
        (lambda: ResNet((1, 8, 8), (2,), channels=()), ConfigError, "levels"),
        (lambda: ResNet((1, 8, 8), (2,), channels=(0,)), ConfigError, r"channels\[0\]"),
        (lambda: GatedMLP((4,), (2,), hidden=(0,)), ConfigError, r"hidden\[0\]"),
    ],
)
def test_impossible_bodies_are_refused_with_the_way_out(make, error, match):
    with pytest.raises(error, match=match):
        make()


# Rows that are shared are not multiplied twice


class Plain(nn.Module):
    """A body of a user's own, which takes what is joined and one batch dimension."""

    def __init__(self, in_shape, out_shape, context, hidden):
        super().__init__()
        self.layer = nn.Bilinear(math.prod(in_shape) + context, 2, math.prod(out_shape))

    def forward(self, joined):
        n, _ = joined.shape
        return self.layer(joined, joined.new_ones(n, 2))


APART = {
    "MLP": ((1, 4, 3), (5,), None),
    "MLP without hidden layers": ((1, 4, 3), (5,), lambda i, o, c, hidden: MLP(i, o, c, ())),
    "GatedMLP": ((1, 4, 3), (5,), GatedMLP),
    "FiLM": ((1, 4, 3), (5,), functools.partial(FiLM, activation="tanh")),
    "Conv down": ((1, 4, 3), (5,), SMALL),
    "Conv up": ((5,), (1, 4, 3), SMALL),
    "ResNet down": ((1, 4, 3), (5,), RESIDUAL),
    "ResNet up": ((5,), (1, 4, 3), RESIDUAL),
    "ResNet FiLM down": ((1, 4, 3), (5,), FILMED),
    "ResNet FiLM up": ((5,), (1, 4, 3), FILMED),
    "a user's": ((1, 4, 3), (5,), Plain),
    "a user's linear layer": ((5,), (1, 4, 3), nn.Linear(8, 12)),
}
# Importance samples, pseudo-inputs, neither has all rows, one for all, one of each.
BATCHES = [((7, 4), (4,)), ((7,), (4, 1)), ((7, 1), (4,)), ((4,), ()), ((), (4,)), ((1, 4), (4,)), ((7, 4), (7, 4))]


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_apart_is_what_the_concatenation_gives_and_so_is_its_gradient(name, batches):
    in_shape, out_shape, body = APART[name]
    network = Network(in_shape, out_shape, 3, (8, 6), copy.deepcopy(body)).double()
    a = torch.randn(*batches[0], *in_shape, dtype=torch.float64, requires_grad=True)
    c = torch.randn(*batches[1], 3, dtype=torch.float64, requires_grad=True)
    batch = torch.broadcast_shapes(*batches)
    joined = torch.cat([a.flatten(len(batches[0])).expand(*batch, -1), c.expand(*batch, -1)], -1)
    outs = network(a, c), network.body(joined.reshape(-1, joined.shape[-1])).reshape(*batch, *out_shape)
    assert outs[0].shape == outs[1].shape == (*batch, *out_shape)
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(outs[0])
    gradients = [torch.autograd.grad((weights * out).sum(), [a, c, *network.parameters()]) for out in outs]
    for apart, together in zip(*gradients, strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("place", "width"), [(0, 7), (1, 8)])
def test_layers_between_and_before_are_given_rows_in_either_way(place, width):
    network = Network((5,), (3,), 2, (8,))
    network.body.insert(place, nn.BatchNorm1d(width))
    # As many rows as features, which could be taken for them.
    z, c = torch.randn(4, width, 5), torch.randn(width, 2)
    for training in (True, False):
        network.train(training)
        torch.testing.assert_close(network(z, c), network(z, c.expand(4, -1, -1)))


def test_equal_batch_shapes_take_the_bodys_own_way_bit_for_bit(monkeypatch):
    x, z, c = torch.randn(7, 1, 4, 3), torch.randn(7, 4), torch.randn(7, 3)
    down, up = Network((1, 4, 3), (5,), 3, (8,), SMALL), Network((4,), (1, 4, 3), 3, (8,), SMALL)
    features = down.body.convolutions(x).flatten(1)
    assert torch.equal(down(x, c), down.body.dense(torch.cat([features, c], -1)))
    maps = up.body.dense(torch.cat([z, c], -1)).unflatten(1, up.body.small)
    assert torch.equal(up(z, c), up.body.convolutions(maps))
    monkeypatch.setattr(MLP, "apart", None)
    for body in (MLP, GatedMLP):
        network = Network((4,), (5,), 3, (8,), body)
        assert torch.equal(network(z, c), nn.Sequential.forward(network.body, torch.cat([z, c], -1)))


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("body", "of_x", "of_c", "hidden"),
    [(MLP, 64, 64, 64), (GatedMLP, 128, 128, 64), (FiLM, 64, 128, 64), (nn.Linear(794, 6), 6, 6, 0)],
    ids=["MLP", "GatedMLP", "FiLM", "Linear"],
)
def test_pseudo_inputs_are_multiplied_once_and_not_once_a_row(body, of_x, of_c, hidden):
    """K pseudo-inputs with B contexts: K + B products with the first layer, where the concatenation makes K B."""
    k, b, d = 50, 20, 784
    network = Network((1, 28, 28), (6,), 10, (64,), body)
    x, c = torch.zeros(k, 1, 28, 28), torch.zeros(b, 1, 10)
    assert flops(lambda: network(x, c)) == 2 * (k * d * of_x + b * 10 * of_c + b * k * hidden * 6)
    together = flops(lambda: network(x.expand(b, k, 1, 28, 28), c.expand(b, k, 10)))
    assert together >= 2 * b * k * d * of_x


def test_convolutions_look_at_a_pseudo_input_once():
    k, b = 50, 20
    network = Network((1, 28, 28), (6,), 10, (64,), Conv)
    x, c = torch.zeros(k, 1, 28, 28), torch.zeros(b, 1, 10)
    alone = flops(lambda: network.body.convolutions(x))
    dense = 2 * (k * 64 * 7 * 7 * 64 + b * 10 * 64 + b * k * 64 * 6)
    assert flops(lambda: network(x, c)) == alone + dense


def test_importance_samples_share_their_contexts():
    s, b, d, context = 30, 20, 5, 100
    network = Network((d,), (6,), context, (64,))
    z, c = torch.zeros(s, b, d), torch.zeros(b, context)
    assert flops(lambda: network(z, c)) == 2 * 64 * (s * b * d + b * context + s * b * 6)


def test_a_subclass_with_a_forward_of_its_own_is_not_passed_by():
    class Twice(MLP):
        def forward(self, joined):
            return 2 * super().forward(joined)

    network = Network((4,), (5,), 3, (8,), Twice)
    z, c = torch.randn(7, 2, 4), torch.randn(2, 3)
    torch.testing.assert_close(network(z, c), 2 * MLP.forward(network.body, join(z, c)))


@pytest.mark.parametrize("where", ["body", "first layer"])
def test_hooks_are_not_passed_by(where):
    network = Network((4,), (5,), 3, (8,))
    seen = []
    module = network.body if where == "body" else network.body[0]
    module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    network(torch.randn(7, 2, 4), torch.randn(2, 3))
    assert [shape[-1] for shape in seen] == [7]


def test_weights_that_are_computed_are():
    network = Network((4,), (5,), 3, (8,))
    nn.utils.parametrizations.weight_norm(network.body[0])
    with torch.no_grad():
        network.body[0].parametrizations.weight.original0.mul_(3)
    z, c = torch.randn(7, 2, 4), torch.randn(2, 3)
    torch.testing.assert_close(network(z, c), network.body(join(z, c)))


@pytest.mark.parametrize("body", [MLP, GatedMLP, FiLM, SMALL, RESIDUAL, FILMED])
def test_under_mixed_precision_apart_is_bfloat16_and_comes_out_single(body):
    network = Network((1, 4, 3), (5,), 3, (8,), body)
    x, c = torch.randn(7, 1, 4, 3), torch.randn(6, 1, 3)
    exact = network(x, c)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        mixed = network(x, c)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, exact)
    # Eight bits of mantissa, a few roundings deep, for outputs of size one.
    torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.05)


# Where training starts


def silence(layer):
    with torch.no_grad():
        layer.weight.zero_()


STARTS = {
    "MLP": ((4,), (2, 3), None, lambda body: body[-1]),
    "MLP without hidden layers": ((4,), (2, 3), nn.Linear(7, 6), lambda body: body),
    "GatedMLP": ((4,), (2, 3), GatedMLP, lambda body: body[-1]),
    "FiLM": ((4,), (2, 3), FiLM, lambda body: body.last),
    "Conv down": ((1, 6, 5), (2, 3), SMALL, lambda body: body.dense[-1]),
    "ResNet down": ((1, 6, 5), (2, 3), RESIDUAL, lambda body: body.dense[-1]),
    "a user's": ((4,), (2, 3), nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 6)), lambda body: body[-1]),
}


@pytest.mark.parametrize(("in_shape", "out_shape", "body", "last"), STARTS.values(), ids=STARTS)
def test_the_output_starts_at_given_values(in_shape, out_shape, body, last):
    network = Network(in_shape, out_shape, 3, (8,), copy.deepcopy(body))
    values, a, c = torch.randn(out_shape), torch.randn(5, *in_shape), torch.randn(5, 3)
    spread = network(a, c) - last(network.body).bias.reshape(out_shape)
    network.start_at(values)
    # The weights stay what they were.
    torch.testing.assert_close(network(a, c), spread + values)
    silence(last(network.body))
    torch.testing.assert_close(network(a, c), values.expand(5, *out_shape))


@pytest.mark.parametrize("body", [SMALL, RESIDUAL, FILMED])
@pytest.mark.parametrize("image", [(2, 6, 5), (6, 5)], ids=str)
def test_a_convolution_starts_at_the_mean_of_each_channel(body, image):
    network = Network((4,), image, 3, (8,), body)
    values = torch.randn(image)
    network.start_at(values)
    silence(network.body.convolutions[-1])
    expected = values.mean((-2, -1), keepdim=True).expand(5, *image)
    torch.testing.assert_close(network(torch.randn(5, 4), torch.randn(5, 3)), expected)


class Backwards(nn.Module):
    def forward(self, x):
        return x.flip(-1)


@pytest.mark.parametrize(
    "body",
    [
        nn.Linear(6, 6, bias=False),
        nn.Sequential(nn.Linear(6, 6), nn.Sigmoid()),
        nn.Sequential(nn.Linear(6, 6), Backwards()),
        nn.Sequential(nn.Linear(6, 12), nn.GLU()),
        nn.Identity(),
    ],
    ids=["no bias", "an activation behind it", "another order", "another size", "no layer"],
)
def test_a_body_that_ends_in_no_bias_is_refused_and_left_as_it_was(body):
    network = Network((6,), (2, 3), network=body)
    before = copy.deepcopy(body.state_dict())
    with pytest.raises(PartError, match=r"start_at: expected a body whose last layer adds a bias.*\(2, 3\)"):
        network.start_at(torch.arange(6.0).reshape(2, 3))
    for key, value in body.state_dict().items():
        assert torch.equal(value, before[key])


def test_values_to_start_at_fit_and_are_finite():
    network = Network((4,), (2, 3))
    with pytest.raises(ShapeError, match=r"expected values \(2, 3\), got \(6,\)"):
        network.start_at(torch.zeros(6))
    with pytest.raises(DataError, match="values to start at"):
        network.start_at(torch.full((2, 3), math.inf))
    # In the network's dtype, with the modes of its modules as they were.
    network = Network((4,), (6,), network=nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5))).double()
    network.start_at(torch.zeros(6))
    assert network.body.training
    assert network.body[0].bias.dtype == torch.float64

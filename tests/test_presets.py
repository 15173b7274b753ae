"""Names and dictionaries: what is written down comes back, and what has no name is refused with the nearest."""

import functools
import json
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from torch import nn

import ppl_vae as pv
from ppl_vae import OneHot, Unconditional, conditions, encoders, likelihoods, networks, presets, priors
from ppl_vae.distributions import zuko
from ppl_vae.errors import ConfigError, PartError
from ppl_vae.networks import MLP, Conv
from ppl_vae.parts import Part

IMAGE = (1, 6, 5)


def round_trip(vae):
    config = presets.to_dict(vae)
    assert json.loads(json.dumps(config)) == config
    return presets.build(json.loads(json.dumps(config)))


def test_what_a_part_was_made_with_is_not_changed_from_outside():
    class Mine(Part):
        def __init__(self, sizes, module, **kwargs):
            super().__init__()

    sizes, array, module, tensor = [8], np.zeros(2), nn.Linear(1, 1), torch.zeros(2)
    mine = Mine({"a": (1, sizes)}, [module], array=[array], tensor=(tensor,)).arguments
    flow = presets.make("prior", {"name": "MAF", "features": 2, "hidden_features": sizes}).arguments
    sizes.append(9)
    array += 1
    assert mine["sizes"] == {"a": (1, [8])}
    assert mine["array"][0].tolist() == [0, 0]
    # What may be large, or shared, is the caller's own.
    assert mine["module"][0] is module
    assert mine["tensor"][0] is tensor
    assert flow["hidden_features"] == [8]


# The three systems


def test_an_autoencoder_is_a_point_encoder_and_no_prior():
    vae = pv.ae(IMAGE, 3)
    assert vae.prior is None
    assert vae.condition is None
    assert isinstance(vae.encoder, encoders.Delta)
    x = torch.rand(4, *IMAGE)
    p = vae.decode(vae.embed(x))
    squared_error = (x - p.mean).square().flatten(1).sum(1)
    torch.testing.assert_close(-p.log_prob(x), squared_error + 15 * math.log(math.pi))


def test_a_vae_is_a_standard_prior():
    vae = pv.vae(IMAGE, 3)
    assert isinstance(vae.prior, priors.Standard)
    assert isinstance(vae.likelihood, likelihoods.Bernoulli)
    assert isinstance(vae.encoder, encoders.Gaussian)
    assert vae.condition is None
    assert vae.beta == 1


def test_a_cvae_conditions_prior_likelihood_and_encoder():
    vae = pv.cvae(IMAGE, 3, 4)
    assert isinstance(vae.condition, OneHot)
    assert vae.condition.classes == 4
    assert [vae.prior.context, vae.likelihood.context, vae.encoder.context] == [4, 4, 4]


def test_hidden_and_network_go_to_likelihood_and_encoder_alone():
    vae = pv.cvae(IMAGE, 3, 4, hidden=(7, 6), network=functools.partial(Conv, channels=(2,)))
    for part in (vae.likelihood, vae.encoder):
        assert isinstance(part.network.body, Conv)
        assert part.network.body.dense[0].out_features == 7
    assert isinstance(vae.prior.network.body, MLP)
    assert vae.prior.network.body[0].out_features == 400


def test_one_hidden_layer_needs_no_list_and_comes_back():
    vae = pv.vae(IMAGE, 3, hidden=7)
    for made in (vae, presets.build(presets.to_dict(vae))):
        for part in (made.likelihood, made.encoder):
            assert part.network.body[0].out_features == 7


def test_every_part_has_the_widths_that_an_iterator_gives():
    vae = pv.vae(IMAGE, 3, hidden=map(int, "75"))
    for made in (vae, presets.build(presets.to_dict(vae))):
        for part in (made.likelihood, made.encoder):
            assert [part.network.body[place].out_features for place in (0, 2)] == [7, 5]


def test_a_parts_own_option_wins_over_the_shared_one():
    vae = pv.vae(IMAGE, 3, hidden=(7,), encoder={"name": "Gaussian", "hidden": [5]})
    assert vae.encoder.network.body[0].out_features == 5
    assert vae.likelihood.network.body[0].out_features == 7


def test_the_range_of_the_data_standardises():
    vae = pv.vae(IMAGE, 3, likelihood="Gaussian", range=(-1.0, 3.0))
    for part in (vae.encoder, vae.likelihood):
        assert (part.shift.item(), part.scale.item()) == (-1.0, 4.0)
    # Constant data has no range, and must not divide by zero.
    assert pv.vae(IMAGE, 3, range=(2.0, 2.0)).encoder.scale == 1


def test_levels_are_how_many_values_a_pixel_has():
    assert pv.vae(IMAGE, 3, likelihood="Binomial", levels=17).likelihood.total_count == 16
    assert pv.vae(IMAGE, 3, likelihood={"name": "Binomial", "total_count": 3}, levels=17).likelihood.total_count == 3
    with pytest.raises(ConfigError, match="levels: expected two values or more"):
        pv.vae(IMAGE, 3, likelihood="Binomial", levels=1)


def test_a_part_of_your_own_is_used_as_it_is():
    mine = zuko.flows.NSF(3, transforms=1)
    assert pv.vae(IMAGE, 3, prior=mine).prior is mine


@pytest.mark.parametrize("prior", [{"name": "Gaussian", "context": 0}, {"name": "NSF", "context": 0, "transforms": 1}])
def test_a_context_of_zero_makes_a_part_that_ignores_y(prior):
    vae = pv.cvae(IMAGE, 3, 4, prior=prior)
    assert isinstance(vae.prior, Unconditional)
    first, second = (vae.prior_given(y) for y in (0, 1))
    z = torch.randn(5, 3)
    assert torch.equal(first.log_prob(z), second.log_prob(z))
    assert isinstance(round_trip(vae).prior, Unconditional)
    # Without a condition there is nothing to ignore.
    assert not isinstance(pv.vae(IMAGE, 3, prior=prior).prior, Unconditional)
    for kind in ("likelihood", "encoder"):
        other = pv.cvae(
            IMAGE, 3, 4, **{kind: {"name": "Bernoulli" if kind == "likelihood" else "Gaussian", "context": 0}}
        )
        assert isinstance(getattr(other, kind), Unconditional)
        assert other.reconstruct(torch.zeros(2, *IMAGE), 1).shape == (2, *IMAGE)


# Dictionaries


SYSTEMS = {
    "ae": lambda: pv.ae(IMAGE, 3),
    "vae": lambda: pv.vae(IMAGE, 3, hidden=(8,), beta=0.1),
    "cvae": lambda: pv.cvae(IMAGE, 3, 4, beta=4),
    "Conv": lambda: pv.cvae(IMAGE, 3, 4, network=Conv),
    "partial": lambda: pv.vae(IMAGE, 3, network=functools.partial(Conv, channels=(2, 3))),
    "MLP": lambda: pv.vae(IMAGE, 3, network=MLP),
    "network by name": lambda: pv.vae(
        IMAGE, 3, encoder={"name": "Gaussian", "network": {"name": "Conv", "channels": [2]}}
    ),
    "Fixed": lambda: pv.vae(IMAGE, 3, prior=priors.Fixed(dist.Laplace, 0.0, 1.0, features=3)),
    "Fixed tensors": lambda: pv.vae(IMAGE, 3, prior=priors.Fixed(dist.Normal, torch.zeros(3), scale=2, features=3)),
    "Fixed by name": lambda: pv.vae(IMAGE, 3, prior={"name": "Fixed", "distribution": "StudentT", "df": 4}),
    "Fixed arrays by name": lambda: pv.vae(
        IMAGE, 3, prior={"name": "Fixed", "distribution": "Normal", "loc": np.zeros(3), "scale": 1.0}
    ),
    "flow": lambda: pv.cvae(IMAGE, 3, 4, prior={"name": "NSF", "transforms": 1, "bins": 4, "hidden_features": [8]}),
    "Unconditional": lambda: pv.cvae(IMAGE, 3, 4, prior=Unconditional(priors.Gaussian(3))),
    "sigma": lambda: pv.vae(IMAGE, 3, likelihood={"name": "Gaussian", "sigma": 0.5}),
    "positional": lambda: pv.VAE(
        priors.Gaussian(3, 4, [5]),
        likelihoods.Gaussian(IMAGE, 3, 4, (5,), None, "pixel"),
        encoders.Gaussian(3, IMAGE, 4, (5,), MLP, 0.5, 2.0, (-3, 3)),
        OneHot(4),
    ),
}


@pytest.mark.parametrize("make", SYSTEMS.values(), ids=SYSTEMS)
def test_what_is_written_down_comes_back(make):
    vae = make()
    other = round_trip(vae)
    assert presets.to_dict(other) == presets.to_dict(vae)
    assert str(other) == str(vae)
    assert other.beta == vae.beta
    other.load_state_dict(vae.state_dict())
    x, y = torch.zeros(2, *IMAGE), None if vae.condition is None else 1
    assert torch.equal(other.reconstruct(x, y), vae.reconstruct(x, y))


@pytest.mark.parametrize(
    "clamp",
    [
        (-math.inf, 14.0),
        torch.tensor([-math.inf, 14.0]),
        np.array([-math.inf, 14.0]),
        (np.float32(-math.inf), torch.tensor(14.0)),
    ],
    ids=["floats", "tensor", "array", "scalars"],
)
def test_an_infinity_is_written_as_json_has_it(clamp, tmp_path):
    """Which has none: neither on its own nor inside of a tensor."""
    vae = pv.vae(IMAGE, 3, encoder={"name": "Gaussian", "clamp": clamp})
    assert json.loads(json.dumps(presets.to_dict(vae), allow_nan=False))["encoder"]["clamp"] == ["-Infinity", 14.0]
    pv.save(vae, tmp_path)
    assert pv.load(tmp_path).encoder.clamp == (-math.inf, 14.0)


@pytest.mark.parametrize("df", [math.inf, torch.tensor([math.inf, 2.0, 3.0])], ids=["float", "tensor"])
def test_an_infinite_constant_comes_back(df):
    for prior in (priors.Fixed(dist.StudentT, df, features=3), priors.Fixed(dist.StudentT, df=df, features=3)):
        vae = pv.vae(IMAGE, 3, prior=prior)
        again = presets.build(json.loads(json.dumps(presets.to_dict(vae), allow_nan=False)))
        assert torch.equal(again.prior().base_dist.df, vae.prior().base_dist.df)


def test_beta_is_written_as_people_write_it():
    assert presets.to_dict(pv.vae(IMAGE, 3, beta=0.1))["beta"] == 0.1


def test_network_partial_is_written_with_its_options():
    config = presets.to_dict(pv.vae(IMAGE, 3, network=functools.partial(Conv, channels=(2, 3))))
    assert config["encoder"]["network"] == {"name": "Conv", "channels": [2, 3]}
    body = presets.build(config).encoder.network.body
    assert [layer.out_channels for layer in body.convolutions if hasattr(layer, "out_channels")] == [2, 3]


@pytest.mark.parametrize(
    "prior",
    [
        lambda c: dist.Normal(0.0, 1.0).expand([3]).to_event(1),
        zuko.flows.NSF(3, transforms=1),
        nn.Identity(),
        Unconditional(zuko.flows.NSF(3, transforms=1)),
        priors.Gaussian(3, 4, network=nn.Linear(4, 6)),
        priors.Fixed(td.Laplace, 0.0, 1.0, features=3),
    ],
    ids=["lambda", "flow by hand", "module", "Unconditional flow", "network module", "torch class"],
)
def test_what_has_no_name_says_how_to_load_it(prior):
    with pytest.raises(PartError, match=r"load\(path, into=vae\)"):
        presets.to_dict(pv.vae(IMAGE, 3, prior=prior))


class Options(priors.Standard):
    def __init__(self, features, **options):
        super().__init__(features)


class Anything(priors.Gaussian):
    def __init__(self, *args, name=None, **kwargs):
        super().__init__(*args, **kwargs)


class Keywords(priors.Standard):
    def __init__(self, features, kwargs):
        super().__init__(features)


MADE = {
    "options of any name": (lambda: Options(3, width=2), {"name": "mine", "features": 3, "width": 2}),
    "any arguments": (lambda: Anything(3, hidden=[4]), {"name": "mine", "args": [3], "hidden": [4]}),
    "a dict named kwargs": (lambda: Keywords(3, {"a": 1}), {"name": "mine", "features": 3, "kwargs": {"a": 1}}),
}


@pytest.mark.parametrize("name", MADE)
def test_a_part_of_ones_own_is_made_again_from_what_it_was_given(name, monkeypatch):
    make, config = MADE[name]
    vae = pv.vae(IMAGE, 3, prior=make())
    monkeypatch.setitem(presets.PRIORS, "mine", type(vae.prior))
    assert presets.to_dict(vae)["prior"] == config
    assert round_trip(vae).prior.arguments == vae.prior.arguments


class Widths(priors.Standard):
    def __init__(self, features, *widths):
        super().__init__(features)


class Behind(priors.Standard):
    def __init__(self, features, *args):
        super().__init__(features)


class Placed(priors.Standard):
    def __init__(self, features, /):
        super().__init__(features)


class Called(priors.Standard):
    def __init__(self, features, name):
        super().__init__(features)


LOST = [
    (lambda: Widths(3, 4, 5), "widths"),
    (lambda: Behind(3, 4), "args"),
    (lambda: Options(3, args=[4]), "args"),
    (lambda: Placed(3), "features"),
    (lambda: Called(3, "a"), "name"),
    (lambda: Anything(3, name="a"), "name"),
]


@pytest.mark.parametrize(("make", "lost"), LOST)
def test_what_cannot_be_made_again_is_not_written(make, lost, monkeypatch):
    vae = pv.vae(IMAGE, 3, prior=make())
    monkeypatch.setitem(presets.PRIORS, "mine", type(vae.prior))
    with pytest.raises(PartError, match=rf"with {lost}: .*load\(path, into=vae\)"):
        presets.to_dict(vae)


def test_a_subclass_is_not_written_as_its_parent():
    class Mine(priors.Standard):
        pass

    with pytest.raises(PartError, match="Mine"):
        presets.to_dict(pv.vae(IMAGE, 3, prior=Mine(3)))


# Names and options that do not exist


@pytest.mark.parametrize(
    ("kind", "spec", "hint"),
    [
        ("prior", "Gausian", "Gaussian"),
        ("prior", "nsf", "NSF"),
        ("likelihood", "Bernouli", "Bernoulli"),
        ("encoder", "delta", "Delta"),
        ("prior", {"name": "Gaussian", "hiden": [8]}, "hidden"),
        ("likelihood", {"name": "Gaussian", "sigm": 1.0}, "sigma"),
        ("prior", {"name": "NSF", "transfroms": 3}, "transforms"),
        ("prior", {"name": "NSF", "hidden_feature": [8]}, "hidden_features"),
        # zuko would swallow these two and say nothing.
        ("prior", {"name": "GMM", "componets": 3}, "components"),
        ("prior", {"name": "CNF", "frequs": 3}, "freqs"),
        ("prior", {"name": "Fixed", "distribution": "Laplce"}, "Laplace"),
        ("encoder", {"name": "Gaussian", "network": "Cnov"}, "Conv"),
        ("encoder", {"name": "Gaussian", "network": {"name": "conv"}}, "Conv"),
    ],
)
def test_a_misspelt_name_or_option_names_the_nearest(kind, spec, hint):
    with pytest.raises(ConfigError, match=f"expected one of .*did you mean '{hint}'"):
        pv.vae(IMAGE, 3, **{kind: spec})


@pytest.mark.parametrize("name", ["MAF", "NSF", "NICE", "BPF", "GMM", "CNF"])
def test_the_options_of_zuko_are_all_known(name):
    # What zuko documents must pass: its own, its parents', and those of the networks inside.
    own = {
        "MAF": {"transforms": 1, "randperm": True, "passes": 2, "residual": True},
        "NSF": {"transforms": 1, "bins": 4},
        "NICE": {"transforms": 1, "randmask": True, "normalize": True},
        "BPF": {"transforms": 1, "degree": 4},
        "GMM": {"components": 3, "covariance_type": "diagonal", "tied": True, "epsilon": 1e-4},
        "CNF": {"freqs": 2, "exact": False, "atol": 1e-3},
    }[name]
    prior = pv.cvae(IMAGE, 3, 4, prior={"name": name, "hidden_features": [8], **own}).prior
    assert prior(torch.zeros(2, 4)).event_shape == (3,)


@pytest.mark.parametrize(
    "spec",
    [
        "os.system",
        "zuko.flows.NSF",
        "torch.nn.Linear",
        "builtins.eval",
        "__class__",
        {"name": "subprocess.Popen", "args": ["true"]},
        {"class_path": "os.system", "init_args": {"command": "true"}},
        {"name": "Fixed", "distribution": "os.system"},
        {"name": "Fixed", "distribution": "torch.distributions.Normal"},
        {"name": "Fixed", "distribution": "TorchDistributionMixin"},
        {"name": "Gaussian", "network": "os.system"},
        {"name": "Gaussian", "network": {"name": "torch.nn.Linear"}},
        {"name": ["Standard"]},
        {},
    ],
    ids=str,
)
def test_a_dictionary_names_what_is_in_a_table_and_nothing_else(spec):
    with pytest.raises(ConfigError, match="expected one of"):
        pv.cvae(IMAGE, 3, 4, prior=spec)
    config = presets.to_dict(pv.cvae(IMAGE, 3, 4))
    with pytest.raises(ConfigError, match="expected"):
        presets.build(config | {"prior": {"features": 3, **spec} if isinstance(spec, dict) else {"name": spec}})


@pytest.mark.parametrize(
    "spec", [{"name": "Unconditional"}, {"name": "Unconditional", "part": {"name": "NSFF"}}], ids=str
)
def test_a_broken_wrapper_is_a_typed_error(spec):
    with pytest.raises(ConfigError, match="expected"):
        presets.make("prior", spec)


@pytest.mark.parametrize(
    "options",
    [
        {"features": 0},
        {"features": -3},
        {"features": 2.5},
        {"hidden": (0,)},
        {"hidden": 2.5},
        {"beta": -1},
        {"prior": {"name": "Fixed", "distribution": "Laplace", "lc": 0.0}},
        {"prior": {"name": "NSF", "bins": "a"}},
        {"likelihood": {"name": "Gaussian", "sigma": "pixels"}},
        {"likelihood": {"name": "Gaussian", "sigma": 0.0}},
        {"likelihood": {"name": "Binomial", "total_count": 0}},
        {"encoder": {"name": "Gaussian", "scale": 0.0}},
        {"encoder": {"name": "Gaussian", "scale": math.inf}},
        {"encoder": {"name": "Delta", "shift": math.nan}},
        {"likelihood": {"name": "Gaussian", "shift": -math.inf}},
        {"likelihood": {"name": "Laplace", "scale": math.nan}},
        {"likelihood": {"name": "StudentT", "scale": "1"}},
        {"range": (0.0, math.inf)},
        {"range": (math.nan, 1.0)},
        {"x_shape": (0,)},
    ],
    ids=str,
)
def test_impossible_values_are_config_errors(options):
    arguments = {"x_shape": IMAGE, "features": 3} | options
    with pytest.raises(ConfigError):
        pv.vae(**arguments)


def test_complete_fills_what_parts_share_and_leaves_what_was_typed():
    shared = {"features": 16, "x_shape": (1, 8, 8), "context": 10, "total_count": 16}
    assert presets.complete("prior", "Standard", **shared) == {"name": "Standard", "features": 16}
    assert presets.complete("prior", {"name": "NSF", "features": 4}, **shared) == {
        "name": "NSF",
        "features": 4,
        "context": 10,
    }
    assert presets.complete("likelihood", "Binomial", **shared) == {"name": "Binomial", **shared}


def test_tables_name_classes_by_their_own_names():
    for table in (*presets.TABLES.values(), presets.NETWORKS):
        assert all(cls.__name__ == name for name, cls in table.items())
    assert {name for name in priors.__all__ if name != "Unconditional"} <= set(presets.PRIORS)
    assert {name for name in likelihoods.__all__ if name != "Unconditional"} <= set(presets.LIKELIHOODS)
    # A classifier is the encoder of y, and no part of a model's three.
    wrappers = {"Unconditional", "Masked"}
    assert set(encoders.__all__) - wrappers - {"Classifier"} <= set(presets.ENCODERS)
    assert set(conditions.__all__) == set(presets.CONDITIONS)
    assert all(getattr(networks, name) is body for name, body in presets.NETWORKS.items())

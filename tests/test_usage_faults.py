"""What a first hour brings: numbers of numpy's, swapped arguments, a column of labels: never a raw error of torch's."""

import copy
import functools
import pickle
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, ReweightedWakeSleep, Trace_ELBO
from torch import nn

import ppl_vae as pv
from ppl_vae.distributions import zuko
from ppl_vae.errors import CheckpointError, ConfigError, DataError, LabelError, PartError, PplVaeError, ShapeError

S = (1, 4, 4)
X = (torch.arange(192).reshape(12, *S) % 3 == 0).float()
Y = torch.arange(12) % 3
quiet = functools.partial(pv.fit, epochs=1, batch_size=6, progress=False, capture="off")


def cvae(**parts):
    return pv.cvae(S, 2, 3, hidden=(8,), **parts)


def classifier():
    return pv.encoders.Classifier(3, S, hidden=(8,))


class One(nn.Module):
    """A likelihood of one pixel, beside an x of sixteen."""

    def forward(self, z, c):
        return dist.Bernoulli(logits=z[..., :1]).to_event(1)


class Joined(nn.Module):
    """A likelihood that joins z and c as a first try does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2 + 3, 16)

    def forward(self, z, c):
        return dist.Bernoulli(logits=self.layer(torch.cat([z, c], -1)).unflatten(-1, S)).to_event(3)


class Flat(nn.Module):
    """An encoder whose convolution knows of one batch dimension."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer = nn.Conv2d(1, 2, 3), nn.Linear(8 + 3, 2)

    def forward(self, x, c):
        return dist.Normal(self.layer(torch.cat([self.conv(x).flatten(1), c], -1)), 1.0).to_event(1)


def joined(encoder=None):
    parts = cvae()
    likelihood = Joined() if encoder is None else parts.likelihood
    return pv.VAE(parts.prior, likelihood, encoder or parts.encoder, pv.OneHot(3))


WRONG = {
    "a mask in the place of y": (lambda: quiet(pv.vae(S, 2), (X, X == 0)), DataError, r"\(x, None, mask\)"),
    "an ae with a prior": (lambda: pv.ae(S, 2, prior="Gaussian"), ConfigError, "pv.vae"),
    "a cvae with a condition": (lambda: pv.cvae(S, 2, 3, condition=pv.OneHot(3)), ConfigError, "pv.vae"),
    "a range a column": (lambda: pv.vae((3,), 2, range=(X[0, 0, 0], X[1, 0, 0])), ConfigError, "standardise"),
    "a shift a column": (lambda: pv.encoders.Gaussian(2, (3,), shift=torch.ones(3)), ConfigError, "shift.*standardise"),
    "two losses": (lambda: quiet(cvae(), (X, Y), objective=ReweightedWakeSleep()), PartError, "pyro.infer.SVI"),
    "compiled twice": (lambda: quiet(cvae(), (X, Y), objective=JitTrace_ELBO()), PartError, r"Trace_ELBO\(\), which"),
    "a cat and a sample": (lambda: joined().sample(4, y=torch.arange(3)), ShapeError, r"\(4, 3, 2\).*join.*Network"),
    "a cat and weights": (lambda: joined().log_prob(X, Y), ShapeError, r"likelihood: .*\(1000, 12, 2\).*join"),
    "a cat and a label": (lambda: joined().decode(torch.zeros(4, 2), 1), ShapeError, r"\(4, 2\) and c \(3,\)"),
    "a conv and a label": (lambda: joined(Flat()).encode(X, 1), ShapeError, r"encoder: .* c \(3,\)"),
    "a shape that is a number": (lambda: pv.vae(784, 20), ConfigError, r"x_shape.*\(784,\)"),
    "a likelihood of a number": (lambda: pv.likelihoods.Bernoulli(784, 20), ConfigError, r"\(784,\)"),
    "an encoder of a number": (lambda: pv.encoders.Gaussian(20, 784), ConfigError, r"\(784,\)"),
    "a classifier of a number": (lambda: pv.encoders.Classifier(10, 784), ConfigError, r"\(784,\)"),
    "a condition of a number": (lambda: pv.conditions.Image(784, 20), ConfigError, r"y_shape.*\(784,\)"),
    "a shape of nothing": (lambda: pv.vae((), 2), ConfigError, r"x_shape: expected at least one dimension.*\(1,\)"),
    "a shape with a hole": (lambda: pv.vae((1, 0, 4), 2), ConfigError, r"x_shape\[1\].*≥ 1"),
    **{
        f"{name} the wrong way round": (lambda name=name: getattr(pv.encoders, name)(S, 2), ConfigError, "features")
        for name in ("Gaussian", "FullGaussian", "LowRankGaussian", "Mixture", "PowerSpherical", "Delta")
    },
    "a clamp upside down": (lambda: pv.encoders.Gaussian(2, S, clamp=(2, -6)), ConfigError, "low < high"),
    "no clamp": (lambda: pv.priors.Gaussian(2, clamp=None), ConfigError, r"clamp.*\(low, high\).*None"),
    "a clamp of a likelihood": (lambda: pv.likelihoods.Gaussian(S, 2, clamp=(1, 1)), ConfigError, "low < high"),
    "a flow that is made": (
        lambda: pv.encoders.Flow(2, S, 3, flow=zuko.flows.NSF(2, 64)),
        PartError,
        "class of zuko.flows.*pass the class",
    ),
    "Unconditional of a class": (lambda: pv.Unconditional(zuko.flows.NSF), PartError, "the class NSF itself"),
    "Unconditional of a part with context": (
        lambda: pv.Unconditional(pv.priors.Gaussian(2, 3)),
        PartError,
        "built with context=3: build it with context=0",
    ),
    "Unconditional of a flow with context": (
        lambda: quiet(cvae(prior=pv.Unconditional(zuko.flows.NSF(2, 3))), (X, Y)),
        ShapeError,
        "given no context: build what is inside without one",
    ),
    "a function that wants a context": (
        lambda: quiet(pv.vae(S, 2, prior=lambda c: dist.Laplace(c.new_zeros(2), 1.0).to_event(1)), X),
        ShapeError,
        r"failed without a context.*priors.Fixed",
    ),
    "angles": (lambda: quiet(cvae(prior=zuko.flows.NCSF(2, 3, transforms=1)), (X, Y)), PartError, "angles.*NSF"),
    "angles in log_prob": (
        lambda: pv.vae(S, 2, prior=pv.priors.Fixed(dist.VonMises, 0.0, 1.0, features=2)).log_prob(X, samples=3),
        PartError,
        r"\(−π, π\) alone",
    ),
    "a likelihood of another size in log_prob": (
        lambda: pv.VAE(pv.priors.Standard(2), One(), pv.encoders.Gaussian(2, S)).log_prob(X, samples=3),
        ShapeError,
        r"expected \(N, 1\)",
    ),
    "β that is called too late": (lambda: quiet(cvae(), (X, Y), beta=pv.objectives.warmup), ConfigError, "call it"),
    "β of nothing": (lambda: quiet(cvae(), (X, Y), beta=lambda epoch: None), ConfigError, "a number in epoch 1"),
    "labels that are a distribution": (
        lambda: pv.SemiSupervised(cvae(), labels=dist.Categorical(torch.ones(3)), classifier=classifier()),
        PartError,
        "labels.*returns a distribution",
    ),
    "labels that are numbers": (
        lambda: pv.SemiSupervised(cvae(), labels=torch.ones(3) / 3, classifier=classifier()),
        PartError,
        "labels.*something to call",
    ),
    "labels that return numbers": (
        lambda: quiet(pv.SemiSupervised(cvae(), classifier(), lambda c: torch.ones(3)), (X, Y)),
        PartError,
        "labels: expected a part to return a distribution",
    ),
    "a classifier without a context": (
        lambda: pv.SemiSupervised(cvae(), classifier=nn.Sequential(nn.Flatten(), nn.Linear(16, 3))),
        PartError,
        r"classifier\(x, c\)",
    ),
    "the name of a classifier": (lambda: pv.SemiSupervised(cvae(), classifier="Classifier"), PartError, "classifier"),
    "a classifier of numbers": (
        lambda: quiet(pv.SemiSupervised(cvae(), lambda x, c: x.flatten(1)[:, :3]), (X, Y)),
        PartError,
        "classifier: expected a part to return a distribution",
    ),
    "start from all of a data set": (
        lambda: pv.vae((1, 8, 8), 2).likelihood.start_from(pv.data.load("digits")),
        DataError,
        "data.test.x",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_says_the_way_out(name):
    make, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        make()


COLUMN = {
    "check": lambda vae, y: vae.check(X, y),
    "log_prob": lambda vae, y: vae.log_prob(X, y, samples=3),
    "log_likelihood": lambda vae, y: pv.evaluation.log_likelihood(vae, X, y, samples=3, progress=False),
    "evaluate": lambda vae, y: pv.evaluate(vae, X, y, samples=3),
    "diagnostics": lambda vae, y: pv.evaluation.diagnostics(vae, X, y, draws=1),
    "impute": lambda vae, y: vae.impute(X, y, X == 0),
    "elbo_terms": lambda vae, y: pv.objectives.elbo_terms(vae, X, y),
    "analytic_elbo": lambda vae, y: pv.objectives.analytic_elbo(vae, X, y),
    "fit": lambda vae, y: quiet(vae, (X, y)),
    "audit": lambda vae, y: pv.audit(vae, X, y, particles=2),
    "embed": lambda vae, y: vae.embed(X, y),
    "reconstruct": lambda vae, y: vae.reconstruct(X, y),
    "translate": lambda vae, y: vae.translate(X, y, to=1),
    "interpolate": lambda vae, y: vae.interpolate(X, X, y, to=1),
    "interpolate to": lambda vae, y: vae.interpolate(X, X, 1, to=y),
}


@pytest.mark.parametrize("embedded", [False, True], ids=["labels", "a module of one's own"])
@pytest.mark.parametrize("asked", COLUMN)
def test_a_column_of_labels_is_no_label_a_row(asked, embedded):
    """As it comes from a table, (N, 1): it would broadcast every row against every label."""
    condition = {"condition": nn.Embedding(3, 4), "context": 4} if embedded else {"condition": pv.OneHot(3)}
    vae = pv.vae(S, 2, hidden=(8,), prior="Gaussian", **condition)
    COLUMN[asked](vae, Y)
    with pytest.raises((ShapeError, LabelError), match=r"pass y.squeeze\(-1\)"):
        COLUMN[asked](vae, Y[:, None])


@pytest.mark.parametrize("asked", ["encode", "embed", "reconstruct"])
def test_images_that_are_not_flattened_are_no_fault_of_y(asked):
    with pytest.raises(ShapeError, match=r"\(64,\).*\(12, 1, 8, 8\)"):
        getattr(pv.cvae((64,), 2, 3, hidden=(8,)), asked)(torch.zeros(12, 1, 8, 8), Y)


def test_labels_of_several_batch_dimensions_go_with_a_function_for_a_likelihood():
    vae, rows = pv.cvae((16,), 2, 3, hidden=(8,)), X.reshape(12, 16)
    x, y = rows.reshape(3, 4, 16), Y.reshape(3, 4)
    for encoder in (vae.encoder, lambda x, c: vae.encoder(x, c)):
        shapeless = pv.VAE(vae.prior, lambda z, c: vae.likelihood(z, c), encoder, vae.condition)
        assert torch.equal(shapeless.reconstruct(x, y), vae.reconstruct(rows, Y).reshape(x.shape))
        with pytest.raises(ShapeError, match=r"pass y.squeeze\(-1\)"):
            shapeless.reconstruct(rows, Y[:, None])


OTHER_ROWS = {
    "encode": lambda vae, y: vae.encode(X, y),
    "decode": lambda vae, y: vae.decode(torch.zeros(4, 12, 2), y),
    "embed": lambda vae, y: vae.embed(X, y),
    "reconstruct": lambda vae, y: vae.reconstruct(X, y),
    "translate": lambda vae, y: vae.translate(X, y, to=1),
    "translate to": lambda vae, y: vae.translate(X, Y, to=y),
    "carry to": lambda vae, y: vae.translate(X, Y, to=y, carry=True),
    "interpolate": lambda vae, y: vae.interpolate(X, X, y, to=1),
    "interpolate to": lambda vae, y: vae.interpolate(X, X, 1, to=y),
}


@pytest.mark.parametrize("asked", OTHER_ROWS)
def test_labels_of_other_rows_are_a_label_error(asked):
    with pytest.raises(LabelError, match=r"expected one y a row of [xz], got 5 for (4 × )?12 rows"):
        OTHER_ROWS[asked](cvae(), Y[:5])


def test_numbers_of_numpys_are_numbers(tmp_path):
    y = Y.numpy()
    vae = pv.cvae(np.array(S), np.int64(2), y.max() + 1, hidden=(np.int32(8),), encoder={"name": "Flow"})
    options = {"lr": np.float32(1e-3), "beta": np.float64(0.5), "epochs": np.int64(1), "batch_size": np.int16(6)}
    history = pv.fit(vae, (X.numpy(), y), objective=pv.objectives.IWAE(np.int64(2)), progress=False, **options)
    assert history[-1]["beta"] == 0.5
    assert vae.sample(np.int64(3), y).shape == (3, 12, *S)
    pv.save(vae, tmp_path)
    torch.manual_seed(0)
    expected = vae.sample(2, 1)
    torch.manual_seed(0)
    assert torch.equal(pv.load(tmp_path).sample(2, 1), expected)


def test_an_array_is_what_a_likelihood_starts_from():
    """And a split, whose pixels are drawn; a Vamp's pseudo-inputs too."""
    vae = pv.vae(S, 2, hidden=(8,))
    vae.likelihood.start_from(X.numpy())
    bias = vae.likelihood.network.body[-1].bias
    torch.testing.assert_close(bias.sigmoid().detach(), X.mean(0).flatten().clamp(0.001, 0.999))
    prior = pv.priors.Vamp(vae.encoder, 4)
    prior.start_from(pv.data.Split(0.5 * X, binarize="dynamic"))
    assert set(prior.pseudo_inputs.unique().tolist()) <= {0.0, 1.0}


UNCHECKED = {
    "a sphere under a Gaussian": (lambda: cvae(prior=pv.priors.Sphere(2)), "outside the support"),
    "an unconditional flow": (lambda: cvae(prior=zuko.flows.NSF(2)), "Unconditional"),
}


@pytest.mark.parametrize("capture", ["off", "graph"])
@pytest.mark.parametrize("name", UNCHECKED)
def test_the_first_step_is_checked_whatever_is_switched_off(name, capture):
    """``pyro.enable_validation(False)`` is a common first line."""
    make, message = UNCHECKED[name]
    with pyro.validation_enabled(False):
        with pytest.raises(PplVaeError, match=message):
            pv.fit(make(), (X, Y), epochs=1, progress=False, capture=capture)
        with pytest.raises(PplVaeError, match=message):
            make().log_prob(X, Y, samples=3)
        assert not pyro.poutine.util.is_validation_enabled()


def test_a_name_of_ones_own_has_to_be_there_when_it_is_loaded(tmp_path, monkeypatch):
    class Mine(pv.priors.Standard):
        pass

    monkeypatch.setitem(pv.presets.PRIORS, "mine", Mine)
    pv.save(pv.vae(S, 2, prior="mine"), tmp_path)
    assert type(pv.load(tmp_path).prior) is Mine
    monkeypatch.delitem(pv.presets.PRIORS, "mine")
    with pytest.raises(CheckpointError, match=r"'mine'.*presets.*into=vae"):
        pv.load(tmp_path)


OBJECTIVES = ["FreeBits(0.1)", "Capacity(1.0)", "STL()", "IWAE(1)", "IWAE(3, vectorize_particles=False)", "DReG(2)"]


@pytest.mark.parametrize("written", OBJECTIVES)
def test_missing_labels_go_with_linear_bounds(written):
    model = pv.SemiSupervised(cvae(), classifier())
    objective = eval(f"pv.objectives.{written}")
    with pytest.raises(PartError, match=r"Trace_ELBO(\(\))? or Analytic"):
        quiet(model, (X, Y - 1), objective=objective)


class Graph(nn.Module):
    """An encoder of twelve rows at once, which no row can be given alone."""

    def __init__(self):
        super().__init__()
        self.features, self.net = 2, nn.Linear(16, 4)
        self.register_buffer("near", torch.eye(12))

    def forward(self, x, c):
        loc, scale = (self.near @ self.net(x.flatten(1))).chunk(2, -1)
        return dist.Normal(loc, scale.exp()).to_event(1)


def normal(net):
    return lambda x, c: dist.Normal(net(x), 1.0).to_event(1)


BATCHED = {
    "rows that see each other": Graph,
    "batch statistics": lambda: normal(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    ),
}


@pytest.mark.parametrize("name", BATCHED)
def test_what_goes_with_a_batch_alone_is_no_mistake(name):
    vae = pv.VAE(pv.priors.Standard(2), pv.likelihoods.Bernoulli(S, 2, hidden=(8,)), BATCHED[name]())
    pv.fit(vae, X, epochs=1, batch_size=12, progress=False, capture="off")
    assert vae.log_prob(X, samples=3).shape == (12,)


class Box(nn.Module):
    """An encoder of angles that neither torch nor we know for one."""

    def forward(self, x, c):
        inside = [dist.transforms.TanhTransform(), dist.transforms.AffineTransform(0.0, torch.pi)]
        return dist.TransformedDistribution(dist.Normal(x.flatten(1)[:, :2], 1.0), inside).to_event(1)


ANGLES = {
    "a box": Box(),
    "a mixture": lambda x, c: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(len(x), 2, 3)), dist.VonMises(torch.zeros(len(x), 2, 3), 1.0)
    ).to_event(1),
}


@pytest.mark.parametrize("name", ANGLES)
def test_angles_go_with_angles(name):
    prior = pv.priors.Fixed(dist.VonMises, 0.0, 1.0, features=2)
    vae = pv.VAE(prior, pv.likelihoods.Bernoulli(S, 2, hidden=(8,)), ANGLES[name])
    assert vae.log_prob(X, samples=3).isfinite().all()


def test_an_encoder_that_proposes_nothing_need_not_fit():
    wide = lambda x, c: dist.Normal(x.flatten(1)[:, :2], 5.0).to_event(1)  # noqa: E731
    prior = pv.priors.Fixed(dist.Uniform, -1.0, 1.0, features=2)
    vae = pv.VAE(prior, pv.likelihoods.Bernoulli(S, 2, hidden=(8,)), wide)
    found = pv.evaluation.log_likelihood(vae, X, samples=5, proposal="prior", progress=False)
    assert found.values.isfinite().all()
    with pytest.raises(PartError, match="outside the support"):
        pv.evaluation.log_likelihood(vae, X, samples=5, progress=False)


def test_parts_are_asked_once_whether_they_fit(monkeypatch):
    """Not in every batch of a loader; and again where one has been changed."""
    asked = []
    vae = cvae()
    monkeypatch.setattr(
        type(vae), "_row_context", lambda self, x, y: asked.append(1) or super(pv.VAE, self)._row_context(x, y)
    )
    for _ in range(3):
        vae.check(X, Y)
    assert len(asked) == 1
    vae.prior = pv.priors.Standard(2)
    vae.check(X, Y)
    assert len(asked) == 2


def test_names_that_mean_something_else():
    """A module with an ``out_features`` of its own, and one that takes no hooks."""

    class Own(One):
        out_features = (1, 16)

        def forward(self, z, c):
            return dist.Bernoulli(logits=z[..., :1].unsqueeze(-1).unsqueeze(-1).expand(*z.shape[:-1], *S)).to_event(3)

    vae = pv.VAE(pv.priors.Standard(2), Own(), pv.encoders.Gaussian(2, S))
    assert vae.log_prob(X, samples=3).shape == (12,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # It is on its way out, and in users' code.
        scripted = pv.likelihoods.Bernoulli((16,), 2, network=torch.jit.script(nn.Linear(2, 16)))
    assert pv.VAE(pv.priors.Standard(2), scripted, pv.encoders.Gaussian(2, (16,))).numbers(X[:1]) == 16
    many = pv.priors.Mixture(np.int64(2), components=np.int64(500))
    assert pv.VAE(many, scripted, pv.encoders.Gaussian(2, (16,))).numbers(X[:1].flatten(1)) == 1000


def test_parts_for_rows_alone_still_train():
    vae = joined(Flat())
    assert len(quiet(vae, (X, Y))) == 1
    # What a part says of a matrix that does not fit is its own to say.
    vae.encoder.layer = nn.Linear(5, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        vae.encode(X, Y)


def test_channels_that_come_last_are_met_with_a_warning():
    with pytest.warns(UserWarning, match=r"\(32, 32, 3\) is 32 channels of 32 × 3.*permute"):
        pv.networks.Conv((32, 32, 3), (8,))
    for shape in ((3, 32, 32), (1, 8, 8), (4, 4, 4), (32, 16, 3)):
        pv.networks.Conv(shape, (8,))


def test_pixels_without_a_mean_in_closed_form_have_that_of_draws():
    class Drawn(dist.Normal):
        @property
        def mean(self):
            raise NotImplementedError

    vae = pv.VAE(pv.priors.Standard(2), lambda z, c: Drawn(z.sum(-1, keepdim=True), 0.01).to_event(1), Encoder())
    x = torch.randn(5, 1)
    torch.testing.assert_close(vae.reconstruct(x), 2 * x, rtol=0, atol=0.01)
    assert vae.sample(3, mean=True).shape == (3, 1)
    assert vae.interpolate(x, x, steps=4).shape == (4, 5, 1)


class Encoder(nn.Module):
    def forward(self, x, c=None):
        return dist.Normal(x.expand(-1, 2), 0.1).to_event(1)


def test_a_model_that_svi_has_trained_is_copied_and_pickled():
    vae = cvae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    svi.step(X, Y)
    for again in (pickle.loads(pickle.dumps(vae)), copy.deepcopy(vae)):
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), vae.parameters(), strict=True))
    before = [p.clone() for p in vae.parameters()]
    svi.step(X, Y)
    assert not any(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


def test_pyro_can_draw_the_programs():
    found = pyro.infer.inspect.get_model_relations(cvae().model, model_args=(X, Y))
    assert found["sample_sample"] == {"z": [], "x": ["z"]}
    assert found["observed"] == ["x"]


def test_training_records_its_own_gradients():
    """Inside no_grad(), where a script may have put everything; inference mode cannot be ended from inside."""
    models = [cvae(), cvae()]
    models[1].load_state_dict(models[0].state_dict())
    history = quiet(models[0], (X, Y))
    with torch.no_grad():
        assert quiet(models[1], (X, Y))[0]["loss"] == history[0]["loss"]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
    with torch.inference_mode(), pytest.raises(ConfigError, match=r"fit: no gradient .*inference_mode\(\): call it"):
        quiet(models[1], (X, Y))


@pytest.mark.parametrize("capture", ["off", "auto"])
def test_training_is_in_its_own_precision_inside_autocast(capture):
    """Weights that autocast keeps a copy of would be validated by as they were in the first epoch."""
    model = cvae()
    outside = quiet(copy.deepcopy(model), (X, Y), valid=(X, Y), epochs=4, capture=capture)
    with torch.autocast("cpu", torch.bfloat16):
        inside = quiet(copy.deepcopy(model), (X, Y), valid=(X, Y), epochs=4, capture=capture)
    assert inside.column("loss") == outside.column("loss")
    assert inside.column("valid_neg_elbo") == outside.column("valid_neg_elbo")
    assert len(set(inside.column("valid_neg_elbo"))) == 4


def test_what_a_notebook_shows():
    """The last line of a cell: a picture, a table, and of a history how far it came."""
    vae = cvae()
    history = quiet(vae, (X, Y), valid=(X, Y))
    told = f"−ELBO {history[0]['neg_elbo']:.3f}, on valid {history[0]['valid_neg_elbo']:.3f} nats"
    assert repr(history) == f"History of 1 epoch, the last: {told}"
    assert repr(pv.History()) == "History of no epochs"
    for found in (pv.evaluate(vae, X, Y, samples=3), pv.audit(vae, X, Y, particles=2)):
        assert repr(found) == str(found)
    for figure in (pv.plots.samples(X), pv.plots.history(history)):
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_sizes_and_labels_of_numpys():
    y = np.array([[0, 1], [2, 0]])
    vae = pv.vae((4,), 2, prior="Gaussian", condition=pv.conditions.OneHots(y.max(0) + 1), hidden=np.int64(8))
    assert vae.condition.classes == (3, 2)
    assert vae.prior.context == 5
    assert pv.priors.Sphere(np.int64(3))(None).event_shape == (3,)
    assert type(pv.presets.to_dict(vae)["condition"]["classes"][0]) is int


def test_a_column_of_labels_is_not_one_hot():
    """Whose ``argmax`` would make every label a zero."""
    with pytest.raises(ShapeError, match=r"pass y.squeeze\(1\)"):
        pv.data.from_tensors(torch.rand(20, 4), torch.arange(20)[:, None] % 3)
    with pytest.raises(ShapeError, match=r"y.argmax\(1\)"):
        pv.data.from_tensors(torch.rand(20, 4), torch.eye(3)[torch.arange(20) % 3])


@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_has_one_label(channels):
    vae, x = pv.cvae((channels, 4, 4), 2, 10, hidden=(8,)), torch.ones(channels, 4, 4)
    assert vae.log_prob(x, 3, samples=5).shape == ()
    with pytest.raises(LabelError, match=r"one y for one x .* pass y\[0\], or x\[None\]"):
        vae.log_prob(x, torch.tensor([3]), samples=5)


@pytest.mark.parametrize("y", [3, torch.arange(5)])
@pytest.mark.parametrize("to", [7, torch.arange(5), torch.arange(10)[:, None]])
def test_style_is_carried_from_and_to_one_label_or_many(y, to):
    torch.manual_seed(0)
    vae, x = pv.cvae((4,), 2, 10, hidden=(8,)), torch.ones(5, 4)
    carried = vae.translate(x, y, to=to, carry=True)
    assert carried.shape == vae.translate(x, y, to=to).shape
    every = vae.translate(
        x, torch.as_tensor(y).expand(5), to=torch.as_tensor(to).expand(*carried.shape[:-1]), carry=True
    )
    torch.testing.assert_close(carried, every)


def test_an_open_clamp_is_saved_and_loaded(tmp_path):
    likelihood = {"name": "Gaussian", "sigma": "output", "clamp": (-float("inf"), 14.0)}
    vae = pv.vae((4,), 2, likelihood=likelihood, hidden=(8,))
    for _ in range(2):
        vae = pv.load(pv.save(vae, tmp_path))
        assert vae.likelihood.clamp == (-float("inf"), 14.0)


def test_beta_is_saved_in_the_precision_of_the_model(tmp_path):
    vae = pv.vae((4,), 2, hidden=(8,)).double()
    for beta in (1 / 3, 1e-60):
        vae.beta = beta
        assert pv.load(pv.save(vae, tmp_path)).beta == beta
    assert pv.presets.to_dict(pv.vae((4,), 2, beta=0.1))["beta"] == 0.1


@pytest.mark.parametrize("network", [pv.networks.Conv, pv.networks.ResNet])
def test_an_image_without_channels_is_one_of_one_channel(network):
    """Also where a pixel has several numbers, which are channels then, and not height."""
    options = {"sigma": "output", "network": network, "hidden": (8,)}
    flat, image = (pv.likelihoods.Gaussian(shape, 2, **options) for shape in ((8, 8), (1, 8, 8)))
    flat.load_state_dict(image.state_dict())
    x, z = 0.5 + 0.01 * torch.randn(500, 8, 8), torch.randn(3, 7, 2)
    flat.start_from(x)
    image.start_from(x.unsqueeze(1))
    p, q = flat(z), image(z)
    assert p.event_shape == (8, 8)
    torch.testing.assert_close(p.mean, q.mean.squeeze(-3))
    torch.testing.assert_close(p.variance, q.variance.squeeze(-3))
    levels = pv.likelihoods.Categorical((8, 8), 2, levels=5, network=network, hidden=(8,))
    levels.start_from(torch.arange(320).reshape(5, 8, 8).float() % 5)
    assert levels(z).event_shape == (8, 8)

"""The audit passes for every model that is right, and fails for every one of these that is wrong."""

import copy
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

import ppl_vae as pv
from ppl_vae.distributions import as_pyro, zuko

SHAPE, FEATURES, CLASSES = (6,), 2, 3


def rows(vae, n=16):
    """Data for this model, the labels in no order."""
    x = torch.rand(n, *SHAPE)
    if "Bernoulli" in type(vae.likelihood).__name__:
        x = x.round()
    return x, None if vae.condition is None else torch.arange(n) % CLASSES


def stir(vae, amount=0.15):
    """Away from the start, where q is nearly p and an error in the KL would weigh nothing."""
    with torch.no_grad():
        for p in vae.parameters():
            p += amount * torch.randn_like(p)
    return vae


def cvae(cls=pv.VAE, **options):
    """A small CVAE with a learned p(z|y) as an object of another class."""
    vae = stir(pv.cvae(SHAPE, FEATURES, CLASSES, hidden=(8,), **({"likelihood": "Gaussian"} | options)))
    vae.__class__ = cls
    return vae


def flow_as_encoder():
    flow = zuko.flows.MAF(FEATURES, *SHAPE, transforms=1, hidden_features=(8,))
    vae = pv.vae(SHAPE, FEATURES, hidden=(8,), encoder=lambda x, c: vae.flow(x))
    vae.flow = flow
    return vae


RIGHT = {
    "ae": lambda: pv.ae(SHAPE, FEATURES, hidden=(8,)),
    "vae": lambda: stir(pv.vae(SHAPE, FEATURES, hidden=(8,))),
    "vae, gaussian": lambda: stir(pv.vae(SHAPE, FEATURES, hidden=(8,), likelihood="Gaussian")),
    "vae, learned p(z)": lambda: stir(pv.vae(SHAPE, FEATURES, hidden=(8,), prior="Gaussian")),
    "cvae, p(z)": lambda: cvae(prior="Standard", likelihood="Bernoulli"),
    "cvae, p(z|y)": lambda: cvae(likelihood="Bernoulli"),
    "cvae, p(z|y), gaussian": lambda: cvae(),
    "beta = 4": lambda: cvae(beta=4.0),
    "beta = 0": lambda: cvae(beta=0.0),
    "flow prior": lambda: pv.cvae(SHAPE, FEATURES, CLASSES, hidden=(8,), prior="NSF", likelihood="Gaussian", beta=4.0),
    "flow as encoder": lambda: flow_as_encoder(),
    "a point with a prior": lambda: pv.vae(SHAPE, FEATURES, hidden=(8,), encoder="Delta", likelihood="Gaussian"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_models_pass(name):
    vae = RIGHT[name]()
    audit = pv.audit(vae, *rows(vae), particles=30)
    assert audit.passed, audit
    assert str(audit).endswith("audit: pass")
    assert audit.line.startswith("audit: pass: SVI against ")
    closed = name not in ("flow prior", "flow as encoder", "a point with a prior")
    assert ("TraceMeanField_ELBO" in str(audit)) is closed
    assert ("hand-written" in str(audit)) is closed
    assert ("no closed-form KL" in str(audit)) is not closed


def test_passes_on_the_digits_it_was_trained_on():
    """After some training, in the shapes people use."""
    data = pv.data.load("digits").head(256)
    vae = pv.cvae(data.x_shape, 4, 10, likelihood="Binomial", levels=16, range=data.range, hidden=(32,))
    pv.fit(vae, data.train, epochs=3, progress=False, device="cpu")
    audit = pv.audit(vae, data.train.x[:64], data.train.y[:64], particles=30)
    assert audit.passed, audit


# Broken programs: each a mistake somebody has made


class Broken(pv.VAE):
    """The two programs as the library has them, with a hook for every mistake."""

    def weight(self):
        return self._kl_weight()

    def p(self, c):
        return self._prior(c)

    def q(self, x, c):
        return as_pyro(self.encoder(x, c))

    def decoded(self, z, c):
        return as_pyro(self.likelihood(z, c))

    def plate(self, n, total):
        return self._plate(n, total)

    def model(self, x=None, y=None, mask=None, total=None):
        x = self._tensor(x)
        c, n = self._programs_context(x, y)
        with self.plate(n, total):
            with self.weight():
                z = pyro.sample("z", self.p(c))
            return pyro.sample("x", self.decoded(z, c), obs=x)

    def guide(self, x=None, y=None, mask=None, total=None):
        x = self._tensor(x)
        c, n = self._programs_context(x, y)
        with self._plate(n, total), self.weight():
            return pyro.sample("z", self.q(x, c))


class NotBroken(Broken):
    """The control: with no hook used it must pass."""


class KLSign(Broken):
    """β = −1: the KL is subtracted from the loss."""

    def weight(self):
        return _Signed()


class _Signed(poutine.messenger.Messenger):
    def _pyro_sample(self, msg):
        msg["scale"] = -1.0 * msg["scale"]


class KLTwice(Broken):
    def weight(self):
        return poutine.scale(scale=2.0 * self._beta)


class BetaTwice(Broken):
    """Once by the model and once more by the programs."""

    def weight(self):
        return poutine.scale(scale=self._beta**2)


class KLOnePercent(Broken):
    def weight(self):
        return poutine.scale(scale=1.01 * self._beta)


class NoKL(Broken):
    def weight(self):
        return poutine.mask(mask=False)


class SdAsVariance(Broken):
    def p(self, c):
        p = self._prior(c).base_dist
        return dist.Normal(p.loc, p.scale.sqrt()).to_event(1)


class PriorIgnoresY(Broken):
    def p(self, c):
        return self._prior(torch.zeros_like(c))


class EncoderIgnoresY(Broken):
    def q(self, x, c):
        return as_pyro(self.encoder(x, torch.zeros_like(c)))


class DetachedZ(Broken):
    """The reconstruction never teaches the encoder."""

    def decoded(self, z, c):
        return as_pyro(self.likelihood(z.detach(), c))


class DetachedEncoder(Broken):
    def q(self, x, c):
        q = as_pyro(self.encoder(x, c)).base_dist
        return dist.Normal(q.loc.detach(), q.scale).to_event(1)


class StopGradientOfPrior(Broken):
    def p(self, c):
        p = self._prior(c).base_dist
        return dist.Normal(p.loc.detach(), p.scale.detach()).to_event(1)


class PlateScale(Broken):
    """Scaled to the data set twice: by the total and by the plate."""

    def plate(self, n, total):
        return poutine.scale(scale=1.0 / n) if total is None else self._plate(n, total / n)


class Mean(Broken):
    """The pixels' mean, and not their sum."""

    def decoded(self, z, c):
        p = as_pyro(self.likelihood(z, c))
        return _MeanOfPixels(p.base_dist, 1)


class _MeanOfPixels(dist.Independent):
    def log_prob(self, value):
        return super().log_prob(value) / self.event_shape.numel()


class NoEvent(Broken):
    """``.to_event`` forgotten: Pyro must say so."""

    def decoded(self, z, c):
        return as_pyro(self.likelihood(z, c)).base_dist


class NoConstant(Broken):
    """½ log 2π dropped: the gradient is right, and the number is not nats."""

    def decoded(self, z, c):
        p = as_pyro(self.likelihood(z, c))
        return _NoConstant(p.base_dist, 1)


class _NoConstant(dist.Independent):
    def log_prob(self, value):
        return super().log_prob(value) + 0.5 * math.log(2 * math.pi) * self.event_shape.numel()


class NoReparameterisation(Broken):
    """The score-function gradient: right in the mean for Trace_ELBO, were the sampled z not also frozen here."""

    def q(self, x, c):
        q = as_pyro(self.encoder(x, c)).base_dist
        return _Frozen(q.loc, q.scale).to_event(1)


class _Frozen(dist.Normal):
    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape).detach()

    def expand(self, batch_shape, _instance=None):
        return _Frozen(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


BROKEN = [
    KLSign,
    KLTwice,
    BetaTwice,
    KLOnePercent,
    NoKL,
    SdAsVariance,
    PriorIgnoresY,
    EncoderIgnoresY,
    DetachedZ,
    DetachedEncoder,
    StopGradientOfPrior,
    PlateScale,
    Mean,
    NoConstant,
    NoReparameterisation,
]


def test_the_control_passes():
    vae = cvae(NotBroken, beta=2.0)
    assert pv.audit(vae, *rows(vae), particles=30).passed


@pytest.mark.parametrize("cls", BROKEN)
def test_broken_models_fail(cls):
    vae = cvae(cls, beta=2.0)
    audit = pv.audit(vae, *rows(vae), particles=30)
    assert not audit.passed, audit
    assert str(audit).endswith("audit: FAIL")
    assert "FAIL" in audit.line


# These are broken through the parameters of a Gaussian.
OF_GAUSSIANS = (SdAsVariance, DetachedEncoder, NoReparameterisation, StopGradientOfPrior)


@pytest.mark.parametrize("cls", [c for c in BROKEN if c not in OF_GAUSSIANS])
def test_broken_models_fail_without_a_closed_form(cls):
    """With a flow for p(z|y) there is the sampled reference alone, and it must be enough."""
    vae = stir(pv.cvae(SHAPE, FEATURES, CLASSES, hidden=(8,), likelihood="Gaussian", prior="MAF", beta=2.0), 0.1)
    vae.__class__ = cls
    audit = pv.audit(vae, *rows(vae), particles=20)
    assert not audit.passed, audit


@pytest.mark.parametrize("n", [1, SHAPE[0], 16])
def test_missing_event_is_an_error(n):
    """Also for a batch as long as the pixels are many."""
    vae = cvae(NoEvent)
    with pytest.raises(ValueError, match=r"xpected|Shape mismatch"):
        pv.audit(vae, *rows(vae, n), particles=2)


def test_a_wrong_hand_written_loss_fails(monkeypatch):
    """The other side of the comparison: if the reference were wrong, the audit would not pass either."""
    vae = cvae()
    monkeypatch.setattr("ppl_vae.objectives.by_hand.kl_gaussian", lambda *a: 1.0001 * pv.objectives.kl_standard(*a[:2]))
    assert not pv.audit(vae, *rows(vae), particles=5).passed


def test_nan_fails(monkeypatch):
    """A loss that is not a number equals nothing."""
    for prior in ("Gaussian", "MAF"):
        vae = pv.cvae(SHAPE, FEATURES, CLASSES, hidden=(8,), likelihood="Gaussian", prior=prior)
        x, y = rows(vae)

        class Nan(Broken):
            def decoded(self, z, c):
                return dist.Normal(z.sum(-1, keepdim=True).expand(*z.shape[:-1], *SHAPE) * math.nan, 1.0).to_event(1)

        vae.__class__ = Nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pyro.validation_enabled(False):
                monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
                audit = pv.audit(vae, x, y, particles=4)
        assert not audit.passed, audit


# Chance


def test_false_alarms_are_as_rare_as_it_says():
    """100 audits of a right model at α = 10%, each with noise of its own: at most 22 failures.

    Were each to fail with probability 10%, there would be more with probability 1e-4; the correction for the number of
    tests makes them rarer still. Without that correction (53 tests) nearly all would fail, and skewed differences of
    few particles would show here as well.
    """
    torch.manual_seed(0)
    vae = cvae(beta=2.0)
    x, y = rows(vae)
    alarms = sum(not pv.audit(vae, x, y, particles=12, alpha=0.1, seed=seed).passed for seed in range(100))
    print(f"{alarms} of 100 at alpha = 0.1")
    assert stats.binom(100, 0.1).sf(22) < 2e-4
    assert alarms <= 22


def test_seed_chooses_the_noise():
    vae = cvae()
    x, y = rows(vae)
    tables = [str(pv.audit(vae, x, y, particles=5, seed=seed)) for seed in (0, 0, 1)]
    assert tables[0] == tables[1] != tables[2]


# What it leaves alone


def test_leaves_everything_as_it_was():
    vae = cvae(beta=3.0).train()
    x, y = rows(vae)
    pyro.get_param_store()["mine"] = torch.ones(2)
    for p in vae.parameters():
        p.grad = torch.full_like(p, 0.5)
    before, random = copy.deepcopy(vae.state_dict()), torch.get_rng_state()
    name, keys = vae.name, set(pyro.get_param_store())
    x_before = x.clone()
    pv.audit(vae, x, y, particles=3)
    assert torch.equal(torch.get_rng_state(), random)
    assert all((p.grad == 0.5).all() for p in vae.parameters())
    assert all(torch.equal(v, before[k]) for k, v in vae.state_dict().items())
    assert (vae.name, vae.beta, vae.training) == (name, 3.0, True)
    assert set(pyro.get_param_store()) == keys == {"mine"}
    assert torch.equal(x, x_before)


def test_leaves_the_store_clean_when_a_program_raises():
    vae = cvae(NoEvent)
    with pytest.raises(ValueError, match=r"xpected|Shape mismatch"):
        pv.audit(vae, *rows(vae), particles=2)
    assert not set(pyro.get_param_store())


def test_refuses_what_the_model_cannot_take():
    vae = cvae()
    with pytest.raises(pv.errors.LabelError):
        pv.audit(vae, rows(vae)[0])
    with pytest.raises(pv.errors.ConfigError):
        pv.audit(vae, *rows(vae), particles=0)

"""Unseen pixels: drawn from the right conditional distribution, and never looked at."""

import copy
import math

import pyro
import pytest
import torch
from ppca import SIGMA, D, L, Ppca
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import MultivariateNormal

import ppl_vae as pv
from ppl_vae.capture import CapturedSVI
from ppl_vae.errors import ConfigError, DataError, NoDensityError, PartError, ShapeError
from ppl_vae.evaluation import log_likelihood
from ppl_vae.model.masking import given
from ppl_vae.objectives import elbo_terms

SEEN = torch.tensor([True, True, False, True, False, True, True, False])


def conditional(truth, x, y=None):
    """The mean and covariance of the unseen given the seen, in closed form."""
    a, b = ~SEEN, SEEN
    gain = truth.C[a][:, b] @ torch.linalg.inv(truth.C[b][:, b])
    mean = truth.mean(y)
    return mean[..., a] + (x[..., b] - mean[..., b]) @ gain.T, truth.C[a][:, a] - gain @ truth.C[b][:, a]


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("junk", [0.0, math.nan])
def test_draws_are_from_the_conditional_distribution(classes, junk):
    # An encoder that was told zeros for unseen pixels is far off; the weights must make up for it. Whitened by the
    # truth the draws are standard normal: their mean and covariance are z-tested, α = 1e-6 each, with twice the
    # standard error for the finite number of candidates.
    truth = Ppca(classes)
    x, y = truth.draw(1)
    vae = truth.vae(stretch=3.0)
    mask = SEEN.expand(1, D)
    torch.manual_seed(0)
    n = 4000
    draws = vae.impute(torch.where(mask, x, junk), y, mask=mask, n=n, candidates=20000)
    assert torch.equal(draws[..., SEEN], x[:, SEEN].expand(n, 1, -1))
    mean, covariance = conditional(truth, x, y)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (draws[:, 0][:, ~SEEN] - mean).T, upper=False
    ).T
    assert (white.mean(0).abs() < 2 * 4.9 / math.sqrt(n)).all()
    second = white.T @ white / n - torch.eye(3)
    assert (second.abs() < 2 * 4.9 * math.sqrt(2 / n)).all()
    # And the draws given by the encoder's proposals alone would fail that.
    z = vae.encode(torch.where(mask, x, 0.0), y).sample((n,))
    naive = vae.decode(z, y).sample()[:, 0][:, ~SEEN]
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (naive - mean).T, upper=False).T
    assert (white.mean(0).abs() > 2 * 4.9 / math.sqrt(n)).any()


@pytest.mark.fresh
def test_the_bound_of_the_seen_pixels_is_theirs():
    # The importance-sampled log-density of seen pixels alone, from the same weights, is that of their marginal.
    truth = Ppca()
    x, _ = truth.draw(5)
    # So wide that it is wider than the posterior of the seen pixels alone: the weights have light tails.
    vae = truth.vae(stretch=4.0)
    mask = SEEN.expand(5, D)
    log_w = torch.cat([w for _, w in vae._propose(x, None, 50_000, mask)])
    expected = MultivariateNormal(truth.mu[0][SEEN], truth.C[SEEN][:, SEEN]).log_prob(x[:, SEEN])
    w = (log_w - expected).exp()
    # z-test, α = 1e-6 over the five rows.
    assert ((w.mean(0) - 1).abs() < 5.2 * w.std(0) / math.sqrt(len(w))).all()


@pytest.mark.parametrize("capture", ["off", "graph"])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_likelihood_of_what_is_seen_is_that_of_its_marginal(classes, capture):
    """From the exact posterior given the seen pixels every weight is their marginal density: no chance involved."""
    truth = Ppca(classes)
    x, y = truth.draw(50)
    W, labels = truth.W[SEEN], torch.zeros(50, dtype=torch.long) if y is None else y
    covariance = torch.linalg.inv(torch.eye(L) + W.T @ W / SIGMA**2).double()
    mean = truth.mean(y).expand(50, D)

    def posterior(x):
        n = len(x)
        where = mean[:n, SEEN] if y is None else truth.mean(one)[SEEN].expand(n, -1)
        return MultivariateNormal((x[:, SEEN] - where) @ W @ covariance / SIGMA**2, covariance)

    options = {"samples": 7, "proposal": posterior, "capture": capture, "progress": False}
    for one in labels.unique():
        rows = x[labels == one]
        junk = torch.where(SEEN, rows, math.nan)
        of_y = one if classes else None
        found = log_likelihood(truth.vae(), junk, of_y, SEEN.expand(len(rows), D), **options)
        marginal = MultivariateNormal(truth.mean(one if classes else None)[..., SEEN], truth.C[SEEN][:, SEEN])
        torch.testing.assert_close(found.values, marginal.log_prob(rows[:, SEEN]).squeeze(), rtol=0, atol=1e-9)
        assert found.bits is None


@pytest.mark.parametrize("capture", ["off", "graph", "inductor"])
def test_masks_of_every_row_and_label(capture):
    """Rows of their own masks, labels and leftovers: each is what it is alone, and where all is seen, as without."""
    vae = pv.cvae((6,), 2, 3, prior="Gaussian", hidden=(8,))
    # Exactly 4 rows at a time.
    x, y = torch.bernoulli(torch.full((10, 6), 0.5)), torch.arange(10) % 3
    mask = torch.rand(10, 6) < 0.7
    mask[0], mask[1] = True, False
    options = {"samples": 400, "capture": capture, "progress": False, "memory": 6 * 100}
    found = log_likelihood(vae, torch.where(mask, x, math.nan), y, mask, **options)
    whole = log_likelihood(vae, x, y, **options)
    error = (found.standard_error[0] ** 2 + whole.standard_error[0] ** 2).sqrt()
    assert (found.values[0] - whole.values[0]).abs() <= 5 * error
    # Nothing has a probability of one.
    assert found.values[1].abs() <= 5 * found.standard_error[1]
    rows = [i for i in range(10) if i != 1]
    alone = []
    for i in rows:
        row = torch.where(mask[i], x[i], 0.0)[None], y[i, None], mask[i, None]
        alone.append(log_likelihood(vae, *row, **options | {"capture": "off", "seed": i + 1}))
    exact = torch.cat([one.values for one in alone])
    errors = (found.standard_error[rows] ** 2 + torch.cat([one.standard_error for one in alone]) ** 2).sqrt()
    assert ((found.values[rows] - exact).abs() <= 5.5 * errors).all()
    assert ((whole.values[rows] - exact).abs() > 5.5 * errors).any()


def test_measurements_of_what_is_seen():
    """−ELBO and its parts, −log p and the code: those of what is seen, whatever stands in the other places."""
    vae = pv.cvae((6,), 2, 3, likelihood="Gaussian", prior="Gaussian", hidden=(8,))
    vae.encoder = pv.encoders.Gaussian(2, (6,), 3, hidden=(8,))
    x, y, mask = torch.randn(40, 6), torch.arange(40) % 3, torch.rand(40, 6) < 0.5
    junk = torch.where(mask, x, math.nan)
    found = pv.evaluate(vae, junk, y, mask, samples=300, draws=200)
    assert found.values["neg_elbo"].isfinite().all()
    torch.manual_seed(0)
    reconstruction, kl = elbo_terms(vae, x, y, samples=200, mask=mask)
    torch.testing.assert_close(found.values["kl"], kl.double().detach(), rtol=1e-5, atol=1e-5)
    assert abs(found["reconstruction"] - reconstruction.mean().item()) < 0.3
    gap = found.values["neg_elbo"] - found.values["neg_log_prob"]
    assert gap.mean() > -5 * gap.std() / math.sqrt(40)
    assert torch.equal(vae.embed(junk, y, mask), vae.embed(torch.where(mask, x, 0.0), y))
    assert vae.log_prob(junk, y, 200, mask=mask).isfinite().all()
    assert f"of what is seen, {mask.double().mean().item():.1%} of the pixels" in str(found)
    assert (
        found.to_dict()["seen"] == found.to_dict()["likelihood"]["seen"] == pytest.approx(mask.double().mean().item())
    )
    few = log_likelihood(vae, junk, y, mask, samples=500, progress=False)
    assert abs(few.mean + found["neg_log_prob"]) < 0.2
    assert abs(vae.log_prob(junk, y, 500, mask=mask).mean().item() - few.mean) < 0.2


def test_an_encoder_that_is_told_is_told_when_it_is_measured():
    """By every measurement: what it is given is the mask beside the pixels, and the proposals are as it then says."""
    vae, x = masked(conditional=False)
    seen = torch.tensor([[True, False, True, True], [False, True, True, False]]).reshape(2, 1, 2, 2)
    junk, asked = torch.where(seen, x, math.nan), []
    forward = vae.encoder.forward
    vae.encoder.forward = lambda x, c: asked.append(x) or forward(x, c)
    vae.embed(junk, mask=seen)
    log_likelihood(vae, junk, mask=seen, samples=5, progress=False)
    vae.log_prob(junk, None, 5, mask=seen)
    pv.evaluate(vae, junk, mask=seen, samples=5, draws=2)
    given = torch.cat([torch.where(seen, x, 0.0), seen.float()], 1)
    # A check of the data looks at pixels alone.
    told = [got for got in asked if got.shape[1] == 2]
    # One call each of three, and three of the last: its first row, its bound and its likelihood.
    assert len(told) == 6
    assert all(torch.equal(got, given[: len(got)]) for got in told)
    # A proposal of one's own gets zeros for what is not seen, and no mask.
    of, q = [], vae.encode(given)
    log_likelihood(vae, junk, mask=seen, samples=5, progress=False, proposal=lambda x: of.append(x) or q)
    assert all(torch.equal(got, given[:, :1]) for got in of)


def test_a_bad_pixel_is_found_where_it_is():
    vae = pv.vae((2,), 2, likelihood="Gaussian", hidden=())
    x, seen = torch.tensor([[0.0, math.nan], [1.0, 2.0]]), torch.tensor([[False, True], [True, True]])
    with pytest.raises(DataError, match=r"got 1 value that is not, the first nan at row 0, pixel \(1,\)"):
        pv.evaluate(vae, x, None, seen)


def test_masks_that_do_not_go_with_the_rows():
    vae, x = pv.vae((4,), 2, likelihood="Gaussian", hidden=()), torch.zeros(3, 4)
    for measure in (pv.evaluate, log_likelihood, lambda *a: vae.log_prob(a[1], None, 10, mask=a[3])):
        with pytest.raises(ShapeError, match="mask: expected bool"):
            measure(vae, x, None, torch.ones(3, 4))
        with pytest.raises(DataError, match="at least one pixel that is seen"):
            measure(vae, x, None, torch.zeros(3, 4, dtype=torch.bool))
    with pytest.raises(ShapeError, match="mask: expected bool"):
        vae.embed(x, None, torch.ones(2, 4, dtype=torch.bool))


def test_rows_in_parts_and_one_label_for_all(monkeypatch):
    truth = Ppca(3)
    x, y = truth.draw(7)
    mask = SEEN.expand(7, D)
    monkeypatch.setattr("ppl_vae.model.vae._CHUNK", 64)
    draws = truth.vae().impute(x, y, mask=mask, n=2, candidates=5)
    assert draws.shape == (2, 7, D)
    assert torch.equal(draws[..., SEEN], x[:, SEEN].expand(2, 7, -1))
    assert truth.vae().impute(x, 1, mask=mask).shape == (1, 7, D)
    assert truth.vae().impute(x, y, mask, 3).shape == (3, 7, D)
    assert truth.vae().impute(x, torch.tensor([1]), mask=mask).shape == (1, 7, D)


@pytest.mark.parametrize("name", ["Bernoulli", "Binomial", "Beta", "Poisson", "Categorical", "ContinuousBernoulli"])
def test_draws_are_values_that_the_likelihood_has(name):
    torch.manual_seed(0)
    vae = pv.vae((4,), 2, likelihood=name, levels=17)
    x = torch.rand(3, 4) if name in ("Beta", "ContinuousBernoulli") else torch.randint(2, (3, 4)).float()
    mask = torch.tensor([True, False, True, False]).expand(3, 4)
    draws = vae.impute(torch.where(mask, x, math.nan), mask=mask, n=5)
    assert draws.dtype == torch.float32
    vae.check(draws.flatten(0, 1))


def test_errors():
    vae, x = pv.vae((4,), 2), torch.zeros(3, 4)
    with pytest.raises(ShapeError, match="mask: expected bool"):
        vae.impute(x, mask=torch.ones(3, 4))
    with pytest.raises(ConfigError, match="expected a mask"):
        vae.impute(x)
    with pytest.raises(NoDensityError):
        pv.ae((4,), 2).impute(x, mask=x == 0)
    whole = pv.VAE(
        pv.priors.Standard(2), lambda z, c: MultivariateNormal(z @ torch.ones(2, 4), torch.eye(4)), vae.encoder
    )
    with pytest.raises(PartError, match="independent pixels"):
        whole.impute(x, mask=x == 0)


def masked(conditional=True):
    torch.manual_seed(0)
    condition = pv.OneHot(3) if conditional else None
    vae = pv.vae(
        (1, 2, 2), 2, encoder={"name": "Masked", "part": {"name": "Gaussian", "hidden": [8]}}, condition=condition
    )
    return vae, torch.tensor([[1, 0, 0, 1], [1, 0, 0, 1]]).float().reshape(2, 1, 2, 2)


def test_an_encoder_can_be_told_what_is_seen():
    vae, x = masked()
    y, mask = torch.tensor([1, 1]), torch.tensor([True, True, False, True]).reshape(1, 1, 2, 2).expand_as(x)
    assert vae.encoder.part.x_shape == (2, 2, 2)
    whole = vae.encode(x, y).mean
    told = vae.encoder(given(vae.encoder, x, mask), vae._context(y)).mean
    # The pixel is zero, and unseen: an encoder that is not told cannot tell the two apart, and this one can.
    assert not torch.allclose(whole, told)
    torch.testing.assert_close(whole, vae.encoder(given(vae.encoder, x, mask | True), vae._context(y)).mean)
    plain = pv.vae((1, 2, 2), 2, condition=pv.OneHot(3))
    torch.testing.assert_close(
        plain.encode(x, y).mean, plain.encoder(given(plain.encoder, x, mask), plain._context(y)).mean
    )


@pytest.mark.parametrize("pixels", [(0.0, 1.0), (0.0, 255.0), (-1024.0, 3071.0)])
@pytest.mark.parametrize("part", ["Gaussian", {"name": "Chain", "first": "Gaussian", "second": "Gaussian"}])
def test_a_network_is_told_by_zeros_and_ones_whatever_the_range_of_a_pixel(part, pixels):
    vae = pv.vae((1, 4, 4), 2, likelihood="Gaussian", range=pixels, encoder={"name": "Masked", "part": part})
    seen = []
    for module in vae.encoder.modules():
        if isinstance(module, pv.networks.Network):
            module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 1]))
    x, mask = torch.full((3, 1, 4, 4), pixels[1]), torch.rand(3, 1, 4, 4) > 0.5
    vae.encoder(given(vae.encoder, x, mask)).rsample()
    vae.encoder(x).rsample()
    # Two passes of every network; the second of a chain is asked once beforehand what it gives.
    assert len(seen) == (2 if part == "Gaussian" else 5)
    for told in seen:
        assert torch.allclose(told, mask[:, 0].float(), atol=1e-6) or torch.allclose(told, torch.ones(()), atol=1e-6)
    assert any((told < 0.5).any() for told in seen)


def test_encoders_of_two_standardisations_are_told_nothing_in_common():
    first, second = (pv.encoders.Gaussian(1, (2, 4), context, scale=s) for context, s in ((0, 1.0), (1, 2.0)))
    with pytest.raises(PartError, match=r"one \(shift, scale\) of x, got \[\(0.0, 1.0\), \(0.0, 2.0\)\]"):
        pv.encoders.Masked(pv.Chain(first, second))


@pytest.mark.parametrize("network", [pv.networks.Conv, pv.networks.ResNet])
def test_a_mask_is_no_more_of_the_image(network):
    """Below an image without channels it would be, for a convolution; numbers in a row have no neighbours."""
    encoder = {"name": "Masked", "part": "Gaussian"}
    with pytest.raises(ShapeError, match=r"got \(8, 4\).*give x a channel, x_shape \(1, 4, 4\)"):
        pv.vae((4, 4), 2, network=network, encoder=encoder)
    assert pv.vae((1, 4, 4), 2, network=network, encoder=encoder).encoder.x_shape == (1, 4, 4)
    assert pv.vae((4, 4), 2, encoder=encoder).encoder.x_shape == (4, 4)


def test_what_is_not_seen_is_not_looked_at_by_an_encoder_that_is_told():
    vae, x = masked()
    y, mask = torch.tensor([1, 2]), torch.tensor([True, True, False, True]).reshape(1, 1, 2, 2).expand_as(x)
    results = []
    for junk in (0.0, 7.0, math.nan):
        torch.manual_seed(3)
        loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, torch.where(mask, x, junk), y, mask)
        results.append((loss, *torch.autograd.grad(loss, list(vae.parameters()))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert vae.impute(torch.where(mask, x, math.nan), y, mask=mask, n=4).shape == (4, 2, 1, 2, 2)


def test_steps_with_a_mask_are_captured(device, recording):
    backend, adam = recording
    vae, x = masked()
    y, mask = torch.tensor([1, 2]), torch.tensor([True, True, False, True]).reshape(1, 1, 2, 2).expand_as(x)
    twin, losses = copy.deepcopy(vae.to(device)), []
    stock = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    captured = CapturedSVI(twin.model, twin.guide, adam(0.01), Trace_ELBO(), backend=backend)
    for svi in (stock, captured):
        torch.manual_seed(1)
        losses.append([float(svi.step(x, y, mask if i % 2 else ~mask)) for i in range(8)])
    assert captured.backend == backend
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_imputing_follows_the_dtype_and_the_device(dtype, device):
    vae, x = masked()
    vae.to(device, dtype)
    mask = torch.tensor([True, True, False, True]).reshape(1, 1, 2, 2).expand_as(x)
    draws = vae.impute(torch.where(mask, x, math.nan), torch.tensor([1, 2]), mask=mask, n=3, candidates=10)
    assert (draws.dtype, draws.device.type) == (dtype, device.type)
    # Of what is seen, every draw is x itself.
    assert torch.equal(draws[..., mask].cpu(), x[mask].to(dtype).expand(3, -1))


def test_a_masked_encoder_is_saved_by_name(tmp_path):
    vae, x = masked(conditional=False)
    pv.save(vae, tmp_path / "model")
    again = pv.load(tmp_path / "model")
    torch.testing.assert_close(again.encode(x).mean, vae.encode(x).mean)
    with pytest.raises(PartError, match="x_shape"):
        pv.encoders.Masked(lambda x, c: None)
    with pytest.raises(ShapeError, match=r"x and its mask.*\(1, 2, 2\)"):
        pv.encoders.Masked(pv.encoders.Gaussian(2, (1, 2, 2)))


def test_fit_takes_rows_with_missing_pixels():
    truth = Ppca(3)
    x, y = truth.draw(400)
    x, generator = x.float(), torch.Generator().manual_seed(0)
    mask = torch.rand(x.shape, generator=generator) < 0.7
    histories = []
    for junk in (0.0, math.nan):
        torch.manual_seed(0)
        vae = pv.vae(
            (D,), 2, likelihood={"name": "Gaussian", "sigma": 0.5}, hidden=(16,), condition=pv.OneHot(3), context=3
        )
        rows = torch.where(mask, x, junk), y, mask
        options = {"epochs": 30, "batch_size": 50, "lr": 1e-2, "capture": "graph", "progress": False}
        histories.append(pv.fit(vae, rows, valid=tuple(row[:100] for row in rows), **options))
    assert histories[0].column("neg_elbo") == histories[1].column("neg_elbo")
    assert histories[0].column("valid_neg_elbo") == histories[1].column("valid_neg_elbo")
    # −log p of the seen pixels under the truth is what a −ELBO cannot go far below, and here comes near.
    seen = sum(
        -MultivariateNormal(truth.mean(k)[m], truth.C[m][:, m]).log_prob(r[m]).item()
        for r, k, m in zip(x.double(), y, mask, strict=True)
        if m.any()
    ) / len(x)
    assert seen - 0.3 < histories[0][-1]["neg_elbo"] < seen + 1.5


def test_fit_refuses_masks_that_are_none():
    vae, x = pv.vae((4,), 2), torch.zeros(6, 4)
    with pytest.raises(ShapeError, match="mask: expected bool"):
        pv.fit(vae, (x, None, torch.ones(6, 3, dtype=torch.bool)), epochs=1)
    with pytest.raises(DataError, match="at least one pixel that is seen"):
        pv.fit(vae, (x, None, x > 1), epochs=1)
    with pytest.raises(DataError, match="grey"):
        pv.fit(vae, (x + 0.5, None, x == 0), epochs=1)

"""FID and KID against closed forms, and the judge before models that are known to be good, bad or monotonous."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.linalg
import torch
from ppca import limit

import ppl_vae as pv
from ppl_vae import encoders, priors
from ppl_vae.errors import DataError, LabelError, NoDensityError, PartError, ShapeError
from ppl_vae.evaluation import Judge, fid, kid, quality, train_judge
from ppl_vae.evaluation.measuring import measuring


def with_moments(n, mean, covariance):
    """Rows that have exactly this mean and (unbiased) covariance."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False)
    return mean + (torch.linalg.cholesky(covariance) @ white).T


def random_covariance(size):
    root = torch.randn(size, size, dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size).double()


# FID


def test_fid_of_equal_gaussians_is_zero_and_of_shifted_ones_the_square_of_the_shift():
    covariance = random_covariance(5)
    a = with_moments(200, torch.zeros(5).double(), covariance)
    b = with_moments(300, torch.zeros(5).double(), covariance)
    assert fid(a, b) == pytest.approx(0.0, abs=1e-9)
    shift = torch.randn(5).double()
    assert fid(a, b + shift) == pytest.approx(shift.square().sum().item(), abs=1e-9)


def test_fid_of_other_covariances_is_the_formula():
    """With scipy's matrix square root of the product, which is not symmetric; and by hand where they commute."""
    for _ in range(3):
        one, two = random_covariance(6), random_covariance(6)
        a, b = with_moments(50, torch.ones(6).double(), one), with_moments(70, torch.zeros(6).double(), two)
        root = torch.from_numpy(scipy.linalg.sqrtm((one @ two).numpy()).real.copy())
        expected = 6 + (one + two - 2 * root).trace().item()
        assert fid(a, b) == pytest.approx(expected, rel=1e-8)
        assert fid(b, a) == pytest.approx(expected, rel=1e-8)
    one, two = torch.tensor([4.0, 9.0]).double(), torch.tensor([1.0, 16.0]).double()
    a, b = (with_moments(30, torch.zeros(2).double(), c.diag()) for c in (one, two))
    assert fid(a, b) == pytest.approx((one.sqrt() - two.sqrt()).square().sum().item())


def test_fid_of_fewer_rows_than_features_and_of_dead_features():
    """The covariances have no full rank then, and no square root may become NaN of it."""
    x = torch.randn(10, 40)
    assert fid(x, x) == pytest.approx(0.0, abs=1e-4)
    dead = torch.cat([x, torch.zeros(10, 3)], 1)
    assert fid(dead, dead + 1.0) == pytest.approx(43.0, rel=1e-5)


# KID


def test_kid_is_the_unbiased_double_sum():
    a, b = torch.randn(7, 3).double(), 1 + torch.randn(9, 3).double()

    def kernel(f, g):
        return ((f @ g) / 3 + 1).item() ** 3

    def mean(f, g, same):
        pairs = [(i, j) for i in range(len(f)) for j in range(len(g)) if not (same and i == j)]
        return sum(kernel(f[i], g[j]) for i, j in pairs) / len(pairs)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kid(a, b)[0] == pytest.approx(expected, rel=1e-12)
    assert kid(b, a)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.fresh
def test_kid_of_equal_laws_is_zero_in_the_mean_and_its_error_is_honest():
    """Over 300 pairs of samples: |z| ≤ 4.89, and for laws that differ the stated errors are the spread within 25%.

    To first order they are 4% less than it here, and the spread of 300 is known to 4%.
    """
    found, other = [], []
    for _ in range(300):
        a, b = torch.randn(40, 3).double(), torch.randn(60, 3).double()
        found.append(kid(a, b)[0])
        other.append(kid(a, b + 1.0))
    found = torch.tensor(found)
    assert abs(found.mean().item()) <= limit() * found.std().item() / math.sqrt(300)
    assert (found < 0).any()
    values, errors = torch.tensor(other).T
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.25)
    expected = expected_kid(torch.zeros(3).double(), torch.ones(3).double())
    assert abs(values.mean().item() - expected) <= limit() * values.std().item() / math.sqrt(300)


def expected_kid(m, other):
    """Of N(m, I) and N(other, I), by a sum over Gauss-Hermite points, which is exact for a polynomial."""
    nodes, weights = (torch.from_numpy(v) for v in scipy.special.roots_hermitenorm(4))
    points = torch.cartesian_prod(nodes, nodes, nodes)
    weights = torch.cartesian_prod(weights, weights, weights).prod(1) / (2 * math.pi) ** 1.5

    def mean(f, g):
        return weights @ (((f + points) @ (g + points).T / 3 + 1) ** 3) @ weights

    return (mean(m, m) + mean(other, other) - 2 * mean(m, other)).item()


def test_features_that_do_not_fit_are_refused():
    for a, b in ((torch.zeros(3, 2), torch.zeros(3, 3)), (torch.zeros(1, 2), torch.zeros(3, 2)), (torch.zeros(3),) * 2):
        for distance in (fid, kid):
            with pytest.raises(ShapeError, match=r"features \(N, F\) and \(M, F\)"):
                distance(a, b)


# The judge


def blobs(n, classes=3, apart=3.0, size=6):
    """Gaussian clouds with unit variance around points that are far from each other."""
    y = torch.arange(n) % classes
    return torch.randn(n, size) + apart * torch.eye(classes, size)[y], y


def test_a_judge_is_nearly_as_good_as_bayes():
    """Clouds at a distance of √2·3: the exact classifier errs on 3.0% of the rows (by 100,000 draws)."""
    judge = train_judge(*blobs(1500), steps=400)
    x, y = blobs(3000)
    assert (judge(x).argmax(1) == y).double().mean() > 0.95


def test_a_judge_of_images_looks_at_them_as_such():
    y = torch.arange(240) % 2
    x = 0.3 * torch.randn(240, 1, 8, 8)
    place = torch.randint(1, 7, (240, 2))
    for row, (i, j), k in zip(x, place, y, strict=True):
        # A bar that lies or stands, anywhere.
        row[0, i - 1 : i + 2, j] += 2.0 * (k == 0)
        row[0, i, j - 1 : j + 2] += 2.0 * (k == 1)
    judge = train_judge(x[:200], y[:200], steps=200)
    assert (judge(x[200:]).argmax(1) == y[200:]).double().mean() > 0.9
    assert judge.features(x).shape == (240, 64)
    assert judge.features(x[:200]).square().mean().item() == pytest.approx(1.0, rel=1e-4)
    assert any(isinstance(module, torch.nn.Conv2d) for module in judge.modules())


def test_the_same_data_and_seed_give_the_same_judge():
    data = blobs(200)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (train_judge(*data, steps=30, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(5, 6)
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))
    assert not any(parameter.requires_grad for parameter in first.parameters())
    bytes_ = train_judge((data[0] > 0).to(torch.uint8), data[1], steps=5)
    assert torch.equal(bytes_(x.double()), bytes_(x))


def test_what_a_judge_cannot_learn_from_is_refused():
    x, y = blobs(12)
    with pytest.raises(LabelError, match="two labels or more"):
        train_judge(x, torch.zeros(12, dtype=torch.long))
    with pytest.raises(LabelError, match="two labels or more"):
        train_judge(x, y - 1)
    with pytest.raises(LabelError, match="each of 12 rows"):
        train_judge(x, y[:5])
    with pytest.raises(DataError):
        train_judge(torch.full((12, 6), math.nan), y)


# Models


def world(spread=1.0, uses_y=True, classes=3, weights=None):
    """The program that draws the blobs, with another spread of z, or without looking at y; z is all of x but noise."""

    def likelihood(z, c):
        loc = 0.8 * z
        if uses_y:
            loc = loc + 3.0 * torch.nn.functional.pad(c, (0, 6 - classes))
        return dist.Normal(loc, 0.6 * spread).to_event(1)

    return pv.VAE(
        prior=lambda c: dist.Normal(torch.zeros(6), spread).to_event(1),
        likelihood=likelihood,
        encoder=encoders.Gaussian(6, (6,), classes),
        condition=pv.OneHot(classes),
    )


@pytest.fixture(scope="module")
def data():
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        train, test = blobs(1500), blobs(900)
        return train, test, train_judge(*train, steps=400)


def test_the_program_of_the_data_is_as_good_as_the_data(data):
    """|z| ≤ 4.89 for each; the two accuracies have sd 0.007, so one that is 7% off would be seen."""
    train, test, judge = data
    found = quality(world(), train, test, judge=judge)
    error = math.hypot(found.terms["accuracy"][1], found.real["accuracy"][1])
    assert abs(found["accuracy"] - found.real["accuracy"][0]) <= limit() * error
    assert error < 0.012
    assert found["diversity"] == pytest.approx(1.0, abs=0.05)
    # Samples with the labels of the test data are more alike to them than chance, so it is a little below zero.
    assert -0.03 < found["judge_kid"] <= limit() * found.terms["judge_kid"][1]
    # One half against the other has twice the bias of all against all.
    assert 0 < found["judge_fid"] < found.real["judge_fid"][0] < 0.5
    assert found["doubt"] == pytest.approx(found.real["doubt"][0], abs=0.05)
    assert found.judge is judge


def test_a_model_that_ignores_y_has_the_accuracy_of_chance(data):
    train, test, judge = data
    found = quality(world(uses_y=False), train, test, judge=judge)
    assert abs(found["accuracy"] - 1 / 3) < 0.05
    assert found["judge_fid"] > 5 * found.real["judge_fid"][0]
    assert found["judge_kid"] > limit() * found.terms["judge_kid"][1]
    assert found["doubt"] > 3 * found.real["doubt"][0]
    for k in range(3):
        asked = found.by_label["accuracy"][k].item()
        assert asked == pytest.approx(1 / 3, abs=0.3)


def test_a_model_that_draws_nearly_the_same_is_right_and_not_diverse(data):
    train, test, judge = data
    found = quality(world(spread=0.05), train, test, judge=judge)
    assert found["accuracy"] == 1.0
    assert found["diversity"] < 0.1
    assert (found.by_label["diversity"] < 0.15).all()
    assert found["judge_fid"] > 3 * found.real["judge_fid"][0]
    # Means in place of draws lack the noise of p(x | z).
    means, draws = (quality(world(), train, test, judge=judge, mean=mean) for mean in (True, False))
    assert means["diversity"] < 0.95 * draws["diversity"]


def test_diversity_is_the_ratio_of_mean_distances(data):
    train, test, judge = data
    vae = world()
    found = quality(vae, train, test, judge=judge, batch_size=900, seed=4)
    with measuring(vae, 4, "quality"):
        x = vae.sample(1, test[1])[0]
    for k in range(3):
        of = [judge.features(rows[test[1] == k]).double() for rows in (x, test[0])]
        apart = [(f[:, None] - f).square().sum(-1).sqrt().sum() / (300 * 299) for f in of]
        assert found.by_label["diversity"][k].item() == pytest.approx((apart[0] / apart[1]).item(), rel=1e-5)
        seen = judge(x[test[1] == k]).argmax(1)
        assert found.by_label["accuracy"][k].item() == pytest.approx((seen == k).double().mean().item())
    assert found["diversity"] == pytest.approx(found.by_label["diversity"].mean().item())
    features = [judge.features(rows).double() for rows in (x, test[0])]
    assert found["judge_fid"] == pytest.approx(fid(*features), rel=1e-6)
    assert found.terms["judge_kid"] == pytest.approx(kid(*features), rel=1e-6)


def test_a_model_without_labels_is_asked_for_their_entropy(data):
    """One that draws two of three clouds has log 2 of the log 3 nats, and a share of nothing for the third."""
    train, test, judge = data

    def mixture(weights):
        centres = 3.0 * torch.eye(3, 6)
        parts = dist.Normal(centres, 1.0).to_event(1)
        return pv.VAE(
            prior=lambda c: dist.MixtureSameFamily(dist.Categorical(torch.tensor(weights)), parts),
            likelihood=lambda z, c: dist.Normal(z, 1e-3).to_event(1),
            encoder=encoders.Gaussian(6, (6,)),
        )

    whole, part = (quality(mixture(w), train, test, judge=judge) for w in ([1 / 3] * 3, [0.5, 0.5, 1e-9]))
    assert "accuracy" not in whole.terms
    assert whole["label_entropy"] == pytest.approx(math.log(3), abs=0.01)
    assert part["label_entropy"] == pytest.approx(math.log(2), abs=0.15)
    assert part.by_label["share"][2] < 0.05
    assert part.by_label["real_share"].tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert part["judge_fid"] > 5 * whole["judge_fid"]
    assert "share" in str(part)
    assert "the accuracy of the judge" in str(part)
    # What is misjudged, the judge misjudges among the samples too.
    assert whole["diversity"] == pytest.approx(1.0, abs=0.05)
    # A label of which no two samples were seen has no diversity.
    none = quality(mixture([1.0, 1e-9, 1e-9]), [r[:90] for r in train], [r[:9] for r in test], judge=judge)
    json.dumps(none.to_dict(), allow_nan=False)


def test_a_judge_that_errs_makes_no_model_less_diverse(data):
    """A model that draws the test data, in any order: one whose labels the judge often cannot tell is as diverse."""
    train, test, _ = data
    flip = torch.rand(len(test[1]), generator=torch.Generator().manual_seed(0)) < 0.3
    noisy = torch.where(flip, (test[1] + 1) % 3, test[1])
    judge = train_judge(*train, steps=400)
    vae = pv.VAE(priors.Standard(6), lambda z, c: dist.Normal(z, 1e-3).to_event(1), encoders.Gaussian(6, (6,)))
    vae.sample = lambda n, mean=False: test[0][torch.randperm(len(test[0]))[:n]]
    found = quality(vae, train, (test[0], noisy), judge=judge, batch_size=900)
    assert found["diversity"] == pytest.approx(1.0, abs=1e-6)
    assert found.real["accuracy"][0] < 0.75


def test_the_entropy_of_few_labels_is_not_too_low(data):
    """The mean over many small sets of samples is that of the law: without a correction it is 0.017 too low."""
    train, test, judge = data
    few = [rows[:60] for rows in test]
    centres = 3.0 * torch.eye(3, 6)
    vae = pv.VAE(
        lambda c: dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Normal(centres, 0.1).to_event(1)),
        lambda z, c: dist.Normal(z, 1e-3).to_event(1),
        encoders.Gaussian(6, (6,)),
    )
    found = torch.tensor([quality(vae, train, few, judge=judge, seed=seed)["label_entropy"] for seed in range(100)])
    # Its standard error is 0.0017.
    assert abs(found.mean().item() - math.log(3)) < 0.008


# What it is for, and what it says


def test_without_a_judge_it_trains_one(data):
    train, test, _ = data
    few = [rows[:90] for rows in test]
    first, again, other = (quality(world(), train, few, steps=50, seed=seed) for seed in (0, 0, 1))
    assert first.to_dict() == again.to_dict() != other.to_dict()
    assert isinstance(first.judge, Judge)
    assert quality(world(), train, few, judge=first.judge).to_dict() == first.to_dict()


def test_nothing_of_the_callers_is_touched(data):
    train, test, judge = data
    vae = world().train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    quality(vae, train, test, judge=judge, batch_size=400)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in vae.modules())
    assert not list(pyro.get_param_store())


def test_what_does_not_fit_is_refused(data):
    train, test, judge = data
    with pytest.raises(DataError, match=r"test: expected \(x, y\)"):
        quality(world(), train, test[0])
    with pytest.raises(DataError, match=r"train: expected \(x, y\)"):
        quality(world(), (train[0], None), test)
    with pytest.raises(LabelError, match="each of 900 rows"):
        quality(world(), train, (test[0], test[1][:5]))
    four = world(classes=4)
    with pytest.raises(LabelError, match="labels 0 … 2, as the judge has learned"):
        quality(four, train, (test[0], test[1] + 1), judge=judge)
    with pytest.raises(LabelError, match="four rows"):
        quality(world(), train, (test[0][:3], test[1][:3]), judge=judge)
    continuous = pv.VAE(
        priors.Standard(6), lambda z, c: dist.Normal(z, 1.0).to_event(1), world().encoder, pv.conditions.Continuous(3)
    )
    with pytest.raises(PartError, match="one integer label"):
        quality(continuous, train, test)
    with pytest.raises(NoDensityError, match="autoencoder"):
        quality(pv.ae((6,), 2), train, test, judge=judge)
    # Grey pixels are none that a Bernoulli draws: a judge of them would tell its samples by that.
    grey = torch.rand(40, 6), torch.arange(40) % 3
    with pytest.raises(DataError, match="Bernoulli"):
        quality(pv.cvae((6,), 2, 3), grey, grey)


def test_the_table_and_the_numbers(data):
    train, test, judge = data
    found = quality(world(), train, test, judge=judge)
    lines = str(found).splitlines()
    assert lines[0].startswith("900 samples, 900 rows of test data")
    assert sum("features of a classifier of the training data" in line for line in lines) == 2
    assert [line.split()[0] for line in lines[-4:]] == ["label", "0", "1", "2"]
    table = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert table["features"] == "the last hidden layer of a classifier of the training data"
    assert table["samples"]["judge_fid"] == {"mean": found["judge_fid"], "standard_error": None}
    assert table["real"]["accuracy"]["mean"] == found.real["accuracy"][0]


def test_kid_of_a_tensor_and_itself_is_of_two_sets_of_rows():
    """Whatever its dtype, and whether or not it is the same object."""
    f = torch.randn(20, 3)
    expected = kid(f.double(), f.double().clone())
    assert kid(f.double(), f.double()) == expected
    assert kid((g := f.double()), g) == expected
    assert kid(f, f) == expected

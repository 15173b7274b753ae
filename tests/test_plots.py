"""Every picture shows the right pixels in the right place, and says what it shows."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ppl_vae import plots
from ppl_vae.errors import DataError, ShapeError
from ppl_vae.plots.figure import COLOURS, DPI, TEXT
from ppl_vae.plots.sheet import MISSING, PAGE, TILE

H, W = 6, 4  # not square, so that a transposed image does not fit


def numbered(*lead, shape=(H, W)):
    """Constant images, each its own number: `(*lead, *shape)`."""
    count = int(np.prod(lead))
    return torch.arange(float(count)).reshape(*lead, *[1] * len(shape)).expand(*lead, *shape).clone()


def canvas(figure):
    (ax,) = figure.axes
    (image,) = ax.images
    return np.asarray(image.get_array())


def numbers(figure, count, rows=None, columns=None):
    """Undo :func:`numbered`: which image is on each tile, after checking that all of its pixels are."""
    pixels = canvas(figure)
    tops = rows if rows is not None else range(0, pixels.shape[0], H + 1)
    lefts = columns if columns is not None else range(0, pixels.shape[1], W + 1)
    table = []
    for top in tops:
        table.append([])
        for left in lefts:
            tile = pixels[top : top + H, left : left + W]
            assert tile.shape == (H, W, 3)
            assert (tile == tile[0, 0, 0]).all()
            table[-1].append(round(float(tile[0, 0, 0]) * (count - 1)))
    return table


def ticks(ax, axis):
    return [label.get_text() for label in getattr(ax, f"get_{axis}ticklabels")()]


def tick_pixels(ax, axis):
    return getattr(ax, f"get_{axis}ticks")().tolist()


def legend(owner):
    found = owner.legends[0] if isinstance(owner, Figure) else owner.get_legend()
    return [text.get_text() for text in found.get_texts()]


def points(ax):
    """The scatters that hold points: legend entries are empty ones."""
    return [each for each in ax.collections if len(each.get_offsets())]


def inside(figure):
    """Every text lies on the paper."""
    figure.draw_without_rendering()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    return min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01


@pytest.mark.parametrize("shape", [(H, W), (1, H, W), (3, H, W)])
def test_grid_puts_row_r_column_c_there(shape):
    figure = plots.grid(
        numbered(3, 5, shape=shape), title="T", row_labels=["a", "b", "c"], column_labels=torch.arange(5)
    )
    assert canvas(figure).shape == (3 * (H + 1) - 1, 5 * (W + 1) - 1, 3)
    assert numbers(figure, 15) == [[5 * r + c for c in range(5)] for r in range(3)]
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "T"
    assert ticks(ax, "y") == ["a", "b", "c"]
    assert ticks(ax, "x") == ["0", "1", "2", "3", "4"]
    assert tick_pixels(ax, "y") == [2.5, 9.5, 16.5]  # the middle of each row of tiles
    assert tick_pixels(ax, "x") == [1.5, 6.5, 11.5, 16.5, 21.5]
    assert ax.xaxis.get_tick_params()["labeltop"]
    assert inside(figure)


def test_grid_keeps_the_pixels_of_an_image_where_they_are():
    images = torch.rand(2, 2, H, W)
    pixels = canvas(plots.grid(images, vrange=(0, 1)))
    np.testing.assert_allclose(pixels[H + 1 :, :W, 0], images[1, 0], atol=1e-7)
    assert plots.grid(images).axes[0].images[0].origin == "upper"


def test_colours_stay_red_green_blue():
    image = torch.zeros(1, 1, 3, H, W)
    image[0, 0, 1, 2, 3] = 1
    pixels = canvas(plots.grid(image))
    assert pixels[2, 3].tolist() == [0, 1, 0]
    assert pixels.sum() == 1


def test_flat_images_are_squares():
    flat = torch.arange(16.0).reshape(1, 1, 16)
    np.testing.assert_array_equal(canvas(plots.grid(flat))[..., 0] * 15, flat.reshape(4, 4))
    with pytest.raises(ShapeError, match=r"square length, got \(1, 1, 15\); reshape"):
        plots.grid(flat[..., :15])


def test_frames_and_empty_places_are_white():
    figure = plots.grid(torch.zeros(5, H, W), rows=2)
    pixels = canvas(figure)
    assert pixels.shape == (2 * H + 1, 3 * W + 2, 3)
    assert (pixels[H] == 1).all()
    assert (pixels[:, W] == 1).all()
    assert (pixels[H + 1 :, 2 * (W + 1) :] == 1).all()
    assert (pixels[:H, :W] == 0).all()
    assert (pixels[H + 1 :, W + 1 : 2 * W + 1] == 0).all()


def test_rows_fill_row_by_row():
    assert numbers(plots.grid(numbered(6), rows=2), 6) == [[0, 1, 2], [3, 4, 5]]
    # As many rows as asked for, with a label each, even when the images do not reach the last one.
    figure = plots.grid(numbered(5), rows=4, row_labels="abcd")
    assert canvas(figure).shape == (4 * (H + 1) - 1, 2 * (W + 1) - 1, 3)


def test_a_plain_batch_of_grey_images_is_nearly_a_square():
    assert numbers(plots.grid(numbered(6, shape=(1, H, W))), 6) == [[0, 1, 2], [3, 4, 5]]
    assert canvas(plots.grid(numbered(16, 1))).shape == (4 * (H + 1) - 1, 4 * (W + 1) - 1, 3)
    # With a label a row it is rows of one, as it is where they are asked for.
    column = [[0], [1], [2], [3]]
    assert numbers(plots.grid(numbered(4, 1), row_labels="abcd"), 4) == column
    assert numbers(plots.grid(numbered(4, 1), rows=4), 4) == column


def test_vrange_is_exact():
    image = torch.tensor([[-2.0, -1.0, 0.0], [1.0, 3.0, 9.0]])[None, None]
    shown = canvas(plots.grid(image, vrange=(-1, 3)))[..., 0]
    np.testing.assert_array_equal(shown, [[0, 0, 0.25], [0.5, 1, 1]])
    shown = canvas(plots.grid(image))[..., 0]
    np.testing.assert_allclose(shown, (image[0, 0] + 2) / 11, rtol=1e-6)
    for vrange in [(1, 1), (2, 1), (float("nan"), 1)]:
        with pytest.raises(DataError, match=r"expected vrange \(lo, hi\) with lo < hi, got"):
            plots.grid(image, vrange=vrange)


def test_constant_missing_and_infinite_values():
    assert (canvas(plots.grid(torch.full((1, 1, H, W), 7.0))) == 0).all()
    image = torch.linspace(0, 1, H * W).reshape(1, 1, H, W)
    image[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    pixels = canvas(plots.grid(image))
    assert pixels[0, 0].tolist() == pytest.approx(MISSING)
    assert pixels[0, 1].tolist() == [1, 1, 1]
    assert pixels[0, 2].tolist() == [0, 0, 0]
    assert canvas(plots.grid(torch.full((1, 1, H, W), float("nan")))).shape == (H, W, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool])
def test_any_dtype(dtype):
    images = numbered(1, 2).to(dtype)
    assert numbers(plots.grid(images), 2) == [[0, 1]]


def test_a_pixel_is_a_whole_number_of_dots(tmp_path):
    from matplotlib.image import imread

    images = torch.rand(2, 3, 8, 8).round()
    path = plots.save(plots.grid(images, row_labels=["one", "two"], title="T"), tmp_path / "a.png")
    page = imread(path)[..., 0]
    k = DPI * TILE // 8
    big = np.kron(canvas(plots.grid(images))[..., 0], np.ones((int(k), int(k))))
    h, w = big.shape
    places = (
        (page[t : t + h, s : s + w] == big).all()
        for t in range(page.shape[0] - h + 1)
        for s in range(page.shape[1] - w + 1)
    )
    assert any(places)


def test_labels_that_do_not_fit_are_turned_or_thinned():
    names = ["T-shirt and top", "Trouser", "Ankle boot"]
    figure = plots.grid(torch.rand(1, 3, 8, 8), column_labels=names)
    assert ticks(figure.axes[0], "x") == names
    assert figure.axes[0].get_xticklabels()[0].get_rotation() == 45
    assert inside(figure)
    figure = plots.grid(torch.rand(200, 2, 4, 4), row_labels=range(200))
    shown = ticks(figure.axes[0], "y")
    assert 10 < len(shown) < 100
    assert shown[0] == "0"
    assert np.diff(tick_pixels(figure.axes[0], "y")).tolist() == [5 * int(shown[1])] * (len(shown) - 1)


def test_large_images_shrink_to_the_page():
    figure = plots.grid(torch.rand(2, 12, 256, 256))
    assert figure.get_size_inches()[0] < PAGE + 0.2
    assert canvas(figure).shape == (2 * 256 + 8, 12 * 256 + 11 * 8, 3)


def test_samples_have_a_row_a_label():
    figure = plots.samples(numbered(3, 4, shape=(1, H, W)), ["a", "b", "c", "d"])
    assert numbers(figure, 12) == [[4 * n + k for n in range(3)] for k in range(4)]
    (ax,) = figure.axes
    assert ticks(ax, "y") == ["a", "b", "c", "d"]
    assert "label" in ax.get_ylabel()
    unnamed = plots.samples(numbered(3, 4, shape=(1, H, W)))
    np.testing.assert_array_equal(canvas(unnamed), canvas(figure))
    assert ticks(unnamed.axes[0], "y") == []
    np.testing.assert_array_equal(canvas(plots.samples(numbered(3, 4), range(4))), canvas(figure))


def test_samples_without_labels_are_nearly_a_square():
    assert numbers(plots.samples(numbered(12, shape=(1, H, W))), 12) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    with pytest.raises(ShapeError, match=r"\(n, K, \*x_shape\) with K labels, got \(2, 5, 6, 4\)"):
        plots.samples(torch.rand(2, 5, H, W))
    with pytest.raises(ShapeError, match="expected 5 labels, one a row, got 4"):
        plots.samples(torch.rand(2, 5, H, W), range(4))


def test_reconstructions_stand_below_their_originals():
    x = numbered(5)
    figure = plots.reconstructions(x, x + 5, list("vwxyz"), columns=3, title="T")
    gap = H // 2
    rows = [0, H + 1, 2 * (H + 1) + gap, 3 * (H + 1) + gap]
    table = numbers(figure, 10, rows)
    assert table[:2] == [[0, 1, 2], [5, 6, 7]]
    assert [row[:2] for row in table[2:]] == [[3, 4], [8, 9]]
    (ax,) = figure.axes
    assert (canvas(figure)[rows[2] :, 2 * (W + 1) :] == 1).all()
    assert ticks(ax, "y") == ["original", "reconstruction"] * 2
    captions = {text.get_text(): text.get_position() for text in ax.texts}
    assert captions["v"] == (1.5, -1)
    assert captions["z"] == (6.5, rows[2] - 1)
    assert inside(figure)
    long = plots.reconstructions(x, x, ["a very long name", *"wxyz"]).axes[0]
    assert {text.get_fontsize() < 0.6 * TEXT for text in long.texts} == {True}
    assert long.texts[0].get_window_extent().width <= 1.05 * TILE * DPI


def test_reconstructions_share_one_range():
    x = torch.tensor([0.0, 1.0]).expand(1, H, 2)
    pixels = canvas(plots.reconstructions(x, 0.5 * x))
    assert pixels[0, :, 0].tolist() == [0, 1]
    assert pixels[-1, :, 0].tolist() == [0, 0.5]
    # Integer originals do not make integers of their reconstructions.
    pixels = canvas(plots.reconstructions(x.to(torch.uint8), 0.5 * x))
    assert pixels[-1, :, 0].tolist() == [0, 0.5]


def test_reconstructions_refuse_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"one shape .*got \(2, 6, 4\) and \(3, 6, 4\)"):
        plots.reconstructions(torch.rand(2, H, W), torch.rand(3, H, W))
    with pytest.raises(ShapeError, match="expected 2 labels, one an image, got 3"):
        plots.reconstructions(torch.rand(2, H, W), torch.rand(2, H, W), [1, 2, 3])
    with pytest.raises(ShapeError, match="columns=0"):
        plots.reconstructions(torch.rand(2, H, W), torch.rand(2, H, W), columns=0)


def test_interpolation_steps_go_to_the_right():
    figure = plots.interpolation(numbered(4, 2), ["a", "b"])
    assert numbers(figure, 8) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert ticks(figure.axes[0], "y") == ["a", "b"]


def test_translations_set_the_original_apart():
    images = numbered(2, 4)
    figure = plots.translations(images[:, 0], images[:, 1:], ["a", "b", "c"])
    gap = -(-W // 3)
    columns = [0, *(c * (W + 1) + gap for c in (1, 2, 3))]
    assert numbers(figure, 8, columns=columns) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (canvas(figure)[:, W : columns[1]] == 1).all()
    (ax,) = figure.axes
    assert ticks(ax, "x") == ["original", "a", "b", "c"]
    assert tick_pixels(ax, "x") == [left + (W - 1) / 2 for left in columns]
    with pytest.raises(ShapeError, match=r"styles \(S, \*x_shape\) and images .*got \(3, 6, 4\) and"):
        plots.translations(torch.rand(3, H, W), images, range(4))
    with pytest.raises(ShapeError, match="expected 4 labels, one a class, got 3"):
        plots.translations(images[:, 0], images, range(3))


def test_manifold_grows_to_the_right_and_upwards():
    figure = plots.manifold(numbered(2, 3), torch.tensor([-1.0, 0.0, 1.5]), [10, 20])
    assert numbers(figure, 6) == [[3, 4, 5], [0, 1, 2]]
    (ax,) = figure.axes
    assert ticks(ax, "x") == ["−1", "0", "1.5"]
    assert ticks(ax, "y") == ["20", "10"]
    assert ax.xaxis.get_tick_params()["labelbottom"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latent dimension 1", "latent dimension 2")
    assert inside(figure)
    # In whatever order the coordinates come.
    other = plots.manifold(numbered(2, 3).flip(0, 1), [1.5, 0, -1], [20, 10])
    np.testing.assert_array_equal(canvas(other), canvas(figure))


def test_manifold_labels_some_of_many_coordinates():
    z = torch.linspace(-2.5, 2.5, 15)
    figure = plots.manifold(torch.rand(15, 15, 4, 4), z, z)
    assert ticks(figure.axes[0], "x") == ["−2.14", "−1.07", "0", "1.07", "2.14"]
    assert tick_pixels(figure.axes[0], "x") == [5 * i + 1.5 for i in (1, 4, 7, 10, 13)]
    with pytest.raises(ShapeError, match=r"got \(15, 15, 4, 4\) and \(14,\) and \(15,\)"):
        plots.manifold(torch.rand(15, 15, 4, 4), z[1:], z)
    with pytest.raises(DataError, match="finite coordinates"):
        plots.manifold(torch.rand(15, 15, 4, 4), z.log(), z)


def test_latents_of_two_dimensions_are_drawn_as_they_are():
    z, y = torch.randn(30, 2), torch.arange(30) % 3
    figure = plots.latents(z, y, title="T")
    (ax,) = figure.axes
    (drawn,) = points(ax)
    pairs = zip(drawn.get_offsets(), drawn.get_facecolors(), strict=True)
    shown = {(*map(float, xy), *rgba[:3]) for xy, rgba in pairs}
    expected = {(*map(float, z[i]), *to_rgb(COLOURS[y[i]])) for i in range(30)}
    assert shown == expected
    assert legend(figure) == ["0", "1", "2"]
    colours = [mark.get_facecolor()[0, :3].tolist() for mark in figure.legends[0].legend_handles]
    assert colours == [list(to_rgb(colour)) for colour in COLOURS[:3]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latent dimension 1", "latent dimension 2")
    assert figure.get_suptitle() == "T"
    assert not plots.latents(z).legends


def test_latents_of_more_are_projected_on_principal_components():
    """Two orthogonal directions with standard deviations 4 and 2: 16 and 4 of a variance of 20."""
    u = torch.tensor([3.0, 0.0, 4.0]) / 5
    v = torch.tensor([0.0, 1.0, 0.0])
    a = torch.tensor([4.0, 4.0, -4.0, -4.0])
    b = torch.tensor([2.0, -2.0, 2.0, -2.0])
    z = a[:, None] * u + b[:, None] * v + torch.tensor([7.0, 8.0, 9.0])
    (ax,) = plots.latents(z).axes
    (drawn,) = points(ax)
    offsets = np.array(sorted(np.asarray(drawn.get_offsets()).tolist()))
    np.testing.assert_allclose(offsets, [[-4, -2], [-4, 2], [4, -2], [4, 2]], atol=1e-6)
    assert ax.get_xlabel() == "principal component 1 (80% of variance)"
    assert ax.get_ylabel() == "principal component 2 (20% of variance)"
    three = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    (ax,) = plots.latents(torch.cat([three, -three])).axes
    assert ax.get_xlabel() == "principal component 1 (76% of variance)"  # 16 of 21
    # A collapsed posterior has no variance to share.
    for count in (1, 4):
        assert "(0% of variance)" in plots.latents(torch.ones(count, 3)).axes[0].get_xlabel()


def test_latents_of_one_dimension_are_a_histogram():
    figure = plots.latents(torch.arange(20.0)[:, None], ["b", "a"] * 10)
    (ax,) = figure.axes
    assert legend(figure) == ["a", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("latent dimension 1", "codes per bin")
    assert [sum(bar.get_height() for bar in bars) for bars in ax.containers] == [10, 10]


def test_latents_tell_many_labels_apart():
    z = torch.randn(120, 4)
    figure = plots.latents(z, torch.arange(120) % 26)
    assert len(legend(figure)) == 26
    drawn = points(figure.axes[0])
    shapes = {len(each.get_paths()[0]) for each in drawn}
    assert len(drawn) == len(shapes) == 3  # a marker for every ten
    assert sum(len(each.get_offsets()) for each in drawn) == 120
    assert inside(figure)
    with pytest.raises(DataError, match="at most 60 different labels, got 120"):
        plots.latents(z, torch.arange(120))
    with pytest.raises(DataError, match="at most 10 different labels, got 11"):
        plots.latents(z[:, :1], torch.arange(120) % 11)


def test_latents_refuse_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"expected z of shape \(N, L\).*got \(2, 3, 4\)"):
        plots.latents(torch.rand(2, 3, 4))
    with pytest.raises(ShapeError, match=r"expected y of shape \(5,\), got \(5, 3\).*argmax"):
        plots.latents(torch.rand(5, 2), torch.eye(5)[:, :3])
    z = torch.rand(5, 2)
    z[3, 1] = float("nan")
    with pytest.raises(DataError, match=r"finite codes, got .*nan.* at z\[3\]"):
        plots.latents(z)


@pytest.mark.parametrize(
    ("features", "panels", "labelled"),
    [(1, 1, False), (1, 1, True), (2, 3, True), (3, 4, False), (5, 6, False), (9, 7, True)],
)
def test_prior_vs_posterior_panels(features, panels, labelled):
    prior, posterior = torch.randn(60, features), 0.5 * torch.randn(40, features)
    y = torch.arange(40) % 4 if labelled else None
    figure = plots.prior_vs_posterior(prior, posterior, y, title="T")
    assert len(figure.axes) == panels
    margins = figure.axes[-min(features, 6) :]
    assert [ax.get_xlabel() for ax in margins] == [f"latent dimension {i + 1}" for i in range(len(margins))]
    assert margins[0].get_ylabel() == "density"
    if labelled and features > 1:
        assert legend(figure) == ["prior", "0", "1", "2", "3", "aggregate posterior"]
    else:
        assert legend(figure) == ["prior", "aggregate posterior"]
    assert inside(figure)


def test_prior_vs_posterior_draws_both():
    prior, posterior = torch.randn(60, 2), torch.randn(40, 2) + 3
    scatter, first, _ = plots.prior_vs_posterior(prior, posterior).axes
    clouds = [np.asarray(each.get_offsets()) for each in points(scatter)]
    assert [len(cloud) for cloud in clouds] == [60, 40]
    for cloud, z in zip(clouds, (prior, posterior), strict=True):
        np.testing.assert_allclose(np.sort(cloud, 0), z.sort(0).values)
    bars = first.containers[0]
    assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1)
    outline = first.patches[-1].get_xy()
    assert np.trapezoid(outline[:, 1], outline[:, 0]) == pytest.approx(1)
    assert (outline[:, 0] * outline[:, 1]).sum() > 0  # the posterior, right of zero
    with pytest.raises(ShapeError, match=r"same L, got \(60, 2\) and \(40, 1\)"):
        plots.prior_vs_posterior(prior, posterior[:, :1])


def test_prior_is_projected_on_the_components_of_the_posterior():
    posterior = torch.tensor([[5.0, 0, 0], [-5, 0, 0], [0, 1, 0], [0, -1, 0]]) + 9
    prior = torch.tensor([[10.0, 11.0, 12.0]])
    scatter = plots.prior_vs_posterior(prior, posterior).axes[0]
    np.testing.assert_allclose(points(scatter)[0].get_offsets(), [[1, 2]], atol=1e-6)


EPOCHS = [{"epoch": e, "neg_elbo": 90.0 / e, "reconstruction": 60.0 / e, "kl": 30.0 / e} for e in (1, 2, 3)]


def test_history_has_two_panels():
    entries = [e | {"valid_neg_elbo": 7.0 if e["epoch"] != 2 else None, "beta": 1.0} for e in EPOCHS]
    entries = [e | {"loss": torch.tensor(e["neg_elbo"])} for e in entries]
    left, right = plots.history(iter(entries)).axes
    train, valid = left.lines
    assert train.get_xydata().tolist() == [[1, 90], [2, 45], [3, 30]]
    assert valid.get_xydata().tolist() == [[1, 7], [3, 7]]  # None is left out
    reconstruction, kl = right.lines
    assert reconstruction.get_xydata().tolist() == [[1, 60], [2, 30], [3, 20]]
    assert kl.get_xydata().tolist() == [[1, 30], [2, 15], [3, 10]]
    assert legend(left) == ["train", "validation"]
    assert legend(right) == ["reconstruction", "KL"]
    for ax in (left, right):
        assert ax.get_xlabel() == "epoch"
        assert "nats per image" in ax.get_ylabel()
        assert all(float(tick).is_integer() for tick in ax.get_xticks())
    assert "ELBO" in left.get_ylabel()
    left, right = plots.history(entries, unit="nats per row").axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("−ELBO (nats per row)", "its parts (nats per row)")
    assert left.lines[0].get_xydata().tolist() == [[1, 90], [2, 45], [3, 30]]  # a name, no conversion


def test_history_shows_beta_and_the_loss_where_they_say_more():
    entries = [e | {"beta": e["epoch"] / 3, "loss": 5.0} for e in EPOCHS]
    figure = plots.history(entries, title="T")
    left, _, third = figure.axes
    assert legend(left) == ["train", "minimised loss"]
    assert third.get_ylabel() == "β"
    assert third.lines[0].get_ydata().tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert inside(figure)


def test_history_without_a_prior_is_of_the_reconstruction():
    entries = [{"epoch": e, "neg_elbo": 9.0, "loss": 9.0, "reconstruction": 9.0, "kl": 0.0} for e in (1, 2)]
    left, right = plots.history(entries).axes
    assert left.get_ylabel() == "reconstruction (nats per image)"
    assert legend(right) == ["reconstruction"]


def test_history_of_little():
    left, right = plots.history([{"epoch": 1, "loss": float("nan")}]).axes
    assert legend(left) == ["minimised loss"]
    assert right.get_legend() is None
    for entries in ([], [{"loss": 1.0}]):
        with pytest.raises(DataError, match="expected one mapping with 'epoch'"):
            plots.history(entries)


def every_figure():
    x = torch.rand(4, 1, 8, 8)
    z = torch.randn(20, 3)
    return {
        "grid": lambda: plots.grid(x[None]),
        "samples": lambda: plots.samples(x[None], range(4)),
        "reconstructions": lambda: plots.reconstructions(x, x, range(4)),
        "interpolation": lambda: plots.interpolation(x[:, None]),
        "translations": lambda: plots.translations(x, x[:, None], [0]),
        "manifold": lambda: plots.manifold(x.unflatten(0, (2, 2)), [0, 1], [0, 1]),
        "latents": lambda: plots.latents(z, torch.arange(20) % 3),
        "prior_vs_posterior": lambda: plots.prior_vs_posterior(z, z),
        "history": lambda: plots.history(EPOCHS),
        "calibration": lambda: plots.calibration(torch.arange(400)[:, None] % 100, draws=99),
        "dimensions": lambda: plots.dimensions(z[0].square()),
        "likelihood": lambda: plots.likelihood([1, 10], -x.flatten(1)[:2], x[0, 0, 0]),
    }


@pytest.mark.parametrize("name", [name for name in plots.__all__ if name != "save"])
def test_every_function_returns_a_figure_that_saves_as_large_as_it_is(name, tmp_path):
    draw = every_figure()[name]
    state = torch.get_rng_state()
    figure = draw()
    assert isinstance(figure, Figure)
    path = plots.save(figure, tmp_path / "a" / "b" / f"{name}.png")
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    size = [int.from_bytes(header[i : i + 4], "big") for i in (16, 20)]
    assert size == pytest.approx((figure.get_size_inches() * figure.dpi).tolist(), abs=1)
    assert [each.name for each in path.parent.iterdir()] == [f"{name}.png"]
    assert torch.equal(torch.get_rng_state(), state)  # a picture leaves the seeds of an experiment alone


def test_inputs_are_left_alone_and_may_need_gradients():
    x = torch.rand(2, 2, H, W, dtype=torch.float64, requires_grad=True)
    z = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone(), z.detach().clone()
    plots.grid(x, vrange=(0.2, 0.8))
    plots.samples(x, range(2))
    plots.reconstructions(x[0], x[1], range(2))
    plots.interpolation(x)
    plots.translations(x[:, 0], x, range(2))
    plots.manifold(x, z[:2, 0], z[:2, 1])
    plots.latents(z)
    plots.prior_vs_posterior(z, z)
    assert torch.equal(x, before[0])
    assert torch.equal(z, before[1])
    assert x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("shape", [(), (2,), (2, 2), (2, 2, 2, H, W), (2, 0, H, W), (2, 2, 1, 1, H, W)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ShapeError, match=r"expected .*images \(R, C, \*x_shape\), got .*; x_shape is"):
        plots.grid(torch.zeros(shape))
    with pytest.raises(ShapeError, match="rows=0"):
        plots.grid(torch.zeros(2, H, W), rows=0)


def test_save_replaces_in_one_step_and_keeps_the_old_file_on_a_fault(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure = plots.grid(torch.rand(1, 2, 8, 8))

    def fault(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fault)
        with pytest.raises(OSError, match="no space"):
            plots.save(figure, path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"old"
    assert plots.save(figure, str(path)) == path
    assert path.stat().st_size > 200
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_save_goes_by_the_ending(tmp_path):
    figure = plots.grid(torch.rand(1, 2, 8, 8))
    assert plots.save(figure, tmp_path / "a.PDF").read_bytes().startswith(b"%PDF")
    assert b"<svg" in plots.save(figure, tmp_path / "a.svg").read_bytes()
    with pytest.raises(DataError, match=r"ends in .png, .pdf, .svg, got 'a.jpg'"):
        plots.save(figure, tmp_path / "a.jpg")


def test_pyplot_is_never_imported(tmp_path):
    code = (
        "import sys, torch; from ppl_vae import plots\n"
        "plots.save(plots.latents(torch.randn(9, 2), torch.arange(9)), sys.argv[1])\n"
        "plots.grid(torch.rand(1, 1, 4, 4), title='T')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], check=True, timeout=120)

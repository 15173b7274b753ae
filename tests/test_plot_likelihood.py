"""The picture of a log-likelihood: what is drawn is what was given."""

import numpy as np
import pytest
import torch

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.cli import report
from ppl_vae.errors import ShapeError
from ppl_vae.evaluation import LogLikelihood

CURVE = -torch.tensor([[9.0, 8.0, 10.0], [7.0, 7.0, 8.0], [6.5, 6.0, 7.0]])


def test_lines_and_bars():
    figure = plots.likelihood([1, 10, 100], CURVE, torch.tensor([0.1, 0.9, -torch.inf]), limit=0.5, title="all")
    left, right = figure.axes
    points, means = left.lines[0].get_data()
    assert list(points) == [1, 10, 100]
    np.testing.assert_allclose(means, [9.0, 22 / 3, 6.5])
    assert left.get_xscale() == "log"
    assert sum(bar.get_height() for bar in right.patches) == 3
    assert "1 of 3 rows" in right.texts[0].get_text()
    assert right.lines[0].get_xdata()[0] == 0.5
    assert figure.get_suptitle() == "all"


def test_the_band_is_twice_the_error_of_what_is_still_to_come():
    """Of a row's own gain, so that what rows differ by anyway is not in it."""
    (band,) = plots.likelihood([1, 10, 100], CURVE).axes[0].collections
    vertices = torch.tensor(band.get_paths()[0].vertices)
    for point, expected in [(1, 1 / 3**0.5), (10, 1 / 3), (100, 0.0)]:
        at = vertices[vertices[:, 0] == point, 1]
        assert (at.max() - at.min()) / 2 == pytest.approx(expected, abs=1e-6)
        mean = -CURVE[[1, 10, 100].index(point)].mean().item()
        assert (at.max() + at.min()) / 2 == pytest.approx(mean, abs=1e-6)


def test_one_panel_and_one_row():
    assert len(plots.likelihood([1, 10, 100], CURVE).axes) == 1
    assert len(plots.likelihood([1, 10, 100], CURVE[:, :1]).axes) == 1


@pytest.mark.parametrize("curve", [CURVE[:2], CURVE[0]])
def test_refuses_another_number_of_points(curve):
    with pytest.raises(ShapeError, match="3, N"):
        plots.likelihood([1, 10, 100], curve)


def test_rows_are_counted_as_in_the_table():
    """Flat tails (−∞) are good, and those that nothing is known of (NaN) are neither good nor at the limit."""
    k = torch.cat(
        [torch.full((190,), -torch.inf), torch.full((4,), 0.9), torch.full((6,), 0.1), torch.full((3,), torch.nan)]
    )
    figure = plots.likelihood([1, 10], torch.randn(2, 203), k)
    assert figure.axes[1].texts[0].get_text() == "4 of 203 rows\nat 0.70 or above\nnot known for 3"


@pytest.mark.parametrize(("k", "panels"), [(-torch.inf, 2), (torch.inf, 2), (torch.nan, 1)])
def test_infinite_tails_are_drawn_after_an_evaluation(k, panels, tmp_path, monkeypatch):
    """All flat (−∞), or all one weight (∞): that is known of them, and of NaN there is nothing to draw."""
    row = torch.zeros(3)
    found = LogLikelihood(row, row, row, torch.full((3,), k), 100, CURVE, (1, 10, 100), "encoder")
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: (drawn.append(figure), path)[1])
    assert report.draw_likelihood(pv.vae((4,), 2), found, tmp_path) == tmp_path / "likelihood.png"
    assert len(drawn[0].axes) == panels

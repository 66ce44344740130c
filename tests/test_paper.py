"""Figures for papers: what is drawn is what was given, and what cannot be drawn is refused."""

import io

import numpy as np
import pytest

from ensdiff.report import radius_figure


def svg(figure):
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    return stream.getvalue()


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_radius_figure_draws_medians_and_a_line_of_the_slope_through_the_centre():
    sizes, radii = [1000, 10, 100], np.array([[0.2, 0.1, np.nan], [2.0, 1.0, 4.0], [0.5, 0.4, 0.6]])
    figure = radius_figure(sizes, radii, slope=-0.5, interval=(-0.6, -0.45))
    drawn = lines(figure)
    medians = figure.axes[0].containers[0][0]
    np.testing.assert_array_equal(medians.get_xdata(), [10, 100, 1000])
    np.testing.assert_allclose(medians.get_ydata(), [2.0, 0.5, 0.15])
    line = drawn["slope -0.50 (-0.60 to -0.45)"]
    x, y = np.log(line.get_xdata()), np.log(line.get_ydata())
    np.testing.assert_allclose(np.diff(y) / np.diff(x), -0.5)
    seen = ~np.isnan(radii)
    centre = np.log(np.repeat(np.array(sizes, float)[:, None], 3, axis=1)[seen]).mean()
    np.testing.assert_allclose(np.interp(centre, x, y), np.log(radii[seen]).mean(), rtol=1e-6)
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")
    assert "<svg" in svg(figure)
    assert len(lines(radius_figure(sizes, radii))) == len(drawn) - 1


@pytest.mark.parametrize(
    ("sizes", "radii", "options", "words"),
    [
        ([1, 2], [[1.0]], {}, r"sizes \(2,\), radii \(1, 1\)"),
        ([1, 1], [[1.0], [2.0]], {}, "each once"),
        ([0, 1], [[1.0], [2.0]], {}, "positive numbers"),
        ([1, 2], [[1.0], [0.0]], {}, "must be positive"),
        ([1, 2], [[1.0], [np.nan]], {}, "size 2 has no radius"),
        ([1, 2], [[1.0], [2.0]], {"interval": (0.0, 1.0)}, "without its slope"),
    ],
)
def test_radius_figure_refuses(sizes, radii, options, words):
    with pytest.raises(ValueError, match=words):
        radius_figure(sizes, np.array(radii), **options)

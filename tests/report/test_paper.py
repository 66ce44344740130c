"""Figures for papers: they draw exactly the given values, and refuse values that cannot be drawn."""

import io

import numpy as np
import pytest

from ensdiff.metrics import power_law
from ensdiff.report import comparison_figure, comparison_table, landscape_figure, radius_figure


def svg(figure):
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    return stream.getvalue()


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_radius_figure_draws_means_and_a_line_of_the_slope_through_the_centre():
    sizes, radii = [1000, 10, 100], np.array([[0.2, 0.1, np.nan], [2.0, 1.0, 4.0], [0.5, 0.4, 0.6]])
    figure = radius_figure(sizes, radii, slope=-0.5, interval=(-0.6, -0.45))
    drawn = lines(figure)
    means = drawn["mean, and quartiles"]
    np.testing.assert_array_equal(means.get_xdata(), [10, 100, 1000])
    np.testing.assert_allclose(means.get_ydata(), [7 / 3, 0.5, 0.15])
    line = drawn["slope -0.50 (-0.60 to -0.45)"]
    x, y = np.log(line.get_xdata()), np.log(line.get_ydata())
    np.testing.assert_allclose(np.diff(y) / np.diff(x), -0.5)
    np.testing.assert_allclose(np.interp(np.log(100), x, y), np.log([7 / 3, 0.5, 0.15]).mean(), rtol=1e-6)
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
        ([1, 2], [[1.0], [2.0]], {"interval": (0.0, 1.0)}, "without a slope"),
    ],
)
def test_radius_figure_refuses(sizes, radii, options, words):
    with pytest.raises(ValueError, match=words):
        radius_figure(sizes, np.array(radii), **options)


def test_the_line_is_the_one_that_power_law_fits(rng):
    sizes, radii = [75, 150, 600], rng.uniform(0.5, 1.5, (3, 8))
    law = power_law(sizes, radii, resamples=0)
    line = lines(radius_figure(sizes, radii, law.slope.value))[f"slope {law.slope.value:.2f}"]
    np.testing.assert_allclose(line.get_ydata(), law.scale * line.get_xdata() ** law.slope.value, rtol=1e-6)


def test_landscape_figure_places_samples_in_rows_and_units_in_columns(rng):
    images, without = rng.random((2, 4, 4, 1)), rng.random((3, 2, 4, 4, 1))
    pictures = rng.integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    names = ["a", "<b>", "$c^$"]  # names are not read as formulas
    figure = landscape_figure(images, without, names, influence_MB=rng.random((3, 2)), pictures_MHWC=pictures)
    axes = np.array(figure.axes).reshape(3, 4)
    for b in range(2):
        np.testing.assert_allclose(axes[1 + b, 0].images[0].get_array(), images[b, ..., 0])
        for i in range(3):
            np.testing.assert_allclose(axes[1 + b, 1 + i].images[0].get_array(), without[i, b, ..., 0])
    np.testing.assert_array_equal(axes[0, 2].images[0].get_array(), pictures[1, ..., 0])
    assert [axis.get_title() for axis in axes[0, 1:]] == names
    assert "&lt;b&gt;" in svg(figure)
    colour = landscape_figure(rng.random((1, 4, 4, 3)), rng.random((2, 1, 4, 4, 3)))
    assert colour.axes[1].images[0].get_array().shape == (4, 4, 3)
    for arguments, options, words in (
        ((images, without[:, :1]), {}, r"expected \(B, H, W, C\) and"),
        ((images, without, ["a"]), {}, "3 units, but 1 names"),
        ((images, without), {"influence_MB": np.zeros((2, 3))}, r"expected \(3, 2\)"),
    ):
        with pytest.raises(ValueError, match=words):
            landscape_figure(*arguments, **options)


def test_methods_are_compared_by_means_over_samples():
    values = {"exact": [1.0, 1.0], "loss": [0.0, 0.5, np.nan]}
    figure = comparison_figure(values, "Spearman", {"exact": 1e6, "loss": 1e3})
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [float(line.get_xdata()[0]) for line in points] == [1.0, 0.25]
    assert [patch.get_width() for patch in figure.axes[1].patches] == [1e6, 1e3]
    table = comparison_table({"Spearman": values, "top-1": {"screen": [1, 0, 1, 0]}}, note="Higher is better.")
    assert table.header == ("method", "Spearman", "top-1")
    assert [row[0] for row in table.rows] == ["exact", "loss", "screen"]
    assert table.rows[1][1].startswith("0.25 (0.00 to 0.50)")
    assert table.rows[1][2] == table.rows[2][1] == ""
    assert table.rows[2][2].startswith("0.50 (")
    for call, words in (
        (lambda: comparison_figure({}, "x"), "no values of any method"),
        (lambda: comparison_figure({"a": [np.nan]}, "x"), "no values of a"),
        (lambda: comparison_figure({"a": [1]}, "x", {"b": 1}), "expected a positive cost for each"),
        (lambda: comparison_table({}), "no measures"),
    ):
        with pytest.raises(ValueError, match=words):
            call()

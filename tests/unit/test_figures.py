"""Figures of a comparison stay readable with many models of long names."""

import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from recbole_diffurec.experiments import looks


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context(looks.STYLE):
        yield


@pytest.mark.parametrize("n", [2, 3, 8, 25])
def test_a_long_legend_leaves_the_axes_their_size(n, tmp_path):
    figure, (upper, lower) = looks.new_figure(2, 1.7)
    for i in range(n):
        upper.plot([0, 1], [0, i], label=f"DiffuRec@lambda_uncertainty=0.1+noise_schedule=s{i}")
    looks.legend(figure, upper)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        looks.write_figure(figure, tmp_path / "figure")
    for axes in (upper, lower):
        assert axes.get_window_extent().height / figure.dpi > 0.8  # inches
    legend = figure.legends[0].get_window_extent()
    assert legend.width / figure.dpi <= looks.COLUMN


def test_models_of_a_large_comparison_look_different():
    drawn = [looks.look(i) for i in range(64)]
    assert len(set(drawn)) == 64
    assert len({look.colour for look in drawn[:16]}) == len({look.marker for look in drawn[:16]}) == 16


def test_colours_are_far_from_each_other():
    """By their distance in CIELAB, where 2.3 is what an eye can just tell."""
    red_green_blue = np.array([matplotlib.colors.to_rgb(colour) for colour in looks.COLOURS])
    linear = np.where(red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    f = (linear @ to_xyz.T) / [0.9505, 1.0, 1.089]
    f = np.where(f > 216 / 24389, np.cbrt(f), (24389 / 27 * f + 16) / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 20
    assert lab[:, 0].max() < 90  # each is seen on white


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    """As formulas they would be others, or none, which is an error."""
    names = ["x$_{$", "$\\frac$", "$a$"]
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 1e6], [1, 2], label=names[0])
    axes.set(xscale="log", title=names[1], xlabel=names[2])
    axes.set_yticks([1, 2], names[:2])
    figure.legend(*axes.get_legend_handles_labels())
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        svg = looks.write_figure(figure, tmp_path / "a").decode()
    assert all(f">{name}<" in svg for name in names) and r">$\mathdefault" not in svg

"""Figures of a comparison stay readable with many models of long names."""

import warnings

import matplotlib
import pytest
from matplotlib.figure import Figure

from recbole_diffurec.experiments import figures


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context(figures.STYLE):
        yield


@pytest.mark.parametrize("n", [2, 3, 8, 25])
def test_a_long_legend_leaves_the_axes_their_size(n, tmp_path):
    figure, (upper, lower) = figures._figure(2, 1.7)
    for i in range(n):
        upper.plot([0, 1], [0, i], label=f"DiffuRec@lambda_uncertainty=0.1+noise_schedule=s{i}")
    figures._legend(figure, upper)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.write_figure(figure, tmp_path / "figure")
    for axes in (upper, lower):
        assert axes.get_window_extent().height / figure.dpi > 0.8  # inches
    legend = figure.legends[0].get_window_extent()
    assert legend.width / figure.dpi <= figures.COLUMN


def test_models_of_a_large_comparison_look_different():
    n = len(figures.COLOURS)
    assert n == len(figures.MARKERS) == len(figures.HATCHES)
    assert len({figures._appearance(i) for i in range(n * n)}) == n * n


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
        svg = figures.write_figure(figure, tmp_path / "a").decode()
    assert all(f">{name}<" in svg for name in names) and r">$\mathdefault" not in svg

"""The figure of a hyper-parameter search. matplotlib is imported when it is drawn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recbole_diffurec.experiments.looks import COLUMN, STYLE, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_search(
    trials: pd.DataFrame, names: Sequence[str], logarithmic: Collection[str], metric: str, stem: Path
) -> None:
    """Parallel coordinates of a hyper-parameter search: one line per trial, the darker the better.

    Parameters
    ----------
    trials : pd.DataFrame
        Rows with the columns ``names`` and ``score``.
    logarithmic : Collection of str
        Which of the names have a logarithmic axis.
    metric : str
        What the score is.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        write_figure(_parallel_coordinates(trials, names, logarithmic, metric), stem)


def _parallel_coordinates(
    trials: pd.DataFrame, names: Sequence[str], logarithmic: Collection[str], metric: str
) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(COLUMN, 1.1 * (len(names) + 1)), 3.0), layout="constrained")
    axes = figure.subplots()
    places = {}
    for x, name in enumerate([*names, "score"]):
        places[name], ticks = _axis_of(trials[name], name in logarithmic)
        axes.axvline(x, color="0.6", linewidth=0.8)
        for y, text in ticks:
            axes.text(x + 0.03, y, text, fontsize=6, va="center")
    order = places["score"].sort_values().index
    for row in order:
        heights = [places[name][row] for name in (*names, "score")]
        axes.plot(
            range(len(heights)), heights, color=colormaps["viridis_r"](places["score"][row]), linewidth=1, alpha=0.8
        )
    axes.set_xticks(range(len(names) + 1), [*names, metric], rotation=25, ha="right")
    axes.set_xlim(-0.1, len(names) + 0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    return figure


def _axis_of(values: pd.Series, logarithmic: bool) -> tuple[pd.Series, list[tuple[float, str]]]:
    """Heights in [0, 1] of values on their own axis, and the ticks: the range of numbers, each of other values."""
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        kinds = sorted(values.astype(str).unique())
        height = {kind: i / max(len(kinds) - 1, 1) for i, kind in enumerate(kinds)}
        return values.astype(str).map(height), [(y, kind) for kind, y in height.items()]
    scaled = np.log(values) if logarithmic else values
    low, high = scaled.min(), scaled.max()
    ticks = (
        [(0.0, f"{values.min():.3g}"), (1.0, f"{values.max():.3g}")] if high > low else [(0.0, f"{values.min():.3g}")]
    )
    return (scaled - low) / (high - low or 1), ticks

"""Figures of a comparison, as PNG and SVG: readable at the width of a paper's column and by colour-blind readers.

matplotlib and scikit-learn are imported when figures are drawn.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Collection, Iterator, Sequence

import numpy as np
import pandas as pd

from recbole_diffurec.experiments import measures
from recbole_diffurec.experiments.tables import Results, metric_name
from recbole_diffurec.runtime import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN, LEGEND_ROW, LEGEND_HANDLE, LEGEND_CHARACTER = 3.5, 0.15, 0.47, 0.052  # inches
# Okabe and Ito's palette, which colour-blind readers can tell apart; hatches and markers say the same once more.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#999933"]
HATCHES = ["", "///", "...", "xxx", "\\\\\\", "ooo", "++", "--"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.5,
    "svg.hashsalt": "recbole_diffurec",
    "text.usetex": False,  # LaTeX would run what names say
}
N_CLUSTERS = 10


@dataclass(frozen=True)
class Picture:
    """A drawn figure: its title for the report, its data set, and the SVG text."""

    name: str
    dataset: str
    title: str
    svg: bytes

    @property
    def data_uri(self) -> str:
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii")


def draw_all(results: Results, folder: Path) -> list[Picture]:
    """Draw what the results allow, write PNG and SVG files into ``folder``, and return the pictures."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    with matplotlib.rc_context(STYLE):
        for dataset in results.datasets:
            for name, title, figure in _figures(results, dataset):
                stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{dataset}-{name}")
                stem = files.shortened(stem)
                pictures.append(Picture(stem, dataset, title, write_figure(figure, folder / stem)))
    return pictures


def write_figure(figure: Figure, stem: Path) -> bytes:
    """Write ``stem.svg`` and ``stem.png``; returns the SVG."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if text.get_text():  # others are the numbers of an axis, which may be powers of ten
            text.set_parse_math(False)  # in names, a dollar sign begins no formula
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None}, dpi=200, bbox_inches="tight")
    figure.savefig(png, format="png", dpi=200, bbox_inches="tight")
    for extension, content in (("svg", svg), ("png", png)):
        with files.atomic_write(stem.with_name(f"{stem.name}.{extension}")) as file:
            file.write(content.getvalue())
    return svg.getvalue()


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


def _figures(results: Results, dataset: str) -> Iterator[tuple[str, str, Figure]]:
    """(name, title, figure) of everything that can be drawn for one data set."""
    k = int(results.main_metric.partition("@")[2])
    yield "curves", "Training loss and validation by epoch", _curves(results, dataset)
    yield "learning_rate", "Learning rate by epoch", _learning_rates(results, dataset)
    yield "metrics", "Test metrics, mean and standard deviation over seeds", _metric_bars(results, dataset)
    for split, title in (
        ("popularity", f"Test users by popularity of their target: head is the top {measures.HEAD_SHARE:.0%} of items"),
        ("length", "Test users by length of their history"),
    ):
        yield split, title, _group_bars(results, dataset, split, k)
    with_steps = [label for label in results.labels_of(dataset) if "steps" in _arrays(results, dataset, label)]
    if with_steps:
        title = f"Sampling steps and quality (validation, up to {measures.SAMPLED_USERS:,} users)"
        yield "steps", title, _steps(results, dataset, with_steps)
    for label in with_steps:
        arrays = _arrays(results, dataset, label)
        title = f"{label}: reconstructed targets of test users (t-SNE), by k-means cluster"
        if len(arrays["reconstructions"]) > N_CLUSTERS:
            yield f"tsne-{label}", title, _clusters(arrays["reconstructions"])
        title = (
            f"{label}: reconstructions of {len(arrays['spread'])} users under {measures.SPREAD_SEEDS} different noises "
            "(first two principal components; grey: other users). One user's reconstructions lie "
            f"{measures.relative_spread(arrays['spread']):.2%} as far apart as those of different users"
        )
        yield f"spread-{label}", title, _spread(arrays)


def _arrays(results: Results, dataset: str, label: str) -> dict[str, np.ndarray]:
    """The arrays of the first seed."""
    return results.arrays(results.of(dataset, label)[0])


def _figure(rows: int = 1, height: float = 2.3, **kwargs: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN, height * rows), layout="constrained")
    return figure, figure.subplots(rows, 1, **kwargs)


def _legend(figure: Figure, axes: Any) -> None:
    """A legend below the axes, in as many columns as fit; many rows make the figure higher, not the axes lower."""
    handles, labels = axes.get_legend_handles_labels()
    widest = LEGEND_HANDLE + LEGEND_CHARACTER * max(map(len, labels))
    columns = max(1, min(len(labels), 3, int(COLUMN / widest)))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(0, rows - 2))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def _appearance(i: int) -> tuple[str, int]:
    """Colour of the i-th model, and the index of its marker or hatch: no pair comes twice among the first 64."""
    return COLOURS[i % len(COLOURS)], (i + i // len(COLOURS)) % len(COLOURS)


def _by_epoch(axes: Any, results: Results, dataset: str, value: Callable[[dict[str, Any]], float | None]) -> None:
    """One line per run; the seeds of a model share their colour."""
    for i, label in enumerate(results.labels_of(dataset)):
        colour, shape = _appearance(i)
        for j, job in enumerate(results.of(dataset, label)):
            points = [(epoch["epoch"] + 1, value(epoch)) for epoch in results.results[job]["history"]]
            x, y = zip(*[(epoch, y) for epoch, y in points if y is not None])
            axes.plot(
                x,
                y,
                color=colour,
                marker=MARKERS[shape],
                markevery=max(1, len(x) // 8),
                markersize=3,
                linewidth=1,
                alpha=1 if j == 0 else 0.5,
                label=label if j == 0 else None,
            )
    last = max(len(results.results[job]["history"]) for job in results.of(dataset))
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)


def _curves(results: Results, dataset: str) -> Figure:
    figure, (loss, valid) = _figure(2, 1.7, sharex=True)
    _by_epoch(loss, results, dataset, lambda epoch: epoch["train_loss"])
    loss.set_ylabel("training loss")
    _by_epoch(valid, results, dataset, lambda epoch: epoch.get("valid_score"))
    job = results.of(dataset)[0]
    valid.set_ylabel("validation " + metric_name(results.results[job]["config"]["valid_metric"].lower()))
    valid.set_xlabel("epoch")
    _legend(figure, loss)
    return figure


def _learning_rates(results: Results, dataset: str) -> Figure:
    figure, axes = _figure(1, 1.9)
    _by_epoch(axes, results, dataset, lambda epoch: epoch["learning_rate"])
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    _legend(figure, axes)
    return figure


def _bars(
    axes: Any, groups: list[str], labels: list[str], mean: Callable[[str, str], float], std: Callable[[str, str], float]
) -> None:
    """Grouped bars with error bars, one colour and hatch per model."""
    width = 0.8 / len(labels)
    for i, label in enumerate(labels):
        colour, shape = _appearance(i)
        axes.bar(
            np.arange(len(groups)) + (i - (len(labels) - 1) / 2) * width,
            [mean(label, group) for group in groups],
            width,
            yerr=np.nan_to_num([std(label, group) for group in groups]),
            error_kw={"linewidth": 0.8},
            color=colour,
            hatch=HATCHES[shape],
            edgecolor="white",
            linewidth=0.3,
            label=label,
        )
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.grid(axis="y", alpha=0.3)


def _metric_bars(results: Results, dataset: str) -> Figure:
    labels = results.labels_of(dataset)
    figure, both = _figure(2, 1.7)
    table = results.summary[results.summary["dataset"] == dataset]
    means = {row["model"]: row for row in table.to_dict("records")}
    for axes, metric in zip(both, ("hit", "ndcg")):
        keys = {metric_name(key): key for key in results.metrics if key.startswith(f"{metric}@")}
        _bars(
            axes,
            list(keys),
            labels,
            lambda label, name: means[label][f"test_{keys[name]}_mean"],  # noqa: B023
            lambda label, name: means[label][f"test_{keys[name]}_std"],  # noqa: B023
        )
        axes.set_ylabel("HR" if metric == "hit" else "NDCG")
    _legend(figure, both[0])
    return figure


def _group_bars(results: Results, dataset: str, split: str, k: int) -> Figure:
    labels = results.labels_of(dataset)
    table = results.groups[(results.groups["dataset"] == dataset) & (results.groups["split"] == split)]
    groups = list(dict.fromkeys(table["group"]))
    users = table.groupby("group")["users"].first()
    cells = {(row["model"], row["group"]): row for row in table.to_dict("records")}
    figure, axes = _figure(1, 2.2)
    _bars(
        axes,
        groups,
        labels,
        lambda label, group: cells[label, group][f"ndcg@{k}_mean"],
        lambda label, group: cells[label, group][f"ndcg@{k}_std"],
    )
    axes.set_xticks(np.arange(len(groups)), [f"{group}\n{users[group]:,} users" for group in groups])
    axes.set_xlabel("target" if split == "popularity" else "items in the history")
    axes.set_ylabel(f"NDCG@{k}")
    _legend(figure, axes)
    return figure


def _steps(results: Results, dataset: str, labels: list[str]) -> Figure:
    figure, axes = _figure(1, 2.0)
    every = results.labels_of(dataset)
    for label in labels:
        colour, shape = _appearance(every.index(label))
        jobs = results.of(dataset, label)
        quality = np.stack([results.arrays(job)["steps_ndcg"] for job in jobs])
        axes.errorbar(
            _arrays(results, dataset, label)["steps"],
            quality.mean(axis=0),
            yerr=quality.std(axis=0, ddof=1) if len(jobs) > 1 else None,
            color=colour,
            marker=MARKERS[shape],
            markersize=3,
            linewidth=1,
            capsize=2,
            label=label,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sampling steps")
    axes.set_ylabel("validation NDCG@10")
    axes.grid(alpha=0.3)
    _legend(figure, axes)
    return figure


def _clusters(reconstructions: np.ndarray) -> Figure:
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE

    cluster = KMeans(N_CLUSTERS, n_init=3, random_state=0).fit_predict(reconstructions)
    perplexity = min(30.0, (len(reconstructions) - 1) / 3)
    place = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reconstructions)
    figure, axes = _figure(1, 3.0)
    for i in range(N_CLUSTERS):
        axes.scatter(
            *place[cluster == i].T,
            s=4,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)] if i < len(COLOURS) else ["1", "2"][i - len(COLOURS)],
            linewidths=0.4,
            rasterized=True,
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("t-SNE 1")
    axes.set_ylabel("t-SNE 2")
    return figure


def _spread(arrays: dict[str, np.ndarray]) -> Figure:
    from sklearn.decomposition import PCA

    others, spread = arrays["reconstructions"], arrays["spread"]
    plane = PCA(2).fit(np.concatenate([others, spread.reshape(-1, spread.shape[-1])]))
    figure, axes = _figure(1, 2.8)
    axes.scatter(*plane.transform(others).T, s=2, color="0.8", linewidths=0, rasterized=True)
    for i, user in enumerate(spread):
        axes.scatter(
            *plane.transform(user).T,
            s=8,
            color=COLOURS[i],
            marker=MARKERS[i],
            linewidths=0.3,
            alpha=0.7,
            label=f"user {i + 1}",
            rasterized=True,
        )
    first, second = plane.explained_variance_ratio_
    axes.set_xlabel(f"component 1 ({first:.0%} of the variance)")
    axes.set_ylabel(f"component 2 ({second:.0%})")
    _legend(figure, axes)
    return figure

"""Figures of a comparison, as PNG and SVG: readable at the width of a paper's column and by colour-blind readers.

matplotlib is imported when figures are drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence

import numpy as np

from recbole_diffurec.experiments import looks, measures
from recbole_diffurec.experiments.diffusion_figures import of_diffusion
from recbole_diffurec.experiments.looks import Picture
from recbole_diffurec.experiments.tables import Results, metric_name
from recbole_diffurec.runtime import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_all(results: Results, folder: Path) -> list[Picture]:
    """Draw what the results allow, write PNG and SVG files into ``folder``, and return the pictures."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    with matplotlib.rc_context(looks.STYLE):
        for dataset in results.datasets:
            for name, title, figure in _figures(results, dataset):
                stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in f"{dataset}-{name}")
                stem = files.shortened(stem)
                wide = figure.get_figwidth() > looks.COLUMN
                pictures.append(Picture(stem, dataset, title, looks.write_figure(figure, folder / stem), wide))
    return pictures


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
    yield from of_diffusion(results, dataset)


def _by_epoch(
    axes: Any, results: Results, dataset: str, labels: Sequence[str], value: Callable[[dict[str, Any]], float | None]
) -> None:
    """One line per model, the mean over its seeds while all of them go on; where there are several, each as well.

    All lines of a model have its colour, undiluted: a paler one would be another model's.
    """
    every = results.labels_of(dataset)
    for label in labels:
        look = looks.look(every.index(label))
        seeds = []
        for job in results.of(dataset, label):
            history = [(epoch["epoch"] + 1, value(epoch)) for epoch in results.results[job]["history"]]
            seeds.append({epoch: y for epoch, y in history if y is not None})
        shared = sorted(set.intersection(*map(set, seeds)))
        mean = [float(np.mean([points[epoch] for points in seeds])) for epoch in shared]
        line = {"color": look.colour, "linestyle": look.line}
        for points in seeds if len(seeds) > 1 else ():
            axes.plot(list(points), list(points.values()), linewidth=0.4, **line)
        marks = {"marker": look.marker, "markevery": max(1, len(shared) // 8), "markersize": 3}
        axes.plot(shared, mean, linewidth=1.2, label=label, **line, **marks)
    last = max(len(results.results[job]["history"]) for job in results.of(dataset))
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)


def _curves(results: Results, dataset: str) -> Figure:
    """Losses, those of each kind on axes of their own, and validation below."""
    labels = results.labels_of(dataset)
    kinds = results.losses(dataset)
    columns = _columns(labels)
    rows = -(-(len(kinds) + 1) // columns)
    figure, grid = looks.new_figure(rows, 1.7 if rows <= 2 else 1.35, columns, squeeze=False)
    *losses, valid = grid.flatten()[: len(kinds) + 1]
    for left in grid.flatten()[len(kinds) + 1 :]:
        left.remove()
    for axes, (kind, of_kind) in zip(losses, kinds.items()):
        _by_epoch(axes, results, dataset, of_kind, lambda epoch: epoch["train_loss"])
        axes.set_title(kind, loc="left")
        axes.set_ylabel("training loss")
    _by_epoch(valid, results, dataset, labels, lambda epoch: epoch.get("valid_score"))
    job = results.of(dataset)[0]
    valid.set_ylabel("validation " + metric_name(results.results[job]["config"]["valid_metric"].lower()))
    valid.set_xlabel("epoch")
    looks.legend(figure, valid)
    return figure


def _columns(labels: Sequence[str]) -> int:
    """Axes side by side, as many models want them."""
    return 1 if len(labels) <= looks.FEW else 2


def _learning_rates(results: Results, dataset: str) -> Figure:
    figure, axes = looks.new_figure(1, 1.9)
    labels = results.labels_of(dataset)
    _by_epoch(axes, results, dataset, labels, lambda epoch: epoch["learning_rate"])
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    looks.legend(figure, axes)
    return figure


def _bars(
    axes: Any, groups: list[str], labels: list[str], mean: Callable[[str, str], float], std: Callable[[str, str], float]
) -> None:
    """Grouped bars with error bars, one colour and hatch per model."""
    width = 0.8 / len(labels)
    for i, label in enumerate(labels):
        look = looks.look(i)
        axes.bar(
            np.arange(len(groups)) + (i - (len(labels) - 1) / 2) * width,
            [mean(label, group) for group in groups],
            width,
            yerr=np.nan_to_num([std(label, group) for group in groups]),
            error_kw={"linewidth": 0.8},
            color=look.colour,
            hatch=look.hatch,
            edgecolor="white",
            linewidth=0.3,
            label=label,
        )
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.grid(axis="y", alpha=0.3)


def _page_or_column(labels: Sequence[str], rows: int, height: float) -> tuple[Figure, Any]:
    """A figure in which the bars of these models are wide enough to have hatches."""
    figure, axes = looks.new_figure(rows, height)
    if len(labels) > looks.FEW:
        figure.set_figwidth(looks.PAGE)
    return figure, axes


def _metric_bars(results: Results, dataset: str) -> Figure:
    labels = results.labels_of(dataset)
    figure, both = _page_or_column(labels, 2, 1.7)
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
    looks.legend(figure, both[0])
    return figure


def _group_bars(results: Results, dataset: str, split: str, k: int) -> Figure:
    labels = results.labels_of(dataset)
    table = results.groups[(results.groups["dataset"] == dataset) & (results.groups["split"] == split)]
    groups = list(dict.fromkeys(table["group"]))
    users = table.groupby("group")["users"].first()
    cells = {(row["model"], row["group"]): row for row in table.to_dict("records")}
    figure, axes = _page_or_column(labels, 1, 2.2)
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
    looks.legend(figure, axes)
    return figure

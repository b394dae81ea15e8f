"""Figures of the diffusion itself: quality by steps, what is reconstructed, and how far that spreads.

matplotlib and scikit-learn are imported when figures are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from recbole_diffurec.experiments import looks, measures
from recbole_diffurec.experiments.tables import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_CLUSTERS = 10


def of_diffusion(results: Results, dataset: str) -> Iterator[tuple[str, str, Figure]]:
    """(name, title, figure) of the diffusion models on one data set."""
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


def _steps(results: Results, dataset: str, labels: list[str]) -> Figure:
    figure, axes = looks.new_figure(1, 2.0)
    every = results.labels_of(dataset)
    for label in labels:
        look = looks.look(every.index(label))
        jobs = results.of(dataset, label)
        quality = np.stack([results.arrays(job)["steps_ndcg"] for job in jobs])
        axes.errorbar(
            _arrays(results, dataset, label)["steps"],
            quality.mean(axis=0),
            yerr=quality.std(axis=0, ddof=1) if len(jobs) > 1 else None,
            color=look.colour,
            marker=look.marker,
            linestyle=look.line,
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
    looks.legend(figure, axes)
    return figure


def _clusters(reconstructions: np.ndarray) -> Figure:
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE

    cluster = KMeans(N_CLUSTERS, n_init=3, random_state=0).fit_predict(reconstructions)
    perplexity = min(30.0, (len(reconstructions) - 1) / 3)
    place = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reconstructions)
    figure, axes = looks.new_figure(1, 3.0)
    for i in range(N_CLUSTERS):
        axes.scatter(
            *place[cluster == i].T,
            s=4,
            color=looks.look(i).colour,
            marker=looks.look(i).marker,
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
    figure, axes = looks.new_figure(1, 2.8)
    axes.scatter(*plane.transform(others).T, s=2, color="0.8", linewidths=0, rasterized=True)
    for i, user in enumerate(spread):
        axes.scatter(
            *plane.transform(user).T,
            s=8,
            color=looks.look(i).colour,
            marker=looks.look(i).marker,
            linewidths=0.3,
            alpha=0.7,
            label=f"user {i + 1}",
            rasterized=True,
        )
    first, second = plane.explained_variance_ratio_
    axes.set_xlabel(f"component 1 ({first:.0%} of the variance)")
    axes.set_ylabel(f"component 2 ({second:.0%})")
    looks.legend(figure, axes)
    return figure

"""Metrics of what is recommended, beside whether it was right: coverage, entropy, Gini index, popularity, long tail.

RecBole's definitions, which its own classes do not follow: they count padding as an item (in coverage and Gini index),
divide the entropy by the number of items shown, and take an item that no list can hold, at a score of minus infinity,
for one that was recommended. Its popularity leaves out the interactions that begin a sequence. These classes stand in
for them, in ``run``, ``evaluate`` and ``compare`` and in RecBole's own entry points.

Shapes: U users, K places of a list, I items with padding row 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from recbole.utils import EvaluatorType

__all__ = ["LIST_METRICS", "evaluator_classes", "list_metrics"]

TAIL_RATIO = 0.1  # RecBole's, where ``tail_ratio`` says nothing


def exposure(lists: np.ndarray, n_items: int) -> np.ndarray:
    """How often each item is recommended, without padding: int [I - 1]."""
    return np.bincount(lists[lists > 0], minlength=n_items)[1:]


def coverage(lists: np.ndarray, popularity: np.ndarray, tail_ratio: float) -> float:
    """The share of all items that are recommended to anybody."""
    return float((exposure(lists, len(popularity)) > 0).mean())


def entropy(lists: np.ndarray, popularity: np.ndarray, tail_ratio: float) -> float:
    """Shannon's entropy of the recommended items, in nats."""
    shown = exposure(lists, len(popularity))
    p = shown[shown > 0] / max(shown.sum(), 1)
    return float(-(p * np.log(p)).sum())


def gini(lists: np.ndarray, popularity: np.ndarray, tail_ratio: float) -> float:
    """Gini index of how often each item is recommended: 0 when all are equally often, near 1 when one takes all."""
    ordered = np.sort(exposure(lists, len(popularity)))
    n, total = len(ordered), ordered.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total)) if total else 0.0


def average_popularity(lists: np.ndarray, popularity: np.ndarray, tail_ratio: float) -> float:
    """The mean over users of the mean number of training interactions of the items recommended to each."""
    return _mean_of_lists(popularity.astype(np.float64), lists)


def tail_percentage(lists: np.ndarray, popularity: np.ndarray, tail_ratio: float) -> float:
    """The mean over users of the share of long-tail items in what is recommended to each.

    Of the items that are in the training data, the long tail is the share ``tail_ratio`` that comes seldomest, ties by
    number and one item at least; or, where that is above 1, those with so many interactions or fewer.
    """
    items = np.flatnonzero(popularity > 0)
    if tail_ratio > 1:
        tail = items[popularity[items] <= tail_ratio]
    else:
        tail = items[np.argsort(popularity[items], kind="stable")][: max(int(len(items) * tail_ratio), 1)]
    return _mean_of_lists(np.isin(np.arange(len(popularity)), tail).astype(np.float64), lists)


def _mean_of_lists(values: np.ndarray, lists: np.ndarray) -> float:
    """The mean over users of the mean value of the items in each one's list; empty lists count for nothing."""
    there = lists > 0
    lengths = there.sum(axis=1)
    sums = np.where(there, values[lists], 0.0).sum(axis=1)
    return float((sums[lengths > 0] / lengths[lengths > 0]).mean()) if lengths.any() else 0.0


# name in RecBole: (definition, whether the smaller value is the better one)
LIST_METRICS: dict[str, tuple[Callable[[np.ndarray, np.ndarray, float], float], bool]] = {
    "ItemCoverage": (coverage, False),
    "ShannonEntropy": (entropy, False),
    "GiniIndex": (gini, True),
    "AveragePopularity": (average_popularity, True),
    "TailPercentage": (tail_percentage, False),
}


def list_metrics(lists: np.ndarray, popularity: np.ndarray, tail_ratio: float | None) -> dict[str, float]:
    """All of these metrics of lists of one length, by their names in RecBole's results.

    Parameters
    ----------
    lists : numpy.ndarray
        int [U, K], the numbers of the recommended items; 0 where a list is shorter.
    popularity : numpy.ndarray
        int [I], training interactions of each item.
    tail_ratio : float or None
        RecBole's parameter.
    """
    return {name.lower(): measure(lists, popularity, _ratio(tail_ratio)) for name, (measure, _) in LIST_METRICS.items()}


def _ratio(tail_ratio: float | None) -> float:
    return tail_ratio if tail_ratio and tail_ratio > 0 else TAIL_RATIO


class _ListMetric:
    """One of them, as RecBole's evaluator asks for it; subclasses say which, and are its ``AbstractMetric``."""

    metric_type = EvaluatorType.RANKING
    metric_need = ("rec.items", "data.num_items", "data.count_items")
    name: str
    measure: Callable[[np.ndarray, np.ndarray, float], float]
    decimal_place: int

    def __init__(self, config: Any):
        self.decimal_place = config["metric_decimal_place"]
        self._topk, self._tail_ratio = config["topk"], config["tail_ratio"]

    def calculate_metric(self, dataobject: Any) -> dict[str, float]:
        lists, counts = dataobject.get("rec.items").numpy(), dataobject.get("data.count_items")
        popularity = np.zeros(dataobject.get("data.num_items"), dtype=np.int64)
        popularity[list(counts)] = list(counts.values())
        measured = {k: self.measure(lists[:, :k], popularity, _ratio(self._tail_ratio)) for k in self._topk}
        return {f"{self.name}@{k}": round(value, self.decimal_place) for k, value in measured.items()}


def evaluator_classes() -> dict[str, type]:
    """A class of RecBole's kind for each of these metrics, by its name in RecBole's results."""
    # Not at the top of this module, which RecBole's evaluator asks for while it is imported.
    from recbole.evaluator.base_metric import AbstractMetric

    return {
        name.lower(): type(
            name,
            (_ListMetric, AbstractMetric),
            {"name": name.lower(), "measure": staticmethod(measure), "smaller": smaller},
        )
        for name, (measure, smaller) in LIST_METRICS.items()
    }

"""Metrics of recommended lists by their definitions, and RecBole's evaluator computing these."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from recbole.evaluator import Collector, Evaluator

from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.metrics import LIST_METRICS, list_metrics

N_ITEMS = 9  # padding among them

some_shapes = st.tuples(st.integers(1, 12), st.integers(1, 5))
some_lists = arrays.arrays(np.int64, some_shapes, elements=st.integers(0, N_ITEMS - 1))
some_counts = arrays.arrays(np.int64, N_ITEMS, elements=st.integers(0, 6))


@given(some_lists, some_counts)
def test_definitions(lists: np.ndarray, popularity: np.ndarray) -> None:
    """Word by word from RecBole's documentation, over the items without padding."""
    popularity[0] = 0
    found = list_metrics(lists, popularity, None)
    users = [[item for item in row if item] for row in lists.tolist()]
    users = [row for row in users if row]
    shown = Counter(item for row in users for item in row)
    total = sum(shown.values())
    assert found["itemcoverage"] == pytest.approx(len(shown) / (N_ITEMS - 1))
    assert found["shannonentropy"] == pytest.approx(-sum(n / total * math.log(n / total) for n in shown.values()))
    p = sorted(shown[item] for item in range(1, N_ITEMS))
    size = N_ITEMS - 1
    gini = sum((2 * i - size - 1) * n for i, n in enumerate(p, start=1)) / (size * total) if total else 0
    assert found["giniindex"] == pytest.approx(gini)
    mean = np.mean([np.mean([popularity[item] for item in row]) for row in users]) if users else 0
    assert found["averagepopularity"] == pytest.approx(mean)
    known = sorted((int(popularity[item]), item) for item in range(N_ITEMS) if popularity[item])
    tail = {item for _, item in known[: max(int(len(known) * 0.1), 1)]}
    share = np.mean([np.mean([item in tail for item in row]) for row in users]) if users else 0
    assert found["tailpercentage"] == pytest.approx(share)


@pytest.mark.parametrize(("ratio", "share"), [(None, 1 / 3), (0.1, 1 / 3), (0.7, 2 / 3), (2, 2 / 3), (4, 1.0)])
def test_the_long_tail_is_a_share_of_the_items_or_those_with_few_interactions(ratio: float, share: float) -> None:
    popularity = np.array([0, 4, 2, 1, 0])  # the last one is not in the training data
    assert list_metrics(np.array([[1, 2, 3]]), popularity, ratio)["tailpercentage"] == pytest.approx(share)


def test_all_items_shown_alike() -> None:
    found = list_metrics(np.arange(1, 26).reshape(5, 5), np.ones(26, dtype=np.int64), None)
    assert found["itemcoverage"] == 1.0 and found["giniindex"] == pytest.approx(0.0)
    assert found["shannonentropy"] == pytest.approx(math.log(25))


class Dataset:
    """As much of training data as a collector asks for."""

    popularity = np.array([0, 5, 1, 3, 0, 2])

    def __init__(self) -> None:
        self.item_counter = Counter({1: 4, 3: 3, 5: 2})  # RecBole's, without the beginnings of sequences

    def num(self, field: str) -> int:
        return 6


def test_recboles_evaluator_has_these_definitions() -> None:
    """In lists of any length, without items that no list can hold, by the interactions of the training part."""
    parameters = {"metrics": list(LIST_METRICS), "topk": [1, 3], "valid_metric": "ItemCoverage@1", "tail_ratio": 0.5}
    config = RunConfig("BPR", "mine", {"gpu_id": "", **parameters})
    scores = torch.tensor([[-np.inf, 5.0, 4.0, 3.0, 2.0, 1.0], [-np.inf, -np.inf, -np.inf, 1.0, 2.0, -np.inf]])
    collector = Collector(config)
    collector.data_collect(SimpleNamespace(dataset=Dataset()))
    for _ in range(2):  # two batches
        collector.eval_batch_collect(scores, None, torch.arange(2), torch.tensor([1, 3]))
    found = Evaluator(config).evaluate(collector.get_data_struct())
    lists = np.array([[1, 2, 3], [4, 3, 0]] * 2)
    for k in (1, 3):
        expected = list_metrics(lists[:, :k], Dataset.popularity, 0.5)
        assert {name: found[f"{name}@{k}"] for name in expected} == pytest.approx(expected, abs=1e-6)

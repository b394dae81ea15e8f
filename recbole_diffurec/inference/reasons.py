"""Why an item: which items of a history a list is owed to.

Where the model's last position attends to the history, those it attends to most; where it does not, as in a recurrent
model, those that are most like the item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recbole_diffurec.host.attention import SHIFTS, HostAttention
from recbole_diffurec.inference.similar import Similarity
from recbole_diffurec.models.last_attention import LastAttention, has_attention


class Reasons:
    """Items of histories to which lists are owed.

    Parameters
    ----------
    network : torch.nn.Module
        The model.
    model : str
        What messages call it.
    n_items : int
        With the padding item.
    interaction_of : callable
        Makes what the model reads of histories in item numbers.

    Raises
    ------
    UserError
        The model neither attends to histories nor has vectors of items.
    """

    def __init__(self, network: Any, model: str, n_items: int, interaction_of: Callable[[list[list[int]]], Any]):
        self._interaction_of = interaction_of
        self._attention: HostAttention | LastAttention | None = None
        if type(network).__name__ in SHIFTS and hasattr(network, "trm_encoder"):
            self._attention = HostAttention(network)
        elif has_attention(network):
            attention = LastAttention(network)
            # Of some models no last position attends to the history, as where all attend to all.
            self._attention = attention if attention.of(interaction_of([[1]])) is not None else None
        if self._attention is None:
            self._similarity = Similarity(network, model, n_items)

    def of(
        self, histories: Sequence[Sequence[int]], rows: np.ndarray, items: Sequence[int], n: int, at_once: int
    ) -> list[list[int]]:
        """For each item at most ``n`` items of its history, the strongest reason first.

        Parameters
        ----------
        histories : Sequence of (Sequence of int)
            Numbers of items; one without any explains nothing.
        rows : np.ndarray
            int [number of items], which history each item is to be explained by.
        items : Sequence of int
            Numbers of the items; attention is that of the history, and the same for all of them.
        n : int
            At most so many.
        at_once : int
            Histories that the model reads together.
        """
        if self._attention is None:
            return self._similarity.in_histories(histories, rows, items, n)
        wanted = sorted({int(row) for row in rows if histories[row]}, key=lambda row: len(histories[row]))
        named: dict[int, list[int]] = {}
        for start in range(0, len(wanted), at_once):
            part = wanted[start : start + at_once]
            weights = self._attention.of(self._interaction_of([list(histories[row]) for row in part]))
            assert weights is not None  # as of the history that was tried first
            for row, of_places in zip(part, weights.tolist()):
                named[row] = _strongest(histories[row], of_places, n)
        return [named.get(int(row), []) for row in rows]


def _strongest(history: Sequence[int], weights: Sequence[float], n: int) -> list[int]:
    """The ``n`` items with the largest sums of weights over their places, the largest first."""
    sums: dict[int, float] = {}
    for item, weight in zip(history, weights):
        sums[item] = sums.get(item, 0.0) + weight
    return sorted(sums, key=lambda item: -sums[item])[:n]

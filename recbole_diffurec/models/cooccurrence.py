"""Scores by co-occurrence: what followed the items of a history in the training data, beside what a network says.

A network that is trained by cross-entropy gives log p of the items up to a constant, and is smooth where data is
scarce; counts remember pairs that were seen once or twice. Both are added, as in a log-linear mixture; language models
gain from their training data in the same way (Khandelwal, Levy, Jurafsky, Zettlemoyer, Lewis 2020, "Generalization
through memorization: nearest neighbor language models"). The similarity of items is that of item-based recommenders
(Deshpande, Karypis 2004, "Item-based top-N recommendation algorithms"), of pairs in their order.

Nothing here is learned and nothing acts in training: there a row's own pair would be among the counts.

Shapes: B batch, L padded history length, I items with padding row 0, K successors of an item, R training rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.item_softmax import LogitBias

# How many places later an item still follows another, and how many items of a history are looked at.
WINDOW = 10
# K, the most similar ones; on Amazon Beauty 3% of the items have more.
SUCCESSORS = 200
# How many pairs are counted together, unless one item alone begins more: some hundred MB.
PAIRS_AT_ONCE = 2**23
# Values of a configuration with which nothing is counted, since a checkpoint is loaded next.
FROM_CHECKPOINT = {"successors_from": "checkpoint"}
# The similarity that is as good as none: log(1 + s / FLOOR) grows like s below it, and like log s above.
FLOOR = 0.03


class Cooccurrences(nn.Module):
    """The successors of every item in the training data, and what they add to scores.

    For a history h_1 .. h_n the score of item j grows by

        weight * sum_a decay^a log(1 + s(h_{n-a}, j) / 0.03),   a = 0 .. 9,

    where s(i, j) = c(i, j) / sqrt(c(i, .) c(., j)), and c(i, j) says how often j came at most ten places after i.

    Parameters
    ----------
    n_items : int
        I.
    weight : float
        Of the sum; 0 leaves scores as they are.
    decay : float
        How much less each earlier item counts, in (0, 1].
    rows : PrefixRows or SequenceRows, optional
        Training rows. Without them the successors are those of a checkpoint, which is loaded next.
    items : str
        Which of their list columns holds the items.
    """

    successors: Tensor
    strength: Tensor
    by_age: Tensor

    def __init__(self, n_items: int, weight: float, decay: float, rows: Any, items: str):
        super().__init__()
        k = min(SUCCESSORS, n_items - 1)
        successors, strength = np.zeros((n_items, k), np.int32), np.zeros((n_items, k), np.float32)
        if rows is not None:
            _fill(successors, strength, rows, items)
        self.register_buffer("successors", torch.from_numpy(successors))
        self.register_buffer("strength", torch.from_numpy(strength))
        self.register_buffer("by_age", weight * decay ** torch.arange(WINDOW), persistent=False)

    def problem(self) -> str | None:
        """What is wrong with numbers that were loaded, in words; None where nothing is."""
        if ((self.successors < 0) | (self.successors >= len(self.successors))).any():
            return f"'successors' names what is none of its {len(self.successors) - 1:,} items"
        if not ((self.strength >= 0) & self.strength.isfinite()).all() or self.strength[0].any():
            return "'strength' holds what no count of pairs gives"
        return None

    @classmethod
    def of(cls, config: Any, dataset: Any, n_items: int, items: str) -> Cooccurrences | None:
        """As a configuration asks for; None where it does not.

        Parameters
        ----------
        config : RunConfig
            With ``cooccurrence_weight`` and ``cooccurrence_decay``, or neither.
        dataset : Dataset or CheckpointData
            The training data; a checkpoint alone has none, and needs none.
        n_items : int
            I.
        items : str
            The list column with the items.

        Raises
        ------
        UserError
            The data set is of a kind of its own, without numbered rows.
        """
        weight = config["cooccurrence_weight"]
        if weight is None:
            return None
        rows = None if config["successors_from"] else vars(dataset).get("inter_feat")
        if rows is not None and not hasattr(rows, "flat"):
            raise UserError(
                f"cooccurrence_weight counts pairs in training rows, and model {config['model']} has a data set of its "
                f"own kind, which has none: leave it out"
            )
        return cls(n_items, weight, config["cooccurrence_decay"], rows, items)

    def forward(self, item_seq: Tensor) -> LogitBias:
        """What is added to the scores of the successors of the most recent items.

        Parameters
        ----------
        item_seq : Tensor
            int [B, L], right-padded.
        """
        place = (item_seq != 0).sum(dim=1, keepdim=True) - 1 - torch.arange(WINDOW, device=item_seq.device)
        recent = (item_seq.gather(1, place.clamp(min=0)) * (place >= 0)).flatten()
        k = self.strength.shape[1]
        scores = self.strength.index_select(0, recent).view(-1, WINDOW, k) * self.by_age.unsqueeze(1)
        successors = self.successors.index_select(0, recent).view(-1, WINDOW * k)
        return LogitBias(successors.long(), scores.flatten(1))


def pairs(rows: Any, items: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of different items of which the second came up to ``WINDOW`` places after the first, by distance.

    Each target of a training row is a second one, and items of its history are the first ones. An item after itself is
    what ``repeat_bias`` is for.

    Parameters
    ----------
    rows : PrefixRows or SequenceRows
        Training rows.
    items : str
        Which of their list columns holds the items.
    """
    flat, first, target = rows.flat[items], rows.first, rows.target
    for gap in range(1, WINDOW + 1):
        inside = target[target - gap >= first]
        item, successor = flat[inside - gap].numpy(), flat[inside].numpy()
        other = item != successor
        yield item[other], successor[other]


def _fill(successors: np.ndarray, strength: np.ndarray, rows: Any, items: str) -> None:
    """Put each item's strongest successors, the first ones first, into arrays of zeros [I, K]."""
    n_items = len(successors)
    before, after = np.zeros(n_items), np.zeros(n_items)
    for item, successor in pairs(rows, items):
        before += np.bincount(item, minlength=n_items)
        after += np.bincount(successor, minlength=n_items)
    done = before.cumsum()
    start = 0
    while start < n_items:  # a stretch of items at a time: all pairs at once want more memory than data has
        already = done[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(done, already + PAIRS_AT_ONCE, side="right")))
        counts = _counted(rows, items, start, end, n_items)
        item, successor, count = counts.row + start, counts.col, counts.data
        found = np.log1p(count / np.sqrt(before[item] * after[successor]) / FLOOR)
        order = np.lexsort((successor, -found, item))
        item = item[order]
        rank = np.arange(len(item)) - np.searchsorted(item, item)
        kept = rank < successors.shape[1]
        successors[item[kept], rank[kept]] = successor[order][kept]
        strength[item[kept], rank[kept]] = found[order][kept]
        start = end


def _counted(rows: Any, items: str, start: int, end: int, n_items: int) -> sparse.coo_matrix:
    """c of the items from ``start`` to before ``end``, [end - start, I]."""
    found = []
    for item, successor in pairs(rows, items):
        inside = (item >= start) & (item < end)
        found.append((item[inside] - start, successor[inside]))
    item, successor = (np.concatenate(of) for of in zip(*found))
    return sparse.csr_matrix((np.ones(len(item), np.int32), (item, successor)), shape=(end - start, n_items)).tocoo()

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
            _fill(successors, strength, counted(rows, items, n_items))
        self.register_buffer("successors", torch.from_numpy(successors))
        self.register_buffer("strength", torch.from_numpy(strength))
        self.register_buffer("by_age", weight * decay ** torch.arange(WINDOW), persistent=False)
        self.register_load_state_dict_post_hook(Cooccurrences._check)

    def _check(self, _: Any) -> None:
        """Of what was loaded: numbers that are no item would be looked up outside the scores."""
        if ((self.successors < 0) | (self.successors >= len(self.successors))).any():
            n = len(self.successors) - 1
            raise UserError(
                f"the checkpoint is of no use: 'successors' names what is none of its {n:,} items; use another one"
            )

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
        rows = vars(dataset).get("inter_feat")
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


def counted(rows: Any, items: str, n_items: int) -> sparse.csr_matrix:
    """c, [I, I]: how often a target of the training rows came up to ``WINDOW`` places after an item of its history.

    Parameters
    ----------
    rows : PrefixRows or SequenceRows
        Training rows.
    items : str
        Which of their list columns holds the items.
    n_items : int
        I.
    """
    flat, first, target = rows.flat[items], rows.first, rows.target
    counts = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    for gap in range(1, WINDOW + 1):
        inside = target[target - gap >= first]
        pairs = flat[inside - gap].numpy(), flat[inside].numpy()
        counts = counts + sparse.csr_matrix((np.ones(len(inside), np.float32), pairs), shape=counts.shape)
    return counts


def _fill(successors: np.ndarray, strength: np.ndarray, counts: sparse.csr_matrix) -> None:
    """Put each item's strongest successors, the first ones first, into arrays of zeros [I, K]."""
    pairs = counts.tocoo()
    other = pairs.row != pairs.col  # an item after itself is what ``repeat_bias`` is for
    item, successor, count = pairs.row[other], pairs.col[other], pairs.data[other]
    before = np.bincount(item, count, len(successors))
    after = np.bincount(successor, count, len(successors))
    found = np.log1p(count / np.sqrt(before[item] * after[successor]) / FLOOR)
    order = np.lexsort((successor, -found, item))
    item = item[order]
    rank = np.arange(len(item)) - np.searchsorted(item, item)
    kept = rank < successors.shape[1]
    successors[item[kept], rank[kept]] = successor[order][kept]
    strength[item[kept], rank[kept]] = found[order][kept]

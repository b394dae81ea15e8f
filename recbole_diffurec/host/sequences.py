"""Training over all positions at once: a history goes through the network once, and every item predicts the next.

Shapes: R training rows (one a target), W windows, B batch, M targets of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_diffurec.data.rows import FIRST_TARGET, ROW, right_padded, windows
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.batches import Batch
from recbole_diffurec.models.spec import ModelSpec
from recbole_diffurec.runtime import distributed

__all__ = ["SequenceRows", "check_rows", "target_weight"]


class SequenceRows(Interaction):
    """Windows of the users' histories, as ``data.rows.windows`` cuts them.

    Indexed by numbers of windows it gives a batch of sequences (see ``data.rows``), as wide as its longest history.
    Indexed by name it gives a column of the R targets, or the lengths of the windows.

    Parameters
    ----------
    rows : PrefixRows
        The training rows.

    Raises
    ------
    UserError
        Some item of a history is no target.
    """

    def __init__(self, rows: Any):
        rows = rows[rows.target.argsort()]
        begin, counts = rows.first.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0)
        # A user's histories are one if all that comes after the first item is a target, in a row.
        if not torch.equal(rows.target[ends - 1] - begin, counts):
            raise UserError(
                "rows is 'sequences', for which every item of a history but the first must be a training target: files "
                "that give each target a history of its own (item_id_list) want --rows=prefixes"
            )
        cut = windows(counts, rows.max_length)
        super().__init__({rows.length_column: cut.end - cut.start})
        self._rows, self._length_column = rows, rows.length_column
        self._start, self._end = begin[cut.user] + cut.start, begin[cut.user] + cut.end
        self._first = cut.first - cut.start
        self._first_row = (ends - counts)[cut.user] + cut.first
        self.n_targets = len(rows)
        self.flat, self.first, self.target = rows.flat, rows.first, rows.target  # of the targets, as ``PrefixRows``

    def __contains__(self, item: str) -> bool:
        return item in self.columns

    @property
    def columns(self) -> list[str]:
        return [name for name in self._rows.interaction if name != self._length_column] + [self._length_column]

    def __iter__(self) -> Any:
        return iter(self.columns)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self.interaction[index] if index == self._length_column else self._rows.interaction[index]
        index = torch.as_tensor(np.asarray(index))
        start, end, first = self._start[index], self._end[index], self._first[index]
        lengths = end - start
        targets = self._targets(self._first_row[index], lengths - first)
        width = int(lengths.max())
        lists = {name: right_padded(values, start, end, width) for name, values in self._rows.flat.items()}
        columns = {name: values[targets] for name, values in self._rows.interaction.items()}
        own = {self._length_column: lengths, FIRST_TARGET: first, ROW: self._rows.target[targets]}
        return Batch({**columns, **lists, **own}, self._length_column)

    @staticmethod
    def _targets(first: Tensor, counts: Tensor) -> Tensor:
        """The numbers ``first .. first + count - 1`` of each window, one after another."""
        ends = counts.cumsum(0)
        return torch.arange(int(ends[-1])) + (first - (ends - counts)).repeat_interleave(counts)


def check_rows(values: Mapping[str, Any], spec: ModelSpec) -> None:
    """Raise ``UserError`` where a model cannot be trained over all positions, and is to be.

    Parameters
    ----------
    values : Mapping of str to object
        All parameters.
    spec : ModelSpec
        Of the model.
    """
    if values["rows"] != "sequences":
        return
    spec.refuse("sequences", "be trained with rows 'sequences'")
    if not spec.all_positions:
        reads = values["MODEL_TYPE"] == ModelType.SEQUENTIAL
        reason = "it is not known that a position does not see the item that it is to predict"
        raise UserError(
            f"model '{spec.name}' cannot be trained with rows 'sequences', because "
            f"{reason if reads else 'it reads no histories'}: leave rows at 'prefixes'"
        )
    if values["transform"] is not None:
        raise UserError(
            f"transform {values['transform']!r} changes histories, whose items are the targets with rows 'sequences': "
            f"give one of them"
        )
    negatives = values["train_neg_sample_args"]
    if isinstance(negatives, Mapping) and negatives.get("dynamic"):
        raise UserError(
            "train_neg_sample_args has dynamic negatives, which a model scores for the end of a history, and with rows "
            "'sequences' every position wants some: leave dynamic out, or rows at 'prefixes'"
        )


def target_weight(loader: Any, batch: int) -> float | None:
    """What a target of a training batch weighs in the loss; None where that is the mean over the batch.

    Batches of sequences have unequal numbers of targets. Each target weighs as much as any other of the epoch, and a
    batch of average size has their mean.

    Parameters
    ----------
    loader : object
        RecBole's, for training.
    batch : int
        0-based number of the batch.
    """
    rows = getattr(getattr(loader, "_dataset", None), "inter_feat", None)
    if not isinstance(rows, SequenceRows):
        return None
    size = loader.batch_sampler.batch_size
    # Small batches are all of every process, see ``loaders``.
    copies = distributed.world_size() if min(size, len(rows) - batch * size) < distributed.world_size() else 1
    # Of the whole epoch, also where no more than its first batches are trained on.
    return len(loader.batch_sampler) / (rows.n_targets * copies)

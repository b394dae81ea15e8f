"""Data that comes split: three files of interactions, with or without the history of each.

Shapes: n interactions in all files, one after another; R rows, each a target and a history; m places that histories and
targets take.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor

from recbole_diffurec.errors import UserError

__all__ = ["Rows", "SplitFiles", "rows_of_interactions", "rows_of_lists"]

logger = logging.getLogger("recbole_diffurec")

Histories = Mapping[str, Sequence[np.ndarray]]  # by the field that they are of


@dataclass(frozen=True)
class Rows:
    """Rows as stretches of what lies one after another.

    Parameters
    ----------
    first, target : numpy.ndarray
        int [R], where a row's history begins, and where its target is, the place after the history's last.
    sizes : list of int
        How many of the rows each file has.
    """

    first: np.ndarray
    target: np.ndarray
    sizes: list[int]


def rows_of_interactions(users: np.ndarray, times: np.ndarray | None, sizes: Sequence[int]) -> tuple[Rows, np.ndarray]:
    """Rows of interactions without histories: a user's earlier ones are the history of each.

    What a file holds is unknown to those before it: a training target's history is of training interactions, a
    validation target's of training and validation, whatever the times. Without times they are in order of the files and
    their lines. A user's first interaction has no history and makes no row.

    Parameters
    ----------
    users : numpy.ndarray
        int [n].
    times : numpy.ndarray or None
        float64 [n].
    sizes : sequence of int
        Interactions of each file.

    Returns
    -------
    tuple of Rows and numpy.ndarray
        The rows, and int [m], which interaction is at each place.
    """
    ends = np.cumsum(sizes)
    keys = (users,) if times is None else (times, users)
    places, first, target, found = [], [], [], []
    offset = 0
    for start, end in zip([0, *ends[:-1]], ends):
        order = np.lexsort([key[:end] for key in keys])  # stable: ties in order of files and lines
        new_user = np.append(True, users[order][1:] != users[order][:-1])
        begins = np.maximum.accumulate(np.where(new_user, np.arange(end), 0))
        here = np.flatnonzero(~new_user & (order >= start))
        places.append(order)
        first.append(offset + begins[here])
        target.append(offset + here)
        found.append(len(here))
        offset += end
    return Rows(np.concatenate(first), np.concatenate(target), found), np.concatenate(places)


def rows_of_lists(lists: Sequence[np.ndarray], targets: np.ndarray, sizes: Sequence[int]) -> tuple[Rows, np.ndarray]:
    """Rows whose histories are given.

    Parameters
    ----------
    lists : sequence of numpy.ndarray
        The history of each interaction.
    targets : numpy.ndarray
        [n].
    sizes : sequence of int
        Interactions of each file.

    Returns
    -------
    tuple of Rows and numpy.ndarray
        The rows, and [m], every history with its target after it.
    """
    target = np.cumsum([len(values) + 1 for values in lists]) - 1
    first = np.append(0, target[:-1] + 1)
    values = np.concatenate([np.append(history, last) for history, last in zip(lists, targets)])
    return Rows(first, target, list(sizes)), values


class SplitFiles(SequentialDataset):
    """Takes the files of ``benchmark_filename`` with the history of each interaction, ``item_id_list``, and without."""

    inter_feat: Any  # a DataFrame until RecBole builds the splits, an Interaction after
    _prefix_rows: Callable[..., Any]  # of the data set class that this one is mixed into

    def _set_alias(self, alias_name: str, default_value: list[str]) -> None:
        """Histories that are given have the items' numbers, whether ``alias_of_item_id`` says so or not."""
        given = alias_name == "item_id" and self._list_of(self.iid_field) in self.field2type
        super()._set_alias(alias_name, [*default_value, self._list_of(self.iid_field)] if given else default_value)

    def _benchmark_presets(self) -> None:
        """Nothing: RecBole's cannot do without histories; see ``_change_feat_format``."""

    def _change_feat_format(self) -> None:
        if self.benchmark_filename_list is None:
            super()._change_feat_format()
            return
        frame = self.inter_feat
        lists = {field: frame[self._list_of(field)].to_list() for field in frame if self._list_of(field) in frame}
        self._check_histories(lists)
        # RecBole would pad the histories to the longest.
        self.inter_feat = frame.drop(columns=[self._list_of(field) for field in lists])
        super()._change_feat_format()
        rows, columns, flat = self._with_lists(lists) if lists else self._without_lists(frame)
        self.file_size_list = rows.sizes
        first, target = torch.from_numpy(rows.first), torch.from_numpy(rows.target)
        self.inter_feat = self._prefix_rows(columns, flat, first, target)

    def _with_lists(self, lists: Histories) -> tuple[Rows, dict[str, Tensor], dict[str, Tensor]]:
        columns, flat = self.inter_feat.interaction, {}
        for field, histories in lists.items():
            rows, values = rows_of_lists(histories, columns[field].numpy(), self.file_size_list)
            flat[self._list_of(field)] = torch.from_numpy(values).to(columns[field].dtype)
            setattr(self, f"{field}_list_field", self._list_of(field))
            self.field2seqlen[self._list_of(field)] = self.max_item_list_len
        self.set_field_property(self.item_list_length_field, FeatureType.TOKEN, FeatureSource.INTERACTION, 1)
        return rows, columns, flat

    def _without_lists(self, frame: pd.DataFrame) -> tuple[Rows, dict[str, Tensor], dict[str, Tensor]]:
        self._aug_presets()
        feat, users = self.inter_feat, self.inter_feat[self.uid_field].numpy()
        times = frame[self.time_field].to_numpy() if self.time_field in frame else None
        rows, places = rows_of_interactions(users, times, self.file_size_list)
        lost = [size - rest for size, rest in zip(self.file_size_list[1:], rows.sizes[1:])]
        if any(lost):
            logger.warning(
                "data set '%s': left out are %s validation and %s test interactions that are their user's first",
                *(self.dataset_name, f"{lost[0]:,}", f"{lost[1]:,}"),
            )
        flat = {self._list_of(field): feat[field][places] for field in feat if field != self.uid_field}
        return rows, feat[places[rows.target]].interaction, flat

    def _check_histories(self, lists: Histories) -> None:
        if lists and self.iid_field not in lists:
            raise UserError(
                f"data set '{self.dataset_name}' has {', '.join(map(self._list_of, lists))} but no "
                f"{self._list_of(self.iid_field)}: add it, or leave these columns out with --load_col"
            )
        ends = np.cumsum(self.file_size_list)
        for field, histories in lists.items():
            name, kind = self._list_of(field), self.field2type[self._list_of(field)].value
            if self.field2type[name] not in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ):
                raise UserError(
                    f"column '{name}' of data set '{self.dataset_name}' must be a list of values, not a {kind}: write "
                    f"'{name}:{self.field2type[field].value}_seq' in the first line of its files"
                )
            lengths = np.array([len(history) for history in histories])
            wrong = (lengths == 0) | (lengths != [len(history) for history in lists[self.iid_field]])
            if wrong.any():
                row = int(wrong.argmax())
                file = int(np.searchsorted(ends, row, side="right"))
                raise UserError(
                    f"'{self.dataset_name}.{self.benchmark_filename_list[file]}.inter' has {lengths[row]} values in "
                    f"'{name}' of interaction {row - (ends[file - 1] if file else 0) + 1}: a history has at least one "
                    f"item, and as many values in every column"
                )

    def _list_of(self, field: str) -> str:
        """The column with the histories of a field."""
        return field + self.config["LIST_SUFFIX"]

    def in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of all interactions, user by user, the oldest first; of histories, each user's last."""
        history = self._list_of(self.iid_field)
        if self.benchmark_filename_list is None or history not in self.inter_feat:
            return super().in_order()  # type: ignore[misc]  # Chronological's
        last = self.inter_feat.groupby(self.uid_field).tail(1).sort_values(self.uid_field)
        sequences = [np.append(items, item) for items, item in zip(last[history], last[self.iid_field])]
        return np.repeat(last[self.uid_field].to_numpy(), [len(s) for s in sequences]), np.concatenate(sequences)

"""RecBole data sets in true order of time, and training rows that are views into the sequences.

RecBole's own preparation has two faults that these classes mend. It turns timestamps into float32 before sorting, so
that unix seconds are up to 128 s apart and histories come out misordered; and it writes every prefix of every sequence
as a padded row of its own. Here the interactions are ordered by user and float64 time, stably, before RecBole converts
anything, and a row is the number of its first and its last position.

Shapes: n interactions, R rows (one per position that has a history), L = ``MAX_ITEM_LIST_LENGTH``.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import recbole.data.dataset as host
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_diffurec.data.rows import ROW, right_padded
from recbole_diffurec.data.sources import ensure_dataset
from recbole_diffurec.errors import UserError
from recbole_diffurec.host import catalogue

logger = logging.getLogger("recbole_diffurec")

# Unix times from 2000 on, until they would be of the other unit.
UNIX_SECONDS, UNIX_MILLISECONDS = (9.5e8, 1e10), (9.5e11, 1e13)

# Columns that say where the items of a row's user begin and end, for ``mask_seen``.
SEEN_FROM, SEEN_TO = "seen_from", "seen_to"


class Chronological(Dataset):
    """Order by user and time, in full precision; ties keep the order of the file.

    RecBole's later sorts are by float32 time and stable, so they leave this order as it is: rounding is monotonic.

    Attributes
    ----------
    n_time_ties : interactions whose user has another one at the same time.
    """

    n_time_ties: int
    inter_feat: Any  # a DataFrame until RecBole builds the splits, an Interaction after

    def _load_data(self, token: str, dataset_path: str) -> None:
        if not os.path.isfile(os.path.join(dataset_path, f"{token}.inter")):
            ensure_dataset(
                token, os.path.dirname(dataset_path), self.config["source_base_urls"], self.config["show_progress"]
            )
        super()._load_data(token, dataset_path)

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        if self.benchmark_filename_list is not None:
            super()._load_inter_feat(token, dataset_path)
            return
        path = os.path.join(dataset_path, f"{token}.inter")
        try:
            self._check_header(path)
            super()._load_inter_feat(token, dataset_path)
        except UserError:
            raise
        except (OSError, ValueError) as error:
            self._check_numbers(path)
            reason = str(error).splitlines()[0]
            raise UserError(f"'{path}' cannot be read as an atomic file ({reason}): mend the file") from None
        self._check_times(path)
        nameless = self.inter_feat[[self.uid_field, self.iid_field]].isnull().any(axis=1).to_numpy()
        if nameless.any():
            # RecBole removes them by label where it means position (dataset.py:835).
            logger.warning(
                "'%s': lines without a user or an item are left out: %s, the first is line %d",
                path,
                f"{nameless.sum():,}",
                np.flatnonzero(nameless)[0] + 2,
            )
            self.inter_feat = self.inter_feat[~nameless].reset_index(drop=True)

    def _check_header(self, path: str) -> None:
        with open(path, encoding=self.config["encoding"]) as file:
            columns = file.readline().rstrip("\n").split(self.config["field_separator"])
        for field, kind in ((self.uid_field, "token"), (self.iid_field, "token"), (self.time_field, "float")):
            if f"{field}:{kind}" not in columns:
                raise UserError(
                    f"'{path}' has no column '{field}:{kind}' but {columns}: name the columns of users, items and "
                    f"times with --USER_ID_FIELD, --ITEM_ID_FIELD and --TIME_FIELD, or mend the file's first line"
                )

    def _check_numbers(self, path: str) -> None:
        """Name the first line whose time is no number."""
        options = {
            "sep": self.config["field_separator"],
            "encoding": self.config["encoding"],
            "quoting": csv.QUOTE_NONE,
        }
        try:
            times = pd.read_csv(path, usecols=[f"{self.time_field}:float"], dtype=str, **options).iloc[:, 0]
        except (OSError, ValueError):
            return
        wrong = np.flatnonzero(times.notna() & pd.to_numeric(times, errors="coerce").isna())
        if len(wrong):
            raise UserError(
                f"'{path}' line {wrong[0] + 2} has '{times.iloc[wrong[0]]}' where '{self.time_field}' should be a "
                f"number: mend or remove the line"
            )

    def _check_times(self, path: str) -> None:
        times = self.inter_feat[self.time_field].to_numpy(dtype=np.float64)
        if not np.isfinite(times).all():
            line = int(np.flatnonzero(~np.isfinite(times))[0]) + 2
            raise UserError(f"'{path}' line {line} has no finite '{self.time_field}': fill it in or remove the line")
        seconds, milliseconds = (
            np.flatnonzero((times >= low) & (times < high)) for low, high in (UNIX_SECONDS, UNIX_MILLISECONDS)
        )
        if len(seconds) and len(milliseconds):
            raise UserError(
                f"'{path}' has times in seconds (line {seconds[0] + 2}) and in milliseconds (line "
                f"{milliseconds[0] + 2}), which would put histories out of order: bring '{self.time_field}' to one unit"
            )

    def _data_filtering(self) -> None:
        super()._data_filtering()
        users, _ = pd.factorize(self.inter_feat[self.uid_field])
        times = self.inter_feat[self.time_field].to_numpy(dtype=np.float64)
        order = np.lexsort((times, users))
        users, times = users[order], times[order]
        same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
        self.n_time_ties = int(np.count_nonzero(np.append(same, False) | np.append(False, same)))
        self.inter_feat = self.inter_feat.iloc[order].reset_index(drop=True)

    def _reset_index(self) -> None:
        if self.inter_feat.empty:
            raise UserError(
                f"no interaction of data set '{self.dataset_name}' is left after filtering "
                f"(user_inter_num_interval {self.config['user_inter_num_interval']}, "
                f"item_inter_num_interval {self.config['item_inter_num_interval']}): widen the intervals"
            )
        super()._reset_index()


class PrefixRows(Interaction):
    """Rows (user, target, history) of a sequential data set, with the histories left where they are.

    Plain columns are tensors [R], as in any ``Interaction``. List columns exist only when they are asked for:
    ``rows["item_id_list"]`` makes the padded tensor of all rows, ``rows.padded()`` makes all list columns.

    Parameters
    ----------
    columns : tensors [R].
    flat : {list column: values of all n interactions}, ordered by user and time.
    first, target : int [R], positions in ``flat`` of the user's first item and of the row's target.
    max_length : L, how many of the items between them a history keeps.
    """

    def __init__(
        self, columns: dict[str, Tensor], flat: dict[str, Tensor], first: Tensor, target: Tensor, max_length: int
    ):
        super().__init__(columns)
        self.flat, self.first, self.target, self.max_length = flat, first, target, max_length
        self._written: dict[str, Tensor] = {}

    def __contains__(self, item: str) -> bool:
        return item in self.interaction or item in self.flat

    @property
    def columns(self) -> list[str]:
        return [*self.interaction, *self.flat]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self._write_out(index) if index in self.flat else self.interaction[index]
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        # RecBole goes through Python lists here, which costs more than the selection. An empty one has no dtype.
        index = torch.as_tensor(index)
        index = index if index.numel() else index.long()
        return PrefixRows(
            {name: values[index] for name, values in self.interaction.items()},
            self.flat,
            self.first[index],
            self.target[index],
            self.max_length,
        )

    def drop(self, column: str) -> None:
        if column in self.flat:
            self.flat = {name: values for name, values in self.flat.items() if name != column}
        else:
            super().drop(column)

    def _reindex(self, index: Any) -> None:
        super()._reindex(index)
        self.first, self.target = self.first[index], self.target[index]
        self._written.clear()

    def _write_out(self, column: str) -> Tensor:
        """A whole list column, kept: the models that ask for one (FEARec) do so for every sample."""
        if column not in self._written:
            self._written[column] = self._pad(self.flat[column])
        return self._written[column]

    def _pad(self, values: Tensor, width: int | None = None) -> Tensor:
        """Right-padded histories, [R, L, ...], or [R, width, ...]."""
        start = torch.maximum(self.first, self.target - self.max_length)
        return right_padded(values, start, self.target, width or self.max_length)

    def padded(self, trim: bool = False) -> Interaction:
        """RecBole's usual rows: an ``Interaction`` with every list column, right-padded with 0.

        Parameters
        ----------
        trim : pad to the longest history among the rows rather than to L.
        """
        width = min(self.max_length, int((self.target - self.first).max())) if trim and len(self) else None
        lists = {name: self._pad(values, width) for name, values in self.flat.items()}
        return Interaction({**self.interaction, **lists})


class SequenceDataset(Chronological, SequentialDataset):
    """RecBole's sequential data set without a padded copy of every prefix.

    Its rows, their order and what a data loader gets are those of ``SequentialDataset``.
    """

    def data_augmentation(self) -> None:
        """Number the prefixes of every sequence instead of writing them out (see ``SequentialDataset``)."""
        self._aug_presets()
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        feat = self.inter_feat
        users = feat[self.uid_field].numpy()
        position = np.arange(len(users))
        starts = np.append(True, users[1:] != users[:-1])
        target = torch.from_numpy(np.flatnonzero(~starts))
        first = torch.from_numpy(np.maximum.accumulate(np.where(starts, position, 0)))[target]
        columns = {field: feat[field][target] for field in feat}
        columns[self.item_list_length_field] = (target - first).clamp(max=self.max_item_list_len)
        flat = {getattr(self, f"{field}_list_field"): feat[field] for field in feat if field != self.uid_field}
        self.inter_feat = PrefixRows(columns, flat, first, target, self.max_item_list_len)

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        rows = self.inter_feat[index]
        if isinstance(rows, PrefixRows):
            numbers = {ROW: rows.target}
            if self.config["mask_seen"]:
                numbers |= {SEEN_FROM: rows.first, SEEN_TO: rows.target}
            rows = rows.padded(trim=catalogue.find(self.config["model"]).trims_padding)
            rows.interaction.update(numbers)
        return self.join(rows) if join else rows

    def _grouped_index(self, group_by_list: np.ndarray) -> list[list[int]]:
        """RecBole's groups, in order of their first rows, without its loop over the rows."""
        keys = np.asarray(group_by_list)
        if not len(keys):
            return []
        order = np.argsort(keys, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
        return [group.tolist() for group in sorted(groups, key=lambda group: group[0])]

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """The users-by-items matrix (see ``SequentialDataset``), which reads the written-out lists."""
        return super(SequenceDataset, self.copy(self.inter_feat.padded())).inter_matrix(form, value_field)

    def seen_items(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """Every item that a row's user has before the row's target, however long ago, except the target itself.

        Parameters
        ----------
        interaction : rows of this data set, prepared with ``mask_seen``.

        Returns
        -------
        (row, item), each int [number of pairs].
        """
        start, end = interaction[SEEN_FROM], interaction[SEEN_TO]
        counts = end - start
        row = torch.arange(len(counts)).repeat_interleave(counts)
        within = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        item = self.inter_feat.flat[getattr(self, f"{self.iid_field}_list_field")][start[row] + within]
        other = item != interaction[self.iid_field][row]
        return row[other], item[other]


def dataset_class(config: Any) -> type:
    """The data set class for a configuration: RecBole's choice, ordered in time, and without copies where it can be."""
    spec = catalogue.find(config["model"])
    default = {ModelType.SEQUENTIAL: "SequentialDataset", ModelType.KNOWLEDGE: "KnowledgeBasedDataset"}
    chosen = spec.dataset or getattr(host, f"{spec.name}Dataset", None)
    return ordered(chosen or getattr(host, default.get(config["MODEL_TYPE"], "Dataset")))


def ordered(chosen: type | None) -> type:
    """A data set class of RecBole's kind, ordered in time; by default the sequential one."""
    if chosen is not None and issubclass(chosen, Chronological):
        return chosen
    ours: dict[type | None, type] = {None: SequenceDataset, SequentialDataset: SequenceDataset, Dataset: Chronological}
    if chosen in ours:
        return ours[chosen]
    assert chosen is not None
    return type(chosen.__name__, (Chronological, chosen), {})

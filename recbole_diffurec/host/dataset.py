"""RecBole data sets in true order of time, and training rows that are views into the sequences.

RecBole's own preparation has two faults that these classes mend. It turns timestamps into float32 before sorting, so
that unix seconds are up to 128 s apart and histories come out misordered; and it writes every prefix of every sequence
as a padded row of its own. Here the interactions are ordered by user and float64 time, stably, before RecBole converts
anything, and a row is the number of its first and its last position.

Shapes: n interactions, R rows (one per position that has a history), L = ``MAX_ITEM_LIST_LENGTH``.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole.data.dataset as host
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, ModelType
from torch import Tensor

from recbole_diffurec.data.columns import Column
from recbole_diffurec.data.delimited import AtomicFile
from recbole_diffurec.data.rows import ROW, right_padded
from recbole_diffurec.data.sources import ensure_dataset
from recbole_diffurec.data.times import refuse_mixed_units
from recbole_diffurec.errors import UserError
from recbole_diffurec.host import catalogue, compat
from recbole_diffurec.host.batches import Batch
from recbole_diffurec.host.presplit import SplitFiles
from recbole_diffurec.host.sequences import SequenceRows
from recbole_diffurec.host.splits import Splits
from recbole_diffurec.host.wanted_columns import WantedColumns

logger = logging.getLogger("recbole_diffurec")

# Columns that say where the items of a row's user begin and end, for ``mask_seen``.
SEEN_FROM, SEEN_TO = "seen_from", "seen_to"


class _Files:
    """The rows of several files, one after another, as one table."""

    def __init__(self, name: str, files: list[AtomicFile], rows: list[int]):
        self.name, self._files, self._ends = files[0].name if len(files) == 1 else name, files, np.cumsum(rows)

    def place(self, row: int) -> str:
        number = int(np.searchsorted(self._ends, row, side="right"))
        file = self._files[number]
        where = file.place(row - (int(self._ends[number - 1]) if number else 0))
        return where if len(self._files) == 1 else f"{file.name} {where}"


class Chronological(WantedColumns, Splits):
    """Order by user and time, in full precision; ties keep the order of the file.

    RecBole's later sorts are by float32 time and stable, so they leave each user's order as it is: rounding is
    monotonic. Interactions without times keep the order of the file, and so do those that come split.

    Attributes
    ----------
    n_time_ties : int
        Interactions whose user has another one at the same time.
    """

    n_time_ties: int = 0

    def _load_data(self, token: str, dataset_path: str) -> None:
        if self.benchmark_filename_list is not None:
            for name in self.benchmark_filename_list:
                path = os.path.join(dataset_path, f"{token}.{name}.inter")
                if not os.path.isfile(path):
                    raise UserError(
                        f"'{path}', which benchmark_filename names, does not exist: correct the names, or give the "
                        f"folder above the data set's with --data_path"
                    )
        elif not os.path.isfile(os.path.join(dataset_path, f"{token}.inter")):
            ensure_dataset(
                token, os.path.dirname(dataset_path), self.config["source_base_urls"], self.config["show_progress"]
            )
        self._check_load_col()
        super()._load_data(token, dataset_path)

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        self._times_of_files: list[tuple[AtomicFile, np.ndarray]] = []
        super()._load_inter_feat(token, dataset_path)
        if self._times_of_files:
            files, times = map(list, zip(*self._times_of_files))
            table = _Files(f"data set '{token}'", files, [len(part) for part in times])
            refuse_mixed_units(table, self.time_field, np.concatenate(times))
        del self._times_of_files

    def _load_feat(self, filepath: str, source: Any) -> Any:
        """One atomic file, checked as ``AtomicFile`` does; lines without the ids that name them are left out."""
        if self._get_load_and_unload_col(source)[0] == set():  # nothing of it is wanted
            return None
        file = AtomicFile(Path(filepath), None, self.config["field_separator"], self.config["encoding"])
        file.check(self._needed_columns() if source == FeatureSource.INTERACTION else {})
        try:
            with compat.quiet():
                feat = super()._load_feat(filepath, source)
        except UserError:
            raise
        except ValueError as error:
            file.check_lines()
            self._check_lists_of_numbers(file)
            raise UserError(f"{file.name} cannot be read as an atomic file ({error}): mend the file") from None
        if feat is None:
            return None
        times = feat.get(self.time_field) if source == FeatureSource.INTERACTION else None
        ids, what = {
            FeatureSource.INTERACTION: ([self.uid_field, self.iid_field], "a user or an item"),
            FeatureSource.USER: ([self.uid_field], "a user"),
            FeatureSource.ITEM: ([self.iid_field], "an item"),
        }.get(source, ([], ""))
        if source in (FeatureSource.USER, FeatureSource.ITEM):
            self._check_said_once(feat, file, ids[0])
        nameless = feat[[field for field in ids if field in feat]].isnull().any(axis=1).to_numpy()
        if times is not None and times.dtype == np.float64:
            lost = ~nameless & ~np.isfinite(times.to_numpy())
            if lost.any():
                raise Column(file, self.time_field, times).no_time(int(lost.argmax()))
            self._times_of_files.append((file, times.to_numpy()))
        if nameless.any():
            # RecBole removes them by label where it means position (dataset.py:835).
            count, first = f"{nameless.sum():,}", file.place(int(nameless.argmax()))
            logger.warning("%s: lines without %s are left out: %s, the first is %s", file.name, what, count, first)
            feat = feat[~nameless].reset_index(drop=True)
        return feat

    @staticmethod
    def _check_said_once(feat: pd.DataFrame, file: AtomicFile, field: str) -> None:
        """Refuse a user or an item that comes twice: RecBole gives all that follow the features of another one."""
        again = np.flatnonzero(feat[field].duplicated() & feat[field].notna())
        if len(again):
            value = feat[field].iat[again[0]]
            first = file.place(int(np.flatnonzero(feat[field] == value)[0]))
            raise UserError(
                f"{file.name} {file.place(int(again[0]))} has '{value}' in '{field}' again, which {first} has "
                f"already: remove one of them"
            )

    def _needed_columns(self) -> dict[str, str]:
        """The columns of interactions that must be there, and their types."""
        needed = {self.uid_field: "token", self.iid_field: "token"}
        if self.benchmark_filename_list is not None:  # split already
            return needed
        in_order = self.config["MODEL_TYPE"] == ModelType.SEQUENTIAL or self.config["eval_args"]["order"] == "TO"
        return {**needed, self.time_field: "float"} if in_order else needed

    def _check_lists_of_numbers(self, file: AtomicFile) -> None:
        """Name the first line with something else in a list of numbers."""
        for name, kind in file.kinds.items():
            for part in file.parts([name]) if kind == "float_seq" else ():
                part[name].check_lists_of_numbers(self.config["seq_separator"])

    def _data_filtering(self) -> None:
        super()._data_filtering()
        if self.time_field not in self.inter_feat:  # for splits that ask for no order
            return
        users, _ = pd.factorize(self.inter_feat[self.uid_field])
        times = self.inter_feat[self.time_field].to_numpy(dtype=np.float64)
        order = np.lexsort((times, users))
        users, times = users[order], times[order]
        same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
        self.n_time_ties = int(np.count_nonzero(np.append(same, False) | np.append(False, same)))
        self.inter_feat, self._line = self.inter_feat.iloc[order].reset_index(drop=True), order

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
    columns : dict of str to Tensor
        Tensors [R].
    flat : dict of str to Tensor
        {list column: values of all n interactions}, ordered by user and time.
    first, target : Tensor
        int [R], positions in ``flat`` of the user's first item and of the row's target.
    max_length : int
        L, how many of the items between them a history keeps.
    length_column : str
        Which of the columns has their number.
    """

    def __init__(
        self,
        columns: dict[str, Tensor],
        flat: dict[str, Tensor],
        first: Tensor,
        target: Tensor,
        max_length: int,
        length_column: str,
    ):
        super().__init__(columns)
        self.flat, self.first, self.target, self.max_length = flat, first, target, max_length
        self.length_column = length_column
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
            self.length_column,
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
        """RecBole's usual rows: an ``Interaction`` with every list column, right-padded with 0, and the rows' numbers.

        Parameters
        ----------
        trim : bool, optional
            Pad to the longest history among the rows rather than to L.
        """
        width = min(self.max_length, int((self.target - self.first).max())) if trim and len(self) else None
        lists = {name: self._pad(values, width) for name, values in self.flat.items()}
        return Batch({**self.interaction, **lists, ROW: self.target}, self.length_column)


class SequenceDataset(SplitFiles, Chronological, SequentialDataset):
    """RecBole's sequential data set without a padded copy of every prefix.

    Its rows, their order and what a data loader gets are those of ``SequentialDataset``, with the rows' numbers.
    """

    def build(self) -> list[Any]:
        """The parts: training, validation, test; with ``rows: sequences`` training has windows in place of rows."""
        parts = super().build()
        if self.config["rows"] == "sequences":
            parts[0].inter_feat = SequenceRows(parts[0].inter_feat)
        return parts

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
        flat = {getattr(self, f"{field}_list_field"): feat[field] for field in feat if field != self.uid_field}
        self.inter_feat = self._prefix_rows(columns, flat, first, target)

    def _prefix_rows(
        self, columns: dict[str, Tensor], flat: dict[str, Tensor], first: Tensor, target: Tensor
    ) -> PrefixRows:
        length = (target - first).clamp(max=self.max_item_list_len)
        columns = {**columns, self.item_list_length_field: length}
        return PrefixRows(columns, flat, first, target, self.max_item_list_len, self.item_list_length_field)

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        rows = self.inter_feat[index]
        if isinstance(rows, PrefixRows):
            span = {SEEN_FROM: rows.first, SEEN_TO: rows.target} if self.config["mask_seen"] else {}
            rows = rows.padded(trim=catalogue.find(self.config["model"]).trims_padding)
            rows.interaction.update(span)
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
        interaction : Interaction
            Rows of this data set, prepared with ``mask_seen``.

        Returns
        -------
        row : Tensor
            int [number of pairs].
        item : Tensor
            int [number of pairs].
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


@functools.cache  # a class is made once, so that equal data sets are of one
def ordered(chosen: type | None) -> type:
    """A data set class of RecBole's kind, ordered in time; by default the sequential one."""
    if chosen is not None and issubclass(chosen, Chronological):
        return chosen
    ours: dict[type | None, type] = {None: SequenceDataset, SequentialDataset: SequenceDataset, Dataset: Chronological}
    if chosen in ours:
        return ours[chosen]
    assert chosen is not None
    return type(chosen.__name__, (Chronological, chosen), {})

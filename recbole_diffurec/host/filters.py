"""The columns of the data that filters and labels need."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType, ModelType

from recbole_diffurec.data.delimited import AtomicFile
from recbole_diffurec.errors import UserError

__all__ = ["FilteredColumns"]

logger = logging.getLogger("recbole_diffurec")


class FilteredColumns(Dataset):
    """Loads the columns that ``val_interval``, ``threshold`` and labels need, which RecBole leaves to ``load_col``.

    A column that is loaded for ``val_interval`` alone is dropped after filtering, so that no model takes it for a
    feature. And of duplicates the first or the last is kept in exact order.
    """

    inter_feat: Any  # a DataFrame until RecBole builds the splits, an Interaction after
    _rest_fields: np.ndarray

    def _get_preset(self) -> None:
        super()._get_preset()
        self._for_filters: dict[str, set[str]] = {}  # by kind of file, what is loaded for val_interval alone

    def _get_load_and_unload_col(self, source: Any) -> tuple[set[str] | None, set[str] | None]:
        load, unload = super()._get_load_and_unload_col(source)
        kind, wanted = getattr(source, "value", source), self._read_by_filters()
        if load is None or unload is not None or not wanted or kind not in ("inter", "user", "item"):
            return load, unload
        more = (wanted & self._header(kind)) - load - {self.uid_field, self.iid_field}
        self._for_filters[kind] = more & set(self.config["val_interval"] or ()) - set(self.config["threshold"] or ())
        owner = {"user": {self.uid_field}, "item": {self.iid_field}}.get(kind, set())
        return load | more | (owner if more else set()), unload

    def _read_by_filters(self) -> set[str]:
        """The columns that filters and labels read, whichever file they are in."""
        needed = {*(self.config["val_interval"] or ()), *(self.config["threshold"] or ())}
        labeled = "labeled" in str(self.config["eval_args"]["mode"])
        if self.config["MODEL_TYPE"] == ModelType.CONTEXT or labeled:
            needed.add(self.label_field)
        return needed

    def _header(self, kind: str) -> set[str]:
        """The names of the columns in the file of a kind; none where there is no such file."""
        first = f"{self.benchmark_filename_list[0]}." if kind == "inter" and self.benchmark_filename_list else ""
        path = os.path.join(self.dataset_path, f"{self.dataset_name}.{first}{kind}")
        if not os.path.isfile(path):
            return set()
        return set(AtomicFile(Path(path), None, self.config["field_separator"], self.config["encoding"]).columns)

    def _filter_by_field_value(self) -> None:
        self._say_what_has_no_line()
        for field, wanted in (self.config["val_interval"] or {}).items():
            kind = self.field2type.get(field)
            if kind is None:
                raise UserError(
                    f"val_interval names '{field}', which is no column of data set '{self.dataset_name}': it has "
                    f"{', '.join(sorted(self._header('inter') | self._header('user') | self._header('item')))}"
                )
            if kind not in (FeatureType.FLOAT, FeatureType.TOKEN):
                raise UserError(
                    f"val_interval names '{field}', a column of {kind.value}s, which are lists: name one of single "
                    f"numbers or ids"
                )
            if (kind == FeatureType.FLOAT) != isinstance(wanted, str):
                form = 'an interval such as "[3,inf)"' if kind == FeatureType.FLOAT else "a list of ids such as [a,b]"
                raise UserError(f"val_interval must give '{field}', a column of {kind.value}s, {form}, got {wanted!r}")
        super()._filter_by_field_value()

    def _say_what_has_no_line(self) -> None:
        """Count the interactions that RecBole drops without a word, since another file lacks their user or item."""
        for kind, field in (("user", self.uid_field), ("item", self.iid_field)):
            feat = getattr(self, f"{kind}_feat")
            if feat is None or not self.config["filter_inter_by_user_or_item"]:
                continue
            ids = self.inter_feat[field]
            lost = ids[~ids.isin(feat[field])]
            if len(lost):
                logger.warning(
                    "data set '%s': left out are %s interactions of %s %ss that '%s.%s' has no line for, such as '%s' "
                    "(filter_inter_by_user_or_item)",
                    *(self.dataset_name, f"{len(lost):,}", f"{lost.nunique():,}", kind, self.dataset_name, kind),
                    lost.iloc[0],
                )

    def _set_label_by_threshold(self) -> None:
        for field in self.config["threshold"] or ():
            if field not in self.inter_feat:
                raise UserError(
                    f"threshold names '{field}', which is no column of the interactions of data set "
                    f"'{self.dataset_name}': it has {', '.join(sorted(self._header('inter')))}"
                )
        super()._set_label_by_threshold()

    def _remove_duplication(self) -> None:
        """Keep the first or last of a user's interactions with an item, by time, and of one time by the file.

        RecBole sorts for that, unstably. Numbers in place of the times leave its sort no ties.
        """
        frame, time = self.inter_feat, self.time_field
        if not self.config["rm_dup_inter"] or time not in frame:
            super()._remove_duplication()
            return
        times = frame[time].copy()
        frame[time] = times.rank(method="first")
        super()._remove_duplication()
        self.inter_feat[time] = times
        self.inter_feat.sort_index(inplace=True)

    def _data_filtering(self) -> None:
        super()._data_filtering()
        for kind, fields in self._for_filters.items():
            feat = getattr(self, f"{kind}_feat")
            for field in fields if feat is not None else ():
                self._del_col(feat, field)
            # Of tokens, RecBole has noted already which it is to number.
            self._rest_fields = np.setdiff1d(self._rest_fields, sorted(fields))
            if kind != "inter" and feat is not None and feat.shape[1] == 1:  # nothing but the ids
                setattr(self, f"{kind}_feat", None)
                self.feat_name_list.remove(f"{kind}_feat")

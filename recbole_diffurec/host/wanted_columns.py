"""The columns of the data that parameters name: they are there, or the parameter is refused.

RecBole loads what it finds of ``load_col`` and goes on without the rest, and reads some parameters for the columns that
happen to be there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import FEATURES, columns_to_load, own_names
from recbole_diffurec.host.filters import FilteredColumns

__all__ = ["WantedColumns"]

# Parameters that name columns, as lists or as the keys of mappings.
NAMING = ("alias_of_user_id", "alias_of_item_id", "alias_of_entity_id", "alias_of_relation_id", "normalize_field",
          "numerical_features", "seq_len", "discretization", "preload_weight")  # fmt: skip
GRAPH = ("kg", "link")  # files that the data sets of knowledge-aware models read, with checks of their own


class WantedColumns(FilteredColumns):
    """Refuses names of columns and files that the data set does not have."""

    def _needed_columns(self) -> dict[str, str]:
        """The columns of interactions that must be there, and their types."""
        raise NotImplementedError

    def _load_data(self, token: str, dataset_path: str) -> None:
        super()._load_data(token, dataset_path)
        given, defaults = self.config.external_config_dict, self.config.internal_config_dict
        for parameter in NAMING:
            if given.get(parameter) != defaults.get(parameter):  # a checkpoint holds the defaults as well
                self._check_named(parameter, given.get(parameter) or ())
        for parameter in FEATURES:  # models cannot do without them, whoever names them
            named = self.config[parameter] or ()
            self._check_named(parameter, [named] if isinstance(named, str) else named)

    def _check_load_col(self) -> None:
        """Refuse a ``load_col`` of the user's that names what is not there, or leaves out what is needed."""
        own = {"user": [self.uid_field], "item": [self.iid_field], "inter": list(self._needed_columns())}
        for kind, columns in (self.config["unload_col"] or {}).items():
            for name in columns:
                if name in own.get(kind, ()):
                    raise UserError(f"unload_col names '{name}' of the file {kind}, which this run needs: leave it out")
                if name not in self._header(kind):
                    raise UserError(f"unload_col names '{name}', which is no column of the file {kind}: leave it out")
        wanted = self.config.external_config_dict.get("load_col")
        if wanted is None:
            return
        # Defaults name columns that may be missing, and a checkpoint holds them as if they were given.
        default, final = self.config.internal_config_dict["load_col"] or {}, self.config.final_config_dict
        usual = own_names(default, final)
        usual["inter"] = [*usual.get("inter", ()), *columns_to_load({**final, "load_col": default})["inter"]]
        for kind in {"inter": None, **wanted}:
            columns, there = wanted.get(kind, []), self._header(kind)
            path = f"{self.dataset_name}.{kind}"
            if kind in GRAPH or (kind == "inter" and not there):  # that interactions are missing is said elsewhere
                continue
            if kind not in (*own, *(self.config["additional_feat_suffix"] or ())):
                raise UserError(
                    f"load_col names the file '{path}', which nothing reads: name inter, user, item, kg, link, or a "
                    f"file that additional_feat_suffix adds"
                )
            if not there and kind not in usual:
                raise UserError(f"load_col names columns of '{path}', which does not exist: correct the name")
            if columns == "*":
                continue
            for name in (name for name in columns if name not in {*there, *usual.get(kind, ())}):
                raise UserError(f"load_col names '{name}', which is no column of '{path}': it has {_listed(there)}")
            for name in (name for name in own.get(kind, ()) if name not in columns):
                raise UserError(f"load_col leaves out '{name}' of '{path}', which this run needs: add it there")

    def _check_named(self, parameter: str, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.field2type:
                raise UserError(
                    f"{parameter} names '{name}', which is no column of data set '{self.dataset_name}' that is loaded: "
                    f"these are {_listed(self.field2type)}; load others with --load_col"
                )

    def _preload_weight_matrix(self) -> None:
        for name in self.config["preload_weight"] or ():
            if name in self.field2type and name not in self.field2id_token:
                raise UserError(
                    f"preload_weight names '{name}', of which model {self.config['model']} has no ids: leave it "
                    f"out, or choose a model that reads them"
                )
        super()._preload_weight_matrix()


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(sorted(map(str, names)))

"""Configuration of one run: layers of defaults and overrides, checked before any data is read.

Precedence, strongest first: command line (or keyword arguments), ``--config_files`` (later files win), experiment,
data set, model, overall. Nothing that a user or a file supplies is ever evaluated as code.
"""

from __future__ import annotations

import copy
import functools
import glob
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
import yaml
from recbole.config import Config
from recbole.utils import ModelType
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_diffurec.config import layers
from recbole_diffurec.config.needs import NEEDS, Need, unmet
from recbole_diffurec.config.rules import COUNT, INTERVALS, NOT_IN_RESULT, RULES, Rule, meaning, nearest
from recbole_diffurec.data.sources import check_name
from recbole_diffurec.errors import UserError
from recbole_diffurec.host import catalogue, checks, trackers
from recbole_diffurec.host.catalogue import HOST_PROPERTIES
from recbole_diffurec.host.cooccurrences import with_cooccurrences
from recbole_diffurec.host.inputs import reconstructs
from recbole_diffurec.host.repeats import with_repeat_bias
from recbole_diffurec.host.sequences import check_rows
from recbole_diffurec.runtime import distributed, precision

# Keys that RecBole reads without naming them in any of its files.
_UNLISTED_HOST_KEYS = {"encoding", "wandb_project", "convert_token_to_onehot", "token_num_threshold", "tail_ratio"}
# Keys of RecBole's final configuration that it makes of others.
DERIVED = frozenset(
    {"model", "dataset", "device", "eval_type", "MODEL_TYPE", "MODEL_INPUT_TYPE", "single_spec", "local_rank"}
    | {"valid_metric_bigger", "valid_neg_sample_args", "test_neg_sample_args"}
)
# Keys that the data depends on without being among RecBole's ``dataset_arguments``.
_UNLISTED_DATASET_KEYS = {
    "data_path", "encoding", "discretization", "token_num_threshold", "source_base_urls", "numerical_features",
    "kg_reverse_r", "entity_kg_num_interval", "relation_kg_num_interval",
}  # fmt: skip
FEATURES = ("selected_features", "item_attribute")  # columns that must be there; of models that read more than ids
# What decides which interactions of which users and items there are, wherever they lie.
DATA_PARAMETERS = frozenset({*dataset_arguments, *_UNLISTED_DATASET_KEYS} - NOT_IN_RESULT)


logger = logging.getLogger("recbole_diffurec")


@functools.cache
def once(level: int, message: str) -> None:
    """Log a message that a process need not repeat for each of its configurations."""
    logger.log(level, message)


@functools.cache
def known_parameters(model: str) -> frozenset[str]:
    """The names of all parameters of a run of ``model``."""
    overall, own = layers.shipped_defaults("overall"), catalogue.find(model).default_values()
    host_files = [HOST_PROPERTIES / "overall.yaml", HOST_PROPERTIES / "dataset" / "sample.yaml"]
    host_files += sorted((HOST_PROPERTIES / "quick_start_config").glob("*.yaml"))
    known = {*overall, *own, *(name.replace("-", "_") for name in own), *_UNLISTED_HOST_KEYS}
    known.update(key for path in host_files for key in layers.read_yaml(path))
    known.update(general_arguments, training_arguments, evaluation_arguments, dataset_arguments)
    return frozenset(known - {"config_file"})  # listed by RecBole and read by nothing


class RunConfig(Config):
    """RecBole's configuration, filled from our layers, strict about what it is given.

    Parameters
    ----------
    model, dataset : str or None
        Names; where they are None, ``model`` and ``dataset`` of the layers count, or else DiffuRecSys and ml-100k.
    overrides : Mapping of str to object, optional
        The strongest layer, parameter -> value of its proper type.
    config_files : Sequence of (str or Path), optional
        YAML files, later ones stronger.
    experiment : str, optional
        Name of a file under ``properties/experiment``, or None.

    Raises
    ------
    UserError
        Unknown model, experiment or parameter, a value of the wrong type or out of range, or values that do not fit
        together. No data is read before all of them are checked.
    """

    def __init__(
        self,
        model: str | None,
        dataset: str | None,
        overrides: Mapping[str, Any] | None = None,
        config_files: Sequence[str | Path] = (),
        experiment: str | None = None,
    ):
        given = layers.settings(experiment, config_files, overrides)
        model = layers.take_name(given, "model", model, "DiffuRecSys")
        dataset = layers.take_name(given, "dataset", dataset, "ml-100k")
        check_name(dataset)
        if not isinstance(model, str):
            raise UserError(f"model must be one name, got {model!r}: give a name that --list_models prints")
        if given.get("gpu_id", "") is None:
            given["gpu_id"] = ""
        self.spec, fixed = catalogue.named(model)
        for name, value in fixed.items():
            if given.setdefault(name, value) != value:
                raise UserError(
                    f"'{model}' is {self.spec.name} with {name} {value!r}, got {given[name]!r}: leave {name} out, or "
                    f"give --model={self.spec.name}"
                )
        self._check_names(self.spec.name, given)
        given = catalogue.in_host_spelling(self.spec.name, given)
        cls = catalogue.model_class(self.spec.name)
        try:
            super().__init__(model=cls, dataset=dataset, config_dict=given)
        except UserError:
            raise
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".!")
            raise UserError(f"RecBole refuses these parameters: {reason}") from error
        if isinstance(self.spec, catalogue.HostSpec):
            cls = with_repeat_bias(cls) if self["repeat_bias"] else cls
            self.model_class = cls if self["cooccurrence_weight"] is None else with_cooccurrences(cls)
        if self["valid_item_in_input"]:
            self.refuse_without("validation", "valid_item_in_input is to put its items into the input of the test")
        if reconstructs(cls) and not self["mask_seen"]:
            once(
                logging.WARNING,
                f"model {self.spec.name} reconstructs the items it is given, which fill the top of a ranking that has "
                f"them: figures without --mask_seen=True say little of it",
            )

    # Hooks of RecBole's constructor

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return layers.Loader

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        """RecBole evaluates strings as Python here; ours have their types already."""
        return dict(config_dict)

    def _load_cmd_line(self) -> dict[str, Any]:
        """RecBole takes every ``--k=v`` of ``sys.argv`` here, whoever it was meant for."""
        return {}

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        overall, data = layers.shipped_defaults("overall"), layers.shipped_defaults(f"dataset/{dataset}")
        for layer in (overall, self.spec.default_values(), data):
            self.internal_config_dict.update(layer)

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = super()._get_final_config_dict()
        given = self.external_config_dict
        if final["MODEL_TYPE"] == ModelType.DECISIONTREE:
            raise UserError(
                f"model '{self.model}' predicts clicks and cannot rank items: choose one that "
                f"'recbole-diffurec run --list_models' names"
            )
        self._check_types(final, given)  # before anything reads them
        full_softmax = final["MODEL_TYPE"] == ModelType.SEQUENTIAL and final.get("loss_type") == "CE"
        if full_softmax and "train_neg_sample_args" not in given:
            # Takes no negatives; RecBole makes its user say so. Set among the defaults too, for plain().
            final["train_neg_sample_args"] = self.internal_config_dict["train_neg_sample_args"] = None
        if "load_col" not in given:
            # RecBole takes one of the two; with none of load_col it loads the rest.
            columns = None if final["unload_col"] else columns_to_load(final)
            final["load_col"] = self.internal_config_dict["load_col"] = columns
        if final["benchmark_filename"]:  # of which RecBole filters nothing
            final.update(dict.fromkeys(checks.FILTERS - given.keys()))
            self.internal_config_dict.update(dict.fromkeys(checks.FILTERS))
        if isinstance(given.get("eval_args"), dict):
            # RecBole would fill what is left out with its random split.
            final["eval_args"] = {**self.internal_config_dict["eval_args"], **given["eval_args"]}
        self._check_values(final, given)
        return final

    def _init_device(self) -> None:
        final = self.final_config_dict
        devices = gpu_numbers(final)
        if distributed.world_size() > 1 and devices:  # each process its own
            wanted = distributed.local_world_size()
            if devices == [0]:  # the default
                devices = list(range(torch.cuda.device_count() or wanted))
            if len(devices) < wanted:
                raise UserError(
                    f"gpu_id has {len(devices)} GPUs for {wanted} processes on this machine: start fewer, name more "
                    f"(--gpu_id=0,1), or use the processors alone (--gpu_id=)"
                )
            devices = [devices[distributed.local_rank()]]
        use_device(final, devices)
        self._choose_precision()

    def _choose_precision(self) -> None:
        """``enable_amp: auto`` by what the device is faster in; ``True`` on a slow one is kept."""
        self._on_precision: tuple[int, str] | None = None
        wanted, kind = self.final_config_dict["enable_amp"], self.final_config_dict["device"].type
        if wanted is False:
            return
        bfloat16 = precision.bfloat16_on(kind)
        if wanted == "auto":
            self.final_config_dict["enable_amp"] = bfloat16.fast
            self._on_precision = logging.INFO, f"enable_amp auto is {bfloat16.fast}: {bfloat16.reason}"
        elif not bfloat16.fast:
            slower = 1 / precision.product_speedup() if kind == "cpu" else None
            measured = f", and a product in bf16 takes {slower:.0f} times as long as in float32" if slower else ""
            self._on_precision = (
                logging.WARNING,
                f"enable_amp is True, but {bfloat16.reason}{measured}: --enable_amp=auto chooses by the device",
            )

    def tell_precision(self) -> None:
        """Say what became of ``enable_amp`` and why; once it is known that nothing else is wrong."""
        if self._on_precision is not None:
            once(*self._on_precision)

    # Checks

    def _check_names(self, model: str, given: Mapping[str, Any]) -> None:
        self._known = known_parameters(model)
        for name in given:
            if name not in self._known:
                names = {*self._known, "model", "dataset", "config_files", "experiment", "result_file"} - {name}
                hint = nearest(name, names) or " run 'recbole-diffurec --help' for where parameters are listed"
                raise UserError(f"unknown parameter '{name}' for model {model}:{hint}")

    def _check_types(self, final: dict[str, Any], given: Mapping[str, Any]) -> None:
        if isinstance(final["topk"], int):
            final["topk"] = [final["topk"]]
        if isinstance(final["metrics"], str):
            final["metrics"] = [final["metrics"]]
        if isinstance(final["additional_feat_suffix"], str):
            final["additional_feat_suffix"] = [final["additional_feat_suffix"]]
        final["val_interval"] = checks.with_ids_as_text(final["val_interval"])
        final.update(log_to=trackers.named(final), log_wandb=False)  # RecBole's own way would be a second one
        # Empty means 4 d to models that have rules, and nothing to RecBole's.
        rules = {**RULES, **(self.spec.rules or {"inner_size": COUNT})}
        # For registered models the files' values are checked too; RecBole's defaults are RecBole's business.
        checked = {*given, *rules} & final.keys() if self.spec.rules else set(given)
        own = self.spec.default_values()
        for name in sorted(checked):
            rule = rules.get(name) or Rule.of_default(self.internal_config_dict.get(name), name in own)
            if rule is not None and not rule.accepts(final[name]):
                raise UserError(f"{name} must be {rule.describe(final[name])}, got {final[name]!r}")

    def _check_values(self, final: dict[str, Any], given: Mapping[str, Any]) -> None:
        for name in ("user_inter_num_interval", "item_inter_num_interval"):
            if final[name] is not None and not INTERVALS.fullmatch(final[name]):
                raise UserError(f"{name} must be an interval such as [5,inf), got '{final[name]}'")
        checks.check_effect(given, self.internal_config_dict, self.spec.name)
        checks.check_clipping(final["clip_grad_norm"])
        self.protocol = checks.check_data_and_evaluation(final, self.model_class)
        self._check_counts(final)
        if {"hidden_size", "n_heads"} <= final.keys() and final["hidden_size"] % final["n_heads"]:
            divisors = [str(n) for n in range(1, 65) if final["hidden_size"] % n == 0]  # more heads nobody has
            raise UserError(
                f"n_heads must divide hidden_size ({final['hidden_size']}), got {final['n_heads']}: "
                f"choose one of {', '.join(divisors)}"
            )
        check_rows(final, self.spec)
        if self.spec.check is not None:
            self.spec.check(final)

    @staticmethod
    def _check_counts(final: Mapping[str, Any]) -> None:
        for minimum, counts in (final["expected_counts"] or {}).items():
            if not isinstance(counts, list) or len(counts) != 3 or not all(Rule("int", 0).accepts(n) for n in counts):
                raise UserError(
                    f"expected_counts must map a minimum of interactions to [users, items, interactions], such as "
                    f"{{5: [943, 1349, 99287]}}, got {{{minimum}: {counts!r}}}"
                )

    def with_values(self, **values: Any) -> RunConfig:
        """This configuration with other values for RecBole's code; what it says of itself stays as it is."""
        other = copy.copy(self)
        other.final_config_dict = {**self.final_config_dict, **values}
        return other

    def refuse_without(self, part: str, reason: str) -> None:
        """Raise ``UserError`` where the split makes no such part; ``reason`` is a clause."""
        if self["benchmark_filename"] is None and part not in self.protocol.parts:
            split = self["eval_args"]["split"]
            raise UserError(f"the split {split} has no {part} part, and {reason}: give one that has")

    def unmet_need(self, name: str) -> Need | None:
        """What keeps a parameter from acting, or None where it acts."""
        return unmet(name, self.final_config_dict, {**NEEDS, **self.spec.needs})

    def data_files(self) -> list[Path]:
        """The files of the data set that there are."""
        stem = os.path.join(self["data_path"], self["dataset"])
        return [Path(found) for found in sorted(glob.glob(f"{glob.escape(stem)}.*"))]

    # What a checkpoint or a result keeps

    def plain(self) -> dict[str, Any]:
        """The parameters as plain values, enough to build the same configuration again."""
        values = {**self.internal_config_dict, **self.external_config_dict}
        if isinstance(self.spec, catalogue.HostSpec) and not values.get("repeat_bias"):
            values.pop("repeat_bias", None)  # a run without it is the run that it was before RecBole's models had it
        # A data set's defaults may name parameters that this model does not have.
        return {name: value for name, value in values.items() if name in self._known - DERIVED}

    def key(self) -> str:
        """A short name for everything that a run's result depends on; equal for equal runs wherever they happen."""
        return _digest({"model": self["model"], "dataset": self["dataset"], **meaning(self.plain())})

    def dataset_key(self) -> str:
        """A short name for everything that the filtered and ordered data set depends on, beside its class."""
        names = {*dataset_arguments, *_UNLISTED_DATASET_KEYS, *FEATURES}
        values = {name: value for name, value in self.final_config_dict.items() if name in names}
        more = {"type": str(self["MODEL_TYPE"]), "order": self["eval_args"]["order"]}  # times are needed for some
        return _digest({"dataset": self["dataset"], **more, **values})


def own_names(columns: Mapping[str, Any], final: Mapping[str, Any]) -> dict[str, Any]:
    """Columns by kind of file, those of RecBole's defaults by the names that they have in this configuration."""
    kinds = {"user_id": "USER_ID", "item_id": "ITEM_ID", "rating": "RATING", "timestamp": "TIME", "label": "LABEL"}
    kinds |= {"head_id": "HEAD_ENTITY_ID", "tail_id": "TAIL_ENTITY_ID", "relation_id": "RELATION_ID"}
    kinds["entity_id"] = "ENTITY_ID"
    own = {name: final[f"{kind}_FIELD"] for name, kind in kinds.items()}
    return {file: [own.get(name, name) for name in names] for file, names in columns.items()}


def columns_to_load(final: Mapping[str, Any]) -> dict[str, Any]:
    """What ``load_col`` is where the user gives none: of the interactions the time as well, of files that are split
    already the histories, where they have some, and of the items the column that is a factor of the model.
    """
    fields = [final[f"{kind}_FIELD"] for kind in ("USER_ID", "ITEM_ID", "TIME")]
    columns = own_names(final["load_col"] or {}, final)
    if final["MODEL_TYPE"] not in (ModelType.GENERAL, ModelType.SEQUENTIAL, ModelType.TRADITIONAL):
        fields += [name for name in columns.get("inter", []) if name not in fields]
    if final["MODEL_TYPE"] == ModelType.SEQUENTIAL and final["benchmark_filename"]:
        fields.append(f"{final['ITEM_ID_FIELD']}{final['LIST_SUFFIX']}")
    if final.get("category_field"):
        columns["item"] = [final["ITEM_ID_FIELD"], final["category_field"]]
    return {**columns, "inter": fields}


def gpu_numbers(final: Mapping[str, Any]) -> list[int]:
    """The GPUs that ``gpu_id`` names; none where ``use_gpu`` is False, which RecBole ignores.

    Raises
    ------
    UserError
        ``gpu_id`` is no list of numbers.
    """
    given = final["gpu_id"]
    parts = [] if given in (None, "") else [str(part).strip() for part in _listed(given)]
    if not all(part.isdecimal() for part in parts):
        raise UserError(
            f"gpu_id must be the number of a GPU such as 0, several such as 0,1, or empty for the CPU, got {given!r}"
        )
    return [int(part) for part in parts] if final["use_gpu"] else []


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else str(value).split(",")


def use_device(final: dict[str, Any], devices: Sequence[int]) -> None:
    """Set what RecBole reads of the device: the first of these GPUs, or the CPU where there is none.

    RecBole's own way is to put ``gpu_id`` into ``CUDA_VISIBLE_DEVICES`` (configurator.py:482), for the whole process
    and its children: the GPUs that Ray or SLURM assigned, or the user, are replaced by others, and an empty one hides
    all of them from the program around a run. Here GPUs are numbered among those that are visible.

    Raises
    ------
    UserError
        A GPU with this number is not there, but others are.
    """
    final.update(gpu_id=",".join(map(str, devices)), single_spec=True, local_rank=0, device=torch.device("cpu"))
    if devices and torch.cuda.is_available():
        visible = torch.cuda.device_count()
        if devices[0] >= visible:
            raise UserError(
                f"gpu_id is {devices[0]}, and {visible} GPUs are visible, with the numbers from 0 to {visible - 1}: "
                f"give one of these, or set CUDA_VISIBLE_DEVICES to the GPUs that are meant"
            )
        final["device"] = torch.device("cuda", devices[0])


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]

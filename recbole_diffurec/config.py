"""Configuration of one run: layers of defaults and overrides, checked before any data is read.

Precedence, strongest first: command line (or keyword arguments), ``--config_files`` (later files win), experiment,
data set, model, overall. Nothing that a user or a file supplies is ever evaluated as code.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import recbole
import torch
import yaml
from recbole.config import Config
from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType, ModelType, get_model
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_diffurec import defaults, distributed
from recbole_diffurec.data.sources import check_name
from recbole_diffurec.diffusion import schedules
from recbole_diffurec.diffusion.step_samplers import STEP_SAMPLERS
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.blocks import ACTIVATIONS
from recbole_diffurec.registry import MODELS

HOST_PROPERTIES = Path(recbole.__file__).parent / "properties"

# Keys that RecBole reads without naming them in any of its files.
_UNLISTED_HOST_KEYS = {"encoding", "wandb_project", "convert_token_to_onehot", "token_num_threshold", "tail_ratio"}
# Keys that the data depends on without being among RecBole's ``dataset_arguments``.
_UNLISTED_DATASET_KEYS = {"data_path", "encoding", "discretization", "token_num_threshold", "source_base_urls"}

# Parameters that say where and how a run happens, and change nothing about its result.
PLACES = {"checkpoint_dir", "data_path", "gpu_id", "use_gpu", "show_progress", "state", "worker", "source_base_urls"}
PLACES |= {"checkpoint_minutes", "detect_anomaly", "log_wandb", "wandb_project", "expected_counts"}


@dataclass(frozen=True)
class Rule:
    """What one parameter may be: a kind, a closed or half-open interval, or a list of choices."""

    kind: str  # int, number, bool, str, list, dict
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: Sequence[str] | None = None
    optional: bool = False

    def describe(self) -> str:
        if self.choices:
            text = f"one of {', '.join(self.choices)}"
        elif self.kind in ("int", "number"):
            text = "an integer" if self.kind == "int" else "a number" if math.isfinite(self.high) else "a finite number"
            if math.isfinite(self.low) and math.isfinite(self.high):
                left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
                text += f" in {left}{self.low}, {self.high}{right}"
            elif math.isfinite(self.low):
                text += f" {'above' if self.open_low else 'of at least'} {self.low}"
        else:
            text = {"bool": "True or False", "str": "text", "list": "a list", "dict": "a mapping"}[self.kind]
        return text + (" (or empty)" if self.optional else "")

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if self.kind in ("int", "number"):
            if isinstance(value, bool) or not isinstance(value, int if self.kind == "int" else (int, float)):
                return False
            if isinstance(value, float) and not math.isfinite(value):
                return False
            above = value > self.low if self.open_low else value >= self.low
            below = value < self.high if self.open_high else value <= self.high
            return above and below
        expected = {"bool": bool, "str": str, "list": list, "dict": dict}[self.kind]
        return isinstance(value, expected) and (self.choices is None or value in self.choices)


_PROBABILITY = Rule("number", 0, 1, open_high=True)
_COUNT = Rule("int", 1)

RULES: dict[str, Rule] = {
    "seed": Rule("int", 0, 2**32 - 1),
    "data_path": Rule("str"),
    "checkpoint_dir": Rule("str"),
    "gpu_id": Rule("str", optional=True),
    "use_gpu": Rule("bool"),
    "show_progress": Rule("bool"),
    "epochs": _COUNT,
    "train_batch_size": _COUNT,
    "eval_batch_size": _COUNT,
    "learner": Rule("str", choices=["adam", "adamw", "sgd", "adagrad", "rmsprop"]),
    "learning_rate": Rule("number", 0, open_low=True),
    "weight_decay": Rule("number", 0),
    "stopping_step": Rule("int", 0),
    "eval_step": _COUNT,
    "topk": Rule("list"),
    "metrics": Rule("list"),
    "valid_metric": Rule("str"),
    "metric_decimal_place": _COUNT,
    "MAX_ITEM_LIST_LENGTH": _COUNT,
    "enable_amp": Rule("bool"),
    "batch_by_length": Rule("bool"),
    **{f"{kind}_FIELD": Rule("str") for kind in ("USER_ID", "ITEM_ID", "TIME")},
    "user_inter_num_interval": Rule("str", optional=True),
    "item_inter_num_interval": Rule("str", optional=True),
    "expected_counts": Rule("dict", optional=True),
    "source_base_urls": Rule("dict", optional=True),
    "checkpoint_minutes": Rule("number", 0, optional=True),
    "detect_anomaly": Rule("bool"),
    "lr_decay_step": Rule("int", 1, optional=True),
    "lr_decay_gamma": Rule("number", 0, 1, open_low=True),
    "ema_decay": Rule("number", 0, 1, open_low=True, open_high=True, optional=True),
    "mask_seen": Rule("bool"),
    "hidden_size": Rule("int", 2),
    "n_layers": _COUNT,
    "n_heads": _COUNT,
    "inner_size": Rule("int", 1, optional=True),
    "hidden_dropout_prob": _PROBABILITY,
    "attn_dropout_prob": _PROBABILITY,
    "embedding_dropout_prob": _PROBABILITY,
    "use_position": Rule("bool"),
    "cross_attention": Rule("bool"),
    "init": Rule("str", choices=["xavier_normal", "normal"]),
    "initializer_range": Rule("number", 0, open_low=True),
    "worker": Rule("int", 0),
}
# RecBole's parameters that are empty by default, so that the default does not tell the kind.
for _name in ("clip_grad_norm", "discretization", "preload_weight", "seq_len", "threshold", "val_interval"):
    RULES[_name] = Rule("dict", optional=True)
RULES["additional_feat_suffix"] = Rule("list", optional=True)
# Names that RecBole's models (DiffRec) use with meanings of their own are checked for our models alone.
MODEL_RULES: dict[str, Rule] = {
    "hidden_act": Rule("str", choices=list(ACTIVATIONS)),
    "diffusion_steps": _COUNT,
    "sampling_steps": Rule("int", 1, optional=True),
    "noise_schedule": Rule("str", choices=list(schedules.SCHEDULES)),
    "step_sampler": Rule("str", choices=list(STEP_SAMPLERS)),
    "lambda_uncertainty": Rule("number", 0),
    "offset_noise": Rule("bool"),
    "offset_scale": Rule("number"),
    "reverse_start": Rule("str", choices=["noise", "last_item"]),
    "noise_seed": Rule("int", 0, 2**63 - 1),
    "ensemble_seeds": Rule("list", optional=True),
    "sampled_softmax": Rule("int", 1, optional=True),
    "negative_distribution": Rule("str", choices=["log_uniform", "uniform"]),
    "compile": Rule("bool"),
    "gradient_checkpointing": Rule("bool"),
    "keyed_noise": Rule("bool"),
    "cosine_temperature": Rule("number", 0, 1, open_low=True, optional=True),
    "repeat_bias": Rule("bool"),
}

# What RecBole takes for intervals of counts; it skips anything else with a line in its log.
_BOUND = r"\s*[-+]?(?:\d+(?:\.\d*)?|inf)\s*"
_INTERVAL = rf"\s*[\[(]{_BOUND},{_BOUND}[\])]\s*"
INTERVALS = re.compile(rf"{_INTERVAL}(?:;{_INTERVAL})*")


def known_models() -> list[str]:
    """Names of all models that ``--model`` takes: ours first, then RecBole's."""
    return [*MODELS, *sorted(path.stem for path in (HOST_PROPERTIES / "model").glob("*.yaml"))]


def nearest(name: str, names: Iterable[str]) -> str:
    """`` did you mean 'x'?`` for the closest of ``names``, or nothing."""
    by_lower = {n.lower(): n for n in names}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" did you mean '{by_lower[match[0]]}'?" if match else ""


def model_class(name: str) -> type:
    """The class of a model, ours or RecBole's; ``UserError`` names the nearest where there is none."""
    if name not in known_models():
        suggestion = nearest(name, known_models()) or " run 'recbole-diffurec --list_models' for all names"
        raise UserError(f"unknown model '{name}':{suggestion}")
    try:
        return get_model(name)
    except ImportError as error:
        raise UserError(
            f"model '{name}' needs the Python package '{error.name}', which is not installed: pip install {error.name}"
        ) from None


def _read_host_model(name: str) -> dict[str, Any]:
    path = HOST_PROPERTIES / "model" / f"{name}.yaml"
    return defaults.read_yaml(path) if path.is_file() else {}


@functools.cache
def known_parameters(model: str) -> frozenset[str]:
    """The names of all parameters of a run of ``model``."""
    overall, ours, _ = defaults.default_layers(model, "")
    host_files = [HOST_PROPERTIES / "overall.yaml", HOST_PROPERTIES / "dataset" / "sample.yaml"]
    host_files += sorted((HOST_PROPERTIES / "quick_start_config").glob("*.yaml"))
    known = {*overall, *ours, *_read_host_model(model), *_UNLISTED_HOST_KEYS}
    known.update(key for path in host_files for key in defaults.read_yaml(path))
    known.update(general_arguments, training_arguments, evaluation_arguments, dataset_arguments)
    return frozenset(known - {"config_file"})  # listed by RecBole and read by nothing


class RunConfig(Config):
    """RecBole's configuration, filled from our layers, strict about what it is given.

    Parameters
    ----------
    model, dataset : names.
    overrides : the strongest layer, parameter -> value of its proper type.
    config_files : YAML files, later ones stronger.
    experiment : name under ``properties/experiment``, or None.

    Raises
    ------
    UserError
        Unknown model, experiment or parameter, a value of the wrong type or out of range, or values that do not fit
        together. No data is read before all of them are checked.
    """

    def __init__(
        self,
        model: str,
        dataset: str,
        overrides: Mapping[str, Any] | None = None,
        config_files: Sequence[str | Path] = (),
        experiment: str | None = None,
    ):
        check_name(dataset)
        self._our_model = model in MODELS
        cls = model_class(model)
        layers = defaults.settings(experiment, config_files, overrides)
        for name, used in (("model", model), ("dataset", dataset)):
            other = layers.pop(name, used)
            if other != used:
                raise UserError(f"{name} is '{used}', and a parameter or configuration file says '{other}': give one")
        if layers.get("gpu_id", "") is None:
            layers["gpu_id"] = ""
        self._check_names(model, layers)
        try:
            super().__init__(model=cls, dataset=dataset, config_dict=layers)
        except UserError:
            raise
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".!")
            raise UserError(f"RecBole refuses these parameters: {reason}") from error

    # Hooks of RecBole's constructor

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        return defaults.Loader

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        """RecBole evaluates strings as Python here; ours have their types already."""
        return dict(config_dict)

    def _load_cmd_line(self) -> dict[str, Any]:
        """RecBole takes every ``--k=v`` of ``sys.argv`` here, whoever it was meant for."""
        return {}

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        host_model = _read_host_model(model)
        overall, ours, data = defaults.default_layers(model, dataset)
        for layer in (overall, host_model, ours, data):
            self.internal_config_dict.update(layer)

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = super()._get_final_config_dict()
        given = self.external_config_dict
        if final["MODEL_TYPE"] == ModelType.DECISIONTREE:
            raise UserError(f"model '{self.model}' does not rank items, got --model={self.model}: choose another model")
        full_softmax = final["MODEL_TYPE"] == ModelType.SEQUENTIAL and final.get("loss_type") == "CE"
        if full_softmax and "train_neg_sample_args" not in given:
            # Takes no negatives; RecBole makes its user say so. Set among the defaults too, for plain().
            final["train_neg_sample_args"] = self.internal_config_dict["train_neg_sample_args"] = None
        if "load_col" not in given:
            fields = [final[f"{kind}_FIELD"] for kind in ("USER_ID", "ITEM_ID", "TIME")]
            columns = dict(final["load_col"] or {})
            if final["MODEL_TYPE"] not in (ModelType.GENERAL, ModelType.SEQUENTIAL, ModelType.TRADITIONAL):
                fields += [name for name in columns.get("inter", []) if name not in fields]
            final["load_col"] = {**columns, "inter": fields}
            self.internal_config_dict["load_col"] = final["load_col"]
        if isinstance(given.get("eval_args"), dict):
            # RecBole would fill what is left out with its random split.
            final["eval_args"] = {**self.internal_config_dict["eval_args"], **given["eval_args"]}
        self._check_values(final, given)
        return final

    def _init_device(self) -> None:
        # RecBole ignores use_gpu; only an empty gpu_id keeps it on the CPU (configurator.py:492).
        if not self.final_config_dict["use_gpu"]:
            self.final_config_dict["gpu_id"] = ""
        devices = str(self.final_config_dict["gpu_id"]).split(",")
        if distributed.size() > 1 and devices != [""]:  # each process its own
            wanted = distributed.local_size()
            if devices == ["0"]:  # the default
                devices = [str(i) for i in range(torch.cuda.device_count() or wanted)]
            if len(devices) < wanted:
                raise UserError(
                    f"gpu_id has {len(devices)} GPUs for {wanted} processes on this machine: start fewer, name more "
                    f"(--gpu_id=0,1), or use the processors alone (--gpu_id=)"
                )
            self.final_config_dict["gpu_id"] = devices[distributed.local_rank()]
        super()._init_device()

    # Checks

    def _check_names(self, model: str, given: Mapping[str, Any]) -> None:
        self._known = known_parameters(model)
        for name in given:
            if name not in self._known:
                names = {*self._known, "model", "dataset", "config_files", "experiment", "result_file"} - {name}
                hint = nearest(name, names) or " run 'recbole-diffurec --help' for where parameters are listed"
                raise UserError(f"unknown parameter '{name}' for model {model}:{hint}")

    def _check_values(self, final: dict[str, Any], given: Mapping[str, Any]) -> None:
        if isinstance(final["topk"], int):
            final["topk"] = [final["topk"]]
        if isinstance(final["metrics"], str):
            final["metrics"] = [final["metrics"]]
        if isinstance(final["additional_feat_suffix"], str):
            final["additional_feat_suffix"] = [final["additional_feat_suffix"]]
        rules = {**RULES, **(MODEL_RULES if self._our_model else {})}
        # For our models the files' values are checked too; RecBole's defaults are RecBole's business.
        checked = {*given, *rules} & final.keys() if self._our_model else set(given)
        for name in sorted(checked):
            rule = rules.get(name) or self._rule_from_default(name)
            if rule is not None and not rule.accepts(final[name]):
                raise UserError(f"{name} must be {rule.describe()}, got {final[name]!r}")
        for name in ("user_inter_num_interval", "item_inter_num_interval"):
            if final[name] is not None and not INTERVALS.fullmatch(final[name]):
                raise UserError(f"{name} must be an interval such as [5,inf), got '{final[name]}'")
        self._check_evaluation(final)
        self._check_counts(final)
        if {"hidden_size", "n_heads"} <= final.keys() and final["hidden_size"] % final["n_heads"]:
            divisors = [str(n) for n in range(1, final["hidden_size"] + 1) if final["hidden_size"] % n == 0]
            raise UserError(
                f"n_heads must divide hidden_size ({final['hidden_size']}), got {final['n_heads']}: "
                f"choose one of {', '.join(divisors)}"
            )
        if self._our_model:
            self._check_diffusion(final)

    def _rule_from_default(self, name: str) -> Rule | None:
        """The kind of a parameter of RecBole, read off its default."""
        default = self.internal_config_dict.get(name)
        for kind, types in (("bool", bool), ("number", (int, float)), ("list", list), ("dict", dict), ("str", str)):
            if isinstance(default, types):
                return Rule(kind, optional=kind in ("list", "dict", "str"))
        return None

    @staticmethod
    def _check_evaluation(final: Mapping[str, Any]) -> None:
        topk, metrics, valid = final["topk"], final["metrics"], str(final["valid_metric"])
        if not topk or not all(Rule("int", 1).accepts(k) for k in topk):
            raise UserError(f"topk must be a list of integers of at least 1, such as [5,10,20], got {topk!r}")
        if not metrics:
            raise UserError("metrics must name at least one metric, such as [Hit,NDCG], got []")
        options = []
        for metric in metrics:
            kind = metric_types.get(str(metric).lower())
            if kind is None:
                hint = nearest(str(metric), metric_types) or f" choose from {', '.join(metric_types)}"
                raise UserError(f"unknown metric '{metric}' in metrics:{hint}")
            whole = kind == EvaluatorType.VALUE or metric.lower() == "gauc"  # has no @K in RecBole's results
            options += [metric] if whole else [f"{metric}@{k}" for k in topk]
        if valid.lower() not in [option.lower() for option in options]:
            raise UserError(f"valid_metric must be one of {', '.join(options)}, got '{valid}'")

    @staticmethod
    def _check_counts(final: Mapping[str, Any]) -> None:
        for minimum, counts in (final["expected_counts"] or {}).items():
            if not isinstance(counts, list) or len(counts) != 3 or not all(Rule("int", 0).accepts(n) for n in counts):
                raise UserError(
                    f"expected_counts must map a minimum of interactions to [users, items, interactions], such as "
                    f"{{5: [943, 1349, 99287]}}, got {{{minimum}: {counts!r}}}"
                )

    @staticmethod
    def _check_diffusion(final: Mapping[str, Any]) -> None:
        steps, sampling = final["diffusion_steps"], final["sampling_steps"]
        if sampling is not None and sampling > steps:
            raise UserError(f"sampling_steps must be from 1 to diffusion_steps ({steps}), got {sampling}")
        seeds = final["ensemble_seeds"]
        if seeds is not None and not (seeds and all(MODEL_RULES["noise_seed"].accepts(s) for s in seeds)):
            raise UserError(f"ensemble_seeds must be a list of integers of at least 0, such as [1,2,3], got {seeds!r}")
        try:
            schedules.betas(final["noise_schedule"], steps)
        except ValueError as error:
            raise UserError(str(error)) from None

    # What a checkpoint or a result keeps

    def plain(self) -> dict[str, Any]:
        """The parameters as plain values, enough to build the same configuration again."""
        derived = {"model", "dataset", "device", "eval_type", "MODEL_TYPE", "MODEL_INPUT_TYPE", "single_spec"}
        derived |= {"local_rank", "valid_metric_bigger", "valid_neg_sample_args", "test_neg_sample_args"}
        values = {**self.internal_config_dict, **self.external_config_dict}
        # A data set's defaults may name parameters that this model does not have.
        return {name: value for name, value in values.items() if name in self._known - derived}

    def key(self) -> str:
        """A short name for everything that a run's result depends on; equal for equal runs wherever they happen."""
        values = {name: value for name, value in self.plain().items() if name not in PLACES}
        return _digest({"model": self["model"], "dataset": self["dataset"], **values})

    def dataset_key(self) -> str:
        """A short name for everything that the filtered and ordered data set depends on."""
        names = {*dataset_arguments, *_UNLISTED_DATASET_KEYS}
        values = {name: value for name, value in self.final_config_dict.items() if name in names}
        return _digest({"dataset": self["dataset"], "type": str(self["MODEL_TYPE"]), **values})


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def parse_value(name: str, text: str) -> Any:
    """The value that ``--name=text`` gives: YAML, or the text itself where a parameter is text or YAML fails."""
    rule = RULES.get(name) or MODEL_RULES.get(name)
    if text.lower() in ("none", "~", ""):
        return None
    if rule is not None and rule.kind == "str":
        return text
    try:
        return defaults.parse_yaml(text)
    except Exception:  # YAMLError, and whatever Python says of a date such as 2024-13-45
        return text

"""What parameters may be: rules for single values, and which of them no figure depends on."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from recbole_diffurec.errors import UserError

# Parameters on which no figure depends: they say where and how a run happens.
NOT_IN_RESULT = frozenset(
    {"checkpoint_dir", "data_path", "gpu_id", "use_gpu", "show_progress", "state", "worker", "source_base_urls"}
    | {"checkpoint_minutes", "detect_anomaly", "log_to", "log_wandb", "wandb_project", "expected_counts"}
)

# Parameters that runs of version 0.1.0 did not have, each with the value that means what was done without it. A new
# parameter of a model that has runs already belongs here, or those runs are no longer known again.
MEANT_BEFORE: dict[str, Any] = {
    "sampler": "ddpm",
    "ddim_eta": 0.0,
    "valid_sampling_steps": None,
    "rows": "prefixes",
    "noised_target": True,
    "draws": 1,
    "squared_error_weight": 0.0,
    "cooccurrence_weight": None,
    "cooccurrence_decay": 0.8,
}


def meaning(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that say which run it is: those that a figure depends on, as far as they say anything new.

    Parameters
    ----------
    values : Mapping of str to object
        All parameters of a run, of this version or an earlier one.
    """
    return {
        name: value
        for name, value in values.items()
        if name not in NOT_IN_RESULT and not (name in MEANT_BEFORE and value == MEANT_BEFORE[name])
    }


# Numbers other than 0 are of such a size: what float32 is squared and multiplied with must not leave its range.
LEAST, MOST = 1e-30, 1e9


@dataclass(frozen=True)
class Rule:
    """What one parameter may be: a kind, a closed or half-open interval, or a list of choices.

    Numbers lie between ``LEAST`` and ``MOST`` in size, or are 0.
    """

    kind: str  # int, number, bool, str, list, names (a list of text), dict
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: Sequence[str] | None = None
    optional: bool = False

    @classmethod
    def of_default(cls, default: Any, own: bool) -> Rule | None:
        """What a parameter of RecBole may be, read off its default; None where that does not tell.

        Parameters
        ----------
        default : object
            Its value where nobody gives one.
        own : bool
            Whether it is one of the model's own, which has a value for it because it needs one.
        """
        if isinstance(default, list) and default and all(isinstance(part, str) for part in default):
            return cls("names", optional=not own)
        for kind, types in (("bool", bool), ("number", (int, float)), ("list", list), ("dict", dict), ("str", str)):
            if isinstance(default, types):
                return cls(kind, optional=kind == "dict" or (kind in ("list", "str") and not own))
        return None

    def describe(self, value: Any = None) -> str:
        """What it may be, in words; of a number ``value`` that is too large or too small also how large it may be."""
        if self.choices and self.kind == "bool":
            text = f"True, False or {' or '.join(self.choices)}"
        elif self.choices and self.kind != "number":
            text = f"one of {', '.join(self.choices)}"
        elif self.kind in ("int", "number"):
            text = "an integer" if self.kind == "int" else "a number" if math.isfinite(self.high) else "a finite number"
            if math.isfinite(self.low) and math.isfinite(self.high):
                left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
                text += f" in {left}{self.low}, {self.high}{right}"
            elif math.isfinite(self.low):
                text += f" {'above' if self.open_low else 'of at least'} {self.low}"
        else:
            kinds = {"bool": "True or False", "str": "text", "list": "a list", "dict": "a mapping"}
            text = kinds.get(self.kind, "a list of names")
        if self.kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
            if MOST < abs(value) < math.inf:
                text += f", at most {MOST:g} in size"
            elif 0 < abs(value) < LEAST:
                text += f", 0 or at least {LEAST:g} in size"
        if self.kind == "number" and self.choices:
            text += f" or {' or '.join(self.choices)}"
        return text + (" (or empty)" if self.optional else "")

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if self.kind in ("bool", "number") and isinstance(value, str):
            return value in (self.choices or ())
        if self.kind in ("int", "number"):
            if isinstance(value, bool) or not isinstance(value, int if self.kind == "int" else (int, float)):
                return False
            if self.kind == "number" and not (value == 0 or LEAST <= abs(value) <= MOST):  # nor is NaN
                return False
            above = value > self.low if self.open_low else value >= self.low
            below = value < self.high if self.open_high else value <= self.high
            return above and below
        if self.kind == "names":
            return isinstance(value, list) and all(isinstance(name, str) for name in value)
        expected = {"bool": bool, "str": str, "list": list, "dict": dict}[self.kind]
        return isinstance(value, expected) and (self.kind == "bool" or self.choices is None or value in self.choices)


# What many parameters are.
PROBABILITY = Rule("number", 0, 1, open_high=True)
COUNT = Rule("int", 1)

_LEVELS = ("debug", "info", "warning", "error", "critical")  # of RecBole's log

RULES: dict[str, Rule] = {
    "seed": Rule("int", 0, 2**32 - 1),
    "data_path": Rule("str"),
    **{name: Rule("str") for name in ("encoding", "field_separator", "seq_separator", "LIST_SUFFIX")},
    "checkpoint_dir": Rule("str"),
    "gpu_id": Rule("str", optional=True),
    "use_gpu": Rule("bool"),
    "show_progress": Rule("bool"),
    "log_to": Rule("names", optional=True),
    "wandb_project": Rule("str", optional=True),
    "epochs": COUNT,
    "train_batch_size": COUNT,
    "eval_batch_size": COUNT,
    "learner": Rule("str", choices=["adam", "adamw", "sgd", "adagrad", "rmsprop"]),
    "learning_rate": Rule("number", 0, open_low=True),
    "weight_decay": Rule("number", 0),
    "stopping_step": Rule("int", 0),
    "eval_step": COUNT,
    "topk": Rule("list"),
    "metrics": Rule("list"),
    "valid_metric": Rule("str"),
    "metric_decimal_place": Rule("int", 1, 50),
    "loss_decimal_place": Rule("int", 0, 50),
    "MAX_ITEM_LIST_LENGTH": COUNT,
    "enable_amp": Rule("bool", choices=["auto"]),
    "batch_by_length": Rule("bool"),
    "rows": Rule("str", choices=["prefixes", "sequences"]),
    **{f"{kind}_FIELD": Rule("str") for kind in ("USER_ID", "ITEM_ID", "TIME")},
    "load_col": Rule("dict", optional=True),
    "unload_col": Rule("dict", optional=True),
    "user_inter_num_interval": Rule("str", optional=True),
    "item_inter_num_interval": Rule("str", optional=True),
    "rm_dup_inter": Rule("str", choices=["first", "last"], optional=True),
    "benchmark_filename": Rule("names", optional=True),
    "numerical_features": Rule("names"),
    "expected_counts": Rule("dict", optional=True),
    "source_base_urls": Rule("dict", optional=True),
    "checkpoint_minutes": Rule("number", 0, optional=True),
    "detect_anomaly": Rule("bool"),
    "lr_decay_step": Rule("int", 1, optional=True),
    "lr_decay_gamma": Rule("number", 0, 1, open_low=True),
    "ema_decay": Rule("number", 0, 1, open_low=True, open_high=True, optional=True),
    "mask_seen": Rule("bool"),
    "tail_ratio": Rule("number", 0, open_low=True, optional=True),
    "hidden_size": Rule("int", 2),
    "n_layers": COUNT,
    "n_heads": COUNT,
    "inner_size": Rule("int", 1, optional=True),
    "hidden_dropout_prob": PROBABILITY,
    "attn_dropout_prob": PROBABILITY,
    "embedding_dropout_prob": PROBABILITY,
    "use_position": Rule("bool"),
    "cross_attention": Rule("bool"),
    "init": Rule("str", choices=["xavier_normal", "normal", "pytorch"]),
    "initializer_range": Rule("number", 0, open_low=True),
    "cooccurrence_weight": Rule("number", 0, optional=True),
    "cooccurrence_decay": Rule("number", 0, 1, open_low=True),
    "worker": Rule("int", 0, 256),  # processes for each loader
    "state": Rule("str", choices=[*_LEVELS, *map(str.upper, _LEVELS)], optional=True),
}
# RecBole's parameters that are empty by default, so that the default does not tell the kind.
for _name in ("clip_grad_norm", "discretization", "preload_weight", "seq_len", "threshold", "val_interval"):
    RULES[_name] = Rule("dict", optional=True)
_ALIASES = [f"alias_of_{_of}_id" for _of in ("user", "item", "entity", "relation")]
for _name in ("additional_feat_suffix", "normalize_field", *_ALIASES):
    RULES[_name] = Rule("names", optional=True)
RULES["unused_col"] = Rule("dict", optional=True)
RULES["normalize_all"] = Rule("bool", optional=True)
# Its user_defined is for whoever writes one into RecBole: it makes nothing of a batch.
_TRANSFORMS = ["mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq"]
RULES["transform"] = Rule("str", choices=_TRANSFORMS, optional=True)

# What RecBole takes for intervals of counts; it skips anything else with a line in its log.
_BOUND = r"\s*[-+]?(?:\d+(?:\.\d*)?|inf)\s*"
_INTERVAL = rf"\s*[\[(]{_BOUND},{_BOUND}[\])]\s*"
INTERVALS = re.compile(rf"{_INTERVAL}(?:;{_INTERVAL})*")


def _letters(name: str) -> str:
    """A name as it is known whatever stands between its words: ``batch_size``, ``batch-size`` and ``batchSize``."""
    return name.lower().replace("-", "").replace("_", "")


# What parameters and metrics are called elsewhere. Of several names here the first that a model has is meant.
_SIZE = ("hidden_size", "embedding_size")
_DROPOUT = ("hidden_dropout_prob", "dropout_prob", "dropout_probs")
_ELSEWHERE = {
    _letters(other): meant
    for meant, others in (
        (("train_batch_size",), "batch_size bs"),
        (("train_neg_sample_args",), "negatives n_negatives num_negatives neg_sampling neg_samples"),
        (("eval_args",), "split splits"),
        (("learning_rate",), "lr"),
        (("weight_decay",), "wd l2"),
        (("learner",), "optimizer"),
        (("epochs",), "n_epochs num_epochs max_epochs"),
        (("stopping_step",), "patience early_stopping"),
        (("clip_grad_norm",), "clip_grad gradient_clipping"),
        (("enable_amp",), "amp fp16 bf16"),
        (("seed",), "random_seed random_state"),
        (("gpu_id",), "device gpu gpus cuda"),
        (("worker",), "num_workers workers"),
        (("data_path",), "data_dir data_root"),
        (("checkpoint_dir",), "save_dir"),
        (("topk",), "k ks top_k"),
        (("MAX_ITEM_LIST_LENGTH",), "max_len maxlen max_length max_seq_len max_seq_length"),
        (_SIZE, "dim d_model hidden_dim hidden_units emb_dim embed_dim"),
        (_SIZE[::-1], "embedding_dim"),
        (_DROPOUT, "dropout dropout_rate"),
        (("n_layers", "num_layers"), "num_layers num_blocks n_blocks"),
        (("n_heads",), "num_heads heads"),
        (("sampling_steps",), "steps"),
        (("diffusion_steps",), "timesteps num_steps"),
        (("hit",), "hr hits hit_rate"),
    )
    for other in others.split()
}


def nearest(name: str, names: Iterable[str]) -> str:
    """`` did you mean 'x'?`` for that of ``names`` which is meant elsewhere, or for the closest, or nothing."""
    by_lower = {n.lower(): n for n in names}
    known = [n.lower() for n in _ELSEWHERE.get(_letters(name), ()) if n.lower() in by_lower]
    match = known or difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" did you mean '{by_lower[match[0]]}'?" if match else ""


Options = TypeVar("Options")


def take_options(kind: type[Options], given: dict[str, Any]) -> Options:
    """Make options, a dataclass, of those of ``given`` that are its fields, and take them out of ``given``."""
    names = {field.name for field in dataclasses.fields(cast(Any, kind))}
    return kind(**{name: given.pop(name) for name in list(given) if name in names})


def check_numbers(values: Mapping[str, tuple[Any, float, str]]) -> None:
    """Raise ``UserError`` where one of {name: (value, lowest, kind)} is neither None nor of its kind and large enough.

    Kinds are ``int`` and ``number``.
    """
    for name, (value, low, kind) in values.items():
        if value is not None and not Rule(kind, low).accepts(value):
            what = "an integer" if kind == "int" else "a number"
            raise UserError(f"{name} must be {what} of at least {low}, got {value!r}")

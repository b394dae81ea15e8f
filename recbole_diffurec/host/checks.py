"""What a configuration says of data, splits and metrics: whether RecBole does what it asks for, all of it.

RecBole takes many values without acting on them, and says of others, after training, that it cannot. Whatever is let
through here acts.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType, ModelType

from recbole_diffurec.config import layers
from recbole_diffurec.config.protocol import PARTS, Protocol
from recbole_diffurec.config.rules import INTERVALS, Rule, nearest
from recbole_diffurec.data.columns import id_text
from recbole_diffurec.errors import UserError

# Parameters that would keep prepared data as pickles, and open such.
PICKLES = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
# Filters that RecBole does not apply to files that are split already.
FILTERS = frozenset({"rm_dup_inter", "val_interval", "user_inter_num_interval", "item_inter_num_interval"})
# Columns that are each for something else.
FIELDS = (
    "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "LABEL_FIELD", "ITEM_LIST_LENGTH_FIELD", "ENTITY_ID_FIELD",
    "RELATION_ID_FIELD", "HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD",
)  # fmt: skip
READING_POWERS = ("LightGCN", "SimpleX")  # of RecBole's models, those whose loss knows require_pow
# Parameters that nothing reads once a model is trained, and those that lists of recommendations do not read either.
OF_TRAINING = frozenset(
    {"epochs", "train_batch_size", "learner", "learning_rate", "weight_decay", "clip_grad_norm", "stopping_step"}
    | {"eval_step", "loss_decimal_place", "lr_decay_step", "lr_decay_gamma", "ema_decay"}
    | {"rows", "batch_by_length", "train_neg_sample_args"}
)
OF_EVALUATION = frozenset({"topk", "metrics", "valid_metric", "metric_decimal_place", "mask_seen", "tail_ratio"})
_INSTEAD = {"topk": "give k", "mask_seen": "give exclude_seen"}
_FILE_NAME = re.compile(r"[^/\\\0]+")
# Intervals that leave every user and item where it is.
_ALL = ("[0,inf)", "[1,inf)", None)


def check_data_and_evaluation(final: Mapping[str, Any], model_class: type) -> Protocol:
    """Raise ``UserError`` where data, split or metrics cannot be as they are asked for.

    Parameters
    ----------
    final : Mapping of str to object
        All parameters.
    model_class : type
        The model's class.

    Returns
    -------
    Protocol
        What ``eval_args`` asks for.
    """
    protocol = Protocol.of(final["eval_args"])
    _check_metrics(final, protocol)
    sequential, split_already = final["MODEL_TYPE"] == ModelType.SEQUENTIAL, final["benchmark_filename"] is not None
    if sequential and not split_already and not protocol.in_order:
        raise UserError(
            f"order in eval_args is RO, but {model_class.__name__} is a sequential model, which reads interactions in "
            f"order of time: leave it at TO"
        )
    if final["mask_seen"] and not sequential and final["repeatable"]:
        raise UserError("repeatable lets items come again, which mask_seen leaves out: give one of them")
    if final["mask_seen"] and protocol.labeled:
        raise UserError("mask_seen leaves items out of rankings, and mode labeled ranks none: leave it out")
    if split_already:
        _check_split_files(final)
    _check_values_of_columns(final)
    _check_names_of_columns(final)
    check_pickles(final)
    return protocol


def check_effect(given: Mapping[str, Any], defaults: Mapping[str, Any], model: str) -> None:
    """Raise ``UserError`` for a parameter that nothing in a run reads, where it is given a value of its own.

    Parameters
    ----------
    given : Mapping of str to object
        What the user gave.
    defaults : Mapping of str to object
        What parameters are without that.
    model : str
        The model's name.
    """
    trees = "decision trees alone read it, and they rank nothing"
    idle = {
        "POSITION_FIELD": "nothing reads it",
        "valid_metric_bigger": "it is known of valid_metric",
        "token_num_threshold": trees,
        "convert_token_to_onehot": trees,
    }
    if model not in READING_POWERS:
        idle["require_pow"] = f"{' and '.join(READING_POWERS)} alone read it"
    for name, reason in idle.items():
        if name in given and given[name] != defaults.get(name):
            raise UserError(f"{name} would have no effect ({reason}), got {given[name]!r}: leave it out")


def check_needs(given: Iterable[str], config: Any, usual: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for a parameter that cannot act because of what another one is.

    Parameters
    ----------
    given : Iterable of str
        The names that the user gave.
    config : RunConfig
        With these and all others.
    usual : Mapping of str to object
        What parameters are otherwise; to say that does no harm.
    """
    for name in sorted(given):
        need = config.unmet_need(name)
        if need is not None and config[name] != usual.get(name):
            raise UserError(
                f"{name} would have no effect with {need.parameter} {config[need.parameter]!r}, got {config[name]!r}: "
                f"give {need.remedy} as well, or leave {name} out"
            )


def check_given(config: Any, parameters: Mapping[str, Any], config_files: Sequence[str | Path]) -> None:
    """``check_needs`` of a run: of its parameters, and of its files as far as parameters do not overrule them.

    Parameters
    ----------
    config : RunConfig
        Of the run.
    parameters : Mapping of str to object
        Given beside the files.
    config_files : Sequence of (str or Path)
        YAML files.
    """
    in_files = layers.settings(None, config_files).keys() & config.final_config_dict.keys()
    overruled = {name for name in in_files if (need := config.unmet_need(name)) and need.parameter in parameters}
    check_needs({*parameters, *(in_files - overruled)}, config, config.internal_config_dict)


def check_effect_after(
    given: Mapping[str, Any], config: Any, trained: Mapping[str, Any], names: frozenset[str] = OF_TRAINING
) -> None:
    """Raise ``UserError`` for a parameter that is not read any more, or cannot act, where a trained model is used.

    Parameters
    ----------
    given : Mapping of str to object
        What the user gave.
    config : RunConfig
        Of the model's use.
    trained : Mapping of str to object
        What the model was trained with; to say that again does no harm.
    names : frozenset of str
        What is not read there: ``OF_TRAINING``, and for lists ``OF_EVALUATION``.
    """
    of_training = OF_TRAINING | config.spec.of_training
    before = {**config.internal_config_dict, **trained}
    for name in sorted((names | of_training) & given.keys()):
        if config[name] != before.get(name):
            raise _without_effect(name, given[name], before.get(name), name in of_training)
    _check_counts_are_there(given, config, trained)
    check_needs(given, config, before)


def _check_counts_are_there(given: Iterable[str], config: Any, trained: Mapping[str, Any]) -> None:
    """Refuse to bring co-occurrences into a checkpoint that has none, or to take them out of one that has."""
    name = "cooccurrence_weight"
    if name not in given or (config[name] is None) == (trained.get(name) is None):
        return
    if config[name] is None:
        raise UserError(
            f"{name}: the checkpoint was trained with {trained[name]:g}: give --{name}=0 for the network alone"
        )
    raise UserError(
        f"{name} {config[name]:g}: the checkpoint was trained without it, so that it has no counts of its training "
        f"data: leave it out, or train with it"
    )


def _without_effect(name: str, value: Any, before: Any, of_training: bool) -> UserError:
    part = "training" if of_training else "evaluation"
    return UserError(
        f"{name} would have no effect, because {part} alone reads it (trained with {before!r}, got {value!r}): "
        f"{_INSTEAD.get(name, 'leave it out')}"
    )


def check_effect_in_rankings(given: Iterable[str], config: Any) -> None:
    """Raise ``UserError`` for a parameter that only what draws lists or samples reads, where items are ranked.

    Parameters
    ----------
    given : Iterable of str
        The names that the user gave.
    config : RunConfig
        Of the model's use.
    """
    for name in sorted(config.spec.of_lists & set(given)):
        raise UserError(
            f"{name} would have no effect, because {config['model']} reads it where lists or samples are drawn, and "
            f"ranks without it, got {config[name]!r}: leave it out, or recommend with --next or --samples"
        )


@contextlib.contextmanager
def effect_first(given: Mapping[str, Any], trained: Mapping[str, Any]) -> Iterator[None]:
    """Where a configuration is refused, and has parameters of evaluation that lists do not read, tell of these.

    What they would have to fit, such as ``valid_metric`` the cutoffs of ``topk``, is of no concern there.

    Parameters
    ----------
    given : Mapping of str to object
        What the user gave.
    trained : Mapping of str to object
        What the model was trained with.
    """
    try:
        yield
    except UserError:
        for name in sorted(OF_EVALUATION & given.keys() & trained.keys()):
            if trained[name] not in (given[name], [given[name]]):
                raise _without_effect(name, given[name], trained[name], of_training=False) from None
        raise


_OF_CLIPPING = {
    "max_norm": Rule("number", 0),
    "norm_type": Rule("number", 0, open_low=True),
    "error_if_nonfinite": Rule("bool"),
    "foreach": Rule("bool", optional=True),
}


def check_clipping(given: Mapping[str, Any] | None) -> None:
    """Raise ``UserError`` where ``clip_grad_norm`` has what PyTorch's function of that name does not take."""
    if given is None:
        return
    for name, value in given.items():
        rule = _OF_CLIPPING.get(name)
        if rule is None:
            raise UserError(f"clip_grad_norm has no '{name}': give it {', '.join(_OF_CLIPPING)}")
        largest = name == "norm_type" and value == math.inf  # the norm that is the largest entry
        if not (largest or rule.accepts(value)):
            raise UserError(f"{name} in clip_grad_norm must be {rule.describe(value)}, got {value!r}")
    if "max_norm" not in given:
        raise UserError("clip_grad_norm lacks max_norm: give such as --clip_grad_norm='{max_norm: 5}'")


def check_pickles(values: Any) -> None:
    """Raise ``UserError`` where prepared data is to be kept as a pickle, or read from one.

    Parameters
    ----------
    values : object
        Mapping of parameters, or RecBole's ``Config``
    """
    for name in PICKLES:
        if values[name]:
            raise UserError(
                f"{name} is about pickles of prepared data, and opening a pickle runs what it holds: leave it out; the "
                f"data is prepared again, in the same way, by every run"
            )


def _check_metrics(final: Mapping[str, Any], protocol: Protocol) -> None:
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
        if kind == EvaluatorType.RANKING and protocol.labeled:
            rating = ", ".join(name for name, of in metric_types.items() if of == EvaluatorType.VALUE)
            raise UserError(
                f"metric '{metric}' is of ranked lists, and mode labeled in eval_args ranks nothing: give metrics "
                f"among {rating}, or a mode such as full or uni100"
            )
        without_k = kind == EvaluatorType.VALUE or metric.lower() == "gauc"  # has no @K in RecBole's results
        options += [metric] if without_k else [f"{metric}@{k}" for k in topk]
    if valid.lower() not in [option.lower() for option in options]:
        raise UserError(f"valid_metric must be one of {', '.join(options)}, got '{valid}'")


def _check_split_files(final: Mapping[str, Any]) -> None:
    names = final["benchmark_filename"]
    plain = isinstance(names, list) and all(isinstance(name, str) and _FILE_NAME.fullmatch(name) for name in names)
    if not plain or len(names) != len(PARTS):
        raise UserError(
            f"benchmark_filename must name the files of training, validation and test, such as [train,valid,test] for "
            f"NAME.train.inter and so on, got {names!r}"
        )
    for name in sorted(FILTERS):
        if final[name] not in _ALL:
            raise UserError(
                f"{name} is {final[name]!r}, but with benchmark_filename the files are taken as they are: filter them "
                f"beforehand, or leave one out"
            )


def _check_names_of_columns(final: Mapping[str, Any]) -> None:
    columns: dict[str, str] = {}
    for parameter in FIELDS:
        name = final[parameter]
        if not isinstance(name, str) or not name:
            raise UserError(f"{parameter} must be the name of a column, got {name!r}")
        if name in columns:
            raise UserError(f"{parameter} and {columns[name]} are both '{name}': give each a column of its own")
        columns[name] = parameter
    for parameter in ("LIST_SUFFIX", "NEG_PREFIX"):
        if not isinstance(final[parameter], str) or not final[parameter]:
            raise UserError(f"{parameter} must be text that tells columns apart, got {final[parameter]!r}")
    for parameter in ("load_col", "unload_col"):
        for kind, names in (final[parameter] or {}).items():
            listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
            if not listed and not (names == "*" and parameter == "load_col"):
                raise UserError(
                    f"{parameter} must give '{kind}' a list of columns, such as [user_id,item_id], got {names!r}"
                )
    both = sorted((final["load_col"] or {}).keys() & (final["unload_col"] or {}).keys())
    if both:
        raise UserError(f"load_col and unload_col both name columns of the file {both[0]}: leave one of them out")
    for name, length in (final["seq_len"] or {}).items():
        if not Rule("int", 1).accepts(length):
            raise UserError(f"seq_len must give '{name}' an integer of at least 1, got {length!r}")


def with_ids_as_text(val_interval: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``val_interval`` with the ids that it lists as the text that they are in files, where YAML has numbers."""
    if not isinstance(val_interval, Mapping):
        return val_interval
    found = dict(val_interval)
    for name, values in val_interval.items():
        try:
            found[name] = [id_text(value) or "" for value in values] if isinstance(values, list) else values
        except ValueError as error:
            raise UserError(f"val_interval gives '{name}' a list in which {error}: write ids as text") from None
    return found


def _check_values_of_columns(final: Mapping[str, Any]) -> None:
    for name, values in (final["val_interval"] or {}).items():
        if not isinstance(values, list) and not (isinstance(values, str) and INTERVALS.fullmatch(values)):
            raise UserError(
                f"val_interval must give '{name}' an interval such as \"[3,inf)\", or a list of ids, got {values!r}"
            )
    threshold = final["threshold"]
    if threshold and (len(threshold) != 1 or not all(Rule("number").accepts(value) for value in threshold.values())):
        raise UserError(f"threshold must give one column a number, such as {{rating: 4}}, got {threshold!r}")

"""Layers of the configuration, and what it refuses before any data is read."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import recbole.utils
import torch
import yaml
from conftest import ROOT
from recbole.config import Config

from recbole_diffurec.config import layers
from recbole_diffurec.config.layers import parse_value
from recbole_diffurec.errors import UserError
from recbole_diffurec.host import catalogue, config
from recbole_diffurec.host.catalogue import known_models
from recbole_diffurec.host.checks import effect_first
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.runtime import checkpoint

OURS = ["DiffuRec", "DiffuRecSys"]


def make(model: str = "DiffuRecSys", dataset: str = "mine", **parameters: Any) -> RunConfig:
    return RunConfig(model, dataset, {"gpu_id": "", **parameters})


def refusal(model: Any = "DiffuRecSys", dataset: Any = "mine", /, **arguments: Any) -> str:
    """The message of the refusal, one line; ``arguments`` are those of ``RunConfig``."""
    with pytest.raises(UserError) as caught:
        RunConfig(model, dataset, **arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def write(path: Path, **values: Any) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def properties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder of defaults, for a test to change, in place of the real one."""
    copy = tmp_path / "properties"
    shutil.copytree(layers.properties_dir(), copy)
    monkeypatch.setattr(layers, "properties_dir", lambda: copy)
    # The real files do not change while a program runs, and are read once; these are read every time.
    monkeypatch.setattr(layers, "_read_shipped", layers._read_shipped.__wrapped__)
    monkeypatch.setattr(config, "known_parameters", config.known_parameters.__wrapped__)
    return copy


# Precedence

LAYERS = ["overall", "base model", "model", "data set", "experiment", "first file", "second file", "command line"]


def from_layers(folder: Path, values: dict[str, Any], key: str) -> RunConfig:
    """A configuration in which ``key`` has these values, and no other in the layers above the weakest of them."""
    weakest = min(LAYERS.index(layer) for layer in values)
    for layer, file in {
        "overall": "overall.yaml",
        "base model": "model/DiffuRec.yaml",
        "model": "model/DiffuRecSys.yaml",
        "data set": "dataset/mine.yaml",
        "experiment": "experiment/mine.yaml",
        "first file": "first.yaml",
        "second file": "second.yaml",
    }.items():
        path = folder / file
        content = layers.read_yaml(path) if path.exists() else {}
        if LAYERS.index(layer) >= weakest:
            content.pop(key, None)
        write(path, **content, **({key: values[layer]} if layer in values else {}))
    overrides = {"gpu_id": "", **({key: values["command line"]} if "command line" in values else {})}
    return RunConfig("DiffuRecSys", "mine", overrides, [folder / "first.yaml", folder / "second.yaml"], "mine")


@pytest.mark.parametrize(
    ("key", "low", "high"),
    # Both orders: no layer may win because its value is the larger one.
    [("learning_rate", 0.125, 0.25), ("learning_rate", 0.25, 0.125), ("noise_schedule", "cosine", "sqrt")],
)
@pytest.mark.parametrize(("weaker", "stronger"), list(itertools.pairwise(LAYERS)))
def test_each_layer_beats_the_one_below(
    weaker: str, stronger: str, key: str, low: Any, high: Any, properties: Path
) -> None:
    assert from_layers(properties, {weaker: low}, key)[key] == low
    assert from_layers(properties, {weaker: low, stronger: high}, key)[key] == high


def test_all_layers_at_once_and_without_the_strongest(properties: Path) -> None:
    values = {layer: 10 + 7 * n % 5 for n, layer in enumerate(LAYERS)}
    while values:
        top = list(values)[-1]
        assert from_layers(properties, values, "epochs")["epochs"] == values.pop(top), top


def test_layers_are_merged_key_by_key(properties: Path) -> None:
    write(properties / "experiment" / "mine.yaml", epochs=3)
    first = write(properties / "first.yaml", weight_decay=0.5, stopping_step=1)
    second = write(properties / "second.yaml", stopping_step=2)
    built = RunConfig("DiffuRecSys", "mine", {"gpu_id": "", "seed": 7}, [first, second], "mine")
    found = {name: built[name] for name in ("epochs", "weight_decay", "stopping_step", "seed", "diffusion_steps")}
    assert found == {"epochs": 3, "weight_decay": 0.5, "stopping_step": 2, "seed": 7, "diffusion_steps": 32}


def test_shipped_layers(tmp_path: Path) -> None:
    """The real files: overall 512 < model 1024; base model 128 < data set 64 < experiment 256 < file < command line."""
    assert make("SASRec")["train_batch_size"] == 512
    assert make("DiffuRec")["train_batch_size"] == 1024
    assert make()["hidden_size"] == 128
    assert make(dataset="ml-100k")["hidden_size"] == 64
    given: dict[str, Any] = {"gpu_id": ""}
    assert RunConfig("DiffuRecSys", "ml-100k", given, (), "diffurecsys_public_code")["hidden_size"] == 256
    file = write(tmp_path / "mine.yaml", hidden_size=32)
    assert RunConfig("DiffuRecSys", "ml-100k", given, [file], "diffurecsys_public_code")["hidden_size"] == 32
    given["hidden_size"] = 16
    assert RunConfig("DiffuRecSys", "ml-100k", given, [file], "diffurecsys_public_code")["hidden_size"] == 16


def test_our_overall_beats_recboles_data_set_but_not_its_model(
    properties: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tmp_path / "host"
    shutil.copytree(catalogue.HOST_PROPERTIES, host)
    monkeypatch.setattr(catalogue, "HOST_PROPERTIES", host)
    with open(host / "model" / "SASRec.yaml", "a") as file:
        file.write("\nepochs: 7\n")
    assert make("SASRec")["epochs"] == 7 != make("GRU4Rec")["epochs"] == 300
    # RecBole says [0,inf) for any data set, and would squeeze the times of ml-100k into [0, 1].
    assert make("SASRec", "ml-100k")["user_inter_num_interval"] == "[5,inf)"
    assert make("SASRec", "ml-100k")["normalize_all"] is False


@pytest.mark.parametrize("experiment", [None, "diffurec_paper", "diffurecsys_paper", "diffurecsys_public_code.yaml"])
@pytest.mark.parametrize("dataset", ["amazon-beauty", "amazon-toys-games", "ml-1m", "ml-100k", "mine"])
@pytest.mark.parametrize("model", OURS)
def test_shipped_defaults_are_accepted(model: str, dataset: str, experiment: str | None) -> None:
    built = RunConfig(model, dataset, {"gpu_id": ""}, (), experiment)
    assert (built["model"], built["dataset"]) == (model, dataset)
    assert built["eval_args"]["split"] == {"LS": "valid_and_test"}


RECIPES = sorted((ROOT / "properties" / "experiment" / "best").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_accepted(path: Path) -> None:
    """A recipe is for the model that its name ends with, or for both of ours."""
    model = path.stem.rpartition("-")[2]
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in [model] if model in known_models() else OURS:
        built = RunConfig(name, "amazon-beauty", {"gpu_id": ""}, (), f"best/{path.stem}")
        assert {key: built.plain()[key] for key in given} == given  # enable_amp is decided by the machine


def test_arguments_of_the_process_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make().final_config_dict
    flags = ["--learning_rate=0.5", "--epochs=3", "--model=BPR", "--dataset=ml-1m", "--nonsense=1", "loose"]
    monkeypatch.setattr(sys, "argv", ["notebook", *flags])
    assert make().final_config_dict == before


# Names


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lerning_rate", "learning_rate"),
        ("Hidden_Size", "hidden_size"),
        ("samplingsteps", "sampling_steps"),
        ("topK", "topk"),
        ("config_file", "config_files"),
        ("eval_arg", "eval_args"),
        ("USER_FIELD", "USER_ID_FIELD"),
        # What parameters are called elsewhere.
        ("batch_size", "train_batch_size"),
        ("batchsize", "train_batch_size"),
        ("maxSeqLen", "MAX_ITEM_LIST_LENGTH"),
        ("negatives", "train_neg_sample_args"),
        ("split", "eval_args"),
        ("lr", "learning_rate"),
        ("top_k", "topk"),
        ("dropout", "hidden_dropout_prob"),
        ("max_len", "MAX_ITEM_LIST_LENGTH"),
        ("Embedding-Dim", "hidden_size"),  # of two names, the one that the model has
    ],
)
def test_unknown_parameter_suggests_the_nearest(given: str, meant: str, properties: Path) -> None:
    expected = f"unknown parameter '{given}' for model DiffuRecSys: did you mean '{meant}'?"
    assert refusal(overrides={given: 1}) == expected
    assert refusal(config_files=[write(properties / "a.yaml", **{given: 1})]) == expected
    write(properties / "experiment" / "mine.yaml", **{given: 1})
    assert refusal(experiment="mine") == expected


def test_unknown_parameter_like_no_other_points_to_the_help() -> None:
    message = refusal(overrides={"xyzzy": 1})
    assert "unknown parameter 'xyzzy' for model DiffuRecSys" in message
    assert "--help" in message and "did you mean" not in message


@pytest.mark.parametrize(
    ("model", "name"), [("BPR", "diffusion_steps"), ("SASRec", "embedding_size"), ("DiffuRec", "loss_type")]
)
def test_parameter_of_another_model_is_unknown(model: str, name: str) -> None:
    assert f"unknown parameter '{name}' for model {model}" in refusal(model, overrides={name: 1})


@pytest.mark.parametrize("name", ["device", "MODEL_TYPE", "eval_type", "local_rank"])
def test_what_recbole_derives_cannot_be_given(name: str) -> None:
    assert f"unknown parameter '{name}'" in refusal(overrides={name: "x"})


@pytest.mark.parametrize(
    ("given", "meant"), [("diffurec", "DiffuRec"), ("DiffuRecSy", "DiffuRecSys"), ("sasrec", "SASRec"), ("BRP", "BPR")]
)
def test_unknown_model_suggests_the_nearest(given: str, meant: str) -> None:
    assert refusal(given) == f"unknown model '{given}': did you mean '{meant}'?"


@pytest.mark.parametrize("given", ["", "xyzzyx", "../DiffuRec", "os.system"])
def test_unknown_model_like_no_other_points_to_the_list(given: str) -> None:
    message = refusal(given)
    assert message.startswith(f"unknown model '{given}':") and ("--list_models" in message or "did you mean" in message)


def test_model_whose_package_is_missing_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> type:
        raise ModuleNotFoundError("No module named 'no_such_package'", name="no_such_package")

    monkeypatch.setattr(recbole.utils, "get_model", missing)
    assert "model 'BPR' needs no_such_package, which is not installed: pip install no_such_package" in refusal("BPR")


def test_known_models_start_with_ours() -> None:
    names = known_models()
    assert names[:2] == OURS and len(names) == len(set(names))
    assert {"SASRec", "BERT4Rec", "GRU4Rec", "BPR", "Pop"} <= set(names)


@pytest.mark.parametrize("name", ["nope", "../overall", "diffurec_paper.yml", "DIFFUREC_PAPER", "."])
def test_unknown_experiment_lists_the_known(name: str) -> None:
    folder = ROOT / "properties" / "experiment"
    known = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    assert "diffurec_paper" in known and "best/amazon-beauty" in known
    message = refusal(experiment=name)
    assert message.startswith(f"unknown experiment '{name}': choose one of {', '.join(known)}")


@pytest.mark.parametrize("name", ["", ".", "..", "../ml-100k", "a/b", "/etc", "a\\b", ".hidden", "a\0b", 5])
def test_data_set_name_that_is_no_folder_name_is_refused(name: Any) -> None:
    message = refusal("DiffuRecSys", name)
    assert f"dataset name {name!r} is not a plain folder name" in message


def test_model_and_data_set_may_stand_in_a_file_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", model="SASRec", dataset="shop")
    for built in (RunConfig(None, None, {}, [file]), RunConfig(None, None, {"model": "SASRec", "dataset": "shop"})):
        assert (built["model"], built["dataset"]) == ("SASRec", "shop")
    built = RunConfig(None, None)
    assert (built["model"], built["dataset"]) == ("DiffuRecSys", "ml-100k")
    with pytest.raises(UserError, match="model must be one name, got 5"):
        RunConfig(None, None, {}, [write(tmp_path / "a.yaml", model=5)])


@pytest.mark.parametrize(("name", "used", "other"), [("model", "DiffuRecSys", "BPR"), ("dataset", "mine", "ml-1m")])
def test_second_model_or_data_set_is_refused(name: str, used: str, other: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", **{name: other})
    for message in (refusal(config_files=[file]), refusal(overrides={name: other})):
        assert f"{name} is '{used}'" in message and f"'{other}'" in message
    assert make(**({"model": "DiffuRecSys"} if name == "model" else {"dataset": "mine"}))[name] == used


# Values


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        # of another type
        ("epochs", "five", "an integer of at least 1"),
        ("epochs", 5.0, "an integer of at least 1"),
        ("epochs", True, "an integer of at least 1"),
        ("epochs", None, "an integer of at least 1"),
        ("epochs", [5], "an integer of at least 1"),
        ("learning_rate", "1e-3x", "a finite number above 0"),
        ("learning_rate", False, "a finite number above 0"),
        ("hidden_size", "128", "an integer of at least 2"),
        ("offset_noise", "yes", "True or False"),
        ("offset_noise", 1, "True or False"),
        ("show_progress", None, "True or False"),
        ("noise_schedule", ["linear"], "one of linear, cosine"),
        ("checkpoint_dir", 5, "text"),
        ("data_path", None, "text"),
        ("USER_ID_FIELD", None, "text"),
        ("source_base_urls", "http://x", "a mapping (or empty)"),
        ("clip_grad_norm", 5, "a mapping (or empty)"),
        ("eval_args", 5, "a mapping"),
        ("load_col", "user_id", "a mapping"),
        ("metrics", 5, "a list"),
        ("ensemble_seeds", 5, "a list (or empty)"),
        ("shuffle", "maybe", "True or False"),
        # out of range
        ("epochs", 0, "an integer of at least 1"),
        ("seed", -1, "an integer in [0, 4294967295]"),
        ("seed", 2**32, "an integer in [0, 4294967295]"),
        ("noise_seed", 2**63, "an integer in [0, 9223372036854775807]"),
        ("learning_rate", 0, "a finite number above 0"),
        ("learning_rate", -1e-3, "a finite number above 0"),
        ("weight_decay", -1e-9, "a finite number of at least 0"),
        ("hidden_dropout_prob", 1, "a number in [0, 1)"),
        ("hidden_dropout_prob", -0.1, "a number in [0, 1)"),
        ("lr_decay_gamma", 0, "a number in (0, 1]"),
        ("lr_decay_gamma", 1.5, "a number in (0, 1]"),
        ("lr_decay_step", 0, "an integer of at least 1 (or empty)"),
        ("stopping_step", -1, "an integer of at least 0"),
        ("hidden_size", 1, "an integer of at least 2"),
        ("diffusion_steps", 0, "an integer of at least 1"),
        ("sampling_steps", 0, "an integer of at least 1 (or empty)"),
        ("lambda_uncertainty", -1, "a finite number of at least 0"),
        ("worker", -1, "an integer in [0, 256]"),
        ("loss_decimal_place", 4.0, "an integer in [0, 50]"),
        # no choice
        ("noise_schedule", "quadratic", "one of linear, cosine, sqrt, trunc_cos, trunc_lin, pw_lin"),
        ("step_sampler", "Uniform", "one of uniform, loss_aware"),
        ("reverse_start", "zero", "one of noise, last_item"),
        ("hidden_act", "swish", "one of gelu, gelu_erf, relu, silu, tanh"),
        ("init", "zeros", "one of xavier_normal, normal, pytorch"),
        ("learner", "lion", "one of adam, adamw, sgd, adagrad, rmsprop"),
    ],
)
def test_wrong_value_is_refused(name: str, value: Any, allowed: str) -> None:
    message = refusal(overrides={name: value})
    assert message.startswith(f"{name} must be {allowed}") and message.endswith(f", got {value!r}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name", ["learning_rate", "weight_decay", "hidden_dropout_prob", "offset_scale", "lr_decay_gamma"]
)
def test_number_that_is_not_finite_is_refused(name: str, value: float) -> None:
    message = refusal(overrides={name: value})
    assert message.startswith(f"{name} must be a") and message.endswith(f"got {value!r}")


def test_integer_too_large_for_a_float_is_an_ordinary_value() -> None:
    assert make(epochs=10**400)["epochs"] == 10**400
    assert "seed must be" in refusal(overrides={"seed": 10**400})
    assert "lambda_uncertainty must be" in refusal(overrides={"lambda_uncertainty": 10**400})


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (1e38, "a finite number of at least 0, at most 1e+09 in size"),
        (10**30, "a finite number of at least 0, at most 1e+09 in size"),
        (1e-38, "a finite number of at least 0, 0 or at least 1e-30 in size"),
        (float("nan"), "a finite number of at least 0"),
        (float("inf"), "a finite number of at least 0"),
    ],
)
def test_a_number_is_one_that_the_models_can_reckon_with(value, allowed):
    """Squared and multiplied in float32 it would end as infinity, or as no number, hours later."""
    said = refusal(overrides={"lambda_uncertainty": value})
    assert said == f"lambda_uncertainty must be {allowed}, got {value!r}"
    assert make(lambda_uncertainty=1e9)["lambda_uncertainty"] == 1e9


def test_processes_that_would_fill_the_machine_are_refused() -> None:
    assert refusal(overrides={"worker": 10**9}) == "worker must be an integer in [0, 256], got 1000000000"


def test_suffix_that_is_no_text_is_refused_before_columns_are_named_by_it() -> None:
    parts = {"benchmark_filename": ["train", "valid", "test"]}
    assert refusal(overrides={"LIST_SUFFIX": 1e-3, **parts}) == "LIST_SUFFIX must be text, got 0.001"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 1),
        ("seed", 2**32 - 1),
        ("seed", 0),
        ("noise_seed", 2**63 - 1),
        ("weight_decay", 0),
        ("learning_rate", 5),
        ("hidden_dropout_prob", 0),
        ("hidden_dropout_prob", 0.999),
        ("lr_decay_gamma", 1),
        ("lr_decay_step", None),
        ("sampling_steps", None),
        ("sampling_steps", 32),
        ("inner_size", None),
        ("stopping_step", 0),
        ("offset_scale", -2.5),
        ("ensemble_seeds", [0, 2**63 - 1]),
        ("user_inter_num_interval", None),
        ("user_inter_num_interval", "(4, 100];[200,inf)"),
        ("clip_grad_norm", {"max_norm": 5}),
        ("clip_grad_norm", {"max_norm": 5, "norm_type": float("inf")}),
    ],
)
def test_value_at_the_edge_is_accepted(name: str, value: Any) -> None:
    assert make(**{name: value})[name] == value


@pytest.mark.parametrize("value", ["", "5", "5,inf", "[5,inf", "five", "[5]", "[a,b]", "[5,inf);", "[5;inf)"])
@pytest.mark.parametrize("name", ["user_inter_num_interval", "item_inter_num_interval"])
def test_interval_that_recbole_would_skip_is_refused(name: str, value: str) -> None:
    message = refusal(overrides={name: value})
    assert message == f"{name} must be an interval such as [5,inf), got '{value}'"


@pytest.mark.parametrize(
    ("model", "name", "wanted"),
    [
        ("SASRec", "loss_type", "text"),
        ("SASRec", "hidden_act", "text"),
        ("SASRec", "inner_size", "an integer of at least 1"),
        ("FM", "numerical_features", "a list of names"),
        ("BPR", "encoding", "text"),
        ("DiffuRec", "seq_separator", "text"),
    ],
)
def test_what_must_have_a_value_is_not_empty(model: str, name: str, wanted: str) -> None:
    assert refusal(model, overrides={name: None}) == f"{name} must be {wanted}, got None"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"max_norm": "x"}, "max_norm in clip_grad_norm must be a finite number of at least 0, got 'x'"),
        ({"max_norm": 5, "norm_type": 0}, "norm_type in clip_grad_norm must be a finite number above 0, got 0"),
        ({"max_norm": 5, "norm": 2}, "clip_grad_norm has no 'norm': give it max_norm, norm_type"),
        ({"norm_type": 2}, "clip_grad_norm lacks max_norm"),
    ],
)
def test_gradients_are_clipped_as_torch_can(value: dict[str, Any], message: str) -> None:
    assert refusal(overrides={"clip_grad_norm": value}).startswith(message)


@pytest.mark.parametrize("value", [[[]], [None], [5], ["a", {}]])
@pytest.mark.parametrize(
    "name", ["numerical_features", "normalize_field", "alias_of_item_id", "additional_feat_suffix", "selected_features"]
)
def test_names_are_text(name: str, value: list[Any]) -> None:
    message = refusal("SASRecF", overrides={name: value})
    assert message.startswith(f"{name} must be a list of names") and message.endswith(f"got {value!r}")


def test_values_of_a_file_are_checked_like_given_ones(properties: Path) -> None:
    write(properties / "dataset" / "mine.yaml", hidden_size="big")
    assert refusal() == "hidden_size must be an integer of at least 2, got 'big'"


@pytest.mark.parametrize("model", ["DiffuRecSys", "SASRec"])
def test_heads_must_divide_the_hidden_size(model: str) -> None:
    message = refusal(model, overrides={"hidden_size": 12, "n_heads": 5})
    assert message == "n_heads must divide hidden_size (12), got 5: choose one of 1, 2, 3, 4, 6, 12"
    assert make(model, hidden_size=12, n_heads=6)["n_heads"] == 6


def test_sampling_steps_must_not_exceed_diffusion_steps() -> None:
    message = refusal(overrides={"sampling_steps": 33})
    assert message == "sampling_steps must be from 1 to diffusion_steps (32), got 33"
    assert make(diffusion_steps=40, sampling_steps=33)["sampling_steps"] == 33


@pytest.mark.parametrize(("schedule", "steps"), [("linear", 10), ("pw_lin", 15), ("pw_lin", 10), ("linear", 19)])
def test_schedule_that_leaves_its_range_is_refused(schedule: str, steps: int) -> None:
    message = refusal(overrides={"noise_schedule": schedule, "diffusion_steps": steps})
    assert f"noise_schedule '{schedule}'" in message and "diffusion_steps" in message and str(steps) in message


def test_schedule_in_its_range_is_accepted() -> None:
    for schedule, steps in (("linear", 20), ("pw_lin", 32), ("cosine", 10), ("sqrt", 10), ("trunc_cos", 10)):
        built = make(noise_schedule=schedule, diffusion_steps=steps)
        assert (built["noise_schedule"], built["diffusion_steps"]) == (schedule, steps)


@pytest.mark.parametrize("seeds", [[], [1, -1], ["a"], [1.5], [True], [None], [2**63]])
def test_wrong_ensemble_seeds_are_refused(seeds: list[Any]) -> None:
    message = refusal(overrides={"ensemble_seeds": seeds})
    assert message.startswith("ensemble_seeds must be a list of integers") and message.endswith(f"got {seeds!r}")


@pytest.mark.parametrize("topk", [[], [0], [-5], [5, "10"], [5.0], [True], [None], 0, True])
def test_wrong_topk_is_refused(topk: Any) -> None:
    message = refusal(overrides={"topk": topk})
    shown = topk if isinstance(topk, list) else [topk]
    assert message.startswith("topk must be a list of integers of at least 1") and message.endswith(f"got {shown!r}")


@pytest.mark.parametrize("topk", ["abc", None, {"a": 1}])
def test_topk_that_is_no_list_is_refused(topk: Any) -> None:
    assert refusal(overrides={"topk": topk}) == f"topk must be a list, got {topk!r}"


@pytest.mark.parametrize("model", ["DiffuRecSys", "BPR"])
@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["NDGC"], "unknown metric 'NDGC' in metrics: did you mean 'ndcg'?"),
        (["Hit", "HitRate@10"], "unknown metric 'HitRate@10' in metrics: choose from auc,"),
        ([5], "unknown metric '5' in metrics: choose from auc,"),
        ([], "metrics must name at least one metric"),
    ],
)
def test_wrong_metrics_are_refused(model: str, metrics: list[Any], message: str) -> None:
    assert message in refusal(model, overrides={"metrics": metrics})


@pytest.mark.parametrize(
    "value", ["NDCG@7", "NDCG", "NDCG@", "MRR@10", "NDCG@10@10", "@10", "ndcg @10", "NDCG@010", "GAUC", ""]
)
def test_wrong_valid_metric_is_refused(value: str) -> None:
    message = refusal(overrides={"valid_metric": value})
    options = "Hit@5, Hit@10, Hit@20, NDCG@5, NDCG@10, NDCG@20"
    assert message == f"valid_metric must be one of {options}, got '{value}'"


def test_valid_metric_must_be_among_the_metrics_and_cutoffs_given() -> None:
    assert "one of Hit@1, got 'NDCG@10'" in refusal(overrides={"metrics": "Hit", "topk": 1})
    assert make(metrics="Hit", topk=1, valid_metric="hit@1")["metrics"] == ["Hit"]
    # RecBole reports this one without a cutoff, and would stumble over any other name after the first epoch.
    assert make(metrics=["GAUC", "Hit"], valid_metric="GAUC")["valid_metric"] == "GAUC"
    assert "one of GAUC, Hit@5" in refusal(overrides={"metrics": ["GAUC", "Hit"], "valid_metric": "GAUC@5"})


@pytest.mark.parametrize(
    ("model", "overrides", "thing"),
    [
        ("DiffuRecSys", {"repeatable": False}, "repeatable"),
        ("BPR", {"train_neg_sample_args": {"distribution": "normal"}}, "normal"),
        ("SASRec", {"train_neg_sample_args": {"distribution": "uniform"}}, "train_neg_sample_args"),
        ("DiffuRecSys", {"metrics": ["AUC"], "valid_metric": "AUC"}, "value-based metrics"),
    ],
)
def test_what_recbole_refuses_is_a_mistake_of_the_user(model: str, overrides: dict[str, Any], thing: str) -> None:
    message = refusal(model, overrides=overrides)
    assert message.startswith("RecBole refuses these parameters: ") and thing in message


# Files


def test_configuration_file_must_be_a_readable_mapping(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert f"configuration file '{missing}' cannot be read (No such file" in refusal(config_files=[missing])
    assert f"configuration file '{tmp_path}' cannot be read (Is a directory)" in refusal(config_files=[tmp_path])
    file = tmp_path / "mine.yaml"
    for content, problem in (
        (b"epochs: 5\nseed: [1\n", "is not valid YAML at line"),
        (b"epochs: \xff\xfe\n", "is not UTF-8 text"),
        (b"- epochs\n", "must hold lines 'name: value', got a list"),
        (b"5: epochs\n", "must hold lines 'name: value'"),
        (b"epochs\n", "must hold lines 'name: value', got a str"),
    ):
        file.write_bytes(content)
        message = refusal(config_files=[file])
        assert f"configuration file '{file}'" in message and problem in message
    file.write_bytes(b"# nothing\n")
    assert RunConfig("DiffuRecSys", "mine", {"gpu_id": ""}, [file])["epochs"] == 41


# Nothing is evaluated

PAYLOAD = "__import__('os').system('touch x')"


@pytest.mark.parametrize("name", ["learning_rate", "topk", "epochs", "eval_args", "noise_schedule", "offset_noise"])
def test_code_as_a_value_is_text_and_refused(name: str, workdir: Path) -> None:
    for value in (PAYLOAD, parse_value(name, PAYLOAD)):
        message = refusal(overrides={name: value})
        assert name in message and PAYLOAD in message
    assert list(workdir.iterdir()) == []


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)


MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(['*' + before] * 10)}]}}\n" for before, name in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "its aliases stand for more than 100,000 values"),
        (LAUGHS.replace("i: ", "topk: "), "its aliases stand for more than 100,000 values"),
        (LAUGHS.replace("[", "!!omap [{k: ").replace(", ", "}, {k: ").replace("]", "}]"), "its aliases stand for"),
        (MERGES, "its aliases stand for more than 100,000 values"),
        ("topk: &a [1, *a]\n", "nested too deeply, or contains itself"),
        ("topk: " + "[" * 50_000, "nested too deeply"),
        ("data_path: " + "x" * 10_000_000, "longer than 1,000,000 characters"),
    ],
)
def test_yaml_bombs_are_refused_at_once(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        config.RunConfig("DiffuRecSys", "ml-100k", {}, [path])
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("name", ["learning_rate", "hidden_size", "noise_schedule", "topk", "no_such_parameter"])
def test_a_huge_value_makes_no_huge_message(name: str) -> None:
    with pytest.raises(UserError) as refused:
        config.RunConfig("DiffuRecSys", "ml-100k", {name: "x" * 10_000_000})
    assert name in str(refused.value) and len(str(refused.value)) <= 2100


def test_code_as_a_text_stays_text(workdir: Path) -> None:
    # RecBole itself would make 2 of the first, and a file of the second.
    built = make(checkpoint_dir="1+1", data_path=PAYLOAD)
    assert built["checkpoint_dir"] == "1+1" and built["data_path"] == f"{PAYLOAD}/mine"
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch x']",
        "!!python/object/new:os.system ['touch x']",
        "!!python/name:os.system",
        "!!python/module:os",
    ],
)
def test_python_in_yaml_is_refused(value: str, workdir: Path, properties: Path) -> None:
    file = workdir / "mine.yaml"
    file.write_text(f"seed: 1\nlearning_rate: {value}\n")
    message = refusal(config_files=[file])
    assert f"configuration file '{file}' is not valid YAML at line 2" in message
    file.rename(properties / "dataset" / "mine.yaml")
    assert "mine.yaml' is not valid YAML at line 2" in refusal()
    assert parse_value("learning_rate", value) == value
    assert not (workdir / "x").exists()
    assert issubclass(make(dataset="other").yaml_loader, yaml.SafeLoader)  # for RecBole's own files


# Values from the command line


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "5", 5),
        ("learning_rate", "1e-3", 0.001),
        ("learning_rate", "2E5", 2e5),
        ("learning_rate", "-1.5e+3", -1500.0),
        ("offset_noise", "True", True),
        ("offset_noise", "false", False),
        ("sampling_steps", "None", None),
        ("sampling_steps", "~", None),
        ("sampling_steps", "", None),
        ("topk", "[5, 10]", [5, 10]),
        ("metrics", "[Hit,NDCG]", ["Hit", "NDCG"]),
        ("source_base_urls", "{snap: 'http://x:1/'}", {"snap": "http://x:1/"}),
        # parameters that are text, whatever the text looks like
        ("gpu_id", "0", "0"),
        ("user_inter_num_interval", "[5,10]", "[5,10]"),
        ("data_path", "2020", "2020"),
        ("TIME_FIELD", "on", "on"),
        # no YAML, and YAML that Python's types refuse
        ("topk", "[5", "[5"),
        ("epochs", "a: b: c", "a: b: c"),
        ("epochs", "2024-13-45", "2024-13-45"),
        ("epochs", "!!timestamp soon", "!!timestamp soon"),
        ("epochs", "!!bool soon", "!!bool soon"),
        ("epochs", "{[1]: 2}", "{[1]: 2}"),
        ("topk", "[" * 5000, "[" * 5000),
    ],
)
def test_parse_value(name: str, text: str, value: Any) -> None:
    found = parse_value(name, text)
    assert found == value and type(found) is type(value)


# Our protocol for RecBole's own models


@pytest.mark.parametrize("dataset", ["amazon-beauty", "ml-100k", "mine"])
@pytest.mark.parametrize("model", ["DiffuRecSys", "SASRec", "GRU4Rec", "BERT4Rec", "BPR", "LightGCN", "Pop", "DiffRec"])
def test_every_model_gets_the_same_protocol(model: str, dataset: str) -> None:
    built = make(model, dataset)
    assert built["eval_args"] == {
        "split": {"LS": "valid_and_test"},
        "group_by": "user",
        "order": "TO",
        "mode": {"valid": "full", "test": "full"},
    }
    assert (built["metrics"], built["topk"], built["valid_metric"]) == (["Hit", "NDCG"], [5, 10, 20], "NDCG@10")
    assert built["valid_metric_bigger"] is True and built["mask_seen"] is False
    assert built["user_inter_num_interval"] == built["item_inter_num_interval"] == "[5,inf)"
    assert built["load_col"]["inter"] == ["user_id", "item_id", "timestamp"]
    assert built["eval_batch_size"] == (2048 if model in OURS else 512) and built["seed"] == 2020


def test_partial_eval_args_keep_the_rest_of_the_protocol() -> None:
    built = make(eval_args={"mode": "uni100"})
    assert built["eval_args"]["mode"] == {"valid": "uni100", "test": "uni100"}
    assert (built["eval_args"]["split"], built["eval_args"]["order"]) == ({"LS": "valid_and_test"}, "TO")


NO_NEGATIVES = {"distribution": "none", "sample_num": "none", "alpha": "none", "dynamic": False, "candidate_num": 0}


@pytest.mark.parametrize(
    ("model", "parameters", "distribution"),
    [
        ("DiffuRec", {}, "none"),
        ("DiffuRecSys", {}, "none"),
        ("SASRec", {}, "none"),
        ("GRU4Rec", {}, "none"),
        ("SASRec", {"loss_type": "BPR"}, "uniform"),
        ("BPR", {}, "uniform"),
        ("LightGCN", {}, "uniform"),
        ("BPR", {"train_neg_sample_args": {"distribution": "popularity"}}, "popularity"),
    ],
)
def test_negatives_are_sampled_where_the_loss_needs_them(
    model: str, parameters: dict[str, Any], distribution: str
) -> None:
    found = make(model, **parameters)["train_neg_sample_args"]
    assert found["distribution"] == distribution
    assert found == NO_NEGATIVES if distribution == "none" else found["sample_num"] == 1


def test_columns_to_load_follow_their_names() -> None:
    names = {"USER_ID_FIELD": "reader", "ITEM_ID_FIELD": "book", "TIME_FIELD": "read_at"}
    for model in ("DiffuRecSys", "SASRec", "BPR"):
        assert make(model, **names)["load_col"] == {"inter": ["reader", "book", "read_at"]}
    given = {"inter": ["reader", "book", "read_at", "stars"], "item": ["book", "genre"]}
    assert make(**names, load_col=given)["load_col"] == given
    # What RecBole wants of other files is kept.
    found = make("SASRecF", "ml-100k")["load_col"]
    assert found == {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "release_year", "class"]}


@pytest.mark.parametrize(
    ("model", "dataset", "others"),
    [
        ("DeepFM", "mine", {}),
        ("DeepFM", "ml-100k", {"user": ["user_id", "age", "gender", "occupation"]}),
        ("CKE", "mine", {"kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}),
    ],
)
def test_models_that_read_more_columns_get_the_time_as_well(model: str, dataset: str, others: dict[str, Any]) -> None:
    found = make(model, dataset)["load_col"]
    more = [] if (model, dataset) == ("DeepFM", "mine") else ["rating"]
    assert found["inter"] == ["user_id", "item_id", "timestamp", *more]
    assert {name: found.get(name) for name in others} == others


@pytest.mark.parametrize("parameters", [{"use_gpu": False}, {"gpu_id": ""}, {"gpu_id": None}])
def test_gpu_can_be_left_alone(parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    visible(4, monkeypatch)
    assert RunConfig("DiffuRecSys", "mine", parameters)["device"] == torch.device("cpu")
    assert RunConfig("DiffuRecSys", "mine")["device"] == torch.device("cuda", 0)


def visible(n_gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)


@pytest.mark.parametrize("assigned", [None, "", "2,3"])
@pytest.mark.parametrize("gpu_id", ["", "0", "1"])
@pytest.mark.parametrize("build", [RunConfig, Config], ids=["ours", "RecBole's"])
def test_the_gpus_that_are_visible_stay_so(
    build: Any, gpu_id: str, assigned: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the whole process and its children: Ray, SLURM and users assign GPUs in this way."""
    visible(2, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if assigned is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", assigned)
    arguments = {"overrides" if build is RunConfig else "config_dict": {"gpu_id": gpu_id}}
    device = build(model="BPR", dataset="mine", **arguments)["device"]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == assigned
    assert device == (torch.device("cuda", int(gpu_id)) if gpu_id else torch.device("cpu"))


@pytest.mark.parametrize("gpu_id", ["banana", "-1", "0;1", "cuda:0", "0,"])
def test_gpu_that_is_no_number_is_refused(gpu_id: str) -> None:
    message = refusal(overrides={"gpu_id": gpu_id})
    assert message.startswith("gpu_id must be the number of a GPU such as 0") and message.endswith(f"got {gpu_id!r}")


def test_gpu_that_is_not_there_is_refused_where_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    visible(2, monkeypatch)
    message = refusal(overrides={"gpu_id": "2"})
    assert "gpu_id is 2, and 2 GPUs are visible, with the numbers from 0 to 1" in message
    visible(0, monkeypatch)  # a checkpoint of another machine
    assert RunConfig("BPR", "mine", {"gpu_id": "2"})["device"] == torch.device("cpu")


# plain()


@pytest.mark.parametrize("dataset", ["amazon-beauty", "ml-100k", "ml-1m", "mine"])
@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("DiffuRec", {}),
        ("DiffuRecSys", {"sampling_steps": 1, "ensemble_seeds": [1, 2], "topk": 10, "metrics": "NDCG"}),
        ("DiffuRecSys", {"USER_ID_FIELD": "u", "ITEM_ID_FIELD": "i", "TIME_FIELD": "t", "use_gpu": False}),
        ("DiffuRecSys", {"eval_args": {"mode": "uni100"}, "source_base_urls": {"snap": "http://x/"}}),
        ("SASRec", {}),
        ("SASRec", {"loss_type": "BPR", "learning_rate": 0.5}),
        ("GRU4Rec", {}),
        ("SASRecF", {}),
        ("BPR", {"train_neg_sample_args": {"distribution": "popularity"}}),
        ("LightGCN", {}),
        ("Pop", {}),
    ],
)
def test_plain_rebuilds_an_equal_configuration(model: str, parameters: dict[str, Any], dataset: str) -> None:
    built = make(model, dataset, **parameters)
    kept = checkpoint.to_plain(built.plain())
    rebuilt = RunConfig(model, dataset, kept)
    assert rebuilt.final_config_dict == built.final_config_dict
    assert checkpoint.to_plain(rebuilt.plain()) == kept


@pytest.mark.parametrize("model", ["DiffuRecSys", "SASRec"])
def test_plain_rebuilds_the_run_after_its_files_have_changed(model: str, properties: Path) -> None:
    write(properties / "dataset" / "mine.yaml", hidden_size=32)
    write(properties / "experiment" / "mine.yaml", learning_rate=0.125)
    built = RunConfig(model, "mine", {"gpu_id": "", "seed": 5}, (), "mine")
    kept = built.plain()
    for path in (properties / "overall.yaml", properties / "dataset" / "mine.yaml"):
        content = layers.read_yaml(path)
        write(path, **{**content, "epochs": 1, "hidden_size": 8, "learning_rate": 0.5, "seed": 1, "metrics": ["MRR"]})
    assert make(model, seed=1, valid_metric="MRR@10")["hidden_size"] == 8
    assert RunConfig(model, "mine", kept).final_config_dict == built.final_config_dict
    assert RunConfig(model, "mine", {**kept, "hidden_size": 64})["hidden_size"] == 64


@pytest.mark.parametrize("counts", [{"5": 3}, {"5": [1, 2]}, {"5": [1, 2, "x"]}, {5: [1, 2, -3]}])
def test_expected_counts_are_three_numbers(counts):
    with pytest.raises(UserError, match="expected_counts must map a minimum of interactions to"):
        RunConfig("DiffuRecSys", "ml-100k", {"expected_counts": counts})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"POSITION_FIELD": "place"}, "POSITION_FIELD would have no effect (nothing reads it), got 'place'"),
        ({"valid_metric_bigger": False}, "valid_metric_bigger would have no effect"),
        ({"token_num_threshold": 3}, "token_num_threshold would have no effect"),
        ({"require_pow": True}, "require_pow would have no effect (LightGCN and SimpleX alone read it), got True"),
        ({"state": "loud"}, "state must be one of debug, info,"),
        ({"TIME_FIELD": ""}, "TIME_FIELD must be "),
        ({"ITEM_LIST_LENGTH_FIELD": None}, "ITEM_LIST_LENGTH_FIELD must be the name of a column, got None"),
    ],
)
def test_what_nothing_would_read_is_refused(given: dict[str, Any], message: str) -> None:
    assert message in refusal("SASRec", overrides=given)


def test_defaults_may_be_said_and_are_read_back() -> None:
    """RecBole's own files name them, and a checkpoint holds all of them."""
    said = RunConfig("SASRec", "small", {"POSITION_FIELD": "position_id", "valid_metric_bigger": True, "gpu_id": ""})
    assert RunConfig("SASRec", "small", said.plain()).key() == said.key()
    assert RunConfig("LightGCN", "small", {"require_pow": True, "gpu_id": ""})["require_pow"] is True


def test_a_data_set_of_a_name_that_no_file_may_have() -> None:
    with pytest.raises(UserError, match="is too long for the names of its files"):
        RunConfig("SASRec", "é" * 121, {})


def test_an_error_is_one_line_that_a_terminal_prints() -> None:
    error = UserError("'a\nb\x1b[2J\u202e' of\r\n  é")
    assert str(error) == "'a b\\x1b[2J\\u202e' of é"


@pytest.mark.parametrize("text", ["|", ">", "|-", ";", ","])
def test_a_separator_is_itself(text: str) -> None:
    assert layers.parse_value("field_separator", text) == text


@pytest.mark.parametrize(("given", "told"), [(10, "refused"), ([10], "refused"), (5, "topk would have no effect")])
def test_what_lists_do_not_read_is_told_before_what_it_would_have_to_fit(given: Any, told: str) -> None:
    with pytest.raises(UserError, match=told), effect_first({"topk": given}, {"topk": [10]}):
        raise UserError("refused")

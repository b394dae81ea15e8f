"""What splits, evaluation modes and filters may be, before any data is read."""

from __future__ import annotations

from typing import Any

import pytest

from recbole_diffurec.config.protocol import PARTS, Protocol
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig

TRAINING, VALIDATION, TEST = PARTS
WHOLE = {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"}


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ({"LS": "valid_and_test"}, PARTS),
        ({"LS": "valid_only"}, (TRAINING, VALIDATION)),
        ({"LS": "test_only"}, (TRAINING, TEST)),
        ({"RS": [0.8, 0.1, 0.1]}, PARTS),
        ({"RS": [8, 1, 1]}, PARTS),
        ({"RS": [0.8, 0, 0.2]}, (TRAINING, TEST)),
        ({"RS": [0.8, 0.2, 0.0]}, (TRAINING, VALIDATION)),
        ({"RS": [1, 0, 0]}, (TRAINING,)),
    ],
)
def test_parts_of_a_split(split: dict, parts: tuple[str, ...]) -> None:
    assert Protocol.of({**WHOLE, "split": split}).parts == parts
    assert RunConfig("BPR", "mine", {"eval_args": {"split": split}}).protocol.parts == parts


@pytest.mark.parametrize(
    ("eval_args", "thing"),
    [
        ({"split": {"RS": [0.8, 0.2]}}, "write three numbers, such as [0.8, 0, 0.2] for no validation"),
        ({"split": {"RS": [0, 0.5, 0.5]}}, "leaves nothing to train on"),
        ({"split": {"RS": [0.8, -0.1, 0.3]}}, "shares of training, validation and test"),
        ({"split": {"RS": [0.8, float("inf"), 0.1]}}, "shares of training, validation and test"),
        ({"split": {"RS": "0.8,0.1,0.1"}}, "shares of training, validation and test"),
        ({"split": {"LS": "both"}}, "one of valid_and_test, valid_only, test_only, got 'both'"),
        ({"split": {"LS": ["test_only"]}}, "got ['test_only']"),
        ({"split": {"LO": 1}}, "must have one of the keys LS and RS"),
        ({"split": {"LS": "test_only", "RS": [1, 0, 0]}}, "must have one of the keys LS and RS"),
        ({"split": None}, "must have one of the keys LS and RS"),
        ({"group_by": "item"}, "group_by in eval_args must be user or none, got 'item'"),
        ({"order": "time"}, "order in eval_args must be TO (by time) or RO (random), got 'time'"),
        ({"ordr": "TO"}, "unknown key 'ordr' in eval_args: did you mean 'order'?"),
        ({"mode": "uni-1"}, "got 'uni-1'"),
        ({"mode": "uni0"}, "got 'uni0'"),
        ({"mode": "xyz"}, "must be full, uni100 or pop100"),
        ({"mode": ["full"]}, "got ['full']"),
        ({"mode": {"train": "full"}}, "mode in eval_args must be for valid and test"),
        ({"mode": {"valid": "labeled", "test": "uni10"}}, "labeled data cannot be ranked beside"),
    ],
)
def test_what_is_no_protocol_is_refused(eval_args: dict[str, Any], thing: str) -> None:
    for refuse in (
        lambda: Protocol.of({**WHOLE, **eval_args}),
        lambda: RunConfig("BPR", "mine", {"eval_args": eval_args}),
    ):
        with pytest.raises(UserError) as caught:
            refuse()
        assert thing in str(caught.value) and "eval_args" in str(caught.value)


def test_one_mode_is_for_both_parts() -> None:
    assert Protocol.of({**WHOLE, "mode": {"test": "uni10"}}).modes == {"valid": "uni10", "test": "uni10"}
    assert Protocol.of({**WHOLE, "mode": {"valid": "full", "test": "pop5"}}).modes == {"valid": "full", "test": "pop5"}


@pytest.mark.parametrize(
    ("model", "parameters", "thing"),
    [
        ("BPR", {"eval_args": {"mode": "labeled"}}, "metric 'Hit' is of ranked lists, and mode labeled"),
        ("SASRec", {"eval_args": {"order": "RO"}}, "SASRec is a sequential model, which reads interactions in order"),
        ("BPR", {"mask_seen": True, "repeatable": True}, "repeatable lets items come again, which mask_seen leaves"),
        (
            "BPR",
            {"mask_seen": True, "eval_args": {"mode": "labeled"}, "metrics": ["AUC"], "valid_metric": "AUC"},
            "mask_seen leaves items out of rankings, and mode labeled ranks none",
        ),
        ("FM", {"threshold": {"rating": 4, "time": 3}}, "threshold must give one column a number"),
        ("FM", {"threshold": {"rating": "4"}}, "threshold must give one column a number"),
        ("BPR", {"val_interval": {"rating": "3"}}, "val_interval must give 'rating' an interval such as \"[3,inf)\""),
        ("BPR", {"rm_dup_inter": "frist"}, "rm_dup_inter must be one of first, last"),
        ("BPR", {"save_dataset": True}, "save_dataset is about pickles of prepared data"),
        ("BPR", {"save_dataloaders": True}, "save_dataloaders is about pickles of prepared data"),
        ("BPR", {"dataset_save_path": "x.pth"}, "dataset_save_path is about pickles of prepared data"),
        ("BPR", {"dataloaders_save_path": "x.pth"}, "dataloaders_save_path is about pickles of prepared data"),
        ("BPR", {"benchmark_filename": ["train", "test"]}, "must name the files of training, validation and test"),
        ("BPR", {"benchmark_filename": ["../a", "b", "c"]}, "must name the files of training, validation and test"),
        (
            "BPR",
            {"benchmark_filename": ["a", "b", "c"], "user_inter_num_interval": "[5,inf)"},
            "with benchmark_filename the files are taken as they are",
        ),
        ("BPR", {"benchmark_filename": ["a", "b", "c"], "rm_dup_inter": "first"}, "the files are taken as they are"),
        ("BPR", {"tail_ratio": 0}, "tail_ratio must be a finite number above 0"),
    ],
)
def test_what_would_not_act_is_refused(model: str, parameters: dict[str, Any], thing: str) -> None:
    with pytest.raises(UserError) as caught:
        RunConfig(model, "mine", {"gpu_id": "", **parameters})
    assert thing in str(caught.value)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("BPR", {"eval_args": {"order": "RO"}}),
        ("SASRec", {"mask_seen": True, "eval_args": {"mode": "uni100"}}),
        ("FM", {"threshold": {"rating": 4}}),
        ("BPR", {"eval_args": {"mode": "labeled"}, "metrics": ["AUC"], "valid_metric": "AUC"}),
        ("BPR", {"val_interval": {"rating": "[3,inf)", "genre": ["a", "b"]}}),
        ("BPR", {"benchmark_filename": ["a", "b", "c"], "user_inter_num_interval": "[1,inf)"}),
    ],
)
def test_what_acts_is_accepted_and_kept(model: str, parameters: dict[str, Any]) -> None:
    built = RunConfig(model, "mine", {"gpu_id": "", **parameters})
    assert RunConfig(model, "mine", built.plain()).final_config_dict == built.final_config_dict


def test_a_part_that_somebody_needs() -> None:
    config = RunConfig("BPR", "mine", {"eval_args": {"split": {"LS": "test_only"}}})
    config.refuse_without("test", "we test")
    with pytest.raises(UserError, match=r"the split \{'LS': 'test_only'\} has no validation part, and a search judges"):
        config.refuse_without("validation", "a search judges by it")
    split_already = {"benchmark_filename": ["a", "b", "c"], "eval_args": {"split": {"LS": "test_only"}}}
    RunConfig("BPR", "mine", split_already).refuse_without("validation", "a search judges by it")

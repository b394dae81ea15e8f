"""Whole runs by other protocols than the default one, and metrics that are the same wherever they are computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_data import write_inter
from test_splits import SPLIT, shop, with_histories, write_parts

import recbole_diffurec
from recbole_diffurec import Recommender, UserError, cli, compare, run
from recbole_diffurec.host.metrics import LIST_METRICS

SMALL = {"epochs": 3, "hidden_size": 16, "n_layers": 1, "n_heads": 2, "MAX_ITEM_LIST_LENGTH": 10, "gpu_id": ""}
GIVEN: dict[str, Any] = {"data_path": ".", "topk": [5], "valid_metric": "NDCG@5", "show_progress": False, **SMALL}
GIVEN |= {"user_inter_num_interval": None, "item_inter_num_interval": None}


@pytest.fixture(autouse=True)
def data(workdir: Path) -> None:
    write_inter(workdir, shop())


def test_without_validation_every_epoch_is_trained_and_the_last_one_counts(capsys):
    split = {"split": {"LS": "test_only"}}
    arguments = ["--dataset=toy", "--model=SASRec", f"--eval_args={json.dumps(split)}", "--stopping_step=0"]
    given = {name: value for name, value in GIVEN.items() if name != "user_inter_num_interval"}
    assert cli.main([*arguments, "--result_file=r.json", *(f"--{name}={value}" for name, value in given.items())]) == 0
    out, err = capsys.readouterr()
    result = json.loads(Path("r.json").read_text())
    assert result["best_valid_result"] == {} and result["best_epoch"] == 2 and len(result["history"]) == 3
    assert not any("valid_score" in epoch for epoch in result["history"])
    assert "epoch 3/3: loss" in err and "valid" not in out and f"{result['test_result']['hit@5']:.4f}" in out
    again = recbole_diffurec.evaluate(result["checkpoint"], show_progress=False)
    assert again["test_result"] == result["test_result"] and again["best_epoch"] == 2
    same = {**GIVEN, "eval_args": split, "stopping_step": 0, "user_inter_num_interval": "[5,inf)"}
    assert run("SASRec", "toy", **same)["test_result"] == result["test_result"]


def test_without_a_test_part_the_best_epoch_is_kept(capsys):
    result = run("DiffuRecSys", "toy", eval_args={"split": {"LS": "valid_only"}}, sampling_steps=1, **GIVEN)
    assert result["test_result"] == {} and result["best_valid_result"]
    with pytest.raises(UserError, match=r"has no test part, and there is nothing to test on"):
        recbole_diffurec.evaluate(result["checkpoint"])
    assert "evaluation" not in recbole_diffurec.training.report.format_result(result)
    assert len(Recommender.load(result["checkpoint"]).recommend([["505"]], k=4)) == 4


def test_a_model_of_all_interactions_has_neither():
    given = {name: value for name, value in GIVEN.items() if name not in SMALL}
    result = run("BPR", "toy", epochs=2, gpu_id="", eval_args={"split": {"RS": [1, 0, 0]}}, **given)
    assert result["test_result"] == result["best_valid_result"] == {} and Path(result["checkpoint"]).is_file()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"eval_args": {"split": {"LS": "test_only"}}}, "leave its split at {LS: valid_and_test}"),
        ({"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}}}, "leave its split at {LS: valid_and_test}"),
        ({"eval_args": {"mode": "uni5"}}, "its mode at full"),
        (SPLIT, "a comparison splits the data itself"),
    ],
)
def test_comparisons_keep_to_their_protocol(parameters, message):
    with pytest.raises(UserError) as caught:
        compare(["SASRec"], ["toy"], **{**{k: v for k, v in GIVEN.items() if "interval" not in k}, **parameters})
    assert message in str(caught.value)


def test_a_search_wants_validation(workdir):
    (workdir / "space.test").write_text("learning_rate choice [0.1,0.2]\n")
    with pytest.raises(UserError, match="has no validation part, and a search judges by it"):
        recbole_diffurec.tune(
            "SASRec", "toy", params_file="space.test", eval_args={"split": {"LS": "test_only"}}, **GIVEN
        )


@pytest.mark.parametrize("mask_seen", [False, True])
def test_metrics_of_lists_are_the_same_in_a_run_an_evaluation_and_a_comparison(mask_seen):
    metrics = ["Hit", "NDCG", *LIST_METRICS]
    given = {**GIVEN, "metrics": metrics, "topk": [3, 5], "mask_seen": mask_seen, "tail_ratio": 0.3, "epochs": 1}
    result = run("SASRec", "toy", **{name: value for name, value in given.items() if name != "n_heads"})
    again = recbole_diffurec.evaluate(result["checkpoint"], show_progress=False)
    assert again["test_result"] == result["test_result"]
    assert set(result["test_result"]) == {f"{name.lower()}@{k}" for name in metrics for k in (3, 5)}
    compared = compare(["SASRec"], ["toy"], **{name: value for name, value in given.items() if name != "n_heads"})
    (row,) = pd.read_csv(compared.output_dir / "runs.csv").to_dict("records")
    columns = ("coverage", "entropy", "gini", "average_popularity", "tail_share")
    for k in (3, 5):
        for name, column in zip(LIST_METRICS, columns):
            assert row[f"test_{name.lower()}@{k}"] == result["test_result"][f"{name.lower()}@{k}"]
            assert row[f"{column}@{k}"] == pytest.approx(row[f"test_{name.lower()}@{k}"], abs=1e-6)


@pytest.mark.parametrize("model", ["BPR", "SASRec", "DiffuRecSys"])
@pytest.mark.parametrize("histories", [True, False])
def test_data_that_comes_split(model, histories, workdir):
    parts = with_histories(shop())
    if not histories:
        parts = {name: frame.drop(columns="item_id_list") for name, frame in parts.items()}
    write_parts(workdir, parts)
    given = {k: v for k, v in GIVEN.items() if "interval" not in k and (model != "BPR" or k not in SMALL)}
    more = {"sampling_steps": 1} if model == "DiffuRecSys" else {}
    result = run(model, "toy", **{**given, **SPLIT, **more, "epochs": 1, "gpu_id": ""})
    again = recbole_diffurec.evaluate(result["checkpoint"], show_progress=False)
    assert again["test_result"] == result["test_result"] and 0 < result["test_result"]["hit@5"] <= 1
    if model != "BPR":
        counts = recbole_diffurec.recommend(result["checkpoint"], "lists.csv", k=3)
        assert counts["users"] == 12 and len(pd.read_csv("lists.csv")) == 36


def test_names_may_stand_in_a_file_alone(capsys):
    values = {**GIVEN, "model": "SASRec", "dataset": "toy", "epochs": 1}
    Path("a.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items()))
    assert cli.main(["--config_files=a.yaml"]) == 0
    assert capsys.readouterr().out.startswith("SASRec on toy")
    assert cli.main(["--config_files=a.yaml", "--model=BPR"]) == 2
    assert "model is 'BPR', and a parameter or configuration file says 'SASRec': give one" in capsys.readouterr().err

"""Whole runs through RecBole's real pipeline, on the ml-100k that ships inside RecBole."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, flags

import recbole_diffurec
from recbole_diffurec import UserError, cli, run
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.prepare import build, prepare_data
from recbole_diffurec.training.weights import load_weights

# On all users, for their known number.
SMALL = {name: value for name, value in TINY.items() if name != "user_inter_num_interval"}
# For models without histories.
GENERAL = {name: TINY[name] for name in ("epochs", "gpu_id", "show_progress", "user_inter_num_interval")}
MEMBERS = ["DiffuRecSys", "DiffuRecSys", "SASRec"]
KEYS = {
    "model", "dataset", "seed", "n_users", "n_items", "n_interactions", "best_epoch", "best_valid_result",
    "test_result", "train_seconds", "eval_seconds", "n_parameters", "checkpoint", "config", "versions",
}  # fmt: skip


def in_new_process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "run_recbole_diffurec.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("model", ["DiffuRec", "DiffuRecSys", "SASRec"])
def test_run_and_evaluate_in_a_fresh_process(model, workdir):
    result = run(model, "ml-100k", result_file="out/result.json", inner_size=32, **SMALL)
    on_disk = json.loads(Path("out/result.json").read_text())
    assert set(on_disk) >= KEYS
    assert (on_disk["n_users"], on_disk["n_items"], on_disk["n_interactions"]) == (943, 1349, 99287)
    assert {k: v for k, v in result.items() if k != "result_file"} == on_disk
    assert set(on_disk["test_result"]) == {f"{m}@{k}" for m in ("hit", "ndcg") for k in (5, 10, 20)}
    assert 0 < on_disk["test_result"]["hit@10"] < 1 and on_disk["train_seconds"] > 0 and on_disk["eval_seconds"] > 0
    assert Path(on_disk["log"]).read_text()

    path = on_disk["checkpoint"]
    state = torch.load(path, weights_only=True)
    assert state["model"] == model and path.endswith(".pth")

    done = in_new_process("evaluate", path, "--result_file=again.json", cwd=workdir)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("again.json").read_text())["test_result"] == on_disk["test_result"]


def test_checkpoints_tested_as_one(workdir, capsys):
    """The mean of the softmax of each model's scores, whatever the models; an ensemble of one model is that model."""
    runs = [run(model, **TINY, inner_size=32, seed=i) for i, model in enumerate(MEMBERS)]
    paths = [result["checkpoint"] for result in runs]
    alone = recbole_diffurec.evaluate(paths[0], paths[0], show_progress=False)
    assert alone["test_result"] == pytest.approx(runs[0]["test_result"], abs=1e-4)
    assert cli.main(["evaluate", *paths, "--result_file=both.json", "--show_progress=False"]) == 0
    assert f"{len(MEMBERS)} models as one on ml-100k" in capsys.readouterr().out
    both = json.loads(Path("both.json").read_text())
    assert both["n_parameters"] == sum(result["n_parameters"] for result in runs)
    assert [Path(path).name for path in both["checkpoints"]] == [Path(path).name for path in paths]

    states = [checkpoint.load(path) for path in paths]
    configs = [RunConfig(state["model"], "ml-100k", state["config"]) for state in states]
    data = prepare_data(configs[0])
    networks = []
    for state, config in zip(states, configs):
        network, _ = build(config, dataset_of(data.loaders[0]))
        load_weights(network, state, "a checkpoint")
        networks.append(network.eval())
    hits, n_users = 0, 0
    with torch.no_grad():
        for interaction, _, _, target in data.loaders[2]:
            scores = [network.full_sort_predict(interaction)[:, 1:].softmax(dim=-1) for network in networks]
            lists = torch.stack(scores).mean(dim=0).topk(10).indices + 1
            hits += (lists == target.unsqueeze(1)).any(dim=1).sum().item()
            n_users += len(target)
    assert both["test_result"]["hit@10"] == pytest.approx(hits / n_users, abs=5e-5)


def test_checkpoints_that_cannot_be_tested_as_one(workdir):
    path = run(**TINY)["checkpoint"]
    longer = run(**{**TINY, "MAX_ITEM_LIST_LENGTH": 9})["checkpoint"]
    other = run(**{**SMALL, "user_inter_num_interval": "[5,40]"})["checkpoint"]
    general = run("BPR", **GENERAL)["checkpoint"]
    with pytest.raises(UserError, match=r"MAX_ITEM_LIST_LENGTH 9, but .* has 8"):
        recbole_diffurec.evaluate(path, longer)
    with pytest.raises(UserError, match="trained on different data"):
        recbole_diffurec.evaluate(path, other)
    with pytest.raises(UserError, match=r"'.*BPR.*' is of BPR, which cannot be tested with others"):
        recbole_diffurec.evaluate(general, general)


def test_a_checkpoints_model_knows_the_columns_that_transforms_add(workdir):
    """RecBole's SHAN scores single items by a reversed history, whose column its transform names."""
    labels = {"threshold": {"rating": 4}, "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]}}
    judged = {"eval_args": {"mode": "labeled"}, "metrics": ["AUC"], "valid_metric": "AUC"}
    result = run("SHAN", embedding_size=8, MAX_ITEM_LIST_LENGTH=8, **GENERAL, **labels, **judged)
    again = recbole_diffurec.evaluate(result["checkpoint"], show_progress=False)
    assert again["test_result"] == result["test_result"]


def test_figures_do_not_depend_on_the_evaluation_batch(workdir):
    result = run(result_file="r.json", **TINY)
    for size in (1000, 77):
        again = recbole_diffurec.evaluate(result["checkpoint"], eval_batch_size=size, show_progress=False)
        for name, value in result["test_result"].items():
            assert again["test_result"][name] == pytest.approx(value, abs=1e-4)


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(workdir):
    first, second = (run(**TINY)["test_result"] for _ in range(2))
    assert first == second
    assert run(seed=7, **TINY)["test_result"] != first


@pytest.mark.parametrize(
    "model",
    ["BPR", "DiffRec", "LDiffRec", "BERT4Rec", "GRU4Rec", pytest.param("FEARec", marks=pytest.mark.slow), "RecVAE"],
)
def test_recboles_models_run_beside_ours(model, workdir):
    """On the same data; a mask takes items away, so a masked ranking is no worse."""
    parameters = {"epochs": 1, "MAX_ITEM_LIST_LENGTH": 5, "gpu_id": "", "show_progress": False}
    if model not in ("BPR", "DiffRec", "LDiffRec", "RecVAE"):
        parameters.update(hidden_size=16, **({} if model == "GRU4Rec" else {"n_layers": 2, "inner_size": 16}))
    result = run(model, **parameters)
    assert (result["n_users"], result["n_items"], result["n_interactions"]) == (943, 1349, 99287)
    masked = recbole_diffurec.evaluate(result["checkpoint"], mask_seen=True, show_progress=False)
    assert masked["test_result"]["hit@20"] >= result["test_result"]["hit@20"] > 0


def test_learning_rate_decays_by_steps_and_best_epoch_is_kept(workdir):
    small = {**TINY, "epochs": 4, "lr_decay_step": 2, "lr_decay_gamma": 0.1, "learning_rate": 0.01}
    result = run(**small)
    rates = [epoch["learning_rate"] for epoch in result["history"]]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])
    scores = [epoch["valid_score"] for epoch in result["history"]]
    assert result["best_epoch"] == max(range(4), key=lambda e: (scores[e], e))
    assert result["best_valid_result"]["ndcg@10"] == max(scores)
    state = checkpoint.load(result["checkpoint"])
    assert state["epoch"] == result["best_epoch"]


def test_early_stopping(workdir):
    """Steps so large that the second epoch is worse than the first."""
    result = run(**{**TINY, "epochs": 9, "stopping_step": 0, "learning_rate": 0.3})
    scores = [epoch["valid_score"] for epoch in result["history"]]
    assert len(scores) < 9 and scores[-1] < max(scores)


def test_training_learns(workdir):
    """A few epochs beat the chance of 10 in 1349 by far."""
    result = run(**{**SMALL, "epochs": 2, "hidden_size": 32, "learning_rate": 0.01})
    assert result["test_result"]["hit@10"] > 5 * 10 / 1349
    losses = [epoch["train_loss"] for epoch in result["history"]]
    assert losses == sorted(losses, reverse=True) and losses[-1] < math.log(1349)


def test_bf16_training_runs(workdir):
    result = run(**{**TINY, "enable_amp": True})
    assert result["test_result"]["hit@20"] > 0


def test_a_checkpoint_of_other_data_is_refused(workdir):
    result = run(**TINY)
    with pytest.raises(UserError, match="is not the one"):
        recbole_diffurec.evaluate(result["checkpoint"], user_inter_num_interval="[30,50]", show_progress=False)
    with pytest.raises(UserError, match="do not fit"):
        recbole_diffurec.evaluate(result["checkpoint"], hidden_size=32, show_progress=False)


def test_command_line_prints_the_table_and_the_places(workdir, capsys):
    assert cli.main(["run", *flags(TINY), "--result_file=r.json"]) == 0
    out = capsys.readouterr().out
    for text in (
        "DiffuRecSys on ml-100k",
        "HR@5",
        "NDCG@20",
        "valid",
        "test",
        "training",
        "checkpoint",
        ".pth",
        "r.json",
    ):
        assert text in out
    result = json.loads(Path("r.json").read_text())
    assert f"{result['test_result']['hit@10']:.4f}" in out


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="recbole.quick_start imports ray")
def test_recboles_own_quick_start_runs_our_model_with_our_defaults(workdir, monkeypatch):
    from recbole.quick_start import run_recbole

    monkeypatch.setattr(sys, "argv", ["run_recbole.py"])
    small = {name: value for name, value in TINY.items() if name != "gpu_id"}
    result = run_recbole(model="DiffuRecSys", dataset="ml-100k", config_dict=small)
    assert set(result["test_result"]) >= {"hit@10", "ndcg@10"}, "our metrics, not RecBole's"
    ours = run(**TINY)
    assert result["test_result"]["hit@10"] == pytest.approx(ours["test_result"]["hit@10"], abs=0.05)


@pytest.mark.slow
def test_amazon_beauty_from_the_shared_data(workdir, shared_data):
    result = run("DiffuRecSys", "amazon-beauty", data_path=str(shared_data), **SMALL)
    assert (result["n_users"], result["n_items"], result["n_interactions"]) == (22363, 12101, 198502)


@pytest.mark.parametrize(
    "parameters",
    [
        {"normalize_field": ["nothing"]},
        {"encoding": "foo"},
        {"model": "SASRec", "loss_type": "foo"},
    ],
)
def test_what_recbole_raises_is_one_sentence_and_the_traceback_is_in_the_log(parameters, workdir, capsys):
    assert cli.main(flags({"gpu_id": "", **parameters})) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("recbole-diffurec: ") and "Traceback" not in error
    (log,) = workdir.glob("log/*/*.log")
    assert "inside RecBole" not in error or "Traceback" in log.read_text()


@pytest.mark.parametrize("model", ["DiffuRecSys", "SASRec"])
def test_averaged_weights_are_validated_and_kept(model: str, workdir: Path) -> None:
    parameters = {**TINY, "model": model, "epochs": 2, "inner_size": 32}
    plain, averaged = run(**parameters), run(**parameters, ema_decay=0.99)
    losses = [[epoch["train_loss"] for epoch in result["history"]] for result in (plain, averaged)]
    assert losses[0] == losses[1], "training itself is the same"
    assert plain["best_valid_result"] != averaged["best_valid_result"]
    again = recbole_diffurec.evaluate(averaged["checkpoint"], show_progress=False)
    assert again["test_result"] == averaged["test_result"]


def test_a_trainer_without_one_optimizer_has_nothing_to_average(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"ema_decay is 0\.9, but RecVAE is not trained by steps of one optimizer"):
        run("RecVAE", ema_decay=0.9, **GENERAL)

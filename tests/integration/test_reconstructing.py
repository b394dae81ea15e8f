"""RecBole's DiffRec, T-DiffRec and LDiffRec: their input in the test, their vectors of items, their spelling."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole
import torch
from conftest import TINY, flags

import recbole_diffurec
from recbole_diffurec import UserError, cli, evaluate
from recbole_diffurec.host import config as host_config
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.inputs import inputs_of_test
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.training.prepare import PreparedData, build

DATA = {"user_inter_num_interval": "[5,30]", "gpu_id": "", "show_progress": False}
SMALL: dict[str, Any] = {**DATA, "epochs": 2, "dims_dnn": [16], "mask_seen": True}


def histories(data: PreparedData, part: int) -> dict[int, list[int]]:
    """Items by user, in order of time."""
    rows = dataset_of(data.loaders[part]).inter_feat
    found: dict[int, list[tuple[float, int, int]]] = {}
    for place, row in enumerate(zip(*(rows[name].tolist() for name in ("user_id", "timestamp", "item_id")))):
        found.setdefault(row[0], []).append((row[1], place, row[2]))
    return {user: [item for _, _, item in sorted(own)] for user, own in found.items()}


@pytest.mark.parametrize("model", ["DiffRec", "LDiffRec"])
@pytest.mark.parametrize("time_aware", [False, True])
def test_in_the_test_the_validation_item_is_the_last_of_the_input(model, time_aware, workdir):
    config = RunConfig(model, "ml-100k", {**SMALL, "time_aware": time_aware})
    data = PreparedData(config)
    network, _ = build(data.config, dataset_of(data.loaders[0]))
    training, validation = histories(data, 0), histories(data, 1)
    users = torch.arange(1, data.n_users + 1)

    def expected(items: list[int]) -> torch.Tensor:
        row = torch.zeros(data.n_items + 1)
        row[items] = torch.linspace(0.1, 1, len(items)) if time_aware else torch.ones(len(items))
        return row

    def given(parts: list[dict[int, list[int]]]) -> torch.Tensor:
        rows = [expected([item for part in parts for item in part.get(int(user), [])]) for user in users]
        return torch.stack(rows)

    network.eval()
    before = network.full_sort_predict({"user_id": users})
    torch.testing.assert_close(network.get_rating_matrix(users), given([training]))
    with inputs_of_test(network, data.loaders, True):
        torch.testing.assert_close(network.get_rating_matrix(users), given([training, validation]))
        assert not torch.equal(network.full_sort_predict({"user_id": users}), before)
    torch.testing.assert_close(network.get_rating_matrix(users), given([training]))
    with inputs_of_test(network, data.loaders, False):
        assert torch.equal(network.full_sort_predict({"user_id": users}), before)


def test_the_switch_acts_in_the_test_alone(workdir):
    without, put_in = (recbole_diffurec.run("DiffRec", **SMALL, valid_item_in_input=value) for value in (False, True))
    assert put_in["best_valid_result"] == without["best_valid_result"]
    assert put_in["test_result"] != without["test_result"]
    assert evaluate(put_in["checkpoint"])["test_result"] == put_in["test_result"]
    assert evaluate(without["checkpoint"], valid_item_in_input=True)["test_result"] == put_in["test_result"]


def test_what_the_switch_cannot_do_is_refused():
    split = {"split": {"RS": [0.8, 0.0, 0.2]}, "order": "TO", "mode": "full", "group_by": "user"}
    with pytest.raises(UserError, match="has no validation part, and valid_item_in_input is to put"):
        RunConfig("DiffRec", "ml-100k", {"valid_item_in_input": True, "eval_args": split})
    with pytest.raises(UserError, match="unknown parameter 'valid_item_in_input' for model SASRec"):
        RunConfig("SASRec", "ml-100k", {"valid_item_in_input": True})
    with pytest.raises(UserError, match="valid_item_in_input must be True or False, got 'yes'"):
        RunConfig("DiffRec", "ml-100k", {"valid_item_in_input": "yes"})


def test_either_spelling_is_the_same_run():
    plain, ours, theirs = (
        RunConfig("DiffRec", "ml-100k", given) for given in ({}, {"time_aware": True}, {"time-aware": True})
    )
    assert ours["time-aware"] is theirs["time-aware"] is True and plain["time-aware"] is False
    assert ours.key() == theirs.key() != plain.key()
    assert RunConfig("DiffRec", "ml-100k", ours.plain()).key() == ours.key()
    with pytest.raises(UserError, match="time_aware is True, and time-aware, its other name, False: give one"):
        RunConfig("DiffRec", "ml-100k", {"time_aware": True, "time-aware": False})
    with pytest.raises(UserError, match="time-aware must be True or False, got 3"):
        RunConfig("LDiffRec", "ml-100k", {"time_aware": 3})
    with pytest.raises(UserError, match="unknown parameter 'time_aware' for model SASRec"):
        RunConfig("SASRec", "ml-100k", {"time_aware": True})


def test_a_ranking_with_what_they_were_given_is_warned_of(caplog):
    def said(model: str, **given: Any) -> str:
        host_config.once.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="recbole_diffurec"):
            RunConfig(model, "ml-100k", given)
        return caplog.text

    for model in ("DiffRec", "LDiffRec", "MultiVAE"):
        assert f"model {model} reconstructs the items it is given" in said(model)
        assert said(model, mask_seen=True) == ""
    assert said("SASRec") == said("BPR") == ""


@pytest.mark.parametrize("experiment", ["diffrec", "t_diffrec", "ldiffrec"])
def test_their_experiments_run(experiment, workdir):
    model = "LDiffRec" if experiment == "ldiffrec" else "DiffRec"
    given = flags({**DATA, "epochs": 1, "result_file": "r.json"})
    assert cli.main([f"--model={model}", f"--experiment={experiment}", *given]) == 0
    config = json.loads(Path("r.json").read_text())["config"]
    assert config["valid_item_in_input"] and config["mask_seen"]
    assert config.get("time-aware", False) is (experiment == "t_diffrec")


def test_vectors_of_a_trained_model_cluster_the_items(workdir, capsys):
    pytest.importorskip("kmeans_pytorch")
    folder = workdir / "data" / "mine"
    folder.mkdir(parents=True)
    bundled = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    (folder / "mine.inter").write_bytes(bundled.read_bytes())
    where = {"dataset": "mine", "data_path": "data"}
    settings, own = {**TINY, **DATA, **where}, {**SMALL, **where, "n_cate": 2, "in_dims": [8]}
    with pytest.raises(UserError, match=r"item_emb.npy' is missing: write it with 'recbole-diffurec export CHECKPOINT"):
        recbole_diffurec.run("LDiffRec", **own)
    trained = recbole_diffurec.run("DuoRec", **{**settings, "inner_size": 16})
    made = ["export", trained["checkpoint"], "--format=npy", f"--output={folder / 'item_emb.npy'}"]
    assert cli.main(made) == 0
    vectors = np.load(folder / "item_emb.npy", allow_pickle=False)
    assert vectors.dtype == np.float32 and vectors.shape == (trained["n_items"], 16)
    assert recbole_diffurec.run("LDiffRec", **own)["test_result"]

    # Of other filters.
    with pytest.raises(UserError, match=r"item_emb.npy' has 238 rows for \d+ items"):
        recbole_diffurec.run("LDiffRec", **{**own, "user_inter_num_interval": "[5,40]"})
    # As many items, in another order.
    beside = folder / "item_emb.npy.json"
    about = json.loads(beside.read_text())
    about["items"][1:3] = about["items"][2:0:-1]
    beside.write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"item_emb.npy' is of other items than this run's, or of another order"):
        recbole_diffurec.run("LDiffRec", **own)
    beside.write_text("{")
    with pytest.raises(UserError, match=r"item_emb.npy.json' does not name the items"):
        recbole_diffurec.run("LDiffRec", **own)

"""Evaluation among sampled candidates: which they are, what they come to, and that they stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from test_data import prepare, write_inter
from test_splits import ALL, TOGETHER, shop

import recbole_diffurec
from recbole_diffurec import UserError, run
from recbole_diffurec.host.candidates import SampledEvalLoader
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.training.prepare import PreparedData, build

TRIMMED = ["DiffuRec", "DiffuRecSys", "SASRec", "BERT4Rec", "GRU4Rec"]
SMALL = {"hidden_size": 16, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 10, "show_progress": False}
SIZES = {"GRU4Rec": {"num_layers": 1, "hidden_size": 16}, "NARM": {}, "BPR": {}, "FM": {}}
TOPK = {"topk": [5], "valid_metric": "NDCG@5"}


@pytest.fixture
def data_path(workdir):
    write_inter(workdir, shop())
    return {"data_path": str(workdir), "gpu_id": ""}


def small(model: str) -> dict[str, Any]:
    known = SIZES.get(model, {**SMALL, **({"n_heads": 2} if model.startswith("Diffu") else {})})
    return {**known, **({"sampling_steps": 1} if model.startswith("Diffu") else {})}


def candidates(data: PreparedData, part: int, as_rows: bool = True) -> dict[str, list[tuple[str, list[str]]]]:
    """user -> (target, negatives) of each row, in the data's own ids."""
    loader = data.loaders[part]
    loader.as_rows = as_rows
    users, items = (np.array(data.id_tokens[name]) for name in ("users", "items"))
    found: dict[str, list[tuple[str, list[str]]]] = {}
    for rows, who, positive_u, positive_i in loader:
        if as_rows:
            number, (_, table) = rows["user_id"], who
        else:
            table = rows["item_id"].view(-1, len(positive_i)).T
            number = rows["user_id"][: len(positive_i)]
            assert rows["label"].tolist() == [1.0] * len(positive_i) + [0.0] * (table.numel() - len(positive_i))
            assert who.view(-1, len(positive_i)).eq(positive_u).all()
        assert table[:, 0].equal(positive_i)
        for user, line in zip(users[number], items[table]):
            found.setdefault(str(user), []).append((str(line[0]), line[1:].tolist()))
    return found


@pytest.mark.parametrize("mode", ["uni7", "pop7"])
@pytest.mark.parametrize("eval_args", [{}, TOGETHER], ids=["LS", "RS"])
def test_candidates_are_the_users_whatever_the_batch_the_model_and_the_draws_of_others(workdir, mode, eval_args):
    write_inter(workdir, shop())
    given = {"eval_args": {**eval_args, "mode": mode}, **ALL}
    first = prepare(workdir, "SASRec", **given)
    found = candidates(first, 2)
    np.random.seed(7)
    assert candidates(first, 2) == found == candidates(first, 2, as_rows=False)
    assert candidates(prepare(workdir, "GRU4Rec", eval_batch_size=2, **given), 2) == found
    other_seed, validation = candidates(prepare(workdir, "SASRec", seed=1, **given), 2), candidates(first, 1)
    assert other_seed != found and not any(validation.get(user) == rows for user, rows in found.items())
    assert all(len(negatives) == 7 for rows in found.values() for _, negatives in rows)


@pytest.mark.parametrize(
    ("model", "parameters", "seen_are_left_out"),
    [
        ("SASRec", {}, False),
        ("SASRec", {"mask_seen": True}, True),
        ("BPR", {}, True),
        ("BPR", {"repeatable": True}, False),
    ],
)
@pytest.mark.parametrize("eval_args", [{}, TOGETHER], ids=["LS", "RS"])
def test_what_is_among_the_candidates(workdir, model, parameters, seen_are_left_out, eval_args):
    frame = shop()
    write_inter(workdir, frame)
    data = prepare(workdir, model, eval_args={**eval_args, "mode": "uni30"}, **parameters, **ALL)
    ordered = frame.sort_values("timestamp", kind="stable")
    n_seen = 0
    for part in (1, 2):
        loader = data.loaders[part]
        loader.as_rows = True
        found = candidates(data, part)
        for user, rows in found.items():
            items = ordered[ordered["user_id"] == int(user)]["item_id"].astype(str).tolist()
            targets = {target for target, _ in rows}
            # The rows of a part are a stretch of the user's interactions, which ends with the test part.
            end = len(items) - (len(found_test) if part == 1 and (found_test := candidates(data, 2).get(user)) else 0)
            before = set(items[: end - len(rows)])
            for _, negatives in rows:
                assert not targets & set(negatives)
                n_seen += len((before - targets) & set(negatives))
    assert (n_seen == 0) == seen_are_left_out


@pytest.mark.parametrize("model", [*TRIMMED, "NARM", "BPR"])
@pytest.mark.parametrize("eval_args", [{}, {"split": {"RS": [0.6, 0.2, 0.2]}}], ids=["LS", "RS"])
def test_run_and_evaluate_agree(data_path, model, eval_args):
    """Epochs are judged by the same candidates, so that equal weights have equal figures."""
    parameters = {**small(model), **data_path, **TOPK, **ALL, "learning_rate": 1e-12, "weight_decay": 0.0}
    parameters |= {"eval_args": {**eval_args, "mode": {"valid": "uni5", "test": "pop5"}}, "show_progress": False}
    result = run(model, "toy", epochs=2, **parameters)
    first, second = (epoch["valid_result"] for epoch in result["history"])
    assert first == second and 0 < result["test_result"]["hit@5"] <= 1
    for size in (512, 3):
        again = recbole_diffurec.evaluate(result["checkpoint"], eval_batch_size=size, show_progress=False)
        assert again["test_result"] == pytest.approx(result["test_result"], abs=2e-6)


@pytest.mark.parametrize("model", ["SASRec", "BPR", "DiffuRecSys"])
@pytest.mark.parametrize("eval_args", [{}, TOGETHER], ids=["LS", "RS"])
def test_scores_out_of_the_table_of_all_items_are_those_of_single_candidates(workdir, model, eval_args):
    """RecBole scores every candidate by itself, with ``predict``."""
    write_inter(workdir, shop())
    given = {name: value for name, value in small(model).items() if name != "show_progress"}
    data = prepare(workdir, model, eval_args={**eval_args, "mode": "uni5"}, **given, **ALL)
    network, trainer = build(data.config, dataset_of(data.loaders[0]))
    network.eval()
    loader = data.loaders[2]
    trainer._evaluated, trainer.tot_item_num = loader, data.n_items + 1
    with torch.no_grad():
        loader.as_rows = True
        ours = [trainer._neg_sample_batch_eval(batch)[1] for batch in loader]
        loader.as_rows = False
        for batch, table in zip(loader, ours):
            flat, user, _, _ = batch
            single = network.predict(flat)
            expected = torch.full_like(table, -torch.inf)
            place = user * (data.n_items + 1) + flat["item_id"]
            expected.view(-1).scatter_reduce_(0, place, single, "amax")
            torch.testing.assert_close(table, expected, rtol=1e-4, atol=1e-5)


def test_single_scores_are_judged_among_candidates_too(data_path):
    """AUC of a trimmed model: each candidate is a row of its own, all of one width."""
    parameters = {**small("SASRec"), **data_path, "metrics": ["AUC"], "valid_metric": "AUC", **ALL}
    result = run("SASRec", "toy", epochs=1, eval_args={"mode": "uni5"}, **parameters)
    assert 0 < result["test_result"]["auc"] < 1
    again = recbole_diffurec.evaluate(result["checkpoint"], show_progress=False)
    assert again["test_result"] == result["test_result"]
    with pytest.raises(UserError, match="checkpoints are tested as one by their rankings"):
        recbole_diffurec.evaluate(result["checkpoint"], result["checkpoint"])


def test_checkpoints_are_tested_as_one_among_candidates(data_path):
    parameters = {**small("SASRec"), **data_path, **TOPK, **ALL, "eval_args": {"mode": "uni5"}}
    path = run("SASRec", "toy", epochs=1, **parameters)["checkpoint"]
    one, two = (recbole_diffurec.evaluate(*[path] * n, show_progress=False)["test_result"] for n in (1, 2))
    assert two == pytest.approx(one, abs=1e-4)


def test_masked_and_unmasked_figures_differ(data_path):
    parameters = {**data_path, **TOPK, **ALL, "eval_args": {"mode": "uni10"}, "show_progress": False}
    path = run("NARM", "toy", epochs=1, **parameters)["checkpoint"]
    plain, masked = (
        recbole_diffurec.evaluate(path, mask_seen=mask, show_progress=False)["test_result"] for mask in (False, True)
    )
    assert masked["ndcg@5"] != plain["ndcg@5"]


def test_users_who_have_seen_all_are_refused_before_training(workdir):
    frame = pd.DataFrame({"user_id": np.repeat([1, 2], 6), "item_id": [*range(6), *range(6)], "timestamp": range(12)})
    write_inter(workdir, frame)
    for model, parameters, message in (
        ("SASRec", {"mask_seen": True}, "a user has seen every item, so that there is none to sample"),
        ("BPR", {}, "some user of data set 'toy' has every item, so that there is none to sample"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(workdir, model, eval_args={"mode": "uni3"}, **parameters, **ALL)
    assert isinstance(prepare(workdir, "SASRec", eval_args={"mode": "uni3"}, **ALL).loaders[2], SampledEvalLoader)


def test_masks_that_cannot_act_are_refused(workdir):
    write_inter(workdir, shop())
    for mode in ("full", "uni3"):
        with pytest.raises(UserError, match="mask_seen cannot act for model DIEN"):
            prepare(workdir, "DIEN", mask_seen=True, eval_args={"mode": mode}, **ALL)


def test_lists_of_few_candidates_hold_nothing_else(data_path):
    """Three candidates in lists of five: coverage counts what was recommended."""
    parameters = {**small("SASRec"), **data_path, "topk": [5], "valid_metric": "ItemCoverage@5", **ALL}
    parameters |= {"metrics": ["ItemCoverage", "AveragePopularity"], "eval_args": {"mode": "uni2"}}
    result = run("SASRec", "toy", epochs=1, **parameters)
    data = prepare(data_path["data_path"], "SASRec", **{k: v for k, v in parameters.items() if k not in data_path})
    rows = [{target, *negatives} for lines in candidates(data, 2).values() for target, negatives in lines]
    counts = dict(zip(data.id_tokens["items"], data.popularity))
    expected = {
        "itemcoverage@5": len(set.union(*rows)) / data.n_items,
        "averagepopularity@5": np.mean([np.mean([counts[item] for item in row]) for row in rows]),
    }
    assert result["test_result"] == pytest.approx(expected, abs=1e-6)

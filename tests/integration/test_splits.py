"""Interactions on their way into the parts: filtered, ordered, split, or split already."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import prepare, rows, write_inter

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.training.prepare import PreparedData, build, training_histories

ALL = {"user_inter_num_interval": None, "item_inter_num_interval": None}
TOGETHER = {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "none"}
SECONDS = 1_400_000_000  # around here float32 knows one time in 128


def shop(n: int = 240, seed: int = 0, spread: int = 60, users: int = 12, items: int = 15) -> pd.DataFrame:
    """Users with interactions seconds apart, many at one time, some twice, in no order; users have five at least."""
    rng = np.random.default_rng(seed)
    user = rng.permutation(np.append(np.repeat(np.arange(users), 5), rng.integers(0, users, n - 5 * users)))
    return pd.DataFrame(
        {
            "user_id": user + 100,
            "item_id": rng.integers(0, items, n) + 500,
            "rating": rng.integers(1, 6, n),
            "timestamp": SECONDS + rng.integers(0, spread, n),
        }
    )


def pairs(data: PreparedData, part: int) -> list[tuple[str, str]]:
    """(user, item) of the rows of one part, in the data's own ids and in order of the rows."""
    feat = dataset_of(data.loaders[part]).inter_feat
    users, items = (np.array(data.id_tokens[name]) for name in ("users", "items"))
    return list(zip(users[feat["user_id"].numpy()], items[feat["item_id"].numpy()]))


def own(frame: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(frame["user_id"].astype(str), frame["item_id"].astype(str)))


# Order


@pytest.mark.parametrize("keep", ["first", "last"])
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_of_duplicates_the_first_or_last_is_kept_and_ties_stay_in_order_of_the_file(tmp_path, keep, seed):
    frame = shop(seed=seed, spread=10)
    write_inter(tmp_path, frame)
    data = prepare(tmp_path, rm_dup_inter=keep, **ALL)
    left = frame.sort_values("timestamp", kind="stable").drop_duplicates(["user_id", "item_id"], keep=keep)
    left = left.sort_index().sort_values("timestamp", kind="stable")
    sequences = {str(user): group["item_id"].astype(str).tolist() for user, group in left.groupby("user_id")}
    assert data.n_interactions == len(left)
    found = rows(data, 2)
    assert found == {user: (items[:-1], items[-1]) for user, items in sequences.items() if user in found}
    assert {user for user, items in sequences.items() if len(items) > 2} <= found.keys()


@pytest.mark.parametrize("model", ["BPR", "SASRec", "DIEN"])
def test_users_that_are_split_together_are_in_exact_order(tmp_path, model):
    """float32 times would put 20 interactions of every 100 here into another part."""
    frame = shop(seed=1, spread=1000)
    write_inter(tmp_path, frame)
    given = {"metrics": ["AUC"], "valid_metric": "AUC"} if model == "DIEN" else {}
    evaluated = {**TOGETHER, "mode": "uni2"} if model == "DIEN" else TOGETHER
    data = prepare(tmp_path, model, eval_args=evaluated, **given, **ALL)
    ordered = frame.sort_values("timestamp", kind="stable")
    if model != "BPR":  # a user's first interaction makes no row
        firsts = ordered.drop_duplicates("user_id").index
        ordered = ordered.drop(index=firsts)
    n = len(ordered)
    ends = [n - 2 * int(0.2 * n), n - int(0.2 * n)]
    parts = np.split(np.arange(n), ends)
    for part, places in enumerate(parts):
        found = pairs(data, part)
        expected = own(ordered.iloc[places])
        # Loaders for evaluation sort by user.
        assert found == expected if part == 0 and model != "DIEN" else sorted(found) == sorted(expected)


def test_the_temporal_experiment_trains_on_nothing_of_the_future(tmp_path, caplog):
    """Targets of the parts follow each other in time, histories are complete; of places in a sequence it is said."""
    frame = shop(seed=2, n=600, spread=10**6, items=30)
    write_inter(tmp_path, frame)
    config = RunConfig("DiffuRecSys", "toy", {"data_path": str(tmp_path), "gpu_id": "", **ALL}, (), "temporal")
    data = PreparedData(config)
    assert "the same 'timestamp'" not in caplog.text
    times = frame.sort_values("timestamp").groupby("user_id").cumcount()
    when = {(str(u), int(n)): t for u, n, t in zip(frame["user_id"], times.sort_index(), frame["timestamp"])}
    users = np.array(data.id_tokens["users"])
    parts = []
    for loader in data.loaders:
        feat = dataset_of(loader).inter_feat
        parts.append([when[user, int(n)] for user, n in zip(users[feat["user_id"].numpy()], feat["item_length"])])
    assert max(parts[0]) <= min(parts[1]) and max(parts[1]) <= min(parts[2])
    assert [len(part) for part in parts] == [588 - 2 * 58, 58, 58]

    few = frame.drop_duplicates("timestamp").head(150)  # one of them is more than the share that is told of
    write_inter(tmp_path, few)
    PreparedData(RunConfig("DiffuRecSys", "toy", {"data_path": str(tmp_path), "gpu_id": "", **ALL}, (), "temporal"))
    assert "the same 'timestamp'" not in caplog.text

    frame["timestamp"] = times.sort_index() + 1
    write_inter(tmp_path, frame)
    PreparedData(RunConfig("DiffuRecSys", "toy", {"data_path": str(tmp_path), "gpu_id": "", **ALL}, (), "temporal"))
    assert "the same 'timestamp'" in caplog.text and "not places in a sequence" in caplog.text


def test_random_order_needs_no_times(tmp_path):
    frame = shop().drop(columns="timestamp")
    write_inter(tmp_path, frame)
    data = prepare(tmp_path, "BPR", eval_args={"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO"}, **ALL)
    assert sorted(pairs(data, 0) + pairs(data, 1) + pairs(data, 2)) == sorted(own(frame))
    assert data.n_time_ties == 0
    histories = dict(pair for users, lists in training_histories(data.config) for pair in zip(users, lists))
    assert histories == {str(u): g["item_id"].astype(str).tolist() for u, g in frame.groupby("user_id")}
    with pytest.raises(UserError, match="has no column 'timestamp:float'"):
        prepare(tmp_path, "BPR", **ALL)


# Filters and labels


def test_columns_of_filters_are_loaded_and_no_feature(tmp_path):
    frame = shop()
    write_inter(tmp_path, frame)
    (tmp_path / "toy" / "toy.item").write_text(
        "item_id:token\tprice:float\n" + "".join(f"{item}\t{item % 10}\n" for item in range(500, 515))
    )
    data = prepare(tmp_path, val_interval={"rating": "[3,inf)", "price": "(1,8]"}, **ALL)
    left = frame[(frame["rating"] >= 3) & frame["item_id"].mod(10).between(2, 8)]
    assert data.n_interactions == len(left)
    dataset = dataset_of(data.loaders[0])
    assert not {"rating", "price"} & {*dataset.field2type, *dataset.inter_feat.columns} and dataset.item_feat is None


def test_interactions_are_kept_by_lists_of_ids(tmp_path):
    """Of columns that are loaded for that alone, and of users and items; numbers are the ids that they show."""
    frame = shop()
    write_inter(tmp_path, frame)
    (tmp_path / "toy" / "toy.item").write_text(
        "item_id:token\tshelf:token\ttags:token_seq\n" + "".join(f"{i}\t{i % 3}\ta b\n" for i in range(500, 515))
    )
    some = frame["item_id"].unique()[:9].tolist()
    for wanted, left in {
        "shelf: [0, '2']": frame["item_id"].mod(3) != 1,
        "item_id: [" + ", ".join(map(str, some)) + "]": frame["item_id"].isin(some),
        "user_id: [100, '101']": frame["user_id"].isin([100, 101]),
    }.items():
        data = prepare(tmp_path, val_interval=yaml.safe_load(f"{{{wanted}}}"), **ALL)
        assert 0 < data.n_interactions == left.sum() < len(frame), wanted
        assert "shelf" not in dataset_of(data.loaders[0]).field2type
    for wrong, says in (({"tags": ["a"]}, "which are lists"), ({"shelf": [0.5]}, "0.5 is no id: write ids as text")):
        with pytest.raises(UserError, match=says):
            prepare(tmp_path, val_interval=wrong, **ALL)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"val_interval": {"stars": "[3,inf)"}},
            "val_interval names 'stars', which is no column of data set 'toy': it",
        ),
        ({"val_interval": {"rating": ["3"]}}, r"a column of floats, an interval such as \"\[3,inf\)\", got \['3'\]"),
        ({"val_interval": {"item_id": "[3,inf)"}}, r"a column of tokens, a list of ids such as \[a,b\], got '\[3,"),
        ({"threshold": {"stars": 3}}, "threshold names 'stars', which is no column of the interactions"),
    ],
)
def test_columns_that_are_not_there_are_named(tmp_path, parameters, message):
    write_inter(tmp_path, shop())
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, "FM", **parameters, **ALL)


JUDGED = {"eval_args": {"mode": "labeled"}, "metrics": ["AUC"], "valid_metric": "AUC"}


@pytest.mark.parametrize(
    ("model", "parameters", "message"),
    [
        ("FM", {}, "model FM is to learn from labels, and data set 'toy' has no column 'label'"),
        ("BPR", JUDGED, "model BPR is to be judged by labels, and data set 'toy' has no column 'label'"),
        ("BPR", {"threshold": {"rating": 4}}, "of which model BPR reads none"),
        ("DiffuRec", {"threshold": {"rating": 4}}, r"give --val_interval='\{rating: \"\[4,inf\)\"\}'"),
        ("FM", {"threshold": {"rating": 4}}, None),
        ("FM", {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}, None),
        ("BPR", {"threshold": {"rating": 4}, **JUDGED}, None),
        ("DIN", {"threshold": {"rating": 4}, "train_neg_sample_args": None}, None),
        ("BPR", {"train_neg_sample_args": None}, "model BPR learns from negatives, and train_neg_sample_args has none"),
        ("SASRec", {"train_neg_sample_args": None, "loss_type": "BPR"}, "model SASRec learns from negatives"),
        ("SASRec", {"train_neg_sample_args": None}, None),
        ("RecVAE", {"train_neg_sample_args": None}, None),
    ],
)
def test_labels_and_negatives_are_there_and_are_read(tmp_path, model, parameters, message):
    write_inter(tmp_path, shop())
    data = prepare(tmp_path, model, **parameters, **ALL)
    if message is None:
        build(data.config, dataset_of(data.loaders[0]))
        return
    with pytest.raises(UserError, match=message):
        build(data.config, dataset_of(data.loaders[0]))


def test_a_loss_that_is_no_plain_function_is_let_through(tmp_path, monkeypatch):
    """A compiled one, say: what it reads cannot be told, and its training tells."""
    write_inter(tmp_path, shop())
    data = prepare(tmp_path, "BPR", train_neg_sample_args=None, **ALL)
    model = data.config.model_class
    monkeypatch.setattr(model, "calculate_loss", functools.partialmethod(model.calculate_loss))
    build(data.config, dataset_of(data.loaders[0]))


def test_labels_in_the_file_are_loaded(tmp_path):
    frame = shop().rename(columns={"rating": "label"})
    frame["label"] = (frame["label"] > 3).astype(float)
    write_inter(tmp_path, frame)
    data = prepare(tmp_path, "FM", **ALL)
    build(data.config, dataset_of(data.loaders[0]))
    assert dataset_of(data.loaders[0]).inter_feat["label"].unique().tolist() == [0.0, 1.0]


# Parts that are missing


@pytest.mark.parametrize("model", ["BPR", "SASRec", "DiffuRecSys"])
@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        ({"LS": "test_only"}, (True, False, True)),
        ({"LS": "valid_only"}, (True, True, False)),
        ({"RS": [0.8, 0, 0.2]}, (True, False, True)),
        ({"RS": [1, 0, 0]}, (True, False, False)),
    ],
)
@pytest.mark.parametrize("mode", ["full", "uni3"])
def test_a_split_may_do_without_a_part(tmp_path, model, split, sizes, mode):
    write_inter(tmp_path, shop())
    data = prepare(tmp_path, model, eval_args={"split": split, "mode": mode}, **ALL)
    assert tuple(len(loader) > 0 for loader in data.loaders) == sizes


@pytest.mark.parametrize(
    ("model", "split", "needed"),
    [
        ("BPR", "valid_and_test", 3),
        ("SASRec", "valid_and_test", 4),
        ("BPR", "test_only", 2),
        ("SASRec", "test_only", 3),
    ],
)
def test_users_with_too_few_interactions(tmp_path, model, split, needed):
    frame = pd.DataFrame({"user_id": np.repeat([1, 2], needed - 1), "item_id": 5, "timestamp": 1.0})
    frame["item_id"] += frame.index
    write_inter(tmp_path, frame)
    with pytest.raises(UserError, match=f"users need at least {needed} interactions"):
        prepare(tmp_path, model, eval_args={"split": {"LS": split}}, **ALL)
    frame = pd.DataFrame({"user_id": np.repeat([1, 2], needed), "item_id": 5, "timestamp": 1.0})
    frame["item_id"] += frame.index
    write_inter(tmp_path, frame)
    prepare(tmp_path, model, eval_args={"split": {"LS": split}}, **ALL)


# Files that are split already


def write_parts(folder: Path, parts: dict[str, pd.DataFrame], kinds: dict[str, str] | None = None) -> None:
    kinds = {"user_id": "token", "item_id": "token", "item_id_list": "token_seq", **(kinds or {})}
    (folder / "toy").mkdir(exist_ok=True)
    for name, frame in parts.items():
        header = {column: f"{column}:{kinds.get(column, 'float')}" for column in frame}
        frame.rename(columns=header).to_csv(folder / "toy" / f"toy.{name}.inter", sep="\t", index=False)


def with_histories(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Three files in which every interaction has its history: the last of each user tests, the one before validates."""
    found: dict[str, list[tuple[Any, str, Any]]] = {"train": [], "valid": [], "test": []}
    for user, group in frame.sort_values("timestamp", kind="stable").groupby("user_id"):
        items = group["item_id"].tolist()
        for place in range(1, len(items)):
            part = "test" if place == len(items) - 1 else "valid" if place == len(items) - 2 else "train"
            found[part].append((user, " ".join(map(str, items[:place])), items[place]))
    return {part: pd.DataFrame(rows_, columns=["user_id", "item_id_list", "item_id"]) for part, rows_ in found.items()}


SPLIT = {"benchmark_filename": ["train", "valid", "test"]}


@pytest.mark.parametrize("model", ["SASRec", "DiffuRecSys", "Caser"])  # Caser reads the padded length
def test_given_histories_are_taken_as_they_are(tmp_path, model):
    """The rows are those of the whole file, whose parts they are; the items have one numbering, said or not."""
    frame = shop()
    write_parts(tmp_path, with_histories(frame))
    write_inter(tmp_path, frame, name="whole")
    found = prepare(tmp_path, model, MAX_ITEM_LIST_LENGTH=6, **SPLIT)
    whole = prepare(tmp_path, model, name="whole", MAX_ITEM_LIST_LENGTH=6, **ALL)
    for part in (1, 2):
        assert rows(found, part) == rows(whole, part)
        assert max(map(len, (history for history, _ in rows(found, part).values()))) == 6
    assert pairs(found, 0) == own(with_histories(frame)["train"])
    batch = next(iter(found.loaders[0]))
    assert batch["item_id_list"].shape[1] == 6
    histories = dict(pair for users, lists in training_histories(found.config) for pair in zip(users, lists))
    ordered = frame.sort_values("timestamp", kind="stable")
    assert histories == {str(u): g["item_id"].astype(str).tolist() for u, g in ordered.groupby("user_id")}


@pytest.mark.parametrize("timed", [True, False])
def test_without_histories_a_users_earlier_interactions_are_the_history(tmp_path, timed):
    frame = shop()
    ordered = frame.sort_values("timestamp", kind="stable")
    from_end = ordered.groupby("user_id").cumcount(ascending=False)
    files = {"train": ordered[from_end > 1], "valid": ordered[from_end == 1], "test": ordered[from_end == 0]}
    if timed:  # the order of the files says nothing then
        files = {name: part.sample(frac=1, random_state=0).sort_values("timestamp") for name, part in files.items()}
    columns = ["user_id", "item_id", "timestamp"] if timed else ["user_id", "item_id"]
    write_parts(tmp_path, {name: part[columns] for name, part in files.items()})
    write_inter(tmp_path, frame, name="whole")
    found = prepare(tmp_path, "SASRec", **SPLIT)
    whole = prepare(tmp_path, "SASRec", name="whole", **ALL)
    if not timed:
        assert rows(found, 1) == rows(whole, 1) and rows(found, 2) == rows(whole, 2)
    popularity = {item: n for item, n in zip(found.id_tokens["items"], found.popularity) if n}
    assert popularity == files["train"]["item_id"].astype(str).value_counts().to_dict()
    assert found.n_interactions == len(frame)


def test_interactions_without_a_history_are_told_and_left_out(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "recbole_diffurec")
    one = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [5, 6, 5, 7]})
    two = pd.DataFrame({"user_id": [1, 3], "item_id": [7, 5]})
    write_parts(tmp_path, {"train": one, "valid": two, "test": two})
    data = prepare(tmp_path, "SASRec", **SPLIT)
    assert pairs(data, 1) == [("1", "7")] and pairs(data, 2) == [("3", "5"), ("1", "7")][::-1]
    assert "left out are 1 validation and 0 test interactions that are their user's first" in caplog.text


def test_the_three_files_are_the_three_parts_of_a_general_model(tmp_path):
    parts = {name: frame.drop(columns="item_id_list") for name, frame in with_histories(shop()).items()}
    write_parts(tmp_path, parts)
    data = prepare(tmp_path, "BPR", **SPLIT)
    for part, frame in enumerate(parts.values()):
        assert sorted(pairs(data, part)) == sorted(own(frame))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id_list": ["", "5"]}, "'toy.test.inter' has 0 values in 'item_id_list' of interaction 1: a history"),
        ({"item_id_list": None}, "toy.test.inter"),
    ],
)
def test_histories_that_are_none_are_refused(tmp_path, change, message):
    frame = pd.DataFrame({"user_id": [1, 2], "item_id_list": ["5", "5 6"], "item_id": [6, 7]})
    write_parts(tmp_path, {"train": frame, "valid": frame, "test": frame.assign(**change)})
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, "SASRec", **SPLIT)


def test_split_files_that_are_missing_or_empty_are_named(tmp_path):
    frame = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [5, 6, 5, 7]})
    write_parts(tmp_path, {"train": frame, "valid": frame})
    with pytest.raises(UserError, match=r"toy\.test\.inter', which benchmark_filename names, does not exist"):
        prepare(tmp_path, "BPR", **SPLIT)
    write_parts(tmp_path, {"test": frame.drop_duplicates("user_id").assign(user_id=[8, 9])})
    with pytest.raises(UserError, match=r"leaves no test sample: 'toy\.test\.inter' needs interactions"):
        prepare(tmp_path, "SASRec", **SPLIT)


def test_a_history_column_that_is_no_list_is_refused(tmp_path):
    frame = pd.DataFrame({"user_id": [1, 2], "item_id_list": ["5", "6"], "item_id": [6, 7]})
    write_parts(tmp_path, dict.fromkeys(("train", "valid", "test"), frame), {"item_id_list": "token"})
    with pytest.raises(UserError, match="'item_id_list' of data set 'toy' must be a list of values, not a token"):
        prepare(tmp_path, "SASRec", **SPLIT)


# Popularity


@pytest.mark.parametrize(
    "parameters", [{}, {"eval_args": TOGETHER}, {"eval_args": {"split": {"LS": "test_only"}}}], ids=str
)
@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_popularity_counts_what_is_not_held_out(tmp_path, model, parameters):
    frame = shop()
    write_inter(tmp_path, frame)
    data = prepare(tmp_path, model, **parameters, **ALL)
    counts = frame["item_id"].astype(str).value_counts()
    held_out = pd.Series([item for part in (1, 2) for _, item in pairs(data, part)]).value_counts()
    expected = counts.sub(held_out, fill_value=0).astype(int).to_dict()
    assert dict(zip(data.id_tokens["items"][1:], data.popularity[1:].tolist())) == expected
    assert torch.equal(torch.from_numpy(dataset_of(data.loaders[0]).popularity), torch.from_numpy(data.popularity))

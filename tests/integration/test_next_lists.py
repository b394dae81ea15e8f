"""Lists of the next items: training on what follows and on nothing held out, lists from files and from Python."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from recbole.utils import init_seed

from recbole_diffurec import Recommender, UserError, cli
from recbole_diffurec.data.rows import FollowingItems
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.models.scores import ItemScores
from recbole_diffurec.models.sequential import SequentialModel
from recbole_diffurec.training.prepare import PreparedData, build

HISTORIES = [["50", "172", "1"], ["1"], ["7", "50", "nothing", "181"], []]


# Training


def prepared(**parameters: Any) -> tuple[RunConfig, PreparedData]:
    config = RunConfig("MaskedDiffRec", "ml-100k", {**TINY, "n_slots": 3, "train_batch_size": 256, **parameters})
    return config, PreparedData(config)


@pytest.mark.parametrize("split", [{}, {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "none"}])
def test_what_follows_a_row_is_of_its_user_and_of_training(split, workdir):
    _, data = prepared(eval_args={**RunConfig("MaskedDiffRec", "ml-100k", TINY)["eval_args"], **split})
    rows = dataset_of(data.loaders[0]).inter_feat
    following = FollowingItems(rows, "item_id_list")(rows.target, 3)
    first = dict(zip(rows.target.tolist(), rows.first.tolist()))
    items = rows.flat["item_id_list"]
    for number, found in zip(rows.target.tolist(), following.tolist()):
        expected = []
        while len(expected) < 3 and first.get(number + len(expected)) == first[number]:
            expected.append(int(items[number + len(expected)]))
        assert found == expected + [0] * (3 - len(expected))
    assert (following[:, 0] > 0).all() and (following[:, 1] == 0).any() and (following[:, 2] > 0).any()


def test_training_reads_nothing_that_is_held_out(workdir):
    """The loss of all rows is the same whatever the items of validation and test are."""
    losses = []
    for change in (False, True):
        _, data = prepared(user_inter_num_interval="[5,20]", train_batch_size=64)
        dataset = dataset_of(data.loaders[0])
        held_out = torch.cat([dataset_of(loader).inter_feat.target for loader in data.loaders[1:]])
        if change:
            items = dataset.inter_feat.flat["item_id_list"]
            items[held_out] = 1 + items[held_out] % (data.n_items - 1)
        network, _ = build(data.config, dataset)
        init_seed(0, True)
        losses.append([network.calculate_loss(batch).item() for batch in data.loaders[0]])
    assert len(losses[0]) > 2 and losses[0] == losses[1]


# Lists


@pytest.fixture
def path(masked_checkpoint: Path) -> Path:
    return masked_checkpoint


@pytest.fixture
def recommender(path: Path) -> Recommender:
    return Recommender.load(path)


def test_lists_of_several_items(recommender):
    table = recommender.next_lists(HISTORIES, n=3, samples=6, k=4)
    assert list(table.columns) == ["user_id", "list", "rank", "item_id", "probability", "frequency", "popular"]
    assert table["user_id"].tolist() == [user for user, lists in enumerate((4, 4, 4, 1)) for _ in range(3 * lists)]
    assert set(table["item_id"]) <= set(recommender.items[1:])
    for (user, _), items in table.groupby(["user_id", "list"]):
        assert items["rank"].tolist() == [1, 2, 3] and items["item_id"].nunique() == 3
        assert items["probability"].nunique() == (user < 3) and (items["popular"] == (user == 3)).all()
    known = table[~table["popular"]]
    firsts = known[known["rank"] == 1]
    assert all(of_user["probability"].is_monotonic_decreasing for _, of_user in firsts.groupby("user_id"))
    alone = recommender.next_lists(HISTORIES[2:3], n=3, samples=6, k=4)
    assert alone["item_id"].tolist() == table.loc[table["user_id"] == 2, "item_id"].tolist()
    assert not len(recommender.next_lists([], n=2)) and list(recommender.next_lists([]).columns) == list(table.columns)


def test_frequencies_are_shares_of_the_samples(path, recommender):
    """With all samples given, each item's frequency is how many lists hold it, unless a list came twice."""
    table = recommender.next_lists(HISTORIES[:1], n=2, samples=50, k=50)
    assert table["list"].max() == 50  # all different
    counted = table.groupby("item_id")["frequency"].agg(["size", "first"])
    np.testing.assert_allclose(counted["size"] / 50, counted["first"])
    greedy = Recommender.load(path, sampling_temperature=0.0)
    (best,) = [lists for _, lists in greedy.next_lists(HISTORIES[:1], n=2, samples=5).groupby("list")]
    assert (best["frequency"] == 1).all()


def test_seen_items_and_candidates_are_kept_to(recommender):
    candidates = ["50", "100", "181", "258"]
    table = recommender.next_lists(HISTORIES, n=3, samples=5, exclude_seen=True, candidates=candidates)
    assert set(table["item_id"]) <= set(candidates)
    for user, history in enumerate(HISTORIES):
        assert not set(history) & set(table.loc[table["user_id"] == user, "item_id"])
    assert table.groupby(["user_id", "list"]).size().loc[2].tolist() == [2] * 2  # of 100 and 258, in either order


def test_places_of_a_list_that_has_too_few_items_to_choose_from_follow_each_other(path):
    """Whichever slots stay empty, a list is known again, by the likelier of the ways in which it was filled."""
    recommender = Recommender.load(path, fill_order="random")
    for candidates, different in ((["258"], 1), (["100", "258"], 2)):
        table = recommender.next_lists(HISTORIES[:1], n=3, samples=40, k=40, candidates=candidates)
        lists = [of_list for _, of_list in table.groupby("list")]
        assert len(lists) == different and all(one["rank"].tolist() == list(range(1, different + 1)) for one in lists)
        assert len({tuple(one["item_id"]) for one in lists}) == different
        probabilities = [one["probability"].iloc[0] for one in lists]
        assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize("asked", [[], ["--samples=3"], ["--next=2"]])
def test_scores_that_are_no_numbers_are_refused_and_nothing_is_written(path, workdir, asked, monkeypatch, capsys):
    """As of weights or a guidance too large; the rows would be missing, or in any order."""
    monkeypatch.setattr(ItemScores, "query", lambda self, x: x * float("nan"))
    Path("in.csv").write_text("user_id,items\n1,50 172\n")
    Path("out.csv").write_text("kept\n")
    assert cli.main(["recommend", str(path), "--input=in.csv", "--output=out.csv", *asked]) == 2
    assert "scores are no numbers (nan), so that nothing can be ranked" in capsys.readouterr().err
    assert Path("out.csv").read_text() == "kept\n"
    if not asked:
        assert cli.main(["evaluate", str(path)]) == 2
        assert "scores are no numbers (nan)" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["--sampling_steps=1", "--fill_order=random", "--sampling_temperature=0.5"])
def test_what_lists_alone_read_is_refused_without_them(path, workdir, given, capsys):
    Path("in.csv").write_text("user_id,items\n1,50 172\n")
    command = ["recommend", str(path), "--input=in.csv", "--output=out.csv", given]
    for refused in (command, ["evaluate", str(path), given]):
        assert cli.main(refused) == 2
        assert "leave it out, or recommend with --next or --samples" in capsys.readouterr().err
    assert not Path("out.csv").exists()
    assert cli.main([*command, "--samples=2"]) == 0 == cli.main([*command, "--next=2"])


def test_lists_from_file_to_file(path, recommender, workdir, capsys):
    Path("in.jsonl").write_text(
        "".join(json.dumps({"user_id": f"u{i}", "items": items}) + "\n" for i, items in enumerate(HISTORIES[:3]))
    )
    arguments = ["--input=in.jsonl", "--next=3", "--samples=6", "--k=4"]
    assert cli.main(["recommend", str(path), "--output=out.csv", *arguments]) == 0
    assert "3 users, 36 rows" in capsys.readouterr().out
    expected = recommender.next_lists(HISTORIES[:3], n=3, samples=6, k=4, users=["u0", "u1", "u2"])
    pd.testing.assert_frame_equal(pd.read_csv("out.csv", dtype={"item_id": str}), expected, check_dtype=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--next=4"], "next must be an integer from 1 to the 3 slots that the model was trained with, got 4"),
        (["--next=0"], "3 slots that the model was trained with, got 0: give one of these"),
        (["--next=2", "--samples=0"], "samples must be an integer of at least 1, got 0"),
        (["--next=2", "--diversity=0.5", "--samples=3"], "diversity spreads a list of single items"),
        (["--next=2", "--sampling_steps=4"], "sampling_steps must be from 1 to n_slots (3), got 4"),
    ],
)
def test_what_cannot_be_asked_is_refused(path, workdir, arguments, message, capsys):
    Path("in.csv").write_text("user_id,items\n1,50 172\n")
    assert cli.main(["recommend", str(path), "--input=in.csv", "--output=out.csv", *arguments]) == 2
    assert message in capsys.readouterr().err and not Path("out.csv").exists()


def test_models_of_the_next_item_alone_refuse(recommender):
    other = copy.copy(recommender)
    other.network = SequentialModel
    with pytest.raises(UserError, match="knows the next item alone and draws no lists of several"):
        other.next_lists(HISTORIES)


def test_lists_say_what_else_is_known_of_their_items_and_why(path, recommender, workdir):
    Path("in.jsonl").write_text(json.dumps({"user_id": "u", "items": HISTORIES[0]}) + "\n")
    arguments = ["--input=in.jsonl", "--output=out.jsonl", "--next=2", "--k=3", "--explain"]
    assert cli.main(["recommend", str(path), *arguments]) == 0
    table = pd.read_json("out.jsonl", lines=True)
    assert len(table) == 6 and all(set(map(str, because)) <= set(HISTORIES[0]) for because in table["because"])
    titles = recommender.next_lists(HISTORIES[:1], k=1, columns=["title"])
    single = recommender.recommend(HISTORIES[:1], k=10_000, columns=["title"]).set_index("item_id")["title"]
    assert titles["title"].tolist() == single[titles["item_id"]].tolist()
    with pytest.raises(UserError, match="no such thing"):
        recommender.next_lists(HISTORIES, columns=["no such thing"])

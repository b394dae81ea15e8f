"""From a trained model to recommendations, by file and from Python."""

import io
import json
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY

import recbole_diffurec
from recbole_diffurec import Recommender, UserError, cli, run
from recbole_diffurec.host.dataset import Chronological
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.inference.lists import spread_over
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.load import load_data_and_model
from recbole_diffurec.training.prepare import PreparedData

HISTORIES = [["50", "172", "1"], ["1"], ["7", "50", "nothing", "181", "7", "100", "98", "56", "12", "22", "64"], []]


@pytest.fixture(scope="module")
def path(trained) -> Path:
    return trained["DiffuRecSys"]


@pytest.fixture(scope="module")
def recommender(path) -> Recommender:
    return Recommender.load(path)


def test_lists_for_invented_histories(path, monkeypatch):
    monkeypatch.setattr(Chronological, "__init__", None)  # a checkpoint is all that is needed
    recommender = Recommender.load(path)
    table = recommender.recommend(HISTORIES, k=5)
    assert list(table.columns) == ["user_id", "rank", "item_id", "score", "popular"]
    assert table["user_id"].tolist() == [user for user in range(4) for _ in range(5)]
    assert table["rank"].tolist() == [1, 2, 3, 4, 5] * 4
    assert all(group["score"].is_monotonic_decreasing for _, group in table.groupby("user_id"))
    assert set(table["item_id"]) <= set(recommender.items[1:])
    assert table.groupby("user_id")["popular"].all().tolist() == [False, False, False, True]
    assert recommender.unknown(HISTORIES) == 1
    alone = pd.concat([recommender.recommend([history], k=5) for history in HISTORIES])
    assert alone["item_id"].tolist() == table["item_id"].tolist()
    np.testing.assert_allclose(alone["score"].astype(float), table["score"].astype(float), rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"epochs": 7}, "leave it out"),
        ({"learning_rate": 0.5}, "leave it out"),
        ({"ema_decay": 0.5}, "leave it out"),
        ({"topk": [3], "valid_metric": "NDCG@3"}, "give k"),
        ({"mask_seen": True}, "give exclude_seen"),
    ],
)
def test_what_lists_do_not_read_is_refused(path, given, remedy):
    name = next(iter(given))
    with pytest.raises(UserError, match=rf"^{name} would have no effect, .*: {remedy}$"):
        Recommender.load(path, **given)
    if remedy == "leave it out":  # an evaluation reads the others
        with pytest.raises(UserError, match=rf"^{name} would have no effect, because training alone reads it"):
            recbole_diffurec.evaluate(path, **given)


def test_the_sampled_softmax_of_training_may_be_said_again(workdir):
    small = {"hidden_size": 16, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 10, "gpu_id": "", "show_progress": False}
    trained = run("CausalRec", "ml-100k", epochs=1, sampled_softmax=64, **small)["checkpoint"]
    assert len(Recommender.load(trained, sampled_softmax=64).recommend(HISTORIES[:1], k=3)) == 3
    with pytest.raises(UserError, match=r"^sampled_softmax would have no effect, .*trained with 64, got 32"):
        Recommender.load(trained, sampled_softmax=32)


def test_what_a_model_was_trained_with_may_be_said_again(path):
    trained = Recommender.load(path).config
    same = {name: trained[name] for name in ("epochs", "learning_rate", "topk", "metrics", "mask_seen")}
    assert len(Recommender.load(path, **same).recommend(HISTORIES[:1], k=3)) == 3


def test_seen_items_and_candidates(recommender):
    everything = recommender.recommend(HISTORIES, k=10_000, exclude_seen=True)
    for user, history in enumerate(HISTORIES):
        got = everything[everything["user_id"] == user]["item_id"]
        known = {item for item in history if item in recommender.items[1:]}
        assert len(got) == len(recommender.items) - 1 - len(known) and not known & set(got)
    few = recommender.recommend(HISTORIES[:2], k=10, candidates=["50", "100", "no such item"], exclude_seen=True)
    assert recommender.recommend(HISTORIES[:2], k=10, candidates={"50", "100"}, exclude_seen=True).equals(few)
    assert few["item_id"].tolist()[:1] == ["100"] and set(few[few["user_id"] == 1]["item_id"]) == {"50", "100"}


def test_the_lists_are_those_of_the_evaluation(recommender):
    """A test user's history, given as ids, has the scores that RecBole's evaluation ranks."""
    data = PreparedData(recommender.config)
    test = dataset_of(data.loaders[2])
    rows = test[np.arange(20)]
    items = recommender.items
    histories = [
        [items[i] for i in sequence[:length]] for sequence, length in zip(rows["item_id_list"], rows["item_length"])
    ]
    table = recommender.recommend(histories, k=5)
    scores = recommender.network.full_sort_predict(rows)
    expected = scores.topk(5).indices
    assert table["item_id"].tolist() == [items[i] for i in expected.flatten()]


def test_samples_agree_where_lambda_is_small_and_spread_where_it_is_large(path, recommender):
    plain = recommender.recommend(HISTORIES, k=5)
    small = recommender.recommend(HISTORIES, k=5, samples=6)
    assert small["item_id"].tolist()[:15] == plain["item_id"].tolist()[:15]
    assert (small["frequency"] == 1).all() and (small["spread"] < 0.05).all()
    large = Recommender.load(path, lambda_uncertainty=30.0).recommend(HISTORIES, k=5, samples=6)
    # With one item in the history, cross-attention has nothing to choose from, whatever the noise is.
    longer = large["user_id"].isin([0, 2])
    assert large[longer]["spread"].min() > 10 * small["spread"].max()
    assert large["frequency"].between(0, 1).all() and large[longer]["frequency"].min() < 1
    with pytest.raises(UserError, match="diversity spreads a list over samples"):
        recommender.recommend(HISTORIES, diversity=0.5)


def test_diversity_covers_more_samples():
    """Two modes, five samples to one: the list of scores holds the first alone, the diverse one both."""
    own = np.array([[[1, 2, 3]]] * 5 + [[[7, 8, 9]]])
    scores = np.array([[-np.inf, 10.0, 9.0, 8.0, 0.0, 0.0, 0.0, 5.0, 4.0, 3.0]])
    assert spread_over(own, scores, 0.0).tolist() == [[1, 2, 3]]
    assert spread_over(own, scores, 1.0).tolist() == [[1, 2, 3]]  # the first mode still has most samples
    few = np.array(
        [[-np.inf, 10.0, *[-np.inf] * 5, 5.0, -np.inf, -np.inf]]
    )  # two items are allowed, padding ends a list
    assert spread_over(own, few, 0.5).tolist() == spread_over(own, few, 1.0).tolist() == [[1, 7, 0]]
    agreeing = np.array([[[3, 1, 2]]] * 4)
    assert spread_over(agreeing, scores, 1.0).tolist() == [[1, 2, 3]]  # nothing to spread: the order of the scores
    balanced = np.array([[[1, 2, 3]]] * 3 + [[[7, 8, 9]]] * 3)
    assert spread_over(balanced, scores, 0.0).tolist() == [[1, 2, 3]]
    assert spread_over(balanced, scores, 0.9).tolist()[0][:2] == [1, 7]


@pytest.mark.parametrize("diversity", [0.0, 0.5, 1.0])
def test_samples_of_few_candidates_and_unknown_histories(recommender, diversity):
    options = {"k": 10, "samples": 3, "diversity": diversity, "exclude_seen": True}
    table = recommender.recommend([["50", "172"], []], candidates=["50", "100", "181"], **options)
    known, unknown = table[table["user_id"] == 0], table[table["user_id"] == 1]
    assert sorted(known["item_id"]) == ["100", "181"] and known["rank"].tolist() == [1, 2]
    assert sorted(unknown["item_id"]) == ["100", "181", "50"] and unknown["popular"].all()
    alone = recommender.recommend([[]], candidates=["50", "100", "181"], **options)
    assert list(alone.columns) == list(table.columns) == list(recommender.recommend([], **options).columns)
    assert (alone["frequency"] == 1).all() and (alone["spread"] == 0).all()


def test_the_input_is_not_overwritten(path, workdir, capsys):
    Path("x.csv").write_text("user_id,items\nu,50\n")
    assert cli.main(["recommend", str(path), "--input=x.csv", "--output=./x.csv"]) == 2
    assert "is read as well" in capsys.readouterr().err and Path("x.csv").read_text().endswith("u,50\n")


def test_many_threads_get_what_one_gets(recommender):
    expected = recommender.recommend(HISTORIES, k=5)
    found = []
    threads = [threading.Thread(target=lambda: found.append(recommender.recommend(HISTORIES, k=5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(table.equals(expected) for table in found)


def write_inputs() -> None:
    rows = [(f"u{i}", item, time) for i, history in enumerate(HISTORIES) for time, item in enumerate(history)]
    shuffled = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]).sample(frac=1, random_state=0)
    shuffled.to_csv("events.csv", index=False)
    shuffled.set_axis(["user_id:token", "item_id:token", "timestamp:float"], axis=1).to_csv(
        "events.inter", index=False, sep="\t"
    )
    users = [f"u{i}" for i in range(4)]
    lines = [json.dumps({"user_id": user, "items": history}) for user, history in zip(users, HISTORIES)]
    Path("lists.jsonl").write_text("\n".join(lines) + "\n")
    pd.DataFrame({"user_id": users, "items": [" ".join(h) for h in HISTORIES]}).to_csv("lists.csv", index=False)


@pytest.mark.parametrize("source", ["events.csv", "events.inter", "lists.jsonl", "lists.csv", "lists.parquet"])
def test_every_format_in_gives_the_same_lists(path, source, workdir, capsys):
    recommender = Recommender.load(path)
    write_inputs()
    if source == "lists.parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        pd.DataFrame({"user_id": [f"u{i}" for i in range(4)], "items": HISTORIES}).to_parquet(source)
    assert cli.main(["recommend", str(path), f"--input={source}", "--output=out.csv", "--k=5"]) == 0
    written = pd.read_csv("out.csv", dtype={"item_id": str})
    expected = recommender.recommend(HISTORIES, k=5, users=[f"u{i}" for i in range(4)])
    if source.startswith("events"):  # a user without an interaction has no row there
        expected = expected[expected["user_id"] != "u3"]
    merged = written.merge(expected, on=["user_id", "rank"], suffixes=("", "_expected"))
    assert len(merged) == len(expected) == len(written)
    assert (merged["item_id"] == merged["item_id_expected"]).all()
    assert "1 items of the histories are unknown to the model" in capsys.readouterr().out


def test_a_table_of_other_column_names_on_standard_output(path, recommender, workdir, capsys):
    rows = [
        f"{user},{item},2024-01-{day:02}"
        for user, history in enumerate(HISTORIES)
        for day, item in enumerate(history, 1)
    ]
    Path("bought.csv").write_text("\n".join(["customer,sku,ordered at", *rows]))
    named = ["--user=customer", "--item=sku", "--time=ordered at"]
    assert cli.main(["recommend", str(path), "--input=bought.csv", *named, "--k=5"]) == 0
    printed = pd.read_csv(io.StringIO(capsys.readouterr().out), dtype=str)
    expected = recommender.recommend(HISTORIES, k=5)
    asked = [str(user) for user, history in enumerate(HISTORIES) if history]
    expected = expected[expected["user_id"].astype(str).isin(asked)]
    assert printed["item_id"].tolist() == expected["item_id"].tolist()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_user_of_the_training_data(path, kind, workdir, capsys):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    assert cli.main(["recommend", str(path), f"--output=out.{kind}", "--k=3", "--exclude_seen"]) == 0
    read = {"csv": pd.read_csv, "jsonl": lambda p: pd.read_json(p, lines=True), "parquet": pd.read_parquet}[kind]
    table = read(f"out.{kind}")
    assert table["user_id"].nunique() == 380 and len(table) == 3 * 380
    assert "380 users, 1,140 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments,says",
    [
        (["--input=nothing.csv", "--output=o.csv"], "input 'nothing.csv' cannot be read (No such file or directory)"),
        (["--input=a.txt", "--output=o.csv"], "input 'a.txt' must end in one of .inter, .csv, .jsonl, .parquet"),
        (["--input=lists.csv", "--output=o.xlsx"], "output 'o.xlsx' must end in one of .csv, .jsonl, .parquet"),
        (["--input=lists.csv", "--output=/proc/o.csv"], "cannot be written"),
        (["--input=lists.csv", "--output=o.csv", "--k=0"], "k must be an integer of at least 1, got 0"),
        (["--input=empty.csv", "--output=o.csv"], "input 'empty.csv' holds no rows: give at least one history"),
        (["--input=names.csv", "--output=o.csv"], "has the columns a, b: it needs user_id"),
        (["--input=time.csv", "--output=o.csv"], "input 'time.csv' line 3 has 'soon' where 'timestamp' should be"),
        (["--input=lists.csv", "--output=o.csv", "--candidates=none.txt"], "none of the candidates"),
        (["--input=lists.csv", "--output=o.csv", "--hidden_size=32"], "do not fit the parameters given (hidden_size)"),
        (["--input=lists.csv", "--output=o.csv", "--samples=0"], "samples must be an integer of at least 1, got 0"),
        (["--input=lists.csv", "--output=o.csv", "--diversity=2"], "diversity must be a number from 0 to 1, got 2.0"),
        (["--input=lists.csv", "--output=o.csv", "--topk=3"], "topk would have no effect, because evaluation alone"),
        (["--output=o.csv", "--time=when"], "time names a column of the input: give --input with it, or leave it out"),
        (
            ["--input=names.csv", "--output=o.csv", "--user=b", "--item=c"],
            "has no column 'c' but a, b: name one with --item",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(path, arguments, says, workdir, capsys):
    write_inputs()
    Path("empty.csv").write_text("")
    Path("names.csv").write_text("a,b\n1,2\n")
    Path("time.csv").write_text("user_id,item_id,timestamp\n1,50,3\n1,7,soon\n")
    Path("none.txt").write_text("no-such-item\n")
    assert cli.main(["recommend", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert not Path("o.csv").exists() and not list(Path().glob(".*part"))


def test_a_model_that_reads_no_histories_is_refused(workdir):
    result = run("BPR", **{k: v for k, v in TINY.items() if k in ("epochs", "gpu_id", "user_inter_num_interval")})
    with pytest.raises(UserError, match=r"model 'BPR' in .* reads no histories"):
        Recommender.load(result["checkpoint"])


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "GRU4Rec"])
def test_recboles_sequential_models(model, workdir):
    sizes = {"inner_size": 32, "n_layers": 1, "n_heads": 2} if model != "GRU4Rec" else {}
    small = {k: v for k, v in TINY.items() if k not in ("n_layers", "n_heads", "sampling_steps")}
    result = run(model, **small, **sizes)
    table = Recommender.load(result["checkpoint"]).recommend(HISTORIES, k=4)
    assert len(table) == 16 and np.isfinite(table["score"].astype(float)).all()


def test_a_configuration_that_recbole_stumbles_over_is_one_sentence(trained, workdir):
    """It checks few of its parameters, and a checkpoint may have any."""
    state = checkpoint.load(trained["SASRec"])
    state["config"]["hidden_act"] = "unheard"
    checkpoint.save("a.pth", state)
    for load in (Recommender.load, load_data_and_model):
        with pytest.raises(UserError, match=r"building model 'SASRec' failed inside RecBole \(KeyError"):
            load("a.pth")

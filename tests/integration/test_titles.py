"""Titles and other columns of items: from a table to the checkpoint, and out of it in lists, pipes and the service."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import torch
from conftest import TINY, flags

from recbole_diffurec import Recommender, UserError, cli, run
from recbole_diffurec.host.attention import HostAttention
from recbole_diffurec.inference.items import ItemTable
from recbole_diffurec.models.last_attention import LastAttention
from recbole_diffurec.runtime import checkpoint

SMALL = {**TINY, "user_inter_num_interval": "[0,inf)", "item_inter_num_interval": "[0,inf)", "topk": [5, 10]}
COLUMNS = ["--user=customer", "--item=sku", "--time=ordered_at"]
HISTORY = ["50", "172", "1"]


def purchases() -> pd.DataFrame:
    draw = random.Random(0)
    rows = [
        (f"anna {user}", f"00{draw.randint(1, 12)}", f"2024-05-{day:02d}") for user in range(20) for day in range(1, 9)
    ]
    return pd.DataFrame(rows, columns=["customer", "sku", "ordered_at"])


def products() -> pd.DataFrame:
    items = range(1, 13)
    return pd.DataFrame({"sku": [f"00{n}" for n in items], "name": [f"Café {n}" for n in items], "price": items})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run on a DataFrame, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("shop"))
        own = {"user": "customer", "item": "sku", "time": "ordered_at", "items": products(), "title": "name"}
        result = run("DiffuRec", data=purchases(), name="shop", **own, **SMALL)
    assert (result["dataset"], result["n_users"], result["n_items"]) == ("shop", 20, 12)
    return Path(result["checkpoint"])


@pytest.fixture(scope="module")
def recommender(trained) -> Recommender:
    return Recommender.load(trained["DiffuRecSys"])


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


# Tables of one's own


def test_a_run_on_a_file_makes_its_data_set_once(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    purchases().to_csv("purchases.csv", index=False)
    arguments = ["--model=DiffuRec", "--dataset=purchases.csv", *COLUMNS, *flags(SMALL)]
    assert cli.main(arguments) == 0
    made = Path("dataset/purchases/purchases.inter").stat().st_mtime_ns
    first, messages = capsys.readouterr()
    assert "users         20" in messages and "DiffuRec on purchases" in first
    assert cli.main(arguments) == 0
    assert "was made of this table before" in capsys.readouterr().err
    assert Path("dataset/purchases/purchases.inter").stat().st_mtime_ns == made
    assert cli.main([*arguments, "--min_rating=3"]) == 2


def test_a_table_and_a_data_set_are_not_both_given(workdir: Path) -> None:
    with pytest.raises(UserError, match=r"dataset 'mine' and data are both given"):
        run("DiffuRec", "mine", data=purchases())
    with pytest.raises(UserError, match=r"data must be a pandas DataFrame or the path of a file, got a dict"):
        run("DiffuRec", data={}, name="x")


def test_a_checkpoint_works_from_any_folder(shop: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Titles are in it, and the data of all users is found where it was."""
    Path("users.txt").write_text("anna 3\nnobody\n")
    arguments = [str(shop), "--output=out.jsonl.gz", "--columns=title,price", "--users=users.txt", "--k=3"]
    assert cli.main(["recommend", *arguments]) == 0
    assert "1 users, 3 rows" in (out := capsys.readouterr().out) and "1 of the users asked for have no history" in out
    rows = [json.loads(line) for line in gzip.decompress(Path("out.jsonl.gz").read_bytes()).splitlines()]
    assert [row["user_id"] for row in rows] == ["anna 3"] * 3
    assert all(
        row["title"] == f"Café {row['item_id'].strip('0') or row['item_id']}" for row in rows if row["price"] < 10
    )
    assert all(float(row["item_id"]) == row["price"] for row in rows)


def test_a_checkpoint_whose_data_is_gone_looks_where_the_defaults_do(shop: Path, workdir: Path) -> None:
    state = checkpoint.load(shop)
    assert Path(state["config"]["data_path"]).is_absolute()
    moved = {**state, "config": {**state["config"], "data_path": "/no/such/folder"}}
    checkpoint.save("moved.pth", moved)
    assert Recommender.load("moved.pth").config["data_path"].startswith("dataset")


def test_damaged_columns_are_named(shop: Path, workdir: Path) -> None:
    state = checkpoint.load(shop)
    checkpoint.save("cut.pth", {**state, "item_columns": {"title:token": ["x"]}})
    with pytest.raises(UserError, match=r"is damaged \(item_columns"):
        Recommender.load("cut.pth")


# Columns


def test_the_titles_of_ml_100k(recommender: Recommender) -> None:
    assert recommender.about_items.names == ["movie_title", "release_year", "class", "title"]
    table = recommender.recommend([HISTORY, []], k=5, columns=["title", "movie_title"])
    assert (table["title"] == table["movie_title"]).all() and table["title"].notna().all()
    one = recommender.recommend([HISTORY], k=1, candidates=["1"], columns=["title", "release_year"])
    assert one[["title", "release_year"]].to_numpy().tolist() == [["Toy Story", "1995"]]
    assert list(recommender.recommend([], columns=["title"]).columns)[-1] == "title"


@pytest.mark.parametrize(
    ("columns", "says"),
    [(["titel"], "did you mean 'title'?"), (["score"], "'score' would stand beside another"), (["xyz"], "movie_title")],
)
def test_columns_that_are_not_there_are_refused(recommender: Recommender, columns: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        recommender.recommend([HISTORY], columns=columns)
    assert says in str(caught.value)


def test_a_checkpoint_without_columns_says_where_they_come_from() -> None:
    with pytest.raises(UserError, match=r"no column 'title' of items, nor any other.*prepare --items"):
        ItemTable(np.array(["", "a"], dtype=object), {}).check(["title"])


def test_items_are_found_without_regard_to_case_and_accents() -> None:
    items = np.array(["[PAD]", "007", "x9"], dtype=object)
    about = ItemTable(items, {"name:token": ["", "Amélie à ÉTÉ", "Straße"], "price:float": ["", "2.5", ""]})
    for query, expected in {"AMELIE": [1], "été": [1], "STRASSE": [2], "X9": [2], "0": [1], "zz": []}.items():
        assert np.flatnonzero(about.found(query)).tolist() == expected, query
    assert list(about.rows(["title", "price"], ["x9", "007"])) == [
        {"title": "Straße", "price": None},
        {"title": "Amélie à ÉTÉ", "price": 2.5},
    ]


@pytest.mark.parametrize("output", ["out.csv", "out.csv.gz", "out.csv.zst", "out.jsonl", "out.parquet"])
def test_every_kind_of_output_has_the_columns(
    output: str, trained: Any, recommender: Recommender, workdir: Path
) -> None:
    Path("in.jsonl").write_text(json.dumps({"user_id": "a", "items": HISTORY}) + "\n" + '{"user_id": "b", "items": []}')
    arguments = [f"--output={output}", "--input=in.jsonl", "--columns=title", "--explain", "--k=4"]
    assert cli.main(["recommend", str(trained["DiffuRecSys"]), *arguments]) == 0
    if output.endswith("parquet"):
        table = pd.read_parquet(output)
    elif output.endswith("jsonl"):
        table = pd.DataFrame(map(json.loads, Path(output).read_text(encoding="utf-8").splitlines()))
    else:
        table = pd.read_csv(pa_stream(output), dtype=str, keep_default_na=False)
        table["because"] = table["because"].map(json.loads)
    expected = recommender.recommend([HISTORY, []], k=4, columns=["title"])
    assert table["title"].tolist() == expected["title"].tolist()
    assert [list(cell) for cell in table["because"]] == recommender.explain(expected, [HISTORY, []])
    assert table["user_id"].tolist() == ["a"] * 4 + ["b"] * 4


def pa_stream(path: str) -> Any:
    import pyarrow as pa

    return pa.input_stream(path)


# Pipes


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_recommend_in_a_pipe(
    kind: str, packed: bool, trained: Any, recommender: Recommender, workdir: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    frame = pd.DataFrame({"user_id": ["a"], "items": [HISTORY if kind == "parquet" else " ".join(HISTORY)]})
    buffer = io.BytesIO()
    if kind == "parquet":
        frame.to_parquet(buffer)
    else:
        text = frame.to_csv(index=False) if kind == "csv" else frame.to_json(orient="records", lines=True)
        buffer.write(gzip.compress(text.encode()) if packed else text.encode())
    piped(monkeypatch, buffer.getvalue())
    assert cli.main(["recommend", str(trained["DiffuRecSys"]), "--input=-", "--output=-", "--k=3"]) == 0
    out, err = capsys.readouterr()
    table = pd.read_csv(io.StringIO(out), dtype=str)
    assert table["item_id"].tolist() == recommender.recommend([HISTORY], k=3)["item_id"].tolist()
    assert "1 users, 3 rows" in err and list(Path().iterdir()) == []


def test_mistakes_in_a_pipe_name_it(
    trained: Any, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, says in ((b"a,b\n1,2\n", "standard input has the columns a, b"), (b"{\n", "standard input line 1"),
                          (b"a\tb\n1\t2\n", "standard input: tabs stand between its columns")):  # fmt: skip
        piped(monkeypatch, content)
        assert cli.main(["recommend", str(trained["DiffuRecSys"]), "--input=-", "--output=-"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and says in err


def test_none_of_the_users_is_there(trained: Any, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("users.txt").write_text("no such user\n")
    assert cli.main(["recommend", str(trained["SASRec"]), "--output=o.csv", "--users=users.txt"]) == 2
    assert "none of the users in 'users.txt' has a history" in capsys.readouterr().err and not Path("o.csv").exists()


# Items like others


@pytest.mark.parametrize("model", ["DiffuRec", "DiffuRecSys", "CL4SRec", "SASRec"])
def test_similar_items_are_those_of_the_largest_cosine(model: str, trained: Any) -> None:
    recommender = Recommender.load(trained[model])
    table = recommender.similar(["50", 1], k=5, columns=["title"])
    vectors = recommender.network.item_embedding.weight.detach().numpy()[: len(recommender.items)]
    unit = vectors[1:] / np.linalg.norm(vectors[1:], axis=1, keepdims=True)
    ids = recommender.items[1:].tolist()
    for item, rows in table.groupby("similar_to"):
        cosines = unit @ unit[ids.index(item)]
        cosines[ids.index(item)] = -np.inf
        best = np.argsort(-cosines)[:5]
        assert rows["item_id"].tolist() == [ids[place] for place in best]
        np.testing.assert_allclose(rows["cosine"], cosines[best], rtol=1e-5)
    assert table["rank"].tolist() == [1, 2, 3, 4, 5] * 2 and table["similar_to"].tolist() == ["50"] * 5 + ["1"] * 5
    assert len(recommender.similar(["50"], k=10**6)) == len(ids) - 1 and recommender.similar([]).empty


@pytest.mark.parametrize("model", ["DiffuRec", "DiffuRecSys", "CL4SRec", "SASRec"])
def test_why_an_item_is_what_the_last_position_attends_to(model: str, trained: Any) -> None:
    recommender = Recommender.load(trained[model])
    histories = [HISTORY, [], ["7", "7", "unknown", "100", "1", "50"], HISTORY[:1]]
    table = recommender.recommend(histories, k=3)
    because = recommender.explain(table, histories, n=2)
    of_users = [because[place : place + 3] for place in range(0, len(because), 3)]
    # The same for every item of a list; none of a history that is not known.
    assert [one[1:] == one[:1] * 2 for one in of_users] == [True] * 4
    assert [len(one[0]) for one in of_users] == [2, 0, 2, 1]
    attention = HostAttention if model == "SASRec" else LastAttention
    weights = attention(recommender.network).of(recommender._interaction([recommender._numbers([HISTORY])[0]]))[0]
    assert weights.sum().item() == pytest.approx(1, abs=1e-5) and (weights[len(HISTORY) :] == 0).all()
    order = weights.argsort(descending=True)[:2].tolist()
    assert of_users[0][0] == [HISTORY[place] for place in order]
    longest = recommender.config["MAX_ITEM_LIST_LENGTH"]
    long = [str(n) for n in range(1, longest + 4)]
    named = recommender.explain(recommender.recommend([long], k=1), [long], n=99)[0]
    assert sorted(named) == sorted(recommender.items[recommender._numbers([long])[0][-longest:]])
    # Others may use the model at the same time.
    assert {module.observer for module in recommender.network.modules() if hasattr(module, "observer")} <= {None}


def test_a_model_without_attention_names_the_nearest_of_the_history(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recbole_diffurec.inference.reasons.has_attention", lambda network: False)
    histories = [HISTORY, [], ["7", "7", "unknown", "100"]]
    table = recommender.recommend(histories, k=3)
    because = recommender.explain(table, histories, n=2)
    assert [len(one) for one in because] == [2] * 3 + [0] * 3 + [2] * 3
    likeness = recommender.similar(HISTORY, k=10**6).set_index(["similar_to", "item_id"])["cosine"]
    for item, named in zip(table["item_id"][:3], because):
        expected = sorted(HISTORY, key=lambda read: -(1.0 if read == item else likeness[read, item]))
        assert named == expected[:2]
    shuffled = table.iloc[::-1].reset_index(drop=True)
    assert recommender.explain(shuffled, histories, n=2) == because[::-1]


def test_the_command_prints_similar_items(trained: Any, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(trained["SASRec"])
    assert cli.main(["similar", path, "--items=50,1", "--k=2", "--columns=title"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert cli.main(["similar", path, '--items=["50"]', "--k=2", "--output=-"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("similar_to,rank,item_id,cosine\n50,1,") and out.count("\n") == 3
    assert cli.main(["similar", path, "--items= 50"]) == 2
    assert "item ' 50' is unknown to the model, which knows '50'" in capsys.readouterr().err


def test_a_model_without_a_table_of_items_is_refused(recommender: Recommender) -> None:
    other = copy.copy(recommender)
    other.network = torch.nn.Linear(2, 2)
    for ask in (lambda: other.similar(["50"]), lambda: other.explain(pd.DataFrame(), [])):
        with pytest.raises(UserError, match="model 'DiffuRecSys' has no table of item vectors"):
            ask()


# The service


def test_the_service_tells_fields(service: str, recommender: Recommender) -> None:
    assert requests.get(f"{service}/healthz", timeout=60).json()["fields"] == recommender.about_items.names
    body = {"histories": [HISTORY, []], "k": 3, "fields": ["title", "class"]}
    lists = requests.post(f"{service}/recommend", json=body, timeout=60).json()["lists"]
    expected = recommender.recommend([HISTORY, []], k=3, columns=["title", "class"])
    told = [item["fields"] for one in lists for item in one["items"]]
    assert told == expected[["title", "class"]].to_dict("records")
    plain = requests.post(f"{service}/recommend", json={**body, "fields": None}, timeout=60).json()["lists"]
    assert all("fields" not in item for one in plain for item in one["items"])
    wrong = requests.post(f"{service}/recommend", json={**body, "fields": ["titel"]}, timeout=60)
    assert wrong.status_code == 422 and "'title'" in wrong.text


def test_the_service_finds_items_by_title_and_id(service: str) -> None:
    def found(query: str, limit: int = 3) -> list[dict[str, Any]]:
        return requests.get(f"{service}/search", params={"query": query, "limit": limit}, timeout=60).json()

    assert found("tOy sTórY", 1) == [{"item_id": "1", "title": "Toy Story"}]
    popular = requests.get(f"{service}/items", params={"query": "17", "limit": 100}, timeout=60).json()
    rare = popular[-1]  # which has others with these digits before it
    assert found(rare, 1)[0]["item_id"] == rare and {"item_id": "117", "title": "Rock, The"} in found("117")
    assert len(found("", 3)) == 3 and found("no such item") == []

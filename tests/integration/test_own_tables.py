"""From people's own tables: what training reads, recommending reads alike, whatever its columns and ids are called."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_diffurec import Recommender, UserError, cli, run

TINY = {
    "epochs": 1, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1, "MAX_ITEM_LIST_LENGTH": 6, "topk": [3],
    "valid_metric": "NDCG@3", "show_progress": False, "gpu_id": "",
    "user_inter_num_interval": "[1,inf)", "item_inter_num_interval": "[1,inf)",
}  # fmt: skip
NAMES = {"USER_ID_FIELD": "session", "ITEM_ID_FIELD": "sku", "TIME_FIELD": "when"}
ITEMS = {"plain": [str(1000 + i) for i in range(10)], "odd": ["red hat", "a b", '"Q"', '12" mix', "007", "[x]", "é"]}


def sales(items: list[str]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (f"s{s}", items[i], 1_600_000_000 + 60 * t) for s in range(9) for t, i in enumerate(rng.permutation(len(items)))
    ]
    return pd.DataFrame(rows, columns=list(NAMES.values())).sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, tuple[Path, Recommender]]:
    folder = tmp_path_factory.mktemp("shop")
    found = {}
    for name, items in ITEMS.items():
        (folder / name).mkdir()
        lines = ["session:token\tsku:token\twhen:float", *("\t".join(map(str, row)) for row in sales(items).to_numpy())]
        (folder / name / f"{name}.inter").write_text("\n".join(lines), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            result = run("SASRec", name, data_path=str(folder), **TINY, **NAMES)
        found[name] = Path(result["checkpoint"]), Recommender.load(result["checkpoint"])
    return found


def lists(path: Path, source: str | None, capsys) -> tuple[pd.DataFrame, str]:
    """What the command writes, in order of users, and what it says."""
    output = Path(f"{source}.out.csv")
    arguments = [] if source is None else [f"--input={source}"]
    assert cli.main(["recommend", str(path), f"--output={output}", "--k=3", *arguments]) == 0
    said = capsys.readouterr()
    table = pd.read_csv(output, dtype=str).sort_values(["user_id", "rank"], ignore_index=True)
    return table.drop(columns="score"), said.out + said.err


@pytest.mark.parametrize("name", ITEMS)
def test_every_form_of_the_training_data_gives_what_its_own_file_gives(trained, name, workdir, capsys, caplog):
    path, _ = trained[name]
    expected, _ = lists(path, None, capsys)
    table = sales(ITEMS[name])
    Path("t.inter").write_text((path.parents[1] / name / f"{name}.inter").read_text(encoding="utf-8"), encoding="utf-8")
    table.to_csv("t.csv", index=False)
    table.assign(when=pd.to_datetime(table["when"], unit="s")).to_csv("dates.csv", index=False)
    table.to_parquet("t.parquet")
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    whole = table.sort_values("when").groupby("session")["sku"].agg(list).rename("items").reset_index()
    Path("whole.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole.to_dict("records")))
    whole.assign(items=whole["items"].map(json.dumps)).to_csv("whole.csv", index=False)
    for source in ("t.inter", "t.csv", "dates.csv", "t.parquet", "t.jsonl", "whole.jsonl", "whole.csv"):
        found, said = lists(path, source, capsys)
        pd.testing.assert_frame_equal(found, expected, obj=source)
        assert "unknown" not in said
    assert not caplog.records


def test_one_missing_id_changes_no_other(trained, workdir, capsys, caplog):
    """pandas would make floats of all of them, none of which a model knows."""
    path, recommender = trained["plain"]
    table = sales(ITEMS["plain"]).astype({"sku": int})
    expected, _ = lists(path, None, capsys)
    rows = [*table.to_dict("records"), {"session": "s99", "sku": None, "when": 1}]
    Path("one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pd.DataFrame(rows).to_parquet("one.parquet")
    assert pd.DataFrame(rows)["sku"].dtype == float
    for source in ("one.jsonl", "one.parquet"):
        with caplog.at_level(logging.WARNING):
            found, _ = lists(path, source, capsys)
        pd.testing.assert_frame_equal(found, expected, obj=source)
        assert (
            f"rows without a user or an item are left out: 1, the first is {'line' if 'json' in source else 'row'} 91"
            in caplog.text
        )
        caplog.clear()
    frame = recommender.recommend(pd.DataFrame(rows), k=3).sort_values(["user_id", "rank"])
    assert frame["item_id"].tolist() == expected["item_id"].tolist()


def test_no_known_id_is_refused_and_few_are_warned_of(trained, workdir, capsys, caplog):
    path, _ = trained["plain"]
    Path("none.csv").write_text("session,items\na,1000.0 1001.0\nb,1002.0 x y\nc,\n")
    assert cli.main(["recommend", str(path), "--input=none.csv", "--output=o.csv"]) == 2
    error = capsys.readouterr().err
    assert "none of the item ids in input 'none.csv' is known to the model, such as '1000.0' (known is '1000')" in error
    assert "'1002.0' (known is '1002'): give ids as in its training data" in error and not list(Path().glob("*o.csv*"))
    with caplog.at_level(logging.WARNING):
        for known, warned in ((1, True), (2, False)):
            Path("few.csv").write_text("session,items\na," + "1000 " * known + "u v w " * 6 + "\nc,\n")
            lists(path, "few.csv", capsys)
            says = (
                "only 1 of the 19 item ids in input 'few.csv' are known to the model; 'u', 'v', 'w' and others are not"
            )
            assert (says in caplog.text) == warned
            caplog.clear()
        Path("some.txt").write_text("\ufeff1000\n" + "x\n" * 20, encoding="utf-8")
        arguments = ["--input=few.csv", "--output=o.csv", "--candidates=some.txt"]
        assert cli.main(["recommend", str(path), *arguments]) == 0
    assert "only 1 of the 21 candidates in 'some.txt' are known to the model; 'x' and others are not" in caplog.text


def test_ids_with_spaces_are_never_split(trained, workdir, capsys):
    path, recommender = trained["odd"]
    Path("split.csv").write_text("session,items\na,red hat\n")
    assert cli.main(["recommend", str(path), "--input=split.csv", "--output=o.csv"]) == 2
    assert "input 'split.csv' line 2 has 'red hat' where 'items' should be a JSON list" in capsys.readouterr().err
    assert recommender.unknown([["red hat", "a b"]]) == 0


@pytest.mark.parametrize(
    "given", [[[1000, 1001.0, "1002"]], np.array([[1000, 1001, 1002]]), pd.Series([["1000", "1001", "1002"]])]
)
def test_ids_in_python_are_the_numbers_that_they_show(trained, given):
    _, recommender = trained["plain"]
    expected = recommender.recommend([["1000", "1001", "1002"]], k=3)
    pd.testing.assert_frame_equal(recommender.recommend(given, k=3), expected)
    frame = pd.DataFrame({"user_id": [0], "items": list(given)})
    assert recommender.recommend(frame, k=3)["item_id"].tolist() == expected["item_id"].tolist()
    assert recommender.recommend(given, candidates=[1005.0, np.int64(1007)])["item_id"].isin(["1005", "1007"]).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sequences": ["1000", "1001"]}, "history 0 of sequences must be a list of ids, got '1000'"),
        ({"sequences": [[1000.5]]}, "history 0 of sequences must be a list of ids, got 1000.5 in it"),
        ({"sequences": pd.DataFrame({"a": [1]})}, "the DataFrame has the columns a: it needs session, sku and when"),
        ({"sequences": pd.DataFrame({"session": ["u"], "items": [["1000"]]}), "users": ["u"]}, "leave out users"),
        ({"sequences": [["1000"]], "users": ["a", "b"]}, "users must name the 1 histories, got 2"),
        ({"sequences": [["1000"]], "candidates": "1000"}, "candidates must be a list of ids, got '1000'"),
        ({"sequences": [["1000"], ["1001"]], "users": "ab"}, "users must name the 2 histories, got 1"),
        ({"sequences": [["1000"]], "exclude_seen": "no"}, "exclude_seen must be True or False, got 'no'"),
        ({"sequences": [["1000"]], "columns": "title"}, "columns must be a list of names, got 'title'"),
        ({"sequences": pd.DataFrame({"session": ["u"], "items": ["1000, 1001"]})}, "has '1000, 1001' where 'items'"),
    ],
)
def test_what_would_be_garbage_in_python_is_refused(trained, arguments, says):
    with pytest.raises(UserError) as caught:
        trained["plain"][1].recommend(**arguments)
    assert says in str(caught.value)

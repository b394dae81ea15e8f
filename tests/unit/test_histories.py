"""Tables become histories in order of time, whatever their columns are called and whichever file they come from."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.data import histories
from recbole_diffurec.data.formats import open_table
from recbole_diffurec.data.histories import HistoryColumns, as_histories, as_ids, read_histories
from recbole_diffurec.data.tables import Frame, Table
from recbole_diffurec.errors import UserError

EVENTS = [("u", "3", 30), ("v", "007", 10), ("u", "1", 10), ("u", "2a", 20), ("v", "1", 10), ("u", "2b", 20)]
BY_USER = {"u": ["1", "2a", "2b", "3"], "v": ["007", "1"]}


def events(**changes) -> pd.DataFrame:
    return pd.DataFrame(EVENTS, columns=["user_id", "item_id", "timestamp"]).assign(**changes)


def read(table: Table, *options) -> dict[str, list[str]]:
    return {user: history for batch in read_histories(table, *options) for user, history in zip(*batch)}


def frame(**columns) -> Frame:
    return Frame(pd.DataFrame(columns))


@pytest.mark.parametrize("kind", ["csv", "inter", "jsonl", "parquet", "DataFrame"])
@pytest.mark.parametrize("part_rows", [2, 100_000])
def test_interactions_in_order_of_time_ties_as_written(kind, part_rows, workdir, monkeypatch):
    monkeypatch.setattr("recbole_diffurec.data.tables.PART_ROWS", part_rows)
    if kind == "DataFrame":
        assert read(Frame(events())) == BY_USER
        return
    path = Path(f"t.{kind}")
    if kind == "csv":
        events().to_csv(path, index=False)
    elif kind == "inter":
        header = "item_id:token\tuser_id:token\ttimestamp:float\n"
        path.write_text(header + "".join(f"{item}\t{user}\t{time}\n" for user, item, time in EVENTS))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in events().to_dict("records")))
    else:
        events().to_parquet(path)
    assert read(open_table(path)) == BY_USER


@pytest.mark.parametrize("size", [1, 2, 5, 4096])
def test_batches_lose_nobody(size, monkeypatch):
    monkeypatch.setattr(histories, "HISTORIES_PER_BATCH", size)
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"user_id": rng.integers(0, 7, 50), "item_id": rng.integers(0, 9, 50)})
    table["timestamp"] = rng.permutation(50)
    expected = table.sort_values("timestamp").groupby("user_id")["item_id"].agg(list)
    assert read(Frame(table)) == {str(user): list(map(str, items)) for user, items in expected.items()}
    whole = frame(user_id=list("abc"), items=[[1], [], [2, 3]])
    assert read(whole) == {"a": ["1"], "b": [], "c": ["2", "3"]}
    assert max(len(users) for users, _ in read_histories(whole)) == min(size, 3)


def test_the_names_of_the_training_data_go_before_the_default_ones():
    own = HistoryColumns("session", "sku", "when")
    renamed = events().set_axis(["session", "sku", "when"], axis=1)
    assert read(Frame(renamed), own) == read(Frame(events()), own) == BY_USER
    assert read(Frame(renamed.assign(user_id="x", item_id="y", timestamp=0)), own) == BY_USER
    assert read(frame(session=["u"], items=[["1"]]), own) == {"u": ["1"]}
    with pytest.raises(UserError, match="has the columns session, sku: it needs session, sku and when, or session and"):
        read(Frame(renamed[["session", "sku"]]), own)


def test_rows_that_name_nobody_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        table = events(item_id=["3", None, "1", "2a", "1", "2b"], timestamp=[30, None, 10, 20, 10, 20])
        assert read(Frame(table)) == {"u": BY_USER["u"], "v": ["1"]}
        assert read(Frame(table.assign(user_id=["u", "v", "u", "u", None, "u"]))) == {"u": BY_USER["u"]}
        assert read(frame(user_id=["u", None], items=[[1], [2]])) == {"u": ["1"]}
    assert [record.getMessage() for record in caplog.records] == [
        "the DataFrame: rows without a user or an item are left out: 1, the first is row 2",
        "the DataFrame: rows without a user or an item are left out: 2, the first is row 2",
        "the DataFrame: rows without a user are left out: 1, the first is row 2",
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"timestamp": pd.to_datetime([*["2024-01-01"] * 5, None])}, "the DataFrame row 6 has no finite 'timestamp'"),
        ({"timestamp": [1.6e9] * 5 + [1.6e12]}, "has times in seconds (row 1) and in milliseconds (row 6)"),
        ({"timestamp": [1.6e9] * 5 + [9e14]}, "has times in seconds (row 1) and in microseconds (row 6)"),
        ({"timestamp": ["2024-01-01"] * 5 + ["1"]}, "row 6 has '1' where 'timestamp' should be a date"),
        (
            {"timestamp": [pd.Timestamp("2024-01-01")] * 5 + [pd.Timestamp("2024-01-01", tz="Asia/Tokyo")]},
            "tz='Asia/Tokyo') where 'timestamp' should be a date like the first one, '2024-01-01T00:00:00'",
        ),
        ({"item_id": [1.5] * 6}, "row 1 has 1.5 where 'item_id' should be an id"),
        ({"user_id": [True] * 6}, "has bool cells in 'user_id'"),
        ({"item_id": None}, "holds no rows: give at least one history"),
    ],
)
def test_what_would_be_garbage_is_refused(changes, says):
    with pytest.raises(UserError) as caught:
        read(Frame(events(**changes)))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_units_are_compared_between_usable_rows_alone():
    """And rows are named as they stand in the table."""
    table = events(item_id=[None, *list("abcde")], timestamp=[1.6e15, *[1.6e9] * 4, 1.6e12])
    with pytest.raises(UserError, match=r"in seconds \(row 2\) and in milliseconds \(row 6\)"):
        read(Frame(table))


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"user_id": [], "items": []}), events().iloc[:0]])
def test_a_table_without_rows_is_refused(table):
    with pytest.raises(UserError, match="holds no rows: give at least one history"):
        read(Frame(table))


@functools.cache
def sound_file(kind: str) -> bytes:
    table = events(item_id=["3", "007", 'a "b"', "x,y", "", "é"])
    if kind == "parquet":
        return table.to_parquet()
    if kind == "jsonl":
        return table.to_json(orient="records", lines=True).encode()
    if kind == "csv":
        return table.to_csv(index=False).encode()
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in table.to_numpy())]
    return "\n".join(lines).encode()


EDITS = st.tuples(
    st.floats(0, 1),
    st.sampled_from(
        [b"", b'"', b"\n", b"\t", b",", b"\r", b"\0", b"\xff", b"[", b"{", b"null", b"NaN", b"1e400", b"-", b" "]
    ),
    st.integers(0, 9),
)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["csv", "inter", "jsonl", "parquet"]), edits=st.lists(EDITS, min_size=1, max_size=4))
def test_a_damaged_file_gives_text_or_one_sentence(kind, edits, tmp_path_factory):
    content = sound_file(kind)
    for place, inserted, lost in edits:
        start = int(place * len(content))
        content = content[:start] + inserted + content[start + lost :]
    path = tmp_path_factory.mktemp("damaged") / f"t.{kind}"
    path.write_bytes(content)
    try:
        found = read(open_table(path))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(type(item) is str for history in found.values() for item in history)


def test_histories_from_python():
    given = [["50", 172], (7.0,), np.array([1, 2]), pd.Series(["x"]), [], (item for item in "ab")]
    assert as_histories(given) == [["50", "172"], ["7"], ["1", "2"], ["x"], [], ["a", "b"]]
    assert as_histories(pd.Series([["1"], [2]])) == as_histories(np.array([[1], [2]])) == [["1"], ["2"]]
    assert as_ids(np.array([1, 2]), "candidates") == ["1", "2"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["50", "172"], "history 0 of sequences must be a list of ids, got '50'"),
        ([50, 172], "history 0 of sequences must be a list of ids, got 50"),
        ("50", "sequences must be a list of histories, got '50'"),
        (None, "sequences must be a list of histories, got None"),
        ({"u": ["50"]}, "sequences must be a list of histories, got {'u': ['50']}"),
        ([["1"], {"50"}], "history 1 of sequences must be a list of ids, got {'50'}"),
        ([["1", None]], "history 0 of sequences must be a list of ids, got None in it"),
        ([["1", float("nan")]], "got nan in it"),
        ([[1.5]], "got 1.5 in it"),
        ([[True]], "got True in it"),
        ([[["1"]]], "got ['1'] in it"),
        ([b"50"], "got b'50'"),
        (pd.DataFrame({"a": [1]}), "got a table (DataFrame)"),
        (pa.table({"a": [["1"]]}), "got a table (Table)"),
    ],
)
def test_what_python_gives_by_mistake_is_refused(given, says):
    with pytest.raises(UserError) as caught:
        as_histories(given)
    assert says in str(caught.value)

"""Every kind of table gives the same text, and names the line of whatever is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.data.delimited import AtomicFile, CsvFile
from recbole_diffurec.data.formats import open_table
from recbole_diffurec.data.tables import PART_BYTES, Frame, JsonLines, ParquetFile, Table
from recbole_diffurec.errors import UserError

IDS = ["00123", "nan", "NA", "1e5", "9007199254740993", '12" mix', '"Q"', "a b", "[x]", "é", " 7 ", "1008.0"]


def write_csv(path: Path, columns: dict[str, list[Any]]) -> Table:
    pd.DataFrame(columns).to_csv(path, index=False)
    return CsvFile(path, "it")


def write_jsonl(path: Path, columns: dict[str, list[Any]]) -> Table:
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonLines(path, "it")


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Table:
    pd.DataFrame(columns).to_parquet(path)
    return ParquetFile(path, "it")


def write_atomic(path: Path, columns: dict[str, list[Any]]) -> Table:
    lines = ["\t".join(f"{name}:token" for name in columns)]
    lines += ["\t".join("" if cell is None else str(cell) for cell in row) for row in zip(*columns.values())]
    path.write_text("\n".join(lines))
    return AtomicFile(path, "it")


def in_memory(_: Path, columns: dict[str, list[Any]]) -> Table:
    return Frame(pd.DataFrame(columns), "it")


KINDS = [write_csv, write_jsonl, write_parquet, write_atomic, in_memory]


def ids(table: Table, column: str = "id") -> list[str | None]:
    return [value for part in table.parts([column]) for value in part[column].ids().to_pylist()]


@pytest.mark.parametrize("write", KINDS)
def test_ids_stay_as_they_are_written(write, tmp_path):
    table = write(tmp_path / "t", {"id": IDS, "other": IDS})
    assert table.columns == ["id", "other"] and ids(table) == ids(table, "other") == IDS


@pytest.mark.parametrize("write", KINDS)
def test_a_missing_id_changes_no_other(write, tmp_path):
    assert ids(write(tmp_path / "t", {"id": ["7", None, "007"], "other": ["1", "2", "3"]})) == ["7", None, "007"]


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, in_memory])
@pytest.mark.parametrize("numbers", [[7, None, 12], [2**53 + 1, 0, -1], [7.0, 12.0, 2.0**52]])
def test_whole_numbers_are_the_ids_that_they_show(write, numbers, tmp_path):
    """With a missing one among them, pandas hands on floats."""
    assert ids(write(tmp_path / "t", {"id": numbers})) == [None if n is None else str(int(n)) for n in numbers]


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, in_memory])
@pytest.mark.parametrize("wrong", [7.5, float(2**53), float("inf"), True])
def test_what_is_no_id_is_refused(write, wrong, tmp_path):
    table = write(tmp_path / "t", {"id": [wrong]})
    with pytest.raises(UserError, match=r"it (line 1|row 1|has bool cells) .*'id'.* should be an id"):
        ids(table)


def test_a_mixed_column_in_memory_keeps_each_kind():
    assert ids(Frame(pd.DataFrame({"id": ["a", 7, 8.0, None, np.nan, pd.NaT, np.int64(9)]}))) == [
        *("a", "7", "8", None, None, None, "9")
    ]
    assert ids(Frame(pd.DataFrame({"id": pd.Categorical(["b", None, "a"])}))) == ["b", None, "a"]
    assert ids(Frame(pd.DataFrame({"id": pd.array(["b", None], dtype="string")}))) == ["b", None]


ROWS = {"more fields": "1{0}2{0}3{0}4", "fewer fields": "1{0}2", "one field": "1"}


@pytest.mark.parametrize(
    ("separator", "quotes"), [(",", True), (",", False), ("\t", False), ("::", False), ("§", False)]
)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("everywhere", [False, True])
def test_rows_of_another_length_are_refused(separator, quotes, name, everywhere, tmp_path):
    """In all rows alike, pandas would take the first column for an index, and shift the others."""
    sound, wrong = separator.join("xyz"), ROWS[name].format(separator)
    lines = [separator.join("abc"), "", *([wrong] * 3 if everywhere else [sound, wrong, sound])]
    path = tmp_path / "t"
    path.write_text("\n".join(lines), encoding="utf-8")
    table = CsvFile(path, "it", separator, quotes)
    line, count = (3 if everywhere else 4), len(wrong.split(separator))
    with pytest.raises(UserError, match=rf"^it line {line} has {count} fields where the first line has 3, .* shift"):
        list(table.parts(["a"]))


def test_commas_between_quotation_marks_shift_no_columns_of_atomic_files(tmp_path):
    path = tmp_path / "t.item"
    path.write_text('item_id:token,title:token\n1,Heat\n2,"Story, The"\n')
    with pytest.raises(UserError, match=r"line 3 has 3 fields where .* has 2 \(quotation marks enclose nothing here\)"):
        AtomicFile(path, separator=",").frame(["item_id:token", "title:token"])
    assert ids(CsvFile(path, "it"), "title:token") == ["Heat", "Story, The"]


def test_lines_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\r\nid,n\r\n"two\r\nlines",1\r\n\r\nx,soon\r\n')
    table = CsvFile(path, "it")
    assert [table.place(row) for row in (0, 1, 2)] == ["line 3", "line 6", "row 3"]
    with pytest.raises(UserError, match=r"^it line 6 has 'soon' where 'n' should be a number: mend or remove the line"):
        for part in table.parts(["n"]):
            part["n"].numbers()


@pytest.mark.parametrize("separator", ["\t", "::"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_line_ends_and_encodings(separator, end, encoding, tmp_path):
    path = tmp_path / "t"
    text = end.join([separator.join(row) for row in (["id:token", "n:float"], ["é", "1"], ["", "2"], ["", ""])])
    path.write_bytes(text.encode(encoding))
    table = AtomicFile(
        path, separator=separator, encoding=encoding.replace("utf-8", "utf-8-sig").replace("sig-sig", "sig")
    )
    frame = table.frame(["id:token", "n:float"])
    assert frame["id:token"].dtype == object and frame["n:float"].dtype == np.float64
    assert frame["id:token"].fillna("-").tolist() == ["é", "-", "-"] and frame["n:float"].fillna(9).tolist() == [
        1,
        2,
        9,
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", b"a\n1\n\xcc\xee\xf1\xea\xe2\xe0\n", "is no UTF-8 text, and what else it is cannot be told"),
        ("t.csv", b"a,a\n1,2\n", "has the column 'a' twice"),
        ("t.csv", b'a,b\n"1,2\n', "line 2 has 1 fields where the first line has 2"),
        ("t.csv", b'a,b\n1,x\n2,"y\n3,z\n', "line 3 opens a quotation mark that nothing closes"),
        ("t.csv", b'a,b\r\n"1\r\n2",x\r\n3,"5"" disk\r\n4,y', "line 4 opens a quotation mark that nothing closes"),
        ("t.tsv", b'a\tb\n1\t"y\n2\tz', "line 2 opens a quotation mark that nothing closes"),
        ("t.inter", b"", "has no rows below its first line"),
        ("t.inter", b"a:token\ta:float\n1\t2\n", "has the column 'a' twice"),
        ("t.inter", b"a:token\tb\n1\t2\n", "line 1 has 'b' where a column's name and type belong"),
        ("t.inter", b"a:token\tb:int\n1\t2\n", "line 1 has 'b:int' where a column's name and type belong"),
        ("t.inter", b"a:token\tb:float\n", "has no rows below its first line"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', "line 2 is no JSON object"),
        ("t.jsonl", b'{"a": 1}\n\n{"a": \n', "line 3 is no JSON (Expecting value)"),
        ("t.jsonl", b'{"a": 1}\n' + b"[" * 100_000, "line 2 is no JSON (maximum recursion depth exceeded"),
        ("t.jsonl", b'{"a": "\xff"}\n', "line 1 is not utf-8-sig text"),
        ("t.parquet", b"PAR1 and more", "cannot be read ("),
        ("t.txt", b"a\n", "must end in one of .inter, .csv, .jsonl, .parquet"),
    ],
)
def test_damage_is_named(name, content, says, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        table = open_table(path, "input")
        list(table.parts(table.columns))
    message = str(caught.value)
    assert message.startswith(f"input '{path}'") and says in message and "\n" not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_quotation_marks_within_a_field_close_nothing(tmp_path):
    (tmp_path / "t.csv").write_text('id,title\n1,5" disk\n2,"a ""b"" c"\n')
    assert ids(open_table(tmp_path / "t.csv", "it")) == ["1", "2"]


@pytest.mark.parametrize("ending", [".csv", ".inter", ".jsonl", ".parquet"])
def test_a_file_that_is_not_there(ending, tmp_path):
    path = tmp_path / f"none{ending}"
    with pytest.raises(UserError, match=r"cannot be read.*No such file or directory"):
        open_table(path)
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        open_table(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"encoding": "klingon"}, "encoding 'klingon' is unknown"),
        ({"separator": ""}, "field_separator must be text"),
        ({"separator": "\n"}, "field_separator must be text"),
    ],
)
def test_layouts_that_cannot_be(options, says, tmp_path):
    (tmp_path / "t.inter").write_text("a:token\n1\n")
    with pytest.raises(UserError, match=says):
        AtomicFile(tmp_path / "t.inter", **options)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in kilobytes")
@pytest.mark.parametrize("name", ["t.csv", "t.inter", "t.jsonl"])
def test_a_line_without_an_end_does_not_fill_the_memory(name, tmp_path):
    import resource

    path = tmp_path / name
    with open(path, "wb") as file:
        file.write({"t.csv": b"a,b\n", "t.inter": b"a:token\tb:token\n", "t.jsonl": b""}[name])
        file.truncate(600 << 20)  # NUL bytes, which take no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"line [12] is longer than 16,777,216"):
        table = open_table(path)
        list(table.parts(table.columns))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


CELLS = st.text(st.characters(exclude_characters="\t\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8))
def test_any_text_comes_back(rows, tmp_path_factory):
    """Through atomic files by either way of splitting lines, and through CSV files as pandas writes them."""
    folder = tmp_path_factory.mktemp("text")
    columns = {"id": [a for a, _ in rows], "other": [b for _, b in rows]}
    assert ids(write_csv(folder / "t.csv", columns)) == columns["id"]
    for separator in ("\t", "\t\t"):
        path = folder / "t.inter"
        path.write_text(
            "\n".join(separator.join(row) for row in [("id:token", "other:token"), *rows]), encoding="utf-8"
        )
        assert ids(AtomicFile(path, separator=separator), "other") == columns["other"]


def repeated(text: str, rows: int) -> pa.Array:
    """Many rows of one text, which a Parquet file has once."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([text])).cast(
        pa.dictionary(pa.int32(), pa.string())
    )


def one_list(length: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, length], pa.int32()), pa.array(["i"]).take(np.zeros(length, np.int32)))


BOMBS = {
    "texts": (
        lambda: repeated("u" * 10**6, 20_000),
        "repeats long texts, so that 20,000 of its rows hold 20,000,000,000",
    ),
    "a text": (lambda: repeated("u" * (PART_BYTES + 1), 3), "row 1 is longer than 16,777,216 bytes"),
    "a list": (lambda: one_list(PART_BYTES + 1), "row 1 is longer than 16,777,216 bytes"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_parquet_file_fills_no_memory_with_what_it_has_once(bomb, tmp_path):
    """All three are of a few kilobytes."""
    make, problem = BOMBS[bomb]
    pa.parquet.write_table(pa.table({"id": make()}), tmp_path / "t.parquet", compression="zstd")
    assert (tmp_path / "t.parquet").stat().st_size < 10_000
    table = ParquetFile(tmp_path / "t.parquet", "it")
    with pytest.raises(UserError, match=f"it {problem}"):
        list(table.parts(["id"]))


def test_long_texts_of_a_parquet_file_come_in_parts_and_in_order(tmp_path):
    texts = ["u" * 100_000, None, "v", "w" * 150_000] * 1000
    pa.parquet.write_table(
        pa.table({"n": range(4000), "id": pa.array(texts).dictionary_encode()}), tmp_path / "t.parquet"
    )
    parts = list(ParquetFile(tmp_path / "t.parquet", "it").parts(["id", "n"]))
    assert len(parts) > 1 and [text for part in parts for text in part["id"].ids().to_pylist()] == texts
    assert [number for part in parts for number in part["n"].ids().to_pylist()] == [str(n) for n in range(4000)]

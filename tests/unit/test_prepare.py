"""Tables of one's own as data sets: every kind of file, ids as they are, times of any kind, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recbole_diffurec.data.delimited import AtomicFile
from recbole_diffurec.data.prepare import Prepared, TableOptions, prepare, prepared
from recbole_diffurec.errors import UserError

COLUMNS = {"user": "customer", "item": "sku", "time": "ordered_at"}
# What a spreadsheet or pandas would change: zeros in front, an exponent, spaces, digits beyond a float's.
IDS = ["007", "1e5", "red hat", " 7", "Ünï 東京", "nan", "None", "9007199254740993", "-0", "1.0"]
ROWS = [(f"u {n % 3}", name, f"2024-05-0{1 + n % 9} 12:30:0{n % 10}") for n, name in enumerate(IDS)]


def table(rows: list[tuple] = ROWS, names: tuple[str, ...] = ("customer", "sku", "ordered_at")) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(names), dtype=object)


def write(path: str, text: str, encoding: str = "utf-8") -> Path:
    Path(path).write_bytes(text.encode(encoding))
    return Path(path)


def csv(separator: str = ",") -> str:
    return table().to_csv(index=False, sep=separator)


def compressed(path: str, text: str) -> Path:
    with pa.output_stream(path) as file:
        file.write(text.encode())
    return Path(path)


def inter(made: Prepared) -> pd.DataFrame:
    """What a run reads of a data set, as text."""
    file = AtomicFile(made.folder / f"{made.name}.inter")
    parts = [{name: column.ids().to_pylist() for name, column in part.items()} for part in file.parts(file.columns)]
    return pd.concat(pd.DataFrame(part) for part in parts)


def items(made: Prepared) -> dict[str, list[str]]:
    """The lines of a data set's items by their ids, the header's by ``item_id:token``."""
    lines = (made.folder / f"{made.name}.item").read_text(encoding="utf-8").splitlines()
    return {cells[0]: cells[1:] for cells in (line.split("\t") for line in lines)}


KINDS = {
    "t.csv": lambda path: write(path, csv()),
    "t.tsv": lambda path: write(path, csv("\t")),
    "semicolons.csv": lambda path: write(path, csv(";")),
    "bars.csv": lambda path: write(path, csv("|")),
    "mark.csv": lambda path: write(path, csv(), "utf-8-sig"),
    "utf16.csv": lambda path: write(path, csv(), "utf-16"),
    "ends.csv": lambda path: write(path, csv().replace("\n", "\r\n")),
    "t.csv.gz": lambda path: compressed(path, csv()),
    "t.csv.zst": lambda path: compressed(path, csv()),
    "t.jsonl": lambda path: write(path, table().to_json(orient="records", lines=True)),
    "t.jsonl.gz": lambda path: compressed(path, table().to_json(orient="records", lines=True)),
    "t.parquet": lambda path: table().to_parquet(path) or path,
    "typed.parquet": lambda path: (
        table().assign(ordered_at=pd.to_datetime(table()["ordered_at"])).to_parquet(path) or path
    ),
    "DataFrame": lambda path: table(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_table_gives_the_same_data_set(kind: str, workdir: Path) -> None:
    made = prepare(KINDS[kind](kind), "mine", **COLUMNS)
    read = inter(made)
    assert read["item_id"].tolist() == IDS and read["user_id"].tolist() == [user for user, _, _ in ROWS]
    expected = pd.to_datetime(table()["ordered_at"]).map(lambda date: date.timestamp())
    assert read["timestamp"].astype(float).tolist() == expected.tolist()
    assert made.summary["unit"] == "dates" and made.summary["users"] == 3 and made.summary["items"] == len(IDS)


TIMES = {
    "seconds": ([1_700_000_000, 1_700_000_007], "seconds", [1_700_000_000, 1_700_000_007]),
    "milliseconds": ([1_700_000_000_500] * 3, "milliseconds", [1_700_000_000.5] * 3),
    "one at the beginning": ([0, 1_700_000_000_500, 1_700_000_000_500], "milliseconds", [0, *[1_700_000_000.5] * 2]),
    "a counter": ([1, 2, 3, 4_000_000_000], "", [1, 2, 3, 4_000_000_000]),
    "microseconds": (["1700000000500000"], "microseconds", [1_700_000_000.5]),
    "nanoseconds": ([1_700_000_000_500_000_000], "nanoseconds", [1_700_000_000.5]),
    "numbers": ([3, 1, 2], "", [3, 1, 2]),
    "days": (["1970-01-02", "1970-01-01"], "dates", [86400, 0]),
    "zones": (["1970-01-01T02:00:00+02:00", "1970-01-01T00:00:01Z"], "dates", [0, 1]),
    "fractions": (["1970-01-01 00:00:00.25"], "dates", [0.25]),
}


@pytest.mark.parametrize("case", TIMES)
@pytest.mark.parametrize("as_text", [False, True])
def test_times_are_seconds_where_they_are_times(case: str, as_text: bool, workdir: Path) -> None:
    given, unit, expected = TIMES[case]
    rows = [("u", f"i{n}", str(time) if as_text else time) for n, time in enumerate(given)]
    made = prepare(table(rows), "mine", **COLUMNS)
    assert made.summary["unit"] == unit
    assert inter(made)["timestamp"].astype(float).tolist() == expected


def test_a_zone_in_a_later_part_does_not_follow_dates_without_one(workdir: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("recbole_diffurec.data.tables.PART_ROWS", 2)
    dates = ["2024-05-01", "2024-05-02", "2024-05-03T00:00:00Z"]
    with pytest.raises(UserError, match=r"row 3 has .* should be a date without a time zone, like those before it"):
        prepare(table([("u", "i", date) for date in dates]), "mine", **COLUMNS)


def test_what_is_found_of_a_file_is_said(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write("t.csv", "customer;sku;ordered_at\ncafé;Zoë;2024-05-01\n", "cp1252")
    with caplog.at_level("INFO"):
        made = prepare(path, "mine", **COLUMNS)
    assert "its text is windows-1252" in caplog.text and "semicolons stand between its columns" in caplog.text
    assert inter(made)[["user_id", "item_id"]].to_numpy().tolist() == [["café", "Zoë"]]
    japanese = write("r.csv", "customer,sku,ordered_at\n東京,大阪,2024-05-01\n", "shift_jis")
    with pytest.raises(UserError, match="what else it is cannot be told: save it as UTF-8, or name its encoding"):
        prepare(japanese, "japanese", **COLUMNS)
    assert inter(prepare(japanese, "japanese", encoding="shift_jis", **COLUMNS))["user_id"].tolist() == ["東京"]


def test_a_separator_may_be_named(workdir: Path) -> None:
    for name, between, given in (("caret.csv", "^", "^"), ("tab.csv", "\t", r"\t")):
        path = write(name, "customer,sku,ordered_at\nu,i,1\n".replace(",", between))
        assert inter(prepare(path, separator=given, **COLUMNS))["item_id"].tolist() == ["i"]


def test_a_data_set_is_a_table_too(workdir: Path) -> None:
    first = prepare(table(), "mine", **COLUMNS)
    again = prepare(first.folder / "mine.inter", "again")
    assert inter(again).equals(inter(first))


def test_the_summary_counts(workdir: Path) -> None:
    core = [(f"u{u}", f"i{i}", 10 * u + i, 5) for u in range(5) for i in range(5)]
    others = [("u0", "i0", 0, 3), ("u0", "i0", 99, 4), ("u1", "rare", 10, 5), ("late", "i1", 1, 1)]
    names = (*COLUMNS.values(), "stars")
    made = prepare(table([*core, *others], names), "mine", **COLUMNS, rating="stars", min_rating=3)
    summary = made.summary
    assert (summary["rows"], summary["left_out"], summary["interactions"]) == (29, 1, 28)
    assert (summary["users"], summary["items"]) == (5, 6)  # the user whose only rating is too low is none
    assert (summary["duplicates"], summary["repeats"]) == (1, 1)  # at 0 again; at 99 too
    assert summary["ties"] == 4  # twice at 0, and 'rare' beside 'i0' at 10
    assert summary["core"] == {"users": 5, "items": 5, "interactions": 27}
    assert "28 of 29 rows" in made.describe() and "numbers from 0 to 99" in made.describe()
    assert inter(made)["rating"].tolist()[-1] == "5"


def test_ties_of_times_that_are_no_whole_numbers(workdir: Path) -> None:
    rows = [("u", "a", 0.5), ("v", "b", 0.5), ("u", "b", 0.5), ("u", "a", 0.75)]
    summary = prepare(table(rows), "mine", **COLUMNS).summary
    assert (summary["ties"], summary["duplicates"], summary["repeats"]) == (2, 0, 1)


PRODUCTS = 'sku,name,price,code,colours\n007,"Hat,\nred",9.50,012,\n1e5,Shoe,12,3,blue\n1e5,Other,1,1,\nx,y,1,1,\n'


def test_columns_of_items_are_joined(workdir: Path) -> None:
    write("t.csv", csv())
    made = prepare("t.csv", "mine", **COLUMNS, items=write("products.csv", PRODUCTS), title="name")
    found = items(made)
    assert found["item_id:token"] == ["title:token", "price:float", "code:token", "colours:token"]
    assert found["007"] == ["Hat, red", "9.50", "012", ""] and found["1e5"] == ["Shoe", "12", "3", "blue"]
    assert found["red hat"] == ["", "", "", ""] and "x" not in found and len(found) == 1 + len(IDS)
    counts = {name: made.summary[name] for name in ("without_row", "strange_rows", "double_rows", "cleaned")}
    assert counts == {"without_row": len(IDS) - 2, "strange_rows": 1, "double_rows": 1, "cleaned": 1}
    AtomicFile(made.folder / "mine.item").check({"item_id": "token"})


def test_titles_may_stand_beside_the_interactions(workdir: Path) -> None:
    rows = [("u", "a", 1, None), ("u", "b", 2, "B"), ("v", "a", 3, "A"), ("v", "a", 4, "later")]
    made = prepare(table(rows, (*COLUMNS.values(), "name")), "mine", **COLUMNS, title="name")
    assert items(made) == {"item_id:token": ["title:token"], "a": ["A"], "b": ["B"]}


def test_lists_of_items_are_sequences(workdir: Path) -> None:
    about = pd.DataFrame({"sku": ["a"], "kinds": [["Sci Fi", "War"]], "price": [2.5]})
    made = prepare(table([("u", "a", 1)]), "mine", **COLUMNS, items=about)
    assert items(made) == {"item_id:token": ["kinds:token_seq", "price:float"], "a": ["Sci_Fi War", "2.5"]}


REFUSED = {
    "near name": ("customer,sku,ordered_at\nu,i,1\n", {"user": "Custmer"}, "(did you mean 'customer'?)", "--user"),
    "no title": ("customer,sku,ordered_at\nu,i,1\n", {"title": "name"}, "no column 'name'", "--title"),
    "tab": ('customer,sku,ordered_at\nu,i,1\nu,"i\tj",2\n', {}, "line 3", "without tabs"),
    "line end": ('customer,sku,ordered_at\n"u\nv",i,1\n', {}, "line 2", "in one line: close the quotation mark"),
    "no ids": (
        "customer,sku,ordered_at\nu,i,1\n,i,2\nu,,3\n,i,4\n",
        {},
        "2 rows without 'customer' (the first is line 3)",
        "1 rows without 'sku' (the first is line 4)",
    ),
    "no time": ("customer,sku,ordered_at\nu,i,1\nu,j,\n", {}, "line 3 has no finite 'ordered_at'", "fill it in"),
    "mixed times": ("customer,sku,ordered_at\nu,i,1700000000\nu,j,1700000000000\n", {}, "seconds", "milliseconds"),
    "dates and numbers": ("customer,sku,ordered_at\nu,i,2024-05-01\nu,j,5\n", {}, "line 3", "a date like the first"),
    "no rows": ("customer,sku,ordered_at\n", {}, "holds no rows", "give data"),
    "no rating": ("customer,sku,ordered_at,s\nu,i,1,\n", {"rating": "s", "min_rating": 2}, "line 2", "min_rating"),
    "all too low": ("customer,sku,ordered_at,s\nu,i,1,1\n", {"rating": "s", "min_rating": 2}, "at least 2", "lower"),
    "rating without a column": ("customer,sku,ordered_at\nu,i,1\n", {"min_rating": 2}, "min_rating", "--rating"),
    "shifted": ("customer,sku,ordered_at\nu,i,1\nu,i,j,2\n", {}, "line 3 has 4 fields", "shift"),
    "unknown option": ("customer,sku,ordered_at\nu,i,1\n", {"rateing": "s"}, "'rateing'", "'rating'"),
    "name": ("customer,sku,ordered_at\nu,i,1\n", {"name": "../x"}, "'../x'", "plain folder name"),
    "RecBole's own": ("customer,sku,ordered_at\nu,i,1\n", {"name": "ml-100k"}, "'ml-100k'", "--name"),
    "separator": ("customer,sku,ordered_at\nu,i,1\n", {"separator": "::"}, "'::'", "one character"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_spoil_a_training_is_refused_and_nothing_is_written(case: str, workdir: Path) -> None:
    text, options, *says = REFUSED[case]
    with pytest.raises(UserError) as caught:
        prepare(write("t.csv", text), **{**COLUMNS, **options})
    assert all(part in str(caught.value) for part in says), str(caught.value)
    assert sorted(path.name for path in Path().iterdir()) == ["t.csv"]


def test_files_that_are_cut_or_gone_are_named(workdir: Path) -> None:
    whole = compressed("t.csv.gz", csv() * 50).read_bytes()
    Path("t.csv.gz").write_bytes(whole[:-20])
    for name, says in (("t.csv.gz", "cannot be read (Truncated"), ("no.csv", "No such file"), ("t.xlsx", ".parquet")):
        with pytest.raises(UserError) as caught:
            prepare(name, "mine", **COLUMNS)
        assert says in str(caught.value) and f"'{name}'" in str(caught.value)


def test_a_data_set_is_replaced_only_where_that_is_asked_for(workdir: Path) -> None:
    Path("dataset/mine").mkdir(parents=True)
    kept = write("dataset/mine/mine.inter", "somebody's")
    with pytest.raises(UserError, match=r"is there already.*--overwrite"):
        prepare(table(), "mine", **COLUMNS)
    assert kept.read_text() == "somebody's"
    made = prepare(table(), "mine", overwrite=True, **COLUMNS)
    assert inter(made)["item_id"].tolist() == IDS and not (made.folder / "mine.item").exists()


def test_a_failure_leaves_nothing_behind(workdir: Path, monkeypatch: Any) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recbole_diffurec.data.atomic._write_interactions", fail)
    with pytest.raises(UserError, match="No space left"):
        prepare(table(), "mine", items=pd.DataFrame({"sku": ["007"], "x": [1]}), **COLUMNS)
    assert not Path("dataset/mine").exists()


def test_a_table_is_read_once_for_runs_on_it(workdir: Path) -> None:
    write("t.csv", csv())
    options = TableOptions(**COLUMNS)

    def again(**changed: Any) -> Prepared | None:
        return prepared("t.csv", None, "dataset", False, TableOptions(**{**COLUMNS, **changed}))[1]

    folder, made = prepared("t.csv", None, "dataset", False, options)
    assert folder == Path("dataset/t") and made is not None and again() is None
    with pytest.raises(UserError, match="was not made of this table as it is"):
        again(title="sku")
    write("t.csv", csv() + "u 1,007,2024-05-09 00:00:00\n")
    with pytest.raises(UserError, match="was not made of this table as it is"):
        again()
    assert prepared("t.csv", None, "dataset", True, options)[1] is not None and again() is None
    # Of what somebody changed by hand, or what was cut short, nobody knows what it was made of.
    (folder / "t.source.json").unlink()
    with pytest.raises(UserError, match="was not made of this table"):
        again()
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="made by one process"):
        prepared("t.csv", None, "dataset", False, options, make=False)


def test_a_frame_is_known_again_by_what_it_holds(workdir: Path) -> None:
    options = TableOptions(**COLUMNS)
    assert prepared(table(), "mine", "dataset", False, options)[1] is not None
    assert prepared(table(), "mine", "dataset", False, options)[1] is None
    changed = table()
    changed.iloc[0, 1] = "7"
    with pytest.raises(UserError, match="was not made of this table"):
        prepared(changed, "mine", "dataset", False, options)


def test_real_tables(shared_data: Path, workdir: Path) -> None:
    folder = shared_data / "ml-latest-small"
    columns = {"user": "userId", "item": "movieId", "rating": "rating", "title": "title"}
    made = prepare(folder / "ratings.csv", "movies", items=folder / "movies.csv", **columns)
    ratings = pd.read_csv(folder / "ratings.csv", dtype=str)
    read = inter(made)
    assert read["item_id"].tolist() == ratings["movieId"].tolist()
    assert read["timestamp"].tolist() == ratings["timestamp"].tolist()
    assert (made.summary["users"], made.summary["items"]) == (610, 9724)
    assert items(made)["1"][0] == "Toy Story (1995)" and len(items(made)) == 9725
    assert "1996-03-29 to 2018-09-24" in made.describe()
    assert json.loads((made.folder / "movies.source.json").read_text())["options"]["user"] == "userId"


def test_many_rows_are_written_in_parts(workdir: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("recbole_diffurec.data.atomic._PART", 7)
    monkeypatch.setattr("recbole_diffurec.data.tables.PART_ROWS", 5)
    random = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}", int(t)) for u, i, t in random.integers(0, 9, size=(50, 3))]
    made = prepare(table(rows), "mine", **COLUMNS)
    read = inter(made)
    assert list(zip(read["user_id"], read["item_id"], read["timestamp"].astype(int))) == rows


@pytest.mark.parametrize("encoding", ["utf-16", "base64", "undefined", "rot13", "a\0b", "cp424"])
def test_an_encoding_that_the_text_is_not_of(encoding: str, workdir: Path) -> None:
    """Some have no way to carry on, and some are of bytes alone."""
    Path("table.csv").write_text("user_id,item_id,timestamp\nu,i,3\n")
    with pytest.raises(UserError, match=r"is not (utf-16|cp424) text|is unknown: give one"):
        prepare("table.csv", encoding=encoding)

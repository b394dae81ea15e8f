"""What bad data files come to, case by case; ``docs/bad_data.md`` is this table and must agree with it.

``python tests/unit/test_bad_data.py`` writes the page again.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from conftest import ROOT

from recbole_diffurec import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import dataset_class
from recbole_diffurec.training.prepare import prepare_data

PAGE = ROOT / "docs" / "bad_data.md"
HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


def rows(users=6, items=6, start=0, user="u{}", item="i{}", time="{}") -> str:
    """Every user with every item, one a time unit."""
    return "".join(
        f"{user.format(u)}\t{item.format(i)}\t{time.format(start + i)}\n" for u in range(users) for i in range(items)
    )


GOOD = HEADER + rows()
LAST = "u0\ti0\t99\n"


def with_times(one: str, other: str) -> str:
    """The sound file with two of its times replaced."""
    return GOOD.replace("\t4\n", f"\t{one}\n").replace("\t5\n", f"\t{other}\n")


CASES: dict[str, bytes | str] = {
    "sound": GOOD,
    "a column is missing": GOOD.replace(":float", "").replace("\ttimestamp", "", 1),
    "columns in another order": "item_id:token\tuser_id:token\ttimestamp:float\n" + rows(),
    "more columns than needed": "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"
    + rows().replace("\n", "\t5\n"),
    "wrong type in the header (user_id:float)": GOOD.replace("user_id:token", "user_id:float"),
    "no types in the header": GOOD.replace(":token", "").replace(":float", ""),
    "no header": rows(),
    "an empty file": "",
    "a header alone": HEADER,
    "a time is NaN": GOOD + "u0\ti1\tnan\n",
    "a time is empty": GOOD + "u0\ti1\t\n",
    "a time is infinite": GOOD + "u0\ti1\tinf\n",
    "a time is text": GOOD + "u0\ti1\tyesterday\n",
    "a time is negative": GOOD + "u0\ti1\t-5\n",
    "times in seconds and in milliseconds": with_times("1386028800", "1386028800000"),
    "times in seconds and in microseconds": with_times("1386028800", "1386028800000000"),
    "times in milliseconds and in nanoseconds": with_times("1386028800000", "1386028800000000000"),
    "times of 1995 in seconds and in milliseconds": with_times("800000000", "800000000000"),
    "lines that occur twice": GOOD + rows(),
    "an empty user id": GOOD + "\ti1\t7\n",
    "an empty item id": GOOD + "u0\t\t7\n",
    "ids such as nan, NA, None and 00123": HEADER
    + rows(user="00{}").replace("i1", "nan").replace("i2", "NA").replace("i3", "None"),
    "a line with too few fields": GOOD + "u0\ti1\n",
    "a line with too many fields": GOOD + "u0\ti1\t7\t8\t9\n",
    "every line with one field more than the header": HEADER + rows().replace("u", "x\tu"),
    "an empty line": GOOD + "\n" + LAST,
    "Windows line ends": GOOD.replace("\n", "\r\n"),
    "old Macintosh line ends": GOOD.replace("\n", "\r"),
    "a byte-order mark": GOOD.encode("utf-8-sig"),
    "Latin-1 rather than UTF-8": GOOD.replace("i1", "é1").encode("latin-1"),
    "UTF-16 rather than UTF-8": GOOD.encode("utf-16"),
    "quotation marks in ids": GOOD.replace("i1", '"i1').replace("i2", 'i"2"'),
    "commas between the columns": GOOD.replace("\t", ","),
    "no user with four interactions": HEADER + rows(users=6, items=3),
    "everything filtered away (minimum 50)": GOOD,
    "one item only": HEADER + "".join(f"u{u}\ti0\t{t}\n" for u in range(6) for t in range(6)),
    "a user with 100,000 interactions": GOOD + "".join(f"u0\ti{i % 6}\t{100 + i}\n" for i in range(100_000)),
    "an item in the test part alone": GOOD + "u0\tnew\t99\n",
}

ITEM_HEADER = "item_id:token\ttitle:token_seq\tprice:float\tvector:float_seq\n"
ITEM_ROWS = "".join(f"i{i}\tthing {i}\t9.5\t0.1 0.2\n" for i in range(6))

# Beside the sound file, one of items.
ITEM_CASES: dict[str, bytes | str] = {
    "items": ITEM_HEADER + ITEM_ROWS,
    "a price is text": (ITEM_HEADER + ITEM_ROWS).replace("thing 3\t9.5", "thing 3\tfree"),
    "a price is missing": (ITEM_HEADER + ITEM_ROWS).replace("thing 3\t9.5", "thing 3\t"),
    "a price is infinite": (ITEM_HEADER + ITEM_ROWS).replace("thing 3\t9.5", "thing 3\tinf"),
    "a number of a list is text": (ITEM_HEADER + ITEM_ROWS).replace("0.1 0.2\ni2", "0.1 x\ni2"),
    "an item without an id": ITEM_HEADER + ITEM_ROWS + "\tthing 6\t1\t1 2\n",
    "a title with a tab": ITEM_HEADER + ITEM_ROWS.replace("thing 2", "thing\t2"),
    "an unknown type in the header": (ITEM_HEADER + ITEM_ROWS).replace("price:float", "price:int"),
    "items without rows": ITEM_HEADER,
    "items that are left out of the file of items": ITEM_HEADER + "".join(ITEM_ROWS.splitlines(keepends=True)[:4]),
}


def small(folder: Path, minimum: int = 1) -> dict[str, Any]:
    """Parameters for a data set of few rows."""
    interval = f"[{minimum},inf)"
    parameters: dict[str, Any] = {"data_path": str(folder), "gpu_id": "", "topk": [1], "valid_metric": "NDCG@1"}
    return {**parameters, "user_inter_num_interval": interval, "item_inter_num_interval": interval}


def outcome(name: str, folder: Path) -> tuple[str, str]:
    """(handled or refused, what came of it)."""
    files = {"inter": CASES.get(name, GOOD), "item": ITEM_CASES.get(name)}
    (folder / "bad").mkdir(exist_ok=True)
    for ending, content in files.items():
        path = folder / "bad" / f"bad.{ending}"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    parameters = small(folder, 50 if "minimum 50" in name else 1)
    if files["item"] is not None:
        columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title", "price", "vector"]}
        parameters["load_col"] = columns
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("recbole_diffurec")
    logger.addHandler(handler)
    try:
        data = prepare_data(RunConfig("DiffuRecSys", "bad", parameters))
    except UserError as error:
        return "refused", str(error).replace(str(folder), "DATA_PATH")
    finally:
        logger.removeHandler(handler)
    counts = f"{data.n_users} users, {data.n_items} items, {data.n_interactions:,} interactions"
    warnings = [line.replace(str(folder), "DATA_PATH") for line in said if "left out" in line]
    return "handled", "; ".join([counts, *warnings])


def page() -> str:
    with tempfile.TemporaryDirectory() as folder:
        lines = [(name, *outcome(name, Path(folder))) for name in [*CASES, *ITEM_CASES]]
    table = [
        f"| {name} | {what} | {text.replace('|', chr(92) + '|').replace(chr(9), ' ')} |" for name, what, text in lines
    ]
    head = (
        "# Bad data\n\nWhat becomes of a data file that is not as it should be. Made by running the cases of\n"
        "`tests/unit/test_bad_data.py`, which writes this page; a test keeps the two equal. The sound file has\n"
        "6 users, 6 items and 36 interactions, and nothing is filtered unless said.\n\n"
        "| file | outcome | what is said or kept |\n|---|---|---|\n"
    )
    return head + "\n".join(table) + "\n"


@pytest.mark.parametrize("name", [*CASES, *ITEM_CASES])
def test_handled_or_refused_in_one_sentence(name, tmp_path):
    what, text = outcome(name, tmp_path)
    assert "\n" not in text and "Traceback" not in text
    if what == "refused":
        assert re.search(r"'DATA_PATH/bad/bad\.\w+'|data set 'bad'", text), "names the file or the data set"
        assert text.partition(": ")[2], "names the remedy"


def test_what_must_be_refused_is_and_what_must_be_kept_is(tmp_path):
    def counts(name):
        return outcome(name, tmp_path)[1].split(";")[0]

    for name in (
        "sound",
        "columns in another order",
        "more columns than needed",
        "an empty user id",
        "an empty item id",
    ):
        assert counts(name) == "6 users, 6 items, 36 interactions", name
    for name in ("items", "a price is missing", "an item without an id"):
        assert counts(name) == "6 users, 6 items, 36 interactions", name
    for name in ("Windows line ends", "quotation marks in ids", "ids such as nan, NA, None and 00123"):
        assert counts(name) == "6 users, 6 items, 36 interactions", name
    what, text = outcome("items that are left out of the file of items", tmp_path)
    assert what == "handled" and text.startswith("6 users, 4 items, 24 interactions; ")
    assert "left out are 12 interactions of 2 items that 'bad.item' has no line for, such as 'i4'" in text
    for name in ("a time is NaN", "a time is text", "no header", "Latin-1 rather than UTF-8", "a column is missing"):
        assert outcome(name, tmp_path)[0] == "refused", name
    for name, says in {
        "a line with too few fields": "bad.inter' line 38 has 2 fields where the first line has 3",
        "a line with too many fields": "bad.inter' line 38 has 5 fields where the first line has 3",
        "every line with one field more than the header": "bad.inter' line 2 has 4 fields where the first line has 3",
        "times in seconds and in microseconds": "in seconds (line 6) and in microseconds (line 7)",
        "times of 1995 in seconds and in milliseconds": "in seconds (line 6) and in milliseconds (line 7)",
        "a price is text": "bad.item' line 5 has 'free' where 'price' should be a number",
        "a price is infinite": "bad.item' line 5 has 'inf' where 'price' should be a finite number",
        "a number of a list is text": "bad.item' line 3 has '0.1 x' where 'vector' should be numbers",
        "a title with a tab": "bad.item' line 4 has 5 fields where the first line has 4",
        "an unknown type in the header": "bad.item' line 1 has 'price:int' where a column's name and type belong",
    }.items():
        what, text = outcome(name, tmp_path)
        assert what == "refused" and says in text, name


def test_a_file_of_which_nothing_is_wanted_is_not_read(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.item").write_text("no types\there\n\n1\n")
    (tmp_path / "bad" / "bad.inter").write_text(GOOD)
    assert prepare_data(RunConfig("DiffuRecSys", "bad", small(tmp_path))).n_interactions == 36


def test_units_of_time_are_compared_between_files_of_one_data_set(tmp_path):
    (tmp_path / "bad").mkdir()
    for part, time in (("train", "1386028800"), ("valid", "1386028801"), ("test", "1386028802000")):
        (tmp_path / "bad" / f"bad.{part}.inter").write_text(HEADER + f"u0\ti0\t{time}\nu0\ti1\t{time}\n")
    (tmp_path / "bad" / "bad.inter").write_text(GOOD)  # which is not read
    config = RunConfig("BPR", "bad", {**small(tmp_path), "benchmark_filename": ["train", "valid", "test"]})
    with pytest.raises(UserError) as caught:
        dataset_class(config)(config)
    message = str(caught.value).replace(str(tmp_path), "")
    assert "data set 'bad' has times in seconds ('/bad/bad.train.inter' line 2) and in milliseconds" in message
    assert "('/bad/bad.test.inter' line 2)" in message


def test_the_page_is_true():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/unit/test_bad_data.py"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")

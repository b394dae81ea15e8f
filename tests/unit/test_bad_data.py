"""What bad data files come to, case by case; ``docs/bad_data.md`` is this table and must agree with it.

``python tests/unit/test_bad_data.py`` writes the page again.
"""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from conftest import ROOT

from recbole_diffurec import UserError
from recbole_diffurec.host.config import RunConfig
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
    "times in seconds and in milliseconds": GOOD.replace("\t5\n", "\t1386028800000\n").replace(
        "\t4\n", "\t1386028800\n"
    ),
    "lines that occur twice": GOOD + rows(),
    "an empty user id": GOOD + "\ti1\t7\n",
    "an empty item id": GOOD + "u0\t\t7\n",
    "ids such as nan, NA, None and 00123": HEADER
    + rows(user="00{}").replace("i1", "nan").replace("i2", "NA").replace("i3", "None"),
    "a line with too few fields": GOOD + "u0\ti1\n",
    "a line with too many fields": GOOD + "u0\ti1\t7\t8\t9\n",
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


def outcome(name: str, content: bytes | str, folder: Path) -> tuple[str, str]:
    """(handled or refused, what came of it)."""
    path = folder / "bad" / "bad.inter"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    minimum = 50 if "minimum 50" in name else 1
    interval = f"[{minimum},inf)"
    parameters = {"data_path": str(folder), "gpu_id": "", "topk": [1], "valid_metric": "NDCG@1"}
    parameters.update(user_inter_num_interval=interval, item_inter_num_interval=interval)
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
        lines = [(name, *outcome(name, content, Path(folder))) for name, content in CASES.items()]
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


@pytest.mark.parametrize("name", CASES)
def test_handled_or_refused_in_one_sentence(name, tmp_path):
    what, text = outcome(name, CASES[name], tmp_path)
    assert "\n" not in text and "Traceback" not in text
    if what == "refused":
        assert re.search(r"'DATA_PATH/bad/bad\.\w+'|data set 'bad'", text), "names the file or the data set"
        assert text.partition(": ")[2], "names the remedy"


def test_what_must_be_refused_is_and_what_must_be_kept_is(tmp_path):
    def counts(name):
        return outcome(name, CASES[name], tmp_path)[1].split(";")[0]

    for name in (
        "sound",
        "columns in another order",
        "more columns than needed",
        "an empty user id",
        "an empty item id",
    ):
        assert counts(name) == "6 users, 6 items, 36 interactions", name
    for name in ("Windows line ends", "quotation marks in ids", "ids such as nan, NA, None and 00123"):
        assert counts(name) == "6 users, 6 items, 36 interactions", name
    for name in ("a time is NaN", "a time is text", "no header", "Latin-1 rather than UTF-8", "a column is missing"):
        assert outcome(name, CASES[name], tmp_path)[0] == "refused", name


def test_the_page_is_true():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/unit/test_bad_data.py"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")

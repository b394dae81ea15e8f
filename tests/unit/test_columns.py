"""Cells understood as numbers, times and lists of ids, or refused with their place; units of time never mixed."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_diffurec.data.columns import Column
from recbole_diffurec.data.times import refuse_mixed_units
from recbole_diffurec.errors import UserError


class Rows:
    name = "it"

    def place(self, row: int) -> str:
        return f"row {row + 1}"


def column(cells: Any, first_row: int = 0) -> Column:
    return Column(Rows(), "x", cells, first_row)


def text(*cells: str | None) -> Column:
    return column(pa.array(cells, pa.string()))


def times(of: Column, needed: bool = True, as_dates: bool | None = None) -> list[float]:
    return of.times(np.full(len(of), needed), as_dates)[0].tolist()


NAN = float("nan")


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (pa.array(["1", "-2.5", "1e3"]), [1, -2.5, 1000]),
        (pa.array(["1", "", " 2 ", "nan", "NaN", "NA", "null", None]), [1, NAN, 2, NAN, NAN, NAN, NAN, NAN]),
        (pa.array([1, None, 2**60]), [1, NAN, 2.0**60]),
        (pa.array([1.5, NAN]), [1.5, NAN]),
        (pa.array([None, None]), [NAN, NAN]),
        ([1, "2", None, 2.5, np.int64(3)], [1, 2, NAN, 2.5, 3]),
    ],
)
def test_numbers(cells, numbers):
    np.testing.assert_array_equal(column(cells).numbers(), numbers)


@pytest.mark.parametrize("wrong", ["soon", "1,5", "0x10", "1_000", "2024-01-01", "inf", "1e400", "--"])
def test_what_is_no_number_is_named_with_its_place(wrong):
    with pytest.raises(UserError, match=rf"^it row 13 has '{wrong}' where 'x' should be a (finite )?number: "):
        column(pa.array(["1", "", wrong]), first_row=10).numbers()


@pytest.mark.parametrize("cells", [pa.array([True]), pa.array([datetime.time(1)]), pa.array([[1]])])
def test_columns_of_other_types_are_no_numbers(cells):
    with pytest.raises(UserError, match=r"^it has .* cells in 'x', which should be numbers: convert it$"):
        column(cells).numbers()


NOON = 1_714_564_800.0  # 2024-05-01 12:00 UTC


@pytest.mark.parametrize(
    "cells",
    [
        pa.array(["2024-05-01 12:00"]),
        pa.array(["2024-05-01T12:00:00"]),
        pa.array([" 2024-05-01T12:00:00.000000000 "]),
        pa.array(["2024-05-01T14:00:00+02:00"]),
        pa.array(["2024-05-01T12:00:00Z"]),
        pa.array(pd.to_datetime(["2024-05-01 12:00"]).as_unit("ns")),
        pa.array(pd.to_datetime(["2024-05-01 14:00+02:00"])),
        [datetime.datetime(2024, 5, 1, 12)],
        [pd.Timestamp("2024-05-01 12:00", tz="UTC")],
        pa.array([NOON]),
        ["1714564800"],
    ],
)
def test_every_way_to_write_a_time(cells):
    assert times(column(cells)) == [NOON]


def test_days_are_times():
    assert times(column(pa.array([datetime.date(2024, 5, 1)]))) == times(text("2024-05-01")) == [NOON - 12 * 3600]
    assert times(text("9999-12-31", "1969-12-31")) == [253_402_214_400.0, -86_400.0]


@pytest.mark.parametrize(
    "cells",
    [
        pa.array(["1", None]),
        pa.array(["1", ""]),
        pa.array(["1", "inf"]),
        pa.array(["2024-05-01", ""]),
        pa.array(pd.to_datetime(["2024-05-01", None])),
        pa.array([1, None]),
        [1, None],
        [pd.Timestamp(NOON), pd.NaT],
        pa.array([None, None]).take(pa.array([0, 1])),
    ],
)
def test_a_missing_time_is_never_sorted_as_one(cells):
    """pandas turns NaT into the smallest number there is."""
    row = 1 if isinstance(cells, pa.Array) and cells.null_count == 2 else 2
    with pytest.raises(UserError, match=rf"^it row {row} has no finite 'x': fill it in or remove the row$"):
        times(column(cells))
    assert not np.isfinite(times(column(cells), needed=False)[-1])


@pytest.mark.parametrize(
    ("cells", "wrong"),
    [
        (["1", "soon"], "soon"),
        (["1", "2024-05-01"], "2024-05-01"),
        (["2024-05-01", "2024-05-02", "1714564800"], "1714564800"),
        (["2024-05-01", "2024-05-01 12:00", "2024-05-01T12:00:00Z"], "2024-05-01T12:00:00Z"),
        (["2024-05-01T12:00:00Z", "2024-05-01 12:00"], "2024-05-01 12:00"),
        (["2024-05-01"] * 9 + ["2024-02-30"], "2024-02-30"),
        (["05/01/2024"], "05/01/2024"),
    ],
)
def test_times_of_two_kinds_are_refused(cells, wrong):
    with pytest.raises(UserError, match=rf"^it row {cells.index(wrong) + 1} has '{wrong}' where 'x' should be a "):
        times(text(*cells))


def test_a_later_part_has_times_like_the_first():
    needed = np.ones(1, bool)
    assert text("7").times(needed)[1] is False and text("2024-05-01").times(needed)[1] is True
    with pytest.raises(UserError, match="has '2024-05-01' where 'x' should be a number"):
        text("2024-05-01").times(needed, as_dates=False)
    with pytest.raises(UserError, match="has '7' where 'x' should be a date"):
        text("7").times(needed, as_dates=True)


UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}


@pytest.mark.parametrize(("one", "other"), itertools.permutations(UNITS, 2))
@pytest.mark.parametrize("year", ["1973-06-01", "1995-05-10", "1999-12-31", "2024-05-01", "2100-01-01"])
def test_two_units_of_time_are_refused(one, other, year):
    then = pd.Timestamp(year).timestamp()
    mixed = np.array([NAN, then, then + 5, then + 7]) * UNITS[one]
    mixed[2] = (then + 5) * UNITS[other]
    places = {one: "row 2", other: "row 3"}
    with pytest.raises(UserError) as caught:
        refuse_mixed_units(Rows(), "x", mixed)
    for unit in (one, other):
        assert f"in {unit} ({places[unit]})" in str(caught.value)


@given(unit=st.sampled_from(list(UNITS.values())), data=st.data())
def test_times_of_one_unit_are_accepted(unit, data):
    """Dates of any span since 1973."""
    seconds = st.floats(1.1e8, 4.1e9)
    refuse_mixed_units(Rows(), "x", np.array(data.draw(st.lists(seconds, min_size=1, max_size=20))) * unit)


@pytest.mark.parametrize(
    "harmless",
    [
        np.arange(1, 1_000_000),  # positions
        np.array([20130102, 20241231]),  # days as numbers
        np.array([20130102235959, 20241231000000]),
        np.geomspace(1, 1e12, 200),  # milliseconds since a start of its own, for thirty years
        np.array([-5.0, 0.0, 1.7e9]),  # unknown times among others
        np.array([]),
    ],
    ids=["positions", "days", "digits", "counted", "odd ones", "none"],
)
def test_numbers_that_are_no_dates_have_no_unit(harmless):
    refuse_mixed_units(Rows(), "x", harmless.astype(float))


@pytest.mark.parametrize(
    ("cell", "items"),
    [
        ("50 172  007", ["50", "172", "007"]),
        ("", []),
        ('["50", "a b", 7, "[x]"]', ["50", "a b", "7", "[x]"]),
        ("[]", []),
        ("a[1] [x", ["a[1]", "[x"]),
        ([50, "172", 7.0], ["50", "172", "7"]),
        ((1,), ["1"]),
        (np.array([1, 2]), ["1", "2"]),
    ],
)
def test_lists_of_ids(cell, items):
    assert column([cell]).id_lists() == [items]


@pytest.mark.parametrize(
    "cells",
    [
        ["['50', '172']"],  # as pandas writes a list into a CSV file
        ["[50 172]"],  # as numpy writes an array
        ["50, 172"],
        ["50 172\nu2,50"],  # what a quotation mark that is never closed makes of two rows
        ["[x] [y]"],
        ["[" * 100_000],
        ['["50", null]'],
        ['["50", 7.5]'],
        ['[["50"]]'],
        [[50, None]],
        [{"50": 1}],
        [7],
        [None],
        pa.array([None], pa.string()),
        pa.array([["50"], None]).slice(1),
        pa.array([["50", None]]),
        pa.array([[7.5]]),
    ],
    ids=lambda cells: str(cells)[:20],
)
def test_what_is_no_list_of_ids_is_refused(cells):
    with pytest.raises(
        UserError, match=r"^it row 1 has .* where 'x' should be .*: (mend or remove the row|put spaces .*)$"
    ):
        column(cells).id_lists()


@pytest.mark.parametrize("cells", [pa.array(["50", "u2\n172"]), ["50", "u2\n172", 7]])
def test_rows_between_quotation_marks_are_no_id(cells):
    with pytest.raises(UserError, match=r"^it row 2 has 'u2\\n172' where 'x' should be an id .*: [cm]"):
        column(cells).ids()


def test_lists_of_one_type_name_the_row_of_an_item():
    cells = pa.array([["1"], [], ["2", "3"], ["4", None]])
    assert column(cells.slice(0, 3)).id_lists() == [["1"], [], ["2", "3"]]
    assert column(pa.array([[1.0, 2.0], [3.0]])).id_lists() == [["1", "2"], ["3"]]
    with pytest.raises(UserError, match=r"^it row 14 has None where 'x' should be an id"):
        column(cells, first_row=10).id_lists()


def test_a_space_parts_no_ids_where_ids_have_spaces():
    assert text("solo", '["red hat", "blue"]').id_lists(split=False) == [["solo"], ["red hat", "blue"]]
    with pytest.raises(UserError, match=r"'red hat' where 'x' should be a JSON list .*: ids of this model have spaces"):
        text("red hat").id_lists(split=False)


def test_lists_of_numbers_within_text():
    text("1 2.5", "", None).check_lists_of_numbers(" ")
    with pytest.raises(UserError, match=r"^it row 2 has '1 x' where 'x' should be numbers with ' ' between them"):
        text("1", "1 x").check_lists_of_numbers(" ")

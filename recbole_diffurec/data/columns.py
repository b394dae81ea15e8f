"""Cells of a table understood: as ids, numbers, times and lists of ids.

Everything is text until it is understood here, each cell for itself and never by what its neighbours hold: "00123"
keeps its zeros, 9007199254740993 its last digit, and one missing id does not make floats of all others. What is not
understood is refused with the table, the place and the column.

Shapes: n, the cells of a column.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recbole_diffurec.data.times import DATES, Rows, cast, is_date, seconds
from recbole_diffurec.errors import UserError

__all__ = ["Cells", "Column", "id_text"]

Cells: TypeAlias = "pa.Array | Sequence[Any]"  # of one type, or each of its own

# What stands for no number in a file of text.
NO_NUMBER = ("", "nan", "NaN", "NA", "null")

_LINE_END = "[\r\n]"  # in an id, quotation marks enclose rows
_OTHER_SEPARATOR = re.compile(rf"{_LINE_END}|[,;|]\s")  # than spaces, between ids in a text

TIME_FORM = "a number, or a date such as 2024-05-01 12:30:00"


def id_text(value: Any) -> str | None:
    """The text of one id, or None where it is missing.

    Parameters
    ----------
    value : object
        Text, a whole number, or nothing (None, NaN, NaT, empty text). A float that is whole counts as the number that
        it is, since that is what pandas makes of whole numbers beside a missing one.

    Raises
    ------
    ValueError
        ``value`` is something else, or a float so large that its last digits are lost.
    """
    if isinstance(value, str) and not re.search(_LINE_END, value):
        return str(value) or None
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return None
        if abs(float(value)) < _exact_below(value) and value == math.floor(value):
            return str(int(value))
    raise ValueError(f"{value!r} is no id")


def _exact_below(value: Any) -> float:
    """Where the whole numbers end that a float of this type (a value or an array) can tell apart."""
    return 2.0 ** (np.finfo(getattr(value, "dtype", np.float64)).nmant + 1)


@dataclass(frozen=True)
class Column:
    """A column of some rows of a table.

    Attributes
    ----------
    table : Rows
        Named in messages.
    name : str
        The column's.
    cells : pyarrow.Array or sequence
        Of one type, or each of its own.
    first_row : int
        Number of the first cell's row in the table, counted from 0.
    """

    table: Rows
    name: str
    cells: Cells
    first_row: int = 0

    def __len__(self) -> int:
        return len(self.cells)

    def wrong(self, row: int, expected: str, remedy: str = "") -> UserError:
        """The error that says what the cell in ``row`` (from 0, in this part) should be."""
        value = self.cells[row]
        text = repr(value.as_py() if isinstance(value, pa.Scalar) else value)
        text = text if len(text) <= 80 else f"{text[:80]}…"
        where = self.table.place(self.first_row + row)
        remedy = remedy or f"mend or remove the {where.split()[0]}"
        return UserError(f"{self.table.name} {where} has {text} where '{self.name}' should be {expected}: {remedy}")

    def _wrong_type(self, expected: str) -> UserError:
        kind = getattr(self.cells, "type", "object")
        return UserError(f"{self.table.name} has {kind} cells in '{self.name}', which should be {expected}: convert it")

    # Ids

    def ids(self) -> pa.Array:
        """Every cell as the text of an id (see ``id_text``): string [n], null where it is missing.

        Raises
        ------
        UserError
            A cell, or the column's type, is no id.
        """
        expected = "an id (text or a whole number)"
        if not isinstance(self.cells, pa.Array):
            found = []
            for row, value in enumerate(self.cells):
                try:
                    found.append(id_text(value))
                except ValueError:
                    raise self.wrong(row, expected) from None
            return pa.array(found, pa.string())
        cells = _decoded(self.cells)
        if _is_text(cells.type):
            broken = pc.index(pc.match_substring_regex(cells, _LINE_END), True).as_py()
            if broken >= 0:
                raise self.wrong(broken, f"{expected} in one line", "close the quotation mark before it")
            empty = pc.equal(cells, "")
            return pc.if_else(empty, None, cells) if pc.any(empty).as_py() else cells
        if pa.types.is_integer(cells.type) or pa.types.is_null(cells.type):
            return cells.cast(pa.string())
        if not pa.types.is_floating(cells.type):
            raise self._wrong_type(expected)
        values = cells.to_numpy(zero_copy_only=False)
        missing = np.isnan(values)
        whole = (values == np.floor(values)) & (np.abs(values) < _exact_below(values))
        if not (whole | missing).all():
            raise self.wrong(int(np.flatnonzero(~(whole | missing))[0]), expected)
        return pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing).cast(pa.string())

    def id_lists(self, split: bool = True) -> list[list[str]]:
        """Every cell as a list of ids: a list as it is, a text as ids with spaces between them or as a JSON list.

        Parameters
        ----------
        split : bool
            Whether a space in a text parts two ids; without, a text with one must be a JSON list.

        Raises
        ------
        UserError
            A cell is no list, lacks an id or holds what is none, or its text can be read in two ways.
        """
        cells = self.cells
        if isinstance(cells, pa.Array):
            cells = _decoded(cells)
            if _is_list(cells.type):
                return self._lists_of_one_type(cells)
            if not (_is_text(cells.type) or pa.types.is_null(cells.type)):
                raise self._wrong_type("lists of ids")
            cells = cells.to_pylist()
        return [self._id_list(row, value, split) for row, value in enumerate(cells)]

    def _lists_of_one_type(self, cells: pa.Array) -> list[list[str]]:
        if cells.null_count:
            raise self.wrong(cells.is_null().to_pylist().index(True), "a list of ids")
        ends = np.cumsum(pc.list_value_length(cells).to_numpy(zero_copy_only=False))
        # Told in terms of the items, whose rows are not the table's.
        items = Column(_Within(self, ends), self.name, cells.flatten())
        ids = items.ids()
        if ids.null_count:
            raise items.wrong(ids.is_null().to_pylist().index(True), "an id, and none is there")
        values = ids.to_pylist()
        return [values[start:end] for start, end in zip([0, *ends[:-1]], ends)]

    def _id_list(self, row: int, value: Any, split: bool) -> list[str]:
        form = 'ids with spaces between them or a JSON list such as ["50", "172"]'
        if isinstance(value, str):
            if value.lstrip().startswith("["):
                try:
                    value = json.loads(value)
                except (ValueError, RecursionError):
                    raise self.wrong(row, form) from None
            elif not split and len(value.split()) > 1:
                raise self.wrong(row, 'a JSON list such as ["50", "172"]', "ids of this model have spaces in them")
            elif _OTHER_SEPARATOR.search(value):
                raise self.wrong(row, form, "put spaces alone between ids, and close quotation marks on their line")
            else:
                value = value.split()
        if not isinstance(value, (list, tuple, np.ndarray)):
            raise self.wrong(row, "a list of ids" if value is None else form)
        items = []
        for item in value:
            try:
                items.append(id_text(item))
            except ValueError:
                raise self.wrong(row, f"a list of ids, which {item!r} is not") from None
        if None in items:
            raise self.wrong(row, "a list of ids, of which none is missing")
        return items  # type: ignore[return-value]

    # Numbers

    def numbers(self) -> np.ndarray:
        """Every cell as a number: float64 [n], NaN where it is missing (``NO_NUMBER``).

        Raises
        ------
        UserError
            A cell is no number, or infinite.
        """
        cells = self.cells
        if isinstance(cells, pa.Array):
            cells = _decoded(cells)
            if pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type) or pa.types.is_null(cells.type):
                found = cells.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            elif _is_text(cells.type):
                found = self._numbers_in(cells)
            else:
                raise self._wrong_type("numbers")
        else:
            found = self._numbers_in(self._texts("a number"))
        if np.isinf(found).any():
            raise self.wrong(int(np.flatnonzero(np.isinf(found))[0]), "a finite number")
        return found

    def _numbers_in(self, text: pa.Array, expected: str = "a number") -> np.ndarray:
        try:
            return text.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            pass
        # Cells without a number, or with spaces around it.
        values = text.to_numpy(zero_copy_only=False)
        found = np.asarray(pd.to_numeric(pd.Series(values, dtype=object), errors="coerce"), dtype=np.float64)
        wrong = np.isnan(found) & ~np.isin(np.where(text.is_null(), "", values), NO_NUMBER)
        if wrong.any():
            raise self.wrong(int(np.flatnonzero(wrong)[0]), expected)
        return found

    def check_lists_of_numbers(self, separator: str) -> None:
        """Raise UserError unless every cell is a text of numbers with ``separator`` between them."""
        for row, text in enumerate(self.ids().to_pylist()):
            for part in filter(None, (text or "").split(separator)):
                try:
                    float(part)
                except ValueError:
                    raise self.wrong(row, f"numbers with {separator!r} between them") from None

    def texts(self) -> pa.Array:
        """Every cell as the text that it would be in a file, a list with spaces between its elements: string [n].

        Null where it is missing.

        Raises
        ------
        UserError
            A cell, or the column's type, is neither text, nor a number, a date, or a list of texts.
        """
        cells = _decoded(self.cells) if isinstance(self.cells, pa.Array) else self.cells
        if isinstance(cells, pa.Array) and not _is_list(cells.type):
            try:
                found = cells.cast(pa.string())
            except pa.ArrowException:
                raise self._wrong_type("text, numbers or dates") from None
        else:
            whole = cells.to_pylist() if isinstance(cells, pa.Array) else cells
            in_one = [_joined(cell) if isinstance(cell, (list, tuple, np.ndarray)) else cell for cell in whole]
            found = Column(self.table, self.name, in_one, self.first_row)._texts("text, a number or a date")
        return pc.if_else(pc.is_in(found, pa.array(["", "nan", "NaN"])), None, found)

    def _texts(self, expected: str) -> pa.Array:
        """Cells of types of their own as the texts that they would be in a file."""
        texts: list[str | None] = []
        for row, value in enumerate(self.cells):
            if value is None or value is pd.NA or value is pd.NaT:
                texts.append(None)
            elif isinstance(value, str):
                texts.append(value)
            elif isinstance(value, datetime.date):  # datetime.datetime and pandas' Timestamp too
                texts.append(value.isoformat())
            elif isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
                texts.append(str(value))
            else:
                raise self.wrong(row, expected)
        return pa.array(texts, pa.string())

    # Times

    def times(self, needed: np.ndarray, as_dates: bool | None = None) -> tuple[np.ndarray, bool]:
        """Every cell as a time: the number that it is, or the seconds since 1970 of a date (ISO 8601).

        Parameters
        ----------
        needed : np.ndarray
            bool [n] The cells that must not be missing.
        as_dates : bool or None
            Whether the cells are dates; None lets the first one decide.

        Returns
        -------
        tuple of numpy.ndarray and bool
            float64 [n], NaN where a time is missing and not needed; whether they were dates.

        Raises
        ------
        UserError
            A needed time is missing, a cell is no time, or numbers and dates, or dates with and without a time zone,
            stand side by side.
        """
        cells = _decoded(self.cells) if isinstance(self.cells, pa.Array) else self._texts(TIME_FORM)
        if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
            found, dates = seconds(cells), True
        elif _is_text(cells.type):
            cells = pc.utf8_trim_whitespace(cells)
            expected = TIME_FORM if as_dates is None else "a number"
            there = pc.invert(pc.is_in(cells, pa.array(NO_NUMBER))).to_numpy(zero_copy_only=False)
            there &= ~cells.is_null().to_numpy(zero_copy_only=False)
            if as_dates is None:
                first = cells[int(there.argmax())].as_py() if there.any() else None
                as_dates = first is not None and is_date(first)
            dates = as_dates
            found = self._dates_in(cells, there) if dates else self._numbers_in(cells, expected)
        else:
            found, dates = self.numbers(), False
        lost = needed & ~np.isfinite(found)
        if lost.any():
            raise self.no_time(int(np.flatnonzero(lost)[0]))
        return found, dates

    def names_zone(self) -> bool | None:
        """Whether the first date of a column of text names its time zone; None where there is no date."""
        texts = _decoded(self.cells) if isinstance(self.cells, pa.Array) else self._texts(TIME_FORM)
        if not _is_text(texts.type):
            return None
        trimmed = (cell.as_py().strip() for cell in texts if cell.is_valid)
        first = next((cell for cell in trimmed if is_date(cell)), None)
        return None if first is None else cast(pa.scalar(first), DATES[1]) is not None

    def no_time(self, row: int) -> UserError:
        """The error that says that the cell in ``row`` is missing, or infinite."""
        where = self.table.place(self.first_row + row)
        remedy = f"fill it in or remove the {where.split()[0]}"
        return UserError(f"{self.table.name} {where} has no finite '{self.name}': {remedy}")

    def _dates_in(self, text: pa.Array, there: np.ndarray) -> np.ndarray:
        text = pc.if_else(pa.array(there), text, None)
        fitting = [kind for kind in DATES if cast(text[int(there.argmax())], kind) is not None]
        for kind in fitting:
            with_nulls = cast(text, kind)
            if with_nulls is not None:
                return seconds(with_nulls)
        # A prefix that cannot be cast is looked for by halves: the cells are cast each for itself.
        good, bad = 0, len(text)
        while bad - good > 1:
            middle = (good + bad) // 2
            if any(cast(text.slice(0, middle), kind) is not None for kind in fitting):
                good = middle
            else:
                bad = middle
        raise self.wrong(bad - 1, f"a date like the first one, {text[int(there.argmax())].as_py()!r}")


@dataclass(frozen=True)
class _Within:
    """The items of lists, one after another, as rows of the table that holds the lists."""

    lists: Column
    ends: np.ndarray

    @property
    def name(self) -> str:
        return self.lists.table.name

    def place(self, row: int) -> str:
        list_ = int(np.searchsorted(self.ends, row, side="right"))
        return self.lists.table.place(self.lists.first_row + list_)


def _decoded(cells: pa.Array) -> pa.Array:
    return cells.dictionary_decode() if pa.types.is_dictionary(cells.type) else cells


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _joined(parts: Iterable[Any]) -> str:
    """A list as text, where spaces part the elements."""
    return " ".join(str(part).replace(" ", "_") for part in parts)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)

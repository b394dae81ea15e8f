"""Interactions in a table of any kind as arrays: who took what when, checked for what would spoil a training.

Shapes: n interactions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_diffurec.data.columns import Column
from recbole_diffurec.data.histories import Times
from recbole_diffurec.data.tables import Table, check_columns
from recbole_diffurec.data.times import TIME_UNITS, refuse_mixed_units, unit_of
from recbole_diffurec.errors import UserError

__all__ = ["CONTROL", "InteractionColumns", "Interactions", "read_interactions"]

# What no id may hold: a tab or a line end would part it in the files that are written, the others are never meant.
CONTROL = r"[\x00-\x1f\x7f]"


@dataclass(frozen=True)
class InteractionColumns:
    """What the columns of a table of interactions are called.

    Attributes
    ----------
    user, item, time : str
        Columns that must be there.
    rating, title : str or None
        Others that are read.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    rating: str | None = None
    title: str | None = None

    def options(self) -> dict[str, str]:
        """The columns by the names of the options that name them."""
        return {option: column for option, column in vars(self).items() if column is not None}


@dataclass(frozen=True)
class Interactions:
    """Interactions in the order of their table.

    Attributes
    ----------
    users, items : pyarrow.Array
        Ids by their numbers, text.
    user, item : numpy.ndarray
        int32 [n], numbers of the ids.
    time : numpy.ndarray
        float64 [n], seconds since 1970 where ``unit`` is not empty.
    unit : str
        What the times were: ``dates``, a unit of time since 1970, or empty for other numbers.
    rating : numpy.ndarray or None
        float64 [n], NaN where one is missing.
    titles : numpy.ndarray or None
        The first of each item, object [number of items], where a column of titles was read.
    """

    users: pa.Array
    items: pa.Array
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    unit: str
    rating: np.ndarray | None
    titles: np.ndarray | None

    def __len__(self) -> int:
        return len(self.user)

    def rated(self, least: float) -> Interactions:
        """Those with a rating of at least so much."""
        assert self.rating is not None
        kept = np.flatnonzero(self.rating >= least)
        return replace(self, user=self.user[kept], item=self.item[kept], time=self.time[kept], rating=self.rating[kept])


class _Ids:
    """A column of ids in parts: checked, and numbered once all are there, in the order in which they first come."""

    def __init__(self, table: Table):
        self._table, self._parts = table, list[pa.DictionaryArray]()
        self.missing, self.first_missing = 0, 0

    def add(self, column: Column) -> None:
        """The next part.

        Raises
        ------
        UserError
            An id would break the files that it is written to.
        """
        coded = column.ids().dictionary_encode()
        wrong = pc.match_substring_regex(coded.dictionary, CONTROL)
        if pc.any(wrong).as_py():
            row = pc.index(coded.indices, pc.index(wrong, True)).as_py()
            raise column.wrong(row, "an id without tabs, line ends and other control characters")
        if coded.null_count and not self.missing:
            self.first_missing = column.first_row + pc.index(coded.is_null(), True).as_py()
        self.missing += coded.null_count
        self._parts.append(coded)

    def firsts(self, among: np.ndarray) -> np.ndarray:
        """The rows of the last part in which an id comes first, ``among`` some of its rows."""
        indices = self._parts[-1].indices.fill_null(-1).to_numpy()[among]
        ids, first = np.unique(indices, return_index=True)
        return among[first[ids >= 0]]

    def numbered(self) -> tuple[pa.Array, list[np.ndarray]]:
        """The different ids, and their numbers in each part, int32."""
        whole = pa.chunked_array(self._parts).unify_dictionaries()
        return whole.chunk(0).dictionary, [chunk.indices.to_numpy() for chunk in whole.chunks]


def _refuse_missing(table: Table, ids: dict[str, _Ids]) -> None:
    told = [
        f"{of.missing:,} rows without '{name}' (the first is {table.place(of.first_missing)})"
        for name, of in ids.items()
        if of.missing
    ]
    if told:
        raise UserError(f"{table.name} has {' and '.join(told)}: fill them in or remove the rows")


class _Titles:
    """The first title of each item, of those that a part of the table has."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, rows: np.ndarray, texts: pa.Array) -> None:
        """The titles in some rows of the next part."""
        self._parts.append((rows, texts.take(pa.array(rows)).to_numpy(zero_copy_only=False)))

    def of(self, n_items: int, numbers: list[np.ndarray]) -> np.ndarray:
        """object [number of items]; ``numbers`` are those of the items in each part."""
        found = np.full(n_items, None, dtype=object)
        for (rows, texts), part in zip(self._parts, numbers):
            new = np.array([title is None for title in found[part[rows]]], dtype=bool)
            found[part[rows][new]] = texts[new]
        return found


def read_interactions(table: Table, columns: InteractionColumns, rating_needed: bool = False) -> Interactions:
    """The interactions in a table; of the text of a part no more than its different ids stays in memory.

    Parameters
    ----------
    table : Table
        With a row for each.
    columns : InteractionColumns
        What its columns are called.
    rating_needed : bool
        Whether each row must have a rating.

    Raises
    ------
    UserError
        A column is not there, or a row cannot be used; with its place.
    """
    options = columns.options()
    check_columns(table, options)
    users, items, times, titles = _Ids(table), _Ids(table), Times(), _Titles()
    time_parts, rating_parts = list[np.ndarray](), list[np.ndarray]()
    for part in table.parts(list(dict.fromkeys(options.values()))):
        users.add(part[columns.user])
        items.add(part[columns.item])
        time_parts.append(times.of(part[columns.time], np.ones(len(part[columns.time]), dtype=bool)))
        if columns.rating is not None:
            rating_parts.append(_ratings(part[columns.rating], rating_needed))
        if columns.title is not None:
            texts = part[columns.title].texts()
            titles.add(items.firsts(np.flatnonzero(texts.is_valid())), texts)
    if not time_parts:
        raise UserError(f"{table.name} holds no rows: give data")
    _refuse_missing(table, {columns.user: users, columns.item: items})
    time = np.concatenate(time_parts)
    refuse_mixed_units(table, columns.time, time)
    unit = "dates" if times.as_dates else unit_of(time)
    (user_ids, user), (item_ids, item) = users.numbered(), items.numbered()
    return Interactions(
        user_ids,
        item_ids,
        np.concatenate(user),
        np.concatenate(item),
        time / TIME_UNITS.get(unit, 1.0),
        unit,
        np.concatenate(rating_parts) if rating_parts else None,
        titles.of(len(item_ids), item) if columns.title is not None else None,
    )


def _ratings(column: Column, needed: bool) -> np.ndarray:
    rating = column.numbers()
    if needed and np.isnan(rating).any():
        raise column.wrong(int(np.isnan(rating).argmax()), "a rating, which min_rating needs")
    return rating

"""Tables of histories, a part at a time.

Rows are either interactions (``user_id``, ``item_id``, ``timestamp``) or whole histories (``user_id``, ``items``), the
oldest item first; in text, the items of a history are separated by spaces, or written as a JSON list.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recbole_diffurec.data.columns import Column, id_text
from recbole_diffurec.data.delimited import AtomicFile
from recbole_diffurec.data.tables import Table
from recbole_diffurec.data.times import refuse_mixed_units
from recbole_diffurec.errors import UserError

logger = logging.getLogger("recbole_diffurec")

HISTORIES_PER_BATCH = 4096

HistoryBatch = tuple[list[str], list[list[str]]]  # users, their histories


@dataclass(frozen=True)
class HistoryColumns:
    """What the columns of histories are called; the default names are taken where these are not there.

    Attributes
    ----------
    user, item, time : str
        Columns of interactions.
    items : str
        Beside ``user``, the column of whole histories.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    items: str = "items"

    def within(self, table: Table) -> HistoryColumns:
        """The names that ``table`` uses, its ``item`` and ``time`` empty where it holds whole histories.

        Raises
        ------
        UserError
            A column is missing.
        """
        own, default = vars(self), vars(HistoryColumns())
        found = {
            kind: next((name for name in (own[kind], default[kind]) if name in table.columns), "") for kind in default
        }
        if found["user"] and found["items"]:
            return HistoryColumns(found["user"], "", "", found["items"])
        if found["user"] and found["item"] and found["time"]:
            return HistoryColumns(found["user"], found["item"], found["time"], "")
        if not table.columns:
            raise UserError(f"{table.name} holds no rows: give at least one history")
        names = ", ".join(name if name.isprintable() else repr(name) for name in table.columns)
        raise UserError(
            f"{table.name} has the columns {names}: it needs {self.user}, {self.item} and {self.time}, or {self.user} "
            f"and {self.items}; name others with --user, --item and --time"
        )


def read_histories(
    table: Table, names: HistoryColumns = HistoryColumns(), split: bool = True
) -> Iterator[HistoryBatch]:
    """Users and their histories, in parts; interactions are ordered by time, ties as in the table.

    Parameters
    ----------
    table : Table
        Of interactions or of whole histories.
    names : HistoryColumns
        What its columns are called.
    split : bool
        Whether a space in a text of items parts two ids (see ``Column.id_lists``).

    Raises
    ------
    UserError
        The table cannot be read, or lacks a column or a value; with the row's place.
    """
    names = names.within(table)
    batches = _sequences(table, names, split) if names.items else _interactions(table, names)
    first = next(batches, None)
    if first is None:
        raise UserError(f"{table.name} holds no rows: give at least one history")
    yield first
    yield from batches


class _LeftOut:
    """Rows that nobody can use, counted."""

    def __init__(self, table: Table, why: str):
        self._table, self._why, self._count, self._first = table, why, 0, 0

    def add(self, rows: np.ndarray, first_row: int) -> None:
        if rows.any() and not self._count:
            self._first = first_row + int(rows.argmax())
        self._count += int(np.count_nonzero(rows))

    def say(self) -> None:
        if self._count:
            logger.warning(
                "%s: rows without %s are left out: %s, the first is %s",
                self._table.name,
                self._why,
                f"{self._count:,}",
                self._table.place(self._first),
            )


def _sequences(table: Table, names: HistoryColumns, split: bool) -> Iterator[HistoryBatch]:
    left_out = _LeftOut(table, "a user")
    for part in table.parts([names.user, names.items]):
        users = part[names.user].ids().to_pylist()
        histories = part[names.items].id_lists(split)
        nameless = np.array([user is None for user in users])
        left_out.add(nameless, part[names.user].first_row)
        if nameless.any():
            histories = [history for user, history in zip(users, histories) if user is not None]
            users = [user for user in users if user is not None]
        for start in range(0, len(users), HISTORIES_PER_BATCH):
            stop = start + HISTORIES_PER_BATCH
            yield users[start:stop], histories[start:stop]
    left_out.say()


class Times:
    """The times of a column whose rows come in parts, all of which are of one kind.

    Parameters
    ----------
    as_dates : bool or None
        Whether they are dates; None lets the first one decide.
    """

    def __init__(self, as_dates: bool | None = None):
        self.as_dates = as_dates
        self._zone: bool | None = None

    def of(self, column: Column, needed: np.ndarray) -> np.ndarray:
        """``Column.times`` of a part."""
        found, self.as_dates = column.times(needed, self.as_dates)
        zone = column.names_zone() if self.as_dates else None
        if zone is not None and self._zone not in (None, zone):
            kinds = ("without a time zone", "with one")
            raise column.wrong(0, f"a date {kinds[not zone]}, like those before it")
        self._zone = self._zone if zone is None else zone
        return found


class _Numbers:
    """Ids numbered in the order in which they first come."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}

    def of(self, ids: pa.Array) -> np.ndarray:
        """int32 [n]; a missing id has the number -1."""
        coded = ids.dictionary_encode()
        numbers = [self._of.setdefault(value, len(self._of)) for value in coded.dictionary.to_pylist()]
        return np.append(np.array(numbers, np.int32), np.int32(-1))[coded.indices.fill_null(-1).to_numpy()]

    def names(self) -> list[str]:
        """The ids in order of their numbers."""
        return list(self._of)


def _interactions(table: Table, names: HistoryColumns) -> Iterator[HistoryBatch]:
    """The ids are kept as numbers until all rows are there, since a user's may stand anywhere in the table."""
    users, items = _Numbers(), _Numbers()
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    left_out = _LeftOut(table, "a user or an item")
    times = Times(False if isinstance(table, AtomicFile) else None)  # whose times are numbers, by their type
    for part in table.parts([names.user, names.item, names.time]):
        user, item = users.of(part[names.user].ids()), items.of(part[names.item].ids())
        usable = (user >= 0) & (item >= 0)
        time = times.of(part[names.time], usable)
        left_out.add(~usable, part[names.user].first_row)
        parts.append((user, item, time))
    left_out.say()
    if not parts:
        return
    user, item, time = (np.concatenate(columns) for columns in zip(*parts))
    rows = np.flatnonzero((user >= 0) & (item >= 0))
    refuse_mixed_units(table, names.time, time[rows], rows)
    yield from _grouped(user[rows], item[rows], time[rows], users.names(), items.names())


def _grouped(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, user_names: list[str], item_names: list[str]
) -> Iterator[HistoryBatch]:
    """Interactions as histories in order of time, the users in order of their numbers."""
    item = item[np.lexsort((time, user))]
    counts = np.bincount(user, minlength=len(user_names))
    ends = np.cumsum(counts)
    for start in range(0, len(user_names), HISTORIES_PER_BATCH):
        stop = min(start + HISTORIES_PER_BATCH, len(user_names))
        first = ends[start - 1] if start else 0
        histories = np.split(item[first : ends[stop - 1]], ends[start : stop - 1] - first)
        named = [
            (name, [item_names[i] for i in history])
            for name, history in zip(user_names[start:stop], histories)
            if len(history)  # a user of left-out rows alone
        ]
        if named:
            yield [name for name, _ in named], [history for _, history in named]


def as_ids(values: Any, what: str) -> list[str]:
    """Ids that a program gives, as text.

    Parameters
    ----------
    values : iterable
        Text or whole numbers (see ``id_text``).
    what : str
        How the message calls them.

    Raises
    ------
    UserError
        ``values`` is no sequence of ids.
    """
    if _is_no_list(values):
        raise UserError(f"{what} must be a list of ids, got {_excerpt(values)}: give one such as ['50', '172']")
    ids = []
    for value in values:
        try:
            ids.append(value if type(value) is str else id_text(value))
        except ValueError:
            ids.append(None)
        if ids[-1] is None:
            raise UserError(f"{what} must be a list of ids, got {_excerpt(value)} in it: give text or whole numbers")
    return ids  # type: ignore[return-value]


def as_histories(sequences: Any) -> list[list[str]]:
    """Histories that a program gives, as lists of text.

    Raises
    ------
    UserError
        ``sequences`` is no sequence of sequences of ids.
    """
    if _is_no_list(sequences):
        raise UserError(
            f"sequences must be a list of histories, got {_excerpt(sequences)}: give one such as [['50', '172'], ['1']]"
        )
    return [as_ids(history, f"history {place} of sequences") for place, history in enumerate(sequences)]


def _is_no_list(value: Any) -> bool:
    """Whether iterating over ``value`` gives something else than its elements in order: characters, keys, columns."""
    others = isinstance(value, (str, bytes, Mapping, Set)) or hasattr(value, "columns")
    return others or not isinstance(value, Iterable)


def _excerpt(value: Any) -> str:
    if hasattr(value, "columns"):
        return f"a table ({type(value).__name__})"
    return reprlib.repr(value)

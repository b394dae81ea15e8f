"""Times in tables: dates as seconds, and the units of those that are numbers.

Shapes: n, the cells of a column.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from recbole_diffurec.errors import UserError

__all__ = ["DATES", "TIME_UNITS", "Rows", "cast", "is_date", "refuse_mixed_units", "seconds", "unit_of"]

# Today's times lie far apart in the units that people keep them in: none of the ranges below, from March 1973 to the
# year 2103, meets the next one.
FIRST_TIME, LAST_TIME = 1e8, 4.2e9  # seconds
TIME_UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}

# What a text may be cast to, if it is a date: one kind for all of a column, so that none is without a time zone among
# others with one.
DATES = tuple(pa.timestamp(unit, tz=zone) for unit in ("us", "ns") for zone in (None, "UTC"))


class Rows(Protocol):
    """As much of a table as a column needs to say where a cell stands."""

    @property
    def name(self) -> str: ...

    def place(self, row: int) -> str: ...


def cast(text: Any, kind: pa.DataType) -> Any:
    """Text, an array or a scalar, as what it is said to be; None where it is not."""
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        return None


def is_date(text: str) -> bool:
    """Whether a text is a date in a form of ISO 8601."""
    return any(cast(pa.scalar(text), kind) is not None for kind in DATES)


def seconds(stamps: pa.Array) -> np.ndarray:
    """Dates in seconds since 1970, NaN where one is missing: float64 [n]."""
    if pa.types.is_date(stamps.type):
        stamps = stamps.cast(pa.timestamp("s"), safe=False)
    per_second = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[stamps.type.unit]
    return stamps.cast(pa.int64()).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False) / per_second


def unit_of(times: np.ndarray) -> str:
    """The unit that times are in since 1970 where most of them, and the latest, are of one; else an empty text."""
    middle, latest = np.median(times), times.max()
    for unit, per_second in TIME_UNITS.items():
        if FIRST_TIME <= middle / per_second <= latest / per_second < LAST_TIME:
            return unit
    return ""


def refuse_mixed_units(table: Rows, name: str, times: np.ndarray, rows: np.ndarray | None = None) -> None:
    """Raise UserError where some times are of one unit and some of another, which would put histories out of order.

    Times that are no dates of today (numbers from 1 to n, say), and times that fill what lies between two units, as
    those counted from a start of their own do, are of one unit.

    Parameters
    ----------
    table : Rows
        Named in the message.
    name : str
        The column's.
    times : numpy.ndarray
        float64 [n]; NaN counts for nothing.
    rows : numpy.ndarray, optional
        int [n], where they stand in the table; by default one after another.
    """
    edges = np.array([edge * unit for unit in TIME_UNITS.values() for edge in (FIRST_TIME, LAST_TIME)])
    times = np.where(np.isnan(times), -np.inf, times)
    range_ = np.searchsorted(edges, times, side="right")  # odd within a unit, even between two
    found = np.flatnonzero(np.bincount(range_, minlength=len(edges) + 1))
    for one, other in itertools.pairwise(found):
        if one % 2 and other % 2:
            names = list(TIME_UNITS)
            first = [int((range_ == code).argmax()) for code in (one, other)]
            places = [table.place(int(row if rows is None else rows[row])) for row in first]
            raise UserError(
                f"{table.name} has times in {names[one // 2]} ({places[0]}) and in {names[other // 2]} ({places[1]}), "
                f"which would put histories out of order: bring '{name}' to one unit"
            )

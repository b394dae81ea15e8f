"""Tables of rows, in files or in memory: the one way in which training and inference read data.

A table hands out its rows in parts, every cell as it is written, and can say where a row stands, so that whoever finds
a cell wrong names its line. What the cells mean is for ``columns``.
"""

from __future__ import annotations

import abc
import codecs
import contextlib
import csv
import difflib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from recbole_diffurec.data.columns import Column
from recbole_diffurec.data.sniff import check_encoding, open_text
from recbole_diffurec.errors import UserError

__all__ = [
    "PART_BYTES",
    "PART_ROWS",
    "Frame",
    "JsonLines",
    "ParquetFile",
    "Table",
    "TextFile",
    "check_columns",
    "unreadable",
]

PART_ROWS = 100_000  # rows handed out at a time
# Bytes read at a time, which a line must fit into: no history is as long, and a file without line ends fills no memory.
PART_BYTES = 1 << 24


class Table(abc.ABC):
    """Rows in named columns.

    Attributes
    ----------
    name : str
        What messages call it.
    columns : list of str
        The columns' names, in order.
    """

    name: str
    columns: list[str]

    def parts(self, columns: Sequence[str]) -> Iterator[dict[str, Column]]:
        """The rows, some at a time, in the columns asked for; none is empty.

        Raises
        ------
        UserError
            The rows cannot be read; with the first line that is wrong.
        """
        row = 0
        try:
            for part in self._cells(columns):
                found = {name: Column(self, name, cells, row) for name, cells in part.items()}
                count = len(next(iter(found.values())))
                if count:
                    yield found
                row += count
        except UserError:
            raise
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise self._unreadable(error) from None

    @abc.abstractmethod
    def _cells(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The cells of ``parts``: an arrow array a column, or a sequence where each has a type of its own."""

    def place(self, row: int) -> str:
        """Where a row (from 0) stands, in words."""
        return f"row {row + 1}"

    def _unreadable(self, error: Exception) -> UserError:
        return unreadable(self.name, error)

    def _refuse_twins(self) -> None:
        twins = [name for place, name in enumerate(self.columns) if name in self.columns[:place]]
        if twins:
            raise UserError(f"{self.name} has the column '{twins[0]}' twice: rename one")


def unreadable(name: str, error: Exception) -> UserError:
    """The error that says why a table cannot be read."""
    if isinstance(error, OSError) and error.errno:
        return UserError(f"{name} cannot be read ({os.strerror(error.errno)}): check the path")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{name} cannot be read ({reason}): mend the file")


def check_columns(table: Table, options: Mapping[str, str]) -> None:
    """Raise UserError unless a table has the columns that options name.

    Parameters
    ----------
    table : Table
        The table.
    options : mapping of str to str
        Columns by the names of the options that name them.
    """
    for option, column in options.items():
        if column in table.columns:
            continue
        by_lower = {name.lower(): name for name in table.columns}
        near = difflib.get_close_matches(column.lower(), by_lower, n=1)
        hint = f" (did you mean '{by_lower[near[0]]}'?)" if near else ""
        names = ", ".join(name if name.isprintable() else repr(name) for name in table.columns) or "none"
        raise UserError(f"{table.name} has no column '{column}'{hint} but {names}: name one with --{option}")


class TextFile(Table):
    """A file of lines, decompressed where its name ends in ``.gz`` or ``.zst``.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        What messages call it.
    encoding : str
        Of its text.
    """

    def __init__(self, path: Path, name: str, encoding: str = "utf-8-sig"):
        check_encoding(encoding)
        self.path, self.name, self.encoding = path, name, encoding
        self._utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Lines and their numbers, from 1, without the end of the line.

        Raises
        ------
        UserError
            The file cannot be opened, or a line is no text of the encoding, or too long.
        """
        try:
            with open_text(self.path, self.encoding) as file:
                for number in itertools.count(1):
                    line = file.readline(PART_BYTES)
                    if not line:
                        return
                    if len(line) == PART_BYTES and not line.endswith("\n"):
                        raise UserError(f"{self.name} line {number} is longer than {PART_BYTES:,} bytes: mend the file")
                    if not line.isascii() and any("\ud800" <= character <= "\udfff" for character in line):
                        raise UserError(
                            f"{self.name} line {number} is not {self.encoding} text: save the file as UTF-8"
                            f"{self._encoding_hint}"
                        )
                    yield number, line.rstrip("\n")
        except UnicodeError as error:  # of encodings that have no way to carry on
            raise UserError(
                f"{self.name} is not {self.encoding} text ({error}): save the file as UTF-8{self._encoding_hint}"
            ) from None

    _encoding_hint = ""

    @abc.abstractmethod
    def _records(self) -> Iterator[tuple[int, Any]]:
        """Rows and the numbers of their lines, read slowly: where a fault is looked for."""

    def check_lines(self) -> None:
        """Raise UserError for the first line that cannot be read."""
        with contextlib.suppress(csv.Error):
            for _ in self._records():
                pass

    def place(self, row: int) -> str:
        with contextlib.suppress(UserError, OSError, csv.Error):
            for line, _ in itertools.islice(self._records(), row, None):
                return f"line {line}"
        return super().place(row)


class JsonLines(TextFile):
    """One JSON object a line; a name that is not there is missing."""

    def __init__(self, path: Path, name: str):
        super().__init__(path, name)
        try:
            first = [row for _, row in itertools.islice(self._records(), 1000)]
        except OSError as error:
            raise self._unreadable(error) from None
        self.columns = list(dict.fromkeys(itertools.chain.from_iterable(first)))

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in self._lines():
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = str(error).split(":")[0]
                raise UserError(f"{self.name} line {number} is no JSON ({reason}): mend or remove the line") from None
            if not isinstance(row, dict):
                raise UserError(f"{self.name} line {number} is no JSON object: write one a line, with named values")
            yield number, row

    def _cells(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        records = self._records()
        while rows := [row for _, row in itertools.islice(records, PART_ROWS)]:
            yield {name: _in_one_array([row.get(name) for row in rows]) for name in columns}


class ParquetFile(Table):
    """A Parquet file; its columns have types of their own."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        try:
            found = pa.parquet.read_metadata(path).schema
            self.columns = found.to_arrow_schema().names
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(error) from None
        self._refuse_twins()
        leaves = (found.column(place) for place in range(len(found)))
        self._texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]

    def _cells(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        row = 0
        with (
            pa.parquet.ParquetFile(self.path) as file,
            pa.parquet.ParquetFile(self.path, read_dictionary=self._texts) as by_dictionary,
        ):
            for group in range(file.num_row_groups):
                which: dict[str, Any] = {"row_groups": [group], "columns": list(columns)}
                first = next(by_dictionary.iter_batches(1, **which), None)
                # A long text that many rows name is left as it is there, once, until parts of it are known to be small.
                long = first is not None and max(map(_longest_text, first.columns), default=0) > _LONG_TEXT
                for batch in (by_dictionary if long else file).iter_batches(PART_ROWS, **which):
                    for start, end in self._parts_of(batch, row):
                        yield {name: _written_out(batch.column(name)[start:end]) for name in columns}
                    row += len(batch)

    def _parts_of(self, batch: pa.RecordBatch, row: int) -> Iterator[tuple[int, int]]:
        """Where to part rows, from the number ``row`` on, so that the text of each part fits into memory."""
        sizes = sum((_text_bytes(cells) for cells in batch.columns), np.zeros(len(batch), np.int64))
        if len(batch) and sizes.max() > PART_BYTES:
            place = self.place(row + int(np.flatnonzero(sizes > PART_BYTES)[0]))
            raise UserError(f"{self.name} {place} is longer than {PART_BYTES:,} bytes: mend the file")
        if sizes.sum() > _MOST_TEXT:
            raise UserError(
                f"{self.name} repeats long texts, so that {len(batch):,} of its rows hold {sizes.sum():,} bytes: mend "
                f"the file"
            )
        ends = [*(np.flatnonzero(np.diff(np.cumsum(sizes) // _PART_OF_TEXT)) + 1), len(batch)]
        return zip([0, *ends[:-1]], ends)


# Shorter texts than this may be as many as the rows of a part.
_PART_OF_TEXT, _MOST_TEXT = 1 << 27, 1 << 33
_LONG_TEXT = _PART_OF_TEXT // PART_ROWS


def _is_list(cells: pa.Array) -> bool:
    return isinstance(cells, (pa.ListArray, pa.LargeListArray))


def _longest_text(cells: pa.Array) -> int:
    """Bytes of the longest text in a dictionary, or in that of a list's values."""
    cells = cells.values if _is_list(cells) else cells
    return (pc.max(pc.binary_length(cells.dictionary)).as_py() or 0) if pa.types.is_dictionary(cells.type) else 0


def _text_bytes(cells: pa.Array) -> np.ndarray:
    """How long each cell is by its dictionary: int64 [n]; a list's values, of unknown length without one, in a line."""
    if pa.types.is_dictionary(cells.type):
        lengths = pc.binary_length(cells.dictionary).to_numpy(zero_copy_only=False).astype(np.int64)
        return np.append(lengths, 0)[cells.indices.fill_null(len(lengths)).to_numpy()]
    if _is_list(cells) and not pa.types.is_dictionary(cells.values.type):
        return np.diff(cells.offsets.to_numpy()).astype(np.int64)
    if _is_list(cells):
        ends = np.append(0, np.cumsum(_text_bytes(cells.values) + 1))
        return np.diff(ends[cells.offsets.to_numpy()])
    return np.zeros(len(cells), np.int64)


def _written_out(cells: pa.Array) -> pa.Array:
    return cells.dictionary_decode() if pa.types.is_dictionary(cells.type) else cells


class Frame(Table):
    """A pandas DataFrame."""

    def __init__(self, frame: pd.DataFrame, name: str = "the DataFrame"):
        self.frame, self.name = frame, name
        self.columns = [str(column) for column in frame.columns]
        self._refuse_twins()

    def _cells(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.frame), PART_ROWS):
            part = self.frame.iloc[start : start + PART_ROWS]
            found = {name: part.iloc[:, self.columns.index(name)] for name in columns}
            yield {
                name: _in_one_array(list(cells)) if cells.dtype == object else _from_pandas(cells)
                for name, cells in found.items()
            }


def _in_one_array(cells: list[Any]) -> pa.Array | list[Any]:
    """Objects as an arrow array where they are alike, and as they are otherwise: arrow would make them of one type."""
    kinds = set(map(type, cells)) - {type(None)}
    if len(kinds) == 1 and kinds <= {str, int, float}:
        with contextlib.suppress(pa.ArrowException, OverflowError):
            return pa.array(cells)
    return cells


def _from_pandas(cells: pd.Series) -> pa.Array:
    array = pa.Array.from_pandas(cells)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array

"""Tables of rows, in files or in memory: the one way in which training and inference read data.

A table hands out its rows in parts, every cell as it is written, and can say where a row stands, so that whoever finds
a cell wrong names its line. What the cells mean is for ``columns``. A row with more or fewer fields than the first one
is refused: read on, it would shift columns, and users would become items.
"""

from __future__ import annotations

import abc
import codecs
import contextlib
import csv
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recbole_diffurec.data.columns import Column
from recbole_diffurec.errors import UserError

__all__ = ["READABLE", "AtomicFile", "CsvFile", "Frame", "JsonLines", "ParquetFile", "Table", "open_table"]

PART_ROWS = 100_000  # rows handed out at a time
# Bytes read at a time, which a line must fit into: nothing shorter is a history, and nothing longer fills the memory.
PART_BYTES = 1 << 24

ATOMIC_KINDS = ("token", "token_seq", "float", "float_seq")


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
        if isinstance(error, OSError) and error.errno:
            return UserError(f"{self.name} cannot be read ({os.strerror(error.errno)}): check the path")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return UserError(f"{self.name} cannot be read ({reason}): mend the file")

    def _refuse_twins(self) -> None:
        twins = [name for place, name in enumerate(self.columns) if name in self.columns[:place]]
        if twins:
            raise UserError(f"{self.name} has the column '{twins[0]}' twice: rename one")


class TextFile(Table):
    """A file of lines.

    Parameters
    ----------
    path : Path
    name : str
        What messages call it.
    encoding : str
        Of its text.
    """

    def __init__(self, path: Path, name: str, encoding: str = "utf-8-sig"):
        self.path, self.name, self.encoding = path, name, encoding
        try:
            self._utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        except LookupError:
            raise UserError(
                f"encoding '{encoding}' is unknown: give one such as utf-8-sig, latin-1 or utf-16"
            ) from None

    def _lines(self) -> Iterator[tuple[int, str]]:
        """Lines and their numbers, from 1, without the end of the line.

        Raises
        ------
        UserError
            The file cannot be opened, or a line is no text of the encoding, or too long.
        """
        try:
            with open(self.path, encoding=self.encoding, errors="surrogateescape") as file:
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

    def place(self, row: int) -> str:
        with contextlib.suppress(UserError, csv.Error):
            for line, _ in itertools.islice(self._records(), row, None):
                return f"line {line}"
        return super().place(row)


class CsvFile(TextFile):
    """Lines of fields with a separator between them; the first one names the columns.

    Parameters
    ----------
    path : Path
    name : str
        What messages call it.
    separator : str
        Between two fields.
    quotes : bool
        Whether quotation marks enclose fields; without, they are characters like any other.
    encoding : str
        Of the text.
    """

    def __init__(self, path: Path, name: str, separator: str = ",", quotes: bool = True, encoding: str = "utf-8-sig"):
        super().__init__(path, name, encoding)
        self.separator, self.quotes = separator, quotes
        try:
            self._header_line, self.header = next(self._fields())
        except StopIteration:
            self._header_line, self.header = 1, []
        except OSError as error:
            raise self._unreadable(error) from None
        self.columns = self.header

    def _fields(self) -> Iterator[tuple[int, list[str]]]:
        """The fields of every line that is not empty, the first one's too, and the line's number."""
        lines = self._lines()
        if not self.quotes:
            for number, line in lines:
                if line:
                    yield number, line.split(self.separator)
            return
        reader = csv.reader((f"{line}\n" for _, line in lines), delimiter=self.separator)
        before = 0
        for fields in reader:
            if fields:
                yield before + 1, fields
            before = reader.line_num

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        for number, fields in itertools.islice(self._fields(), 1, None):
            if len(fields) != len(self.header):
                hint = ""
                if not self.quotes and any(field.startswith('"') for field in fields):
                    hint = " (quotation marks enclose nothing here)"
                raise UserError(
                    f"{self.name} line {number} has {len(fields)} fields where the first line has {len(self.header)}"
                    f"{hint}, which would shift its columns: mend or remove the line"
                )
            yield number, fields

    def _cells(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        names = [self.header[self.columns.index(name)] for name in columns]
        if len(self.separator.encode()) > 1:  # which arrow does not split by
            yield from self._slow_cells(columns)
            return
        quote: Any = '"' if self.quotes else False
        with pa.csv.open_csv(
            self.path,
            pa.csv.ReadOptions(block_size=PART_BYTES, encoding="utf8" if self._utf8 else self.encoding),
            pa.csv.ParseOptions(
                delimiter=self.separator, quote_char=quote, double_quote=self.quotes, newlines_in_values=self.quotes
            ),
            pa.csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        ) as batches:
            for batch in batches:
                yield dict(zip(columns, batch.columns))

    def _slow_cells(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        places = [self.columns.index(name) for name in columns]
        records = self._records()
        while rows := [fields for _, fields in itertools.islice(records, PART_ROWS)]:
            yield {name: pa.array([row[at] for row in rows], pa.string()) for name, at in zip(columns, places)}

    def _unreadable(self, error: Exception) -> UserError:
        if not isinstance(error, OSError):
            try:
                for _ in self._records():
                    pass
            except UserError as found:
                return found
            except csv.Error:
                pass
        return super()._unreadable(error)


class AtomicFile(CsvFile):
    """A file of RecBole: the columns carry their type (``item_id:token``), quotation marks are ordinary characters.

    Parameters
    ----------
    path : Path
    name : str, optional
        What messages call it; its path by default.
    separator, encoding : str
        As RecBole's ``field_separator`` and ``encoding``.

    Attributes
    ----------
    header : list of str
        The columns' names with their types.
    kinds : dict of str to str
        The columns' types by their names.
    """

    _encoding_hint = ", or name its encoding with --encoding"

    def __init__(self, path: Path, name: str | None = None, separator: str = "\t", encoding: str = "utf-8-sig"):
        if not separator or separator in ("\n", "\r"):
            raise UserError(f"field_separator must be text that stands between the columns, got {separator!r}")
        super().__init__(path, name or f"'{path}'", separator, False, encoding)
        self.columns = [title.rpartition(":")[0] or title for title in self.header]
        self.kinds = dict(zip(self.columns, (title.rpartition(":")[2] for title in self.header)))

    def check(self, needed: Mapping[str, str] | None = None) -> None:
        """Refuse a header that RecBole would stumble over, or that lacks a column, and a file without rows.

        Parameters
        ----------
        needed : mapping of str to str, optional
            Columns and their types that must be there.

        Raises
        ------
        UserError
            With the first thing that is wrong.
        """
        for column, kind in (needed or {}).items():
            if f"{column}:{kind}" not in self.header:
                raise UserError(
                    f"{self.name} has no column '{column}:{kind}' but {self.header}: name the columns of users, items "
                    f"and times with --USER_ID_FIELD, --ITEM_ID_FIELD and --TIME_FIELD, or mend the file's first line"
                )
        for title in self.header:
            column, _, kind = title.partition(":")
            if not column or kind not in ATOMIC_KINDS:
                raise UserError(
                    f"{self.name} line {self._header_line} has {title!r} where a column's name and type belong, such "
                    f"as 'item_id:token' (types: {', '.join(ATOMIC_KINDS)}): mend the file's first line"
                )
        self._refuse_twins()
        if next(itertools.islice(self._fields(), 1, None), None) is None:
            raise UserError(f"{self.name} has no rows below its first line: give data")

    def frame(self, titles: Sequence[str]) -> pd.DataFrame:
        """All rows as RecBole wants them, in columns given as in the header.

        Text is of type object, NaN where it is missing, which no list (``_seq``) is; numbers are float64.

        Raises
        ------
        UserError
            A line cannot be read, or has no number where one should be.
        """
        names = {title.rpartition(":")[0]: title for title in titles}
        found: dict[str, list[np.ndarray]] = {title: [] for title in titles}
        for part in self.parts(list(names)):
            for name, column in part.items():
                is_number = names[name].endswith(":float")
                found[names[name]].append(column.numbers() if is_number else _objects(column, names[name]))
        whole = {title: np.concatenate(parts or [np.empty(0, object)]) for title, parts in found.items()}
        # pandas 3 would make text its own type, which RecBole's numpy code does not expect.
        return pd.DataFrame({title: pd.Series(cells, dtype=cells.dtype) for title, cells in whole.items()})


def _objects(column: Column, title: str) -> np.ndarray:
    """Text as Python's, one object for all cells that are alike."""
    ids = column.ids().dictionary_encode()
    different = np.append(ids.dictionary.to_numpy(zero_copy_only=False), "" if title.endswith("_seq") else np.nan)
    return different[ids.indices.fill_null(len(different) - 1).to_numpy()]


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
            yield {name: [row.get(name) for row in rows] for name in columns}


class ParquetFile(Table):
    """A Parquet file; its columns have types of their own."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        try:
            self.columns = pa.parquet.read_schema(path).names
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(error) from None
        self._refuse_twins()

    def _cells(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        with pa.parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(PART_ROWS, columns=list(columns)):
                yield {name: batch.column(name) for name in columns}


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
            # Objects may each be of a type of their own, which arrow would make one.
            yield {name: list(cells) if cells.dtype == object else _one_array(cells) for name, cells in found.items()}


def _one_array(cells: pd.Series) -> pa.Array:
    array = pa.Array.from_pandas(cells)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


READABLE = (".inter", ".csv", ".jsonl", ".parquet")


def open_table(path: str | Path, what: str = "file", separator: str = "\t", encoding: str = "utf-8-sig") -> Table:
    """A table by its file's ending: ``.inter`` (RecBole's atomic files), ``.csv``, ``.jsonl`` or ``.parquet``.

    Parameters
    ----------
    path : str or Path
    what : str
        What messages call it, before its path.
    separator, encoding : str
        Of atomic files.

    Raises
    ------
    UserError
        The file is of another kind, or cannot be opened, or its first line names no columns.
    """
    path, name = Path(path), f"{what} '{path}'"
    if path.suffix == ".inter":
        table = AtomicFile(path, name, separator, encoding)
        table.check()
        return table
    if path.suffix == ".csv":
        csv_file = CsvFile(path, name)
        csv_file._refuse_twins()
        return csv_file
    if path.suffix == ".jsonl":
        return JsonLines(path, name)
    if path.suffix == ".parquet":
        return ParquetFile(path, name)
    raise UserError(f"{name} must end in one of {', '.join(READABLE)}")

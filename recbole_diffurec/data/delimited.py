"""Files of lines with separators: CSV, and the atomic files of RecBole.

A row with more or fewer fields than the first one is refused: read on, it would shift columns, and users would become
items.
"""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from recbole_diffurec.data.columns import Column
from recbole_diffurec.data.sniff import open_text
from recbole_diffurec.data.tables import PART_BYTES, PART_ROWS, TextFile
from recbole_diffurec.errors import UserError

__all__ = ["AtomicFile", "CsvFile"]

ATOMIC_KINDS = ("token", "token_seq", "float", "float_seq")


class CsvFile(TextFile):
    """Lines of fields with a separator between them; the first one names the columns.

    Parameters
    ----------
    path : Path
        The file.
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
        except (OSError, csv.Error) as error:
            raise super()._unreadable(error) from None
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
        if self.quotes:
            self._refuse_open_quote()

    def _refuse_open_quote(self) -> None:
        """Refuse a field whose quotation mark is never closed: it has swallowed all rows after it."""
        with open_text(self.path, self.encoding) as file:
            count = sum(part.count('"') for part in iter(functools.partial(file.read, PART_BYTES), ""))
        if count % 2 == 0:
            return
        line = 1
        reader = csv.reader((f"{line}\n" for _, line in self._lines()), delimiter=self.separator, strict=True)
        try:
            for _ in reader:
                line = reader.line_num + 1
        except csv.Error as error:
            if "end of data" in str(error):
                raise UserError(
                    f"{self.name} line {line} opens a quotation mark that nothing closes, so that no row after it can "
                    f"be told: mend the line"
                ) from None

    def _slow_cells(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        places = [self.columns.index(name) for name in columns]
        records = self._records()
        while rows := [fields for _, fields in itertools.islice(records, PART_ROWS)]:
            yield {name: pa.array([row[at] for row in rows], pa.string()) for name, at in zip(columns, places)}

    def _unreadable(self, error: Exception) -> UserError:
        if not isinstance(error, OSError):
            try:
                self.check_lines()
            except UserError as found:
                return found
        return super()._unreadable(error)


class AtomicFile(CsvFile):
    """A file of RecBole: the columns carry their type (``item_id:token``), quotation marks are ordinary characters.

    Parameters
    ----------
    path : Path
        The file.
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

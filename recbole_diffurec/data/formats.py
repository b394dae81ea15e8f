"""Tables by the endings of their files."""

from __future__ import annotations

import codecs
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from recbole_diffurec.data.delimited import AtomicFile, CsvFile
from recbole_diffurec.data.sniff import COMPRESSED, SEPARATORS, check_encoding, encoding_of, kind_of, separator_of
from recbole_diffurec.data.tables import JsonLines, ParquetFile, Table, unreadable
from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import files

__all__ = ["READABLE", "is_table", "open_table", "standard_input"]

logger = logging.getLogger("recbole_diffurec")

READABLE = (".inter", ".csv", ".jsonl", ".parquet", ".tsv")


def is_table(name: str) -> bool:
    """Whether a name is that of a file that ``open_table`` reads, rather than that of a data set."""
    return kind_of(Path(name)) in READABLE


def open_table(
    path: str | Path,
    what: str = "file",
    separator: str | None = None,
    encoding: str | None = None,
    named: bool = True,
) -> Table:
    """A table by its file's ending: ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, or RecBole's ``.inter``.

    Files of text may end in ``.gz`` or ``.zst`` beside. What is found of a CSV file, rather than given, is said where
    it is not what most have.

    Parameters
    ----------
    path : str or Path
        The file.
    what : str
        What messages call it.
    separator, encoding : str, optional
        Between columns, and of the text; by default what the file looks like. Atomic files are of UTF-8 with tabs.
    named : bool
        Whether messages name its path as well.

    Raises
    ------
    UserError
        The file is of another kind, or cannot be opened, or its first line names no columns.
    """
    path, name = Path(path), f"{what} '{path}'".lstrip() if named else what
    kind = kind_of(path)
    if kind == ".inter":
        table = AtomicFile(path, name, separator or "\t", encoding or "utf-8-sig")
        table.check()
        return table
    if kind in (".csv", ".tsv"):
        return _delimited(path, name, separator or ("\t" if kind == ".tsv" else None), encoding)
    if kind == ".jsonl":
        return JsonLines(path, name)
    if kind == ".parquet" and path.suffix == kind:
        return ParquetFile(path, name)
    if kind == ".parquet":
        raise UserError(f"{name} is a compressed Parquet file, which compresses itself: decompress it")
    raise UserError(f"{name} must end in one of {', '.join(READABLE)}, or in these and {' or '.join(COMPRESSED)}")


_PACKED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}


@contextlib.contextmanager
def standard_input() -> Iterator[Table]:
    """The table that comes from standard input: Parquet, JSON lines, or CSV otherwise, compressed ones too."""
    with files.standard_input() as path:
        with open(path, "rb") as content:
            begin = content.read(4)
        packed = next((ending for mark, ending in _PACKED.items() if begin.startswith(mark)), "")
        path = path.rename(path.with_name(f"table{packed}"))
        with pa.input_stream(path) as content:
            begin = content.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        kind = ".parquet" if begin.startswith(b"PAR1") else ".jsonl" if begin.startswith(b"{") else ".csv"
        path = path.rename(path.with_name(f"table{kind}{packed}"))
        yield open_table(path, "standard input", named=False)


def _delimited(path: Path, name: str, separator: str | None, encoding: str | None) -> CsvFile:
    found = []
    separator = "\t" if separator == r"\t" else separator  # as shells leave it
    if separator is not None and len(separator) != 1:
        raise UserError(f"separator must be one character, got {separator!r}: give one such as ;")
    if encoding is not None:
        check_encoding(encoding)
    try:
        if encoding is None:
            encoding = encoding_of(path, name)
            if encoding != "utf-8-sig":
                found.append(f"its text is {encoding} (--encoding=NAME if it is not)")
        if separator is None:
            separator = separator_of(path, encoding)
            if separator != ",":
                found.append(f"{SEPARATORS[separator]} stand between its columns")
    except OSError as error:
        raise unreadable(name, error) from None
    if found:
        logger.info("%s: %s", name, ", ".join(found))
    table = CsvFile(path, name, separator, encoding=encoding)
    table._refuse_twins()
    return table

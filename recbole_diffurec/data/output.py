"""Tables of results out, a part at a time: into files that are there as a whole at the end, or to standard output."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Callable, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from recbole_diffurec.data.sniff import kind_of
from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import files

__all__ = ["OUTPUTS", "check_output", "is_standard_output", "writing"]

OUTPUTS = (".csv", ".jsonl", ".parquet")
STANDARD = "-"  # CSV, or as its ending says: -.jsonl


def is_standard_output(path: str | Path) -> bool:
    """Whether ``-`` is meant."""
    return str(path).partition(".")[0] == STANDARD


def check_output(path: str | Path, read: Iterable[str | Path | None] = ()) -> None:
    """Refuse an output that ``writing`` could not write, before any work.

    Parameters
    ----------
    path : str or Path
        The file.
    read : Iterable of (str or Path or None)
        Files that the same command reads.

    Raises
    ------
    UserError
        It is of another kind, cannot be written, or is read as well.
    """
    _kind(_named(path), str(path))
    if not is_standard_output(path):
        files.check_writable(path, "output", read)


def _named(path: str | Path) -> Path:
    return Path(f"{STANDARD}.csv" if str(path) == STANDARD else path)


def _kind(path: Path, given: str) -> str:
    """The ending that says what a file is; ``given`` is what it is called in a message."""
    kind = kind_of(path)
    if kind not in OUTPUTS or (kind == ".parquet" and path.suffix != kind):
        raise UserError(f"output '{given}' must end in one of {', '.join(OUTPUTS)}, or the first two and .gz or .zst")
    return kind


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """A function that appends a table to ``path``, which is there as a whole once the block has ended.

    Parameters
    ----------
    path : str or Path
        ``.csv``, ``.jsonl`` (these also with ``.gz`` or ``.zst``) or ``.parquet``; ``-`` is standard output.

    Raises
    ------
    UserError
        The file's kind is unknown, or it cannot be written.
    OSError
        Standard output cannot be written.
    """
    standard, given, path = is_standard_output(path), str(path), _named(path)
    kind = _kind(path, given)
    target = files.standard_output() if standard else files.atomic_write(path)
    with target as file, _compressed(file, path.suffix) as inner, _appender(inner, kind) as append:
        yield append


@contextlib.contextmanager
def _compressed(file: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    if suffix == ".gz":
        with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
            yield cast(BinaryIO, packed)
    elif suffix == ".zst":
        # It closes the file that it writes to, which others still need.
        with pa.CompressedOutputStream(pa.PythonFile(_Kept(file), mode="w"), "zstd") as packed:
            yield packed
    else:
        yield file


class _Kept:
    """A file that is not closed with those around it."""

    closed = False

    def __init__(self, file: BinaryIO):
        self.write, self.flush = file.write, file.flush

    def close(self) -> None:
        self.flush()


@contextlib.contextmanager
def _appender(file: BinaryIO, kind: str) -> Iterator[Callable[[pd.DataFrame], None]]:
    if kind == ".parquet":
        with contextlib.ExitStack() as stack:
            writers: list[Any] = []

            def append_parquet(table: pd.DataFrame) -> None:
                data = _of_known_types(pa.Table.from_pandas(table, preserve_index=False))
                if not writers:
                    writers.append(stack.enter_context(pa.parquet.ParquetWriter(file, data.schema)))
                writers[0].write_table(data.cast(writers[0].schema))

            yield append_parquet
        return
    parts = 0

    def append(table: pd.DataFrame) -> None:
        nonlocal parts
        if kind == ".jsonl":
            text = table.to_json(orient="records", lines=True, force_ascii=False)
        else:
            text = _lists_as_json(table).to_csv(index=False, header=not parts, lineterminator="\n")
        parts += 1
        file.write(text.encode("utf-8"))

    yield append


def _of_known_types(table: pa.Table) -> pa.Table:
    """Columns in which a part has nothing but gaps as text: the next part may have some."""
    none = {pa.null(): pa.string(), pa.list_(pa.null()): pa.list_(pa.string())}
    return table.cast(pa.schema([field.with_type(none.get(field.type, field.type)) for field in table.schema]))


def _lists_as_json(table: pd.DataFrame) -> pd.DataFrame:
    lists = [name for name in table if any(isinstance(cell, list) for cell in table[name].head(1))]
    return table.assign(**{name: [json.dumps(cell, ensure_ascii=False) for cell in table[name]] for name in lists})

"""Files of histories in, files of recommendations out, a part at a time.

Formats by the file's ending: ``.inter`` (RecBole's atomic files), ``.csv``, ``.jsonl``, ``.parquet``. Rows are either
interactions (``user_id``, ``item_id``, ``timestamp``) or whole histories (``user_id``, ``items``), the oldest item
first; in CSV the items of a history are separated by spaces.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator

import numpy as np
import pandas as pd

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import files

INPUTS, OUTPUTS = (".inter", ".csv", ".jsonl", ".parquet"), (".csv", ".jsonl", ".parquet")
CHUNK = 100_000  # rows read at a time
HISTORIES_PER_BATCH = 4096  # histories handed on at a time

HistoryBatch = tuple[list[str], list[list[str]]]  # users, their histories


def read_histories(path: str | Path) -> Iterator[HistoryBatch]:
    """Users and their histories, in parts; interactions are ordered by time, ties as in the file.

    Raises
    ------
    UserError
        The file is missing or unreadable, of an unknown kind, or lacks a column or a value; with the row's number.
    """
    path = Path(path)
    if path.suffix not in INPUTS:
        raise UserError(f"input '{path}' must end in one of {', '.join(INPUTS)}")
    try:
        chunks = _chunks(path)
        first = next(chunks, None)
        if first is None or first.empty:
            raise UserError(f"input '{path}' holds no rows: give at least one history")
        names = set(first.columns)
        if {"user_id", "items"} <= names:
            yield from _sequences(path, _chain(first, chunks))
        elif {"user_id", "item_id", "timestamp"} <= names:
            yield from _interactions(path, _chain(first, chunks))
        else:
            raise UserError(
                f"input '{path}' has the columns {', '.join(map(str, first.columns))}: it needs user_id, item_id and "
                f"timestamp, or user_id and items"
            )
    except OSError as error:
        raise UserError(f"input '{path}' cannot be read ({error.strerror or error}): check the path") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"input '{path}' cannot be read ({str(error).splitlines()[0]}): mend the file") from None


def _chain(first: pd.DataFrame, rest: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    yield first
    yield from rest


def _chunks(path: Path) -> Iterator[pd.DataFrame]:
    """Parts of the file, every id a string; the columns without the types of atomic files."""
    if path.suffix == ".parquet":
        parquet = _pyarrow("reading")
        for batch in parquet.ParquetFile(path).iter_batches(CHUNK):
            yield batch.to_pandas()
        return
    if path.suffix == ".jsonl":
        with pd.read_json(path, lines=True, chunksize=CHUNK, dtype=False, convert_dates=False) as reader:
            yield from reader
        return
    separator = "\t" if path.suffix == ".inter" else ","
    with pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, chunksize=CHUNK) as reader:
        for chunk in reader:
            yield chunk.rename(columns=lambda name: name.split(":")[0]) if path.suffix == ".inter" else chunk


def _sequences(path: Path, chunks: Iterator[pd.DataFrame]) -> Iterator[HistoryBatch]:
    row = 0
    for chunk in chunks:
        for start in range(0, len(chunk), HISTORIES_PER_BATCH):
            part = chunk.iloc[start : start + HISTORIES_PER_BATCH]
            items = []
            for value in part["items"]:
                row += 1
                if isinstance(value, str):
                    value = value.split()
                if not isinstance(value, (list, tuple, np.ndarray)):
                    raise UserError(f"input '{path}' row {row}: items must be a list of ids, got {value!r}")
                items.append([str(item) for item in value])
            yield [str(user) for user in part["user_id"]], items


def _interactions(path: Path, chunks: Iterator[pd.DataFrame]) -> Iterator[HistoryBatch]:
    """The ids are kept as numbers until all rows are there, since a user's may stand anywhere in the file."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    parts: list[tuple[np.ndarray, ...]] = []
    row = 0
    for chunk in chunks:
        times = pd.to_numeric(chunk["timestamp"], errors="coerce").to_numpy(dtype=np.float64)
        if not np.isfinite(times).all():
            bad = int(np.flatnonzero(~np.isfinite(times))[0])
            raise UserError(
                f"input '{path}' row {row + bad + 1}: timestamp must be a number, got {chunk['timestamp'].iloc[bad]!r}"
            )
        numbered = [
            np.fromiter((known.setdefault(str(value), len(known)) for value in chunk[name]), np.int32, len(chunk))
            for name, known in (("user_id", users), ("item_id", items))
        ]
        parts.append((*numbered, times))
        row += len(chunk)
    user, item, time = (np.concatenate(columns) for columns in zip(*parts))
    item = item[np.lexsort((time, user))]
    ends = np.cumsum(np.bincount(user, minlength=len(users)))
    user_names, item_names = list(users), list(items)
    for start in range(0, len(user_names), HISTORIES_PER_BATCH):
        stop = min(start + HISTORIES_PER_BATCH, len(user_names))
        first = ends[start - 1] if start else 0
        histories = np.split(item[first : ends[stop - 1]], ends[start : stop - 1] - first)
        yield user_names[start:stop], [[item_names[i] for i in history] for history in histories]


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    """A function that appends a table to ``path``, which is there as a whole once the block has ended.

    Raises
    ------
    UserError
        The file's kind is unknown, or it cannot be written.
    """
    path = Path(path)
    if path.suffix not in OUTPUTS:
        raise UserError(f"output '{path}' must end in one of {', '.join(OUTPUTS)}")
    with files.atomic_write(path) as file, _appender(file, path.suffix) as append:
        yield append


@contextlib.contextmanager
def _appender(file: BinaryIO, kind: str) -> Iterator[Callable[[pd.DataFrame], None]]:
    if kind == ".parquet":
        parquet = _pyarrow("writing")
        import pyarrow

        with contextlib.ExitStack() as stack:
            writers: list[Any] = []

            def append_parquet(table: pd.DataFrame) -> None:
                data = pyarrow.Table.from_pandas(table, preserve_index=False)
                if not writers:
                    writers.append(stack.enter_context(parquet.ParquetWriter(file, data.schema)))
                writers[0].write_table(data)

            yield append_parquet
        return

    def append(table: pd.DataFrame) -> None:
        if kind == ".jsonl":
            text = table.to_json(orient="records", lines=True)
        else:
            text = table.to_csv(index=False, header=file.tell() == 0, lineterminator="\n")
        file.write(text.encode("utf-8"))

    yield append


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{what} Parquet needs pyarrow, which is not installed: pip install pyarrow") from None
    return pyarrow.parquet

"""Tables by the endings of their files."""

from __future__ import annotations

from pathlib import Path

from recbole_diffurec.data.delimited import AtomicFile, CsvFile
from recbole_diffurec.data.tables import JsonLines, ParquetFile, Table
from recbole_diffurec.errors import UserError

__all__ = ["READABLE", "open_table"]

READABLE = (".inter", ".csv", ".jsonl", ".parquet")


def open_table(path: str | Path, what: str = "file", separator: str = "\t", encoding: str = "utf-8-sig") -> Table:
    """A table by its file's ending: ``.inter`` (RecBole's atomic files), ``.csv``, ``.jsonl`` or ``.parquet``.

    Parameters
    ----------
    path : str or Path
        The file.
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

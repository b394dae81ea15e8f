"""What a file of text does not say of itself: its encoding, and what stands between its columns."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from pathlib import Path
from typing import IO

import pyarrow as pa

from recbole_diffurec.errors import UserError

__all__ = ["COMPRESSED", "SEPARATORS", "check_encoding", "encoding_of", "kind_of", "open_text", "separator_of"]

COMPRESSED = (".gz", ".zst")
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}

# The longer marks first, since one of them begins with another.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BLOCK = 1 << 20
_SAMPLE_ROWS, _SAMPLE_LINE = 100, 1 << 16  # lines, and characters of one
# Western text has its accents one at a time: the share of bytes beyond ASCII that may stand beside another one.
_SHARE_TOGETHER = 0.3


def kind_of(path: Path) -> str:
    """The ending that says what a file is, without that of its compression."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def open_text(path: Path, encoding: str) -> IO[str]:
    """A file of text to read, decompressed where its ending says so; what is no text becomes surrogates."""
    if path.suffix not in COMPRESSED:
        return open(path, encoding=encoding, errors="surrogateescape")
    return io.TextIOWrapper(pa.input_stream(path), encoding=encoding, errors="surrogateescape")


def check_encoding(encoding: str) -> None:
    """Raise UserError for an encoding that Python does not know, or that is none of text."""
    try:
        "a".encode(encoding)
    except (LookupError, ValueError):
        raise UserError(f"encoding '{encoding}' is unknown: give one such as utf-8-sig, latin-1 or utf-16") from None


def encoding_of(path: Path, name: str) -> str:
    """The encoding of a file of text, all of which is read.

    Marks at its beginning tell, and UTF-8 can hardly be anything else. Of what is left, text of a Western language is
    windows-1252; nothing tells the encodings of others apart.

    Parameters
    ----------
    path : Path
        The file.
    name : str
        What messages call it.

    Raises
    ------
    UserError
        It cannot be told.
    OSError
        The file cannot be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with pa.input_stream(path) as file:
        block = file.read(_BLOCK)
        for mark, encoding in _MARKS.items():
            if block.startswith(mark):
                return encoding
        while block:
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                break
            block = file.read(_BLOCK)
    if not block:
        return "utf-8-sig"
    foreign = re.findall(rb"[\x80-\xff]+", block)
    together = sum(len(run) for run in foreign if len(run) > 1) / sum(map(len, foreign))
    if together > _SHARE_TOGETHER or b"\0" in block:
        raise UserError(
            f"{name} is no UTF-8 text, and what else it is cannot be told: save it as UTF-8, or name its encoding with "
            f"--encoding, such as windows-1251, shift_jis or gb18030"
        )
    return "windows-1252"


def separator_of(path: Path, encoding: str) -> str:
    """What stands between the columns of a file: the character that makes most columns, and in every line as many."""
    with open_text(path, encoding) as file:
        lines = iter(lambda: file.readline(_SAMPLE_LINE), "")
        head = [line.rstrip("\n") for line in itertools.islice(lines, _SAMPLE_ROWS)]

    def columns(separator: str) -> tuple[bool, int]:
        try:
            counts = [len(row) for row in csv.reader(head, delimiter=separator) if row] or [1]
        except csv.Error:
            return False, 0
        return len(set(counts)) == 1 and counts[0] > 1, counts[0]

    return max(SEPARATORS, key=columns)

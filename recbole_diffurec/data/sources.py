"""Fetch a data set from its publisher and convert it to a RecBole atomic file.

RecBole's own download links are dead, so the files come from where they were first published, in their original
format, and are converted here.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import requests
from urllib3.exceptions import MaxRetryError, NewConnectionError, ReadTimeoutError

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import visible

__all__ = ["KNOWN_SOURCES", "Source", "check_name", "ensure_dataset"]

_HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
_NEEDED_COLUMNS = "user_id:token, item_id:token, timestamp:float"

# Seconds to connect, and seconds without a byte. pooch waits 1 + 2 + 3 s between four attempts.
_TIMEOUT = 30
_RETRIES = 3
_CHUNK_BYTES = 1 << 16
_LONGEST_LINE = 1 << 10  # bytes; the publishers' lines have fewer than 50

_NOT_IN_NAMES = ("/", "\\", "..", "\0")
_LONGEST_NAME = 200  # bytes; systems take 255, with the endings of its files
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"


class _MalformedError(Exception):
    """The original is not in the format its publisher documents; the message continues "it is unusable: "."""


class _NotFetchedError(Exception):
    """The original could not be downloaded; the message is the reason."""


class _HopelessError(Exception):
    """Carries a download error past pooch's retries, which repeat whatever ``requests`` raises."""

    def __init__(self, error: requests.RequestException) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Source:
    """Where a data set is published and how its original is read.

    Attributes
    ----------
    publisher : str
        ``"snap"`` or ``"grouplens"``; the key by which `ensure_dataset` takes a replacement address.
    base_url : str
        Address of the folder that holds the file, with a trailing slash.
    filename : str
        Name of the original in that folder.
    convert : callable
        Takes the path of the original and yields its rows ``(user, item, rating, timestamp)`` in file order, each
        value in the original's own spelling.
    n_rows : int
        How many rows the publisher counts.
    """

    publisher: str
    base_url: str
    filename: str
    convert: Callable[[Path], Iterator[tuple[str, ...]]]
    n_rows: int


def ensure_dataset(
    name: str,
    data_path: str | os.PathLike[str],
    base_urls: Mapping[str, str] | None = None,
    show_progress: bool = True,
) -> Path:
    """Return the ``.inter`` file of a data set, fetching and converting the publisher's original if there is none.

    The file is ``data_path/name/name.inter``: tab separated, with the columns ``user_id:token``, ``item_id:token``,
    ``rating:float`` and ``timestamp:float``, and the rows in the original's order. It appears only when complete, with
    as many rows as the publisher counts. An original that already lies in its folder is used instead of the network,
    and is left there; one that was downloaded is deleted once it is converted, or found to be unusable.

    Parameters
    ----------
    name : str
        Name of the data set, a plain folder name. Those in `KNOWN_SOURCES` can be fetched; any other has to be there.
    data_path : str or path
        Folder with one folder for each data set (RecBole's ``data_path``). Made if it does not exist.
    base_urls : mapping of str to str, optional
        Publisher (``"snap"``, ``"grouplens"``) to the http or https address of a folder that serves the same files,
        such as a mirror.
    show_progress : bool, default True
        Whether to show a progress bar on standard error during the download.

    Returns
    -------
    pathlib.Path
        Absolute path of the existing or newly made ``.inter`` file.

    Raises
    ------
    UserError
        If the name is not a plain folder name, or unknown with no file there; if the original cannot be fetched or is
        not in its publisher's format; if ``base_urls`` is wrong; or if ``data_path`` cannot be written to.
    """
    check_name(name)
    folder = Path(data_path).absolute() / name
    inter = folder / f"{name}.inter"
    # os.path.isfile, unlike Path.is_file, also answers False for a path that no file system accepts.
    if os.path.isfile(inter):
        return inter

    substitute = f"{inter} with the tab-separated columns {_NEEDED_COLUMNS}"
    source = KNOWN_SOURCES.get(name)
    if source is None:
        nearest = difflib.get_close_matches(name.lower(), KNOWN_SOURCES, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise UserError(
            f"dataset {name!r} is neither a file at {inter} nor one of the names that can be fetched,"
            f" {', '.join(KNOWN_SOURCES)}{hint}: correct the name or provide {substitute}"
        )

    _fetch_and_convert(source, _base_url(source, base_urls), inter, substitute, show_progress)
    return inter


def _fetch_and_convert(source: Source, base_url: str, inter: Path, substitute: str, show_progress: bool) -> None:
    """Make ``inter`` from the publisher's original; ``substitute`` says in messages what would do instead."""
    folder, name = inter.parent, inter.stem
    url = base_url + source.filename
    original = folder / source.filename
    found_original = os.path.isfile(original)
    missing_folders = [path for path in (folder, folder.parent) if not os.path.isdir(path)]
    try:
        os.makedirs(folder, exist_ok=True)
        _download(base_url, source.filename, folder, show_progress)
        _write_inter(source.convert(original), source.n_rows, inter)
        # An original that was there before belongs to the user.
        if not found_original:
            original.unlink(missing_ok=True)  # another process may be at the same work
    except _NotFetchedError as error:
        raise UserError(
            f"dataset {name!r} is not at {inter} and could not be fetched from {url} ({error}): check the network and"
            f" try again, or provide {substitute}"
        ) from None
    except _MalformedError as error:
        if found_original:
            raise UserError(
                f"the file {original}, meant as the original of dataset {name!r}, is unusable: {error}; delete it to"
                f" have it fetched from {url}, or provide {substitute}"
            ) from None
        original.unlink(missing_ok=True)
        raise UserError(
            f"the file fetched from {url} for dataset {name!r} is unusable and was deleted: {error}; try again later,"
            f" or provide {substitute}"
        ) from None
    except OSError as error:
        raise UserError(
            f"data_path {os.fspath(folder.parent)!r} cannot take dataset {name!r} ({error.strerror or error} at"
            f" {folder}): give a folder that can be written to and has room, or provide {substitute}"
        ) from None
    finally:
        # Leave no empty folders after a failure; rmdir removes none that has anything in it.
        for made in missing_folders:
            with contextlib.suppress(OSError):
                made.rmdir()


def check_name(name: str) -> None:
    """Raise UserError unless ``name`` stays inside ``data_path`` when it is used as a folder name."""
    if not isinstance(name, str) or not name or name.startswith(".") or any(bad in name for bad in _NOT_IN_NAMES):
        raise UserError(
            f"dataset name {name!r} is not a plain folder name: give one without slashes, backslashes, NUL characters,"
            f" double dots or a leading dot, such as {next(iter(KNOWN_SOURCES))}"
        )
    try:
        length = len(name.encode())
    except UnicodeEncodeError:  # bytes of a command line that are no UTF-8
        raise UserError(f"dataset name {name!r} is no UTF-8 text: give another one") from None
    if length > _LONGEST_NAME:
        raise UserError(
            f"dataset name {name!r} is too long for the names of its files: give one of at most {_LONGEST_NAME} bytes"
        )


def _base_url(source: Source, base_urls: Mapping[str, str] | None) -> str:
    """Return the folder address to fetch from, with a trailing slash; raise UserError if the replacement is wrong."""
    base_urls = base_urls or {}
    publishers = sorted({known.publisher for known in KNOWN_SOURCES.values()})
    for publisher, address in base_urls.items():
        if publisher not in publishers:
            raise UserError(
                f"base_urls has the unknown publisher {publisher!r}: use one of {', '.join(publishers)} or leave it out"
            )
        if not re.match("https?://.", str(address)):
            raise UserError(
                f"base_urls gives {address!r} for publisher {publisher!r}: give an address that starts with http://"
                f" or https://"
            )
    return base_urls.get(source.publisher, source.base_url).rstrip("/") + "/"


def _download(base_url: str, filename: str, folder: Path, show_progress: bool) -> None:
    """Put ``base_url + filename`` into ``folder`` under its own name, whole or not at all, unless it is there.

    Raises _NotFetchedError if the network or the server is at fault, and OSError if the disk is.
    """
    import pooch  # here, since in a notebook without ipywidgets it warns that bars are missing

    # It reports failures in its own words, some as several sentences; ensure_dataset has its own.
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError("no permission to write")
    pooch.get_logger().setLevel(logging.WARNING)
    http = pooch.HTTPDownloader(
        progressbar=show_progress and visible.bars_are_drawn(),
        chunk_size=_CHUNK_BYTES,
        timeout=_TIMEOUT,
        hooks={"response": _demand_whole_body},
    )

    def download(url: str, output_file: Any, caller: Any) -> None:
        try:
            http(url, output_file, caller)
        except requests.RequestException as error:
            if _is_worth_retrying(error):
                raise
            raise _HopelessError(error) from None

    try:
        # The publishers give no checksums, so the registry holds none; the conversion checks every line instead.
        pooch.create(path=folder, base_url=base_url, registry={filename: None}, retry_if_failed=_RETRIES).fetch(
            filename, downloader=download
        )
    except _HopelessError as hopeless:
        raise _NotFetchedError(_reason(hopeless.error)) from None
    except requests.RequestException as error:
        raise _NotFetchedError(_reason(error)) from None


def _demand_whole_body(response: requests.Response, **_: Any) -> None:
    """Make a body shorter than its Content-Length an error, which urllib3 1.x does not do by itself.

    Without it a CSV file whose transfer broke off at the end of a line would pass for a whole one.
    """
    response.raw.enforce_content_length = True


def _is_worth_retrying(error: requests.RequestException) -> bool:
    """Tell a passing fault of a server that was reached from one that another attempt would only repeat."""
    if error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    # Offline, each attempt can cost a whole connect or name server timeout, and a user would wait minutes to be told;
    # so with a server that accepts a connection and stays silent. requests lets urllib3 make one attempt, and then
    # MaxRetryError means that no connection came about.
    never_connected = bool(error.args) and isinstance(error.args[0], MaxRetryError)
    # The errors that requests derives from ValueError are about the address itself.
    return not never_connected and not isinstance(error, (requests.Timeout, ValueError))


def _reason(error: requests.RequestException) -> str:
    """Say in a few words why a download failed."""
    if error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the transfer broke off half-way"
    cause = error.args[0] if error.args else type(error).__name__
    # A server that goes silent in mid-transfer is no requests.Timeout.
    if isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError):
        return f"no answer within {_TIMEOUT} s"
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    if isinstance(cause, NewConnectionError):
        # Its text begins with the name of a connection object.
        return str(cause).rpartition(": ")[2]
    return str(cause)


def _write_inter(rows: Iterable[tuple[str, ...]], n_rows: int, inter: Path) -> None:
    """Write the rows as an atomic file that appears under its name only when it is complete.

    A transfer without a length may end anywhere, and what was received before may be sound line for line: only the
    number of its rows tells it from the whole. Raises _MalformedError where that is not ``n_rows``.
    """
    # Not tempfile: its files are readable by their owner alone, and the data folder may be shared.
    partial = inter.with_name(f".{inter.name}.{uuid.uuid4().hex}.part")
    try:
        with open(partial, "x", encoding="utf-8", newline="\n") as out:
            out.write(_HEADER)
            written = sum(1 for row in rows if out.write("\t".join(row) + "\n"))
        if written != n_rows:
            raise _MalformedError(f"it has {written:,} rows where its publisher counts {n_rows:,}")
        os.replace(partial, inter)
    finally:
        partial.unlink(missing_ok=True)


def _read_snap_csv(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a "ratings only" file: ``user,item,rating,timestamp`` and no header.

    Source: https://snap.stanford.edu/data/amazon/productGraph/ (also at https://jmcauley.ucsd.edu/data/amazon/).
    """
    with open(path, "rb") as lines:
        yield from _parse(lines, ",")


def _read_ml_1m_zip(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the rows of ``ratings.dat``: ``UserID::MovieID::Rating::Timestamp``.

    Only that member is read, as a stream; nothing is extracted, so the names in the archive never become paths.

    Source: https://files.grouplens.org/datasets/movielens/ml-1m-README.txt
    """
    member = "ml-1m/ratings.dat"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as lines:
            yield from _parse(lines, "::")
    except KeyError:
        raise _MalformedError(f"the zip archive has no member {member}") from None
    # RuntimeError: a damaged flag makes a member look encrypted, or packed by an unknown method. OSError: a damaged
    # offset leads to an impossible seek (EINVAL), and bzip2 refuses data without a number; others are the disk's fault.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise _MalformedError(f"it is not a sound zip archive ({error or type(error).__name__})") from None


def _parse(lines: IO[bytes], separator: str) -> Iterator[tuple[str, ...]]:
    """Yield the four fields of each line; raise _MalformedError at the first line that has others.

    The fields stay text: a data frame would turn the item 0205616461 into a number and the user "nan" into a gap.
    Whatever the file holds, no more of it is in memory at a time than ``_LONGEST_LINE``.
    """
    # A quotation mark or a control character in an id would break the tab-separated file when RecBole reads it.
    token = rf'([^\x00-\x1f"{separator[0]}]+)'
    pattern = re.compile(separator.join([token, token, f"({_NUMBER})", f"({_NUMBER})"]))
    count = 0
    for count, raw in enumerate(iter(lambda: lines.readline(_LONGEST_LINE), b""), start=1):
        if len(raw) == _LONGEST_LINE and not raw.endswith(b"\n"):
            raise _MalformedError(f"line {count} is longer than {_LONGEST_LINE:,} bytes")
        try:
            line = raw.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError:
            raise _MalformedError(f"line {count} is not UTF-8 text") from None
        match = pattern.fullmatch(line)
        if match is None:
            raise _MalformedError(f"line {count} {_fault(line, separator)}")
        yield match.groups()
    if count == 0:
        raise _MalformedError("it is empty")


def _fault(line: str, separator: str) -> str:
    """Say what is wrong with a line that `_parse` refused."""
    columns = ["user", "item", "rating", "timestamp"]
    fields = line.split(separator)
    excerpt = repr(line if len(line) <= 60 else line[:60] + "...")
    if len(fields) != len(columns):
        return f"is {excerpt}, where {separator.join(columns)} belongs"
    for column, field in zip(columns[2:], fields[2:]):
        if not re.fullmatch(_NUMBER, field):
            return f"is {excerpt}, where the {column} is not a number"
    return f"is {excerpt}, where an id is empty or has a quotation mark, a control character or a {separator[0]!r}"


_SNAP = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens/"

KNOWN_SOURCES: dict[str, Source] = {
    "amazon-beauty": Source("snap", _SNAP, "ratings_Beauty.csv", _read_snap_csv, 2_023_070),
    "amazon-toys-games": Source("snap", _SNAP, "ratings_Toys_and_Games.csv", _read_snap_csv, 2_252_771),
    "ml-1m": Source("grouplens", _GROUPLENS, "ml-1m.zip", _read_ml_1m_zip, 1_000_209),
}
"""The data sets that `ensure_dataset` can fetch, by RecBole name."""

"""Files that are written whole or not at all, folders for output, and what the system says of both."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from recbole_diffurec.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is swept
    fcntl = None  # type: ignore[assignment]

# A file that is being written, beside the one that it is to become.
_PART = re.compile(r"\..+\.[0-9a-f]{32}\.part")
# Bytes of a name that its part keeps, so that any name the system takes has a part that it takes too.
_KEPT_OF_NAME = 100
# Bytes of a name that is made of others; systems take 255 in all.
_LONGEST_STEM = 160


@contextlib.contextmanager
def nameable() -> Iterator[None]:
    """Tell in a sentence of a name that the system's encoding has no form for, as under an ASCII locale.

    The command line starts again with UTF-8 there; a program that calls this package has to begin so.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise UserError(
            f"{error.object!r} is no name that this process can give to the system, whose names are {error.encoding}: "
            f"set PYTHONUTF8=1, or a locale with UTF-8, before Python starts"
        ) from None


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of ``path`` once the block has ended without an error.

    The content is on the disk before the name is, so that ``path`` is the old file or the new one whatever happens.
    Of a link the target is replaced. A device or a pipe is given the content when the block has ended.

    Parameters
    ----------
    path : str or Path
        The file.

    Yields
    ------
    BinaryIO
        Open for writing, and for reading back.

    Raises
    ------
    UserError
        The disk is full, or the place cannot be written to.
    """
    try:
        stream = _stream(path)
        with _replacing(Path(os.path.realpath(path))) if stream is None else _passed_on(stream) as file:
            yield file
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written ({error.strerror or error}): free some space or give another place; what was "
            f"there before is untouched"
        ) from None


@contextlib.contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """A binary file to write, whose content goes to standard output once the block has ended without an error.

    Raises
    ------
    OSError
        Standard output cannot be written.
    """
    with tempfile.TemporaryFile() as content:
        yield content
        content.seek(0)
        shutil.copyfileobj(content, sys.stdout.buffer)
        sys.stdout.flush()


@contextlib.contextmanager
def standard_input() -> Iterator[Path]:
    """What comes from standard input, all of it, as a file that may be read again, and called otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-input"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path


def _stream(path: str | Path) -> str | int | None:
    """What to open where ``path`` is written to rather than replaced, as a device or a pipe is; else None.

    ``/dev/stdout`` is such a one whatever it goes into, by its number: opened by its name, a file would be written from
    its beginning.
    """
    link = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        if not os.path.islink(link):
            break
        link = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
        own = re.fullmatch(rf"/proc/(?:self|{os.getpid()})/fd/(\d+)", link)
        if own:
            return int(own[1])
    regular = os.path.isfile(path) or os.path.isdir(path)
    return None if regular or not os.path.exists(path) else os.fspath(path)


@contextlib.contextmanager
def _passed_on(stream: str | int) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as content:
        yield content
        content.seek(0)
        with open(stream, "wb", closefd=isinstance(stream, str)) as target:
            shutil.copyfileobj(content, target)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    sweep(path.parent)
    file, part = _open_part(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _open_part(path: Path) -> tuple[BinaryIO, Path]:
    """A new, locked file beside ``path``."""
    name = os.fsencode(path.name)[:_KEPT_OF_NAME].decode("utf-8", errors="ignore")
    while True:
        # Not tempfile: its files are readable by their owner alone, and results may be shared.
        part = path.with_name(f".{name}.{uuid.uuid4().hex}.part")
        file = open(part, "x+b")  # noqa: SIM115  closed by the caller
        _lock(file, wait=True)
        if part.exists():
            return file, part
        file.close()  # another process swept it before it was locked


def sweep(folder: str | Path) -> None:
    """Remove the files that killed processes were writing in ``folder``; who still writes one holds its lock."""
    try:
        parts = [entry.path for entry in os.scandir(folder) if _PART.fullmatch(entry.name) and entry.is_file()]
    except OSError:
        return
    for part in parts:
        with contextlib.suppress(OSError), open(part, "rb") as file:
            if _lock(file, wait=False):
                os.unlink(part)


def _lock(file: IO[bytes], wait: bool) -> bool:
    """Lock a file until it is closed, or its process ends; False where another one has it, or nothing can be locked."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def unique_name(stem: str) -> str:
    """``STEM-TIME-RANDOM``, for files that are made for a run, with as much of ``stem`` as ``shortened`` leaves."""
    return f"{shortened(stem)}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def shortened(stem: str) -> str:
    """``stem``, or where no system might take it with an ending, its beginning and a digest of all of it."""
    encoded = stem.encode("utf-8", errors="surrogateescape")
    if len(encoded) <= _LONGEST_STEM:
        return stem
    return f"{encoded[:_LONGEST_STEM].decode('utf-8', errors='ignore')}~{hashlib.sha256(encoded).hexdigest()[:8]}"


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; what has no form in it, such as parts of odd file names, is escaped."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def absolute(path: str | Path, what: str) -> Path:
    """The whole path of a folder; an empty one, which would be the working folder, is refused."""
    if not os.fspath(path):
        raise UserError(f"{what} '' is no folder: give its path, such as '.' for the one that this is called in")
    return Path(os.path.abspath(path))


def make_folder(path: str | Path, what: str) -> None:
    """Make a folder for output, or say in one sentence why it cannot be."""
    try:
        os.makedirs(absolute(path, what), exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name that no system has
        raise UserError(f"{what} '{path}' cannot be made ({_reason(error)}): give another one") from None
    try:
        tempfile.TemporaryFile(dir=path).close()  # the permissions alone do not tell of file systems that take no files
    except OSError as error:
        raise UserError(f"{what} '{path}' cannot be written to ({_reason(error)}): give another one") from None


def _reason(error: OSError | ValueError) -> str:
    """What the system or Python says against a path or a file."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return getattr(error, "strerror", None) or str(error)


def check_writable(
    path: str | Path | None, what: str, read: Iterable[str | Path | None] = (), regular: bool = False
) -> Path | None:
    """Refuse an output file that could not be written, before hours are spent on what it is to hold.

    Parameters
    ----------
    path : str or Path or None
        The file; None for none.
    what : str
        The parameter that names it.
    read : Iterable of (str or Path or None)
        Files that the same command reads.
    regular : bool
        Refuse devices and pipes too.

    Raises
    ------
    UserError
        It is a folder, its name is longer than the system takes, its folder cannot be made or written to, or a
        checkpoint or a file that is read would be overwritten.
    """
    if path is None:
        return None
    if not os.fspath(path) or os.fspath(path).endswith(("/", os.sep)) or os.path.isdir(path):
        raise UserError(f"{what} '{path}' is a folder: give the path of a file")
    if any(_same(path, other) for other in read if other is not None):
        raise UserError(f"{what} '{path}' is read as well, and would be lost: give another file")
    try:
        if _stream(path) is not None:
            if regular:
                raise UserError(f"{what} '{path}' is no regular file: give the path of one")
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return Path(path)
        real = Path(os.path.realpath(path) if os.path.islink(path) else path)
        make_folder(str(real.parent), f"the folder of {what},")
        os.stat(real)
    except FileNotFoundError:
        return Path(path)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{what} '{path}' cannot be written ({_reason(error)}): give another one") from None
    if holds_checkpoint(real):
        raise UserError(f"{what} '{path}' is a checkpoint, which would be lost: give another file")
    return Path(path)


def _same(path: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to one file, by links or by its number; False where one of them leads to none."""
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False


def holds_checkpoint(path: str | Path) -> bool:
    """Whether a file was written by ``torch.save``, as far as its list of contents tells."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False
    return any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names)


def is_bare(name: object) -> bool:
    """Whether a name that a file holds is that of something in one folder, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and "\0" not in name and os.path.basename(name) == name


def content_of(path: Path) -> bytes:
    """All bytes of a file that is no pipe or device, which would be waited for, or have no end.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is something else.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("it is no regular file")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """What a file of JSON holds.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is no JSON, or nested deeper than anything that is kept in one.
    """
    try:
        return json.loads(content_of(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_lines(path: str | Path, what: str) -> list[str]:
    """The lines of a text file that are not blank, stripped; ``UserError`` where it cannot be read."""
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{what} '{path}' cannot be read ({_reason(error)}): check the path") from None

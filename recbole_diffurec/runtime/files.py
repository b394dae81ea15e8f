"""Files that are written whole or not at all, folders for output, and what the system says of both."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import BinaryIO, Iterator

from recbole_diffurec.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of ``path`` once the block has ended without an error.

    The content is on the disk before the name is, so that ``path`` is the old file or the new one whatever happens.

    Raises
    ------
    UserError
        The disk is full, or the place cannot be written to.
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner alone, and results may be shared.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written ({error.strerror or error}): free some space or give another place; what was "
            f"there before is untouched"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def make_folder(path: str, what: str) -> None:
    """Make a folder for output, or say in one sentence why it cannot be."""
    try:
        os.makedirs(path, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError as error:
        raise UserError(f"{what} '{path}' cannot be made ({error.strerror}): give another one") from None
    if not writable:
        raise UserError(f"{what} '{path}' cannot be written to: give another one")


def check_writable(path: str | Path | None, what: str) -> Path | None:
    """Refuse an output file that could not be written, before hours are spent on what it is to hold.

    Parameters
    ----------
    path : str or Path or None
        The file; None for none.
    what : str
        The parameter that names it.
    """
    if path is None:
        return None
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{what} '{path}' is a folder: give the path of a file")
    make_folder(str(path.parent), f"the folder of {what},")
    return path


def read_lines(path: str | Path, what: str) -> list[str]:
    """The lines of a text file that are not blank, stripped; ``UserError`` where it cannot be read."""
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{what} '{path}' cannot be read ({reason}): check the path") from None

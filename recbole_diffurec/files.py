"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import BinaryIO, Iterator

from recbole_diffurec.errors import UserError


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[BinaryIO]:
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
    with whole(path) as file:
        file.write(text.encode("utf-8"))

"""The file around a checkpoint: a zip archive of stored records that ends in a digest of all its bytes.

``torch.save`` writes the archive. ``torch.load`` takes an archive at its word: it inflates what is compressed, makes
objects as large as a record says, and compares no sums. So the archive is gone through once before it is loaded.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

# The digest is the archive's comment, its last bytes. Without a comment the last bytes are zip's end of the directory.
_DIGEST_BYTES, _END, _END_BYTES = 64, b"PK\x05\x06", 22
_CHUNK = 2**20
# Of a record's attributes, the bit by which PyTorch takes it for a folder, and leaves a tensor as the memory was.
_FOLDER = 0x10
# What the pickle of tensors and plain values names. PyTorch's loader takes more, such as a bytearray of any size.
_IMPORTS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|torch(\.storage)? \w+Storage"
    r"|torch uint\d+"
)


class DamagedError(Exception):
    """An archive is not what was written; the message says why."""


class ForeignError(Exception):
    """An archive holds more than tensors and plain values."""


def seal(file: BinaryIO) -> None:
    """Let an archive that ``torch.save`` has just written to ``file`` end in its digest."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = bytes(_DIGEST_BYTES)
    digest = _digest(file, file.seek(0, os.SEEK_END) - _DIGEST_BYTES)
    file.seek(-_DIGEST_BYTES, os.SEEK_END)
    file.write(digest)


def _digest(file: BinaryIO, size: int) -> bytes:
    """Of the first ``size`` bytes."""
    total = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(min(_CHUNK, size)):
        total.update(chunk)
        size -= len(chunk)
    return total.hexdigest().encode()


def check(path: str | Path) -> int:
    """Go through an archive without making anything of what it holds.

    Parameters
    ----------
    path : str or Path
        The file. Archives without a digest, as version 0.1.0 wrote them, are checked by the sums of their records.

    Returns
    -------
    int
        The bytes of its pickle, and so more than the number of values in it.

    Raises
    ------
    DamagedError
        It is cut short or altered, or its records would be larger than the file.
    ForeignError
        Its pickle asks for anything but tensors and plain values.
    OSError
        The file cannot be read; ``zipfile`` has further errors for what is no archive.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(-min(size, _DIGEST_BYTES), os.SEEK_END)
        ending = file.read()
        without = ending[-_END_BYTES:].startswith(_END) and ending.endswith(b"\0\0")  # the comment's length
        if not without and ending != _digest(file, size - len(ending)):
            raise DamagedError("its digest is not that of its content")
        with zipfile.ZipFile(file) as archive:
            pickled = _pickle_of(archive, size)
    if not all(map(_IMPORTS.fullmatch, _imports(pickled))):
        raise ForeignError
    return len(pickled)


def _pickle_of(archive: zipfile.ZipFile, size: int) -> bytes:
    """The pickle in an archive of ``size`` bytes whose records are stored as PyTorch stores them, with their sums."""
    records = archive.infolist()
    names = [record.filename for record in records]
    root = names[0].partition("/")[0] if names else ""  # as PyTorch finds it
    if len(set(names)) < len(names) or not all(name.startswith(f"{root}/") for name in names):
        raise DamagedError("its list of contents is not PyTorch's")
    if any(record.compress_type != zipfile.ZIP_STORED or record.external_attr & _FOLDER for record in records):
        raise DamagedError("its records are not stored as PyTorch stores them")
    if sum(record.file_size for record in records) > size:
        raise DamagedError("it claims to hold more than its size")
    damaged = archive.testzip()
    if damaged is not None:
        raise DamagedError(f"the sum of its record '{damaged}' is another one")
    return archive.read(f"{root}/data.pkl")


def _imports(pickled: bytes) -> set[str]:
    """The names that a pickle imports."""
    # A line end in a text may look like an import; only then is it worth to go through the pickle's operations.
    seeming = {b" ".join(found).decode() for found in re.findall(rb"(?=c([\w.]+)\n([\w.]+)\n)", pickled)}
    if all(map(_IMPORTS.fullmatch, seeming)):
        return seeming
    return {str(argument) for operation, argument, _ in pickletools.genops(pickled) if operation.name == "GLOBAL"}

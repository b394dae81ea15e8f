"""The file around a checkpoint: a zip archive of stored records, one of them a digest of all others.

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

DIGEST = "digest"
_CHUNK = 2**20
# What the pickle of tensors and plain values names. PyTorch's loader takes more, such as a bytearray of any size.
_IMPORTS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v[23]|parameter)|torch(\.storage)? \w+Storage|torch uint\d+"
)


class DamagedError(Exception):
    """An archive is not what was written; the message says why."""


class ForeignError(Exception):
    """An archive holds more than tensors and plain values."""


def seal(file: BinaryIO) -> None:
    """Add the digest of its records to an archive that ``torch.save`` has just written to ``file``."""
    with zipfile.ZipFile(file, "a") as archive:
        # A date of its own would make equal states unequal files.
        archive.writestr(zipfile.ZipInfo(f"{_root(archive)}/{DIGEST}"), _digest(archive))


def check(path: str | Path) -> int:
    """Go through an archive without making anything of what it holds.

    Parameters
    ----------
    path : str or Path
        The file. Archives without a digest, as earlier versions wrote them, are checked by the records' own sums.

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
    OSError, zipfile.BadZipFile and what else the library raises
        The file cannot be read, or is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        records, root = archive.infolist(), _root(archive)
        names = [record.filename for record in records]
        if len(set(names)) < len(names) or not all(name.startswith(f"{root}/") for name in names):
            raise DamagedError("its list of contents is not PyTorch's")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise DamagedError("it is compressed, as no checkpoint is")
        if sum(record.file_size for record in records) > os.path.getsize(path):
            raise DamagedError("it claims to hold more than its size")
        digest = _digest(archive).encode()
        if f"{root}/{DIGEST}" in names and archive.read(f"{root}/{DIGEST}") != digest:
            raise DamagedError("its digest is that of another content")
        pickled = archive.read(f"{root}/data.pkl")
    if not all(map(_IMPORTS.fullmatch, _imports(pickled))):
        raise ForeignError
    return len(pickled)


def _root(archive: zipfile.ZipFile) -> str:
    """The folder of all records, which PyTorch takes from the first."""
    names = archive.namelist()
    return names[0].partition("/")[0] if names else ""


def _digest(archive: zipfile.ZipFile) -> str:
    """Of the names and the contents of all records but the digest's own; reading them compares their sums."""
    total = hashlib.sha256()
    for record in archive.infolist():
        if record.filename.endswith(f"/{DIGEST}"):
            continue
        total.update(f"{record.filename}\n{record.file_size}\n".encode())
        with archive.open(record) as content:
            while chunk := content.read(_CHUNK):
                total.update(chunk)
    return total.hexdigest()


def _imports(pickled: bytes) -> set[str]:
    """The names that a pickle imports."""
    # A line end in a text may look like an import; only then is it worth to go through the pickle's operations.
    seeming = {b" ".join(found).decode() for found in re.findall(rb"(?=c([\w.]+)\n([\w.]+)\n)", pickled)}
    if all(map(_IMPORTS.fullmatch, seeming)):
        return seeming
    return {str(argument) for operation, argument, _ in pickletools.genops(pickled) if operation.name == "GLOBAL"}

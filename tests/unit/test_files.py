"""Files are written whole or not at all."""

import errno
import os

import pytest

from recbole_diffurec import UserError
from recbole_diffurec.runtime import files


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_text(path, "before")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"result.json' cannot be written \(No space left on device\): free some space"):
        files.write_text(path, "after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_an_error_in_the_middle_leaves_what_was_there(tmp_path):
    path = tmp_path / "result.json"
    files.write_text(path, "before")
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(tmp_path / "no" / "such.json", "x")

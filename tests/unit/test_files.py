"""Files are written whole or not at all, to where they are meant, and nothing is left of those who die writing."""

import errno
import os
import stat
import subprocess
import sys

import pytest
import torch

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


# Links, devices, pipes


def test_of_a_link_the_target_is_replaced(tmp_path):
    target, link = tmp_path / "there" / "result.json", tmp_path / "latest.json"
    target.parent.mkdir()
    link.symlink_to("there/result.json")
    for text in ("first", "second"):  # the target is made, then replaced
        files.write_text(link, text)
        assert link.is_symlink() and target.read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.json", "there"]
    assert [path.name for path in target.parent.iterdir()] == ["result.json"]


def test_a_circle_of_links_is_no_circle_for_us(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    files.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


@pytest.fixture
def pipe(tmp_path):
    """A named pipe, and a function that gives what was written to it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, lambda: os.read(reader, 100)
    os.close(reader)


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_pipe_is_written_to_and_stays_a_pipe(through_a_link, pipe, tmp_path):
    path, read = pipe
    given = path
    if through_a_link:
        given = tmp_path / "link"
        given.symlink_to("pipe")
    assert files.check_writable(given, "result_file") == given
    files.write_text(given, "x")
    assert read() == b"x" and stat.S_ISFIFO(path.stat().st_mode)


def test_of_a_block_that_fails_a_pipe_gets_nothing(pipe):
    path, read = pipe
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert read() == b""


def test_standard_output_that_goes_into_a_file_keeps_what_is_there(tmp_path):
    code = "from recbole_diffurec.runtime import files; print('before', flush=True); "
    code += "files.write_text('/dev/stdout', 'x\\n'); print('after')"
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", code], check=True, stdout=out)
    assert (tmp_path / "out").read_text() == "before\nx\nafter\n"


# Parts


DYING = """
import os, signal, sys
from recbole_diffurec.runtime import files
with files.atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_part_of_a_killed_process_is_swept(tmp_path):
    path = tmp_path / "result.json"
    subprocess.run([sys.executable, "-c", DYING, path], check=False)
    assert [part.suffix for part in tmp_path.iterdir()] == [".part"]
    files.write_text(tmp_path / "other.json", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


def test_the_part_of_a_process_that_lives_is_not(tmp_path):
    with files.atomic_write(tmp_path / "a") as file:
        file.write(b"whole")
        files.write_text(tmp_path / "b", "x")
    assert (tmp_path / "a").read_text() == "whole"


def test_a_part_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, swept = files._lock, []

    def sweep_first(file, wait):
        if wait and not swept:
            swept.append(file.name)
            os.unlink(file.name)
        return real(file, wait)

    monkeypatch.setattr(files, "_lock", sweep_first)
    files.write_text(tmp_path / "a", "x")
    assert swept and (tmp_path / "a").read_text() == "x"


def test_other_hidden_files_are_left_alone(tmp_path):
    names = {".part", ".a.part", f".a.{'0' * 31}.part", f"a.{'0' * 32}.part", f".a.{'0' * 32}.partial"}
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f".folder.{'0' * 32}.part").mkdir()
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names and len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("name", ["x" * 250, "é" * 125, "a"])
def test_a_name_that_the_system_takes_is_taken(name, tmp_path):
    path = files.check_writable(tmp_path / name, "result_file")
    files.write_text(path, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_names_for_runs_are_taken_with_any_ending(tmp_path):
    long = ["x" * 300, "x" * 300 + "y", "é" * 150]
    names = [files.unique_name(stem) for stem in long]
    for name in names:
        (tmp_path / f"{name}.pth").touch()
    assert len({files.shortened(stem) for stem in long}) == 3
    assert files.shortened("DiffuRec-ml-1m") == "DiffuRec-ml-1m"


# Before work starts


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (".", "is a folder: give the path of a file"),
        ("", "is a folder: give the path of a file"),
        ("x" * 300, "cannot be written (File name too long)"),
        ("no\0name", "(embedded null byte)"),
        ("file/below", "the folder of output, "),
        ("model.pth", "is a checkpoint, which would be lost: give another file"),
        ("link", "is a checkpoint, which would be lost: give another file"),
    ],
)
def test_outputs_that_could_not_be_written(given, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    torch.save({"weights": torch.ones(2)}, "model.pth")
    (tmp_path / "link").symlink_to("model.pth")
    with pytest.raises(UserError) as caught:
        files.check_writable(given, "output")
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_other_archives_are_no_checkpoints(tmp_path):
    torch.export.save(torch.export.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),)), tmp_path / "model.pt2")
    assert files.check_writable(tmp_path / "model.pt2", "output") and not files.holds_checkpoint(tmp_path / "none")


def test_text_that_utf_8_has_no_form_for_is_escaped(tmp_path):
    files.write_text(tmp_path / "a", "é\udcc3")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "é\\udcc3"


@pytest.mark.parametrize("name", ["a.pth", "é x", "...", ".a"])
def test_a_bare_name(name):
    assert files.is_bare(name)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "a/b", "a/", "a\0b", None, 3, ["a"]])
def test_a_name_that_leads_elsewhere_or_is_none(name):
    assert not files.is_bare(name)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"1" * 5000, b"\xff", b"{'a': 1}"])
def test_what_is_no_json_is_one_kind_of_error(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):
        files.read_json(tmp_path / "a.json")

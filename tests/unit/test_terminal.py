"""Streams that are full, closed or read by nobody, and a locale that knows no accents: one sentence, or a quiet end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from recbole_diffurec import cli
from recbole_diffurec.cli import commands, terminal

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = f"{sys.executable} -m recbole_diffurec"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, folder: Path, **environment: str) -> tuple[int, str, str]:
    options = {"cwd": folder, "env": {**ENVIRONMENT, **environment}, "timeout": 120}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["--version", "--help", "run --list_models"])
def test_a_full_standard_output(arguments: str, buffered: str, tmp_path: Path) -> None:
    code, _, errors = shell(f"{COMMAND} {arguments} > /dev/full", tmp_path, PYTHONUNBUFFERED=buffered)
    assert code == 2 and errors.count("\n") == 1
    assert errors.startswith("recbole-diffurec: standard output cannot be written (No space left on device)")


def test_an_output_that_nobody_reads(tmp_path: Path) -> None:
    code, _, errors = shell(f"{COMMAND} run --list_models | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (code, errors) == (141, "")


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", "2> /dev/full"])
def test_streams_that_are_closed_or_full_change_no_exit_code(streams: str, tmp_path: Path) -> None:
    assert shell(f"{COMMAND} evaluate none.pth {streams}", tmp_path)[0] == 2
    assert shell(f"{COMMAND} --version {streams}", tmp_path)[0] == 0


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = "from recbole_diffurec.cli import terminal; terminal.complete_streams(); f = open('kept', 'wb'); "
    code += "f.write(b'kept'); import os; os.write(1, b'out'); os.write(2, b'err')"
    assert shell(f'{sys.executable} -c "{code}" >&- 2>&-', tmp_path)[0] == 0
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_names_with_accents_are_understood_under_an_ascii_locale(tmp_path: Path) -> None:
    code, _, errors = shell(f"{COMMAND} evaluate 'modèle 日本.pth'", tmp_path, **ASCII)
    assert code == 2 and "checkpoint 'modèle 日本.pth' does not exist" in errors


CALLS = [
    "run('SASRec', 'toy', data_path='donn\u00e9es', gpu_id='')",
    "run('SASRec', 'donn\u00e9es', data_path='.', gpu_id='')",
    "run('SASRec', 'ml-100k', checkpoint_dir='donn\u00e9es', gpu_id='')",
    "run(config_files=['donn\u00e9es.yaml'])",
    "evaluate('donn\u00e9es.pth')",
    "Recommender.load('donn\u00e9es.pth')",
    "compare(['Pop'], ['ml-100k'], output_dir='donn\u00e9es')",
]


def test_a_program_under_an_ascii_locale_is_told_of_names_with_accents(tmp_path: Path) -> None:
    """It cannot be started again, as the command is."""
    told = "except UserError as error: print(ascii(str(error)))"
    lines = ["from recbole_diffurec import *", *(f"try: {ascii(call)[1:-1]}\n{told}" for call in CALLS)]
    (tmp_path / "program.py").write_text("\n".join(lines), encoding="ascii")
    code, out, errors = shell(f"{sys.executable} program.py", tmp_path, **ASCII)
    assert (code, errors) == (0, "")
    assert len(out.splitlines()) == len(CALLS)
    for said in out.splitlines():
        assert "donn" in said and ("set PYTHONUTF8=1" in said or "can't encode" in said)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    code, _, errors = shell(f"{COMMAND} --dataset=$'\\xff'", tmp_path)
    assert code == 2 and "dataset name '\\udcff' is no UTF-8 text" in errors and errors.count("\n") == 1


def test_a_service_that_cannot_say_its_address(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def serve(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("recbole_diffurec.inference.service.serve", serve)
    monkeypatch.setattr(terminal, "_abandon", lambda stream: None)
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", "a.pth"])
    assert left.value.code == 141


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("", []),
        ("a.yaml b.yaml,c.yaml", ["a.yaml", "b.yaml", "c.yaml"]),
        ("ma conf.yaml", ["ma conf.yaml"]),
        ("'ma conf.yaml' b.yaml", ["ma conf.yaml", "b.yaml"]),
        ("l'autre.yaml", ["l'autre.yaml"]),
        ("#1.yaml b\\c", ["#1.yaml", "b\\c"]),
    ],
)
def test_lists_of_files(text: str, paths: list[str], workdir: Path) -> None:
    Path("ma conf.yaml").touch()
    assert commands._file_list(text) == paths

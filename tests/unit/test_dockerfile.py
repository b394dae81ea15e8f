"""The Dockerfile without Docker: its instructions, what it copies, and that what it starts is a command of ours."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import ROOT

from recbole_diffurec.cli.parsers import PARSERS, parse
from recbole_diffurec.config import layers
from recbole_diffurec.version import __version__

INSTRUCTIONS = {
    "FROM", "RUN", "CMD", "EXPOSE", "ENV", "COPY", "ENTRYPOINT", "USER", "WORKDIR", "ARG", "HEALTHCHECK", "LABEL",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """(instruction, what stands behind it) of the file, lines that are continued joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = []
    for line in filter(None, map(str.strip, lines.replace("\\\n", " ").splitlines())):
        word, _, rest = line.partition(" ")
        found.append((word, rest.strip()))
    return found


def of(word: str, after: int = 0) -> list[str]:
    return [rest for found, rest in instructions()[after:] if found == word]


def last_stage() -> int:
    return max(place for place, (word, _) in enumerate(instructions()) if word == "FROM")


def copied() -> list[str]:
    """What is copied from the repository."""
    words = [shlex.split(rest) for rest in of("COPY") if not rest.startswith("--from")]
    return [source for *sources, _ in words for source in sources]


def test_hadolint_has_nothing_to_say():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_instructions_are_docker_s():
    assert instructions()[0][0] == "FROM" and {word for word, _ in instructions()} <= INSTRUCTIONS
    for word in ("CMD", "ENTRYPOINT"):
        assert len(of(word)) == 1


def test_the_base_is_a_certain_version_that_the_package_supports():
    bases = {rest.partition(" AS ")[0] for rest in of("FROM")}
    assert len(bases) == 1, "the interpreter of the environment is that of the image"
    found = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+", bases.pop())
    assert found is not None
    assert f"Python :: {found[1]}" in (ROOT / "pyproject.toml").read_text()


def test_it_runs_as_nobody_in_particular():
    user = of("USER", last_stage())
    assert user and user[-1] not in ("0", "root") and user[-1].isdecimal(), "a number is no name that may be root's"
    made = next(rest for rest in of("RUN", last_stage()) if rest.startswith("useradd"))
    assert f"--uid {user[-1]} " in made


def test_what_is_copied_is_there_and_nothing_else_is_sent():
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    assert sorted(line[1:] for line in ignored if line.startswith("!")) == sorted(copied())
    again = [line.removeprefix("**/") for line in ignored[1:] if not line.startswith("!")]
    tracked = subprocess.run(["git", "ls-files", *copied()], cwd=ROOT, capture_output=True, text=True, check=False)
    for source in copied():
        assert (ROOT / source).exists()
    for path in tracked.stdout.splitlines():
        assert not any(fnmatch(part, pattern) for part in Path(path).parts for pattern in again), path


def test_what_it_starts_is_a_command_of_ours():
    (entry,), (command, *arguments) = json.loads(of("ENTRYPOINT")[0]), json.loads(of("CMD")[0])
    assert f'{entry} = "recbole_diffurec.cli:main"' in (ROOT / "pyproject.toml").read_text()
    assert command in PARSERS
    options, parameters = parse(command, arguments)
    assert options.host == "0.0.0.0" and [str(options.port)] == of("EXPOSE") and not parameters
    folder = Path(options.checkpoint).parent
    assert f":{folder}:ro" in (ROOT / "Dockerfile").read_text(), "the model is mounted where it is looked for"


def test_its_health_is_asked_of_the_service():
    pytest.importorskip("fastapi", reason="the service needs fastapi")
    from recbole_diffurec.inference.service import PATHS

    found = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", of("HEALTHCHECK")[0])
    assert found is not None and [found[1]] == of("EXPOSE") and found[2] in PATHS
    code = json.loads(of("HEALTHCHECK")[0].partition(" CMD ")[2])
    assert code[:2] == ["python", "-c"]
    compile(code[2], "healthcheck", "exec")


def test_the_extras_it_asks_for_are_ours():
    (asked,) = [found for rest in of("RUN") for found in re.findall(r'"\.\[([\w,]+)\]"', rest)]
    declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert all(re.search(rf"^{extra} = \[", declared, re.M) for extra in asked.split(","))


def test_what_is_copied_makes_the_package(tmp_path):
    pytest.importorskip("setuptools")
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, tmp_path / source)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--quiet", "--no-index", "--wheel-dir=out"]
    command += ["--no-deps", "--no-build-isolation"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if "invalid command 'bdist_wheel'" in done.stderr or "Cannot import 'setuptools" in done.stderr:
        pytest.skip("setuptools here makes no wheels")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert f"recbole_diffurec-{__version__}.dist-info/METADATA" in names
    assert "recbole_diffurec/inference/static/index.html" in names
    shipped = {path.relative_to(layers.properties_dir()).as_posix() for path in layers.properties_dir().rglob("*.yaml")}
    assert {f"recbole_diffurec/properties/{path}" for path in shipped} <= names

"""The documentation is true: its commands and Python are understood, its pages say what the package says."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from recbole_diffurec.cli.commands import COMMANDS, _file_list
from recbole_diffurec.cli.parsers import parse
from recbole_diffurec.config import layers
from recbole_diffurec.errors import UserError
from recbole_diffurec.experiments.grid import plan, split_list
from recbole_diffurec.experiments.space import read_space
from recbole_diffurec.experiments.tune import SearchOptions
from recbole_diffurec.host.config import RunConfig, known_parameters
from recbole_diffurec.models import spec
from recbole_diffurec.version import __version__

TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The model of add_a_model.md, which a test of its own builds.
EXAMPLE = "CloseRec"


def load(name: str) -> Any:
    """A script of docs/ as a module."""
    found = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Title and text of a page's code blocks in a language."""
    return [(title, text) for kind, title, text in BLOCK.findall(page.read_text("utf-8")) if kind == language]


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# Commands


def commands() -> list[Any]:
    """Every command of ours on every page, as arguments of the command line, and whether the text only mentions it."""
    found = []
    for page in PAGES:
        given = [text.replace("\\\n", " ") for _, text in blocks(page, "bash")]
        named = re.findall(r"`(recbole-diffurec [^`]+)`", BLOCK.sub("", page.read_text("utf-8")))
        lines = [(line, False) for text in given for line in text.splitlines()]
        for line, mentioned in [*lines, *((name.replace("[run]", "run"), True) for name in named)]:
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                starts = [n for n, word in enumerate(words) if word in ("recbole-diffurec", "run_recbole_diffurec.py")]
                if starts and "pip" not in words:
                    about = f"{relative(page)}: {part.strip()[:70]}"
                    found.append(pytest.param(words[starts[0] + 1 :], mentioned, id=about))
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the commands name."""
    for name in ("common.yaml", "mine.yaml", "tuning/best.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    shutil.copy(ROOT / "hyper.test", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("arguments", "mentioned"), commands())
def test_a_command_is_understood(arguments: list[str], mentioned: bool, place: Path) -> None:
    command, *rest = arguments if arguments and not arguments[0].startswith("-") else ["run", *arguments]
    assert command in COMMANDS
    try:
        options, parameters = parse(command, rest)
    except UserError as error:
        if mentioned and "arguments are required" in str(error):
            return
        raise
    if command == "compare":
        check_comparison(options, parameters)
    elif command in ("run", "tune"):
        if options.model == EXAMPLE:
            return
        searching = {} if command == "tune" else parameters
        files = _file_list(options.config_files)
        config = RunConfig(options.model, options.dataset, searching, files, options.experiment)
        if command == "tune":
            read_space(options.params_file, config["model"])
            assert parameters.keys() <= known_parameters(config["model"]) | SearchOptions.__dataclass_fields__.keys()
    else:
        assert parameters.keys() <= known_parameters("DiffuRecSys")


def check_comparison(options: Any, parameters: dict[str, Any]) -> None:
    settings = layers.settings(options.experiment, _file_list(options.config_files), parameters, many_runs=True)
    entries = split_list(options.models or "") or settings["models"]
    datasets = split_list(options.dataset or "") or settings.get("datasets") or ["ml-100k"]
    if not any(EXAMPLE in entry for entry in entries):
        assert plan(entries, datasets, [1], parameters)


def test_there_are_commands_of_every_kind():
    found = {param.values[0][0] for param in commands() if param.values[0]}
    assert set(COMMANDS) - {"run"} <= found and len(commands()) > 30


# Python


def python_blocks() -> list[Any]:
    """Every block of Python but those of the example, which is executed."""
    found = [(page, text) for page in PAGES for _, text in blocks(page, "python") if EXAMPLE not in text]
    return [pytest.param(text, id=f"{relative(page)} {n}") for n, (page, text) in enumerate(found)]


@pytest.mark.parametrize("text", python_blocks())
def test_python_names_what_there_is(text: str) -> None:
    """Imports are made, and calls of what they bring take the arguments that they are given."""
    tree = ast.parse(text)
    names: dict[str, Any] = {}
    exec(
        compile(ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], []), text, "exec"),
        names,
    )
    calls = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in names:
            called = eval(ast.unparse(node.func), names)
            calls += 1
            if not inspect.isbuiltin(called):
                inspect.signature(called).bind(*node.args, **{word.arg: None for word in node.keywords if word.arg})
    assert calls, "a block that calls nothing of ours"


# The example of a model


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of add_a_model.md, installed."""
    page = ROOT / "docs" / "add_a_model.md"
    for language in ("python", "yaml", "toml"):
        for title, text in blocks(page, language):
            path = tmp_path / title
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    declared = (tmp_path / "pyproject.toml").read_text("utf-8").split(f'[project.entry-points."{spec.GROUP}"]\n')[1]
    name, reference = re.match(r"(\w+) = \"(.+)\"", declared).groups()
    assert name == EXAMPLE
    about = tmp_path / "close_rec-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: close-rec\nVersion: 0.1\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[{spec.GROUP}]\n{name} = {reference}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    spec.plugin_entry_points.cache_clear()
    yield tmp_path
    spec.plugin_entry_points.cache_clear()


def test_the_example_of_a_model_works(example: Path) -> None:
    runpy.run_path(os.path.join(example, "check.py"))
    assert RunConfig(EXAMPLE, "ml-100k")["closeness"] == 0.1
    given = [command for (_, text) in blocks(ROOT / "docs" / "add_a_model.md", "bash") for command in text.splitlines()]
    options, parameters = parse("run", shlex.split(given[0])[1:])
    assert RunConfig(options.model, options.dataset, parameters)["closeness"] == 0.5
    options, parameters = parse("compare", shlex.split(given[1])[2:])
    jobs = plan(split_list(options.models), split_list(options.dataset), [1], parameters)
    assert [job.entry.label for job in jobs] == ["CloseRec", "DiffuRec", "CloseRec@closeness=1"]


# Pages


def test_pages_say_what_the_package_says():
    for page, text in load("write").pages().items():
        assert page.exists() and page.read_text("utf-8") == text, f"run python docs/write.py: {relative(page)}"


def test_every_parameter_is_described():
    write = load("write")
    general = {
        p.name for section in write.read(write.PROPERTIES / "overall.yaml")[1] for p in section.parameters if p.meaning
    }
    files = [
        path for path in write.PROPERTIES.rglob("*.yaml") if path.parent.name in ("properties", "model", "dataset")
    ]
    for path in files:
        values = layers.read_yaml(path)
        found = [p for section in write.read(path)[1] for p in section.parameters]
        assert {p.name for p in found} == values.keys() - {"base"}, path
        assert all(p.kind and (p.meaning or p.name in general) for p in found), path


def test_links_lead_to_files():
    for page in [*PAGES, ROOT / "RESULTS.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", BLOCK.sub("", page.read_text("utf-8"))):
            assert (page.parent / target).exists(), f"{relative(page)}: {target}"


def test_the_readmes_figures_are_those_of_the_results():
    results = (ROOT / "RESULTS.md").read_text("utf-8")
    table = (ROOT / "README.md").read_text("utf-8").split("## What it reaches")[1].split("## ")[0]
    cells = [cell.strip() for line in table.splitlines() if line.startswith("| ") for cell in line.split("|")]
    figures = [cell for cell in cells if re.match(r"\.\d", cell)]
    assert len(figures) == 19
    assert [figure for figure in figures if not re.search(rf"\| {re.escape(figure)} \|", results)] == []


def test_the_readmes_picture_is_made_of_the_results():
    figure = load("figure")
    beauty, ml_1m = figure.rows("Amazon Beauty", figure.BEAUTY), figure.rows("ML-1M", figure.ML_1M)
    assert (beauty[0].here, beauty[0].here_masked, beauty[0].published) == (0.0611, 0.0611, 0.0559)
    assert (ml_1m[2].here, ml_1m[2].here_masked, ml_1m[2].published) == (0.1792, 0.1906, 0.1479)
    # Of the generated tables, one of which is masked.
    assert (ml_1m[0].name, ml_1m[0].here, ml_1m[0].here_masked) == ("CausalRec", 0.1984, 0.2030)
    assert beauty[-1].published_masked == 0.0614 and ml_1m[-1].published_masked == 0.1930
    assert all(row.here == row.here for row in (*beauty[:-2], *ml_1m[:-2])), "a model without its figure"


def test_the_readme_is_short_and_has_the_two_commands_of_ci():
    text = (ROOT / "README.md").read_text("utf-8")
    assert re.findall(r"^pip install .*&&.*$", text, re.MULTILINE) == [
        "pip install . && python run_recbole_diffurec.py",
        'pip install ".[test]" && python -m pytest',
    ]
    assert len(text.split()) < 1100


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__ and {"cff-version", "message", "title", "authors"} <= citation.keys()
    versions = re.findall(
        r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert versions[0] == ("Unreleased", "") and all(date for _, date in versions[1:])
    kinds = set(re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

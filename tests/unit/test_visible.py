"""What is seen of a run that Python code asks for: its lines once, and bars where they can be drawn in place."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from tqdm import tqdm
from tqdm.notebook import tqdm_notebook

from recbole_diffurec.runtime import visible

LOGGER = logging.getLogger("recbole_diffurec")


@pytest.fixture
def unconfigured() -> Iterator[contextlib.AbstractContextManager[None]]:
    """Logging as a plain script or a notebook finds it; pytest has handlers of its own, in every test."""

    @contextlib.contextmanager
    def without_handlers() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for logger in (LOGGER, logging.getLogger()):
                patch.setattr(logger, "handlers", [])
            yield

    level = LOGGER.level
    LOGGER.setLevel(logging.NOTSET)
    yield without_handlers()
    LOGGER.setLevel(level)


@visible.lines()
def work() -> None:
    """As ``audit`` trains a twin with ``train``: one within the other."""
    with visible.lines():
        LOGGER.info("epoch 1")
        LOGGER.warning("careful")
        logging.getLogger().info("of RecBole")


def test_lines_are_seen_once_where_nobody_has_configured_logging(unconfigured, capsys):
    with unconfigured:
        work()
        assert (LOGGER.handlers, LOGGER.level) == ([], logging.NOTSET), "as it was"
    assert capsys.readouterr() == ("", "epoch 1\ncareful\n")


def test_a_program_with_logging_of_its_own_decides(unconfigured, capsys):
    with unconfigured:
        logging.getLogger().addHandler(logging.NullHandler())
        work()
    assert capsys.readouterr() == ("", "")


def test_a_level_that_somebody_chose_stays(unconfigured, capsys):
    LOGGER.setLevel(logging.WARNING)
    with unconfigured:
        work()
    assert capsys.readouterr().err == "careful\n" and LOGGER.level == logging.WARNING


def test_of_several_processes_one_talks(unconfigured, capsys, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with unconfigured:
        work()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert not visible.bars_are_drawn()


@pytest.mark.parametrize(("terminal", "wanted"), [(True, True), (False, True), (True, False)])
def test_bars_are_for_terminals(terminal, wanted, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with visible.progress_bar(wanted, total=2, desc="train") as bar:
        assert type(bar) is tqdm
        bar.update()
    assert bool(capsys.readouterr().err) == (terminal and wanted)


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_has_the_bars_of_notebooks_or_none(widgets, monkeypatch):
    """Its output is no terminal, and text that is overwritten piles up in it."""
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    find = importlib.util.find_spec
    found = {"ipywidgets": object() if widgets else None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name) if name in found else find(name))
    assert visible.bars_are_drawn() == widgets
    assert type(visible.progress_bar(False, total=1)) is tqdm_notebook
    shell.config = {}
    assert not visible.in_notebook(), "IPython in a terminal"

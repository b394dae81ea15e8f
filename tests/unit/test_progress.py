"""The live line of a search."""

from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from recbole_diffurec.experiments import progress
from recbole_diffurec.experiments.progress import SearchLine, Standing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_the_line_says(clock: list[float]) -> None:
    line = SearchLine()
    clock[0] += 3
    assert line.text() == "search: starting, 3 s"
    line.trials_begin(Standing(planned=4), budget=None)
    assert line.text() == ("search: 0 of 4 trials done, 0 running, none validated yet, 3 s, time left not known yet")
    clock[0] += 20
    line.follow(Standing(planned=4, done=1, running=2, share=0.5, best="best NDCG@10 0.1"))
    assert line.text() == "search: 1 of 4 trials done, 2 running, best NDCG@10 0.1, 23 s, about 20 s left"


def test_a_resumed_search_counts_what_it_does_itself(clock: list[float]) -> None:
    line = SearchLine()
    line.trials_begin(Standing(planned=10, done=5, share=0.5), budget=None)
    clock[0] += 10
    line.follow(Standing(planned=10, done=6, share=0.6))
    assert line.seconds_left() == pytest.approx(40)


def test_no_more_is_left_than_the_budget(clock: list[float]) -> None:
    line = SearchLine()
    line.trials_begin(Standing(planned=10), budget=30)
    clock[0] += 10
    assert line.seconds_left() == pytest.approx(20)
    line.follow(Standing(planned=10, done=1, share=0.1))
    assert line.seconds_left() == pytest.approx(20)
    clock[0] += 25
    assert line.seconds_left() == 0


def test_on_a_terminal_it_moves_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_EVERY", 0.01)
    logger = logging.getLogger("recbole_diffurec")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler()])
    caplog.set_level(logging.INFO, logger.name)
    line = SearchLine()
    line.begin()
    line.trials_begin(Standing(planned=7), None)
    deadline = time.monotonic() + 20
    while "0 of 7" not in sys.stderr.getvalue():
        assert time.monotonic() < deadline
    logger.info("a trial ended")
    line.end()
    said = sys.stderr.getvalue()
    assert said.startswith("\rsearch: starting") and "\ra trial ended\n" in said and said.endswith(" \r")
    assert not any(thread.name.endswith("(_tick)") for thread in progress.threading.enumerate())
    line.end()  # changes nothing


@pytest.mark.parametrize("terminal,wanted", [(False, True), (True, False)])
def test_without_a_terminal_there_is_no_line(monkeypatch: pytest.MonkeyPatch, terminal: bool, wanted: bool) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    line = SearchLine()
    line.begin(wanted)
    line.end()
    assert sys.stderr.getvalue() == ""

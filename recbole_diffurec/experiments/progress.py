"""How far a search is: a live line on a terminal, from the first second to the last trial. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from dataclasses import dataclass

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger("recbole_diffurec")

_EVERY = 0.5  # seconds between two states of the line


@dataclass
class Standing:
    """Where a search stands.

    Parameters
    ----------
    planned : int
        Trials in all; 0 where that is not known yet.
    done, running : int
        Trials.
    share : float
        How much of the search is done, from 0 to 1, epochs of running trials included.
    best : str
        The best so far, in words; empty where there is none.
    """

    planned: int = 0
    done: int = 0
    running: int = 0
    share: float = 0.0
    best: str = ""


class SearchLine:
    """The line of the search under way in this process."""

    def __init__(self) -> None:
        self._standing = Standing()
        self._began = self._trials_began = time.monotonic()
        self._share_before = 0.0  # of a search that is resumed
        self._end_of_budget: float | None = None
        self._shown = contextlib.ExitStack()
        self._bar: tqdm | None = None

    def begin(self, wanted: bool = True) -> None:
        """Show the line, on a terminal, until ``end``; what is logged meanwhile stands above it."""
        if self._bar is not None or not wanted or not sys.stderr.isatty():
            return
        self._standing, self._began = Standing(), time.monotonic()
        bar = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True, desc=self.text())
        over = threading.Event()
        thread = threading.Thread(target=self._tick, args=(bar, over), daemon=True)
        self._bar = self._shown.enter_context(bar)
        self._shown.enter_context(logging_redirect_tqdm([logger]))
        thread.start()
        self._shown.callback(thread.join)
        self._shown.callback(over.set)

    def end(self) -> None:
        """Take the line away."""
        self._shown.close()
        self._bar = None

    def trials_begin(self, standing: Standing, budget: float | None) -> None:
        """Measure the time that is left from here on, at most ``budget`` seconds."""
        self._trials_began, self._share_before = time.monotonic(), standing.share
        self._end_of_budget = None if budget is None else self._trials_began + budget
        self._standing = standing

    def follow(self, standing: Standing) -> None:
        """The search has come to this."""
        self._standing = standing

    def seconds_left(self) -> float | None:
        """An estimate; None where nothing is done yet."""
        now = time.monotonic()
        gained = self._standing.share - self._share_before
        left = (now - self._trials_began) * (1 - self._standing.share) / gained if gained > 0 else None
        if self._end_of_budget is None:
            return left
        return min(max(self._end_of_budget - now, 0.0), float("inf") if left is None else left)

    def text(self) -> str:
        """Trials done, running, best so far, time left."""
        passed = format_seconds(time.monotonic() - self._began)
        at = self._standing
        if not at.planned:
            return f"search: starting, {passed}"
        left = self.seconds_left()
        ahead = "time left not known yet" if left is None else f"about {format_seconds(left)} left"
        best = at.best or "none validated yet"
        return f"search: {at.done} of {at.planned} trials done, {at.running} running, {best}, {passed}, {ahead}"

    def _tick(self, bar: tqdm, over: threading.Event) -> None:
        while not over.wait(_EVERY):
            bar.set_description_str(self.text())


LINE = SearchLine()


def format_seconds(seconds: float) -> str:
    """``8 s``, ``4.2 min`` or ``3.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""Whose turn it is: scores the histories of many requests in batches, so that small requests pass large ones.

While the model scores one batch, further requests wait together and become the next one, so that nobody waits for a
batch to fill and a busy service works on large ones. Requests of unlike work have lanes of their own, each with a
thread in which the model works; what they get of the machine is the operating system's to share out.

Work is counted in histories times samples times reverse steps, times the items that are drawn together.
"""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from recbole_diffurec.inference.answers import as_json, next_as_json
from recbole_diffurec.inference.limits import Refusal
from recbole_diffurec.inference.lists import ListOptions
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.models.base import DiffusionRecommender

# The most work of a request of each lane but the last: a second and ten on one core of 2020 for a model of usual size.
LANES = (2**9, 2**13)
MAX_QUEUE = 32  # requests of a lane's most work that wait in it; of smaller ones as many more
FIRST_PACE = 1000.0  # work a second, until it is measured
MAX_WAIT = 60  # seconds that a client is told to wait at most


@dataclass(frozen=True)
class Wanted:
    """What requests must agree on to be scored together.

    Parameters
    ----------
    options : ListOptions
        Hashable, the candidates included.
    steps : int
        Reverse steps, 1 for a model that has none.
    fields : tuple of str
        What to tell of each item.
    slots : int or None
        Items of a list that are drawn together; None for lists of single items.
    """

    options: ListOptions
    steps: int
    fields: tuple[str, ...] = ()
    slots: int | None = None

    @property
    def work(self) -> int:
        """Of one history."""
        return (self.options.samples or 1) * self.steps * (self.slots or 1)


@dataclass(eq=False)
class _Waiting:
    """A request, whose histories may take several batches."""

    wanted: Wanted
    histories: Sequence[list[str]]
    turn: float = 0.0  # the smallest is next
    lists: list[bytes] = field(default_factory=list)
    answer: asyncio.Future[list[bytes]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def left(self) -> int:
        """Histories that are not scored yet."""
        return len(self.histories) - len(self.lists)

    @property
    def work(self) -> int:
        """Of the whole request."""
        return len(self.histories) * self.wanted.work


class Abandoned(Exception):
    """Nobody waits any more for what the model computes."""


class Lanes:
    """The batchers of a service, one for each size of request.

    Parameters
    ----------
    recommender : Recommender
        The model.
    max_batch : int
        Histories, times their samples, that are scored at once.
    most : int
        The work of the largest request.
    observe : callable
        Told the number of histories of each batch.
    """

    def __init__(self, recommender: Recommender, max_batch: int, most: int, observe: Callable[[int], None]):
        bounds = [*LANES, most]
        self._lanes = [(bound, Batcher(recommender, max_batch, MAX_QUEUE * bound, observe)) for bound in bounds]

    async def submit(self, wanted: Wanted, histories: Sequence[list[str]]) -> list[bytes]:
        """``Batcher.submit``, in the first lane that takes so much work."""
        work = len(histories) * wanted.work
        return await next(lane for bound, lane in self._lanes if work <= bound).submit(wanted, histories)

    async def run(self) -> None:
        """Score batches until cancelled."""
        try:
            await asyncio.gather(*(lane.run() for _, lane in self._lanes))
        finally:
            for _, lane in self._lanes:
                lane.close()


class Batcher:
    """Scores requests of one lane in batches, whose turns are those of weighted fair queueing.

    The clock of a queue that served all its requests at once, each at an equal pace, says when each batch of a request
    would end; batches are scored in that order (Demers, Keshav, Shenker 1989). So a request waits for what is under way
    and for its fair share of the rest, not for all that came before it.

    Parameters
    ----------
    recommender : Recommender
        The model.
    max_batch : int
        Histories, times their samples, that are scored at once.
    max_work : int
        That may wait.
    observe : callable
        Told the number of histories of each batch.
    """

    def __init__(self, recommender: Recommender, max_batch: int, max_work: int, observe: Callable[[int], None]):
        self._recommender, self._max_batch, self._max_work, self._observe = recommender, max_batch, max_work, observe
        self._with_steps = functools.lru_cache(maxsize=64)(self._interruptible)
        self._waiting: dict[_Waiting, None] = {}  # in order of arrival
        self._work, self._pace, self._clock = 0, FIRST_PACE, 0.0
        self._under_way: list[_Waiting] = []
        self._arrived, self._abandoned = asyncio.Event(), threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def submit(self, wanted: Wanted, histories: Sequence[list[str]]) -> list[bytes]:
        """The lists for ``histories``, each as a JSON object. When cancelled, what is left of the work is dropped.

        Raises
        ------
        Refusal
            Too much work waits already.
        UserError
            The model cannot do what is wanted.
        """
        request = _Waiting(wanted, histories)
        if self._work + request.work > self._max_work:
            wait = min(MAX_WAIT, math.ceil(self._work / self._pace))
            raise Refusal(503, "too much work waits: try again, or ask for less", retry_after=max(1, wait))
        request.turn = self._end_of_batch(self._clock, request)
        self._waiting[request] = None
        self._work += request.work
        self._arrived.set()
        try:
            return await request.answer
        finally:
            self._leave(request)
            if self._under_way and all(one.answer.done() for one in self._under_way):
                self._abandoned.set()

    async def run(self) -> None:
        """Score batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._next_batch()
            self._under_way = [request for request, _ in batch]
            self._abandoned.clear()
            started = time.perf_counter()
            try:
                lists = await loop.run_in_executor(self._thread, self._score, batch)
            except Exception as error:  # whatever it is, the service goes on and the requests get it
                for request in self._under_way:
                    self._finish(request, error)
                continue
            finally:
                self._under_way = []
            work = sum(size for _, size in batch) * batch[0][0].wanted.work
            self._pace = (self._pace + work / (time.perf_counter() - started)) / 2
            self._clock += work / max(1, len(self._waiting))
            for request, size in batch:
                request.lists += lists[:size]
                del lists[:size]  # the next ones are those of the next request
                request.turn = self._end_of_batch(request.turn, request)
                if not request.left:
                    self._finish(request)

    def close(self) -> None:
        """Stop scoring, at the next reverse step."""
        self._abandoned.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _room(self, wanted: Wanted) -> int:
        """How many histories a batch takes, one at least."""
        return max(1, self._max_batch // (wanted.options.samples or 1))

    def _end_of_batch(self, begin: float, request: _Waiting) -> float:
        """When the clock says that the request's next batch, begun then, would end."""
        return begin + min(request.left, self._room(request.wanted)) * request.wanted.work

    def _next_batch(self) -> list[tuple[_Waiting, int]]:
        """The request whose turn it is and others that want the same, with the number of histories of each."""
        in_turn = sorted(self._waiting, key=lambda request: request.turn)
        wanted = in_turn[0].wanted
        batch, room = [], self._room(wanted)
        for request in in_turn:
            if room and request.wanted == wanted:
                batch.append((request, min(request.left, room)))
                room -= batch[-1][1]
        return batch

    def _finish(self, request: _Waiting, error: Exception | None = None) -> None:
        self._leave(request)
        if request.answer.done():  # its client has gone
            return
        if error is None:
            request.answer.set_result(request.lists)
        else:
            request.answer.set_exception(error)

    def _leave(self, request: _Waiting) -> None:
        if request in self._waiting:
            del self._waiting[request]
            self._work -= request.work

    def _interruptible(self, steps: int) -> Recommender:
        """The model with so many reverse steps, each of which ends the work once nobody waits for it."""
        copy = self._recommender.with_sampling_steps(steps)
        abandoned = self._abandoned

        def stop(*_: Any) -> None:
            if abandoned.is_set():
                raise Abandoned

        for part in copy.network.children():  # one of them is what a step runs through
            part.register_forward_pre_hook(stop)
        return copy

    def _score(self, batch: list[tuple[_Waiting, int]]) -> list[bytes]:
        """The lists of the next histories of each request, in the thread of the model."""
        wanted = batch[0][0].wanted
        histories: list[list[str]] = []
        for request, size in batch:
            done = len(request.lists)
            histories += request.histories[done : done + size]
        self._observe(len(histories))
        diffusion = isinstance(self._recommender.network, DiffusionRecommender)
        recommender = self._with_steps(wanted.steps) if diffusion else self._recommender
        if wanted.slots is not None:
            return next_as_json(recommender, histories, wanted.slots, wanted.options, wanted.fields)
        return as_json(recommender, histories, wanted.options, wanted.fields)

"""One epoch of a training: its batches under a progress bar, able to begin in the middle, and to be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from recbole_diffurec.runtime import distributed, visible
from recbole_diffurec.training.state import set_random_states


class Epoch:
    """The training loader during one epoch: under a progress bar, able to begin in the middle, and to be stopped.

    Parameters
    ----------
    loader : object
        RecBole's loader; everything but iteration is the loader's.
    before_batch : callable
        Called with this object before each batch is fetched, and once after the last.
    start : object
        The part of an interrupted epoch that is done already, from ``state``.
    """

    def __init__(self, loader: Any, description: str, show: bool, before_batch: Callable[[Epoch], None], start: Any):
        self._loader, self._description, self._show = loader, description, show
        self._before_batch, self._start = before_batch, start
        self._generator = getattr(loader, "generator", None)
        self._loader_state = start["loader"] if start else self._generator and self._generator.get_state()
        self.losses: list[Any] = start["losses"] if start else []
        self.done = 0
        self._seconds_before = start["seconds"] if start else 0.0
        self._started = time.perf_counter()
        self.bar: tqdm | None = None

    def __iter__(self) -> Iterator[Any]:
        # Some trainers go through the data several times an epoch; only the first time may begin in the middle.
        start, self._start = self._start, None
        self.done = start["done"] if start else 0
        if start and self._generator:
            self._generator.set_state(self._loader_state)
        batches = iter(self._loader)
        for _ in range(self.done):  # the loader has to go through them to come to the same next one
            next(batches)
        if start:
            # Not before: trainers and models prepare an epoch (clusters, drawn graphs) that this one had begun with.
            start["put_back"]()
            set_random_states(start["random"][distributed.rank()])
        options: dict[str, Any] = {"desc": self._description, "total": len(self._loader), "initial": self.done}
        with visible.progress_bar(self._show, unit="batch", **options) as self.bar:
            while True:
                self._before_batch(self)
                batch = next(batches, None)
                if batch is None:
                    return
                yield batch
                self.done += 1
                self.bar.update()

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def record(self, losses: Any) -> float:
        """Take in the loss of a batch, a number or a tuple of its parts; returns their sum."""
        self.losses.append(list(losses) if isinstance(losses, tuple) else losses)
        total = sum(losses) if isinstance(losses, tuple) else losses
        if self.bar is not None and self._show:
            self.bar.set_postfix(loss=f"{total:.4f}", refresh=False)
        return total

    @property
    def seconds(self) -> float:
        """Time spent in this epoch, that of an interrupted attempt included."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def total(self) -> Any:
        """The summed losses of all batches, as RecBole gives them: a number, or a tuple of the parts."""
        if self.losses and isinstance(self.losses[0], list):
            return tuple(sum(parts) for parts in zip(*self.losses))
        return sum(self.losses)

    def state(self) -> dict[str, Any]:
        """Enough to resume this epoch."""
        return {
            "loader": self._loader_state,
            "losses": self.losses,
            "done": self.done,
            "seconds": self.seconds,
        }

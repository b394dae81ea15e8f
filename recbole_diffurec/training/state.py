"""Going on with a training that was killed, as if it had never been.

A running training leaves its state beside its checkpoint, ``NAME.state`` for ``NAME.pth``: at the end of every epoch's
training, every so many minutes within it, and when it is interrupted. The state is removed when the run has its result.
"""

from __future__ import annotations

import contextlib
import glob
import os
import random
import signal
import threading
from types import FrameType
from typing import Any, Iterator

import numpy as np
import torch

from recbole_diffurec.config.rules import NOT_IN_RESULT
from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import checkpoint

EXTENSION = ".state"


class StopRequest:
    """Remembers a SIGINT or SIGTERM, so that the batch at hand can end; a second one acts at once.

    Use as a context manager around a training. In threads other than the main one, signals are left as they are.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def random_states() -> dict[str, Any]:
    """The states of all generators that a training draws from: Python's, numpy's, torch's, CUDA's."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": {"kind": kind, "keys": keys, "position": position, "has_gauss": has_gauss, "gauss": gauss},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put ``random_states`` back, from memory or from a file."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = checkpoint.from_plain(states["numpy"])
    np.random.set_state(tuple(numpy_state[name] for name in ("kind", "keys", "position", "has_gauss", "gauss")))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


@contextlib.contextmanager
def draws_of_its_own(seed: int) -> Iterator[None]:
    """Random draws that depend on ``seed`` alone, and leave those after the block as they would be without it."""
    before = checkpoint.to_plain(random_states())
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(before)


def find_state(config: Any, strict: bool = True) -> dict[str, Any] | None:
    """The newest state of a training with this configuration in ``checkpoint_dir``; None where there is none at all.

    Parameters
    ----------
    strict : False looks past states of other configurations.

    Raises
    ------
    UserError
        There are states of this model on this data, and all have another configuration; or one cannot be read.
    """
    stem = os.path.join(glob.escape(config["checkpoint_dir"]), glob.escape(f"{config['model']}-{config['dataset']}-"))
    paths = sorted(glob.glob(f"{stem}*{EXTENSION}"), key=os.path.getmtime, reverse=True)
    wanted = _comparable(config.plain())
    differences = []
    for path in paths:
        state = checkpoint.load(path)
        found = _comparable(state["config"])
        differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        if not differing:
            return {**state, "state_file": path}
        differences.append((path, [f"{key} {found.get(key)!r}, not {wanted.get(key)!r}" for key in differing]))
    if strict and differences:
        path, differing = differences[0]
        raise UserError(
            f"the training in '{path}' has another configuration ({'; '.join(differing)}): give the same parameters, "
            f"or leave out --resume to start afresh"
        )
    return None


def _comparable(values: dict[str, Any]) -> dict[str, Any]:
    return {key: checkpoint.to_plain(value) for key, value in values.items() if key not in NOT_IN_RESULT}

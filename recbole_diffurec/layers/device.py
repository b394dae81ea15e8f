"""Which kind of device computations are shaped for: what is fast on a processor is slow on a GPU, and the reverse."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

_assumed: str | None = None


def device_type(x: Tensor) -> str:
    """``cpu``, ``cuda``, ...: the type of the tensor's device, unless ``assume`` says otherwise."""
    return _assumed or x.device.type


@contextlib.contextmanager
def assume(kind: str) -> Iterator[None]:
    """Compute as on another type of device, wherever the tensors are: how a GPU's branches are tested on a CPU."""
    global _assumed
    before, _assumed = _assumed, kind
    try:
        yield
    finally:
        _assumed = before

"""Settings of the whole process that a run changes, put back at its end: it may be a guest in somebody's program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Leave cuDNN's choices and the types of autocast as they were found."""
    cudnn = torch.backends.cudnn
    deterministic, benchmark = cudnn.deterministic, cudnn.benchmark
    autocast = {device: torch.get_autocast_dtype(device) for device in ("cpu", "cuda")}
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
        for device, dtype in autocast.items():
            torch.set_autocast_dtype(device, dtype)

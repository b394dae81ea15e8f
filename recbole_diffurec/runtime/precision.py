"""Whether bf16 is faster than float32 on a device: asked of the hardware, and measured where that does not tell.

A matrix product in bf16 is twice to eight times as fast as one in float32 on processors that have instructions for it,
and up to 75 times slower on those that do not.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch

# Rows of the square matrices of the timed product, and for how long each precision is timed at most.
SIZE, SECONDS = 256, 0.02
# A GPU's compute capability from which its tensor cores work in bf16 (Ampere).
BFLOAT16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Bfloat16:
    """What is known of bf16 on a device.

    Parameters
    ----------
    fast : bool
        Whether it is faster than float32.
    reason : str
        A clause that says why.
    """

    fast: bool
    reason: str


@functools.cache
def bfloat16_on(device_type: str) -> Bfloat16:
    """What is known of bf16 on a kind of device, ``cpu`` or ``cuda``; asked once per process."""
    if device_type == "cuda":
        capability = torch.cuda.get_device_capability()
        name = f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}"
        return Bfloat16(capability >= BFLOAT16_CAPABILITY, name)
    if device_type != "cpu":
        return Bfloat16(False, f"nothing is known of bf16 on {device_type}")
    by_flags = _instructions()
    if by_flags is not None:
        return by_flags
    factor = product_speedup()
    return Bfloat16(factor > 1, f"a product in bf16 was timed at {factor:.2g} times the speed of one in float32")


def _instructions() -> Bfloat16 | None:
    """What the processor's flags say; None where they do not tell."""
    capability = torch.backends.cpu.get_cpu_capability()
    for name, asked in (("AMX", "_is_amx_tile_supported"), ("AVX512_BF16", "_is_avx512_bf16_supported")):
        if getattr(torch.cpu, asked, lambda: False)():
            return Bfloat16(True, f"the processor has {name}")
    if capability in ("AVX2", "DEFAULT", "NO AVX"):
        return Bfloat16(False, f"the processor has {capability} and no instructions for bf16")
    return None


def product_speedup() -> float:
    """How many times faster a product of matrices is in bf16 than in float32 on this processor, 20 ms of each."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(SIZE, SIZE, dtype=dtype)
        a @ a  # the first one may compile a program
        best, began = float("inf"), time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            started = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - started)
        # One product may have been all that there was time for, or none.
        seconds.append(best if best < float("inf") else time.perf_counter() - began)
    return seconds[0] / seconds[1]

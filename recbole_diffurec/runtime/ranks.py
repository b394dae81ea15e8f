"""Which of several processes this one is, as ``torchrun`` says in the environment. Imports nothing heavy."""

from __future__ import annotations

import os

from recbole_diffurec.errors import UserError


def rank() -> int:
    """The number of this process, as ``torchrun`` says; 0 writes and talks."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of its machine, and so of its GPU."""
    return _number("LOCAL_RANK", 0) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many of the processes are on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if world_size() > 1 else 1


def world_size() -> int:
    """How many processes train together."""
    return _number("WORLD_SIZE", 1, least=1)


def check() -> None:
    """Refuse an environment that makes no sense of the processes, before anything is done.

    Raises
    ------
    UserError
        A number is none, or out of the range that the others give it.
    """
    size = world_size()
    if size == 1:
        return
    _number("RANK", 0, most=size - 1)
    _number("LOCAL_RANK", 0, most=_number("LOCAL_WORLD_SIZE", size, least=1, most=size) - 1)
    _number("MASTER_PORT", 0, most=2**16 - 1)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name, "").strip():
            raise UserError(
                f"the environment variable WORLD_SIZE says {size} processes, and {name} is not set: unset WORLD_SIZE, "
                f"or start the processes with torchrun or --nproc, which set all"
            )


# Far more than anybody has.
_MOST_PROCESSES = 1_000_000


def _number(name: str, default: int, least: int = 0, most: int = _MOST_PROCESSES) -> int:
    """A number in the environment, as ``torchrun`` puts it there; what is no number is a mistake of the user."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise UserError(
            f"the environment variable {name} must be an integer from {least} to {most}, got '{text}': unset it, or "
            f"start the processes with torchrun or --nproc, which set it"
        )
    return int(text)

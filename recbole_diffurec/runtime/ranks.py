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
    return _number("WORLD_SIZE", 1)


def _number(name: str, default: int) -> int:
    """A number in the environment, as ``torchrun`` puts it there; what is no number is a mistake of the user."""
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise UserError(
            f"the environment variable {name} must be an integer of at least 0, got '{text}': unset it, or start the "
            f"processes with torchrun or --nproc, which set it"
        )
    return int(text) if text else default

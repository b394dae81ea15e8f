"""What a command is given by the terminal, a pipe or a job that started it: its streams, and the encoding of names."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from typing import TextIO

from recbole_diffurec.errors import UserError


def understand_names() -> None:
    """Start this command again where names and texts would be read as ASCII, as under ``LC_ALL=C``; it comes back here.

    Files are UTF-8 whatever the locale says, and a name that has no form in ASCII would fail wherever it is used.
    """
    if sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def complete_streams() -> None:
    """Give what is closed a null device, whose number the next file would have, and print what an encoding lacks."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def say(text: str) -> None:
    """Print text to standard output, at once, with a line's end where it has none.

    Raises
    ------
    UserError
        Standard output takes nothing more.
    SystemExit
        Nobody reads it any more; the exit code is that of a process which SIGPIPE ended.
    """
    try:
        print(text, end="" if text.endswith("\n") else "\n", flush=True)
    except OSError as error:
        raise output_lost(error) from None


def output_lost(error: OSError) -> UserError | SystemExit:
    """What to raise where standard output cannot be written, see ``say``."""
    _abandon(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return SystemExit(128 + signal.SIGPIPE)
    return UserError(
        f"standard output cannot be written ({error.strerror}), so that some of it is lost: free some space, or send "
        f"it elsewhere; files that the command made are there"
    )


def tell(text: str) -> None:
    """Print to standard error, after the program's name; where that cannot be, there is nobody to be told."""
    try:
        print(f"recbole-diffurec: {text}", file=sys.stderr, flush=True)
    except OSError:
        _abandon(sys.stderr)


def _abandon(stream: TextIO) -> None:
    """Send what is left to nowhere, or Python's end would try to write it again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def log_to_standard_error(rank: int) -> None:
    """Our own messages go to stderr as they are, so that stdout holds the result alone."""
    logger = logging.getLogger("recbole_diffurec")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # Replaced rather than kept: sys.stderr may be another one than last time.
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)

"""The command line: ``recbole-diffurec [run]`` and its subcommands (``commands.COMMANDS``).

``run_recbole_diffurec.py`` and ``python -m recbole_diffurec`` call the same ``main``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from recbole_diffurec.cli import terminal
from recbole_diffurec.cli.commands import COMMANDS, make_data_set
from recbole_diffurec.cli.parsers import parse
from recbole_diffurec.errors import Interrupted, RankError, UserError
from recbole_diffurec.runtime import allocator, ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 for a mistake of the user."""
    if argv is None:
        terminal.understand_names()
        terminal.complete_streams()
    code = _exit_code(list(sys.argv[1:] if argv is None else argv))
    if argv is None and _processes() > 1:
        from recbole_diffurec.runtime import distributed

        distributed.exit_at_once(code)
    return code


def _processes() -> int:
    """How many processes there are; where the environment makes no sense of it, the error was told already."""
    try:
        return ranks.world_size()
    except UserError:
        return 1


def _exit_code(arguments: list[str]) -> int:
    try:
        terminal.log_to_standard_error(ranks.rank())
        return _dispatch(list(arguments))
    except UserError as error:
        own = isinstance(error, RankError) and _processes() > 1
        if own or _processes() == 1 or ranks.local_rank() == 0:  # others are told once a machine
            who = f"process {ranks.rank()}: " if own else ""
            terminal.tell(f"{who}{error}")
        return 2
    except Interrupted as stop:
        if ranks.rank() > 0:
            return 128 + stop.signal
        how = "resumes" if arguments[:1] == ["compare"] else "with --resume resumes"
        where = os.path.relpath(stop.state_file)
        terminal.tell(f"interrupted; the same command {how} from '{where}'")
        return 128 + stop.signal
    except KeyboardInterrupt:
        terminal.tell("interrupted")
        return 130


def _dispatch(arguments: list[str]) -> int:
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    if command not in COMMANDS:
        raise UserError(f"unknown command '{command}': choose one of {', '.join(COMMANDS)}")
    options, parameters = parse(command, arguments)
    processes = ranks.world_size()
    if processes > 1 and command not in ("run", "evaluate"):
        raise UserError(f"'recbole-diffurec {command}' works in one process: start it without torchrun")
    if command == "run" and processes == 1 and (options.nproc != 1 or options.world_size not in (None, 1)):
        from recbole_diffurec.runtime import distributed

        make_data_set(options, parameters)  # which the processes find
        places = options.nproc, options.world_size, options.group_offset, options.ip, options.port
        return distributed.launch(["run", *(each for each in arguments if each != "--overwrite")], *places)
    allocator.keep_freed_memory()
    if not sys.stderr.isatty() or ranks.rank() > 0:
        parameters["show_progress"] = False
    return COMMANDS[command](options, parameters)

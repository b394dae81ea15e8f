"""The command line: ``recbole-diffurec [run]`` and its subcommands (``commands.COMMANDS``).

``run_recbole_diffurec.py`` and ``python -m recbole_diffurec`` call the same ``main``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from recbole_diffurec.cli import terminal
from recbole_diffurec.cli.commands import COMMANDS, make_data_set
from recbole_diffurec.cli.parsers import parse
from recbole_diffurec.errors import Interrupted, RankError, UserError
from recbole_diffurec.runtime import allocator, ranks

# Seconds that a process waits for the first one of its machine to tell of a mistake that both have met.
PATIENCE = 30


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
    """How many processes there are; one where the environment makes no sense, which is told by each."""
    try:
        ranks.check()
        return ranks.world_size()
    except UserError:
        return 1


def _exit_code(arguments: list[str]) -> int:
    try:
        ranks.check()
        terminal.log_to_standard_error(ranks.rank())
        return _dispatch(list(arguments))
    except UserError as error:
        _tell(error)
        return 2
    except Interrupted as stop:
        if ranks.rank() > 0:
            return 128 + stop.signal
        how = "resumes" if arguments[:1] in (["audit"], ["compare"]) else "with --resume resumes"
        where = os.path.relpath(stop.state_file)
        terminal.tell(f"interrupted; the same command {how} from '{where}'")
        return 128 + stop.signal
    except KeyboardInterrupt:
        terminal.tell("interrupted")
        return 130


def _tell(error: UserError) -> None:
    """Say what is wrong once a machine, unless one process alone knows of it."""
    if _processes() == 1 or (ranks.local_rank() == 0 and not isinstance(error, RankError)):
        terminal.tell(str(error))
    else:
        if not isinstance(error, RankError):
            # The first process that ends has all others of this machine ended: let it be the one that tells of it.
            time.sleep(PATIENCE)
        terminal.tell(f"process {ranks.rank()}: {error}")


def _dispatch(arguments: list[str]) -> int:
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    if command not in COMMANDS:
        raise UserError(f"unknown command '{command}': choose one of {', '.join(COMMANDS)}")
    options, parameters = parse(command, arguments)
    processes = ranks.world_size()
    if processes > 1 and command not in ("run", "evaluate"):
        raise UserError(f"'recbole-diffurec {command}' works in one process: start it without torchrun")
    # torch's own words on a connection that fails, with addresses of its code; read when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if command == "run" and processes == 1 and (options.nproc != 1 or options.world_size not in (None, 1)):
        from recbole_diffurec.runtime import distributed

        make_data_set(options, parameters)  # which the processes find
        places = options.nproc, options.world_size, options.group_offset, options.ip, options.port
        arguments = [argument for argument in arguments if argument != "--overwrite"]
        return distributed.launch(["run", *arguments], *places, options.rendezvous_minutes)
    allocator.keep_freed_memory()
    return COMMANDS[command](options, parameters)

"""The command line: ``recbole-diffurec [run]`` and ``recbole-diffurec evaluate``.

``run_recbole_diffurec.py`` calls the same ``main``.
"""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Any, Sequence

from recbole_diffurec import pipeline
from recbole_diffurec.config import known_models, parse_value
from recbole_diffurec.errors import UserError
from recbole_diffurec.version import __version__

COMMANDS = ("run", "evaluate")

_PARAMETERS_HELP = """\
any other parameter:
  --NAME=VALUE             any parameter of the model or of RecBole, such as --epochs=5 --learning_rate=1e-3
                           --topk=[5,10]. Names, meanings and defaults: README.md and properties/*.yaml.
                           Precedence: command line, --config_files, --experiment, data set, model, overall.
"""


class _Parser(argparse.ArgumentParser):
    """Mistakes become ``UserError``, so that there is one form of message and one exit code."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}: see 'recbole-diffurec --help'")


def _parsers() -> dict[str, _Parser]:
    formatter = argparse.RawDescriptionHelpFormatter
    run = _Parser(
        prog="recbole-diffurec",
        formatter_class=formatter,
        allow_abbrev=False,
        description="Train, validate and test a recommender; DiffuRecSys on ml-100k by default.\n"
        "Other commands: recbole-diffurec evaluate CHECKPOINT.",
        epilog=_PARAMETERS_HELP,
    )
    run.add_argument("--model", default="DiffuRecSys", help="DiffuRec, DiffuRecSys or any model of RecBole")
    run.add_argument("--dataset", default="ml-100k", help="amazon-beauty, amazon-toys-games, ml-1m, ml-100k, yours")
    run.add_argument("--config_files", default="", metavar="'A B'", help="YAML files, later ones stronger")
    run.add_argument("--experiment", help="settings from properties/experiment, such as diffurec_paper")
    run.add_argument("--result_file", metavar="PATH", help="write the result as JSON")
    run.add_argument("--list_models", action="store_true", help="print the names that --model takes, and exit")
    run.add_argument("--version", action="version", version=f"recbole-diffurec {__version__}")
    evaluate = _Parser(
        prog="recbole-diffurec evaluate",
        formatter_class=formatter,
        allow_abbrev=False,
        description="Test a checkpoint. Without parameters the figures are those of the run that wrote it.",
        epilog=_PARAMETERS_HELP,
    )
    evaluate.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file that a run wrote")
    evaluate.add_argument("--result_file", metavar="PATH", help="write the result as JSON")
    return {"run": run, "evaluate": evaluate}


def parse_parameters(arguments: Sequence[str]) -> dict[str, Any]:
    """``--name=value`` and ``--name value`` pairs, with values read as YAML.

    Raises
    ------
    UserError
        An argument that is no such pair, or a name given twice.
    """
    parameters: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, text = argument[2:].partition("=")
        if not argument.startswith("--") or not name:
            raise UserError(f"unexpected argument '{argument}': parameters are given as --name=value")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"parameter '--{name}' has no value: give it as --{name}=value")
            text = remaining.pop(0)
        if name in parameters:
            raise UserError(f"parameter '--{name}' is given twice: leave one out")
        parameters[name] = parse_value(name, text)
    return parameters


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 for a mistake of the user."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _log_to_terminal()
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"recbole-diffurec: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("recbole-diffurec: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    if command not in COMMANDS:
        raise UserError(f"unknown command '{command}': choose one of {', '.join(COMMANDS)}")
    options, rest = _parsers()[command].parse_known_args(arguments)
    parameters = parse_parameters(rest)
    if not sys.stderr.isatty():
        parameters["show_progress"] = False
    if command == "evaluate":
        for name in {"checkpoint_file", "config_files", "experiment"} & parameters.keys():
            raise UserError(f"'recbole-diffurec evaluate' takes no --{name}: give single parameters as --name=value")
        result = pipeline.evaluate(options.checkpoint, result_file=options.result_file, **parameters)
    elif options.list_models:
        print("\n".join(known_models()))
        return 0
    else:
        result = pipeline.run(
            options.model,
            options.dataset,
            config_files=options.config_files.replace(",", " ").split(),
            experiment=options.experiment,
            result_file=options.result_file,
            **parameters,
        )
    print(pipeline.format_result(result))
    return 0


def _log_to_terminal() -> None:
    """Our own messages go to stderr as they are, so that stdout holds the result alone."""
    logger = logging.getLogger("recbole_diffurec")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())

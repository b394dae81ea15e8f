"""The arguments of a command that are parameters of a model or of RecBole, and those that are its own."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from recbole_diffurec.config import layers
from recbole_diffurec.errors import UserError


def apart(arguments: Sequence[str], options: Container[str]) -> tuple[list[str], list[str]]:
    """The arguments that are a command's own, and those of parameters.

    ``argparse`` takes ``--topk=[5, 10]`` for a file name, for its space, and the value of ``--topk 5`` too.
    """
    own: list[str] = []
    parameters: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, _ = argument.partition("=")
        if not argument.startswith("--") or len(name) == 2 or name in options:
            own.append(argument)
            continue
        parameters.append(argument)
        if not equals and remaining and not remaining[0].startswith("--"):
            parameters.append(remaining.pop(0))
    return own, parameters


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
        parameters[name] = layers.parse_value(name, text)
    return parameters

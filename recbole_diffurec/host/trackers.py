"""The trackers of experiments that ``log_to`` names: which there are, and whether they can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from recbole_diffurec.config.rules import nearest
from recbole_diffurec.errors import UserError, cannot_import

__all__ = ["TRACKERS", "named", "refuse"]

# Their libraries are called as they are, and so are the extras that bring them.
TRACKERS = {"mlflow": "MLflow", "wandb": "Weights & Biases"}


def named(values: Mapping[str, Any]) -> list[str]:
    """The trackers that parameters name, each once and importable.

    RecBole's own ``log_wandb`` is another way to name ``wandb``.

    Parameters
    ----------
    values : Mapping of str to object
        Of which ``log_to`` (names, or text with commas between them) and ``log_wandb`` are read.

    Raises
    ------
    UserError
        A name is unknown, or a library cannot be imported.
    """
    given = values["log_to"] or []
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, list):
        raise UserError(f"log_to must name trackers, such as mlflow,wandb, got {given!r}")
    names = [str(name).strip() for name in names] + (["wandb"] if values["log_wandb"] is True else [])
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            hint = nearest(name, TRACKERS) or " leave it out"
            raise UserError(f"log_to must be among {', '.join(TRACKERS)}, got '{name}':{hint}")
        try:
            if importlib.import_module(name).__file__ is None:  # the folder of its files, in the one that this runs in
                raise ModuleNotFoundError(f"a folder '{name}' is in its place", name=name)
        except ImportError as error:
            raise cannot_import(f"log_to {name}", error, f"[{name}]") from None
    return list(dict.fromkeys(names))


def refuse(parameters: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where parameters for a checkpoint name trackers, which follow a training.

    Parameters
    ----------
    parameters : Mapping of str to object
        What the user gave.
    """
    for name in ("log_to", "log_wandb"):
        if parameters.get(name):
            raise UserError(f"{name} is {parameters[name]!r}, and a tracker follows a training: leave it out")

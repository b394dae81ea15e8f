"""The YAML files of ``properties/`` and of users: where they are, how they are read, which is stronger."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any, Mapping, Sequence

import yaml

from recbole_diffurec.config.rules import RULES
from recbole_diffurec.errors import UserError

MAX_TEXT, MAX_VALUES = 1_000_000, 100_000


class Loader(yaml.SafeLoader):
    """YAML as data only, with 1e-3 a number (YAML 1.1 calls it a string)."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Parse YAML text without ever executing anything; raises ``yaml.YAMLError``.

    Text above ``MAX_TEXT`` characters is refused, and so are aliases that would grow to more than ``MAX_VALUES`` values
    once somebody copies or prints them.
    """
    if len(text) > MAX_TEXT:
        raise yaml.MarkedYAMLError(problem=f"it is longer than {MAX_TEXT:,} characters")
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # Counted before anything is made of it: a merge key copies what its alias stands for.
        if _values(node, {}) > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"its aliases stand for more than {MAX_VALUES:,} values")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply, or contains itself") from None


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values are in ``node``, one that several aliases stand for counted each time."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty mapping.

    Raises
    ------
    UserError
        The file is missing, unreadable, no YAML, or no mapping of names to values.
    """
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"configuration file '{path}' cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"configuration file '{path}' is not UTF-8 text: save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise UserError(f"configuration file '{path}' is not valid YAML{where}: {problem}") from None
    except ValueError as error:  # a date that does not exist
        raise UserError(f"configuration file '{path}' has a value that YAML cannot read ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"configuration file '{path}' must hold lines 'name: value', got a {type(values).__name__}")
    return values


def properties_dir() -> Path:
    """The folder of YAML files: inside the installed package, or beside it in a checkout (editable install)."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "properties"
    return inside if inside.is_dir() else package.parent / "properties"


@functools.cache
def _read_shipped(path: Path) -> dict[str, Any]:
    return read_yaml(path) if path.is_file() else {}


def shipped_defaults(name: str) -> dict[str, Any]:
    """The values of ``properties/NAME.yaml``, such as ``overall`` or ``dataset/ml-1m``; empty where there is none."""
    return copy.deepcopy(_read_shipped(properties_dir() / f"{name}.yaml"))


def parse_value(name: str, text: str) -> Any:
    """The value that ``--name=text`` gives: YAML, or the text itself where a parameter is text or YAML fails."""
    rule = RULES.get(name)
    if text.lower() in ("none", "~", ""):
        return None
    if re.fullmatch(r"[|>][-+\d]*", text):  # which YAML takes for the head of a text that does not follow
        return text
    if rule is not None and rule.kind == "str":
        return text
    try:
        return parse_yaml(text)
    except Exception:  # YAMLError, and whatever Python says of a date such as 2024-13-45
        return text


def settings(
    experiment_name: str | None,
    config_files: Sequence[str | Path] = (),
    overrides: Mapping[str, Any] | None = None,
    many_runs: bool = False,
) -> dict[str, Any]:
    """What a user sets, weakest first: an experiment, files, single parameters.

    Parameters
    ----------
    many_runs : bool, optional
        Whether the experiment may name models, data sets and seeds.
    """
    layers = experiment(experiment_name) if experiment_name else {}
    if "models" in layers and not many_runs:
        raise UserError(f"experiment '{experiment_name}' is of many runs: give it to 'recbole-diffurec compare'")
    for path in config_files:
        layers.update(read_yaml(path))
    layers.update(overrides or {})
    return layers


def take_name(given: dict[str, Any], what: str, name: str | None, default: str) -> str:
    """The name of a model or a data set, which may stand among the settings, and is taken out of them.

    Parameters
    ----------
    given : dict of str to object
        Settings, changed.
    what : str
        ``model`` or ``dataset``.
    name : str or None
        As it is given beside the settings.
    default : str
        What it is where nothing says otherwise.

    Raises
    ------
    UserError
        Two are given.
    """
    other = given.pop(what, None)
    if name is not None and other not in (None, name):
        raise UserError(f"{what} is '{name}', and a parameter or configuration file says '{other}': give one")
    return next((value for value in (name, other) if value is not None), default)


def experiment(name: str) -> dict[str, Any]:
    """The settings of ``properties/experiment/NAME.yaml``."""
    folder = properties_dir() / "experiment"
    known = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    name = name[: -len(".yaml")] if name.endswith(".yaml") else name
    if name not in known:
        raise UserError(f"unknown experiment '{name}': choose one of {', '.join(known)}")
    return read_yaml(folder / f"{name}.yaml")

"""Search spaces in the format of RecBole's ``hyper.test``: one parameter a line, ``name type values``.

=============  ==================  ==============================================================
type           values              meaning
=============  ==================  ==============================================================
``choice``     ``[1,2,4]``         one of a list; a list among them may stand in quotes, as RecBole has it
``uniform``    ``0,0.5``           a number between two bounds
``quniform``   ``0,1,0.25``        the same, rounded to a multiple of the third value
``loguniform`` ``-8,-4``           e to the power of a number between two bounds, as in RecBole
``randint``    ``1,5``             an integer from the first bound up to, and without, the second
=============  ==================  ==============================================================

Blank lines and what follows a ``#`` are skipped. Values are YAML; nothing is evaluated.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recbole_diffurec.config import layers
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import known_parameters, nearest

# type: number of bounds
_BOUNDS = {"uniform": 2, "quniform": 3, "loguniform": 2, "randint": 2}
TYPES = ("choice", *_BOUNDS)
# What is larger is no range of a parameter, and nearer to where Ray's integers and floats end.
_LARGEST = 1e15
_LINE = re.compile(r"(\S+)\s+(\S+)\s+(.+)")


@dataclass(frozen=True)
class Dimension:
    """The values that one parameter may take."""

    name: str
    kind: str
    values: tuple[Any, ...]
    line: int

    def corners(self) -> list[Any]:
        """Values at the ends of the range (all values of a choice), for checking before anything starts."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values[:2]
        if self.kind == "loguniform":
            return [math.exp(low), math.exp(high)]
        if self.kind == "quniform":
            step = self.values[2]
            return [round(low / step) * step, round(high / step) * step]
        return [low, high - 1] if self.kind == "randint" else [low, high]

    def for_ray(self) -> Any:
        """The same for Ray Tune."""
        from ray import tune

        if self.kind == "choice":
            return tune.choice(list(self.values))
        if self.kind == "loguniform":
            low, high = self.corners()
            return tune.loguniform(low, high)
        return getattr(tune, self.kind)(*self.values)


def size_of(space: Sequence[Dimension]) -> float:
    """How many configurations there are that Ray Tune can be told of; infinite with a range, or a choice of lists."""
    listed = any(d.kind != "choice" or any(isinstance(value, (list, dict)) for value in d.values) for d in space)
    return math.inf if listed else math.prod(len(set(map(repr, d.values))) for d in space)


def draw_different(space: Sequence[Dimension], n: int, seed: int) -> list[dict[str, Any]]:
    """So many configurations of choices, each another one.

    Parameters
    ----------
    space : sequence of Dimension
        Choices.
    n : int
        At most ``size_of(space)``.
    seed : int
        Of the draw.
    """
    values = [list({repr(value): value for value in dimension.values}.values()) for dimension in space]
    found = []
    for number in random.Random(seed).sample(range(math.prod(map(len, values))), n):
        configuration = {}
        for dimension, choices in zip(space, values):
            number, place = divmod(number, len(choices))
            configuration[dimension.name] = choices[place]
        found.append(configuration)
    return found


def read_space(path: str | Path, model: str) -> list[Dimension]:
    """Parse a file and check it against the parameters of a model.

    Raises
    ------
    UserError
        The file cannot be read; a line is malformed, names a parameter that the model does not have or one named
        before, or gives an impossible range. The message has the line's number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"params_file '{path}' cannot be read ({reason}): check the path") from None
    dimensions: dict[str, Dimension] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = re.split(r"(?:^|\s)#", line)[0].strip()
        if not line:
            continue
        where = f"params_file '{path}' line {number}"
        match = _LINE.fullmatch(line)
        if not match:
            raise UserError(f"{where} is '{line}': write it as 'name type values', such as 'n_layers choice [1,2,4]'")
        name, kind, values = match.groups()
        if name not in known_parameters(model):
            hint = nearest(name, known_parameters(model)) or " see docs/parameters.md for the names"
            raise UserError(f"{where}: unknown parameter '{name}' for model {model}:{hint}")
        if name in dimensions:
            raise UserError(f"{where}: parameter '{name}' has a line already ({dimensions[name].line}): leave one out")
        dimensions[name] = Dimension(name, kind, _values(kind, values, where), number)
    if not dimensions:
        raise UserError(f"params_file '{path}' names no parameter: write lines such as 'n_layers choice [1,2,4]'")
    return list(dimensions.values())


def _unquoted(value: Any) -> Any:
    """A list that stands in quotes, which RecBole needs because its search knows no lists, as the list."""
    if not isinstance(value, str) or not (value.startswith("[") and value.endswith("]")):
        return value
    try:
        return layers.parse_yaml(value)
    except (yaml.YAMLError, ValueError):
        return value


def _values(kind: str, text: str, where: str) -> tuple[Any, ...]:
    if kind not in TYPES:
        raise UserError(f"{where}: type must be one of {', '.join(TYPES)}, got '{kind}'")
    try:
        values = layers.parse_yaml(text if kind == "choice" else f"[{text}]")
    except (yaml.YAMLError, ValueError):
        values = None
    if kind == "choice":
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: choice takes a list such as [1,2,4], got '{text}'")
        return tuple(_unquoted(value) for value in values)
    numbers = isinstance(values, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < math.inf for v in values
    )
    if not numbers or len(values) != _BOUNDS[kind]:
        raise UserError(f"{where}: {kind} takes {_BOUNDS[kind]} numbers between commas, got '{text}'")
    if kind == "randint" and not all(isinstance(value, int) for value in values):
        raise UserError(f"{where}: randint takes integers, got '{text}'")
    if values[0] >= values[1]:
        raise UserError(f"{where}: the first bound of {kind} must be below the second, got '{text}'")
    if max(map(abs, values)) > _LARGEST:
        raise UserError(f"{where}: the numbers of {kind} must be at most {_LARGEST:.0e}, got '{text}'")
    if kind == "quniform" and values[2] <= 0:
        raise UserError(f"{where}: the step of quniform must be above 0, got '{text}'")
    if kind == "quniform" and not 1 <= (values[1] - values[0]) / values[2] <= _LARGEST:
        raise UserError(
            f"{where}: the step of quniform must fit between its bounds, at most {_LARGEST:.0e} times, got '{text}'"
        )
    if kind == "loguniform" and (max(map(abs, values)) > 100 or math.exp(values[0]) >= math.exp(values[1])):
        raise UserError(f"{where}: loguniform takes natural logarithms, such as -8,-4 for 3e-4 to 2e-2, got '{text}'")
    return tuple(values)

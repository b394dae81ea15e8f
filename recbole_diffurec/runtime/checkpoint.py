"""Checkpoints: tensors and plain values in one file, written whole or not at all, opened without running code."""

from __future__ import annotations

import errno
import functools
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Optional, TypeVar, cast

import numpy as np
import pydantic
import torch
from scipy import sparse
from typing_extensions import NotRequired, TypedDict

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import archive, files

FORMAT = "recbole_diffurec checkpoint 1"
# The keys of what stands for a numpy array, a scipy matrix and a sparse tensor.
_MARKED = ({"__array__"}, {"__csr__"}, {"__sparse__"})


def to_plain(value: Any) -> Any:
    """Turn ``value`` into tensors, numbers, strings, lists and dicts, which ``weights_only`` loading accepts.

    numpy arrays, scipy matrices and sparse tensors become marked dicts that ``from_plain`` turns back.

    Raises
    ------
    TypeError
        ``value`` holds something else.
    """
    if isinstance(value, torch.Tensor):
        if value.layout == torch.sparse_coo:
            parts = {"indices": value._indices(), "values": value._values(), "shape": list(value.shape)}
            return {"__sparse__": {**parts, "coalesced": value.is_coalesced()}}
        if value.layout != torch.strided:
            raise TypeError(f"a checkpoint cannot hold a {value.layout} tensor")
        # One that repeats its memory is written out, as a file claims no more than it holds.
        return value.contiguous() if value.nbytes > value.untyped_storage().nbytes() else value
    if value is None or isinstance(value, (bool, int, float, str)):
        # Subclasses (numpy's float64 is a float) would be pickled as themselves.
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        return value
    if isinstance(value, np.generic) and isinstance(value.item(), (bool, int, float)):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"__array__": torch.from_numpy(np.asarray(value, order="C"))}
    if sparse.issparse(value):
        matrix = value.tocsr()
        parts = {name: torch.from_numpy(getattr(matrix, name)) for name in ("data", "indices", "indptr")}
        return {"__csr__": {**parts, "shape": list(matrix.shape)}}
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def from_plain(value: Any) -> Any:
    """Undo ``to_plain`` for the arrays, matrices and sparse tensors in ``value`` (tuples stay lists)."""
    if isinstance(value, dict):
        if set(value) == {"__array__"}:
            return value["__array__"].cpu().numpy()
        if set(value) == {"__csr__"}:
            parts = value["__csr__"]
            data, indices, indptr = (parts[name].cpu().numpy() for name in ("data", "indices", "indptr"))
            matrix = sparse.csr_matrix((data, indices, indptr), shape=tuple(parts["shape"]))
            matrix.check_format(full_check=True)  # indices beyond the shape would be looked up in others' memory
            return matrix
        if set(value) == {"__sparse__"}:
            parts = value["__sparse__"]
            options = {"is_coalesced": parts["coalesced"], "check_invariants": True}
            return torch.sparse_coo_tensor(parts["indices"], parts["values"], tuple(parts["shape"]), **options)
        return {key: from_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path``: a temporary file beside it, flushed and renamed when complete, with its digest."""
    with files.atomic_write(path) as file:
        output = _Output(file)
        try:
            torch.save(to_plain({"format": FORMAT, **state}), cast(Any, output))
        except RuntimeError:
            if output.error is None:
                raise
            raise output.error from None
        archive.seal(file)


class _Output:
    """A file that remembers why writing failed: torch turns a full disk into a RuntimeError without its reason."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def read(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """Tensors and plain values from a file of torch's.

    Never executes anything that the file holds, nor takes much more memory than the file has bytes.

    Raises
    ------
    UserError
        The file is missing, truncated, altered, or holds more than that.
    """
    try:
        if not Path(path).is_file() and Path(path).exists():
            what = "a folder: name the .pth file in it" if Path(path).is_dir() else "no regular file: give a .pth file"
            raise UserError(f"checkpoint '{path}' is {what}")
        pickled = archive.check(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's about how a file is pickled that we refuse
            state = torch.load(path, map_location="cpu", weights_only=True)
        _check_contents(state, pickled, Path(path).stat().st_size)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"checkpoint '{path}' does not exist: check the path") from None
    except (pickle.UnpicklingError, archive.ForeignError):
        raise UserError(
            f"'{path}' is no checkpoint of recbole_diffurec: it holds more than tensors and plain values, so it was "
            f"not opened; give a file that 'recbole-diffurec run' wrote"
        ) from None
    except Exception as error:  # by where the damage is: BadZipFile, RuntimeError, EOFError, struct.error and more
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # an impossible seek
            raise UserError(f"checkpoint '{path}' cannot be read ({error.strerror or error}): check the file") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"checkpoint '{path}' is damaged, cut short or no checkpoint at all ({reason}): use another copy"
        ) from None
    return _moved(state, torch.device(device))


@files.nameable()
def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Open a checkpoint. Never executes anything that the file holds.

    Raises
    ------
    UserError
        The file is missing, truncated, holds more than tensors and plain values, or is no checkpoint of ours.
    """
    state = read(path, device)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UserError(
            f"'{path}' is no checkpoint of this version of recbole_diffurec ({found!r} instead of {FORMAT!r}): give a "
            f"file that 'recbole-diffurec run' wrote"
        )
    return state


def _moved(value: Any, device: torch.device) -> Any:
    """``value`` with its tensors on ``device``; arrays and matrices stay with the CPU, where numpy is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict) and value.keys() not in _MARKED[:2]:
        return type(value)((key, _moved(item, device)) for key, item in value.items())
    return [_moved(item, device) for item in value] if isinstance(value, list) else value


# Far more levels than any state has, and far fewer than Python's own limit.
_DEEPEST = 50
# How often a file's bytes may be seen through several tensors: tied weights are one tensor under several names.
_SHARED = 10


class _Contents:
    """Goes through the values of a file as often as they are referred to, and stops where that is too often."""

    def __init__(self, values: int, tensor_bytes: int):
        self._values, self._tensor_bytes = values, tensor_bytes

    def check(self, value: Any, depth: int = 0) -> None:
        self._values -= 1
        if self._values < 0 or depth > _DEEPEST:
            raise archive.DamagedError("its values refer to each other again and again")
        if type(value) in (dict, OrderedDict):
            for key, item in value.items():
                self.check(key, depth + 1)
                self.check(item, depth + 1)
            if value.keys() in _MARKED:
                from_plain(value)
        elif type(value) is list:
            for item in value:
                self.check(item, depth + 1)
        elif isinstance(value, torch.Tensor):
            self._tensor_bytes -= value.nbytes
            if value.nbytes > value.untyped_storage().nbytes() or self._tensor_bytes < 0:
                raise archive.DamagedError("its tensors are larger than what it holds of them")
        elif type(value) not in (type(None), bool, int, float, str):
            raise archive.DamagedError(f"it holds a {type(value).__name__}")


def _check_contents(state: Any, pickled: int, size: int) -> None:
    """Refuse what ``to_plain`` does not make, and values that would grow once somebody copies or prints them.

    Parameters
    ----------
    state : object
        What was loaded.
    pickled : int
        Bytes of the pickle; each value takes one at least.
    size : int
        Bytes of the file.
    """
    _Contents(pickled, _SHARED * size).check(state)


# What a schema of a file's contents allows: the very types, and more keys than it names.
SCHEMA = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True, extra="allow")


def _without_tensors(value: Any) -> Any:
    """Refuse a value with a tensor in it, which no parameter is and no comparison takes."""
    if isinstance(value, torch.Tensor):
        raise ValueError("must hold no tensor")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _without_tensors(item)
    return value


# The parameters of a run.
Parameters = Annotated[dict[str, Any], pydantic.AfterValidator(_without_tensors)]


@pydantic.with_config(SCHEMA)
class IdTokens(TypedDict):
    """The original ids in order of their numbers, padding first; shared models name no users."""

    users: NotRequired[list[str]]
    items: list[str]


@pydantic.with_config(SCHEMA)
class RunCheckpoint(TypedDict):
    """What every checkpoint of a run holds beside what the trainer needs to resume."""

    model: str
    dataset: str
    config: Parameters
    id_tokens: IdTokens
    popularity: torch.Tensor
    epoch: Annotated[int, pydantic.Field(ge=0)]
    state_dict: dict[str, torch.Tensor]
    other_parameter: Optional[dict[str, Any]]
    # Its fingerprint, and what is known of its items, of which version 0.1.0 took neither.
    data: NotRequired[dict[str, Any]]
    item_columns: NotRequired[dict[str, list[str]]]
    # How many users there are, with padding, and the figures of the epoch: written into shared models, here found.
    n_users: NotRequired[int]
    valid_result: NotRequired[dict[str, float]]


Schema = TypeVar("Schema")


def validated(path: str | Path, state: dict[str, Any], schema: type[Schema]) -> Schema:
    """``state`` as what a schema says.

    Parameters
    ----------
    path : str or Path
        Where it is from.
    state : dict
        What was loaded.
    schema : type
        A ``TypedDict`` with the configuration ``SCHEMA``, as all within it.

    Raises
    ------
    UserError
        Something is missing or of another type; the message says what.
    """
    try:
        return cast(Any, adapter)(schema).validate_python(state)
    except pydantic.ValidationError as error:
        missing = sorted(".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "missing")
        if missing:
            raise UserError(f"checkpoint '{path}' lacks {', '.join(missing)}: give a file that a run wrote") from None
        first = error.errors(include_url=False, include_input=False)[0]
        where, problem = ".".join(map(str, first["loc"])), first["msg"]
        raise UserError(f"checkpoint '{path}' is damaged ({where}: {problem}): use another copy") from None


@functools.cache
def adapter(schema: Any) -> pydantic.TypeAdapter:
    """What holds values against a schema, made once for each."""
    return pydantic.TypeAdapter(schema)


def open_run(path: str | Path) -> RunCheckpoint:
    """Open a checkpoint that a run wrote.

    Raises
    ------
    UserError
        As ``load``; or something that every run writes is not there, or does not fit together.
    """
    state = validated(path, load(path), RunCheckpoint)
    if "users" not in state["id_tokens"]:
        raise UserError(f"checkpoint '{path}' lacks id_tokens.users: give a file that a run wrote")
    check_items(path, state)
    state["n_users"] = len(state["id_tokens"]["users"])
    state["valid_result"] = _valid_result(state)
    data_path = state["config"].get("data_path")
    if isinstance(data_path, str) and os.path.isabs(data_path) and not os.path.isdir(data_path):
        del state["config"]["data_path"]  # written elsewhere: the data is where the defaults look for it
    return state


def _valid_result(state: Mapping[str, Any]) -> dict[str, float]:
    """The validation of the epoch that the weights are of, as far as the history tells it."""
    history = state.get("history")
    for epoch in history if isinstance(history, list) else ():
        number = epoch.get("epoch") if isinstance(epoch, dict) else None
        if isinstance(number, int) and number == state["epoch"]:
            found = epoch.get("valid_result")
            numbers = found.items() if isinstance(found, dict) else ()
            return {name: value for name, value in numbers if isinstance(name, str) and isinstance(value, (int, float))}
    return {}


def check_items(path: str | Path, state: RunCheckpoint) -> None:
    """Raise ``UserError`` unless what is known of the items of the file ``path`` is so of each of them."""
    n_items, popularity = len(state["id_tokens"]["items"]), state["popularity"]
    counts = popularity.shape == (n_items,) and popularity.dtype == torch.long
    if n_items < 2 or not counts or bool((popularity < 0).any()):
        raise UserError(
            f"checkpoint '{path}' is damaged (popularity: it must be a count for each of {n_items} items): use another "
            f"copy"
        )
    if any(len(cells) != n_items for cells in state.get("item_columns", {}).values()):
        raise UserError(f"checkpoint '{path}' is damaged (item_columns: not one cell for each item): use another copy")

"""Checkpoints: tensors and plain values in one file, written whole or not at all, opened without running code."""

from __future__ import annotations

import errno
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from scipy import sparse

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import files

FORMAT = "recbole_diffurec checkpoint 1"


def to_plain(value: Any) -> Any:
    """Turn ``value`` into tensors, numbers, strings, lists and dicts, which ``weights_only`` loading accepts.

    numpy arrays and scipy matrices become marked dicts that ``from_plain`` turns back.

    Raises
    ------
    TypeError
        ``value`` holds something else.
    """
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
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
    """Undo ``to_plain`` for the arrays and matrices in ``value`` (tuples stay lists)."""
    if isinstance(value, dict):
        if set(value) == {"__array__"}:
            return value["__array__"].cpu().numpy()
        if set(value) == {"__csr__"}:
            parts = value["__csr__"]
            data, indices, indptr = (parts[name].cpu().numpy() for name in ("data", "indices", "indptr"))
            return sparse.csr_matrix((data, indices, indptr), shape=tuple(parts["shape"]))
        return {key: from_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path``: a temporary file beside it, flushed and renamed when complete."""
    with files.atomic_write(path) as file:
        output = _Output(file)
        try:
            torch.save(to_plain({"format": FORMAT, **state}), cast(Any, output))
        except RuntimeError:
            if output.error is None:
                raise
            raise output.error from None


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
    """Tensors and plain values from a file of torch's. Never executes anything that the file holds.

    Raises
    ------
    UserError
        The file is missing, truncated, or holds more than that.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's about how a file is pickled that we refuse
            state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint '{path}' does not exist: check the path") from None
    except IsADirectoryError:
        raise UserError(f"checkpoint '{path}' is a folder: name the .pth file in it") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"'{path}' is no checkpoint of recbole_diffurec: it holds more than tensors and plain values, so it was "
            f"not opened; give a file that 'recbole-diffurec run' wrote"
        ) from None
    except Exception as error:  # by where the damage is: RuntimeError, EOFError, IndexError, struct.error and more
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is an impossible seek
            raise UserError(f"checkpoint '{path}' cannot be read ({error.strerror or error}): check the file") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"checkpoint '{path}' is damaged, cut short or no checkpoint at all ({reason}): use another copy"
        ) from None
    return state


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


# What every checkpoint of a run holds beside what the trainer needs to go on.
RUN_KEYS = ("model", "dataset", "config", "id_tokens", "popularity", "epoch", "state_dict", "other_parameter")


def open_run(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint that a run wrote.

    Raises
    ------
    UserError
        As ``load``, or something that every run writes is not there.
    """
    state = load(path)
    missing = sorted(set(RUN_KEYS) - state.keys())
    if missing:
        raise UserError(f"checkpoint '{path}' lacks {', '.join(missing)}: give a file that a run wrote")
    return state

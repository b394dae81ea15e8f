"""Models to share: weights as safetensors, and in the header of the file what a checkpoint says beside them.

Of users the file says how many there were, and neither who nor what they did: what is shared is a model and no data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, Union, cast

import pydantic
import torch
from typing_extensions import TypedDict

from recbole_diffurec.errors import UserError, cannot_import
from recbole_diffurec.runtime import checkpoint, files
from recbole_diffurec.runtime.checkpoint import SCHEMA, RunCheckpoint

ENDING = ".safetensors"
WEIGHTS = "model.safetensors"  # what the file is called in a folder of its own, and on the Hub
FORMAT: Final = "recbole_diffurec model 1"
# Keys of the header's texts: what is told of the model as JSON, and the digest of that and of the weights.
_ABOUT, _DIGEST = "recbole_diffurec", "sha256"
# The library reads no longer header, and checks all offsets and sizes in it against the file.
_LENGTH_BYTES, _LONGEST_HEADER = 8, 100_000_000
_CHUNK = 2**20

Number = Annotated[int, pydantic.Field(ge=0, lt=2**53)]


@pydantic.with_config(SCHEMA)
class About(TypedDict):
    """What a shared model's file holds beside its weights."""

    format: Literal["recbole_diffurec model 1"]
    version: str  # of the package that wrote it
    model: str
    dataset: str
    config: dict[str, Any]
    items: list[str]  # the original ids by number, padding first
    popularity: list[Number]  # their counts in the training data
    item_columns: dict[str, list[str]]
    n_users: Annotated[int, pydantic.Field(ge=1, lt=2**31)]  # with padding
    data: dict[str, Any]  # its fingerprint
    epoch: Number
    valid_result: dict[str, Union[int, float]]  # at that epoch; empty where there was no validation


def content(about: About, weights: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of a file.

    Parameters
    ----------
    about : About
        What is told of the model.
    weights : Mapping of str to Tensor
        Its state.

    Raises
    ------
    UserError
        safetensors is not installed, or the header would be longer than it may be.
    """
    safetensors = _library()
    # Tied weights are one tensor under several names, which the format does not have.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    bare = safetensors.torch.save(tensors)
    begin = _LENGTH_BYTES + int.from_bytes(bare[:_LENGTH_BYTES], "little")
    text = _json(about)
    total = hashlib.sha256(text.encode())
    total.update(memoryview(bare)[begin:])
    texts = {"format": "pt", "model": about["model"], _ABOUT: text, _DIGEST: total.hexdigest()}
    # By hand: the library puts texts into an order that is another one each time.
    header = _json({"__metadata__": texts, **json.loads(bare[_LENGTH_BYTES:begin])}).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)
    if len(header) > _LONGEST_HEADER:
        raise UserError(
            f"what is known of the {len(about['items']) - 1:,} items of model '{about['model']}' takes {len(header):,} "
            f"bytes, and the header of a safetensors file at most {_LONGEST_HEADER:,}: share the checkpoint itself"
        )
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + bare[begin:]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@files.nameable()
def open_model(path: str | Path) -> RunCheckpoint:
    """Open what a model is kept in: a checkpoint that a run wrote, or a file that was made of one to be shared.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    RunCheckpoint
        Of a shared model without the ids of users; how many there are is ``n_users``.

    Raises
    ------
    UserError
        It is neither, damaged, or holds what does not fit together.
    """
    if Path(path).suffix == ENDING or _begins_so(path):
        return _open_shared(path)
    return checkpoint.open_run(path)


def _begins_so(path: str | Path) -> bool:
    """Whether a file begins as safetensors do, with a length and the brace of a header."""
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            return file.read(_LENGTH_BYTES + 1)[_LENGTH_BYTES:] == b"{"
    except (OSError, ValueError):  # which opening it as a checkpoint tells
        return False


def _open_shared(path: str | Path) -> RunCheckpoint:
    safetensors = _library()
    try:
        if not Path(path).is_file() and Path(path).exists():
            raise UserError(f"model '{path}' is no regular file: give a {ENDING} file")
        with open(path, "rb") as file, safetensors.safe_open(path, framework="pt") as opened:
            texts = opened.metadata() or {}
            text = texts.get(_ABOUT)
            if text is not None and texts.get(_DIGEST) != _digest(text, file):
                raise _damaged(path, "its digest is not that of its content")
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
    except FileNotFoundError:
        raise UserError(f"model '{path}' does not exist: check the path") from None
    except OSError as error:
        raise UserError(f"model '{path}' cannot be read ({error.strerror or error}): check the file") from None
    except safetensors.SafetensorError as error:
        raise _damaged(path, " ".join(str(error).split())) from None
    if text is None:
        raise UserError(
            f"'{path}' holds weights alone, and not which model they are of: give a file that 'recbole-diffurec export "
            f"--format=safetensors' wrote"
        )
    return _state(path, _parsed(path, text), weights)


def _digest(text: str, file: BinaryIO) -> str:
    """Of what is told of a model and of its weights, which stand behind the header."""
    total = hashlib.sha256(text.encode())
    file.seek(_LENGTH_BYTES + int.from_bytes(file.read(_LENGTH_BYTES), "little"))
    while chunk := file.read(_CHUNK):
        total.update(chunk)
    return total.hexdigest()


def _parsed(path: str | Path, text: str) -> About:
    """What is told of a model, of the kinds that it is to be; pydantic's parser has a limit of depth."""
    try:
        return cast(About, checkpoint.adapter(About).validate_json(text))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "header"
        raise _damaged(path, f"{where}: {first['msg']}") from None


def _state(path: str | Path, about: About, weights: dict[str, torch.Tensor]) -> RunCheckpoint:
    """As a checkpoint has it."""
    state: RunCheckpoint = {
        "model": about["model"],
        "dataset": about["dataset"],
        "config": about["config"],
        "id_tokens": {"items": about["items"]},
        "n_users": about["n_users"],
        "popularity": torch.tensor(about["popularity"], dtype=torch.int64),
        "epoch": about["epoch"],
        "state_dict": weights,
        "other_parameter": None,
        "data": about["data"],
        "item_columns": about["item_columns"],
        "valid_result": about["valid_result"],
    }
    checkpoint.check_items(path, state)
    return state


def _damaged(path: str | Path, reason: str) -> UserError:
    return UserError(f"model '{path}' is damaged, cut short or no safetensors file ({reason}): use another copy")


def _library() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise cannot_import(f"a {ENDING} file", error, "[export]") from None
    return safetensors

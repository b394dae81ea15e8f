"""The finished runs of a comparison, on the disk: one JSON and one array file each, there as soon as the run ends."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from typing_extensions import NotRequired, TypedDict

from recbole_diffurec.experiments.grid import Job
from recbole_diffurec.runtime import checkpoint, files

logger = logging.getLogger("recbole_diffurec")

# How many times as large as their file the arrays may be: names of users are four bytes a character, most of them zero.
_INFLATED = 100
# Arrays of each test user [U], by the kinds that numpy gives their types, and those of diffusion models.
_PER_USER = {"user": "U", "rank": "i", "head": "b", "length": "i"}
_OF_DIFFUSION = {"reconstructions": 2, "spread": 3, "steps": 1, "steps_ndcg": 1}  # with their dimensions


@pydantic.with_config(checkpoint.SCHEMA)
class _Epoch(TypedDict):
    epoch: int
    train_seconds: float


@pydantic.with_config(checkpoint.SCHEMA)
class _Kept(TypedDict):
    """What tables and the report read of a run, and what tells damage; version 0.1.0 kept no digests."""

    key: str
    label: str
    device: str
    checkpoint: str
    n_parameters: int
    seconds: Annotated[float, pydantic.Field(ge=0)]
    eval_seconds: Annotated[float, pydantic.Field(gt=0)]
    best_epoch: int
    best_valid_result: Annotated[dict[str, float], pydantic.Field(min_length=1)]
    test_result: Annotated[dict[str, float], pydantic.Field(min_length=1)]
    lists: dict[str, dict[str, float]]
    history: Annotated[list[_Epoch], pydantic.Field(min_length=1)]
    config: dict[str, Any]
    versions: dict[str, str]
    date: NotRequired[str]
    machine: NotRequired[dict[str, str | int]]
    digest: NotRequired[str]
    digest_of_arrays: NotRequired[str]


class RunStore:
    """``folder/NAME.json`` (the run's result) and ``folder/NAME.npz`` (its arrays).

    The JSON is written last, so that a run is there as a whole or not at all. Both are read once. A run whose files are
    damaged is not there: a warning says so, and it is run again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        files.make_folder(folder, "the folder of finished runs,")
        self._known: dict[Job, tuple[dict[str, Any], dict[str, np.ndarray]] | None] = {}

    def __contains__(self, job: Job) -> bool:
        if job not in self._known:
            self._known[job] = self._read(job)
        return self._known[job] is not None

    def write(self, job: Job, result: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        content = io.BytesIO()
        np.savez_compressed(content, **dict(arrays))  # type: ignore[arg-type]
        with files.atomic_write(self._path(job, "npz")) as file:
            file.write(content.getvalue())
        kept = {**result, "key": job.key, "digest_of_arrays": _digest(content.getvalue())}
        kept = json.loads(json.dumps(kept))
        kept["digest"] = _digest_of(kept)
        files.write_text(self._path(job, "json"), json.dumps(kept, indent=1))
        self._known[job] = kept, dict(arrays)

    def result(self, job: Job) -> dict[str, Any]:
        """What is kept as JSON of a run that is there."""
        return self._of(job)[0]

    def arrays(self, job: Job) -> dict[str, np.ndarray]:
        """What is kept as arrays of a run that is there."""
        return self._of(job)[1]

    def _of(self, job: Job) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        found = self._known[job] if job in self else None
        if found is None:
            raise KeyError(job.name)
        return found

    def _read(self, job: Job) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        path = self._path(job, "json")
        try:
            result = _checked_result(files.read_json(path), job)
            path = self._path(job, "npz")
            return result, _checked_arrays(files.content_of(path), result)
        except FileNotFoundError:
            return None
        except Exception as error:  # by where the damage is: BadZipFile, EOFError, zlib.error, RecursionError and more
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            logger.warning("'%s' is damaged (%s): %s is run again", path, reason, job)
            return None

    def _path(self, job: Job, extension: str) -> Path:
        return self.folder / f"{job.name}.{extension}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(result: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in result.items() if name != "digest"}
    return _digest(json.dumps(rest, sort_keys=True).encode())


@functools.cache
def _schema() -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(_Kept)


def _checked_result(result: Any, job: Job) -> dict[str, Any]:
    """``result`` where it is one of this run; ``ValueError`` where it is not."""
    try:
        _schema().validate_python(result)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if result["key"] != job.key:
        raise ValueError("it is of another run")
    if result["best_valid_result"].keys() != result["test_result"].keys():
        raise ValueError("its metrics are not the same in validation and test")
    if result.get("digest", digest := _digest_of(result)) != digest:
        raise ValueError("its content was changed after it was written")
    return result


def _checked_arrays(content: bytes, result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays in a file where they are those of a run; an error of any kind where they are not."""
    if result.get("digest_of_arrays", digest := _digest(content)) != digest:
        raise ValueError("it is not the file that was written with its JSON")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(record.file_size for record in archive.infolist()) > _INFLATED * len(content):
            raise ValueError("its arrays are far larger than the file")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    n_users = len(arrays["rank"])
    if not n_users or any(arrays[name].dtype.kind != kind for name, kind in _PER_USER.items()):
        raise ValueError("its arrays are of other types")
    if any(arrays[name].shape != (n_users,) for name in _PER_USER):
        raise ValueError("its arrays are of other shapes")
    diffusion = _OF_DIFFUSION if _OF_DIFFUSION.keys() & arrays.keys() else {}
    if any(arrays[name].ndim != n or arrays[name].dtype.kind not in "fi" for name, n in diffusion.items()):
        raise ValueError("its arrays are of other shapes or types")
    return arrays

"""The finished runs of a comparison, on the disk: one JSON and one array file each, there as soon as the run ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from recbole_diffurec.experiments.grid import Job
from recbole_diffurec.runtime import files

_NAME = re.compile(r"[A-Za-z0-9._=-]+")


class RunStore:
    """``folder/NAME.json`` (the run's result) and ``folder/NAME.npz`` (its arrays).

    The JSON is written last, so that a run is there as a whole or not at all.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, job: Job) -> bool:
        try:
            return self.result(job)["key"] == job.key and self._path(job, "npz").is_file()
        except (OSError, ValueError, KeyError):
            return False

    def write(self, job: Job, result: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        with files.atomic_write(self._path(job, "npz")) as file:
            np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]
        files.write_text(self._path(job, "json"), json.dumps({**result, "key": job.key}, indent=1))

    def result(self, job: Job) -> dict[str, Any]:
        return json.loads(self._path(job, "json").read_text(encoding="utf-8"))

    def arrays(self, job: Job) -> dict[str, np.ndarray]:
        with np.load(self._path(job, "npz"), allow_pickle=False) as file:
            return dict(file)

    def _path(self, job: Job, extension: str) -> Path:
        assert _NAME.fullmatch(job.name), job.name
        return self.folder / f"{job.name}.{extension}"

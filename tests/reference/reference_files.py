"""Files of reference values for models other than DiffuRec, and the register of what is checked of each kind of file.

The environment variable ``BASELINES_REFERENCE`` names the files (a glob or a path); without it, those beside the
repository are used. A file's kind is told by an array that only this kind has, so that it may have any name.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator

import numpy as np
import torch
from conftest import ROOT
from torch import Tensor

TOLERANCE = 1e-9
VARIABLE = "BASELINES_REFERENCE"
PATTERN = os.environ.get(VARIABLE)
FILES = sorted(glob.glob(PATTERN or str(ROOT.parent / "shared" / "baselines" / "reference" / "*.npz")))


class Arrays:
    """The arrays of one file as tensors, by name."""

    def __init__(self, path: str):
        self._file = np.load(path)
        self.names: list[str] = self._file.files

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self._file[name]))

    def text(self, name: str) -> str:
        return str(self._file[name])

    def below(self, prefix: str) -> dict[str, Tensor]:
        """{rest of the name: array} of all arrays whose names begin with ``prefix``."""
        return {name.removeprefix(prefix): self[name] for name in self.names if name.startswith(prefix)}


Check = Callable[[Arrays], None]
_CHECKS: dict[str, list[Check]] = {}


def check(only_here: str) -> Callable[[Check], Check]:
    """Register a check for the files that have the array ``only_here``."""

    def register(function: Check) -> Check:
        _CHECKS.setdefault(only_here, []).append(function)
        return function

    return register


def cases() -> Iterator[tuple[str, Check]]:
    """Every file with every check of its kind. A file that was named and is of no kind fails."""
    for path in FILES:
        arrays = Arrays(path)
        found = [one for name, checks in _CHECKS.items() if name in arrays for one in checks]
        yield from ((path, one) for one in found or ([of_no_kind] if PATTERN else []))


def of_no_kind(arrays: Arrays) -> None:
    raise AssertionError(f"no check knows a file with the arrays {', '.join(arrays.names[:5])}, ...")


def close(ours: Tensor, theirs: Tensor) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=TOLERANCE)

"""Our mathematics of the models that the papers compare with, against reference values in float64.

What is checked is in the modules beside this one, one for each kind of file (see ``reference_files``).
"""

from __future__ import annotations

import os

import acvae_checks  # noqa: F401  registers its checks
import contrastive_checks  # noqa: F401
import dnr_checks  # noqa: F401
import mfgan_checks  # noqa: F401
import pytest
import stosa_checks  # noqa: F401
import torch
import vsan_checks  # noqa: F401
from reference_files import FILES, PATTERN, VARIABLE, Arrays, Check, cases


def test_the_named_reference_files_exist() -> None:
    if PATTERN is None and not FILES:
        pytest.skip(f"no reference files beside the repository and {VARIABLE} is not set")
    assert FILES, f"{VARIABLE}={PATTERN} names no file"


CASES = [pytest.param(path, one, id=f"{os.path.basename(path)}-{one.__name__}") for path, one in cases()]


@pytest.mark.parametrize(("path", "check"), CASES)
def test_agrees(path: str, check: Check) -> None:
    with torch.no_grad():
        check(Arrays(path))

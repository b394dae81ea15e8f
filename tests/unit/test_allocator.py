"""Freed memory is kept, unless the user has other plans."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, torch
from recbole_diffurec.runtime import allocator
allocator.keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    tensors = [torch.ones(4_000_000) for _ in range(8)]  # 16 MB each
use()
before = faults()
for _ in range(5):
    use()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_freed_memory_is_used_again():
    def faults(**environment: str) -> int:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    # Five times 128 MB are 160,000 pages of 4 kB, or fewer large ones.
    assert 4 * faults() < faults(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")

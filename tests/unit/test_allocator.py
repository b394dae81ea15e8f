"""Freed memory is kept, programs for shapes that do not come again are not; unless the user has other plans."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

linux = pytest.mark.skipif(sys.platform != "linux", reason="of Linux, and of glibc's allocator")

FAULTS = """
import resource, torch
from recbole_diffurec import allocator
allocator.configure()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    tensors = [torch.ones(4_000_000) for _ in range(8)]  # 16 MB each
use()
before = faults()
for _ in range(5):
    use()
print(faults() - before)
"""

GROWTH = """
import os, torch
from recbole_diffurec import allocator
allocator.configure()
torch.set_num_threads(1)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
rows, weights = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((3000, 64), (64, 64)))
for size in range(1000, 1150):
    torch.mm(rows[:size], weights)
before = resident()
for size in range(1150, 1550):
    torch.mm(rows[:size], weights)
print(resident() - before)
"""


def printed(program: str, **environment: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    environment = {**inherited, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@linux
def test_freed_memory_is_used_again():
    # Five times 128 MB are 160,000 pages of 4 kB, or fewer large ones.
    theirs = printed(FAULTS, MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert 4 * printed(FAULTS) < theirs


@linux
@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="of processors with bf16")
def test_products_of_ever_new_shapes_do_not_fill_the_memory():
    theirs = printed(GROWTH, LRU_CACHE_CAPACITY="1024", ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024")
    assert 4 * printed(GROWTH) < theirs

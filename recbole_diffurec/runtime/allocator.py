"""Memory that is given back and asked for again: glibc's allocator, told to keep it.

A step of a network on a CPU frees and allocates tensors of some megabytes again and again. By default glibc returns
such memory to the system, which hands it out anew, page by page and zeroed: a tenth to a half of the time.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt(3): free memory at the heap's end that is kept; by how much the heap grows; the size from which
# tensors are mapped one by one and returned at once. A larger one would be faster still where batches are padded, but
# leave holes in the heap where the item table is large: a million items took two gigabytes more.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
SETTINGS = {M_TRIM_THRESHOLD: 2**29, M_TOP_PAD: 2**26, M_MMAP_THRESHOLD: 2**25}


def keep_freed_memory() -> None:
    """Let this process keep up to 512 MiB of freed memory, unless the user has set the allocator; nothing off glibc."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    for parameter, value in SETTINGS.items():
        mallopt(parameter, value)

"""Memory on the CPU: what is given back and asked for again is kept, what is not asked for again is not.

A step of a network on a CPU frees and allocates tensors of some megabytes again and again. By default glibc returns
such memory to the system, which hands it out anew, page by page and zeroed: a tenth to a half of the time.

For every new shape of a product in bf16 oneDNN compiles a program of half a megabyte and keeps it, in two caches of
1,024. The shapes of packed batches do not come again. What is kept of them lies scattered over the heap and divides its
freed parts so that large tensors no longer fit: ten gigabytes after an hour on ml-1m, of which one was in use.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of mallopt(3) and their values: free memory at the heap's end that is kept; by how much the heap grows; the
# size from which tensors are mapped one by one and returned at once. A larger one would be faster still where batches
# are padded, but leave holes in the heap where the item table is large: a million items took two gigabytes more.
SETTINGS = {-1: 2**29, -2: 2**26, -3: 2**25}

# Environment variables of the two caches, PyTorch's own and oneDNN's, which are read at the first such product. Enough
# for the products of a few blocks, forwards and backwards.
CACHES = {"LRU_CACHE_CAPACITY": "128", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}


def configure() -> None:
    """Set up this process's memory for training or inference; what the user has set stays."""
    for variable, capacity in CACHES.items():
        os.environ.setdefault(variable, capacity)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let this process keep up to 512 MiB of freed memory, unless the user has set the allocator; nothing off glibc."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    for parameter, value in SETTINGS.items():
        mallopt(parameter, value)

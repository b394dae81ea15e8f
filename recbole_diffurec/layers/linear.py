"""Linear layers for a number of rows that is another one in every batch.

Shapes: N rows, d inputs, o outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.layers.device import device_type

# Rows that a product in bf16 has a multiple of on a CPU.
ROWS = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` of ``x`` [N, d], ``weight`` [o, d] and ``bias`` [o]; [N, o].

    For each shape of a product in bf16 oneDNN compiles a program of half a megabyte, and keeps a thousand of them. They
    would lie scattered over the heap, whose freed parts between them no longer hold a large tensor: ten gigabytes after
    an hour on ml-1m, of which one was in use. Rows of zeros make the shapes few, so that they come again.
    """
    if torch.compiler.is_compiling() or device_type(x) != "cpu" or not _in_bfloat16(x) or x.shape[0] % ROWS == 0:
        return F.linear(x, weight, bias)
    n = x.shape[0]
    return F.linear(F.pad(x, (0, 0, 0, -n % ROWS)), weight, bias)[:n]


def _in_bfloat16(x: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

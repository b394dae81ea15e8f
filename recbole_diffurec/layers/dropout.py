"""Dropout whose random numbers do not cost more than the matrix products around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_diffurec.layers.device import device_type


class Dropout(nn.Dropout):
    """``nn.Dropout`` with 16-bit random numbers on a CPU.

    PyTorch's CPU dropout draws one double per element, about 0.1 G elements/s on two cores; four 16-bit numbers cut
    from each 64-bit draw give more than 1 G elements/s. The probability is rounded to a multiple of 2^-16 and the
    kept values are scaled by the rounded one, so the expectation is exact. Draws come from torch's global generator.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        threshold = round(self.p * 2**16)
        if device_type(x) != "cpu" or not 0 < threshold < 2**16:
            return super().forward(x)
        n = x.numel()
        bits = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:n]
        # int16 numbers are uniform over [-2^15, 2^15).
        keep = (bits >= threshold - 2**15).to(x.dtype).mul_(1.0 / (1.0 - threshold / 2**16))
        return x * keep.view(x.shape)

"""Forward noising (DDPM; DiffuRec section 4.2, DiffuRecSys Eqs. 5 and 7). The way back is in ``samplers``.

Shapes: B batch, d hidden size, T diffusion steps. Steps are 0-based here: step ``t`` is the papers' s = t + 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class DiffusionProcess(nn.Module):
    """Tables of one schedule and the equation that reads them.

    The tables are float64 buffers, cast where they are used: a float64 model is exact, and a float32 one sees the
    rounded float64 value rather than the result of float32 arithmetic. They are not part of the checkpoint, since the
    configuration determines them.

    Parameters
    ----------
    betas : np.ndarray
        float64 array [T], the forward variances of all T steps.
    """

    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor

    def __init__(self, betas: np.ndarray):
        super().__init__()
        self.n_steps = len(betas)
        alpha_bar = np.cumprod(1.0 - betas)
        self.register_buffer("sqrt_alpha_bar", torch.from_numpy(np.sqrt(alpha_bar)), persistent=False)
        self.register_buffer("sqrt_one_minus_alpha_bar", torch.from_numpy(np.sqrt(1.0 - alpha_bar)), persistent=False)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Forward noising, x_s = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s) eps (Eq. 5).

        Parameters
        ----------
        x_0, noise : Tensor
            [B, d].
        t : Tensor
            int [B], 0-based steps.
        """
        a = self.sqrt_alpha_bar[t].to(x_0.dtype).unsqueeze(-1)
        b = self.sqrt_one_minus_alpha_bar[t].to(x_0.dtype).unsqueeze(-1)
        return a * x_0 + b * noise

"""Forward noising and the reverse process (DDPM; DiffuRec sections 4.2 and 4.4, DiffuRecSys Eqs. 5, 7, 21-23).

Shapes: B batch, d hidden size, T diffusion steps, S sampling steps. Steps are 0-based here: step ``t`` is the papers'
s = t + 1. The denoiser is a callable, so that this file knows no network.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import torch
from torch import Tensor, nn


class DiffusionProcess(nn.Module):
    """Tables of one schedule and the equations that read them.

    The tables are float64 buffers, cast where they are used: a float64 model is exact, and a float32 one sees the
    rounded float64 value rather than the result of float32 arithmetic. They are not part of the checkpoint, since the
    configuration determines them.

    Parameters
    ----------
    betas : float64 array [T], the forward variances of all T steps.
    sampling_steps : S <= T; the reverse process visits S evenly strided steps that include the last one.

    Attributes
    ----------
    sampled_steps : int array [S], ascending 0-based steps that the reverse process visits.
    """

    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    reverse_log_variance: Tensor

    def __init__(self, betas: np.ndarray, sampling_steps: int | None = None):
        super().__init__()
        self.n_steps = len(betas)
        sampling_steps = sampling_steps or self.n_steps
        if not 1 <= sampling_steps <= self.n_steps:
            raise ValueError(f"sampling_steps must be from 1 to diffusion_steps ({self.n_steps}), got {sampling_steps}")
        alpha_bar = np.cumprod(1.0 - betas)
        self.sampled_steps = np.ceil(np.arange(1, sampling_steps + 1) * self.n_steps / sampling_steps).astype(int) - 1

        # The reverse process runs on the schedule respaced to the sampled steps; with S = T it is the schedule itself.
        sampled_alpha_bar = alpha_bar[self.sampled_steps]
        previous = np.append(1.0, sampled_alpha_bar[:-1])
        sampled_betas = betas if sampling_steps == self.n_steps else 1.0 - sampled_alpha_bar / previous
        tables = {
            "sqrt_alpha_bar": np.sqrt(alpha_bar),
            "sqrt_one_minus_alpha_bar": np.sqrt(1.0 - alpha_bar),
            "posterior_mean_coef1": np.sqrt(previous) * sampled_betas / (1.0 - sampled_alpha_bar),
            "posterior_mean_coef2": np.sqrt(1.0 - sampled_betas) * (1.0 - previous) / (1.0 - sampled_alpha_bar),
            "reverse_log_variance": np.log(sampled_betas),
        }
        for name, values in tables.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Forward noising, x_s = sqrt(alpha_bar_s) x_0 + sqrt(1 - alpha_bar_s) eps (Eq. 5).

        Parameters
        ----------
        x_0, noise : [B, d].
        t : int [B], 0-based steps.
        """
        a = self.sqrt_alpha_bar[t].to(x_0.dtype).unsqueeze(-1)
        b = self.sqrt_one_minus_alpha_bar[t].to(x_0.dtype).unsqueeze(-1)
        return a * x_0 + b * noise

    def p_sample(self, x_s: Tensor, x_0: Tensor, index: int, noise: Callable[[int], Tensor]) -> Tensor:
        """One reverse step from the ``index``-th sampled step to the one before it.

        The DDPM posterior mean with variance beta_s. Eq. 23 prints sqrt(alpha_bar_t) in the second coefficient and
        Eq. 22 uses beta-tilde as the scale; the public code and the DDPM derivation have what stands here.

        Parameters
        ----------
        x_s : [B, d], the state.
        x_0 : [B, d], the denoiser's estimate of the target.
        index : position in ``sampled_steps``; 0 is the last step, which adds no noise and gives x_0 itself.
        noise : called with the 0-based step when noise is needed; returns eps' ~ N(0, I) of shape [B, d].
        """
        if index == 0:
            return x_0
        dtype = x_s.dtype
        mean = self.posterior_mean_coef1[index].to(dtype) * x_0 + self.posterior_mean_coef2[index].to(dtype) * x_s
        scale = (0.5 * self.reverse_log_variance[index]).exp().to(dtype)
        return mean + scale * noise(int(self.sampled_steps[index]))

    def p_sample_loop(
        self, x_T: Tensor, denoise: Callable[[Tensor, int], Tensor], noise: Callable[[int], Tensor]
    ) -> Tensor:
        """The whole reverse process (Algorithm 2).

        Parameters
        ----------
        x_T : [B, d], the state at the last diffusion step.
        denoise : ``denoise(x_s, t)`` estimates x_0, [B, d], from the state at 0-based step t.
        noise : see ``p_sample``.

        Returns
        -------
        x_0 : [B, d].
        """
        x = x_T
        for index in reversed(range(len(self.sampled_steps))):
            x = self.p_sample(x, denoise(x, int(self.sampled_steps[index])), index, noise)
        return x

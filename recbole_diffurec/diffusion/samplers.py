"""The way back from noise: DDPM's posterior (DiffuRecSys Eqs. 21-23, Algorithm 2) and DDIM's (Song, Meng, Ermon 2021).

Shapes: B batch, d hidden size, T diffusion steps, S sampling steps. Steps are 0-based here: step ``t`` is the papers'
s = t + 1. The denoiser is a callable, so that this file knows no network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]


class Sampler(nn.Module, ABC):
    """A reverse process on a schedule that is respaced to S evenly strided steps, the last one among them.

    Its tables are float64 buffers, see ``DiffusionProcess``.

    Parameters
    ----------
    betas : np.ndarray
        float64 array [T], the forward variances of all T steps.
    sampling_steps : int, optional
        S, from 1 to T; all T by default.

    Attributes
    ----------
    sampled_steps : np.ndarray
        int array [S], the 0-based steps that the reverse process visits, ascending.
    """

    def __init__(self, betas: np.ndarray, sampling_steps: int | None = None):
        super().__init__()
        self.betas = betas
        n_steps = len(betas)
        sampling_steps = n_steps if sampling_steps is None else sampling_steps
        if not 1 <= sampling_steps <= n_steps:
            raise ValueError(f"sampling_steps must be from 1 to diffusion_steps ({n_steps}), got {sampling_steps}")
        self.sampled_steps = np.ceil(np.arange(1, sampling_steps + 1) * n_steps / sampling_steps).astype(int) - 1
        alpha_bar = np.cumprod(1.0 - betas)[self.sampled_steps]
        previous = np.append(1.0, alpha_bar[:-1])
        # With S = T the schedule is the given one, to the last bit.
        sampled_betas = betas if sampling_steps == n_steps else 1.0 - alpha_bar / previous
        for name, values in self.tables(sampled_betas, alpha_bar, previous).items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    @property
    def visits(self) -> list[int]:
        """The 0-based steps in the order in which the reverse process visits them."""
        return [int(t) for t in self.sampled_steps[::-1]]

    def options(self) -> dict[str, Any]:
        """What a sampler of this kind is made with beside the schedule and the number of steps."""
        return {}

    def with_steps(self, sampling_steps: int) -> Sampler:
        """The same sampler with another number of steps, on the same device."""
        device = next(self.buffers()).device
        return type(self)(self.betas, sampling_steps, **self.options()).to(device)

    @abstractmethod
    def tables(self, betas: np.ndarray, alpha_bar: np.ndarray, previous: np.ndarray) -> dict[str, np.ndarray]:
        """Tables to register as buffers, float64 [S] each.

        Parameters
        ----------
        betas, alpha_bar : np.ndarray
            Float64 [S], of the respaced schedule.
        previous : np.ndarray
            alpha_bar of the step before, 1 for the first.
        """

    @abstractmethod
    def step(self, x_s: Tensor, x_0: Tensor, index: int, noise: Noise) -> Tensor:
        """One reverse step from the ``index``-th sampled step, of at least 1, to the one before it.

        Parameters
        ----------
        x_s : Tensor
            [B, d], the state.
        x_0 : Tensor
            [B, d], the denoiser's estimate of the target.
        index : int
            Position in ``sampled_steps``.
        noise : Noise
            Called with the 0-based step when noise is needed; returns eps' ~ N(0, I) of shape [B, d].
        """

    def sample(self, x_T: Tensor, denoise: Denoise, noise: Noise) -> Tensor:
        """The whole reverse process; the last step gives the denoiser's estimate itself.

        Parameters
        ----------
        x_T : Tensor
            [B, d], the state at the last diffusion step.
        denoise : Denoise
            ``denoise(x_s, t)`` estimates x_0, [B, d], from the state at 0-based step t.
        noise : Noise
            See ``step``.

        Returns
        -------
        x_0 : Tensor
            [B, d].
        """
        x = x_T
        for index in range(len(self.sampled_steps) - 1, 0, -1):
            x = self.step(x, denoise(x, int(self.sampled_steps[index])), index, noise)
        return denoise(x, int(self.sampled_steps[0]))


class DDPMSampler(Sampler):
    """The DDPM posterior mean with variance beta_s.

    Eq. 23 prints sqrt(alpha_bar_t) in the second coefficient and Eq. 22 uses beta-tilde as the scale; the public
    code and the DDPM derivation have what stands here.
    """

    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    reverse_log_variance: Tensor

    def tables(self, betas: np.ndarray, alpha_bar: np.ndarray, previous: np.ndarray) -> dict[str, np.ndarray]:
        """The coefficients of x_0 and x_s in the mean, and log beta_s."""
        return {
            "posterior_mean_coef1": np.sqrt(previous) * betas / (1.0 - alpha_bar),
            "posterior_mean_coef2": np.sqrt(1.0 - betas) * (1.0 - previous) / (1.0 - alpha_bar),
            "reverse_log_variance": np.log(betas),
        }

    def step(self, x_s: Tensor, x_0: Tensor, index: int, noise: Noise) -> Tensor:
        """``Sampler.step``."""
        dtype = x_s.dtype
        mean = self.posterior_mean_coef1[index].to(dtype) * x_0 + self.posterior_mean_coef2[index].to(dtype) * x_s
        scale = (0.5 * self.reverse_log_variance[index]).exp().to(dtype)
        return mean + scale * noise(int(self.sampled_steps[index]))


class DDIMSampler(Sampler):
    """DDIM (Song, Meng, Ermon 2021, Eqs. 12 and 16): deterministic with eta = 0, with eta = 1 DDPM's beta-tilde.

    Parameters
    ----------
    betas : np.ndarray
        As of ``Sampler``.
    sampling_steps : int, optional
        As of ``Sampler``.
    eta : float, optional
        From 0 to 1, the share of DDPM's noise that each step adds.
    """

    coef_x_0: Tensor
    coef_x_s: Tensor
    sigma: Tensor

    def __init__(self, betas: np.ndarray, sampling_steps: int | None = None, eta: float = 0.0):
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must be from 0 to 1, got {eta}")
        self._eta = eta
        super().__init__(betas, sampling_steps)

    def options(self) -> dict[str, Any]:
        """``Sampler.options``."""
        return {"eta": self._eta}

    def tables(self, betas: np.ndarray, alpha_bar: np.ndarray, previous: np.ndarray) -> dict[str, np.ndarray]:
        """x_prev = coef_x_0 x_0 + coef_x_s x_s + sigma eps', the predicted noise eliminated."""
        sigma = self._eta * np.sqrt((1.0 - previous) / (1.0 - alpha_bar) * betas)
        # Rounding may leave a negative number where sigma takes all of the variance.
        direction = np.sqrt(np.maximum(1.0 - previous - sigma**2, 0.0))
        coef_x_s = direction / np.sqrt(1.0 - alpha_bar)
        return {"coef_x_0": np.sqrt(previous) - np.sqrt(alpha_bar) * coef_x_s, "coef_x_s": coef_x_s, "sigma": sigma}

    def step(self, x_s: Tensor, x_0: Tensor, index: int, noise: Noise) -> Tensor:
        """``Sampler.step``."""
        dtype = x_s.dtype
        x = self.coef_x_0[index].to(dtype) * x_0 + self.coef_x_s[index].to(dtype) * x_s
        return x if self._eta == 0 else x + self.sigma[index].to(dtype) * noise(int(self.sampled_steps[index]))


SAMPLERS: dict[str, type[Sampler]] = {"ddpm": DDPMSampler, "ddim": DDIMSampler}

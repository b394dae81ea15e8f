"""Noise schedules: the variances beta_1 .. beta_T of the forward process.

Every schedule is a pure function of T and returns a float64 array of shape [T] whose entry ``t`` (0-based) is
beta_{t+1}. Sources: Ho et al. 2020 (linear), Nichol & Dhariwal 2021 (cosine), Li et al. 2022, Diffusion-LM (sqrt and
the truncated forms), all as used by DiffuRec (Li, Sun, Li 2023), section 4.1. ``k = 1000 / T`` keeps the total noise
independent of T.
"""

from __future__ import annotations

import math
from typing import Callable

import numpy as np

MAX_BETA = 0.999
PIECEWISE_FALL_STEPS = 10


def _from_alpha_bar(alpha_bar: Callable[[float], float], left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Discretise a continuous alpha-bar: beta = 1 - alpha_bar(right) / alpha_bar(left), capped at ``MAX_BETA``."""
    return np.array([min(1.0 - alpha_bar(b) / alpha_bar(a), MAX_BETA) for a, b in zip(left, right)])


def _squared_cosine(offset: float) -> Callable[[float], float]:
    return lambda t: math.cos((t + offset) / (1.0 + offset) * math.pi / 2.0) ** 2


def linear(n_steps: int) -> np.ndarray:
    """Straight line from 1e-4 k to 0.02 k."""
    k = 1000.0 / n_steps
    return np.linspace(1e-4 * k, 0.02 * k, n_steps)


def trunc_lin(n_steps: int) -> np.ndarray:
    """``linear`` raised by 0.01; where its end would exceed 1, it ends at 1e-3 k + 0.01. The papers' choice."""
    k = 1000.0 / n_steps
    end = 0.02 * k + 0.01
    return np.linspace(1e-4 * k + 0.01, end if end <= 1.0 else 1e-3 * k + 0.01, n_steps)


def pw_lin(n_steps: int) -> np.ndarray:
    """Falls from 1e-4 k + 0.01 to 1e-4 k over the first 10 steps, then rises to 0.02 k (the middle value repeats)."""
    k = 1000.0 / n_steps
    low = 1e-4 * k
    fall = np.linspace(low + 0.01, low, PIECEWISE_FALL_STEPS)
    return np.concatenate([fall, np.linspace(low, 0.02 * k, n_steps - PIECEWISE_FALL_STEPS)])


def cosine(n_steps: int) -> np.ndarray:
    """alpha_bar(t) = cos^2((t + 0.008) / 1.008 * pi/2) over T equal intervals of [0, 1]."""
    grid = np.arange(n_steps + 1) / n_steps
    return _from_alpha_bar(_squared_cosine(0.008), grid[:-1], grid[1:])


def trunc_cos(n_steps: int) -> np.ndarray:
    """alpha_bar(t) = cos^2((t + 0.1) / 1.1 * pi/2); beta_1 = 1 - alpha_bar(0), then the first T - 1 intervals."""
    alpha_bar = _squared_cosine(0.1)
    grid = np.arange(n_steps) / n_steps
    return np.concatenate([[min(1.0 - alpha_bar(0.0), MAX_BETA)], _from_alpha_bar(alpha_bar, grid[:-1], grid[1:])])


def sqrt(n_steps: int) -> np.ndarray:
    """alpha_bar(t) = 1 - sqrt(t + 1e-4) over T equal intervals of [0, 1]."""
    grid = np.arange(n_steps + 1) / n_steps
    return _from_alpha_bar(lambda t: 1.0 - math.sqrt(t + 1e-4), grid[:-1], grid[1:])


def falling_snr(n_steps: int, high: float, low: float) -> np.ndarray:
    """The variances by which the signal-to-noise ratio alpha_bar / (1 - alpha_bar) falls evenly in its logarithm.

    Parameters
    ----------
    n_steps : int
        T, at least 1.
    high, low : float
        The ratio after the first step and after the last, above 0.

    Returns
    -------
    np.ndarray
        float64 array of shape [T], every entry in (0, 1).
    """
    alpha_bar = 1.0 / (1.0 + 1.0 / np.geomspace(high, low, n_steps))
    return 1.0 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def rectified(n_steps: int) -> np.ndarray:
    """The noise levels of a rectified flow, x_t = (1 - t) x_0 + t eps, over T equal intervals of [0, 1].

    Divided by its standard deviation x_t is a state of this package's process, and a step of DDIM without noise is
    Euler's step of the flow (Liu, Gong, Liu 2023).
    """
    grid = np.arange(n_steps + 1) / n_steps
    return _from_alpha_bar(lambda t: (1.0 - t) ** 2 / ((1.0 - t) ** 2 + t**2), grid[:-1], grid[1:])


SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {
    f.__name__: f for f in (linear, cosine, sqrt, trunc_cos, trunc_lin, pw_lin, rectified)
}


def betas(name: str, n_steps: int) -> np.ndarray:
    """The variances of schedule ``name`` with ``n_steps`` steps.

    Parameters
    ----------
    name : str
        One of ``SCHEDULES``.
    n_steps : int
        T, at least 1 (``pw_lin``: more than 10).

    Returns
    -------
    np.ndarray
        float64 array of shape [T], every entry in (0, 1].

    Raises
    ------
    ValueError
        Unknown name, T out of range, or a schedule whose beta leaves (0, 1] at this T.
    """
    if name not in SCHEDULES:
        raise ValueError(f"noise_schedule '{name}' is unknown: choose one of {', '.join(SCHEDULES)}")
    if name == "pw_lin" and n_steps <= PIECEWISE_FALL_STEPS:
        raise ValueError(f"noise_schedule 'pw_lin' needs diffusion_steps above {PIECEWISE_FALL_STEPS}, got {n_steps}")
    if n_steps < 1:
        raise ValueError(f"diffusion_steps must be at least 1, got {n_steps}")
    values = SCHEDULES[name](n_steps)
    if not (values.min() > 0.0 and values.max() <= 1.0):
        raise ValueError(
            f"noise_schedule '{name}' with diffusion_steps {n_steps} has a variance outside (0, 1] "
            f"(from {values.min():.4g} to {values.max():.4g}): raise diffusion_steps or choose another schedule"
        )
    return values

"""Embedding of the diffusion step (DiffuRec section 4.2, after Ho et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_PERIOD = 10000.0
STEP_RANGE = 1000.0


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """[cos | sin] features of positions ``t`` [n] at frequencies 10000^(-k / (dim/2)), k = 0 .. dim/2 - 1.

    Returns float64 [n, dim]; an odd ``dim`` ends in a zero.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float64, device=t.device)
    angles = t.to(torch.float64).unsqueeze(-1) * torch.exp(-math.log(MAX_PERIOD) * k / half)
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(features, (0, dim % 2))


class StepEmbedding(nn.Module):
    """d_s = MLP(sinusoid(t * 1000 / T)) for every 0-based step t; the MLP is d -> 4d -> SiLU -> d.

    ``forward`` returns the embeddings of all T steps, [T, d]: T is smaller than a batch, and the reverse process
    needs them all.
    """

    features: Tensor

    def __init__(self, hidden_size: int, n_steps: int):
        super().__init__()
        self.inner = nn.Linear(hidden_size, 4 * hidden_size)
        self.outer = nn.Linear(4 * hidden_size, hidden_size)
        positions = torch.arange(n_steps, dtype=torch.float64) * STEP_RANGE / n_steps
        self.register_buffer("features", sinusoid(positions, hidden_size), persistent=False)

    def forward(self) -> Tensor:
        features = self.features.to(self.inner.weight.dtype)
        return self.outer(nn.functional.silu(self.inner(features)))


class SinusoidalSteps(nn.Module):
    """Interleaved sinusoids of every diffusion step, without a network after them (Vaswani et al. 2017).

    Those of the 0-based step t are of n = t + 1: z[2j] = sin(n / 10000^(2j/d)), z[2j + 1] = cos(n / 10000^(2j/d)).

    Parameters
    ----------
    hidden_size : int
        d.
    n_steps : int
        T.
    """

    features: Tensor

    def __init__(self, hidden_size: int, n_steps: int):
        super().__init__()
        numbers = torch.arange(1, n_steps + 1, dtype=torch.float64).unsqueeze(1)
        even = torch.arange(0, hidden_size, 2, dtype=torch.float64)
        angles = numbers * MAX_PERIOD ** (-even / hidden_size)
        interleaved = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :hidden_size]
        self.register_buffer("features", interleaved.contiguous(), persistent=False)

    def forward(self) -> Tensor:
        """The embeddings of all steps, [T, d]."""
        return self.features

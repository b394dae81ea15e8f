"""Where the random numbers of a pass come from.

Shapes: B batch, L padded history length, N tokens, d hidden size. A source gives the noise of the forward process or
the start of the reverse process, the noise of its steps, and what a denoiser draws for each token.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

# splitmix64 (Steele et al. 2014), whose constants are written as signed 64-bit numbers.
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_START, _STEP, _PER_TOKEN, _UNIFORM = 1, 2, 3, 0


def _mix(x: Tensor) -> Tensor:
    """A bijection of int64 that scatters neighbouring inputs."""
    x = x + _GOLDEN
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


def _seeded(keys: Tensor, seed: int | Tensor) -> Tensor:
    return _mix(keys + _mix(torch.as_tensor(seed, device=keys.device)))


def uniforms(keys: Tensor, seed: int) -> Tensor:
    """Uniform numbers in [0, 1) that depend on (key, seed) alone; float64, shaped like ``keys``."""
    return (_mix(_seeded(keys, seed) + _UNIFORM) & (2**53 - 1)).double() / 2**53


def history_keys(items: Tensor, age: Tensor, real: Tensor | None, row: Tensor, n_rows: int) -> Tensor:
    """A 64-bit hash of each history: the same items in the same order have the same key, wherever they stand.

    Parameters
    ----------
    items, age, row : Tensor
        int [N], see ``RaggedBatch``; ``real`` masks the tokens that count.

    Returns
    -------
    Tensor
        int64 [n_rows].
    """
    token_hash = _mix(_mix(items) + age)
    if real is not None:
        token_hash = token_hash * real
    return _mix(torch.zeros(n_rows, dtype=torch.int64, device=items.device).index_add_(0, row, token_hash))


def prefix_keys(items: Tensor) -> Tensor:
    """A 64-bit hash of each history and of each of its beginnings: what comes later has no part in it.

    Parameters
    ----------
    items : Tensor
        int [B, L], the oldest first.

    Returns
    -------
    Tensor
        int64 [B, L], of the items up to each place.
    """
    place = torch.arange(items.shape[1], device=items.device)
    return _mix(_mix(_mix(items) + place).cumsum(dim=1))


class Draws(Protocol):
    """What one pass draws from, by 0-based diffusion step."""

    def start(self) -> Tensor:
        """The noise of the forward process, or x_T, [B, d] of N(0, I)."""

    def step(self, t: int) -> Tensor:
        """The noise that the reverse step from t adds, [B, d] of N(0, I)."""

    def per_token(self, t: int, mean: float, std: float, dtype: torch.dtype) -> Tensor:
        """One draw of N(mean, std^2) for each token and dimension, [N, d]."""


def _affine(normal: Tensor, mean: float, std: float, out: Tensor | None = None) -> Tensor:
    """std (normal + mean / std), in ``out`` where it is given: exact where mean and std are equal, as lambda's are."""
    return torch.add(normal, mean / std if std else 0.0, out=out).mul_(std)


class FreshNoise:
    """Draws from torch's global generator, for training.

    Parameters
    ----------
    n_rows, n_tokens, dim : int
        B, N, d.
    like : Tensor
        A tensor that gives device and dtype.
    """

    def __init__(self, n_rows: int, n_tokens: int, dim: int, like: Tensor):
        self._row_shape, self._token_shape = (n_rows, dim), (n_tokens, dim)
        self._like = like

    def start(self) -> Tensor:
        """``Draws.start``."""
        return self._draw(self._row_shape)

    def step(self, t: int) -> Tensor:
        """``Draws.step``."""
        return self._draw(self._row_shape)

    def per_token(self, t: int, mean: float, std: float, dtype: torch.dtype) -> Tensor:
        """``Draws.per_token``."""
        drawn = self._draw(self._token_shape)
        return _affine(drawn, mean, std, out=drawn).to(dtype)

    def _draw(self, shape: tuple[int, int]) -> Tensor:
        return torch.randn(shape, device=self._like.device, dtype=self._like.dtype)


class NoiseTable(nn.Module):
    """Repeatable noise that depends on the history alone, for inference.

    A user's noise must not change with the batch the user is scored in. Drawing it from a generator per user is slow,
    so a table of standard normal rows is drawn once, and a draw takes the row that a hash of (seed, history, kind of
    draw, step, position) points to. It is a float32 buffer outside the checkpoint, equal on every device.

    Parameters
    ----------
    dim : int
        d.
    """

    rows: Tensor

    SIZE = 2**14  # rows; a power of two, so that the hash's low bits are the row

    def __init__(self, dim: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("rows", torch.randn(self.SIZE, dim, generator=generator), persistent=False)

    def for_batch(
        self, seed: int | Tensor, row_keys: Tensor, row: Tensor, age: Tensor, dtype: torch.dtype
    ) -> TableNoise:
        """The source for one batch.

        Parameters
        ----------
        seed : int or Tensor
            Another seed gives other noise; a program's is int64 [].
        row_keys : Tensor
            int64 [B], from ``history_keys``.
        row, age : Tensor
            int [N], see ``RaggedBatch``.
        dtype : torch.dtype
            The type of ``start`` and ``step``.
        """
        seeded = _seeded(row_keys, seed)
        return TableNoise(self.rows, dtype, seeded, _mix(seeded[row] + age))


class TableNoise:
    """Draws for one batch from a ``NoiseTable``; see there."""

    def __init__(self, rows: Tensor, dtype: torch.dtype, row_keys: Tensor, token_keys: Tensor):
        self._rows, self._normal = rows, rows.to(dtype)
        self._row_keys, self._token_keys = row_keys, token_keys
        # Made once and not for each step: the table is smaller than the tokens of a batch.
        self._tables: dict[tuple[float, float, torch.dtype], Tensor] = {}

    def start(self) -> Tensor:
        """``Draws.start``."""
        return self._normal[self._places(self._row_keys, _START, 0)]

    def step(self, t: int) -> Tensor:
        """``Draws.step``."""
        return self._normal[self._places(self._row_keys, _STEP, t)]

    def per_token(self, t: int, mean: float, std: float, dtype: torch.dtype) -> Tensor:
        """``Draws.per_token``."""
        key = mean, std, dtype
        if key not in self._tables:
            self._tables[key] = _affine(self._rows, mean, std).to(dtype)
        return self._tables[key][self._places(self._token_keys, _PER_TOKEN, t)]

    @staticmethod
    def _places(keys: Tensor, kind: int, t: int) -> Tensor:
        return _mix(keys + (4 * t + kind)) & (NoiseTable.SIZE - 1)

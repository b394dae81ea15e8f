"""Batches of histories of unequal length, without the padding.

Shapes: B batch, L padded length, N tokens (stored positions), d hidden size.

RecBole hands out right-padded ``[B, L]`` tensors; on Amazon data nine tenths of them are padding. ``RaggedBatch`` sorts
the histories by length and cuts them into *slabs* of (nearly) equal length. The tokens of all slabs lie one after
another in a single ``[N, d]`` tensor, so that everything that works on one token at a time (embeddings, norms, linear
layers) runs once, over all of them, and a slab is a plain view ``[n_sequences, length, d]`` for attention. The few
positions that pad a slab are masked as keys and never read as results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_diffurec.layers.device import device_type

# What one more slab costs beside its tokens (kernel launches, small matrices), in tokens' worth of work.
SLAB_OVERHEAD_TOKENS = {"cpu": 48, "cuda": 2048}
# The attribute of lengths on a device that has the same numbers on the CPU, where somebody knows them: to ask a device
# is to wait until it has done all that it was given.
ON_HOST = "on_host"


@dataclass(frozen=True)
class Slab:
    """Sequences ``first_row .. first_row + n`` of the sorted batch, each stored as ``length`` tokens."""

    first_row: int
    n: int
    first_token: int
    length: int
    key_bias: Tensor | None  # [n, 1, 1, length], minus infinity at positions that pad the slab; None without any

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.n)

    @property
    def tokens(self) -> slice:
        return slice(self.first_token, self.first_token + self.n * self.length)


def plan_slabs(lengths: np.ndarray, overhead: int) -> list[tuple[int, int]]:
    """Partition sorted lengths into slabs at the least cost, padding included.

    Parameters
    ----------
    lengths : np.ndarray
        Ascending int [B].
    overhead : int
        Cost of one slab in tokens.

    Returns
    -------
    list of (int, int)
        (first row, end row) of each slab, in order.
    """
    distinct, first = np.unique(lengths, return_index=True)
    ends = np.append(first[1:], len(lengths))
    best = np.zeros(len(distinct) + 1)
    cut = np.zeros(len(distinct), dtype=int)
    for j, (end, length) in enumerate(zip(ends, distinct)):
        # A slab of the distinct lengths i..j stores (end - first[i]) sequences of distinct[j] tokens.
        costs = best[: j + 1] + overhead + (end - first[: j + 1]) * length
        cut[j] = costs.argmin()
        best[j + 1] = costs[cut[j]]
    slabs = []
    j = len(distinct) - 1
    while j >= 0:
        slabs.append((int(first[cut[j]]), int(ends[j])))
        j = int(cut[j]) - 1
    return slabs[::-1]


class RaggedBatch:
    """The histories of one batch, packed.

    Parameters
    ----------
    item_seq : Tensor
        int [B, L], right-padded item ids.
    lengths : Tensor
        int [B], number of real positions, at least 1 each; read from the device unless they have ``ON_HOST``.

    Attributes
    ----------
    items : Tensor
        int [N], item ids; 0 at the positions that pad a slab.
    row : Tensor
        int [N], the row of the given batch that each token belongs to.
    age : Tensor
        int [N], 0 for the most recent item of a history, 1 for the one before, ...
    real : Tensor or None
        bool [N], or None when every token is real.
    last : Tensor
        int [B], token of the most recent item, in sorted order (see ``restore``).
    slabs : list of Slab
        The slabs, in order.
    """

    def __init__(self, item_seq: Tensor, lengths: Tensor):
        device = item_seq.device
        host_lengths = getattr(lengths, ON_HOST, lengths).cpu().numpy()
        if len(host_lengths) == 0 or host_lengths.min() < 1:
            raise ValueError("every history needs at least one item")
        order = np.argsort(host_lengths, kind="stable")
        sorted_lengths = host_lengths[order]
        plan = plan_slabs(sorted_lengths, SLAB_OVERHEAD_TOKENS.get(device_type(item_seq), SLAB_OVERHEAD_TOKENS["cuda"]))

        self.n_sequences = len(host_lengths)
        self._order = torch.from_numpy(order).to(device)
        self._inverse = torch.from_numpy(np.argsort(order)).to(device)
        self.slabs: list[Slab] = []
        items, rows, ages, last = [], [], [], []
        n_tokens, padded = 0, False
        for start, end in plan:
            length = int(sorted_lengths[end - 1])
            slab_rows = self._order[start:end]
            slab_lengths = lengths[slab_rows].unsqueeze(1)
            position = torch.arange(length, device=device)
            full = sorted_lengths[start] == length
            padded |= not full
            bias = None
            if not full:
                pads = position >= slab_lengths
                bias = torch.zeros(pads.shape, device=device).masked_fill_(pads, -math.inf)[:, None, None, :]
            self.slabs.append(Slab(start, end - start, n_tokens, length, bias))
            items.append(item_seq[slab_rows, :length].reshape(-1))
            rows.append(slab_rows.repeat_interleave(length))
            ages.append((slab_lengths - 1 - position).reshape(-1))
            last.append(n_tokens + torch.arange(end - start, device=device) * length + slab_lengths.squeeze(1) - 1)
            n_tokens += (end - start) * length
        self.items = torch.cat(items)
        self.row = torch.cat(rows)
        age = torch.cat(ages)
        self.real = age >= 0 if padded else None
        self.age = age.clamp_(min=0)
        self.last = torch.cat(last)

    @property
    def position(self) -> Tensor:
        """int [N], 0 for the oldest item of a history, 1 for the one after, ..."""
        device = self.items.device
        return torch.cat([torch.arange(slab.length, device=device).repeat(slab.n) for slab in self.slabs])

    @property
    def first(self) -> Tensor:
        """int [B], token of the oldest item of a history, in sorted order."""
        device = self.last.device
        return torch.cat([s.first_token + torch.arange(s.n, device=device) * s.length for s in self.slabs])

    def restore(self, x: Tensor) -> Tensor:
        """Bring [B, ...] from sorted order back to the order of the given batch."""
        return x.index_select(0, self._inverse)


class PaddedBatch(RaggedBatch):
    """A batch laid out as it came, padding included: one slab, whose shape may be symbolic in an exported program.

    Parameters
    ----------
    item_seq : Tensor
        int [B, L], right-padded item ids; a row without any is read as one padding item.
    """

    def __init__(self, item_seq: Tensor):
        n, length = item_seq.shape
        device = item_seq.device
        lengths = (item_seq != 0).sum(dim=1, keepdim=True).clamp(min=1)
        position = torch.arange(length, device=device)
        pads = position >= lengths
        bias = torch.zeros(pads.shape, device=device).masked_fill(pads, -math.inf)[:, None, None, :]
        rows = torch.arange(n, device=device)
        self.n_sequences = n
        self.slabs = [Slab(0, n, 0, length, bias)]
        self.items = item_seq.reshape(-1)
        self.row = rows.unsqueeze(1).expand(n, length).reshape(-1)
        self.real = ~pads.reshape(-1)
        self.age = (lengths - 1 - position).clamp(min=0).reshape(-1)
        self.last = rows * length + lengths.squeeze(1) - 1

    def restore(self, x: Tensor) -> Tensor:
        """The order is that of the given batch already."""
        return x


class LedBatch(RaggedBatch):
    """The layout of a batch with one more token in front of each history, which is the one that is read of it.

    For attention in both directions, to which the place of a token says nothing.

    Parameters
    ----------
    histories : RaggedBatch
        Of any layout.
    """

    def __init__(self, histories: RaggedBatch):
        self._histories = histories
        self.n_sequences = histories.n_sequences
        self.slabs = [
            Slab(
                slab.first_row,
                slab.n,
                slab.first_token + slab.first_row,
                slab.length + 1,
                None if slab.key_bias is None else F.pad(slab.key_bias, (1, 0)),
            )
            for slab in histories.slabs
        ]
        device = histories.last.device
        first = [slab.first_token + torch.arange(slab.n, device=device) * slab.length for slab in self.slabs]
        self.last = torch.cat(first)

    def join(self, leading: Tensor, tokens: Tensor) -> Tensor:
        """The tokens of the longer sequences, [B + N, d].

        Parameters
        ----------
        leading : Tensor
            [B, d], what stands in front, in the order of the given batch.
        tokens : Tensor
            [N, d], of the histories.
        """
        histories = self._histories
        leading = leading.index_select(0, histories.row.index_select(0, histories.last)).unsqueeze(1)
        slabs = histories.slabs
        parts = zip(slabs, leading.split([slab.n for slab in slabs]), tokens.split([s.n * s.length for s in slabs]))
        joined = [torch.cat([front, part.view(slab.n, slab.length, -1)], dim=1) for slab, front, part in parts]
        return torch.cat([sequences.flatten(0, 1) for sequences in joined])

    def restore(self, x: Tensor) -> Tensor:
        """``RaggedBatch.restore``."""
        return self._histories.restore(x)

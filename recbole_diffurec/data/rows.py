"""Training rows by their numbers: their histories, and others with the same target.

A row is a target and the items before it. Its number, which a batch carries in the column ``ROW``, is the place of the
target among all interactions in order of user and time; it stays the row's own however rows are selected or shuffled.

A batch of sequences has many targets a row: each item of a history from the place in ``FIRST_TARGET`` on predicts its
successor. Its columns of histories have B rows, all others M, one a target, in order of rows and places. Its length is
that of the longest column, M.

Shapes: n interactions, R training rows, B batch, M targets of a batch of sequences, L padded history length, G users, W
windows, I items with padding item 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROW = "row_number"
FIRST_TARGET = "first_target"


def right_padded(values: Tensor, start: Tensor, end: Tensor, width: int) -> Tensor:
    """The stretches ``values[start:end]``, [B, width, ...], with zeros after their ends.

    Parameters
    ----------
    values : Tensor
        [n, ...].
    start, end : Tensor
        int [B]; at most ``width`` apart.
    width : int
        Of the result.
    """
    position = start.unsqueeze(1) + torch.arange(width, device=start.device)
    real = position < end.unsqueeze(1)
    padded = values[position.clamp_(max=len(values) - 1)]
    return padded * real.view(*real.shape, *[1] * (padded.dim() - 2))


@dataclass(frozen=True)
class Windows:
    """Stretches of histories for training over all positions.

    Parameters
    ----------
    user : Tensor
        int [W], of the G whose history it is.
    start, end : Tensor
        int [W], the places of the first item and after the last.
    first : Tensor
        int [W], the place of the first item whose successor is a target of this window.
    """

    user: Tensor
    start: Tensor
    end: Tensor
    first: Tensor


def windows(counts: Tensor, longest: int) -> Windows:
    """Cut histories such that the successor of each item is a target exactly once.

    The first window is as long as windows may be and all of it counts. Each further one begins with the last half of
    the one before, which it only reads: a target has at least half a window of items before it where its user has as
    many, and no history costs more than twice its length.

    Parameters
    ----------
    counts : Tensor
        int [G], items of each history that have a successor, at least 1.
    longest : int
        L, items of a window.
    """
    read = longest // 2
    step = longest - read
    n = 1 + (counts - longest).clamp(min=0).add(step - 1).div(step, rounding_mode="floor")
    user = torch.arange(len(counts)).repeat_interleave(n)
    number = torch.arange(len(user)) - (n.cumsum(0) - n)[user]
    start = number * step
    return Windows(user, start, torch.minimum(start + longest, counts[user]), start + read * (number > 0))


def target_places(first: Tensor, lengths: Tensor, n_targets: int) -> tuple[Tensor, Tensor]:
    """Row and place of the item before each target of a batch of sequences, int [M] each.

    Parameters
    ----------
    first, lengths : Tensor
        int [B], of the column ``FIRST_TARGET``, and of the histories.
    n_targets : int
        M; given, so that no device is asked.
    """
    counts = lengths - first
    row = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=n_targets)
    before = counts.cumsum(0) - counts
    return row, torch.arange(n_targets, device=counts.device) - (before - first)[row]


def prefixes(item_seq: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """The histories up to each place of ``target_places``, int [M, L], right-padded.

    Parameters
    ----------
    item_seq : Tensor
        int [B, L], right-padded.
    row, place : Tensor
        int [M].
    """
    later = torch.arange(item_seq.shape[1], device=item_seq.device) > place.unsqueeze(1)
    return item_seq[row].masked_fill_(later, 0)


class RowHistories(nn.Module):
    """The histories of rows, for a model that reads others than those of its batch.

    Parameters
    ----------
    rows : PrefixRows
        The training rows.
    items : str
        Which of their list columns holds the items.
    """

    items: Tensor
    first: Tensor

    def __init__(self, rows: Any, items: str):
        super().__init__()
        self.max_length: int = rows.max_length
        first = torch.zeros(len(rows.flat[items]), dtype=torch.int32)
        first[rows.target] = rows.first.int()
        self.register_buffer("items", rows.flat[items], persistent=False)
        self.register_buffer("first", first, persistent=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Histories int [B, L], right-padded, and their lengths int [B].

        Parameters
        ----------
        rows : Tensor
            int [B], numbers of training rows.
        """
        start = torch.maximum(self.first[rows].long(), rows - self.max_length)
        return right_padded(self.items, start, rows, self.max_length), rows - start


class SameTarget(nn.Module):
    """For a training row another one with the same target, drawn uniformly; the row itself where there is no other.

    The rows are sorted by target once, O(R) memory; a draw is a place in the row's group.

    Parameters
    ----------
    rows : Tensor
        int [R], the numbers of the training rows.
    items : Tensor
        int [n], the item at each number.
    """

    items: Tensor
    by_target: Tensor
    place: Tensor
    start: Tensor

    def __init__(self, rows: Tensor, items: Tensor):
        super().__init__()
        targets = items[rows]
        order = targets.argsort(stable=True)
        place = torch.zeros(len(items), dtype=torch.int32)
        place[rows[order]] = torch.arange(len(rows), dtype=torch.int32)
        ends = torch.bincount(targets).cumsum(0)
        self.register_buffer("items", items, persistent=False)
        self.register_buffer("by_target", rows[order].int(), persistent=False)  # rows in the order of their targets
        self.register_buffer("place", place, persistent=False)  # of a row in that order
        self.register_buffer("start", torch.cat([ends.new_zeros(1), ends]), persistent=False)  # of an item's group

    def forward(self, rows: Tensor) -> Tensor:
        """Numbers of the drawn rows, int [B].

        Parameters
        ----------
        rows : Tensor
            int [B], numbers of training rows.
        """
        target = self.items[rows]
        start, end = self.start[target], self.start[target + 1]
        own = self.place[rows].long() - start
        others = end - start - 1
        drawn = (torch.rand(len(rows), dtype=torch.float64, device=rows.device) * others).long()
        drawn = torch.where(others > 0, drawn + (drawn >= own), own)
        return self.by_target[start + drawn].long()

"""Training rows by their numbers: their histories, the items after them, and others with the same target.

A row is a target and the items before it. Its number, which a batch carries in the column ``ROW``, is the place of the
target among all interactions in order of user and time; it stays the row's own however rows are selected or shuffled.

Shapes: n interactions, R training rows, B batch, L padded history length, I items with padding item 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROW = "row_number"


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


class FollowingItems(nn.Module):
    """The targets of rows and the items after them, as far as each is the target of a training row of the same user.

    So nothing is read of validation or test, and nothing behind it either: where a split leaves holes in a user's
    training rows, the items stop at the first.

    Parameters
    ----------
    rows : PrefixRows
        The training rows.
    items : str
        Which of their list columns holds the items.
    """

    items: Tensor
    end: Tensor

    def __init__(self, rows: Any, items: str):
        super().__init__()
        first = torch.full((len(rows.flat[items]),), -1, dtype=torch.long)
        first[rows.target] = rows.first
        # Where a stretch of rows of one user begins, or of what is no row.
        begins = torch.nonzero((first[1:] != first[:-1]) | (first[1:] < 0)).flatten() + 1
        begins = torch.cat([begins, begins.new_tensor([len(first)])])
        end = begins[torch.searchsorted(begins, torch.arange(len(first)), right=True)]
        self.register_buffer("items", rows.flat[items], persistent=False)
        self.register_buffer("end", end.int(), persistent=False)

    def forward(self, rows: Tensor, n: int) -> Tensor:
        """Up to ``n`` items of each row, its target first, int [B, n] with 0 after the last.

        Parameters
        ----------
        rows : Tensor
            int [B], numbers of training rows.
        n : int
            How many.
        """
        return right_padded(self.items, rows, torch.minimum(rows + n, self.end[rows].long()), n)


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

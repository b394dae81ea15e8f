"""Random changes of histories (Xie et al. 2022, "Contrastive Learning for Sequential Recommendation", section 3.2).

Every function returns new tensors and leaves what it is given as it was. Its random numbers, uniform over [0, 1), are
arguments.

Shapes: B batch, L padded history length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

OPERATORS = ("crop", "mask", "reorder")


def share(lengths: Tensor, rate: float) -> Tensor:
    """floor(rate n) for histories of n items, int [B]."""
    return (lengths.double() * rate).floor().long()


def crop(item_seq: Tensor, lengths: Tensor, rate: float, where: Tensor) -> tuple[Tensor, Tensor]:
    """Keep consecutive items, floor(rate n) of them and at least one, from a uniform start.

    Parameters
    ----------
    item_seq : Tensor
        int [B, L], right-padded.
    lengths : Tensor
        int [B], n.
    rate : float
        In (0, 1].
    where : Tensor
        Uniform [B], the start.

    Returns
    -------
    tuple of Tensor
        Histories [B, L], right-padded, and their lengths [B].
    """
    kept = share(lengths, rate).clamp(min=1)
    position = torch.arange(item_seq.shape[1], device=item_seq.device)
    source = position + _start(lengths, kept, where)
    items = item_seq.gather(1, source.clamp(max=item_seq.shape[1] - 1))
    return items.masked_fill(position >= kept.unsqueeze(1), 0), kept


def mask(item_seq: Tensor, lengths: Tensor, rate: float, keys: Tensor, token: int) -> Tensor:
    """Replace floor(rate n) distinct items by ``token``.

    Parameters
    ----------
    item_seq, lengths : Tensor
        As in ``crop``.
    rate : float
        In [0, 1].
    keys : Tensor
        Uniform [B, L]; the positions with the smallest are replaced.
    token : int
        What stands for a hidden item.

    Returns
    -------
    Tensor
        int [B, L].
    """
    pads = torch.arange(item_seq.shape[1], device=item_seq.device) >= lengths.unsqueeze(1)
    rank = keys.masked_fill(pads, math.inf).argsort(dim=1).argsort(dim=1)
    return item_seq.masked_fill(rank < share(lengths, rate).unsqueeze(1), token)


def reorder(item_seq: Tensor, lengths: Tensor, rate: float, where: Tensor, keys: Tensor) -> Tensor:
    """Permute consecutive items, floor(rate n) of them from a uniform start, uniformly.

    Parameters
    ----------
    item_seq, lengths : Tensor
        As in ``crop``.
    rate : float
        In [0, 1].
    where : Tensor
        Uniform [B], the start.
    keys : Tensor
        Uniform float64 [B, L]; the items are put in the order of theirs.

    Returns
    -------
    Tensor
        int [B, L].
    """
    moved = share(lengths, rate)
    start = _start(lengths, moved, where)
    position = torch.arange(item_seq.shape[1], device=item_seq.device)
    inside = (position >= start) & (position < start + moved.unsqueeze(1))
    # Keys between the positions before and after the stretch keep everything else in its place.
    keys = torch.where(inside, start + moved.unsqueeze(1) * keys, position.to(keys.dtype))
    return item_seq.gather(1, keys.argsort(dim=1, stable=True))


def _start(lengths: Tensor, stretch: Tensor, where: Tensor) -> Tensor:
    """The first position of a stretch, uniform over those that leave it room, int [B, 1]."""
    return (where * (lengths - stretch + 1)).long().unsqueeze(1)

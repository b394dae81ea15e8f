"""What a list of recommendations may be asked to be, and how samples of a diffusion model make one.

Shapes: S samples, B histories, I items with padding row 0, k places of a list.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from recbole_diffurec.errors import UserError


@dataclass(frozen=True)
class ListOptions:
    """What lists are asked for; wrong values are refused.

    Parameters
    ----------
    k : int
        Length of the lists.
    exclude_seen : bool
        Leave out the items of the history itself.
    candidates : Iterable of object or None
        Ids of the items to choose from; None for all.
    samples : int or None
        Draw so many reconstructions of each history's next item; None for the one of the configuration.
    diversity : float
        With samples, from 0 (the order of the scores) to 1 (cover as many samples' own lists as possible).

    Raises
    ------
    UserError
        A value is out of range, or ``diversity`` comes without ``samples``.
    """

    k: int = 10
    exclude_seen: bool = False
    candidates: Iterable[Any] | None = None
    samples: int | None = None
    diversity: float = 0.0

    def __post_init__(self) -> None:
        for name, count in (("k", self.k), ("samples", 1 if self.samples is None else self.samples)):
            if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
                raise UserError(f"{name} must be an integer of at least 1, got {count!r}")
        if not isinstance(self.exclude_seen, (bool, np.bool_)):
            raise UserError(f"exclude_seen must be True or False, got {self.exclude_seen!r}")
        number = isinstance(self.diversity, (int, float)) and not isinstance(self.diversity, bool)
        if not number or not 0 <= self.diversity <= 1:
            raise UserError(f"diversity must be a number from 0 to 1, got {self.diversity!r}")
        if self.samples is None and self.diversity:
            raise UserError("diversity spreads a list over samples: give --samples=20 or so with it")


@dataclass(frozen=True)
class Lists:
    """Lists of one batch.

    Parameters
    ----------
    items, scores : np.ndarray
        Item numbers [B, k] and their scores, of which those of minus infinity end a list.
    extra : dict of str to np.ndarray
        Further columns of the result, [B, k] each.
    """

    items: np.ndarray
    scores: np.ndarray
    extra: dict[str, np.ndarray]


def lists_of_samples(own: np.ndarray, scores: Tensor, spread: np.ndarray, diversity: float) -> Lists:
    """Lists made of the scores of the samples' mean and of the samples' own lists.

    Parameters
    ----------
    own : np.ndarray
        int [S, B, k], the samples' own lists.
    scores : Tensor
        [B, I], of the samples' mean.
    spread : np.ndarray
        [B], how far a history's samples lie apart.
    diversity : float
        See ``ListOptions``.
    """
    k, values = own.shape[-1], scores.numpy()
    items = spread_over(own, values, diversity) if diversity else scores.topk(k).indices.numpy()
    counts = np.zeros(values.shape, dtype=np.int32)
    for of_sample in own:
        counts[np.arange(len(counts))[:, None], of_sample] += 1
    frequency = np.take_along_axis(counts, items, axis=1) / len(own)
    extra = {"frequency": frequency, "spread": np.broadcast_to(spread[:, None], items.shape)}
    return Lists(items, np.take_along_axis(values, items, axis=1), extra)


def spread_over(own: np.ndarray, scores: np.ndarray, diversity: float) -> np.ndarray:
    """Lists that hold items of as many samples' own lists as possible: greedy maximum coverage.

    Each place goes to the item with the largest (1 - diversity) q + diversity g: q is how the item's score stands
    between the worst and the best of the candidates, g the share of samples whose own list has it, a sample counting
    half as much with every item that it has in the list already.

    Parameters
    ----------
    own : np.ndarray
        int [S, B, k], the samples' own lists.
    scores : np.ndarray
        [B, I].
    """
    n_samples, n_rows, k = own.shape
    lists = np.zeros((n_rows, k), dtype=own.dtype)  # padding, whose score of minus infinity ends a list
    for row in range(n_rows):
        candidates, place_of = np.unique(own[:, row], return_inverse=True)
        has = np.zeros((n_samples, len(candidates)), dtype=bool)
        np.put_along_axis(has, place_of.reshape(n_samples, k), True, axis=1)
        order = np.argsort(-scores[row, candidates], kind="stable")  # ties go to the higher score
        order = order[np.isfinite(scores[row, candidates[order]])]
        candidates, has = candidates[order], has[:, order]
        if not len(candidates):
            continue
        quality = scores[row, candidates]
        low, high = quality.min(), quality.max()
        quality = (1 - diversity) * (quality - low) / (high - low if high > low else 1.0)
        weight = np.full(n_samples, 1 / n_samples)
        free = np.ones(len(candidates), dtype=bool)
        for place in range(min(k, len(candidates))):
            best = int(np.where(free, quality + diversity * (weight @ has), -np.inf).argmax())
            lists[row, place] = candidates[best]
            free[best] = False
            weight[has[:, best]] /= 2
    return lists

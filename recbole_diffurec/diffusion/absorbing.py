"""Absorbing diffusion over the slots of a list: slots are masked on the way forward, and filled on the way back.

Sahoo, Arriola, Schiff, Gokaslan, Marroquin, Chiu, Rush, Kuleshov 2024, "Simple and Effective Masked Diffusion Language
Models", NeurIPS (MDLM). The network is a callable, so that this file knows none.

Shapes: B batch, k slots, n slots that are filled, I items with padding item 0, which stands for the mask. S sampling
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MASK = 0

# Which slots are filled first: those whose likeliest item is the likeliest, any, or those that come first.
ORDERS = ("confident", "random", "left_to_right")

# Log-probabilities [B, j, I] of the items of some slots int [B, j], or of all with None, given slots int [B, n].
Denoise = Callable[[Tensor, "Tensor | None"], Tensor]
# The items int [B] for slots int [B], given their log-probabilities [B, I] and the slots filled so far int [B, n].
Choose = Callable[[Tensor, Tensor, Tensor], Tensor]


def mask_slots(present: Tensor, all_masked_share: float = 0.0) -> tuple[Tensor, Tensor]:
    """Slots to mask in training, and what the cross-entropy of each counts.

    MDLM's bound on -log p(list) draws a rate t ~ U(0, 1), masks each of the m slots with probability t, and sums the
    cross-entropies of the masked ones, times 1 / t (in continuous time, with alpha_t = 1 - t). Given how many are
    masked, their set is uniform whatever t is; and integrated over t, n masked ones come with a total weight of 1 / n,
    for each n from 1 to m. So n is drawn here instead of t, which has the same expectation, and no weights without
    bound (Ou, Nie, Xue, Zhu, Sun, Li, Li 2025, "Your Absorbing Discrete Diffusion Secretly Models the Conditional
    Distributions of Clean Data", ICLR): with n ~ U{1 .. m} the weight m / n gives the bound, and 1 / n that of a slot.

    Parameters
    ----------
    present : Tensor
        bool [B, k], slots whose items are known, at least one a row; the others are masked, and nobody asks for them.
    all_masked_share : float, optional
        Share of the rows in which all slots are masked whatever n is.

    Returns
    -------
    masked : Tensor
        bool [B, k], the slots whose items are to be predicted, among those present.
    weight : Tensor
        [B], 1 / n.
    """
    count = present.sum(dim=1)
    drawn = torch.rand(len(count), device=count.device)
    n = 1 + (drawn * count).long().clamp(max=count - 1)
    if all_masked_share:
        n = torch.where(torch.rand(len(count), device=count.device) < all_masked_share, count, n)
    order = torch.rand(present.shape, device=present.device).masked_fill(~present, 2.0)
    place = order.argsort(dim=1).argsort(dim=1)
    return place < n.unsqueeze(1), 1 / n


class Filled(NamedTuple):
    """Lists, and how likely they are.

    Parameters
    ----------
    slots : Tensor
        int [B, n].
    log_probability : Tensor
        [B], of the list.
    """

    slots: Tensor
    log_probability: Tensor


def group_sizes(n: int, sampling_steps: int) -> list[int]:
    """How many of n slots each of at most S steps fills, as evenly as possible."""
    steps = min(n, sampling_steps)
    return [n * (step + 1) // steps - n * step // steps for step in range(steps)]


def fill(slots: Tensor, sizes: list[int], denoise: Denoise, choose: Choose, priority: Tensor | None) -> Filled:
    """The reverse process: from masks alone to a list, some slots at a time.

    The slots of a step are independent of each other given those before, and which they are is a function of those
    before: so the product of all probabilities is that of the list, exactly, and over all lists it sums to 1. One step
    gives the product of the marginals, n steps the chain rule.

    Parameters
    ----------
    slots : Tensor
        int [B, n], masks.
    sizes : list of int
        How many slots each step fills, from ``group_sizes``.
    denoise : Denoise
        The network.
    choose : Choose
        Draws items, or names given ones; the mask where there is nothing to choose from.
    priority : Tensor or None
        [B, n], of which the largest are filled first; None for the slots whose likeliest item is the likeliest.
    """
    free = torch.ones_like(slots, dtype=torch.bool)
    rows = torch.arange(len(slots), device=slots.device)
    found = []
    for size in sizes:
        if priority is None:
            every = denoise(slots, None)
            chosen = every.amax(dim=-1).masked_fill(~free, -torch.inf).topk(size, dim=1).indices
            log_p = every[rows.unsqueeze(1), chosen]
        else:
            chosen = priority.masked_fill(~free, -torch.inf).topk(size, dim=1).indices
            log_p = denoise(slots, chosen)
        filled = slots.clone()
        for place in range(size):
            slot, own = chosen[:, place], log_p[:, place]
            items = choose(slot, own, filled)
            filled[rows, slot] = items
            found.append(own[rows, items].masked_fill(items == MASK, 0.0))
        free[rows.unsqueeze(1), chosen] = False
        slots = filled
    return Filled(slots, torch.stack(found).sum(dim=0))


def draw(log_p: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """One item of each row by inverse transform sampling, int [B]; the mask where every item is impossible.

    Parameters
    ----------
    log_p : Tensor
        [B, I], up to a constant of each row; minus infinity for what is not to be drawn.
    temperature : float
        Divides them; 0 takes the likeliest item.
    uniform : Tensor
        float64 [B], in [0, 1).
    """
    best, likeliest = log_p.max(dim=1)
    possible = best != -torch.inf  # what is no number is drawn, and makes the probability of its list none
    if temperature > 0:
        scores = (log_p - best.unsqueeze(1)).masked_fill(~possible.unsqueeze(1), 0.0)
        cumulative = (scores.double() / temperature).exp().cumsum(dim=1)
        below = (uniform * cumulative[:, -1]).unsqueeze(1)
        # Rounding may give the sum itself.
        likeliest = torch.searchsorted(cumulative, below, right=True).squeeze(1).clamp(max=log_p.shape[1] - 1)
    return torch.where(possible, likeliest, MASK)

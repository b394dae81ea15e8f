"""Contrastive losses between two views of a batch.

Shapes: B batch, d size of a representation, M further negatives.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = ("dot", "cos")


def similarities(z_i: Tensor, z_j: Tensor, temperature: float, similarity: str, others: Tensor | None = None) -> Tensor:
    """Z [Z; others]^T / tau of Z = [z_i; z_j], with minus infinity where a row meets itself.

    Never below float32: after a LayerNorm |z|^2 is about d, and bf16 has steps of a quarter there.

    Parameters
    ----------
    z_i, z_j : Tensor
        [B, d], two views; row b of the one belongs to row b of the other.
    temperature : float
        tau, above 0.
    similarity : str
        ``dot`` for inner products, ``cos`` for cosines.
    others : Tensor or None
        [M, d].

    Returns
    -------
    Tensor
        [2B, 2B + M], float32 or float64.
    """
    z = torch.cat([z_i, z_j] if others is None else [z_i, z_j, others])
    with torch.autocast(z.device.type, enabled=False):
        z = z if z.dtype == torch.float64 else z.float()
        if similarity == "cos":
            z = F.normalize(z, dim=-1)
        rows = z[: 2 * len(z_i)]
        itself = torch.eye(len(rows), len(z), dtype=torch.bool, device=z.device)
        return (rows @ z.T / temperature).masked_fill(itself, -math.inf)


def info_nce(
    z_i: Tensor, z_j: Tensor, temperature: float = 1.0, similarity: str = "dot", others: Tensor | None = None
) -> Tensor:
    """InfoNCE with the other rows of the batch as negatives (NT-Xent of Chen et al. 2020, SimCLR, Eq. 1).

    A row's positive is its partner in the other view, its negatives are the other 2B - 2 rows of both views. The loss
    is the mean over all 2B rows; a batch of one row has no negatives and a loss of 0.

    Parameters
    ----------
    z_i, z_j : Tensor
        [B, d] each, the two views.
    temperature : float, optional
        Divides the similarities.
    similarity : str, optional
        "dot" or "cos", see ``similarities``.
    others : Tensor or None
        [M, d], negatives of every row beside those.

    Returns
    -------
    Tensor
        A number.
    """
    logits = similarities(z_i, z_j, temperature, similarity, others)
    partner = torch.arange(len(logits), device=logits.device).roll(len(z_i))
    return F.cross_entropy(logits, partner)

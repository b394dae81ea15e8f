"""Recurrent layers over ragged batches.

Shapes: N tokens, d inputs, h states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_diffurec.layers.ragged import RaggedBatch


class GRU(nn.GRU):
    """One layer of gated recurrent units over each history, from its oldest item on (Cho et al. 2014).

    What pads a slab comes after the items of a history, whose states it does not reach.

    Parameters
    ----------
    size, hidden_size : int
        d and h.
    """

    def __init__(self, size: int, hidden_size: int):
        super().__init__(size, hidden_size, batch_first=True)

    def forward(self, x: Tensor, batch: RaggedBatch) -> Tensor:  # type: ignore[override]
        """States after each token.

        Parameters
        ----------
        x : Tensor
            [N, d]; or [m, N, d] for m sets of tokens of one layout, which take hardly more steps than one.
        batch : RaggedBatch
            The layout of the tokens.

        Returns
        -------
        Tensor
            [N, h] or [m, N, h].
        """
        states = []
        parts = x.split([slab.n * slab.length for slab in batch.slabs], dim=-2)
        for slab, part in zip(batch.slabs, parts):
            after, _ = super().forward(part.reshape(-1, slab.length, x.shape[-1]))
            states.append(after.reshape(*part.shape[:-1], -1))
        return torch.cat(states, dim=-2)

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
        """States after each token, [N, h].

        Parameters
        ----------
        x : Tensor
            [N, d].
        batch : RaggedBatch
            The layout of the tokens.
        """
        parts = x.split([slab.n * slab.length for slab in batch.slabs])
        states = [super(GRU, self).forward(part.view(s.n, s.length, -1))[0] for s, part in zip(batch.slabs, parts)]
        return torch.cat([state.flatten(0, 1) for state in states])

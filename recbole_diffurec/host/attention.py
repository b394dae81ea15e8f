"""What the last position of a history attends to in RecBole's Transformers.

Shapes: B batch, L padded history length, h heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_diffurec.models.last_attention import sharing_weights

# RecBole's models whose state is that of one position of ``trm_encoder``, the history's last; and how many places
# before its own in the batch each item stands there. BERT4Rec puts a mask behind the history and drops the first place.
SHIFTS = {"SASRec": 0, "BERT4Rec": 1}


class HostAttention:
    """What the last position of a history attends to in the last layer of a model of RecBole.

    Parameters
    ----------
    network : torch.nn.Module
        One of ``SHIFTS``; a copy that shares its weights is observed.
    """

    def __init__(self, network: Any):
        self._network = sharing_weights(network)
        self._weights = torch.empty(0)
        layer: Any = self._network.trm_encoder.layer[-1]
        layer.multi_head_attention.attn_dropout.register_forward_hook(self._observe)

    def _observe(self, module: Any, inputs: Any, weights: Tensor) -> None:
        self._weights = weights

    @torch.no_grad()
    def of(self, interaction: Any) -> Tensor:
        """How much the last position attends to each item of its history, [B, L], the mean over the heads.

        Parameters
        ----------
        interaction : Interaction
            The histories.
        """
        self._network.full_sort_predict(interaction)
        lengths = interaction[self._network.ITEM_SEQ_LEN]
        rows = self._weights.mean(dim=1)[torch.arange(len(lengths)), lengths - 1]
        length = rows.shape[1]
        by_item = nn.functional.pad(rows, (SHIFTS[type(self._network).__name__], 0))[:, :length]
        return by_item.masked_fill(torch.arange(length, device=lengths.device) >= lengths.unsqueeze(1), 0.0)

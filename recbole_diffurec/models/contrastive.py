"""What sequential models with a contrast between views of a batch share.

Shapes: B batch, L padded history length, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_diffurec.config.rules import Rule
from recbole_diffurec.layers.contrast import SIMILARITIES, info_nce
from recbole_diffurec.models import sequential
from recbole_diffurec.models.sequential import SequentialModel
from recbole_diffurec.runtime.gathering import from_other_ranks

RULES = {
    **sequential.RULES,
    "lmd": Rule("number", 0),
    "tau": Rule("number", 0, open_low=True),
    "sim": Rule("str", choices=SIMILARITIES),
    "train_batch_size": Rule("int", 2),  # the other rows are the negatives
}

View = tuple[Tensor, Tensor]  # histories int [B, L], right-padded, and their lengths int [B]


class ContrastiveModel(SequentialModel):
    """A sequential model whose loss has InfoNCE between representations of the batch's histories.

    ``calculate_loss`` returns the recommendation loss and the weighted contrast, which are logged apart and summed.
    """

    def __init__(self, config: Any, dataset: Any):
        self.temperature: float = config["tau"]
        self.similarity: str = config["sim"]
        super().__init__(config, dataset)

    def contrast_between(self, z_i: Tensor, z_j: Tensor, rows: Tensor) -> Tensor:
        """InfoNCE of two views of the batch, that of all processes where several share it.

        Parameters
        ----------
        z_i, z_j : Tensor
            [B, d].
        rows : Tensor
            int [B], the numbers of the batch's rows.
        """
        others = from_other_ranks(torch.cat([z_i, z_j]), rows)
        return info_nce(z_i, z_j, self.temperature, self.similarity, others)

    def represent_views(self, views: Sequence[View]) -> list[Tensor]:
        """Representations [B, d] of several views of the batch, which go through the network as one batch.

        The same history twice is two representations in training, since dropout draws for each.
        """
        width = max(item_seq.shape[1] for item_seq, _ in views)
        item_seq = torch.cat([F.pad(item_seq, (0, width - item_seq.shape[1])) for item_seq, _ in views])
        states = self.represent(item_seq, torch.cat([lengths for _, lengths in views]))
        return list(states.split([len(lengths) for _, lengths in views]))

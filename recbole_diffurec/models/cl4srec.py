"""CL4SRec: Xie, Sun, Liu, Wu, Gao, Zhang, Ding, Cui 2022, "Contrastive Learning for Sequential Recommendation", ICDE.

Shapes: B batch, L padded history length, N tokens, d hidden size, I items with padding row 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_diffurec.config.needs import Need
from recbole_diffurec.config.rules import Rule
from recbole_diffurec.data import augment
from recbole_diffurec.data.rows import ROW
from recbole_diffurec.models import contrastive, sequential
from recbole_diffurec.models.contrastive import ContrastiveModel, View
from recbole_diffurec.models.spec import ModelSpec


class CL4SRec(ContrastiveModel):
    """SASRec with a contrast between two random changes of each history: crop, mask, reorder.

    L = CE + lmd NCE(view 1, view 2). The recommendation loss is the cross-entropy over all items, where the paper draws
    negatives. A hidden item has a learned vector of its own, which is no item: nothing scores it.

    Defaults: ``properties/model/CL4SRec.yaml``.
    """

    def build_encoder(self, config: Any, dataset: Any) -> None:
        super().build_encoder(config, dataset)
        self.weight: float = config["lmd"]
        self.rates: list[float] = [config[f"{operator}_rate"] for operator in augment.OPERATORS]
        self.different_operators: bool = config["different_operators"]
        self.mask_vector = nn.Parameter(torch.empty(self.hidden_size).normal_(std=config["initializer_range"]))

    def embed_items(self, items: Tensor) -> Tensor:
        """As in ``SequentialModel``; item number I is the hidden item."""
        hidden = items == self.n_items
        vectors = self.item_embedding(items.masked_fill(hidden, 0))
        return torch.where(hidden.unsqueeze(-1), self.mask_vector, vectors)

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the targets, and the weighted contrast.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        own = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        state, z_i, z_j = self.represent_views([own, *self.views(*own)])
        contrast = self.contrast_between(z_i, z_j, interaction[ROW])
        return self.recommendation_loss(state, interaction), self.weight * contrast

    def views(self, item_seq: Tensor, lengths: Tensor) -> list[View]:
        """Each history changed by two operators that are drawn for it.

        Parameters
        ----------
        item_seq : Tensor
            int [B, L], right-padded.
        lengths : Tensor
            int [B].
        """
        n, device = len(lengths), lengths.device
        first = torch.randint(3, (n,), device=device)
        if self.different_operators:
            second = (first + torch.randint(1, 3, (n,), device=device)) % 3
        else:
            second = torch.randint(3, (n,), device=device)
        return [self.changed(item_seq, lengths, operator) for operator in (first, second)]

    def changed(self, item_seq: Tensor, lengths: Tensor, operator: Tensor) -> View:
        """Each history changed by one of ``augment.OPERATORS``.

        Parameters
        ----------
        item_seq, lengths : Tensor
            As in ``views``.
        operator : Tensor
            int [B], places in ``OPERATORS``.
        """
        n, device = len(lengths), lengths.device
        where = torch.rand(n, dtype=torch.float64, device=device)
        # As many draws whatever the batch is padded to.
        keys = torch.rand(n, self.max_seq_length, dtype=torch.float64, device=device)[:, : item_seq.shape[1]]
        cropped, kept = augment.crop(item_seq, lengths, self.rates[0], where)
        masked = augment.mask(item_seq, lengths, self.rates[1], keys, self.n_items)
        reordered = augment.reorder(item_seq, lengths, self.rates[2], where, keys)
        rows = torch.arange(n, device=device)
        return torch.stack([cropped, masked, reordered])[operator, rows], torch.where(operator == 0, kept, lengths)


_OF_CONTRAST = ("tau", "sim", "crop_rate", "mask_rate", "reorder_rate", "different_operators")

CL4SREC = ModelSpec(
    "CL4SRec",
    CL4SRec,
    "SASRec with a contrast between two random changes of a history: crop, mask, reorder (Xie et al. 2022)",
    rules={
        **contrastive.RULES,
        "crop_rate": Rule("number", 0, 1, open_low=True),
        "mask_rate": Rule("number", 0, 1),
        "reorder_rate": Rule("number", 0, 1),
        "different_operators": Rule("bool"),
    },
    needs=dict.fromkeys(_OF_CONTRAST, (Need("lmd", bool, "--lmd=0.1"),)),
    of_training=sequential.OF_TRAINING | {"lmd", *_OF_CONTRAST},
    trims_padding=True,
    loss="cross-entropy and a contrast",
    cannot={"sequences": "its contrast is between whole histories"},
    for_inference=sequential.FOR_INFERENCE,
)

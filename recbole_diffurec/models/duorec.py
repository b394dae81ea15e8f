"""DuoRec: Qiu, Huang, Yin, Wang 2022, "Contrastive Learning for Representation Degeneration Problem in Sequential
Recommendation", WSDM.

Shapes: B batch, d hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recbole_diffurec.config.needs import Need
from recbole_diffurec.config.rules import Rule
from recbole_diffurec.data.rows import ROW, RowHistories, SameTarget
from recbole_diffurec.models import contrastive, sequential
from recbole_diffurec.models.contrastive import ContrastiveModel
from recbole_diffurec.models.spec import ModelSpec

# What is contrasted with what: the main pass with a second one over the same history ("un"), the main pass with another
# history of the same target ("su"), both ("us", Eq. 15), or the second pass with the other history ("us_x").
CONTRASTS = ("un", "su", "us", "us_x")


class DuoRec(ContrastiveModel):
    """SASRec with a contrast between histories that lead to the same item, and between two dropout masks of one.

    L = CE + lmd NCE(h, h') + lmd_sem NCE(h, h+), of which ``contrast`` says the terms: h is the representation of the
    batch's histories, h' that of the same histories under another dropout mask, h+ that of other training rows with the
    same targets. The default ``us_x``, which is the published model, is L = CE + lmd_sem NCE(h', h+).

    Defaults: ``properties/model/DuoRec.yaml``.
    """

    def build_encoder(self, config: Any, dataset: Any) -> None:
        super().build_encoder(config, dataset)
        self.contrast: str = config["contrast"]
        self.weight_same_history: float = config["lmd"]
        self.weight_same_target: float = config["lmd_sem"]
        if self.contrast != "un":
            rows = dataset.inter_feat
            self.histories = RowHistories(rows, self.ITEM_SEQ)
            self.same_target = SameTarget(rows.target, rows.flat[self.ITEM_SEQ])

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the targets, and the weighted contrast.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        own = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        views = [own]
        if self.contrast != "su":
            views.append(own)
        if self.contrast != "un":
            views.append(self.histories(self.same_target(interaction[ROW])))
        states = self.represent_views(views)
        return self.recommendation_loss(states[0], interaction), self.contrast_loss(states, interaction[ROW])

    def contrast_loss(self, states: list[Tensor], rows: Tensor) -> Tensor:
        """The weighted contrast of the views that ``contrast`` asks for.

        Parameters
        ----------
        states : list of Tensor
            h, h' (but for ``su``) and h+ (but for ``un``), [B, d] each.
        rows : Tensor
            int [B], the numbers of the batch's rows.
        """
        if self.contrast == "us_x":
            return self.weight_same_target * self.contrast_between(states[1], states[2], rows)
        loss = states[0].new_zeros(())
        if self.contrast != "su":
            loss = loss + self.weight_same_history * self.contrast_between(states[0], states[1], rows)
        if self.contrast != "un":
            loss = loss + self.weight_same_target * self.contrast_between(states[0], states[-1], rows)
        return loss


DUOREC = ModelSpec(
    "DuoRec",
    DuoRec,
    "SASRec with a contrast between histories of the same next item (Qiu, Huang, Yin, Wang 2022)",
    rules={**contrastive.RULES, "lmd_sem": Rule("number", 0), "contrast": Rule("str", choices=CONTRASTS)},
    needs={
        "lmd": (Need("contrast", lambda contrast: contrast in ("un", "us"), "--contrast=us"),),
        "lmd_sem": (Need("contrast", lambda contrast: contrast != "un", "--contrast=us_x"),),
    },
    of_training=sequential.OF_TRAINING | {"contrast", "lmd", "lmd_sem", "tau", "sim"},
    trims_padding=True,
    loss="cross-entropy and a contrast",
    cannot={"sequences": "its contrast is between whole histories"},
    # The other contrasts look for histories among the training data.
    for_inference={**sequential.FOR_INFERENCE, "contrast": "un"},
)

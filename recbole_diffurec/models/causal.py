"""The causal baseline: a Transformer that predicts the next item from those before it, and diffuses nothing.

SASRec (Kang, McAuley 2018, "Self-Attentive Sequential Recommendation", ICDM) with the blocks, the softmax and the
scores of DiffuRec's family here.

Shapes: B batch, M targets of a batch of sequences, L padded history length, N tokens, d hidden size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from recbole_diffurec.config.rules import Rule
from recbole_diffurec.data.rows import FIRST_TARGET, prefixes, target_places
from recbole_diffurec.layers.encoder import TransformerEncoder
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.models import sequential
from recbole_diffurec.models.sequential import SequentialModel
from recbole_diffurec.models.spec import ModelSpec

POSITIONS = ("absolute", "relative", "none")


class CausalRec(SequentialModel):
    """Pre-norm causal Transformer blocks over the history; the last state is scored against the items.

    What diffusion adds to a recommender is its difference from this one: blocks, cross-entropy, cosines,
    ``repeat_bias`` and dropout are those of DiffuRec, without a noised target. With ``rows: sequences`` a history goes
    through the network once in training, and the state of every item predicts the next.

    ``positions: relative`` gives each head a learned score for the distance of a key from its query; ``absolute`` adds
    learned vectors, counted from the oldest item, to those of the items.

    Defaults: ``properties/model/CausalRec.yaml``.
    """

    norm = "pre"

    def build_positions(self, config: Any) -> None:
        """Vectors of positions, where these are absolute."""
        self.position_kind: str = config["positions"]
        if self.position_kind == "absolute":
            super().build_positions(config)

    def build_encoder(self, config: Any, dataset: Any) -> None:
        """The blocks."""
        distances = self.max_seq_length if self.position_kind == "relative" else None
        shape = replace(self.block_shape(config), distances=distances)
        self.encoder = TransformerEncoder(shape, config["n_layers"], self.norm)

    def embed(self, batch: RaggedBatch) -> Tensor:
        """What enters the encoder, [N, d]."""
        if self.position_kind == "absolute":
            return super().embed(batch)
        return self.input_dropout(self.input_norm(self.embed_items(batch.items)))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Mean cross-entropy of the targets.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows, or of sequences (see ``data.rows``).
        """
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if FIRST_TARGET not in interaction:
            return self.recommendation_loss(self.represent(item_seq, lengths), interaction)
        target = interaction[self.POS_ITEM_ID]
        row, place = target_places(interaction[FIRST_TARGET], lengths, len(target))
        batch = RaggedBatch(item_seq, lengths)
        states = self.encoder(self.embed(batch), batch, last_only=False)
        states = states.index_select(0, batch.restore(batch.first)[row] + place).to(self.item_embedding.weight.dtype)
        seen = item_seq if self.repeat_bias is None else prefixes(item_seq, row, place)
        return self.mean_cross_entropy(states, target, seen)


CAUSALREC = ModelSpec(
    "CausalRec",
    CausalRec,
    "causal Transformer without diffusion, SASRec with the parts of DiffuRec's family (after Kang, McAuley 2018)",
    rules={**sequential.RULES, "positions": Rule("str", choices=POSITIONS)},
    of_training=sequential.OF_TRAINING,
    trims_padding=True,
    all_positions=True,
    loss="cross-entropy",
    for_inference=sequential.FOR_INFERENCE,
)

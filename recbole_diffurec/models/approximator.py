"""The approximator f_theta: from the history and a noised target to an estimate of the target.

Li, Sun, Li 2023 (DiffuRec), section 4.2; Zolghadr, Winther, Jeha 2024 (DiffuRecSys), Eqs. 14-18 and Fig. 2.

Shapes: B batch, N tokens, d hidden size, T diffusion steps.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from recbole_diffurec.layers.blocks import LAYER_NORM_EPS, Block, BlockShape
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.ragged import RaggedBatch


@dataclass(frozen=True)
class EncodedHistory:
    """What the approximator knows of a batch of histories before it sees any state x_s."""

    batch: RaggedBatch
    states: Tensor  # [N, d], h_i
    cross_keys_values: list[Tensor] | None  # of the first block


class Approximator(nn.Module):
    """N Transformer blocks between two norms.

    Without cross-attention the noised target is added to the history, z_i = h_i + lambda_i * (x_s + d_s) (Eq. 15 of
    DiffuRecSys); with it, every block asks its states with lambda_i * (x_s + d_s) (Eq. 16).

    Parameters
    ----------
    shape : BlockShape
        Sizes and switches of the blocks.
    n_layers : int
        How many blocks.
    embedding_dropout : float
        Probability, for item embeddings.
    """

    def __init__(self, shape: BlockShape, n_layers: int, embedding_dropout: float):
        super().__init__()
        self.checkpointing, self.cross_attention = shape.checkpointing, shape.cross_attention
        self.embedding_norm = nn.LayerNorm(shape.hidden_size, eps=LAYER_NORM_EPS)
        self.embedding_dropout = Dropout(embedding_dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(n_layers))
        self.output_dropout = Dropout(shape.hidden_dropout)
        self.output_norm = nn.LayerNorm(shape.hidden_size, eps=LAYER_NORM_EPS)

    def compile_feed_forward(self) -> None:
        """Hand the blocks' feed-forward layers to ``torch.compile``."""
        for block in self.blocks:
            cast(Block, block).ffn.compile(dynamic=True)

    def in_bfloat16(self) -> Approximator:
        """A copy with all weights in bf16, for inference: no casts between the layers, as autocast has them."""
        return copy.deepcopy(self).bfloat16()

    def encode(self, embeddings: Tensor, batch: RaggedBatch) -> EncodedHistory:
        """Everything that does not depend on the state: h_i = LayerNorm(Dropout(e_i)), and what follows from it alone.

        Parameters
        ----------
        embeddings : Tensor
            [N, d], of the tokens of ``batch``.
        """
        states = self.embedding_norm(self.embedding_dropout(embeddings).to(self.embedding_norm.weight.dtype))
        first_block = cast(Block, self.blocks[0])
        # Only steps of the reverse process share them; kept for the backward pass they would cost memory.
        shared = self.cross_attention and not (self.checkpointing and self.training)
        return EncodedHistory(batch, states, first_block.cross_keys_values(states, batch) if shared else None)

    def forward(self, history: EncodedHistory, x_s: Tensor, step_embedding: Tensor, uncertainty: Tensor) -> Tensor:
        """Estimate the target.

        Parameters
        ----------
        history : EncodedHistory
            What ``encode`` returned.
        x_s : Tensor
            [B, d], the noised target.
        step_embedding : Tensor
            [B, d] or [1, d], d_s.
        uncertainty : Tensor
            [N, d], lambda.

        Returns
        -------
        Tensor
            x_0 hat, [B, d], in the precision of ``x_s``.
        """
        batch, x = history.batch, history.states
        # The backward pass of x[row] adds in another order each time when it has several threads; this one's does not.
        injected = uncertainty * (x_s + step_embedding).to(uncertainty.dtype).index_select(0, batch.row)
        if not self.cross_attention:
            x = x + injected
        keys_values = history.cross_keys_values
        for block in self.blocks:
            x = block(x, injected, batch, block is self.blocks[-1], keys_values)
            keys_values = None
        return batch.restore(self.output_norm(self.output_dropout(x))).to(x_s.dtype)

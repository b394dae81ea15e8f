"""Blocks on one vector of each history, steered by a condition: adaptive layer norm (Peebles, Xie 2023, "DiT").

Shapes: B sequences, N tokens, d hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from recbole_diffurec.layers.attention import MultiHeadAttention
from recbole_diffurec.layers.blocks import ACTIVATIONS, LAYER_NORM_EPS, BlockShape
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.linear import Linear
from recbole_diffurec.layers.ragged import RaggedBatch


class AdaptiveBlock(nn.Module):
    """Cross-attention to the tokens of a history and a feed-forward layer, whose scale, shift and gate are conditions.

    x + gate * Sublayer((1 + scale) * norm(x) + shift), where a linear layer makes all six of the condition. Where that
    layer starts from zeros a block changes nothing at first, and opens as it learns ("adaLN-Zero").

    Parameters
    ----------
    shape : BlockShape
        Sizes and switches; of its sublayers there are these two.
    """

    def __init__(self, shape: BlockShape):
        super().__init__()
        size = shape.hidden_size
        self.attention_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.attention = MultiHeadAttention(size, shape.n_heads, shape.attn_dropout, shape.checkpointing)
        self.ffn_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS, elementwise_affine=False)
        activation = ACTIVATIONS[shape.hidden_act]()
        self.ffn = nn.Sequential(Linear(size, shape.inner_size), activation, Linear(shape.inner_size, size))
        self.dropout = Dropout(shape.hidden_dropout)
        self.steering = Linear(size, 6 * size)

    def forward(self, x: Tensor, condition: Tensor, keys_values: list[Tensor], batch: RaggedBatch) -> Tensor:
        """Transform one vector of each history.

        Parameters
        ----------
        x, condition : Tensor
            [B, d], in sorted order (see ``RaggedBatch.restore``).
        keys_values : list of Tensor
            Of the histories, from ``attention.keys_values``.
        batch : RaggedBatch
            The layout of their tokens.

        Returns
        -------
        Tensor
            [B, d], in sorted order.
        """
        scale, shift, gate, ffn_scale, ffn_shift, ffn_gate = self.steering(condition).chunk(6, dim=-1)
        asked = self.attention(self.attention_norm(x) * (1 + scale) + shift, keys_values, batch)
        x = x + gate * self.dropout(asked)
        return x + ffn_gate * self.dropout(self.ffn(self.ffn_norm(x) * (1 + ffn_scale) + ffn_shift))

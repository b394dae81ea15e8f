"""Multi-head attention over ragged batches.

Shapes: B sequences, N tokens, d hidden size, h heads; a slab holds n sequences of l tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.ragged import RaggedBatch


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention inside each history (Vaswani et al. 2017), bidirectional, without position.

    Parameters
    ----------
    hidden_size : d.
    n_heads : h, divides d.
    dropout : probability of zeroing an attention weight.
    """

    def __init__(self, hidden_size: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [N, d] of the tokens ``x`` [N, d], as one matrix product."""
        weight = torch.cat([self.key.weight, self.value.weight])
        bias = torch.cat([self.key.bias, self.value.bias])
        keys, values = F.linear(x, weight, bias).chunk(2, dim=-1)
        return keys, values

    def forward(self, query: Tensor, keys_values: tuple[Tensor, Tensor], batch: RaggedBatch) -> Tensor:
        """Attend from queries to the tokens of the same history.

        Parameters
        ----------
        query : [N, d], one query a token, or [B, d], one a history in sorted order.
        keys_values : each [N, d], from ``keys_values``.
        batch : the layout of the tokens.

        Returns
        -------
        Shaped like ``query``.
        """
        q, (k, v) = self.query(query), keys_values
        one_per_history = len(query) == batch.n_sequences
        heads = []
        for slab in batch.slabs:
            q_slab = q[slab.rows] if one_per_history else q[slab.tokens]
            mask = None if slab.key_mask is None else slab.key_mask[:, None, None, :]
            context = self._attend(
                self._split_heads(q_slab, slab.n),
                self._split_heads(k[slab.tokens], slab.n),
                self._split_heads(v[slab.tokens], slab.n),
                mask,
            )
            heads.append(context.transpose(1, 2).reshape(len(q_slab), -1))
        return self.output(torch.cat(heads))

    def _split_heads(self, x: Tensor, n: int) -> Tensor:
        return x.view(n, -1, self.n_heads, x.shape[-1] // self.n_heads).transpose(1, 2)  # [n, h, l, d/h]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not self.training or self.dropout.p == 0.0 or q.device.type != "cpu":
            p = self.dropout.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        # On a CPU PyTorch's attention with dropout is the textbook one with slow random numbers.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return self.dropout(scores.softmax(dim=-1)) @ v

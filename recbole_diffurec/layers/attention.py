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
        rows, tokens = [slab.n for slab in batch.slabs], [slab.n * slab.length for slab in batch.slabs]
        # Splitting, unlike slicing, has a backward pass that does not fill a whole tensor for every slab.
        queries = q.split(rows if len(q) == batch.n_sequences else tokens)
        heads = []
        for slab, q_slab, k_slab, v_slab in zip(batch.slabs, queries, k.split(tokens), v.split(tokens)):
            context = self._attend(
                self._split_heads(q_slab, slab.n),
                self._split_heads(k_slab, slab.n),
                self._split_heads(v_slab, slab.n),
                None if slab.padding is None else slab.padding[:, None, None, :],
            )
            heads.append(context.transpose(1, 2).reshape(len(q_slab), -1))
        return self.output(torch.cat(heads))

    def _split_heads(self, x: Tensor, n: int) -> Tensor:
        return x.view(n, -1, self.n_heads, x.shape[-1] // self.n_heads).transpose(1, 2)  # [n, h, l, d/h]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None) -> Tensor:
        """[n, h, l, d/h] each; ``padding`` is True at keys to leave out."""
        if q.device.type != "cpu":
            mask = None if padding is None else ~padding
            p = self.dropout.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        # On a CPU the textbook form is faster than PyTorch's fused one for histories of a few dozen items, and small
        # matrix products are slower in bf16 than in float32.
        with torch.autocast("cpu", enabled=False):
            if q.dtype == torch.bfloat16:
                return self._attend(q.float(), k.float(), v.float(), padding).bfloat16()
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if padding is not None:
                scores.masked_fill_(padding, float("-inf"))
            return self.dropout(scores.softmax(dim=-1)) @ v

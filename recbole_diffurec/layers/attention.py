"""Multi-head attention over ragged batches.

Shapes: B sequences, N tokens, d hidden size, h heads; a slab holds n sequences of l tokens (l = 1 for queries of
the last position alone).
"""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.ragged import RaggedBatch, Slab

VECTOR_LENGTH = 16  # float32 numbers in the widest vector registers


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

    def keys_values(self, x: Tensor, batch: RaggedBatch) -> list[Tensor]:
        """Keys and values of the tokens ``x`` [N, d]: [2, n, h, l, d/h] for each slab."""
        return self._project([self.key, self.value], x, batch)

    def self_attention(self, x: Tensor, batch: RaggedBatch) -> Tensor:
        """Attend from every token of ``x`` [N, d] to those of its own history; [N, d]."""
        heads = self._project([self.query, self.key, self.value], x, batch)
        contexts = [self._attend(q, k, v, slab, x.dtype) for (q, k, v), slab in zip(heads, batch.slabs)]
        return self.output(torch.cat(contexts))

    def forward(self, query: Tensor, keys_values: list[Tensor], batch: RaggedBatch) -> Tensor:
        """Attend from queries to the tokens of the same history.

        Parameters
        ----------
        query : [N, d], one query a token, or [B, d], one a history in sorted order.
        keys_values : from ``keys_values``.
        batch : the layout of the tokens.

        Returns
        -------
        Shaped like ``query``.
        """
        queries = self._project([self.query], query, batch)
        slabs = zip(queries, keys_values, batch.slabs)
        return self.output(torch.cat([self._attend(q, k, v, slab, query.dtype) for (q,), (k, v), slab in slabs]))

    def _project(self, layers: list[nn.Linear], x: Tensor, batch: RaggedBatch) -> list[Tensor]:
        """Several linear layers as one product, cut into slabs and heads: [layers, n, h, l, d/h] for each slab."""
        head_size = x.shape[-1] // self.n_heads

        def joined(parts: list[Tensor]) -> Tensor:
            # The queries' scale is cheaper on the weights than on the tokens.
            scaled = [p * head_size**-0.5 if layer is self.query else p for layer, p in zip(layers, parts)]
            return torch.cat(scaled)

        projected = F.linear(x, joined([layer.weight for layer in layers]), joined([layer.bias for layer in layers]))
        per_row = x.shape[0] == batch.n_sequences  # not len(x), which an export would make a constant
        # Splitting, unlike slicing, has a backward pass that does not fill a whole tensor for every slab.
        parts = projected.split([slab.n if per_row else slab.n * slab.length for slab in batch.slabs])
        heads = []
        for slab, part in zip(batch.slabs, parts):
            head = part.view(slab.n, -1, len(layers), self.n_heads, head_size).permute(2, 0, 3, 1, 4)
            if head.device.type == "cpu":
                # Small matrix products are slower in bf16 than in float32 there. One copy casts and reorders.
                dtype = torch.float32 if head.dtype == torch.bfloat16 else head.dtype
                head = head.to(dtype, memory_format=torch.contiguous_format).contiguous()
            heads.append(head)
        return heads

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, slab: Slab, dtype: torch.dtype) -> Tensor:
        """Softmax attention over scaled queries, [n, h, l, d/h] each; returns [n l, d] of ``dtype``."""
        if q.device.type != "cpu":
            bias = None if slab.key_bias is None else slab.key_bias.to(q.dtype)
            p = self.dropout.p if self.training else 0.0
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=p, scale=1.0)
        else:
            # The textbook form is faster than PyTorch's fused one for histories of a few dozen items.
            # Only where there is one to leave: torch.export spends most of its time on such contexts.
            autocast = torch.is_autocast_enabled("cpu")
            with torch.autocast("cpu", enabled=False) if autocast else contextlib.nullcontext():
                scores = q @ k.transpose(-1, -2)
                if slab.key_bias is not None:
                    scores.add_(slab.key_bias)
                context = self.dropout(_softmax(scores)) @ v
        context = context.transpose(1, 2)
        if context.dtype != dtype:
            context = context.to(dtype, memory_format=torch.contiguous_format)
        return context.reshape(slab.n * q.shape[2], -1)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; PyTorch's is slow on a CPU where that is shorter than a vector register."""
    length = scores.shape[-1]
    if torch.compiler.is_compiling() or length >= VECTOR_LENGTH:  # an exported program's length is open
        return scores.softmax(dim=-1)
    return F.pad(scores, (0, VECTOR_LENGTH - length), value=-math.inf).softmax(dim=-1)[..., :length]

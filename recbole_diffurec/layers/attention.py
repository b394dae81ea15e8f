"""Multi-head attention over ragged batches.

Shapes: B sequences, N tokens, d hidden size, h heads, D distances; a slab holds n sequences of l tokens (l = 1 for
queries of the last position alone).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_diffurec.layers.device import device_type
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.linear import Linear, linear
from recbole_diffurec.layers.ragged import RaggedBatch, Slab

CHECKPOINTED_WEIGHTS = 2**22  # attention weights that exist at once with checkpointing
VECTOR_LENGTH = 16  # float32 numbers in the widest vector registers


# Called with a batch and what its last positions attend to, [n, h, l] for each slab.
Observer = Callable[[RaggedBatch, list[Tensor]], None]


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention inside each history (Vaswani et al. 2017), without absolute position.

    Parameters
    ----------
    hidden_size : int
        d.
    n_heads : int
        h, divides d.
    dropout : float
        Probability of zeroing an attention weight.
    checkpointing : bool
        Keep no attention weights for the backward pass, and compute a few histories' at a time again there.
    causal : bool
        Whether a token looks back alone, to itself and what is before it in its history.
    distances : int, optional
        D, with which each head learns a score for the distance of a key from its query, from 0 to D - 1 places back
        (Raffel et al. 2020, section 2.1, without their bins). For ``causal`` attention.

    Attributes
    ----------
    observer : Observer or None
        Called by ``from_last``.
    """

    observer: Observer | None = None

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        dropout: float,
        checkpointing: bool,
        causal: bool = False,
        distances: int | None = None,
    ):
        super().__init__()
        self.n_heads, self.checkpointing, self.causal = n_heads, checkpointing, causal
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = Linear(hidden_size, hidden_size)
        self.dropout = Dropout(dropout)
        self.distance_scores = nn.Parameter(torch.zeros(n_heads, distances)) if distances else None

    def keys_values(self, x: Tensor, batch: RaggedBatch) -> list[Tensor]:
        """Keys and values of the tokens ``x`` [N, d]: [2, n, h, l, d/h] for each slab."""
        return self._project([self.key, self.value], x, batch)

    def self_attention(self, x: Tensor, batch: RaggedBatch) -> Tensor:
        """Attend from every token of ``x`` [N, d] to those of its own history; [N, d]."""
        heads = self._project([self.query, self.key, self.value], x, batch)
        contexts = [
            self._slab_contexts(q, k, v, slab, x.dtype, self.causal) for (q, k, v), slab in zip(heads, batch.slabs)
        ]
        return self.output(torch.cat(contexts))

    def forward(self, query: Tensor, keys_values: list[Tensor], batch: RaggedBatch) -> Tensor:
        """Attend from queries to the tokens of the same history.

        Parameters
        ----------
        query : Tensor
            [N, d], one query a token, or [B, d], one a history in sorted order, which sees all of it.
        keys_values : list of Tensor
            What ``keys_values`` returned.
        batch : RaggedBatch
            The layout of the tokens.

        Returns
        -------
        Tensor
            Shaped like ``query``.
        """
        queries = self._project([self.query], query, batch)
        slabs = zip(queries, keys_values, batch.slabs)
        causal = self.causal and query.shape[0] != batch.n_sequences  # the query of a history comes last in it
        return self.output(
            torch.cat([self._slab_contexts(q, k, v, slab, query.dtype, causal) for (q,), (k, v), slab in slabs])
        )

    def from_last(self, query: Tensor, x: Tensor, batch: RaggedBatch) -> Tensor:
        """Attend from one query a history, [B, d] in sorted order, to its tokens ``x`` [N, d]; [B, d].

        Equal to ``forward`` with the keys and values of ``x``, at a fraction of the work: with a single query it is
        cheaper to bring the query to the tokens' space, q . (K x + b) = (K^T q) . x + q . b, and to project the
        weighted mean of the tokens, than to project every token twice.
        """
        head_size = x.shape[-1] // self.n_heads
        by_head = (self.n_heads, head_size)
        q = self.query(query).unflatten(-1, by_head).transpose(0, 1) * head_size**-0.5  # [h, B, d/h]
        bias = (q * self.key.bias.view(self.n_heads, 1, head_size)).sum(dim=-1).T.unsqueeze(-1)  # [B, h, 1]
        q = (q @ self.key.weight.unflatten(0, by_head)).transpose(0, 1)  # [B, h, d]
        if device_type(x) == "cpu":
            x = x.float() if x.dtype == torch.bfloat16 else x  # as in ``_project``
            q, bias = q.to(x.dtype), bias.to(x.dtype)
        contexts, masses, observed = [], [], []
        with self._full_precision(x):
            tokens = x.split([slab.n * slab.length for slab in batch.slabs])
            for slab, part in zip(batch.slabs, tokens):
                part = part.view(slab.n, slab.length, -1)
                scores = torch.baddbmm(bias[slab.rows], q[slab.rows], part.transpose(1, 2))
                if self.distance_scores is not None:
                    age = batch.age[slab.tokens].view(slab.n, slab.length)
                    scores = scores + self._of_distances(age).transpose(0, 1).to(scores.dtype)
                if slab.key_bias is not None:
                    scores = scores + slab.key_bias.squeeze(1).to(scores.dtype)
                weights = self.dropout(_softmax(scores))
                if self.observer is not None:
                    observed.append(weights)
                contexts.append(weights @ part)
                masses.append(weights.sum(dim=-1, keepdim=True))
        if self.observer is not None:
            self.observer(batch, observed)
        context, mass = torch.cat(contexts).to(query.dtype), torch.cat(masses).to(query.dtype)
        values = context.transpose(0, 1) @ self.value.weight.unflatten(0, by_head).transpose(1, 2)  # [h, B, d/h]
        values = values.transpose(0, 1) + mass * self.value.bias.view(self.n_heads, head_size)
        return self.output(values.flatten(1))

    @staticmethod
    def _full_precision(x: Tensor) -> AbstractContextManager:
        """On a CPU, without autocast; only where there is one to leave, since torch.export is slow with contexts."""
        leave = device_type(x) == "cpu" and torch.is_autocast_enabled("cpu")
        return torch.autocast("cpu", enabled=False) if leave else nullcontext()

    def _project(self, layers: list[nn.Linear], x: Tensor, batch: RaggedBatch) -> list[Tensor]:
        """Several linear layers as one product, cut into slabs and heads: [layers, n, h, l, d/h] for each slab."""
        head_size = x.shape[-1] // self.n_heads

        def joined(parts: list[Tensor]) -> Tensor:
            # The queries' scale is cheaper on the weights than on the tokens.
            scaled = [p * head_size**-0.5 if layer is self.query else p for layer, p in zip(layers, parts)]
            return torch.cat(scaled)

        projected = linear(x, joined([layer.weight for layer in layers]), joined([layer.bias for layer in layers]))
        per_row = x.shape[0] == batch.n_sequences  # not len(x), which an export would make a constant
        # Splitting, unlike slicing, has a backward pass that does not fill a whole tensor for every slab.
        parts = projected.split([slab.n if per_row else slab.n * slab.length for slab in batch.slabs])
        heads = []
        for slab, part in zip(batch.slabs, parts):
            head = part.view(slab.n, -1, len(layers), self.n_heads, head_size).permute(2, 0, 3, 1, 4)
            if device_type(head) == "cpu":
                # Small matrix products are slower in bf16 than in float32 there. One copy casts and reorders.
                dtype = torch.float32 if head.dtype == torch.bfloat16 else head.dtype
                head = head.to(dtype, memory_format=torch.contiguous_format).contiguous()
            heads.append(head)
        return heads

    def _slab_contexts(
        self, q: Tensor, k: Tensor, v: Tensor, slab: Slab, dtype: torch.dtype, causal: bool = False
    ) -> Tensor:
        """``_attend`` for the histories of a slab."""
        # What pads a history on the right comes after every real query, so that looking back never meets it.
        bias = None if causal else slab.key_bias
        if not (self.checkpointing and self.training):
            return self._attend(q, k, v, bias, dtype, causal)
        n = max(1, CHECKPOINTED_WEIGHTS // (self.n_heads * q.shape[2] * k.shape[2]))
        parts = zip(q.split(n), k.split(n), v.split(n), repeat(None) if bias is None else bias.split(n))
        return torch.cat([checkpoint(self._attend, *part, dtype, causal, use_reentrant=False) for part in parts])

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, dtype: torch.dtype, causal: bool
    ) -> Tensor:
        """Softmax attention over scaled queries, [n, h, l, d/h] each; returns [n l, d] of ``dtype``."""
        if device_type(q) != "cpu":
            bias = self._look_back(q) if causal and self.distance_scores is not None else key_bias
            bias = None if bias is None else bias.to(q.dtype)
            p = self.dropout.p if self.training else 0.0
            causal = causal and bias is None
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=p, is_causal=causal, scale=1.0)
        else:
            # The textbook form is faster than PyTorch's fused one for histories of a few dozen items.
            with self._full_precision(q):
                scores = q @ k.transpose(-1, -2)
                if key_bias is not None:
                    scores.add_(key_bias)
                if causal:
                    scores.add_(self._look_back(q))
                context = self.dropout(_softmax(scores)) @ v
        context = context.transpose(1, 2)
        if context.dtype != dtype:
            context = context.to(dtype, memory_format=torch.contiguous_format)
        return context.reshape(q.shape[0] * q.shape[2], -1)

    def _look_back(self, q: Tensor) -> Tensor:
        """What is added to keys' scores: minus infinity for later ones, [l, l], and scores of distances, [h, l, l]."""
        length = q.shape[2]
        later = torch.full((length, length), -math.inf, device=q.device).triu_(1)
        if self.distance_scores is None:
            return later
        place = torch.arange(length, device=q.device)
        return later + self._of_distances((place.unsqueeze(1) - place).clamp(min=0))

    def _of_distances(self, distance: Tensor) -> Tensor:
        """The score of each distance, int [...] to [h, ...]."""
        assert self.distance_scores is not None
        # With several threads the backward pass of indexing adds in another order each time; this one's does not.
        return self.distance_scores.index_select(1, distance.flatten()).view(self.n_heads, *distance.shape)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; PyTorch's is slow on a CPU where that is shorter than a vector register."""
    length = scores.shape[-1]
    if torch.compiler.is_compiling() or length >= VECTOR_LENGTH:  # an exported program's length is open
        return scores.softmax(dim=-1)
    return F.pad(scores, (0, VECTOR_LENGTH - length), value=-math.inf).softmax(dim=-1)[..., :length]

"""Transformer blocks: the pre-norm one of the approximator, and the post-norm one of BERT.

Shapes: B sequences, N tokens, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_diffurec.layers.attention import MultiHeadAttention
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.linear import Linear
from recbole_diffurec.layers.ragged import RaggedBatch

# DiffuRec's GELU is the tanh form, that of RecBole's Transformers the exact one.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: nn.GELU(approximate="tanh"),
    "gelu_erf": nn.GELU,
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
LAYER_NORM_EPS = 1e-12


@dataclass(frozen=True)
class BlockShape:
    """Sizes and switches of a block.

    Parameters
    ----------
    hidden_size, n_heads, inner_size : int
        d, heads, width of the feed-forward layer.
    hidden_act : str
        Name of the feed-forward layer's activation, one of ``ACTIVATIONS``.
    hidden_dropout, attn_dropout : float
        Probabilities, of sublayers and of attention weights.
    causal : bool
        Whether a token sees itself and what is before it alone.
    cross_attention : bool
        Whether the block has that sublayer.
    output_dropout : bool
        One more dropout on the block's output, as in DiffuRec's public code.
    checkpointing : bool
        Keep only what enters a sublayer for the backward pass, and compute the rest of it again there.
    distances : int or None
        Of how many distances between positions the heads of a causal block learn a score; None without any.
    """

    hidden_size: int
    n_heads: int
    inner_size: int
    hidden_act: str
    hidden_dropout: float
    attn_dropout: float
    causal: bool = False
    cross_attention: bool = False
    output_dropout: bool = False
    checkpointing: bool = False
    distances: int | None = None

    @classmethod
    def of(cls, config: Any, hidden_size: int, **others: Any) -> BlockShape:
        """The shape that a model's parameters name, with ``others`` of its fields as the model has them."""
        named = {
            "n_heads": config["n_heads"],
            "inner_size": config["inner_size"] or 4 * hidden_size,
            "hidden_act": config["hidden_act"],
            "hidden_dropout": config["hidden_dropout_prob"],
            "attn_dropout": config["attn_dropout_prob"],
            "checkpointing": config["gradient_checkpointing"],
        }
        return cls(hidden_size, **{**named, **others})


class Block(nn.Module):
    """Pre-norm sublayers with residuals, x + Dropout(Sublayer(LayerNorm(x))): [cross-attention,] self-attention, FFN.

    Cross-attention (DiffuRecSys Eq. 16, Fig. 2) asks the history with the noised target: its queries are the injected
    vectors as they are, since a norm would cancel their scale.

    Parameters
    ----------
    shape : BlockShape
        Sizes and switches.
    """

    def __init__(self, shape: BlockShape):
        super().__init__()
        size, heads, checkpointing = shape.hidden_size, shape.n_heads, shape.checkpointing
        self.checkpointing = checkpointing
        if shape.cross_attention:
            self.cross_attention_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
            self.cross_attention = MultiHeadAttention(size, heads, shape.attn_dropout, checkpointing)
        self.has_cross_attention = shape.cross_attention
        self.attention_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.attention = MultiHeadAttention(
            size, heads, shape.attn_dropout, checkpointing, shape.causal, shape.distances
        )
        self.ffn_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        activation = ACTIVATIONS[shape.hidden_act]()
        self.ffn = nn.Sequential(Linear(size, shape.inner_size), activation, Linear(shape.inner_size, size))
        self.dropout = Dropout(shape.hidden_dropout)
        self.output_dropout = Dropout(shape.hidden_dropout if shape.output_dropout else 0.0)

    def cross_keys_values(self, x: Tensor, batch: RaggedBatch) -> list[Tensor]:
        """Keys and values of the cross-attention for the states ``x`` [N, d]."""
        return self.cross_attention.keys_values(self.cross_attention_norm(x), batch)

    def forward(
        self,
        x: Tensor,
        injected: Tensor | None,
        batch: RaggedBatch,
        last_only: bool,
        cross_keys_values: list[Tensor] | None = None,
    ) -> Tensor:
        """Transform the states of one batch.

        Parameters
        ----------
        x : Tensor
            [N, d], states.
        injected : Tensor or None
            [N, d], lambda * (x_s + d_s), the queries of the cross-attention; None without that sublayer.
        batch : RaggedBatch
            Layout of the tokens.
        last_only : bool
            Compute the most recent position of each history alone, which is all that the last block's reader needs.
        cross_keys_values : list of Tensor, optional
            Keys and values of ``x``, where they are already known.

        Returns
        -------
        Tensor
            [N, d], or [B, d] in sorted order with ``last_only``.
        """
        if self.has_cross_attention:
            x = self._sublayer(self._cross_attend, x, injected, batch, cross_keys_values)
        x = self._sublayer(self._attend, x, batch, last_only)
        return self._sublayer(self._feed_forward, x)

    def _sublayer(self, function: Callable[..., Tensor], *inputs: object) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def _cross_attend(
        self, x: Tensor, injected: Tensor, batch: RaggedBatch, keys_values: list[Tensor] | None
    ) -> Tensor:
        keys_values = keys_values or self.cross_keys_values(x, batch)
        return x + self.dropout(self.cross_attention(injected, keys_values, batch))

    def _attend(self, x: Tensor, batch: RaggedBatch, last_only: bool) -> Tensor:
        normed = self.attention_norm(x)
        if not last_only:
            return x + self.dropout(self.attention.self_attention(normed, batch))
        # index_select rather than x[last]: that has a transposition in ONNX which older runtimes take for a real one.
        last, normed_last = x.index_select(0, batch.last), normed.index_select(0, batch.last)
        return last + self.dropout(self.attention.from_last(normed_last, normed, batch))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.output_dropout(x + self.dropout(self.ffn(self.ffn_norm(x))))


class PostNormBlock(Block):
    """Norms after the residuals, LayerNorm(x + Dropout(Sublayer(x))): self-attention, FFN (Devlin et al. 2019).

    The block of RecBole's ``TransformerLayer``. It has neither cross-attention nor a dropout on its output.

    Parameters
    ----------
    shape : BlockShape
        Sizes and switches.
    """

    def _attend(self, x: Tensor, batch: RaggedBatch, last_only: bool) -> Tensor:
        if not last_only:
            return self.attention_norm(x + self.dropout(self.attention.self_attention(x, batch)))
        last = x.index_select(0, batch.last)
        return self.attention_norm(last + self.dropout(self.attention.from_last(last, x, batch)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.ffn_norm(x + self.dropout(self.ffn(x)))

"""STOSA: Fan, Liu, Wang, Wang, Nazari, Zheng, Peng, Yu 2022, "Sequential Recommendation via Stochastic Self-Attention".

Shapes: B batch, N tokens, d hidden size, h heads, I items with padding row 0; a slab holds n sequences of l tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_diffurec.config.rules import Rule
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.attention import Observer
from recbole_diffurec.layers.blocks import LAYER_NORM_EPS
from recbole_diffurec.layers.device import device_type
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.linear import Linear
from recbole_diffurec.layers.ragged import RaggedBatch, Slab
from recbole_diffurec.models import sequential
from recbole_diffurec.models.scores import ItemScores
from recbole_diffurec.models.sequential import SequentialModel
from recbole_diffurec.models.spec import ModelSpec

# A covariance that rounding makes zero has a root without a gradient.
LEAST_COVARIANCE = 1e-8
INITIAL_MEAN = 0.01  # of all weights


def covariance(x: Tensor) -> Tensor:
    """ELU(x) + 1, which is above zero."""
    return F.elu(x) + 1


def place(mean: Tensor, cov: Tensor) -> Tensor:
    """[mean ; root of the covariance]: squared Euclidean distances of these are squared 2-Wasserstein distances.

    Parameters
    ----------
    mean, cov : Tensor
        [..., d], of Gaussians with diagonal covariances.
    """
    return torch.cat([mean, cov.clamp(min=LEAST_COVARIANCE).sqrt()], dim=-1)


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Of ``place``s [..., 2d], one by one: [...]."""
    return (x - y).square().sum(dim=-1)


def _full_precision(x: Tensor) -> AbstractContextManager:
    """Without autocast: distances are small differences of large numbers."""
    kind = device_type(x)
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class WassersteinAttention(nn.Module):
    """Causal attention among Gaussians, A = softmax(-W_2^2(q, k) / sqrt(d/h)), by inner products.

    |q - k|^2 = |q|^2 - 2 q . k + |k|^2, of which the first is the same for all keys.

    Parameters
    ----------
    size, n_heads : int
        d, and h, which divides it.
    dropout : float
        Probability of zeroing an attention weight.
    means : bool
        Whether means attend too, or covariances alone.

    Attributes
    ----------
    observer : Observer or None
        Called where the last positions alone attend.
    """

    observer: Observer | None = None

    def __init__(self, size: int, n_heads: int, dropout: float, means: bool):
        super().__init__()
        self.n_heads, self.means = n_heads, means
        self.mean_query, self.mean_key = Linear(size, size), Linear(size, size)
        self.cov_query, self.cov_key, self.cov_value = (Linear(size, size) for _ in range(3))
        self.cov_output = Linear(size, size)
        if means:
            self.mean_value, self.mean_output = Linear(size, size), Linear(size, size)
        self.dropout = Dropout(dropout)

    def forward(self, mean: Tensor, cov: Tensor, batch: RaggedBatch, last_only: bool) -> tuple[Tensor | None, Tensor]:
        """W_m A v_m and W_c (A * A) v_c.

        Parameters
        ----------
        mean, cov : Tensor
            [N, d], the tokens.
        batch : RaggedBatch
            Their layout.
        last_only : bool
            Ask from the most recent position of each history alone.

        Returns
        -------
        tuple of Tensor
            [N, d] each, or [B, d] in sorted order with ``last_only``; no means where these do not attend.
        """
        with _full_precision(mean):
            mean, cov = mean.to(self.cov_query.weight.dtype), cov.to(self.cov_query.weight.dtype)
            cov_values = self._heads(covariance(self.cov_value(cov)), batch)
            mean_values = self._heads(self.mean_value(mean), batch) if self.means else [None] * len(cov_values)
            cov_contexts, mean_contexts = [], []
            attention = self.weights(mean, cov, batch, last_only)
            if self.observer is not None and last_only:
                self.observer(batch, [weights.squeeze(2) for weights in attention])
            for weights, v_c, v_m in zip(attention, cov_values, mean_values):
                weights = self.dropout(weights)
                cov_contexts.append(_joined(weights.square() @ v_c))
                if v_m is not None:
                    mean_contexts.append(_joined(weights @ v_m))
            attended = self.mean_output(torch.cat(mean_contexts)) if self.means else None
            return attended, self.cov_output(torch.cat(cov_contexts))

    def weights(self, mean: Tensor, cov: Tensor, batch: RaggedBatch, last_only: bool) -> list[Tensor]:
        """A of each slab, [n, h, l or 1, l]; parameters as of ``forward``."""
        keys = self._places(self.mean_key(mean), covariance(self.cov_key(cov)), batch)
        if last_only:
            mean, cov = mean.index_select(0, batch.last), cov.index_select(0, batch.last)
        queries = self._places(self.mean_query(mean), covariance(self.cov_query(cov)), batch)
        scale = (mean.shape[-1] // self.n_heads) ** -0.5
        found = []
        for q, k, slab in zip(queries, keys, batch.slabs):
            scores = (2 * q @ k.transpose(-1, -2) - k.square().sum(dim=-1).unsqueeze(-2)) * scale
            found.append(_masked(scores, slab, last_only).softmax(dim=-1))
        return found

    def _heads(self, x: Tensor, batch: RaggedBatch) -> list[Tensor]:
        """[n, h, l, d/h] of each slab, from [N, d], or with l = 1 from [B, d]."""
        per_row = x.shape[0] == batch.n_sequences
        parts = x.split([slab.n if per_row else slab.n * slab.length for slab in batch.slabs])
        return [
            part.view(slab.n, -1, self.n_heads, x.shape[-1] // self.n_heads).transpose(1, 2)
            for slab, part in zip(batch.slabs, parts)
        ]

    def _places(self, mean: Tensor, cov: Tensor, batch: RaggedBatch) -> list[Tensor]:
        return [place(m, c) for m, c in zip(self._heads(mean, batch), self._heads(cov, batch))]


def _joined(contexts: Tensor) -> Tensor:
    """[n l, d] from [n, h, l, d/h]."""
    return contexts.transpose(1, 2).flatten(2).flatten(0, 1)


def _masked(scores: Tensor, slab: Slab, last_only: bool) -> Tensor:
    """Without what is later; what pads a history is later than all of its queries, but for that of ``last_only``."""
    if last_only:
        return scores if slab.key_bias is None else scores + slab.key_bias.to(scores.dtype)
    return scores + torch.full(scores.shape[-2:], -math.inf, device=scores.device, dtype=scores.dtype).triu(1)


class FeedForward(nn.Module):
    """LayerNorm(x + Dropout(W_2 ELU(W_1 x))).

    Parameters
    ----------
    size, inner_size : int
        d, and the width between.
    dropout : float
        Probability.
    """

    def __init__(self, size: int, inner_size: int, dropout: float):
        super().__init__()
        self.layers = nn.Sequential(Linear(size, inner_size), nn.ELU(), Linear(inner_size, size))
        self.norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N, d] to [N, d]."""
        return self.norm(x + self.dropout(self.layers(x)))


class StochasticBlock(nn.Module):
    """Wasserstein attention and feed-forward layers of means and of covariances, which share the norm between.

    Parameters
    ----------
    config : RunConfig
        The model's parameters.
    means : bool
        Whether means go through the block; if not, they leave it as they came.
    """

    def __init__(self, config: Any, means: bool):
        super().__init__()
        size, dropout = config["hidden_size"], config["hidden_dropout_prob"]
        inner_size = config["inner_size"] or 4 * size
        self.attention = WassersteinAttention(size, config["n_heads"], config["attn_dropout_prob"], means)
        self.attention_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)
        self.cov_ffn = FeedForward(size, inner_size, dropout)
        self.mean_ffn = FeedForward(size, inner_size, dropout) if means else None

    def attend(self, mean: Tensor, cov: Tensor, batch: RaggedBatch, last_only: bool) -> tuple[Tensor, Tensor]:
        """The first half; what it gives for a covariance may be negative."""
        attended_mean, attended_cov = self.attention(mean, cov, batch, last_only)
        if last_only:
            mean, cov = mean.index_select(0, batch.last), cov.index_select(0, batch.last)
        cov = self.attention_norm(cov + self.dropout(attended_cov))
        if attended_mean is not None:
            mean = self.attention_norm(mean + self.dropout(attended_mean))
        return mean, cov

    def forward(self, mean: Tensor, cov: Tensor, batch: RaggedBatch, last_only: bool) -> tuple[Tensor, Tensor]:
        """Means and covariances after the block, parameters and shapes as of ``WassersteinAttention.forward``."""
        mean, cov = self.attend(mean, cov, batch, last_only)
        return mean if self.mean_ffn is None else self.mean_ffn(mean), covariance(self.cov_ffn(cov))


class DistanceScores(ItemScores):
    """Minus the squared 2-Wasserstein distance of a state's Gaussian from an item's.

    As inner products in 2d + 2 dimensions: -|u - v|^2 = [2u ; -1 ; -|u|^2] . [v ; |v|^2 ; 1].

    Parameters
    ----------
    means, covariances : nn.Embedding
        Of the items, [I, d]; the second before ELU + 1.
    """

    def __init__(self, means: nn.Embedding, covariances: nn.Embedding):
        super().__init__(means)
        self.covariances = covariances

    def places(self, items: Tensor | None = None) -> Tensor:
        """``place`` of all items [I, 2d], or of items int [n]."""
        if items is None:
            return place(self.item_embedding.weight, covariance(self.covariances.weight))
        return place(self.item_embedding(items), covariance(self.covariances(items)))

    def vectors(self, items: Tensor | None = None) -> Tensor:
        """What queries are scored against, [I, 2d + 2] or [n, 2d + 2]."""
        v = self.places(items)
        return torch.cat([v, v.square().sum(dim=-1, keepdim=True), torch.ones_like(v[:, :1])], dim=-1)

    def query(self, x: Tensor) -> Tensor:
        """What is scored against ``vectors``, [B, 2d + 2], for places [B, 2d]."""
        return torch.cat([2 * x, -torch.ones_like(x[:, :1]), -x.square().sum(dim=-1, keepdim=True)], dim=-1)


class STOSA(SequentialModel):
    """Items are Gaussians; a history attends to the near ones, and recommends those that are nearest to its state.

    L = -log sigmoid(D(s, j-) - D(s, j+)) + pvn_weight max(0, D(s, j+) - D(j+, j-)) with one drawn negative j- for the
    target j+, D the squared 2-Wasserstein distance, s the state of the last position; or, with ``loss_type: CE``, the
    cross-entropy of -D over all items.

    With ``stack_means`` the model is that of the paper. Without, it is what the public code computes: there no layer's
    means reach the next layer or the loss, so that a state is the mean of the last item alone, with a covariance that
    has seen the history.

    Defaults: ``properties/model/STOSA.yaml``.
    """

    input_type = InputType.PAIRWISE

    def build_encoder(self, config: Any, dataset: Any) -> None:
        """Tables of the covariances, and the blocks."""
        self.item_covariance = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
        self.position_covariance = nn.Embedding(self.max_seq_length, self.hidden_size)
        means = config["stack_means"]
        self.blocks = nn.ModuleList(StochasticBlock(config, means) for _ in range(config["n_layers"]))
        self.full_softmax: bool = config["loss_type"] == "CE"
        self.pvn_weight: float = config["pvn_weight"]

    def build_scores(self, config: Any) -> ItemScores:
        """How items are scored."""
        self.distances = DistanceScores(self.item_embedding, self.item_covariance)
        return self.distances

    def _initialise(self, std: float) -> None:
        """All weight matrices from N(0.01, std^2), so that covariances begin near 1; no biases, no padding item."""
        super()._initialise(std)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, (nn.Linear, nn.Embedding)):
                    module.weight += INITIAL_MEAN
            for table in (self.item_embedding, self.item_covariance):
                table.weight[0].zero_()

    # From histories to representations

    def embed(self, batch: RaggedBatch) -> Tensor:
        """Means and covariances of the tokens, [N, 2d]."""
        position = self.positions(batch)
        mean = self.embed_items(batch.items) + self.position_embedding(position)
        cov = self.item_covariance(batch.items) + self.position_covariance(position)
        mean, cov = (self.input_dropout(self.input_norm(x)) for x in (mean, cov))
        return torch.cat([F.elu(mean), covariance(cov)], dim=-1)

    def positions(self, batch: RaggedBatch) -> Tensor:
        """Counted from the most recent item, as where histories are padded on the left."""
        return batch.age

    def encode(self, x: Tensor, batch: RaggedBatch) -> Tensor:
        """``place`` of the state of the most recent position of each history, [B, 2d] in sorted order."""
        return self.encoded(x, batch, last_only=True)

    def encoded(self, x: Tensor, batch: RaggedBatch, last_only: bool) -> Tensor:
        """``encode``, or ``place`` of the states of all positions, [N, 2d]."""
        mean, cov = x.chunk(2, dim=-1)
        for block in self.blocks:
            mean, cov = block(mean, cov, batch, last_only and block is self.blocks[-1])
        return place(mean.float() if mean.dtype == torch.bfloat16 else mean, cov)

    # Training

    def calculate_loss(self, interaction: Any) -> Tensor | tuple[Tensor, ...]:
        """The ranking loss and the weighted term between positive and negative, or the mean cross-entropy.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        states = self.represent(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        if self.full_softmax:
            return self.recommendation_loss(states, interaction)
        return self.pairwise_losses(states, interaction[self.POS_ITEM_ID], interaction[self.NEG_ITEM_ID])

    def pairwise_losses(self, states: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the two terms of L.

        Parameters
        ----------
        states : Tensor
            [B, 2d], from ``represent``.
        positive, negative : Tensor
            int [B], items.
        """
        # Together: the gradient of each look-up is as large as the table.
        near, far = self.distances.places(torch.cat([positive, negative])).chunk(2)
        to_positive = squared_distance(states, near)
        ranking = -F.logsigmoid(squared_distance(states, far) - to_positive)
        apart = (to_positive - squared_distance(near, far)).clamp(min=0)
        return ranking.mean(), self.pvn_weight * apart.mean()


def check(values: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where parameters do not fit together."""
    sequential.check_negatives("STOSA", values, "BPR", "--loss_type=CE --pvn_weight=0")
    if values["loss_type"] == "CE" and values["pvn_weight"]:
        raise UserError(
            f"pvn_weight {values['pvn_weight']} weighs a term between a target and its drawn negative, of which "
            f"loss_type CE has none: give --pvn_weight=0 with it"
        )


STOSA_SPEC = ModelSpec(
    "STOSA",
    STOSA,
    "items are Gaussians, attention and scores are Wasserstein distances (Fan et al. 2022)",
    rules={
        "sampled_softmax": sequential.RULES["sampled_softmax"],
        "negative_distribution": sequential.RULES["negative_distribution"],
        "stack_means": Rule("bool"),
        "loss_type": Rule("str", choices=["BPR", "CE"]),
        "pvn_weight": Rule("number", 0),
    },
    of_training=sequential.OF_TRAINING | {"loss_type", "pvn_weight"},
    check=check,
    trims_padding=True,
    loss=lambda values: "cross-entropy" if values["loss_type"] == "CE" else "BPR and a distance of the positive",
    for_inference=sequential.FOR_INFERENCE,
    cannot={"sequences": "it counts positions from the end, so that each prefix has others"},
)

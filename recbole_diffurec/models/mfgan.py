"""MFGAN, reduced: Ren, Liu, Li, Zhao, Wang, Ding, Wen 2020, "Sequential Recommendation with Self-attentive
Multi-Adversarial Network", SIGIR.

The paper's factors beside ids and popularity are vectors of a knowledge graph and attributes that are not published.
This model has factors that every data set has, so that the paper's figures cannot be reproduced with it.

Shapes: B batch, L padded history length, N tokens, d hidden size, I items with padding row 0, m values of a factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_diffurec.config.needs import Need
from recbole_diffurec.config.rules import COUNT, PROBABILITY, Rule
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.attention import MultiHeadAttention
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.linear import Linear
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.models import sequential
from recbole_diffurec.models.sequential import SequentialModel
from recbole_diffurec.models.spec import ModelSpec

NORM_EPS = 1e-8
REAL = 1  # the class of real sequences
OUTPUT_DECAY = 0.2  # of a discriminator's output layer
RANKED_SCORES = 2**24  # scores that exist at once where the generator's items are ranked


class HeadsAlone(MultiHeadAttention):
    """Attention without a layer after the heads."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        vars(self)["_modules"]["output"] = nn.Identity()


class MacaronBlock(nn.Module):
    """Self-attention between two half feed-forward layers, each added to the norm of what enters it.

    n = LN(x), a = n + 1/2 FFN(n); q = LN(a), b = q + Attention(q, a); n = LN(b), n + 1/2 FFN(n). There is no layer
    after the heads. A discriminator's block has no first half, and a whole second one: a = x, and n + FFN(n).

    Parameters
    ----------
    size, n_heads : int
        d, and the attention heads.
    dropout : float
        Probability, of feed-forward layers and attention weights.
    generates : bool
        Whether it is a block of the generator, which looks back alone, or of a discriminator.
    """

    def __init__(self, size: int, n_heads: int, dropout: float, generates: bool):
        super().__init__()
        self.first_norm = nn.LayerNorm(size, eps=NORM_EPS) if generates else None
        self.first_ffn = _feed_forward(size, dropout) if generates else None
        self.attention_norm = nn.LayerNorm(size, eps=NORM_EPS)
        self.attention = HeadsAlone(size, n_heads, dropout, checkpointing=False, causal=generates)
        self.ffn_norm = nn.LayerNorm(size, eps=NORM_EPS)
        self.ffn = _feed_forward(size, dropout)
        self.share = 0.5 if generates else 1.0

    def forward(self, x: Tensor, batch: RaggedBatch, last_only: bool) -> Tensor:
        """States after the block.

        Parameters
        ----------
        x : Tensor
            [N, d].
        batch : RaggedBatch
            The layout of the tokens.
        last_only : bool
            Compute the most recent position of each history alone.

        Returns
        -------
        Tensor
            [N, d], or [B, d] in sorted order with ``last_only``.
        """
        if self.first_norm is not None and self.first_ffn is not None:
            x = self.first_norm(x)
            x = x + self.share * self.first_ffn(x)
        if last_only:
            q = self.attention_norm(x.index_select(0, batch.last))
            attended = self.attention.from_last(q, x, batch)
        else:
            q = self.attention_norm(x)
            attended = self.attention(q, self.attention.keys_values(x, batch), batch)
        n = self.ffn_norm(q + attended)
        return n + self.share * self.ffn(n)


def _feed_forward(size: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(Linear(size, size), nn.ReLU(), Dropout(dropout), Linear(size, size), Dropout(dropout))


class Discriminator(nn.Module):
    """Tells real sequences from generated ones by one factor of their items.

    Parameters
    ----------
    values : Tensor
        int [I, m], the factor's values of each item, from 1; 0 where an item has fewer than m.
    config : RunConfig
        The model's parameters.
    """

    values: Tensor

    def __init__(self, values: Tensor, config: Any):
        super().__init__()
        size, dropout = config["hidden_size"], config["discriminator_dropout_prob"]
        self.register_buffer("values", values, persistent=False)
        self.value_embedding = nn.Embedding(int(values.max()) + 1, size)
        self.position_embedding = nn.Embedding(config["MAX_ITEM_LIST_LENGTH"], size)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            MacaronBlock(size, config["n_heads"], dropout, generates=False)
            for _ in range(config["n_discriminator_layers"])
        )
        self.norm = nn.LayerNorm(size, eps=NORM_EPS)
        self.output = nn.Linear(size, 2)

    def forward(self, batch: RaggedBatch) -> Tensor:
        """Logits of generated and real for each sequence, [B, 2]."""
        values = self.values.index_select(0, batch.items)
        vectors = self.value_embedding(values)
        if values.shape[1] > 1:
            there = (values != 0).unsqueeze(2)
            vectors = (vectors * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        x = vectors.view(-1, self.value_embedding.embedding_dim) * self.value_embedding.embedding_dim**0.5
        x = self.dropout(x + self.position_embedding(batch.age))
        for block in self.blocks:
            x = block(x, batch, last_only=block is self.blocks[-1])
        return batch.restore(self.output(self.norm(x)))

    def decay(self) -> Tensor:
        """The penalty on the output layer, a number."""
        return OUTPUT_DECAY / 2 * (self.output.weight.square().sum() + self.output.bias.square().sum())


def appended(item_seq: Tensor, lengths: Tensor, items: Tensor, max_length: int) -> RaggedBatch:
    """Histories with one more item each, without their oldest where they would be longer than ``max_length``.

    Parameters
    ----------
    item_seq : Tensor
        int [B, L], right-padded.
    lengths, items : Tensor
        int [B], from 1.
    max_length : int
        Most items of a sequence.
    """
    longer = F.pad(item_seq, (0, 1)).scatter(1, lengths.unsqueeze(1), items.unsqueeze(1))
    full = lengths == max_length
    without_first = F.pad(longer[:, 1:], (0, 1))
    return RaggedBatch(torch.where(full.unsqueeze(1), without_first, longer), torch.where(full, lengths, lengths + 1))


def popularity_classes(counts: Tensor, n_classes: int) -> Tensor:
    """The class of each item, from 1 (rare) to ``n_classes``, with equally many items in each; 0 for padding.

    Parameters
    ----------
    counts : Tensor
        int [I], occurrences of each item in training.
    n_classes : int
        How many.
    """
    classes = torch.zeros_like(counts)
    rank = counts[1:].argsort(stable=True).argsort(stable=True)
    classes[1:] = 1 + rank * n_classes // max(len(rank), 1)
    return classes


class MFGAN(SequentialModel):
    """A self-attentive generator of the next item, judged by one discriminator for each factor of the items.

    L = R CE + sum over factors of the discriminator's own loss: the reward R is the mean over the factors of the
    probability that the history with the generator's best item is real, 1 in the first ``pretrain_epochs``. A
    discriminator learns from the histories with their real next items, and with one of the generator's best
    ``n_generated`` in its place. R and what is generated are constants to the gradient, so that one backward pass
    serves all players; the public code has 100 rounds of 80 epochs of the generator and one of the discriminators. With
    ``loss_type: BCE``, as published, the generator learns from the next item and a drawn negative, and R weighs the
    first. With ``n_discriminator_layers: 0`` the generator is alone.

    Factors are the item itself, its popularity in training, and with ``category_field`` a column of the data set's
    ``.item`` file.

    Defaults: ``properties/model/MFGAN.yaml``.
    """

    input_type = InputType.PAIRWISE

    def build_input(self, config: Any) -> None:
        """Positions and dropout."""
        self.build_positions(config)
        self.input_dropout = Dropout(config["hidden_dropout_prob"])

    def build_encoder(self, config: Any, dataset: Any) -> None:
        """The generator's blocks, and the discriminators."""
        self.blocks = nn.ModuleList(
            MacaronBlock(self.hidden_size, config["n_heads"], config["hidden_dropout_prob"], generates=True)
            for _ in range(config["n_layers"])
        )
        self.output_norm = nn.LayerNorm(self.hidden_size, eps=NORM_EPS)
        self.full_softmax: bool = config["loss_type"] == "CE"
        self.pretrain_epochs: int = config["pretrain_epochs"]
        self.n_generated: int = config["n_generated"]
        self.rewarded = self.pretrain_epochs == 0
        self.discriminators = nn.ModuleList()
        if config["n_discriminator_layers"]:
            counts = torch.bincount(dataset.inter_feat[self.ITEM_ID], minlength=self.n_items)
            factors = [torch.arange(self.n_items), popularity_classes(counts, config["popularity_classes"])]
            if config["category_field"]:
                factors.append(categories(dataset, config["category_field"]))
            self.discriminators.extend(Discriminator(values.view(self.n_items, -1), config) for values in factors)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As PyTorch has it, without discriminators where there are none: inference has no use for them."""
        if not len(self.discriminators):
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith("discriminators.")}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def begin_epoch(self, epoch: int) -> None:
        """Called by the trainer before each 0-based epoch."""
        self.rewarded = epoch >= self.pretrain_epochs

    # From histories to representations

    def embed(self, batch: RaggedBatch) -> Tensor:
        """What enters the blocks, [N, d]: sqrt(d) E[i] + P[k], k counted from the most recent item."""
        vectors = self.embed_items(batch.items) * self.hidden_size**0.5
        return self.input_dropout(vectors + self.position_embedding(batch.age))

    def encode(self, x: Tensor, batch: RaggedBatch) -> Tensor:
        """As in ``SequentialModel``."""
        return self.encoded(x, batch, last_only=True)

    def encoded(self, x: Tensor, batch: RaggedBatch, last_only: bool) -> Tensor:
        """``encode``, or the states of all positions, [N, d]."""
        for block in self.blocks:
            x = block(x, batch, last_only and block is self.blocks[-1])
        return self.output_norm(x)

    # Training

    def calculate_loss(self, interaction: Any) -> Tensor | tuple[Tensor, Tensor]:
        """The generator's loss and the discriminators', means over the rows.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        target = interaction[self.POS_ITEM_ID]
        states = self.represent(item_seq, lengths)
        if not len(self.discriminators):
            return self.generator_loss(states, interaction, torch.ones_like(states[:, 0]))
        best = self.best_items(states)
        place = torch.randint(best.shape[1], (len(best), 1), device=best.device)
        generated = best.gather(1, place).squeeze(1)
        reward = self.rewards(item_seq, lengths, best[:, 0]) if self.rewarded else torch.ones_like(states[:, 0])
        loss = self.generator_loss(states, interaction, reward.to(states.dtype))
        return loss, self.discriminator_loss(item_seq, lengths, target, generated)

    def generator_loss(self, states: Tensor, interaction: Any, reward: Tensor) -> Tensor:
        """The mean over the rows, as ``loss_type`` says.

        Parameters
        ----------
        states : Tensor
            [B, d], from ``represent``.
        interaction : Interaction
            The batch.
        reward : Tensor
            [B], R.
        """
        target = interaction[self.POS_ITEM_ID]
        if not self.full_softmax:
            return self.pairwise_losses(states, target, interaction[self.NEG_ITEM_ID], reward).mean()
        query, vectors = self.scores.query(states), self.scores.vectors()
        return self.cross_entropy(query, vectors, target, reward / len(target), None)[0]

    @torch.no_grad()
    def best_items(self, states: Tensor) -> Tensor:
        """The ``n_generated`` items that the generator ranks highest, int [B, n], for states [B, d]."""
        n = min(self.n_generated, self.n_items - 1)
        parts = states.split(max(1, RANKED_SCORES // self.n_items))
        return torch.cat([self.scores.logits(part, None).topk(n, dim=1).indices for part in parts])

    @torch.no_grad()
    def rewards(self, item_seq: Tensor, lengths: Tensor, generated: Tensor) -> Tensor:
        """R of each history int [B, L] with its generated item int [B]: [B]."""
        batch = appended(item_seq, lengths, generated, self.max_seq_length)
        return torch.stack([d(batch).softmax(dim=1)[:, REAL] for d in self.discriminators]).mean(dim=0)

    def pairwise_losses(self, states: Tensor, positive: Tensor, negative: Tensor, reward: Tensor) -> Tensor:
        """-R log sigmoid(s . e+) - log(1 - sigmoid(s . e-)), [n].

        Parameters
        ----------
        states : Tensor
            [n, d].
        positive, negative : Tensor
            int [n], items.
        reward : Tensor
            [n], R.
        """
        near, far = (self.scores.of_items(states, items, None) for items in (positive, negative))
        return F.softplus(-near) * reward + F.softplus(far)

    def discriminator_loss(self, item_seq: Tensor, lengths: Tensor, real: Tensor, generated: Tensor) -> Tensor:
        """The sum over the factors of mean cross-entropies and penalties.

        Parameters
        ----------
        item_seq : Tensor
            int [B, L], right-padded histories.
        lengths, real, generated : Tensor
            int [B], their lengths, next items, and generated items.
        """
        twice = torch.cat([item_seq, item_seq]), torch.cat([lengths, lengths])
        batch = appended(*twice, torch.cat([real, generated]), self.max_seq_length)
        label = torch.cat([torch.full_like(real, REAL), torch.full_like(generated, 1 - REAL)])
        every: list[Any] = list(self.discriminators)
        return torch.stack([F.cross_entropy(d(batch), label) + d.decay() for d in every]).sum()


def categories(dataset: Any, field: str) -> Tensor:
    """The values of a column of the ``.item`` file for each item, int [I] or [I, m].

    Raises
    ------
    UserError
        There is no such column, or it holds numbers.
    """
    found = dataset.item_feat
    if found is None or field not in found:
        raise UserError(
            f"category_field is '{field}', and data set '{dataset.dataset_name}' has no file of items with such a "
            f"column: name one of '{dataset.dataset_name}.item', or leave category_field out"
        )
    if found[field].is_floating_point():
        raise UserError(f"category_field '{field}' is a column of numbers: name one of tokens")
    return found[field]


def check(values: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where parameters do not fit together."""
    sequential.check_negatives("MFGAN", values, "BCE", "--loss_type=CE")
    patience = values["stopping_step"] * values["eval_step"]
    if patience < min(values["pretrain_epochs"], values["epochs"]):
        raise UserError(
            f"stopping_step {values['stopping_step']} can end the training within the {values['pretrain_epochs']} "
            f"epochs of pretrain_epochs, before rewards act: raise the first or lower the second"
        )


MFGAN_SPEC = ModelSpec(
    "MFGAN",
    MFGAN,
    "a generator of the next item against discriminators of ids, popularity and categories; reduced (Ren et al. 2020)",
    rules={
        "sampled_softmax": sequential.RULES["sampled_softmax"],
        "negative_distribution": sequential.RULES["negative_distribution"],
        "n_discriminator_layers": Rule("int", 0),
        "discriminator_dropout_prob": PROBABILITY,
        "popularity_classes": COUNT,
        "category_field": Rule("str", optional=True),
        "loss_type": Rule("str", choices=["BCE", "CE"]),
        "pretrain_epochs": Rule("int", 0),
        "n_generated": COUNT,
    },
    needs=dict.fromkeys(
        ("discriminator_dropout_prob", "popularity_classes", "category_field", "pretrain_epochs", "n_generated"),
        (Need("n_discriminator_layers", bool, "--n_discriminator_layers=1"),),
    ),
    of_training=sequential.OF_TRAINING
    | {"discriminator_dropout_prob", "loss_type", "pretrain_epochs", "n_generated", "train_neg_sample_args"},
    check=check,
    trims_padding=True,
    for_inference={**sequential.FOR_INFERENCE, "n_discriminator_layers": 0},
    cannot={"samples": "its generator gives one list for a history and draws nothing"},
)

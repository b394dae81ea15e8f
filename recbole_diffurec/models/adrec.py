"""ADRec: Chen, Xu, Jiang 2025, "Unlocking the Power of Diffusion Models in Sequential Recommendation", KDD.

Shapes: B batch, M targets of a batch, L padded history length, N tokens, d hidden size, T diffusion steps, I items with
padding row 0.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.config.rules import COUNT, Rule
from recbole_diffurec.data.rows import FIRST_TARGET, prefixes, target_places
from recbole_diffurec.diffusion.noise import Draws, FreshNoise, prefix_keys, uniforms
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.blocks import LAYER_NORM_EPS, Block, BlockShape
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.encoder import TransformerEncoder
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.layers.step_embedding import StepEmbedding
from recbole_diffurec.models.denoiser import Denoiser, NetworkDenoiser
from recbole_diffurec.models.diffurec import DiffuRecFamily
from recbole_diffurec.models.diffurec_program import NoiseProgram
from recbole_diffurec.models.diffurec_rules import FAMILY_NEEDS, FAMILY_OF_TRAINING, FAMILY_RULES, check_family
from recbole_diffurec.models.objectives import SquaredErrorObjective
from recbole_diffurec.models.spec import ModelSpec

logger = logging.getLogger("recbole_diffurec")


class CausalNetwork(nn.Module):
    """Causal blocks over the history, c, and causal blocks over c_i + factor * (x_i + d_i), whose states estimate.

    x_i is the noised vector of the item that follows i, and d_i embeds its step.

    Parameters
    ----------
    shape : BlockShape
        Of all blocks, which have their norms after the residuals.
    n_encoder_layers, n_layers : int
        How many blocks are over the history, and how many over its sum with the noised vectors.
    embedding_dropout : float
        Probability, for item vectors.
    factor : float
        Of the noised vectors.
    """

    def __init__(
        self, shape: BlockShape, n_encoder_layers: int, n_layers: int, embedding_dropout: float, factor: float
    ):
        super().__init__()
        self.factor = factor
        self.input_dropout = Dropout(embedding_dropout)
        self.input_norm = nn.LayerNorm(shape.hidden_size, eps=LAYER_NORM_EPS)
        self.encoder = TransformerEncoder(shape, n_encoder_layers, "post")
        self.decoder = TransformerEncoder(shape, n_layers, "post")

    def encode(self, embeddings: Tensor, batch: RaggedBatch) -> Tensor:
        """c, [N, d], of the item vectors of a batch's tokens, [N, d]."""
        x = self.input_dropout(embeddings.to(self.input_norm.weight.dtype))
        return self.encoder(self.input_norm(x), batch, last_only=False)

    def inject(self, c: Tensor, x_s: Tensor, steps: Tensor) -> Tensor:
        """c + factor * (x_s + d), shaped like c, [N, d] or [B, d]; ``steps`` are the d."""
        return c + (self.factor * (x_s + steps)).to(c.dtype)

    def forward(self, c: Tensor, x_s: Tensor, steps: Tensor, batch: RaggedBatch) -> Tensor:
        """The estimates of the items that follow all tokens, [N, d] in the precision of ``x_s``."""
        return self.decoder(self.inject(c, x_s, steps), batch, last_only=False).to(x_s.dtype)


@dataclass(frozen=True)
class KnownHistory:
    """What the denoiser knows of histories before any state x_s."""

    batch: RaggedBatch
    c: Tensor  # [B, d], of the most recent items, in sorted order
    states: list[Tensor]  # what enters each block of the decoder, [N, d]; at the most recent items it is left to come
    steps: Tensor  # [T, d]
    row: Tensor  # int [B], the row of the given batch at each place of the sorted one


class LastTokenDenoiser(NetworkDenoiser):
    """The network as a ``Denoiser`` of the vector after the most recent item. Holds modules of a model and owns none.

    What follows the other items is known: it enters as it is, at the first step. Attention is causal, so that nothing
    of the last place reaches the others, whose states are computed once for all steps.

    Parameters
    ----------
    network : CausalNetwork
        The blocks.
    step_embedding : StepEmbedding
        The embeddings of the diffusion steps.
    tells_items : bool
        Whether the vectors of the items that follow enter; without, they are zeros at step T, as in a twin's training.
    """

    def __init__(self, network: CausalNetwork, step_embedding: StepEmbedding, tells_items: bool):
        super().__init__(network, step_embedding)
        self.tells_items = tells_items

    def condition(self, embeddings: Tensor, batch: RaggedBatch) -> KnownHistory:
        """``Denoiser.condition``."""
        network, steps = self.network, self.step_embedding()
        c = network.encode(embeddings, batch)
        if self.tells_items:
            following = torch.cat([embeddings[1:], embeddings[:1]])  # right for all but the most recent items
            x = network.inject(c, following, steps[:1])
        else:
            x = network.inject(c, torch.zeros_like(embeddings), steps[-1:])
        states = []
        for block in network.decoder.blocks:
            states.append(x)
            if block is not network.decoder.blocks[-1]:
                x = cast(Block, block)(x, None, batch, False)
        last = batch.last
        return KnownHistory(batch, c.index_select(0, last), states, steps, batch.row.index_select(0, last))

    def __call__(self, condition: KnownHistory, x_s: Tensor, t: Tensor | int, draws: Draws) -> Tensor:
        """``Denoiser.__call__``."""
        batch = condition.batch
        embedded = condition.steps[t : t + 1] if isinstance(t, int) else condition.steps.index_select(0, t)
        given = (x_s + embedded.to(x_s.dtype)).index_select(0, condition.row)
        x = self.network.inject(condition.c, given, torch.zeros_like(given[:1]))
        for block, states in zip(self.network.decoder.blocks, condition.states, strict=True):
            x = cast(Block, block)(states.index_copy(0, batch.last, x.to(states.dtype)), None, batch, True)
        return batch.restore(x).to(x_s.dtype)


class ADRec(DiffuRecFamily):
    """Each item of a history predicts the next one, whose vector is noised to a step of its own.

    Causal blocks read the history; their states, with the noised vectors of the items that follow added, go through
    causal blocks again, so that an estimate depends on the noised vectors before it as well. The loss is the
    cross-entropy of the estimates and ``mse_weight`` times their mean squared distance, over all positions of a history
    at once with ``rows: sequences``. Inference denoises the vector after the last item alone: those before are known.

    Training has three stages, by epochs: ``pretrain_epochs`` in which the item vectors and the first blocks learn to
    classify without any diffusion; ``warmup_epochs`` in which all other weights learn around the item vectors, which
    stay; and the rest, in which everything learns.

    Defaults: ``properties/model/ADRec.yaml``.
    """

    program_class = NoiseProgram

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.pretrain_epochs: int = config["pretrain_epochs"]
        self.warmup_epochs: int = config["warmup_epochs"]
        self.epochs: int = config["epochs"]
        self.mse_weight: float = config["mse_weight"]
        self.distance = SquaredErrorObjective()
        self.pretraining = False
        # While vectors are kept, or blocks not reached, they have no gradient.
        self.uses_all_parameters = self.pretrain_epochs + self.warmup_epochs == 0

    def build_denoiser(self, config: Any) -> Denoiser:
        """The network, and the embeddings of the steps."""
        shape = BlockShape.of(config, self.hidden_size, causal=True)
        self.network = CausalNetwork(
            shape,
            config["n_encoder_layers"],
            config["n_layers"],
            config["embedding_dropout_prob"],
            config["lambda_uncertainty"],
        )
        self.step_embedding = StepEmbedding(self.hidden_size, config["diffusion_steps"])
        return LastTokenDenoiser(self.network, self.step_embedding, config["noised_target"] is not False)

    # Training

    def begin_epoch(self, epoch: int) -> None:
        """The stage of the training, by the 0-based epoch."""
        super().begin_epoch(epoch)
        joint = self.pretrain_epochs + self.warmup_epochs
        if epoch == 0 and joint >= self.epochs:
            logger.warning(
                "%d pretrain_epochs and %d warmup_epochs leave no epoch of %d in which all weights are trained",
                self.pretrain_epochs,
                self.warmup_epochs,
                self.epochs,
            )
        self.pretraining = epoch < self.pretrain_epochs
        self.item_embedding.weight.requires_grad_(not self.pretrain_epochs <= epoch < joint)

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        """Mean cross-entropy of the targets, and ``mse_weight`` times the mean squared distance of their estimates.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows, or of sequences (see ``data.rows``).
        """
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        target = interaction[self.POS_ITEM_ID]
        first = interaction[FIRST_TARGET] if FIRST_TARGET in interaction else lengths - 1
        row, place = target_places(first, lengths, len(target))
        batch = RaggedBatch(item_seq, lengths)
        token = batch.restore(batch.first).index_select(0, row) + place
        seen = item_seq if self.repeat_bias is None else prefixes(item_seq, row, place)
        c = self.network.encode(self.item_embedding(batch.items), batch)
        mean = c.new_full(target.shape, 1 / len(target), dtype=self.item_embedding.weight.dtype)
        if self.pretraining:
            states = c.index_select(0, token).to(mean.dtype)
            return (self.objective(states, states, target, mean, self.scores.bias(seen))[0],)
        following = following_items(item_seq, lengths, target.index_select(0, (lengths - first).cumsum(0) - 1))
        at = batch.row, batch.position
        x_0 = self.item_embedding(following[at])
        noise, uniform = self._token_draws(prefix_keys(item_seq)[at] + following[at], x_0)
        t, weight = self.step_sampler.sample(len(x_0), x_0.device, uniform)
        estimates = self.estimates(c, x_0, t, noise, batch).index_select(0, token)
        weight, x_0 = mean * weight.index_select(0, token).to(mean.dtype), x_0.index_select(0, token)
        entropy, entropies = self.objective(estimates, x_0, target, weight, self.scores.bias(seen))
        scale = self.mse_weight / self.hidden_size  # the squares' mean over the dimensions, as published
        distance, distances = self.distance(estimates, x_0, target, scale * weight, None)
        self.step_sampler.update(t.index_select(0, token), entropies + scale * distances)
        return entropy, distance

    def estimates(self, c: Tensor, x_0: Tensor, t: Tensor, noise: Tensor, batch: RaggedBatch) -> Tensor:
        """Estimates of what follows all tokens, [N, d], for given steps and noise.

        Parameters
        ----------
        c : Tensor
            [N, d], from ``CausalNetwork.encode``.
        x_0, noise : Tensor
            [N, d], the vectors of the items that follow, and eps.
        t : Tensor
            int [N], 0-based steps.
        batch : RaggedBatch
            The histories.
        """
        steps = self.step_embedding()
        if not self.noised_target:
            return self.network(c, torch.zeros_like(x_0), steps[-1:], batch)
        return self.network(c, self.process.q_sample(x_0, t, noise), steps.index_select(0, t), batch)

    def _token_draws(self, keys: Tensor, x_0: Tensor) -> tuple[Tensor, Tensor | None]:
        """The noise [N, d] of tokens, and with ``keyed_noise`` the uniform numbers [N] to choose their steps by.

        Parameters
        ----------
        keys : Tensor
            int64 [N], of a history up to a token and the item that follows, whatever comes later.
        x_0 : Tensor
            [N, d], what is noised.
        """
        n = len(x_0)
        if not self.keyed_noise:
            return FreshNoise(n, n, x_0.shape[-1], x_0).start(), None
        seed = self.training_seed + self.epoch * 2**32
        every = torch.arange(n, device=keys.device)
        return self.noise_table.for_batch(seed, keys, every, every, x_0.dtype).start(), uniforms(keys, seed)


def following_items(item_seq: Tensor, lengths: Tensor, last: Tensor) -> Tensor:
    """The item after each place of a history, int [B, L].

    Parameters
    ----------
    item_seq : Tensor
        int [B, L], right-padded.
    lengths, last : Tensor
        int [B], of the histories, and the items after them.
    """
    return F.pad(item_seq[:, 1:], (0, 1)).scatter(1, (lengths - 1).unsqueeze(1), last.unsqueeze(1))


def check(values: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where parameters do not fit together."""
    check_family(values)
    patience = values["stopping_step"] * values["eval_step"]
    if patience < min(values["pretrain_epochs"], values["epochs"]):
        raise UserError(
            f"stopping_step {values['stopping_step']} can end the training within the {values['pretrain_epochs']} "
            f"epochs of pretrain_epochs, before anything is denoised: raise the first or lower the second"
        )


# Of the family's parameters those that act here: lambda is a number, and nothing is drawn for tokens.
_NOT_HERE = {"offset_noise", "offset_scale", "compile"}

ADREC = ModelSpec(
    "ADRec",
    ADRec,
    "denoises the next item of every position, each at a step of its own, behind causal attention (Chen et al. 2025)",
    rules={
        **{name: rule for name, rule in FAMILY_RULES.items() if name not in _NOT_HERE},
        "n_encoder_layers": COUNT,
        "mse_weight": Rule("number", 0),
        "pretrain_epochs": Rule("int", 0),
        "warmup_epochs": Rule("int", 0),
    },
    needs=FAMILY_NEEDS,
    of_training=FAMILY_OF_TRAINING | {"mse_weight", "pretrain_epochs", "warmup_epochs"},
    check=check,
    trims_padding=True,
    all_positions=True,
    for_inference={"sampled_softmax": None},
)

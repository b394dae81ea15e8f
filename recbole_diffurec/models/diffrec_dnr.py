"""Du, Yuan, Huang, Zhao, Zhou 2023, "Sequential Recommendation with Diffusion Models", arXiv 2304.04541.

Its authors call it DiffRec, which is another model in RecBole (Wang et al. 2023). Equation numbers are those of the
paper, whose code was never published.

Shapes: B batch, L padded history length, N tokens, d hidden size, T diffusion steps, I items with padding row 0.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recbole_diffurec.config.rules import Rule
from recbole_diffurec.diffusion.noise import Draws
from recbole_diffurec.layers.blocks import BlockShape
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.encoder import TransformerEncoder
from recbole_diffurec.layers.ragged import LedBatch, RaggedBatch
from recbole_diffurec.layers.step_embedding import SinusoidalSteps
from recbole_diffurec.models.denoiser import Denoiser
from recbole_diffurec.models.diffurec import DiffuRecFamily
from recbole_diffurec.models.diffurec_program import NoiseProgram
from recbole_diffurec.models.diffurec_rules import FAMILY_NEEDS, FAMILY_OF_TRAINING, FAMILY_RULES, check_family
from recbole_diffurec.models.objectives import SquaredErrorObjective
from recbole_diffurec.models.scores import ItemScores, OutputScores
from recbole_diffurec.models.spec import ModelSpec


class SequenceNetwork(nn.Module):
    """A Transformer over the history and the noised target after it, whose state at the target is the estimate.

    Attention is in both directions, target included.

    Parameters
    ----------
    shape : BlockShape
        Of the blocks, which have their norms after the residuals.
    n_layers : int
        How many.
    n_steps : int
        T.
    dropout : float
        Probability, for what enters the blocks.
    """

    def __init__(self, shape: BlockShape, n_layers: int, n_steps: int, dropout: float):
        super().__init__()
        self.steps = SinusoidalSteps(shape.hidden_size, n_steps)
        self.target_position = nn.Parameter(torch.zeros(shape.hidden_size))
        self.input_dropout = Dropout(dropout)
        self.encoder = TransformerEncoder(shape, n_layers, "post")

    def inputs(self, history: EmbeddedHistory, x_s: Tensor, t: Tensor | int) -> Tensor:
        """What enters the blocks, [B + N, d] in the order of ``LedBatch``: h_t^0 + y_t + z_n, and x_s + y_T + z_n.

        Parameters
        ----------
        history : EmbeddedHistory
            What comes before the target.
        x_s : Tensor
            [B, d], the noised target.
        t : Tensor or int
            0-based steps, one for all or int [B].
        """
        states = history.states
        steps = self.steps().to(states.dtype)
        z = steps[t : t + 1].expand_as(x_s) if isinstance(t, int) else steps.index_select(0, t)
        target = x_s.to(states.dtype) + self.target_position + z
        return history.batch.join(target, states + z.index_select(0, history.row))

    def forward(self, history: EmbeddedHistory, x_s: Tensor, t: Tensor | int) -> Tensor:
        """The estimate of the target, [B, d], in the precision of ``x_s``; parameters as of ``inputs``."""
        x = self.encoder(self.input_dropout(self.inputs(history, x_s, t)), history.batch)
        return history.batch.restore(x).to(x_s.dtype)


@dataclass(frozen=True)
class EmbeddedHistory:
    """What the denoiser knows of histories before any state x_s."""

    batch: LedBatch
    row: Tensor  # int [N], the history of each token
    states: Tensor  # [N, d], h_t^0 + y_t


class SequenceDenoiser:
    """The network as a ``Denoiser``, which draws nothing. Holds a module of a model and owns none.

    Parameters
    ----------
    network : SequenceNetwork
        The Transformer.
    """

    token_noise = 0.0, 0.0

    def __init__(self, network: SequenceNetwork):
        self.network = network

    def condition(self, embeddings: Tensor, batch: RaggedBatch) -> EmbeddedHistory:
        """``Denoiser.condition``."""
        return EmbeddedHistory(LedBatch(batch), batch.row, embeddings.to(self.network.target_position.dtype))

    def __call__(self, condition: EmbeddedHistory, x_s: Tensor, t: Tensor | int, draws: Draws) -> Tensor:
        """``Denoiser.__call__``."""
        return self.network(condition, x_s, t)

    def in_bfloat16(self) -> SequenceDenoiser:
        """``Denoiser.in_bfloat16``."""
        return SequenceDenoiser(copy.deepcopy(self.network).bfloat16())


class DiffRecDNR(DiffuRecFamily):
    """A Transformer denoises the vector of the target at the end of its history; an output layer classifies items.

    L = sum_n |h - f(h^n, n)|^2 - log softmax(W h + b)[target], where h ~ N(E[target], beta_0 I), h^n is h after n steps
    of noise, and f the Transformer; at n = 1 the distance is that from E[target]. One step is drawn for each row. With
    ``rec_on: noised`` the second term is as printed: it classifies the noised vector, so that the Transformer learns
    from the distance alone. With ``rec_on: predicted`` it classifies f(h^n, n).

    ``sampling_steps: 1`` is the paper's efficient inference, one step from noise, and ``ensemble_seeds`` its mean over
    seeds. The unknown item from whose vector inference starts has no other use, and would be zeros: inference starts
    from noise alone. Training sees L history items and the target after them, where the paper cuts one more.

    Defaults: ``properties/model/DiffRecDNR.yaml``.
    """

    program_class = NoiseProgram

    def build_denoiser(self, config: Any) -> Denoiser:
        """The Transformer, and what is noised before the diffusion."""
        shape = BlockShape.of(config, self.hidden_size)
        # Of the items; the target has a vector of its own.
        self.position_embedding = nn.Embedding(self.max_seq_length, self.hidden_size)
        self.output = nn.Linear(self.hidden_size, self.n_items)
        self.initial_noise: float = config["initial_variance"] ** 0.5
        self.rec_on: str = config["rec_on"]
        self.distance = SquaredErrorObjective()
        self.network = SequenceNetwork(
            shape, config["n_layers"], config["diffusion_steps"], config["embedding_dropout_prob"]
        )
        return SequenceDenoiser(self.network)

    def build_scores(self, config: Any) -> ItemScores:
        """How items are scored."""
        return OutputScores(self.item_embedding, self.output)

    # Training

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Weighted mean squared distance of the estimate, and mean cross-entropy of the targets.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        batch = RaggedBatch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        target = interaction[self.POS_ITEM_ID]
        vector = self.item_embedding(target)
        draws, uniform = self._training_draws(batch, target, vector)
        history_noise = draws.per_token(0, 0.0, self.initial_noise, vector.dtype)
        # The draw of the reverse process's last step, which that has no use for.
        target_noise = self.initial_noise * draws.step(0)
        t, weight = self.step_sampler.sample(len(target), target.device, uniform)
        return self.losses(batch, target, t, (history_noise, target_noise), draws, weight)

    def losses(
        self,
        batch: RaggedBatch,
        target: Tensor,
        t: Tensor,
        initial: tuple[Tensor, Tensor],
        draws: Draws,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The two terms for given steps and draws.

        Parameters
        ----------
        batch : RaggedBatch
            The histories.
        target, t : Tensor
            int [B], the items and their 0-based steps.
        initial : tuple of Tensor
            What is added to the vectors of the histories [N, d] and of the targets [B, d] before the diffusion (Eq. 6).
        draws : Draws
            The noise of the diffusion.
        weight : Tensor
            [B], of the distances.
        """
        vector = self.item_embedding(target)
        h_0 = vector + initial[1]
        condition = self.denoiser.condition(self.embedded(batch) + initial[0], batch)
        estimate = self.denoiser(condition, self.process.q_sample(h_0, t, draws.start()), t, draws)
        # At the first step it is the vector that is meant (the last term of the bound).
        aim = torch.where((t == 0).unsqueeze(1), vector, h_0)
        n = len(target)
        distance, distances = self.distance(estimate, aim, target, weight.to(vector.dtype) / n, None)
        self.step_sampler.update(t, distances)
        classified = h_0 if self.rec_on == "noised" else estimate
        recommendation, _ = self.objective(classified, vector, target, vector.new_full((n,), 1 / n), None)
        return distance, recommendation

    def embedded(self, batch: RaggedBatch) -> Tensor:
        """Item and position vectors of the tokens, [N, d]."""
        assert self.position_embedding is not None
        return self.item_embedding(batch.items) + self.position_embedding(batch.age)


# Of the family's parameters those that act here: no lambda, no offset noise, an output layer with its own bias.
_NOT_HERE = {"lambda_uncertainty", "offset_noise", "offset_scale", "compile", "cosine_temperature", "repeat_bias"}

DIFFREC_DNR = ModelSpec(
    "DiffRecDNR",
    DiffRecDNR,
    "denoises the target at the end of its history by a Transformer, classifies by an output layer (Du et al. 2023)",
    rules={
        **{name: rule for name, rule in FAMILY_RULES.items() if name not in _NOT_HERE},
        "initial_variance": Rule("number", 0),
        "rec_on": Rule("str", choices=["noised", "predicted"]),
    },
    needs=FAMILY_NEEDS,
    of_training=FAMILY_OF_TRAINING | {"initial_variance", "rec_on"},
    check=check_family,
    trims_padding=True,
    loss="cross-entropy and squared errors",
    for_inference={"sampled_softmax": None},
    cannot={"sequences": "a pass has one noised target, which every position of the history sees"},
)

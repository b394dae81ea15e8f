"""DreamRec: Yang, Wu, Wang, Wang, Yuan, He 2023, "Generate What You Prefer: Reshaping Sequential Recommendation via
Guided Diffusion", NeurIPS.

With the losses of PreferDiff (Liu, Zhang, Hu, Qian, Chua 2025, "Preference Diffusion for Recommendation", ICLR) and of
TA-Rec's first stage (Mao, Wu, Hu, Yang, Ji, Wang 2025, "On Efficiency-Effectiveness Trade-off of Diffusion-based
Recommenders", NeurIPS).

Shapes: B batch, N tokens, d hidden size, T diffusion steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.config.needs import Need
from recbole_diffurec.config.rules import PROBABILITY, Rule
from recbole_diffurec.data.rows import ROW
from recbole_diffurec.diffusion.noise import Draws
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.blocks import BlockShape
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.encoder import TransformerEncoder
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.layers.step_embedding import StepEmbedding
from recbole_diffurec.models.denoiser import Denoiser, GuidedDenoiser, NetworkDenoiser
from recbole_diffurec.models.diffurec import DiffuRecFamily
from recbole_diffurec.models.diffurec_program import NoiseProgram
from recbole_diffurec.models.diffurec_rules import FAMILY_NEEDS, FAMILY_OF_TRAINING, FAMILY_RULES, check_family
from recbole_diffurec.models.spec import ModelSpec
from recbole_diffurec.runtime.gathering import from_other_ranks


def squared_errors(estimate: Tensor, x_0: Tensor) -> Tensor:
    """Mean squared differences of vectors [B, d], [B]."""
    return (estimate - x_0).square().mean(dim=-1)


def cosine_errors(estimate: Tensor, x_0: Tensor) -> Tensor:
    """(cos - 1)^2 of vectors [B, d], [B] (PreferDiff)."""
    return (F.cosine_similarity(estimate, x_0, dim=-1) - 1).square()


ERRORS = {"squared": squared_errors, "cosine": cosine_errors}


class VectorNetwork(nn.Module):
    """Causal blocks that make one vector g of a history, and layers over [x_s; g; d_s] that estimate the target.

    Parameters
    ----------
    shape : BlockShape
        Of the blocks, which have their norms before the sublayers.
    n_layers, denoiser_layers : int
        How many blocks, and how many layers estimate: 1 is linear, 2 has 2 d units between.
    dropout : float
        Probability, for what enters the blocks.
    """

    def __init__(self, shape: BlockShape, n_layers: int, denoiser_layers: int, dropout: float):
        super().__init__()
        size = shape.hidden_size
        self.input_dropout = Dropout(dropout)
        self.encoder = TransformerEncoder(shape, n_layers, "pre")
        self.nothing = nn.Parameter(torch.randn(size))  # g of no history
        widths = [3 * size, *[2 * size] * (denoiser_layers - 1), size]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.estimate = nn.Sequential(*layers[:-1])

    def encode(self, embeddings: Tensor, batch: RaggedBatch) -> Tensor:
        """g, [B, d], of the embeddings of a batch's tokens, [N, d]."""
        x = self.input_dropout(embeddings.to(self.nothing.dtype))
        return batch.restore(self.encoder(x, batch))

    def forward(self, x_s: Tensor, g: Tensor, steps: Tensor) -> Tensor:
        """The estimate of the target, [B, d] in the precision of ``x_s``; ``steps`` are d_s, [B, d] or [1, d]."""
        parts = [part.to(self.nothing.dtype) for part in (x_s, g, steps.expand_as(x_s))]
        return self.estimate(torch.cat(parts, dim=-1)).to(x_s.dtype)


@dataclass(frozen=True)
class Guidance:
    """What the denoiser knows of histories before any state x_s."""

    g: Tensor  # [B, d]
    steps: Tensor  # [T, d]


class VectorDenoiser(NetworkDenoiser):
    """The network as a ``Denoiser``, which draws nothing."""

    network: VectorNetwork

    def condition(self, embeddings: Tensor, batch: RaggedBatch) -> Guidance:
        """``Denoiser.condition``."""
        return Guidance(self.network.encode(embeddings, batch), self.step_embedding())

    def __call__(self, condition: Guidance, x_s: Tensor, t: Tensor | int, draws: Draws) -> Tensor:
        """``Denoiser.__call__``."""
        steps = condition.steps
        return self.network(x_s, condition.g, steps[t : t + 1] if isinstance(t, int) else steps.index_select(0, t))


class GuidedByVector(GuidedDenoiser):
    """Guidance where no history is another condition: ``nothing`` makes it of one from the denoiser."""

    def condition(self, embeddings: Tensor, batch: RaggedBatch) -> tuple[Any, Any]:
        """``Denoiser.condition``, with the history and without."""
        given = self.denoiser.condition(embeddings, batch)
        return given, self.nothing(given)


class DreamRec(DiffuRecFamily):
    """The target's vector is noised at full strength and estimated from it and from one vector of the history, g.

    The loss is the mean squared difference of estimate and target: no items are classified, and none are negatives.
    In a share of the rows, ``history_drop_prob``, a learned vector stands for g, so that inference can guide:
    x_0 = (1 + w) f(x_s, g, s) - w f(x_s, nothing, s) with w = ``guidance``. Items are scored by their inner product
    with what the reverse process ends in, or with ``ensemble_seeds`` by the mean softmax over that many chains.

    ``preference_weight`` b makes the loss PreferDiff's, (1 - b) l - b log sigmoid(-scale (l - l')), where l' is the
    error of the estimate of another vector, noised to the same step: the centroid of the other targets of the batch.
    With ``error: cosine`` l is (cos - 1)^2. ``consistency_weight`` adds the mean squared difference of the estimates
    at a step and at the one before, of the same noise (TA-Rec), so that one reverse step may do.

    Defaults: ``properties/model/DreamRec.yaml``.
    """

    program_class = NoiseProgram

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.error = ERRORS[config["error"]]
        self.guidance: float = config["guidance"]
        self.history_drop_prob: float = config["history_drop_prob"]
        self.preference_weight: float = config["preference_weight"]
        self.preference_scale: float = config["preference_scale"]
        self.consistency_weight: float = config["consistency_weight"]

    def build_denoiser(self, config: Any) -> Denoiser:
        """The network, and the embeddings of the steps."""
        shape = BlockShape.of(
            config, self.hidden_size, inner_size=config["inner_size"] or self.hidden_size, causal=True
        )
        self.network = VectorNetwork(
            shape, config["n_layers"], config["denoiser_layers"], config["embedding_dropout_prob"]
        )
        self.step_embedding = StepEmbedding(self.hidden_size, config["diffusion_steps"])
        return VectorDenoiser(self.network, self.step_embedding)

    def _initialise(self, init: str, std: float) -> None:
        """Draw item and position vectors from N(0, std^2); layers stay as PyTorch draws them."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()

    # Training

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        """The weighted mean of the rows' losses, and where it has a weight that of their consistency.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        batch = RaggedBatch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        target = interaction[self.POS_ITEM_ID]
        x_0 = self.item_embedding(target)
        draws, uniform = self._training_draws(batch, target, x_0)
        t, weight = self.step_sampler.sample(len(target), target.device, uniform)
        # Numbers of the reverse process's steps, for which a training has no other use.
        noise, other_noise, drop = draws.start(), draws.step(0), draws.step(1)[:, 0]
        dropped = drop < torch.special.ndtri(drop.new_tensor(self.history_drop_prob))
        condition = self.without_history(self.condition(batch, self.denoiser), dropped)

        def estimate(vectors: Tensor, step: Tensor, eps: Tensor) -> Tensor:
            return self.denoiser(condition, self.process.q_sample(vectors, step, eps), step, draws)

        estimated = estimate(x_0, t, noise)
        errors = self.error(estimated, x_0)
        losses = (1 - self.preference_weight) * errors
        others = self.other_targets(x_0, interaction) if self.preference_weight else None
        if others is not None:
            worse = errors - self.error(estimate(others, t, other_noise), others)
            losses = losses - self.preference_weight * F.logsigmoid(-self.preference_scale * worse)
        self.step_sampler.update(t, losses.detach())
        mean = weight.to(x_0.dtype) / len(target)
        if not self.consistency_weight:
            return ((mean * losses).sum(),)
        # The first step has none before it, and is compared with itself.
        changes = squared_errors(estimated, estimate(x_0, (t - 1).clamp(min=0), noise))
        return (mean * losses).sum(), self.consistency_weight * (mean * changes).sum()

    def without_history(self, condition: Guidance, dropped: Tensor) -> Guidance:
        """The condition with the vector of no history in the rows of ``dropped``, bool [B]."""
        nothing = self.network.nothing.to(condition.g.dtype)
        return replace(condition, g=torch.where(dropped.unsqueeze(1), nothing, condition.g))

    def other_targets(self, x_0: Tensor, interaction: Any) -> Tensor | None:
        """The centroid of the other rows' targets, [B, d]; None for a row that is alone.

        Parameters
        ----------
        x_0 : Tensor
            [B, d], the targets of this process's rows.
        interaction : Interaction
            The rows.
        """
        others = from_other_ranks(x_0, interaction[ROW])
        every = x_0 if others is None else torch.cat([x_0, others])
        return None if len(every) == 1 else (every.sum(dim=0) - x_0) / (len(every) - 1)

    # Inference

    def guided(self, denoiser: Denoiser) -> Denoiser:
        """Classifier-free guidance around the denoiser."""
        if not self.guidance:
            return denoiser

        def nothing(condition: Guidance) -> Guidance:
            return self.without_history(condition, torch.ones_like(condition.g[:, 0], dtype=torch.bool))

        return GuidedByVector(denoiser, nothing, self.guidance)


def check(values: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where parameters do not fit together."""
    check_family(values)
    if values["guidance"] and not values["history_drop_prob"]:
        raise UserError(
            f"guidance {values['guidance']} compares with estimates without a history, which history_drop_prob 0 "
            f"trains none of: train with --history_drop_prob=0.1 or so"
        )
    if values["preference_weight"] and values["train_batch_size"] == 1:
        raise UserError(
            f"preference_weight {values['preference_weight']} prefers a target to those of a batch's other rows, and "
            f"train_batch_size 1 has none: give --train_batch_size=2 or more"
        )


# Of the family's parameters those that act here: nothing is classified, and the noise enters at full strength.
_NOT_HERE = {
    *("lambda_uncertainty", "offset_noise", "offset_scale", "compile"),
    *("sampled_softmax", "negative_distribution", "repeat_bias"),
}

DREAMREC = ModelSpec(
    "DreamRec",
    DreamRec,
    "generates the next item's vector by guided diffusion at full strength, without negatives (Yang et al. 2023)",
    rules={
        **{name: rule for name, rule in FAMILY_RULES.items() if name not in _NOT_HERE},
        "denoiser_layers": Rule("int", 1, 2),
        "guidance": Rule("number", 0),
        "history_drop_prob": PROBABILITY,
        "error": Rule("str", choices=list(ERRORS)),
        "preference_weight": PROBABILITY,
        "preference_scale": Rule("number", 0, open_low=True),
        "consistency_weight": Rule("number", 0),
    },
    needs={
        **FAMILY_NEEDS,
        "preference_scale": (Need("preference_weight", bool, "--preference_weight=0.6"),),
        "consistency_weight": (
            *FAMILY_NEEDS["noise_schedule"],
            Need("diffusion_steps", lambda steps: steps > 1, "--diffusion_steps=500"),
        ),
    },
    of_training=FAMILY_OF_TRAINING
    | {"history_drop_prob", "error", "preference_weight", "preference_scale", "consistency_weight"},
    check=check,
    trims_padding=True,
    variants={
        "PreferDiff": {"error": "cosine", "preference_weight": 0.6},
        "TARecStage1": {"consistency_weight": 0.6, "sampling_steps": 1},
    },
    cannot={"sequences": "a row has one noised target"},
)

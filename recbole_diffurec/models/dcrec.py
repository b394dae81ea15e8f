"""After Huang, Chen, Wang et al., "Dual Conditional Diffusion Models for Sequential Recommendation", arXiv 2410.21967.

A continuous diffusion at full strength: the network works on the noised target, and asks the clean history.

Shapes: B batch, K draws of the noise for a row, N tokens, d hidden size, T diffusion steps, I items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.config.needs import Need
from recbole_diffurec.config.rules import COUNT, Rule
from recbole_diffurec.diffusion import schedules
from recbole_diffurec.diffusion.noise import Draws
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.adaptive import AdaptiveBlock
from recbole_diffurec.layers.blocks import LAYER_NORM_EPS, BlockShape
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.encoder import TransformerEncoder
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.layers.step_embedding import StepEmbedding
from recbole_diffurec.models.denoiser import Denoiser, NetworkDenoiser
from recbole_diffurec.models.diffurec import DiffuRecFamily
from recbole_diffurec.models.diffurec_program import NoiseProgram
from recbole_diffurec.models.diffurec_rules import (
    DRAWS_RULES,
    FAMILY_NEEDS,
    FAMILY_OF_TRAINING,
    FAMILY_RULES,
    check_family,
)
from recbole_diffurec.models.objectives import ClassifyingAndNear, Objective
from recbole_diffurec.models.spec import ModelSpec

DECAY_POWER = 9  # of the weight of the cross-entropy, as in the public code


def naming_snr(n_items: int, hidden_size: int) -> float:
    """The signal-to-noise ratio at which a noised vector names its item, 4 ln I / d.

    Of I random vectors of d coordinates with variance 1, scaled as x_s has them, the squared distances of x_s to the
    others exceed that to the right one by 2 d SNR in the mean, with a standard deviation of sqrt(8 d SNR); the least of
    I such numbers lies sqrt(2 ln I) of these below the mean.

    Parameters
    ----------
    n_items : int
        I.
    hidden_size : int
        d.
    """
    return 4 * math.log(max(2, n_items)) / hidden_size


@dataclass(frozen=True)
class KnownHistory:
    """What the denoiser knows of histories before any state x_s."""

    batch: RaggedBatch
    last: Tensor  # [B, d], the states of the most recent items, in sorted order
    keys_values: list[list[Tensor]]  # of each block
    steps: Tensor  # [T, d]
    row: Tensor  # int [B], the row of the given batch at each place of the sorted one


class ConditionalNetwork(nn.Module):
    """Blocks over the history, and adaptive ones on the noised target that ask it.

    Parameters
    ----------
    shape : BlockShape
        Of both.
    n_layers, n_history_layers : int
        How many work on the target, and on the history.
    dropout : float
        Probability, for what enters the history's blocks.
    """

    def __init__(self, shape: BlockShape, n_layers: int, n_history_layers: int, dropout: float):
        super().__init__()
        size = shape.hidden_size
        self.input_dropout = Dropout(dropout)
        self.encoder = TransformerEncoder(shape, n_history_layers, "pre")
        self.input = nn.Linear(size, size)
        self.blocks = nn.ModuleList(AdaptiveBlock(shape) for _ in range(n_layers))
        # Its results are as long as the vectors that are noised.
        self.output_norm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)

    def encode(self, embeddings: Tensor, batch: RaggedBatch, steps: Tensor) -> KnownHistory:
        """All that does not depend on the state.

        Parameters
        ----------
        embeddings : Tensor
            [N, d], of the tokens of ``batch``.
        batch : RaggedBatch
            The histories.
        steps : Tensor
            [T, d], the embeddings of all steps.
        """
        dtype = self.input.weight.dtype
        states = self.encoder(self.input_dropout(embeddings.to(dtype)), batch, last_only=False)
        keys_values = [cast(AdaptiveBlock, block).attention.keys_values(states, batch) for block in self.blocks]
        last = batch.last
        row = batch.row.index_select(0, last)
        return KnownHistory(batch, states.index_select(0, last), keys_values, steps.to(dtype), row)

    def forward(self, history: KnownHistory, x_s: Tensor, t: Tensor | int) -> Tensor:
        """The estimate of the target, [B, d] in the precision of ``x_s``.

        Parameters
        ----------
        history : KnownHistory
            From ``encode``.
        x_s : Tensor
            [B, d], the noised target.
        t : Tensor or int
            0-based steps, one for all or int [B].
        """
        batch, row, steps = history.batch, history.row, history.steps
        step = steps[t : t + 1] if isinstance(t, int) else steps.index_select(0, t.index_select(0, row))
        condition = F.silu(history.last + step)
        x = self.input(x_s.to(history.last.dtype).index_select(0, row))
        for block, keys_values in zip(self.blocks, history.keys_values):
            x = block(x, condition, keys_values, batch)
        return batch.restore(self.output_norm(x)).to(x_s.dtype)


class ConditionalDenoiser(NetworkDenoiser):
    """The network as a ``Denoiser``, which draws nothing."""

    network: ConditionalNetwork

    def condition(self, embeddings: Tensor, batch: RaggedBatch) -> KnownHistory:
        """``Denoiser.condition``."""
        return self.network.encode(embeddings, batch, self.step_embedding())

    def __call__(self, condition: KnownHistory, x_s: Tensor, t: Tensor | int, draws: Draws) -> Tensor:
        """``Denoiser.__call__``."""
        return self.network(condition, x_s, t)


class DCRec(DiffuRecFamily):
    """Blocks with adaptive norms work on the noised target and attend to the clean history, encoded once.

    What is noised is sqrt(d) times the unit vector of the target, which enters the network as it is. With
    ``noise_schedule: signal`` the signal-to-noise ratio of the steps falls evenly, in its logarithm, from
    ``signal_high`` to ``signal_low`` times 4 ln(items) / d. Above 1 a noised vector names its item and nothing is left
    to learn from the history; far below 1 it says nothing, and all that is left is a classifier.

    The loss is lambda CE + (1 - lambda) MSE, where lambda falls as in the public code: ``cross_entropy_weight``
    (1 - epoch / ``cross_entropy_decay``)^9 + ``cross_entropy_floor``.

    Defaults: ``properties/model/DCRec.yaml``.
    """

    program_class = NoiseProgram
    objective: ClassifyingAndNear

    def build_denoiser(self, config: Any) -> Denoiser:
        """The network, and the embeddings of the steps."""
        shape = BlockShape.of(config, self.hidden_size)
        self.position_embedding = nn.Embedding(self.max_seq_length, self.hidden_size)
        self.network = ConditionalNetwork(
            shape, config["n_layers"], config["n_history_layers"], config["embedding_dropout_prob"]
        )
        self.step_embedding = StepEmbedding(self.hidden_size, config["diffusion_steps"])
        return ConditionalDenoiser(self.network, self.step_embedding)

    def betas(self, config: Any) -> np.ndarray:
        """``DiffuRecFamily.betas``, and those of ``signal``."""
        if config["noise_schedule"] != "signal":
            return super().betas(config)
        unit = naming_snr(self.n_items - 1, self.hidden_size)
        return schedules.falling_snr(
            config["diffusion_steps"], unit * config["signal_high"], unit * config["signal_low"]
        )

    def build_objective(self, config: Any, dataset: Any) -> Objective:
        """Cross-entropy and distance."""
        self.cross_entropy_weight: float = config["cross_entropy_weight"]
        self.cross_entropy_floor: float = config["cross_entropy_floor"]
        self.cross_entropy_decay: int | None = config["cross_entropy_decay"]
        share = self.cross_entropy_at(0)
        return ClassifyingAndNear(super().build_objective(config, dataset), share, 1 - share)

    def _initialise(self, init: str, std: float) -> None:
        """As the family; the adaptive blocks change nothing at first."""
        super()._initialise(init, std)
        for block in self.network.blocks:
            nn.init.zeros_(cast(AdaptiveBlock, block).steering.weight)

    def cross_entropy_at(self, epoch: int) -> float:
        """lambda at a 0-based epoch."""
        if self.cross_entropy_decay is None:
            return self.cross_entropy_weight
        left = 1 - min(epoch / self.cross_entropy_decay, 1)
        return self.cross_entropy_weight * left**DECAY_POWER + self.cross_entropy_floor

    def begin_epoch(self, epoch: int) -> None:
        """lambda depends on the epoch."""
        super().begin_epoch(epoch)
        share = self.cross_entropy_at(epoch)
        self.objective.classifying_weight, self.objective.near_weight = share, 1 - share

    def targets(self, items: Tensor) -> Tensor:
        """sqrt(d) times the unit vectors of items int [B], [B, d]: of variance 1, as the noise."""
        return self.hidden_size**0.5 * F.normalize(self.item_embedding(items), dim=-1)


def check(values: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where parameters do not fit together."""
    known = {**values, "noise_schedule": "cosine"} if values["noise_schedule"] == "signal" else values
    check_family(known)
    if values["signal_low"] >= values["signal_high"]:
        raise UserError(
            f"signal_low must be below signal_high ({values['signal_high']}), got {values['signal_low']}: a later step "
            f"has more noise"
        )
    total = values["cross_entropy_weight"] + values["cross_entropy_floor"]
    if values["cross_entropy_decay"] is not None and total > 1:
        raise UserError(
            f"cross_entropy_weight and cross_entropy_floor must be 1 or less together, got {total:g}: the rest is the "
            f"weight of the distance"
        )


# Of the family's parameters those that act here: the noise enters at full strength, and positions always.
_NOT_HERE = {"lambda_uncertainty", "offset_noise", "offset_scale", "compile", "noise_schedule"}
SIGNALS = 1e-6, 1e6  # beyond which steps hardly differ from noise, or from the target
_SIGNAL = Need("noise_schedule", lambda schedule: schedule == "signal", "--noise_schedule=signal")

DCREC = ModelSpec(
    "DCRec",
    DCRec,
    "denoises the target at full strength by blocks that attend to the clean history (after Huang et al. 2024)",
    rules={
        **{name: rule for name, rule in FAMILY_RULES.items() if name not in _NOT_HERE},
        **DRAWS_RULES,
        "n_history_layers": COUNT,
        "noise_schedule": replace(FAMILY_RULES["noise_schedule"], choices=["signal", *schedules.SCHEDULES]),
        "signal_high": Rule("number", *SIGNALS),
        "signal_low": Rule("number", *SIGNALS),
        "cross_entropy_weight": Rule("number", 0, 1, open_low=True),
        "cross_entropy_floor": Rule("number", 0, 1, open_low=True),
        "cross_entropy_decay": Rule("int", 1, optional=True),
    },
    needs={
        **FAMILY_NEEDS,
        **dict.fromkeys(("signal_high", "signal_low"), (_SIGNAL,)),
        "cross_entropy_floor": (Need("cross_entropy_decay", bool, "--cross_entropy_decay=150"),),
    },
    of_training=FAMILY_OF_TRAINING | {"cross_entropy_weight", "cross_entropy_floor", "cross_entropy_decay"},
    check=check,
    method=True,
    trims_padding=True,
    for_inference={"sampled_softmax": None},
    cannot={"sequences": "a row has one noised target"},
)

"""VSAN: Zhao, Zhao, Zhao, Liu, Sheng, Zhou 2021, "Variational Self-attention Network for Sequential Recommendation",
ICDE.

No code of its authors was found, and no open text. This is a reconstruction from descriptions of the paper: causal
self-attention gives a Gaussian at each position, and more of it goes from draws of these to the scores. What is not
described is chosen here, so that figures of this model are those of a model like VSAN.

Shapes: B batch, N tokens, d hidden size, I items with padding row 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_diffurec.config.needs import Need
from recbole_diffurec.config.rules import COUNT, Rule
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.encoder import TransformerEncoder
from recbole_diffurec.layers.linear import Linear
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.models import sequential
from recbole_diffurec.models.scores import ItemScores, OutputScores
from recbole_diffurec.models.sequential import SequentialModel
from recbole_diffurec.models.spec import ModelSpec

# The log of a variance has no bounds by itself, and its exponential overflows.
LOG_VARIANCES = (-10.0, 10.0)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, I)) = 1/2 sum_d (variance + mean^2 - 1 - log variance).

    Parameters
    ----------
    mean, log_variance : Tensor
        [..., d].

    Returns
    -------
    Tensor
        [...].
    """
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(dim=-1)


class VSAN(SequentialModel):
    """A variational autoencoder of histories, self-attentive on both sides.

    Inference blocks over x_k = E[i_k] + P[k] give N(mu_k, sigma_k^2) at each position; generative blocks go from draws
    z_k = mu_k + sigma_k eps_k to a state, which an output layer of its own scores. All blocks are causal.

    L = CE + beta KL(N(mu, sigma^2) || N(0, I)), both of the last position; beta grows with the training steps from 0 to
    ``kl_weight``. Inference takes z = mu and draws nothing. The target is the next item alone, where the paper may take
    several.

    Defaults: ``properties/model/VSAN.yaml``.

    Attributes
    ----------
    n_trained : Tensor
        int, training steps that were taken; in the model's state, so that a resumed training goes on with its beta.
    """

    n_trained: Tensor

    def build_input(self, config: Any) -> None:
        """Positions and dropout; the first block's attention sees the sum as it is, without a norm."""
        self.build_positions(config)
        self.input_dropout = Dropout(config["hidden_dropout_prob"])

    def embed(self, batch: RaggedBatch) -> Tensor:
        """What enters the inference blocks, [N, d]."""
        return self.input_dropout(self.embed_items(batch.items) + self.position_embedding(self.positions(batch)))

    def build_encoder(self, config: Any, dataset: Any) -> None:
        """The two stacks of blocks, what lies between them, and the output layer."""
        shape = self.block_shape(config)
        self.inference = TransformerEncoder(shape, config["n_layers"], self.norm)
        self.mean = Linear(self.hidden_size, self.hidden_size)
        self.log_variance = Linear(self.hidden_size, self.hidden_size)
        self.generative = TransformerEncoder(shape, config["n_generative_layers"], self.norm)
        self.output = nn.Linear(self.hidden_size, self.n_items)
        self.kl_weight: float = config["kl_weight"]
        self.kl_anneal_steps: int = config["kl_anneal_steps"]
        self.register_buffer("n_trained", torch.zeros((), dtype=torch.int64))

    def build_scores(self, config: Any) -> ItemScores:
        """How items are scored."""
        return OutputScores(self.item_embedding, self.output)

    def posterior(self, x: Tensor, batch: RaggedBatch) -> tuple[Tensor, Tensor]:
        """mu and log sigma^2 of every token, [N, d] each.

        Parameters
        ----------
        x : Tensor
            [N, d], from ``embed``.
        batch : RaggedBatch
            The layout of the tokens.
        """
        g = self.inference(x, batch, last_only=False)
        return self.mean(g), self.log_variance(g).clamp(*LOG_VARIANCES)

    def encode(self, x: Tensor, batch: RaggedBatch) -> Tensor:
        """As in ``SequentialModel``, with z = mu."""
        mean, _ = self.posterior(x, batch)
        return self.generative(mean, batch)

    @property
    def beta(self) -> float:
        """The weight of the divergence in the next step."""
        steps = self.kl_anneal_steps
        return self.kl_weight * (min(1.0, int(self.n_trained) / steps) if steps else 1.0)

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy of the targets, and the weighted mean divergence.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        batch = RaggedBatch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        mean, log_variance = self.posterior(self.embed(batch), batch)
        states, divergences = self.drawn(mean, log_variance, torch.randn_like(mean), batch)
        beta = self.beta
        if self.training:
            self.n_trained += 1
        return self.recommendation_loss(states, interaction), beta * divergences.mean()

    def drawn(self, mean: Tensor, log_variance: Tensor, noise: Tensor, batch: RaggedBatch) -> tuple[Tensor, Tensor]:
        """States [B, d] for a draw of every z, and the divergences [B] at the last positions, in the given order.

        Parameters
        ----------
        mean, log_variance : Tensor
            [N, d], from ``posterior``.
        noise : Tensor
            [N, d] of N(0, 1).
        batch : RaggedBatch
            The layout of the tokens.
        """
        z = mean + (0.5 * log_variance).exp() * noise
        states = batch.restore(self.generative(z, batch)).to(self.item_embedding.weight.dtype)
        last = (x.index_select(0, batch.last).to(states.dtype) for x in (mean, log_variance))
        return states, batch.restore(divergence(*last))


VSAN_SPEC = ModelSpec(
    "VSAN",
    VSAN,
    "a variational autoencoder of histories by self-attention; reconstructed from descriptions (Zhao et al. 2021)",
    rules={
        **{name: rule for name, rule in sequential.RULES.items() if name not in ("cosine_temperature", "repeat_bias")},
        "n_generative_layers": COUNT,
        "kl_weight": Rule("number", 0),
        "kl_anneal_steps": Rule("int", 0),
    },
    needs={"kl_anneal_steps": (Need("kl_weight", bool, "--kl_weight=0.2"),)},
    of_training=sequential.OF_TRAINING | {"kl_weight", "kl_anneal_steps"},
    trims_padding=True,
    loss="cross-entropy and a divergence",
    for_inference=sequential.FOR_INFERENCE,
    cannot={"samples": "its inference takes the mean of the posterior and draws nothing"},
)

"""ACVAE: Xie, Liu, Zhang, Lu, Wang, Ding 2021, "Adversarial and Contrastive Variational Autoencoder for Sequential
Recommendation", WWW.

Shapes: B batch, N tokens, d size of an item vector, h size of a recurrent state, k size of a latent vector, I items
with padding row 0.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from recbole_diffurec.config.needs import Need
from recbole_diffurec.config.rules import COUNT, Rule
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.linear import Linear
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.layers.recurrent import GRU
from recbole_diffurec.models import sequential
from recbole_diffurec.models.scores import ItemScores, OutputScores
from recbole_diffurec.models.sequential import SequentialModel
from recbole_diffurec.models.spec import ModelSpec

KERNEL = 5  # items that the convolution sees: one and the four before it
LEAST_PROBABILITY = 1e-9  # inside logarithms


class LatentEncoder(nn.Module):
    """From item vectors to latent ones, which are draws of a distribution that has no formula.

    r = GRU(Dropout(e)); y = softplus(W_1 N(r)); y = softplus(conv(N(y))), causal; y = softplus(W_2 y);
    z = W_o Dropout(r + y), where N(v) = v + tanh(W_eps eps + b) is one layer, used twice.

    Parameters
    ----------
    size, rnn_size, latent_size : int
        d, h and k.
    dropout : float
        Probability.
    """

    def __init__(self, size: int, rnn_size: int, latent_size: int, dropout: float):
        super().__init__()
        self.gru = GRU(size, rnn_size)
        self.noise_layer = Linear(rnn_size, rnn_size)
        self.first = Linear(rnn_size, rnn_size)
        self.convolution = Linear(KERNEL * rnn_size, 2 * rnn_size)
        self.second = Linear(2 * rnn_size, rnn_size)
        self.output = Linear(rnn_size, latent_size)
        self.dropout = Dropout(dropout)

    def forward(self, e: Tensor, batch: RaggedBatch, noise: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """States r [N, h] and latent vectors z [N, k].

        Parameters
        ----------
        e : Tensor
            [N, d], item vectors.
        batch : RaggedBatch
            The layout of the tokens.
        noise : tuple of Tensor or None
            The two eps, [N, h] of N(0, 1); None takes zeros.
        """
        r = self.gru(self.dropout(e), batch)
        eps = noise or (torch.zeros_like(r), torch.zeros_like(r))
        y = F.softplus(self.first(self._noised(r, eps[0])))
        y = F.softplus(self.convolution(_with_earlier(self._noised(y, eps[1]), batch)))
        y = F.softplus(self.second(y))
        return r, self.output(self.dropout(r + y))

    def _noised(self, v: Tensor, eps: Tensor) -> Tensor:
        return v + torch.tanh(self.noise_layer(eps))


def _with_earlier(x: Tensor, batch: RaggedBatch) -> Tensor:
    """Each token with those before it in its history, zeros before the first: [N, KERNEL h], the token itself last."""
    position = batch.position.unsqueeze(1)
    n = x.shape[0]
    earlier = [F.pad(x, (0, 0, back, 0))[:n] * (position >= back) for back in range(KERNEL - 1, 0, -1)]
    return torch.cat([*earlier, x], dim=1)


class PriorAdversary(nn.Module):
    """T(x, z), which tells latent vectors of the encoder from draws of the prior N(0, I).

    At its best it is log q(z|x) / p(z), whose mean is the divergence of the posterior from the prior.

    Parameters
    ----------
    size, latent_size, hidden_size : int
        d, k, and the width between.
    dropout : float
        Probability.
    """

    def __init__(self, size: int, latent_size: int, hidden_size: int, dropout: float):
        super().__init__()
        self.input = Linear(size + latent_size, hidden_size)
        self.inner = nn.ModuleList(Linear(hidden_size, hidden_size) for _ in range(2))
        self.outer = nn.ModuleList(Linear(hidden_size, hidden_size) for _ in range(2))
        self.output = Linear(hidden_size, latent_size)
        self.dropout = Dropout(dropout)

    def forward(self, e: Tensor, z: Tensor) -> Tensor:
        """One number for each dimension of z, [n, k], from e [n, d] and z [n, k]."""
        u = self.dropout(self.input(torch.cat([e, z], dim=1)))
        for inner, outer in zip(self.inner, self.outer):
            u = F.elu(u + outer(inner(u)))
        return self.dropout(self.output(u)) + 0.5 * z.square()


class ContrastAdversary(nn.Module):
    """C(x, z), which tells a history's own latent vectors from those of another.

    Parameters
    ----------
    size, latent_size, hidden_size : int
        d, k, and the size of its states.
    """

    def __init__(self, size: int, latent_size: int, hidden_size: int):
        super().__init__()
        self.gru = GRU(size + latent_size, hidden_size)
        self.output = Linear(hidden_size, 1)

    def forward(self, e: Tensor, z: Tensor, batch: RaggedBatch) -> Tensor:
        """A logit for each token, [N], from e [N, d] and z [N, k]; or [m, N] for m sets of both."""
        return self.output(F.gelu(self.gru(torch.cat([e, z], dim=-1), batch))).squeeze(-1)


def of_next(z: Tensor, batch: RaggedBatch) -> Tensor:
    """For each token the latent vector of the next history of the batch, [N, k]: the one as long before its end.

    Of a shorter history they are repeated, so that nothing but the vectors themselves tells whose they are.

    Parameters
    ----------
    z : Tensor
        [N, k].
    batch : RaggedBatch
        The layout of the tokens.
    """
    last = batch.restore(batch.last)
    length = batch.restore(batch.position[batch.last]) + 1
    following = (batch.row + 1) % batch.n_sequences
    return z.index_select(0, last[following] - batch.age % length[following])


class ACVAE(SequentialModel):
    """A variational autoencoder of histories whose posterior has no formula: its divergence is learned by an adversary.

    L = CE + kl_weight mean_k T(x, z) + contrast_weight [softplus(-C(x, z)) + softplus(C(x, z'))]
    - mean_k [log sigmoid T(x, z) + log(1 - sigmoid T(x, z_p))], with z' of the next history of the batch and z_p of the
    prior. Every term is of the last position. In the second term T's own parameters are constants, in the last x and z
    are, so that one backward pass gives each player the gradients of its own loss, and one optimizer serves all; the
    public code has three. kl_weight grows from 0, since T is unbounded while it is untrained.

    Inference takes eps = 0 and draws nothing, where that of the public code is random.

    Defaults: ``properties/model/ACVAE.yaml``.

    Attributes
    ----------
    n_trained : Tensor
        int, training steps that were taken; in the state of the model, so that a resumed training goes on with its
        weights.
    """

    n_trained: Tensor

    def build_input(self, config: Any) -> None:
        """Nothing: a recurrent network knows the order, and drops out what it takes in."""

    def build_encoder(self, config: Any, dataset: Any) -> None:
        """Encoder, decoder and both adversaries."""
        size, latent_size, width = self.hidden_size, config["latent_size"], config["adversary_size"]
        dropout = config["hidden_dropout_prob"]
        self.rnn_size: int = config["rnn_size"]
        self.latent_encoder = LatentEncoder(size, self.rnn_size, latent_size, dropout)
        self.decoder = Linear(latent_size, size)
        self.output = nn.Linear(size, self.n_items)
        self.prior_adversary = PriorAdversary(size, latent_size, width, dropout)
        self.contrast_adversary = ContrastAdversary(size, latent_size, width)
        self.kl_weight: float = config["kl_weight"]
        self.kl_anneal_steps: int = config["kl_anneal_steps"]
        self.contrast_weight: float = config["contrast_weight"]
        self.register_buffer("n_trained", torch.zeros((), dtype=torch.int64))

    def build_scores(self, config: Any) -> ItemScores:
        """How items are scored."""
        return OutputScores(self.item_embedding, self.output)

    def _initialise(self, std: float) -> None:
        """Item vectors from N(0, std^2), the padding row zero; layers as PyTorch draws them."""
        nn.init.normal_(self.item_embedding.weight, std=std)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()

    # From histories to representations

    def embed(self, batch: RaggedBatch) -> Tensor:
        """Item vectors, [N, d]."""
        return self.embed_items(batch.items)

    def encode(self, x: Tensor, batch: RaggedBatch) -> Tensor:
        """tanh(W z + b) of the last z, [B, d] in sorted order, with eps = 0."""
        _, z = self.latent_encoder(x, batch, None)
        return self.decoded(z.index_select(0, batch.last))

    def decoded(self, z: Tensor) -> Tensor:
        """What the output layer scores, [n, d], of latent vectors [n, k]."""
        return torch.tanh(self.decoder(z))

    # Training

    def calculate_loss(self, interaction: Any) -> tuple[Tensor, ...]:
        """Cross-entropy, divergence, contrast and the adversary's own loss, means over the rows.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        batch = RaggedBatch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        e = self.embed(batch)
        eps = e.new_empty(2, len(e), self.rnn_size).normal_()
        _, z = self.latent_encoder(e, batch, (eps[0], eps[1]))
        last = batch.last
        states = batch.restore(self.decoded(z.index_select(0, last))).to(self.item_embedding.weight.dtype)
        kl_weight = self.annealed_kl_weight
        if self.training:
            self.n_trained += 1
        last_e, last_z = e.index_select(0, last), z.index_select(0, last)
        return (
            self.recommendation_loss(states, interaction),
            kl_weight * self.divergences(last_e, last_z).mean(),
            self.contrast_weight * self.contrasts(e, z, of_next(z, batch), batch).index_select(0, last).mean(),
            self.prior_losses(last_e, last_z, torch.randn_like(last_z)).mean(),
        )

    @property
    def annealed_kl_weight(self) -> float:
        """The weight of the divergence in the next step."""
        steps = self.kl_anneal_steps
        return self.kl_weight * (min(1.0, int(self.n_trained) / steps) if steps else 1.0)

    def divergences(self, e: Tensor, z: Tensor) -> Tensor:
        """mean_k T(x, z), [n], of which T's parameters learn nothing.

        Parameters
        ----------
        e, z : Tensor
            [n, d] and [n, k].
        """
        constants = {name: parameter.detach() for name, parameter in self.prior_adversary.named_parameters()}
        return functional_call(self.prior_adversary, constants, (e, z)).mean(dim=1)

    def contrasts(self, e: Tensor, z: Tensor, other: Tensor, batch: RaggedBatch) -> Tensor:
        """softplus(-C(x, z)) + softplus(C(x, z')), [N].

        Parameters
        ----------
        e, z, other : Tensor
            [N, d], [N, k] and [N, k], the last of other histories.
        batch : RaggedBatch
            The layout of the tokens.
        """
        own, others = self.contrast_adversary(e.expand(2, *e.shape), torch.stack([z, other]), batch)
        return F.softplus(-own) + F.softplus(others)

    def prior_losses(self, e: Tensor, z: Tensor, drawn: Tensor) -> Tensor:
        """The adversary's own loss, [n], of which it alone learns.

        Parameters
        ----------
        e, z, drawn : Tensor
            [n, d], [n, k] of the encoder, [n, k] of the prior.
        """
        e = e.detach()
        own, prior = (torch.sigmoid(self.prior_adversary(e, latent)) for latent in (z.detach(), drawn))
        return -((own + LEAST_PROBABILITY).log() + (1 - prior + LEAST_PROBABILITY).log()).mean(dim=1)


_UNROLLED = "its recurrent layer would be unrolled, for histories of one length"

ACVAE_SPEC = ModelSpec(
    "ACVAE",
    ACVAE,
    "a recurrent variational autoencoder with an adversary for its divergence and a contrast (Xie et al. 2021)",
    rules={
        "sampled_softmax": sequential.RULES["sampled_softmax"],
        "negative_distribution": sequential.RULES["negative_distribution"],
        "rnn_size": COUNT,
        "latent_size": COUNT,
        "adversary_size": COUNT,
        "kl_weight": Rule("number", 0),
        "kl_anneal_steps": Rule("int", 0),
        "contrast_weight": Rule("number", 0),
        "train_batch_size": Rule("int", 2),  # the next row is a row's pair
    },
    needs={"kl_anneal_steps": (Need("kl_weight", bool, "--kl_weight=0.05"),)},
    of_training=sequential.OF_TRAINING | {"kl_weight", "kl_anneal_steps", "contrast_weight"},
    trims_padding=True,
    for_inference=sequential.FOR_INFERENCE,
    cannot={
        "samples": "its inference takes the noise of its encoder as zero and draws nothing",
        "onnx": _UNROLLED,
        "torch": _UNROLLED,
        "nproc": "its contrast pairs each history with the next one of the batch, which another process may hold",
    },
)

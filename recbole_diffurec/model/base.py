"""What DiffuRec and DiffuRecSys share: RecBole's interface around the approximator and the diffusion process.

Li, Sun, Li 2023, "DiffuRec: A Diffusion Model for Sequential Recommendation", ACM TOIS 42; Zolghadr, Winther, Jeha
2024, "Generative Diffusion Models for Sequential Recommendations". Equation numbers are those of the latter.

Shapes: B batch, L padded history length, N tokens, d hidden size, T diffusion steps, I items with padding row 0.
"""

from __future__ import annotations

import math
from typing import Callable, Sequence

import torch
import torch.nn.functional as F
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_diffurec.diffusion import schedules
from recbole_diffurec.diffusion.noise import FreshNoise, NoiseTable, ReverseNoise, history_keys, uniforms
from recbole_diffurec.diffusion.process import DiffusionProcess
from recbole_diffurec.diffusion.step_samplers import STEP_SAMPLERS
from recbole_diffurec.layers.item_softmax import Additions, SampledCrossEntropy, full_cross_entropy
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.layers.step_embedding import StepEmbedding
from recbole_diffurec.model.approximator import Approximator, EncodedHistory

# Tokens that go through the network at once in inference: enough to keep a processor busy, few enough for its memory.
TOKENS_AT_ONCE = {"cpu": 2**13, "cuda": 2**20}
# What a unit of repeat_bias is worth where scores are inner products: Adam moves a parameter by a thousandth a step,
# and the scores of a history's items have some units to go.
REPEAT_SCALE = 10.0
OFFSET_NOISE_MEAN = 0.1  # the factor of delta_c in eps ~ N(0.1 delta_c, I), DiffuRecSys section 5.2


class DiffusionRecommender(SequentialRecommender):
    """A sequential recommender that reconstructs the target item by diffusion.

    Parameters
    ----------
    config : RecBole ``Config``; the keys are those of ``properties/model/*.yaml``.
    dataset : RecBole training dataset, for the number of items.
    """

    input_type = InputType.POINTWISE
    block_output_dropout = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.hidden_size = hidden_size = config["hidden_size"]
        self.lambda_uncertainty: float = config["lambda_uncertainty"]
        self.offset: float = OFFSET_NOISE_MEAN * config["offset_scale"] if config["offset_noise"] else 0.0
        self.reverse_start: str = config["reverse_start"]
        self.inference_seeds: list[int] = config["ensemble_seeds"] or [config["noise_seed"]]
        self.is_ensemble = bool(config["ensemble_seeds"])
        self.enable_amp = bool(config["enable_amp"])
        self.cosine_temperature: float | None = config["cosine_temperature"]
        self.keyed_noise: bool = config["keyed_noise"]
        self.training_seed: int = config["seed"]
        self.training_epoch = 0  # told by the trainer

        self.item_embedding = nn.Embedding(self.n_items, hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(self.max_seq_length, hidden_size) if config["use_position"] else None
        self.repeat_bias = nn.Parameter(torch.zeros(self.max_seq_length)) if config["repeat_bias"] else None
        self.approximator = Approximator(
            hidden_size=hidden_size,
            n_layers=config["n_layers"],
            n_heads=config["n_heads"],
            inner_size=config["inner_size"] or 4 * hidden_size,
            hidden_act=config["hidden_act"],
            embedding_dropout=config["embedding_dropout_prob"],
            hidden_dropout=config["hidden_dropout_prob"],
            attn_dropout=config["attn_dropout_prob"],
            cross_attention=config["cross_attention"],
            block_output_dropout=self.block_output_dropout,
            checkpointing=config["gradient_checkpointing"],
        )
        n_steps = config["diffusion_steps"]
        self.step_embedding = StepEmbedding(hidden_size, n_steps)
        self.process = DiffusionProcess(schedules.betas(config["noise_schedule"], n_steps), config["sampling_steps"])
        self.step_sampler = STEP_SAMPLERS[config["step_sampler"]](n_steps)
        self.noise_table = NoiseTable(hidden_size)
        self.cross_entropy: Callable[..., tuple[Tensor, Tensor]] = full_cross_entropy
        if config["sampled_softmax"]:
            counts = torch.bincount(dataset.inter_feat[self.ITEM_ID], minlength=self.n_items)
            self.cross_entropy = SampledCrossEntropy(counts, config["sampled_softmax"], config["negative_distribution"])
        self._initialise(config["init"], config["initializer_range"])
        if config["compile"]:
            self.approximator.compile_feed_forward()

    def _initialise(self, init: str, std: float) -> None:
        """Draw all weight matrices, the item table included, from one family; zero biases and the padding row."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                if init == "xavier_normal":
                    nn.init.xavier_normal_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()

    # Training

    def calculate_loss(self, interaction) -> Tensor:
        """Weighted mean cross-entropy of the reconstructed target over all items (Eqs. 24-25, Algorithm 1)."""
        history = self.encode(interaction)
        target = interaction[self.POS_ITEM_ID]
        x_0 = self.item_embedding(target)
        noise, uniform = self._training_draws(history, target, x_0)
        t, weight = self.step_sampler.sample(len(target), target.device, uniform)
        x_s = self.process.q_sample(x_0, t, noise.start() + self.offset)
        x_0_hat = self.approximator(history, x_s, self.step_embedding().index_select(0, t), noise.uncertainty(0))
        loss, losses = self.cross_entropy(
            self.query(x_0_hat),
            self.item_vectors(),
            target,
            weight.to(x_0.dtype) / len(target),
            self.repeat_scores(interaction[self.ITEM_SEQ]),
        )
        self.step_sampler.update(t, losses)
        return loss

    def _training_draws(
        self, history: EncodedHistory, target: Tensor, x_0: Tensor
    ) -> tuple[ReverseNoise, Tensor | None]:
        """The noise of a batch, and with ``keyed_noise`` the uniform numbers [B] to choose its steps by."""
        if not self.keyed_noise:
            fresh = FreshNoise(len(target), len(history.states), x_0.shape[-1], x_0, self.lambda_uncertainty)
            return fresh, None
        batch = history.batch
        keys = history_keys(batch.items, batch.age, batch.real, batch.row, len(target)) + target
        seed = self.training_seed + self.training_epoch * 2**32
        dtypes = x_0.dtype, history.states.dtype
        noise = self.noise_table.draws(seed, keys, batch.row, batch.age, self.lambda_uncertainty, dtypes)
        return noise, uniforms(keys, seed)

    def encode(self, interaction, approximator: Approximator | None = None) -> EncodedHistory:
        """The histories of a batch as far as they do not depend on the diffusion state.

        Parameters
        ----------
        approximator : the model's own, or its copy in bf16.
        """
        batch = RaggedBatch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        embeddings = self.item_embedding(batch.items)
        if self.position_embedding is not None:
            embeddings = embeddings + self.position_embedding(batch.age)
        return (approximator or self.approximator).encode(embeddings, batch)

    # Inference

    def full_sort_predict(self, interaction) -> Tensor:
        """Scores of all items, [B, I]; the padding row scores minus infinity.

        Rounding, x_0 . E^T (Eq. 26); with ``ensemble_seeds`` the mean over the seeds of the softmax (Algorithm 3).
        """
        reconstructions, added = self.reconstructions(interaction), self.repeat_scores(interaction[self.ITEM_SEQ])
        if not self.is_ensemble:
            return self.logits(reconstructions[0], added)
        scores = torch.stack([self.logits(x_0, added).softmax(dim=-1) for x_0 in reconstructions]).mean(dim=0)
        scores[:, 0] = -math.inf
        return scores

    def logits(self, x_0: Tensor, added: Additions | None) -> Tensor:
        """x_0 . E^T, [B, I], or their cosines over the temperature; minus infinity for the padding row.

        Parameters
        ----------
        x_0 : [B, d].
        added : ``repeat_scores`` of the histories.
        """
        logits = self.query(x_0) @ self.item_vectors().T
        if added is not None:
            logits.scatter_add_(1, added.items, added.scores.to(logits.dtype))
        logits[:, 0] = -math.inf
        return logits

    def repeat_scores(self, item_seq: Tensor) -> Additions | None:
        """What ``repeat_bias`` adds to the scores of a history's items; none without it.

        Scores by similarity rank a history's own items high; whether users come back to them, and how soon, is a
        property of the data, which is learned here: one number b for each place in the history, counted from the most
        recent, worth 10 b, or as a cosine with ``cosine_temperature`` b / tau.

        Parameters
        ----------
        item_seq : int [B, L], right-padded.
        """
        if self.repeat_bias is None:
            return None
        length = (item_seq != 0).sum(dim=1, keepdim=True)
        age = (length - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)).clamp(min=0)
        bias = self.repeat_bias.index_select(0, age.flatten()).view(age.shape)
        scale = REPEAT_SCALE if self.cosine_temperature is None else 1 / self.cosine_temperature
        return Additions(item_seq, scale * bias)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """What a query's inner product with is an item's score: E, or with ``cosine_temperature`` its unit rows.

        Parameters
        ----------
        items : int [n], whose vectors [n, d]; all of them, [I, d], by default.
        """
        vectors = self.item_embedding.weight if items is None else self.item_embedding(items)
        return vectors if self.cosine_temperature is None else F.normalize(vectors, dim=-1)

    def query(self, x_0: Tensor) -> Tensor:
        """What is scored against ``item_vectors``, [B, d]: x_0, or with ``cosine_temperature`` x_0 / (|x_0| tau)."""
        return x_0 if self.cosine_temperature is None else F.normalize(x_0, dim=-1) / self.cosine_temperature

    def predict(self, interaction) -> Tensor:
        """Scores of the given items, [B]; those of ``full_sort_predict``."""
        items = interaction[self.ITEM_ID]
        if self.is_ensemble:
            return self.full_sort_predict(interaction).gather(1, items.unsqueeze(1)).squeeze(1)
        (x_0,) = self.reconstructions(interaction)
        scores = (self.query(x_0) * self.item_vectors(items)).sum(dim=-1)
        added = self.repeat_scores(interaction[self.ITEM_SEQ])
        return scores if added is None else scores + added.of(items)

    def reconstructions(self, interaction, seeds: Sequence[int] | None = None) -> list[Tensor]:
        """x_0 [B, d] of the reverse process for each of ``seeds``, by default those of the configuration.

        Histories of like length go through the network together, ``TOKENS_AT_ONCE`` at a time. Under ``enable_amp`` it
        runs in bf16; the state between the steps and the scores stay in full precision: in bf16 thousands of items
        would tie.
        """
        approximator = self.approximator.in_bfloat16() if self.enable_amp else self.approximator
        seeds = self.inference_seeds if seeds is None else seeds
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        order = lengths.argsort(stable=True)
        at_once = TOKENS_AT_ONCE.get(item_seq.device.type, TOKENS_AT_ONCE["cuda"])
        sizes = [n for n in torch.bincount((lengths[order].cumsum(0) - 1) // at_once).tolist() if n]
        found: list[list[Tensor]] = [[] for _ in seeds]
        for rows in order.split(sizes):
            part = {self.ITEM_SEQ: item_seq[rows], self.ITEM_SEQ_LEN: lengths[rows]}
            history = self.encode(part, approximator)
            batch = history.batch
            keys = history_keys(batch.items, batch.age, batch.real, batch.row, batch.n_sequences)
            last_item = batch.restore(batch.items[batch.last])
            dtypes = self.item_embedding.weight.dtype, history.states.dtype
            for parts, seed in zip(found, seeds):
                noise = self.noise_table.draws(seed, keys, batch.row, batch.age, self.lambda_uncertainty, dtypes)
                parts.append(self.reverse(history, last_item, noise, approximator))
        return [torch.cat(parts)[order.argsort()] for parts in found]

    def reverse(
        self,
        history: EncodedHistory,
        last_item: Tensor,
        noise: ReverseNoise,
        approximator: Approximator | None = None,
    ) -> Tensor:
        """The reverse process (Algorithm 2), or with ``reverse_start: last_item`` one step from it (Algorithm 3).

        Parameters
        ----------
        history : from ``encode``.
        last_item : int [B], the most recent item of each history.
        noise : the source of x_T, eps' and lambda.
        approximator : the one that encoded the history.

        Returns
        -------
        x_0, [B, d].
        """
        step_embeddings = self.step_embedding()
        denoiser = approximator or self.approximator

        def denoise(x_s: Tensor, t: int) -> Tensor:
            return denoiser(history, x_s, step_embeddings[t : t + 1], noise.uncertainty(t))

        if self.reverse_start == "last_item":
            t = torch.full_like(last_item, self.process.n_steps - 1)
            x_T = self.process.q_sample(self.item_embedding(last_item), t, noise.start())
            return denoise(x_T, self.process.n_steps - 1)
        return self.process.p_sample_loop(noise.start(), denoise, noise.step)

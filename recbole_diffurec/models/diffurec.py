"""DiffuRec and DiffuRecSys: the target is reconstructed from the history and a noised target with an uncertain weight.

Li, Sun, Li 2023, "DiffuRec: A Diffusion Model for Sequential Recommendation", ACM TOIS 42; Zolghadr, Winther, Jeha
2024, "Generative Diffusion Models for Sequential Recommendations". Equation numbers are those of the latter.

Shapes: B batch, L padded history length, N tokens, d hidden size, T diffusion steps, I items with padding row 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_diffurec.diffusion import schedules
from recbole_diffurec.diffusion.noise import Draws, FreshNoise, NoiseTable, history_keys, uniforms
from recbole_diffurec.diffusion.process import DiffusionProcess
from recbole_diffurec.diffusion.samplers import SAMPLERS, Sampler
from recbole_diffurec.diffusion.step_samplers import STEP_SAMPLERS
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.blocks import BlockShape
from recbole_diffurec.layers.device import device_type
from recbole_diffurec.layers.item_softmax import SampledCrossEntropy, full_cross_entropy
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.layers.step_embedding import StepEmbedding
from recbole_diffurec.models import diffurec_rules as rules
from recbole_diffurec.models.approximator import Approximator
from recbole_diffurec.models.base import Program
from recbole_diffurec.models.cooccurrence import Cooccurrences
from recbole_diffurec.models.denoiser import Denoiser, UncertainDenoiser
from recbole_diffurec.models.diffurec_program import DiffuRecProgram
from recbole_diffurec.models.dropout_by_data import choose_dropout
from recbole_diffurec.models.interventions import Audited, ChangedDenoiser, NoDiffusion
from recbole_diffurec.models.objectives import Objective, cross_entropy_objective
from recbole_diffurec.models.scores import ItemScores, log_mean_softmax
from recbole_diffurec.models.spec import ModelSpec

# Tokens that go through the network at once in inference: enough to keep a processor busy, few enough for its memory.
TOKENS_AT_ONCE = {"cpu": 2**13, "cuda": 2**20}
OFFSET_NOISE_MEAN = 0.1  # the factor of delta_c in eps ~ N(0.1 delta_c, I), DiffuRecSys section 5.2
Drawn = tuple[Draws, Tensor | None]  # noise, and with ``keyed_noise`` what steps are chosen by


class DiffuRecFamily(Audited):
    """The family: a denoiser, a sampler, an objective and scores, each made by a method that a subclass may replace.

    Parameters
    ----------
    config : Config
        RecBole's; the keys are those of ``properties/model/DiffuRec.yaml``.
    dataset : Dataset
        RecBole's training data, for the number of items.
    """

    input_type = InputType.POINTWISE
    block_output_dropout = False
    program_class: type[Program] = DiffuRecProgram

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        choose_dropout(config, dataset, self.n_items)
        self.hidden_size: int = config["hidden_size"]
        self.offset: float = OFFSET_NOISE_MEAN * config["offset_scale"] if config["offset_noise"] else 0.0
        self.reverse_start: str = config["reverse_start"]
        self.inference_seeds: list[int] = config["ensemble_seeds"] or [config["noise_seed"]]
        self.is_ensemble = bool(config["ensemble_seeds"])
        self.enable_amp = bool(config["enable_amp"])
        self.keyed_noise: bool = config["keyed_noise"]
        self.training_seed: int = config["seed"]
        self.epoch = 0
        self.n_draws: int = config["draws"] or 1
        self._bfloat16_denoiser: Denoiser | None = None
        self.item_embedding = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
        longest = self.max_seq_length
        self.position_embedding = nn.Embedding(longest, self.hidden_size) if config["use_position"] else None
        self.repeat_bias = nn.Parameter(torch.zeros(longest)) if config["repeat_bias"] else None
        self.cooccurrences = Cooccurrences.of(config, dataset, self.n_items, self.ITEM_SEQ)
        self.denoiser = self.build_denoiser(config)
        self.noised_target: bool = config["noised_target"] is not False
        if not self.noised_target:
            # Beside the modules, of which a plugin's denoiser may be one.
            self.__dict__["denoiser"] = ChangedDenoiser(self.denoiser, NoDiffusion(config["diffusion_steps"]))
        self.process = DiffusionProcess(self.betas(config))
        self.sampler = self.build_sampler(config)
        self.step_sampler = STEP_SAMPLERS[config["step_sampler"]](config["diffusion_steps"])
        self.noise_table = NoiseTable(self.hidden_size)
        self.scores = self.build_scores(config)
        self.objective = self.build_objective(config, dataset)
        if self.n_draws > 1 and not getattr(self.objective, "takes_draws", False):
            raise UserError(
                f"draws must be 1: the objective of model '{config['model']}' takes one, got {self.n_draws}"
            )
        self._initialise(config["init"], config["initializer_range"])

    # Parts. The modules keep the names that checkpoints know them by.

    def build_denoiser(self, config: Any) -> Denoiser:
        """The network and how the noised target enters it; its modules become attributes of the model."""
        self.approximator = Approximator(
            BlockShape.of(
                config,
                self.hidden_size,
                cross_attention=config["cross_attention"],
                output_dropout=self.block_output_dropout,
            ),
            config["n_layers"],
            config["embedding_dropout_prob"],
        )
        if config["compile"]:
            self.approximator.compile_feed_forward()
        self.step_embedding = StepEmbedding(self.hidden_size, config["diffusion_steps"])
        return UncertainDenoiser(self.approximator, self.step_embedding, config["lambda_uncertainty"])

    def betas(self, config: Any) -> np.ndarray:
        """The variances of the noise, float64 [T]."""
        return schedules.betas(config["noise_schedule"], config["diffusion_steps"])

    def build_sampler(self, config: Any) -> Sampler:
        """The reverse process."""
        options = {"eta": config["ddim_eta"]} if config["sampler"] == "ddim" else {}
        return SAMPLERS[config["sampler"]](self.betas(config), config["sampling_steps"], **options)

    def build_scores(self, config: Any) -> ItemScores:
        """How items are scored."""
        return ItemScores(self.item_embedding, config["cosine_temperature"], self.repeat_bias, self.cooccurrences)

    def build_objective(self, config: Any, dataset: Any) -> Objective:
        """What the estimate of the target is trained for."""
        near_weight = config["squared_error_weight"]
        if not config["sampled_softmax"]:
            return cross_entropy_objective(self.scores, full_cross_entropy, near_weight)
        counts = torch.bincount(dataset.inter_feat[self.ITEM_ID], minlength=self.n_items)
        sampled = SampledCrossEntropy(counts, config["sampled_softmax"], config["negative_distribution"])
        return cross_entropy_objective(self.scores, sampled, near_weight)

    def _initialise(self, init: str, std: float) -> None:
        """Draw all weight matrices, the item table included, from one family; zero biases and the padding row."""
        if init == "pytorch":  # as they are: vectors from N(0, 1), as in the public codes, layers by their width
            return
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

    def begin_epoch(self, epoch: int) -> None:
        """Keyed noise depends on the epoch."""
        self.epoch = epoch

    def calculate_loss(self, interaction: Any) -> Tensor | tuple[Tensor, ...]:
        """Weighted mean loss of the reconstructed target (Algorithm 1), or of its ``draws`` reconstructions."""
        batch = RaggedBatch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        condition = self.condition(batch, self.denoiser)
        target = interaction[self.POS_ITEM_ID]
        x_0 = self.targets(target)
        estimates = []
        for draw in range(self.n_draws):
            draws, uniform = self._training_draws(batch, target, x_0, draw)
            t, weight = self.step_sampler.sample(len(target), target.device, uniform)
            x_s = self.process.q_sample(x_0, t, draws.start() + self.offset)
            estimates.append(self.denoiser(condition, x_s, t, draws))
        x_0_hat = estimates[0] if self.n_draws == 1 else torch.stack(estimates, dim=1)
        bias = self.scores.bias(interaction[self.ITEM_SEQ])
        loss, losses = self.objective(x_0_hat, x_0, target, weight.to(x_0.dtype) / len(target), bias)
        self.step_sampler.update(t, losses)  # which one that learns does where there is one draw, see ``check_family``
        return loss

    def _training_draws(self, batch: RaggedBatch, target: Tensor, x_0: Tensor, draw: int = 0) -> Drawn:
        """The noise of a batch, and with ``keyed_noise`` the uniform numbers [B] to choose its steps by."""
        if not self.keyed_noise:
            return FreshNoise(len(target), len(batch.items), x_0.shape[-1], x_0), None
        keys = history_keys(batch.items, batch.age, batch.real, batch.row, len(target)) + target
        seed = self.training_seed + self.epoch * 2**32 + draw * 2**52
        draws = self.noise_table.for_batch(seed, keys, batch.row, batch.age, x_0.dtype)
        return draws, uniforms(keys, seed)

    def targets(self, items: Tensor) -> Tensor:
        """What is noised of items int [B], [B, d]."""
        return self.item_embedding(items)

    def condition(self, batch: RaggedBatch, denoiser: Denoiser) -> Any:
        """The histories of a batch as far as they do not depend on the diffusion state.

        Parameters
        ----------
        batch : RaggedBatch
            The histories, packed or padded.
        denoiser : Denoiser
            The model's own, or its copy in bf16.
        """
        embeddings = self.item_embedding(batch.items)
        if self.position_embedding is not None:
            embeddings = embeddings + self.position_embedding(batch.age)
        return denoiser.condition(embeddings, batch)

    # Inference

    def train(self, mode: bool = True) -> DiffuRecFamily:
        """``nn.Module.train``; a copy of the network in bf16 is of weights that may change now."""
        self._bfloat16_denoiser = None
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """``nn.Module.load_state_dict``; a copy of the network in bf16 is of the weights before."""
        self._bfloat16_denoiser = None
        return super().load_state_dict(*args, **kwargs)

    def guided(self, denoiser: Denoiser) -> Denoiser:
        """What inference puts around a denoiser, the model's own or its copy in bf16: nothing here."""
        return denoiser

    def _denoiser_for_inference(self) -> Denoiser:
        """The denoiser, or under ``enable_amp`` its copy in bf16, made once between two changes of the weights."""
        if not self.enable_amp:
            return self.guided(self.denoiser)
        if self.training:
            return self.guided(self.denoiser.in_bfloat16())
        if self._bfloat16_denoiser is None:
            self._bfloat16_denoiser = self.denoiser.in_bfloat16()
        return self.guided(self._bfloat16_denoiser)

    @property
    def n_steps(self) -> int:
        """T."""
        return self.process.n_steps

    @property
    def sampling_steps(self) -> int:
        """How many of the steps inference visits."""
        return len(self.visits)

    @property
    def visits(self) -> list[int]:
        """The 0-based diffusion steps in the order in which inference visits them."""
        one = self.reverse_start == "last_item" or not self.noised_target
        return [self.n_steps - 1] if one else self.sampler.visits

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, [B, I]; the padding row scores minus infinity.

        Rounding, x_0 . E^T (Eq. 26); with several ``ensemble_seeds`` log of their mean softmax (Algorithm 3).
        """
        reconstructions, bias = self.reconstructions(interaction), self.scores.bias(interaction[self.ITEM_SEQ])
        scores = (self.scores.logits(x_0, bias) for x_0 in reconstructions)
        return next(scores) if len(reconstructions) == 1 else log_mean_softmax(scores)

    def predict(self, interaction: Any) -> Tensor:
        """Scores of the given items, [B]; those of ``full_sort_predict``."""
        items = interaction[self.ITEM_ID]
        if len(self.inference_seeds) > 1:
            return self.full_sort_predict(interaction).gather(1, items.unsqueeze(1)).squeeze(1)
        (x_0,) = self.reconstructions(interaction)
        return self.scores.of_items(x_0, items, self.scores.bias(interaction[self.ITEM_SEQ]))

    def logits(self, x_0: Tensor, item_seq: Tensor) -> Tensor:
        """Scores of all items for reconstructions x_0 [B, d] of histories int [B, L]: [B, I], padding at -inf."""
        return self.scores.logits(x_0, self.scores.bias(item_seq))

    def query(self, x_0: Tensor) -> Tensor:
        """``ItemScores.query``."""
        return self.scores.query(x_0)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """``ItemScores.vectors``."""
        return self.scores.vectors(items)

    def reconstructions(self, interaction: Any, seeds: Sequence[int] | None = None) -> list[Tensor]:
        """x_0 [B, d] of the reverse process for each of ``seeds``, by default those of the configuration.

        Histories of like length go through the network together, ``TOKENS_AT_ONCE`` at a time. Under ``enable_amp`` it
        runs in bf16; the state between the steps and the scores stay in full precision: in bf16 thousands of items
        would tie.
        """
        denoiser = self._denoiser_for_inference()
        seeds = self.inference_seeds if seeds is None else seeds
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        order = lengths.argsort(stable=True)
        at_once = TOKENS_AT_ONCE.get(device_type(item_seq), TOKENS_AT_ONCE["cuda"])
        sizes = [n for n in torch.bincount((lengths[order].cumsum(0) - 1) // at_once).tolist() if n]
        found: list[list[Tensor]] = [[] for _ in seeds]
        dtype = self.item_embedding.weight.dtype
        for rows in order.split(sizes):
            batch = RaggedBatch(item_seq[rows], lengths[rows])
            condition = self.condition(batch, denoiser)
            keys = history_keys(batch.items, batch.age, batch.real, batch.row, batch.n_sequences)
            last_item = batch.restore(batch.items[batch.last])
            for parts, seed in zip(found, seeds, strict=True):
                draws = self.noise_table.for_batch(seed, keys, batch.row, batch.age, dtype)
                parts.append(self.reverse(condition, last_item, draws, denoiser))
        return [torch.cat(parts)[order.argsort()] for parts in found]

    def reverse(self, condition: Any, last_item: Tensor, draws: Draws, denoiser: Denoiser) -> Tensor:
        """The reverse process (Algorithm 2), or with ``reverse_start: last_item`` one step from it (Algorithm 3).

        Parameters
        ----------
        condition : object
            From ``condition``.
        last_item : Tensor
            int [B], the most recent item of each history.
        draws : Draws
            The source of x_T, eps' and lambda.
        denoiser : Denoiser
            The one that made the condition.

        Returns
        -------
        Tensor
            x_0, [B, d].
        """

        def denoise(x_s: Tensor, t: int) -> Tensor:
            return denoiser(condition, x_s, t, draws)

        if self.reverse_start == "last_item":
            last = self.n_steps - 1
            x_T = self.process.q_sample(self.targets(last_item), torch.full_like(last_item, last), draws.start())
            return denoise(x_T, last)
        if not self.noised_target:
            return denoise(draws.start(), self.n_steps - 1)  # all steps would be alike
        return self.sampler.sample(draws.start(), denoise, draws.step)

    def with_sampling_steps(self, sampling_steps: int) -> DiffuRecFamily:
        """The same model, its weights shared, with another number of reverse steps, from 1 to T."""
        other = self.sharing_weights()
        other.sampler = self.sampler.with_steps(sampling_steps)
        return other

    def sharing_weights(self) -> DiffuRecFamily:
        """``DiffusionRecommender.sharing_weights``; a copy of the network in bf16 is made anew."""
        other = super().sharing_weights()
        other._bfloat16_denoiser = None
        return other

    def program(self) -> Program:
        """Inference as a function of tensors alone."""
        if self.is_ensemble:
            how = "give --ensemble_seeds= and average the softmax of the program's scores over several draws"
            raise UserError(f"ensemble_seeds cannot be exported: {how}")
        return self.program_class(self)


class DiffuRec(DiffuRecFamily):
    """The noised target is added to every history item; one more dropout follows each block, as in the public code.

    Defaults: ``properties/model/DiffuRec.yaml``.
    """

    block_output_dropout = True


class DiffuRecSys(DiffuRecFamily):
    """DiffuRec with cross-attention between history and noised target, and offset noise in training.

    Defaults: ``properties/model/DiffuRecSys.yaml``.
    """


_FAMILY: dict[str, Any] = {
    "rules": {**rules.FAMILY_RULES, **rules.DROPOUT_RULES, **rules.OBJECTIVE_RULES},
    "needs": rules.FAMILY_NEEDS,
    "of_training": rules.FAMILY_OF_TRAINING,
    "check": rules.check_family,
    "method": True,
    "trims_padding": True,
    # Sampled softmax is a matter of training, and wants the training data's counts.
    "for_inference": {"sampled_softmax": None},
    "loss": rules.loss_of,
    "cannot": {"sequences": "a pass has one noised target, which every position of the history sees"},
}

DIFFUREC = ModelSpec(
    "DiffuRec",
    DiffuRec,
    "reconstructs the next item from the history and a noised target added to it (Li, Sun, Li 2023)",
    **_FAMILY,
)
# The variants' names are those of the paper, section 6.3.
DIFFURECSYS = ModelSpec(
    "DiffuRecSys",
    DiffuRecSys,
    "DiffuRec with cross-attention and offset noise (Zolghadr, Winther, Jeha 2024)",
    variants={
        "V1": {"cross_attention": True, "offset_noise": False},
        "V2": {"cross_attention": True, "offset_noise": True},
    },
    **_FAMILY,
)

"""Two models of another package: one of its own kind, and one that replaces parts of DiffuRec's family."""

from pathlib import Path

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn

from recbole_diffurec import ModelSpec
from recbole_diffurec.config.rules import Rule
from recbole_diffurec.errors import UserError
from recbole_diffurec.models.diffurec import DiffuRecFamily
from recbole_diffurec.models.diffurec_rules import FAMILY_RULES, check_family
from recbole_diffurec.models.objectives import SquaredErrorObjective

HERE = Path(__file__).parent


class TinyMean(SequentialRecommender):
    """The weighted mean of a history's item vectors; no diffusion, and none of its parameters."""

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.decay = config["decay"]
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"], padding_idx=0)

    def forward(self, item_seq, lengths):
        age = lengths.unsqueeze(1) - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)
        weight = (self.decay**age) * (item_seq != 0)
        return (weight.unsqueeze(-1) * self.item_embedding(item_seq)).sum(dim=1) / weight.sum(dim=1, keepdim=True)

    def calculate_loss(self, interaction):
        logits = self.full_sort_predict(interaction)
        return nn.functional.cross_entropy(logits, interaction[self.POS_ITEM_ID])

    def predict(self, interaction):
        state = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return (state * self.item_embedding(interaction[self.ITEM_ID])).sum(dim=-1)

    def full_sort_predict(self, interaction):
        state = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return state @ self.item_embedding.weight.T


class AddedDenoiser:
    """A network that is not DiffuRec's: the mean of the history, and what is left of the state."""

    token_noise = (0.0, 1.0)

    def __init__(self, mix):
        self.mix = mix

    def condition(self, embeddings, batch):
        rows = embeddings.new_zeros(batch.n_sequences, embeddings.shape[1])
        real = 1.0 if batch.real is None else batch.real.to(embeddings).unsqueeze(1)
        return rows.index_add(0, batch.row, real * embeddings)

    def __call__(self, condition, x_s, t, draws):
        return self.mix(torch.cat([condition, x_s], dim=1))

    def in_bfloat16(self):
        return self


class TinyDiffusion(DiffuRecFamily):
    def build_denoiser(self, config):
        self.mix = nn.Linear(2 * self.hidden_size, self.hidden_size)
        return AddedDenoiser(self.mix)

    def build_objective(self, config, dataset):
        return SquaredErrorObjective()


def no_thirteen(values):
    if values["embedding_size"] == 13:
        raise UserError("embedding_size must not be 13, which brings bad luck: choose another")


TINY_MEAN = ModelSpec(
    "TinyMean",
    TinyMean,
    "the weighted mean of the history",
    defaults=HERE / "TinyMean.yaml",
    rules={"embedding_size": Rule("int", 1), "decay": Rule("number", 0, 1, open_low=True)},
    check=no_thirteen,
    trims_padding=True,
    cannot={"faiss": "nobody asked for it"},
)
TINY_DIFFUSION = ModelSpec(
    "TinyDiffusion",
    TinyDiffusion,
    "a diffusion model with parts of its own",
    defaults=HERE / "TinyDiffusion.yaml",
    rules=FAMILY_RULES,
    check=check_family,
    method=True,
    trims_padding=True,
    variants={"TinyNoise": {"sampler": "ddpm"}},
)

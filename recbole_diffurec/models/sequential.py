"""What sequential models that are trained by cross-entropy over the items share: RecBole's interface around an encoder.

Shapes: B batch, L padded history length, N tokens, d hidden size, I items with padding row 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_diffurec.config.rules import Rule
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.blocks import ACTIVATIONS, LAYER_NORM_EPS, BlockShape
from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.encoder import TransformerEncoder
from recbole_diffurec.layers.item_softmax import SampledCrossEntropy, full_cross_entropy
from recbole_diffurec.layers.ragged import PaddedBatch, RaggedBatch
from recbole_diffurec.models.base import ITEM_SEQ_INPUT, OUTPUTS, Exportable, Program
from recbole_diffurec.models.cooccurrence import Cooccurrences
from recbole_diffurec.models.scores import ItemScores

# What the parameters that ``SequentialModel`` reads may be, where no rule for all models says so.
RULES = {
    "hidden_act": Rule("str", choices=list(ACTIVATIONS)),
    "sampled_softmax": Rule("int", 1, optional=True),
    "negative_distribution": Rule("str", choices=["log_uniform", "uniform"]),
    "gradient_checkpointing": Rule("bool"),
    "cosine_temperature": Rule("number", 0, 1, open_low=True, optional=True),
    "repeat_bias": Rule("bool"),
}

# Of the parameters that models share, those that nothing reads once a model is trained.
OF_TRAINING = frozenset(
    {"hidden_dropout_prob", "attn_dropout_prob", "initializer_range", "gradient_checkpointing"}
    | {"sampled_softmax", "negative_distribution"}
)

# Sampled softmax is a matter of training, and wants the training data's counts.
FOR_INFERENCE = {"sampled_softmax": None}


def check_negatives(model: str, values: Mapping[str, Any], pairwise: str, without: str) -> None:
    """Raise ``UserError`` where ``loss_type`` and what stands for its negatives do not fit together.

    Parameters
    ----------
    model : str
        Its name.
    values : Mapping of str to object
        The parameters.
    pairwise : str
        The value of ``loss_type`` for a loss with drawn negatives; the other one is the cross-entropy over all items.
    without : str
        The options that ask for the cross-entropy.
    """
    if values["loss_type"] != pairwise:
        return
    negatives = values["train_neg_sample_args"]
    if not isinstance(negatives, dict) or negatives.get("distribution") not in ("uniform", "popularity"):
        raise UserError(
            f"train_neg_sample_args must say how {model}'s negatives are drawn, got {negatives!r}: leave it out, or "
            f"give {without}"
        )
    if values["sampled_softmax"]:
        raise UserError("sampled_softmax stands for the cross-entropy over all items: give --loss_type=CE with it")


class SequentialModel(SequentialRecommender, Exportable):
    """A history's items and their positions go through an encoder; its last state is scored against the items.

    As it is, the encoder is that of SASRec (Kang, McAuley 2018) in the form of RecBole: post-norm causal Transformer
    blocks over item and position vectors, x = Dropout(LayerNorm(E[i] + P[k])), positions counted from the oldest item.

    A model of this kind changes what it needs to: ``build_input`` and ``build_encoder`` for the layers, ``embed`` and
    ``encode`` for the way from items to states, ``build_scores`` for how items are scored, ``calculate_loss`` for what
    is learned.

    Parameters
    ----------
    config : RunConfig
        The keys are those of the model's file in ``properties/model``.
    dataset : SequenceDataset
        Training data, for the number of items.
    """

    input_type = InputType.POINTWISE
    uses_all_parameters = True  # in every step, so that several processes need not look for those without a gradient
    norm = "post"  # where the blocks have their norms, a key of ``layers.encoder.NORMS``

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.hidden_size: int = config["hidden_size"]
        self.item_embedding = nn.Embedding(self.n_items, self.hidden_size, padding_idx=0)
        self.build_input(config)
        self.repeat_bias = nn.Parameter(torch.zeros(self.max_seq_length)) if config["repeat_bias"] else None
        self.cooccurrences = Cooccurrences.of(config, dataset, self.n_items, self.ITEM_SEQ)
        self.build_encoder(config, dataset)
        self.scores = self.build_scores(config)
        self.cross_entropy: Callable[..., tuple[Tensor, Tensor]] = full_cross_entropy
        if config["sampled_softmax"]:
            counts = torch.bincount(dataset.inter_feat[self.ITEM_ID], minlength=self.n_items)
            self.cross_entropy = SampledCrossEntropy(counts, config["sampled_softmax"], config["negative_distribution"])
        self._initialise(config["initializer_range"])

    # Parts

    def build_input(self, config: Any) -> None:
        """Make what ``embed`` adds to the item vectors, and does to the sum."""
        self.build_positions(config)
        self.input_norm = nn.LayerNorm(self.hidden_size, eps=LAYER_NORM_EPS)
        self.input_dropout = Dropout(config["hidden_dropout_prob"])

    def build_positions(self, config: Any) -> None:
        """Make what tells the encoder where in a history an item is."""
        self.position_embedding = nn.Embedding(self.max_seq_length, self.hidden_size)

    def build_encoder(self, config: Any, dataset: Any) -> None:
        """Make the layers between embeddings and scores, before all weights are drawn.

        Parameters
        ----------
        config, dataset : object
            Those of the constructor.
        """
        self.encoder = TransformerEncoder(self.block_shape(config), config["n_layers"], self.norm)

    def block_shape(self, config: Any) -> BlockShape:
        """Sizes and switches of causal blocks."""
        return BlockShape.of(config, self.hidden_size, causal=True)

    def build_scores(self, config: Any) -> ItemScores:
        """How items are scored."""
        return ItemScores(self.item_embedding, config["cosine_temperature"], self.repeat_bias, self.cooccurrences)

    def _initialise(self, std: float) -> None:
        """Draw all weight matrices from N(0, std^2); zero biases and the padding row."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()

    # From histories to representations

    def represent(self, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """The representation of each history, [B, d], in the precision of the item vectors.

        Parameters
        ----------
        item_seq : Tensor
            int [B, L], right-padded.
        lengths : Tensor
            int [B], at least 1 each.
        """
        return self.states(RaggedBatch(item_seq, lengths))

    def states(self, batch: RaggedBatch) -> Tensor:
        """``represent`` for a batch of any layout."""
        return batch.restore(self.encode(self.embed(batch), batch)).to(self.item_embedding.weight.dtype)

    def embed(self, batch: RaggedBatch) -> Tensor:
        """What enters the encoder, [N, d]."""
        x = self.embed_items(batch.items) + self.position_embedding(self.positions(batch))
        return self.input_dropout(self.input_norm(x))

    def embed_items(self, items: Tensor) -> Tensor:
        """The vectors of the items in the histories, int [N] to [N, d]."""
        return self.item_embedding(items)

    def positions(self, batch: RaggedBatch) -> Tensor:
        """The rows of ``position_embedding`` for the tokens, int [N]; counted from the oldest item."""
        return batch.position

    def encode(self, x: Tensor, batch: RaggedBatch) -> Tensor:
        """The state of the most recent position of each history, [B, d] in sorted order, from ``x`` [N, d]."""
        return self.encoder(x, batch)

    # Training

    def calculate_loss(self, interaction: Any) -> Tensor | tuple[Tensor, ...]:
        """Mean cross-entropy of the targets; models with further terms return a tuple that is summed.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        states = self.represent(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return self.recommendation_loss(states, interaction)

    def recommendation_loss(self, states: Tensor, interaction: Any) -> Tensor:
        """Mean cross-entropy of the targets over all items, or as ``sampled_softmax`` estimates it.

        Parameters
        ----------
        states : Tensor
            [B, d], from ``represent``.
        interaction : Interaction
            The batch.
        """
        return self.mean_cross_entropy(states, interaction[self.POS_ITEM_ID], interaction[self.ITEM_SEQ])

    def mean_cross_entropy(self, states: Tensor, target: Tensor, item_seq: Tensor) -> Tensor:
        """``recommendation_loss`` of states [B, d] for targets int [B] after histories int [B, L]."""
        mean = states.new_full(target.shape, 1 / len(target))
        bias = self.scores.bias(item_seq)
        loss, _ = self.cross_entropy(self.scores.query(states), self.scores.vectors(), target, mean, bias)
        return loss

    # Inference

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items, [B, I]; the padding row scores minus infinity."""
        states = self.represent(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return self.scores.logits(states, self.scores.bias(interaction[self.ITEM_SEQ]))

    def predict(self, interaction: Any) -> Tensor:
        """Scores of the given items, [B]; those of ``full_sort_predict``."""
        states = self.represent(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        bias = self.scores.bias(interaction[self.ITEM_SEQ])
        return self.scores.of_items(states, interaction[self.ITEM_ID], bias)

    def queries(self, interaction: Any) -> Tensor:
        """``Exportable.queries``."""
        return self.scores.query(self.represent(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]))

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """``ItemScores.vectors``."""
        return self.scores.vectors(items)

    def program(self) -> Program:
        """Inference as a function of tensors alone."""
        return HistoryProgram(self)


class HistoryProgram(Program):
    """Inference of a sequential model, which has no random draws.

    Parameters
    ----------
    network : SequentialModel
        The model; its parts are used as they are.
    """

    inputs = ("item_seq",)

    def __init__(self, network: SequentialModel):
        super().__init__()
        self.network = network

    def forward(self, item_seq: Tensor) -> Tensor:
        """Scores of all items, [B, I], minus infinity for the padding row; or queries, [B, d].

        Parameters
        ----------
        item_seq : Tensor
            int64 [B, L], item numbers, the oldest first, 0 after the most recent.
        """
        scores, states = self.network.scores, self.network.states(PaddedBatch(item_seq))
        return scores.query(states) if self.output == "query" else scores.logits(states, scores.bias(item_seq))

    def for_queries(self) -> Program:
        """``Program.for_queries``."""
        return self._giving_queries()

    def draws(self, item_seq: Tensor, seed: int | None = None) -> dict[str, Tensor]:
        """``Program.draws``."""
        return {"item_seq": item_seq}

    def dynamic_shapes(self, rows: Any, length: Any) -> dict[str, dict[int, Any]]:
        """``Program.dynamic_shapes``."""
        return {"item_seq": {0: rows, 1: length}}

    def describe(self) -> dict[str, Any]:
        """``Program.describe``."""
        return {"inputs": {"item_seq": ITEM_SEQ_INPUT}, "outputs": {self.output: OUTPUTS[self.output]}}

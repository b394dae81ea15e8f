"""``repeat_bias`` for RecBole's own sequential models, so that comparisons without masking are fair to them.

Line numbers are those of recbole 1.2.0 and 1.2.1. Shapes: B batch, L padded history length, I items with padding.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import recbole
import torch
from torch import Tensor, nn

from recbole_diffurec.data.rows import FIRST_TARGET, prefixes, target_places
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.item_softmax import LogitBias
from recbole_diffurec.models.scores import REPEAT_SCALE, bias_by_age

SEQUENTIAL = Path(recbole.__file__).parent / "model" / "sequential_recommender"


def may_learn_repeats(model: str) -> bool:
    """Whether a model of RecBole is a sequential one, which ``repeat_bias`` is a parameter of."""
    return (SEQUENTIAL / f"{model.lower()}.py").is_file()


class BiasedCrossEntropy(nn.Module):
    """A model's cross-entropy over all items, of its logits plus what the batch's histories add to them."""

    def __init__(self, inner: nn.CrossEntropyLoss):
        super().__init__()
        self.inner = inner
        self.bias: LogitBias | None = None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """As the loss within, for logits [B, I] and targets int [B]."""
        assert self.bias is not None
        return self.inner(self.bias.added_to(logits), target)


@functools.cache
def with_repeat_bias(model: type) -> type:
    """A model of RecBole whose scores have a learned part for the items of a history, by their place in it.

    The part is that of ``models.scores``, added to the logits wherever the model makes scores of all items: in its
    cross-entropy, which all of them keep as ``loss_fct`` and call with the logits (sasrec.py:132), and in its
    predictions.

    Parameters
    ----------
    model : type
        A subclass of RecBole's ``SequentialRecommender``.

    Raises
    ------
    UserError
        From the constructor: the model's loss is another.
    """

    class WithRepeatBias(model):
        def __init__(self, config: Any, dataset: Any):
            super().__init__(config, dataset)
            loss = getattr(self, "loss_fct", None)
            if not isinstance(loss, nn.CrossEntropyLoss):
                raise UserError(
                    f"repeat_bias is learned by a cross-entropy over all items, and {model.__name__} is trained by "
                    "another loss with these parameters: give --loss_type=CE where the model has it, or leave "
                    "repeat_bias out"
                )
            self.loss_fct = BiasedCrossEntropy(loss)
            self.repeat_bias = nn.Parameter(torch.zeros(self.max_seq_length))

        def _bias(self, interaction: Any) -> LogitBias:
            item_seq = interaction[self.ITEM_SEQ]
            if FIRST_TARGET in interaction:  # which only training batches have
                lengths, n_targets = interaction[self.ITEM_SEQ_LEN], len(interaction[self.ITEM_ID])
                item_seq = prefixes(item_seq, *target_places(interaction[FIRST_TARGET], lengths, n_targets))
            return bias_by_age(self.repeat_bias, item_seq, REPEAT_SCALE)

        def calculate_loss(self, interaction: Any) -> Any:
            self.loss_fct.bias = self._bias(interaction)
            try:
                return super().calculate_loss(interaction)
            finally:
                self.loss_fct.bias = None

        def full_sort_predict(self, interaction: Any) -> Tensor:
            scores = super().full_sort_predict(interaction)
            return self._bias(interaction).added_to(scores.view(len(interaction), -1))

        def predict(self, interaction: Any) -> Tensor:
            return super().predict(interaction) + self._bias(interaction).gather(interaction[self.ITEM_ID])

    WithRepeatBias.__name__ = WithRepeatBias.__qualname__ = model.__name__
    return WithRepeatBias

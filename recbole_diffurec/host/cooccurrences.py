"""``cooccurrence_weight`` for RecBole's own sequential models, so that comparisons are fair to them."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.repeats import BiasedCrossEntropy
from recbole_diffurec.layers.item_softmax import LogitBias
from recbole_diffurec.models.cooccurrence import Cooccurrences


@functools.cache
def with_cooccurrences(model: type) -> type:
    """A model of RecBole whose predictions have what ``models.cooccurrence`` adds; its loss stays as it is.

    Parameters
    ----------
    model : type
        A subclass of RecBole's ``SequentialRecommender``.

    Raises
    ------
    UserError
        From the constructor: the model's scores are no logarithms of probabilities, to which alone counts can be added.
    """

    class WithCooccurrences(model):
        def __init__(self, config: Any, dataset: Any):
            super().__init__(config, dataset)
            if not _learns_by_cross_entropy(self):
                raise UserError(
                    f"cooccurrence_weight adds to the logarithms of probabilities that a cross-entropy over all items "
                    f"makes of scores, and {model.__name__} is trained by another loss with these parameters: give "
                    f"--loss_type=CE where the model has it, or leave cooccurrence_weight out"
                )
            self.cooccurrences: Any = Cooccurrences.of(config, dataset, self.n_items, self.ITEM_SEQ)

        def _added(self, interaction: Any) -> LogitBias:
            return self.cooccurrences(interaction[self.ITEM_SEQ])

        def full_sort_predict(self, interaction: Any) -> Tensor:
            scores = super().full_sort_predict(interaction)
            return self._added(interaction).added_to(scores.view(len(interaction), -1))

        def predict(self, interaction: Any) -> Tensor:
            return super().predict(interaction) + self._added(interaction).gather(interaction[self.ITEM_ID])

    WithCooccurrences.__name__ = WithCooccurrences.__qualname__ = model.__name__
    return WithCooccurrences


def _learns_by_cross_entropy(model: Any) -> bool:
    """Whether the softmax of a model's scores is what it was trained for."""
    if hasattr(model, "loss_fct"):
        return isinstance(model.loss_fct, (nn.CrossEntropyLoss, BiasedCrossEntropy))
    return getattr(model, "loss_type", None) == "CE"  # BERT4Rec makes its loss anew for each batch

"""``cooccurrence_weight`` for RecBole's own sequential models, so that comparisons are fair to them."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from recbole_diffurec.layers.item_softmax import LogitBias
from recbole_diffurec.models.cooccurrence import Cooccurrences


@functools.cache
def with_cooccurrences(model: type) -> type:
    """A model of RecBole whose predictions have what ``models.cooccurrence`` adds; its loss stays as it is.

    Parameters
    ----------
    model : type
        A subclass of RecBole's ``SequentialRecommender``.
    """

    class WithCooccurrences(model):
        def __init__(self, config: Any, dataset: Any):
            super().__init__(config, dataset)
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

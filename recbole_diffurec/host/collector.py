"""What RecBole's trainers collect for metrics of lists: what was recommended, and how popular it was in training."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

__all__ = ["list_collector"]


def list_collector(host: Any) -> type:
    """RecBole's collector with the true popularity of the items, and without items that no list can hold.

    RecBole counts an item of a sequential data set where it is the target of a row, which leaves out what begins a
    sequence. And of a user with fewer than k items to rank it takes others, at a score of minus infinity; their places
    are 0 here.

    Parameters
    ----------
    host : type
        RecBole's class, given rather than imported: its module asks for this one while it is imported.
    """

    class ListCollector(host):
        training_data: Any = None  # the data set that was trained on, once that is known

        def data_collect(self, train_data: Any) -> None:
            # Loaders of knowledge-aware models, which are made of two, have no ``dataset``.
            self.training_data = train_data.dataset if hasattr(train_data, "dataset") else train_data._dataset
            super().data_collect(SimpleNamespace(dataset=self.training_data))
            if self.register.need("data.count_items") and hasattr(self.training_data, "popularity"):
                counts = self.training_data.popularity
                popular = Counter({int(i): int(counts[i]) for i in np.flatnonzero(counts)})
                self.data_struct.set("data.count_items", popular)

        def eval_batch_collect(
            self, scores_tensor: torch.Tensor, interaction: Any, positive_u: torch.Tensor, positive_i: torch.Tensor
        ) -> None:
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
            if self.register.need("rec.items"):
                lists = self.data_struct.get("rec.items")[-len(scores_tensor) :]
                nothing = scores_tensor.gather(1, lists.to(scores_tensor.device)) == -torch.inf
                lists[nothing.cpu()] = 0

    return ListCollector

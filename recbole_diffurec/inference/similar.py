"""Which items are like others, by the angles between the vectors by which a model knows its items.

Shapes: I items with padding row 0, d size of an item's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.data.histories import as_ids
from recbole_diffurec.errors import UserError
from recbole_diffurec.inference.items import ItemTable
from recbole_diffurec.inference.lists import ListOptions

__all__ = ["SimilarItems", "Similarity"]

_AT_ONCE = 256  # items whose cosines with all others are in memory together


class Similarity:
    """Cosines between the items of a model.

    Parameters
    ----------
    network : torch.nn.Module
        Has a table ``item_embedding``, which models of this package and most sequential ones of RecBole have.
    model : str
        What messages call it.
    n_items : int
        I; a table may have further rows, such as BERT4Rec's for a mask.

    Raises
    ------
    UserError
        The model has no such table.
    """

    def __init__(self, network: Any, model: str, n_items: int):
        table = getattr(network, "item_embedding", None)
        if not isinstance(table, nn.Embedding) or table.num_embeddings < n_items:
            raise UserError(
                f"model '{model}' has no table of item vectors, by which items would be compared: use a model that has "
                f"one, such as DiffuRec or SASRec"
            )
        self._vectors = F.normalize(table.weight.detach()[:n_items].float().cpu(), dim=-1)

    def nearest(self, items: Sequence[int], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` items that are most like each of ``items``, itself left out, and their cosines.

        Parameters
        ----------
        items : Sequence of int
            Numbers of n items.
        k : int
            At most I - 2 are found.

        Returns
        -------
        tuple of numpy.ndarray
            int and float32 [n, k], the most alike first.
        """
        found: list[Tensor] = [torch.zeros(2, 0, min(k, len(self._vectors) - 2))]
        for start in range(0, len(items), _AT_ONCE):
            own = torch.tensor(items[start : start + _AT_ONCE])
            cosines = self._vectors[own] @ self._vectors.T
            cosines[:, 0] = -torch.inf
            cosines[torch.arange(len(own)), own] = -torch.inf
            found.append(torch.stack([part.double() for part in cosines.topk(min(k, len(self._vectors) - 2))]))
        cosines, numbers = torch.cat(found, dim=1)
        return numbers.long().numpy(), cosines.float().numpy()

    def in_histories(
        self, histories: Sequence[Sequence[int]], rows: np.ndarray, items: Sequence[int], n: int
    ) -> list[list[int]]:
        """For each item the ``n`` items of a history that are most like it, the most alike first.

        Parameters
        ----------
        histories : Sequence of (Sequence of int)
            Numbers of items; one without any explains nothing.
        rows : np.ndarray
            int [number of items], which history each item is to be explained by.
        items : Sequence of int
            Numbers of the items.
        n : int
            At most so many.
        """
        asked = torch.tensor(items)
        found: list[list[int]] = [[] for _ in items]
        order = np.argsort(rows, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1):
            read = list(dict.fromkeys(histories[rows[places[0]]])) if len(places) else []
            if not read:
                continue
            cosines = self._vectors[asked[places]] @ self._vectors[torch.tensor(read)].T
            for place, nearest in zip(places, cosines.topk(min(n, len(read))).indices.tolist()):
                found[place] = [read[item] for item in nearest]
        return found


class SimilarItems:
    """What a ``Recommender`` tells of items by their vectors alone."""

    # Of the class that this one is mixed into.
    network: Any
    config: Any
    items: np.ndarray
    about_items: ItemTable
    _number: dict[str, int]
    like: Callable[[str], str | None]
    _with_columns: Callable[..., pd.DataFrame]

    def similar(self, items: Sequence[Any], k: int = 10, columns: Sequence[str] = ()) -> pd.DataFrame:
        """The ``k`` items that are most like each of some, by the cosine of the vectors by which the model knows them.

        Parameters
        ----------
        items : Sequence of object
            Ids.
        k : int, optional
            Length of the lists.
        columns : Sequence of str, optional
            As for ``recommend``.

        Returns
        -------
        pd.DataFrame
            With ``similar_to``, ``rank`` (from 1), ``item_id``, ``cosine``, and the columns.

        Raises
        ------
        UserError
            The model does not know an item, or has no vectors of items.
        """
        ListOptions(k)  # refuses what is no length
        own = ("similar_to", "rank", "item_id", "cosine")
        self.about_items.check(columns, taken=own)
        ids = as_ids(items, "items")
        unknown = next((item for item in ids if item not in self._number), None)
        if unknown is not None:
            hint = f", which knows {self.like(unknown)!r}" if self.like(unknown) else ": give ids of its training data"
            raise UserError(f"item {unknown!r} is unknown to the model{hint}")
        similarity = Similarity(self.network, self.config["model"], len(self.items))
        numbers, cosines = similarity.nearest([self._number[item] for item in ids], k)
        n, width = numbers.shape
        ranks = np.tile(np.arange(1, width + 1), n)
        cells = (np.repeat(ids, width), ranks, self.items[numbers.ravel()], cosines.ravel())
        return self._with_columns(pd.DataFrame(dict(zip(own, cells))), columns)

"""Lists of the next several items, drawn together from a model that knows what goes with what.

Shapes: S samples, B histories, n items of a list, I items with padding row 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from recbole_diffurec.errors import UserError
from recbole_diffurec.inference.items import ItemTable
from recbole_diffurec.inference.lists import ListOptions
from recbole_diffurec.models.base import ListSampler

COLUMNS = ("user_id", "list", "rank", "item_id", "probability", "frequency", "popular")


class NextLists:
    """What a ``Recommender`` does beside lists of single items."""

    # Of the class that this one is mixed into.
    network: Any
    config: Any
    items: np.ndarray
    popularity: Tensor
    about_items: ItemTable
    _named_histories: Callable[..., Any]
    _allowed: Callable[..., Tensor | None]
    _numbers: Callable[..., list[list[int]]]
    _interaction: Callable[..., Any]
    _with_columns: Callable[..., pd.DataFrame]

    def next_lists(
        self,
        sequences: Sequence[Sequence[Any]] | pd.DataFrame,
        n: int | None = None,
        samples: int = 20,
        k: int = 20,
        exclude_seen: bool = False,
        candidates: Iterable[Any] | None = None,
        users: Sequence[Any] | None = None,
        columns: Sequence[str] = (),
    ) -> pd.DataFrame:
        """The next n items after each history, together: such as a playlist, a basket, or a session to come.

        ``recommend`` ranks items each for itself; here an item of a list depends on the others. No list holds an item
        twice. A history without any known item gets one list of the most popular items.

        Parameters
        ----------
        sequences : Sequence of Sequence of object or pd.DataFrame
            As for ``recommend``.
        n : int, optional
            Items of a list, at most the model's ``n_slots``, which is the default.
        samples : int, optional
            S, how many lists are drawn for each history.
        k : int, optional
            How many different ones of them are given, the most probable first.
        exclude_seen : bool, optional
            As for ``recommend``.
        candidates, users, columns : optional
            As for ``recommend``.

        Returns
        -------
        pd.DataFrame
            With ``user_id``, ``list`` (from 1), ``rank`` (from 1, the place in the list), ``item_id``, ``probability``
            (of the whole list, among all that there are), ``frequency`` (the share of the samples that hold the item),
            ``popular``. A list is shorter where fewer items are left to choose from.

        Raises
        ------
        UserError
            The model knows the next item alone, an argument is out of range, or no candidate or column is known.
        """
        n = self._items_of_a_list(n)
        self.about_items.check(columns, taken=COLUMNS)
        options = ListOptions(k, exclude_seen, candidates, samples)
        sequences, users = self._named_histories(sequences, users)
        allowed = self._allowed(candidates)
        frames = [] if len(sequences) else [pd.DataFrame({name: [] for name in COLUMNS})]
        size = self.config["eval_batch_size"]
        for start in range(0, len(sequences), size):
            part = slice(start, start + size)
            of_users = self._next_of_batch(sequences[part], n, options, allowed)
            frames += [table.assign(user_id=user)[list(COLUMNS)] for user, table in zip(users[part], of_users)]
        return self._with_columns(pd.concat(frames, ignore_index=True), columns)

    def _items_of_a_list(self, n: int | None) -> int:
        network = self.network
        if not isinstance(network, ListSampler):
            raise UserError(
                f"model '{self.config['model']}' knows the next item alone and draws no lists of several: leave out "
                f"--next"
            )
        n = network.n_slots if n is None else n
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= network.n_slots:
            longer = isinstance(n, (int, np.integer)) and n > network.n_slots
            raise UserError(
                f"next must be an integer from 1 to the {network.n_slots} slots that the model was trained with, got "
                f"{n!r}: " + ("for longer lists train with a larger --n_slots" if longer else "give one of these")
            )
        return int(n)

    @torch.no_grad()
    def _next_of_batch(
        self, sequences: Sequence[Sequence[Any]], n: int, options: ListOptions, allowed: Tensor | None
    ) -> list[pd.DataFrame]:
        """The lists after each history, without the column of its user."""
        histories = self._numbers(sequences)
        choice = torch.ones(len(histories), len(self.items), dtype=torch.bool)
        choice[:, 0] = False
        if allowed is not None:
            choice &= allowed
        if options.exclude_seen:
            for row, history in enumerate(histories):
                choice[row, history] = False
        tables = [self._most_popular(n, of_row) for of_row in choice]
        known = [row for row, history in enumerate(histories) if history]
        if known:
            batch = self._interaction([histories[row] for row in known])
            device = batch[self.network.ITEM_SEQ].device
            drawn = self.network.sample_lists(batch, n, range(options.samples or 1), choice[known].to(device))
            items, log_probability = drawn.items.cpu().numpy(), drawn.log_probability.double().cpu().numpy()
            for place, row in enumerate(known):
                tables[row] = self._most_probable(items[:, place], np.exp(log_probability[:, place]), options.k)
        return tables

    def _most_popular(self, n: int, choice: Tensor) -> pd.DataFrame:
        """The list of a history that says nothing, of the items bool [I]."""
        numbers = self.popularity.masked_fill(~choice, -torch.inf).topk(min(n, int(choice.sum()))).indices.numpy()
        return self._table(numbers[None], np.full(1, np.nan), np.ones(len(self.items)), popular=True)

    def _most_probable(self, drawn: np.ndarray, probability: np.ndarray, k: int) -> pd.DataFrame:
        """The k most probable of the different lists among those drawn, int [S, n], of probabilities [S].

        Where fewer items are left than slots some stay empty, and their places in the list are those of the next. Of
        one list that several ways of filling give, the most probable counts.
        """
        drawn = np.take_along_axis(drawn, np.argsort(drawn == 0, axis=1, kind="stable"), axis=1)
        order = np.argsort(-probability, kind="stable")
        drawn, probability = drawn[order], probability[order]
        frequency = np.bincount(drawn.ravel(), minlength=len(self.items)) / len(drawn)  # no list has an item twice
        different, first = np.unique(drawn, axis=0, return_index=True)
        best = np.argsort(-probability[first], kind="stable")[:k]
        return self._table(different[best], probability[first[best]], frequency, popular=False)

    def _table(self, lists: np.ndarray, probability: np.ndarray, frequency: np.ndarray, popular: bool) -> pd.DataFrame:
        """A row for each place of each list, for items [lists, n], of which 0 is none, and their frequency [I]."""
        which, place = np.nonzero(lists)
        numbers = lists[which, place]
        return pd.DataFrame(
            {
                "list": which + 1,
                "rank": place + 1,
                "item_id": self.items[numbers],
                "probability": probability[which],
                "frequency": frequency[numbers],
                "popular": popular,
            }
        )

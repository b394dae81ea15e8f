"""Lists as the service answers them: the JSON of one history, ready to be sent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from pydantic_core import to_json

from recbole_diffurec.inference.lists import ListOptions
from recbole_diffurec.inference.recommender import Recommender


def as_json(
    recommender: Recommender, histories: Sequence[list[str]], options: ListOptions, fields: Sequence[str] = ()
) -> list[bytes]:
    """A ``schema.RankedList`` for each history, with ``fields`` of its items."""
    table = recommender.recommend(
        histories, options.k, options.exclude_seen, options.candidates, None, options.samples, options.diversity
    )
    columns = ["item_id", "score", "frequency"] if "frequency" in table else ["item_id", "score"]
    items = _items(recommender, table, columns, fields)
    lists = []
    for history, start, end in _of_histories(table, histories):
        if start == end:
            lists.append(empty_list(recommender, history))
            continue
        one = {"items": items[start:end], "popular": bool(table["popular"].iat[start])}
        one["unknown_items"] = recommender.unknown([history])
        if "spread" in table:
            one["spread"] = float(table["spread"].iat[start])
        lists.append(to_json(one))
    return lists


def next_as_json(
    recommender: Recommender, histories: Sequence[list[str]], n: int, options: ListOptions, fields: Sequence[str] = ()
) -> list[bytes]:
    """A ``schema.JointLists`` for each history: lists of n items that were drawn together."""
    assert options.samples is not None, "lists of several items are drawn"
    table = recommender.next_lists(histories, n, options.samples, options.k, options.exclude_seen, options.candidates)
    items = _items(recommender, table, ["item_id", "frequency"], fields)
    probability, number = table["probability"].tolist(), table["list"].to_numpy(dtype=int)
    answers = []
    for history, start, end in _of_histories(table, histories):
        if start == end:
            answers.append(empty_list(recommender, history, n))
            continue
        popular = bool(table["popular"].iat[start])
        # Not where the rank is 1: of fewer items than slots, the first slot may be the one that is left empty.
        begins = [start, *(start + 1 + np.flatnonzero(np.diff(number[start:end]))), end]
        lists = [{"items": items[a:b], "probability": None if popular else probability[a]} for a, b in pairwise(begins)]
        answers.append(to_json({"lists": lists, "popular": popular, "unknown_items": recommender.unknown([history])}))
    return answers


def empty_list(recommender: Recommender, history: list[str], n: int | None = None) -> bytes:
    """What is left for a history whose candidates are all unknown, or seen; with n of lists of n items."""
    name = "items" if n is None else "lists"
    return to_json({name: [], "popular": False, "unknown_items": recommender.unknown([history])})


def _items(
    recommender: Recommender, table: pd.DataFrame, columns: Sequence[str], fields: Sequence[str]
) -> list[dict[str, Any]]:
    """The places of all lists in the order of the table."""
    items = [dict(zip(columns, row)) for row in zip(*(table[column].tolist() for column in columns))]
    if not fields:
        return items
    return [
        {**item, "fields": of_item}
        for item, of_item in zip(items, recommender.about_items.rows(fields, table["item_id"]))
    ]


def _of_histories(table: pd.DataFrame, histories: Sequence[list[str]]) -> list[tuple[list[str], int, int]]:
    """Each history with its first row of the table and the one after its last."""
    ends = np.searchsorted(table["user_id"].to_numpy(dtype=int), np.arange(len(histories)), side="right").tolist()
    return list(zip(histories, [0, *ends], ends))

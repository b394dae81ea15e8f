"""Recommendations from file to file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_diffurec.data.histories import HistoryBatch, check_output, writing
from recbole_diffurec.errors import UserError
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.runtime import files
from recbole_diffurec.training.prepare import training_histories

logger = logging.getLogger("recbole_diffurec")


def recommend(
    checkpoint_file: str | Path,
    /,
    output: str | Path,
    input: str | Path | None = None,
    *,
    k: int = 20,
    exclude_seen: bool = False,
    candidates: str | Path | None = None,
    samples: int | None = None,
    diversity: float = 0.0,
    **parameters: Any,
) -> dict[str, int]:
    """Write recommendations for histories in a file, or for all users of the training data, to a file.

    Parameters
    ----------
    checkpoint_file : str or Path
        A ``.pth`` file of ``run``, of a sequential model.
    output : str or Path
        ``.csv``, ``.jsonl`` or ``.parquet``: user_id, rank, item_id, score, popular. Its folder is made when missing.
    input : str or Path, optional
        ``.inter``, ``.csv``, ``.jsonl`` or ``.parquet``, see ``Recommender.histories``; by default every user of the
        training data, for the next item after all their interactions.
    k : int
        Length of the lists.
    exclude_seen : bool
        Leave out the items of the history.
    candidates : str or Path, optional
        A text file with one item id a line, to recommend these alone.
    samples, diversity : int and float
        See ``Recommender.recommend``; the output gets the columns frequency and spread.
    **parameters : object
        For inference, such as ``sampling_steps=4``.

    Returns
    -------
    dict of str to int
        The numbers of ``users``, ``rows``, ``unknown_items`` (skipped) and ``popular_users`` (no known item).

    Raises
    ------
    UserError
        A file cannot be read or written, a parameter is wrong, or the model knows none of the items. Nothing is left
        half-written.
    """
    check_output(output)
    files.check_writable(output, "output", (checkpoint_file, input, candidates))
    recommender = Recommender.load(checkpoint_file, **parameters)
    allowed = None
    if candidates is not None:
        allowed = files.read_lines(candidates, "candidates")
        among = KnownIds(recommender, f"candidates in '{candidates}'")
        among.add([allowed])
        among.check()
    batches = training_histories(recommender.config) if input is None else recommender.histories(input)

    def lists(users: list[str], sequences: list[list[str]]) -> pd.DataFrame:
        return recommender.recommend(sequences, k, exclude_seen, allowed, users, samples, diversity)

    return _write(output, batches, lists, KnownIds(recommender, f"item ids in input '{input}'"))


def _write(
    output: str | Path,
    batches: Iterable[HistoryBatch],
    lists: Callable[[list[str], list[list[str]]], pd.DataFrame],
    known: KnownIds,
) -> dict[str, int]:
    """Write the lists of all batches; returns what ``recommend`` does."""
    counts = {"users": 0, "rows": 0, "unknown_items": 0, "popular_users": 0}
    with writing(output) as append:
        for users, sequences in batches:
            table = lists(users, sequences)
            append(table)
            counts["users"] += len(users)
            counts["rows"] += len(table)
            counts["unknown_items"] += known.add(sequences)
            counts["popular_users"] += table.loc[table["popular"], "user_id"].nunique()
        known.check()
    return counts


# The share of known ids below which a table looks like one of other items.
FEW_KNOWN = 0.1


class KnownIds:
    """Ids that a model knows among those that it is given, counted.

    Parameters
    ----------
    recommender : Recommender
        Knows the ids.
    what : str
        How messages call the ids.
    """

    def __init__(self, recommender: Recommender, what: str):
        self._recommender, self._what = recommender, what
        self._total = self._unknown = 0
        self._examples: dict[str, None] = {}

    def add(self, sequences: Sequence[Sequence[str]]) -> int:
        """Count the ids of some histories; how many of them are unknown."""
        unknown = [item for sequence in sequences for item in sequence if not self._recommender.knows(item)]
        for item in unknown:
            if len(self._examples) == 3:
                break
            self._examples[item] = None
        self._total += sum(map(len, sequences))
        self._unknown += len(unknown)
        return len(unknown)

    def check(self) -> None:
        """Warn where the model knows few of the ids.

        Raises
        ------
        UserError
            It knows none.
        """
        known = self._total - self._unknown
        if not self._unknown or known >= FEW_KNOWN * self._total:
            return
        examples = []
        for item in self._examples:
            like = self._recommender.like(item)
            examples.append(f"{item!r}" + (f" (known is {like!r})" if like else ""))
        named = ", ".join(examples)
        if not known:
            raise UserError(
                f"none of the {self._what} is known to the model, such as {named}: give ids as in its training data"
            )
        counts = f"only {known:,} of the {self._total:,}"
        logger.warning("%s %s are known to the model; %s and others are not", counts, self._what, named)

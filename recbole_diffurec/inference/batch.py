"""Recommendations from file to file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_diffurec.data.histories import writing
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
    checkpoint_file : a ``.pth`` file of ``run``, of a sequential model.
    output : ``.csv``, ``.jsonl`` or ``.parquet``: user_id, rank, item_id, score, popular.
    input : ``.inter``, ``.csv``, ``.jsonl`` or ``.parquet``, see ``Recommender.histories``; None for every user of the
        training data, the next item after all their interactions.
    k : length of the lists.
    exclude_seen : leave out the items of the history.
    candidates : a text file with one item id a line; recommend these alone.
    samples, diversity : see ``Recommender.recommend``; the output gets the columns frequency and spread.
    parameters : for inference, such as ``sampling_steps=4``.

    Returns
    -------
    dict with the numbers of ``users``, ``rows``, ``unknown_items`` (skipped) and ``popular_users`` (no known item).

    Raises
    ------
    UserError
        A file cannot be read or written, or a parameter is wrong. Nothing is left half-written.
    """
    if input is not None and Path(output).resolve() == Path(input).resolve():
        raise UserError(f"output '{output}' is the input as well: give another file")
    recommender = Recommender.load(checkpoint_file, **parameters)
    allowed = None if candidates is None else files.read_lines(candidates, "candidates")
    batches = training_histories(recommender.config) if input is None else recommender.histories(input)
    counts = {"users": 0, "rows": 0, "unknown_items": 0, "popular_users": 0}
    known = KnownIds(recommender, f"of input '{input}'")
    with writing(output) as append:
        for users, sequences in batches:
            table = recommender.recommend(sequences, k, exclude_seen, allowed, users, samples, diversity)
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
    whence : str
        Where the ids come from, for messages.
    """

    def __init__(self, recommender: Recommender, whence: str):
        self._recommender, self._whence = recommender, whence
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
        named = f"such as {', '.join(examples)}"
        if not known:
            raise UserError(
                f"none of the {self._total:,} item ids {self._whence} is known to the model, {named}: give ids as in "
                f"its training data"
            )
        logger.warning(
            "only %s of the %s item ids %s are known to the model; unknown are %s",
            f"{known:,}",
            f"{self._total:,}",
            self._whence,
            named,
        )

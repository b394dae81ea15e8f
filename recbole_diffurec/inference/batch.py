"""Recommendations from file to file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_diffurec.config.rules import take_options
from recbole_diffurec.data.formats import standard_input
from recbole_diffurec.data.histories import HistoryBatch
from recbole_diffurec.data.output import check_output, writing
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.checks import check_effect_in_rankings
from recbole_diffurec.inference.lists import ListOptions
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.runtime import files
from recbole_diffurec.training.prepare import training_histories

logger = logging.getLogger("recbole_diffurec")


@files.nameable()
def recommend(
    checkpoint_file: str | Path,
    /,
    output: str | Path = "-",
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
        A file as ``data.output.writing`` has it, ``-`` for standard output: user_id, rank, item_id, score, popular. Its
        folder is made when missing.
    input : str or Path, optional
        A table as ``prepare`` takes it, see ``Recommender.histories``, ``-`` for standard input; by default every user
        of the training data, for the next item after all their interactions.
    k : int
        Length of the lists.
    exclude_seen : bool
        Leave out the items of the history.
    candidates : str or Path, optional
        A text file with one item id a line, to recommend these alone.
    samples, diversity : int and float
        See ``Recommender.recommend``; the output gets the columns frequency and spread.
    **parameters : object
        The fields of ``More``: ``next``, ``columns``, ``users``, ``explain``, ``user``, ``item`` and ``time``; all
        others are for inference, such as ``sampling_steps=4``.

    Returns
    -------
    dict of str to int
        The numbers of ``users``, ``rows``, ``unknown_items`` (skipped), ``popular_users`` (no known item), and
        ``missing_users``, who were asked for and are not there.

    Raises
    ------
    UserError
        A file cannot be read or written, a parameter is wrong, or the model knows none of the items. Nothing is left
        half-written.
    """
    more = take_options(More, parameters)
    more.check(diversity, input)
    options = ListOptions(k, exclude_seen, None, samples, diversity)
    check_output(output, (checkpoint_file, None if str(input) == "-" else input, candidates, more.users))
    recommender = Recommender.load(checkpoint_file, **parameters)
    _refuse(recommender, parameters, options, more)
    if candidates is not None:
        options = replace(options, candidates=_read_candidates(candidates, recommender))
    return _recommend_to(output, input, recommender, options, more)


def _refuse(recommender: Recommender, parameters: dict[str, Any], options: ListOptions, more: More) -> None:
    """Refuse what the model cannot do, and what would do nothing, before any work."""
    if more.next is None and options.samples is None:
        check_effect_in_rankings(parameters, recommender.config)
    if more.explain:
        recommender.explain(pd.DataFrame({"user_id": [], "item_id": []}), [])


def _read_candidates(path: str | Path, recommender: Recommender) -> list[str]:
    read = files.read_lines(path, "candidates")
    among = KnownIds(recommender, f"candidates in '{path}'")
    among.add([read])
    among.check()
    return read


def _recommend_to(
    output: str | Path, input: str | Path | None, recommender: Recommender, options: ListOptions, more: More
) -> dict[str, int]:
    """Write the lists for all histories, and return the counts."""

    def lists(users: list[str], sequences: list[list[str]]) -> pd.DataFrame:
        table = _lists(recommender, sequences, options, more)
        names = np.array(users, dtype=object)[table["user_id"].to_numpy(dtype=int)]
        return table.assign(user_id=names)

    with contextlib.ExitStack() as stack:
        source = stack.enter_context(standard_input()) if str(input) == "-" else input
        batches = (
            training_histories(recommender.config) if source is None else recommender.histories(source, **more.named())
        )
        wanted = _Users(more.users)
        counts = _write(
            output, wanted.among(batches), lists, KnownIds(recommender, f"item ids in input '{input}'"), wanted
        )
    return {**counts, "missing_users": wanted.check()}


def _lists(recommender: Recommender, sequences: list[list[str]], options: ListOptions, more: More) -> pd.DataFrame:
    common: dict[str, Any] = {
        "exclude_seen": options.exclude_seen,
        "candidates": options.candidates,
        "columns": more.columns,
    }
    if more.next is None:
        found = recommender.recommend(
            sequences, options.k, samples=options.samples, diversity=options.diversity, **common
        )
    else:
        samples = SAMPLES if options.samples is None else options.samples
        found = recommender.next_lists(sequences, more.next, samples, options.k, **common)
    if more.explain:
        found["because"] = recommender.explain(found, sequences)
    return found


SAMPLES = 20  # lists of several items that are drawn for each user, where nobody says how many


@dataclass(frozen=True)
class More:
    """What else lists may have.

    Parameters
    ----------
    next : int, optional
        Lists of so many items together, see ``Recommender.next_lists``, of which ``k`` are given for each user.
    columns : sequence of str
        Columns of items, such as ``title``.
    users : str or Path, optional
        A text file with one user id a line, to recommend to these alone.
    explain : bool
        Add the column ``because``, see ``Recommender.explain``.
    user, item, time : str, optional
        Columns of the input, see ``Recommender.histories``.
    """

    next: int | None = None
    columns: Sequence[str] = ()
    users: str | Path | None = None
    explain: bool = False
    user: str | None = None
    item: str | None = None
    time: str | None = None

    def named(self) -> dict[str, str]:
        """The columns that are named, by what they hold."""
        named = {"user": self.user, "item": self.item, "time": self.time}
        return {kind: name for kind, name in named.items() if name is not None}

    def check(self, diversity: float, input: str | Path | None) -> None:
        """Raise ``UserError`` where options do not fit together."""
        if input is None and self.named():
            kind = next(iter(self.named()))
            raise UserError(f"{kind} names a column of the input: give --input with it, or leave it out")
        if self.next is not None and diversity:
            raise UserError("diversity spreads a list of single items: leave it out with --next")


class _Users:
    """The users in a file, or all."""

    def __init__(self, path: str | Path | None):
        self._path = path
        self._wanted = None if path is None else dict.fromkeys(files.read_lines(path, "users"))
        self._found: set[str] = set()

    def among(self, batches: Iterable[HistoryBatch]) -> Iterator[HistoryBatch]:
        """The batches without all other users."""
        if self._wanted is None:
            yield from batches
            return
        for users, sequences in batches:
            kept = [place for place, user in enumerate(users) if user in self._wanted]
            self._found.update(users[place] for place in kept)
            if kept:
                yield [users[place] for place in kept], [sequences[place] for place in kept]

    def check(self) -> int:
        """How many of them are not there.

        Raises
        ------
        UserError
            All of them.
        """
        if self._wanted is None:
            return 0
        if not self._found:
            examples = ", ".join(repr(user) for user in list(self._wanted)[:3]) or "none"
            raise UserError(f"none of the users in '{self._path}' has a history, such as {examples}: check the ids")
        return len(self._wanted) - len(self._found)


def _write(
    output: str | Path,
    batches: Iterable[HistoryBatch],
    lists: Callable[[list[str], list[list[str]]], pd.DataFrame],
    known: KnownIds,
    wanted: _Users,
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
        wanted.check()
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

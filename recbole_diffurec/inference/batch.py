"""Recommendations from file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole_diffurec.data.histories import read_histories, writing
from recbole_diffurec.errors import UserError
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.runtime import files
from recbole_diffurec.training.prepare import training_histories


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
    input : ``.inter``, ``.csv``, ``.jsonl`` or ``.parquet``, see ``recbole_diffurec.data.histories``; None for every
        user of the training data, the next item after all their interactions.
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
    batches = training_histories(recommender.config) if input is None else read_histories(input)
    counts = {"users": 0, "rows": 0, "unknown_items": 0, "popular_users": 0}
    with writing(output) as append:
        for users, sequences in batches:
            table = recommender.recommend(sequences, k, exclude_seen, allowed, users, samples, diversity)
            append(table)
            counts["users"] += len(users)
            counts["rows"] += len(table)
            counts["unknown_items"] += recommender.unknown(sequences)
            counts["popular_users"] += table.loc[table["popular"], "user_id"].nunique()
    return counts

"""What a data set says of its items beside their ids, for checkpoints to carry: titles, prices and the like."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from recbole_diffurec.data.delimited import AtomicFile
from recbole_diffurec.errors import UserError

__all__ = ["item_columns"]

logger = logging.getLogger("recbole_diffurec")

KINDS = ("token", "token_seq", "float")  # others are vectors, for models rather than readers
# Characters of a cell, on average: a title or a few categories, and no description or embedding in text.
LONGEST = 512


def item_columns(dataset: Any) -> dict[str, list[str]]:
    """The columns of a data set's ``.item`` file, by their names with types, in order of the items' numbers.

    Empty text stands for a missing cell and for padding. Columns of long texts are left out, and so is a file that
    cannot be read, since a run does without it; both are said.

    Parameters
    ----------
    dataset : recbole.data.dataset.Dataset
        The training part.
    """
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    config = dataset.config
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError:
        return {}
    read = _read(path, changed, dataset.iid_field, config["field_separator"], config["encoding"])
    numbers = {token: number for number, token in enumerate(dataset.field2id_token[dataset.iid_field]) if number}
    found: dict[str, list[str]] = {}
    for title, (ids, cells) in read.items():
        found[title] = [""] * (len(numbers) + 1)
        for token, cell in zip(ids, cells):
            if token in numbers and not found[title][numbers[token]]:
                found[title][numbers[token]] = cell
    return found


@functools.lru_cache(maxsize=2)  # a run writes many checkpoints
def _read(path: Path, changed: int, id_field: str, separator: str, encoding: str) -> dict[str, Any]:
    """{column with its type: (ids, texts)}."""
    try:
        file = AtomicFile(path, None, separator, encoding)
        file.check({id_field: "token"})
        wanted = {name: f"{name}:{kind}" for name, kind in file.kinds.items() if kind in KINDS and name != id_field}
        ids: list[str] = []
        texts: dict[str, list[str]] = {name: [] for name in wanted}
        for part in file.parts([id_field, *wanted]):
            ids += pc.fill_null(part[id_field].ids(), "").to_pylist()
            for name in wanted:
                texts[name] += pc.fill_null(part[name].ids(), "").to_pylist()
    except UserError as error:
        logger.warning("no columns of items are kept with the model: %s", error)
        return {}
    long = [name for name, cells in texts.items() if np.mean([len(cell) for cell in cells]) > LONGEST]
    if long:
        logger.info("columns of items with long texts are not kept with the model: %s", ", ".join(long))
    return {wanted[name]: (ids, cells) for name, cells in texts.items() if name not in long}

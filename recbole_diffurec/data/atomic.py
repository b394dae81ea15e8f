"""Data sets written: RecBole's atomic files of interactions and of items.

Shapes: n interactions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_diffurec.data.interactions import Interactions
from recbole_diffurec.data.items import ItemColumns
from recbole_diffurec.runtime import files

__all__ = ["write_data_set"]

_PART = 1_000_000  # rows written at a time


def write_data_set(
    folder: Path, name: str, taken: Interactions, about: ItemColumns | None, origin: dict[str, Any]
) -> None:
    """Write a data set's files, that of its origin last: where it is, the others are whole and of this origin.

    Parameters
    ----------
    folder : Path
        Of the data set, made when missing.
    name : str
        Of the data set.
    taken : Interactions
        All of them.
    about : ItemColumns or None
        What is known of the items; only those that somebody took are written.
    origin : dict of str to object
        What the data set was made of, for ``NAME.source.json``.

    Raises
    ------
    UserError
        The folder cannot be written to.
    """
    new = not os.path.isdir(folder)
    item, made_of = folder / f"{name}.item", folder / f"{name}.source.json"
    try:
        files.make_folder(str(folder), "the folder of the data set,")
        made_of.unlink(missing_ok=True)
        if about is not None:
            with files.atomic_write(item) as file:
                kinds = [f"{column}:{about.kinds[column]}" for column in about.cells]
                file.write(("\t".join(["item_id:token", *kinds]) + "\n").encode())
                keep = np.flatnonzero(np.bincount(taken.item, minlength=len(taken.items)))
                file.writelines(f"{line}\n".encode() for line in about.rows(taken.items.to_pylist(), keep))
        else:
            item.unlink(missing_ok=True)
        with files.atomic_write(folder / f"{name}.inter") as file:
            _write_interactions(file, taken)
        files.write_text(made_of, json.dumps(origin, indent=2))
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_interactions(file: BinaryIO, taken: Interactions) -> None:
    titles = ["user_id:token", "item_id:token", "timestamp:float"]
    titles += ["rating:float"] if taken.rating is not None else []
    file.write(("\t".join(titles) + "\n").encode())
    users, items = (ids.cast(pa.large_string()) for ids in (taken.users, taken.items))
    for part in _parts(len(taken)):
        columns = [users.take(pa.array(taken.user[part])), items.take(pa.array(taken.item[part]))]
        columns += [pa.array(taken.time[part]).cast(pa.large_string())]
        if taken.rating is not None:
            rating = taken.rating[part]
            texts = pa.array(rating, mask=np.isnan(rating)).cast(pa.large_string())
            columns.append(pc.fill_null(texts, ""))
        columns[-1] = pc.binary_join_element_wise(columns[-1], _text("\n"), _text(""))
        lines = pc.binary_join_element_wise(*columns, _text("\t"))
        file.write(lines.buffers()[2])


def _text(value: str) -> pa.Scalar:
    return pa.scalar(value, pa.large_string())


def _parts(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _PART):
        yield slice(start, start + _PART)

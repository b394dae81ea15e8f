"""A table of somebody's own as a data set: RecBole's atomic files, and in words what they were made of."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_diffurec.data.atomic import write_data_set
from recbole_diffurec.data.formats import open_table
from recbole_diffurec.data.interactions import InteractionColumns, Interactions, read_interactions
from recbole_diffurec.data.items import ItemColumns, items_of_titles, read_items
from recbole_diffurec.data.sources import check_name
from recbole_diffurec.data.tables import Frame, Table, unreadable
from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import files

__all__ = ["Prepared", "TableOptions", "prepare", "prepared"]

CORE = 5  # interactions of each user and item that the default filter leaves
_FORMAT = 1  # of what is written: another one makes every data set anew


@dataclass(frozen=True)
class TableOptions:
    """What is read of a table of one's own.

    Attributes
    ----------
    user, item, time : str
        Its columns of users, items and times.
    rating : str, optional
        Its column of ratings.
    min_rating : float, optional
        Leave out interactions with a lower one.
    items : str, Path or pandas.DataFrame, optional
        A second table, with a row for each item, whose column ``item`` has the same ids.
    title : str, optional
        The column of titles, of either table.
    separator, encoding : str, optional
        Of CSV files; by default what they look like.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    rating: str | None = None
    min_rating: float | None = None
    items: Any = None
    title: str | None = None
    separator: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        least = self.min_rating
        if least is not None and (isinstance(least, bool) or not isinstance(least, (int, float)) or least != least):
            raise UserError(f"min_rating must be a number, got {least!r}")
        if least is not None and self.rating is None:
            raise UserError("min_rating needs a column of ratings: name it with --rating")
        for name in ("user", "item", "time", "rating", "title"):
            column = getattr(self, name)
            if column is not None and (not isinstance(column, str) or not column):
                raise UserError(f"{name} must be the name of a column, got {column!r}")

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of the options."""
        return frozenset(option.name for option in fields(cls))

    def plain(self) -> dict[str, Any]:
        """The options but for the second table, as JSON has them."""
        return {name: value for name, value in vars(self).items() if name != "items"}


@dataclass(frozen=True)
class Prepared:
    """A data set that was made of a table.

    Attributes
    ----------
    name : str
        Of the data set.
    folder : Path
        With its files.
    summary : dict of str to object
        Of the interactions: ``rows`` read, ``left_out`` for their rating, ``interactions``, ``users``, ``items``,
        ``unit`` of the times, ``first`` and ``last`` time, ``duplicates`` (rows that are there before, time and all),
        ``repeats`` (of a user and an item at another time), ``ties`` (that share their user's time), ``core`` (what at
        least five each leave); of the items ``columns``, ``without_row``, ``strange_rows``, ``double_rows`` and
        ``cleaned`` cells.
    """

    name: str
    folder: Path
    summary: dict[str, Any]

    def describe(self) -> str:
        """The summary in a few lines."""
        s = self.summary
        lines = [("interactions", f"{s['interactions']:,}" + (f" of {s['rows']:,} rows" if s["left_out"] else ""))]
        lines += [("users", f"{s['users']:,}"), ("items", f"{s['items']:,}"), ("time", _span(s))]
        lines.append(("duplicates", f"{s['duplicates']:,} rows, and {s['repeats']:,} that repeat a user and an item"))
        lines.append(
            ("ties", f"{s['ties']:,} share their time with another one of the user, and keep the table's order")
        )
        core = s["core"]
        left = f"{core['users']:,} users, {core['items']:,} items, {core['interactions']:,} interactions"
        lines.append(("5-core", left if core["interactions"] else "nothing: see --user_inter_num_interval"))
        if s["columns"]:
            lines.append(("item columns", ", ".join(s["columns"])))
            notes = [
                (s["without_row"], "items without any"),
                (s["strange_rows"], "rows of items that nobody took, left out"),
                (s["double_rows"], "rows of an item that had one, left out"),
                (s["cleaned"], "cells whose tabs and line ends are spaces now"),
            ]
            lines += [("", f"{count:,} {what}") for count, what in notes if count]
        lines.append(("data set", os.path.relpath(self.folder)))
        return "\n".join(f"{name:<13} {text}" for name, text in lines)


@files.nameable()
def prepare(
    source: str | Path | pd.DataFrame,
    /,
    name: str | None = None,
    data_path: str | Path = "dataset",
    *,
    overwrite: bool = False,
    **options: Any,
) -> Prepared:
    """Make a data set of a table: ``DATA_PATH/NAME/NAME.inter``, and ``NAME.item`` where something is known of items.

    Parameters
    ----------
    source : str, Path or pandas.DataFrame
        A table with a row for each interaction: ``.csv``, ``.tsv``, ``.jsonl`` (these also with ``.gz`` or ``.zst``)
        or ``.parquet``.
    name : str, optional
        Of the data set; by default that of the file.
    data_path : str or Path
        The folder of data sets.
    overwrite : bool
        Replace a data set of this name.
    **options : object
        What ``TableOptions`` has.

    Raises
    ------
    UserError
        A table cannot be read, lacks a column, or has a row that cannot be used; or there is such a data set already.
        Nothing is written then.
    """
    taken = _options(options)
    name, folder = _place(source, name, data_path)
    if not overwrite and os.path.lexists(folder):
        raise UserError(
            f"data set '{name}' is there already, in '{folder}': give another --name, or --overwrite to replace it"
        )
    return _prepare(source, name, folder, taken)


def prepared(
    source: str | Path | pd.DataFrame,
    name: str | None,
    data_path: str | Path,
    overwrite: bool,
    options: TableOptions,
    make: bool = True,
) -> tuple[Path, Prepared | None]:
    """The data set of a table, made unless it was made of the same table with the same options before.

    Parameters
    ----------
    source, name, data_path, overwrite : object
        As for ``prepare``.
    options : TableOptions
        What is read.
    make : bool
        Whether it may be made; several processes at once may not.

    Returns
    -------
    tuple of Path and (Prepared or None)
        The data set's folder; what was made, None where it was there.

    Raises
    ------
    UserError
        As ``prepare``, and where a data set of this name was made of something else.
    """
    name, folder = _place(source, name, data_path)
    if os.path.lexists(folder) and not overwrite:
        try:
            made = files.read_json(folder / f"{name}.source.json")
        except (OSError, ValueError):
            made = None
        if not isinstance(made, dict) or made.get("digest") != _digest(source, options):
            raise UserError(
                f"data set '{name}' in '{folder}' was not made of this table as it is: give another --name, or "
                f"--overwrite to replace it"
            )
        return folder, None
    if not make:
        raise UserError(
            f"data set '{name}' is to be made by one process: make it with 'recbole-diffurec prepare' before"
        )
    return folder, _prepare(source, name, folder, options)


def _options(given: dict[str, Any]) -> TableOptions:
    known = sorted(TableOptions.names())
    for option in given.keys() - TableOptions.names():
        near = difflib.get_close_matches(option, known, n=1)
        hint = f" did you mean '{near[0]}'?" if near else f" choose of {', '.join(known)}"
        raise UserError(f"unknown option '{option}' of a table:{hint}")
    return TableOptions(**given)


def _place(source: Any, name: str | None, data_path: str | Path) -> tuple[str, Path]:
    """The name and the folder of a data set that is to be made."""
    if name is None:
        name = "table" if isinstance(source, pd.DataFrame) else Path(source).name.split(".")[0]
    check_name(name)
    if name == "ml-100k":
        raise UserError("data set 'ml-100k' is the one that ships inside RecBole: give another --name")
    return name, Path(data_path) / name


def _prepare(source: Any, name: str, folder: Path, options: TableOptions) -> Prepared:
    table, items_table = _opened(source, options), None if options.items is None else _opened(options.items, options)
    of_items = items_table is not None and options.title in items_table.columns
    own_title = None if of_items else options.title
    columns = InteractionColumns(options.user, options.item, options.time, options.rating, own_title)
    read = read_interactions(table, columns, options.min_rating is not None)
    kept = read if options.min_rating is None else read.rated(options.min_rating)
    if not len(kept):
        raise UserError(f"{table.name} has no row with a rating of at least {options.min_rating}: give a lower one")
    about = None
    if items_table is not None:
        about = read_items(items_table, options.item, read.items, options.title if of_items else None)
    if read.titles is not None:
        titles = items_of_titles(read.titles)
        if about is not None and set(titles.cells) & set(about.cells):
            raise UserError(
                f"{items_table.name if items_table else ''} has a column 'title' beside --title: leave it out"
            )
        about = titles if about is None else _both(about, titles)
    summary = {"rows": len(read), "left_out": len(read) - len(kept), **_summary(kept), **_items_summary(about)}
    write_data_set(folder, name, kept, about, {"digest": _digest(source, options), "options": options.plain()})
    return Prepared(name, folder, summary)


def _opened(source: Any, options: TableOptions) -> Table:
    if isinstance(source, pd.DataFrame):
        return Frame(source)
    if not isinstance(source, (str, Path)):
        raise UserError(
            f"data must be a pandas DataFrame or the path of a file, got a {type(source).__name__}: convert it"
        )
    return open_table(source, "", options.separator, options.encoding)


def _both(about: ItemColumns, titles: ItemColumns) -> ItemColumns:
    about.cells, about.kinds = {**titles.cells, **about.cells}, {**titles.kinds, **about.kinds}
    about.cleaned += titles.cleaned
    return about


# What was taken


def _summary(taken: Interactions) -> dict[str, Any]:
    moment = _moments(taken.time, len(taken.users))
    at = taken.user.astype(np.int64) * (int(moment.max()) + 1) + moment  # one number for a user's moment
    order = np.argsort(at)
    same = at[order[1:]] == at[order[:-1]]
    tied = order[np.append(same, False) | np.append(False, same)]
    repeated = np.lexsort((taken.item[tied], at[tied]))
    at, item = at[tied][repeated], taken.item[tied][repeated]
    duplicates = int(np.count_nonzero((at[1:] == at[:-1]) & (item[1:] == item[:-1])))
    pairs = np.sort(taken.user.astype(np.int64) * len(taken.items) + taken.item)
    return {
        "interactions": len(taken),
        "users": int(np.count_nonzero(np.bincount(taken.user))),
        "items": int(np.count_nonzero(np.bincount(taken.item))),
        "unit": taken.unit,
        "first": float(taken.time.min()),
        "last": float(taken.time.max()),
        "duplicates": duplicates,
        "repeats": int(np.count_nonzero(pairs[1:] == pairs[:-1])) - duplicates,
        "ties": len(tied),
        "core": _core(taken.user, taken.item),
    }


def _moments(time: np.ndarray, n_users: int) -> np.ndarray:
    """Times as numbers from 0, so few that there is room for one of each user in an int64."""
    since = time - time.min()
    if since.max() < 2**62 / max(n_users, 1) and (since == np.floor(since)).all():
        return since.astype(np.int64)
    return np.unique(time, return_inverse=True)[1]


def _core(user: np.ndarray, item: np.ndarray) -> dict[str, int]:
    """What is left where every user and every item has ``CORE`` interactions."""
    while len(user):
        enough = (np.bincount(user) >= CORE)[user] & (np.bincount(item) >= CORE)[item]
        if enough.all():
            break
        user, item = user[enough], item[enough]
    users, items = (int(np.count_nonzero(np.bincount(of))) for of in (user, item))
    return {"users": users, "items": items, "interactions": len(user)}


def _items_summary(about: ItemColumns | None) -> dict[str, Any]:
    about = about or ItemColumns({})
    return {
        "columns": list(about.cells),
        "without_row": about.missing,
        "strange_rows": about.strange,
        "double_rows": about.twice,
        "cleaned": about.cleaned,
    }


def _span(summary: dict[str, Any]) -> str:
    first, last, unit = summary["first"], summary["last"], summary["unit"]
    if not unit:
        return f"numbers from {first:.10g} to {last:.10g}"
    with contextlib.suppress(OverflowError, ValueError, OSError):
        zone = datetime.timezone.utc
        days = [f"{datetime.datetime.fromtimestamp(moment, zone):%Y-%m-%d}" for moment in (first, last)]
        kind = "dates" if unit == "dates" else f"{unit} since 1970"
        return f"{days[0]} to {days[1]}, {(last - first) / 86400:,.0f} days (given as {kind}, written as seconds)"
    return f"{first:.0f} to {last:.0f} seconds since 1970"


# Where it came from


def _digest(source: Any, options: TableOptions) -> str:
    """What tells a table and what is read of it from others."""
    digest = hashlib.sha256(json.dumps([_FORMAT, options.plain()]).encode())
    for table in (source, options.items):
        if isinstance(table, pd.DataFrame):
            digest.update(pd.util.hash_pandas_object(table.astype(str), index=False).to_numpy().tobytes())
            digest.update("\n".join(map(str, table.columns)).encode())
        elif table is not None:
            try:
                with open(table, "rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise unreadable(f"'{table}'", error) from None
    return digest.hexdigest()

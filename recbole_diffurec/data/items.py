"""What tables say of items beside their ids: titles, prices and all other columns, by the items' numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_diffurec.data.columns import Column
from recbole_diffurec.data.interactions import CONTROL
from recbole_diffurec.data.tables import Table, check_columns
from recbole_diffurec.errors import UserError

__all__ = ["TITLE", "ItemColumns", "items_of_titles", "read_items"]

TITLE = "title"  # what the column of titles is called, whatever it was

# As programs write numbers: no zeros in front, which a code such as 00123 would lose.
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$"


@dataclass
class ItemColumns:
    """Columns of items.

    Attributes
    ----------
    cells : dict of str to numpy.ndarray
        Each column's texts by the numbers of the items, object [number of items], None where one is missing.
    kinds : dict of str to str
        Types of RecBole: token, token_seq (of lists) or float.
    cleaned, strange, twice : int
        How many cells had a tab or a line end, which is a space now; how many rows are of items that nobody took, and
        were left out, and how many of an item that had a row already.
    missing : int
        How many items have no row.
    """

    cells: dict[str, np.ndarray]
    kinds: dict[str, str] = field(default_factory=dict)
    cleaned: int = 0
    strange: int = 0
    twice: int = 0
    missing: int = 0

    def rows(self, items: Sequence[str], keep: np.ndarray) -> Iterator[str]:
        """The lines of an atomic file: the ids of items whose numbers are kept, with their columns."""
        for number in keep.tolist():
            yield "\t".join([items[number], *(column[number] or "" for column in self.cells.values())])


def read_items(table: Table, item: str, items: pa.Array, title: str | None = None) -> ItemColumns:
    """All columns of a table of items, for the items that are known; of two rows of an item the first counts.

    Parameters
    ----------
    table : Table
        With a row for each item.
    item : str
        Its column of ids.
    items : pyarrow.Array
        The known ids, by their numbers.
    title : str, optional
        Its column of titles.

    Raises
    ------
    UserError
        A column is not there, or two would have the same name.
    """
    check_columns(table, {"item": item, **({TITLE: title} if title else {})})
    named = {column: _name(column, title) for column in table.columns if column != item}
    _check_names(table, named)
    size = len(items)
    found = ItemColumns({name: np.full(size, None, dtype=object) for name in named.values()})
    seen, lists = np.zeros(size, dtype=bool), set()
    for part in table.parts([item, *named]):
        number = pc.fill_null(pc.index_in(part[item].ids(), value_set=items, skip_nulls=True), -1).to_numpy()
        found.strange += int(np.count_nonzero(number < 0))
        known = np.flatnonzero(number >= 0)
        number, first = np.unique(number[known], return_index=True)
        rows, new = known[first], ~seen[number]
        found.twice += len(known) - int(np.count_nonzero(new))
        rows, number = rows[new], number[new]
        seen[number] = True
        for column, name in named.items():
            if _holds_lists(part[column]):
                lists.add(name)
            texts, cleaned = _cleaned(part[column].texts().take(pa.array(rows)))
            found.cells[name][number] = texts.to_numpy(zero_copy_only=False)
            found.cleaned += cleaned
    found.missing = size - int(np.count_nonzero(seen))
    found.kinds = {name: "token_seq" if name in lists else _kind(cells) for name, cells in found.cells.items()}
    return found


def items_of_titles(titles: np.ndarray) -> ItemColumns:
    """Titles that a table of interactions has of its items, as columns of items."""
    texts, cleaned = _cleaned(pa.array(titles, pa.string()))
    cells = texts.to_numpy(zero_copy_only=False)
    return ItemColumns({TITLE: cells}, {TITLE: "token"}, cleaned, missing=texts.null_count)


def _name(column: str, title: str | None) -> str:
    """What a column is called in an atomic file, whose first line has colons before types, and tabs."""
    return TITLE if column == title else re.sub(r"[\x00-\x1f\x7f:]", "_", column)


def _check_names(table: Table, named: dict[str, str]) -> None:
    taken: dict[str, str] = {"item_id": "the ids"}
    for column, name in named.items():
        if name in taken:
            raise UserError(
                f"{table.name} has '{column}' beside {taken[name]}, which is written as '{name}': rename one"
            )
        if not name:
            raise UserError(f"{table.name} has a column without a name: give it one")
        taken[name] = f"'{column}'"


def _holds_lists(column: Column) -> bool:
    cells = column.cells
    if isinstance(cells, pa.Array):
        return pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type)
    return any(isinstance(cell, (list, tuple, np.ndarray)) for cell in cells)


def _cleaned(texts: pa.Array) -> tuple[pa.Array, int]:
    """Texts of one line each, and how many were not."""
    broken = pc.sum(pc.match_substring_regex(texts, CONTROL)).as_py() or 0
    clean = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, f"{CONTROL}+", " "))
    return pc.if_else(pc.equal(clean, ""), None, clean), broken


def _kind(cells: np.ndarray) -> str:
    numbers = pc.match_substring_regex(pa.array(cells, pa.string()), _NUMBER)
    return "float" if pc.all(numbers).as_py() and pc.any(numbers).as_py() else "token"

"""What a model's checkpoint says of its items beside their ids, and how items are found by it.

Shapes: I items with padding row 0, n of them that are asked for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recbole_diffurec.config.rules import nearest
from recbole_diffurec.data.items import TITLE
from recbole_diffurec.errors import UserError

__all__ = ["TITLE", "ItemTable", "folded"]


def folded(text: str) -> str:
    """Text without what tells capital letters and accents: ``Amélie`` is ``amelie``."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return plain.casefold()


class ItemTable:
    """Columns of items.

    Parameters
    ----------
    items : np.ndarray
        Ids by number, object [I].
    columns : Mapping of str to Sequence of str
        Texts by number, by the columns' names with their types (``price:float``).

    Attributes
    ----------
    names : list of str
        The columns' names. ``title`` is one where a column holds titles, whatever that is called.
    """

    def __init__(self, items: np.ndarray, columns: Mapping[str, Sequence[str]]):
        self._number = {item: number for number, item in enumerate(items)}
        self._columns: dict[str, np.ndarray] = {}
        for header, cells in columns.items():
            name, _, kind = header.rpartition(":")
            texts = np.array([cell or None for cell in cells], dtype=object)
            self._columns[name] = _numbers(texts) if kind == "float" else texts
        titles = [name for name in self._columns if name.lower().endswith(TITLE)]
        titles += [name for name in self._columns if name.lower().endswith("name")]
        if titles:
            self._columns.setdefault(TITLE, self._columns[TITLE if TITLE in titles else titles[0]])
        self.names = list(self._columns)
        said = self._columns.get(TITLE, np.full(len(items), None))
        # A tab is in no id and in no title.
        self._searched = pa.array(f"{folded(item)}\t{folded(str(title or ''))}" for item, title in zip(items, said))

    def check(self, names: Sequence[str], taken: Sequence[str] = ()) -> None:
        """Raise UserError unless there are columns of these names, none of which is ``taken`` by another."""
        if isinstance(names, str):
            raise UserError(f"columns must be a list of names, got {names!r}: give one such as ['{names}']")
        for name in names:
            if name in taken:
                raise UserError(f"column '{name}' would stand beside another '{name}' in the output: leave it out")
            if name in self._columns:
                continue
            if not self._columns:
                raise UserError(
                    f"the checkpoint has no column '{name}' of items, nor any other: they are those of the .item file "
                    f"beside the data that the model is trained on, as 'recbole-diffurec prepare --items' writes it"
                )
            hint = nearest(name, self._columns)
            raise UserError(f"items have no column '{name}' but {', '.join(self.names)}:{hint or ' choose of these'}")

    def of(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """The cells of a column for items int [n]: numbers, NaN where one is missing, or texts and None."""
        return self._columns[name][numbers]

    def rows(self, names: Sequence[str], ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        """What columns say of some items that the model knows, each a mapping that JSON has."""
        for item in ids:
            cells = {name: self._columns[name][self._number[item]] for name in names}
            yield {name: None if cell != cell else cell for name, cell in cells.items()}

    def found(self, query: str) -> np.ndarray:
        """Whether the id or the title of an item contains ``query``, without regard to case and accents: bool [I]."""
        return pc.match_substring(self._searched, folded(query)).to_numpy(zero_copy_only=False)


def _numbers(texts: np.ndarray) -> np.ndarray:
    """Texts as numbers, or as they are where one is none."""
    try:
        return np.array([np.nan if text is None else float(text) for text in texts], dtype=np.float64)
    except ValueError:
        return texts

"""Batches whose lengths stay known to the host when they go to a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_diffurec.layers.ragged import ON_HOST

__all__ = ["Batch"]


class Batch(Interaction):
    """Rows with their histories. On another device the lengths have those of the CPU with them, see ``layers.ragged``.

    Parameters
    ----------
    columns : Mapping of str to Tensor
        As RecBole's models read them.
    length_column : str
        The one with the lengths of the histories.
    """

    def __init__(self, columns: Mapping[str, Tensor], length_column: str):
        super().__init__(dict(columns))
        self._length_column = length_column

    def to(self, device: Any, selected_field: str | None = None) -> Interaction:
        """RecBole's ``Interaction.to``."""
        moved = super().to(device, selected_field)
        lengths, there = self.interaction[self._length_column], moved.interaction[self._length_column]
        if there.device != lengths.device:
            setattr(there, ON_HOST, lengths)
        return moved

"""SASRec and GRU4Rec of RecBole trained over all positions at once, by their own losses.

Line numbers are those of recbole 1.2.0 and 1.2.1. Shapes: B batch, M targets of a batch of sequences, d hidden size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def apply(cls: str, module: ModuleType) -> Iterator[None]:
    """Put ``loss_of_all_positions`` around the loss of the module's model."""
    yield
    model = getattr(module, cls)
    model.calculate_loss = loss_of_all_positions(model.calculate_loss)


def loss_of_all_positions(calculate_loss: Any) -> Any:
    """A loss that takes batches of sequences (see ``data.rows``) as well.

    The model computes a state for every position and gathers the last of each history (sasrec.py:118, gru4rec.py:83).
    Here it gathers those of all targets, [M, d], and its loss is over M pairs as it is over B. This can go when RecBole
    trains over all positions itself.
    """
    # This module is imported with the package, which waits for PyTorch until it is asked for.
    from recbole_diffurec.data.rows import FIRST_TARGET, target_places

    @functools.wraps(calculate_loss)
    def wrapped(self: Any, interaction: Any) -> Tensor:
        if FIRST_TARGET not in interaction:
            return calculate_loss(self, interaction)
        lengths, n_targets = interaction[self.ITEM_SEQ_LEN], len(interaction[self.POS_ITEM_ID])
        row, place = target_places(interaction[FIRST_TARGET], lengths, n_targets)
        self.gather_indexes = lambda output, _: output[row, place]
        try:
            return calculate_loss(self, interaction)
        finally:
            del self.gather_indexes

    return wrapped

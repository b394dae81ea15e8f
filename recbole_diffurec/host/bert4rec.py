"""BERT4Rec's loss: defined where a batch has nothing to predict, and without work that counts for nothing.

Line numbers are those of recbole 1.2.0 and 1.2.1. Shapes: B batch, M masks that the longest history may have.
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
def apply(module: ModuleType) -> Iterator[None]:
    """Put ``loss_of_something`` around the loss of the module's ``BERT4Rec``."""
    yield
    module.BERT4Rec.calculate_loss = loss_of_something(module.BERT4Rec.calculate_loss)


def loss_of_something(calculate_loss: Any) -> Any:
    """A loss of BERT4Rec that is 0, not 0/0, for a batch without targets, and leaves empty columns out.

    A mask on a history's first item counts as padding (bert4rec.py:207), so a batch of one-item histories, which
    ``batch_by_length`` makes, has no targets. This can go when RecBole tells the two apart. And every row gets scores
    of all items for M masks: columns without a target in any row count for nothing and are left out, for speed.
    """

    @functools.wraps(calculate_loss)
    def wrapped(self: Any, interaction: Any) -> Tensor:
        used = (interaction[self.MASK_INDEX] > 0).any(dim=0)
        if not used.any():
            return sum(0.0 * parameter.sum() for parameter in self.parameters())
        masks = (self.POS_ITEMS, self.NEG_ITEMS, self.MASK_INDEX)
        fewer = {name: interaction[name][:, used] for name in masks}
        return calculate_loss(self, {**interaction.interaction, **fewer})

    return wrapped

"""What the last position of a history attends to in models whose blocks are those of ``layers``.

Shapes: B histories, L padded length, h heads; a slab holds n histories of l tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_diffurec.layers.ragged import LedBatch, RaggedBatch
from recbole_diffurec.models.base import DiffusionRecommender, copy_sharing_weights


class LastAttention:
    """What the last position of a history attends to in a model's last block, the mean over its heads.

    Of a diffusion model it is that of the last reverse step. The model itself is not touched, since others may use it
    at the same time: a copy that shares its weights is observed.

    Parameters
    ----------
    network : torch.nn.Module
        The model.
    """

    def __init__(self, network: Any):
        self._network = sharing_weights(network)
        self._seen: dict[int, tuple[RaggedBatch, list[Tensor]]] = {}
        for module in _attentions(self._network):
            module.observer = self._observe

    def __deepcopy__(self, memo: Any) -> LastAttention:
        return self  # a copy of a module, as in another precision, tells the same observer

    def _observe(self, batch: RaggedBatch, weights: list[Tensor]) -> None:
        self._seen[id(batch)] = batch, weights  # later blocks and steps take the place of earlier ones

    @torch.no_grad()
    def of(self, interaction: Any) -> Tensor | None:
        """[B, L] for histories in the order of their lengths; None where the model's last position attends to nothing.

        Parameters
        ----------
        interaction : Interaction
            The histories, the shortest first, which is the order in which all models keep them together.
        """
        self._seen.clear()
        self._network.full_sort_predict(interaction)
        item_seq = interaction[self._network.ITEM_SEQ]
        parts = [_by_place(batch, weights, item_seq.shape[1]) for batch, weights in self._seen.values()]
        return torch.cat(parts) if sum(map(len, parts)) == len(item_seq) else None


def has_attention(network: Any) -> bool:
    """Whether any part of a model attends to a history."""
    return bool(_attentions(network))


def _attentions(network: Any) -> list[Any]:
    """The modules that tell an ``Observer`` what last positions attend to."""
    return [module for module in network.modules() if hasattr(module, "observer")]


def sharing_weights(network: Any) -> Any:
    """A copy of a model for a change that is not of its weights."""
    if isinstance(network, DiffusionRecommender):
        return network.sharing_weights()
    return copy_sharing_weights(network)


def _by_place(batch: RaggedBatch, weights: list[Tensor], length: int) -> Tensor:
    """Weights of a batch by the places of the items, [B, L] in the given order, from [n, h, l] of each slab."""
    n_leading = batch.n_leading if isinstance(batch, LedBatch) else 0
    parts = [part.float().mean(dim=1)[:, n_leading:] for part in weights]
    return batch.restore(torch.cat([F.pad(part, (0, length - part.shape[1])) for part in parts]))

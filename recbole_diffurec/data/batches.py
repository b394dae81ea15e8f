"""How rows become batches: grouped by length in training, ordered by length and sized from memory in evaluation."""

from __future__ import annotations

import itertools
from typing import Any, Iterator

import psutil
import torch
from torch import Tensor
from torch.utils.data import Sampler

# Batches that are drawn together and sorted by length: enough to make each batch's lengths alike, few enough that the
# batches of two epochs differ.
GROUPED_BATCHES = 50

# Bytes per user and item in evaluation: scores, their masked copy, and RecBole's matrix of positives (int32) with its
# temporaries.
EVALUATION_BYTES = 20
# The share of the free memory that one evaluation batch may take.
EVALUATION_SHARE = 8


class LengthGroupedSampler(Sampler[int]):
    """Row numbers in random order, such that consecutive batches hold rows of similar length.

    For models that pad a batch to its longest history: the longest one of a random batch is nearly always as long as
    histories get. Every row comes once an epoch; the batches come in random order, a smaller last one at the end.

    Parameters
    ----------
    lengths : int [R].
    batch_size : rows in a batch.
    generator : the source of the order; torch's global one where it is None.
    """

    def __init__(self, lengths: Tensor, batch_size: int, generator: torch.Generator | None = None):
        self.lengths, self.batch_size, self.generator = lengths, batch_size, generator

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self.lengths), generator=self.generator)
        whole = len(order) - len(order) % self.batch_size
        groups = order[:whole].split(GROUPED_BATCHES * self.batch_size)
        batches = [
            batch
            for group in groups
            for batch in group[self.lengths[group].argsort(stable=True)].split(self.batch_size)
        ]
        for i in torch.randperm(len(batches), generator=self.generator).tolist():
            yield from batches[i].tolist()
        yield from order[whole:].tolist()


def group_by_length(loader: Any) -> None:
    """Let a training loader of RecBole draw its batches by length."""
    dataset = loader._dataset
    lengths = dataset.inter_feat[dataset.item_list_length_field]
    # torch forbids replacing a loader's batch sampler, and RecBole builds that with a sampler of its own.
    loader.batch_sampler.sampler = LengthGroupedSampler(lengths, loader.batch_sampler.batch_size, loader.generator)


def order_by_length(loader: Any) -> None:
    """Let a loader for evaluation go from the longest history to the shortest, which changes no metric.

    For models whose batches are trimmed to their longest history. The first batch takes the most memory.
    """
    dataset = loader._dataset
    lengths = dataset.inter_feat[dataset.item_list_length_field]
    loader.batch_sampler.sampler = lengths.argsort(descending=True, stable=True).tolist()


def fitting_users(n_users: int, n_items: int, device: torch.device) -> int:
    """How many of ``n_users`` fit into an evaluation batch, given the memory that is free now; at least 1."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return max(1, min(n_users, free // (EVALUATION_SHARE * EVALUATION_BYTES * n_items)))


class FirstBatches:
    """The first ``n`` batches of a loader; everything else is the loader's."""

    def __init__(self, loader: Any, n: int):
        self._loader, self._n = loader, n

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._loader), self._n)

    def __len__(self) -> int:
        return min(self._n, len(self._loader))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

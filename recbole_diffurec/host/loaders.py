"""How rows become batches: by length, sized from the free memory, a part of them, a process's share of each."""

from __future__ import annotations

import itertools
from typing import Any, Iterator, Mapping

import numpy as np
import psutil
import torch
from recbole.data.interaction import Interaction
from recbole.data.utils import data_preparation
from torch import Tensor
from torch.utils.data import Sampler

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.candidates import SampledEvalLoader
from recbole_diffurec.runtime import distributed

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
    lengths : Tensor
        int [R].
    batch_size : int
        Rows in a batch.
    generator : torch.Generator, optional
        The source of the order; torch's global one where it is None.
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
    sampled = isinstance(loader, SampledEvalLoader) and loader.samples
    lengths = loader.user_lengths() if sampled else dataset.inter_feat[dataset.item_list_length_field]
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


class _Share(Sampler[list[int]]):
    """This process's rows of every batch of another batch sampler.

    A batch with fewer rows than there are processes goes to all of them, who weigh it together like one.
    """

    def __init__(self, batches: Any):
        self._batches = batches
        # As a ``BatchSampler`` has them.
        self.sampler, self.batch_size = batches.sampler, batches.batch_size

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield (
                batch[distributed.rank() :: distributed.world_size()]
                if len(batch) >= distributed.world_size()
                else batch
            )


def share_training(loader: Any) -> None:
    """Let a training loader give this process's rows of every batch."""
    if distributed.world_size() > 1:
        # torch forbids to replace a loader's batch sampler through its attribute.
        vars(loader)["batch_sampler"] = _Share(loader.batch_sampler)


def share_evaluation(loader: Any) -> None:
    """Let a loader for evaluation, unless it is of no part, give this process's users."""
    if distributed.world_size() > 1 and len(loader) > 0:
        users = list(loader.batch_sampler.sampler)
        if len(users) < distributed.world_size():
            raise UserError(
                f"there are {len(users)} users to evaluate and {distributed.world_size()} processes: start fewer"
            )
        loader.batch_sampler.sampler = users[distributed.rank() :: distributed.world_size()]


def subset_loader(loader: Any, n: int) -> Any:
    """A loader of ``n`` of an evaluation loader's rows, evenly spaced."""
    last = len(loader._dataset) - 1
    return rows_loader(loader, np.unique(np.linspace(0, last, min(n, last + 1)).astype(int)))


def rows_loader(loader: Any, rows: np.ndarray) -> Any:
    """A loader of some of an evaluation loader's rows, int [n]."""
    dataset = loader._dataset
    return type(loader)(loader.config, dataset.copy(dataset.inter_feat[rows]), loader._sampler)


def dataset_of(loader: Any) -> Any:
    """The data set that a loader of RecBole goes through."""
    return loader._dataset


def split_loaders(config: Any, dataset: Any) -> list[Any]:
    """RecBole's loaders of the training, the validation and the test part of a data set."""
    return list(data_preparation(config, dataset))


def batch_of(columns: Mapping[str, Tensor], device: torch.device) -> Interaction:
    """A batch as RecBole's models read it, of columns [B, ...]."""
    return Interaction(dict(columns)).to(device)


def training_batch(loader: Any, rows: Any) -> Any:
    """A batch as a training loader of RecBole hands it out: transformed, and with negatives where it draws them."""
    return loader._neg_sampling(loader.transform(dataset_of(loader), rows))

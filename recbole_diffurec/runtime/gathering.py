"""Tensors of all processes together, for losses that look at more than a process's own rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from recbole_diffurec.runtime.ranks import rank, world_size


class _Stacked(torch.autograd.Function):
    """Equally shaped tensors of all processes, [processes, ...].

    Every process may make something of every tensor, so that a tensor's gradient is the sum of what they found.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        distributed.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(grad)
        return grad[rank()]


def from_other_ranks(x: Tensor, rows: Tensor) -> Tensor | None:
    """What the other processes have of a batch that the processes share, with gradients.

    Parameters
    ----------
    x : Tensor
        [n, d]; another n in every process.
    rows : Tensor
        int [m], the numbers of this process's rows of the batch.

    Returns
    -------
    Tensor or None
        [sum of the others' n, d]; None where there are none: in a single process, and where each has the whole batch,
        as it is with fewer rows than processes.
    """
    if world_size() == 1:
        return None
    own = torch.tensor([len(x), int(rows[0])], device=x.device)
    table = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(table, own)
    counts, first_rows = torch.stack(table).T.tolist()
    if len(set(first_rows)) < world_size():
        return None
    padded = torch.cat([x, x.new_zeros(max(counts) - len(x), x.shape[1])])
    stacked = _Stacked.apply(padded)
    return torch.cat([stacked[k, :count] for k, count in enumerate(counts) if k != rank()])

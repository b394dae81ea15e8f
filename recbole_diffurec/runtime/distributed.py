"""One training on several processes: ``torchrun`` and PyTorch's ``DistributedDataParallel``.

Every process goes through the same batches in the same order and works on its own rows of each; gradients are averaged
such that the step is that of the whole batch. In evaluation each process scores its share of the users, and what is
collected of them is put together before the metrics are computed. Process 0 alone writes files and talks.

Without several processes every function here does nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import signal
import sys
import time
import uuid
import warnings
from datetime import timedelta
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.runtime.ranks import local_rank, local_world_size, rank, world_size

__all__ = [
    "SynchronisedLoss",
    "all_gather",
    "broadcast_from_rank0",
    "exit_at_once",
    "gather_evaluation",
    "launch",
    "local_rank",
    "local_rank0_first",
    "local_world_size",
    "process_group",
    "rank",
    "world_size",
]

logger = logging.getLogger("recbole_diffurec")

# How long processes wait for each other before they begin, in seconds.
RENDEZVOUS_SECONDS = 900
# Far more processes than a machine has GPUs.
MOST_HERE = 1024
# What RecBole collects for each user.
COLLECTED = ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label")


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connected with the other processes: over NCCL on GPUs, over gloo on CPUs."""
    if world_size() == 1:
        yield
        return
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where NCCL puts what processes tell each other
        # Preparing large data takes its time, while the other processes wait.
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(
            backend, timeout=timedelta(days=1), store=_met(), rank=rank(), world_size=world_size()
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{world_size()} processes cannot be connected ({reason}): start them with torchrun, or with --nproc"
        ) from None
    yield
    # Not after an error: they would wait for processes that wait for this one.
    # gloo's threads free the tensors of a finished operation a little later, and DistributedDataParallel keeps those
    # threads for good. When Python ends meanwhile they abort the process (pytorch/pytorch#179291). A barrier has no
    # tensors of Python, and waits for the lock under which a thread frees those of the operation before; several with
    # pauses, because on a busy machine that thread may not have come to its lock yet.
    for _ in range(3):
        time.sleep(0.05)
        distributed.barrier()
    distributed.destroy_process_group()


def _met() -> distributed.Store:
    """The store that all processes share, once all of them are there; ``RuntimeError`` where they are not in time."""
    patience = timedelta(seconds=RENDEZVOUS_SECONDS)
    where = f"{os.environ.get('MASTER_ADDR')} port {os.environ.get('MASTER_PORT')}"
    minutes = RENDEZVOUS_SECONDS / 60
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # torchrun starts them when all can be there
        logger.info("waiting up to %g minutes at %s for %d processes", minutes, where, world_size() - 1)
    try:
        store, *_ = next(iter(distributed.rendezvous("env://", timeout=patience)))
        store.set(f"here/{rank()}", "")
        store.wait([f"here/{other}" for other in range(world_size())], patience)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RuntimeError(f"not all came to {where} within {minutes:g} minutes: {reason}") from None
    return store


def exit_at_once(code: int) -> None:
    """End this process without Python's usual end, where it is one of several.

    Python's end may abort it in gloo's threads, which outlive the connection (see ``process_group``) and after an error
    still wait for the others; the exit code would be SIGABRT's.
    """
    if world_size() > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def local_rank0_first() -> Iterator[None]:
    """The first process of each machine goes first, so that what it downloads or makes is there for the others."""
    if world_size() > 1 and local_rank() > 0:
        distributed.barrier()
    yield
    if world_size() > 1 and local_rank() == 0:
        distributed.barrier()


def broadcast_from_rank0(make: Callable[[], Any]) -> Any:
    """What ``make`` returns in process 0, where alone it is called; a ``UserError`` of it is raised everywhere.

    The value is of tensors and plain values, see ``checkpoint.to_plain``.
    """
    if world_size() == 1:
        return make()
    made: list[Any] = [None, None]
    if rank() == 0:
        try:
            made[0] = _packed(make())
        except UserError as error:
            made[1] = str(error)
    distributed.broadcast_object_list(made, src=0)
    if made[1] is not None:
        raise UserError(made[1])
    return _unpacked(made[0])


def all_gather(value: Any) -> list[Any]:
    """The ``value`` of every process, in order of their numbers; of tensors and plain values."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, _packed(value))
    return [_unpacked(content) for content in values]


def _packed(value: Any) -> bytes:
    # PyTorch's own way with objects fails for tensors that share a storage.
    buffer = io.BytesIO()
    torch.save(checkpoint.to_plain(value), buffer)
    return buffer.getvalue()


def _unpacked(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _numbers_of_all(own: Tensor) -> Tensor:
    """A few numbers ``own`` [m] of every process, [processes, m], on the CPU."""
    rows = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(rows, own)
    return torch.stack(rows).cpu()


class _Loss(nn.Module):
    """A model's loss as a module's forward pass, which is what ``DistributedDataParallel`` synchronises."""

    def __init__(self, model: nn.Module, loss_func: Callable[[Any], Any]):
        super().__init__()
        self.model, self._loss_func = model, loss_func

    def forward(self, interaction: Any) -> Any:
        return self._loss_func(interaction)


class SynchronisedLoss:
    """A model's loss whose gradients, after the backward pass, are those of the batches of all processes together.

    For losses that are means over the rows of a batch.

    Parameters
    ----------
    model : nn.Module
        The model whose parameters are trained.
    loss_func : callable
        The model's loss.
    unused_parameters : bool
        Whether some parameters may have no gradient in a step.

    Attributes
    ----------
    votes : list of int
        See ``__call__``.
    """

    def __init__(self, model: nn.Module, loss_func: Callable[[Any], Any], unused_parameters: bool):
        self.votes: list[int] = []
        self._loss: Any = loss_func
        if world_size() > 1:
            with warnings.catch_warnings():
                # Of a successor of broadcast_buffers, which older versions do not have. The buffers need no broadcast:
                # they are tables that all processes have, and what a step sampler learned from its own rows.
                warnings.simplefilter("ignore", FutureWarning)
                self._loss = DistributedDataParallel(
                    _Loss(model, loss_func), broadcast_buffers=False, find_unused_parameters=unused_parameters
                )

    def __call__(self, interaction: Any, row_weight: float | None = None, votes: Sequence[int] = ()) -> tuple[Any, Any]:
        """The loss to differentiate and the value for the whole batch, each a number or a tuple of parts.

        Parameters
        ----------
        interaction : Interaction
            This process's rows of the batch.
        row_weight : float, optional
            What each row weighs, in every batch; by default a row's share of the batch.
        votes : Sequence of int, optional
            What this process wants to be known of it; ``self.votes`` are then the largest of all processes'. They go
            with the losses, since each round of messages makes everybody wait.
        """
        losses = self._loss(interaction)
        parts = losses if isinstance(losses, tuple) else (losses,)
        n = len(interaction)
        # Read from the device once: each reading waits for all that it has to do.
        found = torch.stack([part.detach().double().reshape(()) for part in parts])
        if world_size() == 1:
            total, read, self.votes = n, found.tolist(), list(votes)
        else:
            table = _numbers_of_all(torch.cat([n * found, found.new_tensor([n, *votes])]))
            *summed, total = table[:, : len(parts) + 1].sum(dim=0).tolist()
            read = [value / total for value in summed]
            self.votes = table[:, len(parts) + 1 :].amax(dim=0).int().tolist()
        factor = 1.0 if row_weight is None else row_weight * total
        values = tuple(factor * value for value in read)
        # The gradients of the processes are averaged, whatever number of rows each had.
        parts = tuple(part * (factor * n * world_size() / total) for part in parts)
        return (parts, values) if isinstance(losses, tuple) else (parts[0], values[0])


def gather_evaluation(struct: Any) -> Any:
    """RecBole's collected evaluation data with that of the users of all processes."""
    if world_size() > 1:
        own = {name: struct[name] for name in COLLECTED if name in struct}
        everybody = all_gather(own)
        for name in {name for part in everybody for name in part}:
            struct[name] = torch.cat([part[name] for part in everybody if name in part])
    return struct


def launch(
    arguments: list[str],
    nproc: int,
    world_size: int | None,
    group_offset: int,
    ip: str,
    port: int,
    minutes: float = RENDEZVOUS_SECONDS / 60,
) -> int:
    """Start processes on this machine, as ``torchrun`` does, each with the command line ``arguments``.

    Parameters
    ----------
    nproc : int
        Processes here.
    world_size : int or None
        Processes everywhere, ``nproc`` by default; a multiple of it.
    group_offset : int
        The number of the first process here.
    ip : str
        Address of process 0's machine, where there are several machines.
    port : int
        Port there.
    minutes : float
        How long to wait for the other machines.

    Returns
    -------
    int
        0, 2 after a user's mistake, or else the exit code of the first process that failed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    config = _launch_config(nproc, nproc if world_size is None else world_size, group_offset, ip, port, minutes)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        with _environment_of_children(nproc):
            elastic_launch(config, sys.executable)("-m", "recbole_diffurec", *arguments)
    except ChildFailedError as error:
        # A mistake comes before what it did to the processes that lost their connection to the one that told of it.
        first = min(error.failures.values(), key=lambda failure: (failure.exitcode != 2, failure.timestamp))
        if first.exitcode >= 0:
            return first.exitcode
        name = signal.Signals(-first.exitcode).name
        print(
            f"recbole-diffurec: process {group_offset + first.local_rank} was killed ({name}); out of memory, perhaps",
            file=sys.stderr,
        )
        return 128 - first.exitcode
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except (RendezvousError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the processes cannot be connected over '{ip}' port {port} ({reason}): check --ip and --port"
        ) from None
    return 0


def _launch_config(nproc: int, world_size: int, group_offset: int, ip: str, port: int, minutes: float) -> Any:
    """What ``elastic_launch`` is asked for; raises ``UserError`` where the numbers do not fit together."""
    from torch.distributed.launcher.api import LaunchConfig

    if nproc < 1 or world_size % nproc or group_offset % nproc or not 0 <= group_offset < world_size:
        raise UserError(
            f"{nproc} processes from number {group_offset} of {world_size} do not fit together: --world_size and "
            f"--group_offset must be multiples of --nproc, and the offset below the size"
        )
    if nproc > MOST_HERE:
        raise UserError(f"--nproc must be at most {MOST_HERE}, got {nproc}: start one process for each GPU or so")
    if not 0 < minutes <= 24 * 60 or not 0 < port < 2**16:
        raise UserError(
            f"--rendezvous_minutes must be above 0 and at most 1440, and --port from 1 to 65535, got {minutes:g} and "
            f"{port}"
        )
    alone = world_size == nproc
    if not alone:
        logger.info(
            "waiting up to %g minutes at %s port %d for %d processes of other machines",
            minutes,
            ip,
            port,
            world_size - nproc,
        )
    return LaunchConfig(
        min_nodes=world_size // nproc,
        max_nodes=world_size // nproc,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex if alone else f"{ip}:{port}",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else f"{ip}:{port}",
        rdzv_configs={} if alone else {"rank": group_offset // nproc, "timeout": math.ceil(60 * minutes)},
        max_restarts=0,
    )


@contextlib.contextmanager
def _environment_of_children(nproc: int) -> Iterator[None]:
    """What the processes find in their environment, in this one's while they are started."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    changed = {
        # The processes share the cores, and find this package as this process did.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc))),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        # They say themselves what went wrong; DDP's advice on models without unused parameters is for developers.
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }
    before = dict(os.environ)
    os.environ.update(changed)
    try:
        yield
    finally:
        # PyTorch leaves names of its own as well.
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)

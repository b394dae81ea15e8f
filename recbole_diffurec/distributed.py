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
import os
import signal
import sys
import uuid
import warnings
from datetime import timedelta
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler

from recbole_diffurec import checkpoint, compat
from recbole_diffurec.errors import UserError
from recbole_diffurec.model.base import DiffusionRecommender

# What RecBole collects for each user.
COLLECTED = ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label")


def rank() -> int:
    """The number of this process, as ``torchrun`` says; 0 writes and talks."""
    return int(os.environ.get("RANK", 0)) if size() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if size() > 1 else 0


def local_size() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if size() > 1 else 1


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Connected with the other processes: over NCCL on GPUs, over gloo on CPUs."""
    if size() == 1:
        yield
        return
    if rank() > 0:
        compat.no_tensorboard()
    try:
        # Preparing large data takes its time, while the other processes wait.
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(days=1))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{size()} processes cannot be connected ({reason}): start them with torchrun, or with --nproc"
        ) from None
    yield
    # Not after an error: they would wait for processes that wait for this one.
    # gloo's threads free the tensors of a finished operation a little later, and DistributedDataParallel keeps those
    # threads for good. When Python ends meanwhile they abort the process (pytorch/pytorch#179291). The barrier has no
    # tensors of Python, and comes after the operations that have.
    distributed.barrier()
    distributed.destroy_process_group()


def exit_at_once(code: int) -> None:
    """End this process without Python's usual end, where it is one of several.

    Python's end may abort it in gloo's threads, which outlive the connection (see ``joined``) and after an error still
    wait for the others; the exit code would be SIGABRT's.
    """
    if size() > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def one_after_the_first() -> Iterator[None]:
    """The first process of each machine goes first, so that what it downloads or makes is there for the others."""
    if size() > 1 and local_rank() > 0:
        distributed.barrier()
    yield
    if size() > 1 and local_rank() == 0:
        distributed.barrier()


def from_first(make: Callable[[], Any]) -> Any:
    """What ``make`` returns in process 0, where alone it is called; a ``UserError`` of it is raised everywhere.

    The value is of tensors and plain values, see ``checkpoint.to_plain``.
    """
    if size() == 1:
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


def from_all(value: Any) -> list[Any]:
    """The ``value`` of every process, in order of their numbers; of tensors and plain values."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    distributed.all_gather_object(values, _packed(value))
    return [_unpacked(content) for content in values]


def _packed(value: Any) -> bytes:
    # PyTorch's own way with objects fails for tensors that share a storage.
    buffer = io.BytesIO()
    torch.save(checkpoint.to_plain(value), buffer)
    return buffer.getvalue()


def _unpacked(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _numbers_of_all(numbers: Sequence[float], device: torch.device) -> Tensor:
    """A few ``numbers`` [m] of every process, float64 [processes, m]."""
    own = torch.tensor(numbers, dtype=torch.float64, device=device)
    rows = [torch.empty_like(own) for _ in range(size())]
    distributed.all_gather(rows, own)
    return torch.stack(rows)


def largest_of_all(numbers: Sequence[int], device: torch.device) -> list[int]:
    """The largest of every process's ``numbers`` [m], at each place."""
    if size() == 1:
        return list(numbers)
    return [int(number) for number in _numbers_of_all(numbers, device).amax(dim=0)]


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
            yield batch[rank() :: size()] if len(batch) >= size() else batch


def share_training(loader: Any) -> None:
    """Let a training loader give this process's rows of every batch."""
    if size() > 1:
        # torch forbids to replace a loader's batch sampler through its attribute.
        vars(loader)["batch_sampler"] = _Share(loader.batch_sampler)


def share_evaluation(loader: Any) -> None:
    """Let a loader for evaluation give this process's users."""
    if size() > 1:
        users = list(loader.batch_sampler.sampler)
        if len(users) < size():
            raise UserError(f"there are {len(users)} users to evaluate and {size()} processes: start fewer")
        loader.batch_sampler.sampler = users[rank() :: size()]


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
    model : whose parameters are trained.
    loss_func : its loss, by default ``model.calculate_loss``.
    """

    def __init__(self, model: Any, loss_func: Callable[[Any], Any] | None, device: torch.device):
        self._device = device
        loss_func = loss_func or model.calculate_loss
        self._loss: Any = loss_func
        if size() > 1:
            unused = not isinstance(model, DiffusionRecommender)  # RecBole's may have parameters without a gradient
            with warnings.catch_warnings():
                # Of a successor of broadcast_buffers, which older versions do not have. The buffers need no broadcast:
                # they are tables that all processes have, and what a step sampler learned from its own rows.
                warnings.simplefilter("ignore", FutureWarning)
                self._loss = DistributedDataParallel(
                    _Loss(model, loss_func), broadcast_buffers=False, find_unused_parameters=unused
                )

    def __call__(self, interaction: Any) -> tuple[Any, Any]:
        """The loss to differentiate and the value for the whole batch, each a number or a tuple of parts."""
        losses = self._loss(interaction)
        parts = losses if isinstance(losses, tuple) else (losses,)
        values = tuple(float(part.detach()) for part in parts)
        if size() > 1:
            n = len(interaction)
            table = _numbers_of_all([n, *(n * value for value in values)], self._device).sum(dim=0).tolist()
            values = tuple(value / table[0] for value in table[1:])
            # The gradients of the processes are averaged, whatever number of rows each had.
            parts = tuple(part * (n * size() / table[0]) for part in parts)
        return (parts, values) if isinstance(losses, tuple) else (parts[0], values[0])


def put_together(struct: Any) -> Any:
    """RecBole's collected evaluation data with that of the users of all processes."""
    if size() > 1:
        own = {name: struct[name] for name in COLLECTED if name in struct}
        everybody = from_all(own)
        for name in {name for part in everybody for name in part}:
            struct[name] = torch.cat([part[name] for part in everybody if name in part])
    return struct


def launch(arguments: list[str], nproc: int, world_size: int | None, group_offset: int, ip: str, port: int) -> int:
    """Start processes on this machine, as ``torchrun`` does, each with the command line ``arguments``.

    Parameters
    ----------
    nproc : processes here.
    world_size : processes everywhere, ``nproc`` by default; a multiple of it.
    group_offset : the number of the first process here.
    ip, port : of process 0's machine, where there are several machines.

    Returns
    -------
    0, 2 after a user's mistake, or else the exit code of the first process that failed.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    world_size = nproc if world_size is None else world_size
    if nproc < 1 or world_size % nproc or group_offset % nproc or not 0 <= group_offset < world_size:
        raise UserError(
            f"{nproc} processes from number {group_offset} of {world_size} do not fit together: --world_size and "
            f"--group_offset must be multiples of --nproc, and the offset below the size"
        )
    config = LaunchConfig(
        min_nodes=world_size // nproc,
        max_nodes=world_size // nproc,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex if world_size == nproc else f"{ip}:{port}",
        rdzv_backend="c10d" if world_size == nproc else "static",
        rdzv_endpoint="localhost:0" if world_size == nproc else f"{ip}:{port}",
        rdzv_configs={} if world_size == nproc else {"rank": group_offset // nproc, "timeout": 900},
        max_restarts=0,
    )
    before = dict(os.environ)
    # The processes share the cores, and find this package as this process did.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    # The processes say themselves what went wrong; DDP's advice on models without unused parameters is for developers.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "recbole_diffurec.cli", *arguments)
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
    finally:
        os.environ.clear()
        os.environ.update(before)
    return 0

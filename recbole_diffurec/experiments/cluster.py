"""More than one run at a time, on Ray: on this machine or on a cluster that is there already."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from recbole_diffurec.config import layers
from recbole_diffurec.config.rules import check_numbers
from recbole_diffurec.errors import UserError, cannot_import


def require(module: str, what: str) -> None:
    """Raise ``UserError`` where a module that the extra ``tune`` brings cannot be imported; ``what`` needs it."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise cannot_import(what, error, "[tune]") from None


LOG = "ray.log"  # what Ray says, in the folder of what is made with it


@contextlib.contextmanager
def _spoken_to(path: Path) -> Iterator[None]:
    """What Ray's own loggers say goes to a file; it is for whoever looks for a mistake, and not for the terminal."""
    ray_logger = logging.getLogger("ray")
    handlers = ray_logger.handlers
    own = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace", delay=True)
    own.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ray_logger.handlers = [own]
    try:
        yield
    finally:
        ray_logger.handlers = handlers
        own.close()


@contextlib.contextmanager
def connected(address: str | None, log: Path, cpus: int | None = None) -> Iterator[Any]:
    """Ray, started here or joined at ``address``, with this package on every worker.

    Parameters
    ----------
    address : str or None
        Of a cluster.
    log : Path
        The file of Ray's own words.
    cpus : int, optional
        What a Ray started here may hand out; None for what the machine has.

    Raises
    ------
    UserError
        Nothing answers at the address, or at that of the environment variable ``RAY_ADDRESS``, within five seconds.
    """
    import ray

    # Ray takes what the environment says where it is told nothing.
    address = address or os.environ.get("RAY_ADDRESS", "").strip() or None
    _check_address(address)
    with _spoken_to(log), tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "recbole_diffurec"
        shutil.copytree(Path(__file__).resolve().parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(layers.properties_dir(), package / "properties", dirs_exist_ok=True)
        # Workers elsewhere have neither this folder nor this installation.
        environment = {"py_modules": [str(package)], "env_vars": {"OMP_WAIT_POLICY": "passive"}}
        options: dict[str, Any] = {"address": address} if address else {"num_cpus": cpus, "include_dashboard": False}
        try:
            ray.init(**options, runtime_env=environment, logging_level=logging.WARNING, log_to_driver=False)
        except (ConnectionError, ValueError):
            if address is None:
                raise
            raise UserError(_NO_CLUSTER.format(address)) from None
        try:
            yield ray
        finally:
            ray.shutdown()


_NO_CLUSTER = (
    "no Ray cluster answers at '{}': check --ray_address and the environment variable RAY_ADDRESS, start one with "
    "'ray start --head', or set RAY_AUTH_MODE=token where the cluster wants its token ('ray get-auth-token')"
)


_PATIENCE = 5.0  # seconds
# How HTTP/2, which Ray speaks, begins, with a frame of no settings; servers answer with theirs at once.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_CLIENT_PORT = 10001  # where Ray looks for a server of its clients that is named without a port


def _check_address(address: str | None) -> None:
    """Ray itself waits for minutes where nobody answers."""
    address = address or ""
    place = address.removeprefix("ray://")
    if address.startswith("ray://") and ":" not in place:
        place += f":{_CLIENT_PORT}"
    host, colon, port = place.rpartition(":")
    if not colon:
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE) as connection:
            connection.sendall(_HELLO)
            if connection.recv(4) in (b"", b"HTTP"):
                raise OSError("what listens there is no Ray")
    except (OSError, ValueError, OverflowError):
        raise UserError(_NO_CLUSTER.format(address)) from None


@dataclass(frozen=True)
class HowToRun:
    """How the runs of a comparison are run; wrong values are refused.

    Parameters
    ----------
    parallel : int
        Runs at a time.
    ray_address : str or None
        A Ray cluster; ``auto`` finds a local one.
    cpus_per_run, gpus_per_run : float
        What each run is given; fractions share a device.
    dry_run : bool
        Estimate the cost and stop.
    """

    parallel: int = 1
    ray_address: str | None = None
    cpus_per_run: float = 1
    gpus_per_run: float = 0
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_numbers(
            {
                "parallel": (self.parallel, 1, "int"),
                "cpus_per_run": (self.cpus_per_run, 0, "number"),
                "gpus_per_run": (self.gpus_per_run, 0, "number"),
            }
        )
        if self.on_ray and not self.dry_run:
            require("ray", "running in parallel")

    @property
    def on_ray(self) -> bool:
        """Whether Ray runs the runs, rather than this process one after the other."""
        return self.parallel > 1 or bool(self.ray_address)


def run_parallel(
    jobs: Sequence[Any], function: Callable[[Any, Any], Any], shared: Any, how: HowToRun, log: Path
) -> Iterator[tuple[Any, Any]]:
    """``function(job, shared)`` for every job, at most ``how.parallel`` at a time, as they finish.

    Parameters
    ----------
    jobs : Sequence of object
        What to run.
    function : callable
        Called on the workers.
    shared : object
        What every job is given; put into Ray's object store once.
    how : HowToRun
        Where, and what each run is given.
    log : Path
        The file of Ray's own words.

    Yields
    ------
    job : object
        One of ``jobs``.
    result : object
        What the function returned, or the exception that it raised.
    """
    needed = max(1, int(how.parallel * how.cpus_per_run + 0.999))
    with connected(how.ray_address, log, None if how.ray_address else needed) as ray:
        remote = ray.remote(num_cpus=how.cpus_per_run, num_gpus=how.gpus_per_run, max_retries=1)(function)
        reference = ray.put(shared)
        waiting = list(jobs)
        running: dict[Any, Any] = {}
        try:
            while waiting or running:
                while waiting and len(running) < how.parallel:
                    job = waiting.pop(0)
                    running[remote.remote(job, reference)] = job
                (done, *_), _ = ray.wait(list(running))
                job = running.pop(done)
                try:
                    yield job, ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    yield job, error.cause if isinstance(error.cause, Exception) else error
                except ray.exceptions.RayError as error:
                    yield job, error
        finally:
            for reference_of_run in running:
                ray.cancel(reference_of_run, force=True)

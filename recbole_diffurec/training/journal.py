"""Where the figures of a training go beside its log: TensorBoard, and the trackers that ``log_to`` names.

All have the same names: ``train/loss`` (the mean over the batches), ``train/learning_rate``, ``train/seconds``,
``valid/ndcg@10`` and so on, at the number of the epoch as the terminal counts it, from 1; at the end ``test/ndcg@10``
and so on, the best epoch, and the path of the checkpoint. A training that is resumed goes on in the same place.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from recbole_diffurec.errors import UserError, cannot_import
from recbole_diffurec.host import trackers
from recbole_diffurec.host.checkpoints import plain_values
from recbole_diffurec.runtime import files

logger = logging.getLogger("recbole_diffurec")

_FOLDER = "log_tensorboard"  # as RecBole calls it


class Sink(Protocol):
    """One place for figures. Where making one raises, the training does not begin."""

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        """Take figures of an epoch, counted from 1."""

    def finish(self, figures: Mapping[str, float], checkpoint: str) -> None:
        """Take the last figures."""

    def close(self, failure: BaseException | None) -> None:
        """Let go of it, with what ended the training, if anything did."""


class TensorBoard:
    """Event files in ``log_tensorboard/NAME``."""

    def __init__(self, name: str, values: Mapping[str, Any], first_epoch: int):
        from torch.utils.tensorboard import SummaryWriter

        folder = os.path.join(_FOLDER, name)
        files.make_folder(folder, "the folder for TensorBoard")
        # Epochs that an interrupted training had told of already are told again by the one that goes on.
        self._writer: Any = SummaryWriter(folder, purge_step=first_epoch if first_epoch > 1 else None)
        plain = (bool, int, float, str)
        self._values = {name: value if isinstance(value, plain) else str(value) for name, value in values.items()}

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        for name, figure in figures.items():
            self._writer.add_scalar(name, figure, epoch)
        self._writer.flush()

    def finish(self, figures: Mapping[str, float], checkpoint: str) -> None:
        from torch.utils.tensorboard.summary import hparams

        self._writer.add_text("checkpoint", checkpoint)
        # SummaryWriter.add_hparams would open a file of its own, which readers may take to be the older one.
        for part in hparams(self._values, dict(figures)):
            self._writer.file_writer.add_summary(part)
        for name, figure in figures.items():
            self._writer.add_scalar(name, figure, int(figures["best_epoch"]))

    def close(self, failure: BaseException | None) -> None:
        self._writer.close()


class MLflow:
    """A run of MLflow, where its environment variables say; inside the program's own run, if there is one."""

    def __init__(self, name: str, values: Mapping[str, Any], first_epoch: int):
        import mlflow

        self._mlflow, identity = mlflow, _identity(name)
        with _quiet_store():
            before = mlflow.search_runs(
                filter_string=f"tags.training = '{identity}'", max_results=1, output_format="list"
            )
            self._run = mlflow.start_run(
                run_id=before[0].info.run_id if before else None,
                run_name=None if before else name,
                nested=mlflow.active_run() is not None,
                tags={"training": identity},
            )
        if not before:
            try:
                mlflow.log_params({name: str(value) for name, value in values.items()})
            except Exception as error:
                self.close(error)
                raise

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        # It takes no @ in names.
        renamed = {name.replace("@", "_at_"): figure for name, figure in figures.items()}
        self._mlflow.log_metrics(renamed, epoch, run_id=self._run.info.run_id)

    def finish(self, figures: Mapping[str, float], checkpoint: str) -> None:
        self.add(figures, int(figures["best_epoch"]))
        self._mlflow.set_tag("checkpoint", checkpoint)

    def close(self, failure: BaseException | None) -> None:
        stopped = isinstance(failure, KeyboardInterrupt)
        self._mlflow.end_run("FINISHED" if failure is None else "KILLED" if stopped else "FAILED")


class WeightsAndBiases:
    """A run of Weights & Biases, as its environment variables say, or the one that the program has already."""

    def __init__(self, name: str, values: Mapping[str, Any], first_epoch: int):
        import wandb

        project = values.get("wandb_project") or os.environ.get("WANDB_PROJECT") or "recbole-diffurec"
        self._own = wandb.run is None
        # By its id a run is found again that was begun before.
        self._run = wandb.run or wandb.init(project=project, name=name, id=_identity(name), resume="allow")
        self._run.config.update(dict(values), allow_val_change=True)
        # Of its own steps it takes none twice.
        self._run.define_metric("*", step_metric="epoch")

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        self._run.log({**figures, "epoch": epoch})

    def finish(self, figures: Mapping[str, float], checkpoint: str) -> None:
        self._run.summary.update({**figures, "checkpoint": checkpoint})

    def close(self, failure: BaseException | None) -> None:
        if self._own:
            self._run.finish(exit_code=0 if failure is None else 1)


_SINKS: dict[str, Callable[[str, Mapping[str, Any], int], Sink]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
_TO_BEGIN = {
    "mlflow": "set MLFLOW_TRACKING_URI to a server that runs, or to a database such as sqlite:///mlflow.db",
    "wandb": "log in with 'wandb login', or set WANDB_MODE=offline",
}


class Journal:
    """All sinks of one training; use it as a context manager around the training.

    Parameters
    ----------
    name : str, optional
        What the checkpoint and the log of the training are called too.
    config : RunConfig or Config, optional
        Of the training, ours or RecBole's own.
    first_epoch : int, default 1
        The epoch that the training begins with, above 1 for one that is resumed.
    """

    def __init__(self, name: str = "", config: Any = None, first_epoch: int = 1):
        self._name, self._config, self._first_epoch = name, config, first_epoch
        self._sinks: dict[str, Sink] = {}

    def begin(self) -> None:
        """Open the sinks; before it, and without it, nothing is told to anybody.

        Raises
        ------
        UserError
            A tracker is unknown, cannot be imported, or does not begin.
        """
        values = {name: value for name, value in plain_values(self._config).items() if value is not None}
        values = {"model": self._config["model"], "dataset": self._config["dataset"], **values}
        # RecBole's own Config leaves log_wandb to RecBole.
        named = trackers.named({"log_to": self._config["log_to"], "log_wandb": False})
        for name in (*named, "tensorboard"):
            try:
                self._sinks[name] = _SINKS[name](self._name, values, self._first_epoch)
            except UserError:
                raise
            except ImportError as error:  # of what the library wants for the place that it is to write to
                raise cannot_import(f"log_to {name}", error, f"[{name}]") from None
            except Exception as error:
                raise UserError(
                    f"{trackers.TRACKERS.get(name, name)} does not begin ({_first_line(error)}): "
                    f"{_TO_BEGIN.get(name, 'give another working folder')}"
                ) from error

    def trained(self, epoch: Mapping[str, Any], parts: Sequence[float] = ()) -> None:
        """Tell of an epoch's training.

        Parameters
        ----------
        epoch : Mapping of str to object
            The entry of the trainer's ``history``.
        parts : Sequence of float, optional
            What the loss is the sum of, where a model has several.
        """
        figures = {f"train/{name.removeprefix('train_')}": epoch[name] for name in _OF_TRAINING}
        self._add({**figures, **{f"train/loss_{n}": part for n, part in enumerate(parts, 1)}}, epoch)

    def validated(self, epoch: Mapping[str, Any]) -> None:
        """Tell of an epoch's validation, whose entry of ``history`` has it by now."""
        figures = {f"valid/{name}": float(figure) for name, figure in epoch["valid_result"].items()}
        self._add({**figures, "valid/seconds": epoch["valid_seconds"]}, epoch)

    def _add(self, figures: Mapping[str, float], epoch: Mapping[str, Any]) -> None:
        self._each(lambda sink: sink.add(figures, epoch["epoch"] + 1))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Tell of the result of the run, as ``run`` returns it."""
        figures = {f"test/{name}": figure for name, figure in result["test_result"].items()}
        figures["best_epoch"] = result["best_epoch"] + 1
        self._each(lambda sink: sink.finish(figures, result["checkpoint"]))

    def _each(self, tell: Callable[[Sink], None]) -> None:
        """A sink that fails is given up; hours of training are worth more."""
        for name, sink in list(self._sinks.items()):
            try:
                tell(sink)
            except Exception as error:
                del self._sinks[name]
                logger.warning("%s takes no more figures (%s); the training goes on", name, _first_line(error))
                with contextlib.suppress(Exception):
                    sink.close(error)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._each(lambda sink: sink.close(failure))
        self._sinks.clear()


_OF_TRAINING = ("train_loss", "learning_rate", "train_seconds")


def _identity(name: str) -> str:
    """A short name of a training, in letters that every tracker takes."""
    return hashlib.sha256(name.encode("utf-8", errors="surrogateescape")).hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet_store() -> Any:
    """Without MLflow's lines about the tables of a database that it makes."""
    store = logging.getLogger("mlflow.store.db.utils")
    level = store.level
    store.setLevel(logging.WARNING)
    try:
        yield
    finally:
        store.setLevel(level)

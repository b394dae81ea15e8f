"""One run: configuration in, result out. Prepare data, train, choose the best epoch, test, report."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from recbole.utils import init_seed

from recbole_diffurec.errors import UserError
from recbole_diffurec.host import compat
from recbole_diffurec.host.checks import check_given
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.devices import say_of_gpus
from recbole_diffurec.host.loaders import dataset_of, share_evaluation, share_training
from recbole_diffurec.models.dropout_by_data import chosen_dropout
from recbole_diffurec.runtime import distributed, files, visible
from recbole_diffurec.runtime.process import restored
from recbole_diffurec.training.evaluate import timed_test
from recbole_diffurec.training.journal import Journal
from recbole_diffurec.training.own_data import data_set_of
from recbole_diffurec.training.prepare import DatasetCache, PreparedData, build, prepare_data
from recbole_diffurec.training.report import (
    deliver,
    describe_epoch,
    describe_network,
    describe_run,
    explained,
    log_file,
    new_name,
    plain_metrics,
)
from recbole_diffurec.training.state import OtherDataError, TrainingState, check_data, find_state

logger = logging.getLogger("recbole_diffurec")


@files.nameable()
@visible.lines()
def run(
    model: str | None = None,
    dataset: str | None = None,
    *,
    config_files: Sequence[str | Path] = (),
    experiment: str | None = None,
    result_file: str | Path | None = None,
    resume: bool = False,
    data: Any = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Train, validate and test one model on one data set.

    Parameters
    ----------
    model, dataset : str, optional
        Names; any model of RecBole, any known data set or ``data_path/NAME/NAME.inter``, or the path of a table that
        ``prepare`` takes. By default what ``config_files`` or the experiment say, or else DiffuRecSys and ml-100k.
    config_files : Sequence of (str or Path), optional
        YAML files, later ones stronger.
    experiment : str, optional
        Name of a file under ``properties/experiment``.
    result_file : str or Path, optional
        Where to write the result as JSON; its folder is made when missing.
    resume : bool, optional
        Continue an interrupted run of the same configuration, which left its state in ``checkpoint_dir``.
    data : pandas.DataFrame, str or Path, optional
        A table in the place of ``dataset``, with a row for each interaction.
    **parameters : object
        The strongest layer, such as ``epochs=5``. With a table also the options of ``prepare``: ``user``, ``item``,
        ``time`` and others, ``name`` and ``overwrite``.

    Returns
    -------
    dict of str to object
        With ``model``, ``dataset``, ``seed``, ``n_users``, ``n_items``, ``n_interactions`` (after filtering, without
        padding), ``best_epoch`` (0-based, as RecBole counts), ``best_valid_result`` and ``test_result`` (empty where
        the split has no such part; without validation every epoch is trained and the last one counts),
        ``train_seconds`` (training epochs alone), ``eval_seconds`` (the final test), ``n_parameters``, ``checkpoint``,
        ``log``, ``history`` (per epoch), ``config``, ``versions``.

    Raises
    ------
    UserError
        A parameter, a name or the data is wrong; the message says what to do.
    """
    dataset = data_set_of(dataset, parameters, config_files, experiment, data)
    config = RunConfig(model, dataset, parameters, config_files, experiment)
    check_given(config, parameters, config_files)
    path = files.check_writable(result_file, "result_file", (*config_files, *config.data_files()))
    with distributed.process_group(config["device"]):
        # Asked by all processes before any of them can write a state.
        state = distributed.broadcast_from_rank0(lambda: find_state(config) if resume else None)
        if resume and state is None:
            logger.info("nothing to resume in '%s': starting afresh", config["checkpoint_dir"])
        result = train(config, state=state).result
    # Disconnected: where the file cannot be written, no other process waits for the one that says so.
    return deliver(result, path)


@dataclass
class TrainedRun:
    """A finished run with everything that made it, for further analyses; ``result`` is as ``run`` returns it."""

    config: RunConfig
    data: PreparedData
    network: Any
    trainer: Any
    result: dict[str, Any]


def train(
    config: RunConfig,
    datasets: DatasetCache | None = None,
    on_scores: Callable[..., None] | None = None,
    state: TrainingState | None = None,
) -> TrainedRun:
    """Train, validate and test by a checked configuration.

    Parameters
    ----------
    config : RunConfig
        Checked.
    datasets : DatasetCache, optional
        Data sets that runs share.
    on_scores : callable, optional
        Called in the final test as in ``PluginTrainer.telling``.
    state : TrainingState, optional
        State of an interrupted training, from ``find_state``, to resume.
    """
    model, dataset = config["model"], config["dataset"]
    if distributed.world_size() > 1:
        config.spec.refuse("nproc", "be trained in several processes")
    files.make_folder(config["checkpoint_dir"], "checkpoint_dir")
    say_of_gpus(config.external_config_dict)
    own = state["checkpoint"].removesuffix(".pth") if state is not None else new_name(config)
    name = distributed.broadcast_from_rank0(lambda: own)
    with compat.quiet(), restored(), log_file(config, name) as log:
        with explained(f"preparing data set '{dataset}'", log), distributed.local_rank0_first():
            data = prepare_data(config, datasets)
        with explained(f"building model '{model}'", log):
            network, trainer = build(data.config, dataset_of(data.loaders[0]))
        trainer.name = name
        logger.info("%s", describe_network(config, network))
        if chosen := chosen_dropout(data.config):
            rows = len(dataset_of(data.loaders[0]))
            logger.info("%s: %s training rows for %s items", chosen, f"{rows:,}", f"{network.n_items - 1:,}")
        _share(data, trainer)
        if state is not None:
            check_data(state, data)
            done = f"{state['unfinished']['done']} batches of epoch {state['epoch'] + 1}"
            logger.info("resuming after %s from '%s'", done, os.path.relpath(state["state_file"]))
            trainer.resume(state)
        with Journal(name, config, 1 + (state["epoch"] if state is not None else 0)) as trainer.journal:
            distributed.broadcast_from_rank0(trainer.journal.begin)
            result = _train_and_test(config, data, trainer, log, on_scores)
    if distributed.rank() == 0:
        Path(trainer.state_file).unlink(missing_ok=True)
    return TrainedRun(config, data, network, trainer, result)


def _train_and_test(
    config: RunConfig, data: PreparedData, trainer: Any, log: str, on_scores: Callable[..., None] | None
) -> dict[str, Any]:
    """The result of the run, which its journal has been told too."""
    with explained(f"training model '{config['model']}'", log):
        best_valid_result = trainer.train_resumably(
            data.loaders[0], data.loaders[1], lambda epoch: logger.info(describe_epoch(epoch, config))
        )
    with trainer.telling(on_scores):
        test_result, eval_seconds = timed_test(trainer, data)
    result = {
        **describe_run(config, data, trainer.model),
        "best_epoch": trainer.best_epoch,
        "best_valid_result": plain_metrics(best_valid_result),
        "test_result": test_result,
        "train_seconds": trainer.train_seconds,
        "eval_seconds": eval_seconds,
        "checkpoint": os.path.abspath(trainer.saved_model_file),
        "log": log,
        "history": trainer.history,
    }
    trainer.journal.finish(result)
    return result


def train_or_resume(
    config: RunConfig, datasets: DatasetCache | None = None, on_scores: Callable[..., None] | None = None
) -> TrainedRun:
    """``train``, from the state that an interrupted training of this very configuration left, where it left one.

    Parameters
    ----------
    config : RunConfig
        Checked.
    datasets : DatasetCache, optional
        Data sets that runs share.
    on_scores : callable, optional
        As of ``train``.
    """
    state = find_state(config, strict=False)
    try:
        return train(config, datasets, on_scores, state)
    except OtherDataError as error:
        logger.warning("%s on %s: %s; it starts afresh", config["model"], config["dataset"], error)
        return train(config, datasets, on_scores)


def _share(data: PreparedData, trainer: Any) -> None:
    """Give this process its part of the data, where there are several."""
    if distributed.world_size() == 1:
        return
    config, (train_data, *held_out) = data.config, data.loaders
    if not (trainer.has_plain_epochs and hasattr(train_data, "batch_sampler")):
        raise UserError(
            f"model '{config['model']}' trains in a way of its own: train it in one process, without --nproc or "
            f"torchrun"
        )
    share_training(train_data)
    for loader in held_out:
        share_evaluation(loader)
    # Equal weights until here, other draws from here on.
    init_seed((config["seed"] + 1 + distributed.rank()) % 2**32, config["reproducibility"])

"""Checkpoints tested again: one, or several as one."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from recbole.utils import EvaluatorType, ModelType

from recbole_diffurec.errors import UserError
from recbole_diffurec.host import compat, trackers
from recbole_diffurec.host.checks import check_effect_after, check_effect_in_rankings
from recbole_diffurec.host.config import DATA_PARAMETERS, RunConfig
from recbole_diffurec.host.devices import say_of_gpus
from recbole_diffurec.host.fingerprint import differences
from recbole_diffurec.host.inputs import inputs_of_test
from recbole_diffurec.host.loaders import dataset_of, share_evaluation
from recbole_diffurec.host.models import WITHOUT_FIRST_WEIGHTS
from recbole_diffurec.models.cooccurrence import FROM_CHECKPOINT
from recbole_diffurec.models.ensemble import Ensemble, ranks_all_items
from recbole_diffurec.runtime import distributed, files, visible
from recbole_diffurec.runtime.checkpoint import RunCheckpoint
from recbole_diffurec.runtime.process import restored
from recbole_diffurec.runtime.shared import open_model
from recbole_diffurec.training.prepare import PreparedData, build, prepare_data
from recbole_diffurec.training.report import deliver, describe_run, explained, log_file, plain_metrics
from recbole_diffurec.training.weights import load_weights, room_for


@files.nameable()
@visible.lines()
def evaluate(
    checkpoint_file: str | Path, *more: str | Path, result_file: str | Path | None = None, **parameters: Any
) -> dict[str, Any]:
    """Test a checkpoint, or several as one; with no parameters, the figures of one are those of the run that wrote it.

    Parameters
    ----------
    checkpoint_file : str or Path
        A ``.pth`` file of ``run``, or a ``.safetensors`` file that ``export`` made of one.
    *more : str or Path
        Others, of sequential models on the same data; the mean of all their softmax probabilities is tested.
    result_file : str or Path, optional
        Where to write the result as JSON.
    **parameters : object
        What to change, for every checkpoint, such as ``sampling_steps=1`` or ``mask_seen=True``.

    Returns
    -------
    dict of str to object
        As ``run``, without what only training knows; of several checkpoints, what is said about one is about the first,
        but for ``n_parameters`` and the list ``checkpoints``.

    Raises
    ------
    UserError
        A file is no checkpoint of ours, a parameter is wrong, the data is not what the model was trained on, or the
        models do not fit together.
    """
    members = open_members([checkpoint_file, *more], parameters)
    for member in members:
        check_effect_in_rankings(parameters, member.config)
    read = checkpoint_file, *more, *members[0].config.data_files()
    path = files.check_writable(result_file, "result_file", read)
    with opened(members, parameters) as found:
        first, (network, trainer) = found.members[0], found.built[0]
        if more:
            network = trainer.model = as_one([network for network, _ in found.built], found.members)
        with explained(f"testing model '{first.state['model']}'", found.log):
            test_result, eval_seconds = timed_test(trainer, found.data, load_best=False)
    result = {
        **describe_run(first.config, found.data, network),
        "best_epoch": first.state["epoch"],
        "test_result": test_result,
        "eval_seconds": eval_seconds,
        "checkpoint": os.path.abspath(checkpoint_file),
        **({"checkpoints": [os.path.abspath(member.path) for member in found.members]} if more else {}),
        "log": found.log,
    }
    return deliver(result, path)


@dataclass(frozen=True)
class Opened:
    """Checkpoints of one data set, opened.

    Attributes
    ----------
    members : list of Member
        The checkpoints.
    built : list of tuple
        The network with its weights, and a trainer, of each.
    data : PreparedData
        Their data.
    log : str
        The path of the log file.
    """

    members: list[Member]
    built: list[tuple[Any, Any]]
    data: PreparedData
    log: str


def open_members(
    paths: Sequence[str | Path], parameters: Mapping[str, Any], also_read: frozenset[str] = frozenset()
) -> list[Member]:
    """Checkpoints of one data set, read, before any data is.

    Parameters
    ----------
    paths : Sequence of str or Path
        The files.
    parameters : Mapping of str to object
        What to change, for every checkpoint.
    also_read : frozenset of str, optional
        Parameters of training that act in this use of the checkpoints.

    Raises
    ------
    UserError
        As ``evaluate``, as far as it can be told so early.
    """
    trackers.refuse(parameters)
    members = [Member.open(path, parameters) for path in paths]
    given = {name: value for name, value in parameters.items() if name not in also_read}
    for member in members:
        check_effect_after(given, member.config, member.state["config"])
    for other in members[1:]:
        _check_fits_together(members[0], other)
    members[0].config.refuse_without("test", "there is nothing to test on")
    return members


@contextlib.contextmanager
def opened(members: list[Member], parameters: Mapping[str, Any]) -> Iterator[Opened]:
    """The networks, the trainers and the data of checkpoints, to be tested; leaves the process as it was.

    Parameters
    ----------
    members : list of Member
        From ``open_members``.
    parameters : Mapping of str to object
        What the user changed.

    Raises
    ------
    UserError
        The data is not what the models were trained on, or weights do not fit.
    """
    first = members[0]
    with (
        compat.quiet(),
        restored(),
        distributed.process_group(first.config["device"]),
        log_file(first.config, required=False) as log,
    ):
        data = first.data(log, parameters)
        yield Opened(members, [member.build(data, log, parameters) for member in members], data, log)


@dataclass(frozen=True)
class Member:
    """One of the checkpoints that are tested."""

    path: str | Path
    state: RunCheckpoint
    config: RunConfig

    @classmethod
    def open(cls, path: str | Path, parameters: Mapping[str, Any]) -> Member:
        """Read a checkpoint, and its configuration with ``parameters`` changed."""
        state = open_model(path)
        say_of_gpus(parameters)
        config = RunConfig(state["model"], state["dataset"], {**state["config"], **parameters})
        # A test leaves nothing behind, wherever it is called and whatever its checkpoint says.
        folder = os.path.dirname(os.path.abspath(path))
        nothing = {"checkpoint_dir": folder, "save_dataset": False, "save_dataloaders": False}
        return cls(path, state, config.with_values(**nothing))

    def data(self, log: str, parameters: Mapping[str, Any]) -> PreparedData:
        """The data of its run, its test part shared among the processes."""
        with explained(f"preparing data set '{self.state['dataset']}'", log), distributed.local_rank0_first():
            data = prepare_data(self.config)
        share_evaluation(data.loaders[2])
        check_same_data(data, self.state, self.path, parameters)
        return data

    def build(self, data: PreparedData, log: str, parameters: Mapping[str, Any]) -> tuple[Any, Any]:
        """The network with its weights, and a trainer."""
        values = {**data.changes, **FROM_CHECKPOINT, **WITHOUT_FIRST_WEIGHTS.get(self.state["model"], {})}
        with explained(f"building model '{self.state['model']}'", log):
            room = room_for(self.state, self.path)
            network, trainer = build(self.config.with_values(**values), dataset_of(data.loaders[0]), room)
        load_weights(network, self.state, self.path, parameters)
        return network, trainer


def check_same_data(
    data: PreparedData, state: Mapping[str, Any], path: str | Path, parameters: Mapping[str, Any] | None = None
) -> None:
    """Refuse data that are not what a checkpoint's model was trained on.

    Parameters
    ----------
    data : PreparedData
        What there is.
    state : Mapping
        The opened checkpoint.
    path : str or Path
        Where it is from.
    parameters : Mapping, optional
        What the user gave; where they decide on the data, these need only be of the same users and items.

    Raises
    ------
    UserError
        They differ.
    """
    differing = [] if _same_ids(data.id_tokens, state["id_tokens"]) else ["its users or items differ"]
    if state.get("data") and not (parameters or {}).keys() & DATA_PARAMETERS:
        differing = differences(state["data"], data.fingerprint) or differing
    if differing:
        raise UserError(
            f"data set '{state['dataset']}' under '{data.config['data_path']}' is not the one that checkpoint '{path}' "
            f"was trained on ({'; '.join(differing[:3])}): give the original with --data_path"
        )


def _same_ids(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether users and items have the same ids, as far as both say what they are."""
    return all(one[kind] == other[kind] for kind in one.keys() & other.keys())


def _check_fits_together(first: Member, other: Member) -> None:
    """Refuse checkpoints that one evaluation cannot serve."""
    known = other.state["id_tokens"], first.state["id_tokens"]
    if other.state["dataset"] != first.state["dataset"] or not _same_ids(*known):
        raise UserError(
            f"checkpoints '{first.path}' and '{other.path}' were trained on different data (users, items or name): "
            "give checkpoints of one data set"
        )
    name = "MAX_ITEM_LIST_LENGTH"
    if other.config[name] != first.config[name]:
        raise UserError(
            f"checkpoint '{other.path}' has {name} {other.config[name]}, but '{first.path}' has {first.config[name]}: "
            "checkpoints that are tested as one see histories of one length"
        )


def as_one(networks: Sequence[Any], members: Sequence[Member]) -> Ensemble:
    """The networks of checkpoints as one model.

    Parameters
    ----------
    networks : Sequence of object
        RecBole models.
    members : Sequence of Member
        Where each is from.

    Raises
    ------
    UserError
        They do not rank all items, or are judged by single scores.
    """
    metrics = members[0].config["metrics"]
    if members[0].config["eval_type"] == EvaluatorType.VALUE:
        raise UserError(f"checkpoints are tested as one by their rankings, and metrics {metrics} are of single scores")
    for network, member in zip(networks, members):
        if network.type != ModelType.SEQUENTIAL or not ranks_all_items(network):
            raise UserError(
                f"checkpoint '{member.path}' is of {type(network).__name__}, which cannot be tested with others: "
                "give checkpoints of sequential models that rank all items"
            )
    return Ensemble(networks)


def timed_test(trainer: Any, data: PreparedData, load_best: bool = True) -> tuple[dict, float]:
    """Test metrics, none where there is no test part, and the seconds they took, without the loading of the weights."""
    if load_best:
        trainer.load_best()
    started = time.perf_counter()
    with inputs_of_test(trainer.model, data.loaders, bool(data.config["valid_item_in_input"])):
        result = trainer.evaluate(data.loaders[2], load_best_model=False, show_progress=data.config["show_progress"])
    return plain_metrics(result), time.perf_counter() - started

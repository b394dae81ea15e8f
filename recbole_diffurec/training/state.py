"""Going on with a training that was killed, as if it had never been.

A running training leaves its state beside its checkpoint, ``NAME.KEY.state`` for ``NAME.pth`` with the key of its
configuration: at the end of every epoch's training, every so many minutes within it, and when it is interrupted. The
state is removed when the run has its result. Earlier versions named it ``NAME.state``.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import re
import signal
import threading
from types import FrameType
from typing import Annotated, Any, Iterator, Optional, Union

import numpy as np
import torch
from pydantic import AfterValidator, Field, with_config
from typing_extensions import NotRequired, TypedDict

from recbole_diffurec.config.rules import MEANT_BEFORE, meaning
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.fingerprint import differences
from recbole_diffurec.runtime import checkpoint, files

logger = logging.getLogger("recbole_diffurec")

EXTENSION = ".state"


class OtherDataError(UserError):
    """A training was to go on with data that it did not begin with."""


class StopRequest:
    """Remembers a SIGINT or SIGTERM, so that the batch at hand can end; a second one acts at once.

    Use as a context manager around a training. In threads other than the main one, signals are left as they are.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: int | None = None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def random_states() -> dict[str, Any]:
    """The states of all generators that a training draws from: Python's, numpy's, torch's, CUDA's."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": {"kind": kind, "keys": keys, "position": position, "has_gauss": has_gauss, "gauss": gauss},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put ``random_states`` back, from memory or from a file."""
    random.setstate(_of_python(states["python"]))
    np.random.set_state(_of_numpy(states["numpy"]))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


@contextlib.contextmanager
def draws_of_its_own(seed: int) -> Iterator[None]:
    """Random draws that depend on ``seed`` alone, and leave those after the block as they would be without it."""
    before = checkpoint.to_plain(random_states())
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(before)


def _of_python(state: Any) -> tuple[Any, ...]:
    version, internal, gauss = state
    return version, tuple(internal), gauss


def _of_numpy(state: Any) -> tuple[Any, ...]:
    found = checkpoint.from_plain(state)
    return tuple(found[name] for name in ("kind", "keys", "position", "has_gauss", "gauss"))


# What a state holds


def _drawable(states: dict[str, Any]) -> dict[str, Any]:
    """Refuse states that a generator does not take."""
    try:
        random.Random().setstate(_of_python(states["python"]))
        np.random.RandomState().set_state(_of_numpy(states["numpy"]))
        torch.Generator().set_state(states["torch"])
    except Exception as error:  # each generator has errors of its own
        raise ValueError(f"no state of a random generator ({error})") from None
    return states


def _bare(name: str) -> str:
    """Refuse a name that leads out of the folder it stands in."""
    if not files.is_bare(name) or not name.endswith(".pth"):
        raise ValueError("must be the bare name of a .pth file")
    return name


Count = Annotated[int, Field(ge=0, lt=2**31)]


@with_config(checkpoint.SCHEMA)
class _RandomStates(TypedDict):
    python: list[Any]
    numpy: dict[str, Any]
    torch: torch.Tensor
    cuda: list[torch.Tensor]


@with_config(checkpoint.SCHEMA)
class _Unfinished(TypedDict):
    loader: Optional[torch.Tensor]
    losses: list[Union[float, list[float]]]
    done: Count
    seconds: float


@with_config(checkpoint.SCHEMA)
class _Epoch(TypedDict):
    epoch: Count
    train_loss: float
    train_seconds: float
    learning_rate: float
    valid_score: NotRequired[float]
    valid_result: NotRequired[dict[str, float]]


@with_config(checkpoint.SCHEMA)
class _Average(TypedDict):
    n_steps: Count
    average: dict[str, torch.Tensor]


@with_config(checkpoint.SCHEMA)
class _Optimizer(TypedDict):
    state: dict[int, dict[str, Union[torch.Tensor, float, None]]]
    param_groups: list[dict[str, Any]]


@with_config(checkpoint.SCHEMA)
class _Attribute(TypedDict):
    value: Any
    with_model: bool


@with_config(checkpoint.SCHEMA)
class _Attributes(TypedDict):
    kept: dict[str, _Attribute]
    lost: list[str]


@with_config(checkpoint.SCHEMA)
class TrainingState(TypedDict):
    """What a state holds; ``find_state`` adds ``state_file``, where it was found."""

    # States of version 0.1.0 do not have these.
    model: NotRequired[str]
    dataset: NotRequired[str]
    data: NotRequired[dict[str, Any]]
    attributes: NotRequired[list[_Attributes]]  # of every process

    config: checkpoint.Parameters
    checkpoint: Annotated[str, AfterValidator(_bare)]
    epoch: Count
    unfinished: _Unfinished
    random: list[Annotated[_RandomStates, AfterValidator(_drawable)]]
    cur_step: Count
    best_valid_score: float
    best_valid_result: Optional[dict[str, float]]
    history: list[_Epoch]
    state_dict: dict[str, torch.Tensor]
    other_parameter: Optional[dict[str, Any]]
    optimizer: _Optimizer
    lr_scheduler: Optional[dict[str, Any]]
    average: Optional[_Average]
    state_file: NotRequired[str]


def open_state(path: str) -> TrainingState:
    """Open a state, and see that the checkpoint that goes with it is there.

    Parameters
    ----------
    path : str
        The ``.state`` file.

    Raises
    ------
    UserError
        It cannot be read, is damaged, or lies without its checkpoint.
    """
    state = checkpoint.validated(path, checkpoint.load(path), TrainingState)
    named = _NAME.fullmatch(os.path.basename(path))
    if named is None or state["checkpoint"] != f"{named['stem']}.pth":
        raise UserError(f"'{path}' belongs to '{state['checkpoint']}': give it back its name")
    epochs = [epoch["epoch"] for epoch in state["history"]]
    if epochs != list(range(state["epoch"])) or not _has_best_of_history(state):
        raise UserError(f"checkpoint '{path}' is damaged (its history is not that of its epochs): use another copy")
    if len(state.get("attributes", state["random"])) != len(state["random"]):
        raise UserError(f"checkpoint '{path}' is damaged (attributes: they must be of every process): use another copy")
    if any("valid_score" in epoch for epoch in state["history"]):
        # The best weights so far are there alone; at the end of the training it would be late to miss them.
        checkpoint.open_run(os.path.join(os.path.dirname(path), state["checkpoint"]))
    return {**state, "state_file": path}


def _has_best_of_history(state: TrainingState) -> bool:
    """Whether the best score is that of the last epoch with it, and none of the epochs is better."""
    scores = [epoch["valid_score"] for epoch in state["history"] if "valid_score" in epoch]
    best = state["best_valid_score"]
    if not scores:
        return math.isinf(best) and state["best_valid_result"] is None
    if best not in scores or (any(score < best for score in scores) and any(score > best for score in scores)):
        return False
    since = scores[::-1].index(best)
    results = [epoch.get("valid_result") for epoch in state["history"] if "valid_score" in epoch]
    return state["cur_step"] == since and state["best_valid_result"] == results[-1 - since]


# Finding it

_NAME = re.compile(r"(?P<stem>(?P<run>.+)-\d{8}-\d{6}-[0-9a-f]{6})(\.(?P<key>[0-9a-f]{12}))?\.state")


def find_state(config: Any, strict: bool = True) -> TrainingState | None:
    """The newest state of a training of this very run in ``checkpoint_dir``; None where there is none.

    States that cannot be read are skipped with a warning, unless their names say that they are this run's.

    Parameters
    ----------
    config : RunConfig
        Of the run.
    strict : bool, default True
        False looks past states of other configurations, and past damaged ones of this run.

    Raises
    ------
    UserError
        There are states of this model on this data set, and all have another configuration; or this run's cannot be
        read.
    """
    refusals: list[str] = []
    for path, key in _states(config):
        own = key == config.key()
        if key is not None and not own and not strict:
            continue
        try:
            state = open_state(path)
        except UserError as error:
            logger.warning("skipped: %s", error)
            refusals += [str(error)] if own else []
            continue
        differing = _differing(state, config)
        if not differing:
            return state
        refusals.append(
            f"the training in '{path}' has another configuration ({'; '.join(differing)}): give the same parameters, "
            f"or leave out --resume to start afresh"
        )
    if strict and refusals:
        raise UserError(refusals[0])
    return None


def check_data(state: TrainingState, data: Any) -> None:
    """Refuse data that are not those which a training began with.

    Parameters
    ----------
    state : TrainingState
        From ``find_state``; one without a fingerprint passes.
    data : PreparedData
        What it is to go on with.

    Raises
    ------
    OtherDataError
        They differ.
    """
    differing = differences(state.get("data", {}), data.fingerprint) if "data" in state else []
    if differing:
        raise OtherDataError(
            f"the training in '{state['state_file']}' began with other data ({'; '.join(differing[:3])}): bring them "
            f"back, or leave out --resume to start afresh"
        )


def check_fits(state: TrainingState, trainer: Any) -> None:
    """Refuse a state whose settings of the optimizer and the like are not of the kinds that the trainer's own have.

    Parameters
    ----------
    state : TrainingState
        From ``find_state``.
    trainer : PluginTrainer
        That is to go on with it.

    Raises
    ------
    UserError
        They differ.
    """
    scheduler, average = trainer.lr_scheduler, trainer.average
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    kept = state["optimizer"]["state"]
    fits = (
        state["epoch"] < trainer.epochs
        and _alike(state["optimizer"]["param_groups"], trainer.optimizer.state_dict()["param_groups"])
        and all(place in range(len(parameters)) for place in kept)
        and all(_of_parameter(value, parameters[place]) for place in kept for value in kept[place].values())
        and (scheduler is None or _alike(state["lr_scheduler"], scheduler.state_dict()))
        and (average is None or _alike(state["average"], average.state_dict()))
    )
    if not fits:
        raise misfit(state)


def misfit(state: TrainingState) -> UserError:
    """What to say of a state that its own configuration does not lead to."""
    return UserError(
        f"the training in '{state['state_file']}' does not fit its own configuration: use another copy, or leave out "
        f"--resume to start afresh"
    )


def _alike(found: Any, own: Any) -> bool:
    """Whether two values have the same structure and kinds; what is None in one of them may be anything plain."""
    if isinstance(own, torch.Tensor):
        return isinstance(found, torch.Tensor) and found.shape == own.shape
    if isinstance(own, dict):
        return isinstance(found, dict) and all(name in found and _alike(found[name], own[name]) for name in own)
    if isinstance(own, (list, tuple)):
        return isinstance(found, list) and len(found) == len(own) and all(map(_alike, found, own))
    numbers = (int, float)
    if isinstance(own, numbers) and not isinstance(own, bool):
        return isinstance(found, numbers) and not isinstance(found, bool)
    return own is None or found is None or type(found) is type(own)


def _of_parameter(value: Any, parameter: torch.Tensor) -> bool:
    """Whether an optimizer may keep ``value`` for a parameter: one like it, a number, or nothing."""
    return not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape == parameter.shape


def _states(config: Any) -> list[tuple[str, str | None]]:
    """The states of this model on this data set, newest first, with the keys of their configurations where named."""
    folder, run = config["checkpoint_dir"], files.shortened(f"{config['model']}-{config['dataset']}")
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            named = _NAME.fullmatch(entry.name)
            if named and named["run"] == run:
                with contextlib.suppress(FileNotFoundError):  # a run that has just ended removes its own
                    found.append((entry.stat().st_mtime, entry.path, named["key"]))
    return [(path, key) for _, path, key in sorted(found, reverse=True)]


def _differing(state: TrainingState, config: Any) -> list[str]:
    """What another run's state differs in."""
    found = checkpoint.to_plain(meaning({"model": config["model"], "dataset": config["dataset"], **state["config"]}))
    found |= {name: state[name] for name in ("model", "dataset") if name in state}
    wanted = checkpoint.to_plain(meaning({"model": config["model"], "dataset": config["dataset"], **config.plain()}))
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    both = {name: [of.get(name, MEANT_BEFORE.get(name)) for of in (found, wanted)] for name in names}
    return [f"{name} {kept!r}, not {given!r}" for name, (kept, given) in both.items()]

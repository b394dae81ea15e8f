"""What the diffusion contributes to a trained model: its parts taken away, replaced, and paid for otherwise."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from recbole.utils import EvaluatorType

from recbole_diffurec.config.rules import NOT_IN_RESULT
from recbole_diffurec.errors import UserError
from recbole_diffurec.experiments import audit_figure, audit_tables, report
from recbole_diffurec.experiments.audit_bench import Bench, compare_lines, sample_users
from recbole_diffurec.experiments.audit_lines import (
    Samples,
    basic_lines,
    dropout_line,
    ensemble_line,
    one_step_line,
    step_lines,
    twin_line,
)
from recbole_diffurec.experiments.verdict import verdict
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.models import spec as register
from recbole_diffurec.models.base import DiffusionRecommender, NotApplicable
from recbole_diffurec.runtime import files, visible
from recbole_diffurec.training.evaluate import Member, Opened, as_one, open_members, opened
from recbole_diffurec.training.report import deliver, describe_run, explained
from recbole_diffurec.training.run import TrainedRun, train_or_resume

logger = logging.getLogger("recbole_diffurec")

LONGEST_LIST = 10
# Of what training alone reads otherwise: the passes with dropout.
_ALSO_READ = frozenset({"hidden_dropout_prob", "attn_dropout_prob", "embedding_dropout_prob"})
# What the audit of a comparison's runs is content with.
FEW_USERS, FEW_SAMPLES = 500, 3


@dataclass
class Audit:
    """What an audit found.

    Attributes
    ----------
    result : dict of str to object
        All of it, as ``result_file`` holds it.
    lines : pd.DataFrame
        The table.
    verdict : str
        What it comes to, in one sentence.
    output_dir : Path
        Where ``audit.html``, ``audit.png`` and ``audit.json`` lie.
    """

    result: dict[str, Any]
    lines: pd.DataFrame
    verdict: str
    output_dir: Path


@dataclass(frozen=True)
class Extent:
    """How much an audit looks at; wrong values are refused.

    Parameters
    ----------
    users : int or None
        How many test users; all by default.
    samples : int
        K, reconstructions under different noise.
    sample_seed : int
        Seed of the draw of users.
    """

    users: int | None
    samples: int
    sample_seed: int

    def __post_init__(self) -> None:
        for name, lowest in (("users", 1), ("samples", 2), ("sample_seed", 0)):
            value = getattr(self, name)
            if name == "users" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise UserError(f"{name} must be an integer of at least {lowest}, got {value!r}: give another one")


@files.nameable()
@visible.lines()
def audit(
    checkpoint_file: str | Path,
    *more: str | Path,
    users: int | None = None,
    samples: int = 10,
    sample_seed: int = 2020,
    output_dir: str | Path = "audit",
    result_file: str | Path | None = None,
    train_twin: bool = False,
    **parameters: Any,
) -> Audit:
    """Measure what the diffusion contributes to a trained diffusion model, on its test users.

    Parameters
    ----------
    checkpoint_file : str or Path
        A ``.pth`` file of ``run``.
    *more : str or Path
        Others on the same data, which with the first make an ensemble of the same inference compute.
    users : int, optional
        How many test users, drawn by ``sample_seed``; all by default.
    samples : int, optional
        Reconstructions drawn for each user.
    sample_seed : int, optional
        Seed of the draw of users.
    output_dir : str or Path, optional
        Folder for ``audit.html``, ``audit.json``, ``audit.png`` and ``audit.svg``, and for the twin.
    result_file : str or Path, optional
        Where to write the result as JSON too.
    train_twin : bool, optional
        Train the same network without the noised vector, with the run's seed and budget; a twin that is there is used,
        and one whose training was interrupted is resumed.
    **parameters : object
        What to change, for every checkpoint, such as ``mask_seen=True``.

    Returns
    -------
    Audit
        The result, its table and its verdict.

    Raises
    ------
    UserError
        A file is no checkpoint of a diffusion model, an argument is wrong, or the data is not what it was trained on.
    """
    extent, folder = Extent(users, samples, sample_seed), Path(output_dir)
    members = open_members([checkpoint_file, *more], parameters, _ALSO_READ)
    _refuse_others(members[0])
    path = _check_output(folder, result_file, [checkpoint_file, *more, *members[0].config.data_files()])
    twin, no_twin = None, "it was not asked for (--train_twin)"
    if train_twin:
        twin, no_twin = _twin(members[0], parameters, folder)
    members += [Member.open(twin, parameters)] if twin else []  # in which some of them do not act
    with opened(members, parameters) as found, explained(f"auditing model '{members[0].state['model']}'", found.log):
        result = _audited(found, extent, no_twin)
    return _delivered(result, path, folder)


def _check_output(folder: Path, result_file: str | Path | None, read: Sequence[str | Path]) -> Path | None:
    """Refuse a folder and a file that could not be written, or would be what is read or written besides."""
    files.make_folder(str(folder), "output_dir")
    for ending in ("html", "json", "png", "svg"):
        files.check_writable(folder / f"audit.{ending}", "a file in output_dir,", read)
    path = files.check_writable(result_file, "result_file", read)
    own = {os.path.realpath(folder / name) for name in ("audit.html", "audit.png", "audit.svg", "twin.json")}
    if path is not None and os.path.realpath(path) in own:
        raise UserError(f"result_file '{path}' is a file that output_dir gets: give another name, such as result.json")
    return path


def _delivered(result: dict[str, Any], path: Path | None, folder: Path) -> Audit:
    """Write everything that an audit leaves."""
    files.write_text(folder / "audit.json", json.dumps(result, indent=2))
    picture = audit_figure.draw(result, folder / "audit")
    report.write_audit(result, picture, folder / "audit.html")
    return Audit(deliver(result, path), audit_tables.lines(result), result["verdict"]["sentence"], folder)


def _refuse_others(member: Member) -> None:
    """Refuse what no audit can be made of."""
    config, model = member.config, member.state["model"]
    if not issubclass(config.model_class, DiffusionRecommender):
        ours = [s.name for s in register.all_specs()[0] if issubclass(s.model_class, DiffusionRecommender)]
        raise UserError(
            f"checkpoint '{member.path}' is of {model}, which is no diffusion model, so that there is nothing to "
            f"audit: give one of {', '.join(ours)}"
        )
    config.spec.refuse("samples", "be audited")
    if config["eval_type"] == EvaluatorType.VALUE:
        raise UserError(
            f"an audit compares rankings, and metrics {config['metrics']} are of single scores: "
            "give --metrics=[Hit,NDCG]"
        )


def _twin(member: Member, parameters: Mapping[str, Any], folder: Path) -> tuple[Path | None, str]:
    """The twin's checkpoint, trained with as much of ``parameters`` as changes no figure; or why there is none."""
    try:
        return twin_checkpoint(member, {n: v for n, v in parameters.items() if n in NOT_IN_RESULT}, folder), ""
    except NotApplicable as reason:
        return None, str(reason)


def twin_checkpoint(member: Member, parameters: Mapping[str, Any], folder: Path) -> Path:
    """The checkpoint of the same network, trained without the noised target: the one that is there, or a new one.

    Parameters
    ----------
    member : Member
        The model that has a twin.
    parameters : Mapping of str to object
        Where and how to train it.
    folder : Path
        For the checkpoint, the state of an interrupted training, and ``twin.json``, which says whose twin is there.

    Raises
    ------
    NotApplicable
        The model has no twin.
    """
    state = member.state
    network: Any = member.config.model_class
    changes = network.twin_parameters()
    if all(state["config"].get(name) == value for name, value in changes.items()):
        raise NotApplicable("the model was trained without its noised target")
    values = {**state["config"], **parameters, **changes, "checkpoint_dir": str((folder / "twin").resolve())}
    config = RunConfig(state["model"], state["dataset"], values)
    kept = folder / "twin.json"
    try:
        told = files.read_json(kept)
        found = (folder / "twin").resolve() / told["checkpoint"]
        if told["key"] == config.key() and files.is_bare(told["checkpoint"]) and found.is_file():
            logger.info("the twin is there: '%s'", os.path.relpath(found))
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none
    logger.info("training the twin: %s", ", ".join(f"{name}={value}" for name, value in changes.items()))
    path = Path(train_or_resume(config).result["checkpoint"])
    files.write_text(kept, json.dumps({"key": config.key(), "checkpoint": path.name}))
    return path


def _audited(found: Opened, extent: Extent, no_twin: str) -> dict[str, Any]:
    """The whole audit; the last of the checkpoints is the twin, unless there is a reason why there is none."""
    networks, paths = (
        [network for network, _ in found.built],
        [os.path.abspath(member.path) for member in found.members],
    )
    twin, twin_path = (None, None) if no_twin else (networks.pop(), paths.pop())
    (network, trainer), config = found.built[0], found.members[0].config
    if len(networks) > 1:
        as_one(networks, found.members[: len(networks)])  # refuses what cannot be
    loader, n_users = sample_users(found.data.loaders[2], config["USER_ID_FIELD"], extent.users, extent.sample_seed)
    asked = n_users if extent.users is None else extent.users
    which = f"drawn with sample_seed {extent.sample_seed}" if asked < n_users else "all there are"
    logger.info("auditing with %s test users, %s", f"{min(asked, n_users):,}", which)
    bench = Bench(trainer, loader, min(LONGEST_LIST, found.data.n_items))
    first_batch = next(iter(loader))[0].to(config["device"])
    lines = [
        *basic_lines(network.eval()),
        *step_lines(network),
        dropout_line(network, first_batch),
        ensemble_line(networks),
        twin_line(twin, no_twin),
    ]
    measured, told = bench.measure_lines(lines)
    logger.info("drawing %d samples", extent.samples)
    drawn = Samples(bench, network, extent.samples)
    measured["mean_of_samples"] = drawn.mean()
    told.append({"name": "mean_of_samples", "label": f"mean of {extent.samples} samples"})
    return {
        **describe_run(config, found.data, network),
        **_described(bench, compare_lines(measured, told), drawn),
        "sample_seed": extent.sample_seed,
        "test_users": n_users,
        "protocol": {"mode": config["eval_args"]["mode"]["test"], "mask_seen": config["mask_seen"]},
        "uncertainty": drawn.uncertainty(measured["mean_of_samples"]),
        "checkpoint": paths[0],
        "checkpoints": paths,
        "twin": twin_path,
        "log": found.log,
    }


def _described(bench: Bench, lines: list[dict[str, Any]], drawn: Samples) -> dict[str, Any]:
    users = int(bench.user_of_row.max()) + 1
    return {
        "users": users,
        "k": bench.k,
        "lines": lines,
        "seeds": drawn.agreement(),
        "verdict": verdict(lines, users, bench.k),
    }


def short_audit(run: TrainedRun) -> dict[str, Any] | None:
    """What of an audit costs little, of a run of a comparison; None where there is no diffusion.

    Parameters
    ----------
    run : TrainedRun
        A finished run.
    """
    if not isinstance(run.network, DiffusionRecommender) or "samples" in run.config.spec.cannot:
        return None
    network = run.network.eval()
    loader, _ = sample_users(run.data.loaders[2], run.config["USER_ID_FIELD"], FEW_USERS, run.config["seed"])
    bench = Bench(run.trainer, loader, min(LONGEST_LIST, run.data.n_items))
    as_trained, without, *_ = basic_lines(network)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        measured, told = bench.measure_lines([as_trained, without, one_step_line(network)])
    finally:
        logger.setLevel(level)
    return _described(bench, compare_lines(measured, told), Samples(bench, network, FEW_SAMPLES))

"""One command, many runs: models side by side on the same data, with statistics, tables, figures and a report."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence, cast

import numpy as np

from recbole_diffurec.config import layers
from recbole_diffurec.config.rules import RULES, Rule, take_options
from recbole_diffurec.errors import UserError
from recbole_diffurec.experiments import about, cluster, figures, measures, readable, report, tables
from recbole_diffurec.experiments.audit import short_audit
from recbole_diffurec.experiments.cluster import HowToRun
from recbole_diffurec.experiments.grid import Job, plan
from recbole_diffurec.experiments.progress import format_seconds
from recbole_diffurec.experiments.store import RunStore
from recbole_diffurec.host.loaders import FirstBatches, dataset_of, subset_loader
from recbole_diffurec.runtime import files, visible
from recbole_diffurec.training.own_data import data_set_of
from recbole_diffurec.training.prepare import DatasetCache, build, prepare_data
from recbole_diffurec.training.report import LOGS, explained, metric_name
from recbole_diffurec.training.run import train_or_resume

logger = logging.getLogger("recbole_diffurec")

# What an experiment file may say beside the parameters of the runs.
GRID_KEYS = ("models", "datasets", "seeds", "baseline")
MOST_SEEDS = 1000


@dataclass
class Comparison:
    """What a comparison found.

    Attributes
    ----------
    results : tables.Results
        The tables; ``results.runs``, ``results.summary``, ``results.significance`` and ``results.groups`` are
        DataFrames with what the CSV files hold.
    failures : dict of str to str
        {run: reason}.
    output_dir : Path
        Where everything lies, ``report.html`` first.
    """

    results: tables.Results
    failures: dict[str, str]
    output_dir: Path


@files.nameable()
@visible.lines()
def compare(
    models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    *,
    output_dir: str | Path = "comparison",
    baseline: str | None = None,
    experiment: str | None = None,
    config_files: Sequence[str | Path] = (),
    **parameters: Any,
) -> Comparison | None:
    """Run what is missing of models x data sets x seeds, then write tables, figures and ``report.html``.

    Parameters
    ----------
    models : Sequence of str, optional
        Entries such as ``SASRec``, ``V1``, ``DiffuRecSys@best/amazon-beauty.yaml`` or
        ``DiffuRecSys@n_layers=2+sampling_steps=1``.
    datasets : Sequence of str, optional
        Names of data sets, or paths of tables.
    seeds : int or Sequence of int, optional
        How many, counted up from the parameter ``seed``; or the seeds themselves.
    output_dir : str or Path, optional
        Finished runs are kept there and are not run again.
    baseline : str, optional
        The entry that the others are measured against, in improvement and significance; by default the best by
        validation among the baselines, or among all entries where all are methods of their own.
    experiment : str, optional
        Name of a file under ``properties/experiment``; it may name models, datasets, seeds and baseline as well.
    config_files : Sequence of (str or Path), optional
        YAML files, later ones stronger.
    **parameters : object
        The fields of ``HowToRun``, such as ``parallel=4`` or ``dry_run=True``; all others are for every run, such as
        ``epochs=2``.

    Raises
    ------
    UserError
        Anything given is wrong; raised before the first run starts.
    """
    asked = {"models": models, "dataset": datasets, "seeds": seeds, "baseline": baseline, "experiment": experiment}
    command = about.command("compare", {**asked, "config_files": config_files, "output_dir": output_dir}, parameters)
    how = take_options(HowToRun, parameters)
    datasets, parameters = _made_of_tables(datasets, parameters, config_files, experiment)
    settings = layers.settings(experiment, config_files, parameters, many_runs=True)
    files.make_folder(output_dir, "output_dir")
    output_dir = Path(output_dir)
    jobs = _jobs(models, datasets, seeds, settings, output_dir, {*layers.settings(None, config_files), *parameters})
    baseline = _baseline(baseline or settings.get("baseline"), jobs)
    store = RunStore(output_dir / "runs")
    missing = [job for job in jobs if job not in store]
    shared = DatasetCache()
    durations = {job: store.result(job)["seconds"] for job in jobs if job not in missing}
    bounds = estimate(missing, durations, shared, how.dry_run)
    logger.info("%s", describe_cost(jobs, missing, bounds, how.parallel))
    if how.dry_run:
        return None
    failures = _run_all(missing, store, shared, _Clock(durations, bounds, how.parallel), how)
    results = tables.Results(_finished(jobs, store, failures), store, baseline)
    return write_outputs(results, output_dir, failures, command)


def _made_of_tables(
    datasets: Sequence[str], parameters: dict[str, Any], config_files: Sequence[str | Path], experiment: str | None
) -> tuple[list[str], dict[str, Any]]:
    """The names of data sets, some of which were paths of tables, and the parameters without what was for these."""
    names, left = [], dict(parameters)
    for dataset in datasets:
        left = dict(parameters)
        names.append(str(data_set_of(dataset, left, config_files, experiment)))
    if not datasets:
        data_set_of(None, left, config_files, experiment)
    return names, left


def _jobs(
    models: Sequence[str],
    datasets: Sequence[str],
    seeds: int | Sequence[int] | None,
    settings: Mapping[str, Any],
    output_dir: Path,
    given: set[str],
) -> list[Job]:
    """The runs of a comparison: what is given, or else what the settings say, or else the defaults."""
    for name in ("models", "datasets"):
        listed = settings.get(name) or []
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise UserError(f"{name} must be a list of names, got {listed!r}")
    models = models or settings.get("models") or ["DiffuRec", "DiffuRecSys", "SASRec", "BERT4Rec"]
    datasets = datasets or settings.get("datasets") or ["ml-100k"]
    seeds = settings.get("seeds", 1) if seeds is None else seeds
    common = {name: value for name, value in settings.items() if name not in GRID_KEYS}
    common = {"checkpoint_dir": str((output_dir / "checkpoints").resolve()), **common}
    return plan(models, datasets, _seed_list(seeds, common.get("seed", 2020)), common, given & common.keys())


def _baseline(name: str | None, jobs: Sequence[Job]) -> str | None:
    """The entry that was asked for, which must be among those compared."""
    labels = list(dict.fromkeys(job.entry.label for job in jobs))
    if name is not None and name not in labels:
        raise UserError(f"baseline must be one of the models compared ({', '.join(labels)}), got '{name}'")
    return name


def _finished(jobs: Sequence[Job], store: RunStore, failures: Mapping[str, str]) -> list[Job]:
    """Those of the runs that are there; there must be one."""
    finished = [job for job in jobs if job in store]
    if not finished:
        raise UserError("no run of the comparison succeeded: " + "; ".join(f"{k}: {v}" for k, v in failures.items()))
    return finished


def write_outputs(data: tables.Results, output_dir: Path, failures: Mapping[str, str], command: str) -> Comparison:
    """Tables, figures and the report of finished runs."""
    readable.write(data, output_dir)
    pictures = figures.draw_all(data, output_dir / "figures")
    report.write(data, pictures, failures, command, output_dir / "report.html")
    return Comparison(data, dict(failures), output_dir)


# The runs


def run_job(job: Job, datasets: DatasetCache | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train and test one run of a comparison, and measure what only a comparison needs.

    Returns
    -------
    result : dict of str to object
        What is kept as JSON.
    arrays : dict of str to np.ndarray
        What is kept as arrays.
    """
    started = time.perf_counter()
    config = job.config()
    collector = measures.RankCollector(config["topk"], config["USER_ID_FIELD"])
    run = train_or_resume(config, datasets, collector)
    lists = {
        str(k): measures.list_measures(collector.lists[:, :k], run.data.popularity, config["tail_ratio"])
        for k in collector.topk
    }
    arrays = {**measures.per_user(collector, run.data), **measures.diffusion_measures(run)}
    found = short_audit(run)
    more = {"label": job.entry.label, "lists": lists, **({"audit": found} if found else {}), **about.here_and_now()}
    result = {**run.result, **more, "seconds": time.perf_counter() - started}
    return result, arrays


def _run_all(
    missing: Sequence[Job], store: RunStore, shared: DatasetCache, clock: _Clock, how: HowToRun
) -> dict[str, str]:
    """Run and store; returns the failures."""
    failures: dict[str, str] = {}
    log = store.folder.parent / cluster.LOG
    outcomes = cluster.run_parallel(missing, run_job, shared, how, log) if how.on_ray else _one_by_one(missing, shared)
    for done, (job, outcome) in enumerate(outcomes, start=1):
        if isinstance(outcome, Exception):
            failures[str(job)] = _reason(outcome)
            logger.warning("%d/%d %s failed: %s", done, len(missing), job, failures[str(job)])
            continue
        result, arrays = outcome
        store.write(job, result, arrays)
        clock.durations[job] = result["seconds"]
        logger.info(
            "%d/%d %s: test %s %.4f in %s; about %s left",
            done,
            len(missing),
            job,
            metric_name(shown := tables.main_metric(result["test_result"])),
            result["test_result"][shown],
            format_seconds(result["seconds"]),
            format_seconds(clock.remaining(missing, failures)),
        )
    return failures


def _one_by_one(
    jobs: Sequence[Job], shared: DatasetCache
) -> Iterator[tuple[Job, tuple[dict[str, Any], dict[str, np.ndarray]] | Exception]]:
    for job in jobs:
        logger.info("%s starts", job)
        try:
            yield job, run_job(job, shared)
        except Exception as error:  # one failed run must not end the others
            logging.getLogger().info("%s failed", job, exc_info=True)
            yield job, error


@dataclass
class _Clock:
    """How long runs took, and take at most."""

    durations: dict[Job, float]
    bounds: Mapping[Job, float]
    parallel: int

    def remaining(self, jobs: Sequence[Job], failures: Mapping[str, str]) -> float:
        """Seconds for the runs neither done nor failed: as their like took, or as estimated, scaled likewise."""
        done = [job for job in jobs if job in self.durations and self.bounds.get(job)]
        scale = sum(self.durations[j] for j in done) / sum(self.bounds[j] for j in done) if done else 1.0
        seconds = sum(
            _like(job, self.durations) or scale * self.bounds.get(job, 0.0)
            for job in jobs
            if job not in self.durations and str(job) not in failures
        )
        return seconds / max(self.parallel, 1)


def _like(job: Job, durations: Mapping[Job, float]) -> float | None:
    """The mean duration of finished runs that differ from ``job`` in their seed alone."""
    like = [s for other, s in durations.items() if (other.entry.label, other.dataset) == (job.entry.label, job.dataset)]
    return float(np.mean(like)) if like else None


# Cost


def estimate(
    jobs: Sequence[Job], durations: Mapping[Job, float], datasets: DatasetCache, dry_run: bool = True
) -> dict[Job, float]:
    """At most how many seconds each run takes, from a few of its own batches; early stopping makes it less.

    Runs whose like has finished take as long as that did. Runs that cannot be started are left out.

    Raises
    ------
    UserError
        None of them can be started, or without ``dry_run`` there can be no folder for their logs.
    """
    if jobs and not dry_run:
        files.make_folder(LOGS, "the folder for logs")
    seconds: dict[Job, float] = {}
    known: dict[tuple[str, str], float] = {}
    reasons: dict[str, str] = {}
    n_different = len({(job.entry.label, job.dataset) for job in jobs})
    for job in jobs:
        same = (job.entry.label, job.dataset)
        if same not in known:
            logger.info("estimating %d/%d: %s on %s, a few batches", len(known) + 1, n_different, *same)
            try:
                with explained(f"trying out model '{job.entry.model}' on data set '{job.dataset}'"):
                    known[same] = _like(job, durations) or _probe(job, datasets)
            except Exception as error:  # a failed run must not end the others
                known[same], reasons[str(job)] = 0.0, _reason(error)
                logger.warning("%s cannot be started: %s", job, reasons[str(job)])
        if known[same]:
            seconds[job] = known[same]
    if jobs and not seconds:
        raise UserError(next(iter(reasons.values())))
    return seconds


def _probe(job: Job, datasets: DatasetCache, batches: int = 3) -> float:
    config = job.config()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        data = prepare_data(config, datasets)
    finally:
        logger.setLevel(level)
    train_data, valid_data, _ = data.loaders
    _, trainer = build(data.config, dataset_of(train_data))
    trainer.time_epoch(FirstBatches(train_data, 1))
    n_train = min(batches, len(train_data))
    training = trainer.time_epoch(FirstBatches(train_data, n_train)) * len(train_data) / n_train
    n_users = min(config["train_batch_size"], data.n_users)
    started = time.perf_counter()
    trainer.evaluate(subset_loader(valid_data, n_users), load_best_model=False)
    evaluation = (time.perf_counter() - started) * data.n_users / n_users
    return config["epochs"] * (training + evaluation / config["eval_step"]) + evaluation


def describe_cost(jobs: Sequence[Job], missing: Sequence[Job], bounds: Mapping[Job, float], parallel: int) -> str:
    """What is to be done and how long it may take."""
    lines = [f"{len(jobs)} runs, {len(jobs) - len(missing)} of them done already"]
    for (label, dataset), group in itertools.groupby(
        sorted(missing, key=lambda job: (job.entry.label, job.dataset)), key=lambda job: (job.entry.label, job.dataset)
    ):
        like = list(group)
        each = bounds.get(like[0])
        cost = f"at most {format_seconds(each)} each" if each else "cost unknown"
        lines.append(f"  {label} on {dataset}: {len(like)} x {cost}")
    total = sum(bounds.get(job, 0.0) for job in missing)
    if missing:
        lines.append(
            f"  in all at most {format_seconds(total / max(parallel, 1))} on this machine; early stopping ends sooner"
        )
    return "\n".join(lines)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


# Arguments


def _seed_list(seeds: int | Sequence[int], first: Any) -> list[int]:
    if not RULES["seed"].accepts(first):
        raise UserError(f"seed must be {RULES['seed'].describe()}, got {first!r}")
    if Rule("int", 1, MOST_SEEDS).accepts(seeds):
        return list(range(first, first + int(cast(int, seeds))))
    if isinstance(seeds, (list, tuple)) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds):
        return list(seeds)
    raise UserError(f"seeds must be a number from 1 to {MOST_SEEDS} or a list of seeds such as [1,2,3], got {seeds!r}")

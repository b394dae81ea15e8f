"""Hyper-parameter search on Ray Tune: many short trainings, judged on validation data alone."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import yaml

from recbole_diffurec import defaults, files, pipeline
from recbole_diffurec.config import PLACES, RunConfig
from recbole_diffurec.errors import UserError
from recbole_diffurec.experiments import cluster, figures
from recbole_diffurec.experiments.space import Dimension, read_space

logger = logging.getLogger("recbole_diffurec")

SEARCHERS = ("random", "grid", "optuna")
SCHEDULERS = ("asha", "hyperband", "none")
# What Ray Tune calls the metric and its time, whatever the validation metric of a run is.
SCORE, EPOCH, FINISHED = "score", "epoch", "finished"
RETRIES = 1
_STATE = "ray"  # the folder of Ray Tune's own files

_end = math.inf  # of the search under way, in time.monotonic()


def tune(
    model: str = "DiffuRecSys",
    dataset: str = "ml-100k",
    *,
    params_file: str | Path,
    output_dir: str | Path = "tuning",
    num_trials: int = 20,
    max_epochs: int | None = None,
    search: str = "random",
    scheduler: str = "asha",
    grace_epochs: int = 2,
    concurrent_trials: int | None = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    time_budget: float | None = None,
    final_seeds: int = 1,
    resume: bool = False,
    ray_address: str | None = None,
    config_files: Sequence[str | Path] = (),
    experiment: str | None = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Search, write ``trials.csv``, ``best.yaml`` and ``search.png``, then train the best again and test it once.

    Parameters
    ----------
    params_file : the search space, see ``recbole_diffurec.experiments.space``.
    num_trials : how many configurations; ``search="grid"`` tries all choices instead.
    max_epochs : of a trial; by default the parameter ``epochs``.
    search : random, grid, or optuna (Bayesian, needs the extra ``tune``).
    scheduler : asha, hyperband or none; stops poor trials early by their validation metric.
    grace_epochs : validated epochs that asha leaves every trial.
    concurrent_trials, cpus_per_trial, gpus_per_trial : trials at a time and what each is given; fractions share.
    time_budget : seconds after which no trial goes on; those that had not ended start again with ``resume``.
    final_seeds : seeds to train the best configuration with at the end, and to test; 0 for none.
    resume : go on with the search in ``output_dir``.
    ray_address : a Ray cluster; ``auto`` finds a local one.
    config_files, experiment, parameters : fixed values for every trial, as for ``run``.

    Returns
    -------
    dict with ``best`` (parameters), ``valid_score``, ``trials`` (DataFrame) and ``final`` (results of the last runs).

    Raises
    ------
    UserError
        Anything given is wrong; raised before the first trial starts. Or no trial succeeded, or none in time.
    """
    output_dir = Path(output_dir).resolve()
    _check_arguments(
        {"search": (search, SEARCHERS), "scheduler": (scheduler, SCHEDULERS)},
        {
            "num_trials": (num_trials, 1),
            "max_epochs": (max_epochs, 1),
            "grace_epochs": (grace_epochs, 1),
            "concurrent_trials": (concurrent_trials, 1),
            "cpus_per_trial": (cpus_per_trial, 0),
            "gpus_per_trial": (gpus_per_trial, 0),
            "time_budget": (time_budget, 1),
            "final_seeds": (final_seeds, 0),
        },
    )
    if time_budget is not None and threading.current_thread() is not threading.main_thread():
        raise UserError("time_budget needs the main thread: call tune from it, or leave time_budget out")
    space = read_space(params_file, model)
    fixed = defaults.settings(experiment, config_files, parameters)
    if max_epochs is not None:
        fixed["epochs"] = max_epochs
    config = _check_space(model, dataset, space, fixed, params_file, search)
    # Trials have working directories of their own.
    fixed["data_path"] = os.path.abspath(fixed.get("data_path", config.plain()["data_path"]))
    config = RunConfig(model, dataset, fixed)
    state = output_dir / _STATE
    if resume and not state.is_dir():
        raise UserError(f"output_dir '{output_dir}' holds no search to resume: leave out --resume to start one")
    if not resume and state.is_dir():
        raise UserError(f"output_dir '{output_dir}' holds a search already: add --resume, or give another folder")
    pipeline.make_folder(str(output_dir), "output_dir")
    planned = math.prod(len(d.values) for d in space) if search == "grid" else num_trials
    asked: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "fixed": fixed,
        "space": [dataclasses.asdict(d) for d in space],
    }
    asked.update(num_trials=planned, search=search, scheduler=scheduler)
    _same_search(output_dir / "search.json", asked, resume)

    datasets = pipeline.DatasetCache()
    datasets.get(config)
    table = TrialTable(output_dir / "trials.csv", [dimension.name for dimension in space], config)
    # Ray Tune's own tables would come between our lines.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    with cluster.connected(ray_address):
        from ray import tune as ray_tune

        trial = ray_tune.with_parameters(_trial, model=model, dataset=dataset, fixed=fixed, shared=datasets)
        trial = ray_tune.with_resources(trial, {"cpu": cpus_per_trial, "gpu": gpus_per_trial})
        if resume:
            tuner = ray_tune.Tuner.restore(str(state), trial, resume_errored=True)
        else:
            tuner = ray_tune.Tuner(
                trial,
                param_space={dimension.name: _for_search(dimension, search) for dimension in space},
                tune_config=ray_tune.TuneConfig(
                    metric=SCORE,
                    mode="max",
                    num_samples=1 if search == "grid" else num_trials,
                    scheduler=_scheduler(scheduler, table.last_epoch, grace_epochs * config["eval_step"]),
                    search_alg=_searcher(search, config["seed"], concurrent_trials),
                ),
                run_config=ray_tune.RunConfig(
                    name=_STATE,
                    storage_path=str(output_dir),
                    failure_config=ray_tune.FailureConfig(max_failures=RETRIES),
                    callbacks=[_callback(table)],
                    verbose=0,
                ),
            )
        started = time.monotonic()
        with _ended_after(time_budget):
            tuner.fit()
        in_time = time_budget is None or time.monotonic() - started < time_budget
    trials = table.read()
    done = trials[trials["score"].notna()]
    if done.empty and not in_time:
        raise UserError(
            f"no trial was validated within time_budget {time_budget:g}: --resume with more of it goes on; errors, if "
            f"there were any, are in '{table.path}'"
        )
    if done.empty:
        raise UserError(f"no trial of the search succeeded: their errors are in '{table.path}'")
    top = done.iloc[int((table.sign * done["score"]).to_numpy().argmax())]
    found = {dimension.name: _parameter(top[dimension.name], dimension) for dimension in space}
    best = {**{name: value for name, value in fixed.items() if name not in PLACES}, **found}
    files.write_text(output_dir / "best.yaml", _best_yaml(model, dataset, best, top, table.metric))
    _draw(done, space, table.metric, output_dir)
    ended = (trials["state"] != "RUNNING").sum()
    if in_time and ended < planned:
        # Ray Tune returns from Ctrl-C as if all were well.
        raise KeyboardInterrupt
    if ended < planned:
        logger.info("time_budget %g is over: %d of %d trials ended; --resume goes on", time_budget, ended, planned)
    final = [
        pipeline.run(
            model,
            dataset,
            result_file=output_dir / f"final-{seed}.json",
            **{"checkpoint_dir": str(output_dir / "checkpoints"), **fixed, **found, "seed": seed},
        )
        for seed in range(config["seed"], config["seed"] + final_seeds)
    ]
    return {"best": best, "valid_score": float(top["score"]), "trials": trials, "final": final}


@contextmanager
def _ended_after(seconds: float | None) -> Iterator[None]:
    """Let ``_end_on_time`` end a search within."""
    global _end
    _end = math.inf if seconds is None else time.monotonic() + seconds
    ray_logger = logging.getLogger("ray.tune.tune")
    level = ray_logger.level
    try:
        yield
    finally:
        _end = math.inf
        ray_logger.setLevel(level)


def _end_on_time() -> None:
    """Ctrl-C where the time is over, since Ray Tune's own budget ends a search for good, trials still to come included.

    For a callback: Ray Tune is ready for the signal there. It keeps its callbacks' content for a resumed search, but
    this function by name, so that the time is that of the process.
    """
    if time.monotonic() >= _end:
        logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # its words are for someone at the keyboard
        signal.raise_signal(signal.SIGINT)


def _same_search(path: Path, asked: Mapping[str, Any], resume: bool) -> None:
    """Keep what was asked for; a search goes on only as what it was."""
    text = json.dumps(asked, indent=1, sort_keys=True, default=str)
    if resume and path.is_file():
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        changed = [key for key in now if key != "fixed" and before.get(key) != now[key]]
        names = before["fixed"].keys() | now["fixed"].keys()
        changed += sorted(n for n in names - PLACES if before["fixed"].get(n) != now["fixed"].get(n))
        if changed:
            raise UserError(f"the search in '{path.parent}' has another {', '.join(changed)}: resume it as it was")
    files.write_text(path, text)


def objective_function(
    config_dict: Mapping[str, Any] | None = None,
    config_file_list: Sequence[str] | None = None,
    *,
    model: str = "DiffuRecSys",
    dataset: str = "ml-100k",
) -> dict[str, Any]:
    """One run for RecBole's own ``HyperTuning``; give it ``functools.partial(objective_function, model=...)``.

    Returns
    -------
    dict with the keys that ``HyperTuning`` reads.
    """
    config = RunConfig(model, dataset, config_dict, config_file_list or ())
    result = pipeline.train(config).result
    best = max(
        (epoch for epoch in result["history"] if "valid_score" in epoch),
        key=lambda epoch: epoch["valid_score"] * (1 if config["valid_metric_bigger"] else -1),
    )
    return {
        "model": model,
        "best_valid_score": best["valid_score"],
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": result["best_valid_result"],
        "test_result": result["test_result"],
    }


# Trials


def _trial(sample: dict[str, Any], model: str, dataset: str, fixed: dict[str, Any], shared: Any) -> None:
    """One training, which reports the validation metric of every validated epoch; the test data is not touched."""
    from ray import tune as ray_tune

    config = RunConfig(model, dataset, {**fixed, **sample, "show_progress": False})
    sign = 1 if config["valid_metric_bigger"] else -1
    data = pipeline.prepare_data(config, shared)
    train_data, valid_data, _ = data.loaders
    _, trainer = pipeline.build(config, train_data._dataset)

    def report(epoch: Mapping[str, Any]) -> None:
        ray_tune.report({SCORE: sign * epoch["valid_score"], EPOCH: epoch["epoch"] + 1, **epoch["valid_result"]})

    trainer.on_validation = report
    trainer.fit(train_data, valid_data, verbose=False, saved=False, show_progress=False)
    last = trainer.history[-1]
    score = next(sign * epoch["valid_score"] for epoch in reversed(trainer.history) if "valid_score" in epoch)
    # Tells early stopping by the trainer from a scheduler's.
    ray_tune.report({SCORE: score, EPOCH: last["epoch"] + 1, FINISHED: True})


class TrialTable:
    """``trials.csv``: a row for every trial, rewritten whenever one reports, so that an interruption leaves it usable.

    Columns: trial, state (RUNNING, also where an interruption stopped it; PRUNED, TERMINATED, ERROR), epochs, score
    (the best validation metric so far), the parameters, seconds, error.
    """

    def __init__(self, path: Path, names: Sequence[str], config: RunConfig):
        self.path, self.names = path, list(names)
        self.metric, self.sign = config["valid_metric"], 1 if config["valid_metric_bigger"] else -1
        self.last_epoch = config["epochs"] - config["epochs"] % config["eval_step"]
        self._rows: dict[str, dict[str, Any]] = {}

    def read(self) -> pd.DataFrame:
        """Take in what is on the disk; nothing where there is no file yet."""
        if self.path.is_file():
            table = pd.read_csv(self.path, dtype={"trial": str})
            self._rows = {row["trial"]: dict(zip(map(str, table), row)) for _, row in table.iterrows()}
        return self.frame()

    def frame(self) -> pd.DataFrame:
        """One row per trial."""
        columns = ["trial", "state", "epochs", "score", *self.names, "seconds", "error"]
        return pd.DataFrame(list(self._rows.values()), columns=columns)

    def update(self, trial: Any, result: Mapping[str, Any] | None, state: str) -> None:
        """Take in what a trial of Ray Tune has come to, and write the table."""
        empty = {"trial": trial.trial_id, "epochs": 0, "score": math.nan, "seconds": 0.0, "error": ""}
        row = self._rows.setdefault(trial.trial_id, empty)
        row.update({name: trial.config.get(name) for name in self.names})
        if result and SCORE in result:
            best = np.fmax(self.sign * row["score"], result[SCORE])
            row.update(epochs=result[EPOCH], score=self.sign * best, seconds=result.get("time_total_s", 0.0))
            if state == "TERMINATED" and row["epochs"] < self.last_epoch and not result.get(FINISHED):
                state = "PRUNED"
        if state == "ERROR":
            row["error"] = _last_line(trial.error_file)
        row["state"] = state
        files.write_text(self.path, self.frame().to_csv(index=False))

    def report(self, trial_id: str) -> None:
        """One line on a trial that ended."""
        row, table = self._rows[trial_id], self.frame()
        best = table["score"].max() if self.sign > 0 else table["score"].min()
        logger.info(
            "trial %s %s after %d epochs: valid %s %.4f; %d ended, best %.4f",
            *(trial_id, row["state"].lower(), row["epochs"], self.metric, row["score"]),
            *((table["state"] != "RUNNING").sum(), best),
        )


def _callback(table: TrialTable) -> Any:
    """Ray Tune's events, into the table."""
    from ray import tune as ray_tune

    class Callback(ray_tune.Callback):
        def setup(self, **info: Any) -> None:
            table.read()  # a resumed search has rows already

        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            _end_on_time()

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            table.update(trial, result, "RUNNING")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            table.update(trial, trial.last_result, "TERMINATED")
            table.report(trial.trial_id)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            table.update(trial, trial.last_result, "ERROR")
            table.report(trial.trial_id)

    return Callback()


def _last_line(error_file: str | None) -> str:
    """What went wrong, from the traceback that Ray Tune keeps."""
    try:
        lines = Path(error_file or "").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "unknown"
    return lines[-1] if lines else "unknown"


# What Ray Tune is asked for


def _for_search(dimension: Dimension, search: str) -> Any:
    from ray import tune as ray_tune

    return ray_tune.grid_search(list(dimension.values)) if search == "grid" else dimension.for_ray()


def _searcher(search: str, seed: int, concurrent: int | None) -> Any:
    if search != "optuna":
        from ray.tune.search.basic_variant import BasicVariantGenerator

        return BasicVariantGenerator(max_concurrent=concurrent or 0, random_state=seed)
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("search optuna needs optuna, which is not installed: pip install optuna") from None
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    searcher = OptunaSearch(metric=SCORE, mode="max", seed=seed)
    return ConcurrencyLimiter(searcher, concurrent) if concurrent else searcher


def _scheduler(scheduler: str, last_epoch: int, grace: int) -> Any:
    from ray.tune import schedulers

    if scheduler == "asha":
        return schedulers.ASHAScheduler(time_attr=EPOCH, max_t=last_epoch, grace_period=min(grace, last_epoch))
    if scheduler == "hyperband":
        return schedulers.HyperBandScheduler(time_attr=EPOCH, max_t=last_epoch)
    return None


# Arguments


def _check_arguments(choices: Mapping[str, tuple[str, Sequence[str]]], counts: Mapping[str, tuple[Any, float]]) -> None:
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"{name} must be one of {', '.join(allowed)}, got '{value}'")
    for name, (value, low) in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < low):
            raise UserError(f"{name} must be a number of at least {low}, got {value!r}")


def _check_space(
    model: str, dataset: str, space: Sequence[Dimension], fixed: Mapping[str, Any], params_file: Any, search: str
) -> RunConfig:
    """Try the ends of every range, so that a bad one is refused before anything starts."""
    config = RunConfig(model, dataset, fixed)
    for dimension in space:
        where = f"params_file '{params_file}' line {dimension.line}"
        if dimension.name in fixed:
            raise UserError(f"{where}: '{dimension.name}' is given a fixed value too: leave one out")
        if dimension.name in ("epochs", "eval_step", "valid_metric", "seed"):
            raise UserError(f"{where}: '{dimension.name}' must be the same for all trials: give it as a parameter")
        if search == "grid" and dimension.kind != "choice":
            raise UserError(f"{where}: grid search needs choices, got {dimension.kind}: use --search=random")
        for value in dimension.corners():
            try:
                RunConfig(model, dataset, {**fixed, dimension.name: value})
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
    return config


# Outcome


def _best_yaml(model: str, dataset: str, best: Mapping[str, Any], trial: Any, metric: str) -> str:
    head = (
        f"# {model} on {dataset}: the best of a search, {metric} {trial['score']:.4f} on validation data after "
        f"{trial['epochs']} epochs.\n# recbole-diffurec --model={model} --dataset={dataset} --config_files=best.yaml\n"
    )
    return head + yaml.safe_dump(dict(best), sort_keys=False)


def _draw(done: pd.DataFrame, space: Sequence[Dimension], metric: str, folder: Path) -> None:
    logarithmic = {dimension.name for dimension in space if dimension.kind == "loguniform"}
    names = [dimension.name for dimension in space]
    figures.draw_search(done, names, logarithmic, metric, folder / "search")


def _parameter(value: Any, dimension: Dimension) -> Any:
    """A value from the table as the parameter it was: pandas reads whole columns as one type."""
    for candidate in dimension.values if dimension.kind == "choice" else ():
        if str(candidate) == str(value) or candidate == value:
            return candidate
    value = value.item() if hasattr(value, "item") else value
    return int(value) if dimension.kind == "randint" else value

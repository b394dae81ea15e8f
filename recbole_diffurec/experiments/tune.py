"""Hyper-parameter search on Ray Tune: many short trainings, judged on validation data alone."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import pandas as pd
import yaml

from recbole_diffurec.config import layers
from recbole_diffurec.config.rules import NOT_IN_RESULT, take_options
from recbole_diffurec.errors import UserError
from recbole_diffurec.experiments import cluster, search_figure, trials
from recbole_diffurec.experiments.progress import LINE
from recbole_diffurec.experiments.search_folder import refuse_foreign, same_search
from recbole_diffurec.experiments.search_options import SearchOptions
from recbole_diffurec.experiments.space import Dimension, draw_different, read_space, size_of
from recbole_diffurec.experiments.trials import BUDGET, SCORE, TrialTable
from recbole_diffurec.host.checks import check_needs
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.runtime import files, visible
from recbole_diffurec.training.own_data import data_set_of
from recbole_diffurec.training.prepare import DatasetCache
from recbole_diffurec.training.report import explained
from recbole_diffurec.training.run import run, train

logger = logging.getLogger("recbole_diffurec")

RETRIES = 1
_STATE = "ray"  # the folder of Ray Tune's own files


@files.nameable()
@visible.lines()
def tune(
    model: str | None = None,
    dataset: str | None = None,
    *,
    params_file: str | Path,
    output_dir: str | Path = "tuning",
    resume: bool = False,
    config_files: Sequence[str | Path] = (),
    experiment: str | None = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Search, write ``trials.csv``, ``best.yaml`` and ``search.png``, then train the best again and test it once.

    Parameters
    ----------
    model, dataset : str, optional
        As for ``run``.
    params_file : str or Path
        The search space, see ``recbole_diffurec.experiments.space``.
    output_dir : str or Path, optional
        Folder of all output.
    resume : bool, optional
        Resume the search in ``output_dir``.
    config_files, experiment : sequence of str or Path, and str, optional
        Fixed values for every trial, as for ``run``.
    **parameters : object
        The fields of ``SearchOptions``, such as ``num_trials=50``; all others are fixed values.

    Returns
    -------
    dict of str to object
        With ``best`` (parameters), ``valid_score``, ``trials`` (DataFrame) and ``final`` (results of the last runs).

    Raises
    ------
    UserError
        Anything given is wrong; raised before the first trial starts. Or no trial succeeded, or none in time.
    """
    output_dir = files.absolute(output_dir, "output_dir")
    options = take_options(SearchOptions, parameters)
    options.require()
    dataset = data_set_of(dataset, parameters, config_files, experiment)
    fixed = layers.settings(experiment, config_files, parameters) | _limit_of_epochs(options, parameters)
    config = RunConfig(model, dataset, fixed)
    config.refuse_without("validation", "a search judges by it")
    model = fixed.pop("model", model) or config["model"]  # a variant's own name
    dataset = config["dataset"]
    fixed.pop("dataset", None)
    space = read_space(params_file, config["model"])
    _check_space(config, space, fixed, params_file, options.search)
    _check_needs_of(config, {*layers.settings(None, config_files), *parameters}, space)
    # Trials have working directories of their own.
    fixed["data_path"] = os.path.abspath(fixed.get("data_path", config.plain()["data_path"]))
    config = RunConfig(model, dataset, fixed)
    search = _Search(model, dataset, fixed, space, config, options, output_dir)
    search.claim_folder(resume)
    return search.conclude(search.go(resume))


def _limit_of_epochs(options: SearchOptions, parameters: dict[str, Any]) -> dict[str, int]:
    """What ``max_epochs`` sets, if it is given."""
    if options.max_epochs is None:
        return {}
    if "epochs" in parameters:
        raise UserError(
            f"epochs ({parameters['epochs']}) and max_epochs ({options.max_epochs}) are the same limit, of every "
            "trial and of the last runs: leave one of them out"
        )
    return {"epochs": options.max_epochs}


@dataclass(frozen=True)
class _Search:
    """A search whose arguments are checked."""

    model: str
    dataset: str
    fixed: dict[str, Any]
    space: Sequence[Dimension]
    config: RunConfig
    options: SearchOptions
    output_dir: Path

    @property
    def planned(self) -> int:
        """How many trials there are to be."""
        if self.options.search == "grid":
            return math.prod(len(dimension.values) for dimension in self.space)
        trials_asked = self.options.num_trials
        return trials_asked if self.options.search == "optuna" else int(min(trials_asked, size_of(self.space)))

    def _points(self) -> list[dict[str, Any]] | None:
        """For a random search among finitely many configurations: different ones, which Ray Tune would not draw."""
        if self.options.search != "random" or size_of(self.space) == math.inf:
            return None
        if self.planned < self.options.num_trials:
            logger.info("there are %d configurations: each is tried once", self.planned)
        return draw_different(self.space, self.planned, self.config["seed"])

    def table(self) -> TrialTable:
        return TrialTable(self.output_dir / "trials.csv", [dimension.name for dimension in self.space], self.config)

    def claim_folder(self, resume: bool) -> None:
        """Make the folder of the output, or find the search in it that is to be resumed."""
        state = self.output_dir / _STATE
        if resume and not os.path.isdir(state):
            raise UserError(
                f"output_dir '{self.output_dir}' holds no search to resume: leave out --resume to start one"
            )
        if not resume and os.path.isdir(state):
            raise UserError(
                f"output_dir '{self.output_dir}' holds a search already: add --resume, or give another folder"
            )
        if resume:
            refuse_foreign(state)
            logger.info("resuming opens Ray Tune's own files in '%s', which are pickles and may run code", state)
        files.make_folder(self.output_dir, "output_dir")
        asked = {
            "model": self.model,
            "dataset": self.dataset,
            "fixed": self.fixed,
            "space": [dataclasses.asdict(dimension) for dimension in self.space],
            "num_trials": self.planned,
            "search": self.options.search,
            "scheduler": self.options.scheduler,
        }
        same_search(self.output_dir / "search.json", asked, resume)

    def go(self, resume: bool) -> bool:
        """Run the trials under their line; returns whether that ended within the time budget."""
        LINE.begin(self.config["show_progress"])
        try:
            return self._go(resume)
        finally:
            LINE.end()

    def _go(self, resume: bool) -> bool:
        datasets = DatasetCache()
        with explained(f"preparing data set '{self.dataset}'"):
            datasets.get(self.config)
        # Ray Tune's own tables would come between our lines.
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        options, log = self.options, self.output_dir / cluster.LOG
        logger.info(
            "%d trials of at most %d epochs; each says how it ended, and what Ray says is in '%s'",
            self.planned,
            self.config["epochs"],
            os.path.relpath(log),
        )
        with cluster.connected(options.ray_address, log):
            from ray import tune as ray_tune

            trial = ray_tune.with_parameters(
                trials.run_trial, model=self.model, dataset=self.dataset, fixed=self.fixed, shared=datasets
            )
            trial = ray_tune.with_resources(trial, {"cpu": options.cpus_per_trial, "gpu": options.gpus_per_trial})
            if resume:
                tuner = ray_tune.Tuner.restore(str(self.output_dir / _STATE), trial, resume_errored=True)
            else:
                tuner = self._tuner(trial)
            started = time.monotonic()
            table = self.table()
            table.read()
            LINE.trials_begin(table.standing(self.planned), options.time_budget)
            with BUDGET.of(options.time_budget):
                tuner.fit()
            return options.time_budget is None or time.monotonic() - started < options.time_budget

    def _tuner(self, trial: Any) -> Any:
        from ray import tune as ray_tune

        options, config, table = self.options, self.config, self.table()
        grace = options.grace_epochs * config["eval_step"]
        return ray_tune.Tuner(
            trial,
            param_space={dimension.name: trials.for_search(dimension, options.search) for dimension in self.space},
            tune_config=ray_tune.TuneConfig(
                metric=SCORE,
                mode="max",
                num_samples=1 if options.search == "grid" else self.planned,
                scheduler=trials.scheduler_of(options.scheduler, table.last_epoch, grace),
                search_alg=trials.searcher(options.search, config["seed"], options.concurrent_trials, self._points()),
            ),
            run_config=ray_tune.RunConfig(
                name=_STATE,
                storage_path=str(self.output_dir),
                failure_config=ray_tune.FailureConfig(max_failures=RETRIES),
                callbacks=[trials.callback_of(table, self.planned)],
                verbose=0,
            ),
        )

    def conclude(self, in_time: bool) -> dict[str, Any]:
        """Keep the best configuration, and train it again and test it."""
        table, budget = self.table(), self.options.time_budget
        rows = table.read()
        done, ended = rows[rows["score"].notna()], (rows["state"] != "RUNNING").sum()
        interrupted = in_time and ended < self.planned  # Ray Tune returns from Ctrl-C as if all were well
        if done.empty:
            if interrupted:
                raise KeyboardInterrupt
            raise _nothing_found(table, None if in_time else budget)
        top = done.iloc[int((table.sign * done["score"]).to_numpy().argmax())]
        found = {dimension.name: _parameter(top[dimension.name], dimension) for dimension in self.space}
        chosen = self._acting({**self.fixed, **found})
        best = {name: value for name, value in chosen.items() if name not in NOT_IN_RESULT}
        text = _best_yaml(self.model, self.dataset, best, top, table.metric)
        files.write_text(self.output_dir / "best.yaml", text)
        _draw(done, self.space, table.metric, self.output_dir)
        if interrupted:
            raise KeyboardInterrupt
        if ended < self.planned:
            logger.info(
                "time_budget %g is over: %d of %d trials ended; --resume runs the others", budget, ended, self.planned
            )
        return {"best": best, "valid_score": float(top["score"]), "trials": rows, "final": self._final(chosen)}

    def _acting(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Without what a trial drew, or an experiment says, for another value of a third parameter."""
        config = RunConfig(self.model, self.dataset, values)
        return {name: value for name, value in values.items() if config.unmet_need(name) is None}

    def _final(self, chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The results of the best configuration, for each seed."""
        first = self.config["seed"]
        return [
            run(
                self.model,
                self.dataset,
                result_file=self.output_dir / f"final-{seed}.json",
                **{"checkpoint_dir": str(self.output_dir / "checkpoints"), **chosen, "seed": seed},
            )
            for seed in range(first, first + self.options.final_seeds)
        ]


def _nothing_found(table: TrialTable, budget: float | None) -> UserError:
    """That no trial was validated, in the time there was or at all."""
    if budget is None:
        return UserError(f"no trial of the search succeeded: their errors are in '{table.path}'")
    return UserError(
        f"no trial was validated within time_budget {budget:g}: --resume with more of it resumes the search; "
        f"errors, if there were any, are in '{table.path}'"
    )


def objective_function(
    config_dict: Mapping[str, Any] | None = None,
    config_file_list: Sequence[str] | None = None,
    *,
    model: str | None = None,
    dataset: str | None = None,
) -> dict[str, Any]:
    """One run for RecBole's own ``HyperTuning``; give it ``functools.partial(objective_function, model=...)``.

    Without ``model`` and ``dataset`` the names are those of the files, as for ``run``.

    Returns
    -------
    dict of str to object
        With the keys that ``HyperTuning`` reads.
    """
    config = RunConfig(model, dataset, config_dict, config_file_list or ())
    config.refuse_without("validation", "a search judges by it")
    result = train(config).result
    best = max(
        (epoch for epoch in result["history"] if "valid_score" in epoch),
        key=lambda epoch: epoch["valid_score"] * (1 if config["valid_metric_bigger"] else -1),
    )
    return {
        "model": config["model"],
        "best_valid_score": best["valid_score"],
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": result["best_valid_result"],
        "test_result": result["test_result"],
    }


def _check_space(
    config: RunConfig, space: Sequence[Dimension], fixed: Mapping[str, Any], params_file: Any, search: str
) -> None:
    """Try the ends of every range, so that a bad one is refused before anything starts."""
    model, dataset = config["model"], config["dataset"]
    searched = {dimension.name for dimension in space}
    for dimension in space:
        where = f"params_file '{params_file}' line {dimension.line}"
        if dimension.name in fixed:
            raise UserError(f"{where}: '{dimension.name}' is given a fixed value too: leave one out")
        if dimension.name in ("epochs", "eval_step", "valid_metric", "seed"):
            raise UserError(f"{where}: '{dimension.name}' must be the same for all trials: give it as a parameter")
        need = config.unmet_need(dimension.name)
        if need is not None and need.parameter not in searched:
            raise UserError(
                f"{where}: '{dimension.name}' would have no effect with {need.parameter} "
                f"{config[need.parameter]!r}: give {need.remedy} as well, or take the line out"
            )
        if search == "grid" and dimension.kind != "choice":
            raise UserError(f"{where}: grid search needs choices, got {dimension.kind}: use --search=random")
        try:
            trials.for_search(dimension, search)
        except (ValueError, OverflowError) as error:  # of Ray Tune, such as a step that does not divide its bounds
            raise UserError(f"{where}: Ray Tune refuses this ({str(error).splitlines()[0].rstrip('.')})") from None
        for value in dimension.corners():
            try:
                RunConfig(model, dataset, {**fixed, dimension.name: value})
            except UserError as error:
                raise UserError(f"{where}: {error}") from None


def _check_needs_of(config: RunConfig, given: set[str], space: Sequence[Dimension]) -> None:
    """``check_needs`` of what is the same for all trials, but where that which keeps it from acting is searched."""
    searched = {dimension.name for dimension in space}
    alone = [name for name in given if not ((need := config.unmet_need(name)) and need.parameter in searched)]
    check_needs(alone, config, config.internal_config_dict)


def _best_yaml(model: str, dataset: str, best: Mapping[str, Any], trial: Any, metric: str) -> str:
    head = (
        f"# {model} on {dataset}: the best of a search, {metric} {trial['score']:.4f} on validation data after "
        f"{trial['epochs']} epochs.\n# recbole-diffurec --model={model} --dataset={dataset} --config_files=best.yaml\n"
    )
    return head + yaml.safe_dump(dict(best), sort_keys=False)


def _draw(done: pd.DataFrame, space: Sequence[Dimension], metric: str, folder: Path) -> None:
    logarithmic = {dimension.name for dimension in space if dimension.kind == "loguniform"}
    names = [dimension.name for dimension in space]
    search_figure.draw_search(done, names, logarithmic, metric, folder / "search")


def _parameter(value: Any, dimension: Dimension) -> Any:
    """A value from the table as the parameter it was: pandas reads whole columns as one type."""
    for candidate in dimension.values if dimension.kind == "choice" else ():
        if str(candidate) == str(value) or candidate == value:
            return candidate
    value = value.item() if hasattr(value, "item") else value
    return int(value) if dimension.kind == "randint" else value

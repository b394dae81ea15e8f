"""The trials of a search: one training, the table of all of them, and what Ray Tune is asked for."""

from __future__ import annotations

import logging
import math
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from recbole_diffurec.experiments.progress import LINE, Standing, format_seconds
from recbole_diffurec.experiments.space import Dimension
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.runtime import files
from recbole_diffurec.training.prepare import build, prepare_data

logger = logging.getLogger("recbole_diffurec")

# What Ray Tune calls the metric and its time, whatever the validation metric of a run is.
SCORE, EPOCH, FINISHED = "score", "epoch", "finished"


def run_trial(sample: dict[str, Any], model: str, dataset: str, fixed: dict[str, Any], shared: Any) -> None:
    """One training, which reports the validation metric of every validated epoch; the test data is not touched."""
    from ray import tune as ray_tune

    config = RunConfig(model, dataset, {**fixed, **sample, "show_progress": False})
    sign = 1 if config["valid_metric_bigger"] else -1
    data = prepare_data(config, shared)
    train_data, valid_data, _ = data.loaders
    _, trainer = build(data.config, dataset_of(train_data))

    def report(epoch: Mapping[str, Any]) -> None:
        ray_tune.report({SCORE: sign * epoch["valid_score"], EPOCH: epoch["epoch"] + 1, **epoch["valid_result"]})

    trainer.try_out(train_data, valid_data, report)
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

    def best(self) -> float:
        """The best score so far; not a number where there is none."""
        scores = self.frame()["score"].astype(float)
        return float(scores.max() if self.sign > 0 else scores.min())

    def standing(self, planned: int, running: int = 0) -> Standing:
        """Where the search stands.

        Parameters
        ----------
        planned : int
            Trials in all.
        running : int
            Those that run, of which some may not have reported yet.
        """
        rows = list(self._rows.values())
        ended = sum(row["state"] != "RUNNING" for row in rows)
        epochs = sum(row["epochs"] for row in rows if row["state"] == "RUNNING")
        best = self.best()
        said = "" if math.isnan(best) else f"best {self.metric} {best:.4f}"
        return Standing(planned, ended, running, min(1.0, (ended + epochs / self.last_epoch) / planned), said)

    def report(self, trial_id: str) -> None:
        """One line on a trial that ended."""
        row, left = self._rows[trial_id], LINE.seconds_left()
        logger.info(
            "trial %s %s after %d epochs: valid %s %.4f; %d ended, best %.4f%s",
            trial_id,
            row["state"].lower(),
            row["epochs"],
            self.metric,
            row["score"],
            sum(row["state"] != "RUNNING" for row in self._rows.values()),
            self.best(),
            "" if left is None else f", about {format_seconds(left)} left",
        )


def callback_of(table: TrialTable, planned: int) -> Any:
    """Ray Tune's events, into the table and the live line, and the end of the time budget."""
    from ray import tune as ray_tune

    class Callback(ray_tune.Callback):
        def setup(self, **info: Any) -> None:
            table.read()  # a resumed search has rows already

        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            follow(table.standing(planned, sum(trial.status == "RUNNING" for trial in trials)))
            end_on_time()

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            table.update(trial, result, "RUNNING")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            table.update(trial, trial.last_result, "TERMINATED")
            follow(table.standing(planned))
            table.report(trial.trial_id)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            table.update(trial, trial.last_result, "ERROR")
            follow(table.standing(planned))
            table.report(trial.trial_id)

    return Callback()


def _last_line(error_file: str | None) -> str:
    """What went wrong, from the traceback that Ray Tune keeps."""
    try:
        lines = Path(error_file or "").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "unknown"
    return lines[-1] if lines else "unknown"


class _Budget:
    """The time that the search under way in this process may take."""

    def __init__(self) -> None:
        self._end = math.inf  # in time.monotonic()

    @contextmanager
    def of(self, seconds: float | None) -> Iterator[None]:
        """Let ``end_on_time`` end a search within."""
        self._end = math.inf if seconds is None else time.monotonic() + seconds
        try:
            yield
        finally:
            self._end = math.inf

    def end_on_time(self) -> None:
        """Ctrl-C where the time is over, since Ray Tune's own budget ends a search for good, trials to come included.

        For a callback: Ray Tune is ready for the signal there.
        """
        if time.monotonic() >= self._end:
            signal.raise_signal(signal.SIGINT)


BUDGET = _Budget()


def end_on_time() -> None:
    """``BUDGET.end_on_time`` by name: of a callback, Ray Tune keeps the content for a resumed search."""
    BUDGET.end_on_time()


def follow(standing: Standing) -> None:
    """``LINE.follow`` by name, for the same reason."""
    LINE.follow(standing)


def for_search(dimension: Dimension, search: str) -> Any:
    from ray import tune as ray_tune

    return ray_tune.grid_search(list(dimension.values)) if search == "grid" else dimension.for_ray()


def searcher(search: str, seed: int, concurrent: int | None, points: list[dict[str, Any]] | None = None) -> Any:
    """Ray Tune's searcher; ``points`` are tried rather than draws of its own."""
    if search != "optuna":
        from ray.tune.search.basic_variant import BasicVariantGenerator

        return BasicVariantGenerator(points_to_evaluate=points, max_concurrent=concurrent or 0, random_state=seed)
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    searcher = OptunaSearch(metric=SCORE, mode="max", seed=seed)
    return ConcurrencyLimiter(searcher, concurrent) if concurrent else searcher


def scheduler_of(scheduler: str, last_epoch: int, grace: int) -> Any:
    from ray.tune import schedulers

    if scheduler == "asha":
        return schedulers.ASHAScheduler(time_attr=EPOCH, max_t=last_epoch, grace_period=min(grace, last_epoch))
    if scheduler == "hyperband":
        return schedulers.HyperBandScheduler(time_attr=EPOCH, max_t=last_epoch)
    return None

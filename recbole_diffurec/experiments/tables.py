"""Tables of a comparison: every run, the summary over seeds, significance, groups of users, and the lists.

Each is a pandas DataFrame; ``readable`` writes them to files, and for people.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any, Sequence

import numpy as np
import pandas as pd

from recbole_diffurec.experiments import measures, stats
from recbole_diffurec.experiments.grid import Job
from recbole_diffurec.experiments.store import RunStore
from recbole_diffurec.host import catalogue
from recbole_diffurec.training.report import metric_name

# Columns that are costs rather than qualities: the smaller, the better; none is marked as best.
COSTS = {
    "seconds_to_best": "training to the best epoch, s",
    "seconds_per_epoch": "training per epoch, s",
    "users_per_second": "inference, users/s",
    "n_parameters": "parameters",
    "best_epoch": "best epoch",
}


def main_metric(metrics: Collection[str]) -> str:
    """The metric by which models are compared: NDCG@10 where it is there, or else the first NDCG."""
    return "ndcg@10" if "ndcg@10" in metrics else next(m for m in metrics if m.startswith("ndcg"))


class Results:
    """Finished runs and everything that is computed from them.

    Parameters
    ----------
    jobs : Sequence of Job
        Finished runs, in the order in which tables list them.
    store : RunStore
        Where the runs are.
    baseline : str or None
        Label to test against, or None to choose one by validation.
    """

    def __init__(self, jobs: Sequence[Job], store: RunStore, baseline: str | None):
        self.jobs = jobs
        self.results = {job: store.result(job) for job in jobs}
        self._arrays = {job: store.arrays(job) for job in jobs}
        self.labels = list(dict.fromkeys(job.entry.label for job in jobs))
        self.datasets = list(dict.fromkeys(job.dataset for job in jobs))
        self.specs = {job.entry.label: catalogue.find(job.entry.model) for job in jobs}
        self.methods = {label for label, spec in self.specs.items() if spec.method}
        self.metrics = list(next(iter(self.results.values()))["test_result"])
        self._baseline = baseline

    def arrays(self, job: Job) -> dict[str, np.ndarray]:
        """What was measured of each test user, see ``measures.per_user`` and ``measures.diffusion_measures``."""
        return self._arrays[job]

    def of(self, dataset: str, label: str | None = None) -> list[Job]:
        return [job for job in self.jobs if job.dataset == dataset and label in (None, job.entry.label)]

    def labels_of(self, dataset: str) -> list[str]:
        return [label for label in self.labels if self.of(dataset, label)]

    # Tables

    @functools.cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run."""
        return pd.DataFrame([self._run_row(job) for job in self.jobs])

    def _run_row(self, job: Job) -> dict[str, Any]:
        result = self.results[job]
        epochs = result["history"]
        best = result["best_epoch"]
        row: dict[str, Any] = {"dataset": job.dataset, "model": job.entry.label, "seed": job.seed}
        for part, values in (("valid", result["best_valid_result"]), ("test", result["test_result"])):
            row.update({f"{part}_{key}": value for key, value in values.items()})
        for k, lists in result["lists"].items():
            row.update({f"{name}@{k}": value for name, value in lists.items()})
        n_users = len(self.arrays(job)["rank"])
        return {
            **row,
            "best_epoch": best + 1,
            "epochs": len(epochs),
            "seconds_to_best": sum(epoch["train_seconds"] for epoch in epochs if epoch["epoch"] <= best),
            "seconds_per_epoch": float(np.mean([epoch["train_seconds"] for epoch in epochs])),
            "users_per_second": n_users / result["eval_seconds"],
            "n_parameters": result["n_parameters"],
            "device": result["device"],
            "checkpoint": result["checkpoint"],
            "key": job.key,
        }

    @functools.cached_property
    def summary(self) -> pd.DataFrame:
        """One row per data set and model: the number of seeds, and mean and standard deviation of every column."""
        values = self.runs.drop(columns=["seed", "device", "checkpoint", "key"])
        groups = values.groupby(["dataset", "model"], sort=False)
        table = _mean_and_deviation(groups)
        table.insert(0, "seeds", groups.size())
        return table.reset_index()

    def baseline_of(self, dataset: str) -> str:
        """The label that the others are measured against on a data set; chosen on validation, never on test."""
        labels = self.labels_of(dataset)
        if self._baseline in labels:
            return str(self._baseline)
        return self._best_by_validation(dataset, [label for label in labels if label not in self.methods] or labels)

    def challenger_of(self, dataset: str) -> str | None:
        """Which of our models the improvement over the baseline is of: the best by validation; None without one.

        Among our own models alone nothing is an improvement, unless somebody has named the baseline.
        """
        labels, baseline = self.labels_of(dataset), self.baseline_of(dataset)
        ours = [label for label in labels if label in self.methods and label != baseline]
        if not ours or (baseline in self.methods and baseline != self._baseline):
            return None
        return self._best_by_validation(dataset, ours)

    def reference(self, dataset: str) -> str:
        """In a sentence, which model the others are measured against, and why this one."""
        baseline = self.baseline_of(dataset)
        measure = f"by validation {metric_name(self.main_metric)}"
        best = f"the best of {'all models' if baseline in self.methods else 'the baselines'} {measure}"
        why = "as asked for" if baseline == self._baseline else best
        challenger = self.challenger_of(dataset)
        ours = f" The improvement is that of {challenger}, the best of the methods {measure}." if challenger else ""
        return f"Reference of improvement and significance: {baseline}, {why}.{ours}"

    def _best_by_validation(self, dataset: str, labels: Sequence[str]) -> str:
        return max(labels, key=lambda label: self.mean(dataset, label, f"valid_{self.main_metric}"))

    def losses(self, dataset: str) -> dict[str, list[str]]:
        """The labels by the kind of their training loss; only within one can losses be compared."""
        kinds: dict[str, list[str]] = {}
        for label in self.labels_of(dataset):
            config = self.results[self.of(dataset, label)[0]]["config"]
            kinds.setdefault(self.specs[label].loss_of(config), []).append(label)
        return kinds

    @property
    def main_metric(self) -> str:
        return main_metric(self.metrics)

    def mean(self, dataset: str, label: str, column: str) -> float:
        return float(self._values(dataset, label, column).mean())

    def _values(self, dataset: str, label: str, column: str) -> pd.Series:
        """One column over the seeds."""
        return self.runs.loc[(self.runs["dataset"] == dataset) & (self.runs["model"] == label), column]

    @functools.cached_property
    def significance(self) -> pd.DataFrame:
        """Every model against the baseline, for HR and NDCG at 10 (or the data's longest list), on the test users."""
        k = int(self.main_metric.partition("@")[2])
        tables = []
        for dataset in self.datasets:
            baseline = self.baseline_of(dataset)
            for metric in ("hit", "ndcg"):
                rows = self.runs[self.runs["dataset"] == dataset]
                by_seed = {
                    label: rows[rows["model"] == label].set_index("seed")[f"test_{metric}@{k}"]
                    for label in self.labels_of(dataset)
                }
                by_user = {label: self.user_metric(dataset, label, metric, k) for label in self.labels_of(dataset)}
                table = stats.compare_to(baseline, by_seed, by_user, metric_name(f"{metric}@{k}"))
                if len(table):
                    table.insert(0, "dataset", dataset)
                    tables.append(table)
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def user_metric(self, dataset: str, label: str, metric: str, k: int) -> pd.Series:
        """A metric of every test user, the mean over seeds."""
        seeds = [
            pd.Series(measures.gains(arrays["rank"], k)[metric], index=arrays["user"])
            for arrays in map(self.arrays, self.of(dataset, label))
        ]
        return pd.concat(seeds, axis=1, join="inner").mean(axis=1)

    @functools.cached_property
    def groups(self) -> pd.DataFrame:
        """HR and NDCG by popularity of the target and by history length: mean and deviation over seeds."""
        k = int(self.main_metric.partition("@")[2])
        rows = []
        for job in self.jobs:
            arrays = self.arrays(job)
            split = [("popularity", "head", arrays["head"]), ("popularity", "long tail", ~arrays["head"])]
            split += [("length", name, members) for name, members in measures.length_groups(arrays["length"])]
            for kind, name, members in split:
                if members.any():
                    values = {m: v[members].mean() for m, v in measures.gains(arrays["rank"], k).items()}
                    rows.append(
                        {"dataset": job.dataset, "model": job.entry.label, "split": kind, "group": name}
                        | {"users": int(members.sum()), f"hit@{k}": values["hit"], f"ndcg@{k}": values["ndcg"]}
                    )
        keys = ["dataset", "split", "group", "users", "model"]
        return _mean_and_deviation(pd.DataFrame(rows).groupby(keys, sort=False)).reset_index()

    # For people

    def display(self, dataset: str, part: str) -> pd.DataFrame:
        """Metrics of one part (valid or test) as ``mean ± std``."""
        table = pd.DataFrame(index=self.labels_of(dataset))
        for key in self.metrics:
            table[metric_name(key)] = [self._cell(dataset, label, f"{part}_{key}") for label in table.index]
        return table

    def improvement(self, dataset: str, part: str) -> pd.Series | None:
        """Of ``challenger_of`` over ``baseline_of`` in each metric, in percent; None without both."""
        baseline, challenger = self.baseline_of(dataset), self.challenger_of(dataset)
        if challenger is None:
            return None
        gains = {}
        for key in self.metrics:
            own, other = (self.mean(dataset, label, f"{part}_{key}") for label in (challenger, baseline))
            gains[metric_name(key)] = 100 * (own / other - 1) if other else float("nan")
        return pd.Series(gains, name=f"{challenger} over {baseline}")

    def order(self, dataset: str, part: str, key: str) -> list[str]:
        """Labels from best to worst in one metric."""
        return sorted(self.labels_of(dataset), key=lambda label: -self.mean(dataset, label, f"{part}_{key}"))

    def costs(self, dataset: str) -> pd.DataFrame:
        """Time to train and to answer, and size (the paper's Table 2)."""
        table = pd.DataFrame(index=self.labels_of(dataset))
        for column, title in COSTS.items():
            digits = 0 if column in ("n_parameters", "best_epoch") else 1
            table[title] = [f"{self.mean(dataset, label, column):,.{digits}f}" for label in table.index]
        return table

    def lists(self, dataset: str) -> pd.DataFrame:
        """What the test lists of the main length hold."""
        k = self.main_metric.partition("@")[2]
        titles = {
            "coverage": "coverage",
            "entropy": "entropy",
            "gini": "Gini index",
            "average_popularity": "mean popularity",
            "tail_share": "long-tail share",
        }
        table = pd.DataFrame(index=self.labels_of(dataset))
        for column, title in titles.items():
            digits = 1 if column == "average_popularity" else 4
            table[f"{title}@{k}"] = [
                f"{self.mean(dataset, label, f'{column}@{k}'):.{digits}f}" for label in table.index
            ]
        return table

    def _cell(self, dataset: str, label: str, column: str) -> str:
        values = self._values(dataset, label, column)
        return f"{values.mean():.4f}" + (f" ± {values.std():.4f}" if len(values) > 1 else "")


def _mean_and_deviation(groups: Any) -> pd.DataFrame:
    """``NAME_mean`` and ``NAME_std`` of every column of grouped rows."""
    table = groups.agg(["mean", "std"])
    table.columns = ["_".join(column) for column in table.columns]
    return table

"""Tables of a comparison: every run, the summary over seeds, significance, groups of users, and the lists.

Each is a pandas DataFrame first; ``write`` saves them as CSV, and the summary as Markdown and LaTeX as well.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import pandas as pd

from recbole_diffurec.experiments import measures, stats
from recbole_diffurec.experiments.grid import Job
from recbole_diffurec.experiments.store import RunStore
from recbole_diffurec.host import catalogue
from recbole_diffurec.runtime import files
from recbole_diffurec.training.report import metric_name

# The label of the row that says how much better the best of our models is than the best baseline.
IMPROVEMENT = "improvement"

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
        self.methods = {job.entry.label for job in jobs if catalogue.find(job.entry.model).method}
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
        """The label that the others are tested against on a data set; chosen on validation, never on test."""
        labels = self.labels_of(dataset)
        if self._baseline in labels:
            return str(self._baseline)
        others = [label for label in labels if label not in self.methods]
        if not others:
            return labels[0]
        return max(others, key=lambda label: self.mean(dataset, label, f"valid_{self.main_metric}"))

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
        """Metrics of one part (valid or test) as ``mean ± std``; with the improvement over the best baseline."""
        table = pd.DataFrame(index=self.labels_of(dataset))
        for key in self.metrics:
            table[metric_name(key)] = [self._cell(dataset, label, f"{part}_{key}") for label in table.index]
        return table

    def improvement(self, dataset: str, part: str) -> pd.Series | None:
        """Of the best of our models over the best baseline in each metric, in percent; None without one of either."""
        labels = self.labels_of(dataset)
        ours = [label for label in labels if label in self.methods]
        others = (
            [self._baseline] if self._baseline in labels else [label for label in labels if label not in self.methods]
        )
        ours = [label for label in ours if label not in others]
        if not ours or not others:
            return None
        best = {}
        for key in self.metrics:
            top = max(self.mean(dataset, label, f"{part}_{key}") for label in ours)
            reference = max(self.mean(dataset, label, f"{part}_{key}") for label in others)
            best[metric_name(key)] = 100 * (top / reference - 1) if reference else float("nan")
        return pd.Series(best)

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


def write(results: Results, folder: Path) -> None:
    """``runs.csv``, ``summary.csv``, ``summary.md``, ``summary.tex``, ``significance.csv`` and ``groups.csv``."""
    for name in ("runs", "summary", "significance", "groups"):
        files.write_text(folder / f"{name}.csv", getattr(results, name).to_csv(index=False))
    files.write_text(folder / "summary.md", markdown(results))
    files.write_text(folder / "summary.tex", latex(results))


def seeds_note(results: Results, dataset: str) -> str:
    """How many seeds the figures are means of."""
    counts = {label: len(results.of(dataset, label)) for label in results.labels_of(dataset)}
    if len(set(counts.values())) == 1:
        n = next(iter(counts.values()))
        return f"Mean ± standard deviation over {n} seeds." if n > 1 else "One seed."
    return "Seeds: " + ", ".join(f"{label} {n}" for label, n in counts.items()) + "."


def marked(results: Results, dataset: str, part: str, best: str, second: str, text: Any = str) -> pd.DataFrame:
    """``display`` with the best and the second of each column put into the templates ``best`` and ``second``."""
    table = results.display(dataset, part).map(text)
    for key in results.metrics:
        order = results.order(dataset, part, key)
        column = metric_name(key)
        for label, template in zip(order, (best, second) if len(order) > 2 else (best,)):
            table.loc[label, column] = template.format(table.loc[label, column])
    improvement = results.improvement(dataset, part)
    if improvement is not None:
        table.loc[IMPROVEMENT] = [text(f"{value:+.1f} %") for value in improvement]
    return table


def markdown(results: Results) -> str:
    """All tables as Markdown: best in bold, second underlined."""
    lines = []
    for dataset in results.datasets:
        lines += [f"## {dataset}", "", seeds_note(results, dataset), ""]
        for part, title in (("test", "Test"), ("valid", "Validation, at the best epoch")):
            lines += [f"### {title}", "", _markdown_table(marked(results, dataset, part, "**{}**", "<u>{}</u>")), ""]
        lines += ["### Cost", "", _markdown_table(results.costs(dataset)), ""]
        lines += ["### Lists (test)", "", _markdown_table(results.lists(dataset)), ""]
        lines += ["### Groups of test users", "", _markdown_table(group_table(results, dataset)), ""]
        for label, sentence in verdicts(results, dataset).items():
            lines += [f"### What the diffusion contributes to {label}", "", sentence, ""]
        significance = significance_table(results, dataset)
        if len(significance):
            lines += [f"### Better than {results.baseline_of(dataset)}?", "", SIGNIFICANCE_NOTE, ""]
            lines += [_markdown_table(significance), ""]
    return "\n".join(lines)


SIGNIFICANCE_NOTE = (
    "One-sided p that the model is better: paired t-test over seeds, Wilcoxon's signed-rank test over users; in "
    "brackets corrected for the number of models (Benjamini-Hochberg). The interval is the 95 % bootstrap interval of "
    "the difference over users."
)


def significance_table(results: Results, dataset: str) -> pd.DataFrame:
    """The significance of one data set with readable numbers."""
    if results.significance.empty:
        return pd.DataFrame()
    table = results.significance[results.significance["dataset"] == dataset]

    def p(row: Any, kind: str) -> str:
        value, adjusted = row[f"p_{kind}"], row[f"p_{kind}_corrected"]
        return "one seed" if np.isnan(value) else f"{value:.2g} ({adjusted:.2g})"

    return pd.DataFrame(
        {
            "metric": table["metric"],
            "difference": table["difference"].map("{:+.4f}".format),
            "p over seeds": [p(row, "seeds") for _, row in table.iterrows()],
            "p over users": [p(row, "users") for _, row in table.iterrows()],
            "interval over users": [
                f"[{low:+.4f}, {high:+.4f}]" for low, high in zip(table["users_low"], table["users_high"])
            ],
        }
    ).set_axis(table["model"], axis=0)


def group_table(results: Results, dataset: str) -> pd.DataFrame:
    """NDCG of each group of users, one column per model."""
    table = results.groups[results.groups["dataset"] == dataset]
    names = {"popularity": "target in the ", "length": "history of "}
    labels = [names[row["split"]] + f"{row['group']} ({row['users']:,})" for _, row in table.iterrows()]
    wide = table.assign(row=labels).pivot_table(
        index="row", columns="model", values=f"{results.main_metric}_mean", sort=False
    )
    wide = wide[results.labels_of(dataset)].map("{:.4f}".format)
    wide.columns.name = wide.index.name = None
    return wide.rename(columns=lambda label: f"{label} {metric_name(results.main_metric)}")


def _markdown_table(table: pd.DataFrame) -> str:
    rows = [["", *table.columns], ["---"] + ["---:"] * len(table.columns)]
    rows += [[str(index), *map(str, row)] for index, row in zip(table.index, table.to_numpy())]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


_LATEX_SPECIAL = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}"}
_LATEX_SPECIAL |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$"}


def terminal(results: Results) -> str:
    """The test tables as plain text."""
    parts = []
    for dataset in results.datasets:
        table = marked(results, dataset, "test", "{}", "{}")
        parts += [f"{dataset}, test. {seeds_note(results, dataset)}", "", table.to_string(), ""]
        parts += [f"{label}: {sentence}" for label, sentence in verdicts(results, dataset).items()]
    return "\n".join(parts)


def verdicts(results: Results, dataset: str) -> dict[str, str]:
    """What the short audit of each diffusion model's first seed comes to, by label."""
    first = {label: results.results[results.of(dataset, label)[0]] for label in results.labels_of(dataset)}
    return {label: found["audit"]["verdict"]["sentence"] for label, found in first.items() if "audit" in found}


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_LATEX_SPECIAL.get(character, character) for character in str(text))


def latex(results: Results) -> str:
    """The test tables as LaTeX (booktabs): best in bold, second underlined."""
    blocks = []
    for dataset in results.datasets:
        table = marked(results, dataset, "test", r"\textbf{{{}}}", r"\underline{{{}}}", latex_text)
        head = " & ".join(["", *map(latex_text, table.columns)])
        body = [" & ".join([latex_text(label), *row]) + r" \\" for label, row in zip(table.index, table.to_numpy())]
        if table.index[-1] == IMPROVEMENT:
            body.insert(-1, r"\midrule")
        blocks += [
            r"\begin{table}",
            rf"\caption{{Test results on {latex_text(dataset)}. {latex_text(seeds_note(results, dataset))}}}",
            r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join([r"% needs \usepackage{booktabs}", *blocks])

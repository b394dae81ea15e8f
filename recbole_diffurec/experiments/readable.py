"""Tables of a comparison as people read them: as CSV, Markdown and LaTeX, on the terminal, and parts of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_diffurec.experiments.tables import Results
from recbole_diffurec.runtime import files
from recbole_diffurec.training.report import metric_name


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
        table.loc[improvement.name] = [text(f"{value:+.1f} %") for value in improvement]
    return table


def markdown(results: Results) -> str:
    """All tables as Markdown: best in bold, second underlined."""
    lines = []
    for dataset in results.datasets:
        lines += [f"## {dataset}", "", seeds_note(results, dataset), results.reference(dataset), ""]
        for part, title in (("test", "Test"), ("valid", "Validation, at the best epoch")):
            lines += [f"### {title}", "", _markdown_table(marked(results, dataset, part, "**{}**", "<u>{}</u>")), ""]
        lines += ["### Cost", "", _markdown_table(results.costs(dataset)), ""]
        lines += ["### Lists (test)", "", _markdown_table(results.lists(dataset)), ""]
        lines += [
            f"### Groups of test users, {metric_name(results.main_metric)}",
            "",
            _markdown_table(group_table(results, dataset)),
            "",
        ]
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
    """The main metric of each group of users, one row per model."""
    table = results.groups[results.groups["dataset"] == dataset]
    names = {"popularity": "target in the ", "length": "history of "}
    labels = [names[row["split"]] + f"{row['group']} ({row['users']:,})" for _, row in table.iterrows()]
    wide = table.assign(group_of=labels).pivot_table(
        index="model", columns="group_of", values=f"{results.main_metric}_mean", sort=False
    )
    wide = wide.loc[results.labels_of(dataset)].map("{:.4f}".format)
    wide.columns.name = wide.index.name = None
    return wide


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
        parts += [
            f"{dataset}, test. {seeds_note(results, dataset)}",
            "",
            table.to_string(),
            "",
            results.reference(dataset),
            "",
        ]
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
        about = f"{seeds_note(results, dataset)} {results.reference(dataset)}"
        table = marked(results, dataset, "test", r"\textbf{{{}}}", r"\underline{{{}}}", latex_text)
        head = " & ".join(["", *map(latex_text, table.columns)])
        body = [" & ".join([latex_text(label), *row]) + r" \\" for label, row in zip(table.index, table.to_numpy())]
        if results.challenger_of(dataset):
            body.insert(-1, r"\midrule")
        blocks += [
            r"\begin{table}",
            rf"\caption{{Test results on {latex_text(dataset)}. {latex_text(about)}}}",
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

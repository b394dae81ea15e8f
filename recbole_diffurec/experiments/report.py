"""The report of a comparison: one HTML file that needs nothing else and opens offline."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any, Mapping, Sequence

import pandas as pd

from recbole_diffurec.experiments import about, audit_tables, readable
from recbole_diffurec.experiments.looks import Picture
from recbole_diffurec.experiments.tables import Results
from recbole_diffurec.runtime import files
from recbole_diffurec.training.report import metric_name

_STYLE = """
:root { color-scheme: light dark; --text: #222; --page: #fff; --soft: #444; --line: #ddd; --firm: #888; --mark: #0072b2;
  --failed: #fdf3ec; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --page: #16181b; --soft: #b4b4b4; --line: #3a3d42; --firm: #85898f; --mark: #56b4e9;
    --failed: #3a2417; }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem 1.5rem 4rem;
  color: var(--text); background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.3; } h2 { margin-top: 3rem; border-bottom: 2px solid var(--mark); }
h3 { margin-top: 2rem; } a { color: var(--mark); }
.scroll { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .8rem; overflow-wrap: normal; }
th, td { padding: .25rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--firm); white-space: normal; vertical-align: bottom; }
th:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; width: 15rem; min-width: 7rem;
  position: sticky; left: 0; background: var(--page); }
tr.improvement > * { border-top: 2px solid var(--firm); font-style: italic; }
dl.about { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; font-size: .9rem; }
code span { display: inline-block; max-width: 100%; }
dl.about dt { color: var(--soft); } dl.about dd { margin: 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure img { width: 100%; background: #fff; }
figcaption { font-size: .85rem; color: var(--soft); }
figure.wide { grid-column: 1 / -1; }
.failed { border-left: 4px solid #d55e00; padding: .5rem 1rem; background: var(--failed); }
nav a { margin-right: 1rem; } details { margin-top: 1rem; }
pre { font-size: .8rem; white-space: pre-wrap; }
.note { color: var(--soft); font-size: .9rem; }
@media (max-width: 40rem) { body { padding: 1rem; } dl.about { display: block; } dl.about dt { margin-top: .5rem; }
  th:first-child { width: 7rem; } }
"""


# Characters of a table's type that the page has room for at 1280 px, in the column of labels, and between two columns.
ROOM, LABEL, BETWEEN = 138, 32, 2.5
NAMED = 4  # models that a title names


def write(results: Results, pictures: Sequence[Picture], failures: Mapping[str, str], command: str, path: Path) -> None:
    """Write the report to ``path``.

    Parameters
    ----------
    results : Results
        The runs.
    pictures : Sequence of Picture
        Of all data sets.
    failures : Mapping of str to str
        {run: reason}.
    command : str
        What asked for the runs.
    path : Path
        The file.
    """
    models = ", ".join(results.labels) if len(results.labels) <= NAMED else f"{len(results.labels)} models"
    title = f"{models} on {', '.join(results.datasets)}"
    sections = [_about(about.rows(results, command))]
    sections += [_failures(failures)] if failures else []
    for dataset in results.datasets:
        sections.append(_dataset(results, dataset, [p for p in pictures if p.dataset == dataset]))
    links = "".join(f'<a href="#{html.escape(name)}">{html.escape(name)}</a>' for name in results.datasets)
    body = f"<nav>{links}</nav>\n{''.join(sections)}\n<h2>Runs</h2>\n{_runs(results)}"
    files.write_text(path, _page(title, body))


def write_audit(result: Mapping[str, Any], picture: Picture, path: Path) -> None:
    """Write the page of one audit to ``path``.

    Parameters
    ----------
    result : Mapping
        Of a whole audit.
    picture : Picture
        Its figure.
    path : Path
        The file.
    """
    title = f"What the diffusion contributes to {result['model']} on {result['dataset']}"
    answers = [
        "<h3>Are the answers calibrated?</h3>",
        f'<p class="note">{html.escape(audit_tables.CALIBRATION_NOTE)}</p>',
        _table(audit_tables.calibration(result)),
        f"<p>{html.escape(audit_tables.spread_and_rank(result))}</p>",
    ]
    head = f"<p>{html.escape(audit_tables.protocol(result))}.</p>"
    settings = json.dumps({"config": result["config"], "versions": result["versions"]}, indent=1)
    run = f"<details><summary>Settings</summary><pre>{html.escape(settings)}</pre></details>"
    files.write_text(path, _page(title, "\n".join([head, audit_section(result), *answers, _figure(picture), run])))


def audit_section(result: Mapping[str, Any]) -> str:
    """The verdict, the lines and the agreement of samples, as HTML that needs nothing else.

    Parameters
    ----------
    result : Mapping
        Of an audit, whole or short.
    """
    about = [*audit_tables.not_applicable(result), audit_tables.agreement(result)]
    return "\n".join(
        [
            f"<p><b>{html.escape(result['verdict']['sentence'])}</b></p>",
            _table(audit_tables.shown(result)),
            *(f"<p>{html.escape(sentence)}</p>" for sentence in about),
            f'<p class="note">{html.escape(audit_tables.NOTE)} {html.escape(result["verdict"]["rule"])}</p>',
        ]
    )


def _page(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
</body>
</html>
"""


def _about(rows: Mapping[str, str]) -> str:
    said = {name: html.escape(text) for name, text in rows.items()}
    # Whole words, since a hyphen would be a place to break one.
    said["command"] = f"<code>{' '.join(f'<span>{word}</span>' for word in said['command'].split(' '))}</code>"
    items = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in said.items())
    return f'<dl class="about">{items}</dl>'


def _failures(failures: Mapping[str, str]) -> str:
    items = "".join(f"<li><b>{html.escape(run)}</b>: {html.escape(why)}</li>" for run, why in failures.items())
    return f'<div class="failed"><b>{len(failures)} failed</b>; the same command tries again.<ul>{items}</ul></div>'


def _dataset(results: Results, dataset: str, pictures: Sequence[Picture]) -> str:
    first = results.results[results.of(dataset)[0]]
    counts = f"{first['n_users']:,} users, {first['n_items']:,} items, {first['n_interactions']:,} interactions"
    parts = [
        f'<h2 id="{html.escape(dataset)}">{html.escape(dataset)}</h2>',
        f"<p>{counts}. {html.escape(readable.seeds_note(results, dataset))}</p>",
        f"<p><b>{html.escape(results.reference(dataset))}</b></p>",
    ]
    for part, title in (("test", "Test"), ("valid", "Validation, at the best epoch")):
        table = readable.marked(results, dataset, part, "<b>{}</b>", "<u>{}</u>", html.escape)
        parts += [f"<h3>{title}</h3>", _table(table, escape=False, last=results.challenger_of(dataset) is not None)]
    significance = readable.significance_table(results, dataset)
    if len(significance):
        parts.append(f"<h3>Better than {html.escape(results.baseline_of(dataset))}?</h3>")
        parts += [f'<p class="note">{html.escape(readable.SIGNIFICANCE_NOTE)}</p>', _table(significance)]
    parts += ["<h3>Cost</h3>", _table(results.costs(dataset))]
    parts += ["<h3>Lists (test)</h3>", _table(results.lists(dataset))]
    parts.append(f"<h3>Groups of test users, {metric_name(results.main_metric)}</h3>")
    parts.append(_table(readable.group_table(results, dataset)))
    for label in results.labels_of(dataset):
        found = results.results[results.of(dataset, label)[0]].get("audit")
        if found:
            parts.append(f"<h3>What the diffusion contributes to {html.escape(label)}</h3>")
            parts.append(f'<p class="note">{found["users"]:,} test users of the first seed.</p>{audit_section(found)}')
    shown = "".join(map(_figure, pictures))
    return "\n".join([*parts, "<h3>Figures</h3>", f'<div class="figures">{shown}</div>'])


def _figure(picture: Picture) -> str:
    kind = ' class="wide"' if picture.wide else ""
    return (
        f'<figure{kind}><img src="{picture.data_uri}" alt="{html.escape(picture.title)}">'
        f"<figcaption>{html.escape(picture.title)}</figcaption></figure>"
    )


def _table(table: pd.DataFrame, escape: bool = True, last: bool = False) -> str:
    """A table, in parts below each other where a page has no room for all of its columns.

    Parameters
    ----------
    table : pd.DataFrame
        With labels as the index.
    escape : bool
        Whether cells are text; those that are not are HTML.
    last : bool
        Whether the last row is set off, since it is of other figures.
    """
    return "".join(_whole_table(table[part], escape, last) for part in _parts(table))


def _parts(table: pd.DataFrame) -> list[list[str]]:
    """The columns, in groups for which there is room."""
    parts: list[list[str]] = [[]]
    label = min(LABEL, max(map(len, map(str, table.index)), default=0))
    room: float = ROOM - label
    for column in table.columns:
        cells = (re.sub("<[^>]*>", "", str(cell)) for cell in table[column])
        width = max(map(len, [*str(column).split(), *cells]), default=0) + BETWEEN
        if parts[-1] and width > room:
            parts.append([])
            room = ROOM - label
        parts[-1].append(column)
        room -= width
    return parts


def _whole_table(table: pd.DataFrame, escape: bool, last: bool) -> str:
    text = html.escape if escape else str
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in ["", *table.columns])
    rows = [
        f"<th>{html.escape(str(index))}</th>" + "".join(f"<td>{text(str(cell))}</td>" for cell in row)
        for index, row in zip(table.index, table.to_numpy())
    ]
    kinds = ["model"] * (len(rows) - 1) + ["improvement" if last else "model"]
    body = "".join(f'<tr class="{kind}">{row}</tr>' for kind, row in zip(kinds, rows))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _runs(results: Results) -> str:
    parts = []
    for job, result in results.results.items():
        shown = json.dumps({"config": result["config"], "versions": result["versions"]}, indent=1)
        test = ", ".join(f"{metric_name(key)} {value:.4f}" for key, value in result["test_result"].items())
        parts.append(
            f"<details><summary>{html.escape(str(job))}: {html.escape(test)}</summary>"
            f"<pre>{html.escape(shown)}</pre></details>"
        )
    return "".join(parts)

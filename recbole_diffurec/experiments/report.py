"""The report of a comparison: one HTML file that needs nothing else and opens offline."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, Mapping, Sequence

import pandas as pd

from recbole_diffurec.experiments import audit_tables, tables
from recbole_diffurec.experiments.figures import Picture
from recbole_diffurec.experiments.tables import Results
from recbole_diffurec.runtime import files

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { margin-top: 3rem; border-bottom: 2px solid #0072b2; } h3 { margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .8rem; }
th, td { padding: .25rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
tr.improvement { border-top: 2px solid #888; font-style: italic; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(21rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure img { width: 100%; } figcaption { font-size: .85rem; color: #444; }
.failed { border-left: 4px solid #d55e00; padding: .5rem 1rem; background: #fdf3ec; }
nav a { margin-right: 1rem; } details { margin-top: 1rem; } pre { overflow-x: auto; font-size: .8rem; }
.note { color: #444; font-size: .9rem; }
"""


def write(results: Results, pictures: Sequence[Picture], failures: Mapping[str, str], path: Path) -> None:
    """Write the report to ``path``."""
    title = f"{', '.join(results.labels)} on {', '.join(results.datasets)}"
    sections = [_failures(failures)] if failures else []
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


def _failures(failures: Mapping[str, str]) -> str:
    items = "".join(f"<li><b>{html.escape(run)}</b>: {html.escape(why)}</li>" for run, why in failures.items())
    return f'<div class="failed"><b>{len(failures)} failed</b>; the same command tries again.<ul>{items}</ul></div>'


def _dataset(results: Results, dataset: str, pictures: Sequence[Picture]) -> str:
    first = results.results[results.of(dataset)[0]]
    counts = f"{first['n_users']:,} users, {first['n_items']:,} items, {first['n_interactions']:,} interactions"
    parts = [
        f'<h2 id="{html.escape(dataset)}">{html.escape(dataset)}</h2>',
        f"<p>{counts}. {html.escape(tables.seeds_note(results, dataset))}</p>",
    ]
    for part, title in (("test", "Test"), ("valid", "Validation, at the best epoch")):
        table = tables.marked(results, dataset, part, "<b>{}</b>", "<u>{}</u>", html.escape)
        parts += [f"<h3>{title}</h3>", _table(table, escape=False)]
    significance = tables.significance_table(results, dataset)
    if len(significance):
        parts.append(f"<h3>Better than {html.escape(results.baseline_of(dataset))}?</h3>")
        parts += [f'<p class="note">{html.escape(tables.SIGNIFICANCE_NOTE)}</p>', _table(significance)]
    parts += ["<h3>Cost</h3>", _table(results.costs(dataset))]
    parts += ["<h3>Lists (test)</h3>", _table(results.lists(dataset))]
    parts += ["<h3>Groups of test users</h3>", _table(tables.group_table(results, dataset))]
    for label in results.labels_of(dataset):
        found = results.results[results.of(dataset, label)[0]].get("audit")
        if found:
            parts.append(f"<h3>What the diffusion contributes to {html.escape(label)}</h3>")
            parts.append(f'<p class="note">{found["users"]:,} test users of the first seed.</p>{audit_section(found)}')
    shown = "".join(map(_figure, pictures))
    return "\n".join([*parts, "<h3>Figures</h3>", f'<div class="figures">{shown}</div>'])


def _figure(picture: Picture) -> str:
    return (
        f'<figure><img src="{picture.data_uri}" alt="{html.escape(picture.title)}">'
        f"<figcaption>{html.escape(picture.title)}</figcaption></figure>"
    )


def _table(table: pd.DataFrame, escape: bool = True) -> str:
    text = html.escape if escape else str
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in ["", *table.columns])
    rows = "".join(
        f'<tr class="{"improvement" if index == tables.IMPROVEMENT else "model"}"><th>{html.escape(str(index))}</th>'
        + "".join(f"<td>{text(str(cell))}</td>" for cell in row)
        + "</tr>"
        for index, row in zip(table.index, table.to_numpy())
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _runs(results: Results) -> str:
    parts = []
    for job, result in results.results.items():
        shown = json.dumps({"config": result["config"], "versions": result["versions"]}, indent=1)
        test = ", ".join(f"{tables.metric_name(key)} {value:.4f}" for key, value in result["test_result"].items())
        parts.append(
            f"<details><summary>{html.escape(str(job))}: {html.escape(test)}</summary>"
            f"<pre>{html.escape(shown)}</pre></details>"
        )
    return "".join(parts)

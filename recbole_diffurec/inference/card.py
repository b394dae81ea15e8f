"""The card of a shared model: what it is, what it was trained on and how, and figures that a run measured.

Every figure is one of the file or of a result that is given; what nobody measured is not said.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from recbole_diffurec.config import layers
from recbole_diffurec.config.protocol import Protocol
from recbole_diffurec.config.rules import NOT_IN_RESULT
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.inference.results import Results
from recbole_diffurec.runtime.shared import ENDING, About
from recbole_diffurec.training.report import metric_name

__all__ = ["LIBRARY", "card", "training_command"]

LIBRARY = "recbole-diffurec"
_FILTERS = ("user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter")
_RANKED = {"full": "all items", "labeled": "labelled interactions"}


def card(about: About, config: RunConfig, n_parameters: int, results: Results, name: str) -> str:
    """The card as Markdown, with the YAML in front that the Hugging Face Hub reads.

    Parameters
    ----------
    about : About
        What the model's file says.
    config : RunConfig
        Of its parameters.
    n_parameters : int
        How many numbers were trained.
    results : Results
        Figures of this model.
    name : str
        Of its file, or ``ORGANISATION/NAME`` on the Hub.
    """
    summary = config.spec.summary
    parts = [
        _front_matter(about, results),
        f"# {about['model']} on {about['dataset']}",
        f"A sequential recommender: it ranks items by what a user took before, the oldest first. "
        f"`{about['model']}`{f' {summary}' if summary else ''}; {n_parameters:,} trained numbers. The file names "
        f"{len(about['items']) - 1:,} items and no users.",
        "## Use",
        _use(about, name),
        "## Data",
        _table(_data(about)),
        "## Protocol",
        _table(_protocol(about, config)),
        "## Figures",
        _figures(about, results),
        *_audit(results),
        "## Trained by",
        f"```bash\n{training_command(about)}\n```",
        _versions(about, results),
        "## Licence",
        f"The library `{LIBRARY}` has the MIT licence. The licences of these weights and of the data are not stated "
        f"here: who publishes them adds them.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(about: About, results: Results) -> str:
    found = [("test", results.test), ("validation", about["valid_result"])]
    measured = [
        {
            "task": {"type": "sequential-recommendation", "name": "Sequential recommendation"},
            "dataset": {"type": about["dataset"], "name": about["dataset"], "split": split},
            "metrics": [{"type": key, "name": metric_name(key), "value": value} for key, value in figures.items()],
        }
        for split, figures in found
        if figures
    ]
    front: dict[str, Any] = {
        "library_name": LIBRARY,
        "tags": ["sequential-recommendation", "recommender-system", "recbole", about["model"]],
    }
    if measured:
        front["model-index"] = [{"name": f"{about['model']} on {about['dataset']}", "results": measured}]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _use(about: About, name: str) -> str:
    plain = [item for item in about["items"][1:] if item.isalnum()][:2]
    histories = [plain or ["ID"]]
    opened = f"{'load' if name.endswith(ENDING) else 'from_pretrained'}({json.dumps(name, ensure_ascii=False)})"
    return (
        "```python\nfrom recbole_diffurec import Recommender\n\n"
        f"recommender = Recommender.{opened}\n"
        f"recommender.recommend({histories!r}, k=10)\n```"
    )


def _data(about: About) -> Iterator[tuple[str, str]]:
    yield "data set", _code(about["dataset"])
    counts = {name: about["data"].get(name) for name in ("users", "items", "interactions")}
    told = [f"{count:,} {name}" for name, count in counts.items() if isinstance(count, int)]
    if told:
        yield "after filtering", ", ".join(told)
    for name in _FILTERS:
        if about["config"].get(name) is not None:
            yield _code(name), _code(about["config"][name])
    if about["item_columns"]:
        yield "columns of items", ", ".join(_code(column) for column in about["item_columns"])


def _protocol(about: About, config: RunConfig) -> Iterator[tuple[str, str]]:
    protocol: Protocol = config.protocol
    if config["benchmark_filename"]:
        yield "split", f"files that are split already: {_code(config['benchmark_filename'])}"
    else:
        whose = "each user's interactions" if protocol.by_user else "all interactions together"
        order = "order of time" if protocol.in_order else "random order"
        yield "split", f"{_code(config['eval_args']['split'])} of {whose}, in {order}"
    yield "ranked in the test", _RANKED.get(protocol.modes["test"], f"the target among {protocol.modes['test']}")
    yield "items of the history in the ranking", "left out" if config["mask_seen"] else "kept"
    if about["valid_result"]:
        yield "chosen by", f"{metric_name(config['valid_metric'].lower())} on the validation part"
    yield "epoch of the weights", f"{about['epoch'] + 1} of at most {config['epochs']}"
    yield "longest history", f"{config['MAX_ITEM_LIST_LENGTH']} items"
    yield "seed", str(config["seed"])


def _figures(about: About, results: Results) -> str:
    columns = {name: found for name, found in (("validation", about["valid_result"]), ("test", results.test)) if found}
    if not columns:
        return "None are known."
    keys = list(dict.fromkeys(key for found in columns.values() for key in found))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for key in keys:
        cells = [f"{found[key]:.4f}" if key in found else "" for found in columns.values()]
        lines.append(f"| {metric_name(key)} | {' | '.join(cells)} |")
    more = "" if results.test else "\n\nOn the test part, `recbole-diffurec evaluate` measures it where the data is."
    return "\n".join(lines) + more


def _audit(results: Results) -> Iterator[str]:
    audit = results.audit
    if audit is None:
        return
    yield "## What the diffusion contributes"
    yield audit["verdict"]["sentence"]
    k = audit["k"]
    lines = [f"| form | HR@{k} | NDCG@{k} |", "|---|---|---|"]
    lines += [
        f"| {line['label']} | {line['hit']:.4f} | {line['ndcg']:.4f} |"
        for line in audit["lines"]
        if "not_applicable" not in line
    ]
    yield "\n".join(lines)
    yield f"`recbole-diffurec audit`, on {audit['users']:,} test users."


def training_command(about: About) -> str:
    """The command of a run with the model's parameters, those of other machines' folders and devices left out.

    Parameters
    ----------
    about : About
        What the model's file says.
    """
    usual = RunConfig(about["model"], about["dataset"]).plain()
    words = [f"--model={about['model']}", f"--dataset={about['dataset']}"]
    for name, value in about["config"].items():
        if name not in NOT_IN_RESULT and value != usual.get(name):
            words.append(f"--{name}={_text_of(name, value)}")
    return " ".join(["recbole-diffurec", "run", *map(shlex.quote, words)])


def _text_of(name: str, value: Any) -> str:
    """What the command line reads as ``value``."""
    if value is None:
        return ""
    if layers.parse_value(name, str(value)) == value:
        return str(value)
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")


def _versions(about: About, results: Results) -> str:
    told = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return f"Versions: {told}." if told else f"Written by {LIBRARY} {about['version']}."


def _table(rows: Iterator[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows)])


def _code(value: Any) -> str:
    return "`" + str(value).replace("`", "'").replace("|", "\\|") + "`"

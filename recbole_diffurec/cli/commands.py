"""What each command does with its arguments, and what it prints. The work itself is imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable
from typing import Any

from recbole_diffurec.cli.terminal import output_lost, say, tell
from recbole_diffurec.config import layers
from recbole_diffurec.errors import UserError, cannot_import
from recbole_diffurec.runtime import ranks

FIRST_RUN = "first_run"  # the experiment of a run that names no model, data set or settings


def _run(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    if options.list_models or options.list_experiments or options.list_parameters is not None:
        _list(options)
        return 0
    from recbole_diffurec.training.report import format_result
    from recbole_diffurec.training.run import run

    files = _file_list(options.config_files)
    named = options.model or options.dataset or options.experiment or files
    result = run(
        options.model,
        options.dataset,
        config_files=files,
        experiment=options.experiment if named else FIRST_RUN,
        result_file=options.result_file,
        resume=options.resume,
        **_table_options(options),
        **parameters,
    )
    if ranks.rank() == 0:
        say(format_result(result))
    return 0


def _list(options: argparse.Namespace) -> None:
    """Print what there is to choose from."""
    from recbole_diffurec.config.described import experiments
    from recbole_diffurec.host import listing
    from recbole_diffurec.models.spec import all_specs

    if options.list_models:
        for kind, names in listing.models_by_kind().items():
            say(f"{kind}:\n" + "".join(_entry(name, said, 14, one_line=True) for name, said in names) + "\n")
        for reason in all_specs()[1].values():
            tell(reason)
    if options.list_experiments:
        say("".join(_entry(name, said, 24) for name, said in experiments()))
    if options.list_parameters is not None:
        for heading, parameters in listing.parameters_of(options.list_parameters or None):
            say(f"{heading}:")
            for one in parameters:
                default = "empty" if one.default == "~" else one.default or "(see the meaning)"
                say(_entry(one.name, f"{default}  ({one.kind}) {one.meaning}", 24))
            say("\n")


def _entry(name: str, said: str, width: int, one_line: bool = False) -> str:
    """A name and what is said of it, in lines of the terminal's width, or cut to one of them on a terminal."""
    columns = max(60, shutil.get_terminal_size((120, 24)).columns)
    margin = " " * (width + 3)
    if one_line:
        room = columns - len(margin)
        lines = [textwrap.shorten(said, room, placeholder=" …") if sys.stdout.isatty() else said]
    else:
        lines = textwrap.wrap(said, columns - len(margin), break_long_words=False, break_on_hyphens=False) or [""]
    head = f"  {name:<{width}} "
    first = [head + lines[0]] if len(name) <= width else [head.rstrip(), margin + lines[0]]
    return "\n".join([*first, *(margin + line for line in lines[1:])]).rstrip() + "\n"


def _prepare(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.data.prepare import prepare

    given = {**_table_options(options), **parameters}
    made = prepare(options.source, data_path=options.data_path, encoding=options.encoding, **given)
    say(made.describe())
    where = "" if options.data_path == "dataset" else f" --data_path={shlex.quote(options.data_path)}"
    say(f"train on it   recbole-diffurec --dataset={shlex.quote(made.name)}{where} --experiment=best/default")
    return 0


def _table_options(options: argparse.Namespace) -> dict[str, Any]:
    """What is given of the options of a table."""
    return {name: value for name, value in vars(options).items() if name in _TABLE_OPTIONS and value is not None}


def make_data_set(options: argparse.Namespace, parameters: dict[str, Any]) -> None:
    """Make the data set of the table that ``--dataset`` of a run names, if it names one."""
    from recbole_diffurec.training.own_data import data_set_of

    given = {**_table_options(options), **parameters}
    data_set_of(options.dataset, given, _file_list(options.config_files), options.experiment)


def _evaluate(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.training.evaluate import evaluate
    from recbole_diffurec.training.report import format_result

    _refuse_files_of_settings("evaluate", options.checkpoints, parameters)
    result = evaluate(*options.checkpoints, result_file=options.result_file, **parameters)
    if ranks.rank() == 0:
        say(format_result(result))
    return 0


def _audit(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.experiments import audit_tables
    from recbole_diffurec.experiments.audit import audit

    _refuse_files_of_settings("audit", options.checkpoints, parameters)
    given = vars(options)
    first, *more = given.pop("checkpoints")
    found = audit(first, *more, **given, **parameters)
    print(audit_tables.terminal(found.result))
    print(f"report      {os.path.relpath(found.output_dir / 'audit.html')}")
    return 0


def _refuse_files_of_settings(command: str, checkpoints: list[str], parameters: dict[str, Any]) -> None:
    """Refuse what stands for other parameters, and parameters that look like checkpoints."""
    for name in {"checkpoint_file", "config_files", "experiment"} & parameters.keys():
        raise UserError(f"'recbole-diffurec {command}' takes no --{name}: give single parameters as --name=value")
    for argument in checkpoints:
        if "=" in argument and not os.path.exists(argument):
            raise UserError(f"unexpected argument '{argument}': parameters are given as --name=value")


def _compare(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.experiments import readable
    from recbole_diffurec.experiments.compare import compare
    from recbole_diffurec.experiments.grid import split_list

    comparison = compare(
        split_list(options.models or ""),
        split_list(options.dataset or ""),
        layers.parse_value("seeds", options.seeds) if options.seeds else None,
        output_dir=options.output_dir,
        baseline=options.baseline,
        experiment=options.experiment,
        config_files=_file_list(options.config_files),
        parallel=options.parallel,
        ray_address=options.ray_address,
        cpus_per_run=options.cpus_per_run,
        gpus_per_run=options.gpus_per_run,
        dry_run=options.dry_run,
        **_table_options(options),
        **parameters,
    )
    if comparison is None:
        return 0
    say(readable.terminal(comparison.results))
    say(f"report      {os.path.relpath(comparison.output_dir / 'report.html')}")
    for run, reason in comparison.failures.items():
        tell(f"{run} failed: {reason}")
    return 1 if comparison.failures else 0


def _tune(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.experiments.progress import LINE

    LINE.begin(parameters.get("show_progress") is not False)  # before what takes seconds to import
    try:
        return _tuned(options, parameters)
    finally:
        LINE.end()


def _tuned(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    """``_tune`` under its line."""
    from recbole_diffurec.experiments.progress import LINE
    from recbole_diffurec.experiments.tune import tune
    from recbole_diffurec.training.report import format_result

    given = {**vars(options), **parameters, "config_files": _file_list(options.config_files)}
    given = {name: value for name, value in given.items() if value is not None or name not in _TABLE_OPTIONS}
    try:
        found = tune(given.pop("model"), given.pop("dataset"), **given)
    except KeyboardInterrupt as stop:  # in the search, or in the training of the best
        LINE.end()
        tell(f"interrupted; --resume resumes the search in '{options.output_dir}'")
        return 128 + getattr(stop, "signal", signal.SIGINT)
    say(found["trials"].drop(columns=["trial", "error"]).to_string(index=False))
    say(f"\nbest        {os.path.relpath(os.path.join(options.output_dir, 'best.yaml'))}")
    for result in found["final"]:
        say("\n" + format_result(result))
    return 0


def _recommend(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.data.output import is_standard_output
    from recbole_diffurec.inference.batch import recommend

    given = vars(options)
    count = tell if is_standard_output(options.output) else say  # standard output is the data's alone
    try:
        counts = recommend(given.pop("checkpoint"), given.pop("output"), **given, **parameters)
    except OSError as error:  # all others are told as mistakes
        raise output_lost(error) from None
    count(f"{counts['users']:,} users, {counts['rows']:,} rows")
    notes = {
        "unknown_items": "items of the histories are unknown to the model and were skipped",
        "popular_users": "users have no known item and got the most popular ones",
        "missing_users": "of the users asked for have no history",
    }
    for name, note in notes.items():
        if counts[name]:
            count(f"{counts[name]:,} {note}")
    return 0


def _similar(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.data.output import check_output, writing
    from recbole_diffurec.inference.recommender import Recommender

    if options.output is not None:
        check_output(options.output, (options.checkpoint,))
    listed = options.items.lstrip().startswith("[")
    items = layers.parse_value("items", options.items) if listed else options.items.split(",")
    table = Recommender.load(options.checkpoint, **parameters).similar(items, options.k, options.columns)
    if options.output is None:
        say(table.to_string(index=False, float_format="{:.4f}".format, na_rep=""))
        return 0
    try:
        with writing(options.output) as append:
            append(table)
    except OSError as error:
        raise output_lost(error) from None
    return 0


def _export(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.inference.export import export

    given = vars(options)
    result = export(given.pop("checkpoint"), **given, **parameters)
    if "difference" in result:
        say(f"{options.returns:<11} differs from PyTorch's by at most {result['difference']:.1e} of the largest")
    if "recall" in result:
        say(f"recall      {result['recall']:.4f} of the exact top 20")
    say(f"output      {os.path.relpath(result['output'])}\nitems       {os.path.relpath(result['description'])}")
    if "card" in result:
        say(f"card        {os.path.relpath(result['card'])}")
    if "commit" in result:
        say(f"commit      {result['commit']}")
    return 0


def _serve(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    try:
        from recbole_diffurec.inference.service import serve
    except ImportError as error:
        raise cannot_import("serve", error, "[serve]") from None

    given = vars(options)
    try:
        serve(given.pop("checkpoint"), **given, **parameters)
    except OSError as error:  # where it says its address
        raise output_lost(error) from None
    return 0


_TABLE_OPTIONS = frozenset(
    {"user", "item", "time", "rating", "min_rating", "items", "title", "separator", "name", "overwrite"}
)

COMMANDS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], int]] = {
    "prepare": _prepare,
    "run": _run,
    "evaluate": _evaluate,
    "audit": _audit,
    "compare": _compare,
    "tune": _tune,
    "recommend": _recommend,
    "similar": _similar,
    "export": _export,
    "serve": _serve,
}


def _file_list(text: str) -> list[str]:
    """The paths in ``text``, between spaces or commas; one with a space in it may stand alone or in quotation marks."""
    if os.path.exists(text):
        return [text]
    words = shlex.shlex(text, posix=True, punctuation_chars=False)
    words.whitespace, words.whitespace_split, words.commenters, words.escape = " ,\t\n", True, "", ""
    try:
        return list(words)
    except ValueError:  # an apostrophe in a name
        return text.replace(",", " ").split()

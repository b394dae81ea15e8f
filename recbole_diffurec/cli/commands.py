"""What each command does with its arguments, and what it prints. The work itself is imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable
from typing import Any

from recbole_diffurec.cli.terminal import output_lost, say, tell
from recbole_diffurec.config import layers
from recbole_diffurec.errors import UserError, cannot_import
from recbole_diffurec.runtime import ranks

FIRST_RUN = "first_run"  # the experiment of a run that names no model, data set or settings


def _run(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    if options.list_models:
        from recbole_diffurec.host.catalogue import known_models
        from recbole_diffurec.models.spec import all_specs

        say("\n".join(known_models()))
        for reason in all_specs()[1].values():
            tell(f"{reason}")
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
        **parameters,
    )
    if ranks.rank() == 0:
        say(format_result(result))
    return 0


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
    from recbole_diffurec.experiments import tables
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
        **parameters,
    )
    if comparison is None:
        return 0
    say(tables.terminal(comparison.results))
    say(f"report      {os.path.relpath(comparison.output_dir / 'report.html')}")
    for run, reason in comparison.failures.items():
        tell(f"{run} failed: {reason}")
    return 1 if comparison.failures else 0


def _tune(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.experiments.tune import tune
    from recbole_diffurec.training.report import format_result

    given = {**vars(options), **parameters, "config_files": _file_list(options.config_files)}
    try:
        found = tune(given.pop("model"), given.pop("dataset"), **given)
    except KeyboardInterrupt:
        tell(f"interrupted; --resume resumes the search in '{options.output_dir}'")
        return 130
    say(found["trials"].drop(columns=["trial", "error"]).to_string(index=False))
    say(f"\nbest        {os.path.relpath(os.path.join(options.output_dir, 'best.yaml'))}")
    for result in found["final"]:
        say("\n" + format_result(result))
    return 0


def _recommend(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.inference.batch import recommend

    given = vars(options)
    counts = recommend(given.pop("checkpoint"), given.pop("output"), **given, **parameters)
    say(f"{counts['users']:,} users, {counts['rows']:,} rows")
    if counts["unknown_items"]:
        say(f"{counts['unknown_items']:,} items of the histories are unknown to the model and were skipped")
    if counts["popular_users"]:
        say(f"{counts['popular_users']:,} users have no known item and got the most popular ones")
    return 0


def _export(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.inference.export import export

    given = vars(options)
    result = export(given.pop("checkpoint"), **given, **parameters)
    if "difference" in result:
        say(f"scores differ from PyTorch's by at most {result['difference']:.1e} of the largest")
    if "recall" in result:
        say(f"recall      {result['recall']:.4f} of the exact top 20")
    say(f"output      {os.path.relpath(result['output'])}\nitems       {os.path.relpath(result['description'])}")
    return 0


def _serve(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    try:
        from recbole_diffurec.inference.service import serve
    except ImportError as error:
        raise cannot_import("serve", error, "'recbole-diffurec[serve]'") from None

    given = vars(options)
    try:
        serve(given.pop("checkpoint"), **given, **parameters)
    except OSError as error:  # where it says its address
        raise output_lost(error) from None
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], int]] = {
    "run": _run,
    "evaluate": _evaluate,
    "audit": _audit,
    "compare": _compare,
    "tune": _tune,
    "recommend": _recommend,
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

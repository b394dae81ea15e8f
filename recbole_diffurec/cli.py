"""The command line: ``recbole-diffurec [run]`` and its subcommands (``COMMANDS``).

``run_recbole_diffurec.py`` calls the same ``main``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any, Callable, Sequence

from recbole_diffurec import distributed, pipeline
from recbole_diffurec.config import known_models, parse_value
from recbole_diffurec.errors import ProcessError, UserError
from recbole_diffurec.experiments.grid import split_list
from recbole_diffurec.resume import Interrupted
from recbole_diffurec.version import __version__

_PARAMETERS_HELP = """\
any other parameter:
  --NAME=VALUE             any parameter of the model or of RecBole, such as --epochs=5 --learning_rate=1e-3
                           --topk=[5,10]. Names, meanings and defaults: README.md and properties/*.yaml.
                           Precedence: command line, --config_files, --experiment, data set, model, overall.
"""


class _Parser(argparse.ArgumentParser):
    """Mistakes become ``UserError``, so that there is one form of message and one exit code."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}: see 'recbole-diffurec --help'")


def _parsers() -> dict[str, _Parser]:
    def parser(name: str, description: str) -> _Parser:
        return _Parser(
            prog=f"recbole-diffurec {name}".removesuffix(" run"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            description=description,
            epilog=_PARAMETERS_HELP,
        )

    def add_subject(command: _Parser) -> None:
        command.add_argument("--model", default="DiffuRecSys", help="DiffuRec, DiffuRecSys or any model of RecBole")
        command.add_argument(
            "--dataset", default="ml-100k", help="amazon-beauty, amazon-toys-games, ml-1m, ml-100k, yours"
        )

    def add_settings(command: _Parser) -> None:
        command.add_argument("--config_files", default="", metavar="'A B'", help="YAML files, later ones stronger")
        command.add_argument("--experiment", help="settings from properties/experiment, such as diffurec_paper")

    run = parser(
        "run",
        "Train, validate and test a recommender; DiffuRecSys on ml-100k by default.\n"
        "Other commands: recbole-diffurec evaluate CHECKPOINT, recbole-diffurec compare, tune, recommend,\n"
        "export, serve.",
    )
    add_subject(run)
    add_settings(run)
    run.add_argument("--result_file", metavar="PATH", help="write the result as JSON")
    run.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same command")
    run.add_argument("--nproc", type=int, default=1, metavar="N", help="processes to train with on this machine (1)")
    run.add_argument("--world_size", type=int, metavar="N", help="processes on all machines; by default --nproc")
    run.add_argument("--group_offset", type=int, default=0, metavar="N", help="number of the first process here (0)")
    run.add_argument("--ip", default="localhost", metavar="ADDRESS", help="of the machine with process 0")
    run.add_argument("--port", type=int, default=5678, metavar="N", help="there, for several machines (5678)")
    run.add_argument("--list_models", action="store_true", help="print the names that --model takes, and exit")
    run.add_argument("--version", action="version", version=f"recbole-diffurec {__version__}")

    evaluate = parser(
        "evaluate",
        "Test a checkpoint. Without parameters the figures are those of the run that wrote it.\n"
        "Several are tested as one model: the mean of their softmax probabilities.",
    )
    evaluate.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="a .pth file that a run wrote")
    evaluate.add_argument("--result_file", metavar="PATH", help="write the result as JSON")

    compare = parser(
        "compare",
        "Run models x data sets x seeds and write tables, significance, figures and report.html.\n"
        "Finished runs are kept: the same command goes on where it was stopped.",
    )
    compare.add_argument(
        "--models",
        metavar="A,B",
        help="models, V1 and V2 among them; MODEL@PART+PART is a model with a YAML file, an experiment or name=value",
    )
    compare.add_argument("--dataset", "--datasets", metavar="A,B", help="data sets")
    compare.add_argument("--seeds", metavar="N", help="how many seeds, counted up from --seed, or a list: [1,2,3]")
    compare.add_argument("--baseline", metavar="MODEL", help="test the others against this one of the models")
    compare.add_argument("--output_dir", default="comparison", metavar="DIR", help="folder of all output")
    compare.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time, on Ray")
    compare.add_argument("--ray_address", metavar="ADDRESS", help="a Ray cluster to run on; auto finds a local one")
    compare.add_argument("--cpus_per_run", type=float, default=1, metavar="N", help="processors for each parallel run")
    compare.add_argument("--gpus_per_run", type=float, default=0, metavar="N", help="GPUs for each; may be a fraction")
    compare.add_argument("--dry_run", action="store_true", help="estimate the cost, and stop")
    add_settings(compare)

    tune = parser(
        "tune",
        "Search hyper-parameters on validation data, with Ray Tune; then train the best again and test it once.\n"
        "Trials, the best configuration and a plot lie in --output_dir.",
    )
    add_subject(tune)
    tune.add_argument("--params_file", required=True, metavar="FILE", help="the search space, such as hyper.test")
    tune.add_argument("--output_dir", default="tuning", metavar="DIR", help="folder of all output")
    tune.add_argument("--num_trials", type=int, default=20, metavar="N", help="configurations to try (20)")
    tune.add_argument("--max_epochs", type=int, metavar="N", help="epochs of a trial; by default --epochs")
    tune.add_argument("--search", default="random", help="random (default), grid or optuna")
    tune.add_argument("--scheduler", default="asha", help="asha (default), hyperband or none: stops poor trials early")
    tune.add_argument("--grace_epochs", type=int, default=2, metavar="N", help="validations that asha leaves each (2)")
    tune.add_argument("--concurrent_trials", type=int, metavar="N", help="trials at a time; by default what fits")
    tune.add_argument("--cpus_per_trial", type=float, default=1, metavar="N", help="processors for each trial (1)")
    tune.add_argument("--gpus_per_trial", type=float, default=0, metavar="N", help="GPUs for each; may be a fraction")
    tune.add_argument("--time_budget", type=float, metavar="SECONDS", help="stop the search after this time")
    tune.add_argument("--final_seeds", type=int, default=1, metavar="N", help="seeds to test the best with (1)")
    tune.add_argument("--resume", action="store_true", help="go on with the search in --output_dir")
    tune.add_argument("--ray_address", metavar="ADDRESS", help="a Ray cluster to run on; auto finds a local one")
    add_settings(tune)

    recommend = parser(
        "recommend",
        "Write the best items for each history in a file; without --input, for every user of the training data.",
    )
    recommend.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file that a run wrote")
    recommend.add_argument("--output", required=True, metavar="FILE", help=".csv, .jsonl or .parquet")
    recommend.add_argument(
        "--input",
        metavar="FILE",
        help=".inter, .csv, .jsonl or .parquet with user_id, item_id, timestamp, or with user_id, items",
    )
    recommend.add_argument("--k", type=int, default=20, metavar="N", help="items for each user (20)")
    recommend.add_argument("--exclude_seen", action="store_true", help="leave out the items of the history")
    recommend.add_argument("--candidates", metavar="FILE", help="recommend only the items in this file, one a line")
    recommend.add_argument(
        "--samples",
        type=int,
        metavar="S",
        help="reconstructions drawn for each user: adds frequency and spread",
    )
    recommend.add_argument(
        "--diversity", type=float, default=0.0, metavar="D", help="0 to 1: spread each list over the samples' own (0)"
    )

    export = parser("export", "Write a trained model for another runtime, and its item ids beside it.")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file that a run wrote")
    export.add_argument(
        "--format",
        default="onnx",
        help="onnx (default) or torch: inference with the whole reverse process; safetensors: the weights; faiss: an "
        "index of the item vectors",
    )
    export.add_argument("--output", metavar="FILE", help="by default the checkpoint's name with the format's ending")
    export.add_argument("--input", metavar="FILE", help="histories to measure the faiss index's recall on")

    serve = parser("serve", "Answer requests for recommendations over HTTP; a page to try it at /, its API at /docs.")
    serve.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file that a run wrote")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on (8000); 0 for a free one")
    serve.add_argument("--max_batch", type=int, default=256, metavar="N", help="histories scored at once (256)")
    return {
        "run": run,
        "evaluate": evaluate,
        "compare": compare,
        "tune": tune,
        "recommend": recommend,
        "export": export,
        "serve": serve,
    }


def parse_parameters(arguments: Sequence[str]) -> dict[str, Any]:
    """``--name=value`` and ``--name value`` pairs, with values read as YAML.

    Raises
    ------
    UserError
        An argument that is no such pair, or a name given twice.
    """
    parameters: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, text = argument[2:].partition("=")
        if not argument.startswith("--") or not name:
            raise UserError(f"unexpected argument '{argument}': parameters are given as --name=value")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise UserError(f"parameter '--{name}' has no value: give it as --{name}=value")
            text = remaining.pop(0)
        if name in parameters:
            raise UserError(f"parameter '--{name}' is given twice: leave one out")
        parameters[name] = parse_value(name, text)
    return parameters


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 for a mistake of the user."""
    code = _exit_code(list(sys.argv[1:] if argv is None else argv))
    if argv is None:
        distributed.exit_at_once(code)
    return code


def _exit_code(arguments: list[str]) -> int:
    _log_to_terminal()
    try:
        return _dispatch(list(arguments))
    except UserError as error:
        own = isinstance(error, ProcessError) and distributed.size() > 1
        if own or distributed.local_rank() == 0:  # others are told once a machine
            who = f"process {distributed.rank()}: " if own else ""
            print(f"recbole-diffurec: {who}{error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        if distributed.rank() > 0:
            return 128 + stop.signal
        how = "goes on" if arguments[:1] == ["compare"] else "and --resume goes on"
        where = os.path.relpath(stop.state_file)
        print(f"recbole-diffurec: interrupted; the same command {how} from '{where}'", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        print("recbole-diffurec: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    if command not in COMMANDS:
        raise UserError(f"unknown command '{command}': choose one of {', '.join(COMMANDS)}")
    options, rest = _parsers()[command].parse_known_args(arguments)
    parameters = parse_parameters(rest)
    if distributed.size() > 1 and command not in ("run", "evaluate"):
        raise UserError(f"'recbole-diffurec {command}' works in one process: start it without torchrun")
    if command == "run" and distributed.size() == 1 and (options.nproc != 1 or options.world_size not in (None, 1)):
        return distributed.launch(
            ["run", *arguments],
            options.nproc,
            options.world_size,
            options.group_offset,
            options.ip,
            options.port,
        )
    if not sys.stderr.isatty() or distributed.rank() > 0:
        parameters["show_progress"] = False
    return COMMANDS[command](options, parameters)


def _run(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    if options.list_models:
        print("\n".join(known_models()))
        return 0
    result = pipeline.run(
        options.model,
        options.dataset,
        config_files=_file_list(options.config_files),
        experiment=options.experiment,
        result_file=options.result_file,
        resume=options.resume,
        **parameters,
    )
    if distributed.rank() == 0:
        print(pipeline.format_result(result))
    return 0


def _evaluate(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    for name in {"checkpoint_file", "config_files", "experiment"} & parameters.keys():
        raise UserError(f"'recbole-diffurec evaluate' takes no --{name}: give single parameters as --name=value")
    for argument in options.checkpoints:
        if "=" in argument and not os.path.exists(argument):
            raise UserError(f"unexpected argument '{argument}': parameters are given as --name=value")
    result = pipeline.evaluate(*options.checkpoints, result_file=options.result_file, **parameters)
    if distributed.rank() == 0:
        print(pipeline.format_result(result))
    return 0


def _compare(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.experiments import tables
    from recbole_diffurec.experiments.compare import compare

    comparison = compare(
        split_list(options.models or ""),
        split_list(options.dataset or ""),
        parse_value("seeds", options.seeds) if options.seeds else None,
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
    print(tables.terminal(comparison.results))
    print(f"report      {os.path.relpath(comparison.output_dir / 'report.html')}")
    for run, reason in comparison.failures.items():
        print(f"recbole-diffurec: {run} failed: {reason}", file=sys.stderr)
    return 1 if comparison.failures else 0


def _tune(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.experiments.tune import tune

    given = {**vars(options), **parameters, "config_files": _file_list(options.config_files)}
    try:
        found = tune(given.pop("model"), given.pop("dataset"), **given)
    except KeyboardInterrupt:
        print(f"recbole-diffurec: interrupted; --resume goes on with '{options.output_dir}'", file=sys.stderr)
        return 130
    print(found["trials"].drop(columns=["trial", "error"]).to_string(index=False))
    print(f"\nbest        {os.path.relpath(os.path.join(options.output_dir, 'best.yaml'))}")
    for result in found["final"]:
        print("\n" + pipeline.format_result(result))
    return 0


def _recommend(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    given = vars(options)
    counts = pipeline.recommend(given.pop("checkpoint"), given.pop("output"), **given, **parameters)
    print(f"{counts['users']:,} users, {counts['rows']:,} rows")
    if counts["unknown_items"]:
        print(f"{counts['unknown_items']:,} items of the histories are unknown to the model and were skipped")
    if counts["popular_users"]:
        print(f"{counts['popular_users']:,} users have no known item and got the most popular ones")
    return 0


def _export(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    from recbole_diffurec.export import export

    given = vars(options)
    result = export(given.pop("checkpoint"), **given, **parameters)
    if "difference" in result:
        print(f"scores differ from PyTorch's by at most {result['difference']:.1e} of the largest")
    if "recall" in result:
        print(f"recall      {result['recall']:.4f} of the exact top 20")
    print(f"output      {os.path.relpath(result['output'])}\nitems       {os.path.relpath(result['description'])}")
    return 0


def _serve(options: argparse.Namespace, parameters: dict[str, Any]) -> int:
    try:
        from recbole_diffurec.serve import serve
    except ImportError as error:
        raise UserError(
            f"serve needs {error.name}, which is not installed: pip install 'recbole-diffurec[serve]'"
        ) from None

    given = vars(options)
    serve(given.pop("checkpoint"), **given, **parameters)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], int]] = {
    "run": _run,
    "evaluate": _evaluate,
    "compare": _compare,
    "tune": _tune,
    "recommend": _recommend,
    "export": _export,
    "serve": _serve,
}


def _file_list(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _log_to_terminal() -> None:
    """Our own messages go to stderr as they are, so that stdout holds the result alone."""
    logger = logging.getLogger("recbole_diffurec")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # Replaced rather than kept: sys.stderr may be another one than last time.
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if distributed.rank() == 0 else logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())

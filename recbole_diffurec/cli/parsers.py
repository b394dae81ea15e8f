"""The arguments of each command. Imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from recbole_diffurec.cli.arguments import apart, parse_parameters
from recbole_diffurec.cli.terminal import say
from recbole_diffurec.errors import UserError
from recbole_diffurec.models import spec as register
from recbole_diffurec.version import __version__

_CHECKPOINT = "a .pth file that a run wrote, or a .safetensors file that export made of one"

_PARAMETERS_HELP = """\
any other parameter:
  --NAME=VALUE             any parameter of the model or of RecBole, such as --epochs=5 --learning_rate=1e-3
                           --topk=[5,10]. Names, meanings and defaults: recbole-diffurec --list_parameters=MODEL,
                           docs/parameters.md and properties/*.yaml.
                           Precedence: command line, --config_files, --experiment, data set, model, overall.
"""


class _Parser(argparse.ArgumentParser):
    """Mistakes become ``UserError``, so that there is one form of message and one exit code."""

    @classmethod
    def of(cls, name: str, description: str, epilog: str | None = _PARAMETERS_HELP) -> _Parser:
        """The parser of a command."""
        return cls(
            prog=f"recbole-diffurec {name}".removesuffix(" run"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            description=description,
            epilog=epilog,
        )

    @property
    def own(self) -> set[str]:
        """--NAME of every option."""
        return set(self._option_string_actions)

    def _print_message(self, message: str, file: Any = None) -> None:
        say(message)

    def error(self, message: str) -> Any:
        raise UserError(f"{message}: see 'recbole-diffurec --help'")


def _add_subject(command: _Parser) -> None:
    ours = ", ".join(register.names())
    subject = command.add_argument_group("model and data")
    subject.add_argument("--model", help=f"{ours} or any model of RecBole (DiffuRecSys)")
    subject.add_argument("--dataset", help="amazon-beauty, amazon-toys-games, ml-1m, ml-100k (default), yours, a table")


def _add_settings(command: _Parser) -> None:
    settings = command.add_argument_group("settings")
    settings.add_argument("--config_files", default="", metavar="'A B'", help="YAML files, later ones stronger")
    settings.add_argument("--experiment", metavar="NAME", help="settings that --list_experiments names")


def _add_table(command: _Parser) -> None:
    """What is read of a table that somebody brings."""
    what = "a .csv, .tsv, .jsonl (these also .gz, .zst) or .parquet file in the place of a data set"
    table = command.add_argument_group("a table of your own", what)
    for name, default in (("user", "user_id"), ("item", "item_id"), ("time", "timestamp")):
        table.add_argument(f"--{name}", metavar="COLUMN", help=f"its column of {name}s ({default})")
    table.add_argument("--rating", metavar="COLUMN", help="its column of ratings")
    table.add_argument("--min_rating", type=float, metavar="N", help="leave out interactions with a lower rating")
    table.add_argument("--items", metavar="FILE", help="a second table, with a row for each item")
    table.add_argument("--title", metavar="COLUMN", help="the column of titles, of either table")
    table.add_argument("--separator", metavar="C", help="between the columns of CSV files; found by default")
    table.add_argument("--name", help="of the data set that is made of it; by default the file's")
    table.add_argument("--overwrite", action="store_true", default=None, help="replace a data set of this name")


def _prepare() -> _Parser:
    command = _Parser.of(
        "prepare",
        "Make a data set of a table of interactions, and of another one of the items; say what it took.",
        epilog=None,
    )
    command.add_argument("source", metavar="TABLE", help="a file with a row for each interaction")
    command.add_argument("--data_path", default="dataset", metavar="DIR", help="folder of data sets (dataset)")
    _add_table(command)
    command.add_argument("--encoding", metavar="NAME", help="of CSV files; found by default where it can be told")
    return command


def _run() -> _Parser:
    command = _Parser.of(
        "run",
        "Train, validate and test a recommender; DiffuRecSys on ml-100k by default.\n"
        "Other commands: recbole-diffurec evaluate CHECKPOINT, recbole-diffurec prepare, audit, compare,\n"
        "tune, recommend, similar, export, serve.",
    )
    _add_subject(command)
    _add_settings(command)
    training = command.add_argument_group("training")
    training.add_argument("--result_file", metavar="PATH", help="write the result as JSON")
    training.add_argument("--resume", action="store_true", help="resume an interrupted run of the same command")
    _add_table(command)
    several = command.add_argument_group("several processes")
    several.add_argument(
        "--nproc", type=int, default=1, metavar="N", help="processes to train with on this machine (1)"
    )
    several.add_argument("--world_size", type=int, metavar="N", help="processes on all machines; by default --nproc")
    several.add_argument(
        "--group_offset", type=int, default=0, metavar="N", help="number of the first process here (0)"
    )
    several.add_argument("--ip", default="localhost", metavar="ADDRESS", help="of the machine with process 0")
    several.add_argument("--port", type=int, default=5678, metavar="N", help="there, for several machines (5678)")
    several.add_argument(
        "--rendezvous_minutes", type=float, default=15, metavar="N", help="how long to wait for other machines (15)"
    )
    listings = command.add_argument_group("what there is", "printed instead of a run")
    listings.add_argument("--list_models", action="store_true", help="the names that --model takes, by kind")
    listings.add_argument("--list_experiments", action="store_true", help="the names that --experiment takes")
    listings.add_argument(
        "--list_parameters",
        nargs="?",
        const="",
        metavar="MODEL",
        help="parameters with their defaults, types, ranges and meanings; those of a model first, where one is named",
    )
    listings.add_argument("--version", action="version", version=f"recbole-diffurec {__version__}")
    return command


def _evaluate() -> _Parser:
    command = _Parser.of(
        "evaluate",
        "Test a checkpoint. Without parameters the figures are those of the run that wrote it.\n"
        "Several are tested as one model: the mean of their softmax probabilities.",
    )
    command.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help=_CHECKPOINT)
    command.add_argument("--result_file", metavar="PATH", help="write the result as JSON")
    return command


def _audit() -> _Parser:
    command = _Parser.of(
        "audit",
        "Measure what the diffusion contributes to a trained diffusion model: its parts taken away or replaced,\n"
        "fewer steps, the same inference spent otherwise, the samples. Several checkpoints: the first is audited,\n"
        "all of them are an ensemble of the same inference. Nothing is trained unless asked for.",
    )
    command.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help=_CHECKPOINT)
    command.add_argument("--users", type=int, metavar="N", help="test users to draw; by default all")
    command.add_argument("--sample_seed", type=int, default=2020, metavar="N", help="of the draw of users (2020)")
    command.add_argument(
        "--samples", type=int, default=10, metavar="K", help="reconstructions drawn for each user (10)"
    )
    command.add_argument(
        "--train_twin",
        action="store_true",
        help="train the same network without the noised vector, with the run's seed and budget; resumes",
    )
    command.add_argument("--output_dir", default="audit", metavar="DIR", help="folder of report and figure (audit)")
    command.add_argument("--result_file", metavar="PATH", help="write the result as JSON too")
    return command


def _compare() -> _Parser:
    command = _Parser.of(
        "compare",
        "Run models x data sets x seeds and write tables, significance, figures and report.html.\n"
        "Finished runs are kept: the same command resumes where it was stopped.",
    )
    command.add_argument(
        "--models",
        metavar="A,B",
        help="models, V1 and V2 among them; MODEL@PART+PART is a model with a YAML file, an experiment or name=value",
    )
    command.add_argument("--dataset", "--datasets", metavar="A,B", help="data sets")
    command.add_argument("--seeds", metavar="N", help="how many seeds, counted up from --seed, or a list: [1,2,3]")
    command.add_argument("--baseline", metavar="MODEL", help="test the others against this one of the models")
    command.add_argument("--output_dir", default="comparison", metavar="DIR", help="folder of all output")
    command.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time, on Ray")
    command.add_argument("--ray_address", metavar="ADDRESS", help="a Ray cluster to run on; auto finds a local one")
    command.add_argument("--cpus_per_run", type=float, default=1, metavar="N", help="processors for each parallel run")
    command.add_argument("--gpus_per_run", type=float, default=0, metavar="N", help="GPUs for each; may be a fraction")
    command.add_argument("--dry_run", action="store_true", help="estimate the cost, and stop")
    _add_settings(command)
    _add_table(command)
    return command


def _tune() -> _Parser:
    command = _Parser.of(
        "tune",
        "Search hyper-parameters on validation data, with Ray Tune; then train the best again and test it once.\n"
        "Trials, the best configuration and a plot lie in --output_dir.",
    )
    _add_subject(command)
    command.add_argument("--params_file", required=True, metavar="FILE", help="the search space, such as hyper.test")
    command.add_argument("--output_dir", default="tuning", metavar="DIR", help="folder of all output")
    command.add_argument("--num_trials", type=int, default=20, metavar="N", help="configurations to try (20)")
    command.add_argument("--max_epochs", type=int, metavar="N", help="epochs of trials and last runs, or --epochs")
    command.add_argument("--search", default="random", help="random (default), grid or optuna")
    command.add_argument(
        "--scheduler", default="asha", help="asha (default), hyperband or none: stops poor trials early"
    )
    command.add_argument(
        "--grace_epochs", type=int, default=2, metavar="N", help="validations that asha leaves each (2)"
    )
    command.add_argument("--concurrent_trials", type=int, metavar="N", help="trials at a time; by default what fits")
    command.add_argument("--cpus_per_trial", type=float, default=1, metavar="N", help="processors for each trial (1)")
    command.add_argument(
        "--gpus_per_trial", type=float, default=0, metavar="N", help="GPUs for each; may be a fraction"
    )
    command.add_argument("--time_budget", type=float, metavar="SECONDS", help="stop the search after this time")
    command.add_argument("--final_seeds", type=int, default=1, metavar="N", help="seeds to test the best with (1)")
    command.add_argument("--resume", action="store_true", help="resume the search in --output_dir")
    command.add_argument("--ray_address", metavar="ADDRESS", help="a Ray cluster to run on; auto finds a local one")
    _add_settings(command)
    _add_table(command)
    return command


def _recommend() -> _Parser:
    command = _Parser.of(
        "recommend",
        "Print the best items for each history, or write them in a file; without --input, for every user of the\n"
        "training data.",
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    command.add_argument(
        "--output", default="-", metavar="FILE", help=".csv, .jsonl (also .gz, .zst) or .parquet; - prints CSV (-)"
    )
    command.add_argument(
        "--input",
        metavar="FILE",
        help=".inter, .csv, .jsonl or .parquet with user_id, item_id, timestamp, or with user_id, items; - reads "
        "standard input",
    )
    for kind in ("user", "item", "time"):
        command.add_argument(
            f"--{kind}", metavar="COLUMN", help=f"column of {kind}s in --input, where it has another name"
        )
    command.add_argument("--users", metavar="FILE", help="recommend only to the users in this file, one a line")
    _add_columns(command)
    command.add_argument(
        "--explain",
        action="store_true",
        help="add 'because': items of the history that the model attends to, or most like the item",
    )
    command.add_argument("--k", type=int, default=20, metavar="N", help="items for each user (20)")
    command.add_argument(
        "--next",
        type=int,
        metavar="N",
        help="lists of the next N items together: the k most probable of --samples (20)",
    )
    command.add_argument("--exclude_seen", action="store_true", help="leave out the items of the history")
    command.add_argument("--candidates", metavar="FILE", help="recommend only the items in this file, one a line")
    command.add_argument(
        "--samples",
        type=int,
        metavar="S",
        help="reconstructions drawn for each user: adds frequency and spread",
    )
    command.add_argument(
        "--diversity", type=float, default=0.0, metavar="D", help="0 to 1: spread each list over the samples' own (0)"
    )
    return command


def _add_columns(command: _Parser) -> None:
    command.add_argument(
        "--columns",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B",
        help="columns of the items to add, such as title",
    )


def _similar() -> _Parser:
    command = _Parser.of("similar", "The items that are most like some, by the cosine of the model's vectors of items.")
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    command.add_argument(
        "--items", required=True, metavar="A,B", help='ids, or a JSON list of them where one has a comma: ["a, b"]'
    )
    command.add_argument("--k", type=int, default=10, metavar="N", help="items for each (10)")
    command.add_argument("--output", metavar="FILE", help="as for recommend; by default a table is printed")
    _add_columns(command)
    return command


def _export() -> _Parser:
    command = _Parser.of("export", "Write a trained model for another runtime, and its item ids beside it.")
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    command.add_argument(
        "--format",
        default="onnx",
        help="onnx (default) or torch: inference with the whole reverse process; safetensors: the model to share, with "
        "a card; faiss: an index of the item vectors; npy: these vectors",
    )
    command.add_argument("--output", metavar="FILE", help="by default the checkpoint's name with the format's ending")
    command.add_argument("--input", metavar="FILE", help="histories to measure the faiss index's recall on")
    command.add_argument(
        "--returns",
        default="scores",
        metavar="WHAT",
        help="of a program: scores (default), or query, the vector to search the index with",
    )
    command.add_argument(
        "--noise",
        default="input",
        metavar="FROM",
        help="of a program: input (default), it is given the noise, or seed, it makes it of a seed as the model does",
    )
    command.add_argument(
        "--results",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B",
        help="result files of its run, evaluation or audit, whose figures the card is to have",
    )
    command.add_argument(
        "--push_to", metavar="ORG/NAME", help="put the model and its card on the Hugging Face Hub as well"
    )
    return command


def _serve() -> _Parser:
    command = _Parser.of(
        "serve", "Answer requests for recommendations over HTTP; a page to try it at /, its API at /docs."
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=_CHECKPOINT)
    command.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1)")
    command.add_argument(
        "--port", type=int, default=8000, metavar="N", help="port to listen on (8000); 0 for a free one"
    )
    command.add_argument("--max_batch", type=int, default=256, metavar="N", help="histories scored at once (256)")
    command.add_argument(
        "--allowed_hosts",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B",
        help="names by which it is reached, beside the address it listens on; *.A for all of a domain, * for any",
    )
    return command


PARSERS: dict[str, Callable[[], _Parser]] = {
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


def parse(command: str, arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options of a command, and all other arguments as parameters."""
    parser = PARSERS[command]()
    own, parameters = apart(arguments, parser.own)
    options, rest = parser.parse_known_args(own)
    return options, parse_parameters([*rest, *parameters])

"""What a run says: its result, its lines on the terminal, its log file, and what went wrong in one sentence."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np
import pandas as pd
import recbole
import torch

from recbole_diffurec.errors import UserError
from recbole_diffurec.host import compat
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.runtime import distributed, files
from recbole_diffurec.version import __version__

# How metrics are called in tables, where RecBole calls them otherwise.
METRIC_NAMES = {"hit": "HR", "ndcg": "NDCG"}
LOGS = "log"  # the folder of all log files, where a command is given


def metric_name(key: str) -> str:
    """``ndcg@10`` -> ``NDCG@10``, ``hit@10`` -> ``HR@10``."""
    metric, _, k = key.partition("@")
    return f"{METRIC_NAMES.get(metric, metric)}@{k}" if k else METRIC_NAMES.get(metric, metric)


def describe_run(config: RunConfig, data: Any, network: torch.nn.Module) -> dict[str, Any]:
    """What every result says about its run."""
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_interactions": data.n_interactions,
        "n_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "device": str(config["device"]),
        "config": json.loads(json.dumps(config.plain())),
        "versions": {
            "recbole_diffurec": __version__,
            "recbole": recbole.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pandas": pd.__version__,
            "python": platform.python_version(),
        },
    }


def describe_network(config: RunConfig, network: torch.nn.Module) -> str:
    """One line on what is trained, in which precision, and where."""
    device = config["device"]
    if device.type == "cuda":
        where = f"{device} ({torch.cuda.get_device_name(device)})"
    else:
        where = f"{device} ({torch.get_num_threads()} threads)"
    sizes = [(parameter.numel(), parameter.dtype) for parameter in network.parameters() if parameter.requires_grad]
    kinds = " and ".join(sorted({str(dtype).removeprefix("torch.") for _, dtype in sizes})) or "nothing"
    amp = ", products in bfloat16" if config["enable_amp"] else ""
    return f"{config['model']}: {sum(size for size, _ in sizes):,} parameters in {kinds}{amp}, on {where}"


def describe_epoch(epoch: Mapping[str, Any], config: RunConfig) -> str:
    """One line on an epoch."""
    trained = f"epoch {epoch['epoch'] + 1}/{config['epochs']}: loss {epoch['train_loss']:.4f}"
    if "valid_score" not in epoch:
        return f"{trained} ({epoch['train_seconds']:.1f} s training)"
    return (
        f"{trained}, valid {config['valid_metric']} {epoch['valid_score']:.4f} "
        f"({epoch['train_seconds']:.1f} s training, {epoch['valid_seconds']:.1f} s validating)"
    )


def format_result(result: Mapping[str, Any]) -> str:
    """The table and the places that a run ends with."""
    columns = {"valid": result.get("best_valid_result"), "test": result["test_result"]}
    columns = {name: metrics for name, metrics in columns.items() if metrics}
    checkpoints = result.get("checkpoints", ())
    what = f"{len(checkpoints)} models as one" if checkpoints else result["model"]
    names = {key: metric_name(key) for key in next(iter(columns.values()), ())}
    width = max([10, *(len(name) + 1 for name in names.values())])
    lines = [f"{what} on {result['dataset']}", "", " " * width + "".join(f"{name:>10}" for name in columns)]
    for key, name in names.items():
        lines.append(f"{name:<{width}}" + "".join(f"{metrics[key]:>10.4f}" for metrics in columns.values()))
    lines.append("")
    if "train_seconds" in result:
        lines.append(f"training    {result['train_seconds']:.1f} s, best epoch {result['best_epoch'] + 1}")
    if result["test_result"]:
        lines.append(f"evaluation  {result['eval_seconds']:.1f} s")
    if not checkpoints and result.get("checkpoint"):
        checkpoints = [result["checkpoint"]]
    lines += [f"checkpoint  {os.path.relpath(path)}" for path in checkpoints]
    for name in ("log", "result_file"):
        if result.get(name) not in (None, os.devnull):
            lines.append(f"{name.replace('_file', ''):<12}{os.path.relpath(result[name])}")
    return "\n".join(lines)


def plain_metrics(result: Mapping[str, Any] | None) -> dict[str, float]:
    """RecBole's metrics as Python numbers; none where a split has no part to measure them on."""
    return {name: float(value) for name, value in (result or {}).items()}


def new_name(config: Any) -> str:
    """A name for the files of a run that is about to begin."""
    return files.unique_name(f"{config['model']}-{config['dataset']}")


@contextlib.contextmanager
def log_file(config: RunConfig, name: str | None = None, required: bool = True) -> Iterator[str]:
    """RecBole's log lines, and ours, go to a file of this run's own.

    Parameters
    ----------
    config : RunConfig
        Configuration of the run.
    name : str, optional
        What the file is called, without its ending; one that is there is written on. By default a new name.
    required : bool, optional
        False does without a file where none can be written.

    Yields
    ------
    str
        The path of the file.
    """
    if distributed.rank() > 0:
        yield os.devnull
        return
    folder = os.path.join(LOGS, config["model"])
    try:
        files.make_folder(folder, "the folder for logs")
    except UserError:
        if required:
            raise
        yield os.devnull
        return
    path = os.path.join(folder, f"{name or new_name(config)}.log")
    root = logging.getLogger()
    level = root.level
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        root.info("command: %s", sys.argv)
        root.info("configuration: %s", json.dumps(config.plain(), default=str))
        yield os.path.abspath(path)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


@contextlib.contextmanager
def explained(what: str, log: str | None = None) -> Iterator[None]:
    """Turn what RecBole raises over its many parameters into one sentence; the traceback goes to the log file.

    Its own deprecation warnings are left out.
    """
    try:
        with compat.quiet():
            yield
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise UserError(
                f"{what} ran out of memory: use a machine with more, a smaller data set or a smaller model"
            ) from error
        if isinstance(error, torch.distributed.DistError) or "Connection closed by peer" in str(error):
            raise UserError(f"{what} stopped, because another of the processes did: see what it said") from error
        logging.getLogger().info("%s failed", what, exc_info=True)
        reason = (str(error).splitlines() or [""])[0]
        told = f"; the traceback is in '{os.path.relpath(log)}'" if log else ""
        raise UserError(
            f"{what} failed inside RecBole ({type(error).__name__}: {reason}): check the parameters and columns "
            f"that it names{told}"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a GPU's or the machine's memory is used up."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # of torch's CPU allocator


def deliver(result: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """Write the result as JSON, whole or not at all, and return it."""
    if path is not None and distributed.rank() == 0:
        files.write_text(path, json.dumps(result, indent=2))
        result = {**result, "result_file": os.path.abspath(path)}
    return result

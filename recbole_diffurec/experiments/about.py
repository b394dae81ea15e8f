"""What a report says of a comparison before its figures: protocol, dates, machines, command, versions."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from recbole_diffurec.experiments.cluster import HowToRun
from recbole_diffurec.experiments.tables import Results

NOT_KEPT = "not kept"  # in runs of earlier versions


def here_and_now() -> dict[str, Any]:
    """What a run keeps of where and when it was: ``date`` (UTC) and ``machine``."""
    machine: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    date = datetime.datetime.now(datetime.timezone.utc)
    return {"date": date.isoformat(timespec="seconds"), "machine": machine}


def _processor() -> str:
    """Its name, where the system tells."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    names = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    return next(filter(None, [*names, platform.processor()]), "unknown processor")


def command(name: str, named: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """The command that asks for what was given, from wherever it was.

    Parameters
    ----------
    name : str
        Of the command.
    named : Mapping of str to object
        Its own options; what is None or empty was not given.
    parameters : Mapping of str to object
        All others, of which None is an empty value; defaults of ``HowToRun`` go without saying.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(HowToRun)}
    words = ["recbole-diffurec", name]
    given = {option: value for option, value in named.items() if value not in (None, [], ())}
    unsaid = {**defaults, "show_progress": parameters.get("show_progress")}  # which commands choose by themselves
    given |= {name: value for name, value in parameters.items() if name not in unsaid or value != unsaid[name]}
    words += [shlex.quote(f"--{option}={_written(option, value)}") for option, value in given.items()]
    return " ".join(words)


def _written(option: str, value: Any) -> str:
    if option in ("models", "dataset", "config_files"):
        return ",".join(map(str, value))
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, default=str)
    return "" if value is None else str(value)


def rows(results: Results, command: str) -> dict[str, str]:
    """Everything that stands above the figures, by what it is about.

    Parameters
    ----------
    results : Results
        The runs.
    command : str
        What asked for them.
    """
    dates = sorted(filter(None, (result.get("date") for result in results.results.values())))
    return {
        "protocol": _of_all(results, lambda result: protocol(result["config"])),
        "chosen by": _of_all(results, lambda result: _selection(result["config"])),
        "date": f"runs ended from {_minute(dates[0])} to {_minute(dates[-1])}" if dates else NOT_KEPT,
        "machine": _of_all(results, _machine),
        "command": command,
        "versions": _of_all(results, lambda result: ", ".join(f"{k} {v}" for k, v in result["versions"].items())),
    }


def _minute(date: str) -> str:
    """``2026-01-31 09:30 UTC``."""
    return f"{date[:16].replace('T', ' ')} UTC"


def protocol(config: Mapping[str, Any]) -> str:
    """How the data was split and the items ranked, in a sentence."""
    kept = [
        f"{who} with {interval.replace('inf', '∞')} interactions"
        for who, interval in (
            ("users", config["user_inter_num_interval"]),
            ("items", config["item_inter_num_interval"]),
        )
        if interval
    ]
    masked = "left out of the ranking (masked)" if config["mask_seen"] else "ranked too (not masked)"
    return (
        f"leave one out: the last item of each user is for the test, the one before it for validation; all items are "
        f"ranked, items of the history are {masked}" + "".join(f"; {which}" for which in kept)
    )


def _selection(config: Mapping[str, Any]) -> str:
    stop = f", stopping after {config['stopping_step'] + 1} validations in a row without improvement"
    return f"the epoch with the best validation {config['valid_metric']} of at most {config['epochs']}{stop}"


def _machine(result: Mapping[str, Any]) -> str:
    found = result.get("machine")
    if found is None:
        return f"{NOT_KEPT}; device {result['device']}"
    gpu = f", {found['gpu']}" if "gpu" in found else ""
    where = f"{found['system']}, {found['processor']}, {found['processors']} processors{gpu}"
    return f"{where}; on {result['device']}, threads: {found['threads']}"


def _of_all(results: Results, said: Callable[[Mapping[str, Any]], str]) -> str:
    """What is said of every run; where runs differ, of which models what."""
    of: dict[str, list[str]] = {}
    for job, result in results.results.items():
        labels = of.setdefault(said(result), [])
        if job.entry.label not in labels:
            labels.append(job.entry.label)
    if len(of) == 1:
        return next(iter(of))
    return "; ".join(f"{', '.join(labels)}: {text}" for text, labels in of.items())

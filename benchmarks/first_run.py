"""Seconds of a first run without flags, until its first line of progress and until its end, and of ``--help``."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

# What makes the libraries leave newer instructions alone, where a processor has them.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
SCRIPT = [sys.executable, str(common.ROOT / "run_recbole_diffurec.py")]


def first_run(folder: str, *flags: str, **environment: str) -> dict[str, Any]:
    """One run in a new process: seconds to the first line and to the end, and what it reaches."""
    started = time.perf_counter()
    command = [*SCRIPT, "--result_file=result.json", *flags]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        to_first_line = time.perf_counter() - started
        process.stdout.read()
    seconds = time.perf_counter() - started
    result = json.loads((Path(folder) / "result.json").read_text())
    reached = {"valid": result["best_valid_result"]["ndcg@10"], "test": result["test_result"]["ndcg@10"]}
    return {"seed": result["seed"], "to_first_line": to_first_line, "seconds": seconds, **reached}


def seconds_of_help(folder: str) -> float:
    started = time.perf_counter()
    subprocess.run([*SCRIPT, "--help"], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs, each with a seed of its own")
    parser.add_argument("--instructions", nargs="+", default=["all", "AVX2"], choices=["all", "AVX2"])
    options = parser.parse_args()
    quick = ["--epochs=1", "--user_inter_num_interval=[5,30]"] if common.TINY else []
    with tempfile.TemporaryDirectory() as folder:
        if not common.TINY:  # what a machine does once, such as compiling Python's files, is not counted
            first_run(folder, "--epochs=1")
        runs = []
        for instructions in options.instructions:
            environment = AVX2 if instructions == "AVX2" else {}
            for seed in range(2020, 2020 + options.seeds):
                run = first_run(folder, f"--seed={seed}", *quick, **environment)
                runs.append({"instructions": instructions, **run})
                print(runs[-1], file=sys.stderr, flush=True)
        help_ = statistics.median(seconds_of_help(folder) for _ in range(1 if common.TINY else 5))
    rows = [
        (f"{run['seed']}, {run['instructions']}", *(f"{run[name]:.1f}" for name in ("to_first_line", "seconds")),
         *(f"{run[name]:.4f}" for name in ("valid", "test")))
        for run in runs
    ]  # fmt: skip
    header = ("seed, instructions", "s to the first line", "s to the end", "validation NDCG@10", "test NDCG@10")
    body = (
        "`python run_recbole_diffurec.py`: DiffuRecSys on ml-100k by `--experiment=first_run`, all items ranked, none "
        f"masked; each run in a process of its own. `--help` takes {help_:.2f} s (median of 5).\n\n"
        + common.table(header, rows)
    )
    common.publish("first_run", "A first run", {"runs": runs, "help_seconds": help_}, body)


if __name__ == "__main__":
    main()

"""Seconds of training until a validation NDCG@10, seen items masked: ours, RecBole's SASRec, RecTools' SASRec.

Every contestant trains in a process of its own, one after the other; validation is not counted. What is finished is
kept in ``results/time_to_quality_runs.json`` and not run again: an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

RECTOOLS = Path(__file__).with_name("rectools_sasrec.py")
RUNS = common.RESULTS / "time_to_quality_runs.json"
LEVELS = {"amazon-beauty": (0.055, 0.065, 0.070), "ml-1m": (0.12, 0.14, 0.16)}
# RecBole's SASRec at the size of RecTools' defaults: d = 128, 2 blocks, 4 heads, L = 100, batch 128.
EQUAL_SIZE = {
    "hidden_size": 128, "inner_size": 512, "n_layers": 2, "n_heads": 4, "MAX_ITEM_LIST_LENGTH": 100,
    "train_batch_size": 128, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2,
}  # fmt: skip
FOREVER = {"epochs": 1000, "stopping_step": 1000, "mask_seen": True, "show_progress": False, "checkpoint_minutes": None}

CONTESTANTS: dict[str, dict[str, Any]] = {
    "best recipe, DiffuRecSys": {"model": "DiffuRecSys", "recipe": True},
    "best recipe, DiffuRec": {"model": "DiffuRec", "recipe": True},
    "best/default, DiffuRecSys": {"model": "DiffuRecSys", "experiment": "best/default"},
    "best/amazon-beauty-CausalRec": {"model": "CausalRec", "experiment": "best/amazon-beauty-CausalRec"},
    "DiffuRecSys, the paper's settings": {"model": "DiffuRecSys", "parameters": {}},
    "DiffuRec, the paper's settings": {"model": "DiffuRec", "parameters": {}},
    "RecBole SASRec, as RecBole trains it": {"model": "SASRec", "as_recbole": True, "parameters": EQUAL_SIZE},
    "RecBole SASRec, batch_by_length": {"model": "SASRec", "parameters": {**EQUAL_SIZE, "batch_by_length": True}},
    "RecTools SASRec": {"rectools": True},
}  # fmt: skip


class Enough(Exception):
    """The last level is reached, or the time is over."""


def train(case: dict[str, Any], source: dict[str, str], dataset: str, limit: float) -> list[list[float]]:
    """[[seconds of training, validation NDCG@10], ...], one for each epoch."""
    import torch
    from recbole.data.dataset import SequentialDataset
    from recbole.data.utils import data_preparation

    from recbole_diffurec.config import layers
    from recbole_diffurec.host.config import RunConfig
    from recbole_diffurec.host.loaders import dataset_of
    from recbole_diffurec.training.prepare import PreparedData, build

    name = f"best/{dataset}" if case.get("recipe") else case.get("experiment")
    values = {**(layers.experiment(name) if name else {}), **case.get("parameters", {}), **FOREVER}
    values |= {"hidden_size": 16, "inner_size": 16} if common.TINY else {}
    curve: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        values |= {"data_path": source["data_path"], "checkpoint_dir": folder}
        config = RunConfig(case["model"], source["dataset"], values)
        data = PreparedData(config)
        training, validation, _ = data.loaders
        _, trainer = build(data.config, dataset_of(training))
        if case.get("as_recbole"):  # rows padded to the full length, and autograd looking for anomalies (sine.py:25)
            training = data_preparation(config, SequentialDataset(config))[0]
            torch.autograd.set_detect_anomaly(True)

        def on_validation(epoch: dict[str, Any]) -> None:
            curve.append([trainer.train_seconds, float(epoch["valid_result"]["ndcg@10"])])
            print(*curve[-1], file=sys.stderr, flush=True)
            if curve[-1][0] > limit or curve[-1][1] >= LEVELS[dataset][-1]:
                raise Enough

        with contextlib.suppress(Enough):
            trainer.try_out(training, validation, on_validation)
    return curve


def first_at(curve: list[list[float]], level: float) -> float | None:
    return next((seconds for seconds, reached in curve if reached >= level), None)


def page(runs: dict[str, Any], dataset: str, rival: str) -> str:
    levels = LEVELS[dataset]
    rows = []
    for name, run in runs.items():
        times = [first_at(run["curve"], level) for level in levels]
        theirs = [first_at(runs[rival]["curve"], level) if rival in runs else None for level in levels]
        ratios = [f" ({b / a:.1f}x)" if a and b else "" for a, b in zip(times, theirs)]
        cells = [f"{seconds:,.0f} s{ratio}" if seconds else "-" for seconds, ratio in zip(times, ratios)]
        rows.append((name, *cells, f"{max(q for _, q in run['curve']):.4f}", f"{run['curve'][-1][0]:,.0f}"))
    header = ("contestant, threads", *(f"NDCG@10 {level}" for level in levels), "best", "trained s")
    return (
        f"{dataset}; validation NDCG@10 with seen items masked; in brackets how many times as fast as {rival}. A dash: "
        "not reached in the seconds of the last column.\n\n" + common.table(header, rows)
    )


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--dataset", default="amazon-beauty", choices=LEVELS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--limit", type=float, default=2400, help="seconds of training for each contestant")
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--rectools_python", default=sys.executable, help="interpreter of RecTools' environment")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    source = {"dataset": options.dataset, "data_path": options.data_path or "dataset/"}
    if common.TINY:
        source, options.limit = common.data_set(None), 0.0
    if options.child:
        print(json.dumps(train(CONTESTANTS[options.child], source, options.dataset, options.limit)))
        return
    kept = json.loads(RUNS.read_text()) if RUNS.is_file() else {}
    for threads in options.threads:
        for name in options.only:
            key = f"{name}, {threads}"
            if key in kept.get(options.dataset, {}):
                continue
            command = [sys.executable, __file__, f"--child={name}", f"--dataset={options.dataset}"]
            command += [f"--limit={options.limit}", f"--data_path={source['data_path']}"]
            if CONTESTANTS[name].get("rectools"):
                file = Path(source["data_path"]) / source["dataset"] / f"{source['dataset']}.inter"
                level = LEVELS[options.dataset][-1]
                command = [options.rectools_python, str(RECTOOLS), str(file), str(options.limit), str(level)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            if common.TINY:
                curve = train(CONTESTANTS[name], source, options.dataset, options.limit)
            else:
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                curve = json.loads(done.stdout.splitlines()[-1])
            kept.setdefault(options.dataset, {})[key] = {"curve": curve, "machine": common.machine()}
            RUNS.write_text(json.dumps(kept, indent=1) + "\n")
    runs = {key: run for key, run in kept[options.dataset].items()}
    rival = f"RecBole SASRec, as RecBole trains it, {options.threads[0]}"
    common.publish("time_to_quality", "Time to quality", {"runs": kept}, page(runs, options.dataset, rival))


if __name__ == "__main__":
    main()

"""Seconds of training until a validation NDCG@10, seen items masked: ours, RecBole's SASRec, RecTools' SASRec.

Every contestant trains in a process of its own, one after the other; validation is not counted. What is finished is
kept in ``results/time_to_quality.json`` and not run again: an interrupted benchmark goes on where it was.
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
RUNS = common.RESULTS / "time_to_quality.json"
LEVELS = {"amazon-beauty": (0.055, 0.065, 0.070), "ml-1m": (0.12, 0.14, 0.16, 0.18)}
PATIENCE = 5  # epochs without a better validation, after which a contestant has reached its best
UNTIL_ITS_BEST = {
    "epochs": 1000,
    "stopping_step": PATIENCE - 1,
    "mask_seen": True,
    "show_progress": False,
    "checkpoint_minutes": None,
}

# RecBole's SASRec as RESULTS.md has it. Beauty: the size of CausalRec and of RecTools' defaults (d = 256, 2 blocks,
# L = 50), and the dropout and the learning rate that suit it best. ML-1M: the size of DiffuRec's recipe there.
SASREC_OF: dict[str, dict[str, Any]] = {
    "amazon-beauty": {"experiment": "best/amazon-beauty-SASRec"},
    "ml-1m": {
        "parameters": {
            "hidden_size": 128,
            "n_layers": 1,
            "n_heads": 4,
            "inner_size": 512,
            "hidden_dropout_prob": 0.1,
            "attn_dropout_prob": 0.1,
            "MAX_ITEM_LIST_LENGTH": 50,
            "train_batch_size": 512,
            "batch_by_length": True,
            "ema_decay": 0.997,
        }
    },
}
SASREC = {"model": "SASRec", "of_dataset": SASREC_OF}
CAUSAL = {"model": "CausalRec", "experiment": "best/{dataset}-CausalRec"}
GROUPED = "RecBole's SASRec, batch_by_length"
AS_RECBOLE = "RecBole's SASRec, as RecBole trains it"
RIVALS = {AS_RECBOLE: "RecBole's best", "RecTools' SASRec": "RecTools' best"}

CONTESTANTS: dict[str, dict[str, Any]] = {
    "CausalRec, best recipe": CAUSAL,
    "DiffuRecSys, best recipe": {"model": "DiffuRecSys", "experiment": "best/{dataset}"},
    "DiffuRec, best recipe": {"model": "DiffuRec", "experiment": "best/{dataset}"},
    # The network alone, as the others.
    "DiffuRecSys, best/default": {
        "model": "DiffuRecSys",
        "experiment": "best/default",
        "parameters": {"cooccurrence_weight": 0},
    },
    "DiffuRecSys, the paper's settings": {"model": "DiffuRecSys", "parameters": {"valid_sampling_steps": 1}},
    "DiffuRec, the paper's settings": {"model": "DiffuRec", "parameters": {"valid_sampling_steps": 1}},
    GROUPED: SASREC,
    # The same mathematics, so that it needs as many epochs as GROUPED; what is measured is what an epoch takes.
    AS_RECBOLE: {**SASREC, "epochs_of": GROUPED},
    "RecTools' SASRec": {"rectools": True},
    # The softmax: everything else as best/amazon-beauty-CausalRec.
    "softmax over all items, float32": {**CAUSAL, "parameters": {"enable_amp": False}},
    "softmax over all items, bf16": {**CAUSAL, "parameters": {"enable_amp": True}},
    "softmax over 1,024 sampled items, log_uniform, float32": {
        **CAUSAL,
        "parameters": {"sampled_softmax": 1024, "enable_amp": False},
    },
    **{
        f"softmax over {n:,} sampled items, {distribution}": {
            **CAUSAL,
            "parameters": {"sampled_softmax": n, "negative_distribution": distribution},
        }
        for n, distribution in ((256, "log_uniform"), (1024, "log_uniform"), (1024, "uniform"), (4096, "log_uniform"))
    },
}


class Enough(Exception):
    """The last level is reached, or the time is over."""


def prepared(case: dict[str, Any], source: dict[str, str], dataset: str, folder: str, **changed: Any) -> Any:
    """The data of a contestant, by its parameters and what is changed of them."""
    from recbole_diffurec.config import layers
    from recbole_diffurec.host.config import RunConfig
    from recbole_diffurec.training.prepare import PreparedData

    case = {**case, **case.get("of_dataset", {}).get(dataset, {})}
    name = case.get("experiment", "").format(dataset=dataset)
    values = {**(layers.experiment(name) if name else {}), **case.get("parameters", {}), **UNTIL_ITS_BEST, **changed}
    values |= {"hidden_size": 16, "inner_size": 16} if common.TINY else {}
    values |= {"data_path": source["data_path"], "checkpoint_dir": folder}
    return PreparedData(RunConfig(case["model"], source["dataset"], values))


def train(case: dict[str, Any], source: dict[str, str], dataset: str, limit: float) -> list[list[float]]:
    """[[seconds of training, validation NDCG@10], ...], one for each epoch."""
    from recbole_diffurec.host.loaders import dataset_of
    from recbole_diffurec.training.prepare import build

    curve: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(case, source, dataset, folder)
        training, validation, _ = data.loaders
        _, trainer = build(data.config, dataset_of(training))

        def on_validation(epoch: dict[str, Any]) -> None:
            curve.append([trainer.train_seconds, float(epoch["valid_result"]["ndcg@10"])])
            print(*curve[-1], file=sys.stderr, flush=True)
            if curve[-1][0] > limit or curve[-1][1] >= LEVELS[dataset][-1]:
                raise Enough

        with contextlib.suppress(Enough):
            trainer.try_out(training, validation, on_validation)
    return curve


def one_epoch(case: dict[str, Any], source: dict[str, str], dataset: str) -> float:
    """Seconds of the first epoch of training."""
    from recbole_diffurec.host.loaders import dataset_of
    from recbole_diffurec.training.prepare import build

    with tempfile.TemporaryDirectory() as folder:
        data = prepared(case, source, dataset, folder)
        _, trainer = build(data.config, dataset_of(data.loaders[0]))
        return trainer.time_epoch(data.loaders[0])


def padded_epoch(case: dict[str, Any], source: dict[str, str], dataset: str, steps: int = 9) -> float:
    """Seconds of an epoch on rows padded to the full length, autograd looking for anomalies (RecBole's sine.py:25)."""
    import torch
    from recbole.data.dataset import SequentialDataset
    from recbole.data.utils import data_preparation

    from recbole_diffurec.training.prepare import build

    with tempfile.TemporaryDirectory() as folder:
        config = prepared(case, source, dataset, folder, batch_by_length=False).config
        rows = data_preparation(config, SequentialDataset(config))[0]
        network, trainer = build(config, rows._dataset)
        step = common.training_step(network, trainer, network.calculate_loss, amp=False)
        taken = common.batches(rows, 2 if common.TINY else steps, trainer.device)
        with torch.autograd.set_detect_anomaly(True):
            step(taken[0])
            seconds = common.seconds(lambda: [step(batch) for batch in taken[1:]])
    return seconds / sum(len(batch) for batch in taken[1:]) * len(rows._dataset)


def first_at(curve: list[list[float]], level: float) -> float | None:
    return next((seconds for seconds, reached in curve if reached >= level), None)


def trained_table(runs: dict[str, Any], names: list[str], levels: tuple[float, ...]) -> str:
    """Seconds to each level and to the best of each rival, with how many times as fast as the rival that is."""
    rivals = {label: runs[name]["curve"] for name, label in RIVALS.items() if name in runs}
    rows = []
    for name in names:
        curve = runs[name]["curve"]
        times = [first_at(curve, level) for level in levels]
        cells = [f"{seconds:,.0f}" if seconds else "-" for seconds in times]
        for rival in rivals.values():
            best = max(quality for _, quality in rival)
            ours, theirs = first_at(curve, best), first_at(rival, best)
            cells.append(f"{ours:,.0f} ({theirs / ours:.1f}x)" if ours and theirs else "-")
        rows.append((name, *cells, f"{max(q for _, q in curve):.4f}", f"{curve[-1][0]:,.0f}", f"{len(curve)}"))
    bests = [f"{label}, {max(q for _, q in curve):.4f}" for label, curve in rivals.items()]
    goals = [f"to {goal}" for goal in [*(f"{level:.3f}" for level in levels), *bests]]
    return common.table(("contestant", *goals, "best", "s", "epochs"), rows)


def page(kept: dict[str, Any]) -> str:
    """A section for each data set and number of threads, from what is stored."""
    sections = []
    for dataset, by_threads in kept.items():
        for threads, runs in by_threads.items():
            machines = sorted({f"{run['machine']['processor']}, {run['machine']['date']}" for run in runs.values()})
            softmax = [name for name in runs if name.startswith("softmax")]
            sections.append(f"## {dataset}, {threads} thread{'s' * (threads != '1')}\n\n" + "; ".join(machines) + ".\n")
            sections.append(trained_table(runs, [name for name in runs if name not in softmax], LEVELS[dataset]))
            if softmax:
                sections.append(f"\nThe softmax of best/{dataset}-CausalRec:\n")
                sections.append(trained_table(runs, softmax, LEVELS[dataset]))
            sections.append("")
    return (
        "Seconds of training until a validation NDCG@10 with seen items masked, validation itself not counted; in "
        "brackets how many times as fast as the rival whose best that is. A dash: not reached in the seconds that the "
        f"last columns tell. A contestant ends at the highest level, after {PATIENCE} epochs without a better figure, "
        "or with its time.\n\n"
        "RecBole's SASRec is that of RESULTS.md: on Beauty tuned (d = 256, 2 blocks, L = 50, batch 512), on ML-1M as "
        f"wide and deep as DiffuRec's recipe (d = 128, 1 block, L = 50, batch 512). *{AS_RECBOLE}*: the "
        "seconds of an epoch on rows padded to L with autograd's anomaly detection on, measured over 8 steps, times "
        "the epochs that it needs with `batch_by_length`, which is the same mathematics in another order of batches. "
        "RecTools' SASRec has its defaults (d = 256, 2 blocks, 4 heads, batch 128, a row a user, softmax of all items) "
        "and L = 50. After the first section of a data set, one epoch is timed on the other number of threads, and the "
        "figures by epoch are those of the first: it is the same training.\n\n" + "\n".join(sections)
    )


def in_new_process(name: str, options: argparse.Namespace, source: dict[str, str], threads: int) -> Any:
    """What ``child`` finds, on so many threads."""
    command = [sys.executable, __file__, f"--child={name}", f"--dataset={options.dataset}"]
    command += [f"--limit={options.limit}", f"--data_path={source['data_path']}", *["--epoch"] * options.epoch]
    if CONTESTANTS[name].get("rectools"):
        limit = 0 if options.epoch else options.limit
        given = (common.interactions(source), limit, LEVELS[options.dataset][-1], PATIENCE)
        command = [options.rectools_python, str(RECTOOLS), *map(str, given)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found[0][0] if options.epoch and isinstance(found, list) else found


def child(name: str, options: argparse.Namespace, source: dict[str, str]) -> Any:
    """The curve of a contestant, or the seconds of one epoch where it goes by the epochs of another."""
    case = CONTESTANTS[name]
    if "epochs_of" in case:
        return padded_epoch(case, source, options.dataset)
    if options.epoch:
        return one_epoch(case, source, options.dataset)
    return train(case, source, options.dataset, options.limit)


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--dataset", default="amazon-beauty", choices=LEVELS)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1], help="the first is trained with")
    parser.add_argument("--limit", type=float, default=1200, help="seconds of training for each contestant")
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--rectools_python", default=sys.executable, help="interpreter of RecTools' environment")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--epoch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    source = {"dataset": options.dataset, "data_path": options.data_path or "dataset/"}
    if common.TINY:
        source, options.limit = common.data_set(None), 0.0
    if options.child:
        print(json.dumps(child(options.child, options, source)))
        return
    kept = json.loads(RUNS.read_text())["runs"] if RUNS.is_file() else {}
    of_dataset = kept.setdefault(options.dataset, {})
    for threads in options.threads:
        runs, options.epoch = of_dataset.setdefault(str(threads), {}), threads != options.threads[0]
        for name in options.only:
            if name in runs:
                continue
            found = child(name, options, source) if common.TINY else in_new_process(name, options, source, threads)
            run: dict[str, Any] = {"curve": found}
            if not isinstance(found, list):
                trained = of_dataset[str(options.threads[0])][CONTESTANTS[name].get("epochs_of", name)]["curve"]
                curve = [[found * (epoch + 1), quality] for epoch, (_, quality) in enumerate(trained)]
                run = {"curve": curve, "seconds_of_an_epoch": found}
            runs[name] = {**run, "machine": common.machine(threads)}
            RUNS.write_text(json.dumps({"runs": kept}, indent=1) + "\n")
    common.publish("time_to_quality", "Time to quality", {"runs": kept}, page(kept))


if __name__ == "__main__":
    main()

"""Peak memory and time of preparation, training and evaluation, ours and RecBole's own, each in its own process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.utils import data_preparation
from recbole.utils import init_seed

from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.training.prepare import PreparedData, build

STEPS = 5  # training steps; the peak is reached in the first ones
MILLION = "million-items"
FEW_STEPS = {"sampling_steps": 2}  # of the reverse process, whose peak does not depend on how many there are
CASES: tuple[tuple[str, bool, dict[str, Any]], ...] = (  # model, ours or RecBole's data set, parameters
    ("DiffuRecSys", True, FEW_STEPS),
    ("DiffuRecSys", True, {**FEW_STEPS, "gradient_checkpointing": True}),
    ("SASRec", True, {"eval_batch_size": 512}),
    ("SASRec", False, {"eval_batch_size": 512}),
)


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Prepare, train a few steps and evaluate one batch, noting time and peak after each stage."""
    config = RunConfig(case["model"], case["dataset"], {**common.SETTING, **case["parameters"]})
    init_seed(config["seed"], True)
    figures = {"imports_gb": peak_gb()}
    started = time.perf_counter()
    loaders = PreparedData(config).loaders if case["ours"] else data_preparation(config, SequentialDataset(config))
    figures["prepare_seconds"] = time.perf_counter() - started
    figures["prepare_gb"] = peak_gb()
    if case["stage"] == "prepare":
        return figures
    network, trainer = build(config, loaders[0]._dataset)
    if case["stage"] == "train":
        step = common.training_step(network, trainer, network.calculate_loss, False)
        for batch in common.batches(loaders[0], STEPS, trainer.device):
            step(batch)
        figures["train_gb"] = peak_gb()
    # Evaluation through RecBole's trainer: scores, masks, the collected top-k.
    network.eval()
    for i, batch in enumerate(loaders[2]):
        with torch.no_grad():
            trainer.tot_item_num = loaders[2]._dataset.item_num
            trainer.item_tensor = loaders[2]._dataset.get_item_feature().to(trainer.device)
            trainer._evaluated = loaders[2]
            interaction, scores, users, items = trainer._full_sort_batch_eval(batch)
            trainer.eval_collector.eval_batch_collect(scores, interaction, users, items)
        if i == 1:
            break
    figures["evaluate_gb"] = peak_gb()
    return figures


def in_new_process(case: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def million_items(folder: Path) -> str:
    """4,000 users with 5 to 499 of one million items each, all of which occur."""
    rng = np.random.default_rng(0)
    n_items, n_users = (1_000, 40) if common.TINY else (1_000_000, 4000)
    lengths = rng.integers(5, 500, n_users)
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = rng.permutation(np.resize(np.arange(n_items), max(len(users), n_items)))
    users = np.resize(users, len(items))
    order = np.argsort(users, kind="stable")
    common.write_atomic(folder, MILLION, users[order], items[order], 1.3e9 + np.arange(len(users)))
    return MILLION


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--case", help="measure one case and print it; used by the script itself")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    results, rows = {}, []
    names = [name for name in ("amazon-beauty", "ml-1m") if (Path(options.data_path or ".") / name).is_dir()]
    for dataset in names or ["ml-100k"]:
        path = {"data_path": options.data_path} if names else {}
        for model, ours, extra in CASES[:1] if common.TINY else CASES:
            parameters = {**path, **extra}
            case = {"model": model, "dataset": dataset, "ours": ours, "parameters": parameters, "stage": "train"}
            prepare = [in_new_process({**case, "stage": "prepare"})["prepare_seconds"] for _ in range(options.rounds)]
            figures = in_new_process(case)
            figures["prepare_seconds"] = float(np.median(prepare))
            name = ", ".join([dataset, model, *(name for name, value in extra.items() if value is True)])
            results[f"{name}, {'ours' if ours else 'RecBole'}"] = figures
            rows.append(row(name, "ours" if ours else "RecBole's", figures))
    with tempfile.TemporaryDirectory() as folder:
        parameters = {
            "data_path": folder,
            "user_inter_num_interval": "[0,inf)",
            "item_inter_num_interval": "[0,inf)",
            "eval_batch_size": 512,  # their scores alone are 2 GB
            **FEW_STEPS,
        }
        million_items(Path(folder))
        softmaxes = (("full softmax", {}), ("sampled softmax", {"sampled_softmax": 4096}))
        for name, extra in softmaxes[:1] if common.TINY else softmaxes:
            case = {"model": "DiffuRecSys", "dataset": MILLION, "ours": True, "stage": "train"}
            figures = in_new_process({**case, "parameters": {**parameters, **extra}})
            results[f"{MILLION}, DiffuRecSys, {name}"] = figures
            rows.append(row(f"1,000,000 items, DiffuRecSys, {name}", "ours", figures))
    header = (
        "data and model",
        "preparation by",
        "prepare, s",
        "imports, GB",
        "prepared, GB",
        "trained, GB",
        "tested, GB",
    )
    body = (
        f"Peaks of the whole process (resident set) after each stage; {common.sizes()}. Seconds of "
        f"preparation are medians of {options.rounds} processes; {STEPS} training steps, two test batches of 2,048 "
        "users (SASRec, a million items: 512).\n\n" + common.table(header, rows)
    )
    common.publish("memory", "Memory and preparation", {"figures": results}, body)


def row(name: str, by: str, figures: dict[str, float]) -> list[str]:
    stages = ("imports_gb", "prepare_gb", "train_gb", "evaluate_gb")
    return [name, by, f"{figures['prepare_seconds']:.2f}", *(f"{figures[stage]:.2f}" for stage in stages)]


if __name__ == "__main__":
    main()

"""How the cost of training and inference grows with L, the number of items, T and the batch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import matplotlib
import numpy as np
import torch
from matplotlib.ticker import NullLocator

matplotlib.use("Agg")
import matplotlib.pyplot as plt

AXES = {
    "MAX_ITEM_LIST_LENGTH": [10, 25, 50, 100, 200, 400],
    "items": [10_000, 30_000, 100_000, 300_000, 1_000_000],
    "diffusion_steps": [4, 8, 16, 32, 64],
    "train_batch_size": [128, 256, 512, 1024, 2048],
}
if common.TINY:
    AXES = {"MAX_ITEM_LIST_LENGTH": [5, 10], "items": [100, 200], "diffusion_steps": [4], "train_batch_size": [32]}
LABELS = {
    "MAX_ITEM_LIST_LENGTH": "L, longest history kept",
    "items": "items",
    "diffusion_steps": "T, diffusion steps",
    "train_batch_size": "batch",
}


def long_histories(folder: Path) -> None:
    """2,000 users with log-normal history lengths up to 500, over 5,000 items, so that every L cuts some."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.5, 0.8, 2000).astype(int), 5, 500)
    users = np.repeat(np.arange(len(lengths)), lengths)
    common.write_atomic(folder, "long", users, rng.integers(0, 5000, len(users)), 1.3e9 + np.arange(len(users)))


def catalogue(folder: Path, n_items: int) -> str:
    """Histories of 10 items on average over a catalogue of ``n_items``, all of which occur."""
    rng = np.random.default_rng(0)
    items = rng.permutation(np.resize(np.arange(n_items), max(n_items, 50_000)))
    common.write_atomic(folder, f"items-{n_items}", np.arange(len(items)) // 10, items, 1.3e9 + np.arange(len(items)))
    return f"items-{n_items}"


def measure(dataset: str, folder: str, rounds: int, **parameters) -> dict[str, float]:
    """Milliseconds of a training step and of scoring one batch, and real positions in each."""
    source = {"dataset": dataset, "data_path": folder}
    intervals = {"user_inter_num_interval": "[0,inf)", "item_inter_num_interval": "[0,inf)"}
    network, trainer, data = common.model_on("DiffuRecSys", source, **{**common.SETTING, **intervals, **parameters})
    taken = common.batches(data.loaders[0], 3, trainer.device)
    step = common.training_step(network, trainer, network.calculate_loss, False)
    step(taken[0])
    train = [common.seconds(lambda batch=batch: step(batch)) for _ in range(rounds) for batch in taken]
    network.eval()
    users = common.user_batch(data.loaders[2], trainer.device)
    with torch.no_grad():
        infer = [common.seconds(lambda: network.full_sort_predict(users)) for _ in range(2)]
    return {
        "train_ms": 1e3 * float(np.median(train)),
        "train_positions": float(np.mean([batch["item_length"].sum() for batch in taken])),
        "infer_ms": 1e3 * min(infer),
        "infer_positions": float(users["item_length"].sum()),
        "users": len(users),
    }


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    results: dict[str, dict[int, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        long_histories(Path(folder))
        for axis, values in AXES.items():
            results[axis] = {}
            for value in values:
                if axis == "items":
                    parameters = {"sampling_steps": 1}
                    dataset = catalogue(Path(folder), value)
                else:
                    parameters = {axis: value, "eval_batch_size": 128}
                    dataset = "long"
                if axis == "train_batch_size":
                    parameters["eval_batch_size"] = value
                    parameters["sampling_steps"] = 4
                if axis == "MAX_ITEM_LIST_LENGTH":
                    parameters["sampling_steps"] = 4
                results[axis][value] = measure(dataset, folder, options.rounds, **parameters)
                print(axis, value, results[axis][value], flush=True)
    sections = []
    for axis, points in results.items():
        rows = [
            (
                f"{value:,}",
                f"{p['train_ms']:,.0f}",
                f"{1e3 * p['train_ms'] / p['train_positions']:.1f}",
                f"{p['infer_ms']:,.0f}",
                f"{1e3 * p['infer_ms'] / p['infer_positions']:.1f}",
            )
            for value, p in points.items()
        ]
        header = (
            LABELS[axis],
            "training step, ms",
            "µs per real position",
            "one batch scored, ms",
            "µs per real position",
        )
        sections.append(f"## {LABELS[axis]}\n\n" + common.table(header, rows))
    plot(results)
    body = (
        "DiffuRecSys, d = 128, 4 blocks, batch 512. L, T and the batch on generated histories (log-normal lengths up "
        "to 500, 5,000 items); reverse steps at inference: 4 where L or the batch varies, T where T does, 1 where the "
        "number of items varies. Embeddings and Adam's dense state grow with the items, not with the positions.\n\n"
        "![growth of cost](scaling.png)\n\n" + "\n\n".join(sections)
    )
    common.publish("scaling", "How the cost grows", {"figures": results}, body)


def plot(results: dict[str, dict[int, dict[str, float]]]) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
    for ax, (axis, points) in zip(axes, results.items()):
        ax.loglog(list(points), [p["train_ms"] for p in points.values()], "o-", color="#0072B2", label="training step")
        ax.loglog(list(points), [p["infer_ms"] for p in points.values()], "s--", color="#D55E00", label="batch scored")
        ax.set_xticks(list(points), [f"{value:g}" for value in points], rotation=40)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(LABELS[axis])
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    figure.savefig(common.RESULTS / "scaling.png", dpi=110)


if __name__ == "__main__":
    main()

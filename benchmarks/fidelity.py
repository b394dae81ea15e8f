"""Why the published recipe does or does not reach its figures, from ``compare --experiment=fidelity``.

The comparison's folder is given. Two more trainings need what the public codes do and this package does not: attention
to the padding, and row 0 of the item table as a class. Those codes pad histories to L and let attention see that. All
padding is one vector, so that in the first block L - n keys of it are one key that counts L - n times: a bias of
log(L - n) on it, which costs one token a history. The results are kept in the folder; the same command goes on where
it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import common
import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

import recbole_diffurec
from recbole_diffurec.config import layers
from recbole_diffurec.experiments.measures import gains
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.models import diffurec

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BASE = "DiffuRecSys@n_layers=1"
EVALUATION_BATCH = 512  # users; the public code averages the means of batches
PADDED_LENGTH = 100
METRICS, NAMES = ("hit@10", "ndcg@10"), ("HR@10", "NDCG@10")
KINDS = ("valid", "test", "masked")


class BatchWithPadding(RaggedBatch):
    """Histories whose first token is the padding, as many times as there was."""

    def __init__(self, item_seq: torch.Tensor, lengths: torch.Tensor):
        padding = torch.zeros_like(item_seq[:, :1])
        super().__init__(torch.cat([padding, item_seq], dim=1), lengths + 1)
        times = (PADDED_LENGTH - lengths)[self._order].to(torch.get_default_dtype())
        counted = torch.where(times > 0, times.clamp(min=1).log(), -math.inf)
        self.slabs = [dataclasses.replace(slab, key_bias=self._bias(slab, counted)) for slab in self.slabs]

    @staticmethod
    def _bias(slab: Any, counted: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(slab.n, 1, 1, slab.length) if slab.key_bias is None else slab.key_bias.clone()
        bias[:, 0, 0, 0] = counted[slab.rows]
        return bias


@contextlib.contextmanager
def padding_attended() -> Iterator[None]:
    with mock.patch.object(diffurec, "RaggedBatch", BatchWithPadding):
        yield


@contextlib.contextmanager
def row_0_a_class() -> Iterator[None]:
    """The padding's vector is drawn and trained like an item's, and competes in the softmax; RecBole never ranks it."""

    def initialise(model: Any, init: str, std: float) -> None:
        drawn(model, init, std)
        vectors = model.item_embedding.weight
        with torch.no_grad():
            vectors[0].normal_(std=vectors[1:].std().item())
        model.item_embedding.padding_idx = None

    def cross_entropy(x: Any, items: Any, target: Any, weight: Any, added: None) -> tuple[torch.Tensor, torch.Tensor]:
        losses = F.cross_entropy((x @ items.T).to(items.dtype), target, reduction="none")
        return (weight * losses).sum(), losses.detach()

    drawn = diffurec.DiffuRecFamily._initialise
    with (
        padding_attended(),
        mock.patch.object(diffurec.DiffuRecFamily, "_initialise", initialise),
        mock.patch.object(diffurec, "full_cross_entropy", cross_entropy),
    ):
        yield


VARIANTS = {"padding attended": padding_attended, "padding attended, row 0 a class": row_0_a_class}


def parameters(data_path: str) -> dict[str, Any]:
    """What all runs of the comparison share, and what ``BASE`` changes."""
    shared = layers.experiment("fidelity")
    for name in ("models", "datasets", "seeds", "baseline"):
        del shared[name]
    return {**shared, "n_layers": 1, "data_path": data_path}


def as_the_public_code(folder: Path, shared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results of the two trainings, by name."""
    results = {}
    for name, variant in VARIANTS.items():
        path = folder / f"{name.replace(',', '').replace(' ', '-')}.json"
        if not path.is_file():
            with variant():
                recbole_diffurec.run(
                    "DiffuRecSys",
                    "amazon-beauty",
                    **shared,
                    checkpoint_dir=str(folder / "public"),
                    result_file=path,
                    show_progress=False,
                )
        results[name] = json.loads(path.read_text(encoding="utf-8"))
    return results


def mean_of_batches(ranks: np.ndarray, k: int) -> dict[str, float]:
    """HR and NDCG as the mean over batches of their means: the last batch is smaller, and its users count more."""
    batches = range(0, len(ranks), EVALUATION_BATCH)
    return {
        name: float(np.mean([values[start : start + EVALUATION_BATCH].mean() for start in batches]))
        for name, values in gains(ranks, k).items()
    }


def masked(result: dict[str, Any], data_path: str) -> dict[str, float]:
    """Test figures with the items of a user's history left out of the ranking."""
    found = recbole_diffurec.evaluate(result["checkpoint"], data_path=data_path, mask_seen=True, show_progress=False)
    return dict(found["test_result"])


def last_improved(history: list[dict[str, Any]]) -> int:
    """The epoch that the public code keeps: the last one at which any of the validation metrics was the best so far."""
    scores = pd.DataFrame([epoch["valid_result"] for epoch in history])
    return int(np.flatnonzero((scores > scores.cummax().shift(fill_value=-1)).any(axis=1))[-1])


def draw(results: dict[str, dict[str, Any]]) -> None:
    figure, axis = plt.subplots(figsize=(10.5, 4.6), constrained_layout=True)
    for name, result in results.items():
        scores = [epoch["valid_score"] for epoch in result["history"]]
        style = "--" if name in VARIANTS else "-"
        axis.plot(
            range(1, len(scores) + 1), scores, style, marker="o", markersize=3, label=name.replace(BASE, "one block")
        )
    axis.set(xlabel="epoch", ylabel="validation NDCG@10", title="Amazon Beauty, the paper's recipe and changes to it")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(common.RESULTS / "fidelity.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="--output_dir of the comparison")
    parser.add_argument("--data_path", default="dataset")
    given = parser.parse_args()
    runs = pd.read_csv(given.folder / "runs.csv")
    paths = {run["model"]: next((given.folder / "runs").glob(f"*-{run['key']}.json")) for _, run in runs.iterrows()}
    results = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    results |= as_the_public_code(given.folder, parameters(given.data_path))
    draw(results)
    # The two trainings as the public code's are no models of this package: their checkpoints would be read as such.
    without_seen = {name: masked(results[name], given.data_path) for name in paths}
    rows = [
        [
            name.replace(BASE, "one block"),
            *(f"{result[kind][m]:.4f}" for kind in ("best_valid_result", "test_result") for m in METRICS),
            *(f"{without_seen[name][m]:.4f}" if name in without_seen else "" for m in METRICS),
            f"{result['best_epoch'] + 1} of {len(result['history'])}",
            f"{result['train_seconds']:.0f}",
        ]
        for name, result in results.items()
    ]
    with np.load(paths[BASE].with_suffix(".npz"), allow_pickle=False) as arrays:
        ranks = arrays["rank"]
    exact = {name: float(values.mean()) for name, values in gains(ranks, 10).items()}
    batched = mean_of_batches(ranks, 10)
    text = (
        "`recbole-diffurec compare --experiment=fidelity`, one seed, test figures of the best validation epoch. *One "
        "block* is the paper's recipe with `n_layers=1`; what follows the name is changed; "
        "*masked* leaves seen items out of the ranking.\n\n![by epoch](fidelity.png)"
        "\n\n" + common.table(["run", *(f"{kind} {m}" for kind in KINDS for m in NAMES), "best epoch", "seconds"], rows)
    )
    longest = max(results, key=lambda name: len(results[name]["history"]))
    history, best = results[longest]["history"], results[longest]["best_epoch"]
    kept = last_improved(history)
    text += (
        f"\n\nModel selection: by validation NDCG@10 epoch {best + 1} of {len(history)} is kept "
        f"({history[best]['valid_score']:.4f}), by the public code's rule, the last at which any validation metric "
        f"improved, epoch {kept + 1} ({history[kept]['valid_score']:.4f}; {longest.replace(BASE, 'one block')})."
    )
    text += (
        f"\n\nBatch averaging: the mean over batches of {EVALUATION_BATCH} users of their means, instead of the mean "
        f"over users, makes HR@10 {batched['hit']:.5f} of {exact['hit']:.5f} and NDCG@10 {batched['ndcg']:.5f} of "
        f"{exact['ndcg']:.5f} (one block; {len(ranks) % EVALUATION_BATCH} users in the last batch)."
    )
    names = ("best_valid_result", "test_result", "best_epoch")
    figures = {name: {key: result[key] for key in names} for name, result in results.items()}
    for name, result in results.items():
        for key in ("train_loss", "valid_score"):
            figures[name][key] = [epoch[key] for epoch in result["history"]]
    for name, result in without_seen.items():
        figures[name]["test_result_masked"] = result
    common.publish("fidelity", "The published recipe, change by change", {"figures": figures}, text)


if __name__ == "__main__":
    main()

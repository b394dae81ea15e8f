"""Seconds an epoch by training rows: a row for every prefix of a history, or the history once with all its positions.

The rates are those of the optimizer's whole steps on some random batches; an epoch has as many targets either way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import common

SIZES = {"hidden_size": 128, "n_layers": 2, "n_heads": 4, "inner_size": 512}
# Model, its parameters. RecBole's get batches of like length for their prefixes, which is the faster way for them.
MODELS: dict[str, dict[str, Any]] = {
    "CausalRec": SIZES,
    "SASRec": {**SIZES, "batch_by_length": True},
    "GRU4Rec": {"embedding_size": 128, "hidden_size": 128, "num_layers": 1, "batch_by_length": True},
}
# Rows of a batch, and how many batches are measured: a history has many targets, and the fewer rows.
ROWS = {"prefixes": (512, 6), "sequences": (64, 8)}
DATA = (("amazon-beauty", 50), ("ml-1m", 50), ("ml-1m", 200))


def step_on(network: Any, trainer: Any, batches: list[Any]) -> Callable[[], None]:
    step = common.training_step(network, trainer, network.calculate_loss, amp=False)

    def steps() -> None:
        for batch in batches:
            step(batch)

    return steps


def rates(source: dict[str, str], length: int, rounds: int) -> tuple[dict[str, dict[str, Any]], int]:
    """Targets a second by model and rows, and the targets of an epoch."""
    contestants, targets = {}, 0
    for model, sizes in MODELS.items():
        for rows, (size, n_batches) in ROWS.items():
            values = {**sizes, "rows": rows, "MAX_ITEM_LIST_LENGTH": length, "train_batch_size": size}
            if rows == "sequences":
                values.pop("batch_by_length", None)
            network, trainer, data = common.model_on(model, source, **values, show_progress=False)
            if rows == "prefixes":
                targets = len(common.dataset_of(data.loaders[0]).inter_feat)
            taken = common.typical(common.batches(data.loaders[0], 1 if common.TINY else 64, trainer.device), n_batches)
            contestants[f"{model}, {rows}"] = (sum(map(len, taken)), step_on(network, trainer, taken))
    return common.interleaved(contestants, rounds), targets


def main() -> None:
    options = common.arguments(__doc__ or "").parse_args()
    path = Path(options.data_path or ".")
    found = [(name, length) for name, length in DATA if (path / name).is_dir()]
    sources = [({"dataset": name, "data_path": str(path)}, length) for name, length in found]
    results, sections = {}, []
    for source, length in sources or [(common.data_set(None), 50)]:
        rate, targets = rates(source, length, options.rounds)
        rows = []
        for model in MODELS:
            seconds = {kind: targets / rate[f"{model}, {kind}"]["median"] for kind in ROWS}
            ratio = f"{seconds['prefixes'] / seconds['sequences']:.1f}"
            rows.append((model, *(f"{seconds[kind]:,.0f}" for kind in ROWS), ratio))
        key = f"{source['dataset']}, L = {length}"
        results[key] = {"targets": targets, "rates": rate}
        header = ("model", *(f"{kind}, s an epoch" for kind in ROWS), "times as fast")
        sections.append(f"## {key}: {targets:,} targets an epoch\n\n" + common.table(header, rows))
    sizes = "; ".join(f"{kind}: {n} of 64 batches of {size} rows" for kind, (size, n) in ROWS.items())
    body = (
        f"d = 128, 2 blocks (GRU4Rec: one layer), full softmax, float32. {sizes}, evenly spaced by length; medians of "
        f"{options.rounds} interleaved rounds. CausalRec is ours, without padding; SASRec and GRU4Rec are RecBole's, "
        "their prefixes in batches of like length.\n\n" + "\n\n".join(sections)
    )
    common.publish("rows", "All positions at once", {"figures": results}, body)


if __name__ == "__main__":
    main()

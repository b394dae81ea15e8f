"""What samples and the diversity setting of recommendations do to HR, NDCG and coverage.

Give checkpoints that ``run`` wrote, such as one trained with the published lambda and one with a larger. The histories
of their test users go through ``Recommender`` as anybody's would.
"""

from __future__ import annotations

import argparse

import common
import numpy as np

from recbole_diffurec import Recommender
from recbole_diffurec.experiments.measures import gains
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.training.prepare import PreparedData

K = 10
SETTINGS = ((None, 0.0), (20, 0.0), (20, 0.25), (20, 0.5), (20, 0.75), (20, 1.0))  # samples, diversity


def test_users(recommender: Recommender, n: int) -> tuple[list[list[str]], np.ndarray]:
    """Histories and targets, as ids, of ``n`` test users, evenly spaced over all."""
    dataset = dataset_of(PreparedData(recommender.config).loaders[2])
    rows = dataset[np.linspace(0, len(dataset) - 1, min(n, len(dataset))).astype(int)]
    network, items = recommender.network, recommender.items
    histories = [
        list(items[sequence[:length]]) for sequence, length in zip(rows[network.ITEM_SEQ], rows[network.ITEM_SEQ_LEN])
    ]
    return histories, items[rows[network.ITEM_ID]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--sampling_steps", type=int, default=4)
    given = parser.parse_args()
    rows, figures = [], []
    for path in given.checkpoints:
        recommender = Recommender.load(path, sampling_steps=given.sampling_steps, gpu_id="")
        histories, targets = test_users(recommender, given.users)
        name = f"{recommender.config['model']}, lambda {recommender.config['lambda_uncertainty']:g}"
        for samples, diversity in SETTINGS:
            table = recommender.recommend(histories, k=K, samples=samples, diversity=diversity)
            hit = table["item_id"].to_numpy() == targets[table["user_id"].to_numpy(dtype=int)]
            ranks = np.zeros(len(targets), dtype=int)
            ranks[table["user_id"].to_numpy(dtype=int)[hit]] = table["rank"].to_numpy()[hit]
            found = {metric: float(values.mean()) for metric, values in gains(ranks, K).items()}
            found["coverage"] = table["item_id"].nunique() / (len(recommender.items) - 1)
            if samples:
                found["spread"] = float(table.groupby("user_id")["spread"].first().mean())
                found["frequency"] = float(table["frequency"].mean())
            figures.append({"model": name, "samples": samples, "diversity": diversity, **found})
            cells = [f"{found[key]:.4f}" if key in found else "" for key in ("hit", "ndcg", "coverage")]
            cells += [f"{found[key]:.1%}" if key in found else "" for key in ("spread", "frequency")]
            rows.append([name, samples or "none", diversity, *cells])
            print(*rows[-1], flush=True)
    header = ["model", "samples", "diversity", f"HR@{K}", f"NDCG@{K}", f"coverage@{K}", "spread", "agreement"]
    text = (
        f"{len(targets):,} test users of {recommender.config['dataset']}, {given.sampling_steps} reverse steps. "
        f"Spread: mean distance of a user's samples from their mean, relative to its length. "
        f"Agreement: share of samples whose own top {K} has a listed item.\n\n{common.table(header, rows)}"
    )
    common.publish("diversity", "Samples and diversity", {"figures": figures}, text)


if __name__ == "__main__":
    main()

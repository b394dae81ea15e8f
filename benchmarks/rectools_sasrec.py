"""RecTools' SASRec by its defaults but for L = 50, for ``time_to_quality.py``, with ``rectools[torch]`` installed.

Arguments: an ``.inter`` file in RecBole's form, seconds of training at most, the validation NDCG@10 to stop at, and
epochs without a better one to stop after. Prints [[seconds of training, validation NDCG@10 with seen items masked],
...] as JSON, one for each epoch.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def split(path: str) -> tuple[Dataset, pd.Series]:
    """All but the last two interactions of each user, and the last but one, by user."""
    frame = pd.read_csv(path, sep="\t", usecols=[0, 1, 2])
    frame.columns = [Columns.User, Columns.Item, "time"]
    frame = frame.sort_values([Columns.User, "time"], kind="stable")
    behind = frame.groupby(Columns.User).cumcount(ascending=False)
    # RecTools orders by dates: the place in the order stands for the time.
    order = frame.groupby(Columns.User).cumcount()
    frame[Columns.Datetime] = pd.Timestamp("2000-01-01") + pd.to_timedelta(order, unit="D")
    frame[Columns.Weight] = 1.0
    held_out = frame[behind == 1].set_index(Columns.User)[Columns.Item]
    return Dataset.construct(frame[behind > 1].drop(columns="time")), held_out


def ndcg(model: SASRecModel, dataset: Dataset, held_out: pd.Series) -> float:
    """NDCG@10 of the held-out items; users or items that the training part does not have count as missed."""
    known = held_out[held_out.index.isin(dataset.user_id_map.external_ids)]
    lists = model.recommend(users=known.index.to_numpy(), dataset=dataset, k=10, filter_viewed=True)
    hits = lists[lists[Columns.Item].to_numpy() == known.loc[lists[Columns.User]].to_numpy()]
    return float((1 / np.log2(hits[Columns.Rank] + 1)).sum() / len(held_out))


def main(path: str, limit: float, level: float, patience: int) -> None:
    dataset, held_out = split(path)
    model = SASRecModel(epochs=1, verbose=0, session_max_len=50)
    curve: list[list[float]] = []
    seconds, best = 0.0, 0
    while not curve or (curve[-1][0] <= limit and curve[-1][1] < level and len(curve) - 1 - best < patience):
        started = time.perf_counter()
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        seconds += time.perf_counter() - started
        curve.append([seconds, ndcg(model, dataset, held_out)])
        best = max(range(len(curve)), key=lambda i: curve[i][1])
        print(*curve[-1], file=sys.stderr, flush=True)
    print(json.dumps(curve))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))

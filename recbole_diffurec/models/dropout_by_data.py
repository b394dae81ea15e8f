"""``hidden_dropout_prob: auto``: as much dropout as data leaves room for.

What an item is learned from differs by orders of magnitude: eleven training rows an item on Amazon Beauty, 265 on
MovieLens-1M. The first wants half of its item vectors dropped, the second none (RESULTS.md); in between the probability
falls with the logarithm of the rows an item.
"""

from __future__ import annotations

import math
from typing import Any

# Training rows an item where data is sparse and where it is dense, and the dropout of the recipes that were found on
# validation data of such density: best/amazon-beauty and best/ml-1m.
SPARSE, DENSE = 11.0, 250.0
AT_SPARSE_AND_DENSE = {"hidden_dropout_prob": (0.3, 0.1), "embedding_dropout_prob": (0.5, 0.0)}


def dropout_for(name: str, rows_an_item: float) -> float:
    """The probability that suits data, to two decimals.

    Parameters
    ----------
    name : str
        ``hidden_dropout_prob`` or ``embedding_dropout_prob``.
    rows_an_item : float
        Training rows divided by items, above 0.
    """
    sparse, dense = AT_SPARSE_AND_DENSE[name]
    share = math.log(rows_an_item / SPARSE) / math.log(DENSE / SPARSE)
    return round(sparse + (dense - sparse) * min(max(share, 0.0), 1.0), 2)


def choose_dropout(config: Any, dataset: Any, n_items: int) -> None:
    """Put numbers in the place of ``auto`` in a configuration, whose ``plain()`` still says ``auto``.

    Parameters
    ----------
    config : Config
        RecBole's, or a mapping.
    dataset : Dataset or CheckpointData
        The training data; a checkpoint alone has none, and drops nothing.
    n_items : int
        I, padding included.
    """
    rows = vars(dataset).get("inter_feat")
    for name in AT_SPARSE_AND_DENSE:
        if config[name] == "auto":
            config[name] = dropout_for(name, len(rows) / (n_items - 1)) if rows is not None else 0.0


def chosen_dropout(config: Any) -> str:
    """What ``auto`` became, in words; empty where nothing was left to the data."""
    given = config.plain()
    names = [name for name in AT_SPARSE_AND_DENSE if given.get(name) == "auto"]
    return " and ".join(f"{name} auto is {config[name]:g}" for name in names)

"""What a comparison measures beyond RecBole's metrics: every user's rank, the lists, and the diffusion itself.

Shapes: B batch, U users, I items with padding row 0, K the longest list, d hidden size.
"""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_diffurec.host.loaders import subset_loader
from recbole_diffurec.host.metrics import list_metrics
from recbole_diffurec.models.base import DiffusionRecommender
from recbole_diffurec.training.prepare import PreparedData
from recbole_diffurec.training.run import TrainedRun

HEAD_SHARE = 0.2  # the most popular items, DiffuRecSys section 6.5
LENGTH_GROUPS = 5
# The tables' columns, and the metrics in them.
LIST_COLUMNS = {
    "coverage": "itemcoverage",
    "entropy": "shannonentropy",
    "gini": "giniindex",
    "average_popularity": "averagepopularity",
    "tail_share": "tailpercentage",
}
# Users in the analyses that draw or repeat the reverse process, evenly spaced over all.
SAMPLED_USERS = 2000
SPREAD_USERS, SPREAD_SEEDS = 5, 60
SAMPLING_STEPS = (1, 2, 4, 8, 16, 32)


class RankCollector:
    """Where each user's target ranks, and what is recommended; for ``PluginTrainer.telling``.

    Parameters
    ----------
    topk : Sequence of int
        List lengths.
    user_field : str
        The column with the user's number.
    """

    def __init__(self, topk: Sequence[int], user_field: str):
        self.topk, self.user_field = sorted(topk), user_field
        self._users: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._ranks: list[Tensor] = []
        self._lists: list[Tensor] = []

    def __call__(self, interaction: Any, scores: Tensor, positive_u: Tensor, positive_i: Tensor) -> None:
        target = positive_i.to(scores.device)
        # Among sampled candidates a user's targets share a row of scores, and so a list.
        row = positive_u.to(scores.device)
        values, lists = (part[row] for part in scores.topk(self.topk[-1], dim=-1))
        found = lists == target.unsqueeze(1)
        self._ranks.append(torch.where(found.any(dim=1), found.int().argmax(dim=1) + 1, 0).cpu())
        self._users.append(interaction[self.user_field].cpu())
        self._targets.append(target.cpu())
        self._lists.append(lists.masked_fill(values == -torch.inf, 0).int().cpu())

    @property
    def users(self) -> np.ndarray:
        """int [U], the users' numbers in the order of evaluation."""
        return torch.cat(self._users).numpy()

    @property
    def targets(self) -> np.ndarray:
        """int [U], the items that are sought."""
        return torch.cat(self._targets).numpy()

    @property
    def ranks(self) -> np.ndarray:
        """int [U], 1-based; 0 where the target is not among the first K."""
        return torch.cat(self._ranks).numpy()

    @property
    def lists(self) -> np.ndarray:
        """int [U, K], the items recommended; 0 where there are fewer to recommend."""
        return torch.cat(self._lists).numpy()


def gains(ranks: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Hit and NDCG of each user at list length ``k``, for one target each; their means are RecBole's Hit and NDCG."""
    hit = (ranks >= 1) & (ranks <= k)
    return {"hit": hit.astype(float), "ndcg": np.where(hit, 1.0 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)}


def head_items(popularity: np.ndarray) -> np.ndarray:
    """bool [I]: the most popular fifth of the items. Ties are cut by the items' numbers; padding is no item."""
    n_head = int(np.ceil(HEAD_SHARE * (len(popularity) - 1)))
    head = np.zeros(len(popularity), dtype=bool)
    head[1 + np.argsort(-popularity[1:], kind="stable")[:n_head]] = True
    return head


def list_measures(lists: np.ndarray, popularity: np.ndarray, tail_ratio: float | None) -> dict[str, float]:
    """What ``host.metrics`` measures of all lists of one length, by the names of the tables' columns."""
    found = list_metrics(lists, popularity, tail_ratio)
    return {column: found[name] for column, name in LIST_COLUMNS.items()}


def length_groups(lengths: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Users in up to five groups at the quintiles of their history length: (label, bool [U]), shortest first.

    Many users share a length, so that groups differ in size, and some quintiles coincide.
    """
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_GROUPS + 1)[1:], method="higher"))
    group = np.searchsorted(edges, lengths)
    groups = []
    for i in range(len(edges)):
        members = group == i
        low, high = int(lengths[members].min()), int(lengths[members].max())
        groups.append((str(low) if low == high else f"{low}-{high}", members))
    return groups


def relative_spread(spread: np.ndarray) -> float:
    """How far one user's reconstructions lie from their mean, over how far users' means lie from theirs.

    Parameters
    ----------
    spread : np.ndarray
        [users, seeds, d].
    """
    centres = spread.mean(axis=1)
    within = np.linalg.norm(spread - centres[:, None], axis=-1).mean()
    between = np.linalg.norm(centres - centres.mean(axis=0), axis=-1).mean()
    return float(within / between) if between else float("nan")


def per_user(collector: RankCollector, data: PreparedData) -> dict[str, np.ndarray]:
    """What is kept of each test user: token, rank, whether the target is a head item, items in the history."""
    return {
        "user": np.array(data.id_tokens["users"])[collector.users],
        "rank": collector.ranks.astype(np.int32),
        "head": head_items(data.popularity)[collector.targets],
        "length": (data.user_counts[collector.users] - 1).astype(np.int32),
    }


# The diffusion itself


def diffusion_measures(run: TrainedRun) -> dict[str, np.ndarray]:
    """Reconstructions, their spread, and quality against steps, of a trained diffusion model; nothing for others.

    Returns
    -------
    dict of str to np.ndarray
        With ``reconstructions`` [n, d] of test users, ``spread`` [users, seeds, d] of the same users under different
        noise, ``steps`` and ``steps_ndcg`` (validation NDCG@10 of a sample of users, by sampling steps).
    """
    network = run.network
    if not isinstance(network, DiffusionRecommender):
        return {}
    network.eval()
    _, valid_data, test_data = run.data.loaders
    x_0 = [_reconstructions(network, batch)[0] for batch, *_ in subset_loader(test_data, SAMPLED_USERS)]
    batch, *_ = next(iter(subset_loader(test_data, SPREAD_USERS)))
    spread = torch.stack(_reconstructions(network, batch, range(SPREAD_SEEDS)), dim=1)
    steps = [s for s in SAMPLING_STEPS if s <= network.n_steps]
    return {
        "reconstructions": torch.cat(x_0).float().cpu().numpy(),
        "spread": spread.float().cpu().numpy(),
        "steps": np.array(steps),
        "steps_ndcg": np.array(_quality_by_steps(run, subset_loader(valid_data, SAMPLED_USERS), steps)),
    }


@torch.no_grad()
def _reconstructions(network: DiffusionRecommender, batch: Any, seeds: Sequence[int] | None = None) -> list[Tensor]:
    return network.reconstructions(batch.to(next(network.parameters()).device), seeds)


def _quality_by_steps(run: TrainedRun, loader: Any, steps: Sequence[int]) -> list[float]:
    trainer, network = run.trainer, run.network
    quality = []
    try:
        for n in steps:
            trainer.model = network.with_sampling_steps(n)
            collector = RankCollector([min(10, run.data.n_items)], run.config["USER_ID_FIELD"])
            with trainer.telling(collector):
                trainer.evaluate(loader, load_best_model=False)
            quality.append(float(gains(collector.ranks, 10)["ndcg"].mean()))
    finally:
        trainer.model = network
    return quality

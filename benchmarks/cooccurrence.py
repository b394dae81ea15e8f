"""What weight and decay of scores by co-occurrence do on validation data, of models that have them.

    python benchmarks/cooccurrence.py CHECKPOINT... --data_path=DIR

Nothing is trained: the network's scores are made once, and the others are added to them with each weight and decay. Of
every history the last item before the test is looked for among all items. No test figure is read or made.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import common
import numpy as np
import torch

from recbole_diffurec.experiments.measures import gains
from recbole_diffurec.models.cooccurrence import WINDOW
from recbole_diffurec.training.evaluate import open_members, opened

WEIGHTS, DECAYS = (0.3, 0.6, 1.0, 1.3, 2.0, 3.0), (0.6, 0.8, 1.0)
K = 10
Setting = tuple[float, float]


@torch.no_grad()
def ranked(network: Any, loader: Any, settings: list[Setting]) -> dict[Setting, np.ndarray]:
    """The rank of every user's item with each weight and decay, from 1."""
    found: dict[Setting, list[torch.Tensor]] = defaultdict(list)
    added = network.eval().cooccurrences
    for interaction, *_ in loader:
        users = interaction.to(added.by_age.device)
        item_seq, target = users[network.ITEM_SEQ], users[network.ITEM_ID].unsqueeze(1)
        added.by_age.zero_()
        scores = network.full_sort_predict(users).view(len(users), -1)
        for weight, decay in settings:
            added.by_age.copy_(weight * decay ** torch.arange(WINDOW))
            own = added(item_seq).added_to(scores)
            found[weight, decay].append(1 + (own > own.gather(1, target)).sum(dim=1))
    return {setting: torch.cat(ranks).cpu().numpy() for setting, ranks in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--data_path", default="dataset/")
    given = parser.parse_args()
    settings = [(0.0, 1.0), *((weight, decay) for decay in DECAYS for weight in WEIGHTS)]
    parts, figures = [], []
    for path in given.checkpoints:
        (member,) = open_members([path], {"data_path": given.data_path})
        with opened([member], {}) as opening:
            (network, _), loader = opening.built[0], opening.data.loaders[1]
            if getattr(network, "cooccurrences", None) is None:
                parser.error(f"'{path}' was trained without cooccurrence_weight: train with --cooccurrence_weight=0")
            ranks = ranked(network, loader, settings)
        found = {s: {m: float(v.mean()) for m, v in gains(np.where(r > K, 0, r), K).items()} for s, r in ranks.items()}
        about = {"model": member.state["model"], "dataset": member.state["dataset"], "seed": member.config["seed"]}
        figures.append({**about, "valid": [{"weight": w, "decay": d, **found[w, d]} for w, d in settings]})
        rows = [("none", "", *(f"{found[0.0, 1.0][metric]:.4f}" for metric in ("hit", "ndcg")))]
        rows += [(w, d, *(f"{found[w, d][m]:.4f}" for m in ("hit", "ndcg"))) for w, d in settings[1:]]
        header = ("cooccurrence_weight", "cooccurrence_decay", f"HR@{K}", f"NDCG@{K}")
        parts += [f"## {about['model']} on {about['dataset']}, seed {about['seed']}", common.table(header, rows)]
    intro = "Validation figures, all items ranked, none masked; one network for each table, whatever the weight."
    common.publish("cooccurrence", "Scores by co-occurrence", {"figures": figures}, "\n\n".join([intro, *parts]))


if __name__ == "__main__":
    main()

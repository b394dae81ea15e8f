"""Whether the steps of masked diffusion pay: the next k items of held-out users, together and each for itself.

The last k items of every user are the future, of which neither training nor validation sees anything; the last item
before them validates. Three networks of one size are trained: MaskedDiffRec, the same with every slot trained for
itself (all_masked_share 1), and the same with one slot, which is a plain classifier of the next item.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from recbole_diffurec import Recommender, run
from recbole_diffurec.cli.arguments import parse_parameters
from recbole_diffurec.experiments.measures import gains
from recbole_diffurec.experiments.stats import user_interval, user_test
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import batch_of
from recbole_diffurec.training.prepare import training_histories

MODEL = "MaskedDiffRec"
LEAST_HISTORY = 3  # items before the future: one to read, one to train on, one to validate with
BATCH, CUT = 256, 10
Figures = dict[str, dict[str, dict[str, np.ndarray]]]  # of users, by table, row and column
# What the networks differ in, by the names that the tables give them.
NETWORKS: dict[str, dict[str, Any]] = {
    "joint": {},
    "marginals": {"all_masked_share": 1.0},
    "classifier": {"n_slots": 1, "sampling_steps": None},
}


# Data


@dataclass(frozen=True)
class HeldOut:
    """Users whose future is asked for: histories and futures in item numbers."""

    histories: list[list[int]]
    futures: np.ndarray  # int [U, k]
    unknown: int  # users left out, whose future has an item that training lacks

    def batches(self) -> Iterator[slice]:
        return (slice(start, start + BATCH) for start in range(0, len(self.histories), BATCH))


def split(
    dataset: str, parameters: dict[str, Any], k: int, recent: int | None, folder: Path
) -> dict[str, tuple[list[str], list[str]]]:
    """Write the data set without the futures under its own name in ``folder``; {user: (history, future)} in ids.

    What is written of each user are the ``recent`` last items, or all.
    """
    held_out: dict[str, tuple[list[str], list[str]]] = {}
    users, items = [], []
    for names, sequences in training_histories(RunConfig(MODEL, dataset, parameters)):
        for name, sequence in zip(names, sequences):
            if len(sequence) >= k + LEAST_HISTORY:
                held_out[name] = sequence[:-k], sequence[-k:]
                sequence = sequence[:-k]
            sequence = sequence[-recent:] if recent else sequence
            users += [name] * len(sequence)
            items += sequence
    common.write_atomic(folder, dataset, np.array(users), np.array(items), 1e9 + np.arange(len(users)))
    return held_out


def in_numbers(held_out: dict[str, tuple[list[str], list[str]]], items: Sequence[str], n_users: int) -> HeldOut:
    """Of ``n_users`` evenly spaced users at most."""
    number = {item: place for place, item in enumerate(items) if place}
    chosen = np.unique(np.linspace(0, len(held_out) - 1, min(n_users, len(held_out))).astype(int))
    pairs = [list(held_out.values())[place] for place in chosen]
    known = [(history, future) for history, future in pairs if all(item in number for item in future)]
    histories = [[number[item] for item in history if item in number] for history, _ in known]
    futures = np.array([[number[item] for item in future] for _, future in known])
    return HeldOut(histories, futures, len(pairs) - len(known))


def train(dataset: str, folder: Path, seed: int, parameters: dict[str, Any]) -> dict[str, str]:
    """Checkpoints of the networks, each of its best epoch in validation; one that lies there already is not trained."""
    off = {f"{kind}_inter_num_interval": "[0,inf)" for kind in ("user", "item")}  # the data is filtered already
    protocol = {"split": {"LS": "valid_only"}, "group_by": "user", "order": "TO", "mode": "full"}
    fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
    fixed = {**off, **fields, "data_path": str(folder), "eval_args": protocol, "expected_counts": None, "seed": seed}
    fixed["checkpoint_dir"] = str(folder / "saved")
    checkpoints = {}
    for name, differing in NETWORKS.items():
        # Of a classifier too by the parameters as given, since the data without the futures depends on them.
        asked, trained = {"parameters": parameters, "differing": differing}, folder / f"{name}-{seed}.json"
        found = json.loads(trained.read_text()) if trained.is_file() else {}
        if {key: found.get(key) for key in asked} != asked:
            found = {**asked, "checkpoint": run(MODEL, dataset, **{**parameters, **fixed, **differing})["checkpoint"]}
            trained.write_text(json.dumps(found) + "\n")
        checkpoints[name] = found["checkpoint"]
    return checkpoints


# What is asked of the networks


def batch(recommender: Recommender, histories: Sequence[Sequence[int]]) -> Any:
    network, longest = recommender.network, recommender.config["MAX_ITEM_LIST_LENGTH"]
    lengths = torch.tensor([min(len(history), longest) for history in histories])
    item_seq = torch.zeros(len(histories), longest, dtype=torch.long)
    for row, history in zip(item_seq, histories):
        row[: min(len(history), longest)] = torch.tensor(history[-longest:])
    return batch_of({network.ITEM_SEQ: item_seq, network.ITEM_SEQ_LEN: lengths}, recommender.config["device"])


def joint_nll(recommender: Recommender, data: HeldOut, steps: int) -> np.ndarray:
    """-log p(future | history) / k of each user, in so many steps."""
    network = recommender.network.with_sampling_steps(steps)
    found = []
    for part in data.batches():
        interaction = batch(recommender, data.histories[part])
        futures = torch.from_numpy(data.futures[part]).to(interaction[network.ITEM_SEQ].device)
        found.append(-network.log_probability(interaction, futures).double().cpu().numpy())
    return np.concatenate(found) / data.futures.shape[1]


def rolled_nll(recommender: Recommender, data: HeldOut) -> np.ndarray:
    """The same of a classifier that reads each item of the future before it is asked for the next."""
    total = np.zeros(len(data.histories))
    for place in range(data.futures.shape[1]):
        histories = [[*h, *future[:place]] for h, future in zip(data.histories, data.futures.tolist())]
        total += joint_nll(recommender, HeldOut(histories, data.futures[:, place : place + 1], 0), 1)
    return total / data.futures.shape[1]


Allowed = Callable[[slice], Tensor]  # bool [B, I], what users of a batch may get


def sampled(recommender: Recommender, data: HeldOut, steps: int, seeds: Sequence[int], allowed: Allowed) -> np.ndarray:
    """Lists int [S, U, k]."""
    network, k = recommender.network.with_sampling_steps(steps), data.futures.shape[1]
    found = []
    for part in data.batches():
        lists = network.sample_lists(batch(recommender, data.histories[part]), k, seeds, allowed(part))
        found.append(lists.items.cpu().numpy())
    return np.concatenate(found, axis=1)


def top(recommender: Recommender, data: HeldOut, allowed: Allowed) -> np.ndarray:
    """The k best items of a classifier, int [1, U, k]."""
    found = []
    for part in data.batches():
        scores = recommender.network.full_sort_predict(batch(recommender, data.histories[part]))
        scores = scores.masked_fill(~allowed(part), -torch.inf)
        found.append(scores.topk(data.futures.shape[1]).indices.cpu().numpy())
    return np.concatenate(found)[None]


def rolled(recommender: Recommender, data: HeldOut, seeds: Sequence[int], allowed: Allowed) -> np.ndarray:
    """Lists int [S, U, k] of a classifier that reads what it drew."""
    network, k = recommender.network, data.futures.shape[1]
    lists = np.zeros((len(seeds), len(data.histories), k), dtype=np.int64)
    for part in data.batches():
        for sample, seed in zip(lists, seeds):
            free = allowed(part).clone()
            for place in range(k):
                histories = [[*h, *own[:place]] for h, own in zip(data.histories[part], sample[part].tolist())]
                items = network.sample_lists(batch(recommender, histories), 1, [seed], free).items[0]
                free.scatter_(1, items, False)
                sample[part, place] = items[:, 0].cpu().numpy()
    return lists


def among(data: HeldOut, n_items: int, device: torch.device, exclude_seen: bool) -> Allowed:
    """All items, or those that a user's history lacks."""

    def allowed(part: slice) -> Tensor:
        free = torch.ones(len(data.histories[part]), n_items, dtype=torch.bool)
        free[:, 0] = False
        for row, history in zip(free, data.histories[part] if exclude_seen else ()):
            row[history] = False
        return free.to(device)

    return allowed


# Figures


def list_figures(lists: np.ndarray, futures: np.ndarray, vectors: Tensor) -> dict[str, np.ndarray]:
    """Recall, sequence match and diversity of each user, means over the samples, and the coverage of the first sample.

    Parameters
    ----------
    lists : np.ndarray
        int [S, U, k].
    futures : np.ndarray
        int [U, k].
    vectors : Tensor
        [I, d], by which items are alike.
    """
    k = futures.shape[1]
    hits = (lists[..., None] == futures[:, None, :]).any(axis=-1)
    unit = F.normalize(vectors.double().cpu(), dim=-1).numpy()
    diversity = [1 - (np.square(unit[sample].sum(axis=1)).sum(axis=-1) - k) / max(1, k * (k - 1)) for sample in lists]
    return {
        "recall": hits.mean(axis=(0, 2)),
        "match": (lists == futures).mean(axis=(0, 2)),
        "diversity": np.mean(diversity, axis=0),
        "coverage": np.array(len(np.unique(lists[0])) / (len(vectors) - 1)),
    }


def next_item(recommender: Recommender, data: HeldOut, allowed: Allowed) -> dict[str, np.ndarray]:
    """HR and NDCG of each user for the first item of the future."""
    ranks = []
    for part in data.batches():
        scores = recommender.network.full_sort_predict(batch(recommender, data.histories[part])).cpu()
        scores = scores.masked_fill(~allowed(part).cpu(), -torch.inf)
        own = scores.gather(1, torch.from_numpy(data.futures[part, :1]))
        # A target that is not allowed has no rank.
        ranks.append(torch.where(own > -torch.inf, 1 + (scores > own).sum(dim=1, keepdim=True), 0).squeeze(1).numpy())
    all_ranks = np.concatenate(ranks)
    return gains(np.where(all_ranks <= CUT, all_ranks, 0), CUT)


@torch.no_grad()
def figures_of(checkpoints: dict[str, str], data: HeldOut, samples: int, exclude_seen: bool) -> Figures:
    """Everything that is measured of one seed's networks."""
    joint, marginals, classifier = (Recommender.load(path) for path in checkpoints.values())
    likeliest = {name: Recommender.load(path, sampling_temperature=0.0) for name, path in checkpoints.items()}
    k, n_items, device = data.futures.shape[1], len(joint.items), joint.config["device"]
    allowed, seeds = among(data, n_items, device, exclude_seen), range(samples)
    lists = {
        "classifier, top k": top(classifier, data, allowed),
        "classifier, rolled out, likeliest": rolled(likeliest["classifier"], data, [0], allowed),
        "classifier, rolled out, drawn": rolled(classifier, data, seeds, allowed),
        "marginals, drawn": sampled(marginals, data, 1, seeds, allowed),
        "joint, 1 step, drawn": sampled(joint, data, 1, seeds, allowed),
        "joint, k steps, likeliest": sampled(likeliest["joint"], data, k, [0], allowed),
        "joint, k steps, drawn": sampled(joint, data, k, seeds, allowed),
    }
    vectors = classifier.network.item_vectors()  # one measure for all
    return {
        "nll": {
            "joint, k steps": {"nll": joint_nll(joint, data, k)},
            "joint, 1 step": {"nll": joint_nll(joint, data, 1)},
            "marginals, 1 step": {"nll": joint_nll(marginals, data, 1)},
            "classifier, rolled out": {"nll": rolled_nll(classifier, data)},
        },
        "lists": {name: list_figures(of_method, data.futures, vectors) for name, of_method in lists.items()},
        "next": {
            name: next_item(model, data, allowed)
            for name, model in (("joint", joint), ("marginals", marginals), ("classifier", classifier))
        },
    }


def mean_over_seeds(found: Sequence[Figures]) -> Figures:
    """The same, of each user the mean over the seeds."""
    return {
        table: {
            row: {column: np.mean([one[table][row][column] for one in found], axis=0) for column in columns}
            for row, columns in rows.items()
        }
        for table, rows in found[0].items()
    }


# The page


def compared(own: np.ndarray, other: np.ndarray) -> list[str]:
    """How much larger ``own`` is, with its interval over users, and p of the paired t-test and of Wilcoxon's."""
    low, high = user_interval(own, other)
    p = float(stats.ttest_rel(own, other, alternative="greater").pvalue) if np.ptp(own - other) else 0.5
    difference = f"{(own - other).mean():+.4f} [{low:+.4f}, {high:+.4f}]"
    return [difference, f"{p:.2g}", f"{user_test(own, other):.2g}"]


def page(found: Figures, about: str) -> str:
    tests = ["difference [95 %]", "p (t)", "p (Wilcoxon)"]
    steps = found["nll"]["joint, k steps"]["nll"]
    likelihood = [
        [name, f"{of['nll'].mean():.4f}", *(["", "", ""] if of["nll"] is steps else compared(of["nll"], steps))]
        for name, of in found["nll"].items()
    ]
    best = found["lists"]["joint, k steps, drawn"]
    lists = [
        [
            name,
            *(f"{of[column].mean():.4f}" for column in ("recall", "match", "coverage", "diversity")),
            *(["", "", ""] if of is best else compared(best["recall"], of["recall"])),
        ]
        for name, of in found["lists"].items()
    ]
    classifier = found["next"]["classifier"]
    following = [
        [
            name,
            *(f"{of[metric].mean():.4f}" for metric in ("hit", "ndcg")),
            *(["", ""] if name == "classifier" else [compared(of[m], classifier[m])[0] for m in ("hit", "ndcg")]),
        ]
        for name, of in found["next"].items()
    ]
    return "\n\n".join(
        [
            about,
            "Joint negative log-likelihood of the future for each slot, in nats; the difference is what k steps gain.",
            common.table(["model", "nats / slot", *tests], likelihood),
            "Lists of k items. Recall: share of the list that is in the future; match: at its very place; coverage: "
            "share of the catalogue in one list of each user; diversity: mean 1 - cosine of the classifier's item "
            "vectors within a list. The difference is that of the last line's recall from each other's.",
            common.table(["lists", "recall", "match", "coverage", "diversity", *tests], lists),
            f"The next item alone, among all items: differences from the classifier, at {CUT}.",
            common.table(["model", f"HR@{CUT}", f"NDCG@{CUT}", "HR difference", "NDCG difference"], following),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Other arguments are parameters of the networks.")
    parser.add_argument("--dataset", default="ml-1m")
    parser.add_argument("--slots", type=int, default=5, help="k, the items of a future")
    parser.add_argument(
        "--seeds", type=int, default=1, help="networks of each kind; users' figures are means over them"
    )
    parser.add_argument("--samples", type=int, default=20, help="lists drawn for each user")
    parser.add_argument("--users", type=int, default=10**9, help="whose future is asked for, evenly spaced over all")
    parser.add_argument(
        "--exclude_seen", action="store_true", help="no list, and no ranking, has an item of the history"
    )
    parser.add_argument("--recent", type=int, help="train on so many last items of each history; on all if left out")
    parser.add_argument("--work", type=Path, help="keep the networks in this folder, and go on from those that it has")
    given, rest = parser.parse_known_args()
    parameters, k = {"show_progress": False, **parse_parameters(rest)}, given.slots
    found, data = [], None
    with tempfile.TemporaryDirectory() as name:
        folder = given.work.absolute() / f"{given.dataset}-{given.recent or 'all'}" if given.work else Path(name)
        held_out = split(given.dataset, parameters, k, given.recent, folder)
        for seed in range(2020, 2020 + given.seeds):
            checkpoints = train(given.dataset, folder, seed, {**parameters, "n_slots": k})
            data = in_numbers(held_out, list(Recommender.load(checkpoints["joint"]).items), given.users)
            found.append(figures_of(checkpoints, data, given.samples, given.exclude_seen))
    assert data is not None
    mean = mean_over_seeds(found)
    shortened = f" The networks learn from the last {given.recent} items of each history alone." if given.recent else ""
    about = (
        f"{given.dataset}: the last {k} items of {len(data.histories):,} users, who have {LEAST_HISTORY} or more "
        f"before them; {data.unknown:,} others, of whose futures training lacks an item, are left out.{shortened} "
        f"{given.seeds} seed{'s' * (given.seeds > 1)}, {given.samples} samples. Training and validation see "
        "no future; each network is that of its best epoch in validation, by NDCG of the next item."
    )
    results = {
        table: {row: {column: float(users.mean()) for column, users in of.items()} for row, of in rows.items()}
        for table, rows in mean.items()
    }
    common.publish(f"joint_{given.dataset}", "The next items together", results, page(mean, about), "joint")


if __name__ == "__main__":
    main()

"""Forms of one trained model measured on the same test users: ranks, lists, times, and what they differ in.

Shapes: B batch, R targets, U users, I items with padding row 0, k length of the lists, d hidden size.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from recbole_diffurec.experiments import stats
from recbole_diffurec.experiments.calibration import Answers
from recbole_diffurec.experiments.measures import RankCollector, gains
from recbole_diffurec.host.loaders import dataset_of, rows_loader
from recbole_diffurec.models.base import NotApplicable
from recbole_diffurec.training.report import plain_metrics
from recbole_diffurec.training.state import draws_of_its_own

logger = logging.getLogger("recbole_diffurec")

METRICS = ("hit", "ndcg")
# From a batch to scores of all items, [B, I].
Score = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Line:
    """One form of the model.

    Parameters
    ----------
    name : str
        In results.
    label : str
        In tables.
    make : callable
        Makes the form and gives its scores; raises ``NotApplicable`` where the model has no such form.
    """

    name: str
    label: str
    make: Callable[[], Score]


@dataclass(frozen=True)
class Measured:
    """What one form of the model does.

    Attributes
    ----------
    gains : dict of str to np.ndarray
        Hit and NDCG of each user, [U]; the mean over a user's targets.
    places : np.ndarray
        Where the target ranks among all items, from 1, float [U].
    lists : np.ndarray
        int [R, k], see ``RankCollector``.
    targets : np.ndarray
        int [R].
    metrics : dict of str to float
        The metrics of the checkpoint.
    ms_per_user : float
        Milliseconds of scoring, without ranking and metrics.
    answers : Answers or None
        The probabilities, where they were asked for.
    """

    gains: dict[str, np.ndarray]
    places: np.ndarray
    lists: np.ndarray
    targets: np.ndarray
    metrics: dict[str, float]
    ms_per_user: float
    answers: Answers | None


class TimedScores(nn.Module):
    """Any scores in place of a model, with the seconds that they take.

    Parameters
    ----------
    score : callable
        See ``Score``.
    device : torch.device
        Where they are computed.
    """

    def __init__(self, score: Score, device: torch.device):
        super().__init__()
        self.score, self.device, self.seconds = score, device, 0.0

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """The scores, [B, I]."""
        started = self._now()
        scores = self.score(interaction)
        self.seconds += self._now() - started
        return scores

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class PlaceCollector(RankCollector):
    """Beside ranks and lists where each target stands among all items, and probabilities where they are wanted.

    Parameters
    ----------
    k : int
        Length of the lists.
    user_field : str
        The column with the user's number.
    probabilities : bool
        Whether the softmax of the scores is looked at.
    """

    def __init__(self, k: int, user_field: str, probabilities: bool):
        super().__init__([k], user_field)
        self.probabilities = probabilities
        self._places: list[Tensor] = []
        self._answers: list[tuple[Tensor, ...]] = []

    def __call__(self, interaction: Any, scores: Tensor, positive_u: Tensor, positive_i: Tensor) -> None:
        super().__call__(interaction, scores, positive_u, positive_i)
        row, target = positive_u.to(scores.device), positive_i.to(scores.device).unsqueeze(1)
        of_target = scores[row].gather(1, target)
        self._places.append(((scores[row] > of_target).sum(dim=1) + 1).cpu())
        if self.probabilities:
            p = torch.softmax(scores, dim=1)[row]
            confidence, item = p.max(dim=1)
            found = (confidence, item == target.squeeze(1), p.gather(1, target).squeeze(1), p.square().sum(dim=1))
            self._answers.append(tuple(part.cpu() for part in found))

    @property
    def places(self) -> np.ndarray:
        """int [R], 1-based."""
        return torch.cat(self._places).numpy()

    @property
    def answers(self) -> Answers | None:
        """What the probabilities are, [R]; None where they are not wanted."""
        return Answers(*(torch.cat(part).numpy() for part in zip(*self._answers))) if self._answers else None


class Bench:
    """A place to measure forms of one model, all on the same users.

    Parameters
    ----------
    trainer : PluginTrainer
        Who evaluates.
    loader : object
        RecBole's, of the users.
    k : int
        Length of the lists.

    Attributes
    ----------
    user_of_row : np.ndarray
        int [R], of each target the place of its user among the users; known once something was measured.
    """

    def __init__(self, trainer: Any, loader: Any, k: int):
        self.trainer, self.loader, self.k = trainer, loader, k
        self.user_field: str = trainer.config["USER_ID_FIELD"]
        self.user_of_row: np.ndarray = np.zeros(0, dtype=int)

    def measure(self, score: Score, probabilities: bool = False) -> Measured:
        """Evaluate scores as a model's, by the protocol of the checkpoint.

        Parameters
        ----------
        score : callable
            See ``Score``.
        probabilities : bool, default False
            Whether to look at their softmax too.
        """
        model, timed = self.trainer.model, TimedScores(score, self.trainer.device)
        collector = PlaceCollector(self.k, self.user_field, probabilities)
        self.trainer.model = timed
        try:
            with self.trainer.telling(collector):
                metrics = plain_metrics(self.trainer.evaluate(self.loader, load_best_model=False))
        finally:
            self.trainer.model = model
        self.user_of_row = np.unique(collector.users, return_inverse=True)[1]
        of_user = functools.partial(mean_by, self.user_of_row)
        return Measured(
            {name: of_user(values) for name, values in gains(collector.ranks, self.k).items()},
            of_user(collector.places),
            collector.lists,
            collector.targets,
            metrics,
            1000 * timed.seconds / len(collector.ranks),
            collector.answers,
        )

    def measure_lines(self, lines: Iterable[Line]) -> tuple[dict[str, Measured], list[dict[str, Any]]]:
        """Lines that apply, measured, and of each in its order what is said of it: name and label, or why it is not.

        Parameters
        ----------
        lines : Iterable of Line
            The first is the model as trained.
        """
        found: dict[str, Measured] = {}
        told: list[dict[str, Any]] = []
        lines = list(lines)
        self._warm_up(lines[0].make())
        for number, line in enumerate(lines, start=1):
            said = {"name": line.name, "label": line.label}
            started = time.perf_counter()
            try:
                found[line.name] = self.measure(line.make())
            except NotApplicable as reason:
                said["not_applicable"] = str(reason)
                logger.info("%d/%d %s: not applicable, because %s", number, len(lines), line.label, reason)
            else:
                ndcg, seconds = found[line.name].gains["ndcg"].mean(), time.perf_counter() - started
                logger.info("%d/%d %s: NDCG@%d %.4f (%.1f s)", number, len(lines), line.label, self.k, ndcg, seconds)
            told.append(said)
        return found, told

    @torch.no_grad()
    def _warm_up(self, score: Score) -> None:
        """Score a batch without asking for the time: what the first one costs beside would be counted as its line's."""
        with draws_of_its_own(self.trainer.config["seed"]):
            score(next(iter(self.loader))[0].to(self.trainer.device))


def mean_by(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means of values [R] over the rows of each group, int [R] from 0: [U]."""
    return np.bincount(group, weights=values) / np.bincount(group)


def overlap(lists: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What share of the items of each list is in the other one, float [R]; 1 where there are none.

    Parameters
    ----------
    lists, others : np.ndarray
        int [R, k], each list without repeats; 0 where there are fewer items.
    """
    common = ((lists[:, :, None] == others[:, None, :]) & (lists > 0)[:, :, None]).sum(axis=(1, 2))
    longest = np.maximum((lists > 0).sum(axis=1), (others > 0).sum(axis=1))
    return np.where(longest > 0, common / np.maximum(longest, 1), 1.0)


def describe_line(measured: Measured) -> dict[str, Any]:
    """The figures of one line, as a result keeps them."""
    return {
        **{name: float(values.mean()) for name, values in measured.gains.items()},
        "metrics": measured.metrics,
        "ms_per_user": measured.ms_per_user,
    }


def compare_lines(found: dict[str, Measured], told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All lines with their figures; those that apply with what they differ in from the first, the model as trained.

    Parameters
    ----------
    found : dict of str to Measured
        By name.
    told : Sequence of dict
        From ``Bench.measure_lines``.

    Returns
    -------
    list of dict
        With ``overlap`` of the lists, and in ``difference`` for each metric the mean over users, its 95 % bootstrap
        interval, and p of a two-sided Wilcoxon test, raw and corrected for the number of lines.
    """
    base = found[told[0]["name"]]
    lines = []
    for said in told:
        if said["name"] not in found:
            lines.append(dict(said))
            continue
        own = found[said["name"]]
        line = {**said, **describe_line(own), "overlap": float(overlap(own.lists, base.lists).mean())}
        if own is not base:
            line["difference"] = {name: _difference(own.gains[name], base.gains[name]) for name in METRICS}
        lines.append(line)
    differing = [line["difference"] for line in lines if "difference" in line]
    for name in METRICS:
        corrected = stats.corrected(pd.Series([difference[name]["p"] for difference in differing], dtype=float))
        for difference, p in zip(differing, corrected):
            difference[name]["p_corrected"] = float(p)
    return lines


def _difference(own: np.ndarray, base: np.ndarray) -> dict[str, float]:
    low, high = stats.user_interval(own, base)
    p = stats.user_test(own, base, "two-sided")
    return {"mean": float((own - base).mean()), "low": low, "high": high, "p": p}


def sample_users(loader: Any, user_field: str, n_users: int | None, seed: int) -> tuple[Any, int]:
    """A loader of the rows of so many users, drawn by a seed, and how many there are in all.

    Parameters
    ----------
    loader : object
        RecBole's, for evaluation.
    user_field : str
        The column with the user's number.
    n_users : int or None
        How many; all where there are no more, or None.
    seed : int
        Of the draw.
    """
    user = np.asarray(dataset_of(loader).inter_feat[user_field])
    users = np.unique(user)
    if n_users is None or n_users >= len(users):
        return loader, len(users)
    drawn = np.random.default_rng(seed).choice(users, n_users, replace=False)
    return rows_loader(loader, np.flatnonzero(np.isin(user, drawn))), len(users)

"""Whether probabilities are what happens: reliability, Brier score, expected calibration error; and rank correlation.

Shapes: U users, K samples, n bins. An answer is a distribution over the items for each user, who has one target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

BINS = 10


@dataclass(frozen=True)
class Answers:
    """What is kept of distributions over the items.

    Attributes
    ----------
    confidence : np.ndarray
        Float [U], the largest probability.
    correct : np.ndarray
        Bool [U], whether its item is the target.
    of_target : np.ndarray
        Float [U], the target's probability.
    squares : np.ndarray
        Float [U], the sum of all squared probabilities.
    """

    confidence: np.ndarray
    correct: np.ndarray
    of_target: np.ndarray
    squares: np.ndarray


def frequencies(samples: np.ndarray, targets: np.ndarray) -> Answers:
    """How often each item was drawn, as a distribution.

    Parameters
    ----------
    samples : np.ndarray
        int [K, U], the item that each sample names.
    targets : np.ndarray
        int [U].
    """
    share = (samples[:, None] == samples[None, :]).mean(axis=0)  # [K, U], of the samples that name what this one does
    best = share.argmax(axis=0)
    mode = samples[best, np.arange(samples.shape[1])]
    return Answers(share.max(axis=0), mode == targets, (samples == targets).mean(axis=0), share.mean(axis=0))


def reliability(answers: Answers, n_bins: int = BINS) -> dict[str, list[float]]:
    """Users in ``n_bins`` equal intervals of the confidence (low, high], those without users left out.

    Returns
    -------
    dict of str to list
        Of each interval the number of ``users``, their mean ``confidence``, and ``accuracy``, the share of them whose
        most probable item is the target.
    """
    which = np.clip(np.ceil(answers.confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    users = np.bincount(which, minlength=n_bins)
    used = users > 0
    confidence, accuracy = (
        np.bincount(which, weights=values, minlength=n_bins)[used] / users[used]
        for values in (answers.confidence, answers.correct)
    )
    return {"users": users[used].tolist(), "confidence": confidence.tolist(), "accuracy": accuracy.tolist()}


def calibration_error(answers: Answers, n_bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): the users' mean distance of accuracy from confidence, by bin."""
    curve = reliability(answers, n_bins)
    distance = np.abs(np.array(curve["accuracy"]) - np.array(curve["confidence"]))
    return float(np.average(distance, weights=curve["users"]))


def brier_score(answers: Answers) -> float:
    """Mean over users of sum_i (p_i - [i is the target])^2 (Brier 1950): 0 for certain and right, 2 for wrong."""
    return float((answers.squares - 2 * answers.of_target + 1).mean())


def describe(answers: Answers) -> dict[str, Any]:
    """All of it, as a result keeps it."""
    return {
        "brier": brier_score(answers),
        "calibration_error": calibration_error(answers),
        "mean_confidence": float(answers.confidence.mean()),
        "accuracy": float(answers.correct.mean()),
        "reliability": reliability(answers),
    }


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """Spearman's rho of two figures of each user, and its two-sided p; None where one is the same for all.

    Parameters
    ----------
    x, y : np.ndarray
        [U].
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    found = stats.spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)

"""Significance of differences between a model and a baseline, over seeds and over users.

Comparisons ask one thing: is the model *better* than the baseline (one-sided)? ``p`` near 1 says that it is worse.
Audits ask whether the two differ at all. The p-values of one kind of test on one data set are corrected together
(Benjamini and Hochberg 1995).
"""

from __future__ import annotations

from typing import Mapping

import numpy as np
import pandas as pd
from scipy import stats

BOOTSTRAP_RESAMPLES = 2000


def seed_test(model: np.ndarray, baseline: np.ndarray) -> float:
    """p of the paired t-test over seeds (DiffuRecSys, Table 4); nan with fewer than two seeds.

    Parameters
    ----------
    model, baseline : np.ndarray
        [seeds], one metric, seed by seed.
    """
    difference = model - baseline
    if len(difference) < 2:
        return float("nan")
    if np.allclose(difference, difference[0], rtol=0, atol=1e-12):
        # No variance: scipy would divide by it.
        return 0.5 if abs(difference[0]) < 1e-12 else float(difference[0] < 0)
    return float(stats.ttest_rel(model, baseline, alternative="greater").pvalue)


def user_test(model: np.ndarray, baseline: np.ndarray, alternative: str = "greater") -> float:
    """p of Wilcoxon's signed-rank test over users; users with no difference say nothing. Works with one seed.

    Parameters
    ----------
    model, baseline : np.ndarray
        [users], one metric, user by user; means over seeds where there are several.
    alternative : str, default "greater"
        That the model is better, or "two-sided": that it differs.
    """
    if np.array_equal(model, baseline):
        return 0.5 if alternative == "greater" else 1.0
    return float(stats.wilcoxon(model, baseline, zero_method="wilcox", alternative=alternative).pvalue)


def user_interval(model: np.ndarray, baseline: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean difference over users, each user resampled with both models."""
    difference = model - baseline
    if np.ptp(difference) == 0:
        return float(difference[0]), float(difference[0])
    draw = np.random.default_rng(0)
    means = [difference[draw.integers(0, len(difference), len(difference))].mean() for _ in range(BOOTSTRAP_RESAMPLES)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def corrected(p: pd.Series) -> pd.Series:
    """p-values corrected for their number; missing ones stay missing and do not count."""
    given = p.notna()
    adjusted = p.copy()
    if given.any():
        adjusted[given] = stats.false_discovery_control(p[given])
    return adjusted


def compare_to(
    baseline: str, by_seed: Mapping[str, pd.Series], by_user: Mapping[str, pd.Series], metric: str
) -> pd.DataFrame:
    """Every model against ``baseline`` in one metric on one data set.

    Parameters
    ----------
    by_seed : Mapping of str to pd.Series
        {label: metric indexed by seed}.
    by_user : Mapping of str to pd.Series
        {label: metric indexed by user}.

    Returns
    -------
    pd.DataFrame
        One row per other label: difference of the means, p over seeds and users, raw and corrected, and the interval of
        the difference over users. Seeds or users that only one of the two has are left out.
    """
    rows = []
    for label in by_seed:
        if label == baseline:
            continue
        seeds = pd.concat([by_seed[label], by_seed[baseline]], axis=1, join="inner").to_numpy()
        users = pd.concat([by_user[label], by_user[baseline]], axis=1, join="inner").to_numpy()
        low, high = user_interval(users[:, 0], users[:, 1])
        rows.append(
            {
                "model": label,
                "baseline": baseline,
                "metric": metric,
                "seeds": len(seeds),
                "difference": float(by_seed[label].mean() - by_seed[baseline].mean()),
                "p_seeds": seed_test(seeds[:, 0], seeds[:, 1]),
                "users": len(users),
                "p_users": user_test(users[:, 0], users[:, 1]),
                "users_low": low,
                "users_high": high,
            }
        )
    table = pd.DataFrame(rows)
    for kind in ("seeds", "users"):
        if rows:
            table[f"p_{kind}_corrected"] = corrected(table[f"p_{kind}"])
    return table

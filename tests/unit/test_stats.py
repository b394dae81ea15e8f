"""Significance of differences: right direction, right pairs, corrected."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from recbole_diffurec.experiments import stats

DRAW = np.random.default_rng(5)
WORSE = DRAW.random(200) * (DRAW.random(200) < 0.3)
BETTER = WORSE + (DRAW.random(200) < 0.3) * DRAW.random(200)


def test_the_direction_is_that_the_model_is_better():
    assert stats.user_test(BETTER, WORSE) < 1e-6 < 0.999 < stats.user_test(WORSE, BETTER)
    up, down = np.array([0.3, 0.32, 0.31]), np.array([0.2, 0.21, 0.22])
    assert stats.seed_test(up, down) < 0.01 and stats.seed_test(down, up) > 0.99


def test_the_seed_test_is_the_paired_t_test_of_one_side():
    a, b = np.array([0.31, 0.33, 0.30, 0.35]), np.array([0.30, 0.30, 0.31, 0.32])
    t = (a - b).mean() / ((a - b).std(ddof=1) / 2)
    assert stats.seed_test(a, b) == pytest.approx(reference.t.sf(t, 3))


def test_nothing_to_tell_apart():
    assert np.isnan(stats.seed_test(np.array([0.1]), np.array([0.2])))
    assert stats.seed_test(np.array([0.1, 0.2]), np.array([0.1, 0.2])) == 0.5
    assert stats.user_test(WORSE, WORSE) == 0.5
    assert stats.user_interval(WORSE, WORSE) == (0, 0)


def test_the_interval_holds_the_mean_difference_and_shrinks_like_its_standard_error():
    low, high = stats.user_interval(BETTER, WORSE)
    difference = BETTER - WORSE
    assert 0 < low < difference.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * difference.std() / np.sqrt(len(difference)), rel=0.1)


def test_correction_leaves_out_what_is_missing():
    adjusted = stats.corrected(pd.Series([0.01, np.nan, 0.04]))
    assert adjusted.tolist()[::2] == pytest.approx([0.02, 0.04]) and np.isnan(adjusted[1])


def test_pairs_are_matched_by_seed_and_by_user_whatever_their_order():
    by_seed = {"a": pd.Series([0.3, 0.31, 0.9], [1, 2, 3]), "b": pd.Series([0.21, 0.2], [2, 1])}
    users = [f"u{i}" for i in range(200)]
    shuffled = pd.Series(WORSE, users).sample(frac=1, random_state=1)
    row = stats.compare_to("b", by_seed, {"a": pd.Series(BETTER, users), "b": shuffled}, "NDCG@10").iloc[0]
    assert row["seeds"] == 2 and row["users"] == 200
    assert row["p_users"] == pytest.approx(stats.user_test(BETTER, WORSE))
    # The differences by seed are .1 and .1: without matching they would be .09 and .11.
    assert row["p_seeds"] == 0

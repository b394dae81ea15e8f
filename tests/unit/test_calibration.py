"""Calibration measures: hand values, and what holds for any answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_diffurec.experiments import calibration
from recbole_diffurec.experiments.calibration import Answers

N_ITEMS = 6
ITEM = st.integers(0, N_ITEMS - 1)
# (samples of each user, target of each user)
DRAWN = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.tuples(st.lists(ITEM, min_size=k, max_size=k), ITEM), min_size=1, max_size=30)
)


def answers(dense: np.ndarray, targets: np.ndarray) -> Answers:
    """Distributions [U, I] as they are kept."""
    mine = dense[np.arange(len(targets)), targets]
    return Answers(dense.max(axis=1), dense.argmax(axis=1) == targets, mine, (dense**2).sum(axis=1))


def test_the_brier_score_of_what_is_known():
    certain = np.eye(4)[[0, 1]]
    assert calibration.brier_score(answers(certain, np.array([0, 1]))) == 0
    assert calibration.brier_score(answers(certain, np.array([1, 0]))) == 2
    assert calibration.brier_score(answers(np.full((3, 4), 0.25), np.arange(3))) == pytest.approx(0.75)


def test_the_calibration_error_by_hand():
    # Two bins: .55 and right in one of two; .95 and right in three of four.
    confidence = np.array([0.55, 0.55, 0.95, 0.95, 0.95, 0.95])
    correct = np.array([True, False, True, True, True, False])
    found = Answers(confidence, correct, confidence, confidence)
    curve = calibration.reliability(found)
    assert curve["users"] == [2, 4] and curve["accuracy"] == [0.5, 0.75]
    assert curve["confidence"] == pytest.approx([0.55, 0.95])
    assert calibration.calibration_error(found) == pytest.approx((2 * 0.05 + 4 * 0.2) / 6)


def test_an_answer_that_is_right_as_often_as_it_is_sure_is_calibrated():
    draw = np.random.default_rng(3)
    confidence = draw.uniform(0.1, 1, 40_000)
    sure = Answers(confidence, draw.random(40_000) < confidence, confidence, confidence)
    assert calibration.calibration_error(sure) < 0.01
    boasting = Answers(np.ones(40_000), sure.correct, confidence, confidence)
    assert calibration.calibration_error(boasting) == pytest.approx(1 - sure.correct.mean())


@given(DRAWN)
def test_frequencies_are_those_of_a_count(drawn):
    samples = np.array([own for own, _ in drawn]).T
    targets = np.array([target for _, target in drawn])
    dense = np.stack([np.bincount(own, minlength=N_ITEMS) / len(own) for own in samples.T])
    found, expected = calibration.frequencies(samples, targets), answers(dense, targets)
    for name in ("confidence", "of_target", "squares"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name))
    # Of items that were drawn equally often either may be named, and it is right with its own probability.
    assert (found.of_target[found.correct] == found.confidence[found.correct]).all()
    every = ((dense - np.eye(N_ITEMS)[targets]) ** 2).sum(axis=1)
    assert calibration.brier_score(found) == pytest.approx(every.mean())


@given(DRAWN, st.integers(1, 20))
def test_the_bins_part_the_users(drawn, n_bins):
    samples = np.array([own for own, _ in drawn]).T
    found = calibration.frequencies(samples, np.array([target for _, target in drawn]))
    curve = calibration.reliability(found, n_bins)
    assert sum(curve["users"]) == len(drawn) and min(curve["users"]) > 0
    for name, values in (("confidence", found.confidence), ("accuracy", found.correct)):
        assert np.average(curve[name], weights=curve["users"]) == pytest.approx(values.mean())
    error = calibration.calibration_error(found, n_bins)
    assert abs(found.confidence.mean() - found.correct.mean()) - 1e-12 <= error <= 1 + 1e-12
    assert 0 <= calibration.brier_score(found) <= 2


def test_rank_correlation_is_spearmans():
    x, y = np.array([10.0, 30.0, 20.0, 50.0, 40.0]), np.array([1.0, 2.0, 4.0, 5.0, 3.0])
    ranks = np.array([1, 3, 2, 5, 4])
    rho, p = calibration.rank_correlation(x, y)
    assert rho == pytest.approx(1 - 6 * ((ranks - y) ** 2).sum() / (5 * 24)) and 0 < p < 1
    assert calibration.rank_correlation(x, np.ones(5)) is None
    draw = np.random.default_rng(1)
    spread = draw.random(500)
    assert calibration.rank_correlation(spread, spread + draw.random(500))[1] < 1e-9
    assert calibration.rank_correlation(spread, draw.random(500))[1] > 0.01

"""Sampled candidates: by whom they are determined, and what is never among them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.candidates import Candidates


def uniform(n_items: int, seed: int = 0, phase: str = "test") -> Candidates:
    weights = np.ones(n_items)
    weights[0] = 0
    return Candidates(weights, seed, phase)


@settings(deadline=None)
@given(st.integers(2, 30), st.data())
def test_neither_padding_nor_what_is_excluded(n_items: int, data: st.DataObject) -> None:
    excluded = np.array(data.draw(st.lists(st.integers(1, n_items - 1), max_size=n_items)), dtype=np.int64)
    candidates = uniform(n_items)
    if len(set(excluded)) == n_items - 1:
        with pytest.raises(UserError, match="a user has seen every item, so that there is none to sample"):
            candidates.draw(candidates.generator(1), 5, excluded)
        return
    found = candidates.draw(candidates.generator(1), 50, excluded)
    assert len(found) == 50 and found.min() >= 1 and found.max() < n_items
    assert not set(found) & set(excluded.tolist())


def test_they_depend_on_seed_part_and_user_alone() -> None:
    nothing = np.zeros(0, dtype=np.int64)

    def drawn(seed: int, phase: str, user: int) -> list[int]:
        candidates = uniform(1000, seed, phase)
        return candidates.draw(candidates.generator(user), 20, nothing).tolist()

    np.random.seed(1)
    first = drawn(5, "test", 7)
    np.random.seed(2)
    assert drawn(5, "test", 7) == first
    assert first not in (drawn(6, "test", 7), drawn(5, "valid", 7), drawn(5, "test", 8))


@pytest.mark.parametrize("excluded", [[], [1], [1, 2]])
def test_they_are_as_frequent_as_their_weights(excluded: list[int]) -> None:
    weights = np.array([0.0, 6.0, 3.0, 1.0, 1.0])
    candidates = Candidates(weights, 0, "valid")
    n = 40_000
    found = candidates.draw(candidates.generator(0), n, np.array(excluded, dtype=np.int64))
    weights[excluded] = 0
    shares, expected = np.bincount(found, minlength=5) / n, weights / weights.sum()
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / n)


def test_they_are_found_where_nearly_all_is_excluded() -> None:
    candidates = uniform(100_000)
    found = candidates.draw(candidates.generator(0), 30, np.arange(1, 99_999))
    assert set(found) == {99_999}

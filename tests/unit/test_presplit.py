"""Rows of data that comes split: a user's earlier interactions, or the histories that are given."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recbole_diffurec.host.presplit import rows_of_interactions, rows_of_lists

Interaction = tuple[int, int, int]  # user, time, file


def expected_rows(interactions: list[Interaction], timed: bool) -> list[tuple[int, list[int]]]:
    """(target, history) of every row, as places in the files, found one by one."""
    rows = []
    for target, (user, _, file) in enumerate(interactions):
        mine = [place for place, (other, _, part) in enumerate(interactions) if other == user and part <= file]
        if timed:
            mine.sort(key=lambda place: interactions[place][1])  # stable
        history = mine[: mine.index(target)]
        if history:
            rows.append((target, history))
    return rows


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=12),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=6),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=6),
    st.booleans(),
)
def test_a_row_knows_what_came_before_in_its_own_file_and_earlier_ones(train, valid, test, timed) -> None:
    interactions = [(*row, file) for file, rows in enumerate((train, valid, test)) for row in rows]
    users, times, _ = np.array(interactions, dtype=np.int64).reshape(-1, 3).T
    sizes = [len(train), len(valid), len(test)]
    rows, places = rows_of_interactions(users, times.astype(float) if timed else None, sizes)
    found = [(int(places[target]), places[first:target].tolist()) for first, target in zip(rows.first, rows.target)]
    assert sorted(found) == sorted(expected_rows(interactions, timed))
    files = np.array([interactions[target][2] for target, _ in found], dtype=int)
    assert np.bincount(files, minlength=3).tolist() == rows.sizes and (np.diff(files) >= 0).all()


def test_given_histories_end_before_their_targets() -> None:
    lists = [np.array([3, 1, 4]), np.array([1]), np.array([5, 9])]
    rows, values = rows_of_lists(lists, np.array([2, 6, 5]), [1, 1, 1])
    assert [values[first:target].tolist() for first, target in zip(rows.first, rows.target)] == [[3, 1, 4], [1], [5, 9]]
    assert values[rows.target].tolist() == [2, 6, 5] and rows.sizes == [1, 1, 1]

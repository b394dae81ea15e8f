"""Training rows by their numbers: histories, and others with the same target."""

from __future__ import annotations

import time
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.data.rows import SameTarget, right_padded

# What happened, in order of user and time, and which of it are targets of training rows.
HAPPENED = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=40).filter(
    lambda happened: any(is_row for _, is_row in happened)
)


@settings(deadline=None)
@given(happened=HAPPENED, seed=st.integers(0, 10**6), data=st.data())
def test_a_drawn_row_has_the_target_and_is_another_one(happened, seed, data):
    items = torch.tensor([item for item, _ in happened])
    rows = torch.tensor([number for number, (_, is_row) in enumerate(happened) if is_row])
    rows = rows[data.draw(st.permutations(range(len(rows))))]
    torch.manual_seed(seed)
    drawn = SameTarget(rows, items)(rows)
    known = set(rows.tolist())
    for row, other in zip(rows.tolist(), drawn.tolist()):
        candidates = {r for r in known if items[r] == items[row]} - {row}
        assert other in (candidates or {row})


def test_all_others_are_drawn_equally_often():
    items = torch.tensor([3, 7, 3, 3, 7, 3, 3, 1])
    index = SameTarget(torch.arange(8), items)
    torch.manual_seed(0)
    drawn = index(torch.tensor([3]).expand(40_000))
    counts = Counter(drawn.tolist())
    assert set(counts) == {0, 2, 5, 6}
    for count in counts.values():
        assert count == pytest.approx(10_000, abs=5 * (40_000 * 0.25 * 0.75) ** 0.5)
    assert index(torch.tensor([1, 4, 7])).tolist() == [4, 1, 7]


def test_the_index_of_a_million_rows_is_small_and_quick():
    """As many as ml-1m has; comparing all pairs of them takes hours."""
    n = 1_000_000
    items = (3700 * torch.rand(n, generator=torch.Generator().manual_seed(0)).square()).long() + 1
    rows = torch.arange(n)
    started = time.process_time()
    index = SameTarget(rows, items)
    drawn = index(rows)
    assert time.process_time() - started < 2
    assert sum(buffer.nbytes for buffer in index.buffers()) < 50e6
    assert torch.equal(items[drawn], items) and (drawn != rows).float().mean() > 0.99


@settings(deadline=None)
@given(spans=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=9))
def test_stretches_are_padded_on_the_right(spans):
    values = torch.arange(100, 121)
    start = torch.tensor([min(first, 20 - length) for first, length in spans])
    end = start + torch.tensor([length for _, length in spans])
    padded = right_padded(values, start, end, 6)
    for row, first, last in zip(padded.tolist(), start.tolist(), end.tolist()):
        assert row == [*range(100 + first, 100 + last), *[0] * (6 - last + first)]

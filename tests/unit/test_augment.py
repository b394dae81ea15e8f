"""Changes of histories: what they may do to any history, whatever the draws."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.data import augment

WIDTH, TOKEN = 12, 99
LENGTHS = st.lists(st.integers(1, WIDTH), min_size=1, max_size=8)
RATE = st.floats(0, 1)
SEED = st.integers(0, 10**6)


def histories(lengths: list[int], seed: int):
    """Right-padded histories without repetitions, their lengths, and uniform draws for each and for their positions."""
    g = torch.Generator().manual_seed(seed)
    item_seq = torch.stack([torch.randperm(50, generator=g)[:WIDTH] + 1 for _ in lengths])
    length = torch.tensor(lengths)
    item_seq = item_seq * (torch.arange(WIDTH) < length.unsqueeze(1))
    where = torch.rand(len(lengths), generator=g, dtype=torch.float64)
    return item_seq, length, where, torch.rand(len(lengths), WIDTH, generator=g, dtype=torch.float64)


def rows(item_seq, length):
    return [row[:n].tolist() for row, n in zip(item_seq, length.tolist())]


@settings(deadline=None)
@given(lengths=LENGTHS, rate=RATE, seed=SEED)
def test_crop_keeps_a_stretch(lengths, rate, seed):
    item_seq, length, where, _ = histories(lengths, seed)
    before = item_seq.clone()
    cropped, kept = augment.crop(item_seq, length, rate, where)
    assert torch.equal(item_seq, before)
    assert kept.tolist() == [max(1, math.floor(n * rate)) for n in lengths]
    for whole, part, tail in zip(rows(item_seq, length), rows(cropped, kept), cropped.tolist()):
        start = whole.index(part[0])
        assert part == whole[start : start + len(part)]
        assert not any(tail[len(part) :])


@settings(deadline=None)
@given(lengths=LENGTHS, rate=RATE, seed=SEED)
def test_mask_hides_a_share(lengths, rate, seed):
    item_seq, length, _, keys = histories(lengths, seed)
    before = item_seq.clone()
    masked = augment.mask(item_seq, length, rate, keys, TOKEN)
    assert torch.equal(item_seq, before)
    hidden = masked == TOKEN
    assert hidden.sum(dim=1).tolist() == [math.floor(n * rate) for n in lengths]
    assert torch.equal(masked[~hidden], item_seq[~hidden])
    assert not (hidden & (item_seq == 0)).any(), "padding stays padding"


@settings(deadline=None)
@given(lengths=LENGTHS, rate=RATE, seed=SEED)
def test_reorder_permutes_a_stretch(lengths, rate, seed):
    item_seq, length, where, keys = histories(lengths, seed)
    before = item_seq.clone()
    reordered = augment.reorder(item_seq, length, rate, where, keys)
    assert torch.equal(item_seq, before)
    assert torch.equal(reordered == 0, item_seq == 0)
    for old, new in zip(rows(item_seq, length), rows(reordered, length)):
        moved = [place for place, (a, b) in enumerate(zip(old, new)) if a != b]
        assert sorted(old) == sorted(new)
        assert not moved or moved[-1] - moved[0] < math.floor(len(old) * rate)


def test_every_start_and_every_order_is_drawn_equally_often():
    n = 24_000
    item_seq, length = torch.tensor([[1, 2, 3, 4, 5]]).expand(n, 5), torch.full((n,), 5)
    g = torch.Generator().manual_seed(0)
    where = torch.rand(n, generator=g, dtype=torch.float64)
    keys = torch.rand(n, 5, generator=g, dtype=torch.float64)
    kept = augment.crop(item_seq, length, 0.6, where)[0][:, 0]
    masked = (augment.mask(item_seq, length, 0.3, keys, TOKEN) == TOKEN).int().argmax(dim=1)
    orders = augment.reorder(item_seq, length, 0.6, torch.zeros(n), keys)
    for drawn, n_outcomes in ((kept, 3), (masked, 5), (orders[:, 0] * 100 + orders[:, 1] * 10 + orders[:, 2], 6)):
        _, counts = drawn.unique(return_counts=True)
        assert len(counts) == n_outcomes
        expected = n / n_outcomes
        assert (counts - expected).abs().max() < 5 * expected**0.5

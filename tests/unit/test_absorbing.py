"""Absorbing diffusion: what is masked and how it is weighted, and the way back, on networks that are tables."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.diffusion.absorbing import MASK, draw, fill, group_sizes, mask_slots

PRESENT = st.lists(st.lists(st.booleans(), min_size=4, max_size=4).filter(any), min_size=1, max_size=8)


@settings(deadline=None)
@given(present=PRESENT, seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_some_of_the_known_slots_are_masked_and_no_other(present, seed, share):
    torch.manual_seed(seed)
    known = torch.tensor(present)
    masked, weight = mask_slots(known, share)
    assert not (masked & ~known).any() and masked.any(dim=1).all()
    torch.testing.assert_close(weight, 1 / masked.sum(dim=1))
    if share == 1:
        assert torch.equal(masked, known)


@pytest.mark.parametrize("m", [1, 3])
def test_weights_are_those_of_a_rate_that_is_drawn_uniformly(m):
    """Each set of masked slots counts what it does with t ~ U(0, 1) and weight 1 / t, by the integral over t."""
    torch.manual_seed(0)
    rows = 200_000
    masked, weight = mask_slots(torch.tensor([True] * m + [False]).expand(rows, m + 1))
    for pattern in itertools.product([False, True], repeat=m):
        n = sum(pattern)
        if n == 0:
            continue
        found = m * weight[(masked[:, :m] == torch.tensor(pattern)).all(dim=1)].sum() / rows
        # The integral of t^(n-1) (1-t)^(m-n).
        expected = math.gamma(n) * math.gamma(m - n + 1) / math.gamma(m + 1)
        assert float(found) == pytest.approx(expected, rel=0.02)


@given(n=st.integers(1, 12), steps=st.integers(1, 12))
def test_every_slot_is_filled_once_and_steps_are_even(n, steps):
    sizes = group_sizes(n, steps)
    assert sum(sizes) == n and len(sizes) == min(n, steps) and max(sizes) - min(sizes) <= 1


# Of two slots with items 1 and 2: the second is like the first with probability .9.
FIRST = torch.tensor([-torch.inf, math.log(0.7), math.log(0.3)])
SECOND = torch.tensor([[-torch.inf, math.log(0.66), math.log(0.34)]] * 3)
SECOND[1:, 1:] = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()


def table(slots: torch.Tensor, chosen: torch.Tensor | None) -> torch.Tensor:
    """The second slot knows the first; the first knows nothing."""
    log_p = torch.stack([FIRST.expand(len(slots), -1), SECOND[slots[:, 0]]], dim=1)
    return log_p if chosen is None else log_p.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 3))


def log_probability(lists: torch.Tensor, steps: int, priority: torch.Tensor | None) -> torch.Tensor:
    def given(slot: torch.Tensor, log_p: torch.Tensor, filled: torch.Tensor) -> torch.Tensor:
        return lists.gather(1, slot.unsqueeze(1)).squeeze(1)

    found = fill(torch.full_like(lists, MASK), group_sizes(lists.shape[1], steps), table, given, priority)
    assert torch.equal(found.slots, lists)
    return found.log_probability


def test_steps_give_the_chain_rule_and_one_step_the_marginals():
    lists = torch.tensor([[1, 1], [1, 2], [2, 1], [2, 2]])
    left = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    chain = [0.7 * 0.9, 0.7 * 0.1, 0.3 * 0.1, 0.3 * 0.9]
    marginals = [0.7 * 0.66, 0.7 * 0.34, 0.3 * 0.66, 0.3 * 0.34]
    torch.testing.assert_close(log_probability(lists, 2, left).exp(), torch.tensor(chain))
    torch.testing.assert_close(log_probability(lists, 1, left).exp(), torch.tensor(marginals))
    # The first slot, of .7, is surer than the second with .66.
    torch.testing.assert_close(log_probability(lists, 2, None).exp(), torch.tensor(chain))
    torch.testing.assert_close(log_probability(lists, 2, -left).exp(), torch.tensor(marginals))


def test_draws_have_the_tempered_probabilities_and_nothing_impossible():
    p = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for temperature in (1.0, 0.5):
        drawn = draw(p.log().expand(10_000, 5), temperature, uniform)
        share = torch.bincount(drawn, minlength=5) / 10_000
        tempered = p ** (1 / temperature)
        torch.testing.assert_close(share, tempered / tempered.sum(), rtol=0, atol=2e-4)
    assert draw(p.log().expand(10_000, 5), 0.0, uniform).unique().tolist() == [1]
    for temperature in (0.0, 1.0):
        assert draw(torch.full((2, 5), -torch.inf), temperature, uniform[-2:]).tolist() == [MASK, MASK]

"""What a comparison measures of ranks, lists and users."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_diffurec.experiments import measures


def test_ranks_and_exposure_of_scores():
    scores = torch.tensor([[-np.inf, 4.0, 3.0, 2.0, 1.0], [-np.inf, 1.0, 2.0, 3.0, 4.0], [-np.inf, 9.0, 1.0, 5.0, 4.0]])
    collector = measures.RankCollector([1, 3], 5, "user_id")
    users = Interaction({"user_id": torch.tensor([7, 8, 9])})
    collector(users, scores, torch.arange(3), torch.tensor([2, 4, 2]))
    assert collector.users.tolist() == [7, 8, 9] and collector.targets.tolist() == [2, 4, 2]
    assert collector.ranks.tolist() == [2, 1, 0]
    assert collector.exposure[1].tolist() == [0, 2, 0, 0, 1]
    assert collector.exposure[3].sum() == 9 and collector.exposure[3][0] == 0


def test_gains_are_those_of_the_textbook():
    gains = measures.gains(np.array([1, 2, 10, 11, 0]), 10)
    assert gains["hit"].tolist() == [1, 1, 1, 0, 0]
    np.testing.assert_allclose(gains["ndcg"], [1, 1 / np.log2(3), 1 / np.log2(11), 0, 0])


def test_the_head_is_a_fifth_of_the_items_without_padding():
    head = measures.head_items(np.array([99, 1, 5, 5, 2, 7, 0, 0, 1, 1, 1]))
    assert head.tolist() == [False, False, True, False, False, True] + [False] * 5


@pytest.mark.parametrize("exposure,expected", [([3, 3, 3, 3], 0.0), ([0, 0, 0, 8], 0.75), ([0, 0], 0.0)])
def test_gini(exposure, expected):
    assert measures.gini(np.array(exposure)) == pytest.approx(expected)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_gini_equals_its_definition_by_mean_differences(exposure):
    x = np.array(exposure, dtype=float)
    if x.sum():
        expected = np.abs(x[:, None] - x).mean() / (2 * x.mean())
        assert measures.gini(x) == pytest.approx(expected, abs=1e-12)


def test_list_measures():
    found = measures.list_measures(np.array([0, 6, 2, 0, 0, 0]), np.array([0, 10, 4, 3, 2, 1]))
    assert found["coverage"] == pytest.approx(0.4) and found["average_popularity"] == pytest.approx(68 / 8)
    assert found["tail_share"] == pytest.approx(0.25)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=200))
def test_length_groups_part_the_users_in_order(lengths):
    lengths = np.array(lengths)
    groups = measures.length_groups(lengths)
    assert 1 <= len(groups) <= 5
    assert (sum(members.astype(int) for _, members in groups) == 1).all()
    tops = [lengths[members].max() for _, members in groups]
    bottoms = [lengths[members].min() for _, members in groups]
    assert all(top < bottom for top, bottom in zip(tops, bottoms[1:]))


def test_relative_spread():
    spread = np.zeros((2, 2, 1))
    spread[0, :, 0], spread[1, :, 0] = [-1.1, -0.9], [0.9, 1.1]
    assert measures.relative_spread(spread) == pytest.approx(0.1)

"""What a comparison measures of ranks, lists and users."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_diffurec.experiments import measures
from recbole_diffurec.host.metrics import list_metrics


def test_ranks_and_lists_of_scores():
    scores = torch.tensor([[-np.inf, 4.0, 3.0, 2.0, 1.0], [-np.inf, 1.0, 2.0, 3.0, 4.0], [-np.inf, 9.0, 1.0, 5.0, 4.0]])
    scores[1, :3] = -np.inf
    collector = measures.RankCollector([1, 3], "user_id")
    users = Interaction({"user_id": torch.tensor([7, 8, 9])})
    collector(users, scores, torch.arange(3), torch.tensor([2, 4, 2]))
    assert collector.users.tolist() == [7, 8, 9] and collector.targets.tolist() == [2, 4, 2]
    assert collector.ranks.tolist() == [2, 1, 0]
    assert collector.lists.tolist() == [[1, 2, 3], [4, 3, 0], [1, 3, 4]]  # of user 8 two items can be recommended


def test_targets_of_one_user_share_a_row_of_scores():
    collector = measures.RankCollector([3], "user_id")
    scores = torch.tensor([[-np.inf, 4.0, 3.0, 2.0, 1.0], [-np.inf, 1.0, 2.0, 3.0, 4.0]])
    users = Interaction({"user_id": torch.tensor([7, 7, 8])})
    collector(users, scores, torch.tensor([0, 0, 1]), torch.tensor([2, 4, 4]))
    assert collector.ranks.tolist() == [2, 0, 1] and collector.lists.tolist() == [[1, 2, 3], [1, 2, 3], [4, 3, 2]]


def test_gains_are_those_of_the_textbook():
    gains = measures.gains(np.array([1, 2, 10, 11, 0]), 10)
    assert gains["hit"].tolist() == [1, 1, 1, 0, 0]
    np.testing.assert_allclose(gains["ndcg"], [1, 1 / np.log2(3), 1 / np.log2(11), 0, 0])


def test_the_head_is_a_fifth_of_the_items_without_padding():
    head = measures.head_items(np.array([99, 1, 5, 5, 2, 7, 0, 0, 1, 1, 1]))
    assert head.tolist() == [False, False, True, False, False, True] + [False] * 5


def test_list_measures_are_the_metrics_of_a_run():
    lists, popularity = np.array([[1, 2], [1, 0]]), np.array([0, 10, 4, 3, 2, 1])
    found, metrics = measures.list_measures(lists, popularity, 0.8), list_metrics(lists, popularity, 0.8)
    assert sorted(found.values()) == sorted(metrics.values())
    assert found["tail_share"] == metrics["tailpercentage"] == 0.25


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

"""Several trained models as one."""

from __future__ import annotations

import math
from typing import Any, Sequence

from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor, nn

from recbole_diffurec.models.scores import log_mean_softmax


def ranks_all_items(network: AbstractRecommender) -> bool:
    """Whether a model scores all items at once, which an ensemble asks of its members."""
    return type(network).full_sort_predict is not AbstractRecommender.full_sort_predict


class Ensemble(nn.Module):
    """Recommends by the mean over models of the softmax of their scores, as Algorithm 3 does over noise seeds.

    Parameters
    ----------
    members : Sequence of object
        RecBole models over the same items, I with the padding row 0, that score all of them at once.
    """

    def __init__(self, members: Sequence[Any]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """``log_mean_softmax`` of the members, [B, I]; minus infinity for the padding row."""
        return log_mean_softmax(self._scores(member, interaction) for member in self.members)

    @staticmethod
    def _scores(member: Any, interaction: Any) -> Tensor:
        scores = member.full_sort_predict(interaction).view(-1, member.n_items)
        scores[:, 0] = -math.inf
        return scores

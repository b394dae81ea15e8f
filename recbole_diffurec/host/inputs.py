"""What models that reconstruct their input are given of each user: RecBole's ``AutoEncoderMixin``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from recbole.data.interaction import cat_interactions
from recbole.model.abstract_recommender import AutoEncoderMixin

from recbole_diffurec.host.loaders import dataset_of


def reconstructs(model: type) -> bool:
    """Whether a model's scores are a reconstruction of the user's items, so that these come out on top."""
    return issubclass(model, AutoEncoderMixin)


@contextlib.contextmanager
def inputs_of_test(network: Any, loaders: Sequence[Any], with_validation: bool) -> Iterator[None]:
    """Let a network that was built with the training part have its input for the test.

    Parameters
    ----------
    network : AbstractRecommender
        The model.
    loaders : Sequence of object
        Of the training and the validation part, at least.
    with_validation : bool
        Whether the items of the validation part are in the input as well, as they are in a sequential model's history.
    """
    if not with_validation:
        yield
        return
    training, validation = map(dataset_of, loaders[:2])
    before = network.history_item_id, network.history_item_value
    # RecBole's own method, so that weights by time are those of the longer history.
    network.build_histroy_items(training.copy(cat_interactions([training.inter_feat, validation.inter_feat])))
    try:
        yield
    finally:
        network.history_item_id, network.history_item_value = before

"""MFGAN with a column of the items' file: trained, tested again, and recommending from its checkpoint alone."""

from __future__ import annotations

import pytest
from conftest import TINY

import recbole_diffurec
from recbole_diffurec import Recommender, UserError, evaluate


def test_a_column_of_the_items_is_a_factor(workdir):
    settings = {**TINY, "epochs": 2, "pretrain_epochs": 1}
    plain = recbole_diffurec.run("MFGAN", **settings)
    result = recbole_diffurec.run("MFGAN", **settings, category_field="class")
    losses = [epoch["train_loss"] for epoch in (plain["history"][0], result["history"][0])]
    assert losses[1] > losses[0] + 0.4  # a discriminator more, whose cross-entropy begins at log 2
    assert evaluate(result["checkpoint"])["test_result"] == result["test_result"]
    recommender = Recommender.load(result["checkpoint"])
    assert not len(recommender.network.discriminators)
    assert len(recommender.recommend([["50", "181"]], k=5)) == 5


def test_a_column_that_is_not_there_is_named(workdir):
    with pytest.raises(UserError, match="category_field is 'genre', and data set 'ml-100k' has no file of items with"):
        recbole_diffurec.run("MFGAN", **TINY, category_field="genre")

"""Batches of RecBole's loaders: by length in training, from long to short in evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.training.prepare import PreparedData, build


def test_a_loader_of_recbole_draws_by_length():
    parameters = {"gpu_id": "", "batch_by_length": True, "train_batch_size": 100, "MAX_ITEM_LIST_LENGTH": 50}
    data = PreparedData(RunConfig("SASRec", "ml-100k", parameters))
    widths, users = [], 0
    for batch in data.loaders[0]:
        assert batch["item_id_list"].shape[1] == batch["item_length"].max()
        widths.append(batch["item_id_list"].shape[1])
        users += len(batch)
    assert users == len(dataset_of(data.loaders[0]))
    assert len(set(widths)) > 10 and np.mean(widths) < 45  # random batches would all be 50 wide


@pytest.mark.parametrize(("model", "ordered"), [("SASRec", True), ("DiffuRecSys", True), ("FEARec", False)])
def test_evaluation_goes_from_long_to_short_where_batches_are_trimmed(model, ordered):
    """Every user comes once, and the metrics are those of any other order."""
    parameters = {"gpu_id": "", "MAX_ITEM_LIST_LENGTH": 40, "eval_batch_size": 100, "show_progress": False}
    config = RunConfig(model, "ml-100k", {**parameters, "user_inter_num_interval": "[5,50]"})
    data = PreparedData(config)
    _, trainer = build(config, dataset_of(data.loaders[0]))
    for loader in data.loaders[1:]:
        seen, widths = [], []
        for batch, *_ in loader:
            seen += batch["user_id"].tolist()
            widths.append(batch["item_id_list"].shape[1])
        assert sorted(seen) == sorted(dataset_of(loader).inter_feat["user_id"].tolist())
        assert (widths == sorted(widths, reverse=True) and widths[-1] < 30) if ordered else set(widths) == {40}
        found = trainer.evaluate(loader, load_best_model=False)
        loader.batch_sampler.sampler = range(len(seen))
        assert trainer.evaluate(loader, load_best_model=False) == pytest.approx(found, abs=2e-6)

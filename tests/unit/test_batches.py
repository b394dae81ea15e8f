"""Batches by length, and evaluation batches that fit into memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import batches
from recbole_diffurec.host.loaders import LengthGroupedSampler, fitting_users
from recbole_diffurec.training.run import PreparedData, build


@settings(deadline=None)
@given(n=st.integers(1, 400), batch_size=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_every_row_once_and_only_the_last_batch_small(n, batch_size, seed):
    lengths = torch.randint(1, 50, (n,), generator=torch.Generator().manual_seed(seed))
    sampler = LengthGroupedSampler(lengths, batch_size, torch.Generator().manual_seed(seed))
    assert len(sampler) == n
    first = list(sampler)
    assert sorted(first) == list(range(n))
    assert list(LengthGroupedSampler(lengths, batch_size, torch.Generator().manual_seed(seed))) == first


def test_lengths_of_a_batch_are_alike_and_epochs_differ():
    lengths = torch.randint(1, 50, (20_000,), generator=torch.Generator().manual_seed(0))
    sampler = LengthGroupedSampler(lengths, 100, torch.Generator().manual_seed(0))
    orders = [torch.tensor(list(sampler)) for _ in range(2)]
    assert (orders[0] != orders[1]).any()
    spread = torch.stack([lengths[batch].max() - lengths[batch].min() for batch in orders[0].split(100)])
    assert spread.float().mean() < 2  # of 48 in random batches
    assert lengths[orders[0][:100]].max() != lengths[orders[0][100:200]].max()  # not from short to long


def test_a_loader_of_recbole_draws_by_length():
    parameters = {"gpu_id": "", "batch_by_length": True, "train_batch_size": 100, "MAX_ITEM_LIST_LENGTH": 50}
    data = PreparedData(RunConfig("SASRec", "ml-100k", parameters))
    widths, users = [], 0
    for batch in data.loaders[0]:
        assert batch["item_id_list"].shape[1] == batch["item_length"].max()
        widths.append(batch["item_id_list"].shape[1])
        users += len(batch)
    assert users == len(data.loaders[0]._dataset)
    assert len(set(widths)) > 10 and np.mean(widths) < 45  # random batches would all be 50 wide


@pytest.mark.parametrize(("model", "ordered"), [("SASRec", True), ("DiffuRecSys", True), ("FEARec", False)])
def test_evaluation_goes_from_long_to_short_where_batches_are_trimmed(model, ordered):
    """Every user comes once, and the metrics are those of any other order."""
    parameters = {"gpu_id": "", "MAX_ITEM_LIST_LENGTH": 40, "eval_batch_size": 100, "show_progress": False}
    config = RunConfig(model, "ml-100k", {**parameters, "user_inter_num_interval": "[5,50]"})
    data = PreparedData(config)
    _, trainer = build(config, data.loaders[0]._dataset)
    for loader in data.loaders[1:]:
        seen, widths = [], []
        for batch, *_ in loader:
            seen += batch["user_id"].tolist()
            widths.append(batch["item_id_list"].shape[1])
        assert sorted(seen) == sorted(loader._dataset.inter_feat["user_id"].tolist())
        assert (widths == sorted(widths, reverse=True) and widths[-1] < 30) if ordered else set(widths) == {40}
        found = trainer.evaluate(loader, load_best_model=False)
        loader.batch_sampler.sampler = range(len(seen))
        assert trainer.evaluate(loader, load_best_model=False) == pytest.approx(found, abs=2e-6)


def test_evaluation_batch_fits_into_memory(monkeypatch):
    class Memory:
        available = 8 * 20 * 1000 * 50

    monkeypatch.setattr(batches.psutil, "virtual_memory", lambda: Memory)
    cpu = torch.device("cpu")
    assert fitting_users(512, 1000, cpu) == 50
    assert fitting_users(10, 1000, cpu) == 10
    assert fitting_users(512, 10**9, cpu) == 1

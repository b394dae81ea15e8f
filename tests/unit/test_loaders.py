"""Batches by length, and evaluation batches that fit into memory."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.host import loaders
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import LengthGroupedSampler, fitting_users
from recbole_diffurec.training.prepare import PreparedData


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


def test_evaluation_batch_fits_into_memory(monkeypatch):
    class Memory:
        available = 8 * 20 * 1000 * 50

    monkeypatch.setattr(loaders.psutil, "virtual_memory", lambda: Memory)
    cpu = torch.device("cpu")
    assert fitting_users(512, 1000, cpu) == 50
    assert fitting_users(10, 1000, cpu) == 10
    assert fitting_users(512, 10**9, cpu) == 1


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_preparing_leaves_the_configuration_as_it_is(model):
    """BPR's batches are counted in users times items by RecBole, which must not add up from one time to the next."""
    config = RunConfig(model, "ml-100k", {"gpu_id": ""})
    before = copy.deepcopy(config.final_config_dict)
    sizes = [[loader.batch_sampler.batch_size for loader in PreparedData(config).loaders[1:]] for _ in range(2)]
    assert config.final_config_dict == before
    assert sizes[0] == sizes[1]

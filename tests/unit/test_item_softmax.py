"""Chunked and sampled cross-entropy against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.layers import item_softmax
from recbole_diffurec.layers.item_softmax import ITEMS_MULTIPLE, LogitBias, SampledCrossEntropy, full_cross_entropy
from recbole_diffurec.models.scores import inner_products


def problem(n: int, n_items: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g, dtype=torch.float64, requires_grad=True)
    items = torch.randn(n_items, 5, generator=g, dtype=torch.float64, requires_grad=True)
    target = torch.randint(1, n_items, (n,), generator=g)
    return x, items, target, torch.rand(n, generator=g, dtype=torch.float64)


def some_additions(n: int, n_items: int, seed: int) -> LogitBias:
    """To items of which some are there twice, some the padding, some the target."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, 4, generator=g, dtype=torch.float64, requires_grad=True)
    return LogitBias(torch.randint(0, n_items, (n, 4), generator=g), scores)


def logits_with(x, items, added: LogitBias) -> torch.Tensor:
    logits = x @ items.T
    return torch.stack([row.index_add(0, i, s) for row, i, s in zip(logits, *added)])[:, 1:]


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 20), n_items=st.integers(2, 30), chunk=st.integers(1, 700), seed=st.integers(0, 10**6))
def test_chunks_give_the_loss_and_gradients_of_the_whole(n, n_items, chunk, seed):
    x, items, target, weight = problem(n, n_items, seed)
    expected = F.cross_entropy(x @ items[1:].T, target - 1, reduction="none")
    expected_gradients = torch.autograd.grad(3 * (weight * expected).sum(), (x, items))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_softmax, "CHUNK_LOGITS", {"cuda": chunk})
        patch.setattr(item_softmax, "CHUNK_ROWS", 1)
        loss, losses = full_cross_entropy(x, items, target, weight)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(loss, (weight * expected).sum())
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (x, items)), expected_gradients)
    assert (expected_gradients[1][0] == 0).all()


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 20), n_items=st.integers(2, 30), chunk=st.integers(1, 700), seed=st.integers(0, 10**6))
def test_additions_give_the_loss_and_gradients_of_the_sum(n, n_items, chunk, seed):
    x, items, target, weight = problem(n, n_items, seed)
    added = some_additions(n, n_items, seed)
    expected = F.cross_entropy(logits_with(x, items, added), target - 1, reduction="none")
    inputs = (x, items, added.scores)
    expected_gradients = torch.autograd.grad(3 * (weight * expected).sum(), inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_softmax, "CHUNK_LOGITS", {"cuda": chunk})
        patch.setattr(item_softmax, "CHUNK_ROWS", 1)
        loss, losses = full_cross_entropy(x, items, target, weight, added)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, inputs), expected_gradients)


def test_loss_without_gradients():
    x, items, target, weight = problem(4, 9, 0)
    with torch.no_grad():
        loss, _ = full_cross_entropy(x, items, target, weight)
    torch.testing.assert_close(loss, full_cross_entropy(x, items, target, weight)[0].detach())


@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
def test_draws_follow_the_stated_distribution(distribution):
    counts = torch.tensor([0, 3, 50, 3, 9])  # ranks: item 2, item 4, items 1 and 3
    sampler = SampledCrossEntropy(counts, 200_000, distribution)
    torch.manual_seed(0)
    frequency = torch.bincount(sampler.draw(), minlength=5) / 200_000
    p = [0.25] * 4 if distribution == "uniform" else [math.log((r + 2) / (r + 1)) / math.log(5) for r in (2, 0, 3, 1)]
    torch.testing.assert_close(frequency, torch.tensor([0.0, *p]), atol=5e-3, rtol=0)
    torch.testing.assert_close(sampler.log_expected[1:].exp() / 200_000, torch.tensor(p))


@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
def test_many_negatives_estimate_the_full_softmax(distribution):
    x, items, target, weight = problem(6, 40, 1)
    torch.manual_seed(0)
    sampler = SampledCrossEntropy(torch.arange(40), 200_000, distribution).double()
    loss, _ = sampler(x, items, target, weight)
    full = F.cross_entropy(x @ items[1:].T, target - 1, reduction="none")
    torch.testing.assert_close(loss, (weight * full).sum(), rtol=0.02, atol=0)
    added = some_additions(6, 40, 2)
    loss, _ = sampler(x, items, target, weight, added)
    full = F.cross_entropy(logits_with(x, items, added), target - 1, reduction="none")
    torch.testing.assert_close(loss, (weight * full).sum(), rtol=0.02, atol=0)


def test_a_drawn_target_does_not_compete_with_itself():
    x, items, target, weight = problem(3, 2, 0)  # one real item: every negative is the target
    loss, losses = SampledCrossEntropy(torch.tensor([0, 5]), 7, "uniform").double()(x, items, target, weight)
    assert loss == 0 and (losses == 0).all()


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 9), n_items=st.integers(2, 70), seed=st.integers(0, 10**6))
def test_scores_in_aligned_rows_are_the_products(rows, n_items, seed):
    x, items, _, _ = problem(rows, n_items, seed)
    expected = x @ items.T
    assert inner_products(x, items).requires_grad
    with torch.no_grad():
        found = inner_products(x, items)
        torch.testing.assert_close(found, expected.detach())
        assert found.shape == expected.shape and found.stride(0) % ITEMS_MULTIPLE == 0
        with torch.autocast("cpu", torch.bfloat16):
            assert inner_products(x.float(), items.float()).dtype == torch.bfloat16

"""STOSA: layouts, what its two variants see of a history, numerical edges, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.layers.ragged import RaggedBatch

LENGTHS = [1, 12, 5, 5, 7, 2]


def model_of(**parameters: Any) -> Any:
    torch.manual_seed(0)
    model = make_model("STOSA", **parameters)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def with_negatives(batch: Any) -> Any:
    batch["neg_item_id"] = batch["item_id"] % 30 + 1
    return batch


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9), stack_means=st.booleans())
def test_a_history_has_the_same_state_alone_as_in_any_batch(lengths, stack_means):
    model, batch = model_of(stack_means=stack_means), make_batch(lengths)
    states = model.represent(batch["item_id_list"], batch["item_length"])
    packed = RaggedBatch(batch["item_id_list"], batch["item_length"])
    every = model.encoded(model.embed(packed), packed, last_only=False)
    torch.testing.assert_close(packed.restore(every[packed.last]), states, rtol=1e-9, atol=1e-9)
    for row, length in enumerate(lengths):
        alone = model.represent(batch["item_id_list"][row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(alone[0], states[row], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stack_means", [True, False])
def test_what_a_state_knows_of_earlier_items(stack_means):
    """In the public code the covariance alone."""
    model = model_of(stack_means=stack_means)
    item_seq = torch.tensor([[3, 4, 5], [7, 8, 5]])
    mean, root = model.represent(item_seq, torch.tensor([3, 3])).chunk(2, dim=-1)
    assert torch.equal(mean[0], mean[1]) != stack_means
    assert not torch.isclose(root[0], root[1]).all()


@pytest.mark.parametrize("stack_means", [True, False])
def test_every_parameter_learns(stack_means):
    """Which several processes rely on."""
    model = model_of(stack_means=stack_means, pvn_weight=1.0).train()
    sum(model.calculate_loss(with_negatives(make_batch(LENGTHS)))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_covariances_of_zero_have_finite_gradients():
    model = model_of().float().train()
    with torch.no_grad():
        model.item_covariance.weight.fill_(-1000)  # where ELU + 1 is zero
    sum(model.calculate_loss(with_negatives(make_batch(LENGTHS)))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_autocast_leaves_distances_in_full_precision():
    model, batch = model_of().float(), make_batch(LENGTHS)
    exact = model.full_sort_predict(batch)[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        states = model.represent(batch["item_id_list"], batch["item_length"])
    assert states.dtype == torch.float32
    rounded = model.scores.logits(states, None)[:, 1:]
    assert 0 < float((rounded - exact).abs().max() / exact.abs().max()) < 0.02


def test_covariances_begin_near_one():
    model = make_model("STOSA", hidden_size=64)
    roots = model.distances.places()[1:, 64:]
    assert abs(float(roots.mean()) - 1) < 0.02
    assert not model.item_covariance.weight[0].any()


def test_cross_entropy_over_distances():
    model = model_of(loss_type="CE", pvn_weight=0)
    batch = make_batch(LENGTHS)
    expected = F.cross_entropy(model.full_sort_predict(batch)[:, 1:], batch["item_id"] - 1)
    torch.testing.assert_close(model.calculate_loss(batch), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_type": "CE"}, "pvn_weight 0.005 weighs a term between a target and its drawn negative, of which"),
        ({"sampled_softmax": 5}, "sampled_softmax stands for the cross-entropy over all items: give --loss_type=CE"),
        ({"train_neg_sample_args": None}, "train_neg_sample_args must say how STOSA's negatives are drawn, got None"),
        ({"pvn_weight": -1}, "pvn_weight must be a finite number of at least 0, got -1"),
        ({"stack_means": 1}, "stack_means must be True or False, got 1"),
        ({"hidden_act": "relu"}, "unknown parameter 'hidden_act' for model STOSA:"),
    ],
)
def test_what_does_not_act_or_fit_is_refused(values, message):
    with pytest.raises(UserError) as refusal:
        RunConfig("STOSA", "test", values)
    assert str(refusal.value).startswith(message)

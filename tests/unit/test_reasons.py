"""What the last position of a history attends to, by the weights of each kind of model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_batch, make_model

from recbole_diffurec.host.attention import HostAttention
from recbole_diffurec.inference.reasons import Reasons
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.models.last_attention import LastAttention

LENGTHS = [1, 2, 2, 5, 9, 12]


def by_hand(module: Any, states: torch.Tensor, last: int) -> torch.Tensor:
    """Softmax of q . k / sqrt(d / h) of one position over states [l, d], the mean over the heads."""
    n_heads = getattr(module, "n_heads", None) or module.num_attention_heads
    q = module.query(states[last]).view(n_heads, -1)
    k = module.key(states).view(len(states), n_heads, -1)
    return (torch.einsum("hd,lhd->hl", q, k) / q.shape[1] ** 0.5).softmax(dim=1).mean(dim=0)


@torch.no_grad()
def test_weights_are_those_of_the_last_block() -> None:
    model, batch = make_model("CausalRec"), make_batch(LENGTHS)
    found = LastAttention(model).of(batch)
    first, last = model.encoder.blocks
    for row, length in enumerate(LENGTHS):
        one = RaggedBatch(batch["item_id_list"][row : row + 1], torch.tensor([length]))
        states = last.attention_norm(first(model.embed(one), None, one, False))
        torch.testing.assert_close(found[row, :length].double(), by_hand(last.attention, states, -1), atol=1e-6, rtol=0)
        assert (found[row, length:] == 0).all()


# Whether what is predicted stands beside the history, and attends to itself as well.
WITH_TARGET = {
    "DiffuRec": False, "DiffuRecSys": False, "DiffRecDNR": True, "MaskedDiffRec": True, "CL4SRec": False,
    "DuoRec": False, "VSAN": False, "MFGAN": False, "CausalRec": False, "STOSA": False,
}  # fmt: skip
# What else wants training data.
OPTIONS: dict[str, dict[str, Any]] = {"DuoRec": {"contrast": "un"}, "MFGAN": {"n_discriminator_layers": 0}}


@pytest.mark.parametrize("name", WITH_TARGET)
def test_every_row_is_of_its_own_history(name: str) -> None:
    attention, batch = LastAttention(make_model(name, **OPTIONS.get(name, {}))), make_batch(LENGTHS)
    together = attention.of(batch)
    assert together.shape == (len(LENGTHS), 12)
    sums = together.sum(dim=1)
    assert (sums < 1).all() if WITH_TARGET[name] else torch.allclose(sums, torch.ones_like(sums))
    for row in range(len(LENGTHS)):
        torch.testing.assert_close(attention.of(batch[[row]])[0], together[row], atol=1e-6, rtol=0)


def test_the_model_itself_is_not_observed() -> None:
    model = make_model("DiffuRec")
    LastAttention(model).of(make_batch([3]))
    assert all(module.observer is None for module in model.modules() if hasattr(module, "observer"))


def test_under_bf16_the_copy_of_the_network_is_observed() -> None:
    attention = LastAttention(make_model("DiffuRec", enable_amp=True).float())
    assert attention.of(make_batch([3, 4])).sum().item() == pytest.approx(2, abs=0.02)


def test_where_no_last_position_attends_there_are_no_weights() -> None:
    assert LastAttention(make_model("ACVAE")).of(make_batch([3, 4])) is None


@torch.no_grad()
def test_recboles_sasrec() -> None:
    model, batch = make_model("SASRec", n_layers=1, inner_size=16), make_batch(LENGTHS)
    found = HostAttention(model).of(batch)
    for row, length in enumerate(LENGTHS):
        items = batch["item_id_list"][row, :length]
        states = model.LayerNorm(model.item_embedding(items) + model.position_embedding.weight[:length])
        expected = by_hand(model.trm_encoder.layer[0].multi_head_attention, states, -1)
        torch.testing.assert_close(found[row, :length], expected)
        assert (found[row, length:] == 0).all()


@torch.no_grad()
def test_recboles_bert4rec_whose_mask_stands_behind_the_history() -> None:
    model, batch = make_model("BERT4Rec", n_layers=1, inner_size=16), make_batch(LENGTHS)
    found = HostAttention(model).of(batch)
    for row, length in enumerate(LENGTHS):
        items = torch.cat([batch["item_id_list"][row, 1:length], torch.tensor([model.mask_token])])
        states = model.LayerNorm(model.item_embedding(items) + model.position_embedding.weight[:length])
        expected = by_hand(model.trm_encoder.layer[0].multi_head_attention, states, -1)
        torch.testing.assert_close(found[row, 1:length], expected[:-1])
        assert found[row, 0] == 0


def test_an_item_that_comes_twice_has_both_weights() -> None:
    model = make_model("CausalRec")
    batch = make_batch([5])

    def interaction_of(histories: list[list[int]]) -> Any:
        batch["item_id_list"][0, :5] = torch.tensor([[7, 8, 7, 9, 7]])
        return batch

    weights = LastAttention(model).of(interaction_of([]))[0]
    sums = {7: weights[[0, 2, 4]].sum(), 8: weights[1], 9: weights[3]}
    named = Reasons(model, "CausalRec", 31, interaction_of).of(
        [[7, 8, 7, 9, 7], []], np.array([0, 1, 0]), [3, 4, 5], 2, 8
    )
    expected = sorted(sums, key=lambda item: -sums[item])[:2]
    assert named == [expected, [], expected]


def test_a_recurrent_model_has_the_nearest() -> None:
    model = make_model("GRU4Rec")
    reasons = Reasons(model, "GRU4Rec", 31, lambda histories: make_batch([1]))
    vectors = torch.nn.functional.normalize(model.item_embedding.weight.float(), dim=1)
    nearest = max([4, 9, 12], key=lambda item: (vectors[item] @ vectors[20]).item())
    assert reasons.of([[4, 9, 12]], np.array([0]), [20], 1, 8) == [[nearest]]

"""Sequential models on the common base: causal encoders, DuoRec, CL4SRec."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import FakeDataset, make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.layers.blocks import ACTIVATIONS
from recbole_diffurec.layers.ragged import PaddedBatch, RaggedBatch
from recbole_diffurec.models.sequential import SequentialModel

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=9)
OPTIONS: list[dict[str, Any]] = [{}, {"cosine_temperature": 0.2, "repeat_bias": True}]


class PreNorm(SequentialModel):
    """The base with the other kind of block."""

    norm = "pre"


class Settings(dict):
    """As much of a configuration as the base asks for; what is not there is None."""

    def __missing__(self, key: str) -> None:
        return None


def base_model(cls: type[SequentialModel], **parameters: Any) -> SequentialModel:
    fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_"}
    sizes = {"hidden_size": 16, "n_layers": 2, "n_heads": 4, "inner_size": 24, "hidden_act": "gelu_erf"}
    other = {"MAX_ITEM_LIST_LENGTH": 12, "ITEM_LIST_LENGTH_FIELD": "item_length", "device": "cpu"}
    rates = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "initializer_range": 0.3}
    torch.manual_seed(0)
    model = cls(Settings({**fields, **sizes, **other, **rates, **parameters}), FakeDataset(31)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def padded_states(model: SequentialModel, item_seq: torch.Tensor) -> torch.Tensor:
    """States of all positions, [B, L, d]: every history at the full length, every position through every layer."""
    n, length = item_seq.shape
    x = model.item_embedding.weight[item_seq] + model.position_embedding.weight[:length]
    x = model.input_norm(x)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    for block in model.encoder.blocks:
        attention = block.attention

        def attend(states: torch.Tensor, attention: Any = attention) -> torch.Tensor:
            q, k, v = (
                layer(states).view(n, length, attention.n_heads, -1).transpose(1, 2)
                for layer in (attention.query, attention.key, attention.value)
            )
            scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~visible, float("-inf"))
            return attention.output((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, length, -1))

        if model.norm == "pre":
            x = x + attend(block.attention_norm(x))
            x = x + block.ffn(block.ffn_norm(x))
        else:
            x = block.attention_norm(x + attend(x))
            x = block.ffn_norm(x + block.ffn(x))
    if model.norm == "post":
        return x
    return F.layer_norm(x, x.shape[-1:], model.encoder.output_norm.weight, model.encoder.output_norm.bias, 1e-12)


@pytest.mark.parametrize("cls", [SequentialModel, PreNorm])
@settings(deadline=None, max_examples=15)
@given(lengths=LENGTHS, seed=st.integers(0, 999))
def test_packed_states_and_gradients_equal_the_padded_ones(cls, lengths, seed):
    model, batch = base_model(cls), make_batch(lengths, seed=seed)
    item_seq, length = batch["item_id_list"], batch["item_length"]
    every_position = padded_states(model, item_seq)
    expected = every_position[torch.arange(len(lengths)), length - 1]
    actual = model.represent(item_seq, length)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    gradients = [
        torch.autograd.grad(states.square().sum(), model.item_embedding.weight) for states in (actual, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)

    packed = RaggedBatch(item_seq, length)
    states = model.encoder(model.embed(packed), packed, last_only=False)
    real = slice(None) if packed.real is None else packed.real
    place = (length[packed.row] - 1 - packed.age)[real]
    assert torch.equal(packed.position[real], place)
    torch.testing.assert_close(states[real], every_position[packed.row[real], place], rtol=1e-9, atol=1e-9)

    padded = PaddedBatch(item_seq)
    torch.testing.assert_close(model.encode(model.embed(padded), padded), expected, rtol=1e-9, atol=1e-9)


def test_gelu_erf_is_the_exact_one():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS["gelu_erf"]()(x), x * (1 + torch.erf(x / 2**0.5)) / 2)


def test_checkpointing_changes_nothing_but_memory():
    batch = make_batch([1, 12, 5, 5, 7, 2])
    results = []
    for checkpointing in (False, True):
        model = base_model(SequentialModel, gradient_checkpointing=checkpointing).train()
        loss = model.calculate_loss(batch)
        results.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("options", OPTIONS)
def test_loss_and_scores_fit_together(options):
    model, batch = base_model(SequentialModel, **options), make_batch([3, 12, 1, 6, 6])
    scores = model.full_sort_predict(batch)
    assert scores[:, 0].isneginf().all()
    torch.testing.assert_close(model.predict(batch), scores.gather(1, batch["item_id"].unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(model.calculate_loss(batch), F.cross_entropy(scores[:, 1:], batch["item_id"] - 1))


@pytest.mark.parametrize("different", [True, False])
def test_cl4srec_draws_its_operators(different):
    """Rates at which each operator leaves a mark of its own on a history of ten different items."""
    model = make_model(
        "CL4SRec", n_items=11, different_operators=different, crop_rate=0.5, mask_rate=0.5, reorder_rate=1.0
    )
    item_seq = F.pad(torch.arange(1, 11), (0, 2)).expand(3000, 12)
    lengths = torch.full((3000,), 10)
    torch.manual_seed(0)
    operators = []
    for seq, length in model.views(item_seq, lengths):
        operators.append(torch.where(length == 5, 0, torch.where((seq == 11).any(dim=1), 1, 2)))
    pairs, counts = (3 * operators[0] + operators[1]).unique(return_counts=True)
    expected = 6 if different else 9
    assert len(pairs) == expected and (pairs % 4 != 0).all() == different
    assert (counts - 3000 / expected).abs().max() < 5 * (3000 / expected) ** 0.5


def test_the_hidden_item_has_a_vector_and_no_score():
    model = make_model("CL4SRec")
    hidden = torch.tensor([[5, 31, 7]])
    state = model.represent(hidden, torch.tensor([3]))
    (gradient,) = torch.autograd.grad(state.square().sum(), model.mask_vector)
    assert gradient.abs().sum() > 0
    assert model.full_sort_predict(make_batch([3, 1])).shape == (2, 31)


def test_one_item_has_two_equal_views():
    model = make_model("CL4SRec")
    item_seq, lengths = torch.tensor([[4, 0, 0]]).expand(50, 3), torch.ones(50, dtype=torch.long)
    for seq, length in model.views(item_seq, lengths):
        assert torch.equal(seq, item_seq) and torch.equal(length, lengths)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("DuoRec", {"tau": 0}, "tau must be a finite number above 0, got 0"),
        ("DuoRec", {"contrast": "x"}, "contrast must be one of un, su, us, us_x, got 'x'"),
        ("DuoRec", {"sim": "l2"}, "sim must be one of dot, cos, got 'l2'"),
        ("DuoRec", {"lmd_sem": -1}, "lmd_sem must be a finite number of at least 0, got -1"),
        ("CL4SRec", {"train_batch_size": 1}, "train_batch_size must be an integer of at least 2, got 1"),
        ("CL4SRec", {"crop_rate": 0}, "crop_rate must be a number in (0, 1], got 0"),
        ("CL4SRec", {"mask_rate": 1.5}, "mask_rate must be a number in [0, 1], got 1.5"),
    ],
)
def test_wrong_values_are_refused(name, values, message):
    with pytest.raises(UserError) as refusal:
        RunConfig(name, "test", values)
    assert str(refusal.value) == message

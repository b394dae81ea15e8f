"""MaskedDiffRec: what its slots see, how likely it holds lists, and that steps pay where items depend on each other."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_batch, make_model
from recbole.data.interaction import Interaction

from recbole_diffurec.data.rows import ROW, FollowingItems
from recbole_diffurec.diffusion.absorbing import MASK, ORDERS
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.layers.ragged import LedBatch, PaddedBatch, RaggedBatch

LENGTHS = [1, 12, 5, 5, 7, 2]
GUIDED: dict[str, Any] = {"guidance": 1.5, "repeat_bias": True, "cosine_temperature": 0.5}


def model_with_opinions(n_items: int = 31, **parameters: Any):
    """A small model whose distributions are far from uniform."""
    model = make_model("MaskedDiffRec", n_items, **{"n_slots": 3, **parameters})
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        model.item_embedding.weight[0] = 0
    return model


def slot_states(model, batch, slots: torch.Tensor) -> torch.Tensor:
    ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])
    return model.slot_states(ragged, model.embed(ragged), slots)


# Slots


def test_all_slots_masked_are_the_ordinary_classifier():
    model, batch = model_with_opinions(), make_batch(LENGTHS)
    states = slot_states(model, batch, torch.full((len(LENGTHS), 3), MASK))
    torch.testing.assert_close(states[:, 0], model.represent(batch["item_id_list"], batch["item_length"]))
    first = torch.stack([model.log_probability(batch, torch.full((len(LENGTHS), 1), i)) for i in range(1, 31)], dim=1)
    torch.testing.assert_close(first, model.full_sort_predict(batch)[:, 1:].log_softmax(dim=-1))


def test_a_slot_sees_the_history_and_all_filled_slots_on_both_sides():
    model, batch = model_with_opinions(), make_batch(LENGTHS)
    slots = torch.tensor([[MASK, 4, MASK]]).expand(len(LENGTHS), 3)
    states = slot_states(model, batch, slots)
    other = slot_states(model, batch, torch.tensor([[MASK, 9, MASK]]).expand(len(LENGTHS), 3))
    assert ((states - other).abs().amax(dim=-1)[:, [0, 2]] > 1e-3).all()
    batch["item_id_list"][:, 0] = 1 + batch["item_id_list"][:, 0] % 30
    assert ((slot_states(model, batch, slots) - states).abs().amax(dim=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("parameters", [{}, GUIDED])
def test_states_do_not_depend_on_the_batch(parameters):
    model, batch = model_with_opinions(**parameters), make_batch(LENGTHS)
    slots = torch.randint(0, 31, (len(LENGTHS), 3), generator=torch.Generator().manual_seed(1))
    alone = [slot_states(model, batch[i : i + 1], slots[i : i + 1]) for i in range(len(LENGTHS))]
    torch.testing.assert_close(torch.cat(alone), slot_states(model, batch, slots))


@pytest.mark.parametrize("layout", [RaggedBatch, PaddedBatch])
def test_tokens_in_front_of_each_history_of_several_slabs(layout):
    lengths = torch.tensor([1, 12] * 40)
    item_seq = torch.where(torch.arange(12) < lengths.unsqueeze(1), 1 + torch.arange(80).unsqueeze(1), 0)
    batch = layout(item_seq, lengths) if layout is RaggedBatch else layout(item_seq)
    led = LedBatch(batch, 2)
    assert len(led.slabs) == (2 if layout is RaggedBatch else 1)
    front = -1.0 - torch.arange(80).view(80, 1, 1) - torch.tensor([0, 0.5]).view(1, 2, 1)
    joined = led.join(front, batch.items.unsqueeze(1).float())
    assert torch.equal(led.leading(joined), front)
    assert torch.equal(led.restore(joined[led.last]), front[:, 0])


# Training


def with_futures(model, futures: list[list[int]]) -> Interaction:
    """A batch of histories of one item and the training items after it, and a model that knows these."""
    sequences = [[1 + user % 3, *items] for user, items in enumerate(futures)]
    ends = torch.tensor([len(s) for s in sequences]).cumsum(0)
    first = ends - torch.tensor([len(s) for s in sequences])
    items = torch.tensor([item for s in sequences for item in s])
    # All that has a history is a training row.
    number = torch.arange(len(items))
    user = torch.searchsorted(ends, number, right=True)
    target = number[number > first[user]]
    rows = SimpleNamespace(flat={"item_id_list": items}, first=first[user[target]], target=target)
    model.following = FollowingItems(rows, "item_id_list")
    histories = torch.zeros(len(futures), 12, dtype=torch.long)
    histories[:, 0] = items[first]
    lengths = torch.ones(len(futures), dtype=torch.long)
    columns = {"item_id_list": histories, "item_length": lengths, "item_id": items[first + 1], ROW: first + 1}
    return Interaction(columns)


def test_the_lists_of_rows_end_where_the_training_part_does():
    model = make_model("MaskedDiffRec", n_slots=3)
    batch = with_futures(model, [[4, 5, 6, 7], [8], [9, 4]])
    assert model.lists_of(batch).tolist() == [[4, 5, 6], [8, MASK, MASK], [9, 4, MASK]]


@pytest.mark.parametrize("parameters", [{}, {"all_masked_share": 1.0}])
def test_the_loss_is_the_bound_of_each_slot(parameters):
    """Against the mean over all sets of masked slots, of one list of three known slots in four."""
    model = model_with_opinions(n_slots=4, history_drop_prob=0.0, hidden_dropout_prob=0.0, **parameters)
    batch = with_futures(model, [[4, 5, 6]])
    known = model.lists_of(batch)
    expected = 0.0
    for n in range(1, 4):
        for places in itertools.combinations(range(3), n):
            slots = known.clone()
            slots[:, list(places)] = MASK
            logits = model.logits(slot_states(model, batch, slots)[0], batch["item_id_list"].expand(4, -1))
            losses = -logits.log_softmax(dim=-1)[list(places), known[0, list(places)]]
            share = float(n == 3) if parameters else 1 / 3
            expected += share * losses.mean().item() / len(list(itertools.combinations(range(3), n)))
    torch.manual_seed(0)
    repeated = with_futures(model, [[4, 5, 6]] * 4000)
    repeated["item_id_list"][:, 0] = 1
    assert model.calculate_loss(repeated).item() == pytest.approx(expected, rel=0.03)


def test_the_network_sees_no_item_that_it_is_to_predict(monkeypatch):
    model = model_with_opinions(history_drop_prob=0.0)
    seen = []
    monkeypatch.setattr(model, "embed_slots", lambda slots: seen.append(slots) or type(model).embed_slots(model, slots))
    batch = with_futures(model, [[4, 5, 6], [7, 8, 9], [10, 11]] * 20)
    torch.manual_seed(0)
    model.calculate_loss(batch).backward()
    (slots,), known = seen, model.lists_of(batch)
    masked = (slots != known) & (known != MASK)
    assert masked.any(dim=1).all() and not (slots[masked] != MASK).any()
    assert torch.equal(slots[~masked], known[~masked])


def test_histories_are_dropped_at_their_rate():
    model = model_with_opinions(history_drop_prob=0.3)
    batch = with_futures(model, [[4, 5, 6]] * 3000)
    seen = []
    model.embed_items = lambda items: seen.append(items) or model.item_embedding(items)  # histories, then slots
    torch.manual_seed(0)
    model.calculate_loss(batch)
    assert float((seen[0] == 0).double().mean()) == pytest.approx(0.3, abs=0.04)


# Lists


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("steps", "parameters"), [(1, {}), (2, {}), (3, GUIDED)])
def test_probabilities_of_all_lists_sum_to_one(order, steps, parameters):
    model = model_with_opinions(n_items=5, fill_order=order, sampling_steps=steps, **parameters)
    batch = make_batch([2, 5], n_items=5)
    total = torch.zeros(2, dtype=torch.float64)
    for items in itertools.product(range(1, 5), repeat=3):
        total += model.log_probability(batch, torch.tensor([items, items])).exp()
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("parameters", [{}, {"sampling_steps": 2}, GUIDED, {"sampling_temperature": 0.0}])
def test_drawn_lists_have_their_probability_hold_nothing_twice_and_stay_what_they_are_in_any_batch(order, parameters):
    model, batch = model_with_opinions(fill_order=order, **parameters), make_batch(LENGTHS)
    allowed = torch.rand(len(LENGTHS), 31, generator=torch.Generator().manual_seed(2)) < 0.5
    allowed[:, 0] = False
    drawn = model.sample_lists(batch, 3, range(4), allowed)
    assert all(len(set(items)) == 3 for items in drawn.items.flatten(0, 1).tolist())
    assert allowed.expand(4, -1, -1).gather(2, drawn.items).all()
    own = model.log_probability(batch, drawn.items[0])
    torch.testing.assert_close(drawn.log_probability[0], own)
    alone = model.sample_lists(batch[2:3], 3, [3], allowed[2:3])
    assert torch.equal(alone.items[0, 0], drawn.items[3, 2])
    if parameters.get("sampling_temperature") != 0.0:
        assert len({tuple(items) for items in drawn.items[:, 0].tolist()}) > 1


def test_lists_are_drawn_with_the_probabilities_of_the_model():
    model = model_with_opinions(n_items=5, n_slots=2, fill_order="left_to_right")
    batch = make_batch([4], n_items=5)
    p = torch.stack(
        [model.log_probability(batch, torch.tensor([[a, b]])).exp() for a in range(1, 5) for b in range(1, 5)]
    ).view(4, 4)
    conditional = (p / p.sum(dim=1, keepdim=True)).fill_diagonal_(0)  # no item comes twice
    expected = p.sum(dim=1, keepdim=True) * conditional / conditional.sum(dim=1, keepdim=True)
    n = 400
    drawn = model.sample_lists(batch, 2, range(n)).items[:, 0] - 1
    found = torch.bincount(4 * drawn[:, 0] + drawn[:, 1], minlength=16).view(4, 4) / n
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt()).all()


def test_a_list_ends_where_nothing_is_left_to_choose():
    model, batch = model_with_opinions(), make_batch([3, 4])
    allowed = torch.zeros(2, 31, dtype=torch.bool)
    allowed[:, [7, 9]] = True
    drawn = model.sample_lists(batch, 3, [0, 1], allowed).items
    assert all(sorted(items) == [MASK, 7, 9] for items in drawn.flatten(0, 1).tolist())


def test_samples_of_the_next_item_come_of_drawn_futures():
    model, batch = model_with_opinions(), make_batch(LENGTHS)
    plain, (one, other) = model.reconstructions(batch)[0], model.reconstructions(batch, [1, 2])
    torch.testing.assert_close(model.logits(plain, batch["item_id_list"]), model.full_sort_predict(batch))
    assert float((one - other).abs().amax(dim=1).max()) > 1e-3
    # Over all futures, weighted by how likely they are, samples would give the marginal; one slot has no future.
    alone = model_with_opinions(n_slots=1)
    torch.testing.assert_close(alone.reconstructions(batch, [1])[0], alone.reconstructions(batch)[0])


def test_guidance_is_linear_in_log_probabilities_and_leaves_training_alone():
    batch = make_batch(LENGTHS)
    model = model_with_opinions(repeat_bias=True)
    with_history = model.full_sort_predict(batch)[:, 1:]
    empty = {"item_id_list": torch.zeros(6, 1, dtype=torch.long), "item_length": torch.ones(6, dtype=torch.long)}
    without = model.full_sort_predict(empty)[:, 1:]
    losses = []
    for guidance in (0.0, 2.0):
        model.guidance = guidance
        torch.manual_seed(0)
        losses.append(model.calculate_loss(batch).item())
    assert losses[0] == losses[1]
    torch.testing.assert_close(model.full_sort_predict(batch)[:, 1:], 3 * with_history - 2 * without)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampling_steps": 6}, "sampling_steps must be from 1 to n_slots (5), got 6"),
        ({"guidance": 1.0, "history_drop_prob": 0.0}, "guidance 1.0 compares with scores without a history"),
        ({"fill_order": "any"}, "fill_order must be one of confident, random, left_to_right, got 'any'"),
        ({"n_slots": 0}, "n_slots must be an integer in [1, 1000], got 0"),
        ({"all_masked_share": 1.5}, "all_masked_share must be a number in [0, 1], got 1.5"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(UserError) as refusal:
        RunConfig("MaskedDiffRec", "test", values)
    assert str(refusal.value).startswith(message)


# Whether steps pay


def futures(n: int, dependent: bool, seed: int) -> list[list[int]]:
    """Two items: one of two, then one of two others; taking the one excludes its partner, or says nothing.

    Every single item is as likely either way, so that only the joint distribution differs.
    """
    generator = torch.Generator().manual_seed(seed)
    first, other = torch.randint(0, 2, (2, n), generator=generator)
    second = 1 - first if dependent else other
    return torch.stack([4 + first, 6 + second], dim=1).tolist()


@pytest.mark.parametrize(("dependent", "trained_alone"), [(True, False), (False, False), (True, True)])
def test_steps_pay_where_items_exclude_each_other_and_nowhere_else(dependent, trained_alone):
    """Held-out joint negative log-likelihood per slot: ln 2 for one step, half of it for two where one item decides."""
    torch.manual_seed(0)
    share = 1.0 if trained_alone else 0.0
    sizes: dict[str, Any] = {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "hidden_dropout_prob": 0.0}
    model = make_model("MaskedDiffRec", 9, n_slots=2, fill_order="left_to_right", all_masked_share=share, **sizes)
    model = model.float().train()
    batch = with_futures(model, futures(256, dependent, seed=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(120):
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
    model.eval()
    held_out = futures(200, dependent, seed=2)
    batch = with_futures(model, held_out)
    with torch.no_grad():
        one, two = (
            -float(model.with_sampling_steps(steps).log_probability(batch, torch.tensor(held_out)).mean()) / 2
            for steps in (1, 2)
        )
    assert one == pytest.approx(0.693, abs=0.05)
    if dependent and not trained_alone:
        assert two < one - 0.3
    else:
        assert two > one - 0.02

"""ADRec against loops in numpy: its loss, its reverse process; its stages; what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_diffurec.data.rows import FIRST_TARGET
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.layers.ragged import RaggedBatch

LENGTHS = [1, 12, 5, 5, 7, 2]
FACTOR, STEPS, HEADS = 0.7, 6, 4
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def model_of(**parameters):
    """Weights large enough that every part of the network makes a difference."""
    torch.manual_seed(3)
    model = make_model("ADRec", **{"lambda_uncertainty": FACTOR, "diffusion_steps": STEPS, **parameters})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


# The reference


def normed(x, weights, name):
    x = x - x.mean(axis=-1, keepdims=True)
    return (
        x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-12) * weights[name + ".weight"] + weights[name + ".bias"]
    )


def linear(x, weights, name):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def causal_block(x, weights, name):
    q, k, v = (linear(x, weights, f"{name}.attention.{part}") for part in ("query", "key", "value"))
    size, found = x.shape[1] // HEADS, np.zeros_like(x)
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            scores = np.exp([q[i, own] @ k[j, own] / np.sqrt(size) for j in range(i + 1)])
            found[i, own] = (scores / scores.sum()) @ v[: i + 1, own]
    x = normed(x + linear(found, weights, f"{name}.attention.output"), weights, f"{name}.attention_norm")
    inner = linear(x, weights, f"{name}.ffn.0")
    inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    return normed(x + linear(inner, weights, f"{name}.ffn.2"), weights, f"{name}.ffn_norm")


def blocks(x, weights, part):
    n = len({name.split(".")[3] for name in weights if name.startswith(f"network.{part}.blocks")})
    for number in range(n):
        x = causal_block(x, weights, f"network.{part}.blocks.{number}")
    return x


def step_embedding(t, weights):
    half = weights["step_embedding.inner.weight"].shape[1] // 2
    angles = [t * 1000 / STEPS * 10000 ** (-k / half) for k in range(half)]
    inner = linear(np.concatenate([np.cos(angles), np.sin(angles)]), weights, "step_embedding.inner")
    return linear(inner / (1 + np.exp(-inner)), weights, "step_embedding.outer")


def estimates_of(items, x_s, t, weights):
    """Of one history: items [l], what is added x_s [l, d], and its steps [l]."""
    vectors = weights["item_embedding.weight"]
    c = blocks(normed(vectors[items], weights, "network.input_norm"), weights, "encoder")
    return blocks(c + FACTOR * (x_s + np.stack([step_embedding(s, weights) for s in t])), weights, "decoder")


def arrays(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def sequences_of(lengths, first, seed=0):
    """A batch of sequences, and the items that follow each history's."""
    batch = make_batch(lengths, seed=seed)
    item_seq, last = batch["item_id_list"], batch["item_id"]
    following = [[*row[1:n].tolist(), int(item)] for row, n, item in zip(item_seq, lengths, last)]
    targets = [item for items, place in zip(following, first) for item in items[place:]]
    columns = {"item_id": torch.tensor(targets), FIRST_TARGET: torch.tensor(first)}
    return Interaction({**batch.interaction, **columns}), following


# Training


@pytest.mark.parametrize("rows", ["sequences", "prefixes"])
def test_the_loss_is_that_of_loops(rows):
    model, first = model_of(mse_weight=0.4), [0, 3, 0, 4, 0, 1]
    if rows == "prefixes":
        first = [n - 1 for n in LENGTHS]
    batch, following = sequences_of(LENGTHS, first)
    if rows == "prefixes":
        del batch.interaction[FIRST_TARGET]
    given: list[torch.Tensor] = []
    estimates = model.estimates
    model.estimates = lambda c, x_0, t, noise, packed: given.extend([t, noise]) or estimates(c, x_0, t, noise, packed)
    found = [part.item() for part in model.calculate_loss(batch)]
    t, noise = (values.numpy() for values in given)
    packed, weights = RaggedBatch(batch["item_id_list"], batch["item_length"]), arrays(model)
    alpha_bar = np.cumprod(1 - model.sampler.betas)
    entropies, distances, vectors = [], [], weights["item_embedding.weight"]
    for row, (length, start) in enumerate(zip(LENGTHS, first)):
        tokens = [int(n) for n in np.flatnonzero(packed.row.numpy() == row)][:length]
        x_0 = vectors[following[row]]
        scale = alpha_bar[t[tokens]][:, None]
        x_s = np.sqrt(scale) * x_0 + np.sqrt(1 - scale) * noise[tokens]
        states = estimates_of(batch["item_id_list"][row, :length].numpy(), x_s, t[tokens], weights)
        for place in range(start, length):
            logits = vectors[1:] @ states[place]
            entropies.append(np.log(np.exp(logits).sum()) - logits[following[row][place] - 1])
            distances.append(0.4 * ((states[place] - x_0[place]) ** 2).mean())
    assert len(entropies) == len(batch["item_id"]) and len(set(t)) > 2
    np.testing.assert_allclose(found, [np.mean(entropies), np.mean(distances)], **CLOSE)


@settings(deadline=None, max_examples=15)
@given(length=st.integers(2, 12), place=st.integers(0, 10), seed=st.integers(0, 99))
def test_what_comes_later_does_not_reach_an_estimate(length, place, seed):
    place = min(place, length - 2)
    model = model_of()
    item_seq = make_batch([length], seed=seed)["item_id_list"]
    packed = RaggedBatch(item_seq, torch.tensor([length]))
    torch.manual_seed(seed)
    x_0, noise = torch.randn(2, length, model.hidden_size, dtype=torch.float64)
    t = torch.randint(STEPS, (length,))
    c = model.network.encode(model.item_embedding(packed.items), packed)
    before = model.estimates(c, x_0, t, noise, packed)
    noise[place + 1 :] += 1
    t[place + 1 :] = STEPS - 1 - t[place + 1 :]
    after = model.estimates(c, x_0, t, noise, packed)
    torch.testing.assert_close(after[: place + 1], before[: place + 1], rtol=1e-12, atol=1e-12)
    assert (after[place + 1 :] != before[place + 1 :]).any(dim=1).all()


def test_steps_are_independent_and_those_of_an_epoch_do_not_depend_on_the_batch():
    model = model_of(diffusion_steps=32)
    seen = []
    estimates = model.estimates
    model.estimates = lambda c, x_0, t, noise, packed: seen.append((t, noise)) or estimates(c, x_0, t, noise, packed)
    batch, _ = sequences_of([12, 12], [0, 0])
    alone, _ = sequences_of([12, 12], [0, 0])
    alone = Interaction(
        {name: values[:12] if name == "item_id" else values[:1] for name, values in alone.interaction.items()}
    )
    for epoch, data in ((0, batch), (0, alone), (1, batch)):
        model.begin_epoch(epoch + 20)
        model.calculate_loss(data)
    (t, noise), (t_alone, noise_alone), (t_next, noise_next) = seen
    assert len(t.unique()) > 8 and torch.equal(t[:12], t_alone) and torch.equal(noise[:12], noise_alone)
    assert not torch.equal(t, t_next) and not torch.equal(noise, noise_next)


def gradients(model, batch, epoch):
    model.zero_grad()
    model.begin_epoch(epoch)
    sum(model.calculate_loss(batch)).backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_stages_train_what_they_say():
    model = make_model("ADRec", pretrain_epochs=2, warmup_epochs=3, epochs=10)
    batch, _ = sequences_of(LENGTHS, [0] * len(LENGTHS))
    every = {name for name, _ in model.named_parameters()}
    first = {n for n in every if n.startswith(("item_embedding", "network.input_norm", "network.encoder"))}
    stages = [gradients(model, batch, epoch) for epoch in range(7)]
    assert stages == [first] * 2 + [every - {"item_embedding.weight"}] * 3 + [every] * 2
    assert not model.uses_all_parameters and make_model("ADRec", pretrain_epochs=0, warmup_epochs=0).uses_all_parameters


def test_item_vectors_stay_in_the_warm_up_whatever_the_optimizer_remembers():
    model = make_model("ADRec", pretrain_epochs=1, warmup_epochs=1, epochs=10).train()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    batch, _ = sequences_of(LENGTHS, [0] * len(LENGTHS))
    vectors = [model.item_embedding.weight.clone()]
    for epoch in range(3):
        optimizer.zero_grad()
        model.begin_epoch(epoch)
        sum(model.calculate_loss(batch)).backward()
        optimizer.step()
        vectors.append(model.item_embedding.weight.clone())
    assert [torch.equal(a, b) for a, b in itertools.pairwise(vectors)] == [False, True, False]


def test_a_training_without_a_joint_stage_is_said_so(caplog):
    make_model("ADRec", pretrain_epochs=1, warmup_epochs=1, epochs=2).begin_epoch(0)
    make_model("ADRec", pretrain_epochs=1, warmup_epochs=1, epochs=3).begin_epoch(0)
    (record,) = caplog.records
    assert record.getMessage() == (
        "1 pretrain_epochs and 1 warmup_epochs leave no epoch of 2 in which all weights are trained"
    )


# Inference


@pytest.mark.parametrize("sampling_steps", [STEPS, 3])
def test_the_reverse_process_is_that_of_loops(sampling_steps):
    model = model_of(sampling_steps=sampling_steps)
    batch, weights = make_batch(LENGTHS), arrays(model)
    found = model.full_sort_predict(batch).detach().numpy()
    noise = model.program().draws(batch["item_id_list"])["noise"].numpy()
    visits = model.visits[::-1]
    alpha_bar = np.cumprod(1 - model.sampler.betas)[visits]
    vectors = weights["item_embedding.weight"]
    for row, length in enumerate(LENGTHS):
        items, x = batch["item_id_list"][row, :length].numpy(), noise[0, row]
        for draw, index in enumerate(range(len(visits) - 1, -1, -1), start=1):
            x_s = np.concatenate([vectors[items[1:]], x[None]])  # what follows is known, but for the last
            x_0 = estimates_of(items, x_s, [0] * (length - 1) + [visits[index]], weights)[-1]
            if index == 0:
                break
            before, beta = alpha_bar[index - 1], 1 - alpha_bar[index] / alpha_bar[index - 1]
            mean = np.sqrt(before) * beta * x_0 + np.sqrt(1 - beta) * (1 - before) * x
            x = mean / (1 - alpha_bar[index]) + np.sqrt(beta) * noise[draw, row]
        np.testing.assert_allclose(found[row, 1:], vectors[1:] @ x_0, **CLOSE)


def test_a_twin_is_told_nothing_of_the_items_that_follow():
    twin, batch = model_of(noised_target=False), make_batch(LENGTHS)
    found, weights = twin.full_sort_predict(batch).detach().numpy(), arrays(twin)
    for row, length in enumerate(LENGTHS):
        items = batch["item_id_list"][row, :length].numpy()
        state = estimates_of(items, np.zeros((length, 16)), [STEPS - 1] * length, weights)[-1]
        np.testing.assert_allclose(found[row, 1:], weights["item_embedding.weight"][1:] @ state, **CLOSE)


def test_inference_in_bfloat16_is_about_the_same():
    model, batch = make_model("ADRec").float(), make_batch(LENGTHS)
    names, exact = set(model.state_dict()), model.full_sort_predict(batch)[:, 1:]
    model.enable_amp = True
    rounded = model.full_sort_predict(batch)[:, 1:]
    assert set(model.state_dict()) == names and rounded.dtype == torch.float32
    assert 0 < ((rounded - exact).abs().max() / exact.abs().max()).item() < 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mse_weight": -1}, "mse_weight must be a finite number of at least 0, got -1"),
        ({"pretrain_epochs": 20}, "stopping_step 10 can end the training within the 20 epochs of pretrain_epochs"),
        ({"n_encoder_layers": 0}, "n_encoder_layers must be an integer of at least 1, got 0"),
        ({"sampling_steps": 33}, "sampling_steps must be from 1 to diffusion_steps (32), got 33"),
        ({"offset_noise": True}, "unknown parameter 'offset_noise' for model ADRec:"),
    ],
)
def test_what_does_not_act_or_fit_is_refused(values, message):
    with pytest.raises(UserError) as refusal:
        RunConfig("ADRec", "test", values)
    assert str(refusal.value).startswith(message)

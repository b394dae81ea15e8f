"""VSAN, ACVAE and MFGAN: what they draw and when, whose parameters learn from which term, what they refuse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.layers.item_softmax import SampledCrossEntropy
from recbole_diffurec.layers.ragged import PaddedBatch, RaggedBatch
from recbole_diffurec.layers.recurrent import GRU
from recbole_diffurec.models.acvae import KERNEL, of_next
from recbole_diffurec.models.mfgan import REAL, Discriminator, appended, categories, popularity_classes

NAMES = ["VSAN", "ACVAE", "MFGAN"]
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def model_of(name: str, **parameters: Any) -> Any:
    """A model whose parts all have a say; MFGAN with discriminators of two factors."""
    torch.manual_seed(0)
    small = {"rnn_size": 6, "latent_size": 4, "adversary_size": 7} if name == "ACVAE" else {}
    alone = {"n_discriminator_layers": 0} if name == "MFGAN" else {}
    model = make_model(name, **{**small, **alone, **parameters})
    if name == "MFGAN":
        config = {
            "hidden_size": 16, "n_heads": 4, "discriminator_dropout_prob": 0.25, "n_discriminator_layers": 1,
            "MAX_ITEM_LIST_LENGTH": 12,
        }  # fmt: skip
        counts = torch.arange(31)
        for values in (torch.arange(31), popularity_classes(counts, 3)):
            model.discriminators.append(Discriminator(values.view(31, 1), config))
        model.double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def summed(losses: Any) -> torch.Tensor:
    return torch.stack(losses).sum() if isinstance(losses, tuple) else losses


# All three


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=10)
@given(lengths=LENGTHS)
def test_a_history_has_the_same_state_alone_as_in_any_batch(name, lengths):
    model, batch = model_of(name), make_batch(lengths)
    states = model.represent(batch["item_id_list"], batch["item_length"])
    torch.testing.assert_close(model.states(PaddedBatch(batch["item_id_list"])), states, rtol=1e-9, atol=1e-9)
    for row, length in enumerate(lengths):
        alone = model.represent(batch["item_id_list"][row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(alone[0], states[row], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sampled", [False, True])
def test_every_parameter_learns(name, sampled):
    """Which several processes rely on, where a model is trained in several."""
    model = model_of(name).train()
    if sampled:
        model.cross_entropy = SampledCrossEntropy(torch.arange(31), 7, "uniform").double()
    summed(model.calculate_loss(make_batch([1, 12, 5, 5, 7, 2]))).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ["VSAN", "ACVAE"])
def test_training_draws_and_inference_does_not(name):
    model, batch = model_of(name), make_batch([3, 12, 1, 6])
    losses = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        losses.append(float(summed(model.calculate_loss(batch)).detach()))
    assert losses[0] == losses[2] != losses[1]
    first, second = model.full_sort_predict(batch), model.full_sort_predict(batch)
    assert torch.equal(first, second)
    torch.testing.assert_close(model.predict(batch), first.gather(1, batch["item_id"].unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize(("name", "weight", "term"), [("VSAN", "kl_weight", 1), ("ACVAE", "kl_weight", 1)])
def test_the_divergence_begins_at_zero_and_grows_with_the_steps(name, weight, term):
    model, batch = model_of(name, kl_anneal_steps=4, **{weight: 0.5}), make_batch([3, 12, 1, 6])
    model.train()
    shares = []
    for _ in range(6):
        torch.manual_seed(0)
        shares.append(float(model.calculate_loss(batch)[term].detach()))
    assert shares[0] == 0 and int(model.n_trained) == 6
    assert [share / shares[-1] for share in shares] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    model.eval().calculate_loss(batch)  # of a validation
    assert int(model.n_trained) == 6 and "n_trained" in model.state_dict()
    at_once = model_of(name, kl_anneal_steps=0)
    assert float(at_once.calculate_loss(batch)[term].detach()) != 0


# VSAN


def test_log_variances_are_bounded():
    model = model_of("VSAN")
    with torch.no_grad():
        model.log_variance.bias.fill_(1e6)
    assert all(loss.isfinite() for loss in model.calculate_loss(make_batch([3, 12, 1, 6])))


# ACVAE


@settings(deadline=None, max_examples=25)
@given(lengths=LENGTHS)
def test_the_next_history_is_paired_from_its_end(lengths):
    batch = make_batch(lengths)
    ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])
    z = torch.arange(len(ragged.items)).unsqueeze(1)
    whose, age = ragged.row[of_next(z, ragged).squeeze(1)], ragged.age[of_next(z, ragged).squeeze(1)]
    for token in range(len(z)) if ragged.real is None else ragged.real.nonzero().flatten().tolist():
        row = int(ragged.row[token])
        following = (row + 1) % len(lengths)
        assert int(whose[token]) == following
        assert int(age[token]) == int(ragged.age[token]) % lengths[following]


def test_each_player_learns_from_its_own_loss_alone():
    model, batch = model_of("ACVAE", kl_anneal_steps=0), make_batch([3, 12, 1, 6])
    terms = model.calculate_loss(batch)

    def learning(term: torch.Tensor) -> set[str]:
        model.zero_grad()
        term.backward(retain_graph=True)
        return {key.partition(".")[0] for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    encoder = {"item_embedding", "latent_encoder"}
    assert learning(terms[0]) == {*encoder, "decoder", "output"}
    assert learning(terms[1]) == encoder
    assert learning(terms[2]) == {*encoder, "contrast_adversary"}
    assert learning(terms[3]) == {"prior_adversary"}


def test_the_convolution_looks_four_items_back():
    model = model_of("ACVAE")
    torch.nn.init.zeros_(model.latent_encoder.gru.weight_hh_l0)  # no memory but the convolution's, nor a gate for any
    with torch.no_grad():
        model.latent_encoder.gru.bias_ih_l0[6:12] = -1e3
    item_seq = torch.arange(1, 13).unsqueeze(0)
    changed = [item_seq.clone() for _ in range(12)]
    for place, sequence in enumerate(changed):
        sequence[0, place] = 20
    states = model.represent(torch.cat([item_seq, *changed]), torch.full((13,), 12))
    differ = [not torch.allclose(states[0], state, rtol=0, atol=1e-12) for state in states[1:]]
    assert differ == [False] * (12 - KERNEL) + [True] * KERNEL


@settings(deadline=None, max_examples=15)
@given(lengths=LENGTHS)
def test_recurrent_states_are_those_of_each_history_alone(lengths):
    torch.manual_seed(0)
    gru, batch = GRU(3, 4).double(), make_batch(lengths)
    ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])
    table = torch.randn(31, 3, dtype=torch.float64)
    states = gru(table[ragged.items], ragged)
    for row, length in enumerate(lengths):
        alone, _ = torch.nn.GRU.forward(gru, table[batch["item_id_list"][row, :length]].unsqueeze(0))
        tokens = ((ragged.row == row) & (True if ragged.real is None else ragged.real)).nonzero().flatten()
        torch.testing.assert_close(states[tokens], alone[0])


# MFGAN


@settings(deadline=None, max_examples=25)
@given(lengths=LENGTHS)
def test_a_sequence_keeps_its_most_recent_items(lengths):
    batch = make_batch(lengths)
    longer = appended(batch["item_id_list"], batch["item_length"], batch["item_id"], 12)
    for row, length in enumerate(lengths):
        expected = [*batch["item_id_list"][row, :length].tolist(), int(batch["item_id"][row])][-12:]
        tokens = (longer.row == row) & (True if longer.real is None else longer.real)
        assert longer.items[tokens].tolist() == expected


@settings(deadline=None, max_examples=25)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=40), n_classes=st.integers(1, 7))
def test_popularity_classes_are_equally_large_and_ordered(counts, n_classes):
    classes = popularity_classes(torch.tensor([0, *counts]), n_classes)
    assert classes[0] == 0 and set(classes[1:].tolist()) <= set(range(1, n_classes + 1))
    sizes = torch.bincount(classes[1:], minlength=n_classes + 1)[1:]
    assert int(sizes.max() - sizes.min()) <= 1
    for count, own in zip(counts, classes[1:].tolist()):
        assert all(other >= own for c, other in zip(counts, classes[1:].tolist()) if c > count)


def test_rewards_act_after_the_first_epochs():
    model, batch = model_of("MFGAN", pretrain_epochs=2), make_batch([3, 12, 1, 6])
    losses = []
    for epoch in (0, 1, 2, 3):
        model.begin_epoch(epoch)
        losses.append(float(model.calculate_loss(batch)[0].detach()))
    assert losses[0] == losses[1] > losses[2] == losses[3]
    states = model.represent(batch["item_id_list"], batch["item_length"])
    entropy = F.cross_entropy(model.scores.logits(states, None), batch["item_id"], reduction="none")
    reward = model.rewards(batch["item_id_list"], batch["item_length"], model.best_items(states)[:, 0])
    assert losses[0] == pytest.approx(float(entropy.mean().detach()))
    assert losses[2] == pytest.approx(float((reward * entropy).mean().detach()))


def test_generator_and_discriminators_learn_apart():
    model, batch = model_of("MFGAN", pretrain_epochs=0), make_batch([3, 12, 1, 6])
    for term, discriminates in zip(model.calculate_loss(batch), (False, True)):
        model.zero_grad()
        term.backward()
        learned = {key.startswith("discriminators.") for key, p in model.named_parameters() if p.grad is not None}
        assert learned == {discriminates}


def test_what_is_generated_is_among_the_best(monkeypatch):
    model, batch = model_of("MFGAN", n_generated=4), make_batch([3, 12, 1, 6] * 50)
    seen = []
    monkeypatch.setattr(model, "discriminator_loss", lambda *given: seen.append(given[-1]) or given[0].sum() * 0.0)
    model.calculate_loss(batch)
    scores = model.full_sort_predict(batch)
    rank = (scores > scores.gather(1, seen[0].unsqueeze(1))).sum(dim=1)
    assert set(rank.tolist()) == {0, 1, 2, 3}


def test_an_item_of_several_categories_has_their_mean():
    values = torch.tensor([[0, 0], [1, 2], [2, 0], [0, 0]])
    config = {
        "hidden_size": 4, "n_heads": 2, "discriminator_dropout_prob": 0.0, "n_discriminator_layers": 1,
        "MAX_ITEM_LIST_LENGTH": 3,
    }  # fmt: skip
    several = Discriminator(values, config).eval()
    single = Discriminator(torch.tensor([[0], [3], [2], [4]]), config).eval()
    with torch.no_grad():
        table = several.value_embedding.weight
        rest = {key: value for key, value in several.state_dict().items() if key != "value_embedding.weight"}
        mean, nothing = table[1:3].mean(dim=0, keepdim=True), torch.zeros(1, 4)
        single.load_state_dict({**rest, "value_embedding.weight": torch.cat([table, mean, nothing])})
        batch = RaggedBatch(torch.tensor([[1, 2, 3], [3, 1, 0]]), torch.tensor([3, 2]))
        torch.testing.assert_close(several(batch), single(batch))
    assert REAL == 1 and several(batch).shape == (2, 2)


@pytest.mark.parametrize(
    ("feat", "message"),
    [
        (None, "category_field is 'genre', and data set 'd' has no file of items with such a column: name one of"),
        ({"x": torch.zeros(3)}, "category_field is 'genre', and data set 'd' has no file of items with such a column"),
        ({"genre": torch.zeros(3)}, "category_field 'genre' is a column of numbers: name one of tokens"),
    ],
)
def test_columns_that_are_no_categories_are_refused(feat, message):
    with pytest.raises(UserError) as refusal:
        categories(SimpleNamespace(item_feat=feat, dataset_name="d"), "genre")
    assert str(refusal.value).startswith(message)


# Values


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("VSAN", {"kl_weight": -1}, "kl_weight must be a finite number of at least 0, got -1"),
        ("VSAN", {"kl_anneal_steps": 0.5}, "kl_anneal_steps must be an integer of at least 0, got 0.5"),
        ("VSAN", {"repeat_bias": True}, "unknown parameter 'repeat_bias' for model VSAN:"),
        ("ACVAE", {"latent_size": 0}, "latent_size must be an integer of at least 1, got 0"),
        ("ACVAE", {"n_layers": 2}, "unknown parameter 'n_layers' for model ACVAE:"),
        ("MFGAN", {"loss_type": "BPR"}, "loss_type must be one of BCE, CE, got 'BPR'"),
        ("MFGAN", {"loss_type": "BCE", "train_neg_sample_args": None}, "train_neg_sample_args must say how MFGAN's"),
        ("MFGAN", {"loss_type": "BCE", "sampled_softmax": 5}, "sampled_softmax stands for the cross-entropy over all"),
        ("MFGAN", {"stopping_step": 9}, "stopping_step 9 can end the training within the 10 epochs of pretrain_epochs"),
    ],
)
def test_what_does_not_act_or_fit_is_refused(name, values, message):
    with pytest.raises(UserError) as refusal:
        RunConfig(name, "test", values)
    assert str(refusal.value).startswith(message)

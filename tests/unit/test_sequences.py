"""Training over all positions at once: each target once, and the loss and the gradients of the prefixes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from conftest import TINY, make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_diffurec.data.rows import FIRST_TARGET, ROW, windows
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import PrefixRows
from recbole_diffurec.host.loaders import FirstBatches, dataset_of, training_batch
from recbole_diffurec.host.sequences import SequenceRows, target_weight
from recbole_diffurec.layers.device import assume
from recbole_diffurec.layers.ragged import PaddedBatch, RaggedBatch
from recbole_diffurec.training.prepare import PreparedData, build

SMALL = {**TINY, "n_layers": 2, "user_inter_num_interval": "[5,30]", "MAX_ITEM_LIST_LENGTH": 30, "inner_size": 32}
NO_WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("CausalRec", {}),
    ("CausalRec", {"positions": "absolute"}),
    ("CausalRec", {"positions": "none", "cosine_temperature": 0.2, "repeat_bias": True}),
    ("CausalRec", {"repeat_bias": True, "gradient_checkpointing": True}),
    ("ADRec", {"diffusion_steps": 8, "lambda_uncertainty": 0.5, "repeat_bias": True}),
    ("ADRec", {"noised_target": False, "cosine_temperature": 0.2}),
    ("SASRec", {}),
    ("SASRec", {"repeat_bias": True}),
    ("SASRec", {"loss_type": "BPR"}),
    ("GRU4Rec", {}),
    ("GRU4Rec", {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 2}}),
]


@functools.cache
def prepared(model: str, rows: str, longest: int, options: tuple) -> PreparedData:
    values = {**SMALL, "MAX_ITEM_LIST_LENGTH": longest, "rows": rows, **{k: _thawed(v) for k, v in options}}
    if model == "GRU4Rec":
        values = {k: v for k, v in values.items() if k not in ("n_layers", "n_heads", "inner_size")}
    return PreparedData(RunConfig(model, "ml-100k", values))


def _thawed(value: Any) -> Any:
    return dict(value) if isinstance(value, tuple) else value


def data_of(model: str, rows: str, longest: int = 30, options: dict[str, Any] | None = None) -> PreparedData:
    frozen = {k: tuple(v.items()) if isinstance(v, dict) else v for k, v in (options or {}).items()}
    return prepared(model, rows, longest, tuple(frozen.items()))


def network_of(data: PreparedData) -> Any:
    """In float64, without dropout, and with weights that make a difference."""
    network, _ = build(data.config, dataset_of(data.loaders[0]))
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.double().eval()


def loss_of(network: Any, batch: Any) -> torch.Tensor:
    loss = network.calculate_loss(batch)
    return sum(loss) if isinstance(loss, tuple) else loss


def loss_and_gradients(network: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    network.zero_grad()
    loss = loss_of(network, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def prefixes_of(batch: Any) -> Interaction:
    """The batch of a batch of sequences' targets, each with all that its window has before it."""
    columns: dict[str, list[torch.Tensor]] = {"item_id_list": [], "item_length": []}
    width = batch["item_id_list"].shape[1]
    stretches = zip(batch["item_id_list"], batch["item_length"].tolist(), batch[FIRST_TARGET].tolist())
    for items, length, first in stretches:
        for end in range(first + 1, length + 1):
            seen = torch.zeros(width, dtype=torch.long)
            seen[:end] = items[:end]
            columns["item_id_list"].append(seen)
            columns["item_length"].append(torch.tensor(end))
    rest = {name: values for name, values in batch.interaction.items() if name not in (*columns, FIRST_TARGET)}
    return Interaction({**rest, **{name: torch.stack(values) for name, values in columns.items()}})


# Windows and batches


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=8), longest=st.integers(1, 20))
def test_windows_count_every_successor_once(counts, longest):
    cut = windows(torch.tensor(counts), longest)
    found = []
    for user, start, end, first in zip(*(x.tolist() for x in (cut.user, cut.start, cut.end, cut.first))):
        assert 0 <= start <= first < end <= counts[user] and end - start <= longest
        # Half a window to read, or all that there is.
        assert first == 0 or first - start == longest // 2
        found += [(user, place) for place in range(first, end)]
    assert sorted(found) == [(user, place) for user, n in enumerate(counts) for place in range(n)]
    assert (cut.end - cut.start).sum() <= 2 * sum(counts)


@pytest.mark.parametrize("longest", [30, 5, 1])
def test_every_training_target_is_in_one_batch_with_its_history(longest):
    prefixes, sequences = (data_of("CausalRec", rows, longest) for rows in ("prefixes", "sequences"))
    rows = dataset_of(prefixes.loaders[0]).inter_feat
    expected = {int(n): (int(u), int(i)) for n, u, i in zip(rows.target, rows["user_id"], rows["item_id"])}
    items = rows.flat["item_id_list"]
    found = {}
    for batch in sequences.loaders[0]:
        found.update({int(n): (int(u), int(i)) for n, u, i in zip(batch[ROW], batch["user_id"], batch["item_id"])})
        alone = prefixes_of(batch)
        assert len(batch) == len(alone) == len(batch[ROW])
        for number, seen, length in zip(batch[ROW], alone["item_id_list"], alone["item_length"]):
            assert torch.equal(seen[:length], items[number - length : number])
    assert found == expected
    table = dataset_of(sequences.loaders[0]).inter_feat
    assert isinstance(table, SequenceRows) and table.n_targets == len(expected)
    assert torch.equal(
        table["item_id"].sort().values, rows["item_id"].sort().values
    )  # what counts of items are made of
    for part in (1, 2):
        assert len(dataset_of(sequences.loaders[part])) == len(dataset_of(prefixes.loaders[part]))


@pytest.mark.parametrize("group_by", ["user", "none"])
def test_shares_in_time_are_split_before_histories_are_cut(group_by):
    """Nothing of validation or test is a target, wherever in a user's history training ends."""
    numbers = []
    for rows in ("prefixes", "sequences"):
        split = {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": group_by}
        values = {**SMALL, "MAX_ITEM_LIST_LENGTH": 6, "rows": rows, "eval_args": split}
        data = PreparedData(RunConfig("CausalRec", "ml-100k", values))
        numbers.append(torch.cat([batch[ROW] for batch in data.loaders[0]]).sort().values)
    assert torch.equal(*numbers)


# Losses


@pytest.mark.parametrize(("model", "options"), NO_WINDOWS)
def test_loss_and_gradients_are_those_of_the_prefixes(model, options, workdir):
    prefixes, sequences = (data_of(model, rows, 30, options) for rows in ("prefixes", "sequences"))
    network = network_of(prefixes)
    rows = dataset_of(prefixes.loaders[0])
    table = dataset_of(sequences.loaders[0])
    windows_of_users = table[torch.arange(40)]
    numbers = rows.inter_feat.target
    same = (numbers.unsqueeze(1) == windows_of_users[ROW]).nonzero()
    assert len(same) == len(windows_of_users[ROW])
    alone = rows[same[same[:, 1].argsort(), 0]]
    whole = training_batch(sequences.loaders[0], windows_of_users)
    alone = training_batch(prefixes.loaders[0], alone)
    negatives = "neg_item_id"
    if negatives in whole:
        assert len(whole[negatives]) == len(whole["item_id"]) == len(alone[negatives])
        assert (whole[negatives] != whole["item_id"]).all()
        alone.interaction[negatives] = whole[negatives]
    torch.testing.assert_close(
        loss_and_gradients(network, whole), loss_and_gradients(network, alone), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("model", "options"), NO_WINDOWS[:8] + NO_WINDOWS[9:10])
def test_windows_are_histories_of_their_own(model, options, workdir):
    """A target has what its window has before it, at the places that it has there."""
    data = data_of(model, "sequences", 6, options)
    batch = dataset_of(data.loaders[0])[torch.arange(60)]
    assert (batch[FIRST_TARGET] > 0).any() and (batch[FIRST_TARGET] == 0).any()
    network = network_of(data)
    found = [loss_and_gradients(network, rows) for rows in (batch, prefixes_of(batch))]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


# ADRec sees a noised one; what is later yet it does not see, see its own tests.
@pytest.mark.parametrize(("model", "options"), [case for case in NO_WINDOWS if "diffusion_steps" not in case[1]])
def test_no_position_sees_its_successor(model, options, workdir):
    """Two losses that differ in one target differ by what the state before it scores the two items, and by no other."""
    network = network_of(data_of(model, "sequences", 30, options))
    history = torch.tensor([[3, 9, 4, 7, 5, 6], [8, 6, 2, 0, 0, 0]])
    target = torch.tensor([9, 4, 7, 5, 6, 1, 6, 2, 10])
    columns = {"item_length": torch.tensor([6, 3]), FIRST_TARGET: torch.tensor([0, 0]), "neg_item_id": target + 10}
    changed, place = history.clone(), 3
    changed[0, place] = 20

    def scored(items: torch.Tensor) -> torch.Tensor:
        found = []
        for number in range(len(target)):
            pair = []
            for item in (20, 7):  # what is put there, and what was there
                targets = target.clone()
                targets[number] = item
                batch = Interaction({**columns, "item_id_list": items, "item_id": targets})
                pair.append(loss_of(network, batch).detach())
            found.append(pair[0] - pair[1])
        return torch.stack(found)

    difference = (scored(history) - scored(changed)).abs()
    assert difference[:place].max() < 1e-12 and difference[6:].max() < 1e-12
    assert difference[place:6].min() > 1e-6


@pytest.mark.parametrize("more", [{}, {"batch_by_length": True, "MAX_ITEM_LIST_LENGTH": 7}])
def test_every_target_of_an_epoch_weighs_the_same(more, workdir):
    """Steps of unequal numbers of targets, too small to change anything: their mean is that over all targets."""
    values = {
        **SMALL,
        "learner": "sgd",
        "learning_rate": 1e-20,
        "hidden_dropout_prob": 0,
        "attn_dropout_prob": 0,
        **more,
    }
    data = PreparedData(RunConfig("CausalRec", "ml-100k", {**values, "rows": "sequences", "train_batch_size": 64}))
    network, trainer = build(data.config, dataset_of(data.loaders[0]))
    trainer.time_epoch(data.loaders[0])
    table = dataset_of(data.loaders[0]).inter_feat
    whole = table[torch.arange(len(table))]
    network.eval()
    with torch.no_grad():
        expected = float(network.calculate_loss(whole))
    assert len(data.loaders[0]) > 3
    assert trainer.history[-1]["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.history[-1]["train_loss"] != pytest.approx(_mean_of_batches(network, data), rel=1e-5)
    assert target_weight(FirstBatches(data.loaders[0], 2), 0) == target_weight(data.loaders[0], 0)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_bf16_gives_about_the_same_loss(kind, workdir):
    data = data_of("CausalRec", "sequences", 30, {"repeat_bias": True})
    network = network_of(data).float()
    batch = dataset_of(data.loaders[0])[torch.arange(40)]
    found = []
    for enabled in (False, True):
        with assume(kind), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(loss_and_gradients(network, batch)[0])
    assert found[0] == pytest.approx(float(found[1]), rel=0.02) and found[0].dtype == torch.float32


def _mean_of_batches(network: Any, data: PreparedData) -> float:
    with torch.no_grad():
        return sum(float(network.calculate_loss(batch)) for batch in data.loaders[0]) / len(data.loaders[0])


# Distances


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9), seed=st.integers(0, 999))
def test_scores_of_distances_equal_the_padded_ones(lengths, seed):
    """Every history at the full length, the score of a distance looked up for each pair of places."""
    model, batch = make_model("CausalRec", hidden_size=16, n_layers=2, n_heads=4), make_batch(lengths, seed=seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    item_seq, length = batch["item_id_list"], batch["item_length"]
    n, longest = item_seq.shape
    x = model.input_norm(model.item_embedding.weight[item_seq])
    for block in model.encoder.blocks:
        attention, normed = block.attention, block.attention_norm(x)
        q, k, v = (
            layer(normed).view(n, longest, 4, 4).transpose(1, 2)
            for layer in (attention.query, attention.key, attention.value)
        )
        scores = q @ k.transpose(-1, -2) / 2
        for to in range(longest):
            for at in range(longest):
                scores[:, :, to, at] += attention.distance_scores[:, to - at] if at <= to else float("-inf")
        x = x + attention.output((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, longest, 16))
        x = x + block.ffn(block.ffn_norm(x))
    expected = model.encoder.output_norm(x)[torch.arange(n), length - 1]
    for kind in ("cpu", "cuda"):
        with assume(kind):
            packed = RaggedBatch(item_seq, length)
            states = model.encoder(model.embed(packed), packed, last_only=False)
            ends = packed.restore(states[packed.last])
            torch.testing.assert_close(model.represent(item_seq, length), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(ends, expected, rtol=1e-9, atol=1e-9)
    padded = PaddedBatch(item_seq)
    torch.testing.assert_close(model.encode(model.embed(padded), padded), expected, rtol=1e-9, atol=1e-9)


# What is refused


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("DiffuRec", {}, "because a pass has one noised target, which every position of the history sees"),
        ("DiffRecDNR", {}, "because a pass has one noised target"),
        ("DuoRec", {}, "because its contrast is between whole histories"),
        ("CL4SRec", {}, "because its contrast is between whole histories"),
        ("STOSA", {}, "because it counts positions from the end"),
        ("BERT4Rec", {}, "because its attention sees what comes after a position"),
        ("NARM", {}, "because it is not known that a position does not see the item that it is to predict"),
        ("BPR", {}, "because it reads no histories"),
        ("SASRec", {"transform": "crop_itemseq"}, "transform 'crop_itemseq' changes histories"),
        (
            "SASRec",
            {
                "loss_type": "BPR",
                "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "dynamic": True},
            },
            "dynamic negatives, which a model scores for the end of a history",
        ),
        ("CausalRec", {"rows": "users"}, "rows must be one of prefixes, sequences, got 'users'"),
    ],
)
def test_what_cannot_be_trained_over_all_positions_is_refused(model, more, message):
    with pytest.raises(UserError) as refusal:
        RunConfig(model, "ml-100k", {"gpu_id": "", "rows": "sequences", **more})
    assert message in str(refusal.value)


def test_histories_that_are_no_targets_are_refused():
    """Of two targets with two items before each, as files with a history for each target give them."""
    columns = {"item_id": torch.tensor([3, 6]), "item_length": torch.tensor([2, 2])}
    flat = {"item_id_list": torch.arange(1, 7)}
    rows = PrefixRows(columns, flat, torch.tensor([0, 3]), torch.tensor([2, 5]), 5, "item_length")
    with pytest.raises(UserError, match="every item of a history but the first must be a training target"):
        SequenceRows(rows)


def test_rows_of_before_are_prefixes():
    configs = [RunConfig("SASRec", "ml-100k", {"gpu_id": "", **more}) for more in ({}, {"rows": "prefixes"})]
    assert configs[0].key() == configs[1].key() != RunConfig("SASRec", "ml-100k", {"rows": "sequences"}).key()

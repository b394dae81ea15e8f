"""``cooccurrence_weight``: scores for what followed a history's items in the training data."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec import Recommender, UserError, evaluate, export, run
from recbole_diffurec.experiments.audit_lines import _with_dropout
from recbole_diffurec.host.config import RunConfig, known_parameters
from recbole_diffurec.host.dataset import PrefixRows
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.host.sequences import SequenceRows
from recbole_diffurec.models import cooccurrence
from recbole_diffurec.models.cooccurrence import FLOOR, WINDOW, Cooccurrences, pairs
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.load import load_data_and_model
from recbole_diffurec.training.prepare import PreparedData, build
from recbole_diffurec.training.weights import load_weights

ITEMS = "item_id_list"
WEIGHT, DECAY = 1.5, 0.7
SMALL = {**TINY, "n_layers": 2, "inner_size": 32, "embedding_size": 16}
MODELS = [
    "CausalRec",
    "DiffuRec",
    "DiffuRecSys",
    "ADRec",
    "DCRec",
    "DuoRec",
    "CL4SRec",
    "SASRec",
    "GRU4Rec",
    "BERT4Rec",
]

HISTORIES = st.lists(st.lists(st.integers(1, 7), min_size=2, max_size=14), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def trained_with_them(tmp_path_factory) -> Path:
    """A checkpoint of a small model with co-occurrences."""
    folder = str(tmp_path_factory.mktemp("cooccurrences"))
    return Path(run("DiffuRec", **TINY, cooccurrence_weight=2.0, checkpoint_dir=folder)["checkpoint"])


def rows_of(histories: list[list[int]]) -> PrefixRows:
    """All prefixes, as a data set has them."""
    flat = torch.tensor([item for history in histories for item in history])
    ends = np.cumsum([len(history) for history in histories])
    starts = ends - [len(history) for history in histories]
    first = torch.tensor([start for start, end in zip(starts, ends) for _ in range(start + 1, end)])
    target = torch.tensor([place for start, end in zip(starts, ends) for place in range(start + 1, end)])
    length = (target - first).clamp(max=9)
    return PrefixRows({"item_id": flat[target], "item_length": length}, {ITEMS: flat}, first, target, 9, "item_length")


def counts_of(histories: list[list[int]]) -> Counter:
    return Counter(
        (history[place], history[later])
        for history in histories
        for later in range(len(history))
        for place in range(max(0, later - WINDOW), later)
    )


def similarities(counts: Counter) -> dict[tuple[int, int], float]:
    others = {pair: n for pair, n in counts.items() if pair[0] != pair[1]}
    before, after = Counter(), Counter()
    for (i, j), n in others.items():
        before[i] += n
        after[j] += n
    return {(i, j): n / math.sqrt(before[i] * after[j]) for (i, j), n in others.items()}


@settings(deadline=None, max_examples=40)
@given(histories=HISTORIES)
def test_pairs_are_counted_once_each_whatever_the_rows_are(histories):
    rows = rows_of(histories)
    expected = {pair: n for pair, n in counts_of(histories).items() if pair[0] != pair[1]}
    for of in (rows, rows[torch.randperm(len(rows))], SequenceRows(rows)):
        assert (
            Counter(pair for found in pairs(of, ITEMS) for pair in zip(*(part.tolist() for part in found))) == expected
        )


@settings(deadline=None, max_examples=40)
@given(histories=HISTORIES, at_once=st.integers(1, 30))
def test_a_stretch_of_items_at_a_time_is_the_same(histories, at_once):
    whole = Cooccurrences(8, WEIGHT, DECAY, rows_of(histories), ITEMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "PAIRS_AT_ONCE", at_once)
        parts = Cooccurrences(8, WEIGHT, DECAY, rows_of(histories), ITEMS)
    assert torch.equal(whole.successors, parts.successors) and torch.equal(whole.strength, parts.strength)


@settings(deadline=None, max_examples=40)
@given(histories=HISTORIES, asked=HISTORIES, width=st.integers(14, 17))
def test_scores_are_those_of_the_formula(histories, asked, width):
    module = Cooccurrences(8, WEIGHT, DECAY, rows_of(histories), ITEMS)
    similar = similarities(counts_of(histories))
    item_seq = torch.tensor([history + [0] * (width - len(history)) for history in asked])
    found = module(item_seq).added_to(torch.zeros(len(asked), 8))
    for row, history in enumerate(asked):
        for item in range(1, 8):
            recent = list(reversed(history))[:WINDOW]
            of_ages = (DECAY**age * math.log1p(similar.get((i, item), 0) / FLOOR) for age, i in enumerate(recent))
            assert float(found[row, item]) == pytest.approx(WEIGHT * sum(of_ages), rel=1e-5, abs=1e-6)


def test_the_strongest_successors_are_kept(monkeypatch):
    monkeypatch.setattr(cooccurrence, "SUCCESSORS", 2)
    histories = [[1, 2], [1, 2], [1, 3], [1, 4], [1, 4], [1, 4], [5, 3]]
    module = Cooccurrences(8, WEIGHT, DECAY, rows_of(histories), ITEMS)
    similar = similarities(counts_of(histories))
    assert module.successors[1].tolist() == [4, 2] and not module.strength[2].any()
    expected = [math.log1p(similar[1, item] / FLOOR) for item in (4, 2)]
    assert module.strength[1].tolist() == pytest.approx(expected)


def made(model: str, **parameters):
    known = {name: value for name, value in SMALL.items() if name in known_parameters(model)}
    data = PreparedData(RunConfig(model, "ml-100k", {**known, **parameters}))
    network, _ = build(data.config, dataset_of(data.loaders[0]))
    batches = [next(iter(loader)) for loader in data.loaders]
    return network.eval(), data, batches[0], batches[2][0]


@pytest.mark.parametrize("model", MODELS)
def test_rankings_have_them_and_training_has_not(model):
    plain, _, rows, users = made(model)
    network, data, _, _ = made(model, cooccurrence_weight=WEIGHT, cooccurrence_decay=DECAY)
    network.load_state_dict(plain.state_dict(), strict=False)
    users["item_id"] = users["item_id_list"][:, 0]  # whose successors are many
    scores, found = plain.full_sort_predict(users), network.full_sort_predict(users)
    module = Cooccurrences(plain.n_items, WEIGHT, DECAY, dataset_of(data.loaders[0]).inter_feat, ITEMS)
    expected = module(users["item_id_list"]).added_to(scores.view(len(users), -1))
    torch.testing.assert_close(found.view(len(users), -1)[:, 1:], expected[:, 1:])
    assert (found.view(len(users), -1)[:, 1:] > scores.view(len(users), -1)[:, 1:] + 0.1).any()
    one_each = network.predict(users)
    torch.testing.assert_close(one_each, found.view(len(users), -1).gather(1, users["item_id"].unsqueeze(1))[:, 0])
    losses = []
    for each in (plain, network):
        torch.manual_seed(0)
        loss = each.train().calculate_loss(rows)
        losses.append(sum(loss) if isinstance(loss, tuple) else loss)
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_validation_and_test_are_not_counted():
    """Nobody's last two items follow anything."""
    config = RunConfig("CausalRec", "ml-100k", {**TINY, "cooccurrence_weight": 1})
    data = PreparedData(config)
    training = dataset_of(data.loaders[0]).inter_feat
    held_out = {int(row) for loader in data.loaders[1:] for row in dataset_of(loader).inter_feat.target}
    assert held_out and not held_out & set(training.target.tolist())
    flat, n = training.flat[ITEMS], 0
    for gap in range(1, WINDOW + 1):
        inside = training.target[training.target - gap >= training.first]
        n += int((flat[inside] != flat[inside - gap]).sum())
    assert sum(len(item) for item, _ in pairs(training, ITEMS)) == n


@pytest.mark.parametrize("model", ["CausalRec", "DiffuRecSys", "SASRec"])
def test_a_checkpoint_keeps_them_and_a_weight_of_nothing_takes_them_away(model, workdir: Path, monkeypatch):
    values = {name: value for name, value in SMALL.items() if name in known_parameters(model)}
    result = run(model, **values, cooccurrence_weight=2.0, hidden_dropout_prob=0.1)
    path = result["checkpoint"]
    with monkeypatch.context() as patch:
        patch.setattr(cooccurrence, "pairs", None)  # nothing is counted that a checkpoint has
        again = evaluate(path, show_progress=False)["test_result"]
        without = evaluate(path, show_progress=False, cooccurrence_weight=0)["test_result"]
        load_data_and_model(path)
    assert again == result["test_result"] != without
    plain = run(model, **values, hidden_dropout_prob=0.1)
    assert plain["test_result"] == without, "one epoch learns the same with them and without"
    assert plain["n_parameters"] == result["n_parameters"]
    for use in (evaluate, Recommender.load):
        with pytest.raises(UserError, match="cooccurrence_weight 1: the checkpoint was trained without it"):
            use(plain["checkpoint"], cooccurrence_weight=1)
        with pytest.raises(UserError, match="trained with 2: give --cooccurrence_weight=0 for the network alone"):
            use(path, cooccurrence_weight=None)

    recommender = Recommender.load(path)
    history = [int(item) for item in recommender.items[1:6]]
    lists = recommender.recommend([list(map(str, history))], k=5)
    scores = recommender.network.full_sort_predict(recommender._interaction([list(range(1, 6))]))
    assert lists["score"].tolist() == pytest.approx(scores.view(-1).topk(5).values.tolist(), rel=1e-5)


@pytest.mark.parametrize(("model", "format"), [("CausalRec", "onnx"), ("DiffuRec", "torch")])
def test_a_program_has_them_and_a_query_says_that_it_has_not(model, format, workdir: Path):
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX needs onnxruntime")
    path = run(model, **TINY, cooccurrence_weight=2.0)["checkpoint"]
    written = export(path, "scores.bin", format)
    assert written["difference"] < 1e-3
    said = json.loads(Path(written["description"]).read_text())
    assert "not_in_query" not in said
    vectors = export(path, "vectors.npy", "npy")
    assert "cooccurrence_weight" in json.loads(Path(vectors["description"]).read_text())["not_in_query"]
    query = export(path, "query.bin", format, returns="query")
    assert "cooccurrence_weight" in json.loads(Path(query["description"]).read_text())["not_in_query"]


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        ("CausalRec", {"cooccurrence_weight": -1}, "cooccurrence_weight must be a finite number of at least 0"),
        ("SASRec", {"cooccurrence_weight": "much"}, "cooccurrence_weight must be a finite number of at least 0"),
        ("DiffuRec", {"cooccurrence_weight": 1, "cooccurrence_decay": 0}, "cooccurrence_decay must be"),
        ("VSAN", {"cooccurrence_weight": 1}, "unknown parameter 'cooccurrence_weight' for model VSAN"),
        ("BPR", {"cooccurrence_weight": 1}, "unknown parameter 'cooccurrence_weight' for model BPR"),
    ],
)
def test_what_cannot_act_is_refused(model, values, message):
    with pytest.raises(UserError, match=message):
        RunConfig(model, "ml-100k", values)


@pytest.mark.parametrize("model", ["DiffuRec", "SASRec"])
def test_a_decay_of_nothing_is_refused(model, workdir: Path):
    with pytest.raises(UserError, match=r"cooccurrence_decay .* --cooccurrence_weight=1"):
        run(model, cooccurrence_decay=0.5)


@pytest.mark.parametrize(
    ("name", "place", "number", "problem"),
    [
        ("successors", (2, 1), -1, "names what is none of its"),
        ("successors", (2, 1), 2**30, "names what is none of its"),
        ("successors", None, torch.int64, "holds torch.int64 where it has torch.int32"),
        ("successors", None, torch.float32, "holds torch.float32 where it has torch.int32"),
        ("strength", (2, 1), math.inf, "holds what no count of pairs gives"),
        ("strength", (2, 1), -0.5, "holds what no count of pairs gives"),
        ("strength", (0, 1), 0.5, "holds what no count of pairs gives"),
        ("strength", (2, 1), math.nan, "holds what is no number"),
    ],
)
def test_numbers_that_no_training_made_are_not_loaded(name, place, number, problem, trained_with_them: Path):
    state = checkpoint.open_run(trained_with_them)
    changed = state["state_dict"][f"cooccurrences.{name}"].clone()
    if place is None:
        changed = changed.to(number)
    else:
        changed[place] = number
    wrong = {**state, "state_dict": {**state["state_dict"], f"cooccurrences.{name}": changed}}
    network = Recommender.load(trained_with_them).network
    with pytest.raises(
        UserError, match=rf"checkpoint 'some.pth' is of no use, since '(cooccurrences\.)?{name}' {problem}"
    ):
        load_weights(network, wrong, "some.pth")


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("SASRec", {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}),
        ("RepeatNet", {"embedding_size": 8, "hidden_size": 8}),
        ("DIN", {"embedding_size": 8, "mlp_hidden_size": [8]}),
        ("TransRec", {"embedding_size": 8}),
        ("S3Rec", {"train_stage": "pretrain"}),
    ],
)
def test_models_whose_scores_are_no_logarithms_of_probabilities_are_refused(model, values):
    config = RunConfig(model, "ml-100k", {"gpu_id": "", "cooccurrence_weight": 1, "epochs": 1, **values})
    with pytest.raises(UserError, match=f"cooccurrence_weight adds to the logarithms .* {model} is trained by another"):
        build(config, dataset_of(PreparedData(config).loaders[0]))


def test_passes_with_dropout_have_them():
    network, _, _, users = made("DiffuRecSys", cooccurrence_weight=WEIGHT, hidden_dropout_prob=0.1)
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = network.full_sort_predict(users)
    torch.testing.assert_close(_with_dropout(network, users, 1), expected)


def test_rows_of_another_kind_are_refused():
    config = {"cooccurrence_weight": 1, "cooccurrence_decay": 1, "model": "Own", "successors_from": None}
    dataset = SimpleNamespace(inter_feat={"item_id": torch.ones(3)})
    with pytest.raises(UserError, match="data set of its own kind"):
        Cooccurrences.of(config, dataset, 5, ITEMS)

"""Audits of models of which it is known what their diffusion contributes, and the measuring itself."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from recbole_diffurec import UserError
from recbole_diffurec.experiments import audit as audit_module
from recbole_diffurec.experiments import audit_bench, audit_lines, audit_tables, stats
from recbole_diffurec.experiments.audit import Extent, short_audit
from recbole_diffurec.experiments.audit_bench import Measured
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.models.base import DiffusionRecommender
from recbole_diffurec.training.prepare import build, prepare_data
from recbole_diffurec.training.run import TrainedRun

N_ITEMS, N_USERS = 24, 160
HERE = {
    "data_path": "data", "gpu_id": "", "show_progress": False, "topk": [5, 10], "hidden_size": N_ITEMS + 1,
    "n_heads": 1, "n_layers": 1, "diffusion_steps": 8, "MAX_ITEM_LIST_LENGTH": 8,
}  # fmt: skip


class Known:
    """A denoiser that knows the next item, and makes of the noised vector what it is told to.

    Parameters
    ----------
    after : Tensor
        [I, I], from an item to the one after it.
    use : callable
        From the right answer [B, I] and the noised vector [B, I] to the estimate.
    """

    token_noise = (0.0, 0.0)

    def __init__(self, after, use):
        self.after, self.use = after, use

    def condition(self, embeddings, batch):
        return batch.restore(embeddings[batch.last])

    def __call__(self, condition, x_s, t, draws):
        return self.use(condition @ self.after, x_s)

    def in_bfloat16(self):
        return self


def half_right(answer, x_s):
    """Right for every other user, and without the vector for every other item."""
    without = (x_s == 0).all(dim=1)
    right = torch.where(without, answer.argmax(dim=1) % 2 == 0, x_s[:, 0] > 0)
    return torch.where(right.unsqueeze(1), answer, -answer)


USES = {
    "needs the vector": lambda answer, x_s: answer * torch.where((x_s == 0).all(dim=1, keepdim=True), -1.0, 1.0),
    "ignores it": lambda answer, x_s: answer,
    "is half right": half_right,
    "is disturbed by it": lambda answer, x_s: answer + 2 * x_s,
}


@pytest.fixture
def ring(workdir):
    """Users who walk round a ring of items, the next one with certainty."""
    draw = random.Random(7)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(N_USERS):
        start = draw.randrange(N_ITEMS)
        lines += [f"u{user}\ti{(start + n) % N_ITEMS}\t{n}" for n in range(draw.randrange(6, 9))]
    (workdir / "data" / "ring").mkdir(parents=True)
    (workdir / "data" / "ring" / "ring.inter").write_text("\n".join(lines) + "\n")
    return workdir


def known_model(use: str, n_users: int = N_USERS) -> TrainedRun:
    """A model that was never trained, and knows."""
    config = RunConfig("DiffuRec", "ring", HERE)
    data = prepare_data(config)
    network, trainer = build(data.config, dataset_of(data.loaders[0]))
    number = {token: n for n, token in enumerate(data.id_tokens["items"])}
    after = torch.zeros(N_ITEMS + 1, N_ITEMS + 1)
    for n in range(N_ITEMS):
        after[number[f"i{n}"], number[f"i{(n + 1) % N_ITEMS}"]] = 1
    with torch.no_grad():
        network.item_embedding.weight.copy_(torch.eye(N_ITEMS + 1))
    network.__dict__["denoiser"] = Known(after, USES[use])
    return TrainedRun(config, data, network, trainer, {})


@pytest.mark.parametrize(
    ("use", "users", "answer", "as_trained"),
    [
        ("needs the vector", N_USERS, "yes", 1.0),
        ("ignores it", N_USERS, "no", 1.0),
        ("is disturbed by it", N_USERS, "no", None),
        ("is half right", N_USERS, "undecided", None),
        ("ignores it", 60, "undecided", 1.0),
    ],
)
def test_the_verdict_of_models_that_are_known(use, users, answer, as_trained, ring, monkeypatch):
    monkeypatch.setattr(audit_module, "FEW_USERS", users)
    found = short_audit(known_model(use))
    assert found["verdict"]["answer"] == answer and found["users"] == users
    base, without, one_step = found["lines"]
    assert as_trained is None or base["ndcg"] == as_trained
    if use == "needs the vector":
        assert without["ndcg"] == 0 and without["difference"]["ndcg"]["p_corrected"] < 1e-6 and without["overlap"] < 1
        assert one_step["difference"]["ndcg"]["mean"] == 0  # of one step or many, all have a vector
    if use == "is disturbed by it":
        assert without["ndcg"] == 1 and "costs more" in found["verdict"]["sentence"]
        assert found["seeds"]["overlap"] < 0.9 and found["seeds"]["spread_mean"] > 0
    if use == "ignores it":
        assert found["seeds"]["overlap"] == 1 and found["seeds"]["ndcg_deviation"] == 0


def test_short_audits_are_of_diffusion_models(ring):
    run = known_model("ignores it")
    run.network.__class__ = type("Other", (torch.nn.Module,), {})
    assert short_audit(run) is None


def test_what_samples_say(ring):
    run = known_model("is disturbed by it")
    bench = audit_bench.Bench(run.trainer, run.data.loaders[2], 10)
    drawn = audit_lines.Samples(bench, run.network.eval(), 4)
    mean = drawn.mean()
    assert mean.gains["ndcg"].mean() > max(sample.gains["ndcg"].mean() for sample in drawn.each)
    assert mean.ms_per_user > sum(sample.ms_per_user for sample in drawn.each)
    found = drawn.uncertainty(mean)
    assert found["spread_and_rank"]["users"] == N_USERS
    # One draw of four is right about as often as it is drawn; a single sample is sure of what disturbed it.
    assert found["frequencies"]["brier"] < 2 and found["mean_of_samples"]["accuracy"] > found["one_sample"]["accuracy"]
    # The network alone says how often it is right: the samples' probabilities are those of its scores.
    x_0 = run.network.reconstructions(next(iter(run.data.loaders[2]))[0], [0])[0]
    scores = run.network.logits(x_0, next(iter(run.data.loaders[2]))[0]["item_id_list"])
    confidence = torch.softmax(scores, dim=1).max(dim=1).values
    assert found["one_sample"]["mean_confidence"] == pytest.approx(confidence.mean().item(), rel=1e-5)


# Lines


def names(lines: Any) -> list[str]:
    return [line.name for line in lines]


def reason(line: Any) -> str:
    with pytest.raises(audit_lines.NotApplicable) as caught:
        line.make()
    return str(caught.value)


def test_steps_are_doubled_to_all_of_them(ring):
    network = known_model("ignores it").network
    powers = [2, 4, 8]
    expected = ["one_step", *(f"ddpm_{n}" for n in powers), *(f"ddim_{n}" for n in powers)]
    assert names(audit_lines.step_lines(network)) == expected


def test_a_model_without_hooks_is_audited_by_what_it_has(ring, monkeypatch):
    run = known_model("needs the vector")
    for name in ("without_noised_target", "with_other_noise", "with_frozen_step", "with_sampler"):
        monkeypatch.setattr(type(run.network), name, getattr(DiffusionRecommender, name))
    found = short_audit(run)
    assert "without_noised_target" in found["lines"][1]["not_applicable"]
    assert found["verdict"]["line"] == "one_step" and found["verdict"]["answer"] == "no"
    *own, none = audit_lines.step_lines(run.network)
    assert names(own) == ["one_step", "own_2", "own_4", "own_8"] and "with_sampler" in reason(none)
    assert any("with_sampler" in sentence for sentence in [reason(none)])
    assert audit_tables.not_applicable(found)[0].startswith(
        "Not applicable: noised vector's factor 0, because DiffuRec"
    )


def test_what_takes_one_step_has_no_other_numbers(ring):
    network = known_model("ignores it").network
    network.reverse_start = "last_item"
    (line,) = audit_lines.step_lines(network)
    assert "one step" in reason(line)
    batch = None
    assert "one step" in reason(audit_lines.dropout_line(network, batch))


def test_dropout_is_on_in_its_line_alone(ring):
    run = known_model("ignores it")
    batch = next(iter(run.data.loaders[2]))[0]
    network = run.network.eval()
    assert reason(audit_lines.dropout_line(network, batch)) == "the network has no dropout"

    def with_dropout(answer, x_s):
        return torch.nn.functional.dropout(answer, 0.5, network_of_line.training)

    network.__dict__["denoiser"].use = with_dropout
    network_of_line = torch.nn.Linear(1, 1)
    monitored = network.with_sampling_steps
    network.__dict__["with_sampling_steps"] = lambda n: _watched(monitored(n), network_of_line)
    score = audit_lines.dropout_line(network, batch).make()
    torch.manual_seed(0)
    first = score(batch)
    assert not torch.equal(first, score(batch)) and not network_of_line.training
    passes, one = network.sampling_steps, _watched(monitored(1), network_of_line).train()
    torch.manual_seed(0)
    with torch.no_grad():
        each = [one.full_sort_predict(batch).softmax(dim=1) for _ in range(passes)]
    one.eval()
    torch.testing.assert_close(first.softmax(dim=1), torch.stack(each).mean(dim=0))


def _watched(network, other):
    network.add_module("watched", other)
    return network


# Measures


def test_overlap_of_lists():
    lists = np.array([[1, 2, 3], [1, 2, 0], [4, 0, 0], [0, 0, 0]])
    others = np.array([[3, 4, 1], [2, 1, 0], [4, 5, 0], [0, 0, 0]])
    assert audit_bench.overlap(lists, others).tolist() == [2 / 3, 1, 0.5, 1]


def measured(ndcg: np.ndarray) -> Measured:
    lists = np.ones((len(ndcg), 1), dtype=int)
    return Measured({"hit": ndcg, "ndcg": ndcg}, ndcg, lists, lists[:, 0], {}, 1.0, None)


def test_lines_are_tested_against_the_first_of_them_and_corrected_together():
    draw = np.random.default_rng(0)
    base = draw.random(300)
    found = {"a": measured(base), "b": measured(base + draw.normal(0.012, 0.1, 300)), "c": measured(base)}
    told = [{"name": name, "label": name} for name in "abc"] + [{"name": "d", "label": "d", "not_applicable": "so"}]
    first, better, same, none = audit_bench.compare_lines(found, told)
    assert "difference" not in first and none == told[3]
    own = better["difference"]["ndcg"]
    both = [stats.user_test(found["b"].gains["ndcg"], base, side) for side in ("greater", "less")]
    assert (
        own["p"] == pytest.approx(2 * min(both))
        and own["p_corrected"] == pytest.approx(2 * own["p"])
        and own["p"] > 1e-4
    )
    assert own["low"] < own["mean"] < own["high"] and own["mean"] == pytest.approx(
        (found["b"].gains["ndcg"] - base).mean()
    )
    assert same["difference"]["ndcg"] == {"mean": 0, "low": 0, "high": 0, "p": 1, "p_corrected": 1}


def test_users_with_several_targets_count_once():
    assert audit_bench.mean_by(np.array([1, 0, 1, 1]), np.array([0.0, 5.0, 3.0, 6.0])).tolist() == [5, 3]


def test_users_are_drawn_by_the_seed(ring):
    data = known_model("ignores it").data
    fields = data.config["USER_ID_FIELD"]

    def users(n, seed):
        loader, total = audit_bench.sample_users(data.loaders[2], fields, n, seed)
        assert total == N_USERS
        return np.asarray(dataset_of(loader).inter_feat[fields]).tolist()

    assert users(20, 1) == users(20, 1) != users(20, 2) and len(set(users(20, 1))) == 20
    assert len(users(None, 1)) == len(users(10_000, 1)) == N_USERS


@pytest.mark.parametrize("values", [(0, 10, 1), (True, 10, 1), (5.0, 10, 1), (None, 1, 1), (5, 10, -1), ("5", 10, 1)])
def test_wrong_extents_are_refused(values):
    with pytest.raises(UserError, match="must be an integer of at least"):
        Extent(*values)

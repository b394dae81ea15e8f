"""Several draws of the noise for each row: the loss of their mean probability against its definition."""

from __future__ import annotations

import itertools
import math

import oracle
import pytest
import torch
from conftest import FakeDataset, make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_item_softmax import logits_with, problem, some_additions

from recbole_diffurec import UserError
from recbole_diffurec.diffusion.noise import FreshNoise
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.layers import item_softmax
from recbole_diffurec.layers.item_softmax import LogitBias, SampledCrossEntropy, full_cross_entropy
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.models.diffurec import DIFFUREC, DiffuRec
from recbole_diffurec.models.objectives import SquaredErrorObjective

LENGTHS = [3, 6, 12, 1, 5]


def mixture(log_p: torch.Tensor) -> torch.Tensor:
    """-log of the mean over draws [B, K] of probabilities, as it is written."""
    return -log_p.exp().mean(dim=1).log()


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 9), k=st.integers(1, 5), n_items=st.integers(2, 30), chunk=st.integers(1, 700),
    seed=st.integers(0, 10**6), biased=st.booleans(),
)  # fmt: skip
def test_the_loss_and_gradients_are_those_of_the_mean_probability(n, k, n_items, chunk, seed, biased):
    """Whatever is computed at once, with additions to the logits and without."""
    x, items, _, _ = problem(n * k, n_items, seed)
    _, _, target, weight = problem(n, n_items, seed)
    added = some_additions(n, n_items, seed) if biased else None
    if added is None:
        logits = (x @ items.T)[:, 1:]
    else:
        logits = logits_with(x, items, LogitBias(*(part.repeat_interleave(k, dim=0) for part in added)))
    log_p = logits.log_softmax(dim=1).gather(1, target.repeat_interleave(k).unsqueeze(1) - 1).view(n, k)
    inputs = (x, items) if added is None else (x, items, added.scores)
    expected = torch.autograd.grad(3 * (weight * mixture(log_p)).sum(), inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_softmax, "CHUNK_LOGITS", {"cuda": chunk})
        patch.setattr(item_softmax, "CHUNK_ROWS", 1)
        loss, losses = full_cross_entropy(x.view(n, k, -1), items, target, weight, added)
    torch.testing.assert_close(losses, mixture(log_p).detach())
    torch.testing.assert_close(loss, (weight * mixture(log_p)).sum())
    torch.testing.assert_close(torch.autograd.grad(3 * loss, inputs), expected)


def test_the_gradient_is_that_of_finite_differences():
    x, items, target, weight = problem(6, 9, 0)
    torch.autograd.gradcheck(
        lambda x, items: full_cross_entropy(x.view(3, 2, -1), items, target[:3], weight[:3])[0], (x, items)
    )


def test_no_more_logits_exist_at_once_than_of_one_draw(monkeypatch):
    """Rows of several draws are taken fewer at a time."""
    sizes, exp_ = [], torch.Tensor.exp_
    monkeypatch.setattr(item_softmax, "CHUNK_LOGITS", {"cuda": 400, "cpu": 400})
    monkeypatch.setattr(item_softmax, "CHUNK_ROWS", 8)
    monkeypatch.setattr(torch.Tensor, "exp_", lambda self: (sizes.append(self.numel()), exp_(self))[1])
    x, items, target, weight = problem(120, 20, 0)
    for k in (1, 4, 8):
        sizes.clear()
        full_cross_entropy(x.view(-1, k, 5), items, target[: 120 // k], weight[: 120 // k])
        assert max(sizes) <= 400 and len(sizes) >= 6


def test_sampled_negatives_estimate_the_full_mixture():
    x, items, _, _ = problem(12, 40, 1)
    _, _, target, weight = problem(4, 40, 1)
    added = some_additions(4, 40, 2)
    torch.manual_seed(0)
    sampled = SampledCrossEntropy(torch.arange(40), 200_000, "uniform").double()
    for additions in (None, added):
        loss, losses = sampled(x.view(4, 3, 5), items, target, weight, additions)
        full, each = full_cross_entropy(x.view(4, 3, 5), items, target, weight, additions)
        torch.testing.assert_close(loss, full, rtol=0.02, atol=0)
        torch.testing.assert_close(losses, each, rtol=0.05, atol=0)


def given_draws(model, batch, monkeypatch, k: int):
    """Noise, steps and lambdas of k draws, which ``calculate_loss`` takes one after the other."""
    generator = torch.Generator().manual_seed(1)
    n, padded = batch["item_id_list"].shape
    d = model.hidden_size
    noise = torch.randn(k, n, d, generator=generator, dtype=torch.float64)
    tokens = torch.randn(k, n, padded, d, generator=generator, dtype=torch.float64)
    steps = torch.randint(model.n_steps, (k, n), generator=generator)
    ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])
    place = (batch["item_length"][ragged.row] - 1 - ragged.age).clamp(min=0)
    mean, std = model.denoiser.token_noise
    starts, of_tokens, chosen = iter(noise), iter(tokens), iter(steps)
    monkeypatch.setattr(FreshNoise, "start", lambda self: next(starts))
    monkeypatch.setattr(FreshNoise, "per_token", lambda self, *_: mean + std * next(of_tokens)[ragged.row, place])
    monkeypatch.setattr(model.step_sampler, "sample", lambda n, *_: (next(chosen), torch.ones(n)))
    return noise + model.offset, mean + std * tokens, steps


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_a_model_s_loss_and_gradients_are_those_of_the_padded_oracle(name, monkeypatch):
    model, batch = make_model(name, draws=3, lambda_uncertainty=0.5), make_batch(LENGTHS)
    noise, tokens, steps = given_draws(model, batch, monkeypatch, 3)
    seq, lengths, target = batch["item_id_list"], batch["item_length"], batch["item_id"]
    rows = [slice(row, row + 1) for row in range(len(lengths))]
    log_p = [
        [-oracle.loss(model, seq[r], lengths[r], target[r], steps[k, r], noise[k, r], tokens[k, r]) for k in range(3)]
        for r in rows
    ]
    expected = mixture(torch.stack([torch.stack(of_row) for of_row in log_p])).mean()
    loss = model.calculate_loss(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    parameters = dict(model.named_parameters())
    gradients = (torch.autograd.grad(value, list(parameters.values())) for value in (loss, expected))
    for key, found, wanted in zip(parameters, *gradients):
        if key == "item_embedding.weight":
            found[0] = wanted[0] = 0.0  # the oracle has no padding row
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9, msg=lambda m, n=key: f"{n}: {m}")


@pytest.mark.parametrize("sampled", [None, 7])
@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_one_draw_is_what_there_was(name, sampled):
    """The loss of the estimate [B, d] as it is defined without draws, and to the last bit the same random numbers."""
    batch, found = make_batch(LENGTHS), []
    model = make_model(name, repeat_bias=True).train()
    if sampled:
        model.objective.cross_entropy = SampledCrossEntropy(torch.arange(31), sampled, "uniform").double()
    torch.manual_seed(3)
    loss = model.calculate_loss(batch)
    found = torch.autograd.grad(loss, model.item_embedding.weight)[0]
    torch.manual_seed(3)
    ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])
    condition = model.condition(ragged, model.denoiser)
    x_0 = model.item_embedding(batch["item_id"])
    draws = FreshNoise(len(LENGTHS), len(ragged.items), model.hidden_size, x_0)
    t, weight = model.step_sampler.sample(len(LENGTHS), x_0.device)
    x_s = model.process.q_sample(x_0, t, draws.start() + model.offset)
    x = model.denoiser(condition, x_s, t, draws)
    bias = model.scores.bias(batch["item_id_list"])
    expected, _ = model.objective(x, x_0, batch["item_id"], weight.to(x_0.dtype) / len(LENGTHS), bias)
    assert torch.equal(loss, expected)
    assert torch.equal(found, torch.autograd.grad(expected, model.item_embedding.weight)[0])
    x, items, target, weight = problem(6, 9, 0)
    logits = x @ items.T
    logits[:, 0] = -math.inf
    losses = -logits.log_softmax(dim=-1).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(full_cross_entropy(x, items, target, weight)[1], losses.detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_keyed_draws_differ_and_depend_on_their_row_alone(name):
    model, batch = make_model(name, keyed_noise=True, draws=3, lambda_uncertainty=0.5), make_batch(LENGTHS)
    order = torch.tensor([4, 0, 3, 1, 2])
    parts = batch[order[:2]], batch[order[2:]]
    with torch.no_grad():
        whole = model.calculate_loss(batch).item()
        mean = sum(len(part) * model.calculate_loss(part).item() for part in parts) / len(LENGTHS)
    assert mean == pytest.approx(whole, rel=1e-9)
    ragged, target = RaggedBatch(batch["item_id_list"], batch["item_length"]), batch["item_id"]
    x_0 = model.item_embedding(target)
    drawn = [model._training_draws(ragged, target, x_0, draw) for draw in range(3)]
    starts, uniforms = [draws.start() for draws, _ in drawn], [uniform for _, uniform in drawn]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(starts))
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(uniforms))


def test_the_history_is_encoded_once(monkeypatch):
    model, batch, calls = make_model(draws=4), make_batch(LENGTHS), []
    model.approximator.embedding_norm.register_forward_hook(lambda *_: calls.append(1))
    model.calculate_loss(batch).backward()
    assert len(calls) == 1


def test_draws_are_a_latent_code():
    """Where the next item is one of two opposite ones, two draws stand for one each, and one is near to neither."""
    items = torch.tensor([[0.0, 0.0], [5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]], dtype=torch.float64)
    target = torch.tensor([1, 2])  # of the same history
    reached = {}
    for k in (1, 2):
        x = torch.tensor([[0.1, 0.0], [-0.1, 0.0]], dtype=torch.float64)[:k].clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            loss, _ = full_cross_entropy(x.expand(2, k, 2), items, target, torch.full((2,), 0.5))
            loss.backward()
            optimizer.step()
        reached[k] = loss.item()
    assert reached == {1: pytest.approx(math.log(4), abs=0.01), 2: pytest.approx(math.log(2), abs=0.01)}


@pytest.mark.parametrize("k", [1, 3])
def test_the_squared_error_comes_on_top(k):
    """w times the mean squared difference from what was noised, over draws and dimensions; it moves no target."""
    plain, model = (make_model(draws=k, keyed_noise=True, squared_error_weight=w) for w in (0.0, 0.7))
    model.load_state_dict(plain.state_dict())
    estimates, denoise, batch = [], model.denoiser, make_batch(LENGTHS)

    def kept(*inputs):
        estimates.append(denoise(*inputs))
        return estimates[-1]

    kept.condition = denoise.condition
    model.__dict__["denoiser"] = kept
    difference = model.calculate_loss(batch) - plain.calculate_loss(batch)
    vectors = model.item_embedding(batch["item_id"]).detach()
    errors = torch.stack([(estimate - vectors).square().mean() for estimate in estimates])
    torch.testing.assert_close(difference, 0.7 * errors.mean())
    x_0 = model.item_embedding(batch["item_id"])
    loss, _ = model.objective(torch.zeros_like(x_0), x_0, batch["item_id"], torch.ones(len(LENGTHS)), None)
    without, _ = plain.objective(torch.zeros_like(x_0), x_0, batch["item_id"], torch.ones(len(LENGTHS)), None)
    assert loss > without and not torch.autograd.grad(loss - without, model.item_embedding.weight)[0].any()


def test_losses_of_other_objectives_are_not_drawn_in_one_place():
    said = [
        DIFFUREC.loss_of(values)
        for values in ({}, {"draws": 1, "squared_error_weight": 0.0}, {"draws": 4}, {"squared_error_weight": 0.5})
    ]
    assert said == [
        "cross-entropy", "cross-entropy", "cross-entropy of the mean of 4 draws",
        "cross-entropy and 0.5 of the squared error",
    ]  # fmt: skip


def test_what_draws_cannot_go_with_is_refused():
    with pytest.raises(UserError, match="draws: 2 has one loss for several steps"):
        make_model("DiffuRec", draws=2, step_sampler="loss_aware")
    for wrong in (0, 1001, 1.5, "many"):
        with pytest.raises(UserError, match="draws"):
            make_model("DiffuRec", draws=wrong)

    class Distant(DiffuRec):
        def build_objective(self, config, dataset):
            return SquaredErrorObjective()

    config = RunConfig("DiffuRec", "test", {"hidden_size": 16, "n_heads": 2, "gpu_id": "", "draws": 2})
    with pytest.raises(UserError, match="draws must be 1: the objective of model 'DiffuRec' takes one, got 2"):
        Distant(config, FakeDataset(31))

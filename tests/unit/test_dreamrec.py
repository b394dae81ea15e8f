"""DreamRec against loops in numpy: its losses, its guided reverse process; rows without a history; what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_diffurec.data.rows import ROW
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.models.spec import variants

LENGTHS = [1, 12, 5, 5, 7, 2]
STEPS, HEADS = 9, 2
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def model_of(**parameters):
    """Weights large enough that every part of the network makes a difference."""
    torch.manual_seed(3)
    small = {"diffusion_steps": STEPS, "sampling_steps": None, "n_heads": HEADS}
    model = make_model("DreamRec", **{**small, **parameters})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


class Given:
    """Draws that are known, as they are here for the rows of a batch."""

    def __init__(self, n_rows, dim, dropped):
        generator = torch.Generator().manual_seed(1)
        self.noise = torch.randn(3, n_rows, dim, generator=generator, dtype=torch.float64)
        self.noise[2, :, 0] = torch.where(torch.tensor(dropped), -9.0, 9.0)

    def start(self):
        return self.noise[0]

    def step(self, t):
        return self.noise[1 + t]


# The reference


def normed(x, weights, name):
    x = x - x.mean(axis=-1, keepdims=True)
    return (
        x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-12) * weights[name + ".weight"] + weights[name + ".bias"]
    )


def linear(x, weights, name):
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def causal_block(x, weights, name):
    h = normed(x, weights, f"{name}.attention_norm")
    q, k, v = (linear(h, weights, f"{name}.attention.{part}") for part in ("query", "key", "value"))
    size, found = x.shape[1] // HEADS, np.zeros_like(x)
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            scores = np.exp([q[i, own] @ k[j, own] / np.sqrt(size) for j in range(i + 1)])
            found[i, own] = (scores / scores.sum()) @ v[: i + 1, own]
    x = x + linear(found, weights, f"{name}.attention.output")
    inner = np.maximum(linear(normed(x, weights, f"{name}.ffn_norm"), weights, f"{name}.ffn.0"), 0)
    return x + linear(inner, weights, f"{name}.ffn.2")


def vector_of(items, weights):
    """g of one history."""
    age = np.arange(len(items))[::-1]
    x = weights["item_embedding.weight"][items] + weights["position_embedding.weight"][age]
    n = len({name.split(".")[3] for name in weights if name.startswith("network.encoder.blocks")})
    for number in range(n):
        x = causal_block(x, weights, f"network.encoder.blocks.{number}")
    return normed(x[-1], weights, "network.encoder.output_norm")


def step_embedding(t, weights):
    half = weights["step_embedding.inner.weight"].shape[1] // 2
    angles = [t * 1000 / STEPS * 10000 ** (-k / half) for k in range(half)]
    inner = linear(np.concatenate([np.cos(angles), np.sin(angles)]), weights, "step_embedding.inner")
    return linear(inner / (1 + np.exp(-inner)), weights, "step_embedding.outer")


def estimate_of(x, g, t, weights):
    x = linear(np.concatenate([x, g, step_embedding(t, weights)]), weights, "network.estimate.0")
    if "network.estimate.2.weight" in weights:
        gelu = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x])
        x = linear(gelu, weights, "network.estimate.2")
    return x


def arrays(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


ERRORS = {
    "squared": lambda a, b: ((a - b) ** 2).mean(),
    "cosine": lambda a, b: (a @ b / np.sqrt((a @ a) * (b @ b)) - 1) ** 2,
}


# Training


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"denoiser_layers": 2, "n_layers": 1},
        {"error": "cosine", "preference_weight": 0.6},
        {"preference_weight": 0.3, "preference_scale": 2.0, "consistency_weight": 0.7},
        {"noised_target": False},
    ],
)
def test_the_loss_is_that_of_loops(parameters):
    model, batch = model_of(**parameters), make_batch(LENGTHS)
    batch.interaction[ROW] = torch.arange(len(LENGTHS))
    dropped, t = [False, True, False, False, True, False], [0, 3, STEPS - 1, 5, 0, 1]
    draws = Given(len(LENGTHS), model.hidden_size, dropped)
    model._training_draws = lambda *_: (draws, None)
    model.step_sampler.sample = lambda n, device, uniform: (torch.tensor(t), torch.ones(n))
    found = [part.item() for part in model.calculate_loss(batch)]

    weights, (noise, other_noise, _) = arrays(model), draws.noise.numpy()
    alpha_bar = np.cumprod(1 - model.sampler.betas)
    vectors = weights["item_embedding.weight"][batch["item_id"].numpy()]
    error, share = ERRORS[parameters.get("error", "squared")], parameters.get("preference_weight", 0)
    losses, before = [], []
    for row, length in enumerate(LENGTHS):
        items = batch["item_id_list"][row, :length].numpy()
        g = weights["network.nothing"] if dropped[row] else vector_of(items, weights)

        def estimate(x_0, step, eps, g=g):
            if "noised_target" in parameters:
                return estimate_of(np.zeros_like(x_0), g, STEPS - 1, weights)
            return estimate_of(np.sqrt(alpha_bar[step]) * x_0 + np.sqrt(1 - alpha_bar[step]) * eps, g, step, weights)

        own = estimate(vectors[row], t[row], noise[row])
        loss = error(own, vectors[row])
        centroid = np.mean([vectors[other] for other in range(len(LENGTHS)) if other != row], axis=0)
        other = error(estimate(centroid, t[row], other_noise[row]), centroid)
        sigmoid = 1 / (1 + np.exp(parameters.get("preference_scale", 5.0) * (loss - other)))
        losses.append((1 - share) * loss - share * np.log(sigmoid))
        if t[row] > 0:
            before.append(((own - estimate(vectors[row], t[row] - 1, noise[row])) ** 2).mean())
    expected = [np.mean(losses)]
    if "consistency_weight" in parameters:
        expected.append(0.7 * np.sum(before) / len(LENGTHS))
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_row_alone_has_no_others():
    model, batch = model_of(preference_weight=0.4), make_batch([5])
    batch.interaction[ROW] = torch.arange(1)
    plain = model_of()
    losses = []
    for own in (model, plain):
        own._training_draws = lambda *_: (Given(1, 16, [False]), None)
        own.step_sampler.sample = lambda n, device, uniform: (torch.tensor([3]), torch.ones(n))
        losses.append(own.calculate_loss(batch)[0].item())
    assert losses[0] == pytest.approx(0.6 * losses[1])


@settings(deadline=None, max_examples=10)
@given(share=st.sampled_from([0.0, 0.1, 0.5, 0.9]), keyed=st.booleans(), seed=st.integers(0, 99))
def test_the_share_of_rows_without_a_history(share, keyed, seed):
    model = make_model("DreamRec", history_drop_prob=share, guidance=0.0, keyed_noise=keyed)
    seen = []
    without = model.without_history
    model.without_history = lambda condition, dropped: seen.append(dropped) or without(condition, dropped)
    torch.manual_seed(seed)
    model.calculate_loss(make_batch([5] * 2000, seed=seed))
    (dropped,) = seen
    assert dropped.double().mean().item() == pytest.approx(share, abs=5 * (share * (1 - share) / 2000) ** 0.5)


def test_only_a_history_that_is_there_learns():
    for share, learns in ((0.0, False), (1 - 1e-9, True)):
        model = make_model("DreamRec", history_drop_prob=share, guidance=0.0)
        model.calculate_loss(make_batch(LENGTHS))[0].backward()
        assert bool((model.network.nothing.grad != 0).any()) == learns
        encoder = model.network.encoder.blocks[0].attention.query.weight
        assert bool((encoder.grad != 0).any()) != learns


# Inference


@pytest.mark.parametrize(
    "parameters",
    [{"sampling_steps": 3}, {"guidance": 0.0}, {"denoiser_layers": 2, "ddim_eta": 1.0}, {"sampler": "ddpm"}],
)
def test_the_guided_reverse_process_is_that_of_loops(parameters):
    model, batch = model_of(**{"guidance": 1.5, **parameters}), make_batch(LENGTHS)
    weights = arrays(model)
    with torch.no_grad():
        found = model.full_sort_predict(batch).numpy()
        program = model.program()
        draws = program.draws(batch["item_id_list"])
        torch.testing.assert_close(program(**draws), torch.from_numpy(found))
    noise, visits = draws["noise"].numpy(), model.visits[::-1]
    alpha_bar, w = np.cumprod(1 - model.sampler.betas)[visits], parameters.get("guidance", 1.5)
    for row, length in enumerate(LENGTHS):
        g, x = vector_of(batch["item_id_list"][row, :length].numpy(), weights), noise[0, row]
        for draw, index in enumerate(range(len(visits) - 1, -1, -1), start=1):
            given = estimate_of(x, g, visits[index], weights)
            x_0 = (1 + w) * given - w * estimate_of(x, weights["network.nothing"], visits[index], weights)
            if index == 0:
                break
            now, before = alpha_bar[index], alpha_bar[index - 1]
            beta = 1 - now / before
            if parameters.get("sampler") == "ddpm":
                mean = (np.sqrt(before) * beta * x_0 + np.sqrt(1 - beta) * (1 - before) * x) / (1 - now)
                x = mean + np.sqrt(beta) * noise[draw, row]
            else:
                sigma = parameters.get("ddim_eta", 0.0) * np.sqrt((1 - before) / (1 - now) * beta)
                eps = (x - np.sqrt(now) * x_0) / np.sqrt(1 - now)
                x = np.sqrt(before) * x_0 + np.sqrt(1 - before - sigma**2) * eps + sigma * noise[draw, row]
        np.testing.assert_allclose(found[row, 1:], weights["item_embedding.weight"][1:] @ x_0, rtol=1e-7, atol=1e-8)


def test_several_chains_are_scored_by_their_mean_softmax():
    batch, seeds = make_batch(LENGTHS), [4, 7, 9]
    with torch.no_grad():
        each = [model_of(noise_seed=seed).full_sort_predict(batch)[:, 1:].softmax(dim=1) for seed in seeds]
        together = model_of(ensemble_seeds=seeds).full_sort_predict(batch)[:, 1:].softmax(dim=1)
    assert not torch.equal(each[0], each[1])
    torch.testing.assert_close(together, torch.stack(each).mean(dim=0))


def test_guidance_is_around_what_an_audit_changes():
    """Without the noised vector one step is one whatever the noise, and is still guided."""
    batch, found = make_batch(LENGTHS), {}
    with torch.no_grad():
        for w in (0.0, 1.0, 2.0):
            model = model_of(guidance=w).without_noised_target().with_sampling_steps(1)
            found[w], other = model.reconstructions(batch, [1, 2])
            assert torch.equal(found[w], other)
    assert not torch.allclose(found[0.0], found[1.0])
    torch.testing.assert_close(found[2.0] - found[1.0], found[1.0] - found[0.0])


def test_inference_in_bfloat16_is_about_the_same():
    torch.manual_seed(0)
    model, batch = make_model("DreamRec").float(), make_batch(LENGTHS)
    with torch.no_grad():
        names, exact = set(model.state_dict()), model.full_sort_predict(batch)[:, 1:]
        model.enable_amp = True
        rounded = model.full_sort_predict(batch)[:, 1:]
    assert set(model.state_dict()) == names and rounded.dtype == torch.float32
    assert 0 < ((rounded - exact).norm() / exact.norm()).item() < 0.05


def test_the_variants_are_the_losses_of_the_papers():
    own = {name: fixed for name, (spec, fixed) in variants().items() if spec.name == "DreamRec"}
    assert own.keys() == {"PreferDiff", "TARecStage1"}
    batch = make_batch(LENGTHS)
    batch.interaction[ROW] = torch.arange(len(LENGTHS))
    for name, fixed in own.items():
        model = make_model("DreamRec", **fixed)
        assert len(model.calculate_loss(batch)) == 1 + (name == "TARecStage1")
        assert model.sampling_steps == (1 if name == "TARecStage1" else 20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"history_drop_prob": 0}, "guidance 2.0 compares with estimates without a history, which history_drop_prob 0"),
        ({"denoiser_layers": 3}, "denoiser_layers must be an integer in [1, 2], got 3"),
        ({"error": "huber"}, "error must be one of squared, cosine, got 'huber'"),
        ({"preference_weight": 1}, "preference_weight must be a number in [0, 1), got 1"),
        ({"diffusion_steps": 10}, "sampling_steps must be from 1 to diffusion_steps (10), got 20"),
        (
            {"rows": "sequences"},
            "model 'DreamRec' cannot be trained with rows 'sequences', because a row has one noised",
        ),
        ({"guidance": 1e38}, "guidance must be a finite number of at least 0, at most 1e+09 in size, got 1e+38"),
        (
            {"preference_weight": 0.6, "train_batch_size": 1},
            "preference_weight 0.6 prefers a target to those of a",
        ),
        ({"repeat_bias": True}, "unknown parameter 'repeat_bias' for model DreamRec:"),
    ],
)
def test_what_does_not_act_or_fit_is_refused(values, message):
    with pytest.raises(UserError) as refusal:
        RunConfig("DreamRec", "test", values)
    assert str(refusal.value).startswith(message)


def walks(n, n_items, generator):
    """Users who walk round the items, and the step after."""
    start = torch.randint(n_items - 1, (n, 1), generator=generator)
    items = (start + torch.arange(7)) % (n_items - 1) + 1
    columns = {"item_id_list": items[:, :-1], "item_length": torch.full((n,), 6), "item_id": items[:, -1]}
    return Interaction({**columns, ROW: torch.arange(n)})


@pytest.mark.parametrize("losses", [{}, {"error": "cosine", "preference_weight": 0.6}, {"consistency_weight": 0.6}])
def test_it_learns_what_has_one_continuation(losses):
    torch.manual_seed(0)
    model = make_model("DreamRec", 25, hidden_size=32, n_layers=1, n_heads=1, diffusion_steps=100, **losses).float()
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.02, weight_decay=0)
    for _ in range(200):
        optimizer.zero_grad()
        sum(model.calculate_loss(walks(128, 25, generator))).backward()
        optimizer.step()
    batch = walks(200, 25, generator)
    with torch.no_grad():
        best = model.eval().full_sort_predict(batch).argmax(dim=1)
    assert (best == batch["item_id"]).float().mean() > 0.9

"""DCRec: its noise levels, its network against the definition on padded histories, its loss, and its audit."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import make_batch, make_model
from test_draws import mixture

from recbole_diffurec import UserError
from recbole_diffurec.diffusion import schedules
from recbole_diffurec.diffusion.noise import FreshNoise
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.models.dcrec import naming_snr

LENGTHS = [3, 6, 12, 1, 5]


def opened(**parameters):
    """A model whose adaptive blocks are not those of the first moment, which change nothing."""
    model = make_model("DCRec", diffusion_steps=8, sampling_steps=None, **parameters)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.network.blocks:
            block.steering.weight.normal_(std=0.3, generator=generator)
    return model


def test_the_ratio_falls_evenly_between_its_bounds():
    betas = schedules.falling_snr(7, 3.0, 0.02)
    alpha_bar = torch.from_numpy(1 - betas).cumprod(0)
    logs = (alpha_bar / (1 - alpha_bar)).log()
    torch.testing.assert_close(logs[[0, -1]].exp(), torch.tensor([3.0, 0.02], dtype=torch.float64))
    torch.testing.assert_close(logs.diff(), logs.diff()[:1].expand(6))


@pytest.mark.parametrize(("n_items", "size"), [(1000, 64), (5000, 128)])
def test_from_the_unit_on_a_noised_vector_names_its_item(n_items, size):
    """At a third of it few are found by the nearest vector, at twice of it nearly all, whatever the sizes."""
    generator = torch.Generator().manual_seed(0)
    items = F.normalize(torch.randn(n_items, size, generator=generator), dim=1) * size**0.5
    found = {}
    for factor in (0.03, 0.3, 1.0, 2.0):
        snr = factor * naming_snr(n_items, size)
        own = items[:500]
        noised = (snr / (1 + snr)) ** 0.5 * own + (1 / (1 + snr)) ** 0.5 * torch.randn(own.shape, generator=generator)
        found[factor] = ((noised @ items.T).argmax(dim=1) == torch.arange(500)).float().mean().item()
    assert found[0.03] < 0.05 and found[0.3] < 0.5 and found[1.0] > 0.8 and found[2.0] > 0.97


def test_the_model_s_steps_are_between_its_bounds():
    model = make_model("DCRec", n_items=31, signal_high=2.0, signal_low=0.03)
    alpha_bar = model.process.sqrt_alpha_bar.square()
    unit = 4 * math.log(30) / model.hidden_size
    torch.testing.assert_close((alpha_bar / (1 - alpha_bar))[[0, -1]] / unit, alpha_bar.new_tensor([2.0, 0.03]))
    other = make_model("DCRec", noise_schedule="cosine", diffusion_steps=9, sampling_steps=None)
    assert other.sampler.betas.tolist() == schedules.cosine(9).tolist()


def padded_estimate(model, seq, x_s, t):
    """The network as it is defined, one history [L] and one vector [d] at a time, without dropout."""
    network, d, heads = model.network, model.hidden_size, model.network.blocks[0].attention.n_heads

    def attend(module, query, keys):
        q, k, v = module.query(query), module.key(keys), module.value(keys)
        q, k, v = (part.unflatten(-1, (heads, d // heads)).transpose(0, 1) for part in (q, k, v))
        weights = (q @ k.transpose(1, 2) / (d // heads) ** 0.5).softmax(dim=-1)
        return module.output((weights @ v).transpose(0, 1).flatten(1))

    def norm(x):
        return (x - x.mean(-1, keepdim=True)) / x.var(-1, unbiased=False, keepdim=True).sqrt()

    age = torch.arange(len(seq)).flip(0)
    h = model.item_embedding(seq) + model.position_embedding(age)
    for block in network.encoder.blocks:
        normed = block.attention_norm(h)
        h = h + attend(block.attention, normed, normed)
        h = h + block.ffn(block.ffn_norm(h))
    h = network.encoder.output_norm(h)
    condition = F.silu(h[-1] + model.step_embedding()[t])
    x = network.input(x_s).unsqueeze(0)
    for block in network.blocks:
        scale, shift, gate, scale_2, shift_2, gate_2 = block.steering(condition).chunk(6)
        x = x + gate * attend(block.attention, norm(x) * (1 + scale) + shift, h)
        x = x + gate_2 * block.ffn(norm(x) * (1 + scale_2) + shift_2)
    return network.output_norm(x).squeeze(0)


def test_the_network_is_the_one_that_is_defined():
    """Whatever the order and the lengths of the histories, at steps of their own."""
    model, batch = opened(n_history_layers=2), make_batch(LENGTHS)
    ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])
    x_s = torch.randn(len(LENGTHS), model.hidden_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([7, 0, 3, 5, 1])
    with torch.no_grad():
        found = model.denoiser(model.condition(ragged, model.denoiser), x_s, t, None)
        for row, length in enumerate(LENGTHS):
            expected = padded_estimate(model, batch["item_id_list"][row, :length], x_s[row], t[row])
            torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-9)


def test_at_first_the_blocks_change_nothing():
    model, batch = make_model("DCRec"), make_batch(LENGTHS)
    ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])
    x_s = torch.randn(len(LENGTHS), model.hidden_size, dtype=torch.float64)
    with torch.no_grad():
        found = model.denoiser(model.condition(ragged, model.denoiser), x_s, 3, None)
        torch.testing.assert_close(found, model.network.output_norm(model.network.input(x_s)))


@pytest.mark.parametrize("k", [1, 3])
def test_the_loss_is_that_of_the_definition(k, monkeypatch):
    """lambda CE + (1 - lambda) MSE of unit vectors times sqrt(d), noised at full strength; of k draws the mixture."""
    model, batch = opened(draws=k, cross_entropy_weight=0.3), make_batch(LENGTHS)
    model.begin_epoch(10)
    share = 0.3 * (1 - 10 / 150) ** 9 + 0.003
    n, d = len(LENGTHS), model.hidden_size
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(k, n, d, generator=generator, dtype=torch.float64)
    steps = torch.randint(8, (k, n), generator=generator)
    starts, chosen = iter(noise), iter(steps)
    monkeypatch.setattr(FreshNoise, "start", lambda self: next(starts))
    monkeypatch.setattr(model.step_sampler, "sample", lambda n, *_: (next(chosen), torch.ones(n)))
    loss = model.calculate_loss(batch)
    target, vectors = batch["item_id"], model.item_embedding.weight
    log_p, errors = torch.zeros(n, k, dtype=torch.float64), torch.zeros(n, k, dtype=torch.float64)
    for row in range(n):
        e = d**0.5 * vectors[target[row]] / vectors[target[row]].norm()
        for draw in range(k):
            t = steps[draw, row]
            alpha_bar = model.process.sqrt_alpha_bar[t] ** 2
            x_s = alpha_bar.sqrt() * e + (1 - alpha_bar).sqrt() * noise[draw, row]
            f = padded_estimate(model, batch["item_id_list"][row, : LENGTHS[row]], x_s, t)
            logits = F.cosine_similarity(f, vectors[1:], dim=-1) / 0.07
            log_p[row, draw] = logits.log_softmax(0)[target[row] - 1]
            errors[row, draw] = (f - e.detach()).square().mean()
    expected = (share * mixture(log_p) + (1 - share) * errors.mean(dim=1)).mean()
    torch.testing.assert_close(loss, expected)
    parameters = dict(model.named_parameters())
    for key, found, wanted in zip(
        parameters, *(torch.autograd.grad(value, list(parameters.values())) for value in (loss, expected))
    ):
        torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-6, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


def test_the_weight_of_the_cross_entropy_falls_and_stays():
    model = make_model("DCRec")
    weights = []
    for epoch in (0, 75, 150, 200):
        model.begin_epoch(epoch)
        weights.append(model.objective.classifying_weight)
        assert model.objective.near_weight == 1 - weights[-1]
    assert weights == pytest.approx([0.203, 0.2 / 2**9 + 0.003, 0.003, 0.003])
    constant = make_model("DCRec", cross_entropy_decay=None, cross_entropy_weight=0.7)
    constant.begin_epoch(100)
    assert constant.objective.classifying_weight == 0.7


def test_the_distance_alone_moves_no_item_that_is_only_a_target():
    """Else all items would become one, which brings the distance down."""
    model, batch = opened(cross_entropy_decay=None, cross_entropy_weight=1.0), make_batch(LENGTHS)
    x_0 = model.targets(batch["item_id"])
    estimate = torch.randn_like(x_0, requires_grad=True)
    model.objective.classifying_weight, model.objective.near_weight = 0.0, 1.0
    loss, _ = model.objective(estimate, x_0, batch["item_id"], torch.ones(len(LENGTHS)), None)
    of_items, of_estimate = torch.autograd.grad(loss, (model.item_embedding.weight, estimate))
    assert not of_items.any() and of_estimate.any()


def test_the_state_reaches_the_estimate_until_it_is_taken_away():
    """At full strength other noise is another estimate; an audit's twin and interventions see none of it."""
    batch = make_batch(LENGTHS)
    model = opened()
    with torch.no_grad():
        one, other = model.reconstructions(batch, [1, 2])
        changed = model.without_noised_target().reconstructions(batch, [1, 2])
        twin = opened(noised_target=False).reconstructions(batch, [1, 2])
    assert (one - other).norm() > 0.1 * one.norm()
    assert torch.equal(*changed) and torch.equal(*twin)
    assert model.with_sampler("ddpm", 4).visits == [7, 5, 3, 1]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"signal_low": 2.0}, "signal_low must be below signal_high \\(2.0\\), got 2.0"),
        ({"signal_high": 0}, "signal_high must be a number in \\[1e-06, 1000000.0\\], got 0"),
        ({"signal_high": 1e7}, "signal_high must be a number in"),
        ({"cross_entropy_weight": 0.999}, "cross_entropy_weight and cross_entropy_floor must be 1 or less together"),
        ({"noise_schedule": "pw_lin", "diffusion_steps": 9, "sampling_steps": 3}, "pw_lin"),
        ({"noise_schedule": "signals"}, "one of signal, linear"),
        ({"lambda_uncertainty": 0.1}, "lambda_uncertainty"),
        ({"sampling_steps": 51}, "sampling_steps must be from 1 to diffusion_steps"),
    ],
)
def test_what_is_refused(parameters, message):
    with pytest.raises(UserError, match=message):
        make_model("DCRec", **parameters)

"""Schedules, the process and the step samplers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.diffusion import schedules
from recbole_diffurec.diffusion.noise import prefix_keys, uniforms
from recbole_diffurec.diffusion.process import DiffusionProcess
from recbole_diffurec.diffusion.samplers import DDIMSampler, DDPMSampler
from recbole_diffurec.diffusion.step_samplers import LossAwareStepSampler, UniformStepSampler
from recbole_diffurec.layers.step_embedding import StepEmbedding, sinusoid


@given(name=st.sampled_from(list(schedules.SCHEDULES)), n_steps=st.integers(11, 600))
@settings(deadline=None)
def test_schedules_are_bounded_and_noise_grows(name, n_steps):
    try:
        betas = schedules.betas(name, n_steps)
    except ValueError as error:
        assert "outside (0, 1]" in str(error) and name in ("linear", "pw_lin") and n_steps < 20
        return
    assert betas.shape == (n_steps,) and betas.dtype == np.float64
    assert (betas > 0).all() and (betas <= 1).all()
    alpha_bar = np.cumprod(1 - betas)
    # Neighbours may only be equal where the product has underflowed to nothing.
    assert (np.diff(alpha_bar) <= 0).all() and (np.diff(alpha_bar)[alpha_bar[:-1] > 1e-300] < 0).all()
    if name in ("linear", "trunc_lin"):
        assert (np.diff(betas) > 0).all()


@pytest.mark.parametrize(
    ("name", "n_steps", "message"),
    [
        ("linear", 19, "outside"),
        ("pw_lin", 10, "above 10"),
        ("cosine", 0, "at least 1"),
        ("cosin", 32, "unknown"),
    ],
)
def test_impossible_schedules_are_refused(name, n_steps, message):
    with pytest.raises(ValueError, match=message):
        schedules.betas(name, n_steps)


@given(name=st.sampled_from(["trunc_lin", "cosine", "sqrt"]), t=st.integers(0, 31), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_noised_target_has_the_stated_mean_and_variance(name, t, seed):
    betas = schedules.betas(name, 32)
    alpha_bar = np.prod(1 - betas[: t + 1])
    process = DiffusionProcess(betas)
    n = 40_000
    x_0 = torch.full((n, 1), 3.0, dtype=torch.float64)
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x_s = process.q_sample(x_0, torch.full((n,), t), noise)
    assert x_s.mean().item() == pytest.approx(3 * alpha_bar**0.5, abs=5 * (1 - alpha_bar) ** 0.5 / n**0.5 + 1e-12)
    assert x_s.var().item() == pytest.approx(1 - alpha_bar, rel=0.04)


@given(n_steps=st.integers(1, 64), data=st.data())
@settings(deadline=None)
def test_strided_steps_are_even_and_include_the_last(n_steps, data):
    sampling = data.draw(st.integers(1, n_steps))
    betas = schedules.betas("cosine", n_steps)
    steps = DDPMSampler(betas, sampling).sampled_steps
    assert len(steps) == sampling and steps[-1] == n_steps - 1 and steps[0] >= 0
    gaps = np.diff(np.append(-1, steps))
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_respaced_process_keeps_the_marginals():
    """The respaced variances multiply up to the alpha-bar of the full schedule at the sampled steps."""
    betas = schedules.betas("trunc_lin", 32)
    sampler = DDPMSampler(betas, 5)
    respaced = torch.exp(sampler.reverse_log_variance).numpy()
    np.testing.assert_allclose(np.cumprod(1 - respaced), np.cumprod(1 - betas)[sampler.sampled_steps], rtol=1e-12)


def test_posterior_is_exact_for_a_known_target():
    """With a denoiser that knows x_0, every reverse marginal is the forward one (DDPM Eqs. 6-7).

    With variance beta in place of the posterior's, the spread is larger; the mean is exact.
    """
    betas = schedules.betas("cosine", 20)
    process, sampler = DiffusionProcess(betas), DDPMSampler(betas)
    x_0 = torch.full((30_000, 1), 2.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(x_0.shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = process.q_sample(x_0, torch.full((len(x_0),), 19), draw())
    for index in range(19, 10, -1):
        x = sampler.step(x, x_0, index, lambda t: draw())
    mean = 2.0 * process.sqrt_alpha_bar[10].item()
    assert x.mean().item() == pytest.approx(mean, abs=0.02)


def test_the_last_step_returns_the_estimate_and_draws_no_noise():
    sampler = DDPMSampler(schedules.betas("trunc_lin", 32), 4)
    estimates, asked = [], []

    def denoise(x, t):
        estimates.append((t, torch.randn_like(x)))
        return estimates[-1][1]

    def noise(t):
        asked.append(t)
        return torch.zeros(3, 2)

    result = sampler.sample(torch.randn(3, 2), denoise, noise)
    assert torch.equal(result, estimates[-1][1])
    assert [t for t, _ in estimates] == [31, 23, 15, 7] and asked == [31, 23, 15]


@pytest.mark.parametrize("sampling_steps", [0, 33, -1])
def test_impossible_sampling_steps_are_refused(sampling_steps):
    betas = schedules.betas("trunc_lin", 32)
    with pytest.raises(ValueError, match="sampling_steps"):
        DDPMSampler(betas, sampling_steps)


def test_uniform_sampler():
    torch.manual_seed(0)
    t, weight = UniformStepSampler(8).sample(80_000, torch.device("cpu"))
    assert (weight == 1).all()
    assert (torch.bincount(t, minlength=8) / 80_000 - 1 / 8).abs().max() < 0.01


def test_keyed_numbers_are_uniform_and_steps_follow_from_them():
    keys = torch.arange(200_000)
    u = uniforms(keys, seed=5)
    assert u.min() >= 0 and u.max() < 1 and not torch.equal(u, uniforms(keys, seed=6))
    assert (torch.bincount((u * 10).long()) / len(u) - 0.1).abs().max() < 0.005
    assert torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1].abs() < 0.01
    t, _ = UniformStepSampler(8).sample(len(u), torch.device("cpu"), u)
    assert torch.equal(t, (u * 8).long())
    sampler = LossAwareStepSampler(4)
    sampler.update(torch.arange(4).repeat(10), torch.tensor([1.0, 2.0, 4.0, 1.0]).repeat(10))
    t, weight = sampler.sample(len(u), torch.device("cpu"), u)
    assert (torch.bincount(t) / len(t) - sampler.weights()).abs().max() < 0.005
    torch.testing.assert_close(weight, (1 / (4 * sampler.weights()[t])).float())


def test_loss_aware_sampling_follows_the_losses_and_keeps_the_objective():
    torch.manual_seed(0)
    sampler = LossAwareStepSampler(4)
    losses = torch.tensor([1.0, 2.0, 4.0, 1.0])
    every = torch.arange(4).repeat(10)
    sampler.update(every[:36], losses[every[:36]])
    assert (sampler.weights() == 1).all(), "uniform until every step has 10 losses"
    sampler.update(every[36:], losses[every[36:]])
    expected = losses / losses.sum() * 0.999 + 0.001 / 4
    torch.testing.assert_close(sampler.weights().float(), expected)
    t, weight = sampler.sample(200_000, torch.device("cpu"))
    assert (torch.bincount(t) / len(t) - expected).abs().max() < 0.01
    assert (weight * losses[t]).mean().item() == pytest.approx(losses.mean().item(), rel=0.01)


def test_sinusoid_by_hand():
    features = sinusoid(torch.tensor([3.0]), 4)[0]
    expected = [np.cos(3), np.cos(3 * 0.01), np.sin(3), np.sin(3 * 0.01)]
    np.testing.assert_allclose(features, expected, atol=1e-12)
    assert sinusoid(torch.tensor([3.0]), 5).shape == (1, 5)


def test_step_embedding_covers_all_steps():
    module = StepEmbedding(8, 10).double()
    out = module()
    assert out.shape == (10, 8)
    by_hand = module.outer(torch.nn.functional.silu(module.inner(sinusoid(torch.tensor([700.0]), 8))))
    torch.testing.assert_close(out[7:8], by_hand)


def test_all_steps_are_the_default():
    assert DDPMSampler(schedules.betas("trunc_lin", 32)).visits == list(range(31, -1, -1))


@given(eta=st.floats(0, 1), sampling=st.integers(2, 20), schedule=st.sampled_from(sorted(schedules.SCHEDULES)))
@settings(deadline=None, max_examples=30)
def test_ddim_keeps_the_marginals(eta, sampling, schedule):
    """From a state with the forward process's mean and variance comes one with those of the step before."""
    betas = schedules.betas(schedule, 20)
    sampler, alpha_bar = DDIMSampler(betas, sampling, eta), np.cumprod(1 - betas)
    for index in range(1, sampling):
        now, before = (alpha_bar[sampler.sampled_steps[i]] for i in (index, index - 1))
        a, b, sigma = (float(table[index]) for table in (sampler.coef_x_0, sampler.coef_x_s, sampler.sigma))
        assert a + b * now**0.5 == pytest.approx(before**0.5, abs=1e-9)
        assert b**2 * (1 - now) + sigma**2 == pytest.approx(1 - before, abs=1e-9)


def test_ddim_without_eta_asks_for_no_noise_and_with_it_does():
    betas, x = schedules.betas("cosine", 8), torch.ones(2, 3)
    asked = []
    noise = lambda t: asked.append(t) or torch.zeros(2, 3)  # noqa: E731
    DDIMSampler(betas).sample(x, lambda x, t: x, noise)
    assert asked == []
    DDIMSampler(betas, eta=1.0).sample(x, lambda x, t: x, noise)
    assert asked == [7, 6, 5, 4, 3, 2, 1]
    with pytest.raises(ValueError, match="eta"):
        DDIMSampler(betas, eta=1.5)


@pytest.mark.parametrize("sampler", [DDPMSampler, lambda betas, n=None: DDIMSampler(betas, n, 0.5)])
def test_another_number_of_steps_is_the_same_sampler(sampler):
    betas = schedules.betas("sqrt", 16)
    for name, table in sampler(betas, 5).named_buffers():
        assert torch.equal(table, dict(sampler(betas).with_steps(5).named_buffers())[name])


@given(t=st.integers(1, 28), seed=st.integers(0, 10**6))
def test_a_step_of_ddim_is_eulers_step_of_the_rectified_flow(t, seed):
    """x_t = (1 - t/T) x_0 + t/T eps, and x - (x - x_0 hat) / t, of states divided by their standard deviation.

    But for the last of the steps, whose variance is capped.
    """
    sampler = DDIMSampler(schedules.rectified(30))
    x_0, eps = np.random.default_rng(seed).standard_normal((2, 4))
    now, then = (t + 1) / 30, t / 30

    def scaled(x, time):
        return torch.from_numpy(x / np.hypot(1 - time, time))

    x = (1 - now) * x_0 + now * eps
    other = x_0 + 0.3  # what the network says
    expected = scaled(x - (x - other) / now / 30, then)
    found = sampler.step(scaled(x, now), torch.from_numpy(other), t, lambda _: torch.zeros(4))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(histories=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=12))
@settings(deadline=None)
def test_keys_are_equal_where_the_histories_up_to_there_are(histories):
    items = torch.zeros(len(histories), 8, dtype=torch.long)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    keys = prefix_keys(items)
    found = [(tuple(h[: n + 1]), int(keys[row, n])) for row, h in enumerate(histories) for n in range(len(h))]
    assert len(set(found)) == len({prefix for prefix, _ in found}) == len({key for _, key in found})

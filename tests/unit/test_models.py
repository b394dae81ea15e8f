"""The models: packed against padded, and the properties that a user may rely on."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from conftest import FakeDataset, make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_diffurec.diffusion.noise import FreshNoise, NoiseTable
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.layers import attention
from recbole_diffurec.layers.item_softmax import SampledCrossEntropy
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.models import diffurec
from recbole_diffurec.models.ensemble import Ensemble
from recbole_diffurec.models.scores import log_mean_softmax

VARIANTS = {
    "DiffuRec": ("DiffuRec", {}),
    "DiffuRec with positions": ("DiffuRec", {"use_position": True}),
    "V1": ("DiffuRecSys", {"offset_noise": False}),
    "V2": ("DiffuRecSys", {}),
    "one block": ("DiffuRecSys", {"n_layers": 1}),
    "no cross-attention": ("DiffuRecSys", {"cross_attention": False}),
    "large lambda": ("DiffuRecSys", {"lambda_uncertainty": 1.0}),
    "cosines": ("DiffuRecSys", {"cosine_temperature": 0.1}),
}
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def models():
    return {name: make_model(model, **parameters) for name, (model, parameters) in VARIANTS.items()}


class FixedNoise:
    """Draws given beforehand; the packed layout reads lambda's from a padded tensor."""

    def __init__(self, model, batch, seed: int):
        g = torch.Generator().manual_seed(seed)
        n, padded = batch["item_id_list"].shape
        d, n_steps = model.item_embedding.weight.shape[1], model.process.n_steps
        self.length, self.delta = batch["item_length"], model.denoiser.token_noise[0]
        self.x_T = torch.randn(n, d, generator=g, dtype=torch.float64)
        self.steps = torch.randn(n_steps, n, d, generator=g, dtype=torch.float64)
        self.tokens = torch.randn(n_steps, n, padded, d, generator=g, dtype=torch.float64)

    def packed(self, batch, t: int) -> torch.Tensor:
        position = (self.length[batch.row] - 1 - batch.age).clamp(min=0)
        return self.delta + self.delta * self.tokens[t][batch.row, position]


def padded_loss(model, batch, noise: FixedNoise, t: torch.Tensor) -> torch.Tensor:
    delta = model.denoiser.token_noise[0]
    return oracle.loss(
        model,
        batch["item_id_list"],
        batch["item_length"],
        batch["item_id"],
        t,
        noise.x_T + model.offset,
        delta + delta * noise.tokens[0],
    )


def packed_loss(model, batch, noise: FixedNoise, t: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """``calculate_loss`` itself, with its random draws replaced."""
    ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])
    monkeypatch.setattr(FreshNoise, "start", lambda self: noise.x_T)
    monkeypatch.setattr(FreshNoise, "per_token", lambda self, *_: noise.packed(ragged, 0))
    monkeypatch.setattr(model.step_sampler, "sample", lambda n, device, uniform: (t, torch.ones(n)))
    return model.calculate_loss(batch)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(deadline=None, max_examples=12)
@given(lengths=LENGTHS, seed=st.integers(0, 10**6))
def test_loss_and_gradients_equal_the_padded_ones(models, variant, lengths, seed):
    model = models[variant]
    batch = make_batch(lengths, seed=seed)
    noise = FixedNoise(model, batch, seed)
    t = torch.arange(len(lengths)) * 7 % model.process.n_steps
    gradients = []
    for compute in (padded_loss, packed_loss):
        model.zero_grad()
        with pytest.MonkeyPatch.context() as monkeypatch:
            args = (monkeypatch,) if compute is packed_loss else ()
            loss = compute(model, batch, noise, t, *args)
        loss.backward()
        gradients.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (padded, padded_grads), (packed, packed_grads) = gradients
    torch.testing.assert_close(packed, padded, rtol=1e-9, atol=1e-9)
    for name, gradient in padded_grads.items():
        if name == "item_embedding.weight":
            gradient[0] = 0.0  # the oracle has no padding row
        torch.testing.assert_close(
            packed_grads[name], gradient, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("variant", VARIANTS)
@settings(deadline=None, max_examples=4)
@given(lengths=LENGTHS, seed=st.integers(0, 10**6))
def test_reverse_process_equals_the_padded_one(models, variant, lengths, seed):
    model = models[variant]
    batch = make_batch(lengths, seed=seed)
    noise = FixedNoise(model, batch, seed)
    with torch.no_grad():
        ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])

        class Draws:
            def start(self):
                return noise.x_T

            def step(self, t):
                return noise.steps[t]

            def per_token(self, t, mean, std, dtype):
                return noise.packed(ragged, t)

        condition = model.condition(ragged, model.denoiser)
        ours = model.reverse(condition, batch["item_id"], Draws(), model.denoiser)
        delta = model.denoiser.token_noise[0]
        theirs = oracle.reverse(
            model, batch["item_id_list"], batch["item_length"], noise.x_T, noise.steps, delta + delta * noise.tokens
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_padding_has_no_influence(name):
    """Whatever stands right of a history, and however wide the batch is, loss, gradient and scores are the same."""
    model = make_model(name, lambda_uncertainty=0.5)
    batch = make_batch([3, 12, 1, 7])
    dirty = Interaction({key: value.clone() for key, value in batch.interaction.items()})
    for row, length in enumerate(dirty["item_length"].tolist()):
        dirty["item_id_list"][row, length:] = 17
    wide = Interaction({**batch.interaction, "item_id_list": torch.nn.functional.pad(batch["item_id_list"], (0, 5))})
    results = []
    for data in (batch, dirty, wide):
        model.zero_grad()
        torch.manual_seed(1)
        loss = model.calculate_loss(data)
        loss.backward()
        with torch.no_grad():
            scores = model.full_sort_predict(data)
        results.append((loss.detach(), scores, model.item_embedding.weight.grad.clone()))
    for other in results[1:]:
        for ours, theirs in zip(results[0], other):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert results[0][2][0].abs().sum() == 0


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
@settings(deadline=None, max_examples=10)
@given(lengths=LENGTHS, seed=st.integers(0, 10**6))
def test_permuting_the_batch_permutes_the_scores(name, lengths, seed):
    model = make_model(name, lambda_uncertainty=0.5, diffusion_steps=11)
    batch = make_batch(lengths, seed=seed)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        scores = model.full_sort_predict(batch)
        permuted = model.full_sort_predict(batch[order])
    torch.testing.assert_close(permuted, scores[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("extra", [{}, {"ensemble_seeds": [1, 2, 3]}, {"reverse_start": "last_item"}])
def test_scores_depend_on_the_seed_and_not_on_the_batch_size(extra):
    parameters = {"lambda_uncertainty": 0.5, **extra}
    model = make_model(**parameters)
    batch = make_batch([2, 5, 12, 1, 8, 8, 3])
    with torch.no_grad():
        together = model.full_sort_predict(batch)
        alone = torch.cat([model.full_sort_predict(batch[torch.tensor([row])]) for row in range(7)])
        again = model.full_sort_predict(batch)
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-10)
    assert torch.equal(again, together)
    other_seed = {"ensemble_seeds": [4, 5, 6]} if "ensemble_seeds" in extra else {"noise_seed": 7}
    other = make_model(**{**parameters, **other_seed})
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert (other.full_sort_predict(batch) - together)[:, 1:].abs().max() > 1e-6


@pytest.mark.parametrize("extra", [{}, {"ensemble_seeds": [1, 2]}])
def test_predict_gives_the_scores_of_full_sort(extra):
    model = make_model(**extra)
    batch = make_batch([4, 9, 1])
    with torch.no_grad():
        full = model.full_sort_predict(batch)
        torch.testing.assert_close(model.predict(batch), full[torch.arange(3), batch["item_id"]])
    assert torch.isinf(full[:, 0]).all() and (full[:, 0] < 0).all(), "the padding row must not be recommended"


def test_an_ensemble_averages_probabilities():
    batch = make_batch([4, 9, 1])
    single = [make_model(noise_seed=seed, lambda_uncertainty=0.5) for seed in (5, 6)]
    ensemble = make_model(ensemble_seeds=[5, 6], lambda_uncertainty=0.5)
    for model in (single[1], ensemble):
        model.load_state_dict(single[0].state_dict())
    with torch.no_grad():
        expected = sum(model.full_sort_predict(batch)[:, 1:].softmax(-1) for model in single) / 2
        torch.testing.assert_close(ensemble.full_sort_predict(batch)[:, 1:].softmax(-1), expected)
    torch.testing.assert_close(expected.sum(-1), torch.ones(3, dtype=torch.float64))


def test_an_ensemble_ranks_what_is_far_behind():
    """Their probabilities are zero in float32, where all items but a few would tie."""
    far = torch.tensor([[1000.0, 500.0, 0.0, -700.0]])
    together = log_mean_softmax([far, far.flip(1)])
    assert together.argsort(descending=True).tolist() in (
        [[0, 3, 1, 2]],
        [[3, 0, 1, 2]],
        [[0, 3, 2, 1]],
        [[3, 0, 2, 1]],
    )
    torch.testing.assert_close(log_mean_softmax(iter([far, far])), far)
    near = torch.tensor([[1000.0, 1e-6, 2e-6, 0.0]])  # whose logarithms would be one number, but for the first
    assert log_mean_softmax([near, near]).argsort(descending=True).tolist() == [[0, 2, 1, 3]]
    with pytest.raises(ValueError, match="no scores"):
        log_mean_softmax([])
    batch, one = make_batch([4, 9, 1]), make_model(noise_seed=5).float()
    of_one_seed = make_model(ensemble_seeds=[5]).float()
    with torch.no_grad():
        one.item_embedding.weight *= 1000
        of_one_seed.load_state_dict(one.state_dict())
        members = Ensemble([one, one]).full_sort_predict(batch)
        scores = one.full_sort_predict(batch)
        assert scores[:, 1:].softmax(-1).min() == 0  # these tie
        assert torch.equal(of_one_seed.full_sort_predict(batch), scores)
    assert torch.equal(members.argsort(stable=True), scores.argsort(stable=True))


def test_one_sampling_step_is_one_denoising_from_noise():
    model = make_model(sampling_steps=1, lambda_uncertainty=0.5)
    batch = make_batch([4, 9])
    with torch.no_grad():
        ragged = RaggedBatch(batch["item_id_list"], batch["item_length"])
        condition = model.condition(ragged, model.denoiser)
        draws = model.noise_table.for_batch(3, torch.tensor([8, 9]), ragged.row, ragged.age, torch.float64)
        expected = model.denoiser(condition, draws.start(), model.n_steps - 1, draws)
        torch.testing.assert_close(model.reverse(condition, batch["item_id"], draws, model.denoiser), expected)


def test_offset_noise_shifts_training_noise_and_nothing_else(monkeypatch):
    shifted, plain = make_model(offset_scale=2.0), make_model(offset_noise=False, offset_scale=2.0)
    assert shifted.offset == pytest.approx(0.2) and plain.offset == 0.0
    plain.load_state_dict(shifted.state_dict())
    batch = make_batch([4, 9])
    with torch.no_grad():
        torch.testing.assert_close(plain.full_sort_predict(batch), shifted.full_sort_predict(batch))
        seen = []
        for model in (shifted, plain):
            monkeypatch.setattr(model.process, "q_sample", lambda x_0, t, noise, m=model: (seen.append(noise), x_0)[1])
            torch.manual_seed(0)
            model.calculate_loss(batch)
    torch.testing.assert_close(seen[0] - seen[1], torch.full_like(seen[0], 0.2))


def test_lambda_has_mean_and_standard_deviation_delta(monkeypatch):
    model = make_model(lambda_uncertainty=0.25, hidden_size=32)
    seen = []
    monkeypatch.setattr(
        type(model.approximator),
        "forward",
        lambda self, history, x_s, d_s, uncertainty: seen.append(uncertainty) or x_s,
    )
    with torch.no_grad():
        model.full_sort_predict(make_batch([12] * 40))
        model.calculate_loss(make_batch([12] * 400))
    for values in (torch.cat(seen[:-1]), seen[-1]):
        assert values.mean().item() == pytest.approx(0.25, abs=0.005)
        assert values.std().item() == pytest.approx(0.25, abs=0.005)
    assert not torch.equal(seen[0], seen[1]), "lambda is drawn anew at every step"


def test_initialisation():
    xavier = make_model(n_items=2001, hidden_size=64)
    normal = make_model(n_items=2001, hidden_size=64, init="normal", initializer_range=0.05)
    expected = (2.0 / (2001 + 64)) ** 0.5
    assert xavier.item_embedding.weight[1:].std().item() == pytest.approx(expected, rel=0.05)
    assert normal.item_embedding.weight[1:].std().item() == pytest.approx(0.05, rel=0.05)
    pytorch = make_model(n_items=2001, hidden_size=64, init="pytorch")
    assert pytorch.item_embedding.weight[1:].std().item() == pytest.approx(1, rel=0.05)
    query = pytorch.approximator.blocks[0].attention.query
    assert 0.9 / 8 < query.weight.abs().max().item() <= 1 / 8 and query.bias.any()  # uniform, by a width of 64
    for model in (xavier, normal, pytorch):
        assert not model.item_embedding.weight[0].any()
    for model in (xavier, normal):
        assert not model.approximator.blocks[0].attention.query.bias.any()


def test_defaults_that_tell_the_two_models_apart():
    diffurec, diffurecsys = make_model("DiffuRec"), make_model("DiffuRecSys")
    block, other = diffurec.approximator.blocks[0], diffurecsys.approximator.blocks[0]
    assert (block.output_dropout.p, other.output_dropout.p) == (0.1, 0.0)
    assert (type(block.ffn[1]).__name__, type(other.ffn[1]).__name__) == ("GELU", "ReLU")
    assert not block.has_cross_attention and other.has_cross_attention
    assert diffurec.offset == 0.0 and diffurecsys.offset == pytest.approx(0.1)


def test_loss_aware_training_updates_the_sampler():
    model = make_model(step_sampler="loss_aware", diffusion_steps=4, noise_schedule="cosine")
    batch = make_batch([5] * 60)
    torch.manual_seed(0)
    for _ in range(3):
        model.calculate_loss(batch)
    assert (model.step_sampler.counts == 10).all()
    weights = model.step_sampler.weights()
    assert weights.sum().item() == pytest.approx(1.0) and weights.unique().numel() == 4


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=9), seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=20, deadline=None)
def test_keyed_noise_does_not_depend_on_the_batch(name, lengths, seed, data):
    """The loss of a batch is the mean of its parts' losses, however it is split: what several processes rest on."""
    model = make_model(name, keyed_noise=True, lambda_uncertainty=0.5)
    batch = make_batch(lengths, seed=seed)
    cut = data.draw(st.integers(1, len(lengths) - 1))
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    parts = batch[order[:cut]], batch[order[cut:]]
    model.begin_epoch(3)
    with torch.no_grad():
        whole = model.calculate_loss(batch).item()
        mean = sum(len(part) * model.calculate_loss(part).item() for part in parts) / len(lengths)
        model.begin_epoch(4)
        later = model.calculate_loss(batch).item()
    assert mean == pytest.approx(whole, rel=1e-9)
    # DiffuRecSys attends from the state to the history: with one item in it there is nothing to choose.
    assert later != whole or max(lengths) == 1


def test_cosine_scores():
    """Scores are cosines over tau, of all items and of given ones alike."""
    plain, model = make_model(), make_model(cosine_temperature=0.1)
    model.load_state_dict(plain.state_dict())
    batch = make_batch([3, 6, 12])
    with torch.no_grad():
        (x_0,) = plain.reconstructions(batch)
        expected = torch.cosine_similarity(x_0.unsqueeze(1), plain.item_embedding.weight.unsqueeze(0), dim=-1) / 0.1
        scores = model.full_sort_predict(batch)
        torch.testing.assert_close(scores[:, 1:], expected[:, 1:])
        torch.testing.assert_close(model.predict(batch), scores.gather(1, batch["item_id"].unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize(("temperature", "scale"), [(0.5, 2), (None, 10)])
def test_repeat_bias_changes_the_scores_of_the_history_alone(temperature, scale):
    """By what was learned for each place, the most recent first; an item that is there twice gets both."""
    plain, model = make_model(), make_model(cosine_temperature=temperature, repeat_bias=True)
    bias = torch.randn(len(model.repeat_bias), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model.load_state_dict({**plain.state_dict(), "repeat_bias": bias})
    without = make_model(cosine_temperature=temperature)
    without.load_state_dict(plain.state_dict())
    batch = make_batch([3, 6, 12])
    seq, lengths = batch["item_id_list"], batch["item_length"]
    seq[1, 0] = seq[1, 4]
    batch["item_id"][2] = seq[2, 7]  # a target that was seen
    expected = torch.zeros(3, model.n_items, dtype=torch.float64)
    for row in range(3):
        for place in range(lengths[row]):
            expected[row, seq[row, place]] += scale * bias[lengths[row] - 1 - place]
    with torch.no_grad():
        scores = model.full_sort_predict(batch)
        torch.testing.assert_close((scores - without.full_sort_predict(batch))[:, 1:], expected[:, 1:])
        torch.testing.assert_close(model.predict(batch), scores.gather(1, batch["item_id"].unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize("sampled", [None, 50])
def test_repeat_bias_learns_whether_items_come_back(sampled):
    learned = {}
    for comes_back in (True, False):
        torch.manual_seed(0)
        model = make_model(repeat_bias=True).train()
        if sampled:
            counts = torch.arange(model.n_items)
            model.objective.cross_entropy = SampledCrossEntropy(counts, sampled, "uniform").double()
        batch = make_batch([5] * 64)
        batch["item_id_list"][:] = batch["item_id_list"].clamp(max=model.n_items // 2)
        batch["item_id"][:] = batch["item_id_list"][:, 4] if comes_back else model.n_items // 2 + 1
        optimizer = torch.optim.Adam([model.repeat_bias], lr=0.01)
        for _ in range(50):
            optimizer.zero_grad()
            model.calculate_loss(batch).backward()
            optimizer.step()
        learned[comes_back] = model.repeat_bias.detach()
    assert learned[True][0] > 0.2 and (learned[False][:5] < -0.2).all()
    assert (learned[False][5:] == 0).all()  # places that no history had


def test_a_model_can_be_copied_and_keeps_its_scores():
    """RecBole deep-copies the model to count its operations."""
    model = make_model()
    batch = make_batch([3, 6])
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model).full_sort_predict(batch), model.full_sort_predict(batch))


def test_bf16_changes_scores_little_and_keeps_them_distinct():
    plain = make_model(hidden_size=32).float()
    amp = make_model(hidden_size=32, enable_amp=True).float()
    amp.load_state_dict(plain.state_dict())
    batch = make_batch([3, 6, 12, 1])
    with torch.no_grad():
        a, b = plain.full_sort_predict(batch)[:, 1:], amp.full_sort_predict(batch)[:, 1:]
    assert a.dtype == b.dtype == torch.float32
    assert 0 < (a - b).abs().max() < 0.05 * a.abs().max()
    assert b[0].unique().numel() == b.shape[1], "scores in bf16 would tie"


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_training_in_bf16_has_nearly_the_same_loss_and_gradients(name):
    batch, found = make_batch([3, 6, 12, 1, 1, 9]), []
    for amp in (False, True):
        model = make_model(name, hidden_size=32, keyed_noise=True).float()
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            loss = model.calculate_loss(batch)
        loss.backward()
        found.append((loss.item(), model.item_embedding.weight.grad))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.02) and found[1][0] != found[0][0]
    assert torch.cosine_similarity(found[0][1].flatten(), found[1][1].flatten(), dim=0) > 0.99


@pytest.mark.parametrize("tokens", [1, 7, 20])
def test_scores_do_not_depend_on_what_is_computed_at_once(tokens, monkeypatch):
    model, batch = make_model(ensemble_seeds=[1, 2]).eval(), make_batch([3, 12, 1, 7, 7, 2])
    expected = model.reconstructions(batch)
    monkeypatch.setitem(diffurec.TOKENS_AT_ONCE, "cpu", tokens)
    torch.testing.assert_close(model.reconstructions(batch), expected)


@pytest.mark.parametrize("sampled", [None, 500])
@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_several_threads_give_the_same_gradients_every_time(name, sampled):
    """At a size where kernels do share their work among threads; resuming exactly stands on this."""
    model = make_model(name, n_items=2000, hidden_size=128, use_position=True).float().train()
    if sampled:
        model.objective.cross_entropy = SampledCrossEntropy(torch.arange(2000), sampled, "log_uniform")
    lengths = torch.randint(1, 13, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    batch, threads = make_batch(lengths, n_items=2000), torch.get_num_threads()
    found = []
    torch.set_num_threads(2)
    try:
        for _ in range(8):
            torch.manual_seed(1)
            model.zero_grad()
            model.calculate_loss(batch).backward()
            found.append([p.grad.clone() for p in model.parameters()])
    finally:
        torch.set_num_threads(threads)
    for gradients in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0]))


@pytest.mark.parametrize(("weights", "dropout"), [(attention.CHECKPOINTED_WEIGHTS, 0.1), (300, 0.0)])
@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_gradient_checkpointing_changes_nothing(name, weights, dropout, monkeypatch):
    """Loss and gradients are the same numbers, dropout included, which the second computation draws again."""
    monkeypatch.setattr(attention, "CHECKPOINTED_WEIGHTS", weights)
    found = []
    plain = make_model(name)
    for checkpointing in (False, True):
        model = make_model(name, gradient_checkpointing=checkpointing, attn_dropout_prob=dropout).train()
        model.load_state_dict(plain.state_dict())
        torch.manual_seed(3)
        loss = model.calculate_loss(make_batch([3, 12, 1, 7, 12, 11, 12]))
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_noise_table_rows_are_standard_normal():
    rows = NoiseTable(64).rows
    assert abs(rows.mean().item()) < 0.005 and abs(rows.std().item() - 1) < 0.005


def test_compiled_feed_forward_gives_the_same_scores(monkeypatch):
    """The compiler itself is PyTorch's business: here it is the eager backend, which needs no C++ compiler."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend="eager", **options))
    torch.manual_seed(0)
    compiled = make_model(compile=True)
    plain = make_model()
    plain.load_state_dict(compiled.state_dict())
    batch = make_batch([1, 5, 12])
    with torch.no_grad():
        torch.testing.assert_close(compiled.full_sort_predict(batch), plain.full_sort_predict(batch))


@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
def test_a_sampled_softmax_trains(distribution):
    dataset = FakeDataset(31)
    dataset.inter_feat = {"item_id": torch.randint(1, 31, (200,), generator=torch.Generator().manual_seed(0))}
    values = {"hidden_size": 16, "n_layers": 1, "gpu_id": "", "sampled_softmax": 8}
    config = RunConfig("DiffuRecSys", "test", {**values, "negative_distribution": distribution})
    torch.manual_seed(0)
    model = config.model_class(config, dataset)
    batch = make_batch([3, 4, 7, 2] * 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])

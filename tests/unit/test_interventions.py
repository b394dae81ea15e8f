"""What audits change in a model: the network gets something else, with the same weights; the model is left alone."""

from __future__ import annotations

import pytest
import torch
from conftest import make_batch, make_model

from recbole_diffurec.models.base import NotApplicable
from recbole_diffurec.models.interventions import ChangedDenoiser

MODELS = ["DiffuRec", "DiffuRecSys", "DiffRecDNR", "ADRec", "DreamRec", "DCRec"]
CHANGES = ["without_noised_target", "with_other_noise", "with_frozen_step"]
BATCH = make_batch([3, 7, 1, 12, 5])


class Seen:
    """A denoiser that remembers what it was given."""

    def __init__(self, denoiser):
        self.denoiser, self.token_noise, self.given = denoiser, denoiser.token_noise, []

    def condition(self, embeddings, batch):
        return self.denoiser.condition(embeddings, batch)

    def __call__(self, condition, x_s, t, draws):
        self.given.append((x_s, t))
        return self.denoiser(condition, x_s, t, draws)

    def __deepcopy__(self, memo):
        return self


def strong(name: str, **parameters):
    """A model whose noised vector reaches the network."""
    own = {
        "DiffRecDNR": {},
        "DCRec": {"sampling_steps": None, "sampler": "ddpm"},
        "DreamRec": {"sampling_steps": None, "guidance": 0.0, "sampler": "ddpm"},
    }
    given = own.get(name, {"lambda_uncertainty": 1.0})
    model = make_model(name, **{**given, "diffusion_steps": 8, **parameters})
    if name == "DCRec":  # whose blocks change nothing at first
        for block in model.network.blocks:
            torch.nn.init.normal_(block.steering.weight)
    return model


def given_to(model, change=None):
    """What the denoiser is given in one inference, [(x_s, t)]."""
    model = model.sharing_weights()
    seen = model.__dict__["denoiser"] = Seen(model.denoiser)
    (model if change is None else getattr(model, change)()).full_sort_predict(BATCH)
    return seen.given


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("change", CHANGES)
def test_the_weights_are_shared_and_the_model_is_left_alone(name, change):
    model = strong(name)
    before = model.full_sort_predict(BATCH)
    other = getattr(model, change)()
    assert [id(p) for p in other.parameters()] == [id(p) for p in model.parameters()]
    assert not torch.equal(other.full_sort_predict(BATCH), before)
    assert torch.equal(model.full_sort_predict(BATCH), before)
    assert other.with_sampling_steps(2).full_sort_predict(BATCH).shape == before.shape


@pytest.mark.parametrize("name", MODELS)
def test_without_the_noised_target_the_network_gets_zeros(name):
    own, changed = given_to(strong(name)), given_to(strong(name), "without_noised_target")
    assert [t for _, t in changed] == [t for _, t in own] == list(range(7, -1, -1))
    assert all((x == 0).all() for x, _ in changed) and all((x != 0).any() for x, _ in own)


@pytest.mark.parametrize("name", MODELS)
def test_other_noise_is_as_long_and_new_at_each_step(name):
    model = strong(name)
    (x, _), (first, t), (second, _), *_ = given_to(model)[:1] + given_to(model, "with_other_noise")
    assert t == 7
    torch.testing.assert_close(first.norm(dim=1), x.norm(dim=1))
    cosines = [torch.cosine_similarity(a, b).abs().max() for a, b in ((x, first), (first, second))]
    assert max(cosines) < 0.95
    again = model.with_other_noise().full_sort_predict(BATCH)
    assert torch.equal(again, model.with_other_noise().full_sort_predict(BATCH))


def test_a_frozen_step_is_the_last():
    own, changed = given_to(strong("DiffuRec")), given_to(strong("DiffuRec"), "with_frozen_step")
    assert [t for _, t in changed] == [7] * 8
    assert torch.equal(own[0][0], changed[0][0])


def test_the_sampler_is_another_or_keeps_its_options():
    model = strong("DiffuRec", sampler="ddim", ddim_eta=0.5)
    assert model.with_sampler("ddim", 4).sampler.options() == {"eta": 0.5}
    ddpm = model.with_sampler("ddpm", 4)
    assert ddpm.sampling_steps == 4
    expected = strong("DiffuRec", sampler="ddpm", sampling_steps=4)
    expected.load_state_dict(model.state_dict())
    assert torch.equal(ddpm.full_sort_predict(BATCH), expected.full_sort_predict(BATCH))
    with pytest.raises(NotApplicable, match="one step"):
        strong("DiffuRec", reverse_start="last_item").with_sampler("ddim", 2)


@pytest.mark.parametrize("name", MODELS)
def test_a_twin_is_the_same_network_in_one_step_whatever_the_noise(name):
    twin = strong(name, **strong(name).twin_parameters())
    assert twin.state_dict().keys() == strong(name).state_dict().keys()
    assert twin.sampling_steps == 1 and len(given_to(twin)) == 1
    first, second = (twin.query(x) for x in twin.reconstructions(BATCH, [1, 2]))
    assert torch.equal(first, second)
    first, second = (strong(name).query(x) for x in strong(name).reconstructions(BATCH, [1, 2]))
    assert not torch.equal(first, second)
    for change in (*CHANGES, "with_sampler"):
        with pytest.raises(NotApplicable, match="trained without"):
            getattr(twin, change)(*(("ddim", 2) if change == "with_sampler" else ()))


@pytest.mark.parametrize("name", ["DiffuRec", "DiffuRecSys"])
def test_a_twin_is_trained_without_noise_of_any_kind(name):
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append((strong(name, noised_target=False), strong(name)))
    torch.manual_seed(0)
    weights = losses[0][0].state_dict()
    for pair in losses:
        for model in pair:
            model.load_state_dict(weights)
    twins = [twin.calculate_loss(BATCH).item() for twin, _ in losses]
    others = [model.calculate_loss(BATCH).item() for _, model in losses]
    assert twins[0] == twins[1] and others[0] != others[1]


def test_a_changed_denoiser_has_its_copy_in_bf16():
    model = strong("DiffuRec").without_noised_target()
    assert isinstance(model.denoiser.in_bfloat16(), ChangedDenoiser)
    assert next(model.denoiser.in_bfloat16().denoiser.approximator.parameters()).dtype == torch.bfloat16

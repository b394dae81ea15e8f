"""The register of models, and that the parts of a model are asked and never rebuilt by others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_batch, make_model

from recbole_diffurec import UserError
from recbole_diffurec.diffusion.samplers import DDIMSampler, DDPMSampler
from recbole_diffurec.host import catalogue
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.models import spec as register
from recbole_diffurec.models.denoiser import GuidedDenoiser
from recbole_diffurec.models.spec import ModelSpec


def config(model: str, **parameters) -> RunConfig:
    return RunConfig(model, "ml-100k", {"gpu_id": "", **parameters})


# Specs


def test_every_builtin_model_has_a_spec_of_its_name_with_defaults_and_a_summary():
    specs, failures = register.all_specs()
    assert not failures and [spec.name for spec in specs] == register.names()
    for spec in specs:
        assert spec.model_class.__name__ == spec.name and spec.summary and spec.default_values()
        # Every rule is of a parameter that the model has, and accepts its default.
        defaults = spec.default_values()
        assert all(rule.accepts(defaults[name]) for name, rule in spec.rules.items())


def test_defaults_of_a_base_are_inherited():
    base, own = (catalogue.find(name).default_values() for name in ("DiffuRec", "DiffuRecSys"))
    assert "base" not in own
    differing = {name for name in base.keys() | own.keys() if base.get(name) != own.get(name)}
    assert differing == {"hidden_act", "cross_attention", "offset_noise"}


@pytest.mark.parametrize("base", ["Itself", "Nobody", "5"])
def test_a_base_that_is_no_other_model_is_refused(tmp_path: Path, monkeypatch, base: str):
    (tmp_path / "own.yaml").write_text(f"base: {base}\n")
    spec = ModelSpec("Itself", "builtins:object", defaults=tmp_path / "own.yaml")
    monkeypatch.setattr(register, "find", lambda name: spec if name == "Itself" else None)
    with pytest.raises(UserError, match=f"'base: {base}', which is no other model"):
        spec.default_values()


def test_a_spec_knows_the_abilities_that_there_are():
    with pytest.raises(ValueError, match="fly"):
        ModelSpec("A", "builtins:object", cannot={"fly": "it has no wings"})
    with pytest.raises(UserError, match="model 'A' cannot be exported as onnx, because its output is a sort"):
        ModelSpec("A", "builtins:object", cannot={"onnx": "its output is a sort"}).refuse("onnx", "be exported as onnx")


def test_a_variant_is_its_model_with_parameters_fixed():
    v1 = config("V1")
    assert v1["model"] == "DiffuRecSys" and v1["offset_noise"] is False and v1["cross_attention"] is True
    assert v1.key() == config("DiffuRecSys", offset_noise=False, cross_attention=True).key()
    assert config("V1", offset_noise=False).key() == v1.key()
    with pytest.raises(UserError, match="'V1' is DiffuRecSys with offset_noise False, got True"):
        config("V1", offset_noise=True)


# Parts


@pytest.mark.parametrize("parameters", [{"sampler": "ddim", "ddim_eta": 0.5}, {}])
def test_another_number_of_steps_keeps_the_sampler_and_shares_the_weights(parameters):
    model = make_model(diffusion_steps=8, repeat_bias=True, **parameters)
    other = model.with_sampling_steps(2)
    assert type(other.sampler) is (DDIMSampler if parameters else DDPMSampler)
    assert other.sampling_steps == 2 and model.sampling_steps == 8
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    batch = make_batch([2, 5])
    with torch.no_grad():
        expected = make_model(diffusion_steps=8, repeat_bias=True, sampling_steps=2, **parameters)
        expected.load_state_dict(model.state_dict())
        torch.testing.assert_close(other.full_sort_predict(batch), expected.full_sort_predict(batch))
        model.repeat_bias[:] = 3.0
        model.item_embedding.weight[1:] += 1.0
        expected.load_state_dict(model.state_dict())
        torch.testing.assert_close(other.full_sort_predict(batch), expected.full_sort_predict(batch))


def test_ddim_gives_other_scores_than_ddpm_and_none_of_its_noise():
    batch = make_batch([2, 5])
    scores = []
    for parameters in ({}, {"sampler": "ddim"}, {"sampler": "ddim", "ddim_eta": 1.0}):
        torch.manual_seed(0)
        model = make_model(diffusion_steps=8, lambda_uncertainty=1.0, **parameters)
        with torch.no_grad():
            scores.append(model.full_sort_predict(batch)[:, 1:])
    assert not torch.equal(scores[0], scores[1]) and not torch.equal(scores[1], scores[2])


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_guidance_is_linear_in_its_weight(weight):
    model = make_model(lambda_uncertainty=0.5, diffusion_steps=4)
    batch = make_batch([3, 6])

    class Unguided:
        denoiser = model.denoiser

    def reconstruction(nothing: bool, guidance: float | None) -> torch.Tensor:
        empty = torch.zeros_like
        model.denoiser = Unguided.denoiser
        if guidance is not None:
            model.denoiser = GuidedDenoiser(Unguided.denoiser, empty, guidance)
        elif nothing:
            model.denoiser = GuidedDenoiser(Unguided.denoiser, empty, -1.0)  # the part without history alone
        with torch.no_grad():
            return model.with_sampling_steps(1).reconstructions(batch)[0]

    given, without = reconstruction(False, None), reconstruction(True, None)
    assert not torch.allclose(given, without)
    torch.testing.assert_close(reconstruction(False, weight), (1 + weight) * given - weight * without)

"""No parameter is accepted in vain: it acts, needs another one to act, or is of training alone, and says which."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest import make_batch, make_model

from recbole_diffurec import UserError, compare, run, tune
from recbole_diffurec.config import layers
from recbole_diffurec.config.needs import NEEDS
from recbole_diffurec.config.rules import RULES
from recbole_diffurec.experiments.grid import plan
from recbole_diffurec.host import catalogue, checks
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.models import spec as register

ALL = {name: catalogue.find(name) for name in register.BUILTIN}
# What is neither in a network's answer to a batch nor of training: sizes of batches and histories, and compilers.
ELSEWHERE = {"eval_batch_size", "MAX_ITEM_LIST_LENGTH", "compile"}
# Of MaskedDiffRec: what is in its lists of several items, not in its rankings.
ELSEWHERE |= {"fill_order", "sampling_temperature"}
# Of MFGAN: what its discriminators are made of, without which it is used.
ELSEWHERE |= {"n_discriminator_layers", "popularity_classes", "category_field"}
NO_DEFAULT = {"sampling_steps": 2, "ensemble_seeds": [3, 4], "cosine_temperature": 0.5, "inner_size": 24}
NO_DEFAULT |= {"sampled_softmax": 4, "valid_sampling_steps": 2, "cross_entropy_decay": 7, "lr_decay_step": 7}
NO_DEFAULT |= {"cooccurrence_weight": 2.0}


def remedies(spec: register.ModelSpec, name: str) -> dict[str, Any]:
    """The parameters with which one acts, as messages tell them."""
    found = {}
    for need in {**NEEDS, **spec.needs}.get(name, ()):
        other, _, value = need.remedy.removeprefix("--").partition("=")
        assert other == need.parameter
        if other in spec.default_values():
            found[other] = layers.parse_value(other, value)
    return found


def another(spec: register.ModelSpec, name: str, default: Any) -> Any:
    """A value that the parameter does not have."""
    rule = spec.rules.get(name) or RULES.get(name)
    if name == "noise_schedule":  # others want more steps
        return "sqrt" if default == "cosine" else "cosine"
    if default is None:
        return NO_DEFAULT[name]
    if isinstance(default, bool):
        return not default
    if rule is not None and rule.choices:
        return next(choice for choice in rule.choices if choice != default)
    if isinstance(default, int):
        return default // 2 if default > 1 else default + 1
    return default / 2 if default else 0.5


def scores(name: str, parameters: Mapping[str, Any], weights: Mapping[str, Any] | None = None):
    torch.manual_seed(0)
    model = make_model(name, **parameters)
    batch = make_batch([1, 3, 5, 12])
    with torch.no_grad():
        if weights is not None:
            model.load_state_dict(weights)
        else:  # no gate that begins at zero stays there
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            if getattr(model, "cooccurrences", None) is not None:  # there is no data, of which they would be
                model.cooccurrences.successors.random_(1, model.n_items)
                model.cooccurrences.strength.uniform_()
        return model.state_dict(), model.full_sort_predict(batch)


@functools.cache
def as_trained(name: str, base: str):
    """The weights and scores of a model; most of its parameters are tried on the same."""
    return scores(name, json.loads(base))


OWN = [
    (name, parameter)
    for name, spec in ALL.items()
    for parameter in spec.default_values()
    if parameter not in checks.OF_TRAINING | checks.OF_EVALUATION | ELSEWHERE
    and not (name == "MaskedDiffRec" and parameter in ("sampling_steps", "noise_seed"))
]


@pytest.mark.parametrize(("name", "parameter"), OWN, ids=lambda value: value)
def test_a_parameter_changes_what_a_trained_model_answers_or_is_of_training(name: str, parameter: str):
    spec = ALL[name]
    of_training = parameter in spec.of_training
    if parameter in spec.for_inference:
        assert of_training
        return
    # Sizes at which every layer shows.
    base = {"sampling_steps": None, "hidden_size": 16, "n_layers": 2, "n_heads": 4, "diffusion_steps": 6}
    base = {key: value for key, value in base.items() if key in spec.default_values()} | spec.for_inference
    base |= {} if of_training else remedies(spec, parameter)
    usual = base.get(parameter, spec.default_values()[parameter])
    weights, before = as_trained(name, json.dumps(base))
    try:
        _, after = scores(name, {**base, parameter: another(spec, parameter, usual)}, weights)
    except (UserError, RuntimeError) as error:  # refused already: what does not fit together, or other weights
        assert isinstance(error, UserError) or "state_dict" in str(error)
        return
    assert torch.equal(before, after) == of_training


@pytest.mark.parametrize("name", ALL)
def test_needs_are_of_parameters_that_the_model_has_and_met_by_their_remedies(name: str):
    spec = ALL[name]
    for parameter, needs in spec.needs.items():
        known = spec.default_values().keys()
        if parameter in known:
            assert {need.parameter for need in needs} <= known
            config = RunConfig(name, "ml-100k", {"gpu_id": "", **remedies(spec, parameter)})
            assert config.unmet_need(parameter) is None
    own, family = spec.default_values(), catalogue.find("DiffuRec").default_values()
    assert spec.of_training <= own.keys() | family.keys()  # of which a model of the family may lack some


IDLE = [
    ("DiffuRec", {"ddim_eta": 0.5}, "ddim_eta would have no effect with sampler 'ddpm', got 0.5: give --sampler=ddim "),
    ("DiffuRec", {"offset_scale": 2}, "offset_scale would have no effect with offset_noise False, got 2"),
    ("DiffuRec", {"initializer_range": 0.1}, "initializer_range would have no effect with init 'xavier_normal'"),
    ("DiffuRec", {"noise_seed": 1, "ensemble_seeds": [1, 2]}, "noise_seed would have no effect with ensemble_seeds "),
    ("DiffuRec", {"sampling_steps": 2, "reverse_start": "last_item"}, "sampling_steps would have no effect with reve"),
    ("DiffuRec", {"draws": 4, "noised_target": False}, "draws would have no effect with noised_target False, got 4"),
    ("CausalRec", {"negative_distribution": "uniform"}, "negative_distribution would have no effect with sampled_so"),
    ("CausalRec", {"lr_decay_gamma": 0.5}, "lr_decay_gamma would have no effect with lr_decay_step None, got 0.5"),
    ("SASRec", {"wandb_project": "mine"}, r"wandb_project would have no effect with log_to \[\], got 'mine'"),
    ("DCRec", {"signal_low": 0.1, "noise_schedule": "sqrt"}, "signal_low would have no effect with noise_schedule "),
    ("DiffuRec", {"sampler": "ddim", "sampling_steps": 1}, "sampler would have no effect with sampling_steps 1, got '"),
    ("ADRec", {"ddim_eta": 1, "sampling_steps": 1}, "ddim_eta would have no effect with sampling_steps 1, got 1"),
    ("MaskedDiffRec", {"fill_order": "random", "n_slots": 1}, "fill_order would have no effect with n_slots 1, got 'r"),
    ("MaskedDiffRec", {"all_masked_share": 0.5, "n_slots": 1}, "all_masked_share would have no effect with n_slots 1"),
    ("DreamRec", {"consistency_weight": 0.5, "noised_target": False}, "consistency_weight would have no effect with n"),
    ("DreamRec", {"preference_scale": 2}, "preference_scale would have no effect with preference_weight 0.0, got 2"),
    ("DuoRec", {"lmd": 0.3}, "lmd would have no effect with contrast 'us_x', got 0.3: give --contrast=us as well"),
    ("DuoRec", {"lmd_sem": 0.3, "contrast": "un"}, "lmd_sem would have no effect with contrast 'un'"),
    ("CL4SRec", {"tau": 0.3, "lmd": 0}, "tau would have no effect with lmd 0, got 0.3"),
    ("VSAN", {"kl_anneal_steps": 3, "kl_weight": 0}, "kl_anneal_steps would have no effect with kl_weight 0, got 3"),
    ("MFGAN", {"n_generated": 3, "n_discriminator_layers": 0}, "n_generated would have no effect with n_discriminator"),
]


@pytest.mark.parametrize(("model", "given", "message"), IDLE, ids=[f"{m}-{next(iter(g))}" for m, g, _ in IDLE])
def test_a_run_refuses_what_another_parameter_keeps_from_acting(tmp_path, monkeypatch, model, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(model, "ml-100k", gpu_id="", **given)
    (tmp_path / "mine.yaml").write_text("".join(f"{name}: {value}\n" for name, value in given.items()))
    with pytest.raises(UserError, match=message):
        run(model, "ml-100k", config_files=["mine.yaml"], gpu_id="")
    with pytest.raises(UserError, match=message):
        compare([model], ["ml-100k"], gpu_id="", **given)
    entry = "+".join(f"{name}={value}" for name, value in given.items())
    with pytest.raises(UserError, match=message):
        compare([f"{model}@{entry}"], ["ml-100k"], gpu_id="")
    (tmp_path / "space.test").write_text("learning_rate loguniform 1e-4,1e-2\n")
    with pytest.raises(UserError, match=message):
        tune(model, "ml-100k", params_file="space.test", gpu_id="", **given)
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.yaml", "space.test", "comparison"}


def test_a_parameter_overrules_a_file_that_said_more(tmp_path):
    (tmp_path / "mine.yaml").write_text("sampler: ddim\nddim_eta: 0.5\n")
    files = [tmp_path / "mine.yaml"]
    given = {"sampler": "ddpm"}
    checks.check_given(RunConfig("DiffuRec", "ml-100k", given, files), given, files)
    given = {"sampler": "ddpm", "ddim_eta": 0.4}
    with pytest.raises(UserError, match=r"^ddim_eta would have no effect"):
        checks.check_given(RunConfig("DiffuRec", "ml-100k", given, files), given, files)


def test_what_acts_in_one_model_of_a_comparison_may_be_given_for_all():
    models = ["DiffuRec", "DiffuRec@sampler=ddim", "SASRec"]
    assert len(plan(models, ["ml-100k"], [1], {"ddim_eta": 0.5, "gpu_id": ""}, {"ddim_eta"})) == 3
    with pytest.raises(UserError, match=r"^ddim_eta would have no effect"):
        plan(models[::2], ["ml-100k"], [1], {"ddim_eta": 0.5, "gpu_id": ""}, {"ddim_eta"})


def test_a_search_refuses_a_line_that_cannot_act_and_takes_one_whose_need_is_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.test").write_text("ddim_eta choice [0.1, 0.5]\n")
    with pytest.raises(UserError, match=r"space.test' line 1: 'ddim_eta' would have no effect with sampler 'ddpm'"):
        tune("DiffuRec", "ml-100k", params_file="space.test", gpu_id="")
    (tmp_path / "space.test").write_text("ddim_eta choice [0.1, 0.5]\nsampler choice [ddim, ddpm]\ntime choice [1]\n")
    with pytest.raises(UserError, match="time"):  # which no model has, and nothing before it is wrong
        tune("DiffuRec", "ml-100k", params_file="space.test", gpu_id="")


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "draws", "negative_distribution", "batch_by_length", "rows"])
def test_a_use_of_a_checkpoint_refuses_what_is_of_training(name: str):
    config = RunConfig("DiffuRec", "ml-100k", {"gpu_id": ""})
    value = {"draws": 2, "negative_distribution": "uniform", "batch_by_length": True, "rows": "sequences"}.get(
        name, 0.7
    )
    changed = config.with_values(**{name: value})
    with pytest.raises(UserError, match=f"^{name} would have no effect, because training alone reads it"):
        checks.check_effect_after({name: value}, changed, config.plain())
    checks.check_effect_after({name: config[name]}, config, config.plain())


def test_a_use_of_a_checkpoint_refuses_what_cannot_act():
    config = RunConfig("DiffuRec", "ml-100k", {"gpu_id": "", "ddim_eta": 0.5})
    with pytest.raises(UserError, match=r"^ddim_eta would have no effect with sampler 'ddpm', got 0.5: give --"):
        checks.check_effect_after({"ddim_eta": 0.5}, config, RunConfig("DiffuRec", "ml-100k", {"gpu_id": ""}).plain())


@pytest.mark.parametrize(("name", "value"), [("sampling_steps", 1), ("fill_order", "random"), ("noise_seed", 5)])
def test_rankings_refuse_what_lists_alone_read(name: str, value: Any):
    config = RunConfig("MaskedDiffRec", "ml-100k", {"gpu_id": "", name: value})
    with pytest.raises(UserError, match=rf"^{name} would have no effect, because MaskedDiffRec reads it where lists"):
        checks.check_effect_in_rankings({name: value}, config)
    checks.check_effect_in_rankings({"guidance": 1.0}, config)

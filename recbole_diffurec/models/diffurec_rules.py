"""What the parameters of DiffuRec's family may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_diffurec.config.needs import Need
from recbole_diffurec.config.rules import COUNT, Rule
from recbole_diffurec.diffusion import schedules
from recbole_diffurec.diffusion.samplers import SAMPLERS
from recbole_diffurec.diffusion.step_samplers import STEP_SAMPLERS
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.blocks import ACTIVATIONS
from recbole_diffurec.models.dropout_by_data import AT_SPARSE_AND_DENSE
from recbole_diffurec.models.sequential import OF_TRAINING

MOST_DRAWS = 1000  # the seeds of keyed noise have room for somewhat more
FAMILY_RULES = {
    "hidden_act": Rule("str", choices=list(ACTIVATIONS)),
    "diffusion_steps": COUNT,
    "sampling_steps": Rule("int", 1, optional=True),
    "valid_sampling_steps": Rule("int", 1, optional=True),
    "noise_schedule": Rule("str", choices=list(schedules.SCHEDULES)),
    "sampler": Rule("str", choices=list(SAMPLERS)),
    "ddim_eta": Rule("number", 0, 1),
    "step_sampler": Rule("str", choices=list(STEP_SAMPLERS)),
    "lambda_uncertainty": Rule("number", 0),
    "offset_noise": Rule("bool"),
    "offset_scale": Rule("number"),
    "reverse_start": Rule("str", choices=["noise", "last_item"]),
    "noised_target": Rule("bool"),
    "noise_seed": Rule("int", 0, 2**63 - 1),
    "ensemble_seeds": Rule("list", optional=True),
    "sampled_softmax": Rule("int", 1, optional=True),
    "negative_distribution": Rule("str", choices=["log_uniform", "uniform"]),
    "compile": Rule("bool"),
    "gradient_checkpointing": Rule("bool"),
    "keyed_noise": Rule("bool"),
    "cosine_temperature": Rule("number", 0, 1, open_low=True, optional=True),
    "repeat_bias": Rule("bool"),
}
# Of the models of the family that the recipes were found with.
DROPOUT_RULES = dict.fromkeys(AT_SPARSE_AND_DENSE, Rule("number", 0, 1, open_high=True, choices=["auto"]))
# Of the models of the family whose objective is the cross-entropy.
DRAWS_RULES = {"draws": Rule("int", 1, MOST_DRAWS)}
OBJECTIVE_RULES = {**DRAWS_RULES, "squared_error_weight": Rule("number", 0)}

_CHAIN = (
    Need("noised_target", bool, "--noised_target=True"),
    Need("reverse_start", lambda start: start == "noise", "--reverse_start=noise"),
)
_SEVERAL = Need("sampling_steps", lambda steps: steps != 1, "--sampling_steps=2")  # of one, all samplers are the same
# What parameters of the family need to act: without the noised target, or from the last item, inference is one step.
FAMILY_NEEDS = {
    **dict.fromkeys(("sampling_steps", "valid_sampling_steps"), _CHAIN),
    "sampler": (*_CHAIN, _SEVERAL),
    "ddim_eta": (*_CHAIN, _SEVERAL, Need("sampler", lambda sampler: sampler == "ddim", "--sampler=ddim")),
    **dict.fromkeys(
        ("noise_schedule", "lambda_uncertainty", "offset_noise", "reverse_start", "ensemble_seeds", "draws"), _CHAIN[:1]
    ),
    "offset_scale": (*_CHAIN[:1], Need("offset_noise", bool, "--offset_noise=True")),
    "noise_seed": (*_CHAIN[:1], Need("ensemble_seeds", lambda seeds: not seeds, "--ensemble_seeds=")),
}
# Of which nothing is read once a model is trained.
FAMILY_OF_TRAINING = OF_TRAINING | {
    *("embedding_dropout_prob", "init", "keyed_noise", "step_sampler", "offset_noise", "offset_scale"),
    *("valid_sampling_steps", "draws", "squared_error_weight"),
}


def check_family(values: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where parameters of the family do not fit together."""
    steps = values["diffusion_steps"]
    for name in ("sampling_steps", "valid_sampling_steps"):
        if values[name] is not None and values[name] > steps:
            raise UserError(f"{name} must be from 1 to diffusion_steps ({steps}), got {values[name]}")
    seeds = values["ensemble_seeds"]
    if seeds is not None and not (seeds and all(FAMILY_RULES["noise_seed"].accepts(seed) for seed in seeds)):
        raise UserError(f"ensemble_seeds must be a list of integers of at least 0, such as [1,2,3], got {seeds!r}")
    if values.get("draws", 1) > 1 and values["step_sampler"] == "loss_aware":
        raise UserError(
            f"draws: {values['draws']} has one loss for several steps, and step_sampler: loss_aware learns from one of "
            f"each: give --step_sampler=uniform or --draws=1"
        )
    try:
        schedules.betas(values["noise_schedule"], steps)
    except ValueError as error:
        raise UserError(str(error)) from None


def loss_of(values: Mapping[str, Any]) -> str:
    """What the objective of ``OBJECTIVE_RULES`` is; runs of earlier versions have neither parameter."""
    draws, near = values.get("draws", 1), values.get("squared_error_weight", 0)
    loss = "cross-entropy" if draws == 1 else f"cross-entropy of the mean of {draws} draws"
    return f"{loss} and {near:g} of the squared error" if near else loss

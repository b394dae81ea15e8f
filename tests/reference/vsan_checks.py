"""VSAN: both stacks, the Gaussians, losses, scores."""

from __future__ import annotations

import re
from typing import Any

import torch
from conftest import make_model
from reference_files import Arrays, check, close
from torch import Tensor

from recbole_diffurec.layers.ragged import PaddedBatch, RaggedBatch
from recbole_diffurec.models.vsan import divergence

vsan = check(only_here="weight/inference0.query.weight")

RENAMED = {
    r"^(item|position)_embedding": r"\1_embedding.weight",
    r"^mu\.": "mean.",
    r"^log_var\.": "log_variance.",
    r"^(inference|generative)(\d+)\.": r"\1.blocks.\2.",
    r"\.(query|key|value)\.": r".attention.\1.",
    r"\.dense\.": ".attention.output.",
    r"\.ffn1\.": ".ffn.0.",
    r"\.ffn2\.": ".ffn.2.",
}


def number_of(blocks: str, weights: dict[str, Tensor]) -> int:
    return len({name.partition(".")[0] for name in weights if re.match(rf"{blocks}\d+\.", name)})


def model_of(arrays: Arrays) -> Any:
    """Our model with a file's sizes and weights. The number of heads is the one with which the first stage agrees."""
    weights = arrays.below("weight/")
    n_items, size = weights["item_embedding"].shape
    batch, found = batch_of(arrays), []
    for heads in (h for h in range(1, size + 1) if size % h == 0):
        model = make_model(
            "VSAN",
            n_items,
            hidden_size=size,
            n_heads=heads,
            inner_size=len(weights["inference0.ffn1.bias"]),
            MAX_ITEM_LIST_LENGTH=len(weights["position_embedding"]),
            n_layers=number_of("inference", weights),
            n_generative_layers=number_of("generative", weights),
        )
        state = {"n_trained": model.n_trained}
        for name, value in weights.items():
            for pattern, ours in RENAMED.items():
                name = re.sub(pattern, ours, name)
            state[name] = value
        model.load_state_dict(state)
        away = model.inference(model.embed(batch), batch, last_only=False) - of_tokens(
            batch, arrays["expect/inference"]
        )
        found.append((float(away[slice(None) if batch.real is None else batch.real].abs().max()), heads, model))
    return min(found, key=lambda one: one[0])[2]


def batch_of(arrays: Arrays) -> RaggedBatch:
    return RaggedBatch(arrays["input/item_seq"], arrays["input/length"])


def of_tokens(batch: RaggedBatch, theirs: Tensor) -> Tensor:
    """What [B, L, d] has for each of our tokens; zeros for those that pad."""
    values = theirs[batch.row, batch.position]
    return values if batch.real is None else values * batch.real.unsqueeze(1)


def same(batch: RaggedBatch, ours: Tensor, theirs: Tensor) -> None:
    real = slice(None) if batch.real is None else batch.real
    close(ours[real], of_tokens(batch, theirs)[real])


@vsan
def every_stage(arrays: Arrays) -> None:
    model, batch = model_of(arrays), batch_of(arrays)
    x = model.embed(batch)
    same(batch, model.inference(x, batch, last_only=False), arrays["expect/inference"])
    mean, log_variance = model.posterior(x, batch)
    same(batch, mean, arrays["expect/mu"])
    same(batch, log_variance, arrays["expect/log_var"])
    z = mean + (log_variance / 2).exp() * of_tokens(batch, arrays["input/noise"])
    same(batch, z, arrays["expect/z"])
    same(batch, model.generative(z, batch, last_only=False), arrays["expect/generative"])


@vsan
def losses(arrays: Arrays) -> None:
    model, batch = model_of(arrays), batch_of(arrays)
    mean, log_variance = model.posterior(model.embed(batch), batch)
    noise = of_tokens(batch, arrays["input/noise"])
    states, divergences = model.drawn(mean, log_variance, noise, batch)
    close(divergences, arrays["expect/kl_last_position"])
    every = divergence(arrays["expect/mu"], arrays["expect/log_var"])
    real = arrays["input/item_seq"] != 0
    close((every * real).sum(dim=1) / real.sum(dim=1), arrays["expect/kl_mean_over_positions"])
    close(model.scores.logits(states, None)[:, 1:], arrays["expect/logits_sampled"][:, 1:])
    target = arrays["input/target"]
    for row, expected in enumerate(arrays["expect/ce_without_padding_class"]):
        chosen = {model.ITEM_SEQ: arrays["input/item_seq"], model.POS_ITEM_ID: target[row : row + 1]}
        close(model.recommendation_loss(states[row : row + 1], chosen), expected)


@vsan
def the_whole_loss(arrays: Arrays) -> None:
    model, batch = model_of(arrays), batch_of(arrays)
    rows = {model.ITEM_SEQ: arrays["input/item_seq"], model.ITEM_SEQ_LEN: arrays["input/length"]}
    draw, torch.randn_like = torch.randn_like, lambda _: of_tokens(batch, arrays["input/noise"])
    try:
        model.kl_anneal_steps = 0
        recommendation, weighted = model.calculate_loss({**rows, model.POS_ITEM_ID: arrays["input/target"]})
    finally:
        torch.randn_like = draw
    close(recommendation, arrays["expect/ce_without_padding_class"].mean())
    close(weighted, model.kl_weight * arrays["expect/kl_last_position"].mean())


@vsan
def scores_from_the_mean(arrays: Arrays) -> None:
    model, item_seq, target = model_of(arrays), arrays["input/item_seq"], arrays["input/target"]
    rows = {model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: arrays["input/length"]}
    theirs = arrays["expect/scores_from_mean"]
    close(model.full_sort_predict(rows)[:, 1:], theirs[:, 1:])
    close(model.predict({**rows, model.ITEM_ID: target}), theirs.gather(1, target.unsqueeze(1)).squeeze(1))
    close(model.scores.logits(model.states(PaddedBatch(item_seq)), None)[:, 1:], theirs[:, 1:])

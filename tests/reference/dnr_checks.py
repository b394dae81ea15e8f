"""DiffRecDNR: what enters the Transformer, its estimate, both terms of the loss, the reverse process, the scores.

The files have one table of positions, the target's first; a position of theirs is an age of ours and one more.
"""

from __future__ import annotations

from typing import Any

import torch
from conftest import make_model
from reference_files import Arrays, check, close
from torch import Tensor

from recbole_diffurec.diffusion.process import DiffusionProcess
from recbole_diffurec.diffusion.samplers import DDIMSampler, DDPMSampler
from recbole_diffurec.layers.ragged import PaddedBatch, RaggedBatch

dnr = check(only_here="expect/encoder_input_right_padded")

RENAMED = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "dense": "attention.output",
    "attention_norm": "attention_norm",
    "ffn1": "ffn.0",
    "ffn2": "ffn.2",
    "ffn_norm": "ffn_norm",
}


class Given:
    """A source whose draws are those of a file."""

    def __init__(self, start: Tensor):
        self._start = start

    def start(self) -> Tensor:
        return self._start


def model_of(arrays: Arrays, **parameters: Any) -> Any:
    weights = arrays.below("weight/")
    layers = {name.split(".")[0] for name in weights if name.startswith("layer")}
    n_items, size = weights["item_embedding"].shape
    heads = int(arrays["meta/heads"]) if "meta/heads" in arrays else 2
    model = make_model(
        "DiffRecDNR",
        n_items,
        hidden_size=size,
        n_layers=len(layers),
        n_heads=heads,
        inner_size=len(weights["layer0.ffn1.bias"]),
        MAX_ITEM_LIST_LENGTH=len(weights["position_embedding"]) - 1,
        diffusion_steps=len(arrays["schedule/betas"]),
        noise_schedule="sqrt",  # replaced by the file's
        step_sampler="uniform",
        **parameters,
    )
    positions = weights.pop("position_embedding")
    state = {
        "item_embedding.weight": weights.pop("item_embedding"),
        "position_embedding.weight": positions[1:],
        "network.target_position": positions[0],
        "output.weight": weights.pop("output.weight"),
        "output.bias": weights.pop("output.bias"),
    }
    for name, value in weights.items():
        layer, part, kind = name.split(".")
        state[f"network.encoder.blocks.{layer.removeprefix('layer')}.{RENAMED[part]}.{kind}"] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    betas = arrays["schedule/betas"].numpy()
    model.process, model.sampler = DiffusionProcess(betas), DDPMSampler(betas)
    return model


def histories(arrays: Arrays) -> RaggedBatch:
    return RaggedBatch(arrays["input/item_seq"], arrays["input/length"])


def initial_noise(arrays: Arrays, batch: RaggedBatch) -> tuple[Tensor, Tensor]:
    scale = arrays["schedule/beta0"].sqrt()
    place = arrays["input/length"][batch.row] - 1 - batch.age
    return scale * arrays["noise/history_h0"][batch.row, place], scale * arrays["noise/target_h0"]


@dnr
def what_enters_the_transformer(arrays: Arrays) -> None:
    model, batch, t = model_of(arrays), histories(arrays), arrays["input/step_1_based"] - 1
    network = model.network
    close(network.steps(), arrays["expect/step_embedding"])
    history_noise, target_noise = initial_noise(arrays, batch)
    h_0 = model.item_embedding(arrays["input/target"]) + target_noise
    close(h_0, arrays["expect/h0"])
    h_n = model.process.q_sample(h_0, t, arrays["noise/forward"])
    close(h_n, arrays["expect/hn"])
    condition = model.denoiser.condition(model.embedded(batch) + history_noise, batch)
    joined = network.inputs(condition, h_n, t)
    theirs, length = arrays["expect/encoder_input_right_padded"], arrays["input/length"]
    order = batch.row[batch.last]
    close(joined[condition.batch.last], theirs[order, length[order]])
    for slab, own in zip(condition.batch.slabs, joined.split([s.n * s.length for s in condition.batch.slabs])):
        for row, sequence in zip(order[slab.rows].tolist(), own.view(slab.n, slab.length, -1)):
            close(sequence[1 : 1 + length[row]], theirs[row, : length[row]])
    close(network(condition, h_n, t), arrays["expect/f"])


@dnr
def both_terms_of_the_loss(arrays: Arrays) -> None:
    model, batch, target = model_of(arrays), histories(arrays), arrays["input/target"]
    draws, t, n = Given(arrays["noise/forward"]), arrays["input/step_1_based"] - 1, len(target)
    recommendation = arrays["expect/rec_per_sample_without_padding_class"]
    for row in range(n):  # by the weights, so that each distance is seen alone
        weight = torch.zeros(n, dtype=torch.float64).index_fill_(0, torch.tensor(row), n)
        distance, classified = model.losses(batch, target, t, initial_noise(arrays, batch), draws, weight)
        close(distance, arrays["expect/mse_per_sample"][row])
        close(classified, recommendation.mean())
    h_0 = arrays["expect/h0"]
    each = model.objective(h_0, h_0, target, torch.ones(n), None)[1]
    close(each, recommendation)


@dnr
def the_prediction_is_classified_where_asked(arrays: Arrays) -> None:
    model, batch, target = model_of(arrays, rec_on="predicted"), histories(arrays), arrays["input/target"]
    draws, t = Given(arrays["noise/forward"]), arrays["input/step_1_based"] - 1
    _, classified = model.losses(batch, target, t, initial_noise(arrays, batch), draws, torch.ones(len(target)))
    logits = arrays["expect/f"] @ arrays["weight/output.weight"].T + arrays["weight/output.bias"]
    close(classified, torch.nn.functional.cross_entropy(logits[:, 1:], target - 1))


@dnr
def the_reverse_process_and_its_scores(arrays: Arrays) -> None:
    model, batch, noise = model_of(arrays), histories(arrays), arrays["input/reverse_noise"]
    betas, x_n = arrays["schedule/betas"].numpy(), arrays["input/x_N"]
    close(model.process.sqrt_alpha_bar**2, arrays["schedule/alpha_bar"])
    close(model.sampler.posterior_mean_coef1, arrays["schedule/posterior_mean_coef1"])
    close(model.sampler.posterior_mean_coef2, arrays["schedule/posterior_mean_coef2"])
    condition = model.condition(batch, model.denoiser)

    def denoise(x_s: Tensor, t: int) -> Tensor:
        return model.denoiser(condition, x_s, t, Given(x_s))

    for sampler, name in ((DDPMSampler(betas), "beta"), (DDIMSampler(betas, eta=1.0), "beta_tilde")):
        expected = arrays[f"expect/reverse_trajectory_variance_{name}"]
        states, x = [], x_n
        for index in range(len(betas) - 1, 0, -1):
            x = sampler.step(x, denoise(x, index), index, lambda t: noise[t])
            states.append(x)
        close(torch.stack([denoise(x, 0), *states[::-1]]), expected)
        close(sampler.sample(x_n, denoise, lambda t: noise[t]), expected[0])
    item_seq = arrays["input/item_seq"]
    x_0 = arrays["expect/reverse_trajectory_variance_beta"][0]
    close(model.logits(x_0, item_seq)[:, 1:], arrays["expect/scores"][:, 1:])
    model = model.with_sampling_steps(1)
    one_step = model.sampler.sample(x_n, denoise, lambda t: noise[t])
    close(model.logits(one_step, item_seq)[:, 1:], arrays["expect/scores_one_step"][:, 1:])
    padded = PaddedBatch(item_seq)
    close(model.denoiser(model.condition(padded, model.denoiser), x_n, len(betas) - 1, Given(x_n)), one_step)

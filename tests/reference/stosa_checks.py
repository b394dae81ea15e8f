"""STOSA: distances, embeddings, each block as the paper means it and as the public code has it, losses, scores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from conftest import make_model
from reference_files import Arrays, check, close
from torch import Tensor

from recbole_diffurec.layers.ragged import PaddedBatch, RaggedBatch
from recbole_diffurec.models.stosa import place, squared_distance

stosa = check(only_here="weight/item_mean_embeddings.weight")

FOLDERS, VARIANTS = ("full", "padded"), {"stacked": True, "public": False}
RENAMED = {
    r"^item_mean_embeddings": "item_embedding",
    r"^item_cov_embeddings": "item_covariance",
    r"^position_mean_embeddings": "position_embedding",
    r"^position_cov_embeddings": "position_covariance",
    r"^LayerNorm": "input_norm",
    r"^item_encoder\.layer": "blocks",
    r"attention\.LayerNorm": "attention_norm",
    r"_dense\.": "_output.",
    r"_intermediate\.dense_1": "_ffn.layers.0",
    r"_intermediate\.dense_2": "_ffn.layers.2",
    r"_intermediate\.LayerNorm": "_ffn.norm",
}
WITH_MEANS = re.compile(r"mean_(value|output|ffn)")


def model_of(arrays: Arrays, stack_means: bool, **parameters: Any) -> Any:
    weights = arrays.below("weight/")
    n_items, size = weights["item_mean_embeddings.weight"].shape
    model = make_model(
        "STOSA",
        n_items,
        hidden_size=size,
        n_layers=int(arrays["meta/layers"]),
        n_heads=int(arrays["meta/heads"]),
        inner_size=len(weights["item_encoder.layer.0.mean_intermediate.dense_1.bias"]),
        MAX_ITEM_LIST_LENGTH=int(arrays["meta/max_len"]),
        stack_means=stack_means,
        **{"pvn_weight": float(arrays["meta/pvn_weight"]), **parameters},
    )
    state = {}
    for name, value in weights.items():
        for pattern, ours in RENAMED.items():
            name = re.sub(pattern, ours, name)
        # Slots of left-padded histories are ages, counted back.
        state[name] = value.flip(0) if name.startswith("position") else value
    unused = {name for name in state if name == "user_margins.weight" or (not stack_means and WITH_MEANS.search(name))}
    model.load_state_dict({name: value for name, value in state.items() if name not in unused})
    return model


def histories(arrays: Arrays, folder: str) -> tuple[Tensor, Tensor]:
    """The histories right-padded, with their lengths."""
    theirs = arrays[f"{folder}/input_ids"]
    lengths = (theirs != 0).sum(dim=1)
    item_seq = torch.zeros_like(theirs)
    for row, length in enumerate(lengths.tolist()):
        item_seq[row, :length] = theirs[row, theirs.shape[1] - length :]
    return item_seq, lengths


def tokens(batch: RaggedBatch, theirs: Tensor) -> tuple[Any, Tensor]:
    """Which of our tokens are real, and what a left-padded array [B, L, ...] has for them."""
    real = slice(None) if batch.real is None else batch.real
    return real, theirs[batch.row[real], theirs.shape[1] - 1 - batch.age[real]]


def cases(arrays: Arrays) -> Iterator[tuple[str, str, Any, RaggedBatch]]:
    for variant, stack_means in VARIANTS.items():
        model = model_of(arrays, stack_means)
        for folder in FOLDERS:
            yield folder, variant, model, RaggedBatch(*histories(arrays, folder))


def same(batch: RaggedBatch, ours: Tensor, theirs: Tensor) -> None:
    real, expected = tokens(batch, theirs)
    close(ours[real], expected)


@stosa
def distances_of_gaussians(arrays: Arrays) -> None:
    first, second = (place(arrays[f"distance/mean{k}"], arrays[f"distance/cov{k}"]) for k in (1, 2))
    close(squared_distance(first.unsqueeze(1), second), arrays["distance/pairwise"])
    close(squared_distance(first, second[: len(first)]), arrays["distance/elementwise_first4"])


@stosa
def every_block(arrays: Arrays) -> None:
    for folder, variant, model, batch in cases(arrays):
        mean, cov = model.embed(batch).chunk(2, dim=-1)
        same(batch, mean, arrays[f"{folder}/mean_embedding"])
        same(batch, cov, arrays[f"{folder}/cov_embedding"])
        for index, block in enumerate(model.blocks):
            weights = block.attention.weights(mean, cov, batch, last_only=False)
            expected = arrays.below(f"{folder}/stacked/layer{index}/")
            last = variant == "public" and index == len(model.blocks) - 1
            if variant == "stacked":
                probabilities(batch, weights, expected["attention_probs"])
                attended_mean, attended_cov = block.attend(mean, cov, batch, last_only=False)
                same(batch, attended_mean, expected["attention_mean"])
                same(batch, attended_cov, expected["attention_cov"])
            mean, cov = block(mean, cov, batch, last_only=False)
            if variant == "stacked":
                same(batch, mean, expected["mean"])
                same(batch, cov, expected["cov"])
            elif last:
                probabilities(batch, weights, arrays[f"{folder}/public/last_attention_probs"])
                same(batch, mean, arrays[f"{folder}/public/mean"])
                same(batch, cov, arrays[f"{folder}/public/cov"])


def probabilities(batch: RaggedBatch, weights: list[Tensor], theirs: Tensor) -> None:
    """Of the real queries: ours of each slab [n, h, l, l], theirs [B, h, L, L], padded on the left."""
    order = batch.row[batch.last]
    for slab, own in zip(batch.slabs, weights):
        first = batch.age[slab.tokens].view(slab.n, slab.length)[:, 0]  # of the oldest item: the length less one
        for row, oldest, a in zip(order[slab.rows].tolist(), first.tolist(), own):
            n = oldest + 1
            close(a[:, :n, :n], theirs[row, :, -n:, -n:])


@stosa
def losses_of_all_positions(arrays: Arrays) -> None:
    for folder, variant, model, batch in cases(arrays):
        states = model.encoded(model.embed(batch), batch, last_only=False)
        real, positive = tokens(batch, arrays[f"{folder}/pos"])
        _, negative = tokens(batch, arrays[f"{folder}/neg"])
        ranking, apart = model.pairwise_losses(states[real], positive, negative)
        close(ranking, arrays[f"{folder}/{variant}/loss_bpr"])
        close(apart, arrays[f"{folder}/{variant}/loss_pvn_weighted"])
        close(ranking + apart, arrays[f"{folder}/{variant}/loss"])


@stosa
def losses_and_scores_of_the_last_position(arrays: Arrays) -> None:
    for folder, variant, model, _ in cases(arrays):
        item_seq, lengths = histories(arrays, folder)
        positive, negative = arrays[f"{folder}/pos"][:, -1], arrays[f"{folder}/neg"][:, -1]
        rows = {model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: lengths}
        losses = model.calculate_loss({**rows, model.POS_ITEM_ID: positive, model.NEG_ITEM_ID: negative})
        close(sum(losses), arrays[f"{folder}/{variant}/last_position_loss"])
        theirs = arrays[f"{folder}/{variant}/distances_all_items"]
        close(-model.full_sort_predict(rows)[:, 1:], theirs[:, 1:])
        close(-model.predict({**rows, model.ITEM_ID: positive}), theirs.gather(1, positive.unsqueeze(1)).squeeze(1))
        close(-model.scores.logits(model.states(PaddedBatch(item_seq)), None)[:, 1:], theirs[:, 1:])
        full = model_of(arrays, VARIANTS[variant], loss_type="CE", pvn_weight=0)
        expected = torch.nn.functional.cross_entropy(-theirs[:, 1:], positive - 1)
        close(full.calculate_loss({**rows, full.POS_ITEM_ID: positive}), expected)

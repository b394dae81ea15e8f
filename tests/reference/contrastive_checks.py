"""DuoRec and CL4SRec: encoder, losses, InfoNCE, the index of equal targets, the changes of histories.

Their losses have the padding row as a class; what they add to the cross-entropy is compared without it.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import torch
from conftest import make_model
from reference_files import Arrays, check, close
from torch import Tensor

from recbole_diffurec.data import augment
from recbole_diffurec.data.rows import ROW, SameTarget
from recbole_diffurec.layers.blocks import LAYER_NORM_EPS
from recbole_diffurec.layers.contrast import info_nce, similarities

contrastive = check(only_here="duorec/expect/seq_output")

# Names of RecBole's Transformer and ours, in the order in which they are replaced.
RENAMED = {
    r"^LayerNorm": "input_norm",
    r"^trm_encoder\.layer": "encoder.blocks",
    r"multi_head_attention\.LayerNorm": "attention_norm",
    r"multi_head_attention\.dense": "attention.output",
    r"multi_head_attention": "attention",
    r"feed_forward\.LayerNorm": "ffn_norm",
    r"feed_forward\.dense_1": "ffn.0",
    r"feed_forward\.dense_2": "ffn.2",
}


def model_of(arrays: Arrays, name: str, folder: str, **parameters: Any) -> tuple[Any, dict[str, Any]]:
    """Our model with a file's sizes and weights, and the settings it was made with."""
    theirs: dict[str, Any] = ast.literal_eval(arrays.text("meta/config"))
    assert theirs["layer_norm_eps"] == LAYER_NORM_EPS and theirs["hidden_act"] == "gelu"
    shared = ("n_layers", "n_heads", "hidden_size", "inner_size", "lmd", "tau", "sim", "MAX_ITEM_LIST_LENGTH")
    weights = arrays.below(f"{folder}/weight/")
    n_items = len(weights["item_embedding.weight"])
    if name == "CL4SRec":  # whose mask token is one more row of the public table
        n_items -= 1
        weights["mask_vector"] = weights["item_embedding.weight"][n_items]
        weights["item_embedding.weight"] = weights["item_embedding.weight"][:n_items]
    model = make_model(name, n_items, **{key: theirs[key] for key in shared}, **parameters)
    state = {}
    for key, value in weights.items():
        for pattern, ours in RENAMED.items():
            key = re.sub(pattern, ours, key)
        state[key] = value
    model.load_state_dict(state)
    return model, theirs


def duorec(arrays: Arrays) -> tuple[Any, tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
    """The model, the histories of the batch, those with the same targets, and the targets."""
    lmd_sem = ast.literal_eval(arrays.text("meta/config"))["lmd_sem"]
    model, _ = model_of(arrays, "DuoRec", "duorec", lmd_sem=lmd_sem, contrast="un")  # needs no training rows
    own = arrays["duorec/input/item_seq"], arrays["duorec/input/item_seq_len"]
    other = arrays["duorec/input/sem_aug"], arrays["duorec/input/sem_aug_lengths"]
    return model, own, other, arrays["duorec/input/target"]


def cl4srec(arrays: Arrays) -> tuple[Any, tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]], Tensor]:
    """The model, the histories of the batch, their views, and the targets."""
    model, _ = model_of(arrays, "CL4SRec", "cl4srec")
    own = arrays["cl4srec/input/item_id_list"], arrays["cl4srec/input/item_length"]
    views = [(arrays[f"cl4srec/input/aug{k}"], arrays[f"cl4srec/input/aug_len{k}"]) for k in (1, 2)]
    return model, own, views, arrays["cl4srec/input/item_id"]


def batch(model: Any, own: tuple[Tensor, Tensor], target: Tensor) -> dict[str, Tensor]:
    return {
        model.ITEM_SEQ: own[0],
        model.ITEM_SEQ_LEN: own[1],
        model.POS_ITEM_ID: target,
        ROW: torch.arange(len(target)),
    }


@contrastive
def info_nce_logits_and_losses(arrays: Arrays) -> None:
    found = [re.fullmatch(r"(info_nce/\d+)/(dot|cos)/tau([\d.]+)/loss", name) for name in arrays.names]
    cases = [match.groups() for match in found if match]
    assert cases
    for folder, similarity, tau in cases:
        z_i, z_j = arrays[f"{folder}/z_i"], arrays[f"{folder}/z_j"]
        expected = f"{folder}/{similarity}/tau{tau}"
        close(info_nce(z_i, z_j, float(tau), similarity), arrays[f"{expected}/loss"])
        logits = similarities(z_i, z_j, float(tau), similarity)
        n = len(z_i)
        for row, theirs in enumerate(arrays[f"{expected}/logits"]):
            partner = (row + n) % (2 * n)
            negatives = [column for column in range(2 * n) if column not in (row, partner)]
            close(logits[row, [partner, *negatives]], theirs)


@contrastive
def rows_with_the_same_target(arrays: Arrays) -> None:
    target = arrays["same_target/target"]
    rows = torch.arange(len(target))
    index = SameTarget(rows, target)
    torch.manual_seed(0)
    draws = torch.stack([index(rows) for _ in range(300)])
    for row, listed in enumerate(arrays["same_target/candidates_padded_with_-1"].tolist()):
        candidates = {candidate for candidate in listed if candidate >= 0}
        assert set(draws[:, row].tolist()) == (candidates or {row})


@contrastive
def crop_mask_and_reorder(arrays: Arrays) -> None:
    crop_rate, mask_rate, reorder_rate = arrays["augment/rates_eta_crop_gamma_mask_beta_reorder"].tolist()
    token = int(arrays["augment/mask_token"])
    examples = sorted({name.split("/")[1] for name in arrays.names if re.match(r"augment/\d", name)})
    assert examples
    for example in examples:
        theirs = arrays.below(f"augment/{example}/")
        seq, length = theirs["seq"].unsqueeze(0), theirs["len"].view(1)
        n = int(length)

        # Draws from the middle of what leads to the positions of the file.
        def start(first: int, stretch: int, n: int = n) -> Tensor:
            return torch.tensor([(first + 0.5) / (n - stretch + 1)], dtype=torch.float64)

        kept = int(theirs["crop_len"])
        cropped, cropped_length = augment.crop(seq, length, crop_rate, start(int(theirs["crop_begin"]), kept))
        assert cropped[0].equal(theirs["crop"]) and int(cropped_length) == kept

        keys = torch.full(seq.shape, 0.5, dtype=torch.float64)
        keys[0, theirs["mask_positions"]] = 0.25
        assert augment.mask(seq, length, mask_rate, keys, token)[0].equal(theirs["mask"])

        order = theirs["reorder_positions"]
        keys[0, order] = (torch.arange(len(order), dtype=torch.float64) + 0.5) / max(len(order), 1)
        where = start(int(order.min()) if len(order) else 0, len(order))
        assert augment.reorder(seq, length, reorder_rate, where, keys)[0].equal(theirs["reorder"])


@contrastive
def duorec_states_and_scores(arrays: Arrays) -> None:
    model, own, other, target = duorec(arrays)
    close(model.represent(*own), arrays["duorec/expect/seq_output"])
    close(model.represent(*other), arrays["duorec/expect/sem_output"])
    scores, theirs = model.full_sort_predict(batch(model, own, target)), arrays["duorec/expect/scores"]
    close(scores[:, 1:], theirs[:, 1:])
    close(model.predict(batch(model, own, target)), theirs.gather(1, target.unsqueeze(1)).squeeze(1))


@contrastive
def duorec_losses_of_all_contrasts(arrays: Arrays) -> None:
    model, own, other, target = duorec(arrays)
    model.same_target, model.histories = (lambda rows: rows), (lambda rows: other)
    expected = arrays.below("duorec/expect/loss_public_")
    assert set(expected) == {"un", "su", "us", "us_x"}
    for contrast, theirs in expected.items():
        model.contrast = contrast
        recommendation, contrastive = model.calculate_loss(batch(model, own, target))
        close(recommendation, arrays["duorec/expect/ce_without_padding_class"])
        close(contrastive, theirs - arrays["duorec/expect/ce_public"])


@contrastive
def cl4srec_states_and_losses(arrays: Arrays) -> None:
    model, own, views, target = cl4srec(arrays)
    for view, name in zip([own, *views], ("seq_output", "aug1_output", "aug2_output")):
        close(model.represent(*view), arrays[f"cl4srec/expect/{name}"])
    model.views = lambda *_: views
    recommendation, contrastive = model.calculate_loss(batch(model, own, target))
    close(recommendation, arrays["cl4srec/expect/ce_without_padding_class"])
    close(contrastive, model.weight * arrays["cl4srec/expect/nce"])
    close(contrastive, arrays["cl4srec/expect/loss_public"] - arrays["cl4srec/expect/ce_public"])

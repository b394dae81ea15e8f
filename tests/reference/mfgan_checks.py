"""MFGAN: the generator's states and scores, rewards, losses, discriminators."""

from __future__ import annotations

import re
from typing import Any

import torch
from conftest import make_model
from reference_files import Arrays, check, close
from torch import Tensor, nn

from recbole_diffurec.layers.ragged import PaddedBatch, RaggedBatch
from recbole_diffurec.models.mfgan import Discriminator

mfgan = check(only_here="weight/gen.item")

FACTORS = {"id": 0, "pop": 1}
RENAMED = {
    r"^gen\.item$": "item_embedding.weight",
    r"^gen\.": "",
    r"^dis_(\w+?)\.": lambda match: f"discriminators.{FACTORS[match[1]]}.",
    r"(^|\.)item$": r"\1value_embedding.weight",
    r"(^|\.)position$": r"\1position_embedding.weight",
    r"(^|\.)block(\d+)\.": r"\1blocks.\2.",
    r"\.(query|key|value)\.": r".attention.\1.",
    r"\.norm_a\.": ".first_norm.",
    r"\.norm_attention\.": ".attention_norm.",
    r"\.norm_b\.": ".ffn_norm.",
    r"^final_norm": "output_norm",
    r"\.final_norm": ".norm",
    r"\.out\.": ".output.",
}  # fmt: skip


def our_name(name: str) -> str:
    # A feed-forward layer is one of two in the generator, and the only one in a discriminator.
    halves = {"a": "first_ffn", "b": "ffn"} if name.startswith("gen.") else {"a": "ffn"}
    name = re.sub(r"ffn_([ab])([12])", lambda m: f"{halves[m[1]]}.{0 if m[2] == '1' else 3}", name)
    for pattern, ours in RENAMED.items():
        name = re.sub(pattern, ours, name)  # type: ignore[arg-type]
    return name


def state_of(arrays: Arrays) -> dict[str, Tensor]:
    state = {our_name(name): value for name, value in arrays.below("weight/").items()}
    # Slots of left-padded sequences are ages, counted back.
    return {name: value.flip(0) if "position" in name else value for name, value in state.items()}


def number_of_blocks(state: dict[str, Tensor], prefix: str) -> int:
    found = (re.match(rf"{prefix}blocks\.(\d+)\.", name) for name in state)
    return len({match[1] for match in found if match})


def model_of(arrays: Arrays) -> Any:
    """Our model with a file's sizes and weights. The number of heads is the one with which the states agree."""
    state = state_of(arrays)
    n_items, size = state["item_embedding.weight"].shape
    found = []
    for heads in (h for h in range(1, size + 1) if size % h == 0):
        model = make_model(
            "MFGAN",
            n_items,
            hidden_size=size,
            n_heads=heads,
            n_layers=number_of_blocks(state, ""),
            n_discriminator_layers=0,  # they are put in below, with the classes of the file
            MAX_ITEM_LIST_LENGTH=len(state["position_embedding.weight"]),
            loss_type="BCE",
            n_generated=1,
        )
        config = {
            "hidden_size": size,
            "n_heads": heads,
            "discriminator_dropout_prob": 0.0,
            "n_discriminator_layers": number_of_blocks(state, r"discriminators\.0\."),
            "MAX_ITEM_LIST_LENGTH": len(state["discriminators.0.position_embedding.weight"]),
        }
        for index, values in enumerate([torch.arange(n_items), arrays["input/popularity_class"]]):
            discriminator = Discriminator(values.view(-1, 1), config)
            # A file's classes need not all be among its items.
            discriminator.value_embedding = nn.Embedding(*state[f"discriminators.{index}.value_embedding.weight"].shape)
            model.discriminators.append(discriminator.double())
        model.load_state_dict(state)
        model.eval()
        batch = batch_of(arrays)
        real = slice(None) if batch.real is None else batch.real
        theirs = arrays["expect/generator_states"][batch.row, batch.position]
        ours = model.encoded(model.embed(batch), batch, last_only=False)
        found.append((float((ours - theirs)[real].abs().max()), heads, model))
    return min(found, key=lambda one: one[0])[2]


def batch_of(arrays: Arrays) -> RaggedBatch:
    return RaggedBatch(arrays["input/item_seq_right_padded"], arrays["input/length"])


def of_real_tokens(batch: RaggedBatch, *theirs: Tensor) -> list[Tensor]:
    """What arrays [B, L, ...] have for our tokens that pad nothing."""
    real = slice(None) if batch.real is None else batch.real
    return [array[batch.row, batch.position][real] for array in theirs]


@mfgan
def states_and_scores(arrays: Arrays) -> None:
    model, batch = model_of(arrays), batch_of(arrays)
    real = slice(None) if batch.real is None else batch.real
    states = model.encoded(model.embed(batch), batch, last_only=False)
    close(states[real], *of_real_tokens(batch, arrays["expect/generator_states"]))
    item_seq, theirs = arrays["input/item_seq_right_padded"], arrays["expect/scores"]
    rows = {model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: arrays["input/length"]}
    close(model.full_sort_predict(rows)[:, 1:], theirs[:, 1:])
    close(model.scores.logits(model.states(PaddedBatch(item_seq)), None)[:, 1:], theirs[:, 1:])
    best = model.best_items(model.represent(item_seq, arrays["input/length"]))
    assert best[:, 0].equal(arrays["expect/greedy_item"])


@mfgan
def rewards(arrays: Arrays) -> None:
    model, expected = model_of(arrays), arrays["expect/rewards_id_pop_mean"]
    rows = arrays["input/item_seq_right_padded"], arrays["input/length"], arrays["expect/greedy_item"]
    close(model.rewards(*rows), expected[:, -1])
    every = model.discriminators
    for index in range(len(every)):
        model.discriminators = every[index : index + 1]
        close(model.rewards(*rows), expected[:, index])


@mfgan
def losses_of_the_generator(arrays: Arrays) -> None:
    model, batch = model_of(arrays), batch_of(arrays)
    real = slice(None) if batch.real is None else batch.real
    states = model.encoded(model.embed(batch), batch, last_only=False)[real]
    positive, negative = of_real_tokens(batch, arrays["input/pos_right_padded"], arrays["input/neg_right_padded"])
    reward = arrays["expect/rewards_id_pop_mean"][:, -1]
    ones = torch.ones_like(reward)
    for name, weights in {"pretrain": ones, "adversarial": reward}.items():
        every = model.pairwise_losses(states, positive, negative, weights[batch.row[real]])
        close(every.mean(), arrays[f"expect/{name}_loss"])
        rows = torch.arange(len(reward)), arrays["input/length"] - 1
        last = model.represent(arrays["input/item_seq_right_padded"], arrays["input/length"])
        pairs = (arrays[f"input/{kind}_right_padded"][rows] for kind in ("pos", "neg"))
        close(model.pairwise_losses(last, *pairs, weights), arrays[f"expect/last_position_{name}_loss"])


@mfgan
def the_loss_of_training_rows(arrays: Arrays) -> None:
    """What ``calculate_loss`` makes of the last position, before the rewards act and after."""
    model, lengths = model_of(arrays), arrays["input/length"]
    rows = torch.arange(len(lengths)), lengths - 1
    batch = {model.ITEM_SEQ: arrays["input/item_seq_right_padded"], model.ITEM_SEQ_LEN: lengths}
    batch[model.POS_ITEM_ID] = arrays["input/pos_right_padded"][rows]
    batch[model.NEG_ITEM_ID] = arrays["input/neg_right_padded"][rows]
    for epoch, name in {0: "pretrain", model.pretrain_epochs: "adversarial"}.items():
        model.begin_epoch(epoch)
        close(model.calculate_loss(batch)[0], arrays[f"expect/last_position_{name}_loss"].mean())


@mfgan
def discriminators(arrays: Arrays) -> None:
    model = model_of(arrays)
    sequences, label = arrays["input/discriminator_sequences_right_padded"], arrays["input/discriminator_label_real"]
    lengths = (sequences != 0).sum(dim=1)
    batch = RaggedBatch(sequences, lengths)
    for discriminator, theirs in zip(model.discriminators, arrays["expect/discriminator_logits_id_pop"]):
        close(discriminator(batch), theirs)
    entropies = [nn.functional.cross_entropy(d(batch), label) for d in model.discriminators]
    close(sum(entropies), arrays["expect/discriminator_loss_without_l2"])
    decays = [discriminator.decay() for discriminator in model.discriminators]
    close(sum(entropies) + sum(decays), arrays["expect/discriminator_loss"])


@mfgan
def the_loss_of_discriminators(arrays: Arrays) -> None:
    """Of histories with real and generated items, written out one by one, the most recent items of each kept."""
    model, lengths = model_of(arrays), arrays["input/length"]
    rows = torch.arange(len(lengths)), lengths - 1
    real, generated = arrays["input/pos_right_padded"][rows], arrays["expect/greedy_item"]
    histories = [row[:n].tolist() for row, n in zip(arrays["input/item_seq_right_padded"], lengths.tolist())]
    written = [
        [*h, item][-model.max_seq_length :]
        for items in (real.tolist(), generated.tolist())
        for h, item in zip(histories, items)
    ]
    longest = max(map(len, written))
    sequences = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in written])
    batch = RaggedBatch(sequences, torch.tensor([len(sequence) for sequence in written]))
    label = torch.tensor([1] * len(real) + [0] * len(generated))
    expected = [nn.functional.cross_entropy(d(batch), label) + d.decay() for d in model.discriminators]
    ours = model.discriminator_loss(arrays["input/item_seq_right_padded"], lengths, real, generated)
    close(ours, sum(expected))

"""ACVAE: every activation, the losses, their gradients by one backward pass, a step of the public code's optimizers.

The public code works on padded rows, padding item included, and so do the checks: every row is of full length here.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from conftest import make_model
from reference_files import Arrays, check, close
from torch import Tensor, nn

from recbole_diffurec.layers.ragged import PaddedBatch, RaggedBatch
from recbole_diffurec.models.acvae import of_next

acvae = check(only_here="weight/adversary/linear_i.weight")

# Ours by the public names. A kernel of size 1 is a matrix there with one more dimension.
MODULES = {
    "net/decoder.linear1": "decoder",
    "net/decoder.linear2": "output",
    "net/item_embed": "item_embedding",
    "net/gru": "latent_encoder.gru",
    "net/encoder.dot_cnn1.0": "latent_encoder.first",
    "net/encoder.cnn_layer.0": "latent_encoder.convolution",
    "net/encoder.dot_cnn2.0": "latent_encoder.second",
    "net/encoder.eps.linear.0": "latent_encoder.noise_layer",
    "net/encoder.linear_o": "latent_encoder.output",
    "adversary/linear_i": "prior_adversary.input",
    "adversary/linear_o": "prior_adversary.output",
    **{f"adversary/dnet_list.{k}": f"prior_adversary.inner.{k}" for k in range(9)},
    **{f"adversary/net_list.{k}": f"prior_adversary.outer.{k}" for k in range(9)},
    "contrast/gru": "contrast_adversary.gru",
    "contrast/linear": "contrast_adversary.output",
}


def in_our_form(arrays: dict[str, Tensor], unused: list[str]) -> dict[str, Tensor]:
    """Weights or gradients by our names."""
    found = {}
    for name, value in arrays.items():
        module, _, kind = name.rpartition(".")
        if name.removeprefix("net/") in unused:
            continue
        if value.dim() == 3:  # a convolution [out, in, kernel]
            value = value.permute(0, 2, 1).flatten(1)
        found[f"{MODULES[module]}.{kind}"] = value
    return found


@dataclass
class Case:
    """A model in a file's state, with its batch and what the file's noise gives."""

    arrays: Arrays

    def __post_init__(self) -> None:
        arrays = self.arrays
        self.hyper: dict[str, Any] = ast.literal_eval(arrays.text("meta/hyper"))
        self.unused: list[str] = [str(name) for name in arrays._file["meta/parameters_without_gradient"]]
        self.model = model_of(arrays, self.hyper, self.unused)
        x = arrays["input/x"]
        self.real = ~arrays["input/padding"]
        assert self.real.equal(x != 0)
        self.batch = RaggedBatch(x, torch.full((len(x),), x.shape[1]))

    def tokens(self, theirs: Tensor) -> Tensor:
        """[B, L, ...] as our tokens."""
        return theirs[self.batch.row, self.batch.position]

    def per_row(self, ours: Tensor) -> Tensor:
        """The sum over real positions, divided by the number of rows."""
        return (ours * self.tokens(self.real)).sum() / self.batch.n_sequences

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        model, batch = self.model, self.batch
        e = model.embed(batch)
        names = ("noise/encoder_input", "noise/encoder_after_first_layer")
        noise = tuple(self.tokens(self.arrays[name]) for name in names)
        return e, *model.latent_encoder(e, batch, noise)


def model_of(arrays: Arrays, hyper: dict[str, Any], unused: list[str]) -> Any:
    n_items, size = arrays["weight/net/item_embed.weight"].shape
    model = make_model(
        "ACVAE",
        n_items,
        hidden_size=size,
        rnn_size=hyper["rnn_size"],
        latent_size=hyper["latent_size"],
        adversary_size=len(arrays["weight/adversary/linear_i.bias"]),
        kl_weight=hyper["kl_weight"],
        kl_anneal_steps=0,
        contrast_weight=hyper["contrast_weight"],
        MAX_ITEM_LIST_LENGTH=arrays["input/x"].shape[1],
    )
    state = in_our_form(arrays.below("weight/"), unused)
    model.load_state_dict({**state, "n_trained": model.n_trained})
    return model


@acvae
def every_activation(arrays: Arrays) -> None:
    case = Case(arrays)
    model, batch = case.model, case.batch
    e, r, z = case.forward()
    close(r, case.tokens(arrays["expect/gru"]))
    close(z, case.tokens(arrays["expect/z"]))
    logits = model.scores.logits(model.decoded(z), None)
    close(logits[:, 1:], case.tokens(arrays["expect/logits"])[:, 1:])
    real = case.tokens(case.real)
    close(model.prior_adversary(e, z)[real], case.tokens(arrays["expect/adversary_t"])[real])
    close(model.contrast_adversary(e, z, batch)[real], case.tokens(arrays["expect/contrast_t"])[real])
    shuffled = model.contrast_adversary(e, of_next(z, batch), batch)
    close(shuffled[real], case.tokens(arrays["expect/contrast_t_shuffled"])[real])


@acvae
def scores_of_the_last_position(arrays: Arrays) -> None:
    """With the file's noise; and without, for batches of both layouts alike."""
    case = Case(arrays)
    model, item_seq = case.model, arrays["input/x"]
    lengths = (item_seq != 0).sum(dim=1)
    _, _, z = case.forward()
    last = case.batch.restore(case.batch.last) - (item_seq.shape[1] - lengths)
    theirs = arrays["expect/scores_last_position"]
    close(model.scores.logits(model.decoded(z[last]), None)[:, 1:], theirs[:, 1:])
    rows = {model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: lengths}
    scores = model.full_sort_predict(rows)
    close(model.scores.logits(model.states(PaddedBatch(item_seq)), None)[:, 1:], scores[:, 1:])
    _, z = model.latent_encoder(model.embed(case.batch), case.batch, None)
    close(model.scores.logits(model.decoded(z[last]), None)[:, 1:], scores[:, 1:])


def primal(case: Case) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The terms of the public loss, and e and z. Its softmax has the padding item as a class, ours has not."""
    model = case.model
    e, _, z = case.forward()
    logits = F.linear(model.decoded(z), model.output.weight, model.output.bias)
    target = case.tokens(case.arrays["input/y"])
    contrast = model.contrast_weight * case.per_row(model.contrasts(e, z, of_next(z, case.batch), case.batch))
    return {
        "reconstruction": case.per_row(F.cross_entropy(logits, target, reduction="none")),
        "kl": model.annealed_kl_weight * case.per_row(model.divergences(e, z)),
        "contrast": contrast,
    }, e, z  # fmt: skip


@acvae
def losses(arrays: Arrays) -> None:
    case = Case(arrays)
    terms, e, z = primal(case)
    for name, value in terms.items():
        close(value, arrays[f"expect/loss_{name}"])
    close(sum(terms.values(), torch.zeros(())), arrays["expect/loss_primal"])
    prior = case.model.prior_losses(e, z, case.tokens(arrays["noise/prior"]))
    close(case.per_row(prior), arrays["expect/loss_prior"])
    # What recommendation_loss has is the same without that class.
    target = case.tokens(arrays["input/y"])
    real = case.tokens(case.real).nonzero().squeeze(1)
    rows = {case.model.ITEM_SEQ: arrays["input/x"], case.model.POS_ITEM_ID: target[real]}
    ours = case.model.recommendation_loss(case.model.decoded(z[real]), rows)
    log_p = case.tokens(arrays["expect/logits"])[real].log_softmax(dim=-1)
    without = log_p.gather(1, target[real].unsqueeze(1)).squeeze(1) - torch.log1p(-log_p[:, 0].exp())
    close(ours, -without.mean())


@acvae
def gradients_of_one_backward_pass(arrays: Arrays) -> None:
    """Those that the public code's three optimizers get, and the weights after a step of each."""
    case = Case(arrays)
    model = case.model
    model.item_embedding.padding_idx = None  # the public code trains the padding item
    with torch.enable_grad():
        terms, e, z = primal(case)
        prior = case.model.prior_losses(e, z, case.tokens(arrays["noise/prior"]))
        (sum(terms.values(), torch.zeros(())) + case.per_row(prior)).backward()
    expected = in_our_form({**arrays.below("grad/primal/"), **arrays.below("grad/prior/")}, case.unused)
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert own.keys() == expected.keys()
    for name, theirs in expected.items():
        close(own[name], theirs)
    parts: dict[str, list[nn.Parameter]] = {"net": [], "encoder": [], "prior": [], "contrast": []}
    for name, parameter in model.named_parameters():
        part = "prior" if name.startswith("prior_") else "contrast" if name.startswith("contrast_") else "net"
        parts[part].append(parameter)
        if name.startswith("latent_encoder.") and not name.startswith("latent_encoder.gru."):
            parts["encoder"].append(parameter)
    hyper = case.hyper
    torch.optim.AdamW(parts["net"], hyper["lr_primal"], weight_decay=hyper["l2_regular"]).step()
    dual = [*parts["encoder"], *parts["contrast"]]
    torch.optim.SGD(dual, hyper["lr_dual"], weight_decay=hyper["l2_adver"]).step()
    torch.optim.SGD(parts["prior"], hyper["lr_prior"], weight_decay=hyper["l2_adver"]).step()
    after = in_our_form(arrays.below("after_one_step/"), case.unused)
    for name, parameter in model.named_parameters():
        close(parameter.detach(), after[name])


@acvae
def the_loss_of_training_rows(arrays: Arrays) -> None:
    """What ``calculate_loss`` gives is the same terms at the last position, with the noise that it draws."""
    case = Case(arrays)
    model, item_seq = case.model, arrays["input/x"]
    lengths = (item_seq != 0).sum(dim=1)
    batch = RaggedBatch(item_seq, lengths)
    rows = {model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: lengths}
    target = arrays["input/y"][torch.arange(len(lengths)), lengths - 1]
    torch.manual_seed(0)
    found = model.calculate_loss({**rows, model.POS_ITEM_ID: target})
    torch.manual_seed(0)
    e = model.embed(batch)
    eps = torch.empty(2, len(e), case.hyper["rnn_size"], dtype=e.dtype).normal_()
    _, z = model.latent_encoder(e, batch, (eps[0], eps[1]))
    last_e, last_z = e[batch.last], z[batch.last]
    drawn = torch.randn_like(last_z)
    close(found[1], case.hyper["kl_weight"] * model.prior_adversary(last_e, last_z).mean())
    close(found[3], model.prior_losses(last_e, last_z, drawn).mean())
    own, other = (model.contrast_adversary(e, latent, batch)[batch.last] for latent in (z, of_next(z, batch)))
    close(found[2], case.hyper["contrast_weight"] * (F.softplus(-own) + F.softplus(other)).mean())
    logits = model.scores.logits(model.decoded(batch.restore(last_z)), None)
    close(found[0], F.cross_entropy(logits, target))

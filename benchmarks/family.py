"""Training samples per second of the models that the papers compare with, beside RecBole's SASRec in the same run.

The rivals of DuoRec and CL4SRec are the same mathematics on padded rows: RecBole's SASRec three times over, and the
contrast of RecBole's FEARec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import torch
import torch.nn.functional as F
from recbole.model.sequential_recommender.fearec import FEARec

from recbole_diffurec.data.rows import ROW

BASELINE = "SASRec, batch_by_length"
PARAMETERS = {"MAX_ITEM_LIST_LENGTH": 50, "train_batch_size": 512, "eval_batch_size": 512, "show_progress": False}
SASREC = {**PARAMETERS, "hidden_size": 64, "n_layers": 2, "n_heads": 2, "inner_size": 256}
# Name: model, its parameters, and how many times as many operations a sample takes as with SASRec.
FAMILY: dict[str, tuple[str, dict[str, Any], float]] = {
    "DuoRec": ("DuoRec", SASREC, 2.1),
    "CL4SRec": ("CL4SRec", SASREC, 2.0),
    "DiffRecDNR": ("DiffRecDNR", SASREC, 1.05),
    "STOSA, BPR": ("STOSA", {**PARAMETERS, "hidden_size": 64}, 0.5),
    "STOSA, CE": ("STOSA", {**PARAMETERS, "hidden_size": 64, "loss_type": "CE", "pvn_weight": 0}, 1.5),
    "VSAN": ("VSAN", {**PARAMETERS, "hidden_size": 64}, 1.05),
    "ACVAE": ("ACVAE", PARAMETERS, 3.6),
    "MFGAN": ("MFGAN", PARAMETERS, 1.0),
    "MFGAN, batch_by_length": ("MFGAN", {**PARAMETERS, "batch_by_length": True}, 1.0),
}
# At least so many times as fast as on padded rows.
PADDED = {"DuoRec": 5.0, "CL4SRec": 5.0}

View = tuple[torch.Tensor, torch.Tensor]


class FEARecContrast:
    """FEARec's ``info_nce`` without the rest of FEARec."""

    mask_correlated_samples = FEARec.mask_correlated_samples
    info_nce = FEARec.info_nce

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.mask_default = self.mask_correlated_samples(batch_size)

    def __call__(self, z_i: torch.Tensor, z_j: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(*self.info_nce(z_i, z_j, 1.0, len(z_i)))


def padded_loss(
    sasrec: Any, views: Callable[[Any], list[View]], weight: float, batch_size: int
) -> Callable[[Any], torch.Tensor]:
    """Cross-entropy of a batch's own rows, and the contrast between two more of their views, all padded."""
    contrast = FEARecContrast(batch_size)

    def loss(batch: Any) -> torch.Tensor:
        z_i, z_j = (sasrec.forward(*view) for view in views(batch))
        return sasrec.calculate_loss(batch) + weight * contrast(z_i, z_j)

    return loss


def views_of(network: Any) -> Callable[[Any], list[View]]:
    """What the contrast of ``network`` is between, for a padded batch."""

    def own(batch: Any) -> View:
        return batch[network.ITEM_SEQ], batch[network.ITEM_SEQ_LEN]

    if hasattr(network, "same_target"):
        return lambda batch: [own(batch), network.histories(network.same_target(batch[ROW]))]
    # The hidden item of CL4SRec has no vector in SASRec's table, where the padding item's serves as well for the time.
    hidden = network.n_items
    return lambda batch: [(seq.masked_fill(seq == hidden, 1), n) for seq, n in network.views(*own(batch))]


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--batches", type=int, default=16, help="batches of one round")
    options = parser.parse_args()
    source = common.data_set(options.data_path)
    contestants: dict[str, tuple[int, Callable[[], None]]] = {}

    def contestant(name: str, network: Any, trainer: Any, loss: Any, batches: list[Any]) -> None:
        def total(batch: Any) -> torch.Tensor:
            terms = loss(batch)
            return sum(terms) if isinstance(terms, tuple) else terms

        step = common.training_step(network, trainer, total, amp=False)

        def steps() -> None:
            for batch in batches:
                step(batch)

        contestants[name] = (sum(len(batch) for batch in batches), steps)

    def of_an_epoch(loader: Any, device: torch.device) -> list[Any]:
        return common.typical(common.batches(loader, len(loader), device), options.batches)

    network, trainer, data = common.model_on("SASRec", source, **SASREC, batch_by_length=True)
    grouped = of_an_epoch(data.loaders[0], trainer.device)
    contestant(BASELINE, network, trainer, network.calculate_loss, grouped)
    for name, (model, parameters, _) in FAMILY.items():
        network, trainer, data = common.model_on(model, source, **parameters)
        taken = of_an_epoch(data.loaders[0], trainer.device)
        contestant(name, network, trainer, network.calculate_loss, taken)
        if name in PADDED:
            rival, its_trainer, _ = common.model_on("SASRec", source, **parameters)
            weight = getattr(network, "weight_same_target", None) or network.weight
            loss = padded_loss(rival, views_of(network), weight, parameters["train_batch_size"])
            padded = common.padded_batches(data.loaders[0], max(1, options.batches // 8), trainer.device)
            contestant(f"{name}, padded rows", rival, its_trainer, loss, padded)

    rates = common.interleaved(contestants, options.rounds)
    report(source["dataset"], rates, options)


def report(dataset: str, rates: dict[str, dict[str, Any]], options: Any) -> None:
    """Write the page, with what was asked for beside what was found."""
    rows = []
    for name, (_, _, factor) in FAMILY.items():
        share = rates[name]["median"] / rates[BASELINE]["median"]
        padded = rates[name]["median"] / rates[f"{name}, padded rows"]["median"] if name in PADDED else None
        met = share >= 1 / factor and (padded is None or padded >= PADDED[name])
        rows.append(
            (
                name,
                f"{rates[name]['median']:,.0f}",
                f"{rates[name]['min']:,.0f}-{rates[name]['max']:,.0f}",
                f"{share:.2f}",
                f"{1 / factor:.2f}",
                "" if padded is None else f"{padded:.1f}",
                "yes" if met else "no",
            )
        )
    header = ("model", "samples/s (median)", "range", "÷ SASRec", "asked for", "÷ its padded rows", "met")
    body = (
        f"Data: {dataset}; d = 64, 2 layers, L = 50, batch 512, but for what a model has otherwise (STOSA: 1 layer, "
        f"VSAN: 1 + 1, ACVAE and MFGAN: their own sizes). SASRec is RecBole's with `batch_by_length`, "
        f"{rates[BASELINE]['median']:,.0f} samples/s; *asked for* is its rate over the operations that a sample takes "
        f"beside it. DuoRec and CL4SRec are to be 5 times as fast as the same mathematics on padded rows. One step is "
        f"loss, gradients and the optimizer's. Medians of {options.rounds} interleaved rounds of {options.batches} "
        f"batches of an epoch, evenly spaced by the items that they hold.\n\n" + common.table(header, rows)
    )
    results = {"dataset": dataset, "baseline": BASELINE, "asked": {n: 1 / f for n, (_, _, f) in FAMILY.items()}}
    common.publish("family", "Training speed of the family", {**results, "rates": rates}, body)


if __name__ == "__main__":
    main()

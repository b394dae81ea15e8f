"""Training samples per second: ours, the padded oracle (same mathematics), and RecBole's SASRec of equal size."""

from __future__ import annotations

import common
import oracle
import torch

AS_RECBOLE = "RecBole SASRec, as RecBole trains it"
WITHOUT_ANOMALY = "RecBole SASRec, no anomaly detection"
HEADER = (
    "model",
    "samples/s (median)",
    "range",
    "÷ its padded oracle",
    "÷ RecBole's SASRec",
    "÷ it, no anomaly",
)


def oracle_loss(network):
    """The padded loss with fresh draws, dropout included."""

    def loss(batch) -> torch.Tensor:
        item_seq, length, target = batch["item_id_list"], batch["item_length"], batch["item_id"]
        n, d = len(target), network.item_embedding.weight.shape[1]
        t = torch.randint(network.process.n_steps, (n,))
        noise = torch.randn(n, d) + network.offset
        delta = network.denoiser.token_noise[0]
        return oracle.loss(network, item_seq, length, target, t, noise, delta + delta * torch.randn(*item_seq.shape, d))

    return loss


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    source = common.data_set(options.data_path)
    contestants, padded = {}, {}

    def contestant(name, network, trainer, loss, data, amp=False, n_batches=4, anomaly=False):
        step = common.training_step(network, trainer, loss, amp)
        taken = data[:n_batches]
        n = sum(len(batch) for batch in taken)

        def steps():
            with torch.autograd.set_detect_anomaly(anomaly):
                for batch in taken:
                    step(batch)

        contestants[name] = (n, steps)

    # RecBole's own data set hands out histories padded to the full length, so that is what its SASRec trains on; and
    # importing RecBole's sequential models turns autograd's anomaly detection on (sine.py:25), which we turn off.
    network, trainer, data = common.model_on("SASRec", source, **common.SASREC)
    device = trainer.device
    full = common.padded_batches(data.loaders[0], 1, device)
    contestant(AS_RECBOLE, network, trainer, network.calculate_loss, full, n_batches=1, anomaly=True)
    contestant(WITHOUT_ANOMALY, network, trainer, network.calculate_loss, full, n_batches=1)
    trimmed = common.batches(data.loaders[0], 4, device)
    contestant("RecBole SASRec, our batches", network, trainer, network.calculate_loss, trimmed, n_batches=2)
    _, _, grouped = common.model_on("SASRec", source, **common.SASREC, batch_by_length=True)
    grouped = common.typical(common.batches(grouped.loaders[0], 256, device), 16)
    contestant("RecBole SASRec, batch_by_length", network, trainer, network.calculate_loss, grouped, n_batches=16)
    for model in ("DiffuRec", "DiffuRecSys"):
        for amp in (False, True):
            network, trainer, data = common.model_on(model, source, **common.SETTING, enable_amp=amp)
            taken = common.batches(data.loaders[0], 4, device)
            name = f"{model}, bf16" if amp else model
            contestant(name, network, trainer, network.calculate_loss, taken, amp=amp)
        contestant(f"{model}, padded oracle", network, trainer, oracle_loss(network), full, n_batches=1)
        padded[model] = f"{model}, padded oracle"

    rates = common.interleaved(contestants, options.rounds)
    rows = [
        (
            name,
            f"{rate['median']:,.0f}",
            f"{rate['min']:,.0f}-{rate['max']:,.0f}",
            f"{rate['median'] / rates[padded[name.split(',')[0]]]['median']:.1f}" if "Diffu" in name else "",
            f"{rate['median'] / rates[AS_RECBOLE]['median']:.1f}",
            f"{rate['median'] / rates[WITHOUT_ANOMALY]['median']:.1f}",
        )
        for name, rate in rates.items()
    ]
    body = (
        f"Data: {source['dataset']}; {common.sizes()}; one step is loss, gradients and "
        f"Adam. Medians of {options.rounds} interleaved rounds.\n\n" + common.table(HEADER, rows)
    )
    common.publish("training", "Training speed", {"dataset": source["dataset"], "rates": rates}, body)


if __name__ == "__main__":
    main()

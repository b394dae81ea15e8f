"""Users scored per second: ours, the padded oracle (same mathematics), and RecBole's SASRec of equal size."""

from __future__ import annotations

import common
import oracle
import torch

from recbole_diffurec import evaluate

ORACLE_USERS = 64  # the oracle's cost per user does not depend on how many there are


class FreshDraws:
    """``draws[t]`` is a new draw of lambda, or of the steps' noise, for every step."""

    def __init__(self, shape, scale: float = 1.0, mean: float = 0.0):
        self.shape, self.scale, self.mean = shape, scale, mean

    def __getitem__(self, _):
        return self.mean + self.scale * torch.randn(self.shape)


def oracle_scores(network, batch):
    item_seq, length = batch["item_id_list"][:ORACLE_USERS], batch["item_length"][:ORACLE_USERS]
    n, d = len(length), network.item_embedding.weight.shape[1]
    delta = network.denoiser.token_noise[0]
    uncertainty = FreshDraws((*item_seq.shape, d), delta, delta)
    x_0 = oracle.reverse(network, item_seq, length, torch.randn(n, d), FreshDraws((n, d)), uncertainty)
    return x_0.float() @ network.item_embedding.weight.T


def precision_table(checkpoint: str, data_path: str | None) -> str:
    """Test figures of a trained model in both precisions, and how far they lie apart."""
    rows = []
    path = {"data_path": data_path} if data_path else {}
    for steps in (32, 1):
        full, half = (
            evaluate(checkpoint, **path, sampling_steps=steps, enable_amp=amp, show_progress=False)["test_result"]
            for amp in (False, True)
        )
        for metric in ("hit@10", "ndcg@10"):
            change = f"{half[metric] / full[metric] - 1:+.2%}"
            rows.append((metric, steps, f"{full[metric]:.4f}", f"{half[metric]:.4f}", change))
    return "\n\nWhat bf16 does to a trained model's test figures:\n\n" + common.table(
        ("metric", "steps", "float32", "bf16", "change"), rows
    )


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--checkpoint", help="a trained model, to test in float32 and bf16")
    options = parser.parse_args()
    source = common.data_set(options.data_path)
    contestants = {}

    def contestant(name, n, function):
        def call():
            with torch.no_grad():
                function()

        contestants[name] = (n, call)

    network, trainer, data = common.model_on("SASRec", source, **common.SASREC)
    sasrec = network.eval()
    full = common.padded_batches(data.loaders[2], 1, trainer.device)[0]
    contestant("RecBole SASRec, padded", len(full), lambda: sasrec.full_sort_predict(full))
    for model in ("DiffuRec", "DiffuRecSys"):
        for steps in (32, 1):
            for amp in (False, True):
                name = f"{model}, {steps} step{'s' * (steps > 1)}{', bf16' * amp}"
                network, _, data = common.model_on(
                    model, source, **common.SETTING, enable_amp=amp, sampling_steps=steps
                )
                network.eval()
                batch = common.user_batch(data.loaders[2], trainer.device)
                contestant(name, len(batch), lambda network=network, batch=batch: network.full_sort_predict(batch))
                if steps == 32 and not amp:
                    rival = f"{model}, 32 steps, padded oracle"
                    contestant(rival, ORACLE_USERS, lambda network=network: oracle_scores(network, full))

    rates = common.interleaved(contestants, options.rounds)
    rows = []
    for name, rate in rates.items():
        model = name.split(",")[0]
        ours = "32 steps" in name and "Diffu" in name
        rows.append(
            (
                name,
                f"{rate['median']:,.0f}",
                f"{rate['min']:,.0f}-{rate['max']:,.0f}",
                f"{rate['median'] / rates[f'{model}, 32 steps, padded oracle']['median']:.1f}" if ours else "",
                f"{rate['median'] / rates['RecBole SASRec, padded']['median']:.2f}",
            )
        )
    header = ("model", "users/s (median)", "range", "÷ its padded oracle", "÷ RecBole's SASRec")
    body = (
        f"Data: {source['dataset']}, test histories; d = 128, 4 blocks, 4 heads, L = 100, 2,048 users at once "
        f"({len(full)} for SASRec, which is fastest so, {ORACLE_USERS} for the oracle), scores of all "
        f"items. Medians of {options.rounds} interleaved rounds.\n\n" + common.table(header, rows)
    )
    if options.checkpoint:
        body += precision_table(options.checkpoint, options.data_path)
    common.publish("inference", "Inference speed", {"dataset": source["dataset"], "rates": rates}, body)


if __name__ == "__main__":
    main()

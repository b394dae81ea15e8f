"""How near training comes to the machine's matrix-product rate, and profiles of a training step and a reverse pass.

The profiles before are those of the padded oracle, which computes the same without any of the package's shortcuts.
"""

from __future__ import annotations

import common
import torch
from inference import oracle_scores
from torch.utils.flop_counter import FlopCounterMode
from training import oracle_loss

from recbole_diffurec.config import layers
from recbole_diffurec.runtime import precision

MATRIX = 256 if common.TINY else 2048  # side of the square product that measures the machine
PAPER = "the paper's sizes"
# Model and setting: the paper's network at the public code's batch, or a recipe that ships.
TRAININGS = (("DiffuRec", PAPER), ("DiffuRecSys", PAPER), ("DiffuRecSys", "best/amazon-beauty"),
             ("CausalRec", "best/amazon-beauty-CausalRec"))  # fmt: skip


def machine_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large matrix product."""
    a = torch.randn(MATRIX, MATRIX, device=device, dtype=dtype)
    return 2 * MATRIX**3 / min(common.seconds(lambda: a @ a) for _ in range(10))


def profile(function, n_calls: int) -> list[tuple[str, float]]:
    """(operation, share of the time) of the ten most expensive operations."""
    function()
    with torch.profiler.profile() as profiler:
        for _ in range(n_calls):
            function()
    cuda = torch.cuda.is_available()
    times = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in profiler.key_averages()}
    total = sum(times.values())
    return [(name, time / total) for name, time in sorted(times.items(), key=lambda item: -item[1])[:10]]


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    source = common.data_set(options.data_path)
    results, sections = {}, []
    rows = []
    # Without instructions for bf16 its product alone would take an hour.
    bf16 = precision.bfloat16_on("cuda" if torch.cuda.is_available() else "cpu").fast and not common.TINY
    for model, setting in TRAININGS[1:2] if common.TINY else TRAININGS:
        for amp in (False, True) if bf16 else (False,):
            parameters = common.SETTING if setting == PAPER else {**layers.experiment(setting), "show_progress": False}
            network, trainer, data = common.model_on(model, source, **{**parameters, "enable_amp": amp})
            taken = common.batches(data.loaders[0], 4, trainer.device)
            step = common.training_step(network, trainer, network.calculate_loss, amp)
            with FlopCounterMode(display=False) as counter:
                for batch in taken:
                    step(batch)
            flops = counter.get_total_flops()
            best = min(common.seconds(lambda: [step(batch) for batch in taken]) for _ in range(options.rounds))
            peak = machine_rate(torch.bfloat16 if amp else torch.float32, trainer.device)
            name = ", ".join([model, *[setting] * (setting != PAPER), *["bf16"] * amp])
            samples = sum(len(batch) for batch in taken)
            results[name] = {"samples": samples, "flops": flops, "seconds": best, "machine_flops_per_second": peak}
            achieved = flops / best
            rows.append((name, f"{achieved / 1e9:,.0f}", f"{peak / 1e9:,.0f}", f"{100 * achieved / peak:.0f}%"))
            if (model, setting) == ("DiffuRecSys", PAPER):
                shares = {"training step": profile(lambda: step(taken[0]), 4)}
                network.eval()
                users = common.user_batch(data.loaders[2], trainer.device)
                with torch.no_grad():
                    shares["reverse pass of 32 steps"] = profile(lambda: network.full_sort_predict(users), 1)
                if not amp:
                    full = common.padded_batches(data.loaders[0], 1, trainer.device)[0]
                    oracle_step = common.training_step(network, trainer, oracle_loss(network), False)
                    shares["training step before (padded oracle)"] = profile(lambda: oracle_step(full), 1)
                    network.eval()
                    with torch.no_grad():
                        shares["reverse pass before (padded oracle)"] = profile(lambda: oracle_scores(network, full), 1)
                for what, top in shares.items():
                    results[f"{name}: {what}"] = top
                    lines = [(op, f"{100 * share:.1f}%") for op, share in top]
                    sections.append(f"## {name}: {what}\n\n" + common.table(("operation", "share of the time"), lines))
    body = (
        f"Data: {source['dataset']}; {common.sizes()}, or a recipe's; best of {options.rounds} passes over four "
        f"batches. Counted are the matrix products that are carried out, those of padding inside slabs included; the "
        f"machine's rate is that of a product of {MATRIX} x {MATRIX} matrices in the same precision. What is not "
        "matrix products is in the profiles below.\n\n"
        + common.table(("training", "GFLOP/s", "machine's GFLOP/s", "share"), rows)
        + "\n\n"
        + "\n\n".join(sections)
    )
    common.publish("utilisation", "Use of the machine", {"dataset": source["dataset"], "figures": results}, body)


if __name__ == "__main__":
    main()

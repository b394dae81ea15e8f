"""What a large catalogue would cost, on paper: memory, network per step and time per epoch, from measured rates.

Nothing is trained here. The work of a sample and the share of the machine's matrix-product rate that training reaches
are those of ``results/utilisation.json``, the memory of an interaction is that of ml-1m's preparation in
``results/memory.json``; everything else is arithmetic.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
MEASURED_ITEMS, HIDDEN_SIZE = 12_102, 128
FLOAT, ADAM_COPIES = 4, 4  # bytes; the weight, its gradient and Adam's two moments
ML_1M_INTERACTIONS = 1_000_209


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=float, default=1e7)
    parser.add_argument("--interactions", type=float, default=1e9)
    parser.add_argument("--negatives", type=float, default=8192, help="of the sampled softmax; 0 for the full one")
    parser.add_argument("--batch", type=float, default=65_536, help="samples a step, of all processes together")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rate", type=float, help="matrix products, FLOP/s of a process; by default as measured here")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="bytes/s between processes")
    given = parser.parse_args()

    figures = json.loads((RESULTS / "utilisation.json").read_text())["figures"]["DiffuRecSys"]
    prepared = json.loads((RESULTS / "memory.json").read_text())["figures"]["ml-1m, DiffuRecSys, ours"]
    interaction = (prepared["prepare_gb"] - prepared["imports_gb"]) * 2**30 / ML_1M_INTERACTIONS
    per_sample = figures["flops"] / figures["samples"]
    softmax = 6 * HIDDEN_SIZE  # FLOP for an item that a sample is scored against, with both gradients
    network = per_sample - softmax * MEASURED_ITEMS
    scored = given.negatives or given.items
    share = figures["flops"] / figures["seconds"] / figures["machine_flops_per_second"]
    rate = given.rate or figures["machine_flops_per_second"]

    weights = given.items * HIDDEN_SIZE * FLOAT
    compute = given.batch / given.processes * (network + softmax * scored) / (rate * share)
    traffic = 2 * (given.processes - 1) / given.processes * weights
    exchange = traffic / given.bandwidth
    steps = given.interactions / given.batch
    rows = [
        ("item vectors, gradients, Adam's moments, in every process", f"{ADAM_COPIES * weights / 1e9:.1f} GB"),
        ("interactions being prepared, in every process", f"{given.interactions * interaction / 1e9:.0f} GB"),
        ("logits of a process's share of a batch", f"{given.batch / given.processes * scored * FLOAT / 1e9:.1f} GB"),
        ("work of a sample: network", f"{network / 1e6:.0f} MFLOP"),
        (f"work of a sample: {scored:,.0f} items scored", f"{softmax * scored / 1e6:.0f} MFLOP"),
        ("rate of a process", f"{rate / 1e12:.2f} TFLOP/s, of which training reaches {share:.0%}"),
        ("network, sent and received by a process, a step", f"{traffic / 1e9:.1f} GB"),
        ("seconds a step: compute, exchange", f"{compute:.2f}, {exchange:.2f}"),
        ("hours an epoch (compute and exchange one after the other)", f"{steps * (compute + exchange) / 3600:.1f}"),
        ("scores of one user against all items", f"{given.items * FLOAT / 1e6:.0f} MB"),
    ]
    print(f"{given.items:,.0f} items, {given.interactions:,.0f} interactions, {given.processes} processes, ", end="")
    print(f"batch {given.batch:,.0f}, {given.bandwidth / 1e9:g} GB/s\n\n| what | figure |\n| --- | ---: |")
    print("\n".join(f"| {what} | {figure} |" for what, figure in rows))


if __name__ == "__main__":
    main()

"""The HTTP service under load: users/s and latency at 1 and 32 connections, each request one user's list.

A model is trained for one epoch (its size decides the speed, not its quality) and served by ``recbole-diffurec serve``
in a process of its own. Threads ask it, each waiting for an answer before it asks again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import common
import numpy as np
import requests

from recbole_diffurec import Recommender, run

STEPS = (1, 4, 32)
CONNECTIONS = (1, 32)
K = 20


def ask(address: str, histories: list[list[str]], seconds: float) -> list[float]:
    """Seconds of each answer that one connection got in ``seconds``."""
    taken: list[float] = []
    with requests.Session() as session:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            body = {"histories": [histories[len(taken) % len(histories)]], "k": K, "exclude_seen": True}
            session.post(f"{address}/recommend", json=body, timeout=60).raise_for_status()
            taken.append(time.perf_counter() - started)
    return taken


def load(address: str, histories: list[list[str]], connections: int, seconds: float) -> dict[str, float]:
    parts = [histories[i::connections] for i in range(connections)]
    with ThreadPoolExecutor(connections) as threads:
        started = time.perf_counter()
        taken = np.concatenate(list(threads.map(lambda part: ask(address, part, seconds), parts)))
        elapsed = time.perf_counter() - started
    milliseconds = 1000 * np.percentile(taken, [50, 99])
    return {"users_per_second": len(taken) / elapsed, "p50_ms": milliseconds[0], "p99_ms": milliseconds[1]}


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--checkpoint", help="serve this one instead of training one")
    given = parser.parse_args()
    source = common.data_set(given.data_path)
    folder = tempfile.mkdtemp(prefix="serve-")
    checkpoint = given.checkpoint
    if checkpoint is None:
        result = run("DiffuRecSys", **source, **common.SETTING, epochs=1, sampling_steps=1, checkpoint_dir=folder)
        checkpoint = result["checkpoint"]
    items = Recommender.load(checkpoint).items[1:]
    rng = np.random.default_rng(0)
    lengths = np.minimum(5 + np.floor(rng.pareto(1.6, 2000) * 2.35).astype(int), 100)  # Beauty's shape
    histories = [rng.choice(items, length).tolist() for length in lengths]

    figures: dict[str, Any] = {}
    for steps in STEPS:
        command = [sys.executable, "-m", "recbole_diffurec", "serve", checkpoint, "--port=0"]
        service = subprocess.Popen(
            [*command, f"--sampling_steps={steps}"], stdout=subprocess.PIPE, text=True, cwd=common.ROOT
        )
        assert service.stdout is not None
        try:
            address = service.stdout.readline().split()[1].rstrip("/")
            load(address, histories, 4, 3)  # warm
            for connections in CONNECTIONS:
                figures[f"{steps} steps, {connections} connections"] = load(
                    address, histories, connections, given.seconds
                )
        finally:
            service.terminate()
            service.wait()
    rows = [
        [name, f"{f['users_per_second']:.0f}", f"{f['p50_ms']:.0f}", f"{f['p99_ms']:.0f}"]
        for name, f in figures.items()
    ]
    table = common.table(["reverse steps, connections", "users/s", "median ms", "99th percentile ms"], rows)
    text = (
        f"DiffuRecSys, d = 128, 4 blocks, {len(items):,} items, k = {K}, histories of Beauty's lengths; clients and "
        f"service share the machine.\n\n{table}"
    )
    common.publish("serve", "Service under load", {"dataset": source["dataset"], "figures": figures}, text)


if __name__ == "__main__":
    main()

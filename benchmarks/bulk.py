"""Seconds and memory of large inputs: ten million rows prepared, a test of all users, lists for a million histories.

Each is a command in a process of its own; everything lies in a temporary folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recbole_diffurec import run

PART = 1_000_000
COMMAND = [sys.executable, "-m", "recbole_diffurec"]
MODELS = {"CausalRec": {"rows": "sequences", "train_batch_size": 64}, "DiffuRecSys": {"experiment": "best/default"}}


def draw(path: Path, rows: int) -> None:
    """Purchases: text ids and ISO dates, of a user for twenty rows and items of unlike popularity."""
    random = np.random.default_rng(0)
    schema = pa.schema([("customer", pa.string()), ("sku", pa.string()), ("ordered_at", pa.string())])
    write = pa.csv.CSVWriter if path.suffix == ".csv" else pa.parquet.ParquetWriter
    with write(str(path), schema) as out:
        for start in range(0, rows, PART):
            count = min(PART, rows - start)
            users = random.integers(rows // 20, size=count)
            items = (random.pareto(0.7, count) * 1000).astype(np.int64) % 200_000
            seconds = random.integers(1_600_000_000, 1_720_000_000, size=count)
            dates = pa.array(seconds).cast(pa.timestamp("s")).cast(pa.string())
            ids = [
                pa.array(np.char.add(prefix, of.astype(str))) for prefix, of in (("customer-", users), ("00", items))
            ]
            out.write_table(pa.table([*ids, dates], schema=schema))


def repeat_histories(source: dict[str, str], users: int, path: Path) -> None:
    """The histories of a data set, of users drawn with replacement, as a table of ``users`` users."""
    frame = pd.read_csv(common.interactions(source), sep="\t", usecols=[0, 1, 2], dtype={1: str})
    frame.columns = ["user", "item", "time"]
    groups = [(part["item"].to_numpy(), part["time"].to_numpy()) for _, part in frame.groupby("user")]
    chosen = np.random.default_rng(0).integers(len(groups), size=users)
    lengths = [len(groups[i][0]) for i in chosen]
    columns = {
        "user_id": np.repeat(np.arange(users), lengths),
        "item_id": np.concatenate([groups[i][0] for i in chosen]),
        "timestamp": np.concatenate([groups[i][1] for i in chosen]),
    }
    pd.DataFrame(columns).to_parquet(path, index=False)


def measure(*arguments: str) -> dict[str, float]:
    """Seconds, seconds of a processor, and the largest memory in GiB of a command."""
    started = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(arguments)}: status {status}")
    peak = used.ru_maxrss / 2**20  # kilobytes, on Linux
    return {"seconds": seconds, "processor_seconds": used.ru_utime + used.ru_stime, "peak_gib": peak}


def main() -> None:
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=10_000 if common.TINY else 10_000_000, help="of purchases")
    parser.add_argument("--users", type=int, default=300 if common.TINY else 1_000_000, help="that want lists")
    options = parser.parse_args()
    source = common.data_set(options.data_path)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        columns = ["--user=customer", "--item=sku", "--time=ordered_at"]
        for kind in ("csv", "parquet"):
            path = Path(folder) / f"purchases.{kind}"
            draw(path, options.rows)
            found = measure("prepare", str(path), *columns, f"--data_path={folder}/{kind}")
            results[f"prepare, {options.rows:,} rows of {kind}"] = {"n": options.rows, **found}
            path.unlink()
        histories = Path(folder) / "histories.parquet"
        repeat_histories(source, options.users, histories)
        test_users = pd.read_csv(common.interactions(source), sep="\t", usecols=[0]).iloc[:, 0].nunique()
        for model, parameters in MODELS.items():
            more = {"epochs": 1, "show_progress": False, "checkpoint_dir": folder, **parameters}
            checkpoint = run(model, **source, **more)["checkpoint"]
            found = measure("evaluate", checkpoint, f"--data_path={source['data_path']}")
            results[f"evaluate, {model}, {test_users:,} users"] = {"n": test_users, **found}
            lists = ["--input", str(histories), "--k=10", f"--output={folder}/{model}.parquet"]
            found = measure("recommend", checkpoint, *lists)
            results[f"recommend, {model}, {options.users:,} histories"] = {"n": options.users, **found}
    rows = [
        (
            what,
            f"{f['n'] / f['seconds']:,.0f}",
            *(f"{f[name]:,.1f}" for name in ("seconds", "processor_seconds")),
            f"{f['peak_gib']:.2f}",
        )
        for what, f in results.items()
    ]
    body = (
        "Each a command in a process of its own, its beginning (imports, reading the checkpoint) included. Purchases "
        "have text ids and ISO dates, of half a million users at ten million rows; histories are those of "
        f"{source['dataset']}, drawn with replacement, Parquet in and out, ten items each. The models have d = 128, "
        "and are trained for one epoch, which does not change their speed; DiffuRecSys by best/default, with one "
        "reverse step.\n\n" + common.table(("command", "rows or users/s", "s", "s of a processor", "peak GiB"), rows)
    )
    common.publish("bulk", "Large inputs", {"dataset": source["dataset"], "figures": results}, body)


if __name__ == "__main__":
    main()

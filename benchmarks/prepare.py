"""How long ``prepare`` takes for ten million rows, and how much memory: a table of purchases is drawn, and prepared.

``python benchmarks/prepare.py [--rows=10_000_000] [--kind=csv]``; everything lies in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

PART = 1_000_000
COMMAND = [sys.executable, "-m", "recbole_diffurec", "prepare"]


def draw(path: Path, rows: int) -> None:
    """Purchases: text ids, ISO dates and prices, of a user for twenty rows and items of unlike popularity."""
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


def main() -> None:
    """Draw a table, prepare it once, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    tiny = bool(os.environ.get("BENCHMARKS_TINY"))
    parser.add_argument("--rows", type=int, default=10_000 if tiny else 10_000_000)
    parser.add_argument("--kind", choices=["csv", "parquet"], default="csv")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"purchases.{options.kind}"
        draw(path, options.rows)
        columns = ["--user=customer", "--item=sku", "--time=ordered_at"]
        started = time.perf_counter()
        subprocess.run([*COMMAND, str(path), *columns, f"--data_path={folder}/dataset"], check=True)
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20  # kilobytes, on Linux
        print(
            f"{options.rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB: {seconds:.1f} s ({processor:.1f} s of a "
            f"processor), at most {peak:.2f} GiB"
        )


if __name__ == "__main__":
    main()

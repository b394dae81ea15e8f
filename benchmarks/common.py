"""Shared by the benchmark scripts: data, models, rivals, interleaved timing, and the pages of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

import recbole_diffurec  # noqa: F401  mends RecBole
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of, subset_loader
from recbole_diffurec.runtime import allocator
from recbole_diffurec.training.prepare import PreparedData, build

allocator.keep_freed_memory()  # as the command line does, for rivals in the same process too

ROOT = Path(__file__).resolve().parents[1]
# Sizes at which a script ends within seconds, to see that it works; its figures say nothing.
TINY = bool(os.environ.get("BENCHMARKS_TINY"))
RESULTS = Path(os.environ.get("BENCHMARKS_RESULTS") or Path(__file__).resolve().parent / "results")
sys.path.insert(0, str(ROOT / "tests"))  # the padded oracle lives with the tests

# The setting of all comparisons: the paper's network at the public code's batch.
SETTING = {
    "hidden_size": 128,
    "n_layers": 4,
    "n_heads": 4,
    "MAX_ITEM_LIST_LENGTH": 100,
    "train_batch_size": 512,
    "eval_batch_size": 2048,  # ours sorts them by length
    "show_progress": False,
    **({"hidden_size": 16, "n_layers": 1, "MAX_ITEM_LIST_LENGTH": 10, "train_batch_size": 32} if TINY else {}),
}
# RecBole's SASRec of equal width, depth and length.
SASREC = {**SETTING, "inner_size": 4 * SETTING["hidden_size"], "eval_batch_size": 512}


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data_path", help="folder with amazon-beauty/amazon-beauty.inter; generated data without it")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are reported")
    return parser


def sizes() -> str:
    """The sizes of ``SETTING``, as pages state them."""
    names = {"hidden_size": "d", "n_layers": "blocks", "n_heads": "heads", "MAX_ITEM_LIST_LENGTH": "L"}
    return ", ".join(
        [*(f"{short} = {SETTING[name]}" for name, short in names.items()), f"batch {SETTING['train_batch_size']}"]
    )


def write_atomic(folder: Path, name: str, users: np.ndarray, items: np.ndarray, times: np.ndarray) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"user_id:token": users, "item_id:token": items, "timestamp:float": times})
    frame.to_csv(folder / name / f"{name}.inter", sep="\t", index=False)


def generated_like_beauty(folder: Path) -> str:
    """A data set of Beauty's shape: 22,363 users, about 12,101 items and 198,502 interactions, long-tailed."""
    rng = np.random.default_rng(0)
    n_users, n_items = (300, 100) if TINY else (22_363, 12_101)
    lengths = 5 + np.minimum(np.floor(rng.pareto(1.6, n_users) * 2.35).astype(int), 199)
    users = np.repeat(np.arange(len(lengths)), lengths)
    popularity = 1 / (10 + np.arange(n_items)) ** 0.7
    items = rng.choice(n_items, size=len(users), p=popularity / popularity.sum())
    write_atomic(folder, "like-beauty", users, items, 1.3e9 + np.arange(len(users)))
    return "like-beauty"


def data_set(data_path: str | None) -> dict[str, str]:
    """``dataset`` and ``data_path`` of Amazon Beauty, or of a generated stand-in."""
    if data_path and (Path(data_path) / "amazon-beauty" / "amazon-beauty.inter").is_file():
        return {"dataset": "amazon-beauty", "data_path": data_path}
    folder = Path(tempfile.mkdtemp(prefix="like-beauty-"))
    return {"dataset": generated_like_beauty(folder), "data_path": str(folder)}


def interactions(source: Mapping[str, str]) -> Path:
    """The file of a data set's interactions."""
    return Path(source["data_path"]) / source["dataset"] / f"{source['dataset']}.inter"


def prepare(model: str, source: Mapping[str, str], **parameters: Any) -> tuple[RunConfig, PreparedData]:
    config = RunConfig(model, source["dataset"], {"data_path": source["data_path"], **parameters})
    return config, PreparedData(config)


def model_on(model: str, source: Mapping[str, str], **parameters: Any) -> tuple[Any, Any, PreparedData]:
    """(network, trainer, data) of one configuration."""
    _, data = prepare(model, source, **parameters)
    return (*build(data.config, dataset_of(data.loaders[0])), data)


def batches(loader: Any, n: int, device: torch.device) -> list[Any]:
    """The first ``n`` batches of a loader, on the device."""
    taken = []
    for batch in loader:
        taken.append((batch[0] if isinstance(batch, tuple) else batch).to(device))
        if len(taken) == n:
            break
    return taken


def typical(batches: list[Any], n: int) -> list[Any]:
    """``n`` of the batches, evenly spaced by what they hold: batches of like length differ much in it."""
    ordered = sorted(batches, key=lambda batch: int(batch["item_length"].sum()))
    return [ordered[int((i + 0.5) * len(ordered) / n)] for i in range(min(n, len(ordered)))]


def user_batch(loader: Any, device: torch.device) -> Any:
    """A full batch of an evaluation loader, of users evenly spaced over all: the loader itself goes by length."""
    return batches(subset_loader(loader, loader.batch_sampler.batch_size), 1, device)[0]


def padded_batches(loader: Any, n: int, device: torch.device) -> list[Any]:
    """``n`` batches of random rows, padded to the full length L as RecBole's own data set has them."""
    rows = dataset_of(loader).inter_feat
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return [rows[index].padded().to(device) for index in order.split(SETTING["train_batch_size"])[:n]]


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any]) -> float:
    synchronise()
    started = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - started


def interleaved(contestants: Mapping[str, tuple[int, Callable[[], Any]]], rounds: int) -> dict[str, dict[str, Any]]:
    """Median rate of each contestant, all of them running in turn, after one round that is not counted.

    Parameters
    ----------
    contestants : name -> (samples that one call handles, the call).
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, (n, function) in contestants.items():
            rate = n / seconds(function)
            if round_:
                rates[name].append(rate)
            print(f"round {round_}/{rounds}  {name:<40} {rate:10.1f} /s", file=sys.stderr, flush=True)
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values), "all": values}
        for name, values in rates.items()
    }


def training_step(network: Any, trainer: Any, loss: Callable[[Any], torch.Tensor], amp: bool) -> Callable[[Any], None]:
    """One step of the optimizer on a batch, as RecBole's trainer takes it."""
    device_type = next(network.parameters()).device.type

    def step(batch: Any) -> None:
        network.train()
        trainer.optimizer.zero_grad()
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=amp):
            value = loss(batch)
        value.backward()
        trainer.optimizer.step()

    return step


# Results


def machine(threads: int | None = None) -> dict[str, Any]:
    """What the figures were measured on, with the number of threads if not of this process."""
    if torch.cuda.is_available():
        processor = torch.cuda.get_device_name()
    else:
        lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model name")]
        flags = next((line for line in lines if line.startswith("Flags")), "").split()
        instructions = torch.backends.cpu.get_cpu_capability() + (", bf16" if "avx512_bf16" in flags else "")
        name = names[0] if names else platform.processor()
        n = threads or torch.get_num_threads()
        processor = f"{name} ({instructions}), {n} thread{'s' * (n > 1)}"
    return {
        "date": date.today().isoformat(),
        "processor": processor,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|"]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def _without_folder(argument: str) -> str:
    """A path, or an option that has one, without the folders of this machine above it."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if os.path.isabs(value) else argument


def publish(name: str, title: str, results: Mapping[str, Any], body: str, script: str | None = None) -> None:
    """Write ``results/NAME.json`` and ``results/NAME.md``, and print the page; by default NAME is the script's."""
    about = machine()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, **results}, indent=1) + "\n")
    places = ("--data_path", "--rectools_python", "--work")  # of this machine alone
    given = [_without_folder(a) for a in sys.argv[1:] if not a.startswith(places)]
    command = shlex.join(["python", f"benchmarks/{script or name}.py", *given])
    page = (
        f"# {title}\n\n{about['date']}, {about['processor']}, torch {about['torch']}, Python {about['python']}. "
        f"Made by `{command}`; figures in `{name}.json`.\n\n{body}\n"
    )
    (RESULTS / f"{name}.md").write_text(page)
    print(page)

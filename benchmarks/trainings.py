"""Trains what RESULTS.md compares, one training after the other, and writes its tables of what is finished.

    python benchmarks/trainings.py --data_path=DIR --dataset=amazon-beauty --hours=2
    python benchmarks/trainings.py --page

``trainings.yaml`` is the plan. Each finished training is a file of ``results/trainings/DATASET/`` with its command, its
figures with and without masking, its seconds and its machine, and is not trained again; one that was interrupted, or
that ran out of hours, goes on where it was. Between the markers of RESULTS.md nothing is written by hand.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import numpy as np
import yaml
from scipy.stats import ttest_rel

from recbole_diffurec.experiments import stats

PLAN = Path(os.environ.get("BENCHMARKS_TRAININGS") or Path(__file__).with_name("trainings.yaml"))
STORE = common.RESULTS / "trainings"
PAGE = common.ROOT / "RESULTS.md"
METRICS = ("hit@5", "hit@10", "hit@20", "ndcg@5", "ndcg@10", "ndcg@20")
FIRST_SEED = 2020
OF_THE_PAGE = ("name", "model", "seeds", "datasets", "against")  # what a row has that is no parameter


@dataclass(frozen=True)
class Training:
    """One training of the plan."""

    dataset: str
    name: str
    model: str
    seed: int
    parameters: dict[str, Any] = field(hash=False)

    @property
    def path(self) -> Path:
        slug = re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")
        return STORE / self.dataset / f"{slug}-{self.seed}.json"

    def arguments(self) -> list[str]:
        """Of ``recbole-diffurec run``, without what depends on the machine."""
        given = {"model": self.model, "dataset": self.dataset, "seed": self.seed, **self.parameters}
        return [f"--{name}={value}" for name, value in given.items()]


def _plan_file() -> dict[str, Any]:
    return yaml.safe_load(PLAN.read_text(encoding="utf-8"))


def plan(dataset: str) -> Iterator[Training]:
    """The trainings of a data set, in the order of the plan: all first seeds, then all second ones."""
    rows = _plan_file()["trained"]
    rows = [row for row in rows if dataset in row.get("datasets", [dataset])]
    for place in range(max((row["seeds"] for row in rows), default=0)):
        for row in rows:
            if place < row["seeds"]:
                rest = {k: v for k, v in row.items() if k not in OF_THE_PAGE}
                rest = {k: v.format(dataset=dataset) if isinstance(v, str) else v for k, v in rest.items()}
                yield Training(dataset, row["name"], row["model"], FIRST_SEED + place, rest)


# Training


def train(training: Training, data_path: str, work: Path, seconds: float) -> bool | None:
    """Whether it came to its end in time, so that its file is there; None where it failed."""
    folder = work / training.dataset / training.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    place = [f"--data_path={data_path}"]
    tool = [sys.executable, "-m", "recbole_diffurec"]
    own = ["--resume", f"--checkpoint_dir={folder}", f"--result_file={folder / 'run.json'}", "--show_progress=False"]
    ended = ends([*tool, "run", *training.arguments(), *place, *own], folder, seconds)
    if not ended:
        return ended
    result = json.loads((folder / "run.json").read_text())
    masked = folder / "masked.json"
    other = f"--mask_seen={not result['config'].get('mask_seen', False)}"
    if not ends([*tool, "evaluate", result["checkpoint"], *place, other, f"--result_file={masked}"], folder, None):
        return None
    tested = {"unmasked": result["test_result"], "masked": json.loads(masked.read_text())["test_result"]}
    if result["config"].get("mask_seen"):
        tested = {"unmasked": tested["masked"], "masked": tested["unmasked"]}
    kept = {
        "name": training.name,
        "command": shlex.join(["recbole-diffurec", "run", *training.arguments()]),
        **{name: result[name] for name in ("model", "dataset", "seed", "n_users", "n_items", "n_interactions")},
        **{name: result[name] for name in ("n_parameters", "best_epoch", "train_seconds", "eval_seconds", "versions")},
        "epochs": len(result["history"]),
        "seconds_to_best": sum(epoch["train_seconds"] for epoch in result["history"][: result["best_epoch"] + 1]),
        "valid": result["best_valid_result"],
        **tested,
        "machine": common.machine(),
    }
    training.path.parent.mkdir(parents=True, exist_ok=True)
    training.path.write_text(json.dumps(kept, indent=1) + "\n")
    return True


def ends(command: list[str], folder: Path, seconds: float | None) -> bool | None:
    """Whether a command ended before ``seconds``, when it is interrupted and keeps its state; None where it failed."""
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            code = process.wait(seconds)
        except KeyboardInterrupt:  # from a terminal, which interrupts the training as well
            process.wait()
            raise
        except (subprocess.TimeoutExpired, SystemExit) as stop:
            process.terminate()
            process.wait()
            if isinstance(stop, SystemExit):
                raise
            return False
    if code == 0:
        return True
    logging.warning("exit code %s, see %s: %s", code, folder / "log.txt", shlex.join(command))
    return None


# The page


def finished(dataset: str) -> dict[str, list[dict[str, Any]]]:
    """The finished trainings of each row of the plan, by name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for training in plan(dataset):
        if training.path.is_file():
            found.setdefault(training.name, []).append(json.loads(training.path.read_text()))
    return found


def tables(dataset: str) -> str:
    """Markdown of what is published and what was trained, unmasked and masked, of what it cost, and of what differs."""
    published = _plan_file()["published"].get(dataset, [])
    runs = finished(dataset)
    parts = []
    for protocol in ("unmasked", "masked"):
        rows = [
            (row["name"], row["from"], "", *("" if figure is None else _figure(figure) for figure in row["figures"]))
            for row in published
            if bool(row.get("masked")) == (protocol == "masked")
        ]
        rows += [
            (name, "here", str(len(of_row)), *(_mean([run[protocol][m] for run in of_row]) for m in METRICS))
            for name, of_row in runs.items()
        ]
        header = ("model", "from", "seeds", *(m.replace("hit", "HR").replace("ndcg", "NDCG") for m in METRICS))
        parts.append(f"Test figures, {protocol}:\n\n{common.table(header, rows)}")
    costs = [(row["name"], "", f"{row['seconds']:,}", "", row["from"], "") for row in published if "seconds" in row]
    costs += [
        (
            name,
            f"{statistics.mean(run['best_epoch'] + 1 for run in of_row):.0f}",
            f"{statistics.mean(run['seconds_to_best'] for run in of_row):,.0f}",
            _mean([run["valid"]["ndcg@10"] for run in of_row]),
            "; ".join(sorted({f"{run['machine']['processor']}, {run['machine']['date']}" for run in of_row})),
            f"`{of_row[0]['command'].replace(f' --seed={FIRST_SEED}', '')}`",
        )
        for name, of_row in runs.items()
    ]
    header = ("model", "best epoch", "seconds to it", "validation NDCG@10", "machine", "command")
    parts.append(f"Cost, a mean over the seeds:\n\n{common.table(header, costs)}")
    return "\n\n".join([*parts, *_significance(published, runs)])


def _significance(published: list[dict[str, Any]], runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The paper's Table 4, what it is a test of, and the same of what was trained, beside a test over seeds."""
    rows = []
    reference = next((row for row in published if row["name"] == "DiffuRec"), None)
    for row in published:
        if reference and "p" in row:
            over_figures = f"{_over_figures(row['figures'], reference['figures']):.4f}"
            rows.append((row["name"], "DiffuRec", row["from"], f"{row['p']:.4f}", over_figures, *[""] * 5))
    for row in _plan_file()["trained"]:
        own, other = ({run["seed"]: run for run in runs.get(row.get(key, ""), [])} for key in ("name", "against"))
        if seeds := sorted(own.keys() & other.keys()):
            means = [
                [statistics.mean(of[seed]["unmasked"][m] for seed in seeds) for m in METRICS] for of in (own, other)
            ]
            over_seeds = [
                stats.seed_test(*(np.array([of[seed][protocol][metric] for seed in seeds]) for of in (own, other)))
                for protocol in ("unmasked", "masked")
                for metric in ("hit@10", "ndcg@10")
            ]
            cells = ["" if np.isnan(p) else f"{p:.4f}" for p in over_seeds]
            rows.append(
                (row["name"], row["against"], "here", "", f"{_over_figures(*means):.4f}", str(len(seeds)), *cells)
            )
    if not rows:
        return []
    header = ("model", "against", "from", "p, printed", "p over six figures", "seeds", "p over seeds, HR@10", "NDCG@10")
    about = (
        "Significance. The paper's Table 4 is a two-sided paired t-test over the six figures of a data set, not over "
        "seeds: from its rounded means it comes out as the second p, with V1 and V2 interchanged. Beside it the same "
        "test of what was trained here, and p of a paired t-test over seeds, that the model is better:"
    )
    return [f"{about}\n\n{common.table((*header, 'HR@10, masked', 'NDCG@10, masked'), rows)}"]


def _over_figures(model: list[float], other: list[float]) -> float:
    return float(ttest_rel(model, other).pvalue)


def _figure(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _mean(values: list[float]) -> str:
    spread = f" ± {_figure(statistics.stdev(values))}" if len(values) > 1 else ""
    return _figure(statistics.mean(values)) + spread


def page() -> str:
    """RESULTS.md with the tables of today between its markers."""
    text = PAGE.read_text(encoding="utf-8")
    for dataset in re.findall(r"<!-- trainings on (\S+) -->", text):
        begin, end = f"<!-- trainings on {dataset} -->", f"<!-- end of trainings on {dataset} -->"
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n\n{tables(dataset)}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def terminated(*_: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the tables of RESULTS.md, and train nothing")
    parser.add_argument("--dataset", nargs="+", default=[], help="train on these, one after the other")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--only", nargs="+", help="rows of the plan, by name")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the plan, such as those that no other process trains")
    parser.add_argument("--hours", type=float, default=1e6, help="interrupt what is running then")
    parser.add_argument("--work", type=Path, default=Path("trainings"), help="folder of checkpoints, states and logs")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.page:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    signal.signal(signal.SIGTERM, terminated)  # which would leave a training behind
    failed = 0
    end = time.monotonic() + 3600 * options.hours
    for dataset in options.dataset:
        for training in plan(dataset):
            if training.path.is_file() or training.name not in (options.only or [training.name]):
                continue
            if training.seed not in (options.seeds or [training.seed]):
                continue
            if time.monotonic() >= end:
                return failed
            logging.info("%s: %s, seed %d", dataset, training.name, training.seed)
            failed += train(training, options.data_path, options.work, end - time.monotonic()) is None
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())

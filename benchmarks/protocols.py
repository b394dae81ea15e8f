"""Leave-one-out and one split by time, with the same models tuned for each: which conclusions change.

    python benchmarks/protocols.py --data_path=DIR --hours=2
    python benchmarks/protocols.py --page

``protocols.yaml`` is the plan. Each model is searched on the validation data of each data set and protocol by
``recbole-diffurec tune``, trained with several seeds and tested, and is then a file of
``results/protocols/DATASET/PROTOCOL-MODEL.json`` that is not made again; what was interrupted goes on from ``--work``.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import common
import trainings
import yaml

PLAN = Path(__file__).with_name("protocols.yaml")
STORE = common.RESULTS / "protocols"
METRICS = ("hit@10", "ndcg@10")


def kept(dataset: str, protocol: str, model: str) -> Path:
    return STORE / dataset / f"{protocol}-{model}.json"


def command(dataset: str, protocol: str, model: str, plan: dict[str, Any], space: Path) -> list[str]:
    """Of ``recbole-diffurec``, without what depends on the machine."""
    given = {"model": model, "dataset": dataset, "params_file": space.name, "concurrent_trials": 1, **plan["budget"]}
    given |= {"final_seeds": plan["final_seeds"], **plan["common"]}
    given |= {**plan["models"][model].get("values", {}), **plan["protocols"][protocol]}
    return ["tune", *(f"--{name}={value}" for name, value in given.items())]


def prepared(dataset: str, data_path: Path, work: Path) -> Path:
    """The folder of data sets that has it, made of the publisher's table of ratings where there is such a table."""
    table = data_path / dataset / "ratings.csv"
    if not table.is_file():
        return data_path
    made = work / "datasets"
    if not (made / dataset).is_dir():
        columns = ["--user=userId", "--item=movieId", "--rating=rating", f"--name={dataset}", f"--data_path={made}"]
        tool = [sys.executable, "-m", "recbole_diffurec", "prepare", str(table), *columns]
        subprocess.run(tool, check=True, stdout=subprocess.DEVNULL)
    return made


def tuned(dataset: str, protocol: str, model: str, plan: dict[str, Any], given: Any, seconds: float) -> bool | None:
    """Whether it was tuned and tested in time; None where that failed."""
    folder = given.work / "protocols" / dataset / f"{protocol}-{model}"
    folder.mkdir(parents=True, exist_ok=True)
    space, tuning = folder / "space.test", folder / "tuning"
    space.write_text("\n".join(plan["models"][model]["space"]) + "\n")
    asked = command(dataset, protocol, model, plan, space)
    own = [f"--data_path={prepared(dataset, given.data_path, given.work)}", f"--output_dir={tuning}"]
    own += ["--show_progress=False", f"--params_file={space}"]
    own += ["--resume"] if (tuning / "search.json").is_file() else []
    ended = trainings.ends([sys.executable, "-m", "recbole_diffurec", *asked, *own], folder, seconds)
    if not ended:
        return ended
    trials = list(csv.DictReader((tuning / "trials.csv").open()))
    finals = [json.loads(path.read_text()) for path in sorted(tuning.glob("final-*.json"))]
    names = ("seed", "best_epoch", "train_seconds", "test_result", "best_valid_result")
    of_one = {name: finals[0][name] for name in ("n_users", "n_items", "n_interactions", "n_parameters")}
    found = {
        "command": shlex.join(["recbole-diffurec", *asked]),
        "space": plan["models"][model]["space"],
        "trials": trials,
        "best": {k: v for k, v in yaml.safe_load((tuning / "best.yaml").read_text()).items() if k != "data_path"},
        **of_one,
        "finals": [{name: final[name] for name in names} for final in finals],
        "machine": common.machine(),
    }
    path = kept(dataset, protocol, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return True


def page(plan: dict[str, Any]) -> str:
    """The tables of what is finished."""
    parts = [
        "Every model tuned for each protocol on its validation data, with the same number of trials and seconds, then "
        f"trained with {plan['final_seeds']} seeds: means of the test figures ± their deviation, all items ranked, "
        "none masked. Leave-one-out tests the last item of every user; *temporal* (`--experiment=temporal`) every "
        "interaction of the last tenth of all time. In brackets the place among the models of the column."
    ]
    for dataset in plan["datasets"]:
        found = {
            (protocol, model): json.loads(path.read_text())
            for protocol in plan["protocols"]
            for model in plan["models"]
            if (path := kept(dataset, protocol, model)).is_file()
        }
        if found:
            parts += [f"## {dataset}", _table(plan, found), _costs(found)]
    return "\n\n".join(parts)


def _table(plan: dict[str, Any], found: dict[tuple[str, str], dict[str, Any]]) -> str:
    def of(cell: tuple[str, str], metric: str) -> list[float]:
        return [final["test_result"][metric] for final in found[cell]["finals"]]

    rows = []
    tried = {model for _, model in found}
    for model in (model for model in plan["models"] if model in tried):
        row = [model]
        for protocol in plan["protocols"]:
            rivals = [cell for cell in found if cell[0] == protocol]
            for metric in METRICS:
                if (protocol, model) not in found:
                    row.append("")
                    continue
                values = of((protocol, model), metric)
                place = 1 + sum(statistics.mean(of(cell, metric)) > statistics.mean(values) for cell in rivals)
                spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
                row.append(f"{statistics.mean(values):.4f}{spread} ({place})")
        rows.append(row)
    names = {"hit@10": "HR@10", "ndcg@10": "NDCG@10"}
    header = ["model", *(f"{protocol}, {names[metric]}" for protocol in plan["protocols"] for metric in METRICS)]
    missing = [model for model in plan["models"] if model not in tried]
    return common.table(header, rows) + (f"\n\nNot trained yet: {', '.join(missing)}." if missing else "")


def _costs(found: dict[tuple[str, str], dict[str, Any]]) -> str:
    lines = []
    for (protocol, model), cell in found.items():
        seconds = sum(float(trial["seconds"] or 0) for trial in cell["trials"])
        valid = statistics.mean(final["best_valid_result"]["ndcg@10"] for final in cell["finals"])
        lines.append(
            f"- {model}, {protocol}: {len(cell['trials'])} trials in {seconds:,.0f} s, validation NDCG@10 {valid:.4f} "
            f"({cell['machine']['processor']}, {cell['machine']['date']}); `{cell['command']}`"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", type=Path, default=Path("dataset/"))
    parser.add_argument("--datasets", nargs="+", help="of the plan")
    parser.add_argument("--only", nargs="+", help="models of the plan")
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--hours", type=float, default=1e6, help="interrupt what is running then")
    parser.add_argument("--work", type=Path, default=Path("trainings"), help="folder of states and logs")
    parser.add_argument("--page", action="store_true", help="write the page of what is finished, and train nothing")
    given = parser.parse_args()
    given.work, given.data_path = given.work.absolute(), given.data_path.absolute()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, trainings.terminated)  # which would leave a search behind
    plan, failed, end = yaml.safe_load(given.plan.read_text()), 0, time.monotonic() + 3600 * given.hours
    cells = [(d, m, p) for d in plan["datasets"] for m in plan["models"] for p in plan["protocols"]]
    for dataset, model, protocol in [] if given.page else cells:
        left = end - time.monotonic()
        asked = dataset in (given.datasets or [dataset]) and model in (given.only or [model])
        if not asked or left <= 0 or kept(dataset, protocol, model).is_file():
            continue
        logging.info("%s, %s: %s", dataset, protocol, model)
        failed += tuned(dataset, protocol, model, plan, given, left) is None
    if any(kept(*cell).is_file() for cell in ((d, p, m) for d, m, p in cells)):
        common.publish("protocols", "Leave-one-out and a split by time", {"plan": plan}, page(plan))
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())

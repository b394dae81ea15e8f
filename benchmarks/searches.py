"""Searches the models of searches.yaml on validation data, one after the other, each with the same budget.

    python benchmarks/searches.py --data_path=DIR --dataset=amazon-beauty --hours=2

A search is ``recbole-diffurec tune``. One that has ended leaves its trials in ``results/search/DATASET_MODEL.csv`` and
what it chose as the recipe ``best/DATASET-MODEL``, and is not made again; one that was interrupted is resumed from
``--work``. Where ``RAY_ADDRESS`` names a cluster, its trials run there.
"""

from __future__ import annotations

import argparse
import csv
import logging
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import common
import trainings
import yaml

from recbole_diffurec.config import described
from recbole_diffurec.config.layers import properties_dir

PLAN = Path(__file__).with_name("searches.yaml")
STORE = common.RESULTS / "search"
OF_THE_MACHINE = ("data_path", "show_progress")


def kept(dataset: str, model: str) -> Path:
    return STORE / f"{dataset}_{model}.csv"


def command(dataset: str, model: str, plan: dict[str, Any]) -> list[str]:
    """Of ``recbole-diffurec``, without what depends on the machine."""
    given = {"model": model, "dataset": dataset, "params_file": f"properties/search/{model}.test"}
    own = {name: value for name, value in plan["models"][model].items() if name != "recipe"}
    given |= {**plan["budget"], "concurrent_trials": 1, "final_seeds": 0, **plan["common"], **own}
    return ["tune", *(f"--{name}={value}" for name, value in given.items())]


def search(dataset: str, model: str, plan: dict[str, Any], given: argparse.Namespace, seconds: float) -> bool | None:
    """Whether it came to its end in time; None where it failed."""
    folder = given.work / dataset / f"search-{model.lower()}"
    folder.mkdir(parents=True, exist_ok=True)
    asked, tuning = command(dataset, model, plan), folder / "tuning"
    own = [f"--data_path={given.data_path}", f"--output_dir={tuning}", "--show_progress=False"]
    own += ["--resume"] if (tuning / "search.json").is_file() else []
    own += [f"--gpus_per_trial={given.gpu_share}"] if given.gpu_share else []
    local = [a.replace("properties/search", str(properties_dir() / "search")) for a in asked]
    ended = trainings.ends([sys.executable, "-m", "recbole_diffurec", *local, *own], folder, seconds)
    if ended:
        recipe = plan["models"][model].get("recipe", f"best/{{dataset}}-{model}").format(dataset=dataset)
        publish(dataset, model, tuning, recipe, shlex.join(["recbole-diffurec", *asked]))
    return ended


def publish(dataset: str, model: str, tuning: Path, name: str, made_by: str) -> None:
    """Keep the trials, and write what they chose as a recipe."""
    STORE.mkdir(parents=True, exist_ok=True)
    kept(dataset, model).write_text((tuning / "trials.csv").read_text())
    recipe = common.ROOT / "properties/experiment" / f"{name}.yaml"
    if common.TINY:
        recipe = STORE / recipe.name
    recipe.write_text(text_of_recipe(dataset, model, tuning, name, made_by), encoding="utf-8")


def text_of_recipe(dataset: str, model: str, tuning: Path, name: str, made_by: str) -> str:
    """What a search chose, with the comments that its model's parameters have."""
    trials = list(csv.DictReader((tuning / "trials.csv").open()))
    best = max((trial for trial in trials if trial["score"]), key=lambda trial: float(trial["score"]))
    seconds = sum(float(trial["seconds"] or 0) for trial in trials)
    chosen = yaml.safe_load((tuning / "best.yaml").read_text())
    about = [
        f"{model} on {dataset}, found on validation data: --model={model} --experiment={name}.",
        f"The best of {len(trials)} trials in {seconds:,.0f} s, NDCG@10 {float(best['score']):.4f} there after "
        f"{best['epochs']} epochs; benchmarks/results/search/{kept(dataset, model).name}.",
        made_by,
    ]
    files = [properties_dir() / "overall.yaml", properties_dir() / f"model/{model}.yaml"]
    sections = (section for file in files if file.is_file() for section in described.read(file)[1])
    comments = {p.name: f"({p.kind}) {p.meaning.split(';')[0]}" for section in sections for p in section.parameters}
    lines = [
        f"{f'{name}: {_yaml(value)}':<33} # {comments.get(name, '')}".rstrip(" #")
        for name, value in chosen.items()
        if name not in OF_THE_MACHINE
    ]
    return "\n".join([*(f"# {line}" for line in about), *lines]) + "\n"


def _yaml(value: Any) -> str:
    return "~" if value is None else yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--only", nargs="+", help="models of the plan")
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--hours", type=float, default=1e6, help="interrupt what is running then")
    parser.add_argument("--work", type=Path, default=Path("trainings"), help="folder of states and logs")
    parser.add_argument("--gpu_share", type=float, default=0, help="of a GPU, for the trials; others may have the rest")
    given = parser.parse_args()
    given.work = given.work.absolute()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, trainings.terminated)  # which would leave a search behind
    plan, failed, end = yaml.safe_load(given.plan.read_text()), 0, time.monotonic() + 3600 * given.hours
    for model in plan["models"]:
        left = end - time.monotonic()
        if kept(given.dataset, model).is_file() or model not in (given.only or [model]) or left <= 0:
            continue
        logging.info("%s: a search for %s", given.dataset, model)
        failed += search(given.dataset, model, plan, given, left) is None
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())

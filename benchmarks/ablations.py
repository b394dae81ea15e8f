"""Tables and plots of ``compare --experiment=ablation``, whose folder it is given."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
import matplotlib
import numpy as np
import pandas as pd

from recbole_diffurec import evaluate
from recbole_diffurec.config import layers

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LAMBDA = "lambda_uncertainty"
DEFAULTS = {LAMBDA: "0.001", "MAX_ITEM_LIST_LENGTH": "50", "noise_schedule": "trunc_lin"}
ENSEMBLES = (1, 2, 4, 8)  # models averaged
ENSEMBLE_STEPS = 4
METRIC = "test_ndcg@10"
GROUPED = [
    "DiffuRecSys",
    "DiffuRecSys@repeat_bias=False",
    f"DiffuRecSys@{LAMBDA}=1",
    "DiffuRec",
    f"DiffuRec@{LAMBDA}=1",
]


def read(folder: Path) -> pd.DataFrame:
    """``runs.csv`` with what each run changed: a column ``change``, and one per changed parameter with its default."""
    runs = pd.read_csv(folder / "runs.csv")
    runs[["base", "change"]] = runs["model"].str.partition("@")[[0, 2]]
    for name, default in DEFAULTS.items():
        found = runs["change"].str.extract(rf"{name}=([^+]+)")[0]
        runs[name] = found.fillna(default)
    return runs


def series(runs: pd.DataFrame, base: str, name: str) -> pd.DataFrame:
    """The runs of a model that change nothing but ``name``, or nothing at all, in the order of its values."""
    only = runs[(runs["base"] == base) & runs["change"].str.fullmatch(rf"({name}=[^+]*)?")]
    return only.assign(x=only[name].astype(float)).sort_values("x")


def arrays(folder: Path, run: Any) -> dict[str, np.ndarray]:
    (path,) = (folder / "runs").glob(f"*-{run['key']}.npz")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def ensembles(run: Any, data_path: str) -> list[float]:
    """Test NDCG@10 by the number of averaged models (noise seeds)."""
    found = []
    for n in ENSEMBLES:
        result = evaluate(
            run["checkpoint"],
            data_path=data_path,
            sampling_steps=ENSEMBLE_STEPS,
            ensemble_seeds=list(range(1, n + 1)),
            show_progress=False,
        )
        found.append(result["test_result"]["ndcg@10"])
    return found


def group_table(folder: Path) -> pd.DataFrame:
    """Test NDCG@10 of ``GROUPED`` models (rows) by split and group of users (columns)."""
    groups = pd.read_csv(folder / "groups.csv")
    wide = groups.pivot_table(index="model", columns=["split", "group"], values="ndcg@10_mean", sort=False)
    return wide.loc[[label for label in GROUPED if label in wide.index]]


def draw(runs: pd.DataFrame, folder: Path, ensemble: dict[str, list[float]], groups: pd.DataFrame) -> None:
    figure, axes = plt.subplots(3, 3, figsize=(11, 9.4), constrained_layout=True)
    by_lambda, by_steps, by_ensemble, by_length, by_schedule, parts, by_history, by_popularity, key = axes.flat

    lines = {base: series(runs, base, LAMBDA) for base in ("DiffuRecSys", "DiffuRec")}
    values = sorted(set().union(*(line["x"] for line in lines.values())))
    for (base, line), marker in zip(lines.items(), "os"):
        by_lambda.plot([values.index(x) for x in line["x"]], line[METRIC], marker=marker, label=base)
    by_lambda.set_xticks(range(len(values)), [f"{x:g}" for x in values])
    by_lambda.set(xlabel=r"$\lambda$ ($\delta$)", ylabel="test NDCG@10", title="uncertainty")
    by_lambda.legend(frameon=False)

    for _, run in series(runs, "DiffuRec", LAMBDA).iterrows():
        curve = arrays(folder, run)
        by_steps.plot(curve["steps"], curve["steps_ndcg"], marker="o", label=rf"$\lambda$ = {run['x']:g}")
    by_steps.set_xscale("log", base=2)
    by_steps.xaxis.set_major_formatter("{x:.0f}")
    by_steps.set(xlabel="reverse steps", ylabel="validation NDCG@10", title="DiffuRec, 2,000 users, reverse steps")
    by_steps.legend(frameon=False, fontsize=8)

    for label, values in ensemble.items():
        by_ensemble.plot(ENSEMBLES, values, marker="o", label=label)
    by_ensemble.set_xscale("log", base=2)
    by_ensemble.xaxis.set_major_formatter("{x:.0f}")
    by_ensemble.set(xlabel="noise seeds averaged", ylabel="test NDCG@10", title="ensemble")
    by_ensemble.legend(frameon=False, fontsize=8)

    line = series(runs, "DiffuRecSys", "MAX_ITEM_LIST_LENGTH")
    by_length.plot(line["x"], line[METRIC], marker="o")
    by_length.set(xlabel="most recent items kept", ylabel="test NDCG@10", title="DiffuRecSys, length")

    schedules = runs[(runs["base"] == "DiffuRec") & (runs[LAMBDA] == "0.1")].sort_values("noise_schedule")
    by_schedule.bar(schedules["noise_schedule"], schedules[METRIC], color="tab:orange")
    by_schedule.tick_params(axis="x", labelrotation=30)
    by_schedule.set(ylabel="test NDCG@10", title=r"DiffuRec with $\lambda$ = .1, schedule")

    others = runs["change"].str.contains("offset|cross|position|sampler|cosine|repeat|ema") | (runs["change"] == "")
    chosen = runs[(runs["base"] == "DiffuRecSys") & others]
    parts.barh(chosen["change"].replace("", "no change"), chosen[METRIC], color="tab:blue")
    parts.invert_yaxis()
    parts.set(xlabel="test NDCG@10", title="DiffuRecSys, its parts")
    for axis, split, title in (
        (by_history, "length", "items in the history"),
        (by_popularity, "popularity", "popularity of the target"),
    ):
        groups[split].T.plot.bar(ax=axis, legend=False, rot=0, width=0.8)
        axis.set(xlabel="", ylabel="test NDCG@10", title=title)
    key.axis("off")
    handles, labels = by_popularity.get_legend_handles_labels()
    key.legend(handles, labels, loc="center left", frameon=False, fontsize=8, title="left, groups of users")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    for axis in (by_lambda, by_steps, by_ensemble, by_length):
        axis.set_ylim(0, 1.1 * max(line.get_ydata().max() for line in axis.lines))
    figure.savefig(common.RESULTS / "ablations.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="--output_dir of the comparison")
    parser.add_argument("--data_path", default="dataset", help="folder of the data sets, for the ensembles")
    given = parser.parse_args()
    runs = read(given.folder)
    members = runs[((runs["change"] == "") | (runs["change"] == f"{LAMBDA}=1"))]
    ensemble = {
        f"{run['base']}, λ = {float(run[LAMBDA]):g}": ensembles(run, given.data_path) for _, run in members.iterrows()
    }
    groups = group_table(given.folder)
    draw(runs, given.folder, ensemble, groups)
    columns = ["valid_ndcg@10", "test_hit@10", "test_ndcg@10"]
    rows = [
        [run["base"], run["change"] or "none", *(f"{run[c]:.4f}" for c in columns), f"{run['best_epoch']}"]
        for _, run in runs.iterrows()
    ]
    first, width = runs.iloc[0], layers.experiment("ablation")["hidden_size"]
    text = (
        f"{len(runs)} runs of `recbole-diffurec compare --experiment=ablation` on {first['dataset']}: one block, "
        f"d = {width}, {first['epochs']} epochs, seed {first['seed']} alone, one reverse step unless said otherwise; "
        "test figures of the best validation epoch.\n\n![ablations](ablations.png)\n\n"
        + common.table(["model", "change", "valid NDCG@10", "test HR@10", "test NDCG@10", "best epoch"], rows)
        + f"\n\nEnsembles: test NDCG@10 of the mean softmax over noise seeds, {ENSEMBLE_STEPS} reverse steps.\n\n"
        + common.table(
            ["model", *map(str, ENSEMBLES)], [[k, *(f"{x:.4f}" for x in values)] for k, values in ensemble.items()]
        )
    )
    header = ["model", *(f"{split}: {group}" for split, group in groups.columns)]
    rows = [[label, *(f"{x:.4f}" for x in values)] for label, values in zip(groups.index, groups.to_numpy())]
    text += "\n\nTest NDCG@10 by group of users.\n\n" + common.table(header, rows)
    common.publish(
        "ablations",
        "Ablations",
        {"runs": runs.drop(columns="checkpoint").to_dict("records"), "ensembles": ensemble},
        text,
    )


if __name__ == "__main__":
    main()

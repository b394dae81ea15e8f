"""Whether a loss over K noised targets of each row (``draws: K``) pays: K = 4 against K = 1 after equal seconds.

    python benchmarks/draws.py --data_path=DIR --seconds=600

First an epoch of every network is timed, one after the other; each is then trained for as many epochs as fit into
``--seconds``, so that the trainings may run beside something else. What is done is kept in ``results/draws.json`` and
not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from typing import Any

import common
from diversity import test_users

from recbole_diffurec import Recommender, evaluate, run
from recbole_diffurec.config import layers

STORE = common.RESULTS / "draws.json"
DRAWS = (1, 4)
SAMPLES = [1, 2, 3, 4]  # seeds of the noise of four samples
NEGATIVES = 50 if common.TINY else 1024  # items of the softmax, which would take most of the time of a small network
# In which the noised target has something to say: at the published lambda .001 it is the same whatever was drawn.
SETTINGS: dict[str, dict[str, Any]] = {
    "DiffuRec, lambda 1": {
        "model": "DiffuRec",
        "widths": (64, 128),
        "experiment": "best/default",
        "cooccurrence_weight": 0,
        "lambda_uncertainty": 1.0,
    },
    # By its paper's weights it learns too slowly to say anything in this time (docs/models/DCRec.md).
    "DCRec": {
        "model": "DCRec",
        "widths": (64,),
        "n_layers": 2,
        "repeat_bias": True,
        "cross_entropy_weight": 0.9,
        "cross_entropy_decay": None,
        "learning_rate": 0.001,
        "sampling_steps": 1,
        "enable_amp": "auto",
    },
}


def parameters(setting: dict[str, Any], width: int, draws: int, given: argparse.Namespace) -> dict[str, Any]:
    own = {name: value for name, value in setting.items() if name not in ("model", "experiment", "widths")}
    shape = {"hidden_size": width, "draws": draws, "valid_sampling_steps": 1, "sampled_softmax": NEGATIVES}
    tiny = {"inner_size": 16, "user_inter_num_interval": "[5,30]"} if common.TINY else {}
    place = {"data_path": given.data_path, "show_progress": False, "seed": given.seed}
    base = layers.experiment(setting["experiment"]) if "experiment" in setting else {}
    return {**base, **own, **shape, **tiny, **place}


def seconds_of_an_epoch(model: str, dataset: str, values: dict[str, Any]) -> float:
    _, trainer, data = common.model_on(model, {"dataset": dataset, "data_path": values["data_path"]}, **values)
    return trainer.time_epoch(data.loaders[0])


def trained(model: str, dataset: str, values: dict[str, Any], epochs: int, users: int) -> dict[str, Any]:
    """What a training of so many epochs reaches with one sample and with the mean of four, and how samples differ."""
    with tempfile.TemporaryDirectory() as folder:
        limits = {"epochs": epochs, "stopping_step": epochs + 1, "checkpoint_dir": folder}
        result = run(model, dataset, **{**values, **limits})
        checkpoint = result["checkpoint"]
        tested = {"one": result["test_result"], "mean": evaluate(checkpoint, ensemble_seeds=SAMPLES)["test_result"]}
        recommender = Recommender.load(checkpoint)
        table = recommender.recommend(test_users(recommender, users)[0], k=10, samples=len(SAMPLES))
    return {
        "epochs": epochs,
        "best_epoch": result["best_epoch"],
        "train_seconds": result["train_seconds"],
        "valid": result["best_valid_result"]["ndcg@10"],
        "valid_by_epoch": [round(epoch["valid_score"], 4) for epoch in result["history"]],
        **{
            f"{which}_{metric}": figures[metric]
            for which, figures in tested.items()
            for metric in ("hit@10", "ndcg@10")
        },
        "spread": float(table.groupby("user_id")["spread"].first().mean()),
        "agreement": float(table["frequency"].mean()),
        "machine": common.machine(),
    }


def page(kept: dict[str, Any]) -> str:
    runs, rows = kept["runs"], []
    for name, found in runs.items():
        network = name.rsplit(", ", 1)[0]
        epochs = min(of["epochs"] for other, of in runs.items() if other.startswith(f"{network}, "))
        after = f"{found['valid_by_epoch'][epochs - 1]:.4f} after {epochs}"
        cost = [f"{kept['epoch_seconds'][name]:.1f}", f"{found['best_epoch'] + 1} of {found['epochs']}"]
        figures = [f"{found[f'{which}_{metric}']:.4f}" for which in ("one", "mean") for metric in ("hit@10", "ndcg@10")]
        differing = [f"{found[name]:.1%}" for name in ("spread", "agreement")]
        rows.append([name, *cost, f"{found['valid']:.4f}", after, *figures, *differing])
    header = ["network", "s an epoch", "best epoch", "validation NDCG@10", "and after as many epochs"]
    header += ["HR@10, one sample", "NDCG@10"]
    header += ["HR@10, mean of four", "NDCG@10", "spread", "agreement"]
    about = (
        f"{kept['dataset']}, one seed, every network for {kept['seconds']:,.0f} s, counted in epochs that were "
        "timed with nothing beside them, against "
        f"{NEGATIVES:,} sampled items. Its best epoch in validation, with one sample, is tested; all items are "
        "ranked, none masked. Spread: mean distance of a user's four samples from their mean, relative to its "
        "length. Agreement: share of samples whose own top 10 has a listed item."
    )
    return f"{about}\n\n{common.table(header, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--seconds", type=float, default=600, help="of training, for each network")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--users", type=int, default=2000, help="whose samples are compared")
    parser.add_argument("--only_time", action="store_true", help="time the epochs, and train nothing yet")
    given = parser.parse_args()
    asked = {"dataset": given.dataset, "seconds": given.seconds, "seed": given.seed}
    kept = json.loads(STORE.read_text()) if STORE.is_file() else {}
    if {name: kept.get(name) for name in asked} != asked:
        kept = {"epoch_seconds": {}, "runs": {}}
    kept = {**asked, **{name: kept[name] for name in ("epoch_seconds", "runs")}}
    networks = {
        f"{name}, d = {width}, K = {draws}": (setting["model"], parameters(setting, width, draws, given))
        for name, setting in SETTINGS.items()
        for width in ((16,) if common.TINY else setting["widths"])
        for draws in DRAWS
    }
    for name, (model, values) in networks.items():
        if name not in kept["epoch_seconds"]:
            kept["epoch_seconds"][name] = seconds_of_an_epoch(model, given.dataset, values)
            STORE.write_text(json.dumps(kept, indent=1) + "\n")
    if given.only_time:
        return
    for name, (model, values) in networks.items():
        if name not in kept["runs"]:
            epochs = max(1, round(given.seconds / kept["epoch_seconds"][name]))
            kept["runs"][name] = trained(model, given.dataset, values, epochs, given.users)
            STORE.write_text(json.dumps(kept, indent=1) + "\n")
    common.publish("draws", "A loss over several noised targets", kept, page(kept))


if __name__ == "__main__":
    main()

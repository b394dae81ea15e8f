"""RecBole's own entry points with this package imported: what docs/recbole_entry_points.md says of them."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data import write_inter
from test_splits import shop

import recbole_diffurec
from recbole_diffurec import Recommender, UserError, run
from recbole_diffurec.experiments.tune import objective_function
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.trainer import trainer_class

pytest.importorskip("ray")

TOPK = {"topk": [5], "valid_metric": "NDCG@5", "metrics": ["Hit", "NDCG"]}
SAMPLED = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni5"}
PARAMETERS: dict[str, dict[str, Any]] = {
    "BPR": {},
    "SASRec": {"train_neg_sample_args": None, "hidden_size": 16, "n_layers": 1, "eval_args": SAMPLED},
    "DiffuRecSys": {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "sampling_steps": 2},
}
OURS = {"user_inter_num_interval": None, "item_inter_num_interval": None}


@pytest.fixture(autouse=True)
def place(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Data, no arguments for RecBole to take, and the log as it was, since RecBole takes the root logger."""
    write_inter(workdir, shop())
    monkeypatch.setattr("sys.argv", ["test"])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def run_recbole(model: str, **more: Any) -> tuple[dict[str, Any], Path]:
    """The result of RecBole's own run, and the checkpoint that it left."""
    from recbole.quick_start import run_recbole as theirs

    before = set(Path("saved").glob("*.pth"))
    given = {
        **TOPK,
        **PARAMETERS.get(model, {}),
        "epochs": 2,
        "data_path": ".",
        "show_progress": False,
        "gpu_id": "",
        **more,
    }
    result = theirs(model=model, dataset="toy", config_dict=given)
    (path,) = set(Path("saved").glob("*.pth")) - before
    return result, path


def test_rows_act_or_are_refused() -> None:
    scores = [run_recbole("SASRec", rows=rows)[0]["best_valid_score"] for rows in ("prefixes", "sequences")]
    assert scores[0] != scores[1]
    for model, reason in (("DiffuRecSys", "one noised target"), ("BPR", "it reads no histories")):
        with pytest.raises(UserError, match=reason):
            run_recbole(model, rows="sequences")


@pytest.mark.parametrize("model", PARAMETERS)
def test_run_recbole_and_its_checkpoint(model: str, capfd: pytest.CaptureFixture) -> None:
    """On data of one's own; ``evaluate`` has its figures, ``load_data_and_model`` its model, ``Recommender`` lists."""
    from recbole.quick_start import load_data_and_model
    from recbole.utils.case_study import full_sort_topk

    result, path = run_recbole(model)
    assert 0 < result["test_result"]["hit@5"] <= 1
    again = recbole_diffurec.evaluate(path, show_progress=False)
    assert again["test_result"] == pytest.approx(result["test_result"], abs=2e-4)  # RecBole keeps four places
    assert torch.load(path, weights_only=True)["model"] == model
    assert Path("log_tensorboard", path.stem).is_dir() == (model == "DiffuRecSys"), "RecBole's own has RecBole's names"

    config, network, dataset, train_data, valid_data, test_data = load_data_and_model(str(path))
    assert (config["model"], type(network).__name__, dataset.item_num) == (model, model, 16)
    state = checkpoint.open_run(path)
    assert all(torch.equal(value, state["state_dict"][name]) for name, value in network.state_dict().items())
    assert len(train_data) and len(valid_data) and len(test_data)
    if model != "SASRec":  # whose loader has sampled candidates
        users = dataset.token2id(dataset.uid_field, ["100", "103"])
        scores, items = full_sort_topk(users, network, test_data, k=5)
        assert items.shape == (2, 5) and torch.isfinite(scores).all() and (items > 0).all()
    if model == "BPR":
        with pytest.raises(UserError, match="reads no histories"):
            Recommender.load(path)
        return
    table = Recommender.load(path).recommend([["505", "507"]], k=3)
    assert len(table) == 3 and not table["popular"].any()
    assert len(Recommender.load(path).recommend([["nothing"]], k=3)) == 3  # the popular ones


@pytest.mark.parametrize("model", ["DiffuRecSys", "SASRec", "BPR", "EASE", "ItemKNN", "SLIMElastic", "Pop"])
def test_run_recbole_on_columns_of_other_names(model: str, workdir: Path) -> None:
    """RecBole's defaults name its own columns; and what a model keeps as a matrix is one when it is tested."""
    path = Path("toy/toy.inter")
    head = path.read_text(encoding="utf-8").partition("\n")[0]
    own = head.replace("user_id", "session").replace("item_id", "sku").replace("timestamp", "at")
    path.write_text(path.read_text(encoding="utf-8").replace(head, own, 1), encoding="utf-8")
    fields = {"USER_ID_FIELD": "session", "ITEM_ID_FIELD": "sku", "TIME_FIELD": "at"}
    result, checkpoint_file = run_recbole(model, **fields)
    again = recbole_diffurec.evaluate(checkpoint_file, show_progress=False)
    assert again["test_result"] == pytest.approx(result["test_result"], abs=2e-4)
    assert (again["n_users"], again["n_items"]) == (12, 15)


@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [0.7, 0.1, 0.2]}])
def test_a_general_model_is_split_by_time(split: dict[str, Any]) -> None:
    """RecBole's defaults load no time, and its split by time then knows none."""
    given = {"eval_args": {"split": split, "order": "TO", "group_by": "user", "mode": "full"}}
    result, path = run_recbole("BPR", **given)
    again = recbole_diffurec.evaluate(path, show_progress=False)
    assert again["test_result"] == pytest.approx(result["test_result"], abs=2e-4)
    ours = run("BPR", "toy", data_path=".", epochs=1, gpu_id="", show_progress=False, **TOPK, **OURS, **given)
    assert again["n_interactions"] == ours["n_interactions"]


def test_lists_of_what_load_data_and_model_returns_are_those_of_the_recommender() -> None:
    from recbole.quick_start import load_data_and_model
    from recbole.utils.case_study import full_sort_topk

    path = run("DiffuRecSys", "toy", epochs=1, data_path=".", gpu_id="", **TOPK, **OURS, **PARAMETERS["DiffuRecSys"])[
        "checkpoint"
    ]
    _, network, dataset, _, _, test_data = load_data_and_model(path)
    _, items = full_sort_topk(dataset.token2id(dataset.uid_field, ["104"]), network, test_data, k=5)
    history = shop().sort_values("timestamp", kind="stable").query("user_id == 104")["item_id"].tolist()[:-1]
    table = Recommender.load(path).recommend([history], k=5)
    assert dataset.id2token(dataset.iid_field, items[0]).tolist() == table["item_id"].tolist()


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_load_data_and_model_of_a_run(model: str) -> None:
    """The loaders are those of the run."""
    from recbole.quick_start import load_data_and_model
    from recbole.trainer import Trainer

    given = {name: value for name, value in PARAMETERS[model].items() if name != "eval_args"}
    result = run(model, "toy", epochs=1, data_path=".", gpu_id="", show_progress=False, **TOPK, **OURS, **given)
    config, network, _, train_data, _, test_data = load_data_and_model(result["checkpoint"])
    trainer = trainer_class(Trainer)(config, network)
    trainer.eval_collector.data_collect(train_data)
    assert trainer.evaluate(test_data, load_best_model=False) == pytest.approx(result["test_result"])


def test_other_data_under_a_checkpoint_is_told(workdir: Path) -> None:
    from recbole.quick_start import load_data_and_model

    _, path = run_recbole("BPR")
    write_inter(workdir, shop(seed=5))
    with pytest.raises(UserError, match="is not the one that checkpoint"):
        load_data_and_model(str(path))


def test_a_trainer_made_by_hand_goes_on_from_its_file() -> None:
    """RecBole's tutorial: the parts, one by one."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import get_model, init_seed

    given = {**TOPK, "epochs": 1, "data_path": ".", "show_progress": False, "gpu_id": ""}
    config = Config(model="BPR", dataset="toy", config_dict=given)
    init_seed(config["seed"], config["reproducibility"])
    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, get_model("BPR")(config, train_data.dataset))
    trainer.fit(train_data, valid_data)
    figures = trainer.evaluate(test_data)
    other = Trainer(config, get_model("BPR")(config, train_data.dataset))
    other.resume_checkpoint(trainer.saved_model_file)
    assert other.start_epoch == 1 and other.evaluate(test_data, load_best_model=False) == figures
    with pytest.raises(UserError, match="goes on from its state"):
        trainer_class(Trainer)(config, trainer.model).resume_checkpoint(trainer.saved_model_file)


def test_a_general_model_has_recboles_own_figures() -> None:
    """Nothing that is imported here changes the split, the training or the metrics of a model without times."""
    code = (
        "import numpy as np\nHEAD\nfrom recbole.quick_start import run_recbole\nimport torch\n"
        "from recbole.trainer import trainer\n"
        "trainer.Trainer._save_checkpoint = lambda *args, **kwargs: None\n"
        "result = run_recbole('BPR', 'toy', config_dict=dict(epochs=2, data_path='.', show_progress=False,\n"
        "    topk=[5], valid_metric='NDCG@5', metrics=['Hit', 'NDCG'], gpu_id=''), saved=False)\n"
        "print({k: float(v) for k, v in result['test_result'].items()})\n"
    )
    # Without the package RecBole wants names that numpy 2 no longer has.
    plain = "for name, kind in dict(float_=np.float64, complex_=np.complex128, unicode_=np.str_).items():\n"
    plain += "    setattr(np, name, kind)"
    found = []
    for head in (plain, "import recbole_diffurec"):
        command = [sys.executable, "-W", "ignore", "-c", code.replace("HEAD", head)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.strip().splitlines()[-1])
    assert found[0] == found[1] and "ndcg@5" in found[0]


@pytest.mark.parametrize("parameters", [{"save_dataset": True}, {"save_dataloaders": True}])
def test_pickles_are_refused_by_run_recbole(parameters: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="pickles of prepared data"):
        run_recbole("BPR", **parameters)


def test_hyper_tuning_with_our_objective() -> None:
    """The documented search: model and data set in the files, or given to the objective."""
    pytest.importorskip("hyperopt")
    from recbole.trainer import HyperTuning

    Path("fixed.yaml").write_text(
        "model: DiffuRecSys\ndataset: toy\ndata_path: .\nepochs: 1\ntopk: [5]\nvalid_metric: NDCG@5\ngpu_id: ''\n"
        "hidden_size: 16\nn_layers: 1\nn_heads: 2\nsampling_steps: 1\nshow_progress: False\n"
    )
    space = {"choice": {"learning_rate": [0.001, 0.01]}}
    for objective in (objective_function, functools.partial(objective_function, model="DiffuRecSys", dataset="toy")):
        search = HyperTuning(
            objective, params_dict=space, fixed_config_file_list=["fixed.yaml"], algo="exhaustive", max_evals=2
        )
        search.run()
        assert len(search.params2result) == 2 and search.model == "DiffuRecSys"
        assert search.best_score == max(result["best_valid_score"] for result in search.params2result.values())
    no_validation = {"eval_args": {"split": {"LS": "test_only"}}}
    with pytest.raises(UserError, match="has no validation part, and a search judges by it"):
        objective_function(no_validation, ["fixed.yaml"])


def test_gpus_stay_visible_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    _, path = run_recbole("DiffuRecSys")
    Recommender.load(path, gpu_id="")
    recbole_diffurec.evaluate(path, show_progress=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_sequential_models_get_their_times_in_full_precision() -> None:
    """RecBole's defaults do not load them, and it orders them in float32."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation

    given = {"data_path": ".", "gpu_id": "", "train_neg_sample_args": None, **TOPK}
    config = Config(model="SASRec", dataset="toy", config_dict=given)
    _, _, test_data = data_preparation(config, dataset := create_dataset(config))
    rows = test_data._dataset[np.arange(len(test_data._dataset))]
    users = dataset.id2token("user_id", rows["user_id"]).tolist()
    last = shop().sort_values("timestamp", kind="stable").groupby("user_id")["item_id"].last()
    assert dict(zip(users, dataset.id2token("item_id", rows["item_id"]).tolist())) == {
        str(user): str(item) for user, item in last.items()
    }

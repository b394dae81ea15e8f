"""Where the figures of a training go: TensorBoard, MLflow and Weights & Biases, through resumes and failures."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import flags
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_diffurec import Recommender, UserError, cli, evaluate, run
from recbole_diffurec.errors import Interrupted
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training import journal
from recbole_diffurec.training.trainer import PluginTrainer

# A second, with a learning rate that falls.
TINY: dict[str, Any] = {
    "epochs": 2, "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1, "MAX_ITEM_LIST_LENGTH": 6,
    "gpu_id": "", "user_inter_num_interval": "[5,20]", "lr_decay_step": 1, "topk": [5], "valid_metric": "NDCG@5",
}  # fmt: skip


def scalars(name: str) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run: {name: [(step, value), ...]}."""
    found = EventAccumulator(str(Path("log_tensorboard", name)))
    found.Reload()
    return {tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def expected(result: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """The same of a result."""
    figures: dict[str, list[tuple[int, float]]] = {}
    for epoch in result["history"]:
        of_epoch = {f"train/{name.removeprefix('train_')}": epoch[name] for name in ("train_loss", "learning_rate")}
        for name, value in {**of_epoch, **{f"valid/{k}": v for k, v in epoch["valid_result"].items()}}.items():
            figures.setdefault(name, []).append((epoch["epoch"] + 1, pytest.approx(value, rel=1e-6)))
    best = result["best_epoch"] + 1
    figures |= {f"test/{k}": [(best, pytest.approx(v, rel=1e-6))] for k, v in result["test_result"].items()}
    return {**figures, "best_epoch": [(best, best)]}


def without_seconds(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in figures.items() if not name.endswith("/seconds")}


def interrupted(patch: pytest.MonkeyPatch, epoch: int, **parameters: Any) -> None:
    """A training that is stopped before it validates an epoch, counted from 1, whose training it has told of."""
    whole = PluginTrainer._valid_epoch

    def stop(self: PluginTrainer, *given: Any, **named: Any) -> Any:
        if len(self.history) == epoch:
            raise Interrupted(2, self.state_file)
        return whole(self, *given, **named)

    with patch.context() as stopping, pytest.raises(Interrupted):
        stopping.setattr(PluginTrainer, "_valid_epoch", stop)
        run("SASRec", **TINY, **parameters)


def names() -> set[str]:
    """What the files of runs are called."""
    found = [*Path("saved").iterdir(), *Path("log").rglob("*.log"), *Path("log_tensorboard").iterdir()]
    return {path.name.removesuffix(".pth").removesuffix(".log") for path in found}


def test_tensorboard_has_all_by_name_in_one_folder_through_resumes(workdir, monkeypatch, capfd):
    interrupted(monkeypatch, epoch=2)
    (state,) = Path("saved").glob("*.state")
    result = run("SASRec", resume=True, **TINY)
    name = Path(result["checkpoint"]).stem
    assert names() == {name} and state.name.startswith(name) and Path(result["log"]).stem == name
    found = scalars(name)
    # The training of epoch 2 was told of twice, and is there once.
    assert without_seconds(found) == expected(result)
    assert found["train/learning_rate"] == [(1, pytest.approx(1e-3)), (2, pytest.approx(1e-4))]
    log = Path(result["log"]).read_text(encoding="utf-8")
    assert log.count("command:") == 2 and log.count("epoch 1/2") == log.count("epoch 2/2") == 1
    assert "train 1/2" not in capfd.readouterr().err, "a bar, though nothing is a terminal"


def test_a_model_with_several_losses_tells_each(workdir):
    result = run("CL4SRec", **{**TINY, "epochs": 1})
    found = scalars(Path(result["checkpoint"]).stem)
    parts = [values[0][1] for name, values in found.items() if name.startswith("train/loss_")]
    assert len(parts) != 1 and (not parts or sum(parts) == pytest.approx(found["train/loss"][0][1], rel=1e-5))


def test_nothing_is_told_of_tests_and_trials(workdir):
    result = run("SASRec", **{**TINY, "epochs": 1})
    evaluate(result["checkpoint"])
    assert len(list(Path("log_tensorboard").iterdir())) == 1


@pytest.fixture
def mlflow(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (workdir / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")
    return module


def test_mlflow_goes_on_with_the_run_that_was_interrupted(mlflow, monkeypatch):
    interrupted(monkeypatch, epoch=2, log_to="mlflow")
    (begun,) = mlflow.search_runs(output_format="list")
    assert begun.info.status == "KILLED" and mlflow.active_run() is None
    result = run("SASRec", resume=True, log_to=["mlflow"], **TINY)
    (done,) = mlflow.search_runs(output_format="list")
    assert (done.info.run_id, done.info.status) == (begun.info.run_id, "FINISHED")
    assert done.info.run_name == Path(result["checkpoint"]).stem
    assert done.data.tags["checkpoint"] == result["checkpoint"]
    wanted = {"model": "SASRec", "dataset": "ml-100k", "hidden_size": "8", "seed": "2020"}
    assert {name: done.data.params[name] for name in wanted} == wanted
    client = mlflow.MlflowClient()
    found = {
        name.replace("_at_", "@"): sorted(
            {(p.step, p.value) for p in client.get_metric_history(done.info.run_id, name)}
        )
        for name in done.data.metrics
    }
    assert without_seconds(found) == expected(result)


def test_mlflow_keeps_to_the_programs_own_run_and_says_what_failed(mlflow, monkeypatch):
    monkeypatch.setattr(PluginTrainer, "_check_weights", lambda self: (_ for _ in ()).throw(UserError("diverged")))
    with mlflow.start_run() as own, pytest.raises(UserError, match="diverged"):
        run("SASRec", log_to="mlflow", **TINY)
    assert mlflow.active_run() is None
    (inner,) = (one for one in mlflow.search_runs(output_format="list") if one.info.run_id != own.info.run_id)
    assert inner.info.status == "FAILED" and inner.data.tags["mlflow.parentRunId"] == own.info.run_id


def test_wandb_offline(workdir, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}.items():
        monkeypatch.setenv(name, value)
    result = run("SASRec", log_to="wandb", **TINY)
    (file,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    wanted = {*expected(result), "checkpoint", "hidden_size", "recbole-diffurec", Path(result["checkpoint"]).name}
    assert [name for name in sorted(wanted) if name.encode() not in content] == []
    # What the checkpoint says of its training asks nobody else to have the library.
    assert "log_to" not in checkpoint.open_run(result["checkpoint"])["config"]


class Wandb(SimpleNamespace):
    """As much of wandb as is called, and what it was told."""

    def __init__(self, own: Any = None):
        self.__file__ = "wandb.py"
        self.told: list[tuple[str, Any]] = []
        self.run = own

    def init(self, **given: Any) -> Any:
        self.told.append(("init", given))
        return self.begun()

    def begun(self) -> Any:
        note = lambda what: lambda *given, **named: self.told.append((what, given[0] if given else named))  # noqa: E731
        config, summary = SimpleNamespace(update=note("config")), SimpleNamespace(update=note("summary"))
        return SimpleNamespace(
            config=config, summary=summary, log=note("log"), finish=note("finish"), define_metric=note("metric")
        )


def test_wandb_is_told_what_is_to_be_seen(workdir, monkeypatch):
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "shop")
    interrupted(monkeypatch, epoch=2, log_wandb=True)
    assert fake.told[-1] == ("finish", {"exit_code": 1})
    (_, first), *_ = fake.told
    fake.told.clear()
    result = run("SASRec", resume=True, log_to="wandb", wandb_project="mine", **TINY)
    (_, given), (_, config), _, *_ = fake.told
    assert first["project"] == "shop" and given["project"] == "mine"
    assert (
        given["id"] == first["id"] and given["resume"] == "allow" and given["name"] == Path(result["checkpoint"]).stem
    )
    assert config["model"] == "SASRec" and config["hidden_size"] == 8
    logged = [values for what, values in fake.told if what == "log"]
    assert [values["epoch"] for values in logged] == [2, 2] and logged[0]["train/loss"] == result["history"][1][
        "train_loss"
    ]
    assert logged[1]["valid/ndcg@5"] == result["history"][1]["valid_result"]["ndcg@5"]
    (summary,) = (values for what, values in fake.told if what == "summary")
    assert summary["checkpoint"] == result["checkpoint"] and summary["test/ndcg@5"] == result["test_result"]["ndcg@5"]
    assert fake.told[-1] == ("finish", {"exit_code": 0})


def test_a_run_of_wandb_that_the_program_has_is_used_and_left_open(workdir, monkeypatch):
    fake = Wandb()
    fake.run = fake.begun()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run("SASRec", log_to="wandb", **{**TINY, "epochs": 1})
    kinds = [what for what, _ in fake.told]
    assert "summary" in kinds and "init" not in kinds and "finish" not in kinds


def test_a_tracker_that_fails_does_not_end_a_training(workdir, monkeypatch, caplog):
    def full(self: Any, figures: Any, epoch: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.TensorBoard, "add", full)
    with caplog.at_level(logging.WARNING):
        result = run("SASRec", **TINY)
    assert len(result["history"]) == 2 and result["test_result"]
    assert caplog.text.count("tensorboard takes no more figures ([Errno 28] No space left on device)") == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("wandbb", "log_to must be among mlflow, wandb, got 'wandbb': did you mean 'wandb'?"),
        ("mlflow,tensorboard", "log_to must be among mlflow, wandb, got 'tensorboard'"),
        ("{a: 1}", "log_to must name trackers, such as mlflow,wandb, got {'a': 1}"),
        (
            "[wandb]",
            "wandb, which is not installed: pip install 'recbole-diffurec[wandb]', or in a clone pip install -e",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_before_any_work(value, says, workdir, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(__file__="mlflow.py"))
    Path("space.test").write_text("n_layers choice [1,2]\n", encoding="utf-8")
    for command in (["run"], ["compare", "--models=Pop"], ["tune", "--params_file=space.test"]):
        assert cli.main([*command, f"--log_to={value}", "--gpu_id="]) == 2
        assert says in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} <= {"space.test", "comparison"}
    assert not [path for path in Path().rglob("*") if path.is_file() and path.name != "space.test"]


def test_a_missing_library_is_named_with_what_brings_it(workdir, monkeypatch):
    """Also where the folder of its files, which it makes in the working folder, would be taken for it."""
    Path("nobodys_tracker").mkdir()
    monkeypatch.syspath_prepend(workdir)
    monkeypatch.setattr("recbole_diffurec.host.trackers.TRACKERS", {"nobodys_tracker": "Nobody's", "absent_one": "No"})
    with pytest.raises(
        UserError, match=r"a folder 'nobodys_tracker' is in its place.*in a clone pip install --upgrade -e"
    ):
        run("SASRec", log_to="nobodys_tracker", **TINY)
    with pytest.raises(UserError) as caught:
        run("SASRec", log_to="absent_one", **TINY)
    assert str(caught.value) == (
        "log_to absent_one needs absent_one, which is not installed: pip install 'recbole-diffurec[absent_one]', or in "
        "a clone pip install -e '.[absent_one]'"
    )


def test_a_tracker_that_does_not_begin_ends_the_run_before_it_trains(workdir, monkeypatch, capsys):
    class Unreachable:
        def __init__(self, *_: Any):
            raise ConnectionError("nobody answers\nat all")

    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    monkeypatch.setitem(journal._SINKS, "wandb", Unreachable)
    assert cli.main([*flags(TINY), "--model=SASRec", "--log_to=wandb"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "recbole-diffurec: Weights & Biases does not begin (nobody answers): log in with 'wandb login', or set "
        "WANDB_MODE=offline"
    )
    assert not list(Path("saved").iterdir()) and not os.path.exists("log_tensorboard")


def test_checkpoints_have_no_trackers(trained):
    for call in (evaluate, Recommender.load):
        with pytest.raises(UserError, match=r"log_to is 'wandb', and a tracker follows a training: leave it out"):
            call(trained["DiffuRecSys"], log_to="wandb")


def test_recboles_own_parameter_is_another_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    config = RunConfig("SASRec", "ml-100k", {"log_wandb": True, "log_to": "wandb"})
    assert config["log_to"] == ["wandb"] and config["log_wandb"] is False
    assert RunConfig("SASRec", "ml-100k", {})["log_to"] == []

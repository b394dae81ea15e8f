"""States are found by the exact run, on the data it began with; whatever else lies there is left alone, and said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from recbole_diffurec import Recommender, UserError, evaluate, run
from recbole_diffurec.experiments.compare import run_job
from recbole_diffurec.experiments.grid import plan
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.state import find_state, open_state

FILES = ROOT / "tests" / "data" / "0.1.0"
THEN = json.loads((FILES / "expected.json").read_text())
STEM = Path(THEN["state_names"][0]).stem
HERE = {"data_path": "data", "gpu_id": "", "show_progress": False}
PARAMETERS = {**THEN["parameters"], **HERE}


def add_dataset(name: str) -> Path:
    path = Path("data", name, f"{name}.inter")
    path.parent.mkdir(parents=True)
    shutil.copy(FILES / "old.inter", path)
    return path


@pytest.fixture
def inter(workdir: Path) -> Path:
    """The data set of the state, in a working directory of its own."""
    return add_dataset("old")


def put_state(name: str = STEM, change: Callable[[dict[str, Any]], Any] = lambda state: None, **values: Any) -> Path:
    """A state with its checkpoint in ``saved``, as a training of today leaves them, but for what is changed."""
    Path("saved").mkdir(exist_ok=True)
    shutil.copy(FILES / "interrupted.pth", f"saved/{name}.pth")
    state = {**checkpoint.load(FILES / "interrupted.state"), "checkpoint": f"{name}.pth", **values}
    change(state)
    path = Path("saved", f"{name}.state")
    checkpoint.save(path, state)
    return path


def config(**parameters: Any) -> RunConfig:
    return RunConfig("DiffuRecSys", "old", {**PARAMETERS, **parameters})


def test_a_data_set_whose_name_begins_alike_has_states_of_its_own(inter: Path) -> None:
    add_dataset("old-2024")
    theirs = put_state("DiffuRecSys-old-2024-20260101-000000-abcdef")
    kept = theirs.read_bytes(), theirs.with_suffix(".pth").read_bytes()
    assert find_state(config()) is None
    result = run("DiffuRecSys", "old", **{**PARAMETERS, "epochs": 1}, resume=True)
    assert Path(result["checkpoint"]).name.startswith("DiffuRecSys-old-20")
    assert (theirs.read_bytes(), theirs.with_suffix(".pth").read_bytes()) == kept
    found = find_state(RunConfig("DiffuRecSys", "old-2024", PARAMETERS))
    assert found is not None and found["state_file"] == str(theirs)


def test_a_state_of_another_data_set_under_this_ones_name_is_refused(inter: Path) -> None:
    put_state(dataset="other")
    with pytest.raises(UserError, match="has another configuration \\(dataset 'other', not 'old'\\)"):
        find_state(config())


@pytest.mark.parametrize("name", ["../outside.pth", "/outside.pth", "other/x.pth", "..", "outside.state", ""])
def test_a_state_leads_nowhere_else(name: str, inter: Path) -> None:
    path = put_state(checkpoint=name)
    with pytest.raises(UserError, match=r"checkpoint: Value error, must be the bare name of a .pth file"):
        open_state(str(path))


def test_a_state_takes_no_checkpoint_but_its_own(inter: Path) -> None:
    path = put_state(checkpoint="other.pth")
    with pytest.raises(UserError, match=f"'{path}' belongs to 'other.pth': give it back its name"):
        open_state(str(path))


@pytest.mark.parametrize(
    "values",
    [
        {"best_valid_score": 7.0},
        {"best_valid_score": float("nan")},
        {"best_valid_score": float("inf")},
        {"best_valid_result": {"ndcg@5": 1.0}},
        {"best_valid_result": None},
        {"cur_step": 3},
        {"history": []},
    ],
)
def test_the_best_epoch_is_one_of_the_history(values: dict[str, Any], inter: Path) -> None:
    path = put_state(**values)
    with pytest.raises(UserError, match="is damaged \\(its history is not that of its epochs\\)"):
        open_state(str(path))


def test_attributes_are_of_every_process(inter: Path) -> None:
    assert open_state(str(put_state(attributes=[{"kept": {}, "lost": []}])))
    with pytest.raises(UserError, match="attributes: they must be of every process"):
        open_state(str(put_state(attributes=[])))


def test_a_state_without_its_checkpoint_is_told_before_the_training(inter: Path) -> None:
    path = put_state()
    path.with_suffix(".pth").unlink()
    with pytest.raises(UserError, match=f"'saved/{STEM}.pth' does not exist"):
        open_state(str(path))


@pytest.mark.parametrize("content", [b"", b"nothing", None], ids=["empty", "text", "locked"])
def test_what_cannot_be_read_is_skipped_and_said(
    content: bytes | None, inter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = put_state()
    os.utime(mine, (1, 1))
    theirs = Path("saved", "DiffuRecSys-old-20260101-000000-abcdef.state")
    if content is None:
        theirs.mkdir()  # as a file of somebody else's, which this process could read only as root
    else:
        theirs.write_bytes(content)
    found = find_state(config())
    assert found is not None and found["state_file"] == str(mine)
    assert f"skipped: checkpoint '{theirs}'" in caplog.text
    mine.unlink()
    assert find_state(config()) is None, "a run is not held up by what is not its own"


def test_the_runs_own_state_is_not_passed_over(inter: Path) -> None:
    key = config().key()
    own = Path("saved", f"{STEM}.{key}.state")
    own.parent.mkdir()
    own.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"'{own}' is damaged"):
        find_state(config())
    assert find_state(config(), strict=False) is None
    assert find_state(config(seed=7)) is None, "of another run it is"


def test_states_of_other_runs_are_told_apart_by_name(inter: Path) -> None:
    """They are opened only to say what they differ in."""
    state = put_state()
    state.rename(Path("saved", f"{STEM}.{config(seed=7).key()}.state"))
    with pytest.raises(UserError, match="has another configuration"):
        find_state(config(learning_rate=0.5))
    assert find_state(config(learning_rate=0.5), strict=False) is None


# The data


def interrupted(change: Callable[[Path], None], inter: Path) -> None:
    """A state of today for the data as they are, which are changed afterwards."""
    result = run("DiffuRecSys", "old", **{**PARAMETERS, "checkpoint_dir": "whole"})
    put_state(data=checkpoint.open_run(result["checkpoint"])["data"])
    change(inter)


def with_lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        head, *lines = path.read_text().splitlines()
        path.write_text("\n".join([head, *change(lines)]) + "\n")

    return apply


def later(lines: list[str]) -> list[str]:
    """Every time a day later."""
    return [f"{rest}\t{int(time) + 86400}" for rest, _, time in (line.rpartition("\t") for line in lines)]


CHANGES = {
    "an interaction less": (with_lines(lambda lines: lines[:-1]), r"\d+ interactions, not \d+"),
    "a name of an item": (with_lines(lambda lines: [line.replace("\ti3\t", "\tx3\t") for line in lines]), "item ids"),
    "all times": (with_lines(later), "another column timestamp of the inter file"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_data_are_refused_and_what_differs_is_said(name: str, inter: Path) -> None:
    change, difference = CHANGES[name]
    interrupted(change, inter)
    with pytest.raises(UserError, match=rf"began with other data \(.*{difference}.*\): bring them back"):
        run("DiffuRecSys", "old", **PARAMETERS, resume=True)
    assert Path("saved", f"{STEM}.state").is_file(), "nothing is lost"


def test_the_same_data_in_another_place_are_the_same(inter: Path) -> None:
    interrupted(lambda path: None, inter)
    shutil.move("data", "elsewhere")
    result = run("DiffuRecSys", "old", **{**PARAMETERS, "data_path": "elsewhere"}, resume=True)
    assert Path(result["checkpoint"]).stem == STEM


def test_a_comparison_starts_afresh_on_other_data(inter: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(CHANGES["all times"][0], inter)
    (job,) = plan(["DiffuRecSys"], ["old"], [2020], {**PARAMETERS, "metrics": ["Hit", "NDCG"]})
    result, _ = run_job(job)
    assert Path(result["checkpoint"]).stem != STEM and len(result["history"]) == 3
    assert "began with other data" in caplog.text and "it starts afresh" in caplog.text


def test_a_checkpoint_is_tested_on_the_data_it_was_trained_on(inter: Path) -> None:
    result = run("DiffuRecSys", "old", **PARAMETERS)
    with_lines(later)(inter)
    with pytest.raises(UserError, match=r"is not the one that checkpoint .* \(another column timestamp"):
        evaluate(result["checkpoint"])
    again = evaluate(result["checkpoint"], user_inter_num_interval="[6,inf)", item_inter_num_interval="[0,inf)")
    assert again["n_interactions"] <= result["n_interactions"], "whoever asks for other data gets them"


# Weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value: float, inter: Path) -> None:
    state = checkpoint.load(FILES / "diffurecsys.pth")
    state["state_dict"]["item_embedding.weight"][3, 1] = value
    checkpoint.save("a.pth", state)
    for use in (lambda: evaluate("a.pth", **HERE), lambda: Recommender.load("a.pth", gpu_id="")):
        with pytest.raises(
            UserError, match=r"'a.pth' is of no use, since 1 of the 100 weights of 'item_embedding.weight'"
        ):
            use()


def test_a_training_whose_weights_diverge_keeps_the_best_before(inter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a batch tells of the weights before its step, so that the last step's would be kept."""
    from recbole_diffurec.training.trainer import PluginTrainer

    validate, seen = PluginTrainer._valid_epoch, []

    def diverged(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(None)
        if len(seen) == 2:
            with torch.no_grad():
                self.model.item_embedding.weight[3, 1] = float("nan")
        return validate(self, *args, **kwargs)

    monkeypatch.setattr(PluginTrainer, "_valid_epoch", diverged)
    with pytest.raises(
        UserError, match=r"has diverged .* 1 of the 100 weights of 'item_embedding.weight' .* the best weights"
    ):
        run("DiffuRecSys", "old", **{**PARAMETERS, "ema_decay": None})
    (kept,) = Path("saved").glob("*.pth")
    assert evaluate(kept)["best_epoch"] == 0


@pytest.mark.parametrize("values", [{"hidden_size": 2**20}, {"n_layers": 10**6}, {"diffusion_steps": 10**5}])
def test_a_configuration_that_is_not_the_weights_takes_no_memory(values: dict[str, int], inter: Path) -> None:
    state = checkpoint.load(FILES / "diffurecsys.pth")
    state["config"].update(values, sampling_steps=1)
    checkpoint.save("a.pth", state)
    for use in (lambda: evaluate("a.pth", **HERE), lambda: Recommender.load("a.pth", gpu_id="")):
        with pytest.raises(UserError, match=r"'a.pth'"):
            use()


def test_a_model_that_no_machine_holds_is_refused_before_it_is_built(inter: Path) -> None:
    with pytest.raises(UserError, match=r"model 'DiffuRecSys' would take more than [\d,.]+ GB .*: lower hidden_size"):
        run("DiffuRecSys", "old", **{**PARAMETERS, "hidden_size": 10**9})
    with pytest.raises(UserError, match="n_heads must divide hidden_size"):
        config(hidden_size=10**9 + 1)


# Wrong types in a state


def nodes(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of a tree, of long lists the first and the last alone."""
    below = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    below = below if len(below) < 20 else [below[0], below[-1]]
    return [at] * bool(at) + [place for key, value in below for place in nodes(value, (*at, key))]


WRONG = [None, -1, 10**30, 1.5, float("nan"), "x", [], [1], {}, {"a": 1}, torch.ones(3)]


def test_a_value_of_any_type_in_any_place_is_no_traceback(inter: Path) -> None:
    put_state()
    state, path = checkpoint.load(FILES / "interrupted.state"), Path("saved", f"{STEM}.state")
    outcomes = {"opened": 0, "refused": 0}
    places = [at for at in nodes(state) if at[0] not in ("config", "state_dict", "average")]
    for number, at in enumerate(places):
        for value in WRONG if len(at) == 1 else WRONG[number % 3 :: 3]:
            changed: Any = {**state}
            node = changed
            for key in at[:-1]:
                node[key] = node[key].copy()
                node = node[key]
            node[at[-1]] = value
            torch.save(changed, path)
            try:
                open_state(str(path))
                outcomes["opened"] += 1
            except UserError as error:
                assert "\n" not in str(error)
                outcomes["refused"] += 1
    assert outcomes["refused"] > 150 and outcomes["opened"] > 100


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["optimizer"]["state"][3].pop("step"),
        lambda state: state["optimizer"]["state"].update({999: {}}),
        lambda state: state["optimizer"]["param_groups"][0].update(lr="x"),
        lambda state: state["optimizer"]["state"][3].update(exp_avg=torch.ones(7)),
        lambda state: state["lr_scheduler"].update(last_epoch={}),
        lambda state: state["average"].update(average={}),
        lambda state: state["average"]["average"].update({"item_embedding.weight": torch.ones(1)}),
        lambda state: state["state_dict"].pop("item_embedding.weight"),
        lambda state: state.update(lr_scheduler=None),
    ],
)
def test_what_fits_no_training_of_the_configuration_is_refused(change: Any, inter: Path) -> None:
    put_state(change=change)
    with pytest.raises(UserError, match=f"'saved/{STEM}.state' do(es)? not fit its own configuration"):
        run("DiffuRecSys", "old", **PARAMETERS, resume=True)

"""Checkpoints and states of earlier versions: opened, evaluated, recommended from, resumed, to the figures of then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT

from recbole_diffurec import Recommender, evaluate, run
from recbole_diffurec.config.rules import MEANT_BEFORE, NOT_IN_RESULT
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.runtime import checkpoint

FILES = ROOT / "tests" / "data" / "0.1.0"
# Of sums that processors round in different orders.
TOLERANCE = 1e-4
HERE = {"data_path": "data", "gpu_id": "", "show_progress": False}

# What version 0.1.0 called the runs of these parameters, and so what kept runs of a comparison are called.
KEYS = [
    ("DiffuRec", "ml-100k", {}, "e9a13e220be9"),
    ("DiffuRecSys", "amazon-beauty", {"seed": 7}, "712fab019032"),
    ("SASRec", "ml-100k", {}, "5f36c5735215"),
]


@pytest.fixture(scope="module")
def then() -> dict[str, Any]:
    return json.loads((FILES / "expected.json").read_text())


@pytest.fixture
def old(workdir: Path) -> Path:
    """A working directory with the data of then."""
    (workdir / "data" / "old").mkdir(parents=True)
    shutil.copy(FILES / "old.inter", workdir / "data" / "old" / "old.inter")
    return workdir


def close(expected: dict[str, float]) -> Any:
    return pytest.approx(expected, rel=TOLERANCE)


def figures(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each epoch's figures, those of the validation among them, without times."""
    flat = [{**epoch, **epoch.get("valid_result", {})} for epoch in history]
    return [{name: value for name, value in epoch.items() if isinstance(value, (int, float)) and "seconds" not in name}
            for epoch in flat]  # fmt: skip


def test_a_checkpoint_is_evaluated(old: Path, then: dict[str, Any]) -> None:
    assert evaluate(FILES / "diffurecsys.pth", **HERE)["test_result"] == close(then["evaluated"])


def test_a_checkpoint_recommends(then: dict[str, Any]) -> None:
    found = Recommender.load(FILES / "diffurecsys.pth", gpu_id="").recommend([["i1", "i2", "i3"], ["i20"], ["no"]], k=3)
    expected = pd.DataFrame(then["recommended"])
    columns = ["user_id", "rank", "item_id", "popular"]
    assert found[columns].values.tolist() == expected[columns].values.tolist()
    assert found["score"].tolist() == pytest.approx(expected["score"].tolist(), rel=TOLERANCE)


def test_a_state_is_resumed_to_the_same_end(old: Path, then: dict[str, Any]) -> None:
    (old / "saved").mkdir()
    name = Path(then["state_names"][0]).stem
    for extension in (".pth", ".state"):
        shutil.copy(FILES / f"interrupted{extension}", old / "saved" / f"{name}{extension}")
    result = run("DiffuRecSys", "old", **then["parameters"], **HERE, resume=True)
    assert Path(result["checkpoint"]).name == f"{name}.pth"
    assert [*map(close, figures(then["history"]))] == figures(result["history"])
    assert result["best_epoch"] == then["best_epoch"]
    assert result["test_result"] == close(then["test_result"])
    assert not list((old / "saved").glob("*.state")), "the state of then is removed as one of now is"


@pytest.mark.parametrize(("model", "dataset", "parameters", "key"), KEYS)
def test_runs_are_called_what_they_were_called(model: str, dataset: str, parameters: dict[str, Any], key: str) -> None:
    assert RunConfig(model, dataset, parameters).key() == key


def test_a_parameter_of_today_says_what_it_means_for_runs_of_then(then: dict[str, Any]) -> None:
    """Whoever adds a parameter to DiffuRec or DiffuRecSys adds it to ``MEANT_BEFORE``."""
    known = checkpoint.open_run(FILES / "diffurecsys.pth")["config"]
    for model in ("DiffuRec", "DiffuRecSys"):
        defaults = RunConfig(model, "old", {}).plain()
        added = {name: value for name, value in defaults.items() if name not in known and name not in NOT_IN_RESULT}
        assert added == {name: MEANT_BEFORE.get(name, "not there") for name in added}

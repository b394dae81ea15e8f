"""Models of another package enter by an entry point, and are like any other model from then on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT

from recbole_diffurec import cli
from recbole_diffurec.models import spec
from recbole_diffurec.testing import check_model

PACKAGE = ROOT / "tests" / "plugin_package"
SMALL = ("--epochs=1", "--gpu_id=", "--show_progress=False", "--user_inter_num_interval=[5,50]")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the path with the package in it, and the place to work."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PACKAGE, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        # For the workers of a search.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
        patch.chdir(folder)
        spec.plugin_entry_points.cache_clear()
        yield folder
    spec.plugin_entry_points.cache_clear()


@pytest.fixture
def command(installed: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run one command; returns what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        found = cli.main(list(arguments))
        out, err = capsys.readouterr()
        assert found == code, err
        return out + err

    return run


@pytest.mark.parametrize("model", ["TinyMean", "TinyDiffusion"])
def test_run_evaluate_recommend(installed: Path, command: Any, model: str) -> None:
    command("run", f"--model={model}", *SMALL, f"--result_file={model}.json")
    result = json.loads((installed / f"{model}.json").read_text())
    assert result["model"] == model and 0 < result["test_result"]["hit@20"] < 1
    command("evaluate", result["checkpoint"], f"--result_file={model}-again.json")
    again = json.loads((installed / f"{model}-again.json").read_text())
    assert again["test_result"] == result["test_result"]
    command("recommend", result["checkpoint"], f"--output={model}.csv", "--k=3")
    assert len(pd.read_csv(installed / f"{model}.csv")) == 3 * result["n_users"]


def test_audit(installed: Path, command: Any) -> None:
    """A plugin's model is changed like our own, and has a twin."""
    command("run", "--model=TinyDiffusion", *SMALL, "--result_file=audited.json")
    path = json.loads((installed / "audited.json").read_text())["checkpoint"]
    asked = ("--gpu_id=", "--show_progress=False", "--users=120", "--samples=3", "--train_twin", "--output_dir=tiny")
    out = command("audit", path, *asked, "--result_file=tiny.json")
    result = json.loads((installed / "tiny.json").read_text())
    lines = {line["name"]: line for line in result["lines"]}
    assert all("ndcg" in lines[name] for name in ("factor_0", "other_noise", "frozen_step", "ddpm_4", "ddim_4", "twin"))
    assert lines["factor_0"]["overlap"] < 1 == lines["frozen_step"]["overlap"]  # its network sees no step
    assert lines["mc_dropout"]["not_applicable"] == "the network has no dropout"
    assert result["verdict"]["line"] == "twin" and result["verdict"]["sentence"] in out
    command("run", "--model=TinyMean", *SMALL, "--result_file=mean.json")
    path = json.loads((installed / "mean.json").read_text())["checkpoint"]
    assert "TinyDiffusion" in command("audit", path, code=2)


def test_compare_and_tune(installed: Path, command: Any) -> None:
    models = "--models=TinyDiffusion,TinyNoise,TinyMean,DiffuRec@n_layers=1+hidden_size=8+sampling_steps=1"
    out = command("compare", models, *SMALL, "--output_dir=side-by-side")
    assert "TinyMean" in out
    runs = pd.read_csv(installed / "side-by-side" / "runs.csv")
    assert list(runs["model"]) == ["TinyDiffusion", "TinyNoise", "TinyMean", models.rpartition(",")[2]]
    results = [json.loads(path.read_text()) for path in (installed / "side-by-side" / "runs").glob("*.json")]
    assert {result["model"] for result in results if "audit" in result} == {"TinyDiffusion", "DiffuRec"}
    assert "TinyNoise: Removing the noised vector changes" in out
    page = (installed / "side-by-side" / "report.html").read_text()
    assert page.count("What the diffusion contributes to") == 3
    # TinyMean alone is no method, and so the one to beat.
    significance = pd.read_csv(installed / "side-by-side" / "significance.csv")
    assert set(significance["baseline"]) == {"TinyMean"}
    (installed / "space.test").write_text("decay choice [0.5,1.0]\n")
    asked = ("--params_file=space.test", "--search=grid", "--scheduler=none", "--final_seeds=0", "--output_dir=search")
    command("tune", "--model=TinyMean", *asked, *SMALL)
    trials = pd.read_csv(installed / "search" / "trials.csv")
    assert sorted(trials["decay"]) == [0.5, 1.0] and set(trials["state"]) == {"TERMINATED"}


def test_what_its_spec_says_is_kept(installed: Path, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*arguments: str) -> str:
        return command("run", "--model=TinyMean", *arguments, code=2)

    assert "decay must be a number in (0, 1], got 2" in refusal("--decay=2")
    assert "embedding_size must not be 13" in refusal("--embedding_size=13")
    assert "did you mean 'decay'?" in refusal("--deca=1")
    names = command("run", "--list_models")
    assert all(name in names for name in ("TinyMean", "TinyDiffusion", "DiffuRec", "SASRec"))
    with pytest.raises(SystemExit):
        command("run", "--help")
    assert "TinyMean" in capsys.readouterr().out


def test_one_that_fails_to_load_is_named_and_the_others_work(installed: Path, command: Any) -> None:
    error = command("run", "--model=Broken", code=2)
    assert "'Broken'" in error and "ModuleNotFoundError" in error and "a_package_that_nobody_has" in error
    assert "Broken" in command("run", "--list_models")


def test_recbole_finds_them_too_in_a_process_of_its_own(installed: Path) -> None:
    code = (
        "import recbole_diffurec; from recbole.utils import get_model; import recbole.trainer as t;"
        "print(get_model('TinyMean').__module__, t.TinyMeanTrainer.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout == "tiny_recommenders PluginTrainer\n"


@pytest.mark.parametrize("model", ["TinyMean", "TinyDiffusion"])
def test_they_conform(installed: Path, model: str) -> None:
    formats = ("torch", "safetensors", "faiss") if model == "TinyDiffusion" else ("safetensors", "faiss")
    check_model(model, exports=formats)

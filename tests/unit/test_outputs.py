"""What a command is told to write never takes the place of what it reads, of a checkpoint or of a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from recbole_diffurec import UserError, evaluate, export, recommend, run
from recbole_diffurec.experiments.compare import compare
from recbole_diffurec.experiments.tune import tune
from recbole_diffurec.inference.recommender import Recommender
from recbole_diffurec.runtime import checkpoint, files
from recbole_diffurec.training import evaluate as evaluating
from recbole_diffurec.training import run as running
from recbole_diffurec.training.report import deliver

INTER = "data/mine/mine.inter"


@pytest.fixture
def place(workdir: Path, trained: dict[str, Path]) -> Path:
    """A checkpoint, another one, a state, and files that commands read."""
    for name in ("a.pth", "other.pth", "some.state"):
        checkpoint.save(name, {**checkpoint.load(trained["DiffuRec"]), "dataset": "mine"})
    Path("in.jsonl").write_text('{"user_id": "u", "items": ["1"]}\n')
    Path("all.csv").write_text("1\n")
    Path("good.yaml").write_text("epochs: 1\n")
    Path(INTER).parent.mkdir(parents=True)
    Path(INTER).write_text("user_id:token\titem_id:token\ttimestamp:float\n")
    Path("folder").mkdir()
    for link, target in {"link.csv": "a.pth", "hard.jsonl": "in.jsonl"}.items():
        (os.symlink if link == "link.csv" else os.link)(target, link)
    return workdir


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is built or data is read."""

    def work(*_: Any, **__: Any) -> Any:
        raise AssertionError("work was begun")

    monkeypatch.setattr(Recommender, "load", work)
    for module in (running, evaluating):
        monkeypatch.setattr(module, "prepare_data", work)


def refusal(function: Any, *arguments: Any, **options: Any) -> str:
    """What is said; all files are as before."""
    before = {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert {path: path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()} == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


OUTPUTS = {
    "other.pth": "is a checkpoint, which would be lost",
    "some.state": "is a checkpoint, which would be lost",
    "a.pth": "is read as well",
    "link.csv": "is read as well",
    ".": "is a folder",
    "": "is a folder",
    "folder": "is a folder",
    "new/": "is a folder",
    "/dev/null": "is no regular file",
    "x" * 300: "File name too long",
    "in.jsonl/x": "cannot be made",
}


@pytest.mark.parametrize("given", OUTPUTS)
@pytest.mark.parametrize("format", ["onnx", "torch", "safetensors", "faiss"])
def test_exports(given: str, format: str, place: Path, no_work: None) -> None:
    assert OUTPUTS[given] in refusal(export, "a.pth", given, format)


def test_an_export_s_second_file(place: Path, no_work: None) -> None:
    Path("b.json").write_bytes(Path("a.pth").read_bytes())
    Path("a.json").touch()
    assert "'b.json' is a checkpoint" in refusal(export, "a.pth", "b")
    assert "'a.json' is read as well" in refusal(export, "a.pth", "a", "faiss", "a.json")
    assert "'.' is a folder" in refusal(export, ".")


@pytest.mark.parametrize("given", ["in.jsonl", "hard.jsonl", "all.csv", "link.csv", "folder/", "", ".", "other.pth"])
def test_recommendations(given: str, place: Path, no_work: None) -> None:
    said = refusal(recommend, "a.pth", given, "in.jsonl", candidates="all.csv")
    assert said.startswith(f"output '{given}' ")
    assert ("read as well" in said) == (given in ("in.jsonl", "hard.jsonl", "all.csv", "link.csv"))


@pytest.mark.parametrize("given", ["good.yaml", INTER])
def test_the_result_of_a_run(given: str, place: Path, no_work: None) -> None:
    options = {"config_files": ["good.yaml"], "result_file": given, "data_path": "data", "gpu_id": ""}
    assert f"result_file '{given}' is read as well" in refusal(run, "DiffuRec", "mine", **options)


def test_a_result_is_said_to_be_where_it_was_asked_for(workdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("link.json").symlink_to("there.json")
    for given in ("link.json", "/dev/stderr"):
        told = deliver({"test_result": {}}, files.check_writable(given, "result_file"))["result_file"]
        assert os.path.abspath(told) == os.path.abspath(given)
    assert Path("there.json").is_file() and "test_result" in capfd.readouterr().err


@pytest.mark.parametrize("given", ["a.pth", "other.pth", "some.state", INTER])
def test_the_result_of_an_evaluation(given: str, place: Path, no_work: None) -> None:
    assert f"result_file '{given}' is " in refusal(evaluate, "a.pth", result_file=given, data_path="data")


def test_what_is_trained_on_is_no_place_for_an_export(place: Path) -> None:
    assert "is read as well" in refusal(export, "a.pth", INTER, "safetensors", data_path="data")


@pytest.mark.parametrize("function", [compare, tune])
def test_an_empty_folder_is_not_the_working_folder(function: Any, place: Path) -> None:
    given = {"params_file": "good.yaml"} if function is tune else {}
    assert "output_dir '' is no folder" in refusal(function, output_dir="", **given)


def test_a_folder_that_takes_no_files() -> None:
    """Permissions say that root may write there."""
    with pytest.raises(UserError, match="cannot be written to"):
        files.make_folder("/proc", "output_dir")

"""The command line: what it understands, and how it refuses."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
import torch

from recbole_diffurec.cli import main
from recbole_diffurec.cli.arguments import parse_parameters
from recbole_diffurec.cli.parsers import PARSERS, parse
from recbole_diffurec.config.rules import RULES
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.catalogue import known_models
from recbole_diffurec.host.config import RunConfig, known_parameters, once
from recbole_diffurec.host.devices import say_of_gpus
from recbole_diffurec.models import spec
from recbole_diffurec.runtime import checkpoint, distributed
from recbole_diffurec.training import evaluate, run
from recbole_diffurec.training.report import describe_network, format_result
from recbole_diffurec.version import __version__

ROOT = Path(__file__).resolve().parents[2]
RESULT = {"model": "DiffuRec", "dataset": "mine", "test_result": {"hit@10": 0.25}, "eval_seconds": 1.0}


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """``main`` gives the logger the standard error of its moment, which pytest replaces for each test."""
    logger = logging.getLogger("recbole_diffurec")
    before = logger.handlers[:], logger.level
    logger.handlers.clear()
    yield
    logger.handlers[:], logger.level = before


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where data would be read: for what must be refused earlier."""

    def read(config: RunConfig) -> Any:
        raise AssertionError("data was read")

    for module in (run, evaluate):
        monkeypatch.setattr(module, "prepare_data", read)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple, dict[str, Any]]]:
    """What ``main`` calls to run and to evaluate, which does nothing."""
    made: list[tuple[str, tuple, dict[str, Any]]] = []
    for module, name in ((run, "run"), (evaluate, "evaluate")):
        monkeypatch.setattr(module, name, lambda *a, name=name, **k: made.append((name, a, k)) or RESULT)
    return made


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refusal prints. Nothing but a log may have been written."""
    before = files()
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("recbole-diffurec: ") and err.endswith("\n") and err.count("\n") == 1
    message = err[len("recbole-diffurec: ") : -1]
    assert message and "Traceback" not in message
    assert not re.search(r"[.!?] +[A-Z]", message), "more than one sentence"
    assert [path for path in files() if path not in before and not path.startswith("log/")] == []
    return message


# Mistakes that are found before any data is read

MISTAKES = {
    "unknown command": (["trian"], "'trian'", "run, evaluate"),
    "parameter in place of a command": (["epochs=5"], "'epochs=5'", "run, evaluate"),
    "loose argument": (["run", "ml-100k"], "'ml-100k'", "--name=value"),
    "loose argument after a list": (["--topk=[5,", "10]"], "'10]'", "--name=value"),
    "one dash": (["-e", "5"], "'-e'", "--name=value"),
    "no name": (["--=5"], "'--=5'", "--name=value"),
    "no value": (["--epochs"], "'--epochs'", "--epochs=value"),
    "flag in place of a value": (["--epochs", "--seed=1"], "'--epochs'", "--epochs=value"),
    "given twice": (["--epochs=5", "--epochs", "6"], "'--epochs'", "twice"),
    "option without a value": (["--model"], "--model", "--help"),
    "unknown model": (["--model=DifuRec"], "'DifuRec'", "'DiffuRec'"),
    "unknown data set folder": (["--dataset=../secret"], "'../secret'", "plain folder name"),
    "unknown experiment": (["--experiment=papers"], "'papers'", "diffurec_paper"),
    "experiment of a comparison": (["--experiment=paper"], "'paper'", "recbole-diffurec compare"),
    "unknown parameter": (["--lerning_rate=0.1"], "'lerning_rate'", "'learning_rate'"),
    "abbreviated option": (["--exper=diffurec_paper"], "'exper'", "unknown parameter"),
    "parameter of another model": (["--model=BPR", "--diffusion_steps=5"], "'diffusion_steps'", "BPR"),
    "missing configuration file": (["--config_files=missing.yaml"], "'missing.yaml'", "check the path"),
    "second of two configuration files": (["--config_files", "good.yaml bad.yaml"], "'bad.yaml'", "line 2"),
    "text for a number": (["--epochs=five"], "epochs", "'five'"),
    "no number": (["--learning_rate=.nan"], "learning_rate", "nan"),
    "empty number": (["--epochs="], "epochs", "None"),
    "impossible date": (["--epochs=2024-13-45"], "epochs", "'2024-13-45'"),
    "out of range": (["--hidden_dropout_prob=1"], "hidden_dropout_prob", "[0, 1)"),
    "no choice": (["--noise_schedule=quadratic"], "noise_schedule", "'quadratic'"),
    "code": (["--learning_rate=__import__('os').system('touch x')"], "learning_rate", "__import__"),
    "heads": (["--hidden_size=12", "--n_heads=5"], "n_heads", "1, 2, 3, 4, 6, 12"),
    "sampling steps": (["--sampling_steps=64"], "sampling_steps", "64"),
    "schedule": (["--noise_schedule=linear", "--diffusion_steps=10"], "'linear'", "diffusion_steps 10"),
    "metric": (["--metrics=[Hitt]"], "'Hitt'", "'hit'"),
    "validation metric": (["--valid_metric=NDCG@7"], "valid_metric", "'NDCG@7'"),
    "refused by RecBole": (["--eval_args={mode: xyz}"], "eval_args", "xyz"),
    "result in place of a folder": (["--result_file=folder"], "result_file 'folder'", "is a folder"),
    "result under a file": (["--result_file=good.yaml/x.json"], "result_file", "'good.yaml'"),
    "checkpoints under a file": (["--checkpoint_dir=good.yaml"], "checkpoint_dir 'good.yaml'", "cannot be made"),
    "options of a table without one": (["--dataset=mine", "--user=customer"], "'user'", "path of a .csv"),
    "unknown option of a table": (["prepare", "t.csv", "--usr=customer"], "'usr'", "'user'"),
    "missing table": (["prepare", "missing.csv"], "'missing.csv'", "check the path"),
    "missing table of a run": (["--dataset=missing.csv"], "'missing.csv'", "check the path"),
    "no table": (["prepare"], "TABLE", "--help"),
    "no checkpoint": (["evaluate"], "CHECKPOINT", "--help"),
    "missing checkpoint": (["evaluate", "missing.pth"], "'missing.pth'", "does not exist"),
    "folder as checkpoint": (["evaluate", "folder"], "'folder'", ".pth"),
    "text as checkpoint": (["evaluate", "good.yaml"], "'good.yaml'", "no checkpoint"),
    "RecBole's checkpoint": (["evaluate", "recbole.pth"], "'recbole.pth'", "no checkpoint"),
    "cut checkpoint": (["evaluate", "cut.pth"], "'cut.pth'", "cut short"),
    "second checkpoint": (["evaluate", "mine.pth", "other.pth"], "'other.pth'", "does not exist"),
    "not a name=value": (["evaluate", "mine.pth", "sampling_steps=1"], "'sampling_steps=1'", "--name=value"),
    "checkpoint with holes": (["evaluate", "partial.pth"], "'partial.pth' lacks epoch, id_tokens", "that a run wrote"),
    "parameter for a checkpoint": (["evaluate", "mine.pth", "--sampling_steps=64"], "sampling_steps", "64"),
    "unknown for a checkpoint": (["evaluate", "mine.pth", "--samplin_steps=1"], "'samplin_steps'", "'sampling_steps'"),
    "model for a checkpoint": (["evaluate", "mine.pth", "--model=BPR"], "'DiffuRec'", "'BPR'"),
    "files for a checkpoint": (["evaluate", "mine.pth", "--config_files=good.yaml"], "--config_files", "--name=value"),
    "checkpoint twice": (["evaluate", "mine.pth", "--checkpoint_file=x.pth"], "--checkpoint_file", "--name=value"),
    "result of a checkpoint": (["evaluate", "mine.pth", "--result_file=folder"], "result_file 'folder'", "is a folder"),
}


@pytest.fixture
def surroundings(workdir: Path) -> Path:
    """The files that the mistakes above are made with."""
    (workdir / "folder").mkdir()
    (workdir / "good.yaml").write_text("epochs: 5\n")
    (workdir / "bad.yaml").write_text("epochs: [5\n")
    kept = RunConfig("DiffuRec", "mine", {"gpu_id": ""}).plain()
    state = {"model": "DiffuRec", "dataset": "mine", "config": kept}
    checkpoint.save("partial.pth", state)
    data = {"id_tokens": {"users": ["[PAD]", "u"], "items": ["[PAD]", "i"]}, "popularity": torch.tensor([0, 1])}
    rest = {"epoch": 0, **data, "state_dict": {}, "other_parameter": None}
    checkpoint.save("mine.pth", {**state, **rest})
    (workdir / "cut.pth").write_bytes((workdir / "mine.pth").read_bytes()[:-100])
    layer = torch.nn.Linear(2, 2)
    # As RecBole's trainer saves: with its configuration, an object.
    state = {"config": RunConfig("BPR", "mine", {"gpu_id": ""}).final_config_dict, "state_dict": layer.state_dict()}
    torch.save({**state, "epoch": 3}, "recbole.pth", pickle_protocol=4)
    return workdir


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_one_line_and_leaves_nothing(
    case: str, surroundings: Path, no_data: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, thing, value = MISTAKES[case]
    message = refused(capsys, *arguments)
    assert thing in message and value in message


@pytest.mark.parametrize("case", ["unknown parameter", "sampling steps", "result in place of a folder"])
def test_mistake_leaves_not_even_a_log(
    case: str, surroundings: Path, no_data: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(surroundings.rglob("*"))
    refused(capsys, *MISTAKES[case][0])
    assert sorted(surroundings.rglob("*")) == before


# Mistakes in the data


def write_inter(*lines: str) -> list[str]:
    path = Path("data/mine/mine.inter")
    path.parent.mkdir(parents=True)
    path.write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))
    return ["--dataset=mine", "--data_path=data", "--gpu_id="]


def test_missing_data_set_offline(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    address = "http://127.0.0.1:9/"
    arguments = ["--dataset=amazon-beauty", "--data_path=data", f"--source_base_urls={{snap: '{address}'}}"]
    message = refused(capsys, *arguments, "--result_file=result.json")
    assert "'amazon-beauty'" in message and f"{address}ratings_Beauty.csv" in message and "refused" in message
    assert str(workdir / "data" / "amazon-beauty" / "amazon-beauty.inter") in message
    assert not Path("data").exists()


def test_unknown_data_set(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--dataset=amazon_beauty", "--data_path=data")
    assert "'amazon_beauty'" in message and "did you mean amazon-beauty?" in message
    assert str(workdir / "data" / "amazon_beauty" / "amazon_beauty.inter") in message


@pytest.mark.parametrize("model", ["DiffuRecSys", "SASRec", "BPR", "Pop"])
def test_data_without_a_time_column(model: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_inter("user_id:token item_id:token", *(f"u i{n}" for n in range(9)))
    message = refused(capsys, *arguments, f"--model={model}")
    assert "'data/mine/mine.inter' has no column 'timestamp:float'" in message and "--TIME_FIELD" in message
    assert "'user_id:token', 'item_id:token'" in message


def test_data_with_another_name_for_the_time(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_inter("user_id:token item_id:token when:float", *(f"u i{n} {n}" for n in range(9)))
    assert "'when:float'" in refused(capsys, *arguments)
    assert "'then:float'" in refused(capsys, *arguments, "--TIME_FIELD=then")


def test_data_with_a_time_that_is_no_number(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_inter("user_id:token item_id:token timestamp:float", "u i1 1", "u i2 noon", "u i3 3")
    message = refused(capsys, *arguments)
    assert "'data/mine/mine.inter'" in message and "noon" in message


def test_data_with_a_time_left_out(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_inter("user_id:token item_id:token timestamp:float", "u i1 1", "u i2 ", "u i3 3")
    message = refused(capsys, *arguments)
    assert "'data/mine/mine.inter' line 3" in message and "'timestamp'" in message


def test_data_that_the_filter_empties(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write_inter("user_id:token item_id:token timestamp:float", "u i1 1", "u i2 2")
    message = refused(capsys, *arguments)
    assert "'mine'" in message and "user_inter_num_interval [5,inf)" in message


# What is understood


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ([], {}),
        (["--epochs=5"], {"epochs": 5}),
        (["--epochs", "5"], {"epochs": 5}),
        (["--epochs", "5", "--seed=1", "--topk", "[5, 10]"], {"epochs": 5, "seed": 1, "topk": [5, 10]}),
        (["--learning_rate", "1e-3"], {"learning_rate": 0.001}),
        (["--offset_scale", "-1"], {"offset_scale": -1}),
        (["--data_path=a=b"], {"data_path": "a=b"}),
        (["--sampling_steps="], {"sampling_steps": None}),
        (["--sampling_steps", ""], {"sampling_steps": None}),
        (["--gpu_id=0"], {"gpu_id": "0"}),
    ],
)
def test_parse_parameters(arguments: list[str], parameters: dict[str, Any]) -> None:
    before = arguments[:]
    assert parse_parameters(arguments) == parameters
    assert arguments == before


@pytest.mark.parametrize(
    ("arguments", "thing"),
    [(["5"], "'5'"), (["-x=5"], "'-x=5'"), (["--"], "'--'"), (["--a=1", "--a=1"], "'--a'"), (["--a"], "'--a'")],
)
def test_parse_parameters_refuses(arguments: list[str], thing: str) -> None:
    with pytest.raises(UserError, match=re.escape(thing)):
        parse_parameters(arguments)


def test_run_gets_what_was_given(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model=DiffuRec", "--dataset", "mine", "--config_files", "a.yaml b.yaml,c.yaml", "--experiment=x"]
    assert main(["run", *options, "--epochs", "5", "--result_file=r.json", "--topk=[1]"]) == 0
    assert main([]) == 0
    full, bare = calls
    assert full == (
        "run",
        ("DiffuRec", "mine"),
        {
            "config_files": ["a.yaml", "b.yaml", "c.yaml"],
            "experiment": "x",
            "result_file": "r.json",
            "resume": False,
            "epochs": 5,
            "topk": [1],
        },
    )
    assert bare[1] == (None, None)  # a file may say them
    untold = {"config_files": [], "experiment": "first_run", "result_file": None, "resume": False}
    assert bare[2] == untold
    out, err = capsys.readouterr()
    assert out == f"{format_result(RESULT)}\n" * 2 and "HR@10" in out and err == ""


@pytest.mark.parametrize("named", ["--model=SASRec", "--dataset=ml-1m", "--config_files=a.yaml", "--experiment=x"])
def test_the_recipe_of_a_first_run_is_for_runs_that_name_nothing(named: str, calls: list) -> None:
    assert main([named]) == main(["--epochs=2"]) == 0
    assert [call[2]["experiment"] for call in calls] == ["x" if named == "--experiment=x" else None, "first_run"]


def test_evaluate_gets_what_was_given(calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "a.pth", "--sampling_steps", "1", "--result_file=r.json"]) == 0
    parameters = {"result_file": "r.json", "sampling_steps": 1}
    assert calls == [("evaluate", ("a.pth",), parameters)]
    assert main(["evaluate", "a.pth", "b.pth", "c.pth", "--sampling_steps=1", "--result_file=r.json"]) == 0
    assert calls[1:] == [("evaluate", ("a.pth", "b.pth", "c.pth"), parameters)]


@pytest.mark.parametrize("given", [["--topk=[5, 10]"], ["--topk", "[5, 10]"]])
@pytest.mark.parametrize("command", PARSERS)
def test_a_value_may_have_spaces_in_every_command(command: str, given: list[str]) -> None:
    """``argparse`` takes an argument with a space for a file."""
    needed = {"tune": ["--params_file=x"], "recommend": ["a.pth", "--output=x"], "prepare": ["a.csv"]}
    needed |= {name: ["a.pth"] for name in ("evaluate", "audit", "export", "serve")} | {
        "similar": ["a.pth", "--items=1"]
    }
    options, parameters = parse(command, [*given, *needed.get(command, [])])
    assert parameters == {"topk": [5, 10]}
    assert getattr(options, "checkpoints", ["a.pth"]) == ["a.pth"]


def test_arguments_come_from_the_process_by_default(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recbole-diffurec", "--dataset=mine"])
    assert main() == 0
    assert calls[0][1] == (None, "mine")


def test_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupt)
    assert main([]) == 130
    assert capsys.readouterr() == ("", "recbole-diffurec: interrupted\n")


def test_fault_of_the_program_is_not_passed_off_as_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main([])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["evaluate", "--model", "--config_files", "--experiment", "--NAME=VALUE", "docs/parameters.md"]),
        (["run", "-h"], ["evaluate", "--list_models", "--result_file"]),
        (["evaluate", "--help"], ["CHECKPOINT", "--result_file", "--NAME=VALUE"]),
        (["--version"], [f"recbole-diffurec {__version__}"]),
    ],
)
def test_help(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capsys.readouterr()
    assert not left.value.code and err == ""
    assert [word for word in words if word not in out] == []


def test_every_name_in_the_help_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    named = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    options = {"model", "dataset", "config_files", "experiment", "result_file", "list_models", "version", "help"}
    options |= {"resume", "nproc", "world_size", "group_offset", "ip", "port", "rendezvous_minutes"}
    options |= {"list_experiments", "list_parameters"}
    options |= {"user", "item", "time", "rating", "min_rating", "items", "title", "separator", "name", "overwrite"}
    of_models = [name for model in spec.names() for name in spec.find(model).rules]
    assert named - options - {"NAME"} <= {*RULES, *of_models}
    assert named >= options


def test_list_models(workdir: Path, calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list_models"]) == 0
    out, err = capsys.readouterr()
    kinds = {part.split(":")[0]: part for part in out.strip().split("\n\n")}
    listed = {kind: [line.split()[0] for line in part.splitlines()[1:]] for kind, part in kinds.items()}
    assert listed["diffusion"][:2] == ["DiffuRec", "DiffuRecSys"] and "V1" in listed["diffusion"]
    assert "SASRec" in listed["sequential, of RecBole"] and "BPR" in listed["general, of RecBole"]
    assert "Self-Attentive Sequential Recommendation, ICDM 2018" in kinds["sequential, of RecBole"]
    assert sorted(known_models()) == sorted(
        {name for names in listed.values() for name in names} - spec.variants().keys()
    )
    assert all(len(line.split()) > 1 for part in kinds.values() for line in part.splitlines()[1:]), "what each is"
    assert err == "" and calls == [] and files() == []


def test_list_experiments(workdir: Path, calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list_experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines if not line.startswith(" " * 3)}
    folder = ROOT / "properties" / "experiment"
    assert named == {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    assert calls == [] and files() == []


@pytest.mark.parametrize("model", ["DiffuRec", "DiffuRecSys", "V1", "SASRec", ""])
def test_list_parameters(model: str, workdir: Path, calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    """Each once, with the default that counts: a model's own before that of every model, and this before RecBole's."""
    assert main(["--list_parameters", model] if model else ["--list_parameters"]) == 0
    out = capsys.readouterr().out
    names = re.findall(r"^  (\w+)", out, re.MULTILINE)
    assert len(names) == len(set(names)) and {"seed", "epochs", "topk", "clip_grad_norm"} <= set(names)
    if model:
        known = "DiffuRecSys" if model == "V1" else model
        own = set(spec.find(known).rules if spec.find(known) else ["n_layers", "loss_type"])
        assert own - set(RULES) <= set(names) and set(names) <= known_parameters(known)
    hidden_act = {"DiffuRec": "gelu", "DiffuRecSys": "relu", "V1": "relu", "SASRec": "'gelu'"}
    if model:
        assert re.search(rf"^  hidden_act +{hidden_act[model]}  \(str\) \w", out, re.MULTILINE)
    assert calls == [] and files() == []


def test_parameters_of_no_model(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'DifuRec'" in refused(capsys, "--list_parameters=DifuRec")


def test_help_has_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    groups = ["model and data:", "settings:", "training:", "a table of your own:", "several processes:"]
    assert [out.index(group) for group in groups] == sorted(out.index(group) for group in groups)


@pytest.mark.parametrize("entry", [[str(ROOT / "run_recbole_diffurec.py")], ["-m", "recbole_diffurec"]])
def test_script_exits_with_the_code_of_main(entry: list[str], workdir: Path) -> None:
    """The whole way once: RecBole's style of entry and the package's own, each in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *entry, "--epochs=0", "--result_file=result.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "recbole-diffurec: epochs must be an integer of at least 1, got 0\n"
    assert files() == []


def test_messages_of_a_run_go_to_standard_error(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk(*_: Any, **__: Any) -> dict[str, Any]:
        logging.getLogger("recbole_diffurec").info("943 users")
        return RESULT

    monkeypatch.setattr(run, "run", talk)
    assert main([]) == main([]) == 0
    out, err = capsys.readouterr()
    assert err == "943 users\n" * 2, "one handler, however often main is called"
    assert "943" not in out


@pytest.mark.parametrize(
    ("given", "said"), [({"gpu_id": "0"}, True), ({"gpu_id": 1}, True), ({"gpu_id": ""}, False), ({}, False)]
)
def test_a_gpu_that_is_not_there_is_said(
    given: dict[str, Any], said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    once.cache_clear()
    with caplog.at_level("WARNING"):
        say_of_gpus(given)
        say_of_gpus({**given, "use_gpu": False})
    assert caplog.text.count("the CPU is used") == said and (not said or f"gpu_id is {given['gpu_id']}," in caplog.text)


def test_gpus_that_one_process_does_not_use_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    once.cache_clear()
    say_of_gpus({"gpu_id": "0"})
    assert not caplog.text
    say_of_gpus({"gpu_id": "1,3"})
    assert "gpu_id names the GPUs 1, 3, and one process uses GPU 1" in caplog.text and "--nproc=2" in caplog.text
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    once.cache_clear()
    caplog.clear()
    say_of_gpus({"gpu_id": "1,3"})
    assert not caplog.text


def test_the_first_lines_of_a_run_tell_device_precision_and_size() -> None:
    network = torch.nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    config = {"model": "DiffuRec", "device": torch.device("cpu"), "enable_amp": True}
    told = describe_network(config, network)
    assert told.startswith("DiffuRec: 6 parameters in float32, products in bfloat16, on cpu (")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_of_a_machine_tells_of_a_mistake_and_the_others_let_it(
    rank: int, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever ends first has the others ended, which could be the one that was about to tell."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 29500}
    for name, value in {**places, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    waited: list[tuple[float, str]] = []
    monkeypatch.setattr("recbole_diffurec.cli.time.sleep", lambda s: waited.append((s, capsys.readouterr().err)))
    assert main(["--learning_rat=1"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"recbole-diffurec: {'process 1: ' * rank}unknown parameter 'learning_rat'")
    assert told.count("\n") == 1 and waited == [(30, "")] * rank

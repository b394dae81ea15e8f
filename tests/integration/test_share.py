"""Models given to others: the file works as the checkpoint does, the card says what was measured, the Hub has both."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
import requests
import torch
import yaml
from conftest import ROOT

from recbole_diffurec import Recommender, UserError, cli, evaluate
from recbole_diffurec.cli.parsers import parse
from recbole_diffurec.config.rules import NOT_IN_RESULT
from recbole_diffurec.experiments.audit import audit
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.inference.export import export
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.runtime.shared import content, open_model

pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

HISTORIES = [["50", "172", "1"], ["1"], ["unknown"], ["7", "50", "181", "7", "100", "98", "56", "12", "13"]]


@pytest.fixture(scope="module")
def shared(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained models as files to share, in a folder of their own."""
    folder = tmp_path_factory.mktemp("shared")
    return {
        name: Path(export(path, folder / f"{name}.safetensors", "safetensors")["output"])
        for name, path in trained.items()
    }


@pytest.fixture(scope="module")
def measured(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of results of the model DiffuRec, and what is in them."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tested = evaluate(trained["DiffuRec"], result_file="test.json", show_progress=False)
        audited = audit(trained["DiffuRec"], users=20, samples=2, output_dir="audit").result
        evaluate(trained["DiffuRec"], result_file="masked.json", show_progress=False, mask_seen=True)
        evaluate(trained["SASRec"], result_file="other.json", show_progress=False)
    return {"folder": folder, "test": tested["test_result"], "audit": audited}


def header(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return open_model(path)["state_dict"]


@pytest.mark.parametrize("model", ["DiffuRec", "DiffuRecSys", "CL4SRec", "SASRec"])
def test_a_shared_model_recommends_what_its_checkpoint_does(model, trained, shared):
    ours, theirs = Recommender.load(trained[model]), Recommender.load(shared[model])
    for given in ({"k": 7}, {"k": 5, "exclude_seen": True, "columns": ["title"]}, {"candidates": ["1", "2", "50"]}):
        assert theirs.recommend(HISTORIES, **given).equals(ours.recommend(HISTORIES, **given))
    assert theirs.similar(["50", "1"]).equals(ours.similar(["50", "1"]))
    assert theirs.config.key() == ours.config.key()


@pytest.mark.parametrize("command", [["recommend", "--k=5"], ["similar", "--items=50,1"]])
def test_commands_write_the_same_from_both(command, trained, shared, workdir):
    name, *options = command
    for output, path in (("a.csv", trained["DiffuRec"]), ("b.csv", shared["DiffuRec"])):
        if name == "recommend":
            Path("in.jsonl").write_text('{"user_id": "u", "items": ["50", "172"]}\n')
            assert cli.main([name, str(path), f"--output={output}", "--input=in.jsonl", *options]) == 0
        else:
            assert cli.main([name, str(path), f"--output={output}", *options]) == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes() != b""


def test_it_is_tested_where_the_data_is_and_refused_elsewhere(shared, measured, workdir):
    assert evaluate(shared["DiffuRec"], show_progress=False)["test_result"] == measured["test"]
    with pytest.raises(UserError, match="is not the one that checkpoint"):
        evaluate(shared["DiffuRec"], user_inter_num_interval="[5,40]", show_progress=False)
    about = json.loads(header(shared["DiffuRec"])["recbole_diffurec"])
    about["data"]["digests"]["set of user ids"] = "of others"
    Path("x.safetensors").write_bytes(content(about, weights_of(shared["DiffuRec"])))
    with pytest.raises(UserError, match="another set of user ids"):
        evaluate("x.safetensors", show_progress=False)


def test_it_names_no_user_and_no_folder(trained, shared):
    users = checkpoint.open_run(trained["DiffuRec"])["id_tokens"]["users"][1:]
    about = json.loads(header(shared["DiffuRec"])["recbole_diffurec"])
    assert not about["config"].keys() & NOT_IN_RESULT
    assert about["n_users"] == len(users) + 1 and "users" not in about
    assert str(trained["DiffuRec"].parent) not in json.dumps(about)


def test_what_is_changed_at_the_export_is_kept(trained, workdir):
    export(trained["DiffuRec"], "few.safetensors", "safetensors", sampling_steps=2)
    again = Recommender.load("few.safetensors")
    assert again.network.sampling_steps == 2
    again.with_sampling_steps(3).save_pretrained("three")
    assert Recommender.from_pretrained("three").network.sampling_steps == 3
    assert Recommender.load("few.safetensors", sampling_steps=5).network.sampling_steps == 5


def test_a_shared_model_is_exported_like_a_checkpoint(trained, shared, workdir):
    for name, path in (("a", trained["CL4SRec"]), ("b", shared["CL4SRec"])):
        export(path, f"{name}.npy", "npy")
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()
    with pytest.raises(UserError, match="is read as well"):
        export(shared["CL4SRec"], format="safetensors")


def test_a_hostile_file_is_one_sentence_for_every_command(shared, workdir, capsys):
    content = bytearray(shared["DiffuRec"].read_bytes())
    content[-1] ^= 1
    Path("x.safetensors").write_bytes(content)
    for command in (
        ["evaluate"], ["recommend", "--output=o.csv"], ["similar", "--items=1"], ["export", "--format=npy"],
        ["serve", "--port=0"], ["audit"],
    ):  # fmt: skip
        assert cli.main([command[0], "x.safetensors", *command[1:]]) == 2
        said = capsys.readouterr().err
        assert "its digest is not that of its content" in said and said.count("\n") == 1, command


def test_weights_of_another_shape_are_refused(shared, workdir):
    own = weights_of(shared["DiffuRec"])
    about = json.loads(header(shared["DiffuRec"])["recbole_diffurec"])
    for weights, problem in (
        ({**own, "item_embedding.weight": torch.ones(3, 16)}, "do not fit its own configuration"),
        ({name: value * float("nan") for name, value in own.items()}, "no finite numbers"),
        ({}, "do not fit its own configuration"),
    ):
        Path("x.safetensors").write_bytes(content(about, weights))
        with pytest.raises(UserError, match=problem):
            Recommender.load("x.safetensors")
    large = {**about, "config": {**about["config"], "hidden_size": 2**20}}
    Path("x.safetensors").write_bytes(content(large, own))
    with pytest.raises(UserError, match="its weights are smaller, so that its configuration is not theirs"):
        Recommender.load("x.safetensors")


def test_the_container_s_command_serves_it(shared, workdir):
    """What the Dockerfile starts, on a free port, with a model that is mounted elsewhere."""
    pytest.importorskip("fastapi", reason="the service needs fastapi")
    (given,) = re.findall(r"^CMD (\[.+\])$", (ROOT / "Dockerfile").read_text(), re.M)
    replaced = {"/model/model.safetensors": str(shared["DiffuRec"]), "--port=8000": "--port=0"}
    command = [sys.executable, "-m", "recbole_diffurec", *(replaced.pop(word, word) for word in json.loads(given))]
    assert not replaced
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{process.stdout.readline().split()[1].rstrip('/').rpartition(':')[2]}"
        assert requests.get(f"{address}/healthz", timeout=30).ok
        asked = {"histories": [HISTORIES[0]], "k": 5}
        (found,) = requests.post(f"{address}/recommend", json=asked, timeout=30).json()["lists"]
        process.send_signal(signal.SIGTERM)
    expected = Recommender.load(shared["DiffuRec"]).recommend(HISTORIES[:1], k=5)
    assert [item["item_id"] for item in found["items"]] == expected["item_id"].tolist()
    assert process.returncode in (0, -signal.SIGTERM)


# The card


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def numbers(cells: list[str]) -> list[str]:
    return [cell for cell in cells if cell.replace(".", "").isdecimal() and "." in cell]


def test_every_figure_of_a_card_was_measured(trained, measured):
    folder = measured["folder"]
    card = Recommender.load(trained["DiffuRec"]).card([folder / "test.json", folder / "audit" / "audit.json"], "a/b")
    valid = checkpoint.open_run(trained["DiffuRec"])["valid_result"]
    known = {f"{value:.4f}" for value in [*valid.values(), *measured["test"].values()]}
    known |= {f"{line[key]:.4f}" for line in measured["audit"]["lines"] if "hit" in line for key in ("hit", "ndcg")}
    shown = numbers([cell.strip() for line in card.splitlines() if line.startswith("| ") for cell in line.split("|")])
    assert len(shown) > 12 and set(shown) <= known
    assert measured["audit"]["verdict"]["sentence"] in card
    assert 'Recommender.from_pretrained("a/b")' in card
    for result, expected in zip(front_matter(card)["model-index"][0]["results"], (measured["test"], valid)):
        assert {metric["type"]: metric["value"] for metric in result["metrics"]} == expected


def test_a_card_without_results_has_no_figures_of_a_test(shared):
    card = Path(f"{shared['SASRec']}.md").read_text()
    assert "| | validation |" in card and "| test" not in card
    assert [result["dataset"]["split"] for result in front_matter(card)["model-index"][0]["results"]] == ["validation"]
    assert 'Recommender.load("SASRec.safetensors")' in card


def test_the_command_of_a_card_is_of_the_same_run(trained, shared):
    for name, path in trained.items():
        card = Path(f"{shared[name]}.md").read_text()
        (line,) = [line for line in card.splitlines() if line.startswith("recbole-diffurec run")]
        options, parameters = parse("run", shlex.split(line)[2:])
        state = checkpoint.open_run(path)
        given = RunConfig(state["model"], state["dataset"], state["config"])
        assert RunConfig(options.model, options.dataset, parameters).key() == given.key()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("masked.json", "is not of this model (other mask_seen)"),
        ("other.json", "is not of this model (SASRec on ml-100k"),
        ("none.json", "cannot be read"),
        ("list.json", "is no result"),
        ("deep.json", "is no result"),
        ("empty.json", "neither figures of a test nor an audit"),
        ("epoch.json", "epoch 8"),
        ("items.json", "9 items"),
    ],
)
def test_results_of_others_are_refused(name, problem, trained, measured, workdir):
    folder: Path = measured["folder"]
    good = json.loads((folder / "test.json").read_text())
    (folder / "list.json").write_text("[1]")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "empty.json").write_text(json.dumps({key: good[key] for key in good if key != "test_result"}))
    (folder / "epoch.json").write_text(json.dumps({**good, "best_epoch": 7}))
    (folder / "items.json").write_text(json.dumps({**good, "n_items": 9}))
    with pytest.raises(UserError) as caught:
        export(trained["DiffuRec"], "x.safetensors", "safetensors", results=[folder / name])
    assert problem in str(caught.value) and not list(Path().iterdir())


# The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    with hub_server.serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield found


def test_there_and_back_by_the_hub(hub, trained, measured, workdir, capsys):
    arguments = ["export", str(trained["DiffuRec"]), "--format=safetensors", "--output=m.safetensors"]
    given = f"--results={measured['folder'] / 'test.json'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_of_nobody")
        assert cli.main([*arguments, given, "--push_to=shop/movies"]) == 0
    assert f"commit      {hub.address}/shop/movies/commit/" in capsys.readouterr().out
    assert hub.files["shop/movies"].keys() == {"model.safetensors", "README.md", "config.json"}
    assert hub.files["shop/movies"]["model.safetensors"] == Path("m.safetensors").read_bytes()
    assert 'from_pretrained("shop/movies")' in hub.files["shop/movies"]["README.md"].decode()
    found = Recommender.from_pretrained("shop/movies", cache_dir="cache", sampling_steps=2)
    expected = Recommender.load(trained["DiffuRec"], sampling_steps=2)
    assert found.recommend(HISTORIES).equals(expected.recommend(HISTORIES))
    # What stands in the configuration beside it has no say.
    hub.files["shop/movies"]["config.json"] = b'{"folder": "/etc", "sampling_steps": 3}'
    assert Recommender.from_pretrained("shop/movies", cache_dir="other").network.sampling_steps == 32
    again = Recommender.from_pretrained("shop/movies", cache_dir="cache", local_files_only=True)
    assert again.recommend(HISTORIES).equals(Recommender.load(trained["DiffuRec"]).recommend(HISTORIES))


def test_its_own_library_understands_the_card(trained, measured):
    hf = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    card = hf.ModelCard(Recommender.load(trained["DiffuRec"]).card([measured["folder"] / "test.json"]))
    assert card.data.library_name == "recbole-diffurec" and "DiffuRec" in card.data.tags
    of_test = [result for result in card.data.eval_results if result.dataset_split == "test"]
    values = {result.metric_type: result.metric_value for result in of_test}
    assert values == measured["test"]


def test_what_the_hub_refuses_is_one_sentence(hub, trained, workdir):
    recommender = Recommender.load(trained["SASRec"])
    hub.files["shop/empty"] = {}
    hub.files["shop/broken"] = {"config.json": b"[", "model.safetensors": b"x"}
    hub.files["shop/hostile"] = {"model.safetensors": b"\xff" * 100}
    for name, problem in {
        "shop/none": "there is no such model, or it is private",
        "shop/empty": "it has no model.safetensors",
        "shop/broken": "answers otherwise than it should",
        "shop/hostile": "is damaged, cut short or no safetensors file",
        "no name at all": "is no folder and no name of a model on the Hub",
        "bert": "give ORGANISATION/NAME",
    }.items():
        with pytest.raises(UserError) as caught:
            Recommender.from_pretrained(name, cache_dir="cache")
        assert problem in str(caught.value), name
    with pytest.raises(UserError, match="unexpected keyword argument 'colour'"):
        recommender.push_to_hub("shop/x", colour="blue")
    with pytest.raises(UserError, match="give ORGANISATION/NAME"):
        recommender.push_to_hub("x")
    Path("file").write_text("")
    with pytest.raises(UserError, match=r"is a file: open it with Recommender\.load"):
        Recommender.from_pretrained("file")


def test_a_hub_that_is_away(hub, workdir):
    hub_constants = pytest.importorskip("huggingface_hub.constants")
    with pytest.MonkeyPatch.context() as patch:
        away = "http://127.0.0.1:9"
        patch.setattr(hub_constants, "ENDPOINT", away)
        patch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", away + "/{repo_id}/resolve/{revision}/{filename}")
        with pytest.raises(UserError, match=r"model 'shop/x': .*: check the connection"):
            Recommender.from_pretrained("shop/x", cache_dir="cache")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=onnx", "--push_to=a/b"], "--push_to shares a model"),
        (["--format=safetensors", "--push_to=a"], "give ORGANISATION/NAME"),
        (["--format=npy", "--results=r.json"], "--results are for a model's card"),
    ],
)
def test_options_of_sharing_with_other_formats(arguments, message, trained, workdir, capsys):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    assert cli.main(["export", str(trained["DiffuRec"]), *arguments]) == 2
    assert message in capsys.readouterr().err and not list(Path().iterdir())


def test_the_hub_s_library_is_asked_for_first(trained, workdir, monkeypatch):
    monkeypatch.delitem(sys.modules, "recbole_diffurec.inference.hub", raising=False)
    monkeypatch.delattr("recbole_diffurec.inference.hub", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"huggingface_hub, which is not installed: pip install 'recbole-diffurec\[hub\]'"
    ):
        export(trained["DiffuRec"], "x.safetensors", "safetensors", push_to="a/b")
    assert not list(Path().iterdir())
    Recommender.load(trained["SASRec"]).save_pretrained("folder")
    assert len(Recommender.from_pretrained("folder").recommend(HISTORIES, k=3)), "a folder needs no Hub"

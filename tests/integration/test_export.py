"""A trained model as a file for other runtimes: the same scores there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_diffurec import Recommender, UserError, cli
from recbole_diffurec.inference.export import export

HISTORIES = [["50", "172", "1"], ["1"], ["7", "50", "181", "7", "100", "98", "56", "12"]]  # the last as long as may be


def numbers(items: list[str], histories: list[list[str]]) -> torch.Tensor:
    """As a user of the exported file would do it: ids to places in ``items``, zeros after the last."""
    length = max(map(len, histories))
    return torch.tensor([[items.index(i) for i in h] + [0] * (length - len(h)) for h in histories])


@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("DiffuRecSys", {"sampling_steps": 3}),
        ("DiffuRec", {"sampling_steps": 2}),
        ("DiffuRec", {"reverse_start": "last_item"}),
        ("CL4SRec", {}),
    ],
)
def test_program_gives_our_scores(trained, model, parameters, format, workdir):
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs onnxruntime")
    result = export(trained[model], f"model.{format}", format, **parameters)
    assert result["difference"] < 1e-5
    recommender = Recommender.load(trained[model], **parameters)
    items = json.loads(Path(result["description"]).read_text())["items"]
    inputs = recommender.network.program().draws(numbers(items, HISTORIES))
    if format == "onnx":
        session = onnxruntime.InferenceSession(result["output"], providers=["CPUExecutionProvider"])
        (scores,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    else:
        scores = torch.export.load(result["output"]).module()(**inputs).detach().numpy()
    table = recommender.recommend(HISTORIES, k=7)
    places = np.argsort(-scores, axis=1)[:, :7]
    assert [items[i] for i in places.flatten()] == table["item_id"].tolist()
    np.testing.assert_allclose(
        np.take_along_axis(scores, places, axis=1).flatten(), table["score"].astype(float), rtol=1e-4
    )
    assert np.isneginf(scores[:, 0]).all()


def test_safetensors_hold_the_weights(trained, workdir):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    result = export(trained["SASRec"], "sas.safetensors", "safetensors")
    weights = safetensors.load_file(result["output"])
    expected = Recommender.load(trained["SASRec"]).network.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_index_finds_what_full_scoring_finds(trained, workdir, capsys):
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    assert cli.main(["export", str(trained["DiffuRecSys"]), "--format=faiss", "--output=items.faiss"]) == 0
    recall = float(capsys.readouterr().out.split("recall")[1].split()[0])
    assert recall > 0.95
    recommender = Recommender.load(trained["DiffuRecSys"])
    _, found = faiss.read_index("items.faiss").search(recommender.vectors(HISTORIES), 5)
    items = json.loads(Path("items.faiss.json").read_text())["items"]
    expected = recommender.recommend(HISTORIES, k=5)["item_id"].tolist()
    assert [items[place + 1] for place in found.flatten()] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=gguf"], "format must be one of onnx, torch, safetensors, faiss, npy, got 'gguf'"),
        (["--format=torch", "--input=x.csv"], "--input serves to measure an index"),
        (["--format=torch", "--sampling_steps=99"], "sampling_steps"),
        (["--format=torch", "--ensemble_seeds=[1,2]"], "ensemble_seeds cannot be exported"),
        (["--format=torch", "--checkpoint_file=x"], "unknown parameter 'checkpoint_file'"),
        (["--format=safetensors", "--output=/proc/x"], "cannot be written"),
    ],
)
def test_mistakes(trained, arguments, message, workdir, capsys):
    if "safetensors" in arguments[0]:
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    assert cli.main(["export", str(trained["DiffuRecSys"]), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(Path().iterdir())


def test_a_checkpoint_is_not_overwritten(trained, capsys):
    path = trained["DiffuRecSys"]
    before = path.read_bytes()
    assert cli.main(["export", str(path), "--format=torch", f"--output={path}"]) == 2
    assert "is read as well" in capsys.readouterr().err and path.read_bytes() == before


def test_models_of_recbole_have_no_program(trained):
    with pytest.raises(UserError, match="SASRec' cannot be exported as onnx"):
        export(trained["SASRec"])


def test_a_missing_library_is_named(trained, monkeypatch, workdir):
    for module in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match="needs safetensors, which is not installed: pip install"):
        export(trained["SASRec"], "x.safetensors", "safetensors")

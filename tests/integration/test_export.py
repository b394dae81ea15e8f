"""A trained model as a file for other runtimes: the same scores there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from recbole_diffurec import Recommender, UserError, cli
from recbole_diffurec.inference.export import export
from recbole_diffurec.models.base import Program
from recbole_diffurec.models.sequential import HistoryProgram, SequentialModel

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


# Noise made within, and queries


@pytest.fixture(scope="module")
def seeded(trained, tmp_path_factory):
    """A program in ONNX that makes its noise itself, as a function of histories and a seed; and its description."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs onnxruntime")
    path = tmp_path_factory.mktemp("seeded") / "model.onnx"
    result = export(trained["DiffuRecSys"], path, noise="seed", sampling_steps=2)
    assert result["difference"] < 1e-5
    session = onnxruntime.InferenceSession(result["output"], providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["item_seq", "seed"]

    def run(item_seq: torch.Tensor, seed: int) -> np.ndarray:
        return session.run(None, {"item_seq": item_seq.numpy(), "seed": np.array(seed)})[0]

    return run, json.loads(Path(result["description"]).read_text())


@pytest.mark.parametrize("seed", [2020, 0, 1, 2**32 - 1])
def test_a_program_with_a_seed_ranks_as_the_library_with_that_seed(seed, seeded, trained):
    run, about = seeded
    scores = run(numbers(about["items"], HISTORIES), seed)
    recommender = Recommender.load(trained["DiffuRecSys"], noise_seed=seed, sampling_steps=2)
    table = recommender.recommend(HISTORIES, k=20)
    places = np.argsort(-scores, axis=1)[:, :20]
    assert [about["items"][i] for i in places.flatten()] == table["item_id"].tolist()
    given = np.take_along_axis(scores, places, axis=1).flatten()
    np.testing.assert_allclose(given, table["score"].astype(float), atol=2e-6)
    other = run(numbers(about["items"], HISTORIES), seed + 1)
    assert np.abs(other[:, 1:] - scores[:, 1:]).max() > 2e-5, "the seed matters"
    assert about["seed_of_the_model"] == 2020 and set(about["inputs"]) == {"item_seq", "seed"}


def test_noise_made_within_is_distributed_as_normal_noise_that_is_given(seeded, trained):
    """The score that depends on it most, by many seeds, against PyTorch's own draws: one distribution."""
    run, about = seeded
    item_seq = numbers(about["items"], HISTORIES[:1])
    program = Recommender.load(trained["DiffuRecSys"], sampling_steps=2).network.program()
    usual, generator, n = program.draws(item_seq), torch.Generator().manual_seed(1), 600
    mean, std = program.network.denoiser.token_noise
    given = []
    with torch.no_grad():
        for _ in range(n):
            noise = torch.randn(usual["noise"].shape, generator=generator)
            uncertainty = mean + std * torch.randn(usual["uncertainty"].shape, generator=generator)
            given.append(program(item_seq, noise, uncertainty)[0].numpy())
    made, given = np.stack([run(item_seq, seed)[0] for seed in range(n)])[:, 1:], np.stack(given)[:, 1:]
    item = given.std(axis=0).argmax()
    assert len(np.unique(made[:, item])) > n / 2, "another seed is other noise"
    assert stats.ks_2samp(made[:, item], given[:, item]).pvalue > 0.01
    centre = given[:, item].mean()
    for other in (centre + 1.3 * (made[:, item] - centre), np.full(n, centre)):  # what the test is to notice
        assert stats.ks_2samp(other, given[:, item]).pvalue < 0.01


@pytest.mark.parametrize(("model", "noise"), [("CL4SRec", "input"), ("DiffuRecSys", "seed")])
def test_a_query_finds_in_an_index_what_the_scores_rank(model, noise, trained, workdir):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs onnxruntime")
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    parameters = {"sampling_steps": 1} if model == "DiffuRecSys" else {}
    result = export(trained[model], "query.onnx", returns="query", noise=noise, **parameters)
    export(trained[model], "items.npy", "npy")
    about = json.loads(Path(result["description"]).read_text())
    assert list(about["outputs"]) == ["query"] and "not_in_query" not in about
    index = faiss.IndexFlatIP(16)
    index.add(np.load("items.npy"))
    inputs = {"item_seq": numbers(about["items"], HISTORIES).numpy()}
    if noise == "seed":
        inputs["seed"] = np.array(about["seed_of_the_model"])
    (query,) = onnxruntime.InferenceSession("query.onnx").run(["query"], inputs)
    _, found = index.search(query, 9)
    expected = Recommender.load(trained[model], **parameters).recommend(HISTORIES, k=9)["item_id"].tolist()
    assert [about["items"][place + 1] for place in found.flatten()] == expected


def test_what_a_query_leaves_out_is_said(trained, workdir):
    result = export(trained["DiffuRec"], "query.pt2", "torch", returns="query", noise="seed", sampling_steps=1)
    assert "repeat_bias" in json.loads(Path(result["description"]).read_text())["not_in_query"]
    recommender = Recommender.load(trained["DiffuRec"], sampling_steps=1)
    item_seq, seed = numbers(list(recommender.items), HISTORIES), torch.tensor(2020)
    query = torch.export.load("query.pt2").module()(item_seq=item_seq, seed=seed).detach().numpy()
    np.testing.assert_allclose(query, recommender.vectors(HISTORIES), rtol=1e-4, atol=1e-6)


class OwnProgram(HistoryProgram):
    """A program of another package, which says nothing of queries and seeds."""

    inputs = ("item_seq", "noise")
    for_queries = Program.for_queries


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("CL4SRec", {"noise": "seed"}, "its inference draws nothing: leave out --noise"),
        ("SASRec", {"returns": "query"}, "SASRec' cannot be exported as torch"),
        ("own", {"returns": "query"}, "OwnProgram does not say what its queries are"),
        ("own", {"noise": "seed"}, "OwnProgram does not say how it draws"),
    ],
)
def test_programs_that_cannot(model, options, message, trained, workdir, monkeypatch):
    if model == "own":
        monkeypatch.setattr(SequentialModel, "program", lambda self: OwnProgram(self))
    with pytest.raises(UserError, match=message):
        export(trained["CL4SRec" if model == "own" else model], "x.pt2", "torch", **options)
    assert not list(Path().iterdir())


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
        (["--format=torch", "--returns=vectors"], "returns must be scores or query, got 'vectors'"),
        (["--format=torch", "--noise=none"], "noise must be input or seed, got 'none'"),
        (["--format=faiss", "--returns=query"], "--returns says what a program is like: leave it out"),
        (["--format=npy", "--noise=seed"], "--noise says what a program is like: leave it out"),
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

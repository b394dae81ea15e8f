"""Every listed model trains on small data, is tested again, recommends or says why not, and resumes to the same end."""

from __future__ import annotations

import logging
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.utils import ModelType

from recbole_diffurec import Recommender, UserError, evaluate, run
from recbole_diffurec.host import catalogue
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import dataset_class
from recbole_diffurec.models import spec as register
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.prepare import DatasetCache
from recbole_diffurec.training.trainer import PluginTrainer

N_USERS, N_ITEMS = 24, 20

# RecBole's models that rank items for a history alone; its others refuse.
RECOMMENDING = {
    "BERT4Rec", "CORE", "GCSAN", "GRU4Rec", "LightSANs", "NARM", "NextItNet", "RepeatNet", "SASRec", "SINE", "SRGNN",
    "STAMP",
}  # fmt: skip
# Models without a single place to go on from: --resume starts them afresh.
STARTING_AFRESH = {"CFKG", "CKE", "KGCN", "KGIN", "KGNNLS", "KTUP", "MCCLK", "MKR", "RecVAE", "RippleNet"}

INTER = ["user_id", "item_id", "timestamp"]
GRAPH = {"inter": INTER, "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
FEATURES = {"inter": INTER, "item": ["item_id", "brand", "class"]}
VECTORS = {
    "load_col": {**GRAPH, "ent": ["ent_id", "ent_emb"], "rel": ["rel_id", "rel_emb"]},
    "additional_feat_suffix": ["ent", "rel"],
    "alias_of_item_id": ["ent_id"],
    "alias_of_relation_id": ["rel_id"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
    "embedding_size": 8,
}
# What a kind of models, or one model, has to be given.
OF_TYPE: dict[ModelType, dict[str, Any]] = {
    ModelType.KNOWLEDGE: {"load_col": GRAPH},
    ModelType.CONTEXT: {
        "load_col": {"inter": [*INTER, "label"], "user": ["user_id", "gender", "age"], "item": FEATURES["item"]}
    },
}
OF_MODEL: dict[str, dict[str, Any]] = {
    **{name: {"load_col": FEATURES, "selected_features": ["class"]} for name in ("FDSA", "GRU4RecF", "SASRecF")},
    **{name: {"load_col": FEATURES} for name in ("DIEN", "DIN")},
    **{name: {"reranker_CAN_NUM": 5} for name in ("GRU4RecCPR", "SASRecCPR")},
    **{name: {"hidden_size": 16, "n_layers": 1, "sampling_steps": 2} for name in ("DiffuRec", "DiffuRecSys")},
    "GRU4RecKG": VECTORS,
    "KSR": {**VECTORS, "kg_embedding_size": 8},
    "NCL": {"num_clusters": 3},
    "RaCT": {"epochs": 1, "pretrain_epochs": 2, "save_step": 1, "metrics_k": 5},
    "S3Rec": {"load_col": FEATURES, "item_attribute": "class", "epochs": 1, "pretrain_epochs": 2, "save_step": 1},
}


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line's handler may have an earlier test's stream, which is closed."""
    monkeypatch.setattr(logging.getLogger("recbole_diffurec"), "handlers", [])


def write(folder: Path, ending: str, header: str, rows: list[tuple]) -> None:
    lines = ["\t".join(header.split()), *("\t".join(map(str, row)) for row in rows)]
    (folder / f"tiny.{ending}").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interactions, users, items, a knowledge graph with its links, and vectors of entities and relations."""
    draw, folder = random.Random(3), tmp_path_factory.mktemp("data") / "tiny"
    folder.mkdir()
    inter = [
        (f"u{user}", f"i{item}", 1, 1_600_000_000 + 1000 * place + user)
        for user in range(N_USERS)
        for place, item in enumerate(draw.sample(range(N_ITEMS), draw.randint(6, 9)))
    ]
    draw.shuffle(inter)
    write(folder, "inter", "user_id:token item_id:token label:float timestamp:float", inter)
    write(folder, "user", "user_id:token gender:token age:float", [(f"u{u}", "mf"[u % 2], u) for u in range(N_USERS)])
    items = [(f"i{i}", f"b{i % 4}", f"c{i % 3} c{i % 5}") for i in range(N_ITEMS)]
    write(folder, "item", "item_id:token brand:token class:token_seq", items)
    write(folder, "link", "item_id:token entity_id:token", [(f"i{i}", f"e{i}") for i in range(N_ITEMS)])
    triples = [(f"e{i}", f"r{n}", f"v{n}{i % (n + 3)}") for i in range(N_ITEMS) for n in range(2)]
    write(folder, "kg", "head_id:token relation_id:token tail_id:token", triples)
    vector = lambda: " ".join(f"{draw.gauss(0, 1):.3f}" for _ in range(8))  # noqa: E731
    write(folder, "ent", "ent_id:token ent_emb:float_seq", [(f"i{i}", vector()) for i in range(N_ITEMS)])
    write(folder, "rel", "rel_id:token rel_emb:float_seq", [(f"r{n}", vector()) for n in range(2)])
    return folder


def parameters(model: str, folder: Path) -> dict[str, Any]:
    common = {
        "model": model, "dataset": folder.name, "data_path": str(folder.parent), "epochs": 2, "train_batch_size": 32,
        "topk": [5], "valid_metric": "NDCG@5", "gpu_id": "", "show_progress": False, "MAX_ITEM_LIST_LENGTH": 8,
        "checkpoint_minutes": 0,
    }  # fmt: skip
    return {**common, **OF_TYPE.get(catalogue.model_class(model).type, {}), **OF_MODEL.get(model, {})}


def figures(result: dict[str, Any]) -> dict[str, Any]:
    history = [{k: v for k, v in epoch.items() if "seconds" not in k} for epoch in result["history"]]
    return {"history": history, **{k: result[k] for k in ("best_epoch", "best_valid_result", "test_result")}}


class Killed(BaseException):
    """As sudden as SIGKILL: nothing of ours catches it."""


def killed_run(monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
    """A run that dies in its last epoch, after a batch of it; at its end where an epoch has one batch alone."""
    between = PluginTrainer.between

    def dying(self: PluginTrainer, epoch_idx: int, epoch: Any) -> None:
        between(self, epoch_idx, epoch)
        if epoch_idx == self.epochs - 1 and epoch.done == 1:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PluginTrainer, "between", dying)
        run(**given)


@pytest.mark.parametrize("model", catalogue.known_models())
def test_every_listed_model(
    model: str, folder: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    given = parameters(model, folder)
    whole = run(**given, checkpoint_dir="whole")
    assert set(whole["test_result"]) == {"hit@5", "ndcg@5"} and whole["n_items"] == N_ITEMS
    assert evaluate(whole["checkpoint"])["test_result"] == whole["test_result"]

    if model in RECOMMENDING or (model in register.names() and "recommend" not in catalogue.find(model).cannot):
        lists = Recommender.load(whole["checkpoint"]).recommend([["i1", "i2"], ["i3"]], k=5)
        assert lists["rank"].tolist() == [1, 2, 3, 4, 5] * 2 and not lists["popular"].any()
    else:
        with pytest.raises(UserError, match=r"reads no histories|cannot recommend"):
            Recommender.load(whole["checkpoint"])

    killed_run(monkeypatch, **given)
    assert bool(list(Path("saved").glob("*.state"))) == (model not in STARTING_AFRESH)
    resumed = run(**given, resume=True)
    assert figures(resumed) == figures(whole)
    weights, expected = (checkpoint.load(result["checkpoint"])["state_dict"] for result in (resumed, whole))
    assert all(torch.equal(values, expected[name]) for name, values in weights.items())
    assert not list(Path("saved").glob("*.state"))
    printed = capfd.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err


def test_models_that_need_other_data_sets_share_none(folder: Path, workdir: Path) -> None:
    """DIEN has negatives in its data; with equal parameters it would get SASRec's."""
    datasets = DatasetCache()
    given = {"load_col": FEATURES, "data_path": str(folder.parent), "show_progress": False, "gpu_id": ""}
    made = [datasets.get(RunConfig(model, "tiny", given)) for model in ("SASRec", "DIEN", "GRU4Rec")]
    assert [type(data).__name__ for data in made] == ["SequenceDataset", "DIENDataset", "SequenceDataset"]
    assert len(datasets._read) == 2, "GRU4Rec's is SASRec's"
    without_times = {**given, "eval_args": {"order": "RO", "split": {"RS": [0.8, 0.1, 0.1]}}}
    orders = [RunConfig("BPR", "tiny", changed).dataset_key() for changed in (given, without_times)]
    assert orders[0] != orders[1], "only one of them is checked for its times"


@pytest.mark.parametrize("model", ["BPR", "SASRec", "DIEN", "FM", "CKE", "GRU4RecKG", "KSR"])
def test_all_that_a_data_set_reads_tells_it_from_others(
    model: str, folder: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    given = parameters(model, folder)
    config = RunConfig(given.pop("model"), given.pop("dataset"), given)
    make, get = dataset_class(config), RunConfig.__getitem__
    monkeypatch.setattr(RunConfig, "__getitem__", lambda self, name: read.add(name) or get(self, name))
    make(config)
    read -= {"model", "dataset", "eval_args", "MODEL_TYPE", "show_progress"}
    monkeypatch.undo()
    key = config.dataset_key()
    for name in read:
        assert config.with_values(**{name: "another"}).dataset_key() != key, name


@pytest.mark.parametrize("model", ["S3Rec", "RaCT"])
def test_the_stages_of_a_model_build_on_each_other(
    model: str, folder: Path, workdir: Path, capfd: pytest.CaptureFixture
) -> None:
    stages = {"S3Rec": ["pretrain", "finetune"], "RaCT": ["actor_pretrain", "critic_pretrain", "finetune"]}[model]
    given, before = parameters(model, folder), {}
    for stage in stages:
        result = run(**given, **before, train_stage=stage, checkpoint_dir=stage)
        assert evaluate(result["checkpoint"])["test_result"] == result["test_result"]
        assert bool(result["best_valid_result"]) == (stage == "finetune")
        before = {"pre_model_path": f"{stage}/{model}-tiny-2.pth"}
    for stage in stages[:-1]:
        shutil.rmtree(stage)
    assert evaluate(result["checkpoint"])["test_result"] == result["test_result"]
    assert "Traceback" not in capfd.readouterr().err  # such as of a log message that has no place for its values


def test_the_last_epoch_of_a_first_stage_is_kept_whatever_save_step_is(folder: Path, workdir: Path) -> None:
    result = run(**{**parameters("RaCT", folder), "save_step": 5})
    assert checkpoint.load(result["checkpoint"])["epoch"] == result["best_epoch"] == 1

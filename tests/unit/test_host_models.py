"""Single models of RecBole after their mends: what they computed wrong, and what stopped them."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_diffurec import UserError, evaluate, run
from recbole_diffurec.host import catalogue, models
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.prepare import PreparedData, build
from recbole_diffurec.training.state import draws_of_its_own

N_USERS, N_ITEMS = 9, 7


@pytest.fixture(autouse=True)
def tiny(workdir: Path) -> None:
    """Nine users with six of seven items each, a number for every user, and a small knowledge graph."""
    Path("tiny").mkdir()

    def write(ending: str, lines: list[str]) -> None:
        Path(f"tiny/tiny.{ending}").write_text("\n".join("\t".join(line.split()) for line in lines) + "\n")

    inter = [f"u{u} i{(u + n) % N_ITEMS} {n} 1" for u in range(N_USERS) for n in range(6)]
    write("inter", ["user_id:token item_id:token timestamp:float label:float", *inter])
    write("user", ["user_id:token age:float", *(f"u{u} {u}" for u in range(N_USERS))])
    write("item", ["item_id:token class:token_seq", *(f"i{i} c{i % 2}" for i in range(N_ITEMS))])
    write("link", ["item_id:token entity_id:token", *(f"i{i} e{i}" for i in range(N_ITEMS))])
    write("kg", ["head_id:token relation_id:token tail_id:token", *(f"e{i} r{i % 2} v{i % 3}" for i in range(N_ITEMS))])


def made(model: str, **parameters: Any) -> tuple[PreparedData, Any, Any]:
    """Prepared data, the model, and its trainer."""
    common = {
        "data_path": ".",
        "topk": [2],
        "valid_metric": "NDCG@2",
        "gpu_id": "",
        "show_progress": False,
        "epochs": 2,
    }
    data = PreparedData(RunConfig(model, "tiny", {**common, **parameters}))
    return data, *build(data.config, dataset_of(data.loaders[0]))


KNOWLEDGE = {
    "load_col": {
        "inter": ["user_id", "item_id", "timestamp"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    }
}


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_pop_counts_every_interaction(size: int) -> None:
    data, network, trainer = made("Pop", train_batch_size=size)
    trainer._train_epoch(data.loaders[0], 0)
    assert network.item_cnt.squeeze(1).tolist() == data.popularity.tolist() and sum(data.popularity) == N_USERS * 4
    assert network.max_cnt.item() == max(data.popularity)


def test_scatter_is_a_mean_and_a_softmax_of_groups() -> None:
    src = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double) * 50
    index = torch.tensor([4, 0, 0, 2, 4, 4, 2, 0, 6])
    mean, softmax = models.scatter_mean(src, index, dim=0, dim_size=8), models.scatter_softmax(src, index, dim=0)
    assert mean.shape == (8, 3) and softmax.shape == src.shape
    for group in range(8):
        rows = src[index == group]
        expected = rows.mean(dim=0) if len(rows) else torch.zeros(3, dtype=torch.double)
        assert torch.allclose(mean[group], expected)
        assert torch.allclose(softmax[index == group], rows.softmax(dim=0))
    small = torch.randn(5, 2, dtype=torch.double, requires_grad=True)
    groups = torch.tensor([0, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda x: models.scatter_mean(x, groups, 0, 4), small)
    assert torch.autograd.gradcheck(lambda x: models.scatter_softmax(x, groups), small)


def test_nobody_else_finds_our_scatter() -> None:
    data, _, trainer = made("KGIN", **KNOWLEDGE)
    trainer._train_epoch(data.loaders[0], 0)
    if importlib.util.find_spec("torch_scatter") is None:
        with pytest.raises(ImportError):
            import torch_scatter  # noqa: F401


def test_adjacency_of_a_graph_model_is_the_normalised_one() -> None:
    data, network, _ = made("LightGCN")
    ratings = dataset_of(data.loaders[0]).inter_matrix().toarray()
    graph = np.block([[np.zeros((N_USERS + 1,) * 2), ratings], [ratings.T, np.zeros((N_ITEMS + 1,) * 2)]])
    degree = graph.sum(axis=1) + 1e-7
    expected = graph / np.sqrt(degree[:, None] * degree[None])
    assert np.allclose(network.norm_adj_matrix.to_dense().cpu().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("model", ["KGIN", "MCCLK"])
def test_a_knowledge_model_is_tested_whole_and_with_the_weights_loaded(model: str) -> None:
    data, network, _ = made(model, **KNOWLEDGE, node_dropout_rate=0.5)
    network.eval()
    batch = next(iter(data.loaders[2]))[0]
    with torch.no_grad():
        scores = network.full_sort_predict(batch)
        network.restore_user_e = network.restore_entity_e = None
        assert torch.equal(network.full_sort_predict(batch), scores)
        weights = {name: 2 * values for name, values in network.state_dict().items()}
        network.load_state_dict(weights)
        assert not torch.equal(network.full_sort_predict(batch), scores)
    dropping = [layer for layer in network.modules() if type(layer).__name__ == "GraphConv"]
    assert [layer.node_dropout_rate for layer in dropping] == [0.5]


@pytest.mark.parametrize("numerical", [[], ["age"]])
def test_dssm_takes_columns_of_numbers(numerical: list[str]) -> None:
    columns = {"inter": ["user_id", "item_id", "timestamp", "label"], "user": ["user_id", "age"]}
    columns["item"] = ["item_id", "class"]
    data, network, trainer = made("DSSM", load_col=columns, numerical_features=numerical, mlp_hidden_size=[4])
    assert network.user_float_field_num == len(numerical)
    trainer._train_epoch(data.loaders[0], 0)


def test_layers_are_saved_once() -> None:
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}
    _, network, _ = made("GRU4RecF", load_col=columns, selected_features=["class"])
    assert network.other_parameter() == {}
    assert any(name.startswith("feature_embed_layer.") for name in network.state_dict())


def test_parameters_beside_the_weights_leave_the_device() -> None:
    """As on a GPU, whose tensors numpy cannot read."""

    class OnDevice(torch.Tensor):
        def numpy(self) -> Any:
            raise TypeError("can't convert a device tensor to numpy")

        def cpu(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    plain = checkpoint.to_plain({"array": np.arange(3.0), "matrix": made("EASE")[1].interaction_matrix})
    moved = {
        "array": {"__array__": plain["array"]["__array__"].as_subclass(OnDevice)},
        "matrix": {
            "__csr__": {
                name: part.as_subclass(OnDevice) if isinstance(part, torch.Tensor) else part
                for name, part in plain["matrix"]["__csr__"].items()
            }
        },
    }
    back = checkpoint.from_plain(moved)
    assert back["array"].tolist() == [0, 1, 2] and back["matrix"].shape == (N_USERS + 1, N_ITEMS + 1)


@pytest.mark.parametrize("model", models.NOT_LISTED)
def test_a_model_that_cannot_run_is_not_listed(model: str) -> None:
    assert model not in catalogue.known_models()
    with pytest.raises(UserError, match=f"model '{model}' cannot be run, because it "):
        run(model, "tiny")


def test_a_package_that_training_needs_is_missed_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model 'NCL' needs faiss-cpu, which is not installed: pip install faiss-cpu"):
        catalogue.model_class("NCL")


def test_draws_of_an_evaluation_are_its_own() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    with draws_of_its_own(1):
        first = torch.rand(3), np.random.rand()
    with draws_of_its_own(1):
        assert torch.equal(torch.rand(3), first[0]) and np.random.rand() == first[1]
    assert torch.equal(torch.rand(1), before[0]) and np.random.rand() == before[1]


@pytest.mark.parametrize("model", ["BPR", "GRU4Rec"])
def test_sampled_negatives_are_the_same_at_every_evaluation(model: str) -> None:
    data, _, trainer = made(model, eval_args={"mode": "uni3"}, train_neg_sample_args=None if model == "GRU4Rec" else {})
    figures = [trainer.evaluate(data.loaders[1], load_best_model=False) for _ in range(4)]
    assert all(found == figures[0] for found in figures)


def test_ract_says_where_its_weights_came_from(caplog: pytest.LogCaptureFixture) -> None:
    common = {"dataset": "tiny", "data_path": ".", "topk": [2], "valid_metric": "NDCG@2", "gpu_id": "", "metrics_k": 2}
    path = run("RaCT", **common, train_stage="actor_pretrain", pretrain_epochs=1)["checkpoint"]
    caplog.set_level(logging.INFO)
    made("RaCT", train_stage="finetune", pre_model_path=path, metrics_k=2)
    assert f"Load pretrained model from {path}" in caplog.text


@pytest.mark.parametrize("model,first", [("ConvNCF", "BPR"), ("NAIS", "FISM")])
def test_a_checkpoint_is_tested_without_the_weights_its_training_began_with(model: str, first: str) -> None:
    """Not even a file of that name is opened, which a checkpoint from elsewhere might name."""
    common = {"dataset": "tiny", "data_path": ".", "epochs": 1, "topk": [2], "valid_metric": "NDCG@2", "gpu_id": ""}
    start = Path(run(first, **common, checkpoint_dir="first")["checkpoint"])
    begin = {"ConvNCF": {"train_method": "after_pretrain", "pre_model_path": str(start)}}
    result = run(model, **common, **begin.get(model, {"pretrain_path": str(start)}))
    start.unlink()
    assert evaluate(result["checkpoint"])["test_result"] == result["test_result"]


def test_a_training_that_cannot_be_resumed_exactly_is_refused() -> None:
    _, _, trainer = made("DiffRec")
    state = {"state_file": "a.state", "random": [{}], "attributes": [{"kept": {}, "lost": [".Lt_history"]}]}
    with pytest.raises(
        UserError, match=r"'a\.state' cannot go on as it was, because model 'DiffRec' keeps what no file"
    ):
        trainer.resume(state)

"""The plain attributes that training changes are found, kept in a file, and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from recbole_diffurec import UserError
from recbole_diffurec.runtime import checkpoint
from recbole_diffurec.training.attributes import PlainAttributes


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.steps = 0
        self.seen = np.zeros(3)


class Model(nn.Module):
    """An attribute of every kind that RecBole's models have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("buffer", torch.zeros(2))
        self.update = 0
        self.history = torch.zeros(2, 3)
        self.order = np.arange(5)
        self.graph = torch.eye(3).to_sparse()
        self.matrix = sparse.csr_matrix(np.eye(3))
        self.parts = [torch.zeros(1), torch.zeros(1)]
        self.counts = {"a": 1, 2: 2.5}
        self.clusters: Any = None
        self.loss = nn.MSELoss()
        self.logger = object()


def train(model: Model) -> None:
    model.weight.data += 1
    model.buffer += 1
    model.update += 1
    model.history[0] += 1  # in place
    np.random.default_rng(0).shuffle(model.order)
    model.graph = torch.ones(3, 3).to_sparse()
    model.matrix = sparse.csr_matrix(np.ones((3, 3)))
    model.parts[1] = (model.weight * 2).sum()  # has a history of gradients
    model.counts[3] = 4
    model.clusters = torch.tensor([1, 2])
    model.layer.steps = 7
    model.layer.seen[1] = 1
    model.drawn = [0.5, None, "x"]
    model.training_epoch = 3


def test_what_nothing_changed_is_not_kept() -> None:
    model = Model()
    attributes = PlainAttributes(model)
    model.weight.data += 1
    model.buffer += 1
    model.eval()
    assert attributes.changed() == {"kept": {}, "lost": []}


def test_what_training_changes_is_kept_and_put_back(tmp_path: Path) -> None:
    model = Model()
    attributes = PlainAttributes(model)
    train(model)
    changed = attributes.changed()
    kept = changed["kept"]
    assert changed["lost"] == []
    names = ["update", "history", "order", "graph", "matrix", "parts", "counts", "clusters", "drawn"]
    assert set(kept) == {*(f".{name}" for name in names), "layer.steps", "layer.seen"}

    checkpoint.save(tmp_path / "a.state", {"attributes": kept})
    fresh = Model()
    PlainAttributes(fresh).put_back(checkpoint.load(tmp_path / "a.state")["attributes"], torch.device("cpu"))
    assert (fresh.update, fresh.layer.steps, fresh.counts) == (1, 7, {"a": 1, 2: 2.5, 3: 4})
    assert fresh.drawn == [0.5, None, "x"]
    for name in ("history", "clusters"):
        assert torch.equal(getattr(fresh, name), getattr(model, name))
    assert torch.equal(fresh.graph.to_dense(), torch.ones(3, 3))
    assert torch.equal(fresh.parts[1], model.parts[1]) and not fresh.parts[1].requires_grad
    assert np.array_equal(fresh.order, model.order) and np.array_equal(fresh.layer.seen, [0, 1, 0])
    assert (fresh.matrix != model.matrix).nnz == 0
    assert torch.equal(fresh.weight, torch.ones(2))


class Recurrent(nn.GRU):
    """A layer with lists of its own parameters, of a class that is not PyTorch's."""


def test_lists_of_weights_are_no_attributes() -> None:
    model = Recurrent(2, 3)
    attributes = PlainAttributes(model)
    with torch.no_grad():
        model.weight_ih_l0.add_(1)
    assert attributes.changed()["kept"] == {}


def test_what_was_put_back_is_kept_again() -> None:
    """A training that is killed, resumed and killed again."""
    model, fresh = Model(), Model()
    attributes = PlainAttributes(model)
    train(model)
    kept = attributes.changed()["kept"]
    again = PlainAttributes(fresh)
    again.put_back(kept, torch.device("cpu"))
    assert set(again.changed()["kept"]) == set(kept)


def test_what_no_file_can_hold_is_named() -> None:
    model = Model()
    attributes = PlainAttributes(model)
    model.clusters = object()
    model.layer.seen = {(1, 2): torch.zeros(1)}
    assert attributes.changed() == {"kept": {}, "lost": [".clusters", "layer.seen"]}


def test_tensors_go_where_the_model_computes() -> None:
    model = Model()
    attributes = PlainAttributes(model)
    model.history, model.parts = torch.ones(2, device="meta"), [torch.ones(2), 1]
    kept = attributes.changed()["kept"]
    assert (kept[".history"]["with_model"], kept[".parts"]["with_model"]) == (True, False)
    kept[".history"]["value"] = torch.ones(2)  # as a state file gives it
    attributes.put_back(kept, torch.device("meta"))
    assert model.history.device.type == "meta" and model.parts[0].device.type == "cpu"


@pytest.mark.parametrize("value", [1, True, "a", None, 1.5, [1, [2]], {"a": [1]}, np.float64(2)])
def test_a_value_set_again_is_no_change(value: Any) -> None:
    model = Model()
    model.clusters = value
    attributes = PlainAttributes(model)
    model.clusters = value if isinstance(value, (str, type(None))) else type(value)(value)
    assert attributes.changed() == {"kept": {}, "lost": []}


@pytest.mark.parametrize("place", [".forward", "layer.forward", ".__class__", "other.steps"])
def test_a_file_sets_no_more_than_attributes(place: str) -> None:
    model = Model()
    with pytest.raises(UserError, match="which has no such attribute"):
        PlainAttributes(model).put_back({place: {"value": 1, "with_model": False}}, torch.device("cpu"))

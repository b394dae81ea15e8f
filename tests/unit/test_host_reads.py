"""What a training step reads back from its device: the loss, once.

Tensors on the "meta" device have shapes and no numbers: whatever asks for a number fails there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TINY, make_batch, make_model
from recbole.data.interaction import Interaction

from recbole_diffurec.data.rows import FIRST_TARGET, ROW
from recbole_diffurec.diffusion.step_samplers import LossAwareStepSampler
from recbole_diffurec.host.batches import Batch
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.layers.device import assume
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.runtime.distributed import SynchronisedLoss
from recbole_diffurec.training.prepare import PreparedData

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("CausalRec", {"repeat_bias": True}),
    ("CausalRec", {"positions": "absolute", "cosine_temperature": 0.1}),
    ("DiffuRec", {"use_position": True}),
    ("DiffuRecSys", {"repeat_bias": True}),
    ("DiffuRecSys", {"step_sampler": "loss_aware", "keyed_noise": False}),
    ("DiffuRec", {"keyed_noise": True}),
    ("DiffRecDNR", {}),
    ("ADRec", {"repeat_bias": True}),
    ("DiffuRec", {"draws": 2}),
    ("DCRec", {"draws": 2}),
    ("DreamRec", {"preference_weight": 0.5, "consistency_weight": 0.5}),
    ("ADRec", {"keyed_noise": False, "step_sampler": "loss_aware"}),
]


def without_numbers(batch: Interaction) -> Interaction:
    return Batch(batch.interaction, "item_length").to("meta")


@pytest.mark.parametrize(("model", "options"), MODELS)
def test_a_step_reads_nothing(model, options):
    network = make_model(model, **options).train().to("meta")
    network.scores.repeat_bias = getattr(network, "repeat_bias", None)  # parameters there are others
    batches = [make_batch([3, 12, 5, 1, 5])]
    batches[0].interaction[ROW] = torch.arange(5)
    if model in ("CausalRec", "ADRec"):
        targets = {"item_id": torch.arange(1, 27), FIRST_TARGET: torch.zeros(5, dtype=torch.long)}
        batches.append(Interaction({**batches[0].interaction, **targets}))
    for batch in batches:
        network.zero_grad()
        loss = network.calculate_loss(without_numbers(batch))
        sum(loss if isinstance(loss, tuple) else (loss,)).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    with pytest.raises(NotImplementedError):
        network.calculate_loss(Interaction(batches[0].interaction).to("meta"))  # of lengths that nobody knows


@pytest.mark.parametrize("rows", ["prefixes", "sequences"])
def test_batches_of_loaders_know_their_lengths(rows):
    data = PreparedData(RunConfig("CausalRec", "ml-100k", {**TINY, "rows": rows}))
    batch = next(iter(data.loaders[0]))
    evaluated, *_ = next(iter(data.loaders[1]))
    for found in (batch, evaluated):
        with assume("cuda"):
            packed, expected = (RaggedBatch(b["item_id_list"], b["item_length"]) for b in (found.to("meta"), found))
        assert [(slab.n, slab.length) for slab in packed.slabs] == [(slab.n, slab.length) for slab in expected.slabs]
    dataset = dataset_of(data.loaders[0])
    assert not hasattr(dataset[torch.arange(3)].to("cpu")["item_length"], "on_host")  # a cycle of references


def test_a_step_sampler_learns_without_reading():
    sampler = LossAwareStepSampler(4).to("meta")
    sampler.update(torch.zeros(5, dtype=torch.long, device="meta"), torch.zeros(5, device="meta"))


def test_a_loss_of_several_parts_is_read_once(monkeypatch):
    parts = (torch.tensor(2.0, requires_grad=True), torch.tensor([3.0]))
    read = []
    for name in ("item", "tolist", "__float__", "cpu"):
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, m=method, n=name: (read.append(n), m(self))[1])
    losses, values = SynchronisedLoss(torch.nn.Linear(1, 1), lambda batch: parts, False)(make_batch([1, 2]))
    assert read == ["tolist"] and values == (2.0, 3.0) and losses[0] == 2.0

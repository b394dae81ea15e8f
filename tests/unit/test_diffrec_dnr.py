"""DiffRecDNR: what each term of its loss teaches, the precision of inference, what it refuses."""

from __future__ import annotations

import pytest
import torch
from conftest import make_batch, make_model

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.layers.ragged import LedBatch, PaddedBatch, RaggedBatch

LENGTHS = [1, 12, 5, 5, 7, 2]


def gradient_norms(term: torch.Tensor, model: torch.nn.Module) -> dict[str, float]:
    names, parameters = zip(*model.named_parameters())
    gradients = torch.autograd.grad(term, parameters, allow_unused=True, retain_graph=True)
    return {name: 0.0 if g is None else float(g.abs().sum()) for name, g in zip(names, gradients)}


@pytest.mark.parametrize("rec_on", ["noised", "predicted"])
def test_the_transformer_learns_from_the_classification_of_its_estimate_alone(rec_on):
    model = make_model("DiffRecDNR", rec_on=rec_on).train()
    distance, recommendation = model.calculate_loss(make_batch(LENGTHS))
    from_distance, from_classes = gradient_norms(distance, model), gradient_norms(recommendation, model)
    network = [name for name in from_distance if name.startswith("network")]
    assert network and all(from_distance[name] > 0 for name in network if "key.bias" not in name)
    assert any(from_classes[name] > 0 for name in network) == (rec_on == "predicted")
    assert from_distance["output.weight"] == 0 and from_classes["output.weight"] > 0


@pytest.mark.parametrize("layout", [RaggedBatch, PaddedBatch])
def test_a_token_in_front_of_each_history(layout):
    data = make_batch(LENGTHS)
    item_seq, lengths = data["item_id_list"], data["item_length"]
    batch = layout(item_seq, lengths) if layout is RaggedBatch else layout(item_seq)
    led = LedBatch(batch)
    front = -1.0 - torch.arange(len(LENGTHS)).unsqueeze(1)
    joined = led.join(front, batch.items.unsqueeze(1).float())
    assert torch.equal(led.restore(joined[led.last]), front)
    sequences = {}
    for slab in led.slabs:
        for row, sequence in zip(joined[slab.tokens].view(slab.n, slab.length), range(slab.n)):
            visible = slice(None) if slab.key_bias is None else slab.key_bias[sequence, 0, 0] == 0
            sequences[int(-1 - row[0])] = row[visible][1:].long().tolist()
    assert sequences == {row: item_seq[row, :length].tolist() for row, length in enumerate(LENGTHS)}


def test_initial_variance_moves_histories_and_targets_in_training_alone():
    batch = make_batch(LENGTHS)
    losses, scores = [], []
    for variance in (0.0, 1.0):
        torch.manual_seed(0)
        model = make_model("DiffRecDNR", initial_variance=variance)
        torch.manual_seed(1)
        losses.append(float(sum(model.calculate_loss(batch))))
        scores.append(model.full_sort_predict(batch))
    assert abs(losses[1] - losses[0]) > 0.1
    assert torch.equal(*scores)


def test_inference_in_bfloat16_leaves_the_checkpoint_as_it_is():
    batch = make_batch(LENGTHS)
    model = make_model("DiffRecDNR").float()
    names, exact = set(model.state_dict()), model.full_sort_predict(batch)[:, 1:]
    model.enable_amp = True
    rounded = model.full_sort_predict(batch)[:, 1:]
    assert set(model.state_dict()) == names and rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max() / exact.abs().max()) < 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rec_on": "both"}, "rec_on must be one of noised, predicted, got 'both'"),
        ({"initial_variance": -1}, "initial_variance must be a finite number of at least 0, got -1"),
        ({"sampling_steps": 33}, "sampling_steps must be from 1 to diffusion_steps (32), got 33"),
        ({"offset_noise": True}, "unknown parameter 'offset_noise' for model DiffRecDNR:"),
    ],
)
def test_what_does_not_act_or_fit_is_refused(values, message):
    with pytest.raises(UserError) as refusal:
        RunConfig("DiffRecDNR", "test", values)
    assert str(refusal.value).startswith(message)

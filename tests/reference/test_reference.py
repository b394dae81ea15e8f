"""Our mathematics against values computed with the authors' public DiffuRec code, in float64.

The environment variable ``DIFFUREC_REFERENCE`` names the files (a glob or a path); without it, the files beside the
repository are used and the tests are skipped where there are none.
"""

from __future__ import annotations

import glob
import os

import numpy as np
import pytest
import torch
from conftest import ROOT, FakeDataset

from recbole_diffurec.diffusion import schedules
from recbole_diffurec.diffusion.samplers import DDPMSampler
from recbole_diffurec.diffusion.step_samplers import LossAwareStepSampler
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.layers.item_softmax import full_cross_entropy
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.layers.step_embedding import sinusoid

TOLERANCE = 1e-9
PATTERN = os.environ.get("DIFFUREC_REFERENCE")
FILES = sorted(glob.glob(PATTERN or str(ROOT.parent / "shared" / "reference" / "*.npz")))


def test_the_named_reference_files_exist():
    if PATTERN is None and not FILES:
        pytest.skip("no reference files beside the repository and DIFFUREC_REFERENCE is not set")
    assert FILES, f"DIFFUREC_REFERENCE={PATTERN} names no file"


class Reference:
    """One file: its arrays as tensors, and a model of ours with its weights."""

    def __init__(self, path: str):
        self.arrays = np.load(path)
        self.n_steps = int(self.arrays["meta/T"])
        weight = self.arrays["weight/item_embedding.weight"]
        layers = {key.split(".")[1] for key in self.arrays.files if key.startswith("weight/block.")}
        inner = len(self["weight/block.0.ffn.in.bias"])
        parameters = {
            "hidden_size": weight.shape[1],
            "n_layers": len(layers),
            "n_heads": int(self.arrays["meta/heads"]),
            "inner_size": inner,
            "diffusion_steps": self.n_steps,
            "noise_schedule": str(self.arrays["meta/schedule"]),
            "MAX_ITEM_LIST_LENGTH": self["input/item_seq"].shape[1],
            "gpu_id": "",
        }
        config = RunConfig("DiffuRec", "test", parameters)
        self.model = config.model_class(config, FakeDataset(len(weight))).double().eval()
        self.model.load_state_dict(self._state(len(layers)))
        item_seq = self["input/item_seq"]
        self.batch = RaggedBatch(item_seq, torch.full((len(item_seq),), item_seq.shape[1]))
        self.history = self.model.approximator.encode(self.model.item_embedding(self.batch.items), self.batch)

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def _state(self, n_layers: int) -> dict[str, torch.Tensor]:
        names = {"item_embedding.weight": "item_embedding.weight"}
        for part in ("weight", "bias"):
            names[f"approximator.embedding_norm.{part}"] = f"embedding_norm.{part}"
            names[f"approximator.output_norm.{part}"] = f"output_norm.{part}"
            names[f"step_embedding.inner.{part}"] = f"step_mlp.in.{part}"
            names[f"step_embedding.outer.{part}"] = f"step_mlp.out.{part}"
            for k in range(n_layers):
                ours, theirs = f"approximator.blocks.{k}", f"block.{k}"
                for module in ("query", "key", "value", "output"):
                    names[f"{ours}.attention.{module}.{part}"] = f"{theirs}.attention.{module}.{part}"
                names[f"{ours}.attention_norm.{part}"] = f"{theirs}.attention_norm.{part}"
                names[f"{ours}.ffn_norm.{part}"] = f"{theirs}.ffn_norm.{part}"
                names[f"{ours}.ffn.0.{part}"] = f"{theirs}.ffn.in.{part}"
                names[f"{ours}.ffn.2.{part}"] = f"{theirs}.ffn.out.{part}"
        return {ours: self[f"weight/{theirs}"] for ours, theirs in names.items()}

    def uncertainty(self) -> torch.Tensor:
        """The file's lambda, token by token in our layout."""
        length = self["input/item_seq"].shape[1]
        return self["input/lambda"][self.batch.row, length - 1 - self.batch.age]

    def denoise(self, x_s: torch.Tensor, t: int) -> torch.Tensor:
        return self.model.approximator(self.history, x_s, self.model.step_embedding()[t : t + 1], self.uncertainty())


@pytest.fixture(scope="module", params=FILES, ids=os.path.basename)
def reference(request: pytest.FixtureRequest) -> Reference:
    with torch.no_grad():
        return Reference(request.param)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def close(ours, theirs) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=TOLERANCE)


def test_every_schedule(reference):
    names = [name for name in reference.arrays.files if name.startswith("betas/")]
    assert names
    for name in names:
        _, schedule, n_steps = name.split("/")
        close(schedules.SCHEDULES[schedule](int(n_steps)), reference.arrays[name])


def test_tables_of_the_process(reference):
    process, sampler = reference.model.process, reference.model.sampler
    close(process.sqrt_alpha_bar**2, reference["schedule/alphas_cumprod"])
    close(sampler.posterior_mean_coef1, reference["schedule/posterior_mean_coef1"])
    close(sampler.posterior_mean_coef2, reference["schedule/posterior_mean_coef2"])
    close(sampler.reverse_log_variance[1:], reference["schedule/reverse_log_variance"][1:])


def test_step_embedding(reference):
    t = reference["input/t"]
    dim = reference["expect/step_embedding"].shape[1]
    close(sinusoid(t.double() * 1000 / reference.n_steps, dim), reference["expect/step_embedding"])
    close(reference.model.step_embedding.features[t], reference["expect/step_embedding"])


def test_forward_noising(reference):
    x_0 = reference.model.item_embedding(reference["input/target"])
    x_s = reference.model.process.q_sample(x_0, reference["input/t"], reference["input/noise"])
    close(x_s, reference["expect/x_t"])


def test_approximator(reference):
    step_embedding = reference.model.step_embedding()[reference["input/t"]]
    x_0 = reference.model.approximator(
        reference.history, reference["expect/x_t"], step_embedding, reference.uncertainty()
    )
    close(x_0, reference["expect/x0_hat"])


def test_loss(reference):
    """Theirs has the padding row as a class; with another row in front to be left out, ours has it too."""
    x_0, target = reference["expect/x0_hat"], reference["input/target"]
    items = torch.nn.functional.pad(reference.model.item_embedding.weight, (0, 0, 1, 0))
    mean = torch.full((len(target),), 1 / len(target), dtype=x_0.dtype)
    loss, _ = full_cross_entropy(x_0, items, target + 1, mean)
    close(loss, reference["expect/cross_entropy_over_all_rows_including_padding"])


def test_reverse_trajectory_and_scores(reference):
    sampler, noise = reference.model.sampler, reference["input/reverse_noise"]
    x = reference["input/x_T"]
    states = []
    for index in reversed(range(reference.n_steps)):
        x_0 = reference.denoise(x, index)
        x = sampler.step(x, x_0, index, lambda t: noise[t]) if index else x_0
        states.append(x)
    trajectory = reference["expect/reverse_trajectory"]
    close(torch.stack(states), trajectory)

    x_0 = sampler.sample(reference["input/x_T"], reference.denoise, lambda t: noise[t])
    close(x_0, trajectory[-1])
    close(reference.model.scores.logits(x_0, None)[:, 1:], reference["expect/scores"][:, 1:])


def test_strided_process_with_all_steps_is_the_process(reference):
    betas = schedules.betas(str(reference.arrays["meta/schedule"]), reference.n_steps)
    strided = DDPMSampler(betas, sampling_steps=reference.n_steps)
    close(strided.posterior_mean_coef1, reference["schedule/posterior_mean_coef1"])
    assert strided.sampled_steps.tolist() == list(range(reference.n_steps))


@pytest.mark.parametrize("batch_size", [1, 7, 400])
def test_loss_aware_weights(reference, batch_size):
    t, loss = reference["loss_aware/t"], reference["loss_aware/loss"]
    sampler = LossAwareStepSampler(len(reference["loss_aware/weights_after"]))
    for start in range(0, 30, batch_size):
        end = min(start + batch_size, 30)
        sampler.update(t[start:end], loss[start:end])
    close(sampler.weights(), reference["loss_aware/weights_after_30"])
    for start in range(30, len(t), batch_size):
        sampler.update(t[start : start + batch_size], loss[start : start + batch_size])
    close(sampler.weights(), reference["loss_aware/weights_after"])

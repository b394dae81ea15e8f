"""The branches for GPUs, run on a CPU: the same figures as those for CPUs and as the padded oracle."""

from __future__ import annotations

import pytest
import torch
from conftest import make_batch, make_model

from recbole_diffurec.layers import device

VARIANTS = {
    "DiffuRec": ("DiffuRec", {}),
    "V2": ("DiffuRecSys", {}),
    "no cross-attention": ("DiffuRecSys", {"cross_attention": False}),
    "checkpointing": ("DiffuRecSys", {"gradient_checkpointing": True}),
    "repeat bias": ("DiffuRec", {"repeat_bias": True, "cosine_temperature": 0.1}),
}
LENGTHS = [1, 2, 3, 3, 5, 9, 12, 12]


def outputs(model, batch, kind: str):
    """Scores, loss and gradients, computed as on a device of this kind."""
    with device.assume(kind):
        model.zero_grad()
        torch.manual_seed(0)
        loss = model.calculate_loss(batch)
        loss.backward()
        with torch.no_grad():
            scores = model.full_sort_predict(batch)[:, 1:]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return scores, loss.detach(), gradients


@pytest.mark.parametrize("variant", VARIANTS)
def test_figures_are_those_of_a_cpu(variant):
    name, parameters = VARIANTS[variant]
    model = make_model(name, lambda_uncertainty=0.5, diffusion_steps=4, keyed_noise=True, **parameters)
    batch = make_batch(LENGTHS)
    torch.testing.assert_close(outputs(model, batch, "cuda"), outputs(model, batch, "cpu"), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_inference_in_bfloat16(variant, kind):
    """Of float32 models under ``enable_amp``: no type clash, and scores that agree with the full precision's."""
    name, parameters = VARIANTS[variant]
    plain = make_model(name, diffusion_steps=4, **parameters).float()
    model = make_model(name, diffusion_steps=4, enable_amp=True, **parameters).float()
    model.load_state_dict(plain.state_dict())
    batch = make_batch(LENGTHS)
    with torch.no_grad(), device.assume(kind):
        expected = plain.full_sort_predict(batch)[:, 1:]
        scores = model.full_sort_predict(batch)[:, 1:]
    assert scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_in_bfloat16(variant):
    """Autocast as RecBole's trainer has it, on the branches of a GPU."""
    name, parameters = VARIANTS[variant]
    model = make_model(name, diffusion_steps=4, **parameters).float().train()
    batch = make_batch(LENGTHS)
    with device.assume("cuda"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.calculate_loss(batch)
        loss.backward()  # computes some of it again
    assert torch.isfinite(loss) and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

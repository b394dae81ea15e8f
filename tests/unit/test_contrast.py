"""InfoNCE against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.layers.contrast import SIMILARITIES, info_nce


def by_definition(z_i, z_j, temperature, similarity, others):
    z = torch.cat([z_i, z_j, others])
    n, total = len(z_i), 0.0
    for a in range(2 * n):
        logits = {}
        for b in range(len(z)):
            if a != b:
                dot = z[a] @ z[b]
                logits[b] = (dot if similarity == "dot" else dot / (z[a].norm() * z[b].norm())) / temperature
        total = total - logits[(a + n) % (2 * n)] + torch.stack(list(logits.values())).logsumexp(dim=0)
    return total / (2 * n)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 6),
    n_others=st.integers(0, 3),
    tau=st.floats(0.05, 4),
    similarity=st.sampled_from(SIMILARITIES),
    seed=st.integers(0, 999),
)
def test_loss_and_gradients_are_those_of_the_definition(n, n_others, tau, similarity, seed):
    g = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 5, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    views.append(torch.randn(n_others, 5, generator=g, dtype=torch.float64, requires_grad=True))
    ours, theirs = (function(*views[:2], tau, similarity, views[2]) for function in (info_nce, by_definition))
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, views) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_a_single_row_has_nothing_to_contrast_with():
    z_i, z_j = torch.randn(2, 1, 4, requires_grad=True)
    loss = info_nce(z_i, z_j)
    assert loss == 0
    assert torch.autograd.grad(loss, z_i)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_round_the_similarities(dtype):
    """|z|^2 = 64 after a LayerNorm, where bf16 tells 64 from 64.5 and nothing between."""
    torch.manual_seed(0)
    z_i, z_j = (torch.nn.functional.layer_norm(torch.randn(50, 64), (64,)).to(dtype) for _ in range(2))
    expected = info_nce(z_i.float(), z_j.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(z_i, z_j)
    assert loss.dtype == torch.float32 and math.isclose(loss, expected, rel_tol=1e-6)

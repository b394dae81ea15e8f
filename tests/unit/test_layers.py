"""Ragged batches, dropout, linear layers."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.layers.dropout import Dropout
from recbole_diffurec.layers.linear import linear
from recbole_diffurec.layers.ragged import RaggedBatch, plan_slabs

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=40)


@given(lengths=LENGTHS)
@settings(deadline=None)
def test_every_item_is_stored_once_in_its_place(lengths):
    item_seq = torch.zeros(len(lengths), 20, dtype=torch.long)
    for row, length in enumerate(lengths):
        item_seq[row, :length] = torch.arange(1, length + 1) + 100 * row
    batch = RaggedBatch(item_seq, torch.tensor(lengths))
    real = torch.ones_like(batch.items, dtype=torch.bool) if batch.real is None else batch.real
    assert sorted(batch.items[real].tolist()) == sorted(item_seq[item_seq > 0].tolist())
    assert (batch.items[real] // 100 == batch.row[real]).all()
    length = torch.tensor(lengths)[batch.row]
    assert (batch.items[real] % 100 == (length - batch.age)[real]).all()
    last = batch.restore(batch.items[batch.last])
    assert last.tolist() == [length + 100 * row for row, length in enumerate(lengths)]
    for slab in batch.slabs:
        padded = slab.key_bias is not None
        inside = slab.key_bias[:, 0, 0].isinf() if padded else torch.zeros(slab.n, slab.length, dtype=torch.bool)
        assert (inside.flatten() == ~real[slab.tokens]).all()
    assert sum(slab.n for slab in batch.slabs) == len(lengths)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), overhead=st.integers(0, 30))
@settings(deadline=None)
def test_slab_plan_is_the_cheapest(lengths, overhead):
    lengths = np.sort(lengths)

    def cost(bounds):
        return sum(overhead + (end - start) * lengths[end - 1] for start, end in bounds)

    plan = plan_slabs(lengths, overhead)
    assert plan[0][0] == 0 and plan[-1][1] == len(lengths)
    assert all(left[1] == right[0] for left, right in pairwise(plan))
    cheapest = min(
        cost(list(zip((0, *cuts), (*cuts, len(lengths)))))
        for n_cuts in range(len(lengths))
        for cuts in combinations(range(1, len(lengths)), n_cuts)
    )
    assert cost(plan) == cheapest


@pytest.mark.parametrize("lengths", [[], [0], [3, 0]])
def test_empty_histories_are_refused(lengths):
    with pytest.raises(ValueError, match="at least one item"):
        RaggedBatch(torch.zeros(len(lengths), 4, dtype=torch.long), torch.tensor(lengths, dtype=torch.long))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(p):
    torch.manual_seed(0)
    module = Dropout(p)
    x = torch.ones(1000, 1001, requires_grad=True)
    y = module(x)
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.002)
    assert y.mean().item() == pytest.approx(1.0, abs=0.01)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()), "the gradient uses the same mask"
    torch.manual_seed(0)
    assert torch.equal(module(x), y), "draws follow torch's seed"
    assert not torch.equal(module(x), y), "every call draws anew"


def test_dropout_is_off_in_evaluation():
    x = torch.ones(10)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1000])
def test_linear_is_linear(rows, dtype, autocast):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 32), torch.randn(48, 32) / 6, torch.randn(48)
    with torch.autocast("cpu", enabled=autocast):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]
        outputs = [function(*inputs) for function in (linear, torch.nn.functional.linear)]
        gradients = [torch.autograd.grad(y.float().pow(2).sum(), inputs) for y in outputs]
    assert outputs[0].dtype == outputs[1].dtype
    torch.testing.assert_close(outputs[0], outputs[1])
    for ours, theirs in zip(*gradients):
        tolerance = 2e-2 if autocast or dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


GROWTH = """
import os, torch
from recbole_diffurec.layers.linear import linear
torch.set_num_threads(1)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
x, weight, bias = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((1500, 64), (64, 64), (64,)))
for function in (linear, torch.nn.functional.linear):
    before = resident()
    for n in range(1000, 1300):
        function(x[:n], weight, bias)
    print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 on this processor")
def test_linear_layers_of_ever_new_sizes_do_not_fill_the_memory():
    command = [sys.executable, "-c", GROWTH]
    ours, theirs = map(float, subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.split())
    assert 4 * ours < theirs

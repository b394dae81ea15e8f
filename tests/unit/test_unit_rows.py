"""Rows of length one against ``F.normalize``, values and gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.layers.unit_rows import unit_rows


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 20), d=st.integers(1, 9), exponent=st.integers(-6, 6), seed=st.integers(0, 10**6))
def test_values_and_gradients_are_those_of_normalize(n, d, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    x = (10.0**exponent * torch.randn(n, d, generator=generator, dtype=torch.float64)).requires_grad_()
    grad = torch.randn(n, d, generator=generator, dtype=torch.float64)
    expected = F.normalize(x, dim=-1)
    torch.testing.assert_close(unit_rows(x), expected)
    length = x.detach().norm(dim=-1, keepdim=True)  # gradients are of the size of 1 / length, and so is their rounding
    (own,), (of_torch,) = (torch.autograd.grad(y, x, grad) for y in (unit_rows(x), expected))
    torch.testing.assert_close(length * own, length * of_torch)


def test_the_gradient_is_the_difference_quotient():
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(unit_rows, (x,))


def test_the_padding_row_stays_zero_and_its_gradient_too():
    x = torch.zeros(2, 3, requires_grad=True)
    y = unit_rows(x)
    y.backward(torch.zeros(2, 3))
    assert torch.equal(y, torch.zeros(2, 3)) and x.grad is not None and torch.equal(x.grad, torch.zeros(2, 3))

"""The moving average of the weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_diffurec.training.averaging import WeightAverage


def trained(decay: float, steps: int):
    """A model after ``steps`` steps, its average, and the weights after every step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    average, path = WeightAverage(model, optimizer, decay), [model.weight.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).pow(2).sum().backward()
        optimizer.step()
        path.append(model.weight.detach().clone())
    return model, average, path


@settings(deadline=None)
@given(decay=st.floats(0.01, 0.999), steps=st.integers(0, 30))
def test_average_is_that_of_its_definition(decay, steps):
    model, average, path = trained(decay, steps)
    expected = path[0]
    for n, values in enumerate(path[1:], start=1):
        kept = min(decay, (1 + n) / (10 + n))
        expected = kept * expected + (1 - kept) * values
    with average.in_place():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert average.n_steps == steps and torch.equal(model.weight, path[-1])


def test_weights_come_back_after_an_error():
    model, average, path = trained(0.9, 5)
    with pytest.raises(KeyboardInterrupt), average.in_place():
        assert not torch.equal(model.weight, path[-1])
        raise KeyboardInterrupt
    assert torch.equal(model.weight, path[-1])


def test_state_goes_to_another_average():
    model, average, _ = trained(0.9, 5)
    other_model, other, _ = trained(0.9, 2)
    other.load_state_dict(average.state_dict())
    with average.in_place(), other.in_place():
        assert torch.equal(model.weight, other_model.weight)
    assert other.n_steps == 5

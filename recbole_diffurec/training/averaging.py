"""The moving average of a model's weights, which generalises better than the weights of one moment."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Iterator

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of a model's parameters over the steps of its optimizer (Polyak averaging).

    The first steps count more than ``decay`` says, min(decay, (1 + n) / (10 + n)) at step n, so that the average leaves
    the initial weights behind.

    Parameters
    ----------
    model : nn.Module
        The model whose parameters are averaged; buffers are not.
    optimizer : torch.optim.Optimizer
        The optimizer; every step of it updates the average.
    decay : float
        Weight of the old average, in (0, 1); about 1 / (1 - decay) steps count.

    Attributes
    ----------
    n_steps : int
        How many steps have been averaged.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float):
        self.decay, self.n_steps = decay, 0
        self._parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        optimizer.register_step_post_hook(lambda *_: self._update())

    def _update(self) -> None:
        self.n_steps += 1
        decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
        current: list[Any] = [parameter.detach() for parameter in self._parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self._average.values()), current, self.n_steps)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The average in the model's parameters; what is trained is put back at the end."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._average[name] = self._average[name], parameter.data

    def state_dict(self) -> dict[str, Any]:
        return {"n_steps": self.n_steps, "average": dict(self._average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.n_steps = state["n_steps"]
        for name, values in self._average.items():
            kept = state["average"][name]
            if kept.shape != values.shape:
                raise ValueError(f"the average of '{name}' has the shape {[*kept.shape]}, not {[*values.shape]}")
            values.copy_(kept)

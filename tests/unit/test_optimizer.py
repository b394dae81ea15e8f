"""The optimizer that RecBole builds for our trainers."""

from __future__ import annotations

import copy

import pytest
import torch
from recbole.trainer import Trainer

from recbole_diffurec.training.trainer import PluginTrainer


def optimizers(model: torch.nn.Module, learner: str) -> list[torch.optim.Optimizer]:
    """Ours for the model, and RecBole's for a copy of it."""
    built = []
    for host, its_model in ((PluginTrainer, model), (Trainer, copy.deepcopy(model))):
        trainer = object.__new__(host)
        trainer.config, trainer.model = {"reg_weight": None}, its_model
        trainer.learner, trainer.learning_rate, trainer.weight_decay = learner, 0.01, 0.1
        built.append(trainer._build_optimizer())
    return built


@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd"])
def test_steps_are_those_of_recboles_optimizer(learner):
    torch.manual_seed(0)
    own, host = optimizers(torch.nn.Linear(9, 7), learner)
    assert type(own) is type(host) and own.param_groups[0]["fused"] is (None if learner == "sgd" else True)
    for _ in range(20):
        for parameters in zip(*(group["params"] for o in (own, host) for group in o.param_groups), strict=True):
            grad = torch.randn_like(parameters[0])
            for parameter in parameters:
                parameter.grad = grad.clone()
        own.step()
        host.step()
    for a, b in zip(own.param_groups[0]["params"], host.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(a, b)


def test_a_state_of_single_operations_is_gone_on_with_as_it_was():
    """The steps of Adam that an earlier version began keep their arithmetic, to the last bit."""
    torch.manual_seed(0)
    own, host = optimizers(torch.nn.Linear(9, 7), "adam")
    for step in range(6):
        if step == 3:
            own.load_state_dict(copy.deepcopy(host.state_dict()))
            for a, b in zip(own.param_groups[0]["params"], host.param_groups[0]["params"], strict=True):
                a.data.copy_(b.data)
        for optimizer in (own, host):
            torch.manual_seed(step)
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for a, b in zip(own.param_groups[0]["params"], host.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)


def test_parameters_that_the_kernel_does_not_know_have_single_operations():
    own, _ = optimizers(torch.nn.ParameterList([torch.ones(2, dtype=torch.complex64)]), "adam")
    own.param_groups[0]["params"][0].grad = torch.ones(2, dtype=torch.complex64)
    own.step()
    assert not own.param_groups[0]["fused"]

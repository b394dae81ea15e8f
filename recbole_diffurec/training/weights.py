"""Weights between a file and a network: they fit, they are numbers, and the network is no larger than they are."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from torch import nn

from recbole_diffurec.config.rules import NOT_IN_RESULT
from recbole_diffurec.errors import UserError
from recbole_diffurec.models.cooccurrence import Cooccurrences
from recbole_diffurec.runtime.memory import MemoryLimit

# How large a network may be that is built for the weights of a checkpoint: so many times as large as they are, and so
# many bytes. Some models have tables beside their weights, which they compute.
_TIMES, _BYTES = 4, 2**28


def room_for_training(model: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which a model may be built whose weights and gradients fit into the memory that is free."""
    hint = "lower hidden_size or n_layers, or use a machine with more memory"
    return MemoryLimit(psutil.virtual_memory().available / 2, f"model '{model}'", hint)


def room_for(state: Mapping[str, Any], path: str | Path) -> contextlib.AbstractContextManager[Any]:
    """A context in which a model may be built that is about as large as a checkpoint's weights.

    Parameters
    ----------
    state : Mapping
        An opened checkpoint.
    path : str or Path
        Where it is from.
    """
    weights = sum(tensor.nbytes for tensor in state["state_dict"].values())
    hint = (
        "its weights are smaller, so that its configuration is not theirs; use another copy, or give other parameters"
    )
    return MemoryLimit(_TIMES * weights + _BYTES, f"the model of checkpoint '{path}'", hint)


def load_weights(
    network: Any, state: Mapping[str, Any], path: str | Path, parameters: Mapping[str, Any] | None = None
) -> None:
    """Put the weights of an opened checkpoint into a network.

    Parameters
    ----------
    network : torch.nn.Module
        A model of RecBole's kind.
    state : Mapping
        With ``state_dict`` and ``other_parameter``.
    path : str or Path
        Where it is from.
    parameters : Mapping, optional
        What the user gave otherwise than the checkpoint has it.

    Raises
    ------
    UserError
        They are those of another network, or no numbers.
    """
    own = network.state_dict()
    for name, tensor in state["state_dict"].items():
        if name in own and not own[name].is_floating_point() and tensor.dtype != own[name].dtype:
            raise UserError(  # PyTorch would make integers of them, whatever they are
                f"checkpoint '{path}' is of no use, since '{name}' holds {tensor.dtype} where it has "
                f"{own[name].dtype}: use another one"
            )
    try:
        network.load_state_dict(state["state_dict"])
    except RuntimeError:
        raise _misfit(path, parameters or {}) from None
    network.load_other_parameter(state["other_parameter"])
    problem = not_finite(network) or _wrong_counts(network)
    if problem:
        raise UserError(f"checkpoint '{path}' is of no use, since {problem}: use another one")


def not_finite(network: nn.Module) -> str | None:
    """The first of a network's weights that hold no numbers, in words; None where there are none."""
    for name, tensor in network.named_parameters():
        wrong = tensor.numel() - int(tensor.isfinite().sum())
        if wrong:
            return f"{wrong:,} of the {tensor.numel():,} weights of '{name}' are no finite numbers"
    for name, buffer in network.named_buffers():  # which may hold an infinity, as a mask
        if buffer.is_floating_point() and buffer.isnan().any():
            return f"'{name}' holds what is no number"
    return None


def _wrong_counts(network: nn.Module) -> str | None:
    """What is wrong with loaded co-occurrences, in words; None where nothing is, and where there are none."""
    problems = (module.problem() for module in network.modules() if isinstance(module, Cooccurrences))
    return next(filter(None, problems), None)


def _misfit(path: str | Path, parameters: Mapping[str, Any]) -> UserError:
    given = sorted(parameters.keys() - NOT_IN_RESULT)
    if not given:
        return UserError(f"the weights of checkpoint '{path}' do not fit its own configuration: use another copy")
    return UserError(
        f"the weights of checkpoint '{path}' do not fit the parameters given ({', '.join(given)}): leave out those "
        f"that change the network's shape"
    )

"""What training changes in a model beside its parameters and buffers: counters, histories of losses, drawn graphs.

RecBole's models keep such things as plain attributes, which no ``state_dict`` holds.
"""

from __future__ import annotations

import functools
import hashlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from recbole_diffurec.errors import UserError
from recbole_diffurec.runtime import checkpoint

# Attributes of every module: PyTorch's own, and the epoch that the trainer sets.
_NOT_THE_MODELS = {*vars(nn.Module()), "training_epoch"}


class PlainAttributes:
    """The plain attributes of a model and its layers: as they were at first, and those that are others now.

    Tensors, arrays, numbers, texts, and lists and dicts of them are followed; attributes of other kinds (a data set, a
    loss function) are not.

    Parameters
    ----------
    model : nn.Module
        As it was built, before training.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._at_first = {place: _mark(value) for place, value in self._all() if _is_plain(value)}

    def changed(self) -> dict[str, Any]:
        """What is other than at first.

        Returns
        -------
        dict
            ``kept``, of ``layer.attribute`` to a dict of its plain ``value`` and ``with_model``, whether it lies on the
            model's device rather than with the CPU; ``lost``, the attributes that hold by now what a file of plain
            values cannot.
        """
        kept: dict[str, Any] = {}
        lost: list[str] = []
        for place, value in self._all():
            followed = place in self._at_first
            if _is_plain(value):
                if not followed or _mark(value) != self._at_first[place]:
                    kept[place] = {"value": _with_tensors(_off_the_graph, value), "with_model": _on_device(value)}
            elif followed:
                lost.append(place)
        return {"kept": kept, "lost": lost}

    def put_back(self, kept: dict[str, Any], device: torch.device) -> None:
        """Set the attributes to what ``changed`` kept, from memory or from a file; ``device`` is the model's.

        Raises
        ------
        UserError
            One of them is of a layer that the model does not have, or would take the place of a method.
        """
        layers = dict(self._model.named_modules())
        for place, entry in kept.items():
            layer, _, name = place.rpartition(".")
            if layer not in layers or name.startswith("__") or callable(getattr(type(layers[layer]), name, None)):
                raise UserError(
                    f"the state holds '{place}' for a {type(self._model).__name__}, which has no such attribute: leave "
                    f"out --resume to start afresh"
                )
            target = device if entry["with_model"] else torch.device("cpu")
            value = checkpoint.from_plain(entry["value"])
            setattr(layers[layer], name, _with_tensors(functools.partial(Tensor.to, device=target), value))

    def _all(self) -> Iterator[tuple[str, Any]]:
        for layer, module in self._model.named_modules():
            if not type(module).__module__.startswith("torch."):
                for name, value in vars(module).items():
                    if name not in _NOT_THE_MODELS:
                        yield f"{layer}.{name}", value


class _TensorMark:
    """Which tensor it was, and how often it had been written to."""

    def __init__(self, tensor: Tensor):
        self._tensor, self._version = weakref.ref(tensor), tensor._version

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _TensorMark):
            return False
        return self._tensor() is other._tensor() is not None and self._version == other._version


def _mark(value: Any) -> Any:
    """Something that is equal for the same value alone, and small for a large one."""
    if isinstance(value, Tensor):
        return _TensorMark(value)
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, hashlib.blake2b(np.ascontiguousarray(value).tobytes()).digest()
    if sparse.issparse(value):
        rows = value.tocsr()
        return value.shape, *(_mark(part) for part in (rows.data, rows.indices, rows.indptr))
    if isinstance(value, dict):
        return {key: _mark(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mark(item) for item in value]
    return type(value), value


def _is_plain(value: Any) -> bool:
    if isinstance(value, nn.Parameter):  # a weight already, which recurrent layers of PyTorch keep in lists as well
        return False
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    plain = (bool, int, float, str, Tensor, np.bool_, np.number)
    return value is None or isinstance(value, plain) or sparse.issparse(value)


def _with_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with each of its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _with_tensors(change, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_tensors(change, item) for item in value]
    return value


def _off_the_graph(tensor: Tensor) -> Tensor:
    return tensor.detach()


def _on_device(value: Any) -> bool:
    """Whether a tensor in ``value`` lies elsewhere than with the CPU."""
    if isinstance(value, Tensor):
        return value.device.type != "cpu"
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(_on_device(item) for item in items)

"""How much memory a network may ask for while it is built; asking for more is refused before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_diffurec.errors import UserError

# What a tensor of a model costs beside its numbers, in bytes: the objects of Python around it. A million layers of few
# numbers each would fill a machine with them.
PER_TENSOR = 2**14


class MemoryLimit(TorchDispatchMode):
    """A context in which new tensors may come to so many bytes and no more.

    Linux hands out more memory than there is, and ends the process that then uses it. Tensors that operations return
    are not counted: those of a model come from factories such as ``torch.empty``.

    Parameters
    ----------
    limit : float
        In bytes.
    what : str
        What is built, for the message.
    hint : str
        What to do about it.

    Raises
    ------
    UserError
        The next tensor would be beyond the limit.
    """

    def __init__(self, limit: float, what: str, hint: str):
        super().__init__()
        self._limit, self._what, self._hint, self._asked = limit, what, hint, 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        parameters = func._schema.arguments
        if parameters and parameters[0].name == "size":
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self._asked += math.prod(args[0]) * dtype.itemsize + PER_TENSOR
            if self._asked > self._limit:
                raise UserError(
                    f"{self._what} would take more than {self._asked / 1e9:,.1f} GB for its parameters, and "
                    f"{self._limit / 1e9:,.1f} GB are there for them: {self._hint}"
                )
        return func(*args, **kwargs)

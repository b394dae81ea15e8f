"""A module as one module of RecBole sees it."""

from __future__ import annotations

from types import ModuleType
from typing import Any


class With(ModuleType):
    """A module itself, with some names replaced, for a module that reads them as ``torch.load``.

    Parameters
    ----------
    module : ModuleType
        The module that is seen.
    **replaced : Any
        What is seen in place of its own names.
    """

    def __init__(self, module: ModuleType, **replaced: Any):
        super().__init__(module.__name__)
        vars(self).update(_module=module, **replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)

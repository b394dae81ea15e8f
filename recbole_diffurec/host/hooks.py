"""Mends that wait for the module they mend: nothing of RecBole is imported before somebody asks for it."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Mend = Callable[[ModuleType], contextlib.AbstractContextManager[None]]


class _MendingLoader(Loader):
    """Runs a module's own loader inside what waits for the module."""

    def __init__(self, loader: Any, mends: Sequence[Mend]):
        self._loader, self._mends = loader, mends

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with contextlib.ExitStack() as around:
            for mend in self._mends:
                around.enter_context(mend(module))
            self._loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:  # get_source, get_resource_reader, ...
        return getattr(self._loader, name)


class ImportHooks(MetaPathFinder):
    """A finder that wraps the import of modules, and answers for names that stand for other modules.

    Attributes
    ----------
    alias : callable
        Called with a module's full name; returns the name of the module that it stands for, or None.
    """

    def __init__(self) -> None:
        self._mends: dict[str, list[Mend]] = {}
        self.alias: Callable[[str], str | None] = lambda name: None

    def when_imported(self, name: str, mend: Mend) -> None:
        """Run a module's import inside the context ``mend(module)``; enter and leave it at once after the import."""
        if name in sys.modules:
            with mend(sys.modules[name]):
                pass
        else:
            self._mends.setdefault(name, []).append(mend)

    @property
    def installed(self) -> bool:
        """Whether Python asks this finder."""
        return self in sys.meta_path

    def install(self) -> None:
        """Let Python ask this finder before all others."""
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        meant = self.alias(fullname)
        if meant is not None:
            module = importlib.import_module(meant)
            sys.modules[fullname] = module
            return importlib.util.spec_from_loader(fullname, _AliasLoader(module))
        if fullname not in self._mends:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        for finder in others:
            found = finder.find_spec(fullname, path, target)
            if found is not None and found.loader is not None:
                found.loader = _MendingLoader(found.loader, self._mends.pop(fullname))
                return found
        return None


class _AliasLoader(Loader):
    """Gives a module that is imported already under another name."""

    def __init__(self, module: ModuleType):
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # Python has put the alias's there


HOOKS = ImportHooks()

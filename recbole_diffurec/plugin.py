"""Makes our models part of RecBole: its own ``get_model``, ``create_dataset``, ``get_trainer``, ``Config`` find them.

RecBole has no entry points. It finds a model as the module ``recbole.model.<kind>.<lowercase name>``
(utils/utils.py:76), a dataset as ``recbole.data.dataset.<Model>Dataset``, a trainer as
``recbole.trainer.<Model>Trainer``, and defaults as files in its own folder. ``register()`` answers for those names;
nothing is imported before RecBole asks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from recbole_diffurec.host import entry_points
from recbole_diffurec.host.hooks import HOOKS
from recbole_diffurec.models import spec as register_of_models

_PLACE = "recbole.model.sequential_recommender."


def register() -> None:
    """Register the models of this package, and of plugins, with RecBole. Calling it again changes nothing."""
    if HOOKS.alias is _module_of:
        return
    HOOKS.alias = _module_of
    HOOKS.when_imported("recbole.trainer", functools.partial(_answers, "Trainer", _trainer))
    HOOKS.when_imported("recbole.data.dataset", functools.partial(_answers, "Dataset", _dataset))
    HOOKS.when_imported("recbole.quick_start.quick_start", _loading)
    entry_points.register()


def _module_of(name: str) -> str | None:
    """The module of the registered model that RecBole looks for under ``name``."""
    if not name.startswith(_PLACE):
        return None
    wanted = name.removeprefix(_PLACE)
    model = next((known for known in register_of_models.names() if known.lower() == wanted), None)
    spec = register_of_models.find(model) if model else None
    return spec.model_class.__module__ if spec else None


@contextlib.contextmanager
def _answers(suffix: str, make: Callable[[Any], Any], module: ModuleType) -> Iterator[None]:
    """Let a module of RecBole have an attribute ``<Model><suffix>`` for every registered model."""
    yield

    def answer(name: str) -> Any:
        model = name.removesuffix(suffix)
        spec = register_of_models.find(model) if name.endswith(suffix) else None
        if spec is None:
            raise AttributeError(f"module '{module.__name__}' has no attribute '{name}'")
        return make(spec)

    vars(module)["__getattr__"] = answer


def _trainer(spec: Any) -> type:
    from recbole_diffurec.training.trainer import PluginTrainer, trainer_class

    return trainer_class(spec.trainer) if spec.trainer else PluginTrainer


def _dataset(spec: Any) -> type:
    from recbole_diffurec.host.dataset import ordered

    return ordered(spec.dataset)


@contextlib.contextmanager
def _loading(module: ModuleType) -> Iterator[None]:
    """Let RecBole's ``load_data_and_model`` open the checkpoints of this package."""
    yield

    def load_data_and_model(model_file: str) -> tuple[Any, ...]:
        from recbole_diffurec.training.load import load_data_and_model as load

        return load(model_file)

    entry_points.replace(module, "load_data_and_model", load_data_and_model)

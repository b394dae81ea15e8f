"""Makes our models part of RecBole: its own ``get_model``, ``create_dataset``, ``get_trainer``, ``Config`` find them.

RecBole has no entry points. It finds a model as the module ``recbole.model.<kind>.<lowercase name>``
(utils/utils.py:76), a dataset as ``recbole.data.dataset.<Model>Dataset``, a trainer as
``recbole.trainer.<Model>Trainer``, and defaults as files in its own folder. ``register()`` puts ours in those places.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

MODELS = {
    "DiffuRec": "recbole_diffurec.model.diffurec",
    "DiffuRecSys": "recbole_diffurec.model.diffurecsys",
}


def register() -> None:
    """Register the models of this package with RecBole. Calling it again changes nothing."""
    import recbole.data.dataset
    import recbole.trainer
    from recbole.config import Config

    from recbole_diffurec.data.dataset import SequenceDataset
    from recbole_diffurec.defaults import default_layers
    from recbole_diffurec.trainer import PluginTrainer

    for name, module in MODELS.items():
        sys.modules[f"recbole.model.sequential_recommender.{name.lower()}"] = importlib.import_module(module)
        setattr(recbole.data.dataset, f"{name}Dataset", SequenceDataset)
        setattr(recbole.trainer, f"{name}Trainer", PluginTrainer)

    load = Config._load_internal_config_dict
    if getattr(load, "knows_diffurec", False):
        return

    @functools.wraps(load)
    def load_with_our_defaults(self: Any, model: str, model_class: type, dataset: str) -> None:
        load(self, model, model_class, dataset)
        if model in MODELS:
            for layer in default_layers(model, dataset):
                self.internal_config_dict.update(layer)

    load_with_our_defaults.knows_diffurec = True  # type: ignore[attr-defined]
    Config._load_internal_config_dict = load_with_our_defaults

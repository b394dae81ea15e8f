"""Diffusion models for sequential recommendation as a RecBole plugin: DiffuRec, DiffuRecSys, and others.

Importing this package mends RecBole for today's Python stack (``host.compat``) and registers the models with it
(``plugin``), so that RecBole's own ``get_model("DiffuRecSys")`` finds them; both wait until RecBole is imported.
``run`` trains and tests one model, ``evaluate`` tests a checkpoint, ``audit`` measures what its diffusion contributes,
``Recommender`` ranks items for any history.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from recbole_diffurec import plugin
from recbole_diffurec.errors import UserError
from recbole_diffurec.host import compat
from recbole_diffurec.version import __version__

if TYPE_CHECKING:
    from recbole_diffurec.data.prepare import prepare
    from recbole_diffurec.experiments.audit import audit
    from recbole_diffurec.experiments.compare import compare
    from recbole_diffurec.experiments.tune import tune
    from recbole_diffurec.inference.batch import recommend
    from recbole_diffurec.inference.export import export
    from recbole_diffurec.inference.recommender import Recommender
    from recbole_diffurec.inference.service import serve
    from recbole_diffurec.models.diffurec import DiffuRec, DiffuRecSys
    from recbole_diffurec.models.spec import ModelSpec
    from recbole_diffurec.training.evaluate import evaluate
    from recbole_diffurec.training.run import run

compat.apply()
plugin.register()

# Where the public names are; imported when they are first asked for, since torch and RecBole take seconds.
_PLACES = {
    "DiffuRec": "models.diffurec",
    "DiffuRecSys": "models.diffurec",
    "ModelSpec": "models.spec",
    "Recommender": "inference.recommender",
    "audit": "experiments.audit",
    "compare": "experiments.compare",
    "evaluate": "training.evaluate",
    "export": "inference.export",
    "prepare": "data.prepare",
    "recommend": "inference.batch",
    "run": "training.run",
    "serve": "inference.service",
    "tune": "experiments.tune",
}

__all__ = [
    "DiffuRec",
    "DiffuRecSys",
    "ModelSpec",
    "Recommender",
    "UserError",
    "__version__",
    "audit",
    "compare",
    "evaluate",
    "export",
    "prepare",
    "recommend",
    "run",
    "serve",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

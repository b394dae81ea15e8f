"""Diffusion models for sequential recommendation as a RecBole plugin: DiffuRec and DiffuRecSys.

Importing this package mends RecBole for today's Python stack (``compat``) and registers the models with it, so that
RecBole's own ``get_model("DiffuRecSys")`` finds them. ``run`` trains and tests one model, ``evaluate`` tests a
checkpoint, ``Recommender`` ranks items for any history.
"""

from recbole_diffurec import compat

compat.apply()  # before anything imports recbole.config

from recbole_diffurec import registry  # noqa: E402

registry.register()

from recbole_diffurec.errors import UserError  # noqa: E402
from recbole_diffurec.model import DiffuRec, DiffuRecSys  # noqa: E402
from recbole_diffurec.pipeline import evaluate, run  # noqa: E402
from recbole_diffurec.recommend import Recommender  # noqa: E402
from recbole_diffurec.version import __version__  # noqa: E402

__all__ = ["DiffuRec", "DiffuRecSys", "Recommender", "UserError", "__version__", "evaluate", "run"]

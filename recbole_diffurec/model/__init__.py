"""RecBole models: wiring only. The mathematics is in ``diffusion``, the network in ``layers``."""

from recbole_diffurec.model.diffurec import DiffuRec
from recbole_diffurec.model.diffurecsys import DiffuRecSys

__all__ = ["DiffuRec", "DiffuRecSys"]

"""DiffuRecSys: Zolghadr, Winther, Jeha 2024, "Generative Diffusion Models for Sequential Recommendations"."""

from recbole_diffurec.model.base import DiffusionRecommender


class DiffuRecSys(DiffusionRecommender):
    """DiffuRec with cross-attention between history and noised target, and offset noise in training.

    ``offset_noise: False`` is the paper's variant V1, ``True`` its V2. Defaults: ``properties/model/DiffuRecSys.yaml``.
    """

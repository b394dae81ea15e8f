"""DiffuRec: Li, Sun, Li 2023, "DiffuRec: A Diffusion Model for Sequential Recommendation", ACM TOIS 42."""

from recbole_diffurec.model.base import DiffusionRecommender


class DiffuRec(DiffusionRecommender):
    """The noised target is added to every history item; one more dropout follows each block, as in the public code.

    Defaults: ``properties/model/DiffuRec.yaml``.
    """

    block_output_dropout = True

"""As much of a data set as a checkpoint holds, for models that are built from one."""

from __future__ import annotations

from typing import Any

import torch

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.training.report import explained

__all__ = ["CheckpointData", "check_reads_histories_alone"]


class CheckpointData:
    """What the constructor of a sequential model asks of its data."""

    def __init__(self, config: RunConfig, n_items: int, n_users: int):
        self._model = config["model"]
        self._counts = {config["ITEM_ID_FIELD"]: n_items, config["USER_ID_FIELD"]: n_users}
        # By other names for some of RecBole's models.
        self.item_num, self.user_num = n_items, n_users
        self.field2seqlen = {config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]: config["MAX_ITEM_LIST_LENGTH"]}

    def num(self, field: str) -> int:
        """How many different values a column has, padding included."""
        if field not in self._counts:
            raise self._lacks(field)
        return self._counts[field]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._lacks(name)

    def _lacks(self, name: str) -> UserError:
        return UserError(
            f"model '{self._model}' is built from more of its data ('{name}') than a checkpoint holds, so that it "
            f"cannot recommend from a checkpoint alone: use 'recbole-diffurec evaluate', or another sequential model"
        )


@torch.no_grad()
def check_reads_histories_alone(network: Any, batch: Any, model: str) -> None:
    """Refuse a model that wants to know more of a request than its history: HGN, Caser and others the user."""
    with explained(f"recommending with model '{model}'"):
        try:
            network.full_sort_predict(batch)
        except KeyError as error:
            raise UserError(
                f"model '{model}' reads '{error.args[0]}' beside a history, so that it cannot recommend from a "
                f"checkpoint alone: use 'recbole-diffurec evaluate', or another sequential model"
            ) from None

"""What a checkpoint holds of a trainer of RecBole's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recbole.utils import ModelType

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import DERIVED, known_parameters
from recbole_diffurec.host.items import item_columns

__all__ = ["about_data", "contents", "kept_values", "plain_values"]


def contents(trainer: Any, epoch: int) -> dict[str, Any]:
    """What ``checkpoint.open_run`` asks for, and what RecBole's ``resume_checkpoint`` does."""
    config, data = trainer.config, trainer.eval_collector.training_data
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "config": {"model": config["model"], "dataset": config["dataset"], **kept_values(config)},
        **about_data(data),
        "epoch": epoch,
        "cur_step": trainer.cur_step,
        "best_valid_score": float(trainer.best_valid_score),
        "state_dict": trainer.model.state_dict(),
        "other_parameter": trainer.model.other_parameter(),
        "optimizer": trainer.optimizer.state_dict(),
    }


def about_data(dataset: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the data: ids and columns of items by number, padding first, counts, fingerprint.

    Parameters
    ----------
    dataset : Dataset or None
        The training part; None where nothing was trained.
    """
    popularity = torch.from_numpy(getattr(dataset, "popularity", np.zeros(0, dtype=np.int64)))
    fields = {"users": dataset.uid_field, "items": dataset.iid_field} if dataset is not None else {}
    ids = {name: [str(token) for token in dataset.field2id_token[field]] for name, field in fields.items()}
    columns = item_columns(dataset) if dataset is not None else {}
    fingerprint = getattr(dataset, "fingerprint", {})
    return {"id_tokens": ids, "item_columns": columns, "popularity": popularity, "data": fingerprint}


def kept_values(config: Any) -> dict[str, Any]:
    """``plain_values`` for a checkpoint: its data is found from any folder, and its training is over."""
    values = {name: value for name, value in plain_values(config).items() if name not in ("log_to", "log_wandb")}
    return {**values, "data_path": os.path.abspath(values["data_path"])} if values.get("data_path") else values


def plain_values(config: Any) -> dict[str, Any]:
    """The parameters of a configuration as plain values, of which ``RunConfig`` makes an equal one.

    Of RecBole's own ``Config``: without what it made of them, and with ``mask_seen`` as RecBole has it, which leaves
    out the training interactions of general models and nothing of sequential ones.

    Parameters
    ----------
    config : RunConfig or Config
        Ours, or RecBole's own.
    """
    if hasattr(config, "plain"):
        return config.plain()
    values = {**config.internal_config_dict, **config.external_config_dict}
    values.update({name: config[name] for name in ("eval_args", "gpu_id", "topk", "metrics")})
    if values.get("mask_seen") is None:
        ranks = "labeled" not in config["eval_args"]["mode"].values()
        values["mask_seen"] = config["MODEL_TYPE"] != ModelType.SEQUENTIAL and not config["repeatable"] and ranks
    try:
        known = known_parameters(config["model"])
    except UserError:  # a model of the user's own
        known = frozenset(values)
    return {name: value for name, value in values.items() if name in known - DERIVED and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, (str, int)) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))

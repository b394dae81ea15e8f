"""What a run works on: filtered, ordered and split data with its loaders, a model on its device, and its trainer."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import time
from typing import Any, Iterator

import numpy as np
from recbole.data.utils import data_preparation
from recbole.utils import ModelType, get_trainer, init_seed

from recbole_diffurec.data.histories import HISTORIES_PER_BATCH, HistoryBatch
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import dataset_class
from recbole_diffurec.host.fingerprint import fingerprint
from recbole_diffurec.host.loaders import dataset_of, fitting_users, group_by_length, order_by_length
from recbole_diffurec.training.trainer import trainer_class
from recbole_diffurec.training.weights import room_for_training

logger = logging.getLogger("recbole_diffurec")


class DatasetCache:
    """Data sets that were read, filtered and ordered, for runs that differ in other things only."""

    def __init__(self) -> None:
        self._read: dict[str, Any] = {}

    def get(self, config: RunConfig) -> Any:
        """A data set of RecBole's kind for ``config``, a copy of its own."""
        key = config.dataset_key()
        if key not in self._read:
            dataset = dataset_class(config)(config)
            dataset.config = None
            self._read[key] = dataset
        dataset = copy.deepcopy(self._read[key])
        dataset.config = config
        return dataset


class PreparedData:
    """A filtered, ordered data set and its loaders.

    Attributes
    ----------
    config : the configuration with the batch sizes that fit these data; the one that was given stays as it is.
    n_users, n_items, n_interactions : after filtering, without padding.
    loaders : training, validation and test data.
    id_tokens : {"users": [...], "items": [...]}, the original ids in order of their numbers, padding first.
    fingerprint : what tells these data from others, see ``host.fingerprint``.
    user_counts : interactions of each user, by number.
    popularity : interactions with each item in the training part, by number.
    """

    def __init__(self, config: RunConfig, datasets: DatasetCache | None = None):
        dataset = datasets.get(config) if datasets else dataset_class(config)(config)
        self.user_counts = np.bincount(dataset.inter_feat[dataset.uid_field], minlength=dataset.user_num)
        item_counts = np.bincount(dataset.inter_feat[dataset.iid_field], minlength=dataset.item_num)
        self.n_users, self.n_items = int(dataset.user_num) - 1, int(dataset.item_num) - 1
        self.n_interactions = int(dataset.inter_num)
        self.n_time_ties = dataset.n_time_ties
        self.fingerprint = fingerprint(dataset)
        self.id_tokens = {
            "users": [str(token) for token in dataset.field2id_token[dataset.uid_field]],
            "items": [str(token) for token in dataset.field2id_token[dataset.iid_field]],
        }
        if self.n_items < max(config["topk"]):
            raise UserError(
                f"topk must not exceed the {self.n_items} items of data set '{config['dataset']}', "
                f"got {config['topk']}: give a shorter list with --topk"
            )
        fitting = fitting_users(config["eval_batch_size"], self.n_items, config["device"])
        if fitting < config["eval_batch_size"]:
            logger.info(
                "eval_batch_size is lowered from %d to %d, so that the scores of %s items fit into memory",
                config["eval_batch_size"],
                fitting,
                f"{self.n_items:,}",
            )
        # RecBole counts users times items for general models, and users alone for sequential ones
        # (general_dataloader.py:238).
        sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self.config = config.with_values(
            eval_batch_size=fitting if sequential else fitting * int(dataset.item_num),
            # RecBole would open a pickle of this name if it lay in the checkpoint folder (data/utils.py:108).
            dataloaders_save_path=os.path.join(os.devnull, "none"),
        )
        dataset.config = self.config
        too_small = f"data set '{config['dataset']}' leaves no {{}} sample: users need at least 4 interactions"
        try:
            self.loaders = data_preparation(self.config, dataset)
        except ValueError as error:
            if "num_samples" not in str(error):  # which torch's sampler says of an empty training part
                raise
            raise UserError(too_small.format("training")) from None
        held_out = [dataset_of(loader).inter_feat[dataset.iid_field].numpy() for loader in self.loaders[1:]]
        self.popularity = item_counts - np.bincount(np.concatenate(held_out), minlength=len(item_counts))
        if config["batch_by_length"] and sequential:
            group_by_length(self.loaders[0])
        if config.spec.trims_padding:
            for loader in self.loaders[1:]:
                order_by_length(loader)
        for name, loader in zip(("training", "validation", "test"), self.loaders):
            if len(loader) == 0:
                raise UserError(too_small.format(name))


def prepare_data(config: RunConfig, datasets: DatasetCache | None = None) -> PreparedData:
    """Load, filter, order and split; report the counts and warn where they are not the known ones."""
    started = time.perf_counter()
    init_seed(config["seed"], config["reproducibility"])
    data = PreparedData(config, datasets)
    counts = (data.n_users, data.n_items, data.n_interactions)
    logger.info(
        "%s: %s users, %s items, %s interactions (prepared in %.1f s)",
        config["dataset"],
        f"{data.n_users:,}",
        f"{data.n_items:,}",
        f"{data.n_interactions:,}",
        time.perf_counter() - started,
    )
    if data.n_time_ties:
        logger.info(
            "%s interactions (%.1f%%) share their time with another one of the same user; they keep the file's order",
            f"{data.n_time_ties:,}",
            100 * data.n_time_ties / data.n_interactions,
        )
    expected = _expected_counts(config)
    if expected and expected != counts:
        logger.warning(
            "data set '%s' has %s users, items and interactions after filtering, where %s are known: "
            "the file differs from the published one",
            config["dataset"],
            counts,
            expected,
        )
    return data


def _expected_counts(config: RunConfig) -> tuple[int, ...] | None:
    """The published counts for the filter in force, if the data set's defaults know them."""
    users, items = config["user_inter_num_interval"], config["item_inter_num_interval"]
    for minimum, counts in (config["expected_counts"] or {}).items():
        if users == items == f"[{minimum},inf)":
            return tuple(counts)
    return None


def build(
    config: RunConfig, train_dataset: Any, room: contextlib.AbstractContextManager[Any] | None = None
) -> tuple[Any, Any]:
    """The model on its device, and its trainer.

    Parameters
    ----------
    config : RunConfig
        Of the run.
    train_dataset : recbole.data.dataset.Dataset
        What the model is built for.
    room : context manager, optional
        Refuses a model that is too large; by default one that cannot be trained with the memory that is free.
    """
    init_seed(config["seed"], config["reproducibility"])
    with room or room_for_training(config["model"]):
        network = config.model_class(config, train_dataset)
    network = network.to(config["device"])
    trainer = trainer_class(config.spec.trainer or get_trainer(config["MODEL_TYPE"], config["model"]))(config, network)
    return network, trainer


def training_histories(config: RunConfig) -> Iterator[HistoryBatch]:
    """Every user of a configuration's data, with all interactions, oldest first."""
    dataset = dataset_class(config)(config)
    frame = dataset.inter_feat
    users, items = frame[dataset.uid_field].to_numpy(), frame[dataset.iid_field].to_numpy()
    names = {field: dataset.field2id_token[field].astype(str) for field in (dataset.uid_field, dataset.iid_field)}
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    histories = np.split(names[dataset.iid_field][items], starts[1:])
    order = names[dataset.uid_field][users[starts]]
    for start in range(0, len(order), HISTORIES_PER_BATCH):
        yield (
            list(order[start : start + HISTORIES_PER_BATCH]),
            [list(h) for h in histories[start : start + HISTORIES_PER_BATCH]],
        )

"""What a run works on: filtered, ordered and split data with its loaders, a model on its device, and its trainer."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import os
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from recbole.utils import EvaluatorType, InputType, ModelType, get_trainer, init_seed

from recbole_diffurec.config.protocol import PARTS
from recbole_diffurec.data.histories import HISTORIES_PER_BATCH, HistoryBatch
from recbole_diffurec.errors import UserError
from recbole_diffurec.host.candidates import SampledEvalLoader
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.dataset import SequenceDataset, dataset_class
from recbole_diffurec.host.loaders import dataset_of, fitting_users, group_by_length, order_by_length, split_loaders
from recbole_diffurec.host.sequences import SequenceRows
from recbole_diffurec.training.report import explained
from recbole_diffurec.training.trainer import trainer_class
from recbole_diffurec.training.weights import room_for_training

logger = logging.getLogger("recbole_diffurec")

NEGATIVES = "{distribution: uniform, sample_num: 1}"  # for messages: how a model is given some


class DatasetCache:
    """Data sets that were read, filtered and ordered, for runs that differ in other things only."""

    def __init__(self) -> None:
        self._read: dict[tuple[type, str], Any] = {}

    def get(self, config: RunConfig) -> Any:
        """A data set of RecBole's kind for ``config``, a copy of its own."""
        key = dataset_class(config), config.dataset_key()
        if key not in self._read:
            dataset = key[0](config)
            dataset.config = None
            self._read[key] = dataset
        dataset = copy.deepcopy(self._read[key])
        dataset.config = config
        return dataset


class PreparedData:
    """A filtered, ordered data set and its loaders.

    Attributes
    ----------
    config : RunConfig
        The configuration with the batch sizes that fit these data; the one that was given stays as it is.
    changes : dict of str to object
        What ``config`` has otherwise than that one: the sizes, and how RecBole's transforms call their columns.
    n_users, n_items, n_interactions : int
        Their numbers after filtering, without padding.
    loaders : tuple
        Training, validation and test data.
    id_tokens : dict of str to list of str
        {"users": [...], "items": [...]}, the original ids in order of their numbers, padding first.
    fingerprint : dict of str to object
        What tells these data from others, see ``host.fingerprint``.
    user_counts : np.ndarray
        Interactions of each user, by number.
    popularity : np.ndarray
        Interactions with each item in the training part, by number.
    """

    def __init__(self, config: RunConfig, dataset: Any = None):
        dataset = dataset_class(config)(config) if dataset is None else dataset
        self.user_counts = np.bincount(dataset.inter_feat[dataset.uid_field], minlength=dataset.user_num)
        self.n_users, self.n_items = int(dataset.user_num) - 1, int(dataset.item_num) - 1
        self.n_interactions = int(dataset.inter_num)
        self.n_time_ties = dataset.n_time_ties
        self.id_tokens = {
            "users": [str(token) for token in dataset.field2id_token[dataset.uid_field]],
            "items": [str(token) for token in dataset.field2id_token[dataset.iid_field]],
        }
        if config["eval_type"] == EvaluatorType.RANKING and self.n_items < max(config["topk"]):
            raise UserError(
                f"topk must not exceed the {self.n_items} items of data set '{config['dataset']}', "
                f"got {config['topk']}: give a shorter list with --topk"
            )
        fitting = self._fitting_users(config)
        # RecBole counts users times items for general models, and users alone for sequential ones
        # (general_dataloader.py:238).
        sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self.config = dataset.config = config.with_values(
            eval_batch_size=fitting if sequential else fitting * int(dataset.item_num),
            # RecBole would open a pickle of this name if it lay in the checkpoint folder (data/utils.py:108).
            dataloaders_save_path=os.path.join(os.devnull, "none"),
        )
        with _explained_splits(config):
            self.loaders = split_loaders(self.config, dataset)
        given = config.final_config_dict
        self.changes = {k: v for k, v in self.config.final_config_dict.items() if k not in given or v != given[k]}
        trained_on = dataset_of(self.loaders[0])
        self.popularity, self.fingerprint = trained_on.popularity, trained_on.fingerprint
        _check_parts(config, self.loaders)
        if config["batch_by_length"] and sequential:
            group_by_length(self.loaders[0])
        for loader in self.loaders[1:]:
            if isinstance(loader, SampledEvalLoader) and loader.samples:
                loader.check()
                loader.batch_sampler.batch_size = fitting  # of which RecBole counts the candidates
            if config.spec.trims_padding:
                order_by_length(loader)

    def _fitting_users(self, config: RunConfig) -> int:
        """How many users are scored at once."""
        fitting = fitting_users(config["eval_batch_size"], self.n_items, config["device"])
        if fitting < config["eval_batch_size"]:
            logger.info(
                "eval_batch_size is lowered from %d to %d, so that the scores of %s items fit into memory",
                config["eval_batch_size"],
                fitting,
                f"{self.n_items:,}",
            )
        return fitting


@contextlib.contextmanager
def _explained_splits(config: RunConfig) -> Iterator[None]:
    """Say of data that RecBole cannot split, or sample from, why."""
    try:
        yield
    except ValueError as error:
        if "num_samples" in str(error):  # which torch's sampler says of an empty training part
            raise _empty_part(config, PARTS[0]) from None
        if "interacted with all items" in str(error):
            raise UserError(
                f"some user of data set '{config['dataset']}' has every item, so that there is none to sample as a "
                f"negative: leave such users out with --user_inter_num_interval"
            ) from None
        raise


def _check_parts(config: RunConfig, loaders: Sequence[Any]) -> None:
    """Refuse a split that makes no sample of a part that it should make."""
    wanted = PARTS if config["benchmark_filename"] else config.protocol.parts
    for name, loader in zip(PARTS, loaders):
        if name in wanted and len(loader) == 0:
            raise _empty_part(config, name)
    dataset = dataset_of(loaders[0])
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    if config["mask_seen"] and sequential and not isinstance(dataset, SequenceDataset):
        raise UserError(
            f"mask_seen cannot act for model {config['model']}, whose data set keeps the end of each history alone: "
            f"leave it out"
        )


def _empty_part(config: RunConfig, name: str) -> UserError:
    found = f"data set '{config['dataset']}' leaves no {name} sample"
    files = config["benchmark_filename"]
    if files:
        path = f"{config['dataset']}.{files[PARTS.index(name)]}.inter"
        return UserError(f"{found}: '{path}' needs interactions of users, with a history for a sequential model")
    if config.protocol.leaves_out:
        sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        return UserError(f"{found}: users need at least {len(config.protocol.parts) + sequential} interactions")
    return UserError(f"{found}: its split {config['eval_args']['split']} is too fine for so few interactions")


def prepare_data(config: RunConfig, datasets: DatasetCache | None = None) -> PreparedData:
    """Load, filter, order and split; report the counts and warn where they are not the known ones."""
    started = time.perf_counter()
    init_seed(config["seed"], config["reproducibility"])
    data = PreparedData(config, datasets.get(config) if datasets else None)
    counts = (data.n_users, data.n_items, data.n_interactions)
    logger.info(
        "%s: %s users, %s items, %s interactions (prepared in %.1f s)",
        config["dataset"],
        f"{data.n_users:,}",
        f"{data.n_items:,}",
        f"{data.n_interactions:,}",
        time.perf_counter() - started,
    )
    rows = dataset_of(data.loaders[0]).inter_feat
    if isinstance(rows, SequenceRows):
        logger.info(
            "trained over all positions: %s targets in %s rows, about %.0f in a step",
            f"{rows.n_targets:,}",
            f"{len(rows):,}",
            rows.n_targets / len(data.loaders[0]),
        )
    if config["benchmark_filename"]:
        logger.info("its parts are the files %s, whatever eval_args says of a split", config["benchmark_filename"])
    if data.n_time_ties:
        logger.info(
            "%s interactions (%.1f%%) share their time with another one of the same user; they keep the file's order",
            f"{data.n_time_ties:,}",
            100 * data.n_time_ties / data.n_interactions,
        )
    expected = expected_counts(config)
    if expected and expected != counts:
        logger.warning(
            "data set '%s' has %s users, items and interactions after filtering, where %s are known: "
            "the file differs from the published one",
            config["dataset"],
            counts,
            expected,
        )
    return data


def expected_counts(config: RunConfig) -> tuple[int, ...] | None:
    """The published counts for the filter in force, if the data set's defaults know them."""
    users, items = config["user_inter_num_interval"], config["item_inter_num_interval"]
    for minimum, counts in (config["expected_counts"] or {}).items():
        if users == items == f"[{minimum},inf)":
            return tuple(counts)
    return None


def build(
    config: RunConfig, train_dataset: Any, room: contextlib.AbstractContextManager[Any] | None = None
) -> tuple[Any, Any]:
    """The model on its device, and its trainer, who knows the data that it is to train on.

    Parameters
    ----------
    config : RunConfig
        Of the run.
    train_dataset : recbole.data.dataset.Dataset
        What the model is built for.
    room : AbstractContextManager of object, optional
        Refuses a model that is too large; by default one that cannot be trained with the memory that is free.
    """
    config.tell_precision()
    init_seed(config["seed"], config["reproducibility"])
    with room or room_for_training(config["model"]):
        network = config.model_class(config, train_dataset)
    network = network.to(config["device"])
    _check_labels(network, config, train_dataset)
    _check_negatives(network, config)
    trainer = trainer_class(config.spec.trainer or get_trainer(config["MODEL_TYPE"], config["model"]))(config, network)
    trainer.eval_collector.data_collect(SimpleNamespace(dataset=train_dataset))  # RecBole does so in ``fit`` alone
    return network, trainer


def _check_labels(network: Any, config: RunConfig, train_dataset: Any) -> None:
    """Refuse labels that nobody reads, and a training, or an evaluation, by labels that are not there."""
    label, threshold, judged = config["LABEL_FIELD"], config["threshold"], config.protocol.labeled
    sampled = config["train_neg_sample_args"]["distribution"] != "none"
    learns = not sampled and any(isinstance(value, str) and value == label for value in vars(network).values())
    if threshold and threshold != config.internal_config_dict.get("threshold") and not (learns or judged):
        (name, value), *_ = threshold.items()
        raise UserError(
            f"threshold makes labels, of which model {config['model']} reads none in this run: to keep interactions by "
            f"their {name} alone, give --val_interval='{{{name}: \"[{value},inf)\"}}'"
        )
    if (learns or judged) and label not in train_dataset.inter_feat:
        others = f", or --train_neg_sample_args='{NEGATIVES}' to learn from items that it samples" if learns else ""
        raise UserError(
            f"model {config['model']} is to {'learn from' if learns else 'be judged by'} labels, and data set "
            f"'{config['dataset']}' has no column '{label}': give --threshold='{{rating: 4}}' to make them of a column"
            f"{others}"
        )


def _check_negatives(network: Any, config: RunConfig) -> None:
    """Refuse a training without the negatives that its loss reads."""
    losses = [vars(kind)["calculate_loss"] for kind in type(network).__mro__ if "calculate_loss" in vars(kind)]
    codes = [getattr(inspect.unwrap(loss), "__code__", None) for loss in losses]  # compiled ones have none
    reads = any(code is not None and "NEG_ITEM_ID" in code.co_names for code in codes)
    sampled = config["train_neg_sample_args"]["distribution"] != "none"
    learns = config["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and config["loss_type"] in (None, "BPR")
    if reads and learns and not sampled:
        raise UserError(
            f"model {config['model']} learns from negatives, and train_neg_sample_args has none drawn: leave it out, "
            f"or give --train_neg_sample_args='{NEGATIVES}'"
        )


def training_histories(config: RunConfig) -> Iterator[HistoryBatch]:
    """Every user of a configuration's data, with all interactions, oldest first."""
    with explained(f"preparing data set '{config['dataset']}'"):
        dataset = dataset_class(config)(config)
    users, items = dataset.in_order()
    names = {field: dataset.field2id_token[field].astype(str) for field in (dataset.uid_field, dataset.iid_field)}
    starts = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    histories = np.split(names[dataset.iid_field][items], starts[1:])
    order = names[dataset.uid_field][users[starts]]
    for start in range(0, len(order), HISTORIES_PER_BATCH):
        yield (
            list(order[start : start + HISTORIES_PER_BATCH]),
            [list(h) for h in histories[start : start + HISTORIES_PER_BATCH]],
        )

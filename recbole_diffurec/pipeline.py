"""One run: configuration in, result out. Prepare data, train, choose the best epoch, test, report."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import platform
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import recbole
import torch
from recbole.data.utils import data_preparation
from recbole.utils import ModelType, get_trainer, init_seed

from recbole_diffurec import allocator, checkpoint, distributed, files
from recbole_diffurec.config import PLACES, RunConfig
from recbole_diffurec.data import dataset_class
from recbole_diffurec.data.batches import fitting_users, group_by_length, order_by_length
from recbole_diffurec.data.dataset import TRIMMED_MODELS
from recbole_diffurec.data.histories import HISTORIES_PER_BATCH, HistoryBatch, writing
from recbole_diffurec.errors import UserError
from recbole_diffurec.model.ensemble import Ensemble, ranks_all_items
from recbole_diffurec.recommend import Recommender
from recbole_diffurec.resume import find_state
from recbole_diffurec.trainer import out_of_memory, trainer_class
from recbole_diffurec.version import __version__

logger = logging.getLogger("recbole_diffurec")


def run(
    model: str = "DiffuRecSys",
    dataset: str = "ml-100k",
    *,
    config_files: Sequence[str | Path] = (),
    experiment: str | None = None,
    result_file: str | Path | None = None,
    resume: bool = False,
    **parameters: Any,
) -> dict[str, Any]:
    """Train, validate and test one model on one data set.

    Parameters
    ----------
    model, dataset : names; any model of RecBole, any known data set or ``data_path/NAME/NAME.inter``.
    config_files : YAML files, later ones stronger.
    experiment : name under ``properties/experiment``.
    result_file : where to write the result as JSON; its folder is made when missing.
    resume : go on with an interrupted run of the same configuration, which left its state in ``checkpoint_dir``.
    parameters : the strongest layer, such as ``epochs=5``.

    Returns
    -------
    dict with ``model``, ``dataset``, ``seed``, ``n_users``, ``n_items``, ``n_interactions`` (after filtering, without
    padding), ``best_epoch`` (0-based, as RecBole counts), ``best_valid_result``, ``test_result``, ``train_seconds``
    (training epochs alone), ``eval_seconds`` (the final test), ``n_parameters``, ``checkpoint``, ``log``, ``history``
    (per epoch), ``config``, ``versions``.

    Raises
    ------
    UserError
        A parameter, a name or the data is wrong; the message says what to do.
    """
    config = RunConfig(model, dataset, parameters, config_files, experiment)
    result_file = _writable(result_file)
    with distributed.joined(config["device"]):
        # Asked by all processes before any of them can write a state.
        state = distributed.from_first(lambda: find_state(config) if resume else None)
        if resume and state is None:
            logger.info("nothing to resume in '%s': starting afresh", config["checkpoint_dir"])
        result = train(config, state=state).result
    # Disconnected: where the file cannot be written, no other process waits for the one that says so.
    return _deliver(result, result_file)


@dataclass
class TrainedRun:
    """A finished run with everything that made it, for further analyses; ``result`` is as ``run`` returns it."""

    config: RunConfig
    data: PreparedData
    network: Any
    trainer: Any
    result: dict[str, Any]


def train(
    config: RunConfig, datasets: DatasetCache | None = None, on_scores: Any = None, state: dict[str, Any] | None = None
) -> TrainedRun:
    """Train, validate and test by a checked configuration.

    Parameters
    ----------
    datasets : data sets that runs share.
    on_scores : called in the final test as ``PluginTrainer.on_scores`` is.
    state : of an interrupted training, from ``find_state``, to go on with.
    """
    model, dataset = config["model"], config["dataset"]
    make_folder(config["checkpoint_dir"], "checkpoint_dir")
    with _log_file(config) as log:
        with _explained(f"preparing data set '{dataset}'", log), distributed.one_after_the_first():
            data = prepare_data(config, datasets)
        train_data, valid_data, test_data = data.loaders
        with _explained(f"building model '{model}'", log):
            network, trainer = build(config, train_data._dataset)
        if distributed.size() > 1:
            if not (trainer.goes_through_once and hasattr(train_data, "batch_sampler")):
                raise UserError(
                    f"model '{model}' trains in a way of its own: train it in one process, without --nproc or torchrun"
                )
            distributed.share_training(train_data)
            for loader in (valid_data, test_data):
                distributed.share_evaluation(loader)
            # Equal weights until here, other draws from here on.
            init_seed((config["seed"] + 1 + distributed.rank()) % 2**32, config["reproducibility"])
        trainer.id_tokens, trainer.popularity = data.id_tokens, torch.from_numpy(data.popularity)
        trainer.on_validation = lambda epoch: logger.info(describe_epoch(epoch, config))
        if state is not None:
            done = f"{state['unfinished']['done']} batches of epoch {state['epoch'] + 1}"
            logger.info("resuming after %s from '%s'", done, os.path.relpath(state["state_file"]))
            trainer.resume(state)
        # Some of RecBole's loaders are made of others and have no generator of their own, and some trainers go through
        # the data several times an epoch: there is no single place to go on from.
        trainer.keeps_state = hasattr(train_data, "generator") and trainer.goes_through_once
        listening = trainer.stop_request.listening() if trainer.keeps_state else contextlib.nullcontext()
        with _explained(f"training model '{model}'", log), listening:
            _, best_valid_result = trainer.fit(
                train_data, valid_data, verbose=False, show_progress=config["show_progress"]
            )
        trainer.keeps_state = False
        trainer.on_scores = on_scores
        test_result, eval_seconds = timed_test(trainer, test_data, config)
    result = {
        **describe_run(config, data, network),
        "best_epoch": trainer.best_epoch,
        "best_valid_result": _plain_metrics(best_valid_result),
        "test_result": test_result,
        "train_seconds": trainer.train_seconds,
        "eval_seconds": eval_seconds,
        "checkpoint": os.path.abspath(trainer.saved_model_file),
        "log": log,
        "history": trainer.history,
    }
    if distributed.rank() == 0:
        Path(trainer.state_file).unlink(missing_ok=True)
    return TrainedRun(config, data, network, trainer, result)


def evaluate(
    checkpoint_file: str | Path, *more: str | Path, result_file: str | Path | None = None, **parameters: Any
) -> dict[str, Any]:
    """Test a checkpoint, or several as one; with no parameters, the figures of one are those of the run that wrote it.

    Parameters
    ----------
    checkpoint_file : a ``.pth`` file of ``run``.
    more : others, of sequential models on the same data; the mean of all their softmax probabilities is tested.
    result_file : where to write the result as JSON.
    parameters : what to change, for every checkpoint, such as ``sampling_steps=1`` or ``mask_seen=True``.

    Returns
    -------
    As ``run``, without what only training knows; of several checkpoints, what is said about one is about the first,
    but for ``n_parameters`` and the list ``checkpoints``.

    Raises
    ------
    UserError
        A file is no checkpoint of ours, a parameter is wrong, the data is not what the model was trained on, or the
        models do not fit together.
    """
    files_given = [checkpoint_file, *more]
    states = [_run_checkpoint(path) for path in files_given]
    configs = [RunConfig(state["model"], state["dataset"], {**state["config"], **parameters}) for state in states]
    for path, state, config in zip(files_given[1:], states[1:], configs[1:]):
        _check_fits_together(checkpoint_file, states[0], configs[0], path, state, config)
    state, config = states[0], configs[0]
    result_file = _writable(result_file)
    with distributed.joined(config["device"]), _log_file(config) as log:
        with _explained(f"preparing data set '{state['dataset']}'", log), distributed.one_after_the_first():
            data = prepare_data(config)
        train_data, _, test_data = data.loaders
        distributed.share_evaluation(test_data)
        if data.id_tokens != state["id_tokens"]:
            raise UserError(
                f"data set '{state['dataset']}' under '{config['data_path']}' is not the one that checkpoint "
                f"'{checkpoint_file}' was trained on (its users or items differ): give the original with --data_path"
            )
        built = []
        for path, state, member in zip(files_given, states, configs):
            with _explained(f"building model '{state['model']}'", log):
                built.append(build(member, train_data._dataset))
            try:
                built[-1][1].load_weights(state)
            except RuntimeError:
                raise UserError(
                    f"the weights of checkpoint '{path}' do not fit the parameters given "
                    f"({', '.join(parameters.keys() - PLACES)}): leave out those that change the network's shape"
                ) from None
        network, trainer = built[0]
        if more:
            network = trainer.model = _ensemble([member for member, _ in built], files_given)
        test_result, eval_seconds = timed_test(trainer, test_data, config, load_best=False)
    result = {
        **describe_run(config, data, network),
        "best_epoch": states[0]["epoch"],
        "test_result": test_result,
        "eval_seconds": eval_seconds,
        "checkpoint": os.path.abspath(checkpoint_file),
        **({"checkpoints": [os.path.abspath(path) for path in files_given]} if more else {}),
        "log": log,
    }
    return _deliver(result, result_file)


def _run_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint that a run wrote, opened."""
    state = checkpoint.load(path)
    missing = {"model", "dataset", "config", "id_tokens", "epoch", "state_dict", "other_parameter"} - state.keys()
    if missing:
        raise UserError(f"checkpoint '{path}' lacks {', '.join(sorted(missing))}: give a file that a run wrote")
    return state


def _check_fits_together(
    first_path: str | Path,
    first: Mapping[str, Any],
    first_config: RunConfig,
    path: str | Path,
    state: Mapping[str, Any],
    config: RunConfig,
) -> None:
    """Refuse checkpoints that one evaluation cannot serve."""
    differing = [name for name in ("dataset", "id_tokens") if state[name] != first[name]]
    if differing:
        raise UserError(
            f"checkpoints '{first_path}' and '{path}' were trained on different data (users, items or name): "
            "give checkpoints of one data set"
        )
    name = "MAX_ITEM_LIST_LENGTH"
    if config[name] != first_config[name]:
        raise UserError(
            f"checkpoint '{path}' has {name} {config[name]}, but '{first_path}' has {first_config[name]}: "
            "checkpoints that are tested as one see histories of one length"
        )


def _ensemble(networks: Sequence[Any], paths: Sequence[str | Path]) -> Ensemble:
    for network, path in zip(networks, paths):
        if network.type != ModelType.SEQUENTIAL or not ranks_all_items(network):
            raise UserError(
                f"checkpoint '{path}' is of {type(network).__name__}, which cannot be tested together with others: "
                "give checkpoints of sequential models that rank all items"
            )
    return Ensemble(networks)


def recommend(
    checkpoint_file: str | Path,
    /,
    output: str | Path,
    input: str | Path | None = None,
    *,
    k: int = 20,
    exclude_seen: bool = False,
    candidates: str | Path | None = None,
    samples: int | None = None,
    diversity: float = 0.0,
    **parameters: Any,
) -> dict[str, int]:
    """Write recommendations for histories in a file, or for all users of the training data, to a file.

    Parameters
    ----------
    checkpoint_file : a ``.pth`` file of ``run``, of a sequential model.
    output : ``.csv``, ``.jsonl`` or ``.parquet``: user_id, rank, item_id, score, popular.
    input : ``.inter``, ``.csv``, ``.jsonl`` or ``.parquet``, see ``recbole_diffurec.histories``; None for every user of
        the training data, the next item after all their interactions.
    k : length of the lists.
    exclude_seen : leave out the items of the history.
    candidates : a text file with one item id a line; recommend these alone.
    samples, diversity : see ``Recommender.recommend``; the output gets the columns frequency and spread.
    parameters : for inference, such as ``sampling_steps=4``.

    Returns
    -------
    dict with the numbers of ``users``, ``rows``, ``unknown_items`` (skipped) and ``popular_users`` (no known item).

    Raises
    ------
    UserError
        A file cannot be read or written, or a parameter is wrong. Nothing is left half-written.
    """
    if input is not None and Path(output).resolve() == Path(input).resolve():
        raise UserError(f"output '{output}' is the input as well: give another file")
    recommender = Recommender.load(checkpoint_file, **parameters)
    allowed = None if candidates is None else _read_lines(candidates, "candidates")
    batches = training_histories(recommender.config) if input is None else recommender.histories(input)
    counts = {"users": 0, "rows": 0, "unknown_items": 0, "popular_users": 0}
    known = KnownIds(recommender, f"of input '{input}'")
    with writing(output) as append:
        for users, sequences in batches:
            table = recommender.recommend(sequences, k, exclude_seen, allowed, users, samples, diversity)
            append(table)
            counts["users"] += len(users)
            counts["rows"] += len(table)
            counts["unknown_items"] += known.add(sequences)
            counts["popular_users"] += table.loc[table["popular"], "user_id"].nunique()
        known.check()
    return counts


# The share of known ids below which a table looks like one of other items.
FEW_KNOWN = 0.1


class KnownIds:
    """Ids that a model knows among those that it is given, counted.

    Parameters
    ----------
    recommender : Recommender
    whence : str
        Where the ids come from, for messages.
    """

    def __init__(self, recommender: Recommender, whence: str):
        self._recommender, self._whence = recommender, whence
        self._total = self._unknown = 0
        self._examples: dict[str, None] = {}

    def add(self, sequences: Sequence[Sequence[str]]) -> int:
        """Count the ids of some histories; how many of them are unknown."""
        unknown = [item for sequence in sequences for item in sequence if not self._recommender.knows(item)]
        for item in unknown:
            if len(self._examples) == 3:
                break
            self._examples[item] = None
        self._total += sum(map(len, sequences))
        self._unknown += len(unknown)
        return len(unknown)

    def check(self) -> None:
        """Warn where the model knows few of the ids.

        Raises
        ------
        UserError
            It knows none.
        """
        known = self._total - self._unknown
        if not self._unknown or known >= FEW_KNOWN * self._total:
            return
        examples = []
        for item in self._examples:
            like = self._recommender.like(item)
            examples.append(f"{item!r}" + (f" (known is {like!r})" if like else ""))
        named = f"such as {', '.join(examples)}"
        if not known:
            raise UserError(
                f"none of the {self._total:,} item ids {self._whence} is known to the model, {named}: give ids as in "
                f"its training data"
            )
        logger.warning(
            "only %s of the %s item ids %s are known to the model; unknown are %s",
            f"{known:,}",
            f"{self._total:,}",
            self._whence,
            named,
        )


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
        part = slice(start, start + HISTORIES_PER_BATCH)
        yield list(order[part]), [list(history) for history in histories[part]]


def _read_lines(path: str | Path, what: str) -> list[str]:
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{what} '{path}' cannot be read ({reason}): check the path") from None


# Steps of a run


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
    n_users, n_items, n_interactions : after filtering, without padding.
    loaders : training, validation and test data.
    id_tokens : {"users": [...], "items": [...]}, the original ids in order of their numbers, padding first.
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
                *(config["eval_batch_size"], fitting, f"{self.n_items:,}"),
            )
            config["eval_batch_size"] = fitting
        if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
            # RecBole counts users times items here, and users alone for sequential models (general_dataloader.py:238).
            config["eval_batch_size"] = config["eval_batch_size"] * int(dataset.item_num)
        # RecBole would open a pickle of this name if it lay in the checkpoint folder (data/utils.py:108).
        config["dataloaders_save_path"] = os.path.join(os.devnull, "none")
        too_small = f"data set '{config['dataset']}' leaves no {{}} sample: users need at least 4 interactions"
        try:
            self.loaders = data_preparation(config, dataset)
        except ValueError as error:
            if "num_samples" not in str(error):  # which torch's sampler says of an empty training part
                raise
            raise UserError(too_small.format("training")) from None
        held_out = [loader._dataset.inter_feat[dataset.iid_field].numpy() for loader in self.loaders[1:]]
        self.popularity = item_counts - np.bincount(np.concatenate(held_out), minlength=len(item_counts))
        if config["batch_by_length"] and config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            group_by_length(self.loaders[0])
        if config["model"] in TRIMMED_MODELS:
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
        *(config["dataset"], *(f"{n:,}" for n in counts), time.perf_counter() - started),
    )
    if data.n_time_ties:
        logger.info(
            "%s interactions (%.1f%%) share their time with another one of the same user; they keep the file's order",
            *(f"{data.n_time_ties:,}", 100 * data.n_time_ties / data.n_interactions),
        )
    expected = _expected_counts(config)
    if expected and expected != counts:
        logger.warning(
            "data set '%s' has %s users, items and interactions after filtering, where %s are known: "
            "the file differs from the published one",
            *(config["dataset"], counts, expected),
        )
    return data


def build(config: RunConfig, train_dataset: Any) -> tuple[Any, Any]:
    """The model on its device, and its trainer."""
    allocator.keep_freed_memory()
    init_seed(config["seed"], config["reproducibility"])
    network = config.model_class(config, train_dataset).to(config["device"])
    trainer = trainer_class(get_trainer(config["MODEL_TYPE"], config["model"]))(config, network)
    return network, trainer


def timed_test(trainer: Any, test_data: Any, config: RunConfig, load_best: bool = True) -> tuple[dict, float]:
    """Test metrics and the seconds they took, the loading of the weights not counted."""
    if load_best:
        trainer.load_best()
    started = time.perf_counter()
    result = trainer.evaluate(test_data, load_best_model=False, show_progress=config["show_progress"])
    return _plain_metrics(result), time.perf_counter() - started


# Reporting


def describe_run(config: RunConfig, data: PreparedData, network: torch.nn.Module) -> dict[str, Any]:
    """What every result says about its run."""
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "n_users": data.n_users,
        "n_items": data.n_items,
        "n_interactions": data.n_interactions,
        "n_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "device": str(config["device"]),
        "config": json.loads(json.dumps(config.plain())),
        "versions": {
            "recbole_diffurec": __version__,
            "recbole": recbole.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pandas": pd.__version__,
            "python": platform.python_version(),
        },
    }


def describe_epoch(epoch: Mapping[str, Any], config: RunConfig) -> str:
    """One line on a validated epoch."""
    return (
        f"epoch {epoch['epoch'] + 1}/{config['epochs']}: loss {epoch['train_loss']:.4f}, "
        f"valid {config['valid_metric']} {epoch['valid_score']:.4f} "
        f"({epoch['train_seconds']:.1f} s training, {epoch['valid_seconds']:.1f} s validating)"
    )


def format_result(result: Mapping[str, Any]) -> str:
    """The table and the places that a run ends with."""
    columns = {"valid": result.get("best_valid_result"), "test": result["test_result"]}
    columns = {name: metrics for name, metrics in columns.items() if metrics}
    names = {"hit": "HR", "ndcg": "NDCG"}
    checkpoints = result.get("checkpoints", ())
    what = f"{len(checkpoints)} models as one" if checkpoints else result["model"]
    lines = [f"{what} on {result['dataset']}", "", " " * 10 + "".join(f"{name:>10}" for name in columns)]
    for key in result["test_result"]:
        metric, _, k = key.partition("@")
        label = f"{names.get(metric, metric)}@{k}" if k else names.get(metric, metric)
        lines.append(f"{label:<10}" + "".join(f"{metrics[key]:>10.4f}" for metrics in columns.values()))
    lines.append("")
    if "train_seconds" in result:
        lines.append(f"training    {result['train_seconds']:.1f} s, best epoch {result['best_epoch'] + 1}")
    lines.append(f"evaluation  {result['eval_seconds']:.1f} s")
    if not checkpoints and result.get("checkpoint"):
        checkpoints = [result["checkpoint"]]
    lines += [f"checkpoint  {os.path.relpath(path)}" for path in checkpoints]
    for name in ("log", "result_file"):
        if result.get(name):
            lines.append(f"{name.replace('_file', ''):<12}{os.path.relpath(result[name])}")
    return "\n".join(lines)


def _expected_counts(config: RunConfig) -> tuple[int, ...] | None:
    """The published counts for the filter in force, if the data set's defaults know them."""
    users, items = config["user_inter_num_interval"], config["item_inter_num_interval"]
    for minimum, counts in (config["expected_counts"] or {}).items():
        if users == items == f"[{minimum},inf)":
            return tuple(counts)
    return None


def _plain_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in result.items()}


# Files


@contextlib.contextmanager
def _log_file(config: RunConfig) -> Iterator[str]:
    """RecBole's log lines go to a file of this run's own, its warnings to the terminal as well."""
    if distributed.rank() > 0:
        yield os.devnull
        return
    folder = os.path.join("log", config["model"])
    make_folder(folder, "the folder for logs")
    name = f"{config['model']}-{config['dataset']}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}.log"
    path = os.path.join(folder, name)
    root = logging.getLogger()
    level = root.level
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        root.info("command: %s", sys.argv)
        root.info("configuration: %s", json.dumps(config.plain(), default=str))
        yield os.path.abspath(path)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


@contextlib.contextmanager
def _explained(what: str, log: str) -> Iterator[None]:
    """Turn what RecBole raises over its many parameters into one sentence; the traceback goes to the log file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise UserError(
                f"{what} ran out of memory: use a machine with more, a smaller data set or a smaller model"
            ) from error
        if isinstance(error, torch.distributed.DistError) or "Connection closed by peer" in str(error):
            raise UserError(f"{what} stopped, because another of the processes did: see what it said") from error
        logging.getLogger().info("%s failed", what, exc_info=True)
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{what} failed inside RecBole ({type(error).__name__}: {reason}): check the parameters and columns "
            f"that it names; the traceback is in '{os.path.relpath(log)}'"
        ) from error


def make_folder(path: str, what: str) -> None:
    """Make a folder for output, or say in one sentence why it cannot be."""
    try:
        os.makedirs(path, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except OSError as error:
        raise UserError(f"{what} '{path}' cannot be made ({error.strerror}): give another one") from None
    if not writable:
        raise UserError(f"{what} '{path}' cannot be written to: give another one")


def _writable(path: str | Path | None) -> Path | None:
    """Refuse a result file that could not be written, before hours are spent on the result."""
    if path is None:
        return None
    path = Path(path)
    if path.is_dir():
        raise UserError(f"result_file '{path}' is a folder: give the path of a file")
    make_folder(str(path.parent), "the folder of result_file,")
    return path


def _deliver(result: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """Write the result as JSON, whole or not at all, and return it."""
    if path is not None and distributed.rank() == 0:
        files.write_text(path, json.dumps(result, indent=2))
        result = {**result, "result_file": str(path.resolve())}
    return result

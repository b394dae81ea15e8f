"""RecBole's trainers with a learning-rate schedule, a live progress bar, safe checkpoints and one way of masking."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
import warnings
from typing import Any, Callable, Iterator

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.trainer import NCLTrainer, Trainer
from torch.optim.lr_scheduler import StepLR
from tqdm import tqdm

from recbole_diffurec.errors import Interrupted, RankError, UserError
from recbole_diffurec.host.dataset import SequenceDataset
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.runtime import checkpoint, distributed, files
from recbole_diffurec.training.averaging import WeightAverage
from recbole_diffurec.training.epoch import Epoch
from recbole_diffurec.training.report import out_of_memory
from recbole_diffurec.training.state import EXTENSION, StopRequest, TrainingState, check_fits, misfit, random_states
from recbole_diffurec.training.weights import load_weights, not_finite

logger = logging.getLogger("recbole_diffurec")


class PluginTrainer(Trainer):
    """RecBole's trainer with our additions; in front of any other trainer of RecBole it adds them there.

    RecBole's hooks are extended, none is replaced.

    Attributes
    ----------
    history : one dict per epoch: epoch (0-based, as RecBole counts), train_loss, train_seconds, learning_rate, and,
        where the epoch was validated, valid_seconds, valid_score, valid_result.
    train_seconds : time in training epochs, without validation.
    stop_request : whether a signal has asked the training to stop.
    keeps_state : whether the training leaves a state to resume from.
    """

    model: Any  # in validation it may be another form of the one that is trained

    def __init__(self, config: Any, model: Any):
        super().__init__(config, model)
        name = files.unique_name(f"{config['model']}-{config['dataset']}")
        self.saved_model_file = os.path.join(
            self.checkpoint_dir, distributed.broadcast_from_rank0(lambda: name) + ".pth"
        )
        self._synchronised_loss: distributed.SynchronisedLoss | None = None
        self.history: list[dict[str, Any]] = []
        self._about_data: dict[str, Any] = {"id_tokens": {}, "popularity": torch.zeros(0, dtype=torch.long)}
        self._resumed_state_file: str | None = None
        self._on_scores: Callable[..., None] | None = None
        self._on_validation: Callable[[dict[str, Any]], None] | None = None
        self._evaluated: Any = None  # the data set under evaluation
        self._eval_bar: tqdm | None = None
        self.stop_request = StopRequest()
        self.keeps_state = False
        self._unfinished: dict[str, Any] | None = None
        self._saved_at = 0.0
        if self.enable_amp and self.device.type == "cuda":
            # RecBole's autocast takes the default, which is fp16 there and would need its loss scaled.
            torch.set_autocast_dtype("cuda", torch.bfloat16)
        step = config["lr_decay_step"]
        self.lr_scheduler = StepLR(self.optimizer, step, config["lr_decay_gamma"]) if step else None
        decay = config["ema_decay"]
        self.average = WeightAverage(self.model, self.optimizer, decay) if decay else None
        self._take_collected = self.eval_collector.get_data_struct
        self.eval_collector.get_data_struct = lambda: distributed.gather_evaluation(self._take_collected())

    @property
    def has_plain_epochs(self) -> bool:
        """Whether an epoch goes once through the training data, with the model's own loss."""
        host = super()._train_epoch.__func__  # NCLTrainer only wraps Trainer's epoch
        return host in (Trainer._train_epoch, NCLTrainer._train_epoch)

    @property
    def train_seconds(self) -> float:
        return sum(epoch["train_seconds"] for epoch in self.history)

    @property
    def best_epoch(self) -> int:
        """0-based epoch whose weights were kept: the last of those with the best validation score."""
        validated = [epoch for epoch in self.history if "valid_score" in epoch]
        sign = 1 if self.valid_metric_bigger else -1
        return max(validated or self.history, key=lambda e: (sign * e.get("valid_score", 0), e["epoch"]))["epoch"]

    def about_data(self, data: Any) -> None:
        """What checkpoints are to keep of ``PreparedData``: the ids in order of their numbers, counts, fingerprint."""
        popularity = torch.from_numpy(data.popularity)
        self._about_data = {"id_tokens": data.id_tokens, "popularity": popularity, "data": data.fingerprint}

    def train_resumably(
        self, train_data: Any, valid_data: Any, on_validation: Callable[[dict[str, Any]], None]
    ) -> dict[str, float]:
        """Train, leaving a state to resume from, and stop between batches where a signal asks for it.

        Parameters
        ----------
        train_data, valid_data : loaders.
        on_validation : called with the newest entry of ``history`` after each validation.

        Returns
        -------
        The best validation result.
        """
        self._on_validation = on_validation
        # Some of RecBole's loaders are made of others and have no generator of their own, and some trainers go through
        # the data several times an epoch: there is no single place to resume from.
        self.keeps_state = hasattr(train_data, "generator") and self.has_plain_epochs
        listening = self.stop_request.listening() if self.keeps_state else contextlib.nullcontext()
        try:
            with listening:
                _, best = self.fit(train_data, valid_data, verbose=False, show_progress=self.config["show_progress"])
        finally:
            self.keeps_state = False
        return best

    def try_out(self, train_data: Any, valid_data: Any, on_validation: Callable[[dict[str, Any]], None]) -> None:
        """Train without leaving anything on the disk; ``on_validation`` as in ``train_resumably``."""
        self._on_validation = on_validation
        self.fit(train_data, valid_data, verbose=False, saved=False, show_progress=False)

    def time_epoch(self, train_data: Any) -> float:
        """Seconds that an epoch over ``train_data`` takes; its steps are taken."""
        started = time.perf_counter()
        self._train_epoch(train_data, 0)
        return time.perf_counter() - started

    @contextlib.contextmanager
    def telling(self, on_scores: Callable[..., None] | None) -> Iterator[None]:
        """Call ``on_scores(interaction, scores [B, I], positive_u, positive_i)`` for every batch evaluated within."""
        before, self._on_scores = self._on_scores, on_scores
        try:
            yield
        finally:
            self._on_scores = before

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().fit(*args, **kwargs)
        finally:
            # RecBole leaves it open, with a thread that writes what it still has.
            self.tensorboard.close()

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Callable | None = None, show_progress: bool = False
    ) -> Any:
        start, self._unfinished = self._unfinished, None
        description = f"train {epoch_idx + 1}/{self.epochs}"
        epoch = Epoch(train_data, description, show_progress, functools.partial(self.between, epoch_idx), start)
        if loss_func or self._synchronised_loss is None:
            # RecBole's models may have parameters without a gradient.
            unused = not getattr(self.model, "uses_all_parameters", False)
            loss = loss_func or self.model.calculate_loss
            self._synchronised_loss = distributed.SynchronisedLoss(self.model, loss, self.device, unused)
        synchronised_loss = self._synchronised_loss
        if hasattr(self.model, "begin_epoch"):
            self.model.begin_epoch(epoch_idx)

        # RecBole calls the function that it is given, so this one sees every loss.
        def recorded(interaction: Any) -> Any:
            losses, values = synchronised_loss(interaction)
            total = epoch.record(values)
            if not math.isfinite(total):
                raise UserError(self._describe_divergence(total, epoch_idx, len(epoch.losses)))
            return losses

        learning_rate = self.optimizer.param_groups[0]["lr"]
        self._saved_at = time.monotonic()
        try:
            with torch.autograd.set_detect_anomaly(bool(self.config["detect_anomaly"])):
                losses = super()._train_epoch(epoch, epoch_idx, loss_func=recorded)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise RankError(
                f"training ran out of memory at batch {epoch.done + 1} of epoch {epoch_idx + 1}: lower "
                f"train_batch_size (now {self.config['train_batch_size']}) or MAX_ITEM_LIST_LENGTH (now "
                f"{self.config['MAX_ITEM_LIST_LENGTH']}), or with our models give --gradient_checkpointing=True, and "
                f"--sampled_softmax=2048 for many items"
            ) from None
        if epoch.losses:  # trainers with loss functions of their own leave them empty
            losses = epoch.total
        total = (sum(losses) if isinstance(losses, tuple) else losses) / max(len(train_data), 1)
        self.history.append(
            {"epoch": epoch_idx, "train_loss": total, "train_seconds": epoch.seconds, "learning_rate": learning_rate}
        )
        if self.lr_scheduler is not None:
            with warnings.catch_warnings():
                # An epoch that was resumed at its end has no step of the optimizer.
                warnings.filterwarnings("ignore", message="Detected call of .lr_scheduler.step", category=UserWarning)
                self.lr_scheduler.step()
        return losses

    def between(self, epoch_idx: int, epoch: Epoch) -> None:
        """Between two batches: keep the state when it is time or wanted, and stop when asked to."""
        if not self.keeps_state:
            return
        minutes = self.config["checkpoint_minutes"]
        due = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        # All processes must come to the same decision.
        due, asked = distributed.all_reduce_max([due, self.stop_request.signal or 0], self.device)
        if due or asked or epoch.done == len(epoch):
            self._save_state(epoch, epoch_idx)
            self._saved_at = time.monotonic()
        if asked:
            raise Interrupted(asked, self.state_file)

    def _check_weights(self) -> None:
        """Stop where a step has made the weights other than numbers, before they are validated or kept."""
        problem = not_finite(self.model)
        if problem:
            raise UserError(
                f"the training has diverged after a finite loss: {problem} (learning_rate "
                f"{self.optimizer.param_groups[0]['lr']:g}); {self._kept()}: lower the learning rate or clip gradients "
                f"(--clip_grad_norm='{{max_norm: 1}}')"
            )

    def _kept(self) -> str:
        if os.path.isfile(self.saved_model_file):
            return f"the best weights so far are in '{self.saved_model_file}'"
        return "no epoch had been validated yet"

    def _describe_divergence(self, loss: float, epoch_idx: int, batch: int) -> str:
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"the loss became {loss} at batch {batch} of epoch {epoch_idx + 1} (learning_rate {rate:g}); "
            f"{self._kept()}: lower the learning rate or clip gradients (--clip_grad_norm='{{max_norm: 1}}'); "
            f"--detect_anomaly=True finds the operation"
        )

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """The weights that are validated and kept: the average, where there is one."""
        if self.average is None:
            return contextlib.nullcontext()
        if self.average.n_steps == 0:
            raise UserError(
                f"ema_decay is {self.average.decay}, but {self.config['model']} is not trained by steps of one "
                f"optimizer, so there is nothing to average: leave ema_decay empty"
            )
        return self.average.in_place()

    @contextlib.contextmanager
    def _sampling_for_validation(self) -> Iterator[None]:
        """A diffusion model with the number of reverse steps that validation has."""
        steps, model = self.config["valid_sampling_steps"], self.model
        if steps:
            self.model = model.with_sampling_steps(steps)
        try:
            yield
        finally:
            self.model = model

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, dict[str, float]]:
        started = time.perf_counter()
        with self._averaged(), self._sampling_for_validation():
            self._check_weights()
            score, result = super()._valid_epoch(valid_data, show_progress)
        seconds = time.perf_counter() - started
        self.history[-1].update(valid_seconds=seconds, valid_score=score, valid_result=dict(result))
        if self._on_validation is not None:
            self._on_validation(self.history[-1])
        return score, result

    # Evaluation

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: str | None = None, show_progress: bool = False
    ) -> Any:
        if load_best_model:
            self.load_best(model_file)
        if not eval_data:
            return None
        self._evaluated = dataset_of(eval_data)
        full_sort = isinstance(eval_data, FullSortEvalDataLoader)
        batches = eval_data.batch_sampler  # its batch size may be changed, the loader's not
        while True:
            # RecBole asks the class of the loader, so the bar goes around the loader's own iteration.
            options: dict[str, Any] = {"disable": not (full_sort and show_progress), "leave": False, "unit": "batch"}
            try:
                with tqdm(total=len(eval_data), desc="evaluate", **options) as self._eval_bar:
                    return super().evaluate(eval_data, load_best_model=False)
            except (MemoryError, RuntimeError) as error:
                # Whoever is told of the scores must not be told twice.
                if not out_of_memory(error) or self._on_scores is not None:
                    raise
            if batches.batch_size == 1:
                raise RankError(
                    "evaluation ran out of memory with a single user at a time: use a machine or GPU with more"
                )
            batches.batch_size = max(1, batches.batch_size // 2)
            self._take_collected()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.info(
                "evaluation ran out of memory: going on with %d users at a time "
                "(--eval_batch_size=%d avoids the detour)",
                batches.batch_size,
                batches.batch_size,
            )

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        interaction, seen, positive_u, positive_i = batched_data
        if not self.config["mask_seen"]:
            seen = None
        elif seen is None and isinstance(self._evaluated, SequenceDataset):
            seen = self._evaluated.seen_items(interaction)
        if self.keeps_state and self.stop_request.signal is not None and distributed.world_size() == 1:
            raise Interrupted(self.stop_request.signal, self.state_file)
        scored = super()._full_sort_batch_eval((interaction, seen, positive_u, positive_i))
        if self._on_scores is not None:
            self._on_scores(*scored)
        if self._eval_bar is not None:
            self._eval_bar.update()
        return scored

    # Checkpoints

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if distributed.rank() > 0:
            return
        with self._averaged():
            checkpoint.save(
                kwargs.get("saved_model_file", self.saved_model_file),
                {
                    "model": self.config["model"],
                    "dataset": self.config["dataset"],
                    "config": self.plain_config(),
                    **self._about_data,
                    "epoch": epoch,
                    **self._progress(),
                },
            )

    def _progress(self) -> dict[str, Any]:
        """What a checkpoint and a state both hold of the training."""
        return {
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "history": self.history,
            "state_dict": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict() if self.lr_scheduler is not None else None,
        }

    @property
    def state_file(self) -> str:
        """Where the state of a training that is going on is kept."""
        own = f"{self.saved_model_file.removesuffix('.pth')}.{self.config.key()}{EXTENSION}"
        return self._resumed_state_file or own

    def _save_state(self, epoch: Epoch, epoch_idx: int) -> None:
        random = distributed.all_gather(random_states())
        if distributed.rank() > 0:
            return
        self._check_weights()
        checkpoint.save(
            self.state_file,
            {
                "model": self.config["model"],
                "dataset": self.config["dataset"],
                "data": self._about_data["data"],
                "config": self.plain_config(),
                "checkpoint": os.path.basename(self.saved_model_file),
                "epoch": epoch_idx,
                "unfinished": epoch.state(),
                "random": random,
                **self._progress(),
                "best_valid_result": dict(self.best_valid_result) if self.best_valid_result else None,
                "average": self.average.state_dict() if self.average is not None else None,
            },
        )

    def resume(self, state: TrainingState) -> None:
        """Go on from a state of ``find_state`` with the next call of ``fit``, to the same weights and figures."""
        if len(state["random"]) != distributed.world_size():
            raise UserError(
                f"the training in '{state['state_file']}' ran in {len(state['random'])} processes, not in "
                f"{distributed.world_size()}: start as many, or leave out --resume to start afresh"
            )
        self._resumed_state_file = state["state_file"]
        self.saved_model_file = os.path.join(os.path.dirname(state["state_file"]), state["checkpoint"])
        load_weights(self.model, state, state["state_file"])
        check_fits(state, self)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # what is damaged, it does not say
            raise misfit(state) from None
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.start_epoch, self.cur_step = state["epoch"], state["cur_step"]
        self.best_valid_score, self.best_valid_result = state["best_valid_score"], state["best_valid_result"]
        self.history = state["history"]
        self._unfinished = {**state["unfinished"], "random": state["random"]}

    def plain_config(self) -> dict[str, Any]:
        """The configuration as plain values; under RecBole's own ``Config``, those of its values that are plain."""
        if hasattr(self.config, "plain"):
            return self.config.plain()
        kinds = (bool, int, float, str, list, dict, type(None))
        return {k: v for k, v in self.config.final_config_dict.items() if isinstance(v, kinds)}

    def load_best(self, path: str | None = None) -> None:
        """Put the weights of the best epoch, or of the checkpoint ``path``, into the model."""
        path = path or self.saved_model_file

        # Process 0 wrote the file; the others need not see its disk.
        def weights() -> dict[str, Any]:
            state = checkpoint.load(path, self.device)
            return {key: state[key] for key in ("state_dict", "other_parameter")}

        load_weights(self.model, distributed.broadcast_from_rank0(weights), path)


@functools.cache
def trainer_class(host: type) -> type:
    """A trainer class of RecBole with our additions; ``host`` itself where it already has them."""
    if issubclass(host, PluginTrainer):
        return host
    return PluginTrainer if host is Trainer else type(host.__name__, (PluginTrainer, host), {})

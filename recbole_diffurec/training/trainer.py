"""RecBole's trainers with a learning-rate schedule, a live progress bar, safe checkpoints and one way of masking."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from recbole.trainer import NCLTrainer, Trainer
from torch.optim.lr_scheduler import StepLR

from recbole_diffurec.errors import Interrupted, RankError, UserError
from recbole_diffurec.host.checkpoints import about_data, plain_values
from recbole_diffurec.runtime import checkpoint, distributed
from recbole_diffurec.training.attributes import PlainAttributes
from recbole_diffurec.training.averaging import WeightAverage
from recbole_diffurec.training.epoch import Epoch
from recbole_diffurec.training.report import out_of_memory
from recbole_diffurec.training.scoring import ScoringTrainer
from recbole_diffurec.training.state import EXTENSION, StopRequest, random_states

logger = logging.getLogger("recbole_diffurec")


class PluginTrainer(ScoringTrainer):
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
        name = f"{config['model']}-{config['dataset']}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}.pth"
        self.saved_model_file = os.path.join(self.checkpoint_dir, distributed.broadcast_from_rank0(lambda: name))
        self._synchronised_loss: distributed.SynchronisedLoss | None = None
        self.history: list[dict[str, Any]] = []
        self._on_validation: Callable[[dict[str, Any]], None] | None = None
        self._validates = True
        self.stop_request = StopRequest()
        self.keeps_state = False
        self._unfinished: dict[str, Any] | None = None
        self._attributes = PlainAttributes(model)
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

    def train_resumably(
        self, train_data: Any, valid_data: Any, on_validation: Callable[[dict[str, Any]], None]
    ) -> dict[str, float] | None:
        """Train, leaving a state to resume from, and stop between batches where a signal asks for it.

        Parameters
        ----------
        train_data, valid_data : loaders; without validation data every epoch is trained, and the last one is kept.
        on_validation : called with the newest entry of ``history`` after each validation, or else after each epoch.

        Returns
        -------
        The best validation result, or None.
        """
        self._on_validation = on_validation
        self._validates = bool(valid_data)
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
        if not self._validates and self._on_validation is not None:
            self._on_validation(self.history[-1])
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

    def _describe_divergence(self, loss: float, epoch_idx: int, batch: int) -> str:
        rate = self.optimizer.param_groups[0]["lr"]
        kept = f"the best weights so far are in '{self.saved_model_file}'"
        if not os.path.isfile(self.saved_model_file):
            kept = "no epoch had been validated yet"
        return (
            f"the loss became {loss} at batch {batch} of epoch {epoch_idx + 1} (learning_rate {rate:g}); {kept}: lower "
            f"the learning rate or clip gradients (--clip_grad_norm='{{max_norm: 1}}'); --detect_anomaly=True finds "
            f"the operation"
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
            score, result = super()._valid_epoch(valid_data, show_progress)
        seconds = time.perf_counter() - started
        self.history[-1].update(valid_seconds=seconds, valid_score=score, valid_result=dict(result))
        if self._on_validation is not None:
            self._on_validation(self.history[-1])
        return score, result

    def _forget_collected(self) -> None:
        self._take_collected()  # of this process alone

    def _before_scores(self) -> None:
        if self.keeps_state and self.stop_request.signal is not None and distributed.world_size() == 1:
            raise Interrupted(self.stop_request.signal, self.state_file)

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
                    "config": plain_values(self.config),
                    **about_data(self.eval_collector.training_data),
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

    def pretrain(self, train_data: Any, verbose: bool = True, show_progress: bool = False) -> Any:
        """The first stages of S3Rec and RaCT: as many epochs as ``pretrain_epochs`` says, without validation.

        The last epoch's weights are kept under the run's own name too, whatever ``save_step`` is.
        """
        self.epochs = self.pretrain_epochs
        super().pretrain(train_data, verbose, show_progress)
        self._save_checkpoint(self.epochs - 1)
        return self.best_valid_score, {}

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """Keep a stage's weights under the name that RecBole gives them; RecBole would write a pickle."""
        self._save_checkpoint(epoch, saved_model_file=saved_model_file)

    @property
    def state_file(self) -> str:
        """Where the state of a training that is going on is kept."""
        return os.path.splitext(self.saved_model_file)[0] + EXTENSION

    def _save_state(self, epoch: Epoch, epoch_idx: int) -> None:
        random, attributes = (distributed.all_gather(own) for own in (random_states(), self._attributes.changed()))
        if distributed.rank() > 0:
            return
        checkpoint.save(
            self.state_file,
            {
                "config": plain_values(self.config),
                "checkpoint": os.path.basename(self.saved_model_file),
                "epoch": epoch_idx,
                "unfinished": epoch.state(),
                "attributes": attributes,
                "random": random,
                **self._progress(),
                "best_valid_result": dict(self.best_valid_result) if self.best_valid_result else None,
                "average": self.average.state_dict() if self.average is not None else None,
            },
        )

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a state of ``find_state`` with the next call of ``fit``, to the same weights and figures."""
        if len(state["random"]) != distributed.world_size():
            raise UserError(
                f"the training in '{state['state_file']}' ran in {len(state['random'])} processes, not in "
                f"{distributed.world_size()}: start as many, or leave out --resume to start afresh"
            )
        attributes = state["attributes"][distributed.rank()]
        if attributes["lost"]:
            raise UserError(
                f"the training in '{state['state_file']}' cannot go on as it was, because model "
                f"'{self.config['model']}' keeps what no file holds ({', '.join(attributes['lost'])}): leave out "
                f"--resume to start afresh"
            )
        self.saved_model_file = os.path.join(os.path.dirname(state["state_file"]), state["checkpoint"])
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.start_epoch, self.cur_step = state["epoch"], state["cur_step"]
        self.best_valid_score, self.best_valid_result = state["best_valid_score"], state["best_valid_result"]
        self.history = state["history"]
        put_back = functools.partial(self._attributes.put_back, attributes["kept"], self.device)
        self._unfinished = {**state["unfinished"], "random": state["random"], "put_back": put_back}

    def load_best(self, path: str | None = None) -> None:
        """Put the weights of the best epoch, or of the checkpoint ``path``, into the model."""
        path = path or self.saved_model_file

        # Process 0 wrote the file; the others need not see its disk.
        def weights() -> dict[str, Any]:
            state = checkpoint.load(path, self.device)
            return {key: state[key] for key in ("state_dict", "other_parameter")}

        self.load_weights(distributed.broadcast_from_rank0(weights))

    def load_weights(self, state: dict[str, Any]) -> None:
        """Put the weights of an opened checkpoint into the model."""
        self.model.load_state_dict(state["state_dict"])
        self.model.load_other_parameter(checkpoint.from_plain(state["other_parameter"]))


@functools.cache
def trainer_class(host: type) -> type:
    """A trainer class of RecBole with our additions; ``host`` itself where it already has them."""
    if issubclass(host, PluginTrainer):
        return host
    return PluginTrainer if host is Trainer else type(host.__name__, (PluginTrainer, host), {})

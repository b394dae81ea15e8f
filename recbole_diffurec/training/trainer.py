"""RecBole's trainers with a learning-rate schedule, a live progress bar, safe checkpoints and one way of masking."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any, cast

import torch
from recbole.trainer import NCLTrainer, Trainer

from recbole_diffurec.errors import Interrupted, RankError, UserError
from recbole_diffurec.host import compat
from recbole_diffurec.host.sequences import target_weight
from recbole_diffurec.runtime import distributed
from recbole_diffurec.training.epoch import Epoch
from recbole_diffurec.training.journal import Journal
from recbole_diffurec.training.keeping import KeepingTrainer
from recbole_diffurec.training.report import out_of_memory
from recbole_diffurec.training.state import StopRequest

logger = logging.getLogger("recbole_diffurec")

# A step of Adam by single operations reads and writes the item table a dozen times.
_WITH_ONE_KERNEL = (torch.optim.Adam, torch.optim.AdamW)


class PluginTrainer(KeepingTrainer):
    """RecBole's trainer with our additions; in front of any other trainer of RecBole it adds them there.

    RecBole's hooks are extended, none is replaced.

    Attributes
    ----------
    train_seconds : float
        Time in training epochs, without validation.
    stop_request : StopRequest
        Whether a signal has asked the training to stop.
    keeps_state : bool
        Whether the training leaves a state to resume from.
    journal : Journal or None
        Where the figures of the training go; ``fit`` opens one where there is none.
    """

    model: Any  # in validation it may be another form of the one that is trained

    def __init__(self, config: Any, model: Any):
        with compat.no_tensorboard():  # RecBole's writer sums losses, and its names are others; see journal
            super().__init__(config, model)
        self.journal: Journal | None = None
        self._synchronised_loss: distributed.SynchronisedLoss | None = None
        self._on_validation: Callable[[dict[str, Any]], None] | None = None
        self._validates = True
        self.stop_request = StopRequest()
        self.keeps_state = False
        self._saved_at = 0.0
        self._agreed: Sequence[int] = (0, 0)
        if self.enable_amp and self.device.type == "cuda":
            # RecBole's autocast takes the default, which is fp16 there and would need its loss scaled.
            torch.set_autocast_dtype("cuda", torch.bfloat16)
        self._take_collected = self.eval_collector.get_data_struct
        self.eval_collector.get_data_struct = lambda: distributed.gather_evaluation(self._take_collected())

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """RecBole's, which goes once over each parameter in a step where PyTorch has a kernel that does."""
        optimizer: torch.optim.Optimizer = super()._build_optimizer(**kwargs)
        for group in optimizer.param_groups:
            if isinstance(optimizer, _WITH_ONE_KERNEL) and all(map(torch.is_floating_point, group["params"])):
                group["fused"] = True
        return optimizer

    @property
    def has_plain_epochs(self) -> bool:
        """Whether an epoch goes once through the training data, with the model's own loss."""
        host = cast(MethodType, super()._train_epoch).__func__  # NCLTrainer only wraps Trainer's epoch
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
        train_data, valid_data : object
            Loaders; without validation data every epoch is trained, and the last one is kept.
        on_validation : callable
            Called with the newest entry of ``history`` after each validation, or else after each epoch.

        Returns
        -------
        dict of str to float or None
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
        self._on_validation, self.journal = on_validation, Journal()
        self.fit(train_data, valid_data, verbose=False, saved=False, show_progress=False)

    def time_epoch(self, train_data: Any) -> float:
        """Seconds that an epoch over ``train_data`` takes; its steps are taken."""
        started = time.perf_counter()
        self._train_epoch(train_data, 0)
        return time.perf_counter() - started

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        if self.journal is not None:
            return super().fit(*args, **kwargs)
        with Journal(self.name, self.config) as self.journal:  # RecBole's own run_recbole, or a call by hand
            self.journal.begin()
            return super().fit(*args, **kwargs)

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
            self._synchronised_loss = distributed.SynchronisedLoss(self.model, loss, unused)
        synchronised_loss = self._synchronised_loss
        if hasattr(self.model, "begin_epoch"):
            self.model.begin_epoch(epoch_idx)

        # RecBole calls the function that it is given, so this one sees every loss.
        def recorded(interaction: Any) -> Any:
            weight = target_weight(train_data, epoch.done)
            losses, values = synchronised_loss(interaction, weight, self._wishes())
            self._agreed = synchronised_loss.votes
            total = epoch.record(values)
            if not math.isfinite(total):
                raise UserError(self._describe_divergence(total, epoch_idx, len(epoch.losses)))
            return losses

        learning_rate = self.optimizer.param_groups[0]["lr"]
        self._saved_at, self._agreed = time.monotonic(), [0, 0]
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
        parts = [part / max(len(train_data), 1) for part in (losses if isinstance(losses, tuple) else (losses,))]
        self.history.append(
            {
                "epoch": epoch_idx,
                "train_loss": sum(parts),
                "train_seconds": epoch.seconds,
                "learning_rate": learning_rate,
            }
        )
        if self.journal is not None:
            self.journal.trained(self.history[-1], parts if len(parts) > 1 else ())
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
        # All processes must come to the same decision: what they told each other with the losses of the last batch.
        due, asked = self._wishes() if distributed.world_size() == 1 else self._agreed
        if due or asked or epoch.done == len(epoch):
            self._save_state(epoch, epoch_idx)
            self._saved_at = time.monotonic()
        if asked:
            raise Interrupted(asked, self.state_file)

    def _wishes(self) -> tuple[int, int]:
        """Whether it is time to keep the state, and the signal that asks for a stop, or 0."""
        minutes = self.config["checkpoint_minutes"]
        due = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return int(due), self.stop_request.signal or 0

    def _describe_divergence(self, loss: float, epoch_idx: int, batch: int) -> str:
        rate = self.optimizer.param_groups[0]["lr"]
        return (
            f"the loss became {loss} at batch {batch} of epoch {epoch_idx + 1} (learning_rate {rate:g}); "
            f"{self._kept()}: lower the learning rate or clip gradients (--clip_grad_norm='{{max_norm: 1}}'); "
            f"--detect_anomaly=True finds the operation"
        )

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
        if self.journal is not None:
            self.journal.validated(self.history[-1])
        if self._on_validation is not None:
            self._on_validation(self.history[-1])
        return score, result

    def _forget_collected(self) -> None:
        self._take_collected()  # of this process alone

    def _before_scores(self) -> None:
        if self.keeps_state and self.stop_request.signal is not None and distributed.world_size() == 1:
            raise Interrupted(self.stop_request.signal, self.state_file)


@functools.cache
def trainer_class(host: type) -> type:
    """A trainer class of RecBole with our additions; ``host`` itself where it already has them."""
    if issubclass(host, PluginTrainer):
        return host
    return PluginTrainer if host is Trainer else type(host.__name__, (PluginTrainer, host), {})

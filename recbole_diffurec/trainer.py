"""RecBole's trainers with a learning-rate schedule, a live progress bar, safe checkpoints and one way of masking."""

from __future__ import annotations

import functools
import os
import time
import uuid
from typing import Any, Callable, Iterator

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.trainer import Trainer
from torch.optim.lr_scheduler import StepLR
from tqdm import tqdm

from recbole_diffurec import checkpoint
from recbole_diffurec.data.dataset import SequenceDataset


class _Progress:
    """A data loader under a progress bar; everything but iteration is the loader's."""

    def __init__(self, loader: Any, description: str, show: bool):
        self._loader, self._description, self._show = loader, description, show
        self.bar: tqdm | None = None

    def __iter__(self) -> Iterator[Any]:
        with tqdm(self._loader, desc=self._description, disable=not self._show, leave=False, unit="batch") as self.bar:
            yield from self.bar

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class PluginTrainer(Trainer):
    """RecBole's trainer with our additions; in front of any other trainer of RecBole it adds them there.

    RecBole's hooks are extended, none is replaced.

    Attributes
    ----------
    history : one dict per epoch: epoch (0-based, as RecBole counts), train_loss, train_seconds, learning_rate, and,
        where the epoch was validated, valid_seconds, valid_score, valid_result.
    train_seconds : time in training epochs, without validation.
    on_scores : called with (interaction, scores [B, I], positive_u, positive_i) of every batch that is evaluated.
    """

    def __init__(self, config: Any, model: Any):
        super().__init__(config, model)
        name = f"{config['model']}-{config['dataset']}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}.pth"
        self.saved_model_file = os.path.join(self.checkpoint_dir, name)
        self.history: list[dict[str, Any]] = []
        self.id_tokens: dict[str, list[str]] = {}
        self.on_scores: Callable[..., None] | None = None
        step = config["lr_decay_step"]
        self.lr_scheduler = StepLR(self.optimizer, step, config["lr_decay_gamma"]) if step else None

    @property
    def train_seconds(self) -> float:
        return sum(epoch["train_seconds"] for epoch in self.history)

    @property
    def best_epoch(self) -> int:
        """0-based epoch whose weights were kept: the last of those with the best validation score."""
        validated = [epoch for epoch in self.history if "valid_score" in epoch]
        sign = 1 if self.valid_metric_bigger else -1
        return max(validated or self.history, key=lambda e: (sign * e.get("valid_score", 0), e["epoch"]))["epoch"]

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Callable | None = None, show_progress: bool = False
    ) -> Any:
        progress = _Progress(train_data, f"train {epoch_idx + 1}/{self.epochs}", show_progress)
        loss_func = loss_func or self.model.calculate_loss

        # RecBole calls the name that it is given, so a wrapper sees every loss.
        @functools.wraps(loss_func)
        def shown(interaction: Any) -> Any:
            losses = loss_func(interaction)
            if progress.bar is not None and not progress.bar.disable:
                total = sum(float(loss.detach()) for loss in (losses if isinstance(losses, tuple) else (losses,)))
                progress.bar.set_postfix(loss=f"{total:.4f}", refresh=False)
            return losses

        learning_rate = self.optimizer.param_groups[0]["lr"]
        started = time.perf_counter()
        losses = super()._train_epoch(progress, epoch_idx, loss_func=shown)
        seconds = time.perf_counter() - started
        total = (sum(losses) if isinstance(losses, tuple) else losses) / max(len(train_data), 1)
        self.history.append(
            {"epoch": epoch_idx, "train_loss": total, "train_seconds": seconds, "learning_rate": learning_rate}
        )
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        return losses

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, dict[str, float]]:
        started = time.perf_counter()
        score, result = super()._valid_epoch(valid_data, show_progress)
        seconds = time.perf_counter() - started
        self.history[-1].update(valid_seconds=seconds, valid_score=score, valid_result=dict(result))
        self.on_validation(self.history[-1])
        return score, result

    def on_validation(self, epoch: dict[str, Any]) -> None:
        """Called with the newest entry of ``history`` after each validation; for whoever reports it."""

    # Evaluation

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: str | None = None, show_progress: bool = False
    ) -> Any:
        if load_best_model:
            self.load_weights(checkpoint.load(model_file or self.saved_model_file, self.device))
        self._evaluated = eval_data._dataset if eval_data else None
        full_sort = isinstance(eval_data, FullSortEvalDataLoader)
        # RecBole asks the class of the loader, so the bar goes around the loader's own iteration.
        if full_sort and show_progress:
            with tqdm(total=len(eval_data), desc="evaluate", leave=False, unit="batch") as self._eval_bar:
                return super().evaluate(eval_data, load_best_model=False)
        self._eval_bar = None
        return super().evaluate(eval_data, load_best_model=False)

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        interaction, seen, positive_u, positive_i = batched_data
        if not self.config["mask_seen"]:
            seen = None
        elif seen is None and isinstance(self._evaluated, SequenceDataset):
            seen = self._evaluated.seen_items(interaction)
        scored = super()._full_sort_batch_eval((interaction, seen, positive_u, positive_i))
        if self.on_scores is not None:
            self.on_scores(*scored)
        if self._eval_bar is not None:
            self._eval_bar.update()
        return scored

    # Checkpoints

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        checkpoint.save(
            kwargs.get("saved_model_file", self.saved_model_file),
            {
                "model": self.config["model"],
                "dataset": self.config["dataset"],
                "config": self.plain_config(),
                "id_tokens": self.id_tokens,
                "epoch": epoch,
                "cur_step": self.cur_step,
                "best_valid_score": self.best_valid_score,
                "history": self.history,
                "state_dict": self.model.state_dict(),
                "other_parameter": self.model.other_parameter(),
                "optimizer": self.optimizer.state_dict(),
                "lr_scheduler": self.lr_scheduler.state_dict() if self.lr_scheduler is not None else None,
            },
        )

    def plain_config(self) -> dict[str, Any]:
        """The configuration as plain values; under RecBole's own ``Config``, those of its values that are plain."""
        if hasattr(self.config, "plain"):
            return self.config.plain()
        kinds = (bool, int, float, str, list, dict, type(None))
        return {k: v for k, v in self.config.final_config_dict.items() if isinstance(v, kinds)}

    def load_weights(self, state: dict[str, Any]) -> None:
        """Put the weights of an opened checkpoint into the model."""
        self.model.load_state_dict(state["state_dict"])
        self.model.load_other_parameter(checkpoint.from_plain(state["other_parameter"]))

    def resume_checkpoint(self, resume_file: str) -> None:
        state = checkpoint.load(resume_file, self.device)
        self.saved_model_file = str(resume_file)
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.lr_scheduler is not None and state["lr_scheduler"] is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.start_epoch, self.cur_step = state["epoch"] + 1, state["cur_step"]
        self.best_valid_score, self.history = state["best_valid_score"], state["history"]


@functools.cache
def trainer_class(host: type) -> type:
    """A trainer class of RecBole with our additions; ``host`` itself where it already has them."""
    if issubclass(host, PluginTrainer):
        return host
    return PluginTrainer if host is Trainer else type(host.__name__, (PluginTrainer, host), {})

"""What a training keeps on the disk: the checkpoint of its best weights, and the state that it is resumed from."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

from torch.optim.lr_scheduler import StepLR

from recbole_diffurec.errors import UserError
from recbole_diffurec.host.checkpoints import about_data, kept_values, plain_values
from recbole_diffurec.runtime import checkpoint, distributed
from recbole_diffurec.training.attributes import PlainAttributes
from recbole_diffurec.training.averaging import WeightAverage
from recbole_diffurec.training.epoch import Epoch
from recbole_diffurec.training.report import new_name
from recbole_diffurec.training.scoring import ScoringTrainer
from recbole_diffurec.training.state import EXTENSION, TrainingState, check_fits, misfit, random_states
from recbole_diffurec.training.weights import load_weights, not_finite

_NO_ATTRIBUTES: Any = {"kept": {}, "lost": []}


class KeepingTrainer(ScoringTrainer):
    """RecBole's trainer with our schedule, average, checkpoints and states.

    Attributes
    ----------
    history : list of dict
        One per epoch: epoch (0-based, as RecBole counts), train_loss, train_seconds, learning_rate, and, where the
        epoch was validated, valid_seconds, valid_score, valid_result.
    lr_scheduler : StepLR or None
        Lowers the learning rate after each epoch.
    average : WeightAverage or None
        Of the weights; what is validated and kept.
    """

    pretrain_epochs: int  # of the host's trainers of S3Rec and RaCT alone

    def __init__(self, config: Any, model: Any):
        super().__init__(config, model)
        self.name = distributed.broadcast_from_rank0(lambda: new_name(config))
        self._resumed_state_file: str | None = None
        self._unfinished: dict[str, Any] | None = None
        self._attributes = PlainAttributes(model)
        if getattr(model, "train_stage", "finetune") != "finetune":  # see pretrain
            self.epochs = self.pretrain_epochs
        self.history: list[dict[str, Any]] = []
        step = config["lr_decay_step"]
        self.lr_scheduler = StepLR(self.optimizer, step, config["lr_decay_gamma"]) if step else None
        decay = config["ema_decay"]
        self.average = WeightAverage(self.model, self.optimizer, decay) if decay else None

    @property
    def name(self) -> str:
        """What the files of this training are called, without their endings."""
        return os.path.basename(self.saved_model_file).removesuffix(".pth")

    @name.setter
    def name(self, name: str) -> None:
        self.saved_model_file = os.path.join(self.checkpoint_dir, f"{name}.pth")

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

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if distributed.rank() > 0:
            return
        with self._averaged():
            checkpoint.save(
                kwargs.get("saved_model_file", self.saved_model_file),
                {
                    "model": self.config["model"],
                    "dataset": self.config["dataset"],
                    "config": kept_values(self.config),
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
        super().pretrain(train_data, verbose, show_progress)  # type: ignore[misc]  # of PretrainTrainer
        self._save_checkpoint(self.epochs - 1)
        return self.best_valid_score, {}

    def save_pretrained_model(self, epoch: int, saved_model_file: str) -> None:
        """Keep a stage's weights under the name that RecBole gives them; RecBole would write a pickle."""
        self._save_checkpoint(epoch, saved_model_file=saved_model_file)

    @property
    def state_file(self) -> str:
        """Where the state of a training that is going on is kept."""
        own = f"{self.saved_model_file.removesuffix('.pth')}.{self.config.key()}{EXTENSION}"
        return self._resumed_state_file or own

    def _save_state(self, epoch: Epoch, epoch_idx: int) -> None:
        random, attributes = (distributed.all_gather(own) for own in (random_states(), self._attributes.changed()))
        if distributed.rank() > 0:
            return
        self._check_weights()
        checkpoint.save(
            self.state_file,
            {
                "model": self.config["model"],
                "dataset": self.config["dataset"],
                "data": getattr(self.eval_collector.training_data, "fingerprint", {}),
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

    def resume_checkpoint(self, resume_file: str) -> None:
        """RecBole's way to go on, from the best epoch and with other random draws, is none of ours."""
        raise UserError(
            f"a training of model '{self.config['model']}' goes on from its state, not from a checkpoint such as "
            f"'{resume_file}': give --resume to 'recbole-diffurec run', or resume=True to run()"
        )

    def resume(self, state: TrainingState) -> None:
        """Go on from a state of ``find_state`` with the next call of ``fit``, to the same weights and figures."""
        if len(state["random"]) != distributed.world_size():
            raise UserError(
                f"the training in '{state['state_file']}' ran in {len(state['random'])} processes, not in "
                f"{distributed.world_size()}: start as many, or leave out --resume to start afresh"
            )
        # States of version 0.1.0 do not tell.
        attributes = state["attributes"][distributed.rank()] if "attributes" in state else _NO_ATTRIBUTES
        if attributes["lost"]:
            raise UserError(
                f"the training in '{state['state_file']}' cannot go on as it was, because model "
                f"'{self.config['model']}' keeps what no file holds ({', '.join(attributes['lost'])}): leave out "
                f"--resume to start afresh"
            )
        self._resumed_state_file = state["state_file"]
        self.saved_model_file = os.path.join(os.path.dirname(state["state_file"]), state["checkpoint"])
        load_weights(self.model, state, state["state_file"])
        check_fits(state, self)
        try:
            self.optimizer.load_state_dict(dict(state["optimizer"]))
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):  # what is damaged, it does not say
            raise misfit(state) from None
        # Of the same configuration, the state has what this training has.
        if self.lr_scheduler is not None and state["lr_scheduler"] is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.start_epoch, self.cur_step = state["epoch"], state["cur_step"]
        self.best_valid_score, self.best_valid_result = state["best_valid_score"], state["best_valid_result"]
        self.history = [dict(epoch) for epoch in state["history"]]
        put_back = functools.partial(self._attributes.put_back, attributes["kept"], self.device)
        self._unfinished = {**state["unfinished"], "random": state["random"], "put_back": put_back}

    def load_best(self, path: str | None = None) -> None:
        """Put the weights of the best epoch, or of the checkpoint ``path``, into the model."""
        path = path or self.saved_model_file

        # Process 0 wrote the file; the others need not see its disk.
        def weights() -> dict[str, Any]:
            state = checkpoint.load(path, self.device)
            return {key: state[key] for key in ("state_dict", "other_parameter")}

        load_weights(self.model, distributed.broadcast_from_rank0(weights), path)

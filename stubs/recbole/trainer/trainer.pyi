from collections.abc import Callable
from logging import Logger
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction

def get_tensorboard(logger: Logger) -> Any: ...

class AbstractTrainer:
    config: Config
    model: Any
    def __init__(self, config: Config, model: Any) -> None: ...

class Trainer(AbstractTrainer):
    logger: Any
    tensorboard: Any
    wandblogger: Any
    learner: str
    learning_rate: float
    epochs: int
    eval_step: int
    stopping_step: int
    valid_metric: str
    valid_metric_bigger: bool
    test_batch_size: int
    device: torch.device
    checkpoint_dir: str
    enable_amp: bool
    saved_model_file: str
    weight_decay: float
    start_epoch: int
    cur_step: int
    best_valid_score: float
    best_valid_result: dict[str, float] | None
    train_loss_dict: dict[int, Any]
    optimizer: torch.optim.Optimizer
    eval_type: Any
    eval_collector: Any
    evaluator: Any
    item_tensor: Interaction | None
    tot_item_num: int
    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer: ...
    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Callable[..., Any] | None = None, show_progress: bool = False
    ) -> Any: ...
    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> tuple[float, dict[str, float]]: ...
    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None: ...
    def resume_checkpoint(self, resume_file: str) -> None: ...
    def _check_nan(self, loss: torch.Tensor) -> None: ...
    def _generate_train_loss_output(self, epoch_idx: int, s_time: float, e_time: float, losses: Any) -> str: ...
    def _full_sort_batch_eval(self, batched_data: Any) -> Any: ...
    def _neg_sample_batch_eval(self, batched_data: Any) -> Any: ...
    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], Any] | None = None,
    ) -> tuple[float, dict[str, float] | None]: ...
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: str | None = None, show_progress: bool = False
    ) -> Any: ...

class PretrainTrainer(Trainer):
    pretrain_epochs: int
    def pretrain(self, train_data: Any, verbose: bool = True, show_progress: bool = False) -> Any: ...

class NCLTrainer(Trainer): ...

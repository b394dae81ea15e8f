"""RecBole's evaluation with one way of masking, candidates out of whole score tables, and batches that fit into memory.

Shapes: P rows of a batch, C candidates of each, I items with padding row 0.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType
from torch import Tensor
from tqdm import tqdm

from recbole_diffurec.errors import RankError
from recbole_diffurec.host.candidates import SampledEvalLoader
from recbole_diffurec.host.dataset import SequenceDataset
from recbole_diffurec.host.loaders import dataset_of
from recbole_diffurec.models.ensemble import ranks_all_items
from recbole_diffurec.models.scores import check_numbers
from recbole_diffurec.runtime import visible
from recbole_diffurec.training.report import out_of_memory
from recbole_diffurec.training.state import draws_of_its_own

logger = logging.getLogger("recbole_diffurec")


class ScoringTrainer(Trainer):
    """RecBole's trainer with our additions to evaluation."""

    def __init__(self, config: Any, model: Any):
        super().__init__(config, model)
        self._on_scores: Callable[..., None] | None = None
        self._evaluated: Any = None  # the loader under evaluation
        self._eval_bar: tqdm | None = None

    @contextlib.contextmanager
    def telling(self, on_scores: Callable[..., None] | None) -> Iterator[None]:
        """Call ``on_scores(interaction, scores [B, I], positive_u, positive_i)`` for every batch evaluated within."""
        before, self._on_scores = self._on_scores, on_scores
        try:
            yield
        finally:
            self._on_scores = before

    @torch.no_grad()
    def evaluate(
        self, eval_data: Any, load_best_model: bool = True, model_file: str | None = None, show_progress: bool = False
    ) -> Any:
        if load_best_model:
            self.load_best(model_file)
        if not eval_data:
            return None
        self._evaluated = eval_data
        whole = isinstance(eval_data, FullSortEvalDataLoader)
        if isinstance(eval_data, SampledEvalLoader):
            ranking = self.config["eval_type"] == EvaluatorType.RANKING
            whole = eval_data.as_rows = eval_data.samples and ranking and ranks_all_items(self.model)
        batches = eval_data.batch_sampler  # its batch size may be changed, the loader's not
        while True:
            # RecBole asks the class of the loader, so the bar goes around the loader's own iteration.
            try:
                # Models and loaders that draw (sampled negatives) draw the same at every evaluation.
                own, shown = draws_of_its_own(self.config["seed"]), bool(whole and show_progress)
                bar = visible.progress_bar(shown, total=len(eval_data), desc="evaluate", unit="batch")
                with own, bar as self._eval_bar:
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
            self._forget_collected()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.info(
                "evaluation ran out of memory: going on with %d users at a time "
                "(--eval_batch_size=%d avoids the detour)",
                batches.batch_size,
                batches.batch_size,
            )

    def load_best(self, path: str | None = None) -> None:
        """Put the weights of the best epoch, or of the checkpoint ``path``, into the model."""
        raise NotImplementedError

    def _forget_collected(self) -> None:
        """Leave nothing of an evaluation that broke off for the next one."""
        self.eval_collector.get_data_struct()

    def _before_scores(self) -> None:
        """Called before each batch is scored."""

    def _full_sort_batch_eval(self, batched_data: Any) -> Any:
        interaction, seen, positive_u, positive_i = batched_data
        dataset, masked = dataset_of(self._evaluated), self.config["mask_seen"]
        if masked is False:
            seen = None
        elif masked and seen is None and isinstance(dataset, SequenceDataset):
            seen = dataset.seen_items(interaction)
        self._before_scores()
        scored = super()._full_sort_batch_eval((interaction, seen, positive_u, positive_i))
        check_numbers(scored[1])
        return self._told(scored)

    def _neg_sample_batch_eval(self, batched_data: Any) -> Any:
        self._before_scores()
        if not getattr(self._evaluated, "as_rows", False):
            return self._told(super()._neg_sample_batch_eval(batched_data))
        rows, (user, candidates), positive_u, positive_i = batched_data
        candidates = candidates.to(self.device)
        scores = self._scores_of(rows, candidates)
        place = user.to(self.device).unsqueeze(1) * self.tot_item_num + candidates
        table = scores.new_full((int(user[-1]) + 1, self.tot_item_num), -math.inf)
        # A user's rows may share candidates: the best score counts.
        table.view(-1).scatter_reduce_(0, place.view(-1), scores.view(-1), "amax")
        return self._told((rows, table, positive_u, positive_i))

    def _scores_of(self, rows: Any, candidates: Tensor) -> Tensor:
        """Scores of each row's candidates [P, C], out of those of all items, for as many rows at a time as users."""
        size, found = self._evaluated.batch_sampler.batch_size, []
        for start in range(0, len(rows), size):
            part = rows[start : start + size].to(self.device)
            scores = check_numbers(self.model.full_sort_predict(part).view(len(part), self.tot_item_num))
            found.append(scores.gather(1, candidates[start : start + size]))
        return torch.cat(found)

    def _told(self, scored: Any) -> Any:
        """What a batch came to, once everybody was told who wants to know."""
        if self._on_scores is not None:
            self._on_scores(*scored)
        if self._eval_bar is not None:
            self._eval_bar.update()
        return scored

"""The contract of a diffusion model: what comparisons, lists, services, exports and audits ask of it.

A model of any kind that reconstructs its target by diffusion subclasses ``DiffusionRecommender``. The family of
DiffuRec is in ``models.diffurec``.

Shapes: B batch, L padded history length, d size of an item vector, I items with padding row 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

Self = TypeVar("Self", bound="DiffusionRecommender")


class DiffusionRecommender(SequentialRecommender, ABC):
    """A sequential recommender that reconstructs the target item by diffusion."""

    # Whether every parameter gets a gradient in every step, which several processes need not look for then.
    uses_all_parameters = True

    @property
    @abstractmethod
    def n_steps(self) -> int:
        """T, the diffusion steps."""

    @property
    @abstractmethod
    def sampling_steps(self) -> int:
        """How many of them inference visits."""

    @abstractmethod
    def reconstructions(self, interaction: Any, seeds: Sequence[int] | None = None) -> list[Tensor]:
        """x_0 [B, d] of the reverse process for each of ``seeds``, by default those of the configuration."""

    @abstractmethod
    def logits(self, x_0: Tensor, item_seq: Tensor) -> Tensor:
        """Scores of all items for reconstructions x_0 [B, d] of histories int [B, L]: [B, I], padding at -inf."""

    @abstractmethod
    def query(self, x_0: Tensor) -> Tensor:
        """Vectors [B, d] whose inner products with ``item_vectors`` are the scores that depend on x_0."""

    @abstractmethod
    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """Item vectors that queries are scored against, E [I, d]; or [n, d] for items int [n]."""

    @abstractmethod
    def with_sampling_steps(self: Self, sampling_steps: int) -> Self:
        """The same model, its weights shared, with another number of reverse steps, from 1 to ``n_steps``."""

    @abstractmethod
    def program(self) -> Program:
        """Inference as a function of tensors alone, to be exported.

        Raises
        ------
        UserError
            Some setting of this model cannot be exported.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Called by the trainer before each 0-based epoch."""


class Program(nn.Module, ABC):
    """Inference of one model as a function of tensors alone; ``forward`` takes its inputs by name.

    Attributes
    ----------
    inputs : names of the inputs, ``item_seq`` first: int64 [B, L], the oldest item first, 0 after the most recent.
    """

    inputs: tuple[str, ...]

    @abstractmethod
    def draws(self, item_seq: Tensor, seed: int | None = None) -> dict[str, Tensor]:
        """All inputs for these histories, with the draws that ``full_sort_predict`` makes for them.

        Parameters
        ----------
        item_seq : int64 [B, L], right-padded.
        seed : of the draws; the configuration's by default.
        """

    @abstractmethod
    def dynamic_shapes(self, rows: Any, length: Any) -> dict[str, dict[int, Any]]:
        """Which dimensions of which inputs are open: ``rows`` for B, ``length`` for L."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the file beside an exported program says: ``inputs`` by name, ``outputs``, and the steps visited."""

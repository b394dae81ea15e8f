"""The contracts of models: what comparisons, lists, services, exports and audits ask of them.

A model of any kind that reconstructs its target by diffusion subclasses ``DiffusionRecommender``; the family of
DiffuRec is in ``models.diffurec``. Any model that scores items by inner products can be ``Exportable``.

Shapes: B batch, L padded history length, d size of an item vector, I items with padding row 0, S samples, k slots of a
list of which n are filled.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

Self = TypeVar("Self", bound="DiffusionRecommender")
Network = TypeVar("Network", bound=nn.Module)


# What programs say of the input and the output that all of them have.
ITEM_SEQ_INPUT = (
    "int64 [batch, length], length from 2 to max_length: item numbers (places in 'items'), the oldest first, 0 after "
    "the last"
)
SEED_INPUT = "int64 [], from which all noise is made; the same seed gives the same answer to a history"
# By the name of the output.
OUTPUTS = {
    "scores": "float32 [batch, items]; -inf for the padding item 0",
    "query": "float32 [batch, d], whose inner products with the vectors of the items are their scores",
}


class Exportable(ABC):
    """What programs and indexes for other runtimes are made from."""

    @abstractmethod
    def queries(self, interaction: Any) -> Tensor:
        """Vectors [B, d] of histories whose inner products with ``item_vectors`` are the scores that depend on them."""

    @abstractmethod
    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """Item vectors that queries are scored against, [I, d]; or [n, d] for items int [n]."""

    @abstractmethod
    def program(self) -> Program:
        """Inference as a function of tensors alone, to be exported.

        Raises
        ------
        UserError
            Some setting of this model cannot be exported.
        """


class NotApplicable(Exception):
    """A model cannot be changed so; the message is the reason, a clause that follows "because"."""


def copy_sharing_weights(network: Network) -> Network:
    """A copy of a network with the same parameters and buffers, not with equal ones."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


class DiffusionRecommender(SequentialRecommender, Exportable):
    """A sequential recommender that reconstructs the target item by diffusion.

    What is abstract is what comparisons, lists and services ask for. The others are for audits, each optional: a model
    that leaves one as it is, or raises ``NotApplicable`` with its reason, is audited without.
    """

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

    def sharing_weights(self: Self) -> Self:
        """A copy that shares all weights, for a change that is not of the weights."""
        return copy_sharing_weights(self)

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
    def with_sampling_steps(self: Self, sampling_steps: int) -> Self:
        """The same model, its weights shared, with another number of reverse steps, from 1 to ``n_steps``."""

    def without_noised_target(self: Self) -> Self:
        """The same model, its weights shared, whose network gets zeros where it had the noised target, in inference."""
        raise self._undeclared("leave its noised target out", "without_noised_target")

    def with_other_noise(self: Self) -> Self:
        """The same model, its weights shared, whose network gets noise as long as the noised target in its place."""
        raise self._undeclared("replace its noised target", "with_other_noise")

    def with_frozen_step(self: Self) -> Self:
        """The same model, its weights shared, whose network is told step T whatever step it is at, in inference."""
        raise self._undeclared("freeze its step embedding", "with_frozen_step")

    def with_sampler(self: Self, name: str, sampling_steps: int) -> Self:
        """The same model, its weights shared, with the reverse process ``ddpm`` or ``ddim`` in so many steps."""
        raise self._undeclared("change its reverse process", "with_sampler")

    @classmethod
    def twin_parameters(cls) -> dict[str, Any]:
        """Parameters of a run that trains the same network without the noised target."""
        raise NotApplicable(f"{cls.__name__} does not say how to train without its noised target (twin_parameters)")

    def _undeclared(self, what: str, name: str) -> NotApplicable:
        return NotApplicable(f"{type(self).__name__} does not say how to {what} ({name})")

    def queries(self, interaction: Any) -> Tensor:
        """``Exportable.queries``: of the reconstructions for the configuration's first seed."""
        return self.query(self.reconstructions(interaction)[0])

    def begin_epoch(self, epoch: int) -> None:
        """Called by the trainer before each 0-based epoch."""


class Program(nn.Module, ABC):
    """Inference of one model as a function of tensors alone; ``forward`` takes its inputs by name.

    Attributes
    ----------
    inputs : tuple of str
        Names of the inputs, ``item_seq`` first: int64 [B, L], the oldest item first, 0 after the most recent.
    output : str
        What it gives: ``scores`` as ``full_sort_predict``, or ``query`` as ``Exportable.queries``.
    """

    inputs: tuple[str, ...]
    output: str = "scores"

    @abstractmethod
    def draws(self, item_seq: Tensor, seed: int | None = None) -> dict[str, Tensor]:
        """All inputs for these histories, with the draws that ``full_sort_predict`` makes for them.

        Parameters
        ----------
        item_seq : Tensor
            int64 [B, L], right-padded.
        seed : int, optional
            Seed of the draws; the configuration's by default.
        """

    @abstractmethod
    def dynamic_shapes(self, rows: Any, length: Any) -> dict[str, dict[int, Any]]:
        """Which dimensions of which inputs are open: ``rows`` for B, ``length`` for L."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the file beside an exported program says: ``inputs`` by name, ``outputs``, and the steps visited."""

    def for_queries(self) -> Program:
        """The same program, which gives vectors for an index of the items in place of scores.

        Raises
        ------
        NotApplicable
            It does not.
        """
        raise NotApplicable(f"{type(self).__name__} does not say what its queries are (for_queries)")

    def seeded(self) -> Program:
        """The same program, which takes ``seed`` in place of its draws and makes them as the model does.

        Raises
        ------
        NotApplicable
            It draws nothing, or does not.
        """
        if self.inputs == ("item_seq",):
            raise NotApplicable("its inference draws nothing")
        raise NotApplicable(f"{type(self).__name__} does not say how it draws (seeded)")

    def _giving_queries(self) -> Program:
        """A copy whose ``output`` is ``query``, for programs whose ``forward`` and ``describe`` go by that."""
        other = copy.copy(self)
        other.output = "query"
        return other


@dataclass(frozen=True)
class SampledLists:
    """Lists of items that may follow histories.

    Parameters
    ----------
    items : Tensor
        int [S, B, n], in their order; 0 where no item was left to draw.
    log_probability : Tensor
        [S, B], of each list among all lists of n items, as the model has it before anything is left out or tempered.
    """

    items: Tensor
    log_probability: Tensor


class ListSampler(ABC):
    """A model of the next several items together."""

    @property
    @abstractmethod
    def n_slots(self) -> int:
        """k, the longest list."""

    @abstractmethod
    def sample_lists(
        self, interaction: Any, n: int, seeds: Sequence[int], allowed: Tensor | None = None
    ) -> SampledLists:
        """A list of n different items for each history and each of the S seeds.

        Parameters
        ----------
        interaction : Interaction
            The histories.
        n : int
            From 1 to k.
        seeds : Sequence of int
            The same seed gives the same list.
        allowed : Tensor, optional
            bool [B, I], the items to choose from; all by default.
        """

    @abstractmethod
    def log_probability(self, interaction: Any, lists: Tensor) -> Tensor:
        """Of given lists int [B, n] after the histories, [B]: the log of a distribution over all lists of n items."""

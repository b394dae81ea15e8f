"""Denoisers: from what is known of a history, a noised target and a diffusion step to an estimate of the target.

Shapes: B batch, N tokens, d hidden size, T diffusion steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from recbole_diffurec.diffusion.noise import Draws
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.layers.step_embedding import StepEmbedding
from recbole_diffurec.models.approximator import Approximator, EncodedHistory


class Denoiser(Protocol):
    """The network of a diffusion model, in two parts: what the steps share, and one step.

    Attributes
    ----------
    token_noise : tuple of (float, float)
        Mean and standard deviation of what it draws for each token at each step.
    """

    token_noise: tuple[float, float]

    def condition(self, embeddings: Tensor, batch: RaggedBatch) -> Any:
        """What is known of histories before any state x_s: of their token embeddings [N, d] and the batch."""

    def __call__(self, condition: Any, x_s: Tensor, t: Tensor | int, draws: Draws) -> Tensor:
        """Estimate x_0 [B, d] from x_s [B, d] at 0-based step t, one for all or int [B]."""

    def in_bfloat16(self) -> Denoiser:
        """A copy with its weights in bf16, for inference: no casts between the layers, as autocast has them."""


@dataclass(frozen=True)
class Condition:
    """What DiffuRec's denoiser knows of histories before any state x_s."""

    history: EncodedHistory
    step_embeddings: Tensor  # [T, d], d_s of all steps


class UncertainDenoiser:
    """DiffuRec's: the noised target enters the history's states times lambda ~ N(delta, delta^2), drawn anew each time.

    Holds modules of a model and owns none. Li, Sun, Li 2023, section 4.2; delta is the standard deviation, as in
    section 6.2 of Zolghadr, Winther, Jeha 2024.

    Parameters
    ----------
    approximator : Approximator
        The network.
    step_embedding : StepEmbedding
        The embeddings of the diffusion steps.
    delta : float
        Mean and standard deviation of lambda.
    """

    def __init__(self, approximator: Approximator, step_embedding: StepEmbedding, delta: float):
        self.approximator, self.step_embedding = approximator, step_embedding
        self.token_noise = delta, delta

    def condition(self, embeddings: Tensor, batch: RaggedBatch) -> Condition:
        """``Denoiser.condition``."""
        return Condition(self.approximator.encode(embeddings, batch), self.step_embedding())

    def __call__(self, condition: Condition, x_s: Tensor, t: Tensor | int, draws: Draws) -> Tensor:
        """``Denoiser.__call__``."""
        history, steps = condition.history, condition.step_embeddings
        embedded = steps[t : t + 1] if isinstance(t, int) else steps.index_select(0, t)
        # Training draws lambda once a batch, whose rows are at steps of their own.
        uncertainty = draws.per_token(t if isinstance(t, int) else 0, *self.token_noise, history.states.dtype)
        return self.approximator(history, x_s, embedded, uncertainty)

    def in_bfloat16(self) -> UncertainDenoiser:
        """``Denoiser.in_bfloat16``; the step embedding stays as it is."""
        return UncertainDenoiser(self.approximator.in_bfloat16(), self.step_embedding, self.token_noise[0])


class NetworkDenoiser:
    """What the denoisers share that are one network and draw nothing. Holds modules of a model and owns none.

    Parameters
    ----------
    network : torch.nn.Module
        The network.
    step_embedding : StepEmbedding
        The embeddings of the diffusion steps.
    """

    token_noise = 0.0, 0.0

    def __init__(self, network: Any, step_embedding: StepEmbedding):
        self.network, self.step_embedding = network, step_embedding

    def in_bfloat16(self) -> Any:
        """``Denoiser.in_bfloat16``; the step embedding stays as it is."""
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network).bfloat16()
        return other


class GuidedDenoiser:
    """Classifier-free guidance around any denoiser: (1 + w) f(x_s, history) - w f(x_s, nothing).

    Ho, Salimans 2022, "Classifier-Free Diffusion Guidance", Eq. 6, for an estimate of x_0. For inference; a model
    that is guided replaces histories by nothing in a share of its training batches.

    Parameters
    ----------
    denoiser : Denoiser
        What is guided.
    nothing : callable
        Takes the token embeddings [N, d] and gives those of no history, of the same shape.
    weight : float
        w; 0 is the denoiser itself.
    """

    def __init__(self, denoiser: Denoiser, nothing: Callable[[Any], Any], weight: float):
        self.denoiser, self.nothing, self.weight = denoiser, nothing, weight
        self.token_noise = denoiser.token_noise

    def condition(self, embeddings: Tensor, batch: RaggedBatch) -> tuple[Any, Any]:
        """``Denoiser.condition``, with the history and without."""
        without = self.denoiser.condition(self.nothing(embeddings), batch)
        return self.denoiser.condition(embeddings, batch), without

    def __call__(self, condition: tuple[Any, Any], x_s: Tensor, t: Tensor | int, draws: Draws) -> Tensor:
        """``Denoiser.__call__``."""
        given, nothing = (self.denoiser(part, x_s, t, draws) for part in condition)
        return (1 + self.weight) * given - self.weight * nothing

    def in_bfloat16(self) -> GuidedDenoiser:
        """``Denoiser.in_bfloat16``."""
        return type(self)(self.denoiser.in_bfloat16(), self.nothing, self.weight)

"""What audits change in a trained model of DiffuRec's family: what its denoiser is given, and its reverse process.

Shapes: B batch, d hidden size, T diffusion steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from recbole_diffurec.diffusion.noise import Draws
from recbole_diffurec.diffusion.samplers import SAMPLERS, Sampler
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.models.base import DiffusionRecommender, NotApplicable
from recbole_diffurec.models.denoiser import Denoiser

Step = Tensor | int
# A state x_s [B, d], its step and the draws of the pass, and so what the denoiser is given in their place.
Given = tuple[Tensor, Step, Draws]
Change = Callable[[Tensor, Step, Draws], Given]
Self = TypeVar("Self", bound="Audited")


class ChangedDenoiser:
    """Any denoiser, given another state or another step than the diffusion has.

    Parameters
    ----------
    denoiser : Denoiser
        What is given something else.
    change : callable
        See ``Change``.
    """

    def __init__(self, denoiser: Denoiser, change: Change):
        self.denoiser, self.change = denoiser, change
        self.token_noise = denoiser.token_noise

    def condition(self, embeddings: Tensor, batch: RaggedBatch) -> Any:
        """``Denoiser.condition``."""
        return self.denoiser.condition(embeddings, batch)

    def __call__(self, condition: Any, x_s: Tensor, t: Step, draws: Draws) -> Tensor:
        """``Denoiser.__call__``."""
        return self.denoiser(condition, *self.change(x_s, t, draws))

    def in_bfloat16(self) -> ChangedDenoiser:
        """``Denoiser.in_bfloat16``."""
        return ChangedDenoiser(self.denoiser.in_bfloat16(), self.change)


def no_target(x_s: Tensor, t: Step, draws: Draws) -> Given:
    """Zeros in place of the state."""
    return torch.zeros_like(x_s), t, draws


def other_noise(x_s: Tensor, t: Step, draws: Draws) -> Given:
    """Noise in place of the state, new at each step, and as long as the state was: all that it said is its length."""
    assert isinstance(t, int), "in inference"
    noise = draws.step(t)
    return noise * (x_s.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)), t, draws


class Frozen:
    """Step T in place of every other.

    Parameters
    ----------
    n_steps : int
        T.
    """

    def __init__(self, n_steps: int):
        self.last = n_steps - 1

    def __call__(self, x_s: Tensor, t: Step, draws: Draws) -> Given:
        """``Change``."""
        return x_s, self.last if isinstance(t, int) else torch.full_like(t, self.last), draws


class NothingForTokens:
    """Draws of a pass in which each token gets zeros.

    Parameters
    ----------
    draws : Draws
        All others.
    """

    def __init__(self, draws: Draws):
        self.draws = draws

    def start(self) -> Tensor:
        """``Draws.start``."""
        return self.draws.start()

    def step(self, t: int) -> Tensor:
        """``Draws.step``."""
        return self.draws.step(t)

    def per_token(self, t: int, mean: float, std: float, dtype: torch.dtype) -> Tensor:
        """``Draws.per_token``."""
        return torch.zeros_like(self.draws.per_token(t, mean, std, dtype))


class NoDiffusion(Frozen):
    """Zeros in place of the state and of what is drawn for tokens, and step T: nothing of the diffusion is left."""

    def __call__(self, x_s: Tensor, t: Step, draws: Draws) -> Given:
        """``Change``."""
        return super().__call__(torch.zeros_like(x_s), t, NothingForTokens(draws))


class Audited(DiffusionRecommender):
    """A diffusion model made of a ``denoiser`` and a ``sampler``, and so one that can be changed for an audit."""

    denoiser: Denoiser
    sampler: Sampler
    noised_target: bool
    reverse_start: str

    def without_noised_target(self: Self) -> Self:
        """``DiffusionRecommender.without_noised_target``."""
        return self._given(no_target)

    def with_other_noise(self: Self) -> Self:
        """``DiffusionRecommender.with_other_noise``."""
        return self._given(other_noise)

    def with_frozen_step(self: Self) -> Self:
        """``DiffusionRecommender.with_frozen_step``."""
        return self._given(Frozen(self.n_steps))

    def with_sampler(self: Self, name: str, sampling_steps: int) -> Self:
        """``DiffusionRecommender.with_sampler``; the model's own kind keeps its options."""
        self._refuse_twin()
        if self.reverse_start == "last_item":
            raise NotApplicable("with reverse_start: last_item inference is one step")
        other, own = self.sharing_weights(), self.sampler
        device = next(own.buffers()).device
        same = type(own) is SAMPLERS[name]
        made = own.with_steps(sampling_steps) if same else SAMPLERS[name](own.betas, sampling_steps).to(device)
        other.sampler = made
        return other

    @classmethod
    def twin_parameters(cls) -> dict[str, Any]:
        """``DiffusionRecommender.twin_parameters``."""
        return {"noised_target": False}

    def _given(self: Self, change: Change) -> Self:
        self._refuse_twin()
        other = self.sharing_weights()
        # Beside the modules, of which a plugin's denoiser may be one.
        other.__dict__["denoiser"] = ChangedDenoiser(other.denoiser, change)
        return other

    def _refuse_twin(self) -> None:
        if not self.noised_target:
            raise NotApplicable("the model was trained without its noised target")

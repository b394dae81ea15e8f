"""What a diffusion model is trained for, given its estimate of the target.

Shapes: B batch, K draws of the noise for a row, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from recbole_diffurec.layers.item_softmax import LogitBias, full_cross_entropy
from recbole_diffurec.models.scores import ItemScores


class Objective(Protocol):
    """A loss of an estimate of the target."""

    def __call__(
        self, x_0_hat: Tensor, x_0: Tensor, target: Tensor, weight: Tensor, bias: LogitBias | None
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the losses, and the losses [B] without gradients, which a step sampler learns from.

        Parameters
        ----------
        x_0_hat : Tensor
            [B, d], the estimate; or [B, K, d], those of K draws, which an objective with ``takes_draws`` is given.
        x_0 : Tensor
            [B, d], what was noised.
        target : Tensor
            int [B], the items.
        weight : Tensor
            [B], of the losses.
        bias : LogitBias or None
            What is added to the items' scores.
        """


class CrossEntropyObjective(nn.Module):
    """Cross-entropy of the estimate over the items (DiffuRecSys Eqs. 24-25).

    Of K draws it is -log of the mean over the draws of the target's probability: the noise is a latent code, which the
    other draws leave free to stand for another item.

    Parameters
    ----------
    scores : ItemScores
        How items are scored.
    cross_entropy : callable, optional
        ``full_cross_entropy`` or a ``SampledCrossEntropy``.
    """

    takes_draws = True

    def __init__(self, scores: ItemScores, cross_entropy: Callable[..., tuple[Tensor, Tensor]] = full_cross_entropy):
        super().__init__()
        self.scores, self.cross_entropy = scores, cross_entropy

    def forward(
        self, x_0_hat: Tensor, x_0: Tensor, target: Tensor, weight: Tensor, bias: LogitBias | None
    ) -> tuple[Tensor, Tensor]:
        """``Objective.__call__``."""
        return self.cross_entropy(self.scores.query(x_0_hat), self.scores.vectors(), target, weight, bias)


class SquaredErrorObjective:
    """Squared distance of the estimate from the target's vector, summed over dimensions: the L_simple of x_0."""

    def __call__(
        self, x_0_hat: Tensor, x_0: Tensor, target: Tensor, weight: Tensor, bias: LogitBias | None
    ) -> tuple[Tensor, Tensor]:
        """``Objective.__call__``."""
        losses = (x_0_hat - x_0).square().sum(dim=-1)
        return (weight.to(losses.dtype) * losses).sum(), losses.detach()


class ClassifyingAndNear(nn.Module):
    """The items' cross-entropy, and the mean squared difference of the estimate from what was noised, weighted.

    The second term moves the network and no item's vector, which it could bring down by making all of them one. Of
    several draws it is their mean.

    Parameters
    ----------
    classifying : Objective
        The cross-entropy.
    classifying_weight, near_weight : float
        Of the two; they may be set anew before an epoch.
    """

    takes_draws = True

    def __init__(self, classifying: Objective, classifying_weight: float, near_weight: float):
        super().__init__()
        self.classifying, self.classifying_weight, self.near_weight = classifying, classifying_weight, near_weight

    def forward(
        self, x_0_hat: Tensor, x_0: Tensor, target: Tensor, weight: Tensor, bias: LogitBias | None
    ) -> tuple[Tensor, Tensor]:
        """``Objective.__call__``."""
        loss, losses = self.classifying(x_0_hat, x_0, target, weight, bias)
        aim = x_0.detach() if x_0_hat.dim() == 2 else x_0.detach().unsqueeze(1)
        errors = (x_0_hat - aim).square().flatten(1).mean(dim=1)
        total = self.classifying_weight * loss + self.near_weight * (weight.to(errors.dtype) * errors).sum()
        return total, self.classifying_weight * losses + self.near_weight * errors.detach()


def cross_entropy_objective(
    scores: ItemScores, cross_entropy: Callable[..., tuple[Tensor, Tensor]], near_weight: float | None
) -> Objective:
    """``CrossEntropyObjective``, with ``near_weight`` as a part of ``ClassifyingAndNear``."""
    objective = CrossEntropyObjective(scores, cross_entropy)
    return ClassifyingAndNear(objective, 1.0, near_weight) if near_weight else objective

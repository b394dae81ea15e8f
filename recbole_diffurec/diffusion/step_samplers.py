"""Which diffusion step each training sample gets (DiffuRec, section 4.3; Nichol & Dhariwal 2021, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UniformStepSampler(nn.Module):
    """Every step is equally likely and every loss has weight 1."""

    def __init__(self, n_steps: int):
        super().__init__()
        self.n_steps = n_steps

    def sample(self, n: int, device: torch.device, uniform: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw ``n`` 0-based steps, int [n], and their loss weights, float [n].

        Parameters
        ----------
        uniform : Tensor, optional
            float64 [n] in [0, 1) to make the steps from; torch's generator where it is None.
        """
        t = torch.randint(self.n_steps, (n,), device=device) if uniform is None else (uniform * self.n_steps).long()
        return t, torch.ones(n, device=device)

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Nothing to learn."""


class LossAwareStepSampler(nn.Module):
    """Importance sampling: a step is drawn in proportion to the root mean square of its last 10 losses.

    The losses are weighted by 1 / (T p_s), which leaves the objective unchanged. Until every step has 10 losses all
    are equally likely. The losses seen are buffers, so a checkpoint carries them.
    """

    history: Tensor
    counts: Tensor

    HISTORY_PER_STEP = 10
    UNIFORM_SHARE = 0.001

    def __init__(self, n_steps: int):
        super().__init__()
        self.n_steps = n_steps
        self.register_buffer("history", torch.zeros(n_steps, self.HISTORY_PER_STEP, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(n_steps, dtype=torch.long))

    def weights(self) -> Tensor:
        """Unnormalised sampling weights, float64 [T]: all ones before warm-up, summing to one after it."""
        rms = self.history.square().mean(dim=-1).sqrt()
        learned = rms / rms.sum() * (1.0 - self.UNIFORM_SHARE) + self.UNIFORM_SHARE / self.n_steps
        warm = (self.counts >= self.HISTORY_PER_STEP).all()
        # Chosen on the device: reading the answer would make the host wait for it in every step.
        return torch.where(warm, learned, torch.ones_like(learned))

    def sample(self, n: int, device: torch.device, uniform: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw ``n`` 0-based steps, int [n], and their loss weights 1 / (T p), float [n]; ``uniform`` as above."""
        p = self.weights()
        p = p / p.sum()
        if uniform is None:
            t = torch.multinomial(p, n, replacement=True)
        else:
            t = torch.searchsorted(p.cumsum(dim=0), uniform.to(p.device), right=True).clamp(max=self.n_steps - 1)
        return t.to(device), (1.0 / (self.n_steps * p[t])).to(device, torch.get_default_dtype())

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Record the unweighted ``loss``, float [n], of samples at 0-based steps ``t``, int [n], in order."""
        keep, n = self.HISTORY_PER_STEP, len(t)
        t, loss = t.to(self.history.device), loss.detach().to(self.history)
        # Samples in order of their steps, and in each step in the given order.
        order = t.argsort(stable=True)
        step, loss = t[order], loss[order]
        # Not ``bincount``, whose host waits for the largest number.
        new = torch.zeros_like(self.counts).scatter_add(0, step, torch.ones_like(step))
        end = new.cumsum(dim=0)
        rank_from_end = end[step] - 1 - torch.arange(n, device=step.device)
        # The newest losses stand at the end; unfilled places are counted, never read before warm-up.
        place = torch.arange(keep, device=step.device) + new.clamp(max=keep).unsqueeze(1)
        shifted = torch.nn.functional.pad(self.history, (0, keep)).gather(1, place)
        # What is older than the last ten goes to a column that is cut off.
        column = torch.where(rank_from_end < keep, keep - 1 - rank_from_end, keep)
        padded = torch.nn.functional.pad(shifted, (0, 1))
        padded[step, column] = loss
        self.history.copy_(padded[:, :keep])
        self.counts.copy_((self.counts + new).clamp(max=keep))


STEP_SAMPLERS: dict[str, type[UniformStepSampler] | type[LossAwareStepSampler]] = {
    "uniform": UniformStepSampler,
    "loss_aware": LossAwareStepSampler,
}

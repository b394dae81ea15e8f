"""The forms of a trained diffusion model that an audit compares, and what its samples say.

Shapes: B batch, R targets, U users, K samples, I items with padding row 0, d hidden size, T diffusion steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from recbole_diffurec.experiments import calibration
from recbole_diffurec.experiments.audit_bench import Bench, Line, Measured, Score, mean_by, overlap
from recbole_diffurec.models.base import DiffusionRecommender, NotApplicable
from recbole_diffurec.models.cooccurrence import Cooccurrences
from recbole_diffurec.models.ensemble import Ensemble
from recbole_diffurec.models.scores import log_mean_softmax

AS_TRAINED = "as_trained"
SAMPLERS = {"ddpm": "DDPM", "ddim": "DDIM"}


def basic_lines(network: DiffusionRecommender) -> list[Line]:
    """As trained, and what can be changed in the network's input."""
    return [
        Line(AS_TRAINED, f"as trained ({_steps(network.sampling_steps)})", lambda: _scores(network)),
        Line("factor_0", "noised vector's factor 0", lambda: _scores(network.without_noised_target())),
        Line("other_noise", "noised vector replaced by noise", lambda: _scores(network.with_other_noise())),
        Line("frozen_step", "step embedding frozen", lambda: _scores(network.with_frozen_step())),
    ]


def one_step_line(network: DiffusionRecommender) -> Line:
    """One reverse step."""

    def make() -> Score:
        if network.sampling_steps == 1:
            raise NotApplicable("the model as trained takes one step")
        return _scores(network.with_sampling_steps(1))

    return Line("one_step", "1 step", make)


def step_lines(network: DiffusionRecommender) -> Iterator[Line]:
    """1, 2, 4, ... T steps, of each sampler that the model can have; one step is the same for all."""
    total = network.n_steps
    if total == 1 or network.with_sampling_steps(2).sampling_steps != 2:
        yield _refused("steps", "other numbers of steps", "its inference is one step")
        return
    yield one_step_line(network)
    counts = [n for n in (2**power for power in range(1, total.bit_length())) if n < total] + [total]
    try:
        for name in SAMPLERS:
            network.with_sampler(name, 1)
    except NotApplicable as reason:
        for n in counts:
            yield Line(f"own_{n}", f"{n} steps", lambda n=n: _scores(network.with_sampling_steps(n)))  # type: ignore[misc]
        yield _refused("samplers", "DDPM and DDIM", str(reason))
        return
    for name, n in itertools.product(SAMPLERS, counts):
        label = f"{n} steps, {SAMPLERS[name]}"
        yield Line(f"{name}_{n}", label, lambda name=name, n=n: _scores(network.with_sampler(name, n)))  # type: ignore[misc]


def dropout_line(network: DiffusionRecommender, batch: Any) -> Line:
    """The mean of as many passes with dropout as inference takes steps, each of one step and with the same noise.

    Parameters
    ----------
    network : DiffusionRecommender
        The model.
    batch : Interaction
        Any histories, to see whether there is dropout at all.
    """
    passes = network.sampling_steps

    def make() -> Score:
        if passes == 1:
            raise NotApplicable("the model as trained takes one step, for which there is one pass")
        one = network.with_sampling_steps(1)
        if torch.equal(_with_dropout(one, batch, 1), _with_dropout(one, batch, 1)):
            raise NotApplicable("the network has no dropout")
        return lambda interaction: _with_dropout(one, interaction, passes)

    return Line("mc_dropout", f"MC dropout, {passes} passes of 1 step", make)


@torch.no_grad()
def _with_dropout(network: Any, batch: Any, passes: int) -> Tensor:
    """Mean probabilities of passes with dropout, [B, I]."""
    network.train()
    for module in network.modules():
        if isinstance(module, (_BatchNorm, Cooccurrences)):
            module.eval()  # statistics are no dropout, and would change; co-occurrences act outside training alone
    try:
        return log_mean_softmax(network.full_sort_predict(batch) for _ in range(passes))
    finally:
        network.eval()


def ensemble_line(networks: Sequence[Any]) -> Line:
    """Several checkpoints as one, the steps of the first shared among them."""

    if len(networks) == 1:
        return _refused("ensemble", "several checkpoints as one", "one checkpoint was given")

    def make() -> Score:
        return Ensemble([_in_steps(network, each) for network in networks]).eval().full_sort_predict

    each = max(1, networks[0].sampling_steps // len(networks))
    return Line("ensemble", f"{len(networks)} checkpoints as one, {_steps(each)} each", make)


def _in_steps(network: Any, n: int) -> Any:
    """A diffusion model in at most so many steps, or any other model."""
    if not isinstance(network, DiffusionRecommender):
        return network
    return network.with_sampling_steps(min(n, network.n_steps))


def twin_line(network: Any, reason: str) -> Line:
    """The model that was trained without the noised target.

    Parameters
    ----------
    network : object
        None where there is none.
    reason : str
        Why there is none.
    """

    def make() -> Score:
        if network is None:
            raise NotApplicable(reason)
        return _scores(network)

    return Line("twin", "twin, trained without the noised vector", make)


def _refused(name: str, label: str, reason: str) -> Line:
    def make() -> Score:
        raise NotApplicable(reason)

    return Line(name, label, make)


def _scores(network: Any) -> Score:
    return network.eval().full_sort_predict


def _steps(n: int) -> str:
    return f"{n} step" if n == 1 else f"{n} steps"


# Samples


class Samples:
    """Reconstructions of the same targets under different noise, measured each, and their mean.

    Parameters
    ----------
    bench : Bench
        Where they are measured.
    network : DiffusionRecommender
        The model.
    n : int
        K, of at least 2; the seeds are 0 .. K - 1.
    """

    def __init__(self, bench: Bench, network: DiffusionRecommender, n: int):
        self.network, self.bench = network, bench
        self._vectors: list[list[Tensor]] = []  # of each sample the x_0 [B, d] of each batch
        self.each = [bench.measure(self._sample(seed), probabilities=seed == 0) for seed in range(n)]

    def _sample(self, seed: int) -> Score:
        found: list[Tensor] = []
        self._vectors.append(found)

        def score(interaction: Any) -> Tensor:
            (x_0,) = self.network.reconstructions(interaction, [seed])
            found.append(x_0)
            return self.network.logits(x_0, interaction[self.network.ITEM_SEQ])

        return score

    def mean(self) -> Measured:
        """The mean of the samples' probabilities; its time is that of all samples."""
        batches = zip(*self._vectors)

        def score(interaction: Any) -> Tensor:
            item_seq = interaction[self.network.ITEM_SEQ]
            return log_mean_softmax(self.network.logits(x_0, item_seq) for x_0 in next(batches))

        found = self.bench.measure(score, probabilities=True)
        seconds = found.ms_per_user + sum(sample.ms_per_user for sample in self.each)
        return Measured(**{**vars(found), "ms_per_user": seconds})

    @property
    def spread(self) -> np.ndarray:
        """How far a target's samples lie from their mean, relative to its length, float [R]."""
        x_0 = torch.stack([torch.cat(parts) for parts in self._vectors])
        centre = x_0.mean(dim=0)
        return ((x_0 - centre).norm(dim=-1).mean(dim=0) / centre.norm(dim=-1)).float().cpu().numpy()

    def agreement(self) -> dict[str, Any]:
        """How alike the samples are: lists of every two, the figures of each, the spread."""
        pairs = itertools.combinations(self.each, 2)
        ndcg = [float(sample.gains["ndcg"].mean()) for sample in self.each]
        return {
            "samples": len(self.each),
            "overlap": float(np.mean([overlap(a.lists, b.lists).mean() for a, b in pairs])),
            "ndcg": ndcg,
            "ndcg_mean": float(np.mean(ndcg)),
            "ndcg_deviation": float(np.std(ndcg, ddof=1)),
            "spread_mean": float(self.spread.mean()),
        }

    def uncertainty(self, mean: Measured) -> dict[str, Any]:
        """Whether sampled frequencies and probabilities are what happens, and whether the spread knows the error.

        Parameters
        ----------
        mean : Measured
            From ``mean``.
        """
        first = self.each[0]
        answers = {
            "frequencies": calibration.frequencies(np.stack([s.lists[:, 0] for s in self.each]), first.targets),
            "one_sample": first.answers,
            "mean_of_samples": mean.answers,
        }
        spread = mean_by(self.bench.user_of_row, self.spread)
        found = calibration.rank_correlation(spread, mean.places)
        return {
            **{name: calibration.describe(own) for name, own in answers.items() if own is not None},
            "spread_and_rank": None if found is None else {"rho": found[0], "p": found[1], "users": len(spread)},
        }

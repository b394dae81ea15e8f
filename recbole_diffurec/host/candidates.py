"""Evaluation among sampled candidates: ``mode: uni100`` and ``pop100``.

RecBole draws the candidates from numpy's global state, others at every evaluation, and joins the rows of users that it
pads one by one, which rows of different widths do not fit. Here a user's candidates are a function of the seed, the
part, the user and the data: equal in every epoch, for every model on these data, in batches of any size, in ``run`` and
in ``evaluate``.

Shapes: U users, P rows of a batch (one per target), C = 1 + n candidates of a row, I items with padding row 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import NegSampleEvalDataLoader
from recbole.sampler import RepeatableSampler
from torch import Tensor

from recbole_diffurec.errors import UserError

__all__ = ["Candidates", "SampledEvalLoader"]

# Draws that are repeated where the user has seen the item, before the items that are left are listed.
ROUNDS = 10
_PHASES = {"valid": 0, "test": 1}


class Candidates:
    """Draws negatives, with replacement, as RecBole does, from generators of their own.

    Parameters
    ----------
    weights : numpy.ndarray
        float64 [I], how likely each item is drawn; 0 for padding.
    seed : int
        Of the draws.
    phase : str
        ``valid`` or ``test``.
    """

    def __init__(self, weights: np.ndarray, seed: int, phase: str):
        self._weights, self._seed, self._phase = weights, seed, _PHASES[phase]
        self._cumulated = np.cumsum(weights)

    @classmethod
    def of(cls, sampler: Any, seed: int) -> Candidates:
        """With the distribution of one of RecBole's samplers."""
        weights = np.ones(sampler.item_num)
        if sampler.distribution == "popularity":
            counts = np.bincount(sampler._get_candidates_list(), minlength=sampler.item_num)
            weights = counts.astype(np.float64) ** sampler.alpha * (counts > 0)
        weights[0] = 0.0
        return cls(weights, seed, sampler.phase)

    def generator(self, user: int) -> np.random.Generator:
        """The source of one user's candidates."""
        return np.random.default_rng([self._seed, self._phase, user])

    def draw(self, generator: np.random.Generator, n: int, excluded: np.ndarray) -> np.ndarray:
        """``n`` items that are not among ``excluded``: int [n].

        Raises
        ------
        UserError
            There is no other item.
        """
        found = self._propose(generator, n)
        for _ in range(ROUNDS):
            wrong = np.flatnonzero(np.isin(found, excluded))
            if not len(wrong):
                return found
            found[wrong] = self._propose(generator, len(wrong))
        weights = self._weights.copy()
        weights[excluded] = 0.0
        if not weights.any():
            raise UserError(
                "a user has seen every item, so that there is none to sample: rank all items (mode full in eval_args), "
                "or leave such users out with --user_inter_num_interval"
            )
        wrong = np.flatnonzero(np.isin(found, excluded))
        found[wrong] = generator.choice(len(weights), size=len(wrong), p=weights / weights.sum())
        return found

    def _propose(self, generator: np.random.Generator, n: int) -> np.ndarray:
        drawn = np.searchsorted(self._cumulated, generator.random(n) * self._cumulated[-1], side="right")
        return np.minimum(drawn, len(self._weights) - 1)  # where a product was rounded up to the end


class SampledEvalLoader(NegSampleEvalDataLoader):
    """RecBole's loader of users with their targets and sampled candidates.

    A candidate is none of the user's targets in this part. Whether it may be an item that the user has seen is for
    RecBole's ``repeatable`` to say, which is False for general models and True for sequential ones; with ``mask_seen``
    it is none.

    Attributes
    ----------
    as_rows : bool
        Whether batches hold each row once, with its candidates beside, for models that score all items at once; or else
        every candidate as a row of its own, as RecBole has it.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False):
        super().__init__(config, dataset, sampler, shuffle=shuffle)
        self.as_rows = False
        self.samples = self.neg_sample_args["distribution"] != "none"
        if self.samples:
            self._candidates = Candidates.of(sampler, config["seed"])
            self._repeatable = isinstance(sampler, RepeatableSampler)
            if self._repeatable and config["mask_seen"] and not hasattr(dataset, "seen_items"):
                raise UserError(
                    f"mask_seen cannot act for model {config['model']} among sampled candidates, because its data set "
                    f"keeps the end of each history alone: leave it out"
                )

    def user_lengths(self) -> Tensor:
        """The length of each user's longest history: int [U]."""
        lengths = self._dataset.inter_feat[self._dataset.item_list_length_field]
        longest = [int(lengths[self.uid2index[user]].max()) for user in self.uid_list]
        return torch.tensor(longest, dtype=torch.long)

    def check(self) -> None:
        """Raise ``UserError`` where a user leaves no item to sample, which an evaluation would find out half-way."""
        if not self.samples or not self._repeatable:  # RecBole checks the others
            return
        feat = self._dataset.inter_feat
        seen = feat.target - feat.first if self.config["mask_seen"] else torch.zeros(len(feat), dtype=torch.long)
        for number, user in enumerate(self.uid_list):
            part = self.uid2index[user]
            if seen[part].max() + part.stop - part.start >= self._dataset.item_num - 1:
                self.collate_fn([number])

    def collate_fn(self, index: Any) -> Any:
        """A batch of users.

        Returns
        -------
        tuple of Interaction, object, Tensor and Tensor
            As RecBole has it: the candidates as rows, which user each belongs to int [P C], and of each target the user
            and the item, int [P] each. With ``as_rows``: the rows, then the pair (user, candidates) int [P] and [P, C].
        """
        if not self.samples:
            return super().collate_fn(index)
        users = self.uid_list[np.array(index)]
        places = [np.arange(part.start, part.stop) for part in self.uid2index[users]]
        user = torch.arange(len(users)).repeat_interleave(torch.tensor([len(part) for part in places]))
        rows = self.transform(self._dataset, self._dataset[np.concatenate(places)])
        target = rows[self.iid_field]
        negatives = self._negatives(rows, user)
        if self.as_rows:
            return rows, (user, torch.cat([target.unsqueeze(1), negatives], dim=1)), user, target
        flat = self.sampling_func(rows, negatives.T.reshape(-1))
        return flat, user.repeat(self.times), user, target

    def _negatives(self, rows: Any, user: Tensor) -> Tensor:
        """Items that are drawn for each row: int [P, n]."""
        number, target = rows[self.uid_field].numpy(), rows[self.iid_field].numpy()
        seen: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(target)
        if self._repeatable and self.config["mask_seen"]:
            row, item = self._dataset.seen_items(rows)
            seen = np.split(item.numpy(), torch.bincount(row, minlength=len(target)).cumsum(0)[:-1].numpy())
        negatives = np.empty((len(target), self.neg_sample_num), dtype=np.int64)
        for first in np.flatnonzero(np.append(True, np.diff(user.numpy()))):
            own = np.flatnonzero(user.numpy() == user[first].item())
            used = target[own] if self._repeatable else np.fromiter(self._sampler.used_ids[number[first]], np.int64)
            generator = self._candidates.generator(int(number[first]))
            for place in own:
                excluded = np.concatenate([used, seen[place]])
                negatives[place] = self._candidates.draw(generator, self.neg_sample_num, excluded)
        return torch.from_numpy(negatives)

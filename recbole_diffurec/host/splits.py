"""The parts that interactions are split into: in exact order, and with what training knows of the items.

Shapes: n interactions, R rows.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset, SequentialDataset

from recbole_diffurec.config.protocol import Protocol
from recbole_diffurec.host.fingerprint import fingerprint

__all__ = ["Splits"]

logger = logging.getLogger("recbole_diffurec")

# More interactions of one time than this share of all are no accident.
ONE_TIME = 0.005


class Splits(Dataset):
    """Splits all users together in exact order of time, where RecBole has float32 times, up to 128 s apart.

    Users that are split one by one keep RecBole's order among each other, which says nothing.

    Attributes
    ----------
    popularity : np.ndarray
        Interactions with each item in the training part, by number; of the parts that ``build`` makes.
    fingerprint : dict of str to object
        What identifies all interactions, see ``host.fingerprint``, and these parts.
    """

    popularity: np.ndarray
    fingerprint: dict[str, Any]
    inter_feat: Any  # a DataFrame until RecBole builds the splits, an Interaction after
    _line: np.ndarray  # where each interaction stood in the file, among those that are left
    _place: np.ndarray | None = None  # each row's among all in order of time, where users are split together

    def build(self) -> list[Any]:
        """The parts: training, validation, test."""
        frame, split_already = self.inter_feat, self.benchmark_filename_list is not None
        found = fingerprint(self)
        items = frame[self.iid_field].to_numpy()
        protocol = Protocol.of(self.config["eval_args"])
        if not split_already and protocol.in_order and not protocol.by_user:
            self._place = self._places(frame)
            self._warn_of_one_time(frame[self.time_field])
        training = items[: self.file_size_list[0]] if split_already else items
        parts = super().build()
        popularity = np.bincount(training, minlength=self.item_num)
        for part in [] if split_already else parts[1:]:
            popularity -= np.bincount(part.inter_feat[self.iid_field].numpy(), minlength=self.item_num)
        for part in parts:
            part.popularity, part.fingerprint, part._place = popularity, found, None
        return parts

    def _warn_of_one_time(self, times: pd.Series) -> None:
        """Say so where many interactions have one time, such as places in a sequence, which no cut by time can part."""
        count = times.value_counts().iloc[0]
        if count > max(1, ONE_TIME * len(times)):
            logger.warning(
                "%.1f%% of the interactions have the same '%s': a split of all users together by time needs real "
                "times, not places in a sequence",
                100 * count / len(times),
                self.time_field,
            )

    def _places(self, frame: pd.DataFrame) -> np.ndarray:
        """Where each row stands among all in order of time, ties in order of the file: int [R]."""
        order = np.lexsort((self._line, frame[self.time_field].to_numpy()))
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        if not isinstance(self, SequentialDataset):
            return places
        users = frame[self.uid_field].to_numpy()
        return places[np.append(False, users[1:] == users[:-1])]  # a user's first interaction makes no row

    def sort(self, by: Any, ascending: Any = True) -> None:
        if by == self.time_field and self._place is not None:
            self.inter_feat._reindex(torch.from_numpy(np.argsort(self._place)))
        else:
            super().sort(by, ascending)

    def in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Users and items of all interactions, user by user, the oldest first: int [n] each; before ``build``."""
        users, items = (self.inter_feat[field].to_numpy() for field in (self.uid_field, self.iid_field))
        times = self.inter_feat[self.time_field].to_numpy() if self.time_field in self.inter_feat else users
        order = np.lexsort((times, users))
        return users[order], items[order]

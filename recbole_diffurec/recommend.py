"""Recommendations from a trained model, for users and histories that it never saw; no data set is needed.

Shapes: B histories, I items with padding row 0, L the longest history that the model reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_diffurec import checkpoint
from recbole_diffurec.config import PLACES, RunConfig
from recbole_diffurec.errors import UserError

COLUMNS = ("user_id", "rank", "item_id", "score", "popular")


class _ItemCounts:
    """As much of a data set as the constructor of a sequential model asks for."""

    def __init__(self, config: RunConfig, n_items: int, n_users: int):
        self._counts = {config["ITEM_ID_FIELD"]: n_items, config["USER_ID_FIELD"]: n_users}

    def num(self, field: str) -> int:
        return self._counts[field]


class Recommender:
    """A trained sequential model that turns item histories, in the data's own ids, into ranked items.

    Several threads may ask at the same time: nothing changes after ``load``.

    Attributes
    ----------
    items : the ids that the model knows, by number; index 0 is padding.
    """

    def __init__(self, network: Any, config: RunConfig, items: Sequence[str], popularity: Tensor):
        self.network, self.config, self.items = network.eval(), config, np.asarray(items, dtype=object)
        self._number = {item: number for number, item in enumerate(items) if number}
        self._popularity = popularity.to(torch.get_default_dtype())

    @classmethod
    def load(cls, path: str | Path, **parameters: Any) -> Recommender:
        """Open a checkpoint that a run wrote.

        Parameters
        ----------
        path : the ``.pth`` file.
        parameters : what to change for inference, such as ``sampling_steps=4``, ``ensemble_seeds=[1, 2]``,
            ``enable_amp=True`` or ``gpu_id=""``.

        Raises
        ------
        UserError
            The file is no such checkpoint, a parameter is wrong, or the model is not a sequential one.
        """
        state = checkpoint.load(path)
        missing = {"model", "dataset", "config", "id_tokens", "popularity", "state_dict"} - state.keys()
        if missing:
            raise UserError(f"checkpoint '{path}' lacks {', '.join(sorted(missing))}: give a file that a run wrote")
        # Sampled softmax is a matter of training, and wants the training data's counts.
        inference = {"sampled_softmax": None} if "sampled_softmax" in state["config"] else {}
        config = RunConfig(state["model"], state["dataset"], {**state["config"], **inference, **parameters})
        if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
            raise UserError(f"model '{state['model']}' in '{path}' reads no histories: give a sequential model")
        tokens = state["id_tokens"]
        try:
            counts = _ItemCounts(config, len(tokens["items"]), len(tokens["users"]))
            network = config.model_class(config, counts).to(config["device"])
            network.load_state_dict(state["state_dict"])
        except (AttributeError, KeyError) as error:
            raise UserError(
                f"model '{state['model']}' in '{path}' needs more of its data than a checkpoint holds ({error}): "
                f"recommend with DiffuRec, DiffuRecSys, SASRec, BERT4Rec or GRU4Rec"
            ) from None
        except RuntimeError:
            raise UserError(
                f"the weights of '{path}' do not fit the parameters given ({', '.join(parameters.keys() - PLACES)}): "
                f"leave out those that change the network's shape"
            ) from None
        return cls(network, config, tokens["items"], state["popularity"])

    def recommend(
        self,
        sequences: Sequence[Sequence[Any]],
        k: int = 10,
        exclude_seen: bool = False,
        candidates: Iterable[Any] | None = None,
        users: Sequence[Any] | None = None,
    ) -> pd.DataFrame:
        """The ``k`` best items for each history, oldest item first.

        Items that the model does not know are skipped. A history without any known item gets the most popular items
        of the training data, marked in the column ``popular``.

        Parameters
        ----------
        sequences : B histories of item ids.
        k : length of the lists.
        exclude_seen : leave out the items of the history itself.
        candidates : recommend these items alone.
        users : names for the histories, their places by default.

        Returns
        -------
        DataFrame with ``user_id``, ``rank`` (from 1), ``item_id``, ``score``, ``popular``; fewer than ``k`` rows for a
        history that leaves fewer items.

        Raises
        ------
        UserError
            ``k`` is no integer of at least 1, or no candidate is known.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise UserError(f"k must be an integer of at least 1, got {k!r}")
        users = range(len(sequences)) if users is None else users
        allowed = self._allowed(candidates)
        frames = [pd.DataFrame({name: [] for name in COLUMNS})] if not len(sequences) else []
        size = self.config["eval_batch_size"]
        for start in range(0, len(sequences), size):
            frames.append(
                self._batch(sequences[start : start + size], users[start : start + size], int(k), exclude_seen, allowed)
            )
        return pd.concat(frames, ignore_index=True)

    def unknown(self, sequences: Iterable[Iterable[Any]]) -> int:
        """How many of the items in the histories the model does not know."""
        return sum(str(item) not in self._number for sequence in sequences for item in sequence)

    def _allowed(self, candidates: Iterable[Any] | None) -> Tensor | None:
        if candidates is None:
            return None
        numbers = [self._number[str(item)] for item in candidates if str(item) in self._number]
        if not numbers:
            raise UserError("none of the candidates is an item that the model knows: give items of its training data")
        allowed = torch.zeros(len(self.items), dtype=torch.bool)
        allowed[numbers] = True
        return allowed

    @torch.no_grad()
    def _batch(
        self,
        sequences: Sequence[Sequence[Any]],
        users: Sequence[Any],
        k: int,
        exclude_seen: bool,
        allowed: Tensor | None,
    ) -> pd.DataFrame:
        histories = [[self._number[str(i)] for i in sequence if str(i) in self._number] for sequence in sequences]
        scores = self._popularity.repeat(len(histories), 1)
        scores[:, 0] = -torch.inf
        known = [i for i, history in enumerate(histories) if history]
        if known:
            scores[known] = self._scores([histories[i] for i in known]).to(scores)
        if allowed is not None:
            scores[:, ~allowed] = -torch.inf
        if exclude_seen:
            for seen_by, history in enumerate(histories):
                scores[seen_by, history] = -torch.inf
        best = scores.topk(min(k, scores.shape[1] - 1), dim=-1)
        row, rank = np.nonzero(np.isfinite(best.values.numpy()))
        popular = np.ones(len(histories), dtype=bool)
        popular[known] = False
        return pd.DataFrame(
            {
                "user_id": np.asarray(users, dtype=object)[row],
                "rank": rank + 1,
                "item_id": self.items[best.indices.numpy()[row, rank]],
                "score": best.values.numpy()[row, rank],
                "popular": popular[row],
            }
        )

    def _scores(self, histories: list[list[int]]) -> Tensor:
        """[B, I], on the CPU, the padding row at minus infinity."""
        length = self.config["MAX_ITEM_LIST_LENGTH"]
        lengths = torch.tensor([min(len(history), length) for history in histories])
        padded = torch.zeros(len(histories), length, dtype=torch.long)
        for row, history in enumerate(histories):
            padded[row, : lengths[row]] = torch.tensor(history[-length:])
        columns = {self.network.ITEM_SEQ: padded, self.network.ITEM_SEQ_LEN: lengths}
        scores = self.network.full_sort_predict(Interaction(columns).to(self.config["device"]))
        scores = scores.view(len(histories), -1)[:, : len(self.items)].cpu()
        scores[:, 0] = -torch.inf
        return scores

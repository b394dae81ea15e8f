"""Recommendations from a trained model, for users and histories that it never saw; no data set is needed.

Shapes: B histories, I items with padding row 0, L the longest history that the model reads.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_diffurec import allocator, checkpoint
from recbole_diffurec.config import PLACES, RunConfig
from recbole_diffurec.data.batches import fitting_users
from recbole_diffurec.data.histories import HistoryBatch, HistoryColumns, as_histories, as_ids, read_histories
from recbole_diffurec.data.tables import Frame, Table, open_table
from recbole_diffurec.diffusion import schedules
from recbole_diffurec.diffusion.process import DiffusionProcess
from recbole_diffurec.errors import UserError
from recbole_diffurec.model.base import DiffusionRecommender

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
        self.popularity = popularity.to(torch.get_default_dtype())

    @classmethod
    def load(cls, path: str | Path, /, **parameters: Any) -> Recommender:
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
        allocator.keep_freed_memory()
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
            network = config.model_class(config, counts)
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
        config["eval_batch_size"] = fitting_users(config["eval_batch_size"], len(tokens["items"]), config["device"])
        return cls(network.to(config["device"]), config, tokens["items"], state["popularity"])

    def with_sampling_steps(self, steps: int) -> Recommender:
        """The same diffusion model, its weights shared, with another number of reverse steps.

        Raises
        ------
        UserError
            ``steps`` is no integer from 1 to the diffusion steps, or the model is no diffusion model.
        """
        if not isinstance(self.network, DiffusionRecommender):
            raise UserError(f"model '{self.config['model']}' has no sampling steps: leave them out")
        total = self.network.process.n_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
            raise UserError(f"sampling_steps must be an integer from 1 to {total}, got {steps!r}")
        shared = {id(tensor): tensor for tensor in (*self.network.parameters(), *self.network.buffers())}
        network = copy.deepcopy(self.network, shared)
        network.process = DiffusionProcess(schedules.betas(self.config["noise_schedule"], total), steps)
        other = copy.copy(self)
        other.network = network.to(self.config["device"])
        return other

    def recommend(
        self,
        sequences: Sequence[Sequence[Any]] | pd.DataFrame,
        k: int = 10,
        exclude_seen: bool = False,
        candidates: Iterable[Any] | None = None,
        users: Sequence[Any] | None = None,
        samples: int | None = None,
        diversity: float = 0.0,
    ) -> pd.DataFrame:
        """The ``k`` best items for each history, oldest item first.

        Items that the model does not know are skipped. A history without any known item gets the most popular items
        of the training data, marked in the column ``popular``.

        Parameters
        ----------
        sequences : B histories of item ids, or a DataFrame that ``histories`` reads.
        k : length of the lists.
        exclude_seen : leave out the items of the history itself.
        candidates : recommend these items alone.
        users : names for the histories, their places by default.
        samples : draw so many reconstructions of each history's next item (diffusion models); the score is their mean.
        diversity : with samples, from 0 (the order of the scores) to 1 (cover as many samples' own lists as possible).

        Returns
        -------
        DataFrame with ``user_id``, ``rank`` (from 1), ``item_id``, ``score``, ``popular``; with ``samples`` also
        ``frequency``, the share of samples with the item in their own top k, and ``spread``, how far the user's samples
        lie from their mean, relative to its length. Fewer than ``k`` rows for a history that leaves fewer items.

        Raises
        ------
        UserError
            ``k``, ``samples`` or ``diversity`` is out of range, the model draws nothing, or no candidate is known.
        """
        for name, count in (("k", k), ("samples", 1 if samples is None else samples)):
            if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
                raise UserError(f"{name} must be an integer of at least 1, got {count!r}")
        if not 0 <= diversity <= 1:
            raise UserError(f"diversity must be a number from 0 to 1, got {diversity!r}")
        if samples is None and diversity:
            raise UserError("diversity spreads a list over samples: give --samples=20 or so with it")
        if samples is not None and not isinstance(self.network, DiffusionRecommender):
            raise UserError(f"model '{self.config['model']}' draws no samples: leave out --samples, or use DiffuRec")
        if isinstance(sequences, pd.DataFrame):
            if users is not None:
                raise UserError("users are named by the DataFrame already: leave them out")
            batches = list(self.histories(sequences))
            users = [user for names, _ in batches for user in names]
            sequences = [history for _, part in batches for history in part]
        sequences = as_histories(sequences)
        users = range(len(sequences)) if users is None else users
        if len(users) != len(sequences):
            raise UserError(f"users must name the {len(sequences)} histories, got {len(users)}: give one for each")
        allowed = self._allowed(candidates)
        columns = COLUMNS if samples is None else (*COLUMNS, "frequency", "spread")
        frames = [] if len(sequences) else [pd.DataFrame({name: [] for name in columns})]
        size = self.config["eval_batch_size"]
        for start in range(0, len(sequences), size):
            part = slice(start, start + size)
            frames.append(self._batch(sequences[part], users[part], int(k), exclude_seen, allowed, samples, diversity))
        return pd.concat(frames, ignore_index=True)

    def histories(self, source: str | Path | pd.DataFrame) -> Iterator[HistoryBatch]:
        """Users and histories in a file or a DataFrame, some at a time (see ``read_histories``).

        The columns are called as in the training data, or ``user_id``, ``item_id`` and ``timestamp``, or ``user_id``
        and ``items``.

        Raises
        ------
        UserError
            They cannot be read.
        """
        config = self.config
        names = [config[f"{kind}_FIELD"] for kind in ("USER_ID", "ITEM_ID", "TIME")]
        columns = HistoryColumns(*(name or default for name, default in zip(names, vars(HistoryColumns()).values())))
        if isinstance(source, pd.DataFrame):
            table: Table = Frame(source)
        else:
            table = open_table(source, "input", config["field_separator"], config["encoding"])
        return read_histories(table, columns, split=all(len(item.split()) == 1 for item in self.items[1:]))

    def unknown(self, sequences: Iterable[Iterable[Any]]) -> int:
        """How many of the items in the histories the model does not know."""
        return sum(item not in self._number for sequence in as_histories(sequences) for item in sequence)

    def knows(self, item: str) -> bool:
        """Whether an id is of an item that the model knows."""
        return item in self._number

    def like(self, item: str) -> str | None:
        """The id that the model knows where ``item`` is the same in another spelling, as of a table's numbers."""
        spellings = (item.removesuffix(".0"), item.strip(), item.strip("\"'"))
        return next((spelling for spelling in spellings if spelling in self._number), None)

    @torch.no_grad()
    def vectors(self, sequences: Sequence[Sequence[Any]]) -> np.ndarray:
        """Reconstructed targets of a diffusion model, for a search among its ``item_vectors``: float32 [B, d].

        A history without any item that the model knows has the vector of zeros.
        """
        sequences = as_histories(sequences)
        found = np.zeros((len(sequences), self.network.hidden_size), dtype=np.float32)
        size = self.config["eval_batch_size"]
        for start in range(0, len(sequences), size):
            histories = self._numbers(sequences[start : start + size])
            known = [row for row, history in enumerate(histories) if history]
            if known:
                (x_0, *_) = self.network.reconstructions(self._interaction([histories[row] for row in known]))
                found[start + np.array(known)] = self.network.query(x_0).cpu().numpy()
        return found

    def _numbers(self, sequences: Iterable[Iterable[str]]) -> list[list[int]]:
        """The histories in item numbers, without the items that the model does not know."""
        return [[self._number[item] for item in sequence if item in self._number] for sequence in sequences]

    def _allowed(self, candidates: Iterable[Any] | None) -> Tensor | None:
        if candidates is None:
            return None
        numbers = [self._number[item] for item in as_ids(candidates, "candidates") if item in self._number]
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
        samples: int | None,
        diversity: float,
    ) -> pd.DataFrame:
        histories = self._numbers(sequences)
        known = [row for row, history in enumerate(histories) if history]
        batch = self._interaction([histories[row] for row in known]) if known else None
        k = min(k, len(self.items) - 1)

        def masked(scores_of_known: Tensor | None) -> Tensor:
            scores = self.popularity.repeat(len(histories), 1)
            if scores_of_known is not None:
                scores[known] = scores_of_known.view(len(known), -1)[:, : len(self.items)].to(scores)
            scores[:, 0] = -torch.inf
            if allowed is not None:
                scores[:, ~allowed] = -torch.inf
            if exclude_seen:
                for row, history in enumerate(histories):
                    scores[row, history] = -torch.inf
            return scores

        extra: dict[str, np.ndarray] = {}
        if samples is None or batch is None:
            scores = masked(None if batch is None else self.network.full_sort_predict(batch))
            values, lists = (part.numpy() for part in scores.topk(k))
            if samples is not None:  # all of them would give the popular items
                extra = {"frequency": np.ones(lists.shape), "spread": np.zeros(lists.shape)}
        else:
            x_0 = torch.stack(self.network.reconstructions(batch, range(samples)))
            added = self.network.repeat_scores(batch[self.network.ITEM_SEQ])
            own = np.stack([masked(self.network.logits(x, added)).topk(k).indices.numpy() for x in x_0])
            scores = masked(self.network.logits(x_0.mean(dim=0), added))
            lists = _spread_over(own, scores.numpy(), diversity) if diversity else scores.topk(k).indices.numpy()
            values = np.take_along_axis(scores.numpy(), lists, axis=1)
            spread = np.zeros(len(histories))
            centre = x_0.mean(dim=0)
            spread[known] = ((x_0 - centre).norm(dim=-1).mean(dim=0) / centre.norm(dim=-1)).cpu()
            counts = np.zeros(scores.shape, dtype=np.int32)
            for of_sample in own:
                counts[np.arange(len(counts))[:, None], of_sample] += 1
            extra["frequency"] = np.take_along_axis(counts, lists, axis=1) / len(own)
            extra["spread"] = np.broadcast_to(spread[:, None], lists.shape)
        row, rank = np.nonzero(np.isfinite(values))
        popular = np.ones(len(histories), dtype=bool)
        popular[known] = False
        return pd.DataFrame(
            {
                "user_id": np.asarray(users, dtype=object)[row],
                "rank": rank + 1,
                "item_id": self.items[lists[row, rank]],
                "score": values[row, rank],
                "popular": popular[row],
                **{name: column[row, rank] for name, column in extra.items()},
            }
        )

    def _interaction(self, histories: list[list[int]]) -> Interaction:
        """What the model reads: the most recent items of each history, padded on the right, on its device."""
        longest = self.config["MAX_ITEM_LIST_LENGTH"]
        lengths = torch.tensor([min(len(history), longest) for history in histories])
        padded = torch.zeros(len(histories), longest, dtype=torch.long)
        for row, history in enumerate(histories):
            padded[row, : lengths[row]] = torch.tensor(history[-longest:])
        columns = {self.network.ITEM_SEQ: padded, self.network.ITEM_SEQ_LEN: lengths}
        return Interaction(columns).to(self.config["device"])


def _spread_over(own: np.ndarray, scores: np.ndarray, diversity: float) -> np.ndarray:
    """Lists that hold items of as many samples' own lists as possible: greedy maximum coverage.

    Each place goes to the item with the largest (1 - diversity) q + diversity g: q is how the item's score stands
    between the worst and the best of the candidates, g the share of samples whose own list has it, a sample counting
    half as much with every item that it has in the list already.

    Parameters
    ----------
    own : int [S, B, k], the samples' own lists.
    scores : [B, I].
    """
    n_samples, n_rows, k = own.shape
    lists = np.zeros((n_rows, k), dtype=own.dtype)  # padding, whose score of minus infinity ends a list
    for row in range(n_rows):
        candidates, place_of = np.unique(own[:, row], return_inverse=True)
        has = np.zeros((n_samples, len(candidates)), dtype=bool)
        np.put_along_axis(has, place_of.reshape(n_samples, k), True, axis=1)
        order = np.argsort(-scores[row, candidates], kind="stable")  # ties go to the higher score
        order = order[np.isfinite(scores[row, candidates[order]])]
        candidates, has = candidates[order], has[:, order]
        if not len(candidates):
            continue
        quality = scores[row, candidates]
        low, high = quality.min(), quality.max()
        quality = (1 - diversity) * (quality - low) / (high - low if high > low else 1.0)
        weight = np.full(n_samples, 1 / n_samples)
        free = np.ones(len(candidates), dtype=bool)
        for place in range(min(k, len(candidates))):
            best = int(np.where(free, quality + diversity * (weight @ has), -np.inf).argmax())
            lists[row, place] = candidates[best]
            free[best] = False
            weight[has[:, best]] /= 2
    return lists

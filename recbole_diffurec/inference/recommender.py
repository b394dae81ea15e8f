"""Recommendations from a trained model, for users and histories that it never saw; no data set is needed.

Shapes: B histories, I items with padding row 0, L the longest history that the model reads.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from recbole.utils import ModelType
from torch import Tensor

from recbole_diffurec.data.formats import open_table
from recbole_diffurec.data.histories import HistoryBatch, HistoryColumns, as_histories, as_ids, read_histories
from recbole_diffurec.data.sniff import kind_of
from recbole_diffurec.data.tables import Frame, Table, check_columns
from recbole_diffurec.errors import UserError
from recbole_diffurec.host import catalogue, checks, trackers
from recbole_diffurec.host.config import RunConfig
from recbole_diffurec.host.devices import say_of_gpus
from recbole_diffurec.host.loaders import batch_of, fitting_users
from recbole_diffurec.inference.checkpoint_data import CheckpointData, check_reads_histories_alone
from recbole_diffurec.inference.items import ItemTable
from recbole_diffurec.inference.lists import ListOptions, Lists, lists_of_samples
from recbole_diffurec.inference.next_lists import NextLists
from recbole_diffurec.inference.reasons import Reasons
from recbole_diffurec.inference.sharing import Shareable, about_model
from recbole_diffurec.inference.similar import SimilarItems
from recbole_diffurec.models.base import DiffusionRecommender
from recbole_diffurec.models.scores import check_numbers
from recbole_diffurec.runtime.shared import open_model
from recbole_diffurec.training.report import explained
from recbole_diffurec.training.weights import load_weights, room_for

COLUMNS = ("user_id", "rank", "item_id", "score", "popular")


class Recommender(NextLists, SimilarItems, Shareable):
    """A trained sequential model that turns item histories, in the data's own ids, into ranked items.

    Several threads may ask at the same time: nothing changes after ``load``.

    Attributes
    ----------
    items : np.ndarray
        The ids that the model knows, by number; index 0 is padding.
    about_items : ItemTable
        What else the checkpoint says of them: titles, prices and other columns.
    """

    def __init__(
        self,
        network: Any,
        config: RunConfig,
        items: Sequence[str],
        popularity: Tensor,
        columns: Mapping[str, Sequence[str]] | None = None,
    ):
        self.network, self.config, self.items = network.eval(), config, np.asarray(items, dtype=object)
        self.about_items = ItemTable(self.items, columns or {})
        self._number = {item: number for number, item in enumerate(items) if number}
        self.popularity = popularity.to(torch.get_default_dtype())

    @classmethod
    def load(cls, path: str | Path, /, **parameters: Any) -> Recommender:
        """Open a checkpoint that a run wrote, or a safetensors file that was made of one.

        Parameters
        ----------
        path : str or Path
            The ``.pth`` or ``.safetensors`` file.
        **parameters : object
            What to change for inference, such as ``sampling_steps=4``, ``ensemble_seeds=[1, 2]`` or ``gpu_id=""``.

        Raises
        ------
        UserError
            The file is no such checkpoint, a parameter is wrong, or the model is not a sequential one.
        """
        state = open_model(path)
        say_of_gpus(parameters)
        trackers.refuse(parameters)
        spec = catalogue.find(state["model"])
        inference = {name: value for name, value in spec.for_inference.items() if name in state["config"]}
        # What training had, said again, is no wish to have it in inference.
        given = {name: v for name, v in parameters.items() if name not in inference or v != state["config"][name]}
        with checks.effect_first(given, state["config"]):
            config = RunConfig(state["model"], state["dataset"], {**state["config"], **inference, **given})
        checks.check_effect_after(given, config, state["config"], checks.OF_TRAINING | checks.OF_EVALUATION)
        if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
            raise UserError(f"model '{state['model']}' in '{path}' reads no histories: give a sequential model")
        spec.refuse("recommend", "recommend from a checkpoint alone")
        tokens, columns = state["id_tokens"], state.get("item_columns", {})
        counts = CheckpointData(config, len(tokens["items"]), state["n_users"])
        with explained(f"building model '{state['model']}'"), room_for(state, path):
            network = config.model_class(config, counts)
        load_weights(network, state, path, parameters)
        config.tell_precision()
        users = fitting_users(config["eval_batch_size"], len(tokens["items"]), config["device"])
        config = config.with_values(eval_batch_size=users)
        recommender = cls(network.to(config["device"]), config, tokens["items"], state["popularity"], columns)
        recommender.about_model = about_model(state, config, parameters)
        check_reads_histories_alone(recommender.network, recommender._interaction([[1]]), state["model"])
        return recommender

    def with_sampling_steps(self, steps: int) -> Recommender:
        """The same diffusion model, its weights shared, with another number of reverse steps.

        Raises
        ------
        UserError
            ``steps`` is no integer from 1 to the diffusion steps, or the model is no diffusion model.
        """
        if not isinstance(self.network, DiffusionRecommender):
            raise UserError(f"model '{self.config['model']}' has no sampling steps: leave them out")
        total = self.network.n_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
            raise UserError(f"sampling_steps must be an integer from 1 to {total}, got {steps!r}")
        other = copy.copy(self)
        other.network = self.network.with_sampling_steps(steps)
        if self.about_model is not None:
            changed = {**self.about_model["config"], "sampling_steps": steps}
            other.about_model = {**self.about_model, "config": changed}
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
        columns: Sequence[str] = (),
    ) -> pd.DataFrame:
        """The ``k`` best items for each history, oldest item first.

        Items that the model does not know are skipped. A history without any known item gets the most popular items
        of the training data, marked in the column ``popular``.

        Parameters
        ----------
        sequences : Sequence of Sequence of object or pd.DataFrame
            B histories of item ids, or a DataFrame that ``histories`` reads.
        k : int, optional
            Length of the lists.
        exclude_seen : bool, optional
            Leave out the items of the history itself.
        candidates : Iterable of object, optional
            Recommend these items alone.
        users : Sequence of object, optional
            Names for the histories, their places by default.
        samples : int, optional
            Draw so many reconstructions of each history's next item (diffusion models); the score is their mean.
        diversity : float, optional
            With samples, from 0 (the order of the scores) to 1 (cover as many samples' own lists as possible).
        columns : Sequence of str, optional
            Columns of items to add, such as ``title`` (see ``about_items.names``).

        Returns
        -------
        pd.DataFrame
            With ``user_id``, ``rank`` (from 1), ``item_id``, ``score``, ``popular``; with ``samples`` also
            ``frequency``, the share of samples with the item in their own top k, and ``spread``, how far the user's
            samples lie from their mean, relative to its length. Fewer than ``k`` rows where fewer items are left.

        Raises
        ------
        UserError
            An argument is out of range, the model draws nothing, no candidate is known, or there is no such column.
        """
        options = ListOptions(k, exclude_seen, candidates, samples, diversity)
        if samples is not None:
            self._check_that_it_draws()
        sequences, users = self._named_histories(sequences, users)
        allowed = self._allowed(candidates)
        own = COLUMNS if samples is None else (*COLUMNS, "frequency", "spread")
        self.about_items.check(columns, taken=own)
        frames = [] if len(sequences) else [pd.DataFrame({name: [] for name in own})]
        size = self.config["eval_batch_size"]
        parts = (slice(start, start + size) for start in range(0, len(sequences), size))
        frames += [self._batch(sequences[part], users[part], options, allowed) for part in parts]
        return self._with_columns(pd.concat(frames, ignore_index=True), columns)

    def _check_that_it_draws(self) -> None:
        self.config.spec.refuse("samples", "draw samples")
        if not isinstance(self.network, DiffusionRecommender):
            name = self.config["model"]
            raise UserError(f"model '{name}' draws no samples, since it is no diffusion model: leave out --samples")

    def _with_columns(self, table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
        """A table with a column ``item_id``, and what ``columns`` say of these items."""
        numbers = np.array([self._number[item] for item in table["item_id"]], dtype=np.int64)
        return table.assign(**{name: self.about_items.of(name, numbers) for name in columns})

    def explain(self, lists: pd.DataFrame, sequences: Sequence[Sequence[Any]], n: int = 3) -> list[list[str]]:
        """Why an item: for each row of ``lists`` the items of its history that it is owed to, see ``Reasons``.

        Parameters
        ----------
        lists : pd.DataFrame
            What ``recommend`` gives for ``sequences`` without ``users``.
        sequences : Sequence of Sequence of object
            Histories of item ids.
        n : int, optional
            How many of a history's items to name at most.

        Raises
        ------
        UserError
            The model neither attends to histories nor has vectors of items.
        """
        reasons = Reasons(self.network, self.config["model"], len(self.items), self._interaction)
        longest = self.config["MAX_ITEM_LIST_LENGTH"]
        histories = [history[-longest:] for history in self._numbers(as_histories(sequences))]
        items = [self._number[item] for item in lists["item_id"]]
        rows = lists["user_id"].to_numpy(dtype=np.int64)
        named = reasons.of(histories, rows, items, n, self.config["eval_batch_size"])
        return [[self.items[item] for item in of_row] for of_row in named]

    def _named_histories(self, sequences: Any, users: Any) -> tuple[list[list[str]], Sequence[Any]]:
        """Histories as text, and the users' names, as ``recommend`` takes them."""
        if isinstance(sequences, pd.DataFrame):
            if users is not None:
                raise UserError("the DataFrame names its users already: leave out users")
            parts = list(self.histories(sequences))
            return [history for _, part in parts for history in part], [user for part, _ in parts for user in part]
        sequences = as_histories(sequences)
        users = range(len(sequences)) if users is None else [users] if isinstance(users, str) else list(users)
        if len(users) != len(sequences):
            raise UserError(f"users must name the {len(sequences)} histories, got {len(users)}: give one for each")
        return sequences, users

    def histories(
        self,
        source: str | Path | pd.DataFrame | Table,
        user: str | None = None,
        item: str | None = None,
        time: str | None = None,
    ) -> Iterator[HistoryBatch]:
        """Users and histories in a file or a DataFrame, some at a time (see ``read_histories``).

        Parameters
        ----------
        source : str, Path, DataFrame or Table
            Interactions, or users with the column ``items``.
        user, item, time : str, optional
            What its columns are called; by default as in the training data, or ``user_id``, ``item_id``, ``timestamp``.

        Raises
        ------
        UserError
            They cannot be read.
        """
        config = self.config
        given = {"user": user, "item": item, "time": time}
        trained = [config[f"{kind}_FIELD"] for kind in ("USER_ID", "ITEM_ID", "TIME")]
        names = [name if name is not None else own for name, own in zip(given.values(), trained)]
        columns = HistoryColumns(*(name or default for name, default in zip(names, vars(HistoryColumns()).values())))
        if isinstance(source, (Table, pd.DataFrame)):
            table = source if isinstance(source, Table) else Frame(source)
        else:
            atomic = kind_of(Path(source)) == ".inter"
            written = (config["field_separator"], config["encoding"]) if atomic else ()
            table = open_table(source, "input", *written)
        check_columns(table, {option: name for option, name in given.items() if name is not None})
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
        """What the histories look for among an exportable model's ``item_vectors``: float32 [B, d].

        A history without any item that the model knows has the vector of zeros.
        """
        sequences = as_histories(sequences)
        found = np.zeros((len(sequences), self.network.item_vectors().shape[1]), dtype=np.float32)
        size = self.config["eval_batch_size"]
        for start in range(0, len(sequences), size):
            histories = self._numbers(sequences[start : start + size])
            known = [row for row, history in enumerate(histories) if history]
            if known:
                queries = self.network.queries(self._interaction([histories[row] for row in known]))
                found[start + np.array(known)] = queries.cpu().numpy()
        return found

    def _numbers(self, sequences: Iterable[Iterable[str]]) -> list[list[int]]:
        """The histories in item numbers, without the items that the model does not know."""
        return [[self._number[item] for item in sequence if item in self._number] for sequence in sequences]

    def _allowed(self, candidates: Iterable[Any] | None) -> Tensor | None:
        if candidates is None:
            return None
        # Their order does not matter, so that a set will do, other than for a history.
        listed = list(candidates) if isinstance(candidates, Set) else candidates
        numbers = [self._number[item] for item in as_ids(listed, "candidates") if item in self._number]
        if not numbers:
            raise UserError("none of the candidates is an item that the model knows: give items of its training data")
        allowed = torch.zeros(len(self.items), dtype=torch.bool)
        allowed[numbers] = True
        return allowed

    @torch.no_grad()
    def _batch(
        self, sequences: Sequence[Sequence[Any]], users: Sequence[Any], options: ListOptions, allowed: Tensor | None
    ) -> pd.DataFrame:
        histories = self._numbers(sequences)
        known = [row for row, history in enumerate(histories) if history]
        batch = self._interaction([histories[row] for row in known]) if known else None

        def masked(scores_of_known: Tensor | None) -> Tensor:
            scores = self.popularity.repeat(len(histories), 1)
            if scores_of_known is not None:
                scores[known] = scores_of_known.view(len(known), -1)[:, : len(self.items)].to(scores)
            scores[:, 0] = -torch.inf
            if allowed is not None:
                scores[:, ~allowed] = -torch.inf
            if options.exclude_seen:
                for row, history in enumerate(histories):
                    scores[row, history] = -torch.inf
            return scores

        lists = self._lists(batch, known, masked, options)
        row, rank = np.nonzero(np.isfinite(lists.scores))
        popular = np.ones(len(histories), dtype=bool)
        popular[known] = False
        return pd.DataFrame(
            {
                "user_id": np.asarray(users, dtype=object)[row],
                "rank": rank + 1,
                "item_id": self.items[lists.items[row, rank]],
                "score": lists.scores[row, rank],
                "popular": popular[row],
                **{name: column[row, rank] for name, column in lists.extra.items()},
            }
        )

    def _lists(
        self, batch: Any, known: list[int], masked: Callable[[Tensor | None], Tensor], options: ListOptions
    ) -> Lists:
        """The lists of one batch, of which the rows ``known`` have items that the model knows."""
        k = min(int(options.k), len(self.items) - 1)
        if options.samples is None or batch is None:
            scores = masked(None if batch is None else check_numbers(self.network.full_sort_predict(batch)))
            values, items = (part.numpy() for part in scores.topk(k))
            extra: dict[str, np.ndarray] = {}
            if options.samples is not None:  # all of them would give the popular items
                extra = {"frequency": np.ones(items.shape), "spread": np.zeros(items.shape)}
            return Lists(items, values, extra)
        item_seq = batch[self.network.ITEM_SEQ]
        x_0 = check_numbers(torch.stack(self.network.reconstructions(batch, range(options.samples))))
        own = np.stack([masked(self.network.logits(x, item_seq)).topk(k).indices.numpy() for x in x_0])
        centre = x_0.mean(dim=0)
        scores = masked(self.network.logits(centre, item_seq))
        spread = np.zeros(len(scores))
        spread[known] = ((x_0 - centre).norm(dim=-1).mean(dim=0) / centre.norm(dim=-1)).cpu()
        return lists_of_samples(own, scores, spread, options.diversity)

    def _interaction(self, histories: list[list[int]]) -> Any:
        """What the model reads: the most recent items of each history, padded on the right, on its device."""
        longest = self.config["MAX_ITEM_LIST_LENGTH"]
        lengths = torch.tensor([min(len(history), longest) for history in histories])
        padded = torch.zeros(len(histories), longest, dtype=torch.long)
        for row, history in enumerate(histories):
            padded[row, : lengths[row]] = torch.tensor(history[-longest:])
        return batch_of({self.network.ITEM_SEQ: padded, self.network.ITEM_SEQ_LEN: lengths}, self.config["device"])

"""Masked diffusion over the next k items: slots behind the history are masked, and filled from it and from each other.

The process is that of MDLM (see ``diffusion.absorbing``) with items for tokens and the history as the condition.
Guidance by a condition that is dropped in training: Ho, Salimans 2021, "Classifier-Free Diffusion Guidance".

Shapes: B batch, L padded history length, N tokens, d hidden size, k slots of which n are filled, S samples, I items
with padding row 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.config.needs import Need
from recbole_diffurec.config.rules import PROBABILITY, Rule
from recbole_diffurec.data.rows import ROW, FollowingItems
from recbole_diffurec.diffusion import absorbing
from recbole_diffurec.diffusion.absorbing import MASK, Choose, Filled
from recbole_diffurec.diffusion.noise import history_keys, uniforms
from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.blocks import BlockShape
from recbole_diffurec.layers.item_softmax import LogitBias
from recbole_diffurec.layers.ragged import LedBatch, PaddedBatch, RaggedBatch
from recbole_diffurec.models import sequential
from recbole_diffurec.models.base import DiffusionRecommender, ListSampler, Program, SampledLists
from recbole_diffurec.models.scores import ItemScores, check_numbers
from recbole_diffurec.models.sequential import HistoryProgram, SequentialModel
from recbole_diffurec.models.spec import ModelSpec

# Log-probabilities of all items for all slots that exist at once while lists are drawn.
SCORES_AT_ONCE = 2**25
MOST_SLOTS = 1000


class QueryScores(ItemScores):
    """Scores of queries, which are vectors that a model's own scores have made already."""

    def query(self, x: Tensor) -> Tensor:
        """``ItemScores.query``."""
        return x


@dataclass(frozen=True)
class Histories:
    """Some histories of a batch, ready for any state of their slots."""

    batch: RaggedBatch
    states: Tensor  # [N, d], what of them enters the encoder
    item_seq: Tensor  # int [B, L]
    rows: Tensor  # int [B], which of the batch's they are
    keys: Tensor  # int64 [B], by which they draw


class MaskedDiffRec(SequentialModel, DiffusionRecommender, ListSampler):
    """Masked diffusion over the next ``n_slots`` items, of whose joint distribution the steps make the difference.

    k slots stand by the history, each an item or a mask; a bidirectional Transformer over both gives every masked slot
    a distribution over the items. In training a row's slots hold its target and the training items after it. Of these
    n are masked, n and their set uniform, and the loss is the mean of their cross-entropies: masked diffusion's bound
    on -log p(list | history), for each slot. Slots beyond the training part stay masked and count for nothing.

    With all slots masked the first one is an ordinary classifier of the next item, by which items are ranked; no
    number of steps changes that. Lists are drawn in ``sampling_steps`` of k steps, each of which fills some slots given
    those before: one step draws every slot for itself, k steps give the chain rule and so an exact probability.
    ``guidance`` w scores by (1 + w) l(history) - w l(no history), where w > 0 turns from popular items to those that
    the history speaks for.

    Defaults: ``properties/model/MaskedDiffRec.yaml``.
    """

    norm = "pre"

    def block_shape(self, config: Any) -> BlockShape:
        """Sizes and switches of blocks with attention in both directions."""
        return replace(super().block_shape(config), causal=False)

    def build_encoder(self, config: Any, dataset: Any) -> None:
        """Blocks, slots, and what the training part knows of these."""
        super().build_encoder(config, dataset)
        self.slot_embedding = nn.Embedding(config["n_slots"], self.hidden_size)
        self.mask_vector = nn.Parameter(torch.zeros(self.hidden_size))
        self.all_masked_share: float = config["all_masked_share"]
        self.history_drop_prob: float = config["history_drop_prob"]
        self.guidance: float = config["guidance"]
        self.fill_order: str = config["fill_order"]
        self.temperature: float = config["sampling_temperature"]
        self.noise_seed: int = config["noise_seed"]
        self.steps: int = config["sampling_steps"] or config["n_slots"]
        self.query_scores = QueryScores(self.item_embedding, config["cosine_temperature"], self.repeat_bias)
        rows = vars(dataset).get("inter_feat")  # a checkpoint alone has none, and needs none
        self.following = None if rows is None else FollowingItems(rows, self.ITEM_SEQ)

    # From histories and slots to states

    def positions(self, batch: RaggedBatch) -> Tensor:
        """Counted from the most recent item, next to which the first slot is."""
        return batch.age

    def embed_slots(self, slots: Tensor) -> Tensor:
        """What enters the encoder for slots int [B, k], [B, k, d]."""
        masks = (slots == MASK).unsqueeze(-1) * self.mask_vector
        x = self.embed_items(slots) + masks + self.slot_embedding.weight
        return self.input_dropout(self.input_norm(x))

    def encode(self, x: Tensor, batch: RaggedBatch) -> Tensor:
        """The state of the first slot where all are masked, [B, d] in sorted order, from ``x`` [N, d]."""
        led = LedBatch(batch, self.n_slots)
        slots = batch.last.new_full((batch.n_sequences, self.n_slots), MASK)
        return self.encoder(led.join(self.embed_slots(slots), x), led)

    def slot_states(self, batch: RaggedBatch, x: Tensor, slots: Tensor) -> Tensor:
        """The states of all slots int [B, k], [B, k, d] in the precision of the item vectors.

        Parameters
        ----------
        batch : RaggedBatch
            The histories.
        x : Tensor
            [N, d], from ``embed``.
        slots : Tensor
            Items, and ``MASK``.
        """
        led = LedBatch(batch, self.n_slots)
        states = self.encoder(led.join(self.embed_slots(slots), x), led, last_only=False)
        return led.leading(states).to(self.item_embedding.weight.dtype)

    # Training

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Mean over the rows of the bound on the negative log-likelihood of their lists, for each slot.

        Parameters
        ----------
        interaction : Interaction
            A batch of training rows.
        """
        lists = self.lists_of(interaction)
        masked, weight = absorbing.mask_slots(lists != MASK, self.all_masked_share)
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if self.history_drop_prob:
            dropped = torch.rand(len(lists), device=lists.device) < self.history_drop_prob
            item_seq = item_seq.masked_fill(dropped.unsqueeze(1), 0)
            lengths = lengths.masked_fill(dropped, 1)  # of one padding item, which is what an empty history is
        batch = RaggedBatch(item_seq, lengths)
        states = self.slot_states(batch, self.embed(batch), lists.masked_fill(masked, MASK))
        row, slot = masked.nonzero(as_tuple=True)
        bias = self.scores.bias(item_seq)
        added = None if bias is None else LogitBias(bias.items[row], bias.scores[row])
        weights = weight[row].to(states.dtype) / len(lists)
        queries, vectors = self.scores.query(states[row, slot]), self.scores.vectors()
        loss, _ = self.cross_entropy(queries, vectors, lists[row, slot], weights, added)
        return loss

    def lists_of(self, interaction: Any) -> Tensor:
        """The targets of training rows and the training items after them, int [B, k], ``MASK`` after the last."""
        if self.following is not None:
            return self.following(interaction[ROW], self.n_slots)
        target = interaction[self.POS_ITEM_ID].unsqueeze(1)
        return torch.cat([target, target.new_full((len(target), self.n_slots - 1), MASK)], dim=1)

    # Ranking

    def next_item_queries(self, batch: RaggedBatch) -> Tensor:
        """What is scored against the item vectors for the next item alone, [B, d]; guided.

        Parameters
        ----------
        batch : RaggedBatch
            The histories.
        """
        queries = self.scores.query(self.states(batch))
        if not self.guidance:
            return queries
        empty = PaddedBatch(batch.items.new_zeros(1, 1))
        return self.guided(queries, self.scores.query(self.states(empty)))

    def guided(self, queries: Tensor, without_history: Tensor) -> Tensor:
        """(1 + w) q - w q0: scores are linear in queries."""
        return (1 + self.guidance) * queries - self.guidance * without_history

    def bias(self, item_seq: Tensor) -> LogitBias | None:
        """``ItemScores.bias``, guided: without a history there is none."""
        bias = self.scores.bias(item_seq)
        return None if bias is None else LogitBias(bias.items, (1 + self.guidance) * bias.scores)

    def queries(self, interaction: Any) -> Tensor:
        """``Exportable.queries``."""
        return self.next_item_queries(RaggedBatch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]))

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items for the next item alone, [B, I]; the padding row scores minus infinity."""
        return self.logits(self.queries(interaction), interaction[self.ITEM_SEQ])

    def predict(self, interaction: Any) -> Tensor:
        """Scores of the given items, [B]; those of ``full_sort_predict``."""
        bias = self.bias(interaction[self.ITEM_SEQ])
        return self.query_scores.of_items(self.queries(interaction), interaction[self.ITEM_ID], bias)

    def logits(self, x_0: Tensor, item_seq: Tensor) -> Tensor:
        """Scores of all items for queries x_0 [B, d] of histories int [B, L]: [B, I], padding at -inf."""
        return self.query_scores.logits(x_0, self.bias(item_seq))

    def query(self, x_0: Tensor) -> Tensor:
        """x_0, [B, d], which is a query already."""
        return x_0

    def program(self) -> Program:
        """Ranking as a function of tensors alone."""
        return NextItemProgram(self)

    # The reverse process

    @property
    def n_slots(self) -> int:
        """k."""
        return self.slot_embedding.num_embeddings

    @property
    def n_steps(self) -> int:
        """k: a step that fills no slot changes nothing."""
        return self.n_slots

    @property
    def sampling_steps(self) -> int:
        """In how many steps lists are drawn."""
        return self.steps

    def with_sampling_steps(self, sampling_steps: int) -> MaskedDiffRec:
        """The same model, its weights shared, that draws lists in another number of steps, from 1 to k."""
        other = self.sharing_weights()
        other.steps = sampling_steps
        return other

    def reconstructions(self, interaction: Any, seeds: Sequence[int] | None = None) -> list[Tensor]:
        """Queries [B, d] for the next item, by default those of the ranking.

        With seeds, those of the first slot once all others are filled: each seed draws what comes later, and the query
        says what comes before that.
        """
        if seeds is None:
            return [self.queries(interaction)]
        vectors, n = self.item_embedding.weight, self.n_slots
        found = [vectors.new_empty(len(interaction[self.ITEM_SEQ]), self.hidden_size) for _ in seeds]
        for part in self._parts(interaction):
            for queries, seed in zip(found, seeds):
                slots = part.rows.new_full((len(part.rows), n), MASK)
                if n > 1:
                    slots[:, 1:] = self._fill(part, slots[:, 1:], self._drawing(part, seed), seed, first=1).slots
                queries[part.rows] = self._slot_queries(part, slots)[:, 0]
        return found

    def sample_lists(
        self, interaction: Any, n: int, seeds: Sequence[int], allowed: Tensor | None = None
    ) -> SampledLists:
        """``ListSampler.sample_lists``; the probability of a list is that of filling it in the order that was taken."""
        item_seq = interaction[self.ITEM_SEQ]
        items = item_seq.new_full((len(seeds), len(item_seq), n), MASK)
        log_probability = self.item_embedding.weight.new_zeros(items.shape[:2])
        for part in self._parts(interaction):
            masks = part.rows.new_full((len(part.rows), n), MASK)
            for place, seed in enumerate(seeds):
                choose = self._drawing(part, seed, None if allowed is None else allowed[part.rows])
                filled = self._fill(part, masks, choose, seed)
                items[place, part.rows] = filled.slots
                log_probability[place, part.rows] = filled.log_probability
        return SampledLists(items, check_numbers(log_probability))

    def log_probability(self, interaction: Any, lists: Tensor) -> Tensor:
        """``ListSampler.log_probability``; of random orders that of the first seed."""
        found = self.item_embedding.weight.new_zeros(len(lists))
        for part in self._parts(interaction):
            own = lists[part.rows]

            def given(slot: Tensor, log_p: Tensor, filled: Tensor, own: Tensor = own) -> Tensor:
                return own.gather(1, slot.unsqueeze(1)).squeeze(1)

            found[part.rows] = self._fill(part, torch.full_like(own, MASK), given, seed=0).log_probability
        return found

    def _parts(self, interaction: Any) -> Iterator[Histories]:
        """The histories of a batch, some at a time, those of like length together."""
        item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        at_once = max(1, SCORES_AT_ONCE // (self.n_slots * self.n_items))
        for rows in lengths.argsort(stable=True).split(at_once):
            batch = RaggedBatch(item_seq[rows], lengths[rows])
            keys = history_keys(batch.items, batch.age, batch.real, batch.row, batch.n_sequences)
            yield Histories(batch, self.embed(batch), item_seq[rows], rows, keys)

    def _fill(self, part: Histories, masks: Tensor, choose: Choose, seed: int, first: int = 0) -> Filled:
        """Fill n of the k slots, masks int [B, n], from the 0-based ``first`` on; the others stay masked."""
        n = masks.shape[1]

        def denoise(slots: Tensor, chosen: Tensor | None) -> Tensor:
            queries = self._slot_queries(part, F.pad(slots, (first, self.n_slots - first - n), value=MASK))
            queries = queries[:, first : first + n]
            if chosen is not None:
                queries = queries.gather(1, chosen.unsqueeze(-1).expand(-1, -1, queries.shape[-1]))
            scores = self.logits(queries.flatten(0, 1), part.item_seq.repeat_interleave(queries.shape[1], dim=0))
            return scores.log_softmax(dim=-1).view(*queries.shape[:2], -1)

        sizes = absorbing.group_sizes(n, self.steps)
        return absorbing.fill(masks, sizes, denoise, choose, self._priority(part, n, seed))

    def _slot_queries(self, part: Histories, slots: Tensor) -> Tensor:
        """What is scored against the item vectors for each of the slots int [B, k], [B, k, d]; guided."""
        queries = self.scores.query(self.slot_states(part.batch, part.states, slots))
        if not self.guidance:
            return queries
        empty = PaddedBatch(slots.new_zeros(len(slots), 1))
        return self.guided(queries, self.scores.query(self.slot_states(empty, self.embed(empty), slots)))

    def _priority(self, part: Histories, n: int, seed: int) -> Tensor | None:
        """Which of n slots are filled first, [B, n]; None where that depends on what they may hold."""
        if self.fill_order == "confident":
            return None
        slot = torch.arange(n, device=part.keys.device).expand(len(part.keys), n)
        if self.fill_order == "left_to_right":
            return -slot.double()
        # Other numbers than those by which items are drawn.
        return uniforms(part.keys.unsqueeze(1) + self.n_slots + slot, self.noise_seed + seed)

    def _drawing(self, part: Histories, seed: int, allowed: Tensor | None = None) -> Choose:
        """Draws of items that a list does not hold yet, by the history and the seed alone, among those allowed."""

        def choose(slot: Tensor, log_p: Tensor, filled: Tensor) -> Tensor:
            log_p = log_p.scatter(1, filled, -math.inf)
            if allowed is not None:
                log_p = log_p.masked_fill(~allowed, -math.inf)
            return absorbing.draw(log_p, self.temperature, uniforms(part.keys + slot, self.noise_seed + seed))

        return choose


class NextItemProgram(HistoryProgram):
    """Ranking by one model, guidance included; lists are not drawn.

    Parameters
    ----------
    network : MaskedDiffRec
        The model; its parts are used as they are.
    """

    network: MaskedDiffRec

    def forward(self, item_seq: Tensor) -> Tensor:
        """``HistoryProgram.forward``."""
        queries = self.network.next_item_queries(PaddedBatch(item_seq))
        return queries if self.output == "query" else self.network.logits(queries, item_seq)


def check(values: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where parameters do not fit together."""
    steps, slots = values["sampling_steps"], values["n_slots"]
    if steps is not None and steps > slots:
        raise UserError(
            f"sampling_steps must be from 1 to n_slots ({slots}), got {steps}: a step fills at least a slot"
        )
    if values["guidance"] and not values["history_drop_prob"]:
        raise UserError(
            f"guidance {values['guidance']} compares with scores without a history, which history_drop_prob 0 trains "
            f"none of: train with --history_drop_prob=0.1 or so"
        )


MASKED_DIFFREC = ModelSpec(
    "MaskedDiffRec",
    MaskedDiffRec,
    "masked diffusion over the next k items, whose steps make their joint distribution (after Sahoo et al. 2024)",
    rules={
        **sequential.RULES,
        "n_slots": Rule("int", 1, MOST_SLOTS),
        "sampling_steps": Rule("int", 1, optional=True),
        "fill_order": Rule("str", choices=absorbing.ORDERS),
        "sampling_temperature": Rule("number", 0),
        "noise_seed": Rule("int", 0, 2**32 - 1),
        "guidance": Rule("number", 0),
        "all_masked_share": Rule("number", 0, 1),
        "history_drop_prob": PROBABILITY,
    },
    needs=dict.fromkeys(("all_masked_share", "fill_order"), (Need("n_slots", lambda slots: slots > 1, "--n_slots=5"),)),
    of_training=sequential.OF_TRAINING | {"all_masked_share", "history_drop_prob"},
    of_lists=frozenset({"sampling_steps", "fill_order", "sampling_temperature", "noise_seed"}),
    check=check,
    method=True,
    loss="cross-entropy of masked slots",
    trims_padding=True,
    cannot={"sequences": "a pass has the slots of one list, which every position of the history sees"},
    for_inference=sequential.FOR_INFERENCE,
)

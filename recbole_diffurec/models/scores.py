"""Scores of items for a vector: inner products, cosines or an output layer, and a score for the place in the history.

Shapes: B batch, L padded history length, d hidden size, I items with padding row 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.errors import UserError
from recbole_diffurec.layers.device import device_type
from recbole_diffurec.layers.item_softmax import ITEMS_MULTIPLE, LogitBias
from recbole_diffurec.layers.unit_rows import unit_rows
from recbole_diffurec.models.cooccurrence import Cooccurrences

# Scores are tens of units apart and Adam moves a parameter by about the learning rate a step; without the factor the
# bias would need thousands of steps.
REPEAT_SCALE = 10.0


def bias_by_age(values: Tensor, item_seq: Tensor, scale: float) -> LogitBias:
    """What is added to the scores of a history's items: ``scale`` times the value for how long ago each was.

    Parameters
    ----------
    values : Tensor
        [longest history], the first for the most recent item.
    item_seq : Tensor
        int [B, L], right-padded.
    scale : float
        Of the values.
    """
    length = (item_seq != 0).sum(dim=1, keepdim=True)
    age = (length - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)).clamp(min=0)
    return LogitBias(item_seq, scale * values.index_select(0, age.flatten()).view(age.shape))


def check_numbers(scores: Tensor) -> Tensor:
    """Scores, or what they are made of, unless one is no number.

    Raises
    ------
    UserError
        One is: NaN would rank anywhere, or nowhere.
    """
    if scores.numel() and bool(scores.amax().isnan()):
        raise UserError(
            "scores are no numbers (nan), so that nothing can be ranked: a parameter such as guidance is too large for "
            "the model, or its weights are: give a smaller one, or train again"
        )
    return scores


def inner_products(x: Tensor, vectors: Tensor) -> Tensor:
    """``x @ vectors.T``, [B, I], of ``x`` [B, d] and ``vectors`` [I, d]; on a CPU in aligned rows (``ITEMS_MULTIPLE``).

    Gradients and autocast want a new tensor, and an exported program knows no addresses.
    """
    elsewhere = torch.compiler.is_compiling() or torch.is_grad_enabled() or device_type(x) != "cpu"
    if elsewhere or torch.is_autocast_enabled("cpu"):
        return x @ vectors.T
    n = len(vectors)
    rows = x.new_empty(len(x), n + -n % ITEMS_MULTIPLE)
    return torch.mm(x, vectors.T, out=rows[:, :n])


def log_mean_softmax(scores: Iterable[Tensor]) -> Tensor:
    """log of the mean of the softmax of several scores, [B, I], and a number for each row: its softmax is that mean.

    The mean itself would be zero for all items but a few where scores lie far apart, and they would tie. The number is
    the log of the first scores' sum of exponentials: without it the logarithm is a large number where a score is small,
    and would round away what tells items far behind from each other.

    Parameters
    ----------
    scores : iterable of Tensor
        [B, I] each, one or more.
    """
    total, first, n = None, None, 0
    for own in scores:
        size = own.logsumexp(dim=-1, keepdim=True)
        first = size if first is None else first
        total, n = own if total is None else torch.logaddexp(total, own - (size - first)), n + 1
    if total is None:
        raise ValueError("there are no scores to average")
    return total - math.log(n)


class ItemScores:
    """How items are scored against a vector. Holds parameters of a model and owns none.

    Parameters
    ----------
    item_embedding : nn.Embedding
        E, [I, d].
    cosine_temperature : float, optional
        Tau, with which scores are cosines over tau; None for inner products.
    repeat_bias : nn.Parameter, optional
        b [longest history], see ``bias``; None without it.
    cooccurrences : Cooccurrences, optional
        What is added to scores outside training; a module of the model. None without it.
    """

    def __init__(
        self,
        item_embedding: nn.Embedding,
        cosine_temperature: float | None = None,
        repeat_bias: nn.Parameter | None = None,
        cooccurrences: Cooccurrences | None = None,
    ):
        self.item_embedding, self.repeat_bias, self.cooccurrences = item_embedding, repeat_bias, cooccurrences
        self.cosine_temperature = cosine_temperature

    def vectors(self, items: Tensor | None = None) -> Tensor:
        """Item vectors that queries are scored against, E [I, d]; unit rows with ``cosine_temperature``.

        Parameters
        ----------
        items : Tensor, optional
            int [n], whose vectors [n, d]; all of them by default.
        """
        vectors = self.item_embedding.weight if items is None else self.item_embedding(items)
        return vectors if self.cosine_temperature is None else unit_rows(vectors)

    def query(self, x: Tensor) -> Tensor:
        """What is scored against ``vectors``, [..., d]: x, or with ``cosine_temperature`` x / (|x| tau)."""
        return x if self.cosine_temperature is None else F.normalize(x, dim=-1) / self.cosine_temperature

    def bias(self, item_seq: Tensor) -> LogitBias | None:
        """What ``repeat_bias`` adds to the scores of a history's items, and co-occurrences to others; None of neither.

        Scores by similarity rank a history's own items high; whether users come back to them, and how soon, is a
        property of the data, which is learned here: one number b for each place in the history, counted from the most
        recent, worth 10 b, or as a cosine with ``cosine_temperature`` b / tau.

        Parameters
        ----------
        item_seq : Tensor
            int [B, L], right-padded.
        """
        parts = []
        if self.repeat_bias is not None:
            scale = REPEAT_SCALE if self.cosine_temperature is None else 1 / self.cosine_temperature
            parts.append(bias_by_age(self.repeat_bias, item_seq, scale))
        if self.cooccurrences is not None and not self.cooccurrences.training:
            parts.append(self.cooccurrences(item_seq))
        if len(parts) < 2:
            return parts[0] if parts else None
        items, scores = zip(*parts)
        return LogitBias(torch.cat(items, dim=1), torch.cat(scores, dim=1))

    def logits(self, x: Tensor, bias: LogitBias | None) -> Tensor:
        """Scores of all items for x [B, d]: [B, I]; minus infinity for the padding row."""
        logits = inner_products(self.query(x), self.vectors())
        if bias is not None:
            logits.scatter_add_(1, bias.items, bias.scores.to(logits.dtype))
        logits[:, 0] = -math.inf
        return logits

    def of_items(self, x: Tensor, items: Tensor, bias: LogitBias | None) -> Tensor:
        """The score of one item int [B] for each x [B, d]: [B]."""
        scores = (self.query(x) * self.vectors(items)).sum(dim=-1)
        return scores if bias is None else scores + bias.gather(items)


class OutputScores(ItemScores):
    """Scores by an output layer of its own, W x + b. Holds the layer and owns it not.

    As inner products, they are those of [x ; 1] with [W ; b].

    Parameters
    ----------
    item_embedding : nn.Embedding
        E, which scores nothing here.
    output : nn.Linear
        From d to I.
    """

    def __init__(self, item_embedding: nn.Embedding, output: nn.Linear):
        super().__init__(item_embedding)
        self.output = output

    def vectors(self, items: Tensor | None = None) -> Tensor:
        """[W ; b] as [I, d + 1], or its rows [n, d + 1] for items int [n]."""
        vectors = torch.cat([self.output.weight, self.output.bias.unsqueeze(1)], dim=1)
        return vectors if items is None else vectors.index_select(0, items)

    def query(self, x: Tensor) -> Tensor:
        """[x ; 1], [..., d + 1]."""
        return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)

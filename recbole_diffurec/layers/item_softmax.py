"""Cross-entropy over the items, without ever holding the logits of a whole batch.

A row may have several queries, of which each gives a distribution over the items: the row's is their mean, a mixture
of softmaxes (Yang, Dai, Salakhutdinov, Cohen 2018).

Shapes: B batch, K queries of a row, L history length, d hidden size, I items with padding row 0 (which is no class),
S sampled negatives.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffurec.layers.device import device_type

# Logits that exist at once: on a CPU few enough for the cache, and enough for the matrix products to be efficient.
CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**26}
# Rows at least, because every chunk goes through the whole item table and its gradient.
CHUNK_ROWS = 64
# Items are scored in multiples of this many: products with rows of logits that begin at any address take up to twice as
# long on a CPU, and a GPU does not use its matrix units for them.
ITEMS_MULTIPLE = 16


class LogitBias(NamedTuple):
    """What is added to the logits of some items of each row; what falls to the padding item 0 has no effect."""

    items: Tensor  # int [B, L]; an item that is there twice gets both
    scores: Tensor  # [B, L]

    def gather(self, items: Tensor) -> Tensor:
        """The sum for one item of each row, [B], given as int [B]."""
        return (self.scores * (self.items == items.unsqueeze(1))).sum(dim=1)

    def added_to(self, logits: Tensor) -> Tensor:
        """Logits [B, I] with the scores added; a new tensor, as what made the logits may want them for its gradient."""
        return logits.scatter_add(1, self.items, self.scores.to(logits.dtype))

    def gather_shared(self, items: Tensor) -> Tensor:
        """The sums for items [S] that are the same in every row, [B, S]."""
        distinct, place = items.unique(return_inverse=True)
        nearest = torch.searchsorted(distinct, self.items).clamp(max=len(distinct) - 1)
        scores = self.scores * (distinct[nearest] == self.items)
        return scores.new_zeros(len(scores), len(distinct)).scatter_add(1, nearest, scores).index_select(1, place)


def mean_over_queries(log_p: Tensor) -> Tensor:
    """log of the mean over K of probabilities, [B], from their logs [B, K]; the log itself, to the last bit, of one."""
    return log_p.logsumexp(dim=-1) - math.log(log_p.shape[-1])


class _FullCrossEntropy(torch.autograd.Function):
    """sum_b w_b CE_b and the CE_b; the gradients are made chunk by chunk while the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        items: Tensor,
        target: Tensor,
        weight: Tensor,
        added_items: Tensor | None,
        added_scores: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        needs_grad = any(ctx.needs_input_grad)
        k, n_items = x.shape[1], len(items)
        items = F.pad(items, (0, 0, 0, -n_items % ITEMS_MULTIPLE))
        chunk = CHUNK_LOGITS.get(device_type(x), CHUNK_LOGITS["cuda"])
        n_rows = max(1, max(CHUNK_ROWS, chunk // len(items)) // k)
        losses = torch.empty(len(x), dtype=items.dtype, device=x.device)
        grad_x = torch.empty_like(x) if needs_grad else None
        grad_items = torch.zeros_like(items) if needs_grad else None
        grad_scores = torch.empty_like(added_scores) if needs_grad and added_scores is not None else None
        for start in range(0, len(x), n_rows):
            rows = slice(start, start + n_rows)
            queries, own = x[rows].flatten(0, 1), _of_queries(target[rows].unsqueeze(1), k)
            logits = (queries @ items.T).to(items.dtype)
            if added_items is not None and added_scores is not None:
                logits.scatter_add_(1, _of_queries(added_items[rows], k), _of_queries(added_scores[rows], k))
            logits[:, 0] = logits[:, n_items:] = -math.inf
            # A softmax in place, whose one exponential serves both the losses and their gradients.
            highest, of_target = logits.amax(dim=-1, keepdim=True), logits.gather(1, own)
            shares = logits.sub_(highest).exp_()
            total = shares.sum(dim=-1, keepdim=True)
            by_row = (of_target - highest - total.log()).view(-1, k)
            losses[rows] = -mean_over_queries(by_row)
            if grad_x is None or grad_items is None:
                continue
            # d CE_bk / d logits = softmax - onehot(target); a row's K queries share its weight by what each says of it.
            of_query = (weight[rows].unsqueeze(1) * by_row.softmax(dim=-1)).view(-1, 1)
            grad = shares.mul_(of_query / total).scatter_add_(1, own, -of_query)
            grad_x[rows] = (grad @ items).view_as(x[rows])
            grad_items += grad.T @ queries
            if grad_scores is not None and added_items is not None:
                of_queries = grad.gather(1, _of_queries(added_items[rows], k))
                grad_scores[rows] = of_queries.view(-1, k, of_queries.shape[1]).sum(dim=1)
        ctx.save_for_backward(grad_x, None if grad_items is None else grad_items[:n_items], grad_scores)
        ctx.mark_non_differentiable(losses)
        return (weight * losses).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        grad_x, grad_items, grad_scores = ctx.saved_tensors
        scores = None if grad_scores is None else grad_scores * grad_loss
        return grad_x * grad_loss, grad_items * grad_loss, None, None, None, scores


def _of_queries(values: Tensor, k: int) -> Tensor:
    """What rows share, [B] or [B, n], for each of their queries, [B K] or [B K, n]."""
    return values if k == 1 else values.repeat_interleave(k, dim=0)


def full_cross_entropy(
    x: Tensor, items: Tensor, target: Tensor, weight: Tensor, added: LogitBias | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of x . E^T over all items.

    Parameters
    ----------
    x : Tensor
        [B, d]; or [B, K, d], of which the mean over K of the softmax is meant.
    items : Tensor
        [I, d], E; row 0 is left out of the softmax.
    target : Tensor
        int [B], from 1.
    weight : Tensor
        [B].
    added : LogitBias, optional
        What is added to the logits.

    Returns
    -------
    loss : Tensor
        sum_b weight_b CE_b; it alone carries gradients, of ``x``, ``items`` and ``added.scores``.
    cross_entropy : Tensor
        CE, [B].
    """
    queries = x if x.dim() == 3 else x.unsqueeze(1)
    return _FullCrossEntropy.apply(queries, items, target, weight.to(items.dtype), *(added or (None, None)))


class SampledCrossEntropy(nn.Module):
    """Cross-entropy over the target and negatives shared by the batch, corrected for how they were drawn (logQ).

    Bengio & Senecal 2008. A negative's logit is lowered by the log of the number of times its item is expected among
    the draws, so that the negatives estimate the sum over all items but the target, whose own logit stays as it is: the
    loss tends to the full one as S grows. A negative that is a row's target is left out of that row.

    Parameters
    ----------
    counts : Tensor
        int [I], how often each item occurs in training; ranks the items for ``log_uniform``.
    n_negatives : int
        S, drawn with replacement.
    distribution : str
        ``uniform`` over the items, or ``log_uniform`` over their popularity ranks r = 0, 1, ..., with
        P(r) = log((r + 2) / (r + 1)) / log(I).
    """

    by_rank: Tensor
    log_expected: Tensor

    def __init__(self, counts: Tensor, n_negatives: int, distribution: str):
        super().__init__()
        self.n_negatives, self.distribution = n_negatives, distribution
        n = len(counts) - 1
        by_rank = 1 + torch.argsort(counts[1:], descending=True, stable=True)
        rank = torch.arange(n, dtype=torch.float64)
        if distribution == "uniform":
            p = torch.full_like(rank, 1 / n)
        else:
            p = ((rank + 2) / (rank + 1)).log() / math.log(n + 1)
        log_expected = torch.zeros(n + 1, dtype=torch.float64)
        log_expected[by_rank] = (n_negatives * p).log()
        self.register_buffer("by_rank", by_rank, persistent=False)
        self.register_buffer("log_expected", log_expected.to(torch.get_default_dtype()), persistent=False)

    def draw(self) -> Tensor:
        """S negatives, int [S]."""
        n, device = len(self.by_rank), self.by_rank.device
        if self.distribution == "uniform":
            return torch.randint(1, n + 1, (self.n_negatives,), device=device)
        u = torch.rand(self.n_negatives, dtype=torch.float64, device=device)
        return self.by_rank[((u * math.log(n + 1)).exp() - 1).long().clamp_(max=n - 1)]

    def forward(
        self, x: Tensor, items: Tensor, target: Tensor, weight: Tensor, added: LogitBias | None = None
    ) -> tuple[Tensor, Tensor]:
        """As ``full_cross_entropy``, estimated."""
        k = x.shape[1] if x.dim() == 3 else 1
        x, target = x.reshape(-1, x.shape[-1]), _of_queries(target, k)
        negatives = self.draw()
        own = (x * items.index_select(0, target)).sum(dim=-1).to(items.dtype)
        others = x @ items.index_select(0, negatives).T - self.log_expected[negatives]
        if added is not None:
            added = LogitBias(_of_queries(added.items, k), _of_queries(added.scores, k))
            own, others = own + added.gather(target), others + added.gather_shared(negatives)
        others = others.masked_fill(negatives == target.unsqueeze(1), -math.inf)
        losses = torch.cat([own.unsqueeze(1), others.to(items.dtype)], dim=1).logsumexp(dim=-1) - own
        losses = -mean_over_queries(-losses.view(-1, k))
        return (weight.to(losses.dtype) * losses).sum(), losses.detach()

"""A plain padded implementation of the models: simple, slow, and the measure of the packed one.

It shares the weights of a model of ours and nothing else. Every history is padded to the full length L, every position
runs through every layer, padding is masked as keys. Dropout is PyTorch's, and off in evaluation mode, where the tests
compare; ``benchmarks/`` times the oracle in training mode. Shapes: B batch, L padded length, d hidden size, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(module, x: Tensor) -> Tensor:
    return F.dropout(x, module.p, module.training)


def attention(module, query: Tensor, states: Tensor, real: Tensor) -> Tensor:
    """Softmax attention of ``query`` [B, L, d] over the real positions of ``states`` [B, L, d]."""
    n, length, d = states.shape
    q, k, v = (
        layer(x).view(n, length, module.n_heads, -1).transpose(1, 2)
        for layer, x in ((module.query, query), (module.key, states), (module.value, states))
    )
    scores = q @ k.transpose(-1, -2) / (d / module.n_heads) ** 0.5
    weights = dropout(module.dropout, scores.masked_fill(~real[:, None, None, :], float("-inf")).softmax(-1))
    return module.output((weights @ v).transpose(1, 2).reshape(n, length, d))


def approximate(model, item_seq: Tensor, length: Tensor, x_s: Tensor, d_s: Tensor, uncertainty: Tensor) -> Tensor:
    """x_0 hat [B, d]; ``uncertainty`` is lambda [B, L, d]."""
    net = model.approximator
    position = torch.arange(item_seq.shape[1])
    real = position < length[:, None]
    embeddings = model.item_embedding.weight[item_seq]
    if model.position_embedding is not None:
        age = (length[:, None] - 1 - position).clamp(min=0)
        embeddings = embeddings + model.position_embedding.weight[age]
    states = net.embedding_norm(dropout(net.embedding_dropout, embeddings))
    injected = uncertainty * (x_s + d_s)[:, None, :]
    if not net.cross_attention:
        states = states + injected
    for block in net.blocks:
        if net.cross_attention:
            asked = attention(block.cross_attention, injected, block.cross_attention_norm(states), real)
            states = states + dropout(block.dropout, asked)
        normed = block.attention_norm(states)
        states = states + dropout(block.dropout, attention(block.attention, normed, normed, real))
        states = states + dropout(block.dropout, block.ffn(block.ffn_norm(states)))
        states = dropout(block.output_dropout, states)
    last = states[torch.arange(len(length)), length - 1]
    return net.output_norm(dropout(net.output_dropout, last))


def loss(model, item_seq, length, target, t, noise, uncertainty) -> Tensor:
    """Mean cross-entropy over all real items, whose scores are inner products, or cosines over a temperature."""
    x_0 = model.item_embedding.weight[target]
    alpha_bar = (model.process.sqrt_alpha_bar[t] ** 2)[:, None].to(x_0.dtype)
    x_s = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
    x_0_hat = approximate(model, item_seq, length, x_s, model.step_embedding()[t], uncertainty)
    items, temperature = model.item_embedding.weight[1:], model.scores.cosine_temperature
    if temperature is None:
        return F.cross_entropy(x_0_hat @ items.T, target - 1)
    return F.cross_entropy(F.cosine_similarity(x_0_hat[:, None], items[None], dim=-1) / temperature, target - 1)


def reverse(model, item_seq, length, x_T, noise, uncertainty) -> Tensor:
    """The whole reverse process, with betas from its definition.

    ``noise[t]`` is [B, d] and ``uncertainty[t]`` [B, L, d] for each 0-based step t.
    """
    alpha_bar = model.process.sqrt_alpha_bar**2
    x = x_T
    for t in reversed(range(len(alpha_bar))):
        before = alpha_bar[t - 1] if t else torch.tensor(1.0, dtype=alpha_bar.dtype)
        beta = 1 - alpha_bar[t] / before
        x_0 = approximate(model, item_seq, length, x, model.step_embedding()[t : t + 1], uncertainty[t])
        mean = before.sqrt() * beta / (1 - alpha_bar[t]) * x_0
        mean = mean + (1 - beta).sqrt() * (1 - before) / (1 - alpha_bar[t]) * x
        x = mean + (beta.sqrt() * noise[t] if t else 0)
    return x

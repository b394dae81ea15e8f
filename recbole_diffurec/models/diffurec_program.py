"""Inference of DiffuRec's family as a function of tensors: histories and random draws in, scores of all items out.

Shapes: B batch, L padded history length, d hidden size, S visited steps, I items with padding row 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recbole_diffurec.diffusion.noise import Draws, TableNoise, history_keys
from recbole_diffurec.layers.ragged import PaddedBatch
from recbole_diffurec.models.base import ITEM_SEQ_INPUT, OUTPUTS, SEED_INPUT, Program

if TYPE_CHECKING:
    from recbole_diffurec.models.diffurec import DiffuRecFamily


class GivenDraws:
    """Draws that are a program's inputs, in the order of the reverse process; runtimes draw differently.

    Parameters
    ----------
    noise : Tensor
        [S, B, d], x_T and what each reverse step but the last adds.
    uncertainty : Tensor
        [S, B, L, d], what each visited step draws for each token; of any size for a denoiser that draws none.
    visits : Sequence of int
        The 0-based steps.
    """

    def __init__(self, noise: Tensor, uncertainty: Tensor, visits: Sequence[int]):
        self._noise, self._uncertainty = noise, uncertainty
        self._place = {t: place for place, t in enumerate(visits)}

    def start(self) -> Tensor:
        return self._noise[0]

    def step(self, t: int) -> Tensor:
        return self._noise[self._place[t] + 1]

    def per_token(self, t: int, mean: float, std: float, dtype: torch.dtype) -> Tensor:
        given = self._uncertainty[self._place[t]]
        return given.reshape(-1, given.shape[-1])


class ReverseProgram(Program):
    """What the programs of the family's models share: the reverse process on a batch that is laid out as it came.

    Parameters
    ----------
    network : DiffuRecFamily
        The model; its parts are used as they are.
    """

    def __init__(self, network: DiffuRecFamily):
        super().__init__()
        self.network = network

    def answer(self, item_seq: Tensor, draws: Draws) -> Tensor:
        """Scores of all items, [B, I], or queries, [B, d], for the draws of each visited step."""
        network = self.network
        batch, denoiser = PaddedBatch(item_seq), network.guided(network.denoiser)
        condition = network.condition(batch, denoiser)
        x_0 = network.reverse(condition, batch.items[batch.last], draws, denoiser)
        return network.query(x_0) if self.output == "query" else network.logits(x_0, item_seq)

    def for_queries(self) -> Program:
        """``Program.for_queries``."""
        return self._giving_queries()

    def seeded(self) -> Program:
        """``Program.seeded``."""
        other = SeededProgram(self.network)
        other.output = self.output
        return other

    def source(self, item_seq: Tensor, seed: int | Tensor | None) -> TableNoise:
        """The source of the draws that ``full_sort_predict`` makes for these histories."""
        network = self.network
        batch = PaddedBatch(item_seq)
        keys = history_keys(batch.items, batch.age, batch.real, batch.row, batch.n_sequences)
        seed = network.inference_seeds[0] if seed is None else seed
        dtype = network.item_embedding.weight.dtype
        return network.noise_table.for_batch(seed, keys, batch.row, batch.age, dtype)

    def noise_of(self, source: TableNoise) -> Tensor:
        """x_T and what each reverse step but the last adds, [S, B, d]."""
        return torch.stack([source.start(), *(source.step(t) for t in self.network.visits[:-1])])

    def noise_input(self) -> str:
        """What is said of the input ``noise``."""
        return f"float32 [{len(self.network.visits)}, batch, {self.network.hidden_size}] of N(0, 1)"

    def described(self, drawn: dict[str, str]) -> dict[str, Any]:
        """``Program.describe``, for what is drawn beside the history."""
        return {
            "inputs": {"item_seq": ITEM_SEQ_INPUT, **drawn},
            "outputs": {self.output: OUTPUTS[self.output]},
            "diffusion_steps_visited": self.network.visits,
        }


class DiffuRecProgram(ReverseProgram):
    """Inference of one model, the reverse process included.

    Parameters
    ----------
    network : DiffuRecFamily
        The model; its parts are used as they are.
    """

    inputs = ("item_seq", "noise", "uncertainty")

    def forward(self, item_seq: Tensor, noise: Tensor, uncertainty: Tensor) -> Tensor:
        """Scores of all items, [B, I], minus infinity for the padding row; or queries, [B, d].

        Parameters
        ----------
        item_seq : Tensor
            int64 [B, L], item numbers, the oldest first, 0 after the most recent.
        noise : Tensor
            [S, B, d] of N(0, 1): x_T, then what each reverse step but the last adds.
        uncertainty : Tensor
            [S, B, L, d], lambda of each visited step, N(delta, delta^2).
        """
        return self.answer(item_seq, GivenDraws(noise, uncertainty, self.network.visits))

    def draws(self, item_seq: Tensor, seed: int | None = None) -> dict[str, Tensor]:
        """``Program.draws``."""
        network, source = self.network, self.source(item_seq, seed)
        dtype = network.item_embedding.weight.dtype
        shape = (*item_seq.shape, network.hidden_size)
        return {
            "item_seq": item_seq,
            "noise": self.noise_of(source),
            "uncertainty": torch.stack(
                [source.per_token(t, *network.denoiser.token_noise, dtype).view(shape) for t in network.visits]
            ),
        }

    def dynamic_shapes(self, rows: Any, length: Any) -> dict[str, dict[int, Any]]:
        """``Program.dynamic_shapes``."""
        return {"item_seq": {0: rows, 1: length}, "noise": {1: rows}, "uncertainty": {1: rows, 2: length}}

    def describe(self) -> dict[str, Any]:
        """``Program.describe``."""
        visits, size = self.network.visits, self.network.hidden_size
        mean, std = self.network.denoiser.token_noise
        uncertainty = f"float32 [{len(visits)}, batch, length, {size}] of N({mean}, {std}^2)"
        return self.described({"noise": self.noise_input(), "uncertainty": uncertainty})


class NoiseProgram(ReverseProgram):
    """Inference of a model that draws nothing for tokens, the reverse process included.

    Parameters
    ----------
    network : DiffuRecFamily
        The model; its parts are used as they are.
    """

    inputs = ("item_seq", "noise")

    def forward(self, item_seq: Tensor, noise: Tensor) -> Tensor:
        """Scores of all items, [B, I], minus infinity for the padding row; or queries, [B, d].

        Parameters
        ----------
        item_seq : Tensor
            int64 [B, L], item numbers, the oldest first, 0 after the most recent.
        noise : Tensor
            [S, B, d] of N(0, 1): x_T, then what each reverse step but the last adds.
        """
        return self.answer(item_seq, GivenDraws(noise, noise, self.network.visits))  # nothing is drawn for tokens

    def draws(self, item_seq: Tensor, seed: int | None = None) -> dict[str, Tensor]:
        """``Program.draws``."""
        return {"item_seq": item_seq, "noise": self.noise_of(self.source(item_seq, seed))}

    def dynamic_shapes(self, rows: Any, length: Any) -> dict[str, dict[int, Any]]:
        """``Program.dynamic_shapes``."""
        return {"item_seq": {0: rows, 1: length}, "noise": {1: rows}}

    def describe(self) -> dict[str, Any]:
        """``Program.describe``."""
        return self.described({"noise": self.noise_input()})


class SeededProgram(ReverseProgram):
    """Inference of one model, which makes its noise itself: of the seed and the history, as the model does.

    The table that the model draws from is a part of the program, and so is the hash that finds its rows.

    Parameters
    ----------
    network : DiffuRecFamily
        The model; its parts are used as they are.
    """

    inputs = ("item_seq", "seed")

    def forward(self, item_seq: Tensor, seed: Tensor) -> Tensor:
        """Scores of all items, [B, I], minus infinity for the padding row; or queries, [B, d].

        Parameters
        ----------
        item_seq : Tensor
            int64 [B, L], item numbers, the oldest first, 0 after the most recent.
        seed : Tensor
            int64 [].
        """
        return self.answer(item_seq, self.source(item_seq, seed))

    def draws(self, item_seq: Tensor, seed: int | None = None) -> dict[str, Tensor]:
        """``Program.draws``: they are made within."""
        return {"item_seq": item_seq, "seed": torch.tensor(self.network.inference_seeds[0] if seed is None else seed)}

    def dynamic_shapes(self, rows: Any, length: Any) -> dict[str, dict[int, Any]]:
        """``Program.dynamic_shapes``."""
        return {"item_seq": {0: rows, 1: length}, "seed": {}}

    def describe(self) -> dict[str, Any]:
        """``Program.describe``."""
        return {**self.described({"seed": SEED_INPUT}), "seed_of_the_model": self.network.inference_seeds[0]}

"""DiffuRec's network and reverse process as its authors publish them, with the weights of a training of ours.

Their code is not part of this repository: ``git clone https://github.com/WHUIR/DiffuRec``. It lets attention see
padding, which our networks are not trained with, so that histories of one length are given to it at a time, without
any. It runs on the CPU.

Shapes: B batch, L length of a history, d hidden size, I items with padding row 0.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# Theirs by the names of ours. What theirs has beside it, its forward pass does not use.
NAMES = {
    r"item_embedding\.": "item_embeddings.",
    r"approximator\.embedding_norm\.": "LayerNorm.",
    r"approximator\.output_norm\.": "diffu.xstart_model.norm_diffu_rep.",
    r"step_embedding\.inner\.": "diffu.xstart_model.time_embed.0.",
    r"step_embedding\.outer\.": "diffu.xstart_model.time_embed.2.",
    r"approximator\.blocks\.(\d+)\.": r"diffu.xstart_model.att.transformer_blocks.\1.",
    r"attention_norm\.": "input_sublayer.norm.",
    r"ffn_norm\.": "output_sublayer.norm.",
    r"attention\.query\.": "attention.linear_layers.0.",
    r"attention\.key\.": "attention.linear_layers.1.",
    r"attention\.value\.": "attention.linear_layers.2.",
    r"attention\.output\.": "attention.w_layer.",
    r"ffn\.0\.": "feed_forward.w_1.",
    r"ffn\.2\.": "feed_forward.w_2.",
}
UNUSED = re.compile(r"position_embeddings|linear_item|linear_xt|linear_t\b|fuse_linear")
SAME = {"model": "DiffuRec", "n_heads": 4, "use_position": False, "cosine_temperature": None, "repeat_bias": False}

# From item vectors [B, L, d] in their form, noise [B, d] and a mask [B, L] to what is ranked, [B, d].
Reverse = Callable[[Tensor, Tensor, Tensor], Tensor]


class AuthorsCode:
    """Their model, in evaluation mode.

    Parameters
    ----------
    folder : Path
        Of their clone.
    network : DiffuRec
        Ours, whose weights it gets.
    config : mapping
        The parameters of ours.
    """

    def __init__(self, folder: Path, network: Any, config: Any):
        if not (folder / "src/model.py").is_file():
            raise SystemExit(
                f"'{folder}' has no 'src/model.py': git clone https://github.com/WHUIR/DiffuRec '{folder}'"
            )
        other = {name: config[name] for name, value in SAME.items() if config[name] != value}
        if other:
            raise SystemExit(f"their code has no such network: {other}, where it has {SAME}")
        sys.path.insert(0, str(folder / "src"))
        theirs = importlib.import_module("model")
        arguments = SimpleNamespace(
            hidden_size=config["hidden_size"],
            item_num=network.n_items - 1,
            max_len=config["MAX_ITEM_LIST_LENGTH"],
            num_blocks=config["n_layers"],
            dropout=0.0,
            emb_dropout=0.0,
            diffusion_steps=config["diffusion_steps"],
            noise_schedule=config["noise_schedule"],
            lambda_uncertainty=config["lambda_uncertainty"],
            schedule_sampler_name="uniform",  # of training alone; their default is broken by today's numpy
            rescale_timesteps=True,
        )
        self.model = theirs.Att_Diffuse_model(theirs.create_model_diffu(arguments), arguments).eval()
        weights = {}
        for name, value in network.state_dict().items():
            for ours, their_name in NAMES.items():
                name = re.sub(ours, their_name, name)
            weights[name] = value.cpu()
        missing, unknown = self.model.load_state_dict(weights, strict=False)
        left_out = [name for name in missing if not UNUSED.search(name)]
        if left_out or unknown:
            raise SystemExit(f"their network is another: it lacks {unknown}, and ours lacks {left_out}")
        self.item_seq, self.item_seq_len = network.ITEM_SEQ, network.ITEM_SEQ_LEN

    def all_steps(self, vectors: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
        """Their inference."""
        return self.model.reverse(vectors, noise, mask)

    def one_step(self, vectors: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
        """Their inference told that there is one step: its last, t = 0, made of noise."""
        diffusion = self.model.diffu
        total, diffusion.num_timesteps = diffusion.num_timesteps, 1
        try:
            return diffusion.reverse_p_sample(vectors, noise, mask)
        finally:
            diffusion.num_timesteps = total

    def first_estimate(self, vectors: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
        """What their network makes of noise at t = T - 1: one step as RCCD's public code takes it of DiffuRec."""
        diffusion = self.model.diffu
        t = torch.full((len(noise),), diffusion.num_timesteps - 1)
        estimate, _ = diffusion.xstart_model(vectors, noise, diffusion._scale_timesteps(t), mask)
        return estimate

    def first_state(self, vectors: Tensor, noise: Tensor, mask: Tensor) -> Tensor:
        """Their inference left after its first step, t = T - 1."""
        t = torch.full((len(noise),), self.model.diffu.num_timesteps - 1)
        return self.model.diffu.p_sample(vectors, noise, t, mask)

    def scores(self, reverse: Reverse) -> Callable[[Any], Tensor]:
        """Scores of all items [B, I] for a batch, with padding at minus infinity."""

        @torch.no_grad()
        def score(interaction: Any) -> Tensor:
            sequences, lengths = interaction[self.item_seq].cpu(), interaction[self.item_seq_len].cpu()
            found = torch.empty(len(sequences), self.model.item_num)
            for length in lengths.unique().tolist():
                of_this_length = lengths == length
                history = sequences[of_this_length, :length]
                vectors = self.model.LayerNorm(self.model.item_embeddings(history))
                noise = torch.randn_like(vectors[:, -1])
                vector = reverse(vectors, noise, torch.ones(history.shape))
                found[of_this_length] = self.model.diffu_rep_pre(vector)
            found[:, 0] = -torch.inf
            return found.to(interaction[self.item_seq].device)

        return score

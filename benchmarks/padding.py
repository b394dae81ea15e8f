"""What padding tells a model: training with the public codes' attention to padded positions, and without.

Those codes pad histories to L and let attention see the padding. All padding is one vector, so that in the first block
L - n keys of it are one key that counts L - n times: a bias of log(L - n) on it, which costs one token a history. For
blocks after the first, whose padding is no longer one vector, this is an approximation.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

import common
import torch

import recbole_diffurec
from recbole_diffurec.layers.ragged import RaggedBatch
from recbole_diffurec.model import base

PADDED_LENGTH = 50


class BatchWithPadding(RaggedBatch):
    """Histories whose first token is the padding, as many times as there was."""

    def __init__(self, item_seq: torch.Tensor, lengths: torch.Tensor):
        padding = torch.zeros_like(item_seq[:, :1])
        super().__init__(torch.cat([padding, item_seq], dim=1), lengths + 1)
        times = (PADDED_LENGTH - lengths)[self._order].to(torch.get_default_dtype())
        counted = torch.where(times > 0, times.clamp(min=1).log(), -math.inf)
        self.slabs = [dataclasses.replace(slab, key_bias=self._bias(slab, counted)) for slab in self.slabs]

    @staticmethod
    def _bias(slab: Any, counted: torch.Tensor) -> torch.Tensor:
        bias = torch.zeros(slab.n, 1, 1, slab.length) if slab.key_bias is None else slab.key_bias.clone()
        bias[:, 0, 0, 0] = counted[slab.rows]
        return bias


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    figures, rows = {}, []
    for name, batch in (("real positions only", RaggedBatch), ("padding attended", BatchWithPadding)):
        base.RaggedBatch = batch
        result = recbole_diffurec.run(
            "DiffuRecSys",
            "amazon-beauty",
            experiment="diffurecsys_paper",
            data_path=given.data_path,
            n_layers=1,
            MAX_ITEM_LIST_LENGTH=PADDED_LENGTH,
            epochs=given.epochs,
            sampling_steps=1,
            enable_amp=True,
            show_progress=False,
        )
        found = {"valid": result["best_valid_result"], "test": result["test_result"]}
        figures[name] = found
        cells = [found["valid"]["ndcg@10"], found["test"]["hit@10"], found["test"]["ndcg@10"]]
        rows.append([name, *(f"{x:.4f}" for x in cells), result["best_epoch"] + 1])
    text = (
        f"DiffuRecSys on amazon-beauty, `--experiment=diffurecsys_paper --n_layers=1 "
        f"--MAX_ITEM_LIST_LENGTH={PADDED_LENGTH} --enable_amp=True`, "
        f"{given.epochs} epochs, one seed.\n\n"
        + common.table(["attention", "valid NDCG@10", "test HR@10", "test NDCG@10", "best epoch"], rows)
    )
    common.publish("padding", "Padding as a signal of length", {"figures": figures}, text)


if __name__ == "__main__":
    main()

"""A stack of Transformer blocks over ragged batches.

Shapes: B sequences, N tokens, d hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from recbole_diffurec.layers.blocks import LAYER_NORM_EPS, Block, BlockShape, PostNormBlock
from recbole_diffurec.layers.ragged import RaggedBatch

# Where a block has its norms. Before the sublayers, the sum of all residuals wants one more norm at the end.
NORMS: dict[str, type[Block]] = {"pre": Block, "post": PostNormBlock}


class TransformerEncoder(nn.Module):
    """Blocks one after another.

    Parameters
    ----------
    shape : BlockShape
        Of the blocks.
    n_layers : int
        How many.
    norm : str
        ``pre`` or ``post``.
    """

    def __init__(self, shape: BlockShape, n_layers: int, norm: str):
        super().__init__()
        self.blocks = nn.ModuleList(NORMS[norm](shape) for _ in range(n_layers))
        pre = norm == "pre"
        self.output_norm = nn.LayerNorm(shape.hidden_size, eps=LAYER_NORM_EPS) if pre else nn.Identity()

    def forward(self, x: Tensor, batch: RaggedBatch, last_only: bool = True) -> Tensor:
        """States after the last block.

        Parameters
        ----------
        x : Tensor
            [N, d], the embedded tokens.
        batch : RaggedBatch
            Their layout.
        last_only : bool
            The most recent position of each history alone, at less cost.

        Returns
        -------
        Tensor
            [B, d] in sorted order with ``last_only`` (see ``RaggedBatch.restore``), else [N, d].
        """
        for block in self.blocks:
            x = block(x, None, batch, last_only and block is self.blocks[-1])
        return self.output_norm(x)

"""Pooled tokens that look at all patches once more, in the manner of CrossLMM's V2V attention.

The paper (arXiv 2505.17020) does so inside of the language model, every few layers; this is one
gated cross-attention before it, on the square grid's tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.model.reducers.blocks import BlockReducer, square
from vqedge.model.reducers.common import flat
from vqedge.model.reducers.protocol import Reduced


class Resampler(nn.Module):
    """Grid pooling with a gated cross-attention. A gate of zero, as at the start, changes nothing.

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
        width: D of the features.
        heads: of the attention.
    """

    reads_attention = False
    drops = False

    def __init__(self, codes: int, frames: int, grid: int, width: int, heads: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.pool = BlockReducer(codes, frames, grid, cut=square)
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.gate = nn.Parameter(torch.zeros(()))

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`."""
        pooled = self.pool.reduce(features, budget)
        rows = self.norm(flat(features))
        query, key, value = (
            part.unflatten(1, (self.heads, -1)).transpose(0, 1)
            for part in (self.query(self.norm(pooled.tokens)), self.key(rows), self.value(rows))
        )
        seen = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        tokens = pooled.tokens + self.gate.tanh() * seen.transpose(0, 1).flatten(1)
        return pooled._replace(tokens=tokens * (pooled.sizes > 0)[:, None])

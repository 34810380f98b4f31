"""Quantizers that are no quantizers: what the real one is measured against, at the same budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.model.nearest_codebook import nearest_codebook
from vqedge.model.quantizer import KMeansQuantizer, Quantized

_SEED = 20_241


class GridQuantizer(nn.Module):
    """Uniform pooling: equal blocks of every frame, each a token.

    Args:
        codes: rows of the result, the largest budget.
        frames: T; a budget below it pools whole frames together in time.
    """

    def __init__(self, codes: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.summary = KMeansQuantizer(codes, 1, 0.5)

    def forward(self, features: Tensor, budget: Tensor) -> Quantized:
        """Quantise features `[N, D]` into at most `budget` blocks."""
        indices = block_of_patch(len(features), self.frames, int(budget)).to(features.device)
        margin = torch.zeros(len(features), device=features.device)
        return self.summary.summarised(features, indices.to(torch.int32), margin)

    def at_budgets(self, features: Tensor, budgets: Sequence[int]) -> list[Quantized]:
        """Quantise one clip at several budgets; each result has as many rows as its budget."""
        return [
            GridQuantizer(budget, self.frames).to(features.device)(features, torch.tensor(budget))
            for budget in budgets
        ]


class RandomQuantizer(nn.Module):
    """Codes that are patches drawn blindly; every patch goes to the nearest of them."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.codes = codes
        self.summary = KMeansQuantizer(codes, 1, 0.5)

    def forward(self, features: Tensor, budget: Tensor) -> Quantized:
        """Quantise features `[N, D]` with `budget` drawn codes."""
        generator = torch.Generator().manual_seed(_SEED)
        drawn = torch.randperm(len(features), generator=generator)[: int(budget)]
        unit = F.normalize(features, dim=1, eps=1e-6)
        indices, margin = nearest_codebook(unit, unit[drawn.to(features.device)], "l2")
        quantized = self.summary.summarised(features, indices, margin)
        rank = quantized.indices[drawn.to(features.device)].long()
        codes = torch.zeros_like(quantized.codes).index_copy(0, rank, features[drawn])
        return quantized._replace(codes=codes)

    def at_budgets(self, features: Tensor, budgets: Sequence[int]) -> list[Quantized]:
        """Quantise one clip at several budgets; each result has as many rows as its budget."""
        return [
            RandomQuantizer(budget).to(features.device)(features, torch.tensor(budget))
            for budget in budgets
        ]


def block_of_patch(patches: int, frames: int, budget: int) -> Tensor:
    """Number of the block each patch lies in, int64 `[patches]`.

    Frames are grouped until every group has a block, then every frame group is cut into as square
    a grid as fits the budget.
    """
    groups = math.gcd(frames, budget) if budget < frames else frames
    per_group = budget // groups
    grid = math.isqrt(patches // frames)
    rows = max(n for n in range(1, math.isqrt(per_group) + 1) if per_group % n == 0)
    columns = per_group // rows
    time, row, column = torch.meshgrid(
        torch.arange(frames) * groups // frames,
        torch.arange(grid) * rows // grid,
        torch.arange(grid) * columns // grid,
        indexing="ij",
    )
    return ((time * rows + row) * columns + column).reshape(-1)

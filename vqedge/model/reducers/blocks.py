"""Pooling by place alone: equal blocks in time and space, whatever they show.

Uniform pooling; temporal pooling, temporal sampling and spatial pooling as in STORM (arXiv
2503.04130), without its Mamba layers; and the square grid of CrossLMM (arXiv 2505.17020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqedge.model.reducers.common import flat, means, one_hot
from vqedge.model.reducers.protocol import DROPPED, Reduced


class Blocks(NamedTuple):
    """How a clip is cut: stretches of frames, and a grid in each."""

    groups: int
    rows: int
    columns: int


Cut = Callable[[int, int, int], Blocks]
"""From budget, frames and patches per side to blocks, no more of them than the budget."""


def near_square(budget: int, frames: int, _grid: int) -> Blocks:
    """Frames are joined until every group has a block, then cut into as square a grid as fits."""
    groups = math.gcd(frames, budget) if budget < frames else frames
    per_group = budget // groups
    rows = max(n for n in range(1, math.isqrt(per_group) + 1) if per_group % n == 0)
    return Blocks(groups, rows, per_group // rows)


def square(budget: int, frames: int, grid: int) -> Blocks:
    """As many cells down as across in every frame; what is left of the budget is not used."""
    groups = math.gcd(frames, budget) if budget < frames else frames
    side = min(math.isqrt(budget // groups), grid)
    return Blocks(groups, side, side)


def square_windows(budget: int, frames: int, grid: int) -> Blocks:
    """Windows of p x p patches, p the smallest that fits; those at the edge may be cut off."""
    blocks = square(budget, frames, grid)
    window = -(-grid // blocks.rows)
    return blocks._replace(rows=-(-grid // window), columns=-(-grid // window))


class BlockReducer(nn.Module):
    """A token is the mean of a block.

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
        cut: how a budget is spent on blocks.
        pool: frames joined to one before anything else.
        sample: every how many frames one is looked at; the others are dropped.
        windows: blocks are windows of a whole number of patches, ragged at the far edge.
    """

    reads_attention = False

    def __init__(
        self,
        codes: int,
        frames: int,
        grid: int,
        cut: Cut = near_square,
        pool: int = 1,
        sample: int = 1,
        windows: bool = False,
    ) -> None:
        super().__init__()
        self.blocks: Tensor
        self.codes, self.frames, self.grid = codes, frames, grid
        self.pool, self.sample, self.windows = pool, sample, windows
        self.drops = sample > 1
        self.moments = -(-frames // (pool * sample))
        cuts = [cut(max(budget, 1), self.moments, grid) for budget in range(codes + 1)]
        self.register_buffer("blocks", torch.tensor(cuts), persistent=False)

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`; nothing but place counts."""
        assign = self.block_of_patch(budget)
        members = one_hot(assign.reshape(-1), self.codes)
        tokens = means(flat(features), members)
        return Reduced(tokens, assign, members.sum(dim=0), torch.zeros_like(features[..., 0]))

    def block_of_patch(self, budget: Tensor) -> Tensor:
        """Number of the block each patch lies in, int64 `[T, n]`."""
        groups, rows, columns = self.blocks[budget].unbind()
        frame = torch.arange(self.frames, device=budget.device)
        side = torch.arange(self.grid, device=budget.device)
        time = frame // (self.pool * self.sample) * groups // self.moments
        cell = self._cell(side, rows)[:, None] * columns + self._cell(side, columns)
        block = time[:, None] * (rows * columns) + cell.reshape(-1)
        dropped = frame // self.pool % self.sample > 0
        return torch.where(dropped[:, None], DROPPED, block)

    def _cell(self, place: Tensor, count: Tensor) -> Tensor:
        if self.windows:
            return place // ((self.grid + count - 1) // count)
        return place * count // self.grid

"""Keep some patches as they are, drop the rest: spread evenly, or drawn blindly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqedge.model.reducers.common import flat, kept_rows, one_hot, segments
from vqedge.model.reducers.protocol import DROPPED, Reduced

_SEED = 20_241


class UniformPruning(nn.Module):
    """The same number of patches of every frame, spread over it.

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
    """

    reads_attention = False
    drops = True

    def __init__(self, codes: int, frames: int, grid: int) -> None:
        super().__init__()
        self.rows: Tensor
        self.codes = codes
        priority = spread_priority(grid).repeat(frames)
        rows = [_spread_rows(priority, frames, max(budget, 1)) for budget in range(codes + 1)]
        self.register_buffer("rows", torch.stack(rows).to(torch.int16), persistent=False)

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`; nothing but place counts."""
        return kept(features, self.rows[budget].long(), self.codes)


class RandomPruning(nn.Module):
    """Patches drawn blindly, always the same places."""

    reads_attention = False
    drops = True

    def __init__(self, codes: int, frames: int, grid: int) -> None:
        super().__init__()
        self.place: Tensor
        self.codes = codes
        generator = torch.Generator().manual_seed(_SEED)
        drawn = torch.randperm(frames * grid**2, generator=generator)
        self.register_buffer("place", drawn.argsort(), persistent=False)

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`; nothing counts."""
        return kept(features, torch.where(self.place < budget, self.place, DROPPED), self.codes)


def kept(features: Tensor, row_of_patch: Tensor, codes: int) -> Reduced:
    """Tokens that are the patches with a row, `[T, n, D]` and int64 `[T * n]`."""
    members = one_hot(row_of_patch, codes)
    tokens = members.T @ flat(features)
    assign = row_of_patch.reshape(features.shape[:2])
    return Reduced(tokens, assign, members.sum(dim=0), torch.zeros_like(features[..., 0]))


def _spread_rows(priority: Tensor, frames: int, budget: int) -> Tensor:
    """Row of each patch at one budget: the highest priorities of every segment; int64 `[N]`."""
    cut = segments(torch.tensor(budget), frames, len(priority), frames)
    order = priority.argsort(descending=True, stable=True)
    order = order[cut.number[order].argsort(stable=True)]  # by segment, then by priority
    position = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    start = torch.bincount(cut.number).cumsum(0) - torch.bincount(cut.number)
    place = position - start[cut.number]
    return kept_rows(place < cut.quota, place, cut)


def spread_priority(grid: int) -> Tensor:
    """Patches by how early they are taken when each is to lie far from all before; float32 `[n]`.

    Farthest-first over the grid, the middle first: the highest priorities are always well spread.
    """
    place = torch.arange(grid * grid)
    where = torch.stack([place // grid, place % grid], dim=1).double()
    chosen = [int((grid // 2) * grid + grid // 2)]
    distance = (where - where[chosen[0]]).square().sum(dim=1)
    while len(chosen) < grid * grid:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (where - where[chosen[-1]]).square().sum(dim=1))
    priority = torch.empty(grid * grid)
    priority[torch.tensor(chosen)] = torch.arange(grid * grid, 0, -1, dtype=torch.float32)
    return priority

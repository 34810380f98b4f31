"""MustDrop's vision stage (arXiv 2411.10803): windows that look alike merge, key patches stay.

The paper merges 3 x 3 windows whose patches have a mean cosine of 0.8 or more, and keeps the 8 % of
patches that CLS attends to most. A few dozen tokens a clip are less than that can give, so windows
come in all sizes here, each half as long as the one around it, from the whole clip to a patch: the
largest that is alike enough merges. Enough is found for the budget, by bisection. It is told by the
sum of what its patches lack in likeness, not by the mean: the mean of a large window can be high
though its parts are not. Of 256 patches a frame 8 % are 21, of 8 frames more than all tokens: here
keys are 8 % of the budget, and those of the whole clip, since they are fewer than frames. The
stages inside of the language model are left out: docs/reducers.md.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqedge.model.quantizer import unit
from vqedge.model.reducers.common import counted, flat, means, one_hot
from vqedge.model.reducers.protocol import DROPPED, Reduced
from vqedge.model.vit import attention_from_features

KEY_PERCENT = 8
_LEAST, _MOST, _STEPS = -8.0, 14.0, 14  # logarithms that the bound is searched between
_NONE, _BOUNDLESS = -1.0, 1e9  # spread of a single patch, and of what is around the clip


class Windows(NamedTuple):
    """All windows of a clip, the largest first. W of them."""

    spread: Tensor  # float32 [W], sum of squared distances to the mean, of unit vectors
    around: Tensor  # float32 [W], the spread of the window that it lies in
    filled: Tensor  # bool [W], holds a patch that is no key


class WindowMerging(nn.Module):
    """Merges windows, the largest that are alike.

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
    """

    reads_attention = True
    drops = False

    def __init__(self, codes: int, frames: int, grid: int) -> None:
        super().__init__()
        self.levels: Tensor
        self.codes = codes
        levels, starts = window_levels(frames, grid)
        self.starts = starts
        self.register_buffer("levels", levels.to(torch.int32), persistent=False)
        for level, (outer, inner) in enumerate(pairwise(levels)):
            self.register_buffer(f"parents{level}", parents_of(outer, inner), persistent=False)

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`; without `cls_attn` it takes `attention_from_features`."""
        attention = attention_from_features(features) if cls_attn is None else cls_attn
        rows, weight = flat(features), attention.reshape(-1)
        number = (KEY_PERCENT * (budget - 1) + 99) // 100
        place = counted(weight)
        key = place < number
        windows = self.measured(rows, key)
        bound = bound_for(windows, budget - number)
        chosen = merging(windows, bound)
        row_of_window = torch.where(chosen, number + chosen.long().cumsum(0) - 1, 0)
        row = torch.where(key, place, row_of_window[self._window(windows, bound)])
        members = one_hot(row, self.codes)
        assign = row.reshape(features.shape[:2])
        margin = torch.zeros_like(features[..., 0])
        return Reduced(means(rows, members), assign, members.sum(dim=0), margin)

    def measured(self, rows: Tensor, key: Tensor) -> Windows:
        """How much the patches of every window differ, keys left out."""
        looks = unit(rows) * (~key)[:, None]
        spread, around, filled = [], [torch.full_like(rows[:1, 0], _BOUNDLESS)], []
        for level, window in enumerate(self.levels.long().unbind()):
            found, count = self._level(looks, ~key, level, window)
            spread.append(torch.minimum(found, around[level]))  # but for rounding it is less
            filled.append(count > 0)
            if level + 1 < len(self.levels):
                around.append(spread[level][self.get_buffer(f"parents{level}")])
        return Windows(torch.cat(spread), torch.cat(around), torch.cat(filled))

    def _level(
        self, looks: Tensor, counts: Tensor, level: int, window: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The spread of each window of a level, and its patches."""
        size = self.starts[level + 1] - self.starts[level]
        if size == len(looks):  # windows of one patch, in the order of patches
            return torch.full_like(looks[:, 0], _NONE), counts.to(looks.dtype)
        members = one_hot(torch.where(counts, window, DROPPED), size)
        count = members.sum(dim=0)
        spread = count - (members.T @ looks).square().sum(dim=1) / count.clamp(min=1.0)
        return torch.where(count > 1, spread, _NONE), count

    def _window(self, windows: Windows, bound: Tensor) -> Tensor:
        """The largest window around each patch that merges, int64 `[N]`."""
        start = torch.tensor(self.starts[:-1], device=self.levels.device)
        number = self.levels.long() + start[:, None]
        level = (windows.spread[number] <= bound).to(torch.float32).argmax(dim=0)
        return number.gather(0, level[None])[0]


def merging(windows: Windows, bound: Tensor) -> Tensor:
    """Which windows become a token: those within the bound that lie in none; bool `[W]`."""
    return windows.filled & (windows.spread <= bound) & (windows.around > bound)


def bound_for(windows: Windows, budget: Tensor) -> Tensor:
    """The least bound, to a bisection's end, that gives no more windows than the budget."""
    low = torch.full_like(windows.spread[0], _LEAST)
    high = torch.full_like(low, _MOST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        fits = merging(windows, middle.exp()).long().sum() <= budget
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return high.exp()


def window_levels(frames: int, grid: int) -> tuple[Tensor, list[int]]:
    """The window of every patch at every level, int64 `[L, N]`, and where levels start.

    Time is halved until frames are alone, then frames are, down to a patch.
    """
    frame, row, column = torch.meshgrid(
        torch.arange(frames), torch.arange(grid), torch.arange(grid), indexing="ij"
    )
    halvings = math.ceil(math.log2(frames)) if frames > 1 else 0
    sides = [2**power for power in range(1, grid.bit_length()) if 2**power < grid]
    levels = [frame >> left for left in range(halvings, 0, -1)] + [frame]
    for side in [*sides, grid]:
        levels.append((frame * side + row * side // grid) * side + column * side // grid)
    table = torch.stack(levels).reshape(len(levels), -1)
    sizes = (table.amax(dim=1) + 1).tolist()
    starts = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    return table, starts


def parents_of(outer: Tensor, inner: Tensor) -> Tensor:
    """The window of one level that each of the next lies in, int64; both int64 `[N]`."""
    parents = torch.empty(int(inner.max()) + 1, dtype=torch.int64)
    return parents.scatter_(0, inner, outer)

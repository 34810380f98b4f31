"""Video token merging (arXiv 2410.23782): chosen patches take in the patches most like them.

As in the paper's three blocks, a clip shrinks in three equal steps, each by the same factor: to 32
of 2,048 patches by 4, where the paper finds 6 best. A merge is the plain mean, whatever the sizes.
Patches are compared by their features; the paper compares attention keys.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqedge.model.quantizer import unit
from vqedge.model.reducers.common import (
    SURE,
    best,
    counted,
    even,
    flat,
    one_hot,
    settled,
)
from vqedge.model.reducers.protocol import DROPPED, Reduced

ROUNDS = 3


class Live(NamedTuple):
    """Tokens between two rounds: the live ones first, in the order of the patches."""

    tokens: Tensor  # float32 [M, D]
    patch: Tensor  # int64 [M], the patch that each grew from
    alive: Tensor  # int64 scalar, how many are live
    row_of_patch: Tensor  # int64 [N]
    margin: Tensor  # float32 [N]


class VideoTokenMerging(nn.Module):
    """Which patches are chosen is left to sub-classes: evenly spaced ones here.

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
        rounds: of merging.
    """

    reads_attention = False
    drops = False

    def __init__(self, codes: int, frames: int, grid: int, rounds: int = ROUNDS) -> None:
        super().__init__()
        self.counts: Tensor
        self.codes, self.frames, self.grid = codes, frames, grid
        patches = frames * grid**2
        counts = [_counts(patches, max(budget, 1), rounds) for budget in range(codes + 1)]
        self.limits = counts[-1]
        self.register_buffer("counts", torch.tensor(counts), persistent=False)

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`."""
        rows = flat(features)
        patch = torch.arange(len(rows), device=rows.device)
        sure = torch.full_like(rows[:, 0], SURE)
        live = Live(rows, patch, patch[-1] + 1, patch, sure)
        wish = self.wish(features)
        for limit, count in zip(self.limits, self.counts[budget].unbind(), strict=True):
            live = self._shrunk(live, self.targets(live, count, wish), count, limit)
        sizes = one_hot(live.row_of_patch, self.codes).sum(dim=0)
        shape = features.shape[:2]
        return Reduced(
            live.tokens, live.row_of_patch.reshape(shape), sizes, live.margin.reshape(shape)
        )

    def wish(self, features: Tensor) -> Tensor:
        """How much each patch wants to be chosen, float32 `[N]`."""
        return torch.zeros_like(flat(features)[:, 0])

    def targets(self, live: Live, count: Tensor, wish: Tensor) -> Tensor:
        """The `count` live tokens that others merge into, bool `[M]`: every gamma-th."""
        index = torch.arange(len(live.patch), device=count.device)
        return even(count, live.alive, index) & (index < live.alive)

    def _shrunk(self, live: Live, target: Tensor, count: Tensor, limit: int) -> Live:
        """Every token that is no target joins the target most like it."""
        index = torch.arange(len(target), device=target.device)
        row = torch.where(target, target.long().cumsum(dim=0) - 1, DROPPED)
        chosen = one_hot(row, limit)
        looks = unit(live.tokens)
        slot = torch.arange(limit, device=target.device)
        found = best(looks @ (chosen.T @ looks).T, (slot < count)[None, :])
        row_of_token = torch.where(target, row, found.rows)
        members = one_hot(row_of_token, limit) * (index < live.alive)[:, None]
        tokens = members.T @ live.tokens / members.sum(dim=0).clamp(min=1.0)[:, None]
        patch = (chosen.T @ live.patch[:, None].float())[:, 0].long()  # exact below 2^24
        margin = torch.where(target, SURE, found.margin)[live.row_of_patch]
        return Live(
            tokens,
            patch,
            count,
            row_of_token[live.row_of_patch],
            torch.minimum(live.margin, margin),
        )


class CentreMerging(VideoTokenMerging):
    """Half of the chosen tokens lie in the middle quarter of their frame."""

    def targets(self, live: Live, count: Tensor, wish: Tensor) -> Tensor:
        """See `VideoTokenMerging.targets`; evenly spaced within the middle and around it."""
        index = torch.arange(len(live.patch), device=count.device)
        alive = index < live.alive
        inside = alive & in_centre(live.patch % self.grid**2, self.grid)
        outside = alive & ~inside
        most = outside.long().sum()
        half = torch.minimum((count + 1) // 2, inside.long().sum())
        half = torch.maximum(half, count - most)
        return _even_among(inside, half) | _even_among(outside, count - half)


class MotionMerging(VideoTokenMerging):
    """The patches that change most from frame to frame are chosen.

    The paper samples by motion vectors of the codec. Here the change of a patch's features stands
    for motion, and the largest are taken instead of sampled.
    """

    def wish(self, features: Tensor) -> Tensor:
        """Distance of a patch to the same place in the frames before and after, the larger."""
        looks = unit(features)
        if len(features) == 1:
            return torch.zeros_like(looks[..., 0]).reshape(-1)
        change = settled(1.0 - (looks[1:] * looks[:-1]).sum(dim=-1))
        before, after = torch.cat([change[:1], change]), torch.cat([change, change[-1:]])
        return torch.maximum(before, after).reshape(-1)

    def targets(self, live: Live, count: Tensor, wish: Tensor) -> Tensor:
        """See `VideoTokenMerging.targets`; those with the strongest wish."""
        alive = torch.arange(len(live.patch), device=count.device) < live.alive
        scores = torch.where(alive, wish[live.patch], -torch.inf)
        return alive & (counted(scores) < count)


def in_centre(place: Tensor, grid: int) -> Tensor:
    """Does a patch lie in the middle half of its frame, down and across? bool as `place`."""
    low, high = grid // 4, grid - grid // 4
    row, column = place // grid, place % grid
    return (row >= low) & (row < high) & (column >= low) & (column < high)


def _even_among(members: Tensor, count: Tensor) -> Tensor:
    """`count` of the members, evenly spaced among them; bool `[M]`."""
    index = members.long().cumsum(dim=0) - 1
    return members & even(count, members.long().sum().clamp(min=1), index)


def _counts(patches: int, budget: int, rounds: int) -> list[int]:
    """Tokens after every round, each the same share of those before."""
    share = (min(budget, patches) / patches) ** (1 / rounds)
    return [
        *(round(patches * share**done) for done in range(1, rounds)),
        min(budget, patches),
    ]

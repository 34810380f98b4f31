"""Token merging by bipartite matching, after ToMe (arXiv 2210.09461), over the patches of a clip.

ToMe merges a few tokens in every layer of a ViT; here the merging comes after it, in rounds that
halve the tokens until the budget is reached.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqedge.model.quantizer import unit
from vqedge.model.reducers.common import SURE, best, counted, flat, one_hot, settled
from vqedge.model.reducers.protocol import DROPPED, Reduced


class Pool(NamedTuple):
    """Tokens on their way down: the live ones come first."""

    tokens: Tensor  # float32 [M, D]
    sizes: Tensor  # float32 [M], patches in each; 0 where there is none
    row_of_patch: Tensor  # int64 [N]
    margin: Tensor  # float32 [N], the closest call on a patch's way


class BipartiteMerging(nn.Module):
    """Every second token looks for its likest among the others; the likest pairs become one.

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
    """

    reads_attention = False
    drops = False

    def __init__(self, codes: int, frames: int, grid: int) -> None:
        super().__init__()
        self.codes = codes
        self.limits = _limits(frames * grid**2, codes)

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`; tokens are compared by their features."""
        rows = flat(features)
        ones = torch.ones_like(rows[:, 0])
        pool = Pool(rows, ones, torch.arange(len(rows), device=rows.device), ones * SURE)
        for limit in self.limits:
            pool = merged(pool, budget, limit)
        assign = pool.row_of_patch.reshape(features.shape[:2])
        return Reduced(pool.tokens, assign, pool.sizes, pool.margin.reshape(assign.shape))


def merged(pool: Pool, budget: Tensor, limit: int) -> Pool:
    """One round: at most half of the live tokens merge into others, down to the budget.

    Args:
        pool: M rows, M at least 2.
        budget: int64 scalar.
        limit: rows of the result, enough for any budget.
    """
    live, slot = pool.sizes > 0, torch.arange(len(pool.sizes), device=pool.sizes.device)
    into, margin = _partners(pool, slot, live, budget)
    row = (live & (into == slot)).long().cumsum(dim=0) - 1  # those that stay keep their order
    row_of_token = torch.where(live, row[into], DROPPED)
    members = one_hot(row_of_token, limit) * pool.sizes[:, None]
    sizes = members.sum(dim=0)
    tokens = members.T @ pool.tokens / sizes.clamp(min=1.0)[:, None]
    closest = torch.minimum(pool.margin, margin[pool.row_of_patch])
    return Pool(tokens, sizes, row_of_token[pool.row_of_patch], closest)


def _partners(pool: Pool, slot: Tensor, live: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
    """The token that each merges into, itself if it stays, and how safe that choice is."""
    source, target, looks = slot[0::2], slot[1::2], unit(pool.tokens)
    scores = settled(looks[source] @ looks[target].T)
    found = best(scores, live[target][None, :])
    can = live[source] & (live.sum() > 1)
    likeness = torch.where(can, scores.gather(1, found.rows[:, None])[:, 0], -torch.inf)
    excess = (live.sum() - budget).clamp(min=0)
    goes = can & (counted(likeness) < excess)
    into = slot.scatter(0, source, torch.where(goes, target[found.rows], source))
    sure = torch.full_like(pool.sizes, SURE)
    return into, sure.scatter(0, source, torch.where(goes, found.margin, SURE))


def _limits(patches: int, codes: int) -> list[int]:
    """Rows after every round: half of those before down to the codes, then for smaller budgets."""
    limits = [patches]
    while limits[-1] > codes:
        limits.append(max(codes, -(-limits[-1] // 2)))
    smaller = math.ceil(math.log2(codes)) if codes > 1 else 0
    return [*limits[1:], *[codes] * smaller]

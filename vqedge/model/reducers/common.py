"""Steps that reducers share: exact selections, ties to the lowest index, in operations of ONNX.

Selections are counted, not sorted: `topk` leaves open which of equal scores it takes, and patches
of frames that stand still are equal. Counting costs N^2 comparisons, 4 million for 2,048 patches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vqedge.model.reducers.protocol import DROPPED

_STEPS = 2.0**16  # of a score of size 1 that are told apart
SURE = 4.0  # margin of a choice without an alternative: more than two cosines can differ by


class Segments(NamedTuple):
    """A clip cut in time. N patches."""

    number: Tensor  # int64 [N], the segment of each patch
    quota: Tensor  # int64 [N], how many tokens that segment may have
    first: Tensor  # int64 [N], row of that segment's first token


def segments(budget: Tensor, frames: int, patches: int, most: int) -> Segments:
    """At most `most` equal stretches of frames, which share the budget as evenly as can be.

    Every segment has a token: a budget below `most` joins frames. `patches` are those of the clip.
    """
    count = budget.clamp(max=most)
    frame = torch.arange(patches, device=budget.device) // (patches // frames)
    number = frame * count // frames
    first = number * budget // count
    return Segments(number, (number + 1) * budget // count - first, first)


def settled(scores: Tensor) -> Tensor:
    """Scores without their last bits: what is equal but for rounding ties, in every runtime."""
    return (scores * _STEPS).round() / _STEPS


def counted(scores: Tensor, group: Tensor | None = None) -> Tensor:
    """Place of each score, the highest 0, among those of its group or all; int64 `[N]`."""
    ahead = (scores[None, :] > scores[:, None]).to(torch.float32)
    tied = (scores[None, :] == scores[:, None]).to(torch.float32)
    before = ahead + tied.tril(-1)
    if group is not None:
        before = before * (group[None, :] == group[:, None])
    return before.sum(dim=1).long()


def even(count: Tensor | int, of: Tensor | int, index: Tensor) -> Tensor:
    """Is `index` one of `count` evenly spaced numbers below `of`, the first 0? bool as `index`.

    With `of = gamma * count` these are the multiples of gamma.
    """
    return (index * count) % of < count


def one_hot(row_of_patch: Tensor, rows: int) -> Tensor:
    """float32 `[N, K]` of int64 `[N]`; a dropped patch is all zero."""
    slot = torch.arange(rows, device=row_of_patch.device)
    return (row_of_patch[:, None] == slot).to(torch.float32)


def kept_rows(chosen: Tensor, place: Tensor, cut: Segments) -> Tensor:
    """Row of every chosen patch by its place in its segment, else DROPPED; int64 `[N]`."""
    return torch.where(chosen, cut.first + place, DROPPED)


def means(features: Tensor, members: Tensor) -> Tensor:
    """Mean of the members of each row `[K, D]`, zero without any; `members` float `[N, K]`."""
    return members.T @ features / members.sum(dim=0).clamp(min=1.0)[:, None]


class Choice(NamedTuple):
    """The best of several rows for every patch."""

    rows: Tensor  # int64 [N]
    margin: Tensor  # float32 [N]


def best(scores: Tensor, allowed: Tensor) -> Choice:
    """The allowed row of the largest score, the first of equals; both `[N, K]`."""
    open_scores = torch.where(allowed, settled(scores), float("-inf"))
    rows = open_scores.argmax(dim=1)
    others = open_scores.masked_fill(one_hot(rows, scores.shape[1]) > 0, float("-inf"))
    gap = open_scores.amax(dim=1) - others.amax(dim=1)
    return Choice(rows, gap.clamp(max=SURE))


def flat(rows: Tensor) -> Tensor:
    """`[T, n, D]` as `[T * n, D]`."""
    return rows.reshape(-1, rows.shape[-1])

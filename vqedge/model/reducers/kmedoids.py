"""CenterCLIP (arXiv 2205.00823): k-medoids in segments of a clip; tokens are real patches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqedge.model.reducers.common import Choice, Segments, best, flat, one_hot, segments, settled
from vqedge.model.reducers.protocol import Reduced

_ROUNDS = 10  # the paper allows 100 and stops when nothing moves: after 8 at most, see docs
_FRAMES_A_SEGMENT = 2
_EQUAL = 1e-5  # of two rows' squares: their distance, squared, is rounding


class Medoids(NamedTuple):
    """Which patches stand for clusters. K rows."""

    patch: Tensor  # int64 [K], 0 where unused
    used: Tensor  # bool [K]
    segment: Tensor  # int64 [K]


class SegmentMedoids(nn.Module):
    """K-medoids by Euclidean distance, from a farthest-first start (KKZ).

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
    """

    reads_attention = False
    drops = False

    def __init__(self, codes: int, frames: int, grid: int) -> None:
        super().__init__()
        self.codes, self.frames = codes, frames
        self.segments = max(frames // _FRAMES_A_SEGMENT, 1)

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
        cut = segments(budget, self.frames, len(rows), self.segments)
        distance = distances(rows)
        medoids = self._start(rows, cut)
        for _ in range(_ROUNDS):
            medoids = moved(medoids, assigned(medoids, distance, cut), distance)
        found = assigned(medoids, distance, cut)
        sizes = one_hot(found.rows, self.codes).sum(dim=0)
        tokens = rows[medoids.patch] * (sizes > 0)[:, None]
        shape = features.shape[:2]
        return Reduced(tokens, found.rows.reshape(shape), sizes, found.margin.reshape(shape))

    def _start(self, rows: Tensor, cut: Segments) -> Medoids:
        """KKZ in all segments at once: the longest patch, then always the farthest from those."""
        segment = torch.arange(self.segments, device=rows.device)
        inside = cut.number[:, None] == segment
        quota, first = (_of_segment(values, inside) for values in (cut.quota, cut.first))
        score = settled(rows.square().sum(dim=1))  # rows of length one tie, in every runtime
        nearest = torch.full_like(score, torch.inf)
        picked, places = [], []
        for step in range(-(-self.codes // min(self.codes, self.segments))):
            patch = torch.where(inside, score[:, None], -torch.inf).argmax(dim=0)
            picked.append(patch)
            places.append(torch.where(step < quota, first + step, self.codes))
            gap = (rows - rows[patch][cut.number]).square().sum(dim=1)
            nearest = torch.minimum(nearest, gap)
            score = nearest
        place, patch = torch.cat(places), torch.cat(picked)
        used = (place[:, None] == torch.arange(self.codes, device=rows.device)).long()
        of_row = segment.repeat(len(picked))
        return Medoids(
            (used * patch[:, None]).sum(dim=0),
            used.sum(dim=0) > 0,
            (used * of_row[:, None]).sum(dim=0),
        )


def distances(rows: Tensor) -> Tensor:
    """Euclidean distances of all pairs `[N, N]`, exactly zero of equal rows.

    The difference of squares leaves rounding where rows are equal, and the root makes it larger: it
    would decide between the looks of a clip that stands still, in every runtime otherwise.
    """
    squares = rows.square().sum(dim=1)
    both = squares[:, None] + squares[None, :]
    table = both - 2.0 * rows @ rows.T
    return torch.where(table <= _EQUAL * both, 0.0, table).sqrt()


def assigned(medoids: Medoids, distance: Tensor, cut: Segments) -> Choice:
    """The nearest medoid of the same segment, for every patch."""
    same = cut.number[:, None] == medoids.segment[None, :]
    return best(-distance[:, medoids.patch], same & medoids.used[None, :])


def moved(medoids: Medoids, found: Choice, distance: Tensor) -> Medoids:
    """Every cluster's member of least distance to its others; an empty one's medoid stays."""
    members = one_hot(found.rows, len(medoids.used))
    cost = torch.where(members > 0, distance @ members, torch.inf)
    patch = torch.where(members.sum(dim=0) > 0, cost.argmin(dim=0), medoids.patch)
    return medoids._replace(patch=patch)


def _of_segment(values: Tensor, inside: Tensor) -> Tensor:
    """What all patches of a segment say; 0 for a segment without patches. int64 `[S]`."""
    return torch.where(inside, values[:, None], 0).amax(dim=0)

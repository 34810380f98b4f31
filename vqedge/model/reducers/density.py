"""Spatial density peaks, after AiluRus (arXiv 2311.01197): anchors are dense and far from denser.

The paper's body was not at hand: abstract and published summaries give the idea, and numbers and
formulas are ours where they left them open. It works inside a ViT, this after it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqedge.model.reducers.common import (
    best,
    counted,
    flat,
    kept_rows,
    means,
    one_hot,
    segments,
)
from vqedge.model.reducers.protocol import Reduced

NEIGHBOURS, WINDOW, ALPHA = 5, 49, 0.5
_FAR = 1e6  # a distance that no two patches have


class SpatialDensityPeaks(nn.Module):
    """Density-peak clustering of every frame with a window in space.

    A distance of features is multiplied by `(1 - alpha) * rank / window + alpha`, where `rank` says
    how many patches lie nearer on the grid; patches outside of the window do not count for density.

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
        neighbours: nearest patches that a density is measured by.
        window: patches around one that are compared with it.
        alpha: weight of the nearest of them; 1 makes place irrelevant within the window.
    """

    reads_attention = False
    drops = False

    def __init__(
        self,
        codes: int,
        frames: int,
        grid: int,
        neighbours: int = NEIGHBOURS,
        window: int = WINDOW,
        alpha: float = ALPHA,
    ) -> None:
        super().__init__()
        self.weight: Tensor
        self.barred: Tensor
        self.codes, self.frames = codes, frames
        window = max(min(window, grid * grid - 1), 1)
        self.neighbours = min(neighbours, window)
        ranks = spatial_ranks(grid)
        weight = (1.0 - alpha) * ranks.clamp(max=window) / window + alpha
        barred = (ranks == 0) | (ranks > window)  # a patch is not its own neighbour
        self.register_buffer("weight", weight.float(), persistent=False)
        self.register_buffer("barred", barred.float() * _FAR, persistent=False)

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
        cut = segments(budget, self.frames, len(rows), self.frames)
        place = counted(self.peakedness(features), cut.number)
        row_of_patch = kept_rows(place < cut.quota, place, cut)
        anchors = one_hot(row_of_patch, self.codes)
        found = best(*self._nearness(rows, anchors, cut.number))
        row = torch.where(row_of_patch < 0, found.rows, row_of_patch)
        members = one_hot(row, self.codes)
        shape = features.shape[:2]
        return Reduced(
            means(rows, members), row.reshape(shape), members.sum(0), found.margin.reshape(shape)
        )

    def peakedness(self, features: Tensor) -> Tensor:
        """Density times distance to the nearest denser patch in the window, float32 `[N]`."""
        weighted = _distance(features, features) * self.weight + self.barred
        closest = weighted.topk(self.neighbours, dim=2, largest=False).values
        density = (-closest.mean(dim=2)).exp()
        denser = density[:, None, :] > density[:, :, None]
        height = torch.where(denser, weighted, _FAR).amin(dim=2)
        most = torch.where(weighted < _FAR, weighted, 0.0).amax(dim=2).amax(dim=1, keepdim=True)
        return (density * torch.minimum(height, most)).reshape(-1)

    def _nearness(self, rows: Tensor, anchors: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of every anchor for every patch `[N, K]`, and which are of its segment."""
        index = torch.arange(len(rows), device=rows.device)
        anchor = (anchors.T @ index[:, None].to(rows.dtype))[:, 0].long()
        weight = self.weight[:, anchor % len(self.weight)].repeat(self.frames, 1)
        far = _distance(rows[None], rows[anchor][None])[0]
        same = segment[:, None] == segment[anchor][None, :]
        used = anchors.sum(dim=0) > 0
        return -far * weight, same & used[None, :]


def spatial_ranks(grid: int) -> Tensor:
    """How many patches lie nearer to i than j does, itself the nearest; int64 `[n, n]`."""
    place = torch.arange(grid * grid)
    where = torch.stack([place // grid, place % grid], dim=1)
    gap = (where[:, None] - where[None, :]).square().sum(dim=2)
    order = gap.argsort(dim=1, stable=True)
    return torch.empty_like(order).scatter_(1, order, place.expand_as(order).contiguous())


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance a feature, `[B, n, m]` of `[B, n, D]` and `[B, m, D]`."""
    squares = a.square().sum(dim=2)[:, :, None] + b.square().sum(dim=2)[:, None, :]
    table = (squares - 2.0 * a @ b.transpose(1, 2)).clamp(min=0.0)
    return (table / a.shape[2]).sqrt()

"""PruMerge and PruMerge+ (arXiv 2403.15388): keep what CLS attends to, merge the rest into it.

Done frame by frame. The paper keeps as many patches as have outlying attention; a budget keeps its
share of every frame instead, the most attended first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqedge.model.quantizer import unit
from vqedge.model.reducers.common import (
    SURE,
    Choice,
    Segments,
    best,
    counted,
    flat,
    kept_rows,
    one_hot,
    segments,
    settled,
)
from vqedge.model.reducers.protocol import Reduced
from vqedge.model.reducers.pruning import spread_priority
from vqedge.model.vit import attention_from_features

NEIGHBOURS = 32


class PruMerge(nn.Module):
    """Attended patches, each with its nearest ones added, and one token of all that is left over.

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
        spread: share of the kept patches that are spread evenly over the frame; PruMerge+ has
            three for each attended one.
        neighbours: patches that are added to each kept one, by their attention.
        normalize: divide what is added by the attention it got. The published code does not.
    """

    reads_attention = True
    drops = False

    def __init__(
        self,
        codes: int,
        frames: int,
        grid: int,
        spread: float = 0.0,
        neighbours: int = NEIGHBOURS,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.priority: Tensor
        self.codes, self.frames, self.spread = codes, frames, spread
        self.neighbours, self.normalize = neighbours, normalize
        self.register_buffer("priority", spread_priority(grid).repeat(frames), persistent=False)

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
        looks = unit(rows if keys is None else flat(keys))
        cut = segments(budget, self.frames, len(rows), self.frames)
        row_of_patch = self._kept(weight, cut)
        chosen = one_hot(row_of_patch, self.codes)
        same = one_hot(cut.number, self.codes) @ (one_hot(cut.number, self.codes).T @ chosen) > 0
        scores = looks @ (chosen.T @ looks).T
        near = self._near(scores, same, chosen)
        found = best(scores, same)
        alike = settled(torch.where(same, scores, -torch.inf).amax(dim=1))
        row, lost = _with_leftover(row_of_patch, found, near, alike, cut)
        added = (near + lost_rows(lost, cut, self.codes)) * weight[:, None]
        tokens = chosen.T @ rows + self._sum(added, rows)
        sizes = one_hot(row, self.codes).sum(dim=0)
        shape = features.shape[:2]
        return Reduced(tokens, row.reshape(shape), sizes, found.margin.reshape(shape))

    def _kept(self, weight: Tensor, cut: Segments) -> Tensor:
        """Row of each kept patch: by attention, then spread; the last row is for the left over."""
        quota = torch.where(cut.quota > 1, cut.quota - 1, cut.quota)
        attended = quota - (quota * self.spread).floor().long()
        first = counted(weight, cut.number)
        by_attention = first < attended
        others = torch.where(by_attention, -torch.inf, self.priority)
        place = torch.where(by_attention, first, attended + counted(others, cut.number))
        return kept_rows(place < quota, place, cut)

    def _near(self, scores: Tensor, same: Tensor, chosen: Tensor) -> Tensor:
        """The nearest patches of each kept one but itself, and as near ones; float32 `[N, K]`."""
        others = torch.where(same & (chosen == 0), scores, -torch.inf)
        enough = max(min(self.neighbours, len(scores) // self.frames - 1), 1)
        least = others.topk(enough, dim=0).values[-1:]
        return ((others >= least) & (others > -torch.inf)).to(torch.float32)

    def _sum(self, weights: Tensor, rows: Tensor) -> Tensor:
        total = weights.sum(dim=0)[:, None]
        return weights.T @ rows / (torch.where(total > 0, total, 1.0) if self.normalize else 1.0)


def lost_rows(lost: Tensor, cut: Segments, codes: int) -> Tensor:
    """Those left over as members of the last row of their segment; float32 `[N, K]`."""
    return one_hot(cut.first + cut.quota - 1, codes) * lost[:, None]


def _with_leftover(
    row_of_patch: Tensor, found: Choice, near: Tensor, alike: Tensor, cut: Segments
) -> tuple[Tensor, Tensor]:
    """Row of every patch, and which patches were not kept where a row is for those.

    The paper's last token is the sum of all that was pruned. On the map it stands for the patches
    that are near no kept one, or else for the one least like those; every other goes to the kept
    one most like it. `alike` says how much, float `[N]`.
    """
    pruned = row_of_patch < 0
    has_row = cut.quota > 1
    far = near.sum(dim=1) == 0
    apart = torch.where(pruned, SURE * far - alike, -torch.inf)  # of a segment, far ones first
    inside = one_hot(cut.number, near.shape[1]) > 0
    most_apart = torch.where(inside, apart[:, None], -torch.inf).argmax(dim=0)[cut.number]
    index = torch.arange(len(apart), device=apart.device)
    alone = pruned & has_row & (far | (index == most_apart))
    row = torch.where(pruned, found.rows, row_of_patch)
    return torch.where(alone, cut.first + cut.quota - 1, row), pruned & has_row


def outliers(attention: Tensor) -> Tensor:
    """How many of each frame's patches the paper would keep, int64 `[T]` of `[T, n]`.

    Those above the third quartile by 1.5 times the distance of the quartiles, quartiles as in
    NumPy; at least one, where the published code would divide by zero.
    """
    ordered = attention.sort(dim=1).values
    low, high = (_quantile(ordered, share) for share in (0.25, 0.75))
    return (attention > high + 1.5 * (high - low)).long().sum(dim=1).clamp(min=1)


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Linear between the two nearest, `[T, 1]` of ascending `[T, n]`."""
    place = share * (ordered.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered.shape[1] - 1)
    low, high = ordered[:, below : below + 1], ordered[:, above : above + 1]
    return low + (high - low) * (place - below)

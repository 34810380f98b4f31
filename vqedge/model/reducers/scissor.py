"""LLaVA-Scissor (arXiv 2506.21862): a token is a connected component of patches that look alike.

Two patches are joined if their cosine exceeds tau. Components are found in every frame, then again
among all of these; every patch then goes to the nearest. The paper samples patches above some 3,000
a frame; components are exact here, whatever the number. A budget
sets tau: bisection finds one that keeps within it while a little more would not. In one pass there
are more components the larger tau is; two can lose one on the way, so that several tau may do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqedge.model.quantizer import nearest_in_use, unit
from vqedge.model.reducers.common import flat, one_hot
from vqedge.model.reducers.protocol import Reduced

_STEPS = 9  # bisections of [0, 1]: tau to two thousandths


class Components(NamedTuple):
    """The representatives that two passes find at one tau. P rows."""

    tokens: Tensor  # float32 [P, D], means, zero where unused
    used: Tensor  # bool [P]
    number: Tensor  # int64 scalar; more than P if there was no room for all


class Scissor(nn.Module):
    """Semantic connected components.

    Args:
        codes: rows K of the result, the largest budget. A frame of more components than this
            counts as over every budget.
        frames: T of the clip.
        grid: patches per side of a frame.
        tau: cosine above which two patches belong together; None finds it for the budget. A fixed
            one that gives more components than the budget leaves out the last.
    """

    reads_attention = False
    drops = False

    def __init__(self, codes: int, frames: int, grid: int, tau: float | None = None) -> None:
        super().__init__()
        self.codes, self.tau = codes, tau

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`."""
        found = two_passes(features, self.threshold(features, budget), self.codes)
        used = found.used & (torch.arange(self.codes, device=budget.device) < budget)
        rows = flat(features)
        index, margin = nearest_in_use(unit(rows), found.tokens, used[:, None])
        members = one_hot(index.long(), self.codes)
        sizes = members.sum(dim=0)
        tokens = (members.T @ rows + found.tokens) / (sizes + 1.0)[:, None]
        shape = features.shape[:2]
        tokens = tokens * (sizes > 0)[:, None]
        return Reduced(tokens, index.long().reshape(shape), sizes, margin.reshape(shape))

    def threshold(self, features: Tensor, budget: Tensor) -> Tensor:
        """The given tau, or the largest that gives no more components than the budget."""
        low = torch.full_like(features[0, 0, 0], -1.0 if self.tau is None else self.tau)
        if self.tau is not None:
            return low
        high = torch.full_like(low, 1.0)
        for _ in range(_STEPS):
            middle = (low.clamp(min=0.0) + high) / 2
            fits = two_passes(features, middle, self.codes).number <= budget
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        return low


def two_passes(features: Tensor, tau: Tensor, rows: int) -> Components:
    """Components of every frame, then of those; at most `rows` each time.

    Args:
        features: float `[T, n, D]`.
        tau: float scalar.
        rows: P.
    """
    frames, _patches, width = features.shape
    everyone = torch.ones_like(features[..., 0], dtype=torch.bool)
    first, first_used, most = _pass(features, everyone, tau, rows)
    again = first.reshape(1, frames * rows, width)
    second, second_used, count = _pass(again, first_used.reshape(1, -1), tau, rows)
    too_many = torch.where(most > rows, most, count)
    return Components(second[0], second_used[0], too_many)


def _pass(items: Tensor, used: Tensor, tau: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means of the components of each set `[B, rows, D]`, which there are, and the most of any."""
    looks = unit(items)
    alike = (looks @ looks.transpose(1, 2) > tau) & used[:, :, None] & used[:, None, :]
    labels = components(alike)
    slot = torch.arange(labels.shape[1], device=labels.device)
    roots = (labels == slot) & used
    place = roots.long().cumsum(dim=1) - 1
    row = torch.where(used, place.gather(1, labels), -1)
    members = (row[..., None] == torch.arange(rows, device=row.device)).to(items.dtype)
    size = members.sum(dim=1)
    tokens = members.transpose(1, 2) @ items / size.clamp(min=1.0)[..., None]
    return tokens, size > 0, roots.long().sum(dim=1).amax()


def components(adjacent: Tensor) -> Tensor:
    """Connected components: vertices that are joined by a path get the same label.

    Whoever is reached in 2^r steps is found in r squarings, so that log2(n) of them are exact.

    Args:
        adjacent: bool `[B, n, n]`, symmetric; the diagonal does not matter.

    Returns:
        int64 `[B, n]`, the number of the component's first vertex.
    """
    count = adjacent.shape[1]
    itself = torch.eye(count, dtype=torch.float32, device=adjacent.device)
    reached = torch.maximum(adjacent.to(torch.float32), itself)
    for _ in range(math.ceil(math.log2(max(count, 2)))):
        reached = (reached @ reached).clamp(max=1.0)
    return reached.argmax(dim=2)

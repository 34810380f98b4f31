"""Video token merging with a learned saliency (arXiv 2410.23782): which patches lead is trained.

Taking the most salient has no gradient. As in the paper, saliency is trained through a path of its
own, attention to which it is added, that nothing needs afterwards: in training mode tokens are the
means of what that attention gives, in eval mode those of the patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqedge.model.reducers.common import flat, means, one_hot
from vqedge.model.reducers.protocol import Reduced
from vqedge.model.reducers.vtm import ROUNDS, MotionMerging


class SalientMerging(MotionMerging):
    """The most salient patches are chosen; saliency is `tanh` of one learned direction.

    Args:
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        grid: patches per side of a frame.
        width: D of the features.
        rounds: of merging.
    """

    def __init__(
        self, codes: int, frames: int, grid: int, width: int, rounds: int = ROUNDS
    ) -> None:
        super().__init__(codes, frames, grid, rounds)
        self.direction = nn.Parameter(torch.randn(width) * width**-0.5)

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`."""
        if not self.training:
            return super().reduce(features, budget)
        with torch.no_grad():
            found = super().reduce(features, budget)
        members = one_hot(found.assign.reshape(-1), self.codes)
        return found._replace(tokens=means(flat(self.attended(features)), members))

    def wish(self, features: Tensor) -> Tensor:
        """Saliency of every patch in -1 to 1, float32 `[N]`."""
        return (flat(features) @ self.direction).tanh()

    def attended(self, features: Tensor) -> Tensor:
        """The training path: every frame's patches mixed by likeness and saliency, `[T, n, D]`."""
        salient = (features @ self.direction).tanh()[:, None, :]
        scores = (features @ features.transpose(1, 2) + salient) * features.shape[2] ** -0.5
        return scores.softmax(dim=2) @ features

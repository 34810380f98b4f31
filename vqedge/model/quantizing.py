"""Codes of a batch in training: as they were kept, or made anew by what is trained."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vqedge.data.training import ClipBatch
from vqedge.recipe import OptimConfig


class QuantizedBatch(NamedTuple):
    """A batch of clips in codes. B clips, K codes, N patches, D features."""

    codes: Tensor  # float [B, K, D]
    indices: Tensor  # int64 [B, N]


class TrainedReducer(nn.Module):
    """What makes codes of features and is trained with the bridge.

    Attributes:
        prefix: of the names in a checkpoint, which are those that the whole encoder has for them.
    """

    prefix: str

    def kept(self) -> nn.Module:
        """The module whose weights a checkpoint holds."""
        raise NotImplementedError

    def forward(self, features: Tensor, budget: int) -> QuantizedBatch:
        """Reduce clips.

        Args:
            features: float `[B, N, D]`, as the cache holds them.
            budget: most codes of a clip, K of the result.
        """
        raise NotImplementedError

    def learning_rate(self, optim: OptimConfig) -> float:
        """The peak of its schedule."""
        return optim.bridge_learning_rate


def quantized(clips: ClipBatch, reducer: TrainedReducer | None) -> QuantizedBatch:
    """Codes of a batch: as they were kept, or reduced now."""
    if clips.indices is not None:
        return QuantizedBatch(clips.rows.float(), clips.indices.long())
    assert reducer is not None, "features are kept only where reducing is trained"
    reduced: QuantizedBatch = reducer(clips.rows, clips.budget)
    return reduced

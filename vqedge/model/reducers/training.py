"""Reducers with weights, in training: the clips of a batch are reduced anew in every step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqedge.config import ModelConfig
from vqedge.data.training import ClipBatch
from vqedge.model.reducers.registry import reducer_quantizer
from vqedge.reducers import has_weights


class QuantizedBatch(NamedTuple):
    """A batch of clips in codes. B clips, K codes, N patches, D features."""

    codes: Tensor  # float [B, K, D]
    indices: Tensor  # int64 [B, N]


class TrainedReducer(nn.Module):
    """A reducer with weights behind the interface of codes that were kept.

    Args:
        config: a model whose quantizer is one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.quantizer = reducer_quantizer(config)

    def forward(self, features: Tensor, budget: int) -> QuantizedBatch:
        """Reduce clips, in float32 whatever the precision of the rest.

        Args:
            features: float `[B, N, D]`.
            budget: most codes of a clip, K of the result.
        """
        with torch.autocast(features.device.type, enabled=False):
            found = [self.quantizer.at_budgets(clip, [budget])[0] for clip in features.float()]
        return QuantizedBatch(
            torch.stack([clip.codes for clip in found]),
            torch.stack([clip.indices for clip in found]).long(),
        )


def trained_reducer(config: ModelConfig) -> TrainedReducer | None:
    """The reducer of a model that is trained with the bridge; None where quantizing is frozen."""
    return TrainedReducer(config) if has_weights(config.quantizer.kind) else None


def quantized(clips: ClipBatch, reducer: TrainedReducer | None) -> QuantizedBatch:
    """Codes of a batch: as they were kept, or reduced now."""
    if clips.indices is not None:
        return QuantizedBatch(clips.rows.float(), clips.indices.long())
    assert reducer is not None, "only reducers with weights are trained on features"
    reduced: QuantizedBatch = reducer(clips.rows, clips.budget)
    return reduced

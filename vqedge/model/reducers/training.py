"""Reducers with weights, in training: the clips of a batch are reduced anew in every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqedge.config import ModelConfig
from vqedge.model.quantizing import QuantizedBatch, TrainedReducer
from vqedge.model.reducers.registry import reducer_quantizer

REDUCER_PREFIX = "quantizer.quantizer.reducer."


class ReducerWithWeights(TrainedReducer):
    """A reducer with weights behind the interface of codes that were kept.

    Args:
        config: a model whose quantizer is one.
    """

    prefix = REDUCER_PREFIX

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.quantizer = reducer_quantizer(config)

    def kept(self) -> nn.Module:
        """The reducer itself."""
        return self.quantizer.get_submodule("reducer")

    def forward(self, features: Tensor, budget: int) -> QuantizedBatch:
        """Reduce clips, in float32 whatever the precision of the rest."""
        with torch.autocast(features.device.type, enabled=False):
            found = [self.quantizer.at_budgets(clip, [budget])[0] for clip in features.float()]
        return QuantizedBatch(
            torch.stack([clip.codes for clip in found]),
            torch.stack([clip.indices for clip in found]).long(),
        )

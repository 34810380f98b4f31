"""Reducers with weights, in training: the clips of a batch are reduced anew in every step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vqedge.config import ModelConfig
from vqedge.model.batch import QuantizedBatch
from vqedge.model.reducers.registry import reducer_quantizer
from vqedge.model.trained_reducer import Questions, TrainedReducer
from vqedge.reducers import follows_question

REDUCER_PREFIX = "quantizer.quantizer.reducer."


class ReducerWithWeights(TrainedReducer):
    """A reducer with weights behind the interface of codes that were kept.

    One whose tokens follow a question is asked nothing, zeros, where there is no question: in the
    naming lesson.

    Args:
        config: a model whose quantizer is one.
    """

    prefix = REDUCER_PREFIX

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.quantizer = reducer_quantizer(config)
        self.asked_width = config.llm.width if follows_question(config.quantizer.kind) else None

    def kept(self) -> nn.Module:
        """The reducer itself."""
        return self.quantizer.get_submodule("reducer")

    def forward(
        self, features: Tensor, budget: int, questions: Questions | None = None
    ) -> QuantizedBatch:
        """Reduce clips, in float32 whatever the precision of the rest."""
        with torch.autocast(features.device.type, enabled=False):
            pairs = self._pairs(features.float(), questions)
            found = [self.quantizer.at_budgets(clip, [budget], text)[0] for clip, text in pairs]
        return QuantizedBatch(
            torch.stack([clip.codes for clip in found]),
            torch.stack([clip.indices for clip in found]).long(),
        )

    def _pairs(
        self, clips: Tensor, questions: Questions | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Every clip with the question that its tokens follow; None where they follow none."""
        if questions is not None:
            yield from ((clips[clip], text) for clip, text in zip(*questions, strict=True))
            return
        nothing = None if self.asked_width is None else clips.new_zeros(self.asked_width)
        yield from ((clip, nothing) for clip in clips)

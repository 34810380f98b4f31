"""Codes of a batch in training: as they were kept, or made anew by what is trained."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vqedge.model.batch import ClipBatch, QuantizedBatch
from vqedge.recipe import OptimConfig


class Questions(NamedTuple):
    """What tokens follow, where they follow a question. Q questions."""

    clip: Tensor  # int64 [Q], which of a batch each is about
    text: Tensor  # float32 [Q, d_llm]


class TrainedReducer(nn.Module):
    """What makes codes of features and is trained with the bridge.

    Attributes:
        prefix: of the names in a checkpoint, which are those that the whole encoder has for them.
    """

    prefix: str

    def kept(self) -> nn.Module:
        """The module whose weights a checkpoint holds."""
        raise NotImplementedError

    def forward(
        self, features: Tensor, budget: int, questions: Questions | None = None
    ) -> QuantizedBatch:
        """Reduce clips.

        Args:
            features: float `[B, N, D]`, as the cache holds them.
            budget: most codes of a clip, K of the result.
            questions: a clip is reduced for each of its own, in their order, where tokens follow
                them.
        """
        raise NotImplementedError

    def learning_rate(self, optim: OptimConfig) -> float:
        """The peak of its schedule."""
        return optim.bridge_learning_rate


def quantized(
    clips: ClipBatch, reducer: TrainedReducer | None, text: Tensor | None = None
) -> QuantizedBatch:
    """Codes of a batch: as they were kept, or reduced now.

    Args:
        clips: the batch.
        reducer: what reduces, where it is trained.
        text: float32 `[Q, d_llm]`, the questions of `clips.asked`, each of which has codes then.
    """
    if clips.indices is not None:
        return QuantizedBatch(clips.rows.float(), clips.indices.long())
    assert reducer is not None, "features are kept only where reducing is trained"
    questions = None if clips.asked is None or text is None else Questions(clips.asked.clip, text)
    reduced: QuantizedBatch = reducer(clips.rows, clips.budget, questions)
    return reduced

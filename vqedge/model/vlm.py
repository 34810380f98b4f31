"""Bridge and language model together: the loss and the exact match of packed questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.model.batch import ClipBatch
from vqedge.model.encoder import TrainedBridge
from vqedge.model.llm import hidden_states, mean_embeddings
from vqedge.model.packing import IGNORED, VIDEO_ID, PackedBatch, attention_of
from vqedge.model.trained_reducer import TrainedReducer, quantized


@dataclass(frozen=True)
class Scores:
    """What one packed batch gave."""

    loss: Tensor  # mean cross-entropy of the answer tokens
    commitment: Tensor  # of a learned codebook, else zero
    correct: Tensor  # bool [questions]: every token of the answer is the most likely one
    likelihood: Tensor | None = None  # float32 [questions], of the answer; None in training


class VideoLanguageModel(nn.Module):
    """The trained parts around the frozen ones: bridge, LoRA, and what else is trained."""

    def __init__(
        self, bridge: TrainedBridge, llm: Any, reducer: TrainedReducer | None = None
    ) -> None:
        super().__init__()
        self.bridge, self.llm, self.reducer = bridge, llm, reducer

    def forward(self, clips: ClipBatch, batch: PackedBatch) -> Scores:
        """Score packed questions about clips.

        Args:
            clips: B of them.
            batch: the questions, B rows; a row each where tokens follow the question.
        """
        text = None if clips.asked is None else mean_embeddings(self.llm, clips.asked.ids)
        bridged = self.bridge(*quantized(clips, self.reducer, text))
        embeddings = self.llm.get_input_embeddings()(batch.ids.clamp(min=0))
        is_video = (batch.ids == VIDEO_ID)[..., None]
        embeddings = embeddings.masked_scatter(is_video, bridged.tokens.to(embeddings.dtype))
        hidden = hidden_states(self.llm, embeddings, *attention_of(batch, bridged.mask))
        wanted = batch.targets != IGNORED
        logits = self.llm.get_output_embeddings()(hidden[wanted]).float()
        targets = batch.targets[wanted]
        loss = F.cross_entropy(logits, targets)
        right = _whole_answers(logits.argmax(-1) == targets, batch, wanted)
        if self.training:
            return Scores(loss, bridged.commitment, right)
        said = -F.cross_entropy(logits, targets, reduction="none")
        return Scores(loss, bridged.commitment, right, _sums(said, batch, wanted))


def _whole_answers(right: Tensor, batch: PackedBatch, wanted: Tensor) -> Tensor:
    """Per question, in row-major order: are all its answer tokens right?"""
    return _sums((~right).float(), batch, wanted) == 0


def _sums(values: Tensor, batch: PackedBatch, wanted: Tensor) -> Tensor:
    """Per question, in row-major order: the sum over its answer tokens."""
    per_row = batch.segment.amax(dim=1)
    before = per_row.cumsum(dim=0) - per_row
    position = (before[:, None] + batch.segment - 1)[wanted]
    return torch.zeros(batch.question_count, device=wanted.device).index_add(0, position, values)

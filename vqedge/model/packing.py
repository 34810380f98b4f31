"""Many questions about one clip in one row: the video is read once.

    row:  [template, video rows] [question 1, answer 1] [question 2, answer 2] ...

Every question attends to the shared prefix and to itself, with positions as if it followed the
prefix directly: the same numbers as asking one at a time, for a third of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqedge.data.clips import QuestionAnswer
from vqedge.model.llm import PromptTokenizer

VIDEO_ID = -1  # stands for a row that is an embedding, not a token
IGNORED = -100  # the target of a column that predicts nothing


@dataclass(frozen=True)
class PackedBatch:
    """B clips, L columns. Segment 0 is the shared prefix, 1.. the questions, -1 padding."""

    ids: Tensor  # int64 [B, L], VIDEO_ID where a video row goes
    segment: Tensor  # int64 [B, L]
    targets: Tensor  # int64 [B, L], the id to predict at this column, IGNORED elsewhere

    @property
    def question_count(self) -> int:
        """Questions in the batch."""
        return int(self.segment.amax(dim=1).sum())


def pack(
    tokenizer: PromptTokenizer, questions: Sequence[Sequence[QuestionAnswer]], codes: int
) -> PackedBatch:
    """Lay out the questions of every clip as one row each."""
    rows = [_row(tokenizer, asked, codes) for asked in questions]
    return PackedBatch(
        *(
            torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row[part]) for row in rows], batch_first=True, padding_value=fill
            )
            for part, fill in enumerate((0, -1, IGNORED))
        )
    )


def attention_of(batch: PackedBatch, video_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Who may read whom, and where everyone stands.

    Args:
        batch: the layout.
        video_mask: bool `[B, K]`, the video rows in use; others are invisible and take no position.

    Returns:
        allowed bool `[B, L, L]` and positions int64 `[B, L]`.
    """
    segment = batch.segment
    visible = segment >= 0
    visible = visible.masked_scatter(batch.ids == VIDEO_ID, video_mask.reshape(-1))
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    same = segment[:, :, None] == segment[:, None, :]
    allowed = causal & (same | (segment == 0)[:, None, :]) & visible[:, None, :]
    positions = allowed.sum(dim=2).sub(1).clamp(min=0)
    itself = torch.eye(length, dtype=torch.bool, device=segment.device)
    return allowed | itself, positions


def _row(
    tokenizer: PromptTokenizer, asked: Sequence[QuestionAnswer], codes: int
) -> tuple[list[int], list[int], list[int]]:
    ids = [*tokenizer.before_video, *[VIDEO_ID] * codes]
    segment, targets = [0] * len(ids), [IGNORED] * len(ids)
    for number, item in enumerate(asked, start=1):
        question, answer = tokenizer.question(item.question), tokenizer.answer(item.answer)
        ids += question + answer[:-1]
        segment += [number] * (len(question) + len(answer) - 1)
        targets += [IGNORED] * (len(question) - 1) + answer
    return ids, segment, targets

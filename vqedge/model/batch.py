"""Clips of a step on their way to the language model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_WORD = -1


class Asked(NamedTuple):
    """Questions that each have tokens of their own. Q questions of L words at most."""

    clip: Tensor  # int64 [Q], place in the batch
    ids: Tensor  # int64 [Q, L], of the question's words; NO_WORD beyond their end


class ClipBatch(NamedTuple):
    """Clips of a step. B clips, K codes, N patches, D features."""

    rows: Tensor  # float16 codes [B, K, D]; features [B, N, D] where quantising is trained
    indices: Tensor | None  # uint8 [B, N]; None where quantising is trained
    budget: int  # most codes of a clip
    asked: Asked | None = None  # where tokens follow the question

    def to(self, device: torch.device) -> ClipBatch:
        """The same clips on a device."""
        indices = None if self.indices is None else self.indices.to(device)
        asked = self.asked and Asked(*(part.to(device) for part in self.asked))
        return ClipBatch(self.rows.to(device), indices, self.budget, asked)


class QuantizedBatch(NamedTuple):
    """A batch of clips in codes. B clips, K codes, N patches, D features."""

    codes: Tensor  # float [B, K, D]
    indices: Tensor  # int64 [B, N]

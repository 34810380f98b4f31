"""What a bridge gives for one clip, and for a batch of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Rows for the language model, and which of them it reads."""

    tokens: Tensor  # float32 [rows, d_llm], zero where unused
    mask: Tensor  # bool [K], True where the code occurs
    row_mask: Tensor | None  # bool [rows], True where a row is read; None where a row is a code
    words: Tensor | None = None  # int32 [rows], each row's word; None where rows are no words


class Bridged(NamedTuple):
    """A batch of clips as the language model reads them."""

    tokens: Tensor  # float [B, rows, d_llm], zero where unused
    mask: Tensor  # bool [B, rows]
    ids: Tensor | None  # int32 [B, K, levels] of a learned codebook
    commitment: Tensor  # float32 scalar: the codebook's own loss, 0 without one

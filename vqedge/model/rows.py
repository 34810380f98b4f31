"""What a bridge gives for one clip."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """Rows for the language model, and which of them it reads."""

    tokens: Tensor  # float32 [rows, d_llm], zero where unused
    mask: Tensor  # bool [K], True where the code occurs
    row_mask: Tensor | None  # bool [rows], True where a row is read; None where a row is a code

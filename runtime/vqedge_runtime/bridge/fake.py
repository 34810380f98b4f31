"""A bridge for tests: rows are the first number of every code, no model file needed."""

from __future__ import annotations

import numpy as np

from vqedge_runtime.tokens import Codes, TokenSet


class FakeBridge:
    """Deterministic stand-in with the same Protocol.

    Args:
        width: width of a row.
    """

    def __init__(self, width: int = 8) -> None:
        self.width = width

    def tokens(self, codes: Codes) -> TokenSet:
        """Every row repeats its code's first number."""
        first = codes.values[:, :1].astype(np.float32)
        return TokenSet(np.repeat(first, self.width, axis=1), codes)

    def close(self) -> None:
        """Nothing to free."""

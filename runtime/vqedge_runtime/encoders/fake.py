"""An encoder for tests: tokens are block means of the frames, no model file needed."""

from __future__ import annotations

import numpy as np

from vqedge.budget import ADAPTIVE
from vqedge_runtime.encoders import Frames
from vqedge_runtime.tokens import TokenSet


class FakeEncoder:
    """Deterministic stand-in with the same Protocol.

    Args:
        codes: rows it has at most.
        width: width of a row.
        levels: of a learned codebook, 0 for none.
    """

    def __init__(self, codes: int = 4, width: int = 8, levels: int = 0) -> None:
        self.codes, self.width, self.levels = codes, width, levels
        self.calls = 0

    @property
    def name(self) -> str:
        """What runs where."""
        return "fake encoder"

    def encode(self, frames_thwc: Frames, budget: int) -> TokenSet:
        """Brightness of horizontal bands as rows; an adaptive clip needs half of them."""
        self.calls += 1
        used = self.codes // 2 if budget == ADAPTIVE else min(budget, self.codes)
        frames = len(frames_thwc)
        bands = np.array_split(frames_thwc.astype(np.float32) / 255.0, used, axis=1)
        rows = np.stack([np.full(self.width, band.mean(), np.float32) for band in bands])
        index_map = np.arange(16, dtype=np.int32)[None, :, None] * used // 16
        index_map = np.broadcast_to(index_map, (frames, 16, 16)).copy()
        margin = np.ones(index_map.shape, np.float32)
        mask = np.arange(self.codes) < used
        ids = np.arange(used * self.levels, dtype=np.int32).reshape(used, self.levels)
        return TokenSet(rows, index_map, mask, margin, ids if self.levels else None)

    def close(self) -> None:
        """Nothing to free."""

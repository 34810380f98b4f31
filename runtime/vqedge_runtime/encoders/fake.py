"""An encoder for tests: codes are band means of the frames, no model file needed."""

from __future__ import annotations

import numpy as np

from vqedge.budget import ADAPTIVE
from vqedge_runtime.encoders.protocol import Frames, Text
from vqedge_runtime.tokens import Codes


class FakeEncoder:
    """Deterministic stand-in with the same Protocol.

    Args:
        codes: rows it has at most.
        width: width of a code.
        levels: of a learned codebook, 0 for none.
    """

    def __init__(self, codes: int = 4, width: int = 8, levels: int = 0) -> None:
        self.codes, self.width, self.levels = codes, width, levels
        self.calls = 0

    @property
    def name(self) -> str:
        """What runs where."""
        return "fake encoder"

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        """Brightness of horizontal bands as codes, and a question's mean upon it.

        An adaptive clip needs half of them.
        """
        self.calls += 1
        used = self.codes // 2 if budget == ADAPTIVE else min(budget, self.codes)
        frames = len(frames_thwc)
        bands = np.array_split(frames_thwc.astype(np.float32) / 255.0, used, axis=1)
        asked = 0.0 if text is None else float(text.mean())
        means = np.array([[band.mean() + asked] * self.width for band in bands], np.float16)
        patch = np.arange(16 * 16, dtype=np.int32).reshape(16, 16) * used // (16 * 16)
        index_map = np.repeat(patch[None], frames, axis=0)
        margin = np.ones(index_map.shape, np.float32)
        ids = np.arange(used * self.levels, dtype=np.int32).reshape(used, self.levels)
        return Codes(index_map, ids if self.levels else means, margin)

    def close(self) -> None:
        """Nothing to free."""

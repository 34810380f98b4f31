"""Leaving parts of the token hash out in training, so that less is leant on each."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HashDropout(nn.Module):
    """Drops frames of the token hash, or what it says of a clip; nothing once training is over.

    Torch's random numbers say which: those of a step are its seed's.

    Args:
        frames: share of a clip's frames, each by itself, that the hash does not count.
        clips: share of the clips whose hash is not heeded.
    """

    def __init__(self, frames: float = 0.0, clips: float = 0.0) -> None:
        super().__init__()
        self.frames, self.clips = frames, clips

    def counted(self, indices: Tensor, frames: int, codes: int) -> Tensor:
        """Index maps in whose dropped frames no code occurs.

        Args:
            indices: integer `[B, T * grid * grid]`.
            frames: T.
            codes: K, which stands for no code.
        """
        if not (self.training and self.frames):
            return indices
        maps = indices.reshape(len(indices), frames, -1)
        kept = torch.rand(len(maps), frames, 1, device=maps.device) >= self.frames
        return torch.where(kept, maps, codes).flatten(1)

    def heeded(self, told: Tensor) -> Tensor:
        """What the hash says of codes, float `[B, K, width]`, zero for dropped clips."""
        if not (self.training and self.clips):
            return told
        return told * (torch.rand(len(told), 1, 1, device=told.device) >= self.clips)

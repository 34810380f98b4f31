"""Which frames of a video make a clip, and how they are made small: facts of a model's training."""

from __future__ import annotations

from typing import Literal, NamedTuple

Sampling = Literal["spans", "ends"]
Resize = Literal["stretch", "stretch-bicubic"]


class FrameRule(NamedTuple):
    """How T square frames are made of a video.

    Attributes:
        sampling: `spans`: those on screen in the middle of T equal parts; `ends`: the first, the
            last and T - 2 between them by their numbers, as LLaVA-OneVision counts.
        resize: to a square, whatever the shape was: `stretch` averages areas, `stretch-bicubic` is
            smooth as Pillow's bicubic filter is.
    """

    sampling: Sampling = "spans"
    resize: Resize = "stretch"


DEFAULT_RULE = FrameRule()

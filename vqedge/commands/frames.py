"""Video files as the device sees them, for training and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqedge.errors import VqtError
from vqedge_runtime.video.clip import clip_from_path
from vqedge_runtime.vqt import is_vqt


def read_frames(
    path: Path, count: int, size: int, start_s: float | None = None, end_s: float | None = None
) -> npt.NDArray[np.uint8]:
    """Decode `count` frames of a span of a file, uint8 RGB `[count, size, size, 3]`.

    Raises:
        VideoError: the file cannot be decoded, or the span is outside of it.
        VqtError: the file is a `.vqt`.
    """
    if is_vqt(path):
        raise VqtError(f"{path}: holds codes, no frames; give the video it was made from")
    return clip_from_path(path, count, size, start_s, end_s).frames_thwc

"""Video files as the device sees them, for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqedge.errors import ConfigError, VideoError, VqtError
from vqedge_runtime.video.clip import clip_from_path
from vqedge_runtime.vqt import is_vqt

Frames = npt.NDArray[np.uint8]


def read_frames(
    path: Path, count: int, size: int, start_s: float | None = None, end_s: float | None = None
) -> Frames:
    """Decode `count` frames of a span of a file, uint8 RGB `[count, size, size, 3]`.

    Raises:
        VideoError: the file cannot be decoded, or the span is outside of it.
        VqtError: the file is a `.vqt`.
    """
    if is_vqt(path):
        raise VqtError(f"{path}: holds codes, no frames; give the video it was made from")
    return clip_from_path(path, count, size, start_s, end_s).frames_thwc


def frames_in_folder(
    folder: Path, count: int, size: int, limit: int | None = None
) -> Iterator[Frames]:
    """The videos of a folder in the order of their names, as `read_frames` gives them.

    Files that do not decode are left out.

    Args:
        folder: its own files, not those of folders in it.
        count: of frames.
        size: of a frame's side.
        limit: most videos.

    Raises:
        ConfigError: no folder, or no file in it is a video.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a folder of videos")
    found = 0
    for path in sorted(folder.iterdir()):
        if found == limit:
            return
        try:
            frames = read_frames(path, count, size)
        except (VideoError, VqtError):
            continue
        found += 1
        yield frames
    if not found:
        raise ConfigError(f"{folder}: no file in it is a video; give a folder of videos")

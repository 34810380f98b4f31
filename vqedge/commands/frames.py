"""Video files as the device sees them, for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqedge.bundle import EncoderRecord
from vqedge.commands.output import say
from vqedge.config import EncoderConfig
from vqedge.data.jsonl import FrameReader, VideoFile
from vqedge.data.suites import Item
from vqedge.errors import ConfigError, VideoError, VqtError
from vqedge.sampling import DEFAULT_RULE, FrameRule
from vqedge_runtime.video.clip import clip_from_path
from vqedge_runtime.vqt import is_vqt

Frames = npt.NDArray[np.uint8]
EncoderSpec = EncoderConfig | EncoderRecord


def reader_of(encoder: EncoderSpec) -> FrameReader:
    """`read_frames` as an encoder wants its frames."""
    return partial(read_frames, rule=encoder.rule)


def read_frames(
    path: Path,
    count: int,
    size: int,
    start_s: float | None = None,
    end_s: float | None = None,
    rule: FrameRule = DEFAULT_RULE,
) -> Frames:
    """Decode `count` frames of a span of a file, uint8 RGB `[count, size, size, 3]`.

    Raises:
        VideoError: the file cannot be decoded, or the span is outside of it.
        VqtError: the file is a `.vqt`.
    """
    if is_vqt(path):
        raise VqtError(f"{path}: holds codes, no frames; give the video it was made from")
    return clip_from_path(path, count, size, start_s, end_s, rule).frames_thwc


def require_frames(items: Iterable[Item], option: str, purpose: str) -> None:
    """Refuse a suite with clips that are no videos.

    Args:
        items: of the suite.
        option: that wants frames.
        purpose: what it does with them, as "shuffle".

    Raises:
        ConfigError: a clip is a `.vqt`.
    """
    for clip in (item.clip for item in items):
        if isinstance(clip, VideoFile) and is_vqt(clip.path):
            raise ConfigError(
                f"{option}: {clip.path} holds no frames to {purpose}; name its video in the suite"
            )


def require_all_read(failed: Sequence[str]) -> None:
    """Say what of a suite failed, once the figures of the rest are printed.

    Args:
        failed: why, a line for each clip, question, or model that was to be asked.

    Raises:
        VideoError: there is one.
    """
    for failure in failed:
        say(f"failed: {failure}", always=True)
    if failed:
        raise VideoError(
            f"{len(failed)} clips, questions or models failed; they are listed above, the figures "
            "are of all others"
        )


def frames_in_folder(
    folder: Path, encoder: EncoderSpec, limit: int | None = None
) -> Iterator[Frames]:
    """The videos of a folder in the order of their names, as an encoder wants them.

    Files that do not decode are left out.

    Args:
        folder: its own files, not those of folders in it.
        encoder: which and how many frames, and their size.
        limit: most videos.

    Raises:
        ConfigError: no folder, or no file in it is a video.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a folder of videos")
    read, found = reader_of(encoder), 0
    for path in sorted(folder.iterdir()):
        if found == limit:
            return
        try:
            frames = read(path, encoder.frames, encoder.size, None, None)
        except (VideoError, VqtError):
            continue
        found += 1
        yield frames
    if not found:
        raise ConfigError(f"{folder}: no file in it is a video; give a folder of videos")

"""Turns the frames that were asked for upright and shrinks them into one array."""

from __future__ import annotations

import time
from collections.abc import Mapping
from fractions import Fraction
from typing import cast

import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.filter.graph import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from vqedge.sampling import Resize
from vqedge_runtime.video.cursor import Shot

# Full-size chroma; bit-exact, so that every processor makes the same pixels.
# The flags are those of swscale.h: PyAV 17 does not name them.
_FULL_CHR_H_INT, _ACCURATE_RND, _BITEXACT = 1 << 13, 1 << 18, 1 << 19
_EXACT = _FULL_CHR_H_INT | _ACCURATE_RND | _BITEXACT
_FILTERS: dict[Resize, int] = {
    "stretch": Interpolation.AREA | _EXACT,
    "stretch-bicubic": Interpolation.BICUBIC | _EXACT,
}
_UNSPECIFIED_COLOR = 2  # of colour space, transfer and primaries
_TIME_BASE = Fraction(1, 1000)  # of a filter that looks at no time
_STAMP = 16  # pixels a side of a frame that is read for its side data only
_ABORTING_FORMATS = frozenset({"yaf32le", "yaf32be"})  # swscale 9.5 aborts the process on these

# Transpose, then flip the rows, then flip the columns.
Orientation = tuple[bool, bool, bool]
UPRIGHT: Orientation = (False, False, False)
_BY_ROTATION: dict[int, Orientation] = {  # PyAV's degrees
    90: (True, True, False),
    -90: (True, False, True),
    180: (False, True, True),
    -180: (False, True, True),
}


class Canvas:
    """Frames of one clip while it is being made.

    Attributes:
        frames_thwc: uint8 [T, size, size, 3] RGB.
        times_s: presentation time of each frame drawn so far.
        width, height: of the source as displayed, in pixels; 0 before the first frame.
        busy_s: wall time spent here, in seconds.
    """

    def __init__(self, frames: int, size: int, resize: Resize = "stretch") -> None:
        """An empty canvas for `frames` squares of `size` pixels."""
        self.frames_thwc: npt.NDArray[np.uint8] = np.zeros((frames, size, size, 3), np.uint8)
        self.times_s: list[float] = []
        self.width = self.height = 0
        self.busy_s = 0.0
        self._size, self._filter = size, _FILTERS[resize]
        self._last: Shot | None = None
        self._orientations: dict[int, Orientation] = {}
        self._scaler = VideoReformatter()

    def add(self, shot: Shot) -> None:
        """Draws a shot as the next frame; the same shot again is a copy."""
        began = time.perf_counter()
        at = len(self.times_s)
        if self._last is not None and self._last.time_s == shot.time_s:
            self.frames_thwc[at] = self.frames_thwc[at - 1]
        else:
            self.frames_thwc[at] = self._upright(shot.frame)
        self._last = shot
        self.times_s.append(shot.time_s)
        self.busy_s += time.perf_counter() - began

    def _upright(self, frame: VideoFrame) -> npt.NDArray[np.uint8]:
        small = _square_from(self._scaler, frame, self._size, self._filter)
        transpose, flip_rows, flip_columns = self._orientation(small)
        if not self.width:
            sides = (frame.width, frame.height)
            self.width, self.height = sides[::-1] if transpose else sides
        pixels = np.asarray(small.to_ndarray(), np.uint8)
        pixels = pixels.transpose(1, 0, 2) if transpose else pixels
        return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]

    def _orientation(self, small: VideoFrame) -> Orientation:
        if small.rotation not in self._orientations:
            stamp = VideoReformatter().reformat(small, width=_STAMP, height=_STAMP)
            self._orientations[small.rotation] = orientation_from(stamp)
        return self._orientations[small.rotation]


def orientation_from(frame: VideoFrame) -> Orientation:
    """How to make a frame upright, from the display matrix of phones and cameras or from EXIF.

    Anything but a multiple of 90 degrees counts as upright. Mirrored photos are only turned: PyAV
    18.1 stops at any kind of side data it does not know, EXIF for one. Give a tiny frame: PyAV
    keeps a frame whose side data was read until the next garbage collection, which may be an hour
    of video away.
    """
    try:
        side_data = cast("Mapping[str, bytes]", frame.side_data)
        matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32).astype(float)
    except KeyError:
        return UPRIGHT
    except ValueError:
        return _BY_ROTATION.get(frame.rotation, UPRIGHT)
    return _orientation_from_matrix(*matrix[[0, 1, 3, 4]])


def _orientation_from_matrix(a: float, b: float, c: float, d: float) -> Orientation:
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight > 20 * max(abs(b), abs(c)):
        return (False, d < 0, a < 0)
    if crossed > 20 * max(abs(a), abs(d)):
        return (True, b < 0, c < 0)
    return UPRIGHT


def _square_from(scaler: VideoReformatter, frame: VideoFrame, size: int, how: int) -> VideoFrame:
    if frame.format.name in _ABORTING_FORMATS:
        raise NotImplementedError(frame.format.name)
    try:
        return _scaled(scaler, frame, size, how)
    except (FFmpegError, OSError):
        # Extreme shapes and exotic colour spaces: the nearest pixel, the usual colours.
        frame.colorspace = _UNSPECIFIED_COLOR
        return _scaled(VideoReformatter(), frame, size, Interpolation.POINT)


def _scaled(scaler: VideoReformatter, frame: VideoFrame, size: int, how: int) -> VideoFrame:
    """Transfer and primaries are not converted; PyAV 17 refuses those that are reserved (#2208)."""
    frame = _whole(frame) if frame.interlaced_frame else frame
    frame.color_trc = frame.color_primaries = _UNSPECIFIED_COLOR
    return scaler.reformat(
        frame, width=size, height=size, format="rgb24", interpolation=how, threads=1
    )


def _whole(frame: VideoFrame) -> VideoFrame:
    """The same picture, not marked as two fields: libswscale scales those apart, which combs."""
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=_TIME_BASE
    )
    mark, sink = graph.add("setfield", "prog"), graph.add("buffersink")
    source.link_to(mark)
    mark.link_to(sink)
    graph.configure()
    graph.push(frame)
    return graph.vpull()

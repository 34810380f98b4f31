"""Finds the frame that is on screen at an instant, by decoding straight on or by seeking."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from av.error import FFmpegError
from av.video.frame import VideoFrame

from vqedge_runtime.video.faults import video_fault
from vqedge_runtime.video.source import Source

# A seek must skip this much video to pay: where an index names the key frame, and where none does.
INDEXED_GAIN_S = 0.25
BLIND_GAP_S = 2.0
_DISORDER_S = 1.0  # a time stamp further back than this starts a new recording
_FLAT_S = 1e-4  # what disorder is flattened to
ROUNDING_S = 1e-6  # an instant this close before a frame means that frame


@dataclass(frozen=True)
class Shot:
    """One decoded frame, its presentation time and its length (0.0: unknown), in seconds."""

    frame: VideoFrame
    time_s: float
    lasts_s: float


class CannotSeek(Exception):
    """The file's time stamps or index do not allow seeking: decode it from the start."""


class EndsEarly(Exception):
    """The video stops before the instant that was asked for, at `end_s` seconds."""

    def __init__(self, end_s: float) -> None:
        """Remembers where the video really ends, in seconds."""
        super().__init__(end_s)
        self.end_s = end_s


def shots_from(source: Source, frames: Iterator[VideoFrame], strict: bool) -> Iterator[Shot]:
    """Gives every frame a time that only grows.

    Without `strict`, a missing time stamp continues at the usual rate, small disorder is flattened,
    and a clock that starts again (joined recordings) goes on where the first one stopped.

    Args:
        source: where the frames come from; its origin is set by the first frame if still unknown.
        frames: decoded frames in presentation order.
        strict: refuse missing and disordered time stamps instead of repairing them.

    Raises:
        CannotSeek: `strict`, and a time stamp is missing or does not grow.
    """
    clock = _Clock(source.step_s)
    for frame in frames:
        if source.origin_pts is None:
            source.origin_pts = frame.pts
        stamp_s = source.time_s(frame.pts)
        time_s = clock.time_s(stamp_s)
        if strict and time_s != stamp_s:
            raise CannotSeek
        yield Shot(frame, time_s, source.lasts_s(frame))


class _Clock:
    """Turns the time stamps of one walk into times that only grow."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._last_s = -math.inf
        self._shift_s = 0.0

    def time_s(self, stamp_s: float | None) -> float:
        if stamp_s is None:
            time_s = max(0.0, self._last_s + self._step_s)
        else:
            time_s = stamp_s + self._shift_s
        if time_s <= self._last_s:
            restarts = stamp_s is not None and self._last_s - time_s > _DISORDER_S
            time_s = self._last_s + (self._step_s if restarts else _FLAT_S)
            self._shift_s = time_s - (stamp_s or 0.0) if restarts else self._shift_s
        self._last_s = time_s
        return time_s


class Cursor:
    """Walks one source forward and stops at instants; holds two decoded frames at most."""

    def __init__(self, source: Source, seeking: bool, instants_s: Sequence[float]) -> None:
        """Stands before the first frame; without `seeking` every frame is decoded.

        Args:
            source: what to walk.
            seeking: leave out what need not be decoded.
            instants_s: all instants that will be asked for, in their order.
        """
        self._source = source
        self._may_seek = self._seeking = seeking and source.can_seek
        self._instants_s = instants_s if self._seeking else None
        frames = source.frames(instants_s=self._instants_s)
        self._shots = shots_from(source, frames, strict=self._seeking)
        self._here: Shot | None = None
        self._next: Shot | None = None

    def begin_span(self) -> None:
        """Gives the next instants the decoding time of a span, and another chance of seeking."""
        self._seeking = self._may_seek
        self._source.restart_clock()

    def shot_at(self, instant_s: float, hold_last: bool) -> Shot:
        """The last frame shown at or before an instant, or the first frame when there is none.

        Args:
            instant_s: seconds from the start of the video; must not decrease from call to call.
            hold_last: keep showing the last frame after its end instead of raising `EndsEarly`.

        Raises:
            VideoError: nothing can be decoded.
            CannotSeek: seeking was on and does not work here.
            EndsEarly: the last frame is over before the instant.
        """
        self._move_to(instant_s)
        shot = self._here or self._next
        if shot is None:
            what = "no frame can be decoded"
            raise video_fault(self._source.path, what, "check that the file is complete")
        end_s = shot.time_s + shot.lasts_s
        if self._next is None and shot.lasts_s and instant_s >= end_s and not hold_last:
            raise EndsEarly(end_s)
        return shot

    def _move_to(self, instant_s: float) -> None:
        if self._seeking and self._seek_pays(instant_s):
            self._jump(instant_s)
        elif self._here is None and self._next is None:
            self._next = next(self._shots, None)
        while self._next is not None and self._next.time_s <= instant_s + ROUNDING_S:
            self._here, self._next = self._next, next(self._shots, None)

    def _seek_pays(self, instant_s: float) -> bool:
        if self._here is not None and self._next is None:
            return False  # the end: nothing lies ahead
        position_s = self._position_s()
        key_s = self._source.key_time_before(instant_s)
        if key_s is None:
            return instant_s - position_s > BLIND_GAP_S
        return key_s - position_s > INDEXED_GAIN_S

    def _position_s(self) -> float:
        shot = self._next or self._here
        return shot.time_s if shot else 0.0

    def _jump(self, instant_s: float) -> None:
        """Seeks to the key frame before an instant, ever further back where that lands late."""
        back_s, position_s = 0.0, self._position_s()
        while back_s <= instant_s:
            self._seek(instant_s - back_s)
            frames = self._source.frames(True, self._instants_s)
            shots = shots_from(self._source, frames, strict=True)
            landed = next(shots, None)
            if landed is not None and _is_key_by(landed, instant_s):
                self._here, self._next, self._shots = None, landed, shots
                self._seeking = landed.time_s > position_s  # key frames too rare: seek no more
                return
            back_s = back_s * 2 or 1.0
        raise CannotSeek

    def _seek(self, target_s: float) -> None:
        try:
            self._source.seek(target_s)
        except FFmpegError as error:
            raise CannotSeek from error


def _is_key_by(shot: Shot, instant_s: float) -> bool:
    return bool(shot.frame.key_frame) and shot.time_s <= instant_s + ROUNDING_S

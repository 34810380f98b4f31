"""Finds the frame that is on screen at an instant, by decoding straight on or by seeking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from av.error import FFmpegError
from av.video.frame import VideoFrame

from vqedge_runtime.video.clock import Clock
from vqedge_runtime.video.faults import no_frame_fault
from vqedge_runtime.video.source import Source

# A seek must skip this much video to pay: where an index names the key frame, and where none does.
INDEXED_GAIN_S = 0.25
BLIND_GAP_S = 2.0
MISSING_S = 0.5  # a frame that is shown for so much too long, where there is damage, hides others
_NEAR_S = 1.0  # how far from such a stretch its damage may be noticed
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
    clock = Clock(source.step_s)
    for frame in frames:
        if source.origin_pts is None:
            source.origin_pts = frame.pts
        stamp_s = source.time_s(frame.pts)
        time_s = clock.time_s(stamp_s)
        if strict and time_s != stamp_s:
            raise CannotSeek
        yield Shot(frame, time_s, source.lasts_s(frame))


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
        self._gap_s: tuple[float, float] | None = None

    @property
    def missing_s(self) -> tuple[float, float] | None:
        """Start and end of a stretch without pictures that this span met, if damage is why."""
        if self._gap_s is None:
            return None
        from_s, to_s = (self._gap_s[0] - _NEAR_S, self._gap_s[1] + _NEAR_S)
        return self._gap_s if any(from_s < s < to_s for s in self._source.damage_s) else None

    def begin_span(self) -> None:
        """Gives the next instants the decoding time of a span, and another chance of seeking."""
        self._gap_s = None
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
            raise no_frame_fault(self._source.path)
        end_s = shot.time_s + shot.lasts_s
        if self._next is None and shot.lasts_s and instant_s >= end_s and not hold_last:
            raise EndsEarly(end_s)
        from_s = max(end_s, shot.time_s + self._source.step_s)
        if (
            self._next is not None
            and from_s <= instant_s
            and self._next.time_s > from_s + MISSING_S
        ):
            self._gap_s = self._gap_s or (from_s, self._next.time_s)
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

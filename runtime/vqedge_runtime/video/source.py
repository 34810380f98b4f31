"""One local file, opened for FFmpeg: never the network, a playlist, a pipe or a device."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from io import FileIO
from itertools import chain, islice
from pathlib import Path
from typing import cast

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vqedge.cores import usable_cores
from vqedge.errors import Stopped, printable
from vqedge_runtime.video.faults import PassingVideoError, video_fault
from vqedge_runtime.video.skim import VideoPacket, skimmed

# What a hostile or broken file may cost.
MAX_STILL_PIXELS = 120_000_000  # one photo of 108 megapixels
MAX_VIDEO_PIXELS = 36_000_000  # 8192 x 4320; a decoder keeps up to 17 such pictures
MAX_SILENT_PACKETS = 3_000  # packets in a row that give no frame
MAX_READ_ERRORS = 16  # failed reads before the rest of the file counts as lost
MAX_THREADS = 4  # every decoding thread holds pictures of its own
OPEN_TIMEOUT_S = 30.0
MAX_DECODE_S = 600.0

_READ_SIZE_BYTES = 1 << 16
_PLAYLIST_MARKS = (b"#EXTM3U", b"ffconcat", b"<MPD", b"v=0\r", b"v=0\n", b"[playlist]")
_STILL_BRANDS = frozenset({"avif", "heic", "heix", "mif1"})
# Containers that stamp every frame. MPEG-PS does not: FFmpeg guesses, and otherwise after a seek.
_STAMPED_FORMATS = frozenset(
    {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "avi", "flv", "asf", "nut"}
)
_MICROSECONDS = 1_000_000
_FARTHEST = 1 << 62  # ticks; a header may claim any duration
_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS: raw streams, for which FFmpeg guesses a duration
_DEFAULT_STEP_S = 1 / 25


def never() -> bool:
    """Nobody stops."""
    return False


def check_wanted(path: Path, stopped: Callable[[], bool]) -> None:
    """See that nobody has stopped.

    Raises:
        Stopped: `stopped` says so.
    """
    if stopped():
        raise Stopped(f"{printable(str(path))}: no longer wanted")


class Source:
    """The video stream of one open file: packets, frames in presentation order, seeking, times.

    Attributes:
        path: the file, for messages.
        origin_pts: the time stamp that counts as 0 s; None until known.
        damage_s: about when anything did not decode, or not well, after a frame that did.
    """

    def __init__(
        self,
        path: Path,
        container: InputContainer,
        stream: VideoStream,
        stopped: Callable[[], bool] = never,
    ) -> None:
        """Starts the clock of `MAX_DECODE_S`; `opened` makes sources."""
        self.path = path
        self.damage_s: list[float] = []
        self._is_under_way = False
        self._stopped = stopped
        self.origin_pts: int | None = stream.start_time
        self._container = container
        self._stream = stream
        self._base = stream.time_base or Fraction(1, _MICROSECONDS)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Allow `MAX_DECODE_S` of decoding from now on."""
        self._deadline = time.monotonic() + MAX_DECODE_S

    @property
    def is_still(self) -> bool:
        """Whether the file is one image, which has no duration."""
        return self.format_name.endswith("_pipe") or _has_still_brand(self._container)

    @property
    def format_name(self) -> str:
        """What FFmpeg calls the container."""
        return self._container.format.name

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return self._container.size

    @property
    def starts_s(self) -> float:
        """Time stamp of the first picture, in seconds."""
        return self._seconds(self._stream.start_time or 0)

    @property
    def whole_duration_s(self) -> float:
        """What the header says of all streams together; 0.0 where it does not."""
        return (self._container.duration or 0) / _MICROSECONDS

    @property
    def tells_own_length(self) -> bool:
        """Whether the header tells the length of the pictures, beside that of the whole."""
        return bool(self._stream.duration)

    @property
    def can_seek(self) -> bool:
        """Whether every frame carries its own time stamp, so that times hold after a seek."""
        return self.origin_pts is not None and self.format_name in _STAMPED_FORMATS

    @property
    def step_s(self) -> float:
        """The usual time between frames, in seconds; a guess where the file does not say."""
        rate = self._stream.guessed_rate or self._stream.average_rate
        return min(max(1 / float(rate), 0.001), 10.0) if rate else _DEFAULT_STEP_S

    def declared_duration_s(self) -> float | None:
        """Seconds of video according to the header; None when it does not say or cannot know."""
        if self.is_still:
            return 0.0
        if self._container.format.flags & _NO_TIMESTAMPS:
            return None
        own = self._stream.duration
        duration_s = self._seconds(own) if own else self.whole_duration_s
        return duration_s if duration_s > 0 else None

    def time_s(self, pts: int | None) -> float | None:
        """Seconds from the origin (or from 0 while the origin is unknown) to a time stamp."""
        return None if pts is None else self._seconds(pts - (self.origin_pts or 0))

    def lasts_s(self, part: VideoFrame | VideoPacket) -> float:
        """Seconds a frame or packet stays on screen; 0.0 when the file does not say."""
        return self._seconds(max(0, part.duration or 0))

    def all_packets_near(self, time_s: float) -> Iterator[Packet[Stream]]:
        """Packets of all streams around a time and after it; all where seeking leads nowhere.

        Args:
            time_s: counted from the time stamp 0; uses the source up.
        """
        read = False
        with suppress(av.error.FFmpegError):  # then it is read from where it is
            self._container.seek(min(round(time_s * _MICROSECONDS), _FARTHEST))
        for packet in self._read(()):
            read = True
            yield packet
        if not read:  # as in FLV, behind the last picture
            self._container.seek(0)
            yield from self._read(())

    def packets(self) -> Iterator[VideoPacket | None]:
        """Packets of the video stream, then None; a damaged stretch is read over, not an error."""
        yield from cast(Iterator[VideoPacket], self._read((self._stream,)))
        yield None

    def _read(self, streams: Sequence[Stream]) -> Iterator[Packet[Stream]]:
        """Packets of some streams, of all if none is named."""
        for _ in range(MAX_READ_ERRORS):
            try:
                for packet in self._container.demux(*streams):
                    self._check(packet)
                    if packet.size:
                        yield packet
                break
            except (av.error.FFmpegError, IndexError):
                continue  # IndexError: PyAV 18.1 trips over a stream that begins mid-file

    def frames(
        self, after_seek: bool = False, instants_s: Sequence[float] | None = None
    ) -> Iterator[VideoFrame]:
        """Decoded frames in presentation order, skipping what does not decode.

        Args:
            after_seek: start at the next key frame and drop frames that are shown before it: they
                may refer to pictures that were never decoded.
            instants_s: leave out frames that are neither on screen at one of these growing times
                nor the next one after, where that saves decoding; every frame if not given.
        """
        packets = self.packets()
        if not after_seek:
            return self._frames_from(self._skimmed(packets, instants_s))
        near = islice(packets, MAX_SILENT_PACKETS)
        key = next((p for p in near if p is None or (p.is_keyframe and p.pts is not None)), None)
        if key is None:
            return iter(())
        floor_pts = key.pts or 0
        frames = self._frames_from(self._skimmed(chain([key], packets), instants_s))
        return (f for f in frames if f.pts is None or f.pts >= floor_pts)

    def seek(self, target_s: float) -> None:
        """Moves to a key frame at or before a time; the caller must verify where it landed."""
        self._is_under_way = False
        self._container.seek(self._pts(target_s), stream=self._stream)

    def stamp_from_byte(self, at: int) -> float | None:
        """Time of a picture soon after a byte, in seconds from the origin; None without one.

        Args:
            at: of a file whose packets can be found from anywhere; uses the source up.
        """
        self.seek_byte(at)
        near = islice(self._read(()), MAX_SILENT_PACKETS)
        stamps = (p.pts for p in near if p.stream.index == self._stream.index)
        return next((self.time_s(pts) for pts in stamps if pts is not None), None)

    def seek_byte(self, at: int) -> None:
        """Moves to a byte of a file whose packets can be found from anywhere."""
        with suppress(av.error.FFmpegError):
            self._container.seek(at, unsupported_byte_offset=True)

    def key_time_before(self, target_s: float) -> float | None:
        """Time of the last key frame up to `target_s`; None unless an index reaches that far."""
        entries = self._stream.index_entries
        pts = self._pts(target_s)
        if not len(entries) or entries[len(entries) - 1].timestamp < pts:
            return None
        found = entries.search_timestamp(pts, backward=True)
        return self.time_s(entries[found].timestamp) if found >= 0 else None

    def _skimmed(
        self, packets: Iterable[VideoPacket | None], instants_s: Sequence[float] | None
    ) -> Iterator[tuple[VideoPacket | None, bool]]:
        if instants_s is None:
            return ((packet, True) for packet in packets)
        return skimmed(packets, instants_s, self._pts)

    def _frames_from(
        self, packets: Iterable[tuple[VideoPacket | None, bool]]
    ) -> Iterator[VideoFrame]:
        silent = 0
        for packet, wanted in packets:
            self._stream.codec_context.skip_frame = "DEFAULT" if wanted else "NONREF"
            frames = self._decoded(packet)
            yield from frames
            silent = 0 if frames else silent + 1
            if silent > MAX_SILENT_PACKETS:
                return

    def _seconds(self, ticks: int) -> float:
        return ticks * self._base.numerator / self._base.denominator

    def _pts(self, time_s: float) -> int:
        ticks = round(time_s * self._base.denominator / self._base.numerator)
        return (self.origin_pts or 0) + min(ticks, _FARTHEST)

    def _decoded(self, packet: VideoPacket | None) -> list[VideoFrame]:
        try:
            frames = self._stream.decode(packet)
        except av.error.FFmpegError:
            self._note_damage(packet)
            return []  # a damaged packet: the caller counts packets that give no frame
        for frame in frames:
            if frame.is_corrupt:
                self._note_damage(frame)
            else:
                self._is_under_way = True
        return frames

    def _note_damage(self, part: VideoFrame | VideoPacket | None) -> None:
        if self._is_under_way and part is not None and part.pts is not None:
            self.damage_s.append(self._seconds(part.pts - (self.origin_pts or 0)))

    def _check(self, packet: Packet[Stream]) -> None:
        check_wanted(self.path, self._stopped)
        if packet.has_sidedata("encryption_info"):
            raise video_fault(self.path, "is encrypted (DRM)", "give a copy without protection")
        if time.monotonic() > self._deadline:
            what = f"took more than {MAX_DECODE_S:.0f} s to decode"
            raise video_fault(self.path, what, "give a shorter span", PassingVideoError)


@contextmanager
def opened(path: Path, stopped: Callable[[], bool] = never) -> Iterator[Source]:
    """Opens a regular local file as a `Source`, whatever its name looks like.

    Args:
        path: the file.
        stopped: asked at every packet.

    Raises:
        Stopped: `stopped` says so.
        VideoError: special or empty file, playlist, no video stream, unknown codec, too large.
        OSError, ValueError, av.error.FFmpegError: for `video_faults` to word.
    """
    require_media_file(path)
    with path.open("rb", buffering=0) as file:
        _refuse_playlist(path, file)
        with _container_from(file) as container:
            yield Source(path, container, _video_stream(path, container), stopped)


class _NamelessFile:
    """A file without its name: FFmpeg judges the content and never reads a URL or a pattern."""

    def __init__(self, file: FileIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _container_from(file: FileIO) -> InputContainer:
    return av.open(
        _NamelessFile(file),
        mode="r",
        metadata_errors="replace",
        options={"max_pixels": str(MAX_STILL_PIXELS)},
        container_options={"protocol_whitelist": "none"},  # a file may not open other files
        buffer_size=_READ_SIZE_BYTES,
        timeout=OPEN_TIMEOUT_S,
    )


def require_media_file(path: Path) -> None:
    """Refuse what has no end or nothing in it, before it is opened.

    Raises:
        VideoError: not a regular file, or an empty one.
        OSError, ValueError: for `video_faults` to word.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise video_fault(path, "is not a regular file", "give a video file, an image or a folder")
    if status.st_size == 0:
        raise video_fault(path, "is empty (0 bytes)", "copy or download it again")


def _refuse_playlist(path: Path, file: FileIO) -> None:
    head = file.read(512)
    file.seek(0)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(_PLAYLIST_MARKS) or (text.startswith(b"<?xml") and b"<MPD" in text):
        what = "is a playlist that refers to other files"
        raise video_fault(path, what, "give the video file itself")


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    pictures = container.streams.video
    videos = [s for s in pictures if not _is(s, Disposition.attached_pic)]
    if not videos:
        found = "only sound and a cover picture" if pictures else _kinds(container)
        raise video_fault(path, f"has no video stream ({found})", "give a file with pictures")
    if _has_still_brand(container) and _is_in_tiles(videos):
        what = "is a picture in tiles, which are not joined here"
        raise video_fault(path, what, "convert it to JPEG or PNG")
    stream = next((s for s in videos if s == container.streams.best("video")), videos[0])
    _prepare(path, stream, container.format.name.endswith("_pipe"))
    return stream


def _has_still_brand(container: InputContainer) -> bool:
    return container.metadata.get("major_brand", "") in _STILL_BRANDS


def _is_in_tiles(videos: Sequence[VideoStream]) -> bool:
    """Whether there are tiles and no main picture: what is not a tile then is a thumbnail."""
    tiles = any(_is(stream, Disposition.dependent) for stream in videos)
    return tiles and not any(_is(stream, Disposition.default) for stream in videos)


def _is(stream: VideoStream, kind: Disposition) -> bool:
    return bool(Disposition(stream.disposition) & kind)


def _kinds(container: InputContainer) -> str:
    return "only " + (", ".join(sorted({s.type for s in container.streams})) or "an empty header")


def _prepare(path: Path, stream: VideoStream, still: bool) -> None:
    codec = stream.codec_context
    if codec is None:
        what = "its video codec is not in this FFmpeg build"
        raise video_fault(path, what, "convert it to H.264")
    limit = MAX_STILL_PIXELS if still else MAX_VIDEO_PIXELS
    if codec.width * codec.height > limit:
        what = f"{codec.width} x {codec.height} is more than {limit // 1_000_000} megapixels"
        raise video_fault(path, what, "scale it down first")
    codec.options = {"max_pixels": str(limit)}
    codec.thread_type = "AUTO"
    codec.thread_count = min(MAX_THREADS, usable_cores())

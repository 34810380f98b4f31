"""`EncodingSession`: videos to tokens, from pixels or from a `.vqt`; tokens to a `.vqt`."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

import numpy as np
from typing_extensions import Self

from vqedge.budget import Budget
from vqedge.bundle import Manifest
from vqedge.errors import BackendUnavailable, ConfigError, VideoError, VqtError
from vqedge_runtime.answers import Timings, Video
from vqedge_runtime.bridge import Bridge
from vqedge_runtime.budget import checked_budget
from vqedge_runtime.encoders.protocol import Encoder, Frames, Text
from vqedge_runtime.opening import Opening
from vqedge_runtime.stored import (
    origin_from_path,
    read_stored,
    segment_from_codes,
    segments_from_path,
    stamp_from_path,
    video_from_segment,
    write_stored,
)
from vqedge_runtime.tokens import TokenSet, no_tokens
from vqedge_runtime.video import Clip, clip_from_frames, clip_from_path
from vqedge_runtime.video.source import never
from vqedge_runtime.vqt import Header, Segment, header_for, is_vqt
from vqedge_runtime.vqt.fit import fault_of_readers, readers_of
from vqedge_runtime.vqt.header import PART_US

PathLike = str | os.PathLike[str]

_MOST_AT_EXIT_S = 30.0  # for a clip under way
_sessions: WeakSet[EncodingSession] = WeakSet()


class EncodingSession:
    """Turns videos into tokens.

    Owns an encoder and a bridge; close it, or use `with`.

    Threads may share it: they decode side by side and take turns at encoder and bridge.

    Args:
        encoder: frames to codes, or what opens it when it is first needed.
        bridge: codes to tokens.
        manifest: what the bundle says about them.
    """

    def __init__(
        self, encoder: Encoder | Callable[[], Encoder], bridge: Bridge, manifest: Manifest
    ) -> None:
        self.bridge, self.manifest = bridge, manifest
        self._encoder, self._closed = encoder, False
        self._lock = threading.RLock()
        _sessions.add(self)

    @property
    def encoder(self) -> Encoder:
        """Frames to codes; a `.vqt` has its codes and needs none.

        Raises:
            BackendUnavailable: it cannot run here or on this bundle, or this was closed before it
                was needed.
            BundleError: its file cannot be run, or has changed since the bundle was opened.
        """
        opened = self._encoder
        if not callable(opened):  # who wants its name does not wait while another thread encodes
            return opened
        with self._lock:
            if callable(self._encoder):
                self._check_open()
                self._encoder = self._encoder()
            return self._encoder

    def encode(
        self,
        video: PathLike,
        budget: Budget | None = None,
        start_s: float | None = None,
        end_s: float | None = None,
        *,
        stopped: Callable[[], bool] = never,
    ) -> Video:
        """Decode, sample and encode a video, an image, or a folder of frames; or read a `.vqt`.

        Of a `.vqt` the segment that `start_s` lies in is read, whole. Where tokens follow the
        question, frames are kept, and tokens are made of them whenever one is asked.

        Args:
            video: path of the file or folder.
            budget: most tokens to use, or "auto" for as many as the clip needs; the bundle's
                default if not given.
            start_s: start of the span to look at, seconds.
            end_s: end of the span, seconds.
            stopped: whether to give up, as an event's `is_set`; asked now and then while the video
                is decoded.

        Raises:
            Stopped: `stopped` says so.
            VideoError: nothing in the file can be decoded, the span is empty, NaN or outside of it,
                or the path is empty.
            VqtError: a `.vqt` is damaged, of another bundle, or has no one segment for the span.
            ConfigError: start or end is no number; the budget is no whole number or out of range,
                "auto" where the bundle has a fixed one, or one of a `.vqt`, which has its tokens
                already.
            BackendUnavailable: the encoder cannot run here, or this is closed.
            BundleError: the encoder's file cannot be run, or has changed.
        """
        self._check_open()
        start_s, end_s = _seconds("start_s", start_s), _seconds("end_s", end_s)
        if not os.fspath(video):  # to Path it is the current folder
            raise VideoError("the video's path is empty; give a file or a folder")
        path = Path(video)
        if is_vqt(path):
            if budget is not None:
                what = f"{path} has its tokens already; leave the budget out"
                raise ConfigError(f"budget {budget}: {what}")
            return self._read(path, start_s, end_s)
        codes = self.checked_budget(budget)
        spec = self.manifest.encoder
        stamp = stamp_from_path(path)
        clip = clip_from_path(path, spec.frames, spec.size, start_s, end_s, spec.rule, stopped)
        part = (start_s, end_s) != (None, None)
        source = path.absolute()  # now: the process may go elsewhere
        return replace(self._encoded(clip, codes), source=source, part=part, stamp=stamp)

    def encode_segments(self, vqt: PathLike) -> Iterator[Video]:
        """Every segment of a `.vqt`, read one after another as they are asked for.

        Raises:
            VqtError: the file is damaged or of another bundle.
            BackendUnavailable: this is closed.
        """
        began = time.perf_counter()
        for header, segment in segments_from_path(Path(vqt), self.manifest):
            yield self._stored(header, segment, began)
            began = time.perf_counter()

    def save(self, video: Video, path: PathLike, bits: int = 0) -> None:
        """Write an encoded video to a `.vqt`, which this bundle can be asked about instead.

        Args:
            video: what `encode` gave. Its file is read once more, for its sha256.
            path: of the file to write.
            bits: 2 to 8 for a smaller file with each number of a code in so many, for about the
                same answers; 0 for float16 and the very same.

        Raises:
            ConfigError: the bundle's codes are ids, or bits are out of range.
            VideoError: the video's file is gone, or has changed since.
            VqtError: the file cannot be written, there is one of another kind, or the video was
                made with another bundle.
        """
        self._check_ours(video)
        source = video.source
        origin = origin_from_path(source, video.stamp) if isinstance(source, Path) else source
        window_us = PART_US if video.part else 0
        header = header_for(self.manifest, video.budget, origin, window_us, bits)
        codes = video.tokens.codes
        segment = segment_from_codes(codes, video.start_s, video.duration_s, video.times_s)
        write_stored(Path(path), header, segment)

    def encode_frames(
        self,
        frames_thwc: Frames | Sequence[Frames],
        budget: Budget | None = None,
        times_s: Sequence[float] | None = None,
    ) -> Video:
        """Encode frames of a camera or an array; see `clip_from_frames` for which of them.

        Args:
            frames_thwc: uint8 RGB `[N, height, width, 3]`, or a list of N such frames.
            budget: see `encode`.
            times_s: when each frame was shown, in seconds.

        Raises:
            ConfigError: wrong shape, type or times, or the budget is out of range.
            BackendUnavailable: the encoder cannot run here, or this is closed.
            BundleError: the encoder's file cannot be run.
        """
        self._check_open()
        codes, spec = self.checked_budget(budget), self.manifest.encoder
        clip = clip_from_frames(frames_thwc, times_s, spec.frames, spec.size, spec.rule)
        return self._encoded(clip, codes)

    def checked_budget(self, budget: Budget | None) -> int:
        """The budget as the encoder takes it: the bundle's default, or the given one.

        Raises:
            ConfigError: it is out of range, or "auto" where the bundle has a fixed one.
        """
        return checked_budget(self.manifest.quantizer, budget)

    def close(self) -> None:
        """Free the models when no thread is at them; twice is fine."""
        self._closed = True  # first: a thread that has the lock does not take it again
        with self._lock, ExitStack() as stack:
            if not callable(self._encoder) or isinstance(self._encoder, Opening):
                stack.callback(self._encoder.close)
            stack.callback(self.bridge.close)

    def _close_at_exit(self) -> None:
        """Close what is open; not what is being opened, which may take minutes.

        Nor the language model: it does not mind, and may be long.
        """
        if not callable(self._encoder) and self._lock.acquire(timeout=_MOST_AT_EXIT_S):
            try:
                EncodingSession.close(self)
            finally:
                self._lock.release()

    def __enter__(self) -> Self:
        """Itself.

        Raises:
            BackendUnavailable: it is closed.
        """
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _read(self, path: Path, start_s: float | None, end_s: float | None) -> Video:
        """The video that a `.vqt` holds."""
        began = time.perf_counter()
        header, segment = read_stored(path, self.manifest, start_s, end_s)
        return self._stored(header, segment, began)

    def _stored(self, header: Header, segment: Segment, began: float) -> Video:
        read_ms = (time.perf_counter() - began) * 1e3
        with self._lock:
            self._check_open()
            began = time.perf_counter()
            tokens = self.bridge.tokens(segment.codes)
            encode_ms = (time.perf_counter() - began) * 1e3
        return video_from_segment(
            header, segment, tokens, Timings(decode=read_ms, encode=encode_ms)
        )

    def _encoded(self, clip: Clip, budget: int) -> Video:
        tokens, encode_ms = self._tokens(clip.frames_thwc, budget)
        timings = Timings(clip.decode_ms, clip.preprocess_ms, encode_ms)
        frames, to_ask = len(clip.frames_thwc), self._to_ask(clip.frames_thwc)
        return Video(
            tokens,
            clip.duration_s,
            frames,
            clip.times_s,
            timings,
            clip.start_s,
            budget,
            frames_thwc=to_ask,
            encoder="" if to_ask is not None else self.encoder.name,
            note=clip.note,
            readers=readers_of(self.manifest),
        )

    def _to_ask(self, frames: Frames) -> Frames | None:
        """Frames, where tokens are made of them once there is a question; else None."""
        return frames if self.manifest.quantizer.per_question else None

    def _tokens(
        self, frames: Frames, budget: int, text: Text | None = None
    ) -> tuple[TokenSet, float]:
        """Tokens, none where they follow a question and there is none yet; and how long it took."""
        manifest = self.manifest
        if manifest.quantizer.per_question and text is None:
            spec = manifest.encoder
            return no_tokens(spec.frames, spec.grid, manifest.llm.width), 0.0
        with self._lock:
            self._check_open()
            encoder = self.encoder
            began = time.perf_counter()
            tokens = self.bridge.tokens(encoder.encode(frames, budget, text))
            return tokens, (time.perf_counter() - began) * 1e3

    def _check_open(self) -> None:
        if self._closed:
            raise BackendUnavailable(f"this {type(self).__name__} is closed; open the bundle again")

    def _check_ours(self, video: Video) -> None:
        """Refuse what another bundle encoded.

        Raises:
            VqtError: so.
        """
        if video.readers and (fault := fault_of_readers(video.readers, self.manifest)):
            raise VqtError(f"the video was {fault}")


def _seconds(name: str, value: float | None) -> float | None:
    """A number of any kind as a float.

    Raises:
        ConfigError: it is none.
    """
    if value is None:
        return None
    # what NumPy and others raise at no number, or one too large
    with suppress(TypeError, ValueError, RuntimeError, OverflowError):
        number = np.asarray(value)
        if not number.shape and number.dtype.kind in "iufO":
            return float(number)
    raise ConfigError(f"{name} {value!r}: give a number of seconds")


@atexit.register
def _close_encoders() -> None:
    """Free what a daemon thread may be at: ONNX Runtime and OpenVINO abort a process that ends."""
    for session in list(_sessions):
        with suppress(Exception):  # one that fails keeps no other from it
            session._close_at_exit()


os.register_at_fork(after_in_child=_sessions.clear)  # a thread left behind may have their locks

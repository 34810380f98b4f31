"""Many videos to `.vqt` files: decoded ahead in threads, encoded one after another, resumable.

Memory grows neither with the number nor with the length of the videos: a few spans are decoded
ahead, and every segment is written as it comes. A video is walked through once, whatever the number
of its windows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from threading import Event

from vqedge.bundle import Manifest
from vqedge.errors import VideoError, VqedgeError, VqtError, printable
from vqedge.files import is_special, remove_unfinished, replacing
from vqedge_runtime.encoders.protocol import Encoder
from vqedge_runtime.stored import is_current, origin_from_path, segment_from_codes
from vqedge_runtime.video import Clip, Span, clips_from_path, duration_from_path
from vqedge_runtime.video.clip import PastTheEnd
from vqedge_runtime.video.faults import PassingVideoError
from vqedge_runtime.vqt import Header, VqtWriter, header_for, require_video
from vqedge_runtime.vqt.file import most_segments, vqt_errors
from vqedge_runtime.vqt.header import PART_US

_SHORTEST_S = 0.5  # a shorter rest belongs to the window before it


@dataclass(frozen=True)
class Job:
    """A video and the file to make of it."""

    video: Path
    out: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: which.
        size_bytes: of the file.
        segments: in it.
        skipped: it was there already and up to date.
        note: what the user should know of it, or nothing.
        error: why there is no file, or nothing.
    """

    job: Job
    size_bytes: int = 0
    segments: int = 0
    skipped: bool = False
    note: str = ""
    error: str = ""


class _Walk:
    """The clips of one video's windows, decoded one after another in whichever thread is free."""

    def __init__(self, clips: Iterator[Clip]) -> None:
        self._clips = clips
        self._last: Future[Clip] | None = None

    def decode_next(self, pool: ThreadPoolExecutor) -> Future[Clip]:
        """The clip of the next window."""
        self._last = pool.submit(self._after, self._last)
        return self._last

    def _after(self, before: Future[Clip] | None) -> Clip:
        if before is not None:
            wait([before])
        return next(self._clips)


@dataclass(frozen=True)
class _Window:
    """A span of a job's video to decode, the whole without times; or why there is none."""

    job: Job
    header: Header | None = None
    share_done: float = 1.0
    start_s: float | None = None
    end_s: float | None = None
    outcome: Outcome | None = None
    walk: _Walk | None = None


_Ahead = tuple[_Window, Future[Clip] | None]


@dataclass
class BatchEncoder:
    """Encodes jobs with one encoder.

    Attributes:
        encoder: frames to codes, or what opens it when it is first needed.
        manifest: of its bundle.
        budget: as the encoder takes it.
        window_s: length of a segment; None for the whole video.
        span: the part to encode, in one segment; it takes no `window_s`.
        overwrite: encode anew what is up to date, too.
        workers: threads that decode ahead, with a span each in memory.
        bits: of each number of a code in the files, 0 for float16.
        on_progress: told a job and which share of it is done.
        opened: the encoder once it was needed.
    """

    encoder: Encoder | Callable[[], Encoder]
    manifest: Manifest
    budget: int
    window_s: float | None = None
    workers: int = 2
    bits: int = 0
    span: Span = (None, None)
    overwrite: bool = False
    on_progress: Callable[[Job, float], None] = lambda *_: None
    opened: Encoder | None = field(default=None, init=False)
    _given_up: set[Job] = field(default_factory=set, init=False)
    _folders: set[Path] = field(default_factory=set, init=False)
    _stopped: Event = field(default_factory=Event, init=False)

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome, None, None]:
        """Encode every job; one that fails stops no other.

        Whoever closes it early, or is interrupted in it, waits for no more than a frame, or the
        clip in the encoder.

        Yields:
            an outcome a job, in order.

        Raises:
            BackendUnavailable: there is work, and the encoder cannot run here or on this bundle.
            BundleError: there is work, and the encoder's file cannot be run.
        """
        self._stopped, self._given_up, self._folders = Event(), set(), set()
        pool = ThreadPoolExecutor(self.workers)
        try:
            decoded = self._decoded_ahead(pool, jobs)
            for job, clips in groupby(decoded, key=lambda item: item[0].job):
                outcome = self._outcome(job, clips)
                self._given_up.add(job)
                self.on_progress(job, 1.0)
                yield outcome
        finally:
            self._stopped.set()  # nothing is decoded any more unless the caller gave up
            pool.shutdown(cancel_futures=True)

    def _decoded_ahead(self, pool: ThreadPoolExecutor, jobs: Iterable[Job]) -> Iterator[_Ahead]:
        """All windows of all jobs in order, `workers` of them under way."""
        waiting: deque[_Ahead] = deque()
        for window in self._windows(jobs):
            clip = None
            if window.walk:
                if self.opened is None:
                    while waiting:  # they are told, whether or not the encoder opens
                        yield waiting.popleft()
                    self._open()  # ahead of any decoding, beside which no backend is timed
                clip = window.walk.decode_next(pool)
            waiting.append((window, clip))
            if len(waiting) > self.workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _windows(self, jobs: Iterable[Job]) -> Iterator[_Window]:
        for job in jobs:
            try:
                yield from self._windows_of(job)
            except VqedgeError as error:
                yield _Window(job, outcome=Outcome(job, error=str(error)))

    def _windows_of(self, job: Job) -> Iterator[_Window]:
        if is_special(job.out):
            name = printable(str(job.out))
            raise VqtError(f"{name}: is a pipe or a device; give a file's name, or -o -")
        part = self.span != (None, None)
        window_us = PART_US if part else round((self.window_s or 0.0) * 1e6)
        require_video(job.video)
        origin = origin_from_path(job.video)
        header = header_for(self.manifest, self.budget, origin, window_us, self.bits)
        keeps = not (part or self.overwrite)  # a header does not say which part it is of
        if keeps and is_current(job.out, header):
            yield _Window(job, outcome=Outcome(job, job.out.stat().st_size, skipped=True))
            return
        spans = self._spans_of(job.video, most_segments(header))
        spec = self.manifest.encoder
        stopped, shape = self._stopped.is_set, (spec.frames, spec.size)
        walk = _Walk(clips_from_path(job.video, *shape, spans, spec.rule, stopped))
        for number, span in enumerate(spans, start=1):
            if job in self._given_up:
                return
            yield _Window(job, header, number / len(spans), *span, walk=walk)

    def _spans_of(self, video: Path, most: int) -> list[Span]:
        """The windows of a video; one without times if it has no more than one."""
        if self.window_s is None:
            return [self.span]
        duration_s = duration_from_path(video)
        count = _window_count(duration_s, self.window_s)
        if count == 1:
            return [(None, None)]
        if count > most:  # a header may claim any duration
            raise VqtError(
                f"{printable(str(video))}: {count} segments of {self.window_s:g} s, and one file "
                f"is sure to hold only {most}; choose longer ones with --segment"
            )
        window_s = round(self.window_s * 1e6) / 1e6  # as the header says it
        starts_s = [number * window_s for number in range(count)]
        return list(zip(starts_s, [*starts_s[1:], duration_s], strict=True))

    def _outcome(self, job: Job, clips: Iterator[_Ahead]) -> Outcome:
        """Write a job's file, whole or not at all."""
        first, clip = next(clips)
        if first.header is None or clip is None:
            return first.outcome or Outcome(job)
        try:
            with vqt_errors(job.out):
                self._make_folder(job.out.parent)
                with replacing(job.out) as temporary, temporary.open("wb") as file:
                    writer = VqtWriter(file, first.header)
                    note = self._write(writer, chain([(first, clip)], clips))
        except VqedgeError as error:
            return Outcome(job, error=str(error))
        return Outcome(job, writer.size_bytes, writer.segments, note=note)

    def _make_folder(self, folder: Path) -> None:
        """Once a run, without what one that was killed left there."""
        if folder not in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
            self._folders.add(folder)

    def _open(self) -> Encoder:
        if self.opened is None:
            self.opened = self.encoder() if callable(self.encoder) else self.encoder
        return self.opened

    def _write(self, writer: VqtWriter, clips: Iterator[_Ahead]) -> str:
        """Encode and write windows up to the last one that decodes; a note if the rest does not.

        Raises:
            VideoError: none decodes, or what stopped it may be gone at the next try.
        """
        note = ""
        for window, future in clips:
            if future is None:
                break
            try:
                clip = future.result()
            except VideoError as error:
                if isinstance(error, PassingVideoError) or not writer.segments:
                    raise
                note = f"ends at {window.start_s:g} s: {error}"
                if isinstance(error, PastTheEnd):
                    note = error.note
                break
            codes = self._open().encode(clip.frames_thwc, self.budget)
            times = (clip.start_s, clip.duration_s, clip.times_s)
            writer.add(segment_from_codes(codes, *times))
            self.on_progress(window.job, window.share_done)
            note, end_s = clip.note or note, clip.start_s + clip.duration_s
            if window.end_s is not None and end_s < window.end_s - _SHORTEST_S:
                break
        writer.finish()
        return note


def _window_count(duration_s: float, window_s: float) -> int:
    """Windows of a video; a rest that is hardly one is left to the last of them."""
    return max(1, math.ceil((duration_s - min(_SHORTEST_S, window_s / 2)) / window_s))

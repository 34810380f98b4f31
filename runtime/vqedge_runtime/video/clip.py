"""The way from a path to T small RGB frames, evenly spaced in time, of each span asked for."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vqedge.bundle.manifest import MANIFEST_NAME
from vqedge.errors import VideoError
from vqedge.sampling import DEFAULT_RULE, FrameRule
from vqedge_runtime.video.canvas import Canvas
from vqedge_runtime.video.cursor import CannotSeek, Cursor, EndsEarly, Shot
from vqedge_runtime.video.faults import video_fault, video_faults
from vqedge_runtime.video.lengths import (
    LENGTH_SLACK_S,
    Length,
    length_found,
    length_told,
)
from vqedge_runtime.video.notes import note_of_break, note_of_end, note_of_gap
from vqedge_runtime.video.source import Source, check_wanted, never, opened
from vqedge_runtime.vqt import vqt_files

Span: TypeAlias = tuple[float | None, float | None]
"""Start and end in seconds; None for those of the video."""


_IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jxl", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


@dataclass(frozen=True)
class Clip:
    """T frames of one video, sampled evenly in time.

    Attributes:
        frames_thwc: uint8 [T, size, size, 3] RGB, upright, stretched to a square.
        times_s: presentation time of every frame, in seconds from the start of the video; with
            sampling `spans` frame i is the one on screen at
            `start + (i + 0.5) / T * (end - start)`.
        duration_s: length of the span that was asked for, in seconds; 0.0 for an image.
        start_s: start of that span.
        width: of the source as displayed, after rotation, in pixels.
        height: of the source as displayed, after rotation, in pixels.
        decode_ms: wall time of reading and decoding, in milliseconds.
        preprocess_ms: wall time of resizing, rotation and colour conversion, in milliseconds.
        note: what the user should know of it, or nothing.
    """

    frames_thwc: npt.NDArray[np.uint8]
    times_s: tuple[float, ...]
    duration_s: float
    start_s: float
    width: int
    height: int
    decode_ms: float
    preprocess_ms: float
    note: str = ""


class PastTheEnd(VideoError):
    """A span begins after the video's end; `note` is what the user should know of that end."""

    def __init__(self, fault: VideoError, note: str) -> None:
        """Say what `fault` says."""
        super().__init__(str(fault))
        self.note = note


@dataclass(frozen=True)
class _Request:
    path: Path
    frames: int
    size: int
    spans: Sequence[Span]
    rule: FrameRule
    stopped: Callable[[], bool]


@dataclass(frozen=True)
class _Plan:
    """What is believed of a file; every failed attempt at sampling corrects one belief."""

    length: Length | None = None
    ends_early: bool = False
    note: str = ""


def clip_from_path(
    path: Path,
    frames: int,
    size: int,
    start_s: float | None = None,
    end_s: float | None = None,
    rule: FrameRule = DEFAULT_RULE,
    stopped: Callable[[], bool] = never,
) -> Clip:
    """Samples a video, an animation, an image or a folder of images.

    The path is always a local file or folder, even if it looks like a URL, an option or a pattern.
    A folder is read in natural order of its file names, at one image per second; files that are
    not images are ignored. A truncated file is sampled over the part that decodes.

    Args:
        path: the file or folder.
        frames: T, how many frames to sample, at least 1.
        size: side of the square frames in pixels, at least 1.
        start_s: start of the span in seconds; None means the start of the video.
        end_s: end of the span in seconds; None means the end of the video.
        rule: which frames, and how they are shrunk.
        stopped: asked at every packet and frame.

    Raises:
        Stopped: `stopped` says so.
        VideoError: one line that says what is wrong with the file or the span, and the next step.
        ValueError: `frames` or `size` is below 1.
    """
    [clip] = clips_from_path(path, frames, size, [(start_s, end_s)], rule, stopped)
    return clip


def clips_from_path(
    path: Path,
    frames: int,
    size: int,
    spans: Sequence[Span],
    rule: FrameRule = DEFAULT_RULE,
    stopped: Callable[[], bool] = never,
) -> Iterator[Clip]:
    """Samples several spans of a video in one walk from its start to its end.

    What cannot seek, or has hardly a key frame, is decoded once and not again for every span.

    Args:
        path: the file or folder.
        frames: T of each clip, at least 1.
        size: side of the square frames in pixels, at least 1.
        spans: start and end of each in seconds, None as there; none starts before another ends.
        rule: which frames, and how they are shrunk.
        stopped: asked now and then, from where the clips are decoded.

    Yields:
        a clip a span, each when it is asked for.

    Raises:
        Stopped: `stopped` says so.
        VideoError: as `clip_from_path`; that a span lies outside the video, when it is its turn.
        ValueError: `frames` or `size` is below 1.
    """
    if frames < 1 or size < 1:
        raise ValueError(f"frames and size must be at least 1, got {frames} and {size}")
    request = _Request(Path(path), frames, size, spans, rule, stopped)
    for span in spans:
        if (fault := fault_of_span(span)) is not None:
            raise video_fault(request.path, *fault)
    with video_faults(request.path):
        route = _clips_from_folder if request.path.is_dir() else _clips_from_file
        began = time.perf_counter()
        for clip in route(request):
            spent_ms = 1000 * (time.perf_counter() - began)
            yield replace(clip, decode_ms=spent_ms - clip.preprocess_ms)
            began = time.perf_counter()


def duration_from_path(path: Path) -> float:
    """Seconds that a video lasts, as its header says or as reading it tells; 0.0 for an image.

    Raises:
        VideoError: one line that says what is wrong with the file, and the next step.
    """
    with video_faults(path):
        if path.is_dir():
            return float(len(images_in(path)))
        with opened(path) as source:
            return (length_told(source) or length_found(source)).duration_s


def _clips_from_file(request: _Request) -> Iterator[Clip]:
    plan, left = _Plan(), request
    while left.spans:  # every round but the last corrects one belief
        with opened(request.path, request.stopped) as source:
            if plan.length is None:
                told = length_told(source)
                note = note_of_break(request.path, told.duration_s) if told else ""
                plan = replace(plan, length=told, note=note)
            if plan.length is None:
                plan = replace(plan, length=length_found(source))
                continue  # that used the source up
            length = plan.length
            try:
                for clip in _clips_from_source(source, left, plan, length):
                    left = replace(left, spans=left.spans[1:])
                    yield clip
            except CannotSeek:
                plan = replace(plan, length=replace(length, can_seek=False))
            except EndsEarly as early:
                length = replace(length, duration_s=early.end_s)
                note = plan.note or note_of_end(source, early.end_s)
                plan = replace(plan, length=length, ends_early=True, note=note)


def _clips_from_source(
    source: Source, request: _Request, plan: _Plan, length: Length
) -> Iterator[Clip]:
    still, clamp = source.is_still, plan.ends_early
    spans, fault = [], None
    for wanted in request.spans:
        try:
            spans.append(_span(request.path, wanted, plan, still))
        except VideoError as error:  # told when those before it are done
            fault = error
            break
    instants_s = [_instants_s(request, span, source.step_s) for span in spans]
    cursor = Cursor(source, length.can_seek, list(chain(*instants_s)))
    for (_, asked_s), span, at_s in zip(request.spans, spans, instants_s, strict=False):
        cursor.begin_span()
        clip = _clip_from_shots(request, span, at_s, lambda t: cursor.shot_at(t, hold_last=clamp))
        whole = asked_s is not None and asked_s <= span[1] + LENGTH_SLACK_S
        notes = [note_of_gap(cursor.missing_s), "" if whole else plan.note]
        yield replace(clip, note=", and ".join(filter(None, notes)))
    if fault is not None:
        raise fault


def _clips_from_folder(request: _Request) -> Iterator[Clip]:
    images = images_in(request.path)
    held: list[Shot] = []

    def shot_at(instant_s: float) -> Shot:
        index = min(int(instant_s), len(images) - 1)
        if not held or held[0].time_s != index:
            held[:] = [replace(_shot_from_image(images[index]), time_s=float(index))]
        return held[0]

    for wanted in request.spans:
        span = _span(request.path, wanted, _Plan(Length(float(len(images)))), still=False)
        yield _clip_from_shots(request, span, _instants_s(request, span, 1.0), shot_at)


def _clip_from_shots(
    request: _Request,
    span: tuple[float, float],
    instants_s: Sequence[float],
    shot_at: Callable[[float], Shot],
) -> Clip:
    """A clip, without the time that decoding took.

    Raises:
        Stopped: `request.stopped` says so.
    """
    canvas = Canvas(request.frames, request.size, request.rule.resize)
    for instant_s in instants_s:
        check_wanted(request.path, request.stopped)
        canvas.add(shot_at(instant_s))
    return Clip(
        frames_thwc=canvas.frames_thwc,
        times_s=tuple(canvas.times_s),
        duration_s=span[1] - span[0],
        start_s=span[0],
        width=canvas.width,
        height=canvas.height,
        decode_ms=0.0,
        preprocess_ms=1000 * canvas.busy_s,
    )


def _instants_s(request: _Request, span: tuple[float, float], step_s: float) -> list[float]:
    """The middle of every part, of T; or of every chosen frame, of those that `step_s` makes."""
    start_s, end_s = span
    parts, chosen = request.frames, np.arange(request.frames)
    if request.rule.sampling == "ends":
        parts = max(1, round((end_s - start_s) / step_s))
        chosen = np.linspace(0, parts - 1, request.frames, dtype=int)
    return [start_s + (i + 0.5) / parts * (end_s - start_s) for i in chosen.tolist()]


def _shot_from_image(path: Path) -> Shot:
    with video_faults(path), opened(path) as source:
        return Cursor(source, False, [0.0]).shot_at(0.0, hold_last=True)


_FRAMES_WANTED = (
    "the folder holds no images",
    "give a video, or frames as png or jpg; of a folder of videos make .vqt files first, with: "
    "vqedge encode FOLDER -o TOKENS",
)


def images_in(folder: Path, otherwise: tuple[str, str] = _FRAMES_WANTED) -> list[Path]:
    """Images of a folder in natural order of their names.

    Args:
        folder: of frames.
        otherwise: what is wrong with one that holds nothing of ours, and the next step.

    Raises:
        VideoError: there is none.
    """
    images = [entry for entry in folder.iterdir() if is_image(entry) and entry.is_file()]
    if not images:
        raise video_fault(folder, *(_held_instead(folder) or otherwise))
    return sorted(images, key=_natural_key)


def is_image(path: Path) -> bool:
    """Whether a file of this name is a frame of the folder that it lies in."""
    return path.suffix.lower() in _IMAGE_SUFFIXES and path.name[0] != "."


def _held_instead(folder: Path) -> tuple[str, str] | None:
    """What a folder without images holds of ours, if anything, and the next step."""
    if (folder / MANIFEST_NAME).is_file():
        return "is a bundle", "name it with -m, and give a video"
    if any(vqt_files(folder, levels=2)):  # no deeper: it may be a home folder
        return "holds .vqt files, which are encoded already", "name one of them, or give a video"
    return None


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [int(p) if p.isdecimal() else p for p in parts], path.name


def fault_of_span(span: Span, mark: str = "") -> tuple[str, str] | None:
    """What is wrong with a span that no video has, and the next step; None of one that some has.

    Args:
        span: in seconds.
        mark: what the user writes before the names of the ends, as `--`.
    """
    for name, value in zip(("start", "end"), span, strict=True):
        if value is not None and not (math.isfinite(value) and value >= 0):
            return f"{mark}{name} {value} is not a time", "give seconds from 0 up"
    start_s, end_s = span[0] or 0.0, span[1]
    if end_s is None or start_s < end_s:
        return None
    what = f"{mark}start {start_s:g} is not before {mark}end {end_s:g}"
    return what, "give a start below the end"


def _span(path: Path, wanted: Span, plan: _Plan, still: bool) -> tuple[float, float]:
    duration_s = plan.length.duration_s if plan.length else 0.0
    if still and (wanted[0] or wanted[1] is not None):
        raise video_fault(path, "is a still image, without times", "leave out start and end")
    start_s = wanted[0] or 0.0
    end_s = duration_s if wanted[1] is None else wanted[1]
    if start_s and start_s >= duration_s:
        raise PastTheEnd(_outside(path, f"start {start_s:g}", duration_s), plan.note)
    if end_s > duration_s + LENGTH_SLACK_S and not plan.ends_early:
        raise _outside(path, f"end {end_s:g}", duration_s)
    return start_s, min(end_s, duration_s)


def _outside(path: Path, instant: str, duration_s: float) -> VideoError:
    what = f"{instant} is outside the video, which lasts {duration_s:.3f} s"
    return video_fault(path, what, "give a time inside it")

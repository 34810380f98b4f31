"""Between encoded videos and `.vqt` files: what is written of a video, and which part is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from vqedge.bundle import Manifest
from vqedge.errors import VqtError
from vqedge.files import file_sha256, is_special, replacing
from vqedge_runtime.answers import NO_ENCODER, Timings, Video
from vqedge_runtime.tokens import Codes, TokenSet
from vqedge_runtime.video import images_in
from vqedge_runtime.video.clip import fault_of_span
from vqedge_runtime.video.faults import video_fault, video_faults
from vqedge_runtime.video.source import require_media_file
from vqedge_runtime.vqt import (
    Header,
    Origin,
    Segment,
    VqtFile,
    check_fit,
    is_vqt,
    open_vqt,
    vqt_bytes,
)
from vqedge_runtime.vqt.file import vqt_errors

_MICROSECONDS = 1_000_000
_SLACK_US = 500_000  # as for the end of a video


def stamp_from_path(path: Path) -> tuple[int, int]:
    """Size in bytes of a video's file, and time of its last change in nanoseconds.

    Of a folder, all images together and the last of the changes.

    Raises:
        VideoError: it cannot be read.
    """
    with video_faults(path):
        found = [file.stat() for file in (images_in(path) if path.is_dir() else [path])]
        return sum(each.st_size for each in found), max(each.st_mtime_ns for each in found)


def origin_from_path(path: Path, stamp: tuple[int, int] | None = None) -> Origin:
    """Size and sha256 of a video's file, read in pieces; of all images of a folder, in order.

    Args:
        path: the file or folder.
        stamp: what `stamp_from_path` gave when it was encoded, if that is known.

    Raises:
        VideoError: it cannot be read, or has changed.
    """
    origin = _origin_from_path(path)
    if stamp is not None and stamp_from_path(path) != stamp:
        raise video_fault(path, "has changed since it was encoded", "encode it again")
    return origin


def _origin_from_path(path: Path) -> Origin:
    with video_faults(path):
        if not path.is_dir():
            require_media_file(path)
            return Origin(path.stat().st_size, file_sha256(path))
        digest, size_bytes = hashlib.sha256(), 0
        for image in images_in(path):
            digest.update(f"{image.name} {file_sha256(image)}\n".encode("utf-8", "surrogateescape"))
            size_bytes += image.stat().st_size
        return Origin(size_bytes, digest.hexdigest())


def segment_from_codes(
    codes: Codes, start_s: float, duration_s: float, times_s: tuple[float, ...]
) -> Segment:
    """A segment for a file; times that are not known are its start."""
    times = times_s or (start_s,) * len(codes.index_map)
    start_us = _us(start_s)
    duration_us = _us(start_s + duration_s) - start_us  # the next one may begin where this ends
    return Segment(start_us, duration_us, tuple(map(_us, times)), codes)


def write_stored(path: Path, header: Header, segment: Segment) -> None:
    """Write a file of one segment, whole or not at all; its folder is made if missing.

    Raises:
        VqtError: it cannot be written, or a file of another kind is there.
    """
    with vqt_errors(path):
        if is_special(path) or (path.exists() and not is_vqt(path)):
            raise VqtError("is there and no .vqt; give another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(vqt_bytes(header, [segment]))


def read_stored(
    path: Path, manifest: Manifest | None, start_s: float | None, end_s: float | None
) -> tuple[Header, Segment]:
    """The part of a file that a span lies in, if the bundle can read it.

    Args:
        path: the file.
        manifest: of the bundle; None to take a file of any.
        start_s: start of the span in seconds; None means the start of the file.
        end_s: end of the span; None means that of the segment.

    Raises:
        VqtError: damaged, of another bundle, or the span lies in no one segment.
    """
    file = open_vqt(path)
    with vqt_errors(path):
        if manifest is not None:
            check_fit(file.header, manifest)
        return file.header, file.segment(number_at(file, start_s, end_s))


def segments_from_path(path: Path, manifest: Manifest) -> Iterator[tuple[Header, Segment]]:
    """Every segment of a file, which is opened once.

    Raises:
        VqtError: damaged, or of another bundle.
    """
    file = open_vqt(path)
    with vqt_errors(path):
        check_fit(file.header, manifest)
        for number in range(len(file.spans_us)):
            yield file.header, file.segment(number)


def video_from_segment(
    header: Header, segment: Segment, tokens: TokenSet, timings: Timings
) -> Video:
    """The video that a segment of a file holds, with the tokens that its codes became."""
    return Video(
        tokens,
        segment.duration_us / _MICROSECONDS,
        header.frames,
        tuple(time_us / _MICROSECONDS for time_us in segment.times_us),
        timings,
        segment.start_us / _MICROSECONDS,
        header.budget,
        header.origin,
        part=header.window_us > 0,
        encoder=NO_ENCODER,
        readers=(header.codebook_sha256, header.bridge_sha256),
    )


def is_current(path: Path, header: Header) -> bool:
    """Whether a file is there and whole, and encoding again would give it the same header."""
    try:
        return open_vqt(path).header == header
    except VqtError:
        return False


def number_at(file: VqtFile, start_s: float | None, end_s: float | None) -> int:
    """The number of the segment that a span lies in; times in seconds as for `read_stored`.

    Raises:
        VqtError: it lies in no one segment.
    """
    if (fault := fault_of_span((start_s, end_s))) is not None:
        raise VqtError("; ".join(fault))
    spans = file.spans_us
    first_s, last_s = spans[0][0] / _MICROSECONDS, sum(spans[-1]) / _MICROSECONDS
    if start_s is None and end_s is None:
        if len(spans) > 1:
            raise VqtError(
                f"holds {len(spans)} segments from {first_s:g} to {last_s:g} s; "
                "say which with a start in seconds"
            )
        return 0
    start_us = spans[0][0] if start_s is None else _us(start_s)
    if end_s is not None and _us(end_s) <= start_us:
        begins = f"the span begins at {start_us / _MICROSECONDS:g} s"
        raise VqtError(f"{begins}, not before end {end_s:g}; give an end above it")
    for number, (begin_us, length_us) in enumerate(spans):
        if begin_us <= start_us < begin_us + max(length_us, 1):  # an image has no length
            if end_s is None or _us(end_s) <= begin_us + length_us + _SLACK_US:
                return number
            break
    asked = f"{start_us / _MICROSECONDS:g}" + ("" if end_s is None else f" to {end_s:g}")
    raise VqtError(
        f"no single segment holds {asked} s (segments: {len(spans)} of "
        f"{spans[0][1] / _MICROSECONDS:g} s, from {first_s:g} to {last_s:g} s); "
        "give a start alone, within them, to take the segment there"
    )


def _us(seconds: float) -> int:
    return round(seconds * _MICROSECONDS)

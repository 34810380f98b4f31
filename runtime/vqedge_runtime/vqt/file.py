"""Header, segments, an end mark and a checksum: written as a stream, read as a whole."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

from vqedge.errors import VqtError, printable
from vqedge.files import disk_fault
from vqedge_runtime.vqt.header import (
    HEADER_BYTES,
    MAGIC,
    Header,
    check_lead,
    header_from_bytes,
)
from vqedge_runtime.vqt.segment import (
    Segment,
    most_bytes,
    segment_bytes,
    segment_from_bytes,
    span_of,
)

SUFFIX: Final = ".vqt"
MAX_FILE_BYTES: Final = 256 << 20
MAX_SEGMENTS: Final = 1 << 16
_LENGTH = struct.Struct("<I")  # of a segment's body; 0 ends the list
_CHECKSUM = struct.Struct("<I")
_END_BYTES = _LENGTH.size + _CHECKSUM.size
_SHORTEST = HEADER_BYTES + _END_BYTES


@dataclass(frozen=True)
class VqtFile:
    """A file whose checksum is right. Segments are read when asked for.

    Attributes:
        header: what they have in common.
        spans_us: start and length of every segment, in order of time.
        size_bytes: of the file.
    """

    header: Header
    spans_us: tuple[tuple[int, int], ...]
    size_bytes: int
    _bodies: tuple[memoryview, ...]

    def segment(self, number: int) -> Segment:
        """Read one segment.

        Raises:
            VqtError: it holds what cannot be.
        """
        return segment_from_bytes(self._bodies[number], self.header)


class VqtWriter:
    """Writes a file segment by segment, with memory for one.

    Args:
        file: where to write to; stays open.
        header: of the file.
    """

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file, self._header = file, header
        self._checksum, self._end_us = 0, 0
        self.segments = self.size_bytes = 0
        self._write(header.to_bytes())

    def add(self, segment: Segment) -> None:
        """Write the next segment.

        Raises:
            VqtError: it is not one of the header, not later than the last one, or one too many.
        """
        body = segment_bytes(segment, self._header)
        if self.segments and segment.start_us < self._end_us:
            raise VqtError("a segment begins before the last one ends; give them in order of time")
        size_bytes = self.size_bytes + _LENGTH.size + len(body) + _END_BYTES
        if self.segments == MAX_SEGMENTS or size_bytes > MAX_FILE_BYTES:
            raise VqtError("too many segments for one file; choose longer ones with --segment")
        self._write(_LENGTH.pack(len(body)) + body)
        self.segments, self._end_us = self.segments + 1, segment.end_us

    def finish(self) -> None:
        """Write end mark and checksum.

        Raises:
            VqtError: there is no segment.
        """
        if not self.segments:
            raise VqtError("holds no segment; add one before finish()")
        self._write(_LENGTH.pack(0))
        self._write(_CHECKSUM.pack(self._checksum))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)
        self.size_bytes += len(data)


def most_segments(header: Header) -> int:
    """Segments that fit into one file whatever they hold."""
    return min(MAX_SEGMENTS, (MAX_FILE_BYTES - _SHORTEST) // (_LENGTH.size + most_bytes(header)))


def vqt_bytes(header: Header, segments: Iterable[Segment]) -> bytes:
    """A whole file.

    Raises:
        VqtError: as for `VqtWriter`.
    """
    file = BytesIO()
    writer = VqtWriter(file, header)
    for segment in segments:
        writer.add(segment)
    writer.finish()
    return file.getvalue()


def open_vqt(path: Path) -> VqtFile:
    """Read a file and check all but the insides of its segments.

    Raises:
        VqtError: one line that says what is wrong with it, and the next step.
    """
    with vqt_errors(path):
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        return vqt_from_bytes(data)


def vqt_from_bytes(data: bytes) -> VqtFile:
    """Read a file that is in memory; as `open_vqt`.

    Raises:
        VqtError: it is not a `.vqt` of this version, damaged, or beyond the limits.
    """
    check_lead(data)
    if len(data) > MAX_FILE_BYTES:
        raise VqtError(f"larger than {MAX_FILE_BYTES >> 20} MiB; split the video")
    if len(data) < _SHORTEST:
        raise VqtError("ends too early; copy it again")
    view = memoryview(data)
    if _CHECKSUM.unpack(view[-_CHECKSUM.size :])[0] != zlib.crc32(view[: -_CHECKSUM.size]):
        raise VqtError("damaged: its checksum is not right; copy it again")
    header = header_from_bytes(data)
    bodies = tuple(_bodies(view[HEADER_BYTES : -_CHECKSUM.size]))
    spans = tuple(map(span_of, bodies))
    if not spans:
        raise VqtError("holds no segment; encode the video again")
    if any(a + n > b for (a, n), (b, _) in pairwise(spans)):
        raise VqtError("its segments are not in order of time; encode the video again")
    return VqtFile(header, spans, len(data), bodies)


def is_vqt(path: Path) -> bool:
    """Whether a path means a `.vqt`: by its name, or by what the file begins with."""
    if path.suffix.lower() == SUFFIX:
        return not path.is_dir()
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def require_video(path: Path) -> None:
    """Refuse a `.vqt` where a video is to be.

    Raises:
        VqtError: it is one, or would be if it were there.
    """
    if is_vqt(path):
        with vqt_errors(path):
            path.stat()
            raise VqtError("a .vqt is encoded already; give a video")


def vqt_files(folder: Path, levels: int | None = None) -> Iterator[Path]:
    """Every `.vqt` file of a folder and of those below it; each folder's in order of their names.

    Args:
        folder: where to look; what cannot be looked into holds none.
        levels: how many to look into, the folder itself the first; None for all.
    """
    for place, folders, names in os.walk(folder):
        here = Path(place)
        if levels is not None and len(here.relative_to(folder).parts) + 1 >= levels:
            folders.clear()
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIX) and os.path.isfile(here / name):
                yield here / name


@contextmanager
def vqt_errors(path: Path) -> Iterator[None]:
    """One line that begins with the path for whatever is wrong with a file.

    Raises:
        VqtError: in place of VqtError, OSError and ValueError.
    """
    try:
        yield
    except VqtError as error:
        raise VqtError(f"{printable(str(path))}: {error}") from error
    except (FileNotFoundError, NotADirectoryError):
        raise VqtError(f"{printable(str(path))}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        told = disk_fault(error, path) or f"{path}: {why}; check the path and its disk"
        raise VqtError(printable(told)) from error


def _bodies(data: memoryview) -> Iterator[memoryview]:
    """The segments of what lies between header and checksum."""
    at = 0
    for _ in range(MAX_SEGMENTS + 1):
        if at + _LENGTH.size > len(data):
            raise VqtError("ends without its end mark; encode the video again")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if not length:
            break
        if at + length > len(data):
            raise VqtError("a segment is longer than the file; encode the video again")
        yield data[at : at + length]
        at += length
    if at != len(data) or length:
        raise VqtError("holds something after its end mark, or too many segments; encode it again")

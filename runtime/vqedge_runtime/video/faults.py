"""Every way a video can fail, as one printable line: the path, what is wrong, the next step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av.error

from vqedge.errors import VideoError, printable

_CONVERT = "convert it, for example: ffmpeg -i INPUT -c:v libx264 -pix_fmt yuv420p OUTPUT.mp4"
_RECORD = "download it, or record a part of it: ffmpeg -i URL -t 10 clip.mp4"
_WEBP_ANIMATED = 0x02  # of the flags of its first chunk
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # longer than the letter of a drive


class PassingVideoError(VideoError):
    """What says nothing about the file: the disk, memory or time; another try may go well."""


# (exception types, what is wrong, the next step); the first match wins, since PyAV's errors are
# built-in ones, too.
_CAUSES: tuple[tuple[tuple[type[BaseException], ...], str, str], ...] = (
    ((FileNotFoundError, NotADirectoryError), "no such file or folder", "check the path"),
    ((PermissionError,), "may not be read", "give yourself read permission (chmod u+r)"),
    ((MemoryError,), "needs more memory than there is", "give a smaller video"),
    ((TimeoutError, av.error.ExitError), "takes too long to open", _CONVERT),
    ((EOFError,), "ends before its header is complete", "copy or download it again"),
    ((av.error.DecoderNotFoundError,), "its codec is not in this FFmpeg build", _CONVERT),
    ((av.error.InvalidDataError,), "is not a video or image, or is damaged", "check the file"),
    ((NotImplementedError, av.error.PatchWelcomeError), "uses what FFmpeg lacks", _CONVERT),
    ((av.error.FFmpegError,), "cannot be decoded by FFmpeg", _CONVERT),
    ((OSError,), "cannot be read from disk", "check the disk and the length of the path"),
    ((ValueError, ArithmeticError), "holds or is named with values out of range", _CONVERT),
)

_FOREIGN = (
    OSError,
    ValueError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    av.error.FFmpegError,
)


def video_fault(
    path: Path, what: str, next_step: str, kind: type[VideoError] = VideoError
) -> VideoError:
    """The one-line error every part of this package raises: `<path>: <what>; <next step>`."""
    return kind(f"{printable(str(path))}: {what}; {next_step}")


def no_frame_fault(path: Path) -> VideoError:
    """That a file which FFmpeg opens gives no frame."""
    with path.open("rb") as file:
        head = file.read(21)
    if head[8:16] == b"WEBPVP8X" and head[20:] and head[20] & _WEBP_ANIMATED:
        what = "is an animated WebP, which this FFmpeg cannot decode"
        return video_fault(path, what, "convert it to GIF or MP4")
    return video_fault(path, "no frame can be decoded", "check that the file is complete")


@contextmanager
def video_faults(path: Path) -> Iterator[None]:
    """The one place where errors of PyAV and the operating system become `VideoError`.

    Raises:
        VideoError: in place of any expected foreign exception raised inside the block.
    """
    try:
        yield
    except _FOREIGN as error:
        raise _fault_from(path, error) from error


def _fault_from(path: Path, error: BaseException) -> VideoError:
    if isinstance(error, FileNotFoundError) and (url := _URL.match(str(path))):
        slashes = "//" if url[0].lower() == "file:/" else "/"  # a path keeps one of them
        given = f"{url[0]}{slashes}{str(path)[url.end() :]}"
        return VideoError(f"{printable(given)}: is a URL, and only local files are read; {_RECORD}")
    kind = PassingVideoError if _passes(error) else VideoError
    for types, what, next_step in _CAUSES:
        if isinstance(error, types):
            return video_fault(path, what, next_step, kind)
    return video_fault(path, "cannot be decoded by FFmpeg", _CONVERT)


def _passes(error: BaseException) -> bool:
    """Whether it is the system's word, or FFmpeg's about memory or time, not about the file."""
    if isinstance(error, MemoryError | av.error.ExitError):
        return True
    return isinstance(error, OSError) and not isinstance(error, av.error.FFmpegError)

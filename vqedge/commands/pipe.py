"""A video from standard input: `-` in place of a path."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vqedge.errors import VideoError, VqedgeError
from vqedge.files import disk_fault
from vqedge.temporary import temporary_folder
from vqedge_runtime.video import images_in
from vqedge_runtime.video.faults import video_fault, video_faults
from vqedge_runtime.vqt import vqt_files
from vqedge_runtime.vqt.file import SUFFIX, vqt_errors

STDIN = Path("-")
MAX_STDIN_BYTES = 4 << 30
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Given:
    """A video, or many of them encoded.

    Attributes:
        path: the file or folder.
        name: what the user calls it: `-` for a temporary file of what came in.
        stored: the `.vqt` files of a folder of them, where it was asked for.
    """

    path: Path
    name: Path
    stored: tuple[Path, ...] = ()

    def told(self, text: str) -> str:
        """A message about the file, with the user's name for it."""
        return text.replace(str(self.path), str(self.name))


@contextmanager
def given_video(video: Path, *, or_many: bool = False) -> Iterator[Given]:
    """The video; what comes through a pipe lies in a temporary file meanwhile, since FFmpeg seeks.

    Args:
        video: a path, or `STDIN`.
        or_many: a folder of `.vqt` files is welcome too.

    Raises:
        VideoError: there is no such file, it is a pipe itself, or what comes through the pipe
            cannot be kept.
        VqtError: there is no such `.vqt`.
        ConfigError: there is no place for temporary files.
    """
    if video != STDIN:
        refuse_pipe(video)
        stored = tuple(sorted(vqt_files(video))) if or_many and os.path.isdir(video) else ()
        if not stored:
            require_there(video)
        yield Given(video, video, stored)
        return
    with ExitStack() as stack:
        given = Given(_kept_stdin(stack), video)
        try:
            yield given
        except VqedgeError as error:
            error.args = (given.told(str(error)), *error.args[1:])
            raise


def refuse_pipe(video: Path) -> None:
    """Tell how a pipe or a device is read that has a path, as `<(...)` and `/dev/stdin`.

    Raises:
        VideoError: it is one.
    """
    if os.path.exists(video) and not (os.path.isfile(video) or os.path.isdir(video)):
        how = "pipe it into -, as: ... | vqedge ask - 'What moves?'"
        raise video_fault(video, "is not a regular file", how)


def require_there(video: Path) -> None:
    """See that there is a video, before a bundle is opened for it.

    Args:
        video: a path.

    Raises:
        VideoError: there is none, it may not be looked at, or is a folder without images.
        VqtError: the same of a `.vqt`.
    """
    faults = vqt_errors if video.suffix.lower() == SUFFIX else video_faults
    with faults(video):
        video.stat()
        if video.is_dir():
            images_in(video)


def _kept_stdin(stack: ExitStack) -> Path:
    """What comes through the pipe, in a file until the stack is left.

    Raises:
        VideoError: it is more than `MAX_STDIN_BYTES`, or than there is room for.
        ConfigError: there is no place for temporary files.
    """
    folder = stack.enter_context(temporary_folder())
    path = folder / "stdin"
    try:
        _copy_stdin(path)
    except OSError as error:
        told = disk_fault(error, folder.parent)
        if told is None:
            raise
        raise VideoError(f"-: {told}, or set TMPDIR to another folder") from error
    return path


def _copy_stdin(path: Path) -> None:
    copied_bytes = 0
    with path.open("wb") as file:
        while chunk := sys.stdin.buffer.read(_CHUNK_BYTES):
            copied_bytes += len(chunk)
            if copied_bytes > MAX_STDIN_BYTES:
                raise VideoError(
                    f"-: more than {MAX_STDIN_BYTES >> 30} GiB from the pipe; give a file instead"
                )
            file.write(chunk)

"""A video from standard input: `-` in place of a path."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vqedge.errors import VideoError, VqedgeError
from vqedge_runtime.video import images_in
from vqedge_runtime.video.faults import video_faults
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
        VideoError: there is no such file, or too much comes through the pipe.
        VqtError: there is no such `.vqt`.
    """
    if video != STDIN:
        stored = tuple(sorted(vqt_files(video))) if or_many and os.path.isdir(video) else ()
        if not stored:
            require_there(video)
        yield Given(video, video, stored)
        return
    with tempfile.TemporaryDirectory() as folder:
        given = Given(Path(folder) / "stdin", video)
        _copy_stdin(given.path)
        try:
            yield given
        except VqedgeError as error:
            error.args = (given.told(str(error)), *error.args[1:])
            raise


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


def _copy_stdin(path: Path) -> None:
    """Write what comes through the pipe to a file.

    Raises:
        VideoError: it is more than `MAX_STDIN_BYTES`.
    """
    copied_bytes = 0
    with path.open("wb") as file:
        while chunk := sys.stdin.buffer.read(_CHUNK_BYTES):
            copied_bytes += len(chunk)
            if copied_bytes > MAX_STDIN_BYTES:
                raise VideoError(
                    f"-: more than {MAX_STDIN_BYTES >> 30} GiB from the pipe; give a file instead"
                )
            file.write(chunk)

"""Seeing tokens: a clip's frames, the codes over them, when each occurs, and which mattered.

`picture.py` says what there is to see, `sheet.py` lays it out, `canvas.py` draws with Pillow (the
extra `viz`), `palette.py` picks the colours; `png.py`, `html.py` and `mp4.py` write files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vqedge.errors import ConfigError, UsageError
from vqedge.files import disk_fault, is_special, replacing
from vqedge_runtime.viz.picture import Picture

Writer = Callable[[Picture], bytes]


def _png() -> Writer:
    from vqedge_runtime.viz.png import png_from_picture

    return png_from_picture


def _html() -> Writer:
    from vqedge_runtime.viz.html import html_from_picture

    return html_from_picture


def _mp4() -> Writer:
    from vqedge_runtime.viz.mp4 import mp4_from_picture

    return mp4_from_picture


_WRITERS = {".png": _png, ".html": _html, ".mp4": _mp4}


def writer_for(path: Path) -> Writer:
    """What makes a file of the format that its name says.

    Raises:
        UsageError: its end is none of the formats, or a pipe or a device is there.
        ModuleNotFoundError: Pillow is not installed.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(f"-o {path}: give a name that ends in {', '.join(_WRITERS)}")
    if is_special(path):
        raise UsageError(f"-o {path}: is a pipe or a device; give a file's name")
    return _WRITERS[path.suffix.lower()]()


def write_picture(picture: Picture, path: Path) -> None:
    """Write a picture in the format that its name says, whole or not at all, and its folder.

    Raises:
        UsageError: the name's end is none of the formats.
        ConfigError: the file cannot be written.
    """
    data = writer_for(path)(picture)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        why = disk_fault(error, path) or f"{path}: {error.strerror}; give a place to write to"
        raise ConfigError(f"-o {why}") from error


__all__ = ["Picture", "write_picture", "writer_for"]

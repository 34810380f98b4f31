"""Tells where a fragmented MP4 breaks off: FFmpeg stops there in silence, as at the end."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

MAX_BOXES = 200_000  # a fragment has two; what has more is taken for whole
_HEAD_BYTES, _LARGE_HEAD_BYTES = 8, 16
_TO_THE_END_BYTES = 1 << 62  # what a last box may say by a length of 0


def unread_share(path: Path) -> float:
    """Which part of a file lies behind a break in its chain of boxes, from 0 to 1.

    0.0 where the chain reaches the end, where the file is not in fragments, and where an index
    (`sidx`) leads over the break.
    """
    size_bytes, at, kinds = path.stat().st_size, 0, set[bytes]()
    with path.open("rb", buffering=0) as file:
        for _ in range(MAX_BOXES):
            if at >= size_bytes:
                break
            length_bytes, kind = _box_at(file, at)
            if not length_bytes:
                in_fragments = b"moof" in kinds and b"sidx" not in kinds
                return (size_bytes - at) / size_bytes if in_fragments else 0.0
            kinds.add(kind)
            at += length_bytes
    return 0.0


def _box_at(file: BinaryIO, at: int) -> tuple[int, bytes]:
    """Length and kind of a box; 0 if there is none."""
    file.seek(at)
    head = file.read(_LARGE_HEAD_BYTES).ljust(_LARGE_HEAD_BYTES, b"\0")
    length_bytes, kind, large_bytes = struct.unpack(">I4sQ", head)
    if kind == b"mdat" and not length_bytes:
        return _TO_THE_END_BYTES, kind
    is_large = length_bytes == 1
    length_bytes = large_bytes if is_large else length_bytes
    is_box = kind.isalnum() and length_bytes >= (_LARGE_HEAD_BYTES if is_large else _HEAD_BYTES)
    return (length_bytes if is_box else 0), kind

"""The `.vqt` reader gives a file or a `VqtError`, nothing else.

A checksum would hide the parser, so inputs are read with a fitting one, too.
"""

from __future__ import annotations

import struct
import zlib

from tiny_vqt import tiny_file

from vqedge.errors import VqtError
from vqedge_runtime.vqt import vqt_bytes, vqt_from_bytes

MAX_BYTES = 4096


def read_whole(data: bytes) -> None:
    """Read everything; what is read can be written, and reads the same again."""
    try:
        file = vqt_from_bytes(data)
        segments = [file.segment(number) for number in range(len(file.spans_us))]
    except VqtError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 300, line
        return
    again = vqt_from_bytes(vqt_bytes(file.header, segments))
    assert again.header == file.header and again.spans_us == file.spans_us


def one_input(data: bytes) -> None:
    """As it is, and with a fitting checksum."""
    read_whole(data)
    read_whole(data[:-4] + struct.pack("<I", zlib.crc32(data[:-4])))


def seeds() -> list[bytes]:
    """Whole files of both kinds."""
    kinds = ((False, 0), (True, 0), (False, 3))
    return [tiny_file(learned, count, bits) for learned, bits in kinds for count in (1, 2)]

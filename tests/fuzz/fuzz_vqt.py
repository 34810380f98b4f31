"""Coverage-guided fuzzing of the `.vqt` reader: it gives a file or a `VqtError`, nothing else.

    python tests/fuzz/fuzz_vqt.py SECONDS

Needs atheris (`pip install 'vqedge[fuzz]'`). Starts from the files of `seeds`, which are made, not
stored. A checksum would hide the parser from the fuzzer, so inputs get a fitting one.
"""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vqedge_runtime.vqt"]):
    from vqedge_runtime.vqt import vqt_bytes, vqt_from_bytes

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from fuzzing import run
from tiny_vqt import tiny_file

from vqedge.errors import VqtError

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


if __name__ == "__main__":
    run(one_input, seeds(), MAX_BYTES)

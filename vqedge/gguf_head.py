"""The head of a GGUF file, walked before gguf-py reads it, which believes every count there.

Of a file of 49 bytes that promises ten thousand million numbers it makes as many objects.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

MOST_VALUES = 1 << 22  # in lists; a vocabulary of 256,000 with its merges has a third of it
_VERSIONS = (2, 3)
_SIZES_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # by type
_TEXT, _LIST = 8, 9
_KIND_AND_OFFSET_BYTES = 12  # of a tensor, after its name and shape


def check_head(path: Path) -> None:
    """See that a file holds what its head counts, and no more than can be read.

    Raises:
        ValueError: it does not.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).to_the_tensors()


class _Walk:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._place, self._order, self._listed = data, 4, "<", 0

    def to_the_tensors(self) -> None:
        """From the version to where the tensors' bytes begin.

        Raises:
            ValueError: it does not get there.
        """
        version = self._number("I")
        if not version & 0xFFFF:
            version, self._order = version >> 24, ">"
        if version not in _VERSIONS:
            raise ValueError(f"version {version}; want 2 or 3")
        tensors, keys = self._number("Q"), self._number("Q")
        for _ in range(keys):
            self._skip(self._number("Q"))
            self._skip_value(self._number("I"))
        for _ in range(tensors):
            self._skip(self._number("Q"))
            self._skip(8 * self._number("I"))
            self._skip(_KIND_AND_OFFSET_BYTES)

    def _skip_value(self, kind: int) -> None:
        if kind in _SIZES_BYTES:
            self._skip(_SIZES_BYTES[kind])
        elif kind == _TEXT:
            self._skip(self._number("Q"))
        elif kind == _LIST:
            self._skip_list(self._number("I"), self._number("Q"))
        else:
            raise ValueError(f"a value of type {kind}, which is none")

    def _skip_list(self, kind: int, count: int) -> None:
        self._listed += count
        if self._listed > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values in lists")
        if kind == _LIST:
            raise ValueError("a list of lists")  # nor does llama.cpp read it
        if kind in _SIZES_BYTES:
            self._skip(count * _SIZES_BYTES[kind])
            return
        for _ in range(count):
            self._skip_value(kind)

    def _number(self, code: str) -> int:
        size = struct.calcsize(code)
        self._skip(size)
        number: int = struct.unpack_from(self._order + code, self._data, self._place - size)[0]
        return number

    def _skip(self, size: int) -> None:
        self._place += size
        if self._place > len(self._data):
            raise ValueError("it ends before what its head counts")

"""A GGUF file parsed once for all that transformers reads of it, and not before its head is sound.

transformers 4.57 parses the file for the configuration, for the names of the weights and for the
weights, and makes the table of all names anew for every module: six of the ten seconds that a model
of 135M took on two cores. It asks `gguf` for both at every call, so both are kept there meanwhile;
where it asks no more, nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from vqedge.errors import CheckpointError
from vqedge.gguf_head import check_head

_GGUF_READER, _READER = gguf.GGUFReader, "GGUFReader"
_NAMES = (_READER, "get_tensor_name_map")


class PlainReader(gguf.GGUFReader):
    """gguf-py's reader, whose slices of the file are plain arrays.

    It makes one of every string of a vocabulary, 250,000 in all, and a slice of a `np.memmap` takes
    three times as long to make as one of an array.
    """

    @property  # type: ignore[override]
    def data(self) -> npt.NDArray[Any]:
        """The mapped file."""
        return self._data

    @data.setter
    def data(self, mapped: npt.NDArray[Any]) -> None:
        self._data = mapped.view(np.ndarray)


def sound_reader(
    path: str | Path, read: Callable[[str | Path], gguf.GGUFReader] = PlainReader
) -> gguf.GGUFReader:
    """A reader of a file that may be a stranger's.

    Args:
        path: the file.
        read: what makes the reader.

    Raises:
        CheckpointError: the file does not hold what its head counts.
    """
    try:
        check_head(Path(path))
    except ValueError as error:
        told = f"{path}: not a readable GGUF file ({error}); import or copy it again"
        raise CheckpointError(told) from error
    return read(path)


@contextmanager
def parsed_once() -> Iterator[None]:
    """Within it `gguf` parses a file once: a large vocabulary takes 0.2 GB, so not for longer."""
    asked = {name: getattr(gguf, name) for name in _NAMES}
    read = PlainReader if asked[_READER] is _GGUF_READER else asked[_READER]  # within another
    calls = {**asked, _READER: partial(sound_reader, read=read)}
    for name, call in calls.items():
        setattr(gguf, name, lru_cache(maxsize=1)(call))
    try:
        yield
    finally:
        for name, call in asked.items():
            setattr(gguf, name, call)
